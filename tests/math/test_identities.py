"""What the on-policy scripts have in common: each one, simplified, is the one before it."""

import pytest
import torch
from agents import gradient, make_agent, random_agent, record

import a2c
import ppo
import reinforce
import reinforce_baseline

close = torch.testing.assert_close
BOTH = pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
WITH_GAE = pytest.mark.parametrize("module", [a2c, ppo])
T, N, GAMMA = 12, 5, 0.9


def random_rollout(seed):
    """Rewards, values (T + 1 rows), terminations, ends and real steps; the step after an end only resets."""
    rng = torch.manual_seed(seed)
    done = torch.zeros(T, N)
    for t in range(T):
        done[t] = (torch.rand(N, generator=rng) < 0.3).float() * (1 - done[t - 1] if t else 1)
    terminated = done * (torch.rand(T, N, generator=rng) < 0.5)
    real = torch.cat([torch.ones(1, N), 1 - done[:-1]])
    reward = torch.randn(T, N, generator=rng) * real
    return reward, torch.randn(T + 1, N, generator=rng), terminated, done, real


@WITH_GAE
@pytest.mark.parametrize("seed", range(5))
def test_gae_at_lambda_0_is_the_td_error(module, seed):
    reward, value, terminated, done, _ = random_rollout(seed)
    error = reward + GAMMA * torch.where(terminated == 1, 0.0, value[1:]) - value[:-1]
    close(module.gae(reward, value, terminated, done, GAMMA, 0.0), error)


@WITH_GAE
@pytest.mark.parametrize("seed", range(5))
def test_gae_at_lambda_1_is_the_return_minus_the_value(module, seed):
    """The return is summed from each step to the end of its episode, or to the value after the rollout."""
    reward, value, terminated, done, real = random_rollout(seed)
    advantage = module.gae(reward, value, terminated, done, GAMMA, 1.0)
    for start, n in real.nonzero().tolist():
        total, discount, t = 0.0, 1.0, start
        while t < T - 1 and not done[t, n]:
            total, discount, t = total + discount * reward[t, n], discount * GAMMA, t + 1
        total += discount * (reward[t, n] + GAMMA * (1 - terminated[t, n]) * value[t + 1, n])
        close(advantage[start, n], total - value[start, n], rtol=1e-4, atol=1e-5)


@WITH_GAE
def test_gae_ends_where_the_episode_ends(module):
    """Later steps change no advantage of an episode; only the value of its last observation does."""
    reward, value, terminated, done, _ = random_rollout(1)
    done[5] = 1
    before = module.gae(reward, value, terminated, done, GAMMA, 0.95)
    reward[6:], value[7:], terminated[6:], done[6:] = 100, 100, 1, 1
    close(module.gae(reward, value, terminated, done, GAMMA, 0.95)[:6], before[:6])


@BOTH
@pytest.mark.parametrize("flags", [{"norm_adv": True}, {"norm_adv": False, "vf_coef": 0.7, "ent_coef": 0.1}])
def test_ppo_at_ratio_1_is_a2c(env_id, flags):
    """Before the first step of an update, PPO's gradient is A2C's, for any clip range."""
    agent, obs, action, args = random_agent(a2c, env_id, **flags)
    advantage, returns = torch.randn(2, len(obs))
    old_log_prob = agent.log_prob(obs, action)[0].detach()
    ours, _ = a2c.loss(agent, [obs, action, advantage, returns], args)
    ppo_args = ppo.Args(env_id=env_id, clip_coef=0.01, **flags)
    theirs, _ = ppo.loss(agent, [obs, action, advantage, returns, old_log_prob], ppo_args)
    close(gradient(ours, agent.parameters()), gradient(theirs, agent.parameters()))
    assert gradient(ours, agent.actor.parameters()).norm() > 0.01


@BOTH
def test_a2c_without_coefficients_is_reinforce_with_baseline(env_id):
    agent, obs, action, args = random_agent(a2c, env_id, vf_coef=1.0, ent_coef=0.0)
    batch = [obs, action, *torch.randn(2, len(obs))]
    baseline_args = reinforce_baseline.Args(norm_adv=args.norm_adv)
    close(a2c.loss(agent, batch, args)[0], reinforce_baseline.loss(agent, batch, baseline_args)[0])


@BOTH
def test_baseline_of_zero_is_reinforce(env_id):
    """If V(s) = 0, the advantages are the returns, and the gradient of the policy is the same."""
    agent, obs, action, args = random_agent(reinforce_baseline, env_id)
    returns = torch.randn(len(obs))
    plain, _ = reinforce.loss(agent, [obs, action, returns], reinforce.Args(norm_returns=args.norm_adv))
    baseline, _ = reinforce_baseline.loss(agent, [obs, action, returns, returns], args)
    policy = [*agent.actor.parameters(), agent.log_std]
    close(gradient(plain, policy), gradient(baseline, policy))
    assert not hasattr(random_agent(reinforce, env_id)[0], "critic")


def batch_of(module, agent, obs, action, advantage, returns):
    """A batch as the script's `loss` takes it; PPO's old policy differs a little from the present one."""
    old = [agent.log_prob(obs, action)[0].detach() + 0.1 * torch.randn(len(obs))] if module is ppo else []
    return [obs, action, advantage, returns, *old]


@BOTH
@pytest.mark.parametrize("module", [reinforce_baseline, a2c, ppo])
def test_policy_and_value_are_trained_apart(module, env_id):
    """The policy loss has no gradient in the critic, and the value loss has none in the actor."""
    agent, obs, action, args = random_agent(module, env_id)
    batch = batch_of(module, agent, obs, action, *torch.randn(2, len(obs)))
    _, metrics = module.loss(agent, batch, args)
    actor, critic = [*agent.actor.parameters(), agent.log_std], [*agent.critic.parameters()]
    assert gradient(metrics["policy_loss"], actor).norm() > 0.01
    assert not gradient(metrics["value_loss"], actor).any()
    assert gradient(metrics["value_loss"], critic).norm() > 0.01
    assert not gradient(metrics["policy_loss"], critic).any()


