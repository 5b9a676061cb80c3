"""TRPO: conjugate gradient, Fisher matrix, line search, and the step that they make."""

from itertools import pairwise
from math import log, pi, sqrt
from unittest import mock

import numpy as np
import pytest
import torch
from agents import make_agent, random_agent
from harness import train
from oracle import actor_critic_pairs, copy_weights, make_theirs
from sb3_contrib import TRPO
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch.distributions import Categorical, Normal, kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import trpo

close = torch.testing.assert_close
BOTH = pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])


def policy_parameters(agent):
    return [p for name, p in agent.named_parameters() if not name.startswith("critic")]


def flat_gradient(output, parameters, **kwargs):
    return parameters_to_vector(torch.autograd.grad(output, parameters, materialize_grads=True, **kwargs))


# ---- conjugate gradient


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_conjugate_gradient_solves_positive_definite_systems(size):
    rng = torch.manual_seed(size)
    for _ in range(5):
        root = torch.randn(size, size, generator=rng, dtype=torch.float64)
        matrix, b = root @ root.T + torch.eye(size), torch.randn(size, generator=rng, dtype=torch.float64)
        x = trpo.conjugate_gradient(lambda v, matrix=matrix: matrix @ v, b, size)
        close(x, torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-8)


def test_conjugate_gradient_improves_with_each_iteration():
    """The error, in the norm of the matrix, falls."""
    rng = torch.manual_seed(0)
    root, b = torch.randn(2, 20, 20, generator=rng, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    matrix = root[0] @ root[0].T + torch.eye(20)
    exact = torch.linalg.solve(matrix, b)
    errors = [trpo.conjugate_gradient(lambda v: matrix @ v, b, iters) - exact for iters in range(8)]
    norms = [(error @ matrix @ error).item() for error in errors]
    assert all(after < 0.99 * before for before, after in pairwise(norms))


def test_conjugate_gradient_goes_on_after_the_solution():
    """Where the residual is 0, nothing is divided by it."""
    b = torch.tensor([3.0, 0.0])
    close(trpo.conjugate_gradient(lambda v: 2 * v, b, 10), b / 2)
    close(trpo.conjugate_gradient(lambda v: 2 * v, 0 * b, 10), 0 * b)


# ---- KL divergence


def test_log_prob_of_a_gaussian():
    agent, obs, action, _ = random_agent(trpo, "Pendulum-v1")
    with torch.no_grad():
        expected = Normal(agent.actor(obs), agent.log_std.exp()).log_prob(action).sum(-1)
        torch.testing.assert_close(agent.log_prob(obs, action)[0], expected)


def test_kl_of_categorical_policies():
    # 0.5 log(0.5 / 0.25) + 0.5 log(0.5 / 0.75)
    old, new = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    close(trpo.kl([old], [new]), torch.tensor([0.5 * log(2) + 0.5 * log(2 / 3)]))
    logits = torch.randn(2, 7, 4)
    expected = kl_divergence(Categorical(logits=logits[0]), Categorical(logits=logits[1]))
    close(trpo.kl([logits[0].log_softmax(-1)], [logits[1].log_softmax(-1)]), expected)


def test_kl_of_gaussian_policies():
    # deviations 1 and 2, means 0 and 1: log 2 + (1 + 1) / 8 - 1 / 2
    old, new = (torch.zeros(1, 1), torch.zeros(1)), (torch.ones(1, 1), torch.tensor([log(2)]))
    close(trpo.kl(old, new), torch.tensor([log(2) + 0.25 - 0.5]))
    mean, log_std = torch.randn(2, 7, 3), torch.randn(2, 3)
    expected = kl_divergence(*(Normal(mean[i], log_std[i].exp()) for i in (0, 1))).sum(-1)
    close(trpo.kl((mean[0], log_std[0]), (mean[1], log_std[1])), expected)


# ---- Fisher matrix


def fisher_columns(agent, obs, action, damping=0.0):
    """The Fisher matrix, column by column."""
    parameters = policy_parameters(agent)
    _, new = agent.log_prob(obs, action)
    mean_kl = trpo.kl([x.detach() for x in new], new).mean()
    kl_gradient = flat_gradient(mean_kl, parameters, create_graph=True)
    return torch.stack(
        [trpo.fisher_vector_product(kl_gradient, parameters, damping, v) for v in torch.eye(len(kl_gradient))], 1
    )


def tiny(env_id):
    torch.manual_seed(1)
    agent, _ = make_agent(trpo, env_id, hidden_size=2)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    obs = torch.randn(5, agent.actor[1][0].in_features)
    return agent, obs, agent.act(obs)


@BOTH
def test_fisher_vector_product_is_the_hessian_of_the_kl(env_id):
    """By finite differences of the gradient of the KL divergence, in double precision."""
    agent, obs, action = tiny(env_id)
    agent, obs = agent.double(), obs.double()
    action = action if agent.discrete else action.double()
    parameters = policy_parameters(agent)
    start = parameters_to_vector(parameters).detach()
    old = [x.detach() for x in agent.log_prob(obs, action)[1]]

    def gradient_at(point):
        vector_to_parameters(point, parameters)
        return flat_gradient(trpo.kl(old, agent.log_prob(obs, action)[1]).mean(), parameters)

    with mock.patch.object(torch, "eye", lambda n, eye=torch.eye: eye(n, dtype=torch.float64)):
        fisher = fisher_columns(agent, obs, action)
    for i in range(len(start)):
        e = torch.zeros_like(start)
        e[i] = 1e-5
        close(fisher[:, i], (gradient_at(start + e) - gradient_at(start - e)) / 2e-5, rtol=1e-5, atol=1e-7)
    assert fisher.abs().max() > 1e-3


@BOTH
def test_fisher_matrix_is_the_mean_square_of_the_score(env_id):
    """E[score score^T], where the score is the gradient of log pi(a|s): all actions, or Gauss-Hermite nodes."""
    agent, obs, action = tiny(env_id)
    parameters, expected = policy_parameters(agent), 0
    for s in obs[:, None]:
        _, distribution = agent.log_prob(s, action[:1])
        if agent.discrete:
            actions, weights = torch.arange(2)[:, None], distribution[0][0].exp().tolist()
        else:
            nodes, weights = np.polynomial.hermite_e.hermegauss(8)
            weights = weights / sqrt(2 * pi)
            mean, log_std = (x.detach() for x in distribution)
            actions = (mean + log_std.exp() * torch.tensor(nodes, dtype=torch.float32)[:, None])[:, None]
        for a, weight in zip(actions, weights, strict=True):
            score = flat_gradient(agent.log_prob(s, a)[0].sum(), parameters)
            expected = expected + weight * torch.outer(score, score) / len(obs)
    close(fisher_columns(agent, obs, action), expected, rtol=1e-3, atol=1e-5)


def test_damping_is_added_to_the_diagonal():
    agent, obs, action = tiny("CartPole-v1")
    plain, damped = (fisher_columns(agent, obs, action, damping) for damping in (0.0, 0.5))
    close(damped - plain, 0.5 * torch.eye(len(plain)))


# ---- line search


def search(objective, **flags):
    """From 1, with a step of 8 that is halved up to three times -> the parameter, metrics."""
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    numbers = {"max_kl": 1.0, "backtrack_coef": 0.5, "backtrack_iters": 4} | flags
    metrics = trpo.line_search(lambda: objective(parameter), [parameter], torch.tensor([8.0]), **numbers)
    return parameter.item(), {name: metric.item() for name, metric in metrics.items()}


def test_line_search_takes_the_whole_step_if_it_may():
    at, metrics = search(lambda p: (p.sum(), 0 * p.sum()))
    assert at == 9
    assert metrics == {"surrogate": 9, "kl": 0}


def test_line_search_shortens_the_step_until_the_kl_fits():
    at, metrics = search(lambda p: (p.sum(), (p.sum() - 1) / 3))
    assert at == 1 + 2  # of 8, 4, 2, 1
    assert metrics["kl"] == pytest.approx(2 / 3)


def test_line_search_shortens_the_step_until_the_surrogate_gains():
    at, _ = search(lambda p: (4 - p.sum(), 0 * p.sum()))
    assert at == 3


@pytest.mark.parametrize("objective", [lambda p: (-p.sum(), 0 * p.sum()), lambda p: (p.sum(), 9 + p.sum())])
def test_no_step_is_taken_where_none_helps(objective):
    at, _ = search(objective)
    assert at == 1


def test_surrogate_that_no_step_improves_leaves_the_weights():
    """All advantages are 0."""
    agent, obs, action, args = random_agent(trpo, "CartPole-v1")
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    with torch.no_grad():
        old = agent.log_prob(obs, action)
    metrics = trpo.update_policy(agent, obs, action, torch.zeros(len(obs)), *old, args)
    assert metrics["surrogate"] == metrics["kl"] == 0
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())


