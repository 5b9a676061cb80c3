"""Policies, networks and running statistics of the on-policy scripts."""

from importlib import import_module
from math import e, log, pi, sqrt

import numpy as np
import pytest
import torch
from agents import make_agent, random_agent
from torch.distributions import Categorical, Normal

import a2c
import ppo
import reinforce_baseline
import trpo

close = torch.testing.assert_close
WITH_NORM = pytest.mark.parametrize("module", [a2c, ppo, trpo])
WITH_CRITIC = pytest.mark.parametrize("module", [reinforce_baseline, a2c, ppo, trpo])


@pytest.fixture(params=["reinforce", "reinforce_baseline", "a2c", "ppo"])
def script(request):
    return import_module(request.param)


def column(*numbers):
    return torch.tensor(numbers)[:, None]


def test_discrete_policy_is_the_softmax_of_the_actor(script):
    agent, obs, action, _ = random_agent(script, "CartPole-v1")
    policy = Categorical(logits=agent.actor(obs))
    log_prob, entropy = agent.log_prob(obs, action)
    close(log_prob, policy.log_prob(action))
    close(entropy, policy.entropy())
    assert torch.equal(agent.act(obs, greedy=True), agent.actor(obs).argmax(-1))


def test_continuous_policy_is_a_gaussian_around_the_actor(script):
    """Log-probability and entropy are summed over the dimensions of an action, each of its own deviation."""
    agent, _ = make_agent(script, "probes:Spy-v0")
    agent.log_std.data = torch.tensor([-1.0, 0.5, 0.2])
    obs, action = torch.randn(6, 3), torch.randn(6, 3)
    policy = Normal(agent.actor(obs), agent.log_std.exp())
    log_prob, entropy = agent.log_prob(obs, action)
    close(log_prob, policy.log_prob(action).sum(-1))
    close(entropy, policy.entropy().sum(-1))
    assert torch.equal(agent.act(obs, greedy=True), agent.actor(obs))


def test_sampled_actions_follow_the_policy(script):
    """Frequencies of three actions, and mean and deviation of a Gaussian, are within four standard errors."""
    size = 20_000
    agent, obs, _, _ = random_agent(script, "Acrobot-v1")
    frequency = torch.bincount(agent.act(obs[:1].expand(size, -1))) / size
    probability = agent.actor(obs[:1]).softmax(-1)[0]
    assert probability.max() - probability.min() > 0.1
    assert ((frequency - probability).abs() < 4 * 0.5 / size**0.5).all()
    agent, obs, _, _ = random_agent(script, "Pendulum-v1")
    action, std = agent.act(obs[:1].expand(size, -1)), agent.log_std.exp().item()
    assert abs(action.mean() - agent.actor(obs[:1]).item()) < 4 * std / size**0.5
    assert abs(action.std() / std - 1) < 4 / (2 * size) ** 0.5


def test_rollouts_of_any_shape_are_evaluated_row_by_row(script):
    """A rollout is (T, N); its log-probabilities and values are those of its steps one by one."""
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        agent, obs, action, _ = random_agent(script, env_id)
        log_prob, entropy = agent.log_prob(obs.unflatten(0, (8, 5)), action.unflatten(0, (8, 5)))
        close([log_prob.flatten(), entropy.flatten()], list(agent.log_prob(obs, action)))
        if hasattr(agent, "critic"):
            close(agent.value(obs.unflatten(0, (8, 5))).flatten(), agent.value(obs))


@pytest.mark.parametrize("initial_std", [1.0, 0.25])
def test_initial_std_is_the_deviation_of_actions_at_the_start(script, initial_std):
    agent, _ = make_agent(script, "probes:Spy-v0", initial_std=initial_std)
    _, entropy = agent.log_prob(torch.zeros(5, 3), torch.zeros(5, 3))
    close(entropy, torch.full((5,), 3 * (log(2 * pi * e) / 2 + log(initial_std))))


def test_policy_starts_near_uniform(script):
    """The last layer of the actor starts with gain 0.01, the layers before it with gain sqrt(2)."""
    torch.manual_seed(0)
    agent, _ = make_agent(script, "probes:Spy-v0")
    layers = [layer for layer in agent.actor.modules() if isinstance(layer, torch.nn.Linear)]
    for layer, gain in zip(layers, (sqrt(2), sqrt(2), 0.01), strict=True):
        weight = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        close(weight @ weight.T, gain**2 * torch.eye(len(weight)), rtol=0, atol=1e-5 * gain)
        assert not layer.bias.any()


@WITH_CRITIC
def test_critic_still_sees_the_state_when_returns_are_large(module):
    """This is what its last layer's gain is for.

    After 300 steps towards returns of 85 to 100, it still tells states apart. With a gain of 1 it does not: all units
    of its second layer are saturated by then, and it is a constant.
    """
    torch.manual_seed(0)
    agent, _ = make_agent(module, "CartPole-v1")
    last = [layer for layer in agent.critic.modules() if isinstance(layer, torch.nn.Linear)][-1]

    def explained_after_training():
        optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3, eps=1e-4)
        for _ in range(300):
            obs = torch.randn(512, 4) * torch.tensor([1, 0.5, 0.1, 0.5])
            returns = 100 - 5 * obs[:, 0] ** 2
            optimizer.zero_grad()
            module.value_loss(agent.value(obs), returns).backward()
            optimizer.step()
        return 1 - ((agent.value(obs) - returns).var() / returns.var()).item()

    state = {name: value.clone() for name, value in agent.state_dict().items()}
    assert explained_after_training() > 0.2
    agent.load_state_dict(state)
    last.weight.data /= last.weight.norm()
    assert explained_after_training() < 0.1


