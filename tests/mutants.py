"""Break the mathematics of each script by one line at a time, and see whether a test turns red.

    python tests/mutants.py                     # each mutation in one of its scripts, which take turns
    python tests/mutants.py --every             # each mutation in each of its scripts
    python tests/mutants.py --only sac

A mutant is a copy of this repository in which one script has one change. It is killed if a test fails: not one of the
learning harness, nor one that compares the scripts with each other or with the README, which any change would fail.
What survives is listed. A table of all goes to --out; the exit status is 1 if fewer than 95 % were killed.
"""

import csv
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from harness import OFF_POLICY, ROOT, SCRIPTS, environment
from tqdm import tqdm

ON_POLICY = tuple(script for script in SCRIPTS if script not in OFF_POLICY)
CRITICS = ("reinforce_baseline", "a2c", "ppo")
ROLLOUTS = ("a2c", "ppo")
WHOLE = ("reinforce", "reinforce_baseline")
ALL = tuple(SCRIPTS)
# What is done, to which scripts, the text of the line that is changed (once in the file), and what it becomes.
MUTATIONS = [
    # Generalized advantage estimates
    ("GAE: a true end is bootstrapped", ROLLOUTS, "gamma * (1 - terminated) * value[1:]", "gamma * value[1:]"),
    ("GAE: a time limit is a death", ROLLOUTS, "(1 - terminated) * value[1:]", "(1 - done) * value[1:]"),
    ("GAE: the value is added, not subtracted", ROLLOUTS, "value[1:] - value[:-1]", "value[1:] + value[:-1]"),
    (
        "GAE: bootstraps from the same observation",
        ROLLOUTS,
        "(1 - terminated) * value[1:]",
        "(1 - terminated) * value[:-1]",
    ),
    ("GAE: no discount of the bootstrap", ROLLOUTS, "reward + gamma * (1", "reward + (1"),
    ("GAE: the sum runs on past a time limit", ROLLOUTS, "gae_lambda * (1 - done)", "gae_lambda * (1 - terminated)"),
    ("GAE: the sum runs on past every end", ROLLOUTS, "gae_lambda * (1 - done)", "gae_lambda"),
    ("GAE: no discount in the sum", ROLLOUTS, "decay = gamma * gae_lambda", "decay = gae_lambda"),
    ("GAE: no lambda", ROLLOUTS, "decay = gamma * gae_lambda", "decay = gamma"),
    ("GAE: the decay of a step before", ROLLOUTS, "decay[t] * advantage[-1]", "decay[t - 1] * advantage[-1]"),
    ("GAE: in the wrong order", ROLLOUTS, "torch.stack(advantage[:0:-1])", "torch.stack(advantage[1:])"),
    # Rollouts
    ("done of a step before in the targets", ROLLOUTS, "terminated, done[1:], args", "terminated, done[:T], args"),
    (
        "steps that end are masked, not those that reset",
        ROLLOUTS,
        "valid, norm_obs = 1 - done[:T]",
        "valid, norm_obs = 1 - done[1:]",
    ),
    (
        "reset steps are not masked",
        ROLLOUTS,
        "valid, norm_obs = 1 - done[:T]",
        "valid, norm_obs = torch.ones_like(done[:T])",
    ),
    ("the value's target lacks the value", ROLLOUTS, "advantage + value[:T], valid)", "advantage, valid)"),
    ("a rollout does not begin where the last ended", ROLLOUTS, "        obs[0], done[0] = obs[T], done[T]\n", ""),
    ("rewards are lost", ROLLOUTS, "obs[t + 1], reward[t], terminated[t]", "obs[t + 1], reward[0], terminated[t]"),
    ("observations go to the wrong row", ROLLOUTS, "obs[t + 1], reward[t]", "obs[t], reward[t]"),
    (
        "statistics of the observations count reset steps",
        ROLLOUTS,
        "norm_obs.update(obs[:T], valid)",
        "norm_obs.update(obs[:T], valid * 0 + 1)",
    ),
    # REINFORCE
    ("returns run on past an end", WHOLE, "gamma * (1 - done[t]) * to_go[-1]", "gamma * to_go[-1]"),
    ("returns are not discounted", WHOLE, "reward[t] + gamma * (1", "reward[t] + (1"),
    ("returns lack the step's own reward", WHOLE, "to_go.append(reward[t] + gamma", "to_go.append(gamma"),
    ("returns are in the wrong order", WHOLE, "torch.stack(to_go[:0:-1])", "torch.stack(to_go[1:])"),
    ("a second episode counts too", WHOLE, "valid.append(valid[-1] * (1 - last_done))", "valid.append(1 - last_done)"),
    ("the mask is a step early", WHOLE, "torch.stack(x[: len(done)]) for x", "torch.stack(x[-len(done) :]) for x"),
    ("statistics count what is played on", WHOLE, "norm_obs.update(obs, valid)", "norm_obs.update(obs, valid * 0 + 1)"),
    ("the baseline is added", ("reinforce_baseline",), "to_go - agent.critic", "to_go + agent.critic"),
    ("no baseline", ("reinforce_baseline",), "to_go - agent.critic(norm_obs)", "to_go"),
    (
        "the critic climbs its error",
        ("reinforce_baseline",),
        "total = l_policy + l_value",
        "total = l_policy - l_value",
    ),
    ("the critic does not learn", ("reinforce_baseline",), "total = l_policy + l_value", "total = l_policy"),
    # Policy and value losses
    (
        "the policy descends",
        ("reinforce", "reinforce_baseline", "a2c"),
        "return -(weight @ (log_prob",
        "return (weight @ (log_prob",
    ),
    (
        "the policy ignores the advantage's sign",
        ("reinforce", "reinforce_baseline", "a2c"),
        "(log_prob * advantage)",
        "(log_prob * advantage.abs())",
    ),
    ("the policy descends", ("ppo",), "return -(weight @ torch.minimum", "return (weight @ torch.minimum"),
    ("PPO: the larger, not the smaller", ("ppo",), "torch.minimum(", "torch.maximum("),
    ("PPO: nothing is clipped", ("ppo",), "clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)", "clipped = ratio"),
    (
        "PPO: clipped from above alone",
        ("ppo",),
        "ratio.clamp(1 - clip_coef, 1 + clip_coef)",
        "ratio.clamp(max=1 + clip_coef)",
    ),
    (
        "PPO: the clipped ratio alone",
        ("ppo",),
        "torch.minimum(ratio * advantage, clipped",
        "torch.minimum(clipped * advantage, clipped",
    ),
    (
        "PPO: the ratio upside down",
        ("ppo",),
        "ratio = (log_prob - old_log_prob).exp()",
        "ratio = (old_log_prob - log_prob).exp()",
    ),
    ("PPO: the ratio is its logarithm", ("ppo",), "(log_prob - old_log_prob).exp()", "(log_prob - old_log_prob)"),
    ("PPO: values clipped to the better error", ("ppo",), "torch.maximum(error,", "torch.minimum(error,"),
    ("PPO: values clipped around the new value", ("ppo",), "clipped = old_value + (value", "clipped = value + (value"),
    ("PPO: one epoch", ("ppo",), "for _ in range(args.update_epochs)", "for _ in range(1)"),
    ("PPO: minibatches are not shuffled", ("ppo",), "torch.randperm(T * N, device", "torch.arange(T * N, device"),
    (
        "PPO: old probabilities of the next observation",
        ("ppo",),
        "agent.log_prob(norm_obs[:T], action)",
        "agent.log_prob(norm_obs[1:], action)",
    ),
    ("PPO: the divergence's wrong sign", ("ppo",), "log_ratio.expm1() - log_ratio", "log_ratio.expm1() + log_ratio"),
    ("PPO: clip fraction of one side", ("ppo",), "(log_ratio.expm1().abs() >", "(log_ratio.expm1() >"),
    ("entropy is punished", ROLLOUTS, "- args.ent_coef * entropy", "+ args.ent_coef * entropy"),
    ("the critic climbs its error", ROLLOUTS, "+ args.vf_coef * l_value", "- args.vf_coef * l_value"),
    ("the value loss has no weight", ROLLOUTS, "+ args.vf_coef * l_value", "+ l_value"),
    ("the value loss is not halved", CRITICS, "return weight @ error / 2", "return weight @ error"),
    ("the value's error is not squared", CRITICS, "error = (value - returns) ** 2", "error = (value - returns).abs()"),
    (
        "reset steps count in the means",
        ON_POLICY,
        "weight = valid / valid.sum().clamp(min=1)",
        "weight = torch.ones_like(valid) / len(valid)",
    ),
    (
        "means are divided by all steps",
        ON_POLICY,
        "weight = valid / valid.sum().clamp(min=1)",
        "weight = valid / len(valid)",
    ),
    ("normalised, but not to mean 0", ON_POLICY, "    x = x - weight @ x\n", ""),
    ("divided by the variance", ON_POLICY, "(weight @ x**2).sqrt()", "(weight @ x**2)"),
    ("explained variance of the wrong sign", CRITICS, "explained = 1 - weight", "explained = 1 + weight"),
    (
        "gradients are not clipped",
        ROLLOUTS,
        "renorm_(2, 0, args.max_grad_norm)",
        "renorm_(2, 0, 1e9)",
    ),
    ("the networks are no parts of what is stepped", ALL, "nn.utils.vector_to_parameters(weights.data, parts)", "pass"),
    ("the parts of a gradient in another order", ALL, "for x in gradients]", "for x in gradients[::-1]]"),
    ("the learning rate is not annealed", ON_POLICY, "(1 - args.anneal_lr * run.step / args.total_timesteps)", "1"),
    ("the learning rate grows", ON_POLICY, "(1 - args.anneal_lr * run.step", "(1 + args.anneal_lr * run.step"),
    # Policies
    (
        "Gaussian: dimensions are averaged",
        ON_POLICY,
        "-(z**2 / 2 + constant).sum(-1)",
        "-(z**2 / 2 + constant).mean(-1)",
    ),
    ("Gaussian: no normalisation by the deviation", ON_POLICY, "constant = self.log_std + math", "constant = math"),
    (
        "Gaussian: the deviation's square",
        ON_POLICY,
        "z = (action - output) / self.log_std.exp()",
        "z = (action - output) / self.log_std.exp() ** 2",
    ),
    (
        "Gaussian: it begins with the deviation for its logarithm",
        ON_POLICY,
        "math.log(args.initial_std)",
        "args.initial_std",
    ),
    ("Gaussian: half the constant", ON_POLICY, "math.log(2 * math.pi) / 2", "math.log(2 * math.pi) / 4"),
    ("Gaussian: the entropy of one dimension", ON_POLICY, "(constant + 0.5).sum()", "(constant + 0.5).mean()"),
    (
        "Gaussian: samples of deviation 1",
        ON_POLICY,
        "output + self.log_std.exp() * torch.randn_like",
        "output + torch.randn_like",
    ),
    ("Gaussian: greedy is sampled", ON_POLICY, "return output if greedy else output + self", "return output + self"),
    ("categorical: no normalisation", ON_POLICY, "log_probs = output.log_softmax(-1)", "log_probs = output"),
    ("categorical: the entropy's sign", ON_POLICY, "-(log_probs.exp() * log_probs)", "(log_probs.exp() * log_probs)"),
    ("categorical: greedy is sampled", ON_POLICY, "(output if greedy else output + noise)", "(output + noise)"),
    ("categorical: never sampled", ON_POLICY, "(output if greedy else output + noise)", "output"),
    ("categorical: the noise's sign", ON_POLICY, "noise = -torch.empty_like", "noise = torch.empty_like"),
    ("actions of observations as they came", ON_POLICY, "self.actor(self.norm_obs(obs))", "self.actor(obs)"),
    # Running statistics
    (
        "statistics: every step counts",
        ON_POLICY,
        "(valid[..., None] * (x - mean) ** k)",
        "((x - mean) ** k + 0 * valid[..., None])",
    ),
    ("statistics: the latest batch's mean", ON_POLICY, "mean += total / count", "mean += total / n"),
    ("statistics: squares around the old mean", ON_POLICY, "/ count - (total / count) ** 2", "/ count"),
    (
        "statistics: divided by the variance",
        ON_POLICY,
        "((x - self.stats[1]) / (self.stats[2] + 1e-8).sqrt())",
        "((x - self.stats[1]) / (self.stats[2] + 1e-8))",
    ),
    ("statistics: the mean is not subtracted", ON_POLICY, "((x - self.stats[1]) /", "(x /"),
    (
        "statistics: nothing ends at ten",
        ON_POLICY,
        ".sqrt()).clamp(-10, 10) if self.on else x",
        ".sqrt()) if self.on else x",
    ),
    (
        "statistics: returns run on past an end",
        ON_POLICY,
        "gamma * valid[t] * discounted[t - 1]",
        "gamma * discounted[t - 1]",
    ),
    ("statistics: rewards, not returns", ON_POLICY, "reward[t] + gamma * valid[t] * discounted[t - 1]", "reward[t]"),
    # Targets of the critics that are told the action
    ("a true end is bootstrapped", OFF_POLICY, "gamma * (1 - terminated) *", "gamma *"),
    ("no discount", OFF_POLICY, "reward + gamma * (1 - terminated)", "reward + (1 - terminated)"),
    ("the bootstrap is subtracted", OFF_POLICY, "reward + gamma * (1", "reward - gamma * (1"),
    ("no reward", OFF_POLICY, "return reward + gamma * (1", "return gamma * (1"),
    (
        "the larger of the critics",
        ("td3", "sac"),
        "(1 - terminated) * {}next_q.amin(0)",
        "(1 - terminated) * {}next_q.amax(0)",
    ),
    (
        "the mean of the critics",
        ("td3", "sac"),
        "(1 - terminated) * {}next_q.amin(0)",
        "(1 - terminated) * {}next_q.mean(0)",
    ),
    ("one critic alone", ("td3", "sac"), "(1 - terminated) * {}next_q.amin(0)", "(1 - terminated) * {}next_q[0]"),
    ("targets by the critic itself", OFF_POLICY, "agent.target_critic(next_obs", "agent.critic(next_obs"),
    ("targets by the actor itself", ("ddpg", "td3"), "agent.target_actor(next_obs)", "agent.actor(next_obs)"),
    ("targets of the same observation", ("ddpg", "td3"), "agent.target_actor(next_obs)", "agent.target_actor(obs)"),
    ("targets of the same observation", ("sac",), "agent.sample(next_obs)", "agent.sample(obs)"),
    ("TD3: noise is not clipped", ("td3",), "(action + noise.clamp(-clip, clip))", "(action + noise)"),
    (
        "TD3: the noisy action is not clipped",
        ("td3",),
        "noise.clamp(-clip, clip)).clamp(-1, 1)",
        "noise.clamp(-clip, clip))",
    ),
    ("TD3: no noise", ("td3",), "(action + noise.clamp(-clip, clip))", "(action + 0 * noise)"),
    ("TD3: noise of deviation 1", ("td3",), "args.policy_noise * torch.randn_like", "torch.randn_like"),
    ("TD3: the actor is not delayed", ("td3",), "    if count % args.policy_frequency:\n        return metrics\n", ""),
    ("TD3: the actor climbs both critics", ("td3",), "agent.actor(obs), K=1)", "agent.actor(obs))"),
    (
        "SAC: entropy is punished in the target",
        ("sac",),
        "next_q.amin(0) - alpha * next_log_prob",
        "next_q.amin(0) + alpha * next_log_prob",
    ),
    ("SAC: no entropy in the target", ("sac",), "next_q.amin(0) - alpha * next_log_prob", "next_q.amin(0)"),
    ("SAC: the temperature is its logarithm", ("sac",), "agent.log_alpha.exp(), reward", "agent.log_alpha, reward"),
    # Their losses
    (
        "the critics' loss is halved",
        OFF_POLICY,
        "((q - target) ** 2).mean(1).sum()",
        "((q - target) ** 2).mean(1).sum() / 2",
    ),
    ("[B] against [B, 1]", OFF_POLICY, "((q - target) ** 2).mean(1)", "((q[..., None] - target) ** 2).mean((1, 2))"),
    (
        "one critic does not learn",
        ("td3", "sac"),
        "((q - target) ** 2).mean(1).sum()",
        "((q - target) ** 2).mean(1)[0]",
    ),
    ("the actor descends", ("ddpg", "td3"), "return -q.mean()", "return q.mean()"),
    ("the actor descends", ("sac",), "(alpha * log_prob - q.amin(0)).mean()", "(alpha * log_prob + q.amin(0)).mean()"),
    ("SAC: the actor flees entropy", ("sac",), "return (alpha * log_prob - q", "return (-alpha * log_prob - q"),
    ("SAC: the actor climbs one critic", ("sac",), "log_prob - q.amin(0)).mean()", "log_prob - q[0]).mean()"),
    ("SAC: the temperature's sign", ("sac",), "return -(log_alpha * (log_prob", "return (log_alpha * (log_prob"),
    ("SAC: the target entropy's sign", ("sac",), "(log_prob + target_entropy)", "(log_prob - target_entropy)"),
    ("SAC: the target entropy of a batch", ("sac",), "-action.shape[-1])", "-action.shape[0])"),
    (
        "SAC: a gradient into alpha from the actor's loss",
        ("sac",),
        "agent.log_alpha.exp().detach())",
        "agent.log_alpha.exp())",
    ),
    ("SAC: a gradient into the actor from alpha's loss", ("sac",), "log_prob.detach(), -action", "log_prob, -action"),
    (
        "SAC: the actor's probability is detached",
        ("sac",),
        "l_actor = actor_loss(agent.critic(obs, action), log_prob,",
        "l_actor = actor_loss(agent.critic(obs, action), log_prob.detach(),",
    ),
    (
        "SAC: the action is detached",
        ("sac",),
        "agent.critic(obs, action), log_prob",
        "agent.critic(obs, action.detach()), log_prob",
    ),
    ("SAC: alpha is learned though it is fixed", ("sac",), "args.autotune * l_alpha", "l_alpha"),
    ("SAC: alpha is never learned", ("sac",), "l_actor + args.autotune * l_alpha", "l_actor"),
    # The squashed Gaussian
    ("SAC: no tanh correction", ("sac",), "(log_normal - log_slope).sum(-1)", "log_normal.sum(-1)"),
    ("SAC: the tanh correction's sign", ("sac",), "(log_normal - log_slope)", "(log_normal + log_slope)"),
    ("SAC: dimensions are averaged", ("sac",), "(log_normal - log_slope).sum(-1)", "(log_normal - log_slope).mean(-1)"),
    ("SAC: half the slope", ("sac",), "log_slope = 2 * (math.log(2)", "log_slope = (math.log(2)"),
    ("SAC: softplus of the wrong sign", ("sac",), "softplus(-2 * u)", "softplus(2 * u)"),
    ("SAC: no normalisation by the deviation", ("sac",), "-(noise**2) / 2 - log_std - math", "-(noise**2) / 2 - math"),
    (
        "SAC: the variance for the deviation",
        ("sac",),
        "u = mean + log_std.exp() * noise",
        "u = mean + (2 * log_std).exp() * noise",
    ),
    ("SAC: actions are not squashed", ("sac",), "return u.tanh(), (", "return u, ("),
    ("SAC: greedy is sampled", ("sac",), "[0].tanh() if greedy else self", "[0].tanh() if False else self"),
    ("SAC: deviations without a bound", ("sac",), "log_std.clamp(-5, 2)", "log_std"),
    # Networks and their targets
    ("critics without a nonlinearity", OFF_POLICY, "x.relu() if layer else x", "x"),
    (
        "twins are one",
        ("td3", "sac"),
        "linears = [mlp(obs_dim + action_dim, hidden, 1)[::2] for _ in range(K)]",
        "linears = [mlp(obs_dim + action_dim, hidden, 1)[::2]] * K",
    ),
    (
        "the critic's target does not move",
        OFF_POLICY,
        "    polyak_update(agent.target_critic, agent.critic, args.tau)\n",
        "",
    ),
    (
        "the actor's target does not move",
        ("ddpg", "td3"),
        "    polyak_update(agent.target_actor, agent.actor, args.tau)\n",
        "",
    ),
    (
        "the critic follows its target",
        OFF_POLICY,
        "polyak_update(agent.target_critic, agent.critic",
        "polyak_update(agent.critic, agent.target_critic",
    ),
    (
        "the target moves by 1 - tau",
        OFF_POLICY,
        "list(networks.parameters()), tau)",
        "list(networks.parameters()), 1 - tau)",
    ),
    ("actions without tanh", ("ddpg", "td3"), "action_dim), nn.Tanh())", "action_dim))"),
    # The replay buffer and what is stored in it
    (
        "a time limit is stored as a death",
        OFF_POLICY,
        "reward[valid, None], terminated[valid, None])",
        "reward[valid, None], next_done[valid, None])",
    ),
    ("reset steps are stored", OFF_POLICY, "valid = (done == 0)", "valid = (done >= 0)"),
    ("steps that end are not stored", OFF_POLICY, "valid = (done == 0)", "valid = (next_done == 0)"),
    (
        "the next observation is the same one",
        OFF_POLICY,
        "action[valid], next_obs[valid], reward",
        "action[valid], obs[valid], reward",
    ),
    (
        "the observation stays the first",
        OFF_POLICY,
        "        obs, done = next_obs, next_done\n",
        "        done = next_done\n",
    ),
    (
        "the latest transition is never sampled",
        OFF_POLICY,
        "torch.randint(min(self.count, len(self.rows)),",
        "torch.randint(min(self.count, len(self.rows)) - 1,",
    ),
    (
        "empty rows are sampled",
        OFF_POLICY,
        "torch.randint(min(self.count, len(self.rows)),",
        "torch.randint(len(self.rows),",
    ),
    (
        "the buffer never turns over",
        OFF_POLICY,
        "device=rows.device) % len(self.rows)]",
        "device=rows.device).clamp(max=len(self.rows) - 1)]",
    ),
    (
        "a larger saved buffer loses its latest",
        OFF_POLICY,
        "rows = rows.roll(-count, 0)[-size:]",
        "rows = rows[-size:]",
    ),
    # Acting
    ("actions beyond the bounds are stored", OFF_POLICY, "noise).clamp(-1, 1)\n", "noise)\n"),
    ("no exploration", ("ddpg", "td3"), "(agent.act(obs) + args.exploration_noise * noise)", "agent.act(obs)"),
    (
        "noise of deviation 1",
        OFF_POLICY,
        "(agent.act(obs) + args.exploration_noise * noise)",
        "(agent.act(obs) + noise)",
    ),
    (
        "random actions of one side",
        OFF_POLICY,
        "action = 2 * torch.rand_like(action) - 1",
        "action = torch.rand_like(action)",
    ),
    ("no random actions at the start", OFF_POLICY, "if before < args.learning_starts:", "if False:"),
    (
        "updates before learning_starts",
        OFF_POLICY,
        "range(int(max(before, args.learning_starts) * args.utd)",
        "range(int(before * args.utd)",
    ),
    (
        "one update for all environments",
        OFF_POLICY,
        "int(run.step * args.utd)):",
        "int((run.step - N + 1) * args.utd)):",
    ),
    ("DDPG: Ornstein-Uhlenbeck noise forgets", ("ddpg",), "0.85 * noise + normal", "normal"),
    ("DDPG: Ornstein-Uhlenbeck noise decays", ("ddpg",), "0.85 * noise + normal", "0.85 * (noise + normal)"),
    # Evaluation and ranks, the same in all
    ("evaluation counts later episodes", ALL, "np.where(ended, 0, reward)", "reward"),
    ("evaluation is sampled", ALL, "device=weight.device), greedy=True)", "device=weight.device))"),
    (
        "ranks' gradients are not weighted",
        ("ppo",),
        "torch.cat([weight * gradient, ",
        "torch.cat([gradient, ",
    ),
    ("ranks' gradients are summed", ("ppo",), "total[:-1] / total[-1].clamp(min=1)", "total[:-1]"),
    (
        "all ranks have the same seeds",
        ("ppo",),
        "[self.args.seed, self.step, self.rank]",
        "[self.args.seed, self.step]",
    ),
    ("every segment has the same seeds", ALL, "[self.args.seed, self.step, self.rank]", "[self.args.seed, self.rank]"),
    (
        "steps of one environment are counted",
        ALL,
        "self.step += self.args.num_envs * self.ranks",
        "self.step += self.ranks",
    ),
    ("actions are not rescaled", ALL, "low + (a.clip(-1, 1) + 1) / 2 * (high - low)", "a.clip(-1, 1)"),
]
FIRST = {  # by family, the tests without a run; then, by the script's name, those with one
    False: ("test_policies.py", "test_ppo_numbers.py", "test_ppo_identities.py", "test_ladder.py", "test_oracle.py"),
    True: ("test_off_policy.py", "test_oracle.py"),
}
THEN = ("test_probes.py", "test_environments.py", "test_resume.py", "test_errors.py", "test_ranks.py")
COLUMNS = ("script", "mutation", "old", "new", "killed", "by")


