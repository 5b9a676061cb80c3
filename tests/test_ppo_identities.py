"""What holds of PPO's functions for any numbers."""

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import ppo

close = torch.testing.assert_close
T, N, GAMMA = 12, 5, 0.9


def rollout(seed):
    """Random rewards, values (T + 1 rows), terminations and ends, with a reset step after each end."""
    rng = torch.manual_seed(seed)
    done = torch.zeros(T, N)
    for t in range(T):
        done[t] = (torch.rand(N, generator=rng) < 0.3).float() * (1 - done[t - 1] if t else 1)
    terminated = done * (torch.rand(T, N, generator=rng) < 0.5)
    after_end = torch.cat([torch.zeros(1, N), done[:-1]])
    reward = torch.randn(T, N, generator=rng) * (1 - after_end)
    return reward, torch.randn(T + 1, N, generator=rng), terminated, done, 1 - after_end


@pytest.mark.parametrize("seed", range(5))
def test_gae_at_lambda_0_is_the_td_error(seed):
    reward, value, terminated, done, _ = rollout(seed)
    error = reward + GAMMA * torch.where(terminated == 1, 0.0, value[1:]) - value[:-1]
    close(ppo.gae(reward, value, terminated, done, GAMMA, 0.0), error)


@pytest.mark.parametrize("seed", range(5))
def test_gae_at_lambda_1_is_the_discounted_return_minus_the_value(seed):
    """The return is summed forwards from each step to its episode's end, or to the last value."""
    reward, value, terminated, done, valid = rollout(seed)
    advantage = ppo.gae(reward, value, terminated, done, GAMMA, 1.0)
    for start, n in valid.nonzero().tolist():
        total, t = 0.0, start
        while t < T - 1 and not done[t, n]:
            total, t = total + GAMMA ** (t - start) * reward[t, n], t + 1
        total = total + GAMMA ** (t - start) * (reward[t, n] + GAMMA * (1 - terminated[t, n]) * value[t + 1, n])
        close(advantage[start, n], total - value[start, n], rtol=1e-4, atol=1e-5)


def test_gae_does_not_depend_on_the_order_of_the_environments():
    reward, value, terminated, done, _ = rollout(0)
    order = torch.tensor([3, 1, 4, 0, 2])
    shuffled = ppo.gae(reward[:, order], value[:, order], terminated[:, order], done[:, order], GAMMA, 0.95)
    close(shuffled, ppo.gae(reward, value, terminated, done, GAMMA, 0.95)[:, order])


def test_gae_ends_where_the_episode_ends():
    """Whatever comes after an end, its own true successor's value excepted, changes no advantage up to it."""
    reward, value, terminated, done, _ = rollout(1)
    done[5] = 1
    before = ppo.gae(reward, value, terminated, done, GAMMA, 0.95)
    reward[6:], value[7:], terminated[6:], done[6:] = 100, 100, 1, 1
    close(ppo.gae(reward, value, terminated, done, GAMMA, 0.95)[:6], before[:6])


def agent_and_batch(env_id, size=40, **flags):
    """An agent of random weights, and a batch of its own decisions and of reset steps, which must weigh nothing."""
    args = ppo.Args(env_id=env_id, hidden_size=16, **flags)
    rng = torch.manual_seed(3)
    agent = ppo.Agent(ppo.make_envs(args, 1), args)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    obs = torch.randn(size, agent.actor[0].in_features, generator=rng)
    with torch.no_grad():
        action = agent.act(obs).clone()
        old_log_prob, old_value = agent.log_prob(obs, action)[0], agent.critic(obs)
    advantage = torch.randn(size, generator=rng)
    valid = (torch.rand(size, generator=rng) < 0.8).float()
    return agent, [obs, action, old_log_prob, old_value, advantage, old_value + advantage, valid], args


def gradient(agent, total):
    parameters = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(total, parameters, allow_unused=True)
    pairs = zip(grads, parameters, strict=True)
    return parameters_to_vector([torch.zeros_like(p) if grad is None else grad for grad, p in pairs])


BOTH = pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])


@BOTH
def test_at_ratio_1_the_gradient_is_the_policy_gradient(env_id):
    """-E[A grad log pi(a|s)] over decisions: the first step of each rollout is that of an actor-critic."""
    agent, batch, args = agent_and_batch(env_id, norm_adv=False, vf_coef=0.0)
    obs, action, _, _, advantage, _, valid = batch
    plain = -(advantage * agent.log_prob(obs, action)[0])[valid == 1].mean()
    close(gradient(agent, ppo.loss(agent, batch, args)[0]), gradient(agent, plain))


@BOTH
@pytest.mark.parametrize("flags", [{}, {"norm_adv": False, "clip_vloss": True, "ent_coef": 0.1}])
def test_reset_steps_change_neither_loss_nor_gradient_nor_metrics(env_id, flags):
    agent, batch, args = agent_and_batch(env_id, **flags)
    valid = batch[-1] == 1
    batch[2] = batch[2] + 0.3 * torch.randn(len(valid))  # as after some epochs: other ratios than 1
    batch[3] = batch[3] + 0.3 * torch.randn(len(valid))
    for x in (batch[0], batch[3], batch[4], batch[5]):
        x[~valid] = 50.0
    total, metrics = ppo.loss(agent, batch, args)
    alone, metrics_alone = ppo.loss(agent, [x[valid] for x in batch], args)
    close(total, alone)
    close(gradient(agent, total), gradient(agent, alone))
    close({name: metrics[name] for name in metrics_alone}, metrics_alone)


@BOTH
def test_the_order_of_a_minibatch_does_not_matter(env_id):
    agent, batch, args = agent_and_batch(env_id)
    order = torch.randperm(len(batch[0]))
    shuffled = ppo.loss(agent, [x[order] for x in batch], args)[0]
    close(gradient(agent, shuffled), gradient(agent, ppo.loss(agent, batch, args)[0]), rtol=1e-4, atol=1e-6)


@BOTH
def test_normalised_advantages_do_not_depend_on_scale_and_offset(env_id):
    agent, batch, args = agent_and_batch(env_id)
    scaled = [*batch[:4], 7 * batch[4] + 3, *batch[5:]]
    close(ppo.loss(agent, scaled, args)[0], ppo.loss(agent, batch, args)[0])
    close(ppo.loss(agent, scaled, ppo.Args(norm_adv=False))[1]["policy_loss"], -(scaled[4] @ batch[6]) / batch[6].sum())


@BOTH
def test_update_is_one_step_against_the_gradient(env_id):
    """Plain gradient descent shows what is stepped along: the gradient, of norm max-grad-norm at most."""
    for max_grad_norm in (1e6, 0.01):
        agent, batch, args = agent_and_batch(env_id, max_grad_norm=max_grad_norm)
        expected = gradient(agent, ppo.loss(agent, batch, args)[0])
        expected = expected * min(1, max_grad_norm / expected.norm().item())
        weights = ppo.flatten(agent.parameters())
        before = weights.detach().clone()
        optimizer = torch.optim.SGD([weights], lr=0.5)
        for step in (1, 2):  # a second update from the same weights starts from no old gradient
            weights.data.copy_(before)
            metrics = ppo.update(agent, optimizer, batch, args)
            after = parameters_to_vector(agent.parameters())
            close((before - after) / 0.5, expected, rtol=1e-3, atol=1e-5, msg=f"update {step}")
        assert not any(metric.requires_grad for metric in metrics.values())
