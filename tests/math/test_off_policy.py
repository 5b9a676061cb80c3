"""ddpg.py, td3.py, sac.py: targets and losses by hand, the updates of a run, identities between the three."""

import copy
import itertools
import math
from importlib import import_module
from unittest import mock

import pytest
import torch
from harness import OFF_POLICY, differences, parse, train

import ddpg
import sac
import td3

EACH_SCRIPT = pytest.mark.parametrize("script", OFF_POLICY)
close = torch.testing.assert_close
SMALL = ("--env-id", "probes:Spy-v0", "--hidden-size", 8, "--batch-size", 16, "--eval-episodes", 0)
# Three transitions: in the middle of an episode, terminated, truncated. A truncated one is not terminated. Two critics.
REWARD, TERMINATED = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.0])
NEXT_Q = torch.tensor([[10.0, 20.0, 30.0], [12.0, 16.0, 28.0]])


def make(script, *flags):
    """A script, its flags, and an agent with random parameters. An observation is 3 numbers, an action is 3."""
    module, args = import_module(script), parse(script, *SMALL, *flags)
    torch.manual_seed(0)
    agent = module.Agent(module.make_envs(args, 1), args)
    for name in ("target_actor", "target_critic"):
        for parameter in getattr(agent, name, torch.nn.Identity()).parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # targets must differ from the networks
    return module, args, agent


def batch_of(size, seed=0):
    rng = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, size, 3, generator=rng)
    action = 2 * torch.rand(size, 3, generator=rng) - 1
    reward = torch.randn(size, generator=rng)
    terminated = (torch.rand(size, generator=rng) < 0.3).float()
    return [obs, action, next_obs, reward, terminated]


def record_updates(script, updates, monkeypatch, *flags):
    """Run updates on fixed batches -> the agent, and (objective, copy of the agent) before each backward pass."""
    module, number, calls = import_module(script), itertools.count(), []
    plain_backward = module.backward

    def backward(objective, agent, batch, args):
        calls.append((objective, copy.deepcopy(agent)))
        return plain_backward(objective, agent, batch, args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "backward", backward)
        patch.setattr(module.ReplayBuffer, "sample", lambda buffer, size: batch_of(size, next(number)))
        agent, _ = train(script, *SMALL, "--total-timesteps", updates, "--learning-starts", 0, *flags)
    return agent, calls


def changed(one, two):
    """The parts of an agent that are not the same bits: critic, actor, target_critic, ..."""
    return {place.split("/")[1].split(".")[0] for place in differences(one.state_dict(), two.state_dict())}


def test_targets_by_hand():
    # DDPG has one critic: 1 + 0.5 * 10, 2, 3 + 0.5 * 30.
    close(ddpg.q_target(NEXT_Q[0], REWARD, TERMINATED, 0.5), torch.tensor([6.0, 2.0, 18.0]))
    # TD3 takes the smaller of two: 1 + 0.5 * 10, 2, 3 + 0.5 * 28.
    close(td3.q_target(NEXT_Q, REWARD, TERMINATED, 0.5), torch.tensor([6.0, 2.0, 17.0]))
    # SAC with log pi = -2, 1, 4 and alpha = 0.25: 1 + 0.5 * (10 + 0.5), 2, 3 + 0.5 * (28 - 1).
    log_prob = torch.tensor([-2.0, 1.0, 4.0])
    close(sac.q_target(NEXT_Q, log_prob, 0.25, REWARD, TERMINATED, 0.5), torch.tensor([6.25, 2.0, 16.5]))


def test_smoothing_by_hand():
    """First the noise is clipped to 0.5: 0.2 + 0.3, 0.2 + 0.5, 0.9 + 0.5, ... Then the sum is clipped to 1."""
    action = torch.tensor([[0.2, 0.2, 0.9], [-0.9, -0.2, 0.0]])
    noise = torch.tensor([[0.3, 0.7, 0.6], [-0.8, -0.1, 0.0]])
    close(td3.smooth(action, noise, 0.5), torch.tensor([[0.5, 0.7, 1.0], [-1.0, -0.3, 0.0]]))


