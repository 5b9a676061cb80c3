"""REINFORCE, REINFORCE with a baseline, A2C: hand numbers, what each step up the ladder keeps, and what it claims."""

from importlib import import_module
from math import log, sqrt
from types import SimpleNamespace

import pytest
import torch
from harness import train
from torch.distributions import Categorical
from torch.nn.utils import parameters_to_vector

import a2c
import ppo
import reinforce
import reinforce_baseline

close = torch.testing.assert_close
WHOLE_EPISODES = pytest.mark.parametrize("module", [reinforce, reinforce_baseline])
EVERY_STEP = pytest.mark.parametrize("module", [reinforce, reinforce_baseline, a2c])


def column(*numbers):
    return torch.tensor(numbers)[:, None]


# gamma = 0.5, rewards 1 2 3.
# Ends at the last step: G[2] = 3, G[1] = 2 + 0.5 * 3 = 3.5, G[0] = 1 + 0.5 * 3.5 = 2.75.
# Ends at step 1, by either flag; the environment plays on: G[1] = 2, G[0] = 1 + 0.5 * 2 = 2, and step 2 stands alone.
@WHOLE_EPISODES
@pytest.mark.parametrize(("done", "expected"), [([0.0, 0, 1], [2.75, 3.5, 3]), ([0.0, 1, 0], [2.0, 2, 3])])
def test_returns(module, done, expected):
    close(module.returns(column(1.0, 2, 3), column(*done), 0.5), column(*expected))


@WHOLE_EPISODES
def test_returns_of_several_environments_are_those_of_each(module):
    reward, done = torch.tensor([[1.0, 1], [2, 2], [3, 3]]), torch.tensor([[0.0, 0], [0, 1], [1, 0]])
    close(module.returns(reward, done, 0.5), torch.tensor([[2.75, 2], [3.5, 2], [3, 3]]))


@EVERY_STEP
def test_policy_loss_and_its_gradient(module):
    # -(0.25 * -1 * 2 + 0.75 * -2 * -3) = -4; by log pi it is -weight A
    log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = module.policy_loss(log_prob, torch.tensor([2.0, -3.0]), torch.tensor([0.25, 0.75]))
    close(loss, torch.tensor(-4.0))
    loss.backward()
    close(log_prob.grad, torch.tensor([-0.5, 2.25]))


@pytest.mark.parametrize("module", [reinforce_baseline, a2c])
def test_value_loss_and_its_gradient(module):
    # (0.25 * (1 - 2)^2 + 0.75 * (3 - 1)^2) / 2 = 1.625; by V it is weight (V - R)
    value = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = module.value_loss(value, torch.tensor([2.0, 1.0]), torch.tensor([0.25, 0.75]))
    close(loss, torch.tensor(1.625))
    loss.backward()
    close(value.grad, torch.tensor([-0.25, 1.5]))


def of_logits(logits, action):
    policy = Categorical(logits=logits)
    return policy.log_prob(action), policy.entropy()


def numbers(module, *columns, **flags):
    """The loss on three decisions, of probability 0.5, 0.25 and 0.2, and on a step that must not count."""
    obs = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.2, 0.8], [0.01, 0.99]]).log()
    value = torch.tensor([1.0, 2, 3, 50])
    agent = SimpleNamespace(log_prob=of_logits, critic=lambda obs: value)
    batch = (obs, torch.tensor([0, 0, 0, 0]), *map(torch.tensor, columns), torch.tensor([1.0, 1, 1, 0]))
    return module.loss(agent, batch, module.Args(**flags))


ADVANTAGE, RETURNS = [1.0, 2.0, 6.0, 99.0], [1.0, 3.0, 4.0, -99.0]
LOG_PROB = [log(0.5), log(0.25), log(0.2)]
POLICY = -(1 * LOG_PROB[0] + 2 * LOG_PROB[1] + 6 * LOG_PROB[2]) / 3
NORMALISED = -(-2 * LOG_PROB[0] - 1 * LOG_PROB[1] + 3 * LOG_PROB[2]) / sqrt(14 / 3) / 3  # mean 3, variance 14 / 3
VALUE = ((1 - 1) ** 2 + (2 - 3) ** 2 + (3 - 4) ** 2) / 3 / 2
ENTROPY = -sum(p * log(p) for p in (0.5, 0.5, 0.25, 0.75, 0.2, 0.8)) / 3
EXPLAINED = 1 - ((1 + 4 + 36) / 3) / (42 / 27)  # what is left is the advantage; R = 1, 3, 4 has variance 42 / 27


@pytest.mark.parametrize(("norm", "policy"), [(False, POLICY), (True, NORMALISED)])
def test_loss_of_reinforce(norm, policy):
    total, metrics = numbers(reinforce, ADVANTAGE, norm_returns=norm)
    close(total, torch.tensor(policy))
    close(metrics, {"policy_loss": torch.tensor(policy), "entropy": torch.tensor(ENTROPY)})


