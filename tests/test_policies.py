"""What the four on-policy scripts share, each in its own copy: policies and running statistics."""

from importlib import import_module
from math import e, log, pi, sqrt

import numpy as np
import pytest
import torch
from harness import OFF_POLICY, SCRIPTS, train
from torch.distributions import Categorical

close = torch.testing.assert_close


@pytest.fixture(params=[script for script in SCRIPTS if script not in OFF_POLICY])
def module(request):
    return import_module(request.param)


def column(*numbers):
    return torch.tensor(numbers)[:, None]


def agent_and_decisions(module, env_id, size=40, **flags):
    """An agent of random weights, observations, and its actions."""
    args = module.Args(env_id=env_id, hidden_size=16, **flags)
    rng = torch.manual_seed(3)
    agent = module.Agent(module.make_envs(args, 1), args)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    obs = torch.randn(size, agent.actor[0].in_features, generator=rng)
    return agent, obs, agent.act(obs).clone()


def test_discrete_policy_is_the_softmax_of_the_actor(module):
    agent, obs, action = agent_and_decisions(module, "CartPole-v1")
    policy = Categorical(logits=agent.actor(obs))
    log_prob, entropy = agent.log_prob(obs, action)
    close(log_prob, policy.log_prob(action))
    close(entropy, policy.entropy())
    assert torch.equal(agent.act(obs, greedy=True), agent.actor(obs).argmax(-1))


def test_gaussian_log_probability_sums_over_the_action_dimensions(module):
    args = module.Args(env_id="probes:Spy-v0")
    agent = module.Agent(module.make_envs(args, 1), args)
    with torch.no_grad():
        agent.log_std.copy_(torch.tensor([-1.0, 0.5, 0.2]))
    obs, action = torch.randn(6, 3), torch.randn(6, 3)
    mean, std = agent.actor(obs).detach().double().numpy(), agent.log_std.detach().double().exp().numpy()
    per_dimension = -0.5 * ((action.numpy() - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    log_prob, entropy = agent.log_prob(obs, action)
    close(log_prob, torch.tensor(per_dimension.sum(-1), dtype=torch.float32))
    close(entropy, torch.full((6,), float((0.5 * np.log(2 * np.pi * np.e) + np.log(std)).sum())))
    assert torch.equal(agent.act(obs, greedy=True), agent.actor(obs))


def test_a_gaussian_begins_with_the_initial_deviation(module):
    args = module.Args(env_id="probes:Spy-v0", initial_std=0.25)
    torch.manual_seed(0)
    agent, size = module.Agent(module.make_envs(args, 1), args), 20_000
    close(agent.log_std, torch.full((3,), log(0.25)))
    action = agent.act(torch.zeros(size, 3))
    assert ((action.std(0) / 0.25 - 1).abs() < 4 / (2 * size) ** 0.5).all()


def test_sampled_actions_follow_the_policy(module):
    """Relative frequencies of three actions, mean and deviation of a Gaussian: within four standard errors."""
    torch.manual_seed(0)
    size = 20_000
    agent, obs, _ = agent_and_decisions(module, "Acrobot-v1")
    frequency = torch.bincount(agent.act(obs[:1].expand(size, -1))) / size
    probability = agent.actor(obs[:1]).softmax(-1)[0]
    assert probability.max() - probability.min() > 0.1
    assert ((frequency - probability).abs() < 4 * 0.5 / size**0.5).all()
    agent, obs, _ = agent_and_decisions(module, "Pendulum-v1")
    action, std = agent.act(obs[:1].expand(size, -1)), agent.log_std.exp().item()
    assert abs(action.mean() - agent.actor(obs[:1]).item()) < 4 * std / size**0.5
    assert abs(action.std() / std - 1) < 4 / (2 * size) ** 0.5


def test_actions_are_of_the_normalised_observation(module):
    """Sampled or greedy, they are the policy's for what --norm-obs makes of what is observed."""
    agent, obs, _ = agent_and_decisions(module, "Pendulum-v1", norm_obs=True)
    agent.norm_obs.update(5 + 3 * torch.randn(50, 1, 3), torch.ones(50, 1))
    assert torch.equal(agent.act(obs, greedy=True), agent.actor(agent.norm_obs(obs)))
    torch.manual_seed(0)
    sample = agent.act(obs)
    agent.norm_obs.on = False
    torch.manual_seed(0)
    assert (sample - agent.act(obs)).abs().max() > 0.01


def test_the_policy_that_acts_is_the_one_that_is_trained(module, folder, monkeypatch):
    """A rollout is trained on as it was seen when it was acted on: new statistics are for the next."""
    acted, trained = [], []
    act, update = module.Agent.act, module.update

    def note_act(agent, obs, greedy=False):
        if not greedy and obs.dim() == 2:
            acted.extend(map(tuple, agent.norm_obs(obs).tolist()))
        return act(agent, obs, greedy)

    def note_update(agent, optimizer, batch, args):
        trained.append(batch[0].tolist())
        return update(agent, optimizer, batch, args)

    monkeypatch.setattr(module.Agent, "act", note_act)
    monkeypatch.setattr(module, "update", note_update)
    row = SCRIPTS[module.__name__]
    whole = ("--update-epochs", 1, "--num-minibatches", 1) if module.__name__ == "ppo" else ()
    train(
        module.__name__, *row.short, *whole, "--env-id=probes:Spy-v0", "--norm-obs", "--total-timesteps", 3 * row.period
    )
    assert len(trained) == 3
    assert sorted(acted) == sorted(tuple(obs) for batch in trained for obs in batch)


def merged(norm, *batches):
    for x, valid in batches:
        norm.update(x, valid)
    return norm


def test_running_statistics_of_batches_are_those_of_all_valid_steps(module):
    rng = np.random.default_rng(0)
    batches = []
    for steps, shift in ((5, 0), (3, 7), (9, -20)):
        x = torch.tensor(rng.normal(shift, 1 + abs(shift), (steps, 4, 3)), dtype=torch.float32)
        valid = torch.tensor(rng.random((steps, 4)) < 0.7).float()
        x[valid == 0] = 1e4  # what a reset step holds must not count
        batches.append((x, valid))
    seen = np.concatenate([x[valid == 1].numpy().astype(np.float64) for x, valid in batches])
    x = torch.tensor(rng.normal(0, 10, (6, 3)), dtype=torch.float32)
    expected = (x.numpy() - seen.mean(0)) / seen.std(0)
    close(
        merged(module.RunningNorm(3, True), *batches)(x),
        torch.tensor(expected, dtype=torch.float32),
        rtol=1e-4,
        atol=1e-5,
    )


def test_running_statistics_survive_an_offset(module):
    """Sums of squares would lose a deviation of 0.1 around 100 in single precision; a merge about the mean does not."""
    x = 100 + 0.1 * torch.randn(50, 20, 4, generator=torch.manual_seed(0))
    norm = merged(module.RunningNorm(4, True), *((part, torch.ones(1, 20)) for part in x.split(1)))
    close(norm(x).std((0, 1)), torch.ones(4), rtol=0, atol=0.01)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.1, 12.3, 50.7, 333.3, -1.1])