def test_losses_by_hand():
    q, target = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([2.0, 4.0])
    # The errors are -1, -2 and 1, 1: (1 + 4) / 2 + (1 + 1) / 2.
    assert td3.critic_loss(q, target) == sac.critic_loss(q, target) == 3.5
    assert ddpg.critic_loss(q[0], target) == 2.5
    assert ddpg.actor_loss(q[0]) == td3.actor_loss(q[:1]) == -1.5
    # alpha log pi = 0.5, -1 minus the smaller Q = 1, 2: the mean of -0.5 and -3.
    assert sac.actor_loss(q, torch.tensor([1.0, -2.0]), 0.5) == -1.75
    # log alpha = -1, log pi + target entropy = 3 - 2, -1 - 2: the mean of 1 and -3.
    assert sac.alpha_loss(torch.tensor(-1.0), torch.tensor([3.0, -1.0]), -2) == -1.0


@pytest.mark.parametrize(("log_prob", "grows"), [(5.0, True), (-1.0, False)])
def test_alpha_grows_while_the_entropy_is_too_low(log_prob, grows):
    """The target is -3 nats. An entropy -log pi of -5 is too low, 1 is too high."""
    log_alpha = torch.tensor(0.3, requires_grad=True)
    sac.alpha_loss(log_alpha, torch.tensor([log_prob]), -3).backward()
    assert (log_alpha.grad < 0) == grows


@pytest.mark.parametrize(("flag", "moves"), [("--autotune", True), ("--no-autotune", False)])
def test_alpha_starts_at_its_flag_and_moves_with_autotune_only(flag, moves, folder, monkeypatch):
    agent, calls = record_updates("sac", 5, monkeypatch, flag, "--alpha", 0.3)
    assert calls[0][1].log_alpha.exp().item() == pytest.approx(0.3)
    assert (agent.log_alpha.exp().item() != pytest.approx(0.3)) == moves


def test_resumed_run_can_fix_alpha(folder):
    _, result = train("sac", *SMALL, "--total-timesteps", 10, "--learning-starts", 0)
    flags = ("--resume", result.folder, "--total-timesteps", 20, "--no-autotune", "--alpha", 0.3)
    agent, _ = train("sac", *flags)
    assert agent.log_alpha.exp().item() == pytest.approx(0.3)


def test_alpha_loss_aims_at_minus_one_nat_for_each_action_dimension():
    """With 3 dimensions, log pi = 3 is on target: log alpha then has no gradient."""
    _, args, agent = make("sac")
    obs = batch_of(4)[0]
    for log_prob, sign in ((2.9, 1), (3.0, 0), (3.1, -1)):
        agent.zero_grad()
        with mock.patch.object(agent, "sample", lambda obs, x=log_prob: (torch.zeros(4, 3), torch.full((4,), x))):
            sac.actor_objective(agent, [obs, *batch_of(4)[1:]], args)[0].backward()
        assert agent.log_alpha.grad.item() == pytest.approx(0.1 * sign, abs=1e-6)


@EACH_SCRIPT
def test_loss_and_metrics_of_a_batch_are_means_over_its_transitions(script):
    """(B,) minus (B, 1) is (B, B): it would compare each transition with every other one."""
    module, args, agent = make(script)
    batch = batch_of(7)
    with mock.patch.object(torch, "randn_like", torch.zeros_like):
        for objective in (module.critic_objective, module.actor_objective):
            total, metrics = objective(agent, batch, args)
            assert all(metric.shape == () for metric in metrics.values())
            alone = [objective(agent, [x[i : i + 1] for x in batch], args) for i in range(7)]
            close(total, torch.stack([total_alone for total_alone, _ in alone]).mean())
            for name, metric in metrics.items():
                close(metric, torch.stack([metrics_alone[name] for _, metrics_alone in alone]).mean())


