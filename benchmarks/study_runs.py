"""One run of a study: a script, what is changed of it, and what is measured on the way.

studies.py calls run() in a process of its own, for hooks replace functions of the imported script. The script's own
train runs; notes.json then has what was measured, a pair of lists [x, y] for each quantity.
"""

import functools
import importlib
import json
import math
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

sys.path.insert(0, str(common.ROOT))
import a2c
from benchmarks import gridworld

POINTS = 40  # a curve keeps the means of so many equal parts of its run
STATES, PATHS, HORIZON = 64, 128, 1000  # of Monte-Carlo returns: what gamma 0.99 leaves of step 1000 is 4e-5
EPISODES = 256  # whose gradients' variance is measured
GRID = 41  # points along each axis of a picture
RETURN, ENTROPY = "charts/episodic_return", "losses/entropy"


# What is computed ----------------------------------------------------------------------------------------------------


def discounted(reward, gamma):
    """sum_t gamma^t reward[t]; (T, B) -> (B,)"""
    total = torch.zeros_like(reward[0])
    for row in reward.flip(0):
        total = row + gamma * total
    return total


def n_step(reward, value, terminated, done, gamma, n):
    """The n-step return less the value; it ends with the episode, or with the rollout. As gae, (T, N) -> (T, N).

    A[t] = delta[t] + gamma delta[t+1] + ... + gamma^(n-1) delta[t+n-1], of the TD errors that gae sums up, too
         = reward[t] + ... + gamma^(n-1) reward[t+n-1] + gamma^n value[t+n] - value[t]
    """
    delta = reward + gamma * (1 - terminated) * value[1:] - value[:-1]
    advantage, weight, T = torch.zeros_like(delta), torch.ones_like(delta), len(delta)
    for k in range(min(n, T)):
        advantage[: T - k] += weight * delta[k:]
        weight = gamma * weight[:-1] * (1 - done[k : T - 1])
    return advantage


def bias_and_variance(estimate, truth):
    """Squared bias and variance of a return's estimate, each the mean over S states; both (S, K), of K paths -> (), ()

    The mean of the truth over the same paths stands for the true value. By chance alone, the square of a mean
    difference would be its variance / K: that is taken off, so that the expectation is the squared bias.
    """
    difference = estimate - truth
    squared_bias = difference.mean(1) ** 2 - difference.var(1) / difference.shape[1]
    return squared_bias.mean().item(), estimate.var(1).mean().item()


def total_variance(gradients):
    """Trace of the covariance of gradients (M, P), M samples of P weights -> ()"""
    return gradients.var(0).sum().item()


def divergence(old, new):
    """KL(old || new) in nats, the mean over states, of log-probabilities (B, A) -> ()"""
    return (old.exp() * (old - new)).sum(-1).mean().item()


def thin(curve, points=POINTS):
    """A curve {step: value} -> steps and values of so many equal parts: the last step of each, and its mean value."""
    parts, end = {}, max(curve, default=1)
    for step, value in sorted(curve.items()):
        parts.setdefault(math.ceil(step * points / end), []).append((step, value))
    return [part[-1][0] for part in parts.values()], [float(np.mean([y for _, y in part])) for part in parts.values()]


# Policies outside of training ----------------------------------------------------------------------------------------


def states_of(env_id, obs):
    """The simulator's states (B, 4) or (B, 2) that are observed like this: of CartPole-v1, or of Pendulum-v1."""
    return obs if env_id == "CartPole-v1" else torch.stack([torch.atan2(obs[:, 1], obs[:, 0]), obs[:, 2]], 1)


def simulate(policy, env_id, states, steps):
    """Play from each of these states on, with no time limit; a reward after the true end is 0.

    policy: obs (B, D) -> action -> obs (T + 1, B, D), reward (T, B), terminated (T, B): 1 in the step that is the end.
    It is gymnasium's own simulator: that of CartPole steps many at once, and the arithmetic of Pendulum takes arrays.
    """
    cartpole = env_id == "CartPole-v1"
    env = CartPoleVectorEnv(len(states), max_episode_steps=steps + 2) if cartpole else PendulumEnv()
    env.reset(seed=0)
    env.state = states.double().numpy().T.copy()
    first = states if cartpole else torch.stack([states[:, 0].cos(), states[:, 0].sin(), states[:, 1]], 1)
    obs, rewards, ends, alive = [first.float()], [], [], torch.ones(len(states))
    for _ in range(steps):
        action = policy(obs[-1]).numpy()
        next_obs, reward, terminated, *_ = env.step(action if cartpole else 2 * action.clip(-1, 1).T)
        obs.append(torch.as_tensor(next_obs if cartpole else next_obs.T.copy()).float())
        rewards.append(alive * torch.as_tensor(reward).float())
        ends.append(alive * torch.as_tensor(terminated).float())
        alive = alive - ends[-1]
    return torch.stack(obs), torch.stack(rewards), torch.stack(ends)