def test_an_observation_that_never_changes_stays_finite(module, constant):
    """Rounding must not make its variance negative, whose root is NaN."""
    x = torch.full((64, 16, 1), constant)
    norm = merged(module.RunningNorm(1, True), *[(x, torch.ones(64, 16))] * 5)
    assert norm(x).isfinite().all()


def test_normalised_observations_end_at_ten(module):
    norm = merged(
        module.RunningNorm(1, True), (torch.tensor([[[1.0]], [[3.0]]]), torch.ones(2, 1))
    )  # mean 2, deviation 1
    close(norm(column(5.0, 11.9, 12.1, 1e6, -1e6)), column(3.0, 9.9, 10, 10, -10))


def test_normalisation_is_off_unless_asked_for(module):
    norm = merged(module.RunningNorm(1, False), (torch.tensor([[[1.0]], [[3.0]]]), torch.ones(2, 1)))
    close(norm(column(5.0, 1e6)), column(5.0, 1e6))
    reward = column(5.0, 50.0)
    close(norm.scale(reward, torch.zeros(2, 1), torch.ones(2, 1), 0.5), reward)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(module):
    # gamma 0.5; the second step ends its episode and the third only resets.
    # G = 1, 2 + 0.5 * 1 = 2.5, a reset, 4: mean 2.5, variance (2.25 + 0 + 2.25) / 3 = 1.5
    norm, discounted = module.RunningNorm(1, True), torch.zeros(4, 1)
    reward, valid = column(1.0, 2, 0, 4), column(1.0, 1, 0, 1)
    close(norm.scale(reward, discounted, valid, 0.5), reward / sqrt(1.5))
    # The next rollout goes on from G = 4: 1 + 0.5 * 4 = 3, 2.5, 2.25, 2.125
    reward = torch.ones(4, 1)
    deviation = np.std([1, 2.5, 4, 3, 2.5, 2.25, 2.125])
    close(norm.scale(reward, discounted, torch.ones(4, 1), 0.5), reward / float(deviation), rtol=1e-4, atol=0)


def test_scaled_rewards_end_at_ten(module):
    norm = module.RunningNorm(1, True)
    reward = torch.zeros(400, 1)
    reward[7] = 1000.0  # its deviation is about 1000 / 20: 20 deviations
    assert norm.scale(reward, torch.zeros(400, 1), torch.ones(400, 1), 0.0).max() == 10


def test_initial_networks(module):
    """Orthogonal weights of the gains that `mlp` is given: 0.01 for the last of a policy, which starts near uniform."""
    torch.manual_seed(0)
    args = module.Args(env_id="probes:Spy-v0")
    actor = module.Agent(module.make_envs(args, 1), args).actor
    close(actor[-1].weight @ actor[-1].weight.T, 0.01**2 * torch.eye(3), rtol=0, atol=1e-6)
    linear = [layer for layer in module.mlp(8, 64, 3, 0.01) if isinstance(layer, torch.nn.Linear)]
    for layer, gain in zip(linear, (sqrt(2), sqrt(2), 0.01), strict=True):
        weight = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        close(weight @ weight.T, gain**2 * torch.eye(len(weight)), rtol=0, atol=1e-5)
        assert not layer.bias.any()


def test_a_gaussian_policy_starts_with_deviation_one(module):
    args = module.Args(env_id="Pendulum-v1", num_envs=1)
    agent = module.Agent(module.make_envs(args, 1), args)
    _, entropy = agent.log_prob(torch.zeros(5, 3), torch.zeros(5, 1))
    close(entropy, torch.full((5,), 0.5 * log(2 * pi * e)))
