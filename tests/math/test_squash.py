"""sac.py's policy: a Gaussian squashed by tanh, and its density."""

import math
from unittest import mock

import pytest
import torch
from harness import parse

import sac

close = torch.testing.assert_close


def make_agent():
    args = parse("sac", "--env-id", "probes:Spy-v0", "--hidden-size", 8)
    torch.manual_seed(0)
    return sac.Agent(sac.make_envs(args, 1), args)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("log_std", [-3.0, -0.5, 0.5])
def test_squashed_density_integrates_to_1(mean, log_std):
    """Integrate over (-1, 1) by the trapezoidal rule. The points are even in u = atanh(a)."""
    noise = torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None]
    action, log_prob = sac.squash(torch.tensor(mean).double(), torch.tensor(log_std).double(), noise)
    inside = action[:, 0].abs() < 1
    assert torch.trapezoid(log_prob[inside].exp(), action[inside, 0]).item() == pytest.approx(1, abs=1e-4)


def test_squashed_density_is_the_plain_formula():
    rng = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 1000, 2, generator=rng, dtype=torch.float64)
    std = (log_std / 2).exp()
    action, log_prob = sac.squash(mean, log_std / 2, noise)
    u = mean + std * noise
    close(action, u.tanh())
    log_normal = torch.distributions.Normal(mean, std).log_prob(u)
    close(log_prob, (log_normal - (1 - u.tanh() ** 2).log()).sum(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("u", [-30.0, 30.0])
def test_squashed_density_is_finite_far_out(u):
    """In single precision tanh(30) is 1 and log(1 - 1) is infinite. The right value is -2 (30 - log 2)."""
    _, log_prob = sac.squash(torch.tensor([u]), torch.tensor([0.0]), torch.tensor([0.0]))
    close(log_prob, torch.tensor(2 * (30 - math.log(2)) - math.log(2 * math.pi) / 2))


def test_squashed_density_has_the_gradient_of_finite_differences():
    rng = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 4, 2, generator=rng, dtype=torch.float64)
    inputs = (mean.requires_grad_(), log_std.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, s: sac.squash(m, s, noise), inputs)


def test_actions_follow_the_density():
    """The share of actions below a point is the density's integral up to that point."""
    agent = make_agent()
    obs = torch.tensor([[0.3, -1.0, 2.0]])
    mean, log_std = agent.actor(obs).detach().chunk(2, -1)
    torch.manual_seed(1)
    action = agent.act(obs.expand(20_000, -1))
    for point in (-0.5, 0.0, 0.5):
        z = (math.atanh(point) - mean[0]) / log_std[0].exp()
        close((action < point).float().mean(0), torch.special.ndtr(z), rtol=0, atol=0.015)


def test_greedy_action_is_the_median():
    agent = make_agent()
    obs = torch.randn(4, 3)
    mean, _ = agent.actor(obs).detach().chunk(2, -1)
    close(agent.act(obs, greedy=True), mean.tanh())


@pytest.mark.parametrize(("output", "log_std"), [(100.0, 2), (-100.0, -5), (-1.0, -1)])
def test_log_std_is_between_minus_5_and_2(output, log_std):
    """The mean is 0 and the noise is 0.1, so u is 0.1 standard deviations."""
    agent = make_agent()
    torch.nn.init.zeros_(agent.actor[-1].weight)
    agent.actor[-1].bias.data = torch.tensor([0.0] * 3 + [output] * 3)
    with mock.patch.object(torch, "randn_like", lambda x: torch.full_like(x, 0.1)):
        action = agent.act(torch.randn(4, 3))
    close(action, torch.full((4, 3), math.tanh(0.1 * math.exp(log_std))))