@pytest.mark.parametrize(("norm", "policy"), [(False, POLICY), (True, NORMALISED)])
def test_loss_of_reinforce_with_a_baseline(norm, policy):
    total, metrics = numbers(reinforce_baseline, ADVANTAGE, RETURNS, norm_adv=norm)
    expected = {"policy_loss": policy, "value_loss": VALUE, "entropy": ENTROPY, "explained_variance": EXPLAINED}
    close(total, torch.tensor(policy + VALUE))
    close(metrics, {name: torch.tensor(x) for name, x in expected.items()})


@pytest.mark.parametrize(("norm", "policy"), [(False, POLICY), (True, NORMALISED)])
def test_loss_of_a2c(norm, policy):
    total, metrics = numbers(a2c, ADVANTAGE, RETURNS, norm_adv=norm, vf_coef=0.3, ent_coef=0.1)
    expected = {"policy_loss": policy, "value_loss": VALUE, "entropy": ENTROPY, "explained_variance": EXPLAINED}
    close(total, torch.tensor(policy + 0.3 * VALUE - 0.1 * ENTROPY))
    close(metrics, {name: torch.tensor(x) for name, x in expected.items()})


def agent_and_batch(module, env_id, columns, size=40, **flags):
    """An agent of random weights, and decisions among reset steps with so many columns of numbers beside them."""
    args = module.Args(env_id=env_id, hidden_size=16, **flags)
    rng = torch.manual_seed(3)
    agent = module.Agent(module.make_envs(args, 1), args)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    obs = torch.randn(size, agent.actor[0].in_features, generator=rng)
    action = agent.act(obs).clone()
    valid = (torch.rand(size, generator=rng) < 0.8).float()
    return agent, [obs, action, *torch.randn(columns, size, generator=rng), valid], args


def gradient(total, parameters):
    parameters = list(parameters)
    grads = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(grads, parameters, strict=True)
    return parameters_to_vector([torch.zeros_like(p) if grad is None else grad for grad, p in pairs])


BOTH = pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])


@BOTH
@pytest.mark.parametrize("flags", [{}, {"norm_adv": False, "vf_coef": 0.7, "ent_coef": 0.1}])
def test_ppo_at_ratio_1_is_a2c(env_id, flags):
    """On the same batch, before the first step of its epochs, PPO's gradient is A2C's, for whatever clip range."""
    agent, (obs, action, advantage, returns, valid), args = agent_and_batch(a2c, env_id, 2, **flags)
    with torch.no_grad():
        old = agent.log_prob(obs, action)[0], agent.critic(obs)
    theirs = ppo.Args(env_id=env_id, hidden_size=16, clip_coef=0.01, **{"norm_adv": args.norm_adv} | flags)
    mine, metrics = a2c.loss(agent, (obs, action, advantage, returns, valid), args)
    other, other_metrics = ppo.loss(agent, (obs, action, *old, advantage, returns, valid), theirs)
    close(gradient(mine, agent.parameters()), gradient(other, agent.parameters()))
    assert gradient(mine, agent.actor.parameters()).norm() > 0.01
    for name in ("value_loss", "entropy", "explained_variance"):
        close(metrics[name], other_metrics[name])


@BOTH
def test_a2c_without_its_terms_is_reinforce_with_a_baseline(env_id):
    agent, batch, args = agent_and_batch(a2c, env_id, 2, vf_coef=1.0, ent_coef=0.0)
    theirs = reinforce_baseline.Args(env_id=env_id, norm_adv=args.norm_adv)
    close(a2c.loss(agent, batch, args)[0], reinforce_baseline.loss(agent, batch, theirs)[0])


@BOTH
def test_a_baseline_of_zero_is_reinforce(env_id):
    """Returns less V(s) = 0 are returns: the same gradient of the policy; only the critic's own loss is beside it."""
    agent, (obs, action, returns, valid), args = agent_and_batch(reinforce, env_id, 1)
    with_critic, *_ = agent_and_batch(reinforce_baseline, env_id, 1)
    with_critic.load_state_dict(agent.state_dict(), strict=False)
    theirs = reinforce_baseline.Args(env_id=env_id, norm_adv=args.norm_returns)
    total, _ = reinforce.loss(agent, (obs, action, returns, valid), args)
    other, _ = reinforce_baseline.loss(with_critic, (obs, action, returns, returns, valid), theirs)
    close(gradient(total, agent.actor.parameters()), gradient(other, with_critic.actor.parameters()))
    assert not hasattr(agent, "critic")


