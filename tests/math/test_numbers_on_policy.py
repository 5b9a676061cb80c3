"""Targets and losses of the on-policy scripts, on numbers worked out by hand."""

from math import log, sqrt
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical

import a2c
import ppo
import reinforce
import reinforce_baseline
import trpo

close = torch.testing.assert_close
WITH_GAE = pytest.mark.parametrize("module", [a2c, ppo, trpo])
WHOLE_EPISODES = pytest.mark.parametrize("module", [reinforce, reinforce_baseline])
WITHOUT_RATIO = pytest.mark.parametrize("module", [reinforce, reinforce_baseline, a2c])
WITH_VALUE = pytest.mark.parametrize("module", [reinforce_baseline, a2c, ppo, trpo])


def column(*numbers):
    return torch.tensor(numbers)[:, None]


# gamma = 0.5 and lambda = 0.5, so gamma * lambda = 0.25; the values are 1 2 4, and 8 after the last step.
# no end:       delta = 1 + 0.5 * 2 - 1 = 1, 2 + 0.5 * 4 - 2 = 2, 3 + 0.5 * 8 - 4 = 3
#               A[2] = 3, A[1] = 2 + 0.25 * 3 = 2.75, A[0] = 1 + 0.25 * 2.75 = 1.6875
# terminated 2: delta[2] = 3 - 4 = -1; A[2] = -1, A[1] = 2 - 0.25 = 1.75, A[0] = 1 + 0.25 * 1.75 = 1.4375
# truncated 2:  the value after step 2 still counts: the same as no end
# terminated 0: delta[0] = 1 - 1 = 0; A[0] = 0; step 1 only resets; A[2] = 3
# truncated 0:  delta[0] = 1 + 0.5 * 2 - 1 = 1; A[0] = 1, without later steps; step 1 only resets; A[2] = 3
GAE = {
    "no end": ([1.0, 2, 3], [0.0, 0, 0], [0.0, 0, 0], [1.6875, 2.75, 3]),
    "terminated at step 2": ([1.0, 2, 3], [0.0, 0, 1], [0.0, 0, 1], [1.4375, 1.75, -1]),
    "truncated at step 2": ([1.0, 2, 3], [0.0, 0, 0], [0.0, 0, 1], [1.6875, 2.75, 3]),
    "terminated at step 0": ([1.0, 0, 3], [1.0, 0, 0], [1.0, 0, 0], [0, None, 3]),
    "truncated at step 0": ([1.0, 0, 3], [0.0, 0, 0], [1.0, 0, 0], [1, None, 3]),
}


@WITH_GAE
@pytest.mark.parametrize("case", GAE)
def test_gae(module, case):
    reward, terminated, done, expected = GAE[case]
    advantage = module.gae(column(*reward), column(1.0, 2, 4, 8), column(*terminated), column(*done), 0.5, 0.5)
    assert advantage.shape == (3, 1)
    for t in range(3):
        if expected[t] is not None:  # None: a reset step, which is left out of the update
            close(advantage[t, 0], torch.tensor(float(expected[t])))


@WITH_GAE
def test_gae_treats_each_environment_alone(module):
    reward, terminated, done = (torch.tensor([case[k] for case in GAE.values()]).T for k in range(3))
    value = column(1.0, 2, 4, 8)
    together = module.gae(reward, value.expand(4, len(GAE)), terminated, done, 0.5, 0.5)
    for n in range(len(GAE)):
        alone = module.gae(reward[:, [n]], value, terminated[:, [n]], done[:, [n]], 0.5, 0.5)
        close(together[:, [n]], alone)


# gamma = 0.5; one environment per column, with rewards 1 2 3.
# The first episode ends at step 2: R[2] = 3, R[1] = 2 + 0.5 * 3 = 3.5, R[0] = 1 + 0.5 * 3.5 = 2.75.
# The second episode ends at step 1: R[1] = 2, R[0] = 1 + 0.5 * 2 = 2; step 2 is outside it.
@WHOLE_EPISODES
def test_returns_to_go(module):
    reward = torch.tensor([[1.0, 1], [2, 2], [3, 3]])
    done = torch.tensor([[0.0, 0], [0, 1], [1, 0]])
    close(module.returns_to_go(reward, done, 0.5), torch.tensor([[2.75, 2], [3.5, 2], [3, 3]]))


