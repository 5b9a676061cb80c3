"""PPO's targets and losses on numbers worked out by hand."""

from math import e, log, pi, sqrt
from types import SimpleNamespace

import numpy as np
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


def merged(norm, *batches):
    for x, valid in batches:
        norm.update(x, valid)
    return norm


def test_running_statistics_of_batches_are_those_of_all_valid_steps():
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
        merged(ppo.RunningNorm(3, True), *batches)(x), torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5
    )


def test_running_statistics_survive_an_offset():
    """Sums of squares would lose a deviation of 0.1 around 100 in single precision; a merge about the mean does not."""
    x = 100 + 0.1 * torch.randn(50, 20, 4, generator=torch.manual_seed(0))
    norm = merged(ppo.RunningNorm(4, True), *((part, torch.ones(1, 20)) for part in x.split(1)))
    close(norm(x).std((0, 1)), torch.ones(4), rtol=0, atol=0.01)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.1, 12.3, 50.7, 333.3, -1.1])
def test_an_observation_that_never_changes_stays_finite(constant):
    """Rounding must not make its variance negative, whose root is NaN."""
    x = torch.full((64, 16, 1), constant)
    norm = merged(ppo.RunningNorm(1, True), *[(x, torch.ones(64, 16))] * 5)
    assert norm(x).isfinite().all()


def test_normalised_observations_end_at_ten():
    norm = merged(ppo.RunningNorm(1, True), (torch.tensor([[[1.0]], [[3.0]]]), torch.ones(2, 1)))  # mean 2, deviation 1
    close(norm(column(5.0, 11.9, 12.1, 1e6, -1e6)), column(3.0, 9.9, 10, 10, -10))


def test_normalisation_is_off_unless_asked_for():
    norm = merged(ppo.RunningNorm(1, False), (torch.tensor([[[1.0]], [[3.0]]]), torch.ones(2, 1)))
    close(norm(column(5.0, 1e6)), column(5.0, 1e6))
    reward = column(5.0, 50.0)
    close(norm.scale(reward, torch.zeros(2, 1), torch.ones(2, 1), 0.5), reward)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    # gamma 0.5; the second step ends its episode and the third only resets.
    # G = 1, 2 + 0.5 * 1 = 2.5, a reset, 4: mean 2.5, variance (2.25 + 0 + 2.25) / 3 = 1.5
    norm, discounted = ppo.RunningNorm(1, True), torch.zeros(4, 1)
    reward, valid = column(1.0, 2, 0, 4), column(1.0, 1, 0, 1)
    close(norm.scale(reward, discounted, valid, 0.5), reward / sqrt(1.5))
    # The next rollout goes on from G = 4: 1 + 0.5 * 4 = 3, 2.5, 2.25, 2.125
    reward = torch.ones(4, 1)
    deviation = np.std([1, 2.5, 4, 3, 2.5, 2.25, 2.125])
    close(norm.scale(reward, discounted, torch.ones(4, 1), 0.5), reward / float(deviation), rtol=1e-4, atol=0)


def test_scaled_rewards_end_at_ten():
    norm = ppo.RunningNorm(1, True)
    reward = torch.zeros(400, 1)
    reward[7] = 1000.0  # its deviation is about 1000 / 20: 20 deviations
    assert norm.scale(reward, torch.zeros(400, 1), torch.ones(400, 1), 0.0).max() == 10


def test_initial_networks():
    """Orthogonal weights: the policy starts near uniform (gain 0.01), and the value's last layer has gain 1."""
    torch.manual_seed(0)
    linear = [layer for layer in ppo.mlp(8, 64, 3, 0.01) if isinstance(layer, torch.nn.Linear)]
    for layer, gain in zip(linear, (sqrt(2), sqrt(2), 0.01), strict=True):
        weight = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
        close(weight @ weight.T, gain**2 * torch.eye(len(weight)), rtol=0, atol=1e-5)
        assert not layer.bias.any()


def test_a_gaussian_policy_starts_with_deviation_one():
    args = ppo.Args(env_id="Pendulum-v1", num_envs=1)
    agent = ppo.Agent(ppo.make_envs(args, 1), args)
    _, entropy = agent.log_prob(torch.zeros(5, 3), torch.zeros(5, 1))
    close(entropy, torch.full((5,), 0.5 * log(2 * pi * e)))