# ---- the step


class Constant(torch.nn.Module):
    """A Gaussian policy with the same mean in all states, and a fixed deviation."""

    def __init__(self, std):
        super().__init__()
        self.mean, self.log_std = torch.nn.Parameter(torch.zeros(1)), torch.tensor([log(std)])

    def log_prob(self, obs, action):
        mean = self.mean + torch.zeros(len(obs), 1)
        return Normal(mean, self.log_std.exp()).log_prob(action).sum(-1), [mean, self.log_std]


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_natural_gradient_of_the_mean_of_a_gaussian(std):
    """KL = (new mean)^2 / (2 std^2): whatever the gradient's length, the mean moves by std sqrt(2 delta)."""
    agent, action = Constant(std), torch.tensor([[1.0], [-1.0], [0.5]])
    with torch.no_grad():
        old = agent.log_prob(action, action)
    args = trpo.Args(max_kl=0.02, cg_damping=0.0)
    metrics = trpo.update_policy(agent, action, action, torch.tensor([3.0, -1.0, 2.0]), *old, args)
    mean = agent.mean.item()
    steps = [std * sqrt(2 * 0.02) * 0.8**k for k in range(3)]  # rounding may shorten it
    assert min(abs(mean / step - 1) for step in steps) < 1e-4
    assert metrics["kl"].item() == pytest.approx(mean**2 / (2 * std**2), rel=1e-4)