def visited(module, agent, args, count, steps=100):
    """Observations (count, D) after so many steps of the policy's own, none of them an episode's last."""
    envs = module.make_envs(args, 2 * count)
    obs, _ = envs.reset(seed=0)
    for _ in range(steps):
        obs, _, terminated, truncated, _ = envs.step(agent.act(torch.as_tensor(obs).float()).numpy())
    envs.close()
    return torch.as_tensor(obs[~(terminated | truncated)][:count]).float()


def reward_unit(agent):
    """What a reward of 1 is to the critic, which is taught rewards divided by their returns' running deviation."""
    return (agent.norm_return.var[0] + 1e-8).sqrt()  # the variance is 1 if rewards are not normalised


def predicted_and_collected(module, agent, env_id, obs, gamma):
    """The action value that the actor climbs, of its own actions in these states, and what it then collects; (B,), (B,)

    DDPG and TD3 climb the first critic, SAC the smaller of both. What SAC's critics predict has the entropy of all
    actions but the first in it, so what is collected has it, too: r[0] + sum_t gamma^t (r[t] - alpha log pi[t]).
    """
    bonuses, soft = [], hasattr(agent, "sample")

    def policy(obs):
        if not soft:
            return agent.act(obs)
        action, log_prob = agent.sample(obs)
        bonuses.append(-agent.log_alpha.exp() * log_prob)
        actions.append(action)
        return action

    actions = []
    with torch.no_grad():
        _, reward, _ = simulate(policy, env_id, states_of(env_id, obs), HORIZON)
        if soft:
            reward[1:] += torch.stack(bonuses[1:])
        q = module.q_value(agent.critic, obs, actions[0] if soft else agent.act(obs)).view(-1, len(obs))
    return q.amin(0) if soft else q[0], discounted(reward, gamma)


# What is changed of a script, or noted of its training: hooks(module, notes) ------------------------------------------


def at(fractions, look):
    """A hook: look(module, run, notes) at these fractions of the run, after an update; the training's draws stay."""

    def hook(module, notes):
        log_and_save, left = module.Run.log_and_save, sorted(fractions)

        def changed(run, metrics, optimizer):
            log_and_save(run, metrics, optimizer)
            due = [fraction for fraction in left if run.step >= fraction * run.args.total_timesteps]
            if due:
                del left[: len(due)]
                with torch.random.fork_rng(devices=()):
                    look(module, run, notes)

        module.Run.log_and_save = changed

    return hook


def add(notes, quantity, x, y):
    """Add a point to a curve."""
    for column, number in zip(notes.setdefault(quantity, ([], [])), (x, y), strict=True):
        column.append(number)


def returns_of_n_steps(n):
    def hook(module, notes):
        module.gae = lambda *columns: n_step(*columns[:5], n)

    return hook


def death_at_limits(module, notes):
    """A time limit counts as a death: what is done is terminated."""
    env_step = module.Run.env_step

    def changed(run, action):
        obs, reward, _, done = env_step(run, action)
        return obs, reward, done, done

    module.Run.env_step = changed


def one_critic(module, notes):
    """The target is the first critic's, and not the smaller of two."""
    q_target = module.q_target
    module.q_target = lambda next_q, *rest: q_target(next_q[:1], *rest)


def count_episodes(module, notes):
    """REINFORCE: the mean return of the latest 100 episodes, by how many were played, and when it first is 195."""
    log_and_save, returns, curve = module.Run.log_and_save, [], {}

    def changed(run, metrics, optimizer):
        returns.extend(run.envs.return_queue)
        curve[len(returns)] = np.mean(returns[-100:])
        if len(returns) >= 100 and curve[len(returns)] >= 195 and "episodes_to_195" not in notes:
            add(notes, "episodes_to_195", run.step, len(returns))
        notes["mean_of_100"] = thin(curve)
        log_and_save(run, metrics, optimizer)

    module.Run.log_and_save = changed