@EACH_SCRIPT
def test_critic_learns_from_the_target_networks(script):
    """y is computed here from the target networks and the formula; the loss must be the distance to it."""
    module, args, agent = make(script, "--gamma", 0.9)
    obs, action, next_obs, reward, terminated = batch = batch_of(7)
    next_action, log_prob, bonus = 2 * torch.rand(7, 3) - 1, torch.randn(7), 0
    with mock.patch.object(torch, "randn_like", torch.zeros_like):
        if script == "sac":
            bonus = -0.2 * log_prob
            agent.sample = lambda x: (next_action, log_prob) if x is next_obs else None
        else:
            next_action = agent.target_actor(next_obs)
        total, _ = module.critic_objective(agent, batch, args)
    value = module.q_value(agent.target_critic, next_obs, next_action).view(-1, 7).amin(0) + bonus
    y = reward + 0.9 * (1 - terminated) * value
    errors = module.q_value(agent.critic, obs, action).view(-1, 7) - y
    close(total, errors.square().mean(1).sum())


def test_td3_actor_follows_the_first_critic_and_sac_actor_the_smaller():
    obs, *_ = batch = batch_of(64)
    _, args, agent = make("td3")
    total, _ = td3.actor_objective(agent, batch, args)
    q_first, q_second = td3.q_value(agent.critic, obs, agent.actor(obs))
    assert not torch.allclose(q_first, q_second)
    close(total, -q_first.mean())
    _, args, agent = make("sac", "--no-autotune", "--alpha", 0.5)
    action, log_prob = agent.sample(obs)
    agent.sample = lambda obs: (action, log_prob)
    _, metrics = sac.actor_objective(agent, batch, args)
    close(metrics["actor_loss"], (0.5 * log_prob - torch.minimum(*sac.q_value(agent.critic, obs, action))).mean())


@EACH_SCRIPT
def test_critic_step_moves_the_critic_and_actor_step_the_actor(script, folder, monkeypatch):
    """Neither step moves the network of the other."""
    module = import_module(script)
    agent, calls = record_updates(script, 5, monkeypatch)
    assert {objective for objective, _ in calls} == {module.critic_objective, module.actor_objective}
    learned = {"actor", "log_alpha"} if script == "sac" else {"actor"}
    for (objective, before), (_, after) in itertools.pairwise([*calls, (None, agent)]):
        moved = {name for name in changed(before, after) if not name.startswith("target")}
        assert moved == ({"critic"} if objective is module.critic_objective else learned)


@EACH_SCRIPT
def test_gradient_of_one_step_is_not_left_for_the_next(script, folder, monkeypatch):
    """Each backward pass must begin with no gradient on the network that it is for."""
    module, dirty = import_module(script), []
    plain_backward = module.backward

    def backward(objective, agent, batch, args):
        part = agent.actor if objective is module.actor_objective else agent.critic
        dirty.extend(p for p in part.parameters() if p.grad is not None and p.grad.any())
        return plain_backward(objective, agent, batch, args)

    monkeypatch.setattr(module, "backward", backward)
    train(script, *SMALL, "--total-timesteps", 5, "--learning-starts", 0)
    assert not dirty


@EACH_SCRIPT
def test_targets_follow_by_polyak_averaging(script, folder, monkeypatch):
    """target <- 0.75 target + 0.25 network, with the network as the step left it."""
    module = import_module(script)
    agent, calls = record_updates(script, 5, monkeypatch, "--tau", 0.25, *one_to_one(script))
    agents = [x for objective, x in calls if objective is module.critic_objective] + [agent]
    for before, after in itertools.pairwise(agents):
        for name in ("critic",) if script == "sac" else ("critic", "actor"):
            new = getattr(after, name).state_dict()
            old_target = getattr(before, f"target_{name}").state_dict()
            for key, x in getattr(after, f"target_{name}").state_dict().items():
                close(x, 0.75 * old_target[key] + 0.25 * new[key])


def one_to_one(script):
    """TD3 with an update of the actor for each one of the critics."""
    return ("--policy-frequency", 1) if script == "td3" else ()