@BOTH
def test_kl_of_each_update_is_within_the_bound(env_id, folder):
    """And most updates come near to it."""
    found, update_policy = [], trpo.update_policy

    def look(agent, obs, action, advantage, old_log_prob, old, args):
        metrics = update_policy(agent, obs, action, advantage, old_log_prob, old, args)
        with torch.no_grad():
            log_prob, new = agent.log_prob(obs, action)
        close(metrics["kl"], trpo.kl(old, new).mean())
        close(metrics["surrogate"], trpo.surrogate(log_prob, old_log_prob, advantage))
        found.append(metrics["kl"].item())
        return metrics

    with mock.patch.object(trpo, "update_policy", look):
        train("trpo", "--env-id", env_id, "--total-timesteps", 1024 * 30, "--max-kl", 0.02, "--eval-episodes", 0)
    assert len(found) == 30
    assert max(found) <= 0.02
    assert np.mean(np.array(found) > 0.005) > 0.5


@BOTH
def test_direction_and_step_are_those_of_sb3_contrib(env_id):
    """From the same weights and batch. It bounds KL(pi || pi_old), so that it may accept a longer or shorter step."""
    theirs = make_theirs(
        TRPO, env_id, {"activation_fn": torch.nn.Tanh}, cg_max_steps=10, n_critic_updates=0, normalize_advantage=False
    )
    same = 0
    for seed in range(6):
        torch.manual_seed(seed)
        agent, obs, action, args = random_agent(trpo, env_id, size=200)
        parameters, advantage = policy_parameters(agent), torch.randn(len(obs))
        pairs = actor_critic_pairs(agent, theirs.policy)
        before = copy_weights(pairs)
        with torch.no_grad():
            old = agent.log_prob(obs, action)

        with mock.patch.object(trpo, "line_search", wraps=trpo.line_search) as line_search:
            trpo.update_policy(agent, obs, action, advantage, *old, args)
        _, _, full_step, *numbers = line_search.call_args.args
        assert numbers == [args.max_kl, args.backtrack_coef, args.backtrack_iters]
        batch = RolloutBufferSamples(obs, action, None, old[0], advantage, None)
        theirs.rollout_buffer.get = lambda batch_size, batch=batch: iter([batch])
        theirs.train()
        of_policy = [i for i, (ours, _) in enumerate(pairs) if any(ours is p for p in parameters)]
        ours, others = (
            parameters_to_vector([pairs[i][side].detach() - before[i] for i in of_policy]) for side in (0, 1)
        )
        full = full_step.norm().item()
        assert torch.cosine_similarity(ours, others, dim=0) > 0.9999
        shortened = [log(vector.norm().item() / full) / log(0.8) for vector in (ours, others)]
        assert all(abs(k - round(k)) < 0.02 for k in shortened)
        if round(shortened[0]) == round(shortened[1]):
            same += 1
            close(ours, others, rtol=0, atol=0.002 * full)
    assert same >= 3
