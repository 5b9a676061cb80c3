"""PPO's targets and losses on numbers worked out by hand."""

from math import log, sqrt
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical

import ppo

close = torch.testing.assert_close


def column(*numbers):
    return torch.tensor(numbers)[:, None]


# gamma = 0.5 and lambda = 0.5, so that gamma * lambda = 0.25; rewards 1 2 3, values 1 2 4 and 8 after the last.
# Plain:      delta = 1 + 0.5 * 2 - 1 = 1, 2 + 0.5 * 4 - 2 = 2, 3 + 0.5 * 8 - 4 = 3
#             A[2] = 3, A[1] = 2 + 0.25 * 3 = 2.75, A[0] = 1 + 0.25 * 2.75 = 1.6875
# Step 2 terminates:  delta[2] = 3 - 4 = -1; A[2] = -1, A[1] = 2 - 0.25 = 1.75, A[0] = 1 + 0.25 * 1.75 = 1.4375
# Step 2 truncates:   the last value is that of the true successor and counts: as plain
# Step 0 terminates:  delta[0] = 1 - 1 = 0; A[0] = 0; step 1 only resets (reward 0); A[2] = 3
# Step 0 truncates:   delta[0] = 1 + 0.5 * 2 - 1 = 1; A[0] = 1, nothing of later steps; A[2] = 3
GAE = {
    "plain": ([1.0, 2, 3], [0.0, 0, 0], [0.0, 0, 0], [1.6875, 2.75, 3]),
    "terminated at the end": ([1.0, 2, 3], [0.0, 0, 1], [0.0, 0, 1], [1.4375, 1.75, -1]),
    "truncated at the end": ([1.0, 2, 3], [0.0, 0, 0], [0.0, 0, 1], [1.6875, 2.75, 3]),
    "terminated, then reset": ([1.0, 0, 3], [1.0, 0, 0], [1.0, 0, 0], [0, None, 3]),
    "truncated, then reset": ([1.0, 0, 3], [0.0, 0, 0], [1.0, 0, 0], [1, None, 3]),
}


@pytest.mark.parametrize("case", GAE)
def test_gae(case):
    reward, terminated, done, expected = GAE[case]
    value = column(1.0, 2, 4, 8)
    advantage = ppo.gae(column(*reward), value, column(*terminated), column(*done), 0.5, 0.5)
    assert advantage.shape == (3, 1)
    for t in range(3):
        if expected[t] is not None:  # a reset step was no decision, and its advantage is left out of the loss
            close(advantage[t, 0], torch.tensor(float(expected[t])))


def test_gae_of_several_environments_is_that_of_each():
    columns = [torch.tensor([case[k] for case in GAE.values()]).T for k in range(3)]
    value = column(1.0, 2, 4, 8).expand(4, len(GAE))
    together = ppo.gae(columns[0], value, columns[1], columns[2], 0.5, 0.5)
    for n, (reward, terminated, done, _) in enumerate(GAE.values()):
        alone = ppo.gae(column(*reward), column(1.0, 2, 4, 8), column(*terminated), column(*done), 0.5, 0.5)
        close(together[:, n], alone[:, 0])


# eps = 0.2; objective min(ratio A, clip(ratio, 0.8, 1.2) A), and its derivative by log pi, which is ratio A or 0.
CLIP = [
    # A, ratio, objective, derivative
    (2.0, 1.1, 2.2, 2.2),  # good, inside
    (2.0, 1.5, 2.4, 0.0),  # good, and made likely enough: 1.2 * 2, no gradient
    (2.0, 0.5, 1.0, 1.0),  # good, but made unlikely: the gradient brings it back
    (-1.0, 0.9, -0.9, -0.9),  # bad, inside
    (-1.0, 0.5, -0.8, 0.0),  # bad, and made unlikely enough: -0.8, no gradient
    (-1.0, 1.5, -1.5, -1.5),  # bad, but made likely: the gradient brings it back
]


def test_policy_loss_and_its_gradient():
    advantage, ratio, objective, derivative = torch.tensor(CLIP).T
    old_log_prob = torch.tensor([-1.0, -2, -0.5, -3, 0.0, -0.1])
    log_prob = (old_log_prob + ratio.log()).requires_grad_()
    weight = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.05, 0.2])
    loss = ppo.policy_loss(log_prob, old_log_prob, advantage, weight, 0.2)
    close(loss, -(weight * objective).sum())
    loss.backward()
    close(log_prob.grad, -weight * derivative)


@pytest.mark.parametrize("row", CLIP)
def test_policy_loss_of_one_decision(row):
    advantage, ratio, objective, _ = (torch.tensor([x]) for x in row)
    close(ppo.policy_loss(ratio.log(), torch.zeros(1), advantage, torch.ones(1), 0.2), -objective[0])


def test_value_loss_without_clipping():
    value = torch.tensor([1.0, 3.0], requires_grad=True)
    old_value, returns = torch.tensor([5.0, -5.0]), torch.tensor([2.0, 1.0])
    loss = ppo.value_loss(value, old_value, returns, torch.tensor([0.5, 0.5]))
    close(loss, torch.tensor(1.25))  # ((1 - 2)^2 + (3 - 1)^2) / 2 / 2
    loss.backward()
    close(value.grad, torch.tensor([-0.5, 1.0]))  # (V - R) / 2