def test_td3_updates_actor_and_targets_at_every_third_update(folder, monkeypatch):
    agent, calls = record_updates("td3", 7, monkeypatch, "--policy-frequency", 3)
    agents = [x for objective, x in calls if objective is td3.critic_objective] + [agent]
    moved = [changed(before, after) for before, after in itertools.pairwise(agents)]
    assert moved == [
        {"actor", "critic", "target_actor", "target_critic"} if i % 3 == 0 else {"critic"} for i in range(7)
    ]


NO_FIXES = ("--policy-noise", 0, "--policy-frequency", 1)


@pytest.mark.parametrize("updates", [1, 5])
def test_td3_without_its_three_fixes_is_ddpg_to_the_bit(updates, folder, monkeypatch):
    """Both critics start as DDPG's, the target's action has no noise, the actor has no delay."""
    one, two = make("ddpg")[2], make("td3")[2]
    start = copy.deepcopy(one)
    two.actor.load_state_dict(one.actor.state_dict())
    two.target_actor.load_state_dict(one.target_actor.state_dict())
    for k in range(2):
        two.critic[k].load_state_dict(one.critic.state_dict())
        two.target_critic[k].load_state_dict(one.target_critic.state_dict())
    monkeypatch.setattr(ddpg, "Agent", lambda *args: one)
    monkeypatch.setattr(td3, "Agent", lambda *args: two)
    record_updates("ddpg", updates, monkeypatch)
    record_updates("td3", updates, monkeypatch, *NO_FIXES)
    assert changed(start, one) == {"actor", "critic", "target_actor", "target_critic"}
    assert not differences(one.actor.state_dict(), two.actor.state_dict())
    assert not differences(one.target_actor.state_dict(), two.target_actor.state_dict())
    for k in range(2):
        assert not differences(one.critic.state_dict(), two.critic[k].state_dict())
        assert not differences(one.target_critic.state_dict(), two.target_critic[k].state_dict())


@pytest.mark.parametrize("fix", [("--policy-noise", 0.2), ("--policy-frequency", 2)])
def test_each_fix_of_td3_makes_a_difference(fix, folder, monkeypatch):
    plain, _ = record_updates("td3", 5, monkeypatch, *NO_FIXES)
    again, _ = record_updates("td3", 5, monkeypatch, *NO_FIXES)
    fixed, _ = record_updates("td3", 5, monkeypatch, *NO_FIXES, *fix)
    assert not changed(plain, again)
    assert changed(plain, fixed) == {"actor", "critic", "target_actor", "target_critic"}


def test_td3_critics_differ():
    _, _, agent = make("td3")
    q_first, q_second = td3.q_value(agent.critic, *batch_of(5)[:2])
    assert not torch.allclose(q_first, q_second)


def test_sac_at_alpha_0_has_the_target_of_td3():
    """The losses of the critics agree too, if both scripts are given the same next action."""
    batch = batch_of(32)
    _, args, soft = make("sac")
    _, _, hard = make("td3", "--policy-noise", 0)
    torch.nn.init.constant_(soft.log_alpha, -math.inf)
    hard.critic, hard.target_critic = soft.critic, soft.target_critic
    next_action, log_prob = batch_of(32, seed=1)[1], torch.full((32,), 3.0)
    soft.sample = lambda obs: (next_action, log_prob)
    hard.target_actor.forward = lambda obs: next_action
    with mock.patch.object(torch, "randn_like", torch.zeros_like):
        close(sac.critic_objective(soft, batch, args)[0], td3.critic_objective(hard, batch, make("td3")[1])[0])
    next_q = torch.randn(2, 32)
    target = sac.q_target(next_q, log_prob, 0.0, *batch[3:], 0.9)
    assert torch.equal(target, td3.q_target(next_q, *batch[3:], 0.9))


@EACH_SCRIPT
def test_greedy_actions_have_no_noise(script):
    *_, agent = make(script)
    obs = torch.randn(4, 3)
    assert torch.equal(agent.act(obs, greedy=True), agent.act(obs, greedy=True))
    assert (agent.act(obs, greedy=True).abs() <= 1).all()
    assert torch.equal(agent.act(obs), agent.act(obs)) == (script != "sac")