@BOTH
@pytest.mark.parametrize("module", [reinforce_baseline, a2c])
def test_policy_and_value_do_not_reach_into_each_other(module, env_id):
    """The advantage moves the actor alone, with no gradient into the critic, and the returns move the critic alone."""
    agent, (obs, action, advantage, returns, valid), args = agent_and_batch(module, env_id, 2, norm_adv=False)
    actor = [parameter for name, parameter in agent.named_parameters() if not name.startswith("critic")]

    def gradients(advantage, returns):
        total, _ = module.loss(agent, (obs, action, advantage, returns, valid), args)
        return gradient(total, actor), gradient(total, agent.critic.parameters())

    plain, better, higher = (
        gradients(*x) for x in ((advantage, returns), (2 * advantage, returns), (advantage, returns + 1))
    )
    close(plain[1], better[1], rtol=0, atol=0)
    close(plain[0], higher[0], rtol=0, atol=0)
    assert (plain[0] - better[0]).norm() > 0.01 and (plain[1] - higher[1]).norm() > 0.01


def first_batch(script, folder, monkeypatch, *flags):
    """What a script's first update is given: flat columns of its rollout."""
    module, batches = import_module(script), []
    update = module.update

    def note(agent, optimizer, batch, args):
        batches.append([x.clone() for x in batch])
        return update(agent, optimizer, batch, args)

    monkeypatch.setattr(module, "update", note)
    train(script, *map(str, flags))
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    return batches[0]


EPISODES = ("--env-id", "probes:EndsAtFive-v0", "--num-envs", 3, "--gamma", 0.9, "--total-timesteps", 1)


def test_a2c_at_lambda_1_on_whole_episodes_is_reinforce_with_a_baseline(folder, monkeypatch):
    """End to end: the same seed plays the same episodes, and all that the update is given is the same."""
    mine = first_batch("a2c", folder, monkeypatch, *EPISODES, "--num-steps", 5, "--gae-lambda", 1)
    other = first_batch("reinforce_baseline", folder, monkeypatch, *EPISODES)
    for x, y in zip(mine, other, strict=True):
        close(x, y)
    close(mine[3], torch.tensor([4.0951, 3.439, 2.71, 1.9, 1.0]).repeat_interleave(3))
    assert mine[2].std() > 0.1 and mine[4].all()


def test_a_baseline_changes_neither_episodes_nor_returns(folder, monkeypatch):
    mine = first_batch("reinforce", folder, monkeypatch, *EPISODES)
    obs, action, _, returns, valid = first_batch("reinforce_baseline", folder, monkeypatch, *EPISODES)
    for x, y in zip(mine, (obs, action, returns, valid), strict=True):
        close(x, y, rtol=0, atol=0)


def test_ppo_is_given_what_a2c_is_given(folder, monkeypatch):
    flags = (*EPISODES, "--num-steps", 8, "--gae-lambda", 0.7)
    mine = first_batch("a2c", folder, monkeypatch, *flags)
    other = first_batch("ppo", folder, monkeypatch, *flags, "--num-minibatches", 1, "--update-epochs", 1)
    order = [sorted(range(24), key=lambda i: x[4 if x is other else 2][i].item()) for x in (mine, other)]
    # PPO's minibatch is shuffled: both in the order of their advantages
    for x, y in zip(mine, [other[k] for k in (0, 1, 4, 5, 6)], strict=True):
        ties = x.dtype == torch.int64 or x.dim() > 1
        close(x[order[0]].float().sum(0) if ties else x[order[0]], y[order[1]].float().sum(0) if ties else y[order[1]])


@pytest.mark.parametrize("script", ["reinforce", "reinforce_baseline"])
def test_an_update_is_of_one_whole_episode_of_each_environment(script, folder, monkeypatch):
    """Episodes of 1 to 9 steps, by the seed; what an environment plays after its first pays 100 a step."""
    module, batches, seen = import_module(script), [], []
    update, tick = module.update, module.Run.tick

    def note(agent, optimizer, batch, args):
        batches.append((batch[-2].view(-1, 6).clone(), batch[-1].view(-1, 6).clone()))
        return update(agent, optimizer, batch, args)

    def look(run, *args):
        seen.append((list(run.envs.return_queue), list(run.envs.length_queue)))
        return tick(run, *args)

    monkeypatch.setattr(module, "update", note)
    monkeypatch.setattr(module.Run, "tick", look)
    flags = "--env-id probes:FirstEpisodePays-v0 --num-envs 6 --gamma 1 --total-timesteps 500"
    train(script, *flags.split())
    lengths = set()
    for (returns, valid), (episode_returns, episode_lengths) in zip(batches, seen, strict=True):
        steps = valid.sum(0)
        lengths |= set(steps.tolist())
        assert steps.max() == len(valid), "played on after the last episode's end"
        for n in range(6):
            k = int(steps[n])
            assert valid[:k, n].all() and not valid[k:, n].any()
            assert returns[:k, n].tolist() == list(range(k, 0, -1))
        assert episode_returns == episode_lengths == steps.tolist()
    assert len(lengths) == 9