def gradient_variances(module, run, notes):
    """Of the policy gradient of an episode, sum_t grad log pi(a|s) (G[t] - b), for three b, over the same episodes."""
    agent, args, N = run.state["agent"], run.args, EPISODES
    envs = module.make_envs(args, N)
    obs, rows, valid = torch.as_tensor(envs.reset(seed=0)[0]).float(), [], torch.ones(N)
    while valid.any():
        action = agent.act(obs).clone()
        next_obs, reward, terminated, truncated, _ = envs.step(action.numpy())
        done = torch.as_tensor(terminated | truncated).float()
        rows.append((obs, action, torch.as_tensor(reward).float(), done, valid))
        obs, valid = torch.as_tensor(next_obs).float(), valid * (1 - done)
    envs.close()
    obs, action, reward, done, valid = (torch.stack(column) for column in zip(*rows, strict=True))
    to_go = module.returns_to_go(reward, done, args.gamma)
    with torch.no_grad():
        baselines = {
            "none": torch.zeros_like(to_go),
            "constant": ((valid * to_go).sum() / valid.sum()).expand_as(to_go),
            "learned": agent.value(obs),
        }
    for name, baseline in baselines.items():
        gradients = []
        for n in range(N):
            steps = valid[:, n] == 1
            log_prob, _ = agent.log_prob(obs[steps, n], action[steps, n])
            loss = -(log_prob * (to_go - baseline)[steps, n]).sum()
            parts = torch.autograd.grad(loss, list(agent.actor.parameters()))
            gradients.append(torch.cat([part.flatten() for part in parts]))
        add(notes, f"gradient_variance_{name}", run.step, total_variance(torch.stack(gradients)))


ESTIMATORS = {f"n={n}": functools.partial(n_step, n=n) for n in (1, 5, 16, 64, 128)}
ESTIMATORS |= {f"lambda={x}": functools.partial(a2c.gae, gae_lambda=x) for x in (0, 0.5, 0.9, 0.95, 1)}


def estimators(module, run, notes):
    """Squared bias and variance of each estimate of the return from a state, as its rollout's first step has it."""
    agent, args = run.state["agent"], run.args
    start = visited(module, agent, args, STATES).repeat_interleave(PATHS, 0)
    obs, reward, terminated = simulate(agent.act, args.env_id, states_of(args.env_id, start), HORIZON)
    truth, T, unit = discounted(reward, args.gamma), args.num_steps, reward_unit(agent)
    with torch.no_grad():
        value = agent.value(obs[: T + 1]) * unit
    columns = reward[:T], value, terminated[:T], terminated[:T], args.gamma
    add(notes, "value_variance", run.step, truth.view(-1, PATHS).mean(1).var().item())
    for name, estimator in ESTIMATORS.items():
        estimate = estimator(*columns)[0] + value[0]
        squared_bias, variance = bias_and_variance(estimate.view(-1, PATHS), truth.view(-1, PATHS))
        add(notes, "squared_bias", name, squared_bias)
        add(notes, "variance", name, variance)


def divergence_per_rollout(module, notes):
    """How far a rollout's updates move the policy: the KL divergence of the new from the old, on their first batch."""
    backward, log_and_save, before, curve = module.backward, module.Run.log_and_save, [], {}

    def log_probs(agent, obs):
        with torch.no_grad():
            return agent.actor(obs).log_softmax(-1)

    def noted(loss, agent, batch, args):
        if not before:
            before.extend([batch[0], log_probs(agent, batch[0])])
        return backward(loss, agent, batch, args)

    def compared(run, metrics, optimizer):
        obs, old = before
        curve[run.step] = divergence(old, log_probs(run.state["agent"], obs))
        notes["divergence"] = thin(curve)
        before.clear()
        log_and_save(run, metrics, optimizer)

    module.backward, module.Run.log_and_save = noted, compared


def value_gap(module, run, notes):
    """Predicted and collected action values, in states of the replay buffer."""
    obs = run.state["buffer"].sample(2 * STATES)[0]
    pair = predicted_and_collected(module, run.state["agent"], run.args.env_id, obs, run.args.gamma)
    for name, values in zip(("predicted", "collected"), pair, strict=True):
        add(notes, name, run.step, values.mean().item())


def state_value_gap(module, run, notes):
    """Predicted state values and what is collected on, time limits aside, in states that the policy visits."""
    agent, args = run.state["agent"], run.args
    obs = visited(module, agent, args, 2 * STATES)
    with torch.no_grad():
        predicted = agent.value(obs) * reward_unit(agent)
    _, reward, _ = simulate(agent.act, args.env_id, states_of(args.env_id, obs), HORIZON)
    add(notes, "predicted", run.step, predicted.mean().item())
    add(notes, "collected", run.step, discounted(reward, args.gamma).mean().item())


def pendulum_axes():
    """Angles (rad, 0 is up) and angular velocities (rad/s) of the pictures."""
    return np.linspace(-np.pi, np.pi, GRID), np.linspace(-8, 8, GRID)