def test_value_loss_with_clipping():
    # eps = 0.5. Moved towards R beyond old + eps: 0.5 stands for it, (0.5 - 2)^2 = 2.25, and no gradient.
    # Moved by less than eps: as without, (3 - 1)^2 = 4. Moved away from R: the larger, unclipped (3 - 0)^2 = 9.
    value = torch.tensor([1.0, 3.0, 3.0], requires_grad=True)
    old_value, returns = torch.tensor([0.0, 2.8, 1.0]), torch.tensor([2.0, 1.0, 0.0])
    loss = ppo.value_loss(value, old_value, returns, torch.tensor([0.2, 0.3, 0.5]), 0.5)
    close(loss, torch.tensor((0.2 * 2.25 + 0.3 * 4 + 0.5 * 9) / 2))
    loss.backward()
    close(value.grad, torch.tensor([0.0, 0.3 * 2, 0.5 * 3]))


# Three decisions between two actions, and a reset step whose numbers must not count.
# pi(a|s) = 0.5, 0.75, 0.2 and pi_old(a|s) = 0.4, 0.75, 0.4: ratios 1.25, 1, 0.5.
DECISIONS = {
    "probs": [[0.5, 0.5], [0.25, 0.75], [0.2, 0.8], [0.01, 0.99]],
    "action": [0, 1, 0, 0],
    "old_log_prob": [log(0.4), log(0.75), log(0.4), -9.0],
    "value": [1.0, 2.0, 3.0, 70.0],
    "old_value": [0.0, 2.0, 6.0, -70.0],
    "advantage": [1.0, 2.0, 6.0, 800.0],
    "returns": [1.0, 3.0, 4.0, 900.0],
    "valid": [1.0, 1.0, 1.0, 0.0],
}


def of_logits(logits, action):
    policy = Categorical(logits=logits)
    return policy.log_prob(action), policy.entropy()


def numbers(**flags):
    """PPO's loss and metrics of DECISIONS, by an agent whose observations are its probabilities and its value."""
    row = {name: torch.tensor(numbers) for name, numbers in DECISIONS.items()}
    obs = torch.column_stack([row["probs"].log(), row["value"]])
    agent = SimpleNamespace(log_prob=lambda obs, action: of_logits(obs[:, :2], action), critic=lambda obs: obs[:, 2])
    names = ("action", "old_log_prob", "old_value", "advantage", "returns", "valid")
    return ppo.loss(agent, (obs, *(row[name] for name in names)), ppo.Args(**flags))


def test_loss_is_the_sum_of_its_three_terms():
    total, metrics = numbers(norm_adv=False, clip_coef=0.2, vf_coef=0.3, ent_coef=0.1)
    policy = -(1.2 * 1 + 1 * 2 + 0.5 * 6) / 3  # -E[min(ratio A, clipped A)]
    value = ((1 - 1) ** 2 + (2 - 3) ** 2 + (3 - 4) ** 2) / 3 / 2
    entropy = (log(2) - (0.25 * log(0.25) + 0.75 * log(0.75)) - (0.2 * log(0.2) + 0.8 * log(0.8))) / 3
    close(metrics["policy_loss"], torch.tensor(policy))
    close(metrics["value_loss"], torch.tensor(value))
    close(metrics["entropy"], torch.tensor(entropy))
    close(total, torch.tensor(policy + 0.3 * value - 0.1 * entropy))


def test_clip_vloss_uses_the_old_value_and_eps():
    # old 0, new 1, R 1: clipped 0.2, 0.64; old 2, new 2, R 3: 1; old 6, new 3, R 4: clipped 5.8, 3.24
    _, metrics = numbers(clip_vloss=True, clip_coef=0.2)
    close(metrics["value_loss"], torch.tensor((0.64 + 1 + 3.24) / 3 / 2))


def test_advantages_are_normalised_over_decisions():
    # mean 3 and deviation sqrt((4 + 1 + 9) / 3) of 1, 2, 6
    _, metrics = numbers(norm_adv=True, clip_coef=0.2)
    good, deviation = (6 - 3) / sqrt(14 / 3), sqrt(14 / 3)
    # the first is bad and made likelier, 1.25 * -2; the third is good and made unlikelier, 0.5 * 3
    close(metrics["policy_loss"], torch.tensor(-(1.25 * -2 / deviation + 1 * -1 / deviation + 0.5 * good) / 3))


def test_diagnostics():
    _, metrics = numbers(clip_coef=0.2)
    close(metrics["approx_kl"], torch.tensor(((0.25 - log(1.25)) + 0 + (-0.5 - log(0.5))) / 3))
    close(metrics["clipfrac"], torch.tensor(2 / 3))  # 1.25 and 0.5 are further than 0.2 from 1
    # advantages, which are R - V_old, of 1, 2, 6 have mean square 41 / 3; R = 1, 3, 4 have variance (25 + 1 + 16) / 27
    close(metrics["explained_variance"], torch.tensor(1 - (41 / 3) / (42 / 27)))


def test_nothing_to_learn_from_is_no_nan():
    """A minibatch of reset steps alone, as of many one-step environments, must not poison the weights."""
    row = torch.zeros(4)
    logits = torch.zeros(4, 2, requires_grad=True)
    agent = SimpleNamespace(log_prob=of_logits, critic=lambda obs: obs[:, 0])
    total, metrics = ppo.loss(agent, (logits, row.long(), row - 1, row, row + 1, row + 2, row), ppo.Args())
    total.backward()
    assert torch.equal(logits.grad, torch.zeros(4, 2))
    assert all(metric.isfinite() for metric in metrics.values())
