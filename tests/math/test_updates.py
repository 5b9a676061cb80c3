"""What an update of the on-policy scripts is made of, from end to end."""

from importlib import import_module
from unittest import mock

import pytest
import torch
from agents import gradient, record
from harness import SCRIPTS, scalars, train
from torch.nn.utils import parameters_to_vector
from torch.optim.optimizer import register_optimizer_step_pre_hook

close = torch.testing.assert_close
EACH_SCRIPT = pytest.mark.parametrize("script", ["reinforce", "reinforce_baseline", "a2c", "ppo"])
WITH_RESET_STEPS = pytest.mark.parametrize("script", ["a2c", "ppo", "trpo"])


def flags_of_one_update(script):
    """PPO makes many updates from a rollout, and TRPO of its value; these flags leave one."""
    return {"ppo": ("--num-minibatches", 1, "--update-epochs", 1), "trpo": ("--vf-epochs", 1)}.get(script, ())


@WITH_RESET_STEPS
@pytest.mark.parametrize("env_id", ["probes:EndsAtFive-v0", "probes:NeverEnds-v0"], ids=["terminated", "truncated"])
@pytest.mark.parametrize(
    ("checkpoint_every", "real_steps"),
    [
        (240, 3 * 3 * (13 * 5 + 2)),  # 80 steps of an environment: 13 episodes of 5 steps, 13 reset steps, 2 steps
        (15, 720),  # each rollout is one episode: the environments are reset at the checkpoint after it
    ],
)
def test_reset_steps_are_left_out(script, env_id, checkpoint_every, real_steps, folder):
    """Episodes have five steps. Where they are terminated, the last observation is zeros and the others are one-hot."""
    flags = ("--num-envs", 3, "--num-steps", 5, "--total-timesteps", 720, "--checkpoint-every", checkpoint_every)
    flags = (*flags, *flags_of_one_update(script), "--eval-episodes", 0)
    _, calls = record(script, "--env-id", env_id, *flags)
    obs = torch.cat([call.batch[0] for call in calls])
    assert len(obs) == real_steps
    if env_id == "probes:EndsAtFive-v0":
        assert (obs.sum(-1) == 1).all()


@WITH_RESET_STEPS
@pytest.mark.parametrize(
    ("env_id", "last_obs", "bootstraps"),
    [
        ("probes:EndsAtFive-v0", [0.0, 0, 0, 0, 0], False),  # terminated at step 5
        ("probes:EndsAtLimit-v0", [0.0, 0, 0, 0, 0], False),  # terminated and truncated at step 5
        ("probes:NeverEnds-v0", [1.0], True),  # truncated at step 5
        ("probes:Endless-v0", [1.0], True),  # the rollout ends, the episode does not
    ],
)
def test_only_termination_stops_the_bootstrap(script, env_id, last_obs, bootstraps, folder):
    """Five steps with reward 1, gamma 0.9 and lambda 1."""
    flags = "--num-envs 2 --num-steps 5 --gamma 0.9 --gae-lambda 1 --total-timesteps 10 --eval-episodes 0"
    _, (call,) = record(script, "--env-id", env_id, *flags.split(), *flags_of_one_update(script))
    expected, R = [], call.agent.value(torch.tensor(last_obs)).item() if bootstraps else 0
    for _ in range(5):
        R = 1 + 0.9 * R
        expected.append(R)
    close(call.batch[3].sort().values, torch.tensor(expected).repeat(2).sort().values)


@WITH_RESET_STEPS
def test_reset_steps_are_left_out_of_statistics(script, folder):
    """The mean of one-hot observations sums to 1; zeros from reset steps would lower it."""
    flags = (*SCRIPTS[script].short, "--norm-obs", "--total-timesteps", 300)
    agent, calls = record(script, "--env-id", "probes:UnequalLengths-v0", *flags, *flags_of_one_update(script))
    assert agent.norm_obs.mean.sum().item() == pytest.approx(1, abs=1e-4)
    assert agent.norm_obs.count[0] == sum(len(call.batch[0]) for call in calls)


@pytest.mark.parametrize("script", ["reinforce_baseline", "a2c", "ppo", "trpo"])
def test_targets_come_from_the_agent_that_acted(script, folder):
    """Before the first update from a rollout, R - A is V(s), and PPO's old policy is the policy."""
    flags = (*SCRIPTS[script].short, "--env-id", "probes:SpyOfLengths-v0", "--total-timesteps", 96)
    _, calls = record(script, *flags, *flags_of_one_update(script))
    assert len(calls) >= 3
    for call in calls:
        obs, action, advantage, returns, *old_log_prob = call.batch
        close(returns - advantage, call.agent.value(obs).detach())
        if script == "ppo":
            close(old_log_prob[0], call.agent.log_prob(obs, action)[0].detach())