@BOTH
@pytest.mark.parametrize("module", [reinforce_baseline, a2c, ppo])
def test_normalised_advantages_ignore_scale_and_offset(module, env_id):
    agent, obs, action, args = random_agent(module, env_id, norm_adv=True)
    batch = batch_of(module, agent, obs, action, *torch.randn(2, len(obs)))
    scaled = [*batch[:2], 7 * batch[2] + 3, *batch[3:]]
    close(module.loss(agent, scaled, args)[0], module.loss(agent, batch, args)[0])


WHOLE_EPISODES = "--env-id probes:EndsAtFive-v0 --num-envs 3 --gamma 0.9 --total-timesteps 15 --eval-episodes 0"


def first_batch(script, flags):
    _, calls = record(script, *flags.split())
    return calls[0].batch


def test_a2c_at_lambda_1_on_whole_episodes_is_reinforce_with_baseline(folder):
    """The same seed plays the same episodes, and the two scripts train on the same numbers."""
    ours = first_batch("a2c", f"{WHOLE_EPISODES} --num-steps 5 --gae-lambda 1")
    theirs = first_batch("reinforce_baseline", WHOLE_EPISODES)
    close(ours, theirs)
    _, _, advantage, returns = theirs
    close(returns, torch.tensor([4.0951, 3.439, 2.71, 1.9, 1.0]).repeat_interleave(3))
    assert advantage.std() > 0.1
    assert (returns - advantage).abs().max() > 0.01


def test_baseline_changes_neither_episodes_nor_returns(folder):
    obs, action, _, returns = first_batch("reinforce_baseline", WHOLE_EPISODES)
    close(first_batch("reinforce", WHOLE_EPISODES), [obs, action, returns], rtol=0, atol=0)


def test_ppo_trains_on_the_numbers_that_a2c_trains_on(folder):
    """PPO shuffles a rollout: it is put in the order of its advantages."""
    flags = f"{WHOLE_EPISODES} --env-id probes:BoxEndsAtFive-v0 --num-steps 8 --gae-lambda 0.7"
    ours = first_batch("a2c", flags)
    obs, action, advantage, returns, _ = first_batch("ppo", f"{flags} --num-minibatches 1 --update-epochs 1")
    theirs = [obs, action, advantage, returns]
    ours, theirs = ([x[batch[1][:, 0].argsort()] for x in batch] for batch in (ours, theirs))
    close(ours, theirs)
    assert len(ours[0]) == 3 * 7


def whole_episodes(agent, args, count):
    """Whole episodes of CartPole-v1 under the policy -> obs (T, count, 4), action, returns, real (T, count)."""
    envs = reinforce_baseline.make_envs(args, count)
    obs, real, rows = torch.tensor(envs.reset(seed=1)[0]), torch.ones(count, dtype=torch.bool), []
    while real.any():
        action = agent.act(obs)
        next_obs, reward, terminated, truncated, _ = envs.step(action.numpy())
        done = torch.tensor(terminated | truncated)
        rows.append((obs, action, torch.tensor(reward).float(), done.float(), real))
        obs, real = torch.tensor(next_obs), real & ~done
    obs, action, reward, done, real = (torch.stack(x) for x in zip(*rows, strict=True))
    return obs, action, reinforce_baseline.returns_to_go(reward, done, 0.99), real


def test_baseline_keeps_the_expected_gradient_and_lowers_its_variance():
    """1000 episodes of one policy, each a batch (Williams 1992; Greensmith et al. 2004).

    The gradient is summed over each episode: E[sum of grad log pi(a|s) V(s)] = 0 is exact. A mean over the steps is
    biased, because it divides by a length that depends on the actions.
    """
    count = 1000
    torch.manual_seed(0)
    agent, args = make_agent(reinforce_baseline, "CartPole-v1", hidden_size=4)
    torch.nn.init.normal_(agent.actor[-1].weight, std=1.0)
    obs, action, returns, real = whole_episodes(agent, args, count)

    # Fit the critic to other episodes of the policy.
    fit_obs, _, fit_returns, fit_real = whole_episodes(agent, args, 300)
    optimizer = torch.optim.Adam(agent.critic.parameters(), lr=0.03)
    for _ in range(500):
        optimizer.zero_grad()
        reinforce_baseline.value_loss(agent.value(fit_obs[fit_real]), fit_returns[fit_real]).backward()
        optimizer.step()
    value = agent.value(obs).detach()

    rows = []
    for n in range(count):
        steps = real[:, n]
        log_prob, _ = agent.log_prob(obs[steps, n], action[steps, n])
        baselines = (torch.zeros_like(value), value, value * (1 + action))  # the last one depends on the action
        losses = [reinforce_baseline.policy_loss(log_prob, (returns - b)[steps, n]) * steps.sum() for b in baselines]
        rows.append(torch.stack([gradient(loss, agent.actor.parameters()) for loss in losses]))
    plain, baseline, wrong = torch.stack(rows, 1)  # each (episodes, parameters)

    def standard_errors(other):
        """The mean change of the gradient in standard errors, for each parameter."""
        change = other - plain
        return change.mean(0).abs() / (change.std(0) / count**0.5 + 1e-12)

    assert standard_errors(baseline).max() < 4
    assert standard_errors(wrong).max() > 8
    assert baseline.var(0).sum() < 0.6 * plain.var(0).sum()