@WITHOUT_RATIO
def test_policy_loss_and_its_gradient(module):
    # -(-1 * 2 + -2 * -3) / 2 = -2; the derivative by log pi is -A / 2
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = module.policy_loss(log_prob, torch.tensor([2.0, -3.0]))
    close(loss, torch.tensor(-2.0))
    loss.backward()
    close(log_prob.grad, torch.tensor([-1.0, 1.5]))


# eps = 0.2; the objective is min(ratio A, clip(ratio, 0.8, 1.2) A), its derivative by log pi is ratio A or 0.
CLIP = [
    # A, ratio, objective, derivative
    (2.0, 1.1, 2.2, 2.2),  # good action, inside the clip range
    (2.0, 1.5, 2.4, 0.0),  # good action, likely enough: 1.2 * 2 and no gradient
    (2.0, 0.5, 1.0, 1.0),  # good action that became unlikely: the gradient brings it back
    (-1.0, 0.9, -0.9, -0.9),  # bad action, inside the clip range
    (-1.0, 0.5, -0.8, 0.0),  # bad action, unlikely enough: 0.8 * -1 and no gradient
    (-1.0, 1.5, -1.5, -1.5),  # bad action that became likely: the gradient brings it back
]


@pytest.mark.parametrize("row", CLIP)
def test_ppo_policy_loss_of_one_step(row):
    advantage, ratio, objective, _ = (torch.tensor([x]) for x in row)
    close(ppo.policy_loss(ratio.log(), torch.zeros(1), advantage, 0.2), -objective[0])


def test_ppo_policy_loss_and_its_gradient():
    advantage, ratio, objective, derivative = torch.tensor(CLIP).T
    old_log_prob = torch.tensor([-1.0, -2, -0.5, -3, 0.0, -0.1])
    log_prob = (old_log_prob + ratio.log()).requires_grad_()
    loss = ppo.policy_loss(log_prob, old_log_prob, advantage, 0.2)
    close(loss, -objective.mean())
    loss.backward()
    close(log_prob.grad, -derivative / 6)


@WITH_VALUE
def test_value_loss_and_its_gradient(module):
    # ((1 - 2)^2 + (4 - 1)^2) / 2 / 2 = 2.5; the derivative by V is (V - R) / 2
    value = torch.tensor([1.0, 4.0], requires_grad=True)
    loss = module.value_loss(value, torch.tensor([2.0, 1.0]))
    close(loss, torch.tensor(2.5))
    loss.backward()
    close(value.grad, torch.tensor([-0.5, 1.5]))


# Three steps with two actions: pi(a|s) = 0.5, 0.75, 0.2.
# PPO's pi_old(a|s) = 0.4, 0.75, 0.4: the ratios are 1.25, 1, 0.5.
PROBS = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.2, 0.8]])
ACTION = torch.tensor([0, 1, 0])
OLD_LOG_PROB = torch.tensor([0.4, 0.75, 0.4]).log()
VALUE = torch.tensor([1.0, 2, 3])
ADVANTAGE = torch.tensor([1.0, 2, 6])  # mean 3, variance (4 + 1 + 9) / (3 - 1) = 7
RETURNS = torch.tensor([1.0, 3, 4])

LOG_PROB = [log(0.5), log(0.75), log(0.2)]
POLICY_LOSS = -(1 * LOG_PROB[0] + 2 * LOG_PROB[1] + 6 * LOG_PROB[2]) / 3
NORMALISED_POLICY_LOSS = -(-2 * LOG_PROB[0] - 1 * LOG_PROB[1] + 3 * LOG_PROB[2]) / sqrt(7) / 3
METRICS = {
    "value_loss": ((1 - 1) ** 2 + (2 - 3) ** 2 + (3 - 4) ** 2) / 3 / 2,
    "entropy": -sum(p * log(p) for p in (0.5, 0.5, 0.25, 0.75, 0.2, 0.8)) / 3,
}
NORM = pytest.mark.parametrize("norm", [False, True])