def pendulum_picture(module, run, notes):
    """Value and greedy torque (N m) over the states of Pendulum, (velocity, angle)."""
    agent = run.state["agent"]
    angle, velocity = np.meshgrid(*pendulum_axes())
    obs = torch.as_tensor(np.stack([np.cos(angle), np.sin(angle), velocity], -1).reshape(-1, 3)).float()
    with torch.no_grad():
        action = agent.act(obs, greedy=True)
        if hasattr(agent, "value"):
            value = agent.value(obs) * reward_unit(agent)
        else:
            value = module.q_value(agent.critic, obs, action).amin(0)
    notes["value"] = [GRID, GRID], value.tolist()
    notes["torque"] = [GRID, GRID], (2 * action[:, 0].clamp(-1, 1)).tolist()


def grid_picture(module, run, notes):
    """Values of all cells at this step, and the greedy actions."""
    agent, cells, size = run.state["agent"], torch.eye(gridworld.SIZE**2), [gridworld.SIZE] * 2
    with torch.no_grad():
        notes[f"value at {run.step}"] = size, agent.value(cells).tolist()
        notes[f"action at {run.step}"] = size, agent.act(cells, greedy=True).tolist()


# The studies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Runs of one kind: a script, its flags, its hooks, tags of its log to keep, a return that solves it."""

    script: str
    flags: str = ""
    hooks: tuple = ()
    tags: tuple = (RETURN,)
    solved: float | None = None


@dataclass(frozen=True)
class Study:
    """A claim's settings by name, and the seeds that each is run with."""

    settings: dict
    seeds: str


EIGHTHS = tuple(k / 8 for k in range(1, 9))
# Small networks and batches learn Pendulum as well, at a fifth of the time.
SMALL = "--hidden-size 64 --batch-size 128"
PPO_PENDULUM = (
    "--env-id Pendulum-v1 --gamma 0.95 --learning-rate 0.001 --num-minibatches 16 --update-epochs 10 --norm-reward"
)
PPO_CAR = (
    "--env-id MountainCarContinuous-v0 --total-timesteps 300000 --num-envs 16 --num-steps 256 --num-minibatches 16"
    " --update-epochs 10 --gamma 0.999 --learning-rate 3e-4 --ent-coef 0.01 --norm-obs --norm-reward"
)
A2C_PENDULUM = (
    "--env-id Pendulum-v1 --total-timesteps 1000000 --num-envs 8 --gamma 0.95 --gae-lambda 0.95 --norm-adv"
    " --learning-rate 2e-3 --norm-reward"
)
GRIDWORLD = "--env-id benchmarks.gridworld:Gridworld-v0"


def estimator_settings():
    """The same rollouts of 128 steps for all: what differs is the estimate. lambda 0 is n = 1, and 1 is n = 128."""
    settings = {
        "CartPole-v1 reinforce": Setting("reinforce", solved=195),
        "CartPole-v1 reinforce_baseline": Setting("reinforce_baseline", solved=195),
    }
    for env, script, flags in (
        ("CartPole-v1", "a2c", "--num-steps 128 --num-envs 4 --total-timesteps 100000"),
        ("Pendulum-v1", "ppo", f"{PPO_PENDULUM} --num-steps 128 --num-envs 16 --total-timesteps 60000"),
    ):
        solved = 195 if env == "CartPole-v1" else -300
        for name in ESTIMATORS:
            kind, number = name.split("=")
            if kind == "n":
                settings[f"{env} {name}"] = Setting(script, flags, (returns_of_n_steps(int(number)),), solved=solved)
            elif 0 < float(number) < 1:
                hooks = (at([0.25], estimators),) if name == "lambda=0.95" else ()
                settings[f"{env} {name}"] = Setting(script, f"{flags} --gae-lambda {number}", hooks, solved=solved)
    return settings


def off_policy(script, total, flags="", *hooks):
    """Long enough that the second half is free of the start, when values are 0 and returns far below."""
    return Setting(script, f"{SMALL} --total-timesteps {total} {flags}".strip(), (*hooks, at(EIGHTHS, value_gap)))