@WITH_NORM
def test_values_start_small_where_rewards_are_normalised(module):
    """Returns are about 1 then, and values of about 10 would first have to be unlearned."""
    agent, _ = make_agent(module, "CartPole-v1", norm_reward=True)
    last = [layer for layer in agent.critic.modules() if isinstance(layer, torch.nn.Linear)][-1]
    assert last.weight.norm().item() == pytest.approx(1.0)


# ---- normalisation


@WITH_NORM
def test_agent_takes_raw_observations(module):
    """With --norm-obs, actions, log-probabilities and values are those of a plain agent for normalised observations."""
    torch.manual_seed(0)
    agent, _ = make_agent(module, "Pendulum-v1", norm_obs=True)
    agent.norm_obs.update(5 + 3 * torch.randn(50, 3))
    plain, _ = make_agent(module, "Pendulum-v1")
    assert not plain.load_state_dict(agent.state_dict(), strict=False).missing_keys
    obs = 5 + 3 * torch.randn(20, 3)
    normalised = agent.norm_obs(obs)
    assert (normalised - obs).abs().max() > 1
    close(agent.act(obs, greedy=True), plain.act(normalised, greedy=True))
    action = agent.act(obs)
    close(agent.log_prob(obs, action), plain.log_prob(normalised, action))
    close(agent.value(obs), plain.value(normalised))


@WITH_NORM
def test_observations_are_not_normalised_unless_asked_for(module):
    agent, obs, _, _ = random_agent(module, "CartPole-v1")
    assert torch.equal(agent.norm_obs(1000 * obs), 1000 * obs)


def merged(module, *batches):
    """Running statistics of these batches, each (n, size)."""
    norm = module.RunningNorm(batches[0].shape[1])
    for x in batches:
        norm.update(x)
    return norm


@WITH_NORM
def test_running_statistics_are_those_of_all_observations(module):
    rng = np.random.default_rng(0)
    batches = [rng.normal(shift, 1 + abs(shift), (n, 3)) for n, shift in ((20, 0), (1, 7), (36, -20))]
    seen, x = np.concatenate(batches), rng.normal(0, 10, (6, 3))
    norm = merged(module, *(torch.tensor(batch, dtype=torch.float32) for batch in batches))
    expected = torch.tensor((x - seen.mean(0)) / seen.std(0), dtype=torch.float32)
    close(norm(torch.tensor(x, dtype=torch.float32)), expected, rtol=1e-4, atol=1e-5)


@WITH_NORM
def test_running_statistics_survive_an_offset(module):
    """A deviation of 0.1 around 100: sums of squares would lose it in single precision."""
    x = 100 + 0.1 * torch.randn(1000, 4, generator=torch.manual_seed(0))
    close(merged(module, *x.split(20))(x).std(0), torch.ones(4), rtol=0, atol=0.01)


@WITH_NORM
@pytest.mark.parametrize("constant", [0.0, 0.1, 1.1, 12.3, 50.7, 333.3, -1.1])
def test_constant_observation_stays_finite(module, constant):
    """Rounding must not make its variance negative: the root would be NaN."""
    x = torch.full((1024, 1), constant)
    assert merged(module, *[x] * 5)(x).isfinite().all()


@WITH_NORM
def test_normalised_observations_are_clipped_at_10(module):
    norm = merged(module, column(1.0, 3.0))  # mean 2, deviation 1
    close(norm(column(5.0, 11.9, 12.1, 1e6, -1e6)), column(3.0, 9.9, 10, 10, -10))


@WITH_NORM
def test_rewards_are_divided_by_the_deviation_of_the_running_return(module):
    # gamma = 0.5; step 1 ends an episode and step 2 only resets.
    # G = 1, 2 + 0.5 * 1 = 2.5, reset, 4; mean 2.5, variance (2.25 + 0 + 2.25) / 3 = 1.5
    norm, real = module.RunningNorm(1), column(True, True, False, True)
    reward, G = norm.scale(column(1.0, 2, 0, 4), real, torch.zeros(1), 0.5)
    close(reward, column(1.0, 2, 0, 4) / sqrt(1.5))
    close(G, torch.tensor([4.0]))
    # The next rollout goes on from G = 4: 1 + 0.5 * 4 = 3, 2.5, 2.25, 2.125
    reward, G = norm.scale(torch.ones(4, 1), torch.ones(4, 1, dtype=torch.bool), G, 0.5)
    deviation = np.std([1, 2.5, 4, 3, 2.5, 2.25, 2.125])
    close(reward, torch.ones(4, 1) / float(deviation), rtol=1e-4, atol=0)
    close(G, torch.tensor([2.125]))


@WITH_NORM
def test_normalised_rewards_are_clipped_at_10(module):
    reward = torch.zeros(400, 1)
    reward[7], reward[8] = 1000.0, -1000.0  # the deviation is about 1000 / 14
    scaled, _ = module.RunningNorm(1).scale(reward, torch.ones(400, 1, dtype=torch.bool), torch.zeros(1), 0.0)
    assert scaled.max() == 10
    assert scaled.min() == -10