@dataclass
class Args:
    every: bool = False  # each mutation in each of its scripts; else in one, which take turns
    only: str = ""  # mutants of this script alone
    match: str = ""  # mutants whose description has this in it
    jobs: int = 2  # mutants at a time
    out: Path = ROOT / "benchmarks" / "results" / "mutants.csv"


def mutants(args):
    """(script, what, old, new) of every mutant that is asked for; each changes its script."""
    found = []
    for number, (what, scripts, old, new) in enumerate(MUTATIONS):
        for script in scripts if args.every or args.only else scripts[number % len(scripts) :][:1]:
            brace = "(" if script == "sac" else ""  # sac.py subtracts the entropy in brackets
            before, after = old.replace("{}", brace), new.replace("{}", brace)
            text = (ROOT / f"{script}.py").read_text()
            assert text.count(before) == 1, f"{script}.py has {text.count(before)} times: {before}"
            found.append((script, what, before, after))
    assert len(set(found)) == len(found)
    return [m for m in found if args.only in ("", m[0]) and args.match in m[1]]


def fails(folder, *words):
    """The first test that fails there, or what else went wrong; empty if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *words]
    try:
        ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return "the tests never end"
    assert ended.returncode in (0, 1, 2), ended.stdout + ended.stderr
    lines = re.findall(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", ended.stdout, re.M)
    return "" if ended.returncode == 0 else lines[0] if lines else ended.stdout.strip().splitlines()[-1]


def attempt(mutant):
    """Make the mutant, run the tests on it -> its row of the table."""
    script, what, old, new = mutant
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT, Path(folder, "m"), ignore=shutil.ignore_patterns(".*", "runs", "benchmarks"))
        path = Path(folder, "m", f"{script}.py")
        path.write_text(path.read_text().replace(old, new) if old else path.read_text())
        by = fails(path.parent, *[f"tests/{file}" for file in FIRST[script in OFF_POLICY]])
        by = by or fails(path.parent, "-k", script, *[f"tests/{file}" for file in THEN])
    return dict(zip(COLUMNS, (script, what, old.strip(), new.strip(), bool(by), by), strict=True))


def main(args):
    every = mutants(args)
    for script in tqdm(sorted({script for script, *_ in every}), unit="script", desc="unchanged"):
        failed = attempt((script, "nothing", "", ""))["by"]
        assert not failed, f"{script}.py as it is fails {failed}, which would count as killed"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool, open(args.out, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in tqdm(pool.map(attempt, every), total=len(every), unit="mutant"):
            rows.append(row)
            table.writerow(row)
            file.flush()
            if not row["killed"]:
                tqdm.write(f"survived: {row['script']}.py: {row['mutation']}")
    killed = sum(row["killed"] for row in rows)
    print(f"{killed} of {len(rows)} mutants killed ({killed / len(rows):.1%}) | {args.out}")
    return int(killed < 0.95 * len(rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