STUDIES = {
    "variance": Study(
        {
            "returns as they are": Setting("reinforce", "--no-norm-returns", (count_episodes,)),
            "returns normalised": Setting("reinforce", hooks=(count_episodes,)),
            "learned baseline": Setting(
                "reinforce_baseline",
                hooks=(count_episodes, at((0, 0.05, 0.1, 0.2, 0.4, 0.7, 1), gradient_variances)),
            ),
        },
        "1-10",
    ),
    "estimators": Study(estimator_settings(), "1-5"),
    "entropy": Study(
        {
            f"{env} {coefficient}": Setting("a2c", f"{flags} --ent-coef {coefficient}", tags=(RETURN, ENTROPY))
            for env, flags in (
                ("CartPole-v1", "--num-envs 8 --num-steps 5 --total-timesteps 50000"),
                (
                    "Gridworld-v0",
                    f"{GRIDWORLD} --num-envs 8 --num-steps 5 --total-timesteps 30000 --learning-rate 0.01",
                ),
            )
            for coefficient in (0, 0.01, 0.05)
        },
        "1-8",
    ),
    "clipping": Study(
        {
            f"ppo, clip {name}": Setting(
                "ppo",
                f"--update-epochs 10 --clip-coef {coefficient}",
                (divergence_per_rollout,),
                (RETURN, "losses/clipfrac"),
            )
            for name, coefficient in (("0.1", 0.1), ("0.2", 0.2), ("0.4", 0.4), ("none", 1e9))
        }
        | {
            f"a2c, step {rate}": Setting(
                "a2c",
                f"--total-timesteps 200000 --learning-rate {rate}",
                (divergence_per_rollout,),
                (RETURN, ENTROPY),
            )
            for rate in (0.003, 0.03, 0.1)
        },
        "1-5",
    ),
    "overestimation": Study({script: off_policy(script, 12000) for script in ("ddpg", "td3", "sac")}, "1-5"),
    "fixes": Study(
        {
            "td3": off_policy("td3", 10000),
            "one critic in the target": off_policy("td3", 10000, "", one_critic),
            "no noise on the target's action": off_policy("td3", 10000, "--policy-noise 0"),
            "no delay": off_policy("td3", 10000, "--policy-frequency 1"),
            "ddpg": off_policy("ddpg", 10000),
        },
        "1-5",
    ),
    "temperature": Study(
        {"learned": Setting("sac", f"{SMALL} --total-timesteps 6000", tags=(RETURN, ENTROPY, "losses/alpha"))}
        | {
            f"fixed at {alpha}": Setting(
                "sac",
                f"{SMALL} --total-timesteps 6000 --no-autotune --alpha {alpha}",
                tags=(RETURN, ENTROPY, "losses/alpha"),
            )
            for alpha in (0.05, 0.2, 1)
        },
        "1-5",
    ),
    "truncation": Study(
        {
            f"{env}, {name}": Setting("ppo", flags, (*hooks, *more), (RETURN, "losses/explained_variance"))
            for env, flags, more in (
                (
                    "Pendulum-v1",
                    f"{PPO_PENDULUM} --num-steps 64 --total-timesteps 100000",
                    (at(EIGHTHS, state_value_gap),),
                ),
                ("MountainCarContinuous-v0", PPO_CAR, ()),
            )
            for name, hooks in (("bootstrapped", ()), ("as a death", (death_at_limits,)))
        },
        "1-5",
    ),
    "pictures": Study(
        {
            script: Setting(script, flags, (at([1], pendulum_picture),))
            for script, flags in (
                ("a2c", A2C_PENDULUM),
                ("ppo", f"{PPO_PENDULUM} --num-steps 64 --total-timesteps 100000"),
                ("td3", f"{SMALL} --total-timesteps 6000"),
                ("sac", f"{SMALL} --total-timesteps 6000"),
            )
        }
        | {
            "gridworld": Setting(
                "a2c", f"{GRIDWORLD} --total-timesteps 100000", (at((0, 0.03, 0.1, 0.3, 1), grid_picture),)
            )
        },
        "1",
    ),
}


def run(study, name, seed, flags, folder):
    """Change the script, train by it, and leave the notes; all in this folder, to which the outputs go, too."""
    os.chdir(folder)
    for number, stream in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    setting, notes = STUDIES[study].settings[name], {}
    module = importlib.import_module(setting.script)
    for hook in setting.hooks:
        hook(module, notes)
    own = shlex.split(setting.flags)
    sys.argv = [f"{setting.script}.py", *own, *flags, "--seed", seed, "--num-threads", "1", "--device", "cpu"]
    module.main()
    (run_folder,) = Path("runs").iterdir()
    for tag, curve in zip(setting.tags, common.read_scalars(run_folder, *setting.tags), strict=True):
        notes[tag.partition("/")[2]] = thin(curve)
    if setting.solved is not None:
        step = common.solved_at(run_folder, setting.solved)
        notes["solved"] = [setting.solved], [math.nan if step is None else step]
    notes["cpu_seconds"] = [], [time.process_time()]
    Path("notes.json").write_text(json.dumps(notes))