def logits_policy(logits, action):
    policy = Categorical(logits=logits)
    return policy.log_prob(action), policy.entropy()


def loss_of(module, *targets, value=VALUE, **flags):
    """The loss and the metrics of the three steps; the observations are the policy's logits."""
    agent = SimpleNamespace(log_prob=logits_policy, value=lambda obs: value)
    return module.loss(agent, [PROBS.log(), ACTION, *targets], module.Args(**flags))


def check(metrics, expected):
    close({name: metrics[name] for name in expected}, {name: torch.tensor(x) for name, x in expected.items()})


@NORM
def test_loss_of_reinforce(norm):
    total, metrics = loss_of(reinforce, ADVANTAGE, norm_returns=norm)
    policy = NORMALISED_POLICY_LOSS if norm else POLICY_LOSS
    close(total, torch.tensor(policy))
    check(metrics, {"policy_loss": policy, "entropy": METRICS["entropy"]})


@NORM
def test_loss_of_reinforce_with_baseline(norm):
    total, metrics = loss_of(reinforce_baseline, ADVANTAGE, RETURNS, norm_adv=norm)
    policy = NORMALISED_POLICY_LOSS if norm else POLICY_LOSS
    close(total, torch.tensor(policy + METRICS["value_loss"]))
    check(metrics, METRICS | {"policy_loss": policy})


@NORM
def test_loss_of_a2c(norm):
    total, metrics = loss_of(a2c, ADVANTAGE, RETURNS, norm_adv=norm, vf_coef=0.3, ent_coef=0.1)
    policy = NORMALISED_POLICY_LOSS if norm else POLICY_LOSS
    close(total, torch.tensor(policy + 0.3 * METRICS["value_loss"] - 0.1 * METRICS["entropy"]))
    check(metrics, METRICS | {"policy_loss": policy})


@NORM
def test_loss_of_ppo(norm):
    flags = {"clip_coef": 0.2, "vf_coef": 0.3, "ent_coef": 0.1, "norm_adv": norm}
    total, metrics = loss_of(ppo, ADVANTAGE, RETURNS, OLD_LOG_PROB, **flags)
    plain = -(1.2 * 1 + 1 * 2 + 0.5 * 6) / 3  # the first step's action is good and likely enough: clipped
    normalised = -(1.25 * -2 + 1 * -1 + 0.5 * 3) / sqrt(7) / 3  # it is worse than the mean: not clipped
    policy = normalised if norm else plain
    close(total, torch.tensor(policy + 0.3 * METRICS["value_loss"] - 0.1 * METRICS["entropy"]))
    check(metrics, METRICS | {"policy_loss": policy})


def test_ppo_measures_how_far_the_policy_moved():
    _, metrics = loss_of(ppo, ADVANTAGE, RETURNS, OLD_LOG_PROB, clip_coef=0.2)
    kl = ((0.25 - log(1.25)) + 0 + (-0.5 - log(0.5))) / 3  # E[ratio - 1 - log ratio]
    check(metrics, {"approx_kl": kl, "clipfrac": 2 / 3})  # 1.25 and 0.5 are outside 0.8 to 1.2
    _, metrics = loss_of(ppo, ADVANTAGE, RETURNS, OLD_LOG_PROB, clip_coef=0.3)
    check(metrics, {"clipfrac": 1 / 3})


@pytest.mark.parametrize("module", [reinforce, reinforce_baseline, a2c, ppo])
def test_equal_rewards_are_no_nan(module):
    """Where all returns and advantages are equal, their deviation is 0 and nothing is divided by it."""
    logits, same = torch.zeros(4, 2, requires_grad=True), torch.full((4,), 2.0)
    agent = SimpleNamespace(log_prob=logits_policy, value=lambda obs: obs[:, 0])
    targets = {reinforce: [same], ppo: [same, same, same.log() - 2]}.get(module, [same, same])
    flags = {"norm_returns": True} if module is reinforce else {"norm_adv": True}
    total, metrics = module.loss(agent, [logits, torch.tensor([0, 1, 0, 0]), *targets], module.Args(**flags))
    total.backward()
    assert logits.grad.isfinite().all()
    assert all(metric.isfinite() for metric in metrics.values())