@pytest.mark.parametrize("script", ["reinforce_baseline", "a2c", "ppo", "trpo"])
def test_explained_variance_is_that_of_the_values_before_the_update(script, folder):
    """1 - Var(R - V) / Var(R), over the real steps of a rollout."""
    flags = (*SCRIPTS[script].short, "--env-id", "probes:SpyOfLengths-v0", "--total-timesteps", 96)
    _, calls = record(script, *flags, *flags_of_one_update(script))
    (run,) = folder.glob("runs/*")
    logged = [value for _, value in scalars(run)["losses/explained_variance"]]
    assert len(logged) == len(calls) >= 3
    for call, explained in zip(calls, logged, strict=True):
        obs, _, _, returns, *_ = call.batch
        error = (returns - call.agent.value(obs)).detach().numpy()
        assert explained == pytest.approx(1 - error.var() / returns.numpy().var(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("num_minibatches", [1, 4])
def test_each_epoch_of_ppo_is_the_whole_rollout_in_another_order(num_minibatches, folder):
    """Reset steps leave any number of rows; the number of minibatches is still the same, and so are their sizes."""
    flags = ("--num-envs", 3, "--num-steps", 12, "--total-timesteps", 5 * 36, "--eval-episodes", 0)
    flags = (*flags, "--num-minibatches", num_minibatches, "--update-epochs", 3)
    _, calls = record("ppo", "--env-id", "probes:SpyOfLengths-v0", *flags)
    assert len(calls) == 5 * 3 * num_minibatches
    minibatches = [torch.column_stack(call.batch) for call in calls]
    rows_left = set()
    for start in range(0, len(minibatches), 3 * num_minibatches):
        of_rollout = minibatches[start : start + 3 * num_minibatches]
        sizes = [len(minibatch) for minibatch in of_rollout]
        assert max(sizes) - min(sizes) <= 1
        epochs = [torch.cat(of_rollout[k : k + num_minibatches]) for k in range(0, len(of_rollout), num_minibatches)]
        assert len({tuple(epoch[:, 0].tolist()) for epoch in epochs}) == 3, "two epochs in the same order"
        for epoch in epochs:
            assert sorted(epoch.tolist()) == sorted(epochs[0].tolist())
        assert len(set(map(tuple, epochs[0].tolist()))) == len(epochs[0]), "a step was taken twice"
        rows_left.add(len(epochs[0]))
    assert any(rows % 4 for rows in rows_left)


@pytest.mark.parametrize("script", ["reinforce", "reinforce_baseline"])
def test_reinforce_trains_on_the_first_episode_of_each_environment(script, folder):
    """Episodes have 1 to 9 steps; a step of the first one pays 1, and later steps pay 100."""
    module, reported = import_module(script), []
    log_and_save = module.Run.log_and_save

    def look(run, *args):
        reported.append((list(run.envs.return_queue), list(run.envs.length_queue)))
        return log_and_save(run, *args)

    flags = "--env-id probes:FirstEpisodePays-v0 --num-envs 6 --gamma 1 --total-timesteps 500 --eval-episodes 0"
    with mock.patch.object(module.Run, "log_and_save", look):
        _, calls = record(script, *flags.split())
    seen = set()
    for call, (returns, lengths) in zip(calls, reported, strict=True):
        assert returns == lengths
        assert len(lengths) == 6
        # An episode of k steps has the returns k, k - 1, ..., 1.
        expected = sorted(float(k) for length in lengths for k in range(1, length + 1))
        assert sorted(call.batch[-1].tolist()) == expected
        seen |= set(lengths)
    assert seen == set(range(1, 10))


def train_and_look(script, *flags):
    """Train by these flags -> learning rate of each optimizer step, largest norm of a gradient, all calls."""
    rates, norms = [], []

    def look(optimizer, args, kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(parameters_to_vector([p.grad for p in parameters if p.grad is not None]).norm().item())

    hook = register_optimizer_step_pre_hook(look)
    try:
        _, calls = record(script, *flags)
    finally:
        hook.remove()
    return rates, norms, calls


@EACH_SCRIPT
def test_learning_rate_falls_linearly_and_stays_above_0(script, folder):
    """It is set before acting: the first of four rollouts has all of it, the last one has a quarter."""
    row = SCRIPTS[script]
    flags = (*row.short, "--env-id", row.env_ids[0], "--total-timesteps", 4 * row.period, "--learning-rate", 0.01)
    flags = (*flags, *flags_of_one_update(script))
    rates, _, _ = train_and_look(script, *flags)
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    (run,) = folder.glob("runs/*")
    assert [rate for _, rate in scalars(run)["charts/learning_rate"]] == pytest.approx(rates)
    rates, _, _ = train_and_look(script, *flags, "--no-anneal-lr")
    assert rates == [0.01] * 4


@pytest.mark.parametrize("script", ["a2c", "ppo"])
@pytest.mark.parametrize("max_grad_norm", [1e6, 0.01])
def test_gradient_is_of_this_batch_and_no_longer_than_the_bound(script, max_grad_norm, folder):
    """No gradient is left from the step before."""
    row = SCRIPTS[script]
    flags = (*row.short, "--env-id", "Pendulum-v1", "--total-timesteps", 3 * row.period)
    _, norms, calls = train_and_look(script, *flags, "--max-grad-norm", max_grad_norm)
    module, args = import_module(script), import_module(script).Args()
    assert len(norms) == len(calls) >= 3
    for norm, call in zip(norms, calls, strict=True):
        own = gradient(module.loss(call.agent, call.batch, args)[0], call.agent.parameters()).norm().item()
        assert norm == pytest.approx(min(own, max_grad_norm), rel=1e-3)
        assert own > 0.01


@pytest.mark.parametrize("script", ["reinforce", "reinforce_baseline"])
def test_gradient_of_reinforce_is_of_this_batch(script, folder):
    row = SCRIPTS[script]
    flags = (*row.short, "--env-id", row.env_ids[1], "--total-timesteps", 3 * row.period)
    _, norms, calls = train_and_look(script, *flags)
    module, args = import_module(script), import_module(script).Args()
    assert len(norms) == len(calls) == 3
    for norm, call in zip(norms, calls, strict=True):
        own = gradient(module.loss(call.agent, call.batch, args)[0], call.agent.parameters()).norm().item()
        assert norm == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize("script", ["a2c", "ppo"])
def test_acting_policy_is_the_trained_policy(script, folder):
    """With --norm-obs, statistics change after an update, so the policy that is trained is the one that acted."""
    module, acted = import_module(script), {}
    act = module.Agent.act

    def look(agent, obs, greedy=False):
        if not greedy:
            acted.update(zip(map(tuple, obs.tolist()), agent.actor(obs).tolist(), strict=True))
        return act(agent, obs, greedy)

    flags = (*SCRIPTS[script].short, "--norm-obs", "--env-id", "probes:Spy-v0", "--total-timesteps", 96)
    with mock.patch.object(module.Agent, "act", look):
        _, calls = record(script, *flags, *flags_of_one_update(script))
    assert len(calls) == 3
    for call in calls:
        obs = call.batch[0]
        then = torch.tensor([acted[tuple(row)] for row in obs.tolist()])
        close(call.agent.actor(obs).detach(), then)
    means = [call.agent.norm_obs.mean for call in calls]
    assert not torch.equal(means[1], means[2])


@WITH_RESET_STEPS
def test_normalised_rewards_are_trained_on(script, folder):
    """One episode of five steps, gamma 0.9 and lambda 1: the returns are divided by the deviation of G."""
    flags = "--env-id probes:EndsAtFive-v0 --num-envs 3 --num-steps 5 --gamma 0.9 --gae-lambda 1 --total-timesteps 15"
    flags = (*flags.split(), "--norm-reward", *flags_of_one_update(script), "--eval-episodes", 0)
    _, (call,) = record(script, *flags)
    deviation = torch.tensor([1, 1.9, 2.71, 3.439, 4.0951]).std(correction=0)
    expected = torch.tensor([4.0951, 3.439, 2.71, 1.9, 1.0]).repeat_interleave(3) / deviation
    close(call.batch[3].sort().values, expected.sort().values, rtol=1e-4, atol=1e-5)


@WITH_RESET_STEPS
@pytest.mark.parametrize(
    ("checkpoint_every", "running_returns"),
    [(1000, [1, 1.5, 1.75, 1.875, 1.9375, 1.96875]), (6, [1, 1.5, 1.75, 1, 1.5, 1.75])],
)
def test_running_return_goes_on_until_a_checkpoint(script, checkpoint_every, running_returns, folder):
    flags = "--env-id probes:Endless-v0 --num-envs 2 --num-steps 3 --gamma 0.5 --total-timesteps 12 --norm-reward"
    flags = (*flags.split(), *flags_of_one_update(script), "--eval-episodes", 0)
    agent, _ = train(script, *flags, "--checkpoint-every", checkpoint_every)
    expected = torch.tensor(running_returns)
    close(agent.norm_return.mean[0], expected.mean())
    close(agent.norm_return.var[0], expected.var(correction=0))


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("a2c", ("--num-steps", 2, "--norm-adv")),
        ("a2c", ("--num-steps", 2)),
        ("reinforce", ()),
        ("reinforce_baseline", ()),
        ("reinforce_baseline", ("--no-norm-adv",)),
    ],
)
def test_batch_of_one_step_is_no_nan(script, flags, folder):
    """Episodes of one step in one environment: a deviation over one number is 0, not NaN."""
    train(script, "--env-id", "probes:Probe-v0", "--num-envs", 1, "--total-timesteps", 20, "--hidden-size", 4, *flags)