def episodes_of(agent, args, count):
    """Whole episodes of CartPole-v1 under the policy -> obs (T, count, 4), action, returns, valid (T, count)."""
    envs = reinforce_baseline.make_envs(args, count)
    obs, rows, valid = torch.tensor(envs.reset(seed=1)[0]), [], torch.ones(count)
    while valid.any():
        action = agent.act(obs).clone()
        next_obs, reward, terminated, truncated, _ = envs.step(action.numpy())
        done = torch.tensor(terminated | truncated).float()
        rows.append((obs, action, torch.tensor(reward).float(), done, valid))
        obs, valid = torch.tensor(next_obs), valid * (1 - done)
    obs, action, reward, done, valid = (torch.stack(x) for x in zip(*rows, strict=True))
    return obs, action, reinforce_baseline.returns(reward, done, 0.99), valid


def test_the_baseline_keeps_the_expected_gradient_and_lowers_its_variance(record_property):
    """Over 2000 batches, of an episode each, of one fixed policy (Williams 1992; Greensmith et al. 2004).

    The sum over an episode is compared: there E[grad log pi(a|s) V(s)] = 0 holds exactly, whereas a mean divides by an
    episode's length, which depends on the actions.
    """
    args, count = reinforce_baseline.Args(hidden_size=4, norm_adv=False), 2000
    torch.manual_seed(0)
    agent = reinforce_baseline.Agent(reinforce_baseline.make_envs(args, 1), args)
    torch.nn.init.normal_(agent.actor[-1].weight, std=1.0)
    obs, action, to_go, valid = episodes_of(agent, args, count)

    # The critic is fitted to other episodes of the same policy by the script's own loss.
    fit = episodes_of(agent, args, 300)
    optimizer = torch.optim.Adam([reinforce_baseline.flatten(agent.critic.parameters())], lr=0.03)
    for _ in range(500):
        batch = [x.flatten(0, 1) for x in (*fit[:2], torch.zeros_like(fit[2]), *fit[2:])]
        reinforce_baseline.update(agent, optimizer, batch, args)
    with torch.no_grad():
        value = agent.critic(obs)

    rows = []
    for n in range(count):
        steps = valid[:, n] == 1
        log_prob = agent.log_prob(obs[steps, n], action[steps, n])[0]
        baselines = (torch.zeros_like(value), value, value * (1 + action))  # the last is none: it knows the action
        losses = [
            reinforce_baseline.policy_loss(log_prob, (to_go - baseline)[steps, n], valid[steps, n])
            for baseline in baselines
        ]
        rows.append(torch.stack([gradient(loss, agent.actor.parameters()) for loss in losses]))
    plain, baseline, wrong = torch.stack(rows, 1)  # each (episodes, weights)

    def scores(other):
        """The mean change of the gradient in standard errors, for each weight."""
        change = other - plain
        return change.mean(0).abs() / (change.std(0) / count**0.5 + 1e-12)

    assert scores(baseline).max() < 4
    assert scores(wrong).max() > 8
    ratio = (baseline.var(0).sum() / plain.var(0).sum()).item()
    print(f"variance of the gradient with the baseline: {ratio:.2f} of that without")
    assert ratio < 0.6


@pytest.mark.parametrize("module", [reinforce_baseline, a2c, ppo])
def test_the_critic_keeps_seeing_the_state_on_its_way_to_large_returns(module):
    """What its last layer's gain is for: after 300 steps towards values of 85 to 100, it still tells states apart.

    At a gain of 1, all units of its second layer are saturated by then, it is a constant, and explains nothing.
    """

    def explained(gain):
        torch.manual_seed(0)
        args = module.Args(learning_rate=3e-3)
        critic = module.Agent(module.make_envs(args, 1), args).critic
        critic[0][-1].weight.data.mul_(gain / critic[0][-1].weight.norm())
        optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3, eps=1e-5)
        for _ in range(300):
            obs = torch.randn(512, 4) * torch.tensor([1, 0.5, 0.1, 0.5])
            returns = 100 - 5 * obs[:, 0] ** 2
            optimizer.zero_grad()
            ((critic(obs) - returns) ** 2).mean().backward()
            optimizer.step()
        error = (critic(obs) - returns).var() / returns.var()
        return 1 - error.item()

    initial = module.Agent(module.make_envs(module.Args(), 1), module.Args()).critic[0][-1].weight.norm().item()
    assert explained(initial) > 0.2
    assert explained(1.0) < 0.1
    args = module.Args(norm_reward=True)  # then returns are about 1, and values about 10 would be noise to unlearn
    assert module.Agent(module.make_envs(args, 1), args).critic[0][-1].weight.norm().item() == pytest.approx(1.0)
