"""ddpg.py, td3.py, sac.py: numbers by hand, identities between them, the replay buffer, the count of updates."""

import copy
import math
import re
from importlib import import_module
from unittest import mock

import numpy as np
import pytest
import torch
from harness import OFF_POLICY, checkpoint, parse, train

import ddpg
import sac
import td3

EACH_SCRIPT = pytest.mark.parametrize("script", OFF_POLICY)
close = torch.testing.assert_close
# Three transitions: one in the middle of an episode, one that terminated, and one that a time limit cut off, which
# terminated nothing. Two critics.
REWARD, TERMINATED = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.0])
NEXT_Q = torch.tensor([[10.0, 20.0, 30.0], [12.0, 16.0, 28.0]])


def make(script, *flags, env_id="probes:Spy-v0", size=8):
    """A script's flags, and an agent of random weights: 3 numbers are an observation, 3 an action."""
    module = import_module(script)
    args = parse(script, "--env-id", env_id, "--hidden-size", size, "--num-threads", 1, *flags)
    torch.manual_seed(0)
    return module, args, module.Agent(module.make_envs(args, 1), args)


def batch_of(size, seed=0):
    rng = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, size, 3, generator=rng)
    action = 2 * torch.rand(size, 3, generator=rng) - 1
    reward, terminated = torch.randn(size, generator=rng), (torch.rand(size, generator=rng) < 0.3).float()
    return [obs, action, next_obs, reward, terminated]


def adam(agent, lr=1e-3):
    """The optimizers of the critics and of the actor."""
    return [torch.optim.Adam([td3.flatten(part.parameters())], lr=lr) for part in (agent.critic, agent.actor)]


def update(module, agent, optimizers, batch, args, count=0):
    """A script's update; DDPG's has no use for the count."""
    return module.update(agent, *optimizers, batch, *(() if module is ddpg else (count,)), args)


def test_targets_by_hand():
    # DDPG, by its one critic: 1 + 0.5 * 10, 2 (the end), 3 + 0.5 * 30 (a time limit is no end)
    close(ddpg.q_target(NEXT_Q[:1], REWARD, TERMINATED, 0.5), torch.tensor([6.0, 2.0, 18.0]))
    # TD3, by the smaller of two: 1 + 0.5 * 10, 2, 3 + 0.5 * 28
    close(td3.q_target(NEXT_Q, REWARD, TERMINATED, 0.5), torch.tensor([6.0, 2.0, 17.0]))
    # SAC, with log pi = -2, 1, 4 and alpha = 0.25: 1 + 0.5 * (10 + 0.5), 2, 3 + 0.5 * (28 - 1)
    log_prob = torch.tensor([-2.0, 1.0, 4.0])
    close(sac.q_target(NEXT_Q, log_prob, torch.tensor(0.25), REWARD, TERMINATED, 0.5), torch.tensor([6.25, 2.0, 16.5]))


def test_smoothing_by_hand():
    """Noise is cut to 0.5 first, the sum to 1 then: 0.2 + 0.3, 0.2 + 0.5, 0.9 + 0.5, -0.9 - 0.5, -0.2 - 0.1."""
    action = torch.tensor([[0.2, 0.2, 0.9], [-0.9, -0.2, 0.0]])
    noise = torch.tensor([[0.3, 0.7, 0.6], [-0.8, -0.1, 0.0]])
    close(td3.smooth(action, noise, 0.5), torch.tensor([[0.5, 0.7, 1.0], [-1.0, -0.3, 0.0]]))


def test_losses_by_hand():
    q, target = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([2.0, 4.0])
    # errors -1 and -2, and 1 and 1: (1 + 4) / 2 + (1 + 1) / 2
    assert td3.critic_loss(q, target) == sac.critic_loss(q, target) == 3.5
    assert ddpg.critic_loss(q[:1], target) == 2.5
    assert ddpg.actor_loss(q[:1]) == td3.actor_loss(q[:1]) == -1.5
    # alpha log pi = 0.5 and -1, less the smaller values 1 and 2: -0.5 and -3
    assert sac.actor_loss(q, torch.tensor([1.0, -2.0]), 0.5) == -1.75
    # log alpha = -1; log pi + target entropy = 3 - 2 and -1 - 2: the mean of 1 and -3 is -1
    assert sac.alpha_loss(torch.tensor(-1.0), torch.tensor([3.0, -1.0]), -2) == -1.0


def test_alpha_grows_while_the_entropy_is_too_low():
    """The entropy is -log pi: 1 nat is more than the target of -3, and -5 are less."""
    for log_prob, sign in ((-1.0, 1), (5.0, -1)):
        log_alpha = torch.tensor(0.3, requires_grad=True)
        sac.alpha_loss(log_alpha, torch.tensor([log_prob]), -3).backward()
        assert log_alpha.grad * sign > 0


def test_the_agent_learns_its_temperature_or_keeps_it():
    for flags, moves in ((("--alpha", 0.3), True), (("--no-autotune", "--alpha", 0.3), False)):
        _, args, agent = make("sac", *flags)
        learned = [*agent.actor.parameters(), agent.log_alpha]
        optimizers = [torch.optim.Adam([sac.flatten(part)], lr=0.1) for part in (agent.critic.parameters(), learned)]
        metrics = sac.update(agent, *optimizers, batch_of(16), 0, args)
        assert metrics["alpha"] == pytest.approx(0.3)
        assert (agent.log_alpha.exp().item() != pytest.approx(0.3)) == moves


@EACH_SCRIPT
def test_a_batch_is_its_transitions_one_by_one(script):
    """The loss of a batch is the mean over its rows alone: (B,) against (B, 1) would mix each row with every other."""
    module, args, agent = make(script, *(("--policy-noise", 0) if script == "td3" else ()))
    batch = batch_of(7)
    with mock.patch.object(torch, "randn_like", torch.zeros_like):
        for loss in (module.loss_of_critic, module.loss_of_actor):
            total, metrics = loss(agent, batch, args)
            assert all(metric.shape == () for metric in metrics.values())
            alone = [loss(agent, [x[i : i + 1] for x in batch], args)[0] for i in range(7)]
            close(total, torch.stack(alone).mean())


@EACH_SCRIPT
def test_the_critics_are_networks_of_their_own(script):
    """All K from stacked weights are what plain layers with each one's weights give; K = 1 is the first."""
    _, _, agent = make(script)
    obs, action, *_ = batch_of(5)
    q = agent.critic(obs, action)
    for k, value in enumerate(q):
        x = torch.cat([obs, action], 1)
        for weight, bias in zip(agent.critic.weights, agent.critic.biases, strict=True):
            x = x @ weight[k] + bias[k]
            x = x.relu() if len(bias[k][0]) > 1 else x
        close(value, x[:, 0])
    close(agent.critic(obs, action, K=1), q[:1])
    assert len(q) == (1 if script == "ddpg" else 2)
    assert len(q) == 1 or not torch.allclose(q[0], q[1])


def twin(agent):
    """A TD3 agent both of whose critics are DDPG's one."""
    _, _, other = make("td3")
    weights = agent.state_dict()
    for name, x in other.state_dict().items():
        x.copy_(weights[name])  # (1, ...) fills (2, ...)
    return other


@pytest.mark.parametrize("steps", [1, 5])
def test_td3_without_its_three_fixes_is_ddpg_to_the_bit(steps):
    """Equal critics, no noise on the target's actions, no delay."""
    _, args, one = make("ddpg")
    _, args3, _ = make("td3", "--policy-noise", 0, "--policy-frequency", 1)
    two = twin(one)
    ours, theirs = adam(one), adam(two)
    for count in range(steps):
        ddpg.update(one, *ours, batch_of(32, count), args)
        td3.update(two, *theirs, batch_of(32, count), count, args3)
    weights = one.state_dict()
    for name, x in two.state_dict().items():
        assert torch.equal(x, weights[name].expand_as(x)), name
    fresh = make("ddpg")[2].state_dict()
    assert not any(torch.equal(x, fresh[name]) for name, x in weights.items())


@pytest.mark.parametrize("fix", [("--policy-noise", 0.2), ("--policy-frequency", 2)])
def test_each_fix_of_td3_makes_a_difference(fix):
    flags = ["--policy-noise", 0, "--policy-frequency", 1]
    _, plain, one = make("td3", *flags)
    args, two = parse("td3", *flags, *fix), copy.deepcopy(one)
    for agent, flags in ((one, plain), (two, args)):
        optimizers = adam(agent)
        for count in range(3):
            td3.update(agent, *optimizers, batch_of(32, count), count, flags)
    assert not torch.equal(one.critic.weights[1], two.critic.weights[1])


def test_the_actor_is_delayed():
    """Of seven updates, the actor and all targets take part in those of count 0, 3 and 6."""
    _, args, agent = make("td3", "--policy-frequency", 3)
    optimizers = adam(agent)
    for count in range(7):
        before = copy.deepcopy(agent)
        metrics = td3.update(agent, *optimizers, batch_of(8, count), count, args)
        moved = [
            not torch.equal(x, y)
            for x, y in (
                (before.actor[0][0].weight, agent.actor[0][0].weight),
                (before.target_actor[0][0].weight, agent.target_actor[0][0].weight),
                (before.target_critic.weights[0], agent.target_critic.weights[0]),
            )
        ]
        assert moved == [count % 3 == 0] * 3
        assert ("actor_loss" in metrics) == (count % 3 == 0)
        assert not torch.equal(before.critic.weights[0], agent.critic.weights[0])


@EACH_SCRIPT
def test_targets_follow_by_polyak_averaging(script):
    """target <- (1 - tau) target + tau network, from the networks as the update left them."""
    module, args, agent = make(script, "--tau", 0.25)
    for target in ("target_critic", "target_actor")[: 1 if script == "sac" else 2]:
        network = target.removeprefix("target_")
        optimizers, fresh = adam(agent), copy.deepcopy(agent)
        update(module, agent, optimizers, batch_of(16), args)
        old, new = getattr(fresh, target).state_dict(), getattr(agent, network).state_dict()
        for name, x in getattr(agent, target).state_dict().items():
            close(x, 0.75 * old[name] + 0.25 * new[name])
    for target in (x for x in ("target_critic", "target_actor") if hasattr(agent, x)):
        moved = optimizers[0].param_groups[0]["params"][0].parts
        assert not {*map(id, getattr(agent, target).parameters())} & {*map(id, moved)}


@EACH_SCRIPT
def test_an_actors_step_leaves_the_critics_alone_and_theirs_it(script):
    module, args, agent = make(script)
    actor = [*agent.actor.parameters(), *([agent.log_alpha] if script == "sac" else [])]
    for loss, mine in ((module.loss_of_critic, list(agent.critic.parameters())), (module.loss_of_actor, actor)):
        before = {name: x.clone() for name, x in agent.state_dict().items()}
        module.gradient_step(loss, torch.optim.Adam([module.flatten(mine)], lr=0.1), agent, batch_of(16), args)
        kept = {name for name, x in agent.state_dict().items() if torch.equal(x, before[name])}
        names = {id(x): name for name, x in agent.named_parameters()}
        assert kept == set(before) - {names[id(x)] for x in mine}
        assert all(x.grad is None for x in agent.parameters() if id(x) not in {*map(id, mine)})
        agent.zero_grad()


def test_sac_at_alpha_0_has_td3s_target_under_its_own_action():
    batch = batch_of(32)
    _, args, soft = make("sac", "--alpha", 0)
    action = soft.target_critic(batch[2], batch[1])
    target = sac.q_target(action, torch.randn(32), torch.tensor(0.0), *batch[3:], args.gamma)
    assert torch.equal(target, td3.q_target(action, *batch[3:], args.gamma))
    # and end to end: the critics' losses of both scripts, made to take the same next action, are the same number
    _, args3, hard = make("td3", "--policy-noise", 0)
    hard.critic.load_state_dict(soft.critic.state_dict())
    hard.target_critic.load_state_dict(soft.target_critic.state_dict())
    given = batch_of(32, seed=1)[1]
    with mock.patch.object(soft, "sample", lambda obs: (given, torch.full((32,), 3.0))):
        one = sac.loss_of_critic(soft, batch, args)[0]
    with mock.patch.object(hard.target_actor, "forward", lambda obs: given):
        two = td3.loss_of_critic(hard, batch, args3)[0]
    close(one, two, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("log_std", [-3.0, -0.5, 0.5])
def test_the_squashed_density_integrates_to_1(mean, log_std):
    """By the trapezoidal rule over (-1, 1), on a grid that is even in u = atanh(a)."""
    noise = torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None]
    action, log_prob = sac.squash(torch.tensor(mean).double(), torch.tensor(log_std).double(), noise)
    inside = action[:, 0].abs() < 1
    assert torch.trapezoid(log_prob[inside].exp(), action[inside, 0]).item() == pytest.approx(1, abs=1e-4)


def test_the_squashed_density_against_the_plain_formula_and_where_that_fails():
    rng = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 1000, 2, generator=rng, dtype=torch.float64)
    action, log_prob = sac.squash(mean, log_std / 2, noise)
    u = mean + (log_std / 2).exp() * noise
    normal = torch.distributions.Normal(mean, (log_std / 2).exp()).log_prob(u)
    close(action, u.tanh())
    close(log_prob, (normal - (1 - u.tanh() ** 2).log()).sum(-1), rtol=1e-6, atol=1e-6)
    # In single precision tanh(30) is 1, and log(1 - 1) is infinite; the right value is -2 (30 - log 2).
    far = sac.squash(torch.tensor([30.0]), torch.tensor([0.0]), torch.tensor([0.0]))[1]
    close(far, torch.tensor(2 * (30 - math.log(2)) - math.log(2 * math.pi) / 2))


def test_the_squashed_densitys_gradient_is_that_of_finite_differences():
    rng = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 4, 2, generator=rng, dtype=torch.float64)
    inputs = (mean.requires_grad_(), log_std.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, s: sac.squash(m, s, noise), inputs)


def test_sac_samples_from_its_density_and_plays_its_median():
    """The share of samples below a point is the integral of the density up to it; greedy is where it is a half."""
    _, _, agent = make("sac")
    obs = torch.tensor([[0.3, -1.0, 2.0]])
    mean, log_std = agent.actor(obs).chunk(2, -1)
    close(agent.act(obs, greedy=True).clone(), mean.detach().tanh())
    torch.manual_seed(1)
    action = agent.act(obs.expand(20_000, -1))
    for dim in range(3):
        for point in (-0.5, 0.0, 0.5):
            z = (math.atanh(point) - mean[0, dim].item()) / log_std[0, dim].exp().item()
            expected = (1 + math.erf(z / 2**0.5)) / 2
            assert (action[:, dim] < point).float().mean().item() == pytest.approx(expected, abs=0.015)


def test_sacs_deviation_is_from_exp_minus_5_to_exp_2():
    """Whatever the network says: u is within a deviation of what it is by the bounds, for noise of 0.1."""
    _, _, agent = make("sac")
    for says, bound in ((100.0, 2), (-100.0, -5)):
        torch.nn.init.constant_(agent.actor[-1].weight, 0)
        agent.actor[-1].bias.data.copy_(torch.tensor([0.0] * 3 + [says] * 3))
        with mock.patch.object(torch, "randn_like", lambda x: torch.full_like(x, 0.1)):
            close(agent.act(torch.randn(4, 3)).clone(), torch.full((4, 3), math.tanh(0.1 * math.exp(bound))))


def test_ornstein_uhlenbeck_noise_remembers_0_85_and_gaussian_noise_nothing():
    for flag, memory in ((True, 0.85), (False, 0.0)):
        rng, noise, series = torch.Generator().manual_seed(0), torch.zeros(1000, 1), []
        for _ in range(60):
            noise = ddpg.next_noise(noise, torch.randn(1000, 1, generator=rng), flag)
            series.append(noise)
        last, this = (x - x.mean() for x in (torch.stack(series[20:-1]), torch.stack(series[21:])))
        assert (last * this).mean().item() / last.square().mean().item() == pytest.approx(memory, abs=0.02)
        assert this.std().item() == pytest.approx((1 - memory**2) ** -0.5, rel=0.03)


@pytest.mark.parametrize("script", ["ddpg", "td3"])
def test_exploration_noise_is_on_the_policys_actions(script, folder, monkeypatch):
    """After learning_starts, without updates: the stored actions are pi(s) and noise of that deviation, in [-1, 1]."""
    module, buffers = import_module(script), []
    make_buffer = module.ReplayBuffer
    monkeypatch.setattr(module, "ReplayBuffer", lambda *args: buffers.append(make_buffer(*args)) or buffers[-1])
    flags = (
        "--num-envs 4 --total-timesteps 8000 --learning-starts 4000 --utd 0 --exploration-noise 0.05 --num-threads 1"
    )
    agent, _ = train(script, "--env-id", "probes:Spy-v0", *flags.split(), "--eval-episodes", 1)
    obs, action, *_ = buffers[0].rows[: buffers[0].count].split(buffers[0].widths, 1)
    half = round(len(obs) / 2)
    noise = action - agent.act(obs)
    assert noise[half + 4 :].std().item() == pytest.approx(0.05, rel=0.05)
    assert action.abs().max() <= 1


@EACH_SCRIPT
def test_actions_are_uniform_until_learning_starts(script, folder, monkeypatch):
    """Of a uniform number in [-1, 1] the mean is 0, the deviation 1 / sqrt(3), and a half lies within a half of 0."""
    module, buffers = import_module(script), []
    make_buffer = module.ReplayBuffer
    monkeypatch.setattr(module, "ReplayBuffer", lambda *args: buffers.append(make_buffer(*args)) or buffers[-1])
    flags = "--num-envs 4 --total-timesteps 4004 --learning-starts 4000 --utd 0 --num-threads 1 --eval-episodes 1"
    train(script, "--env-id", "probes:Spy-v0", *flags.split())
    action = buffers[0].rows[: buffers[0].count - 4].split(buffers[0].widths, 1)[1]
    assert action.mean().item() == pytest.approx(0, abs=0.03)
    assert action.std().item() == pytest.approx(3**-0.5, rel=0.03)
    assert (action.abs() < 0.5).float().mean().item() == pytest.approx(0.5, abs=0.03)


@EACH_SCRIPT
@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("utd", [1, 0.5, 2])
def test_updates_are_counted_by_environment_steps(script, num_envs, utd, folder, monkeypatch):
    """Learning starts at 40: from there to the end, utd for each environment step, however many are stepped at once."""
    module, counts = import_module(script), []
    monkeypatch.setattr(module, "update", lambda *args: counts.append(args) or {})
    flags = f"--num-envs {num_envs} --utd {utd} --total-timesteps 120 --learning-starts 40 --eval-episodes 1"
    _, result = train(script, "--env-id", "probes:Spy-v0", *flags.split(), "--batch-size", 4, "--num-threads", 1)
    assert result.steps == 120
    assert len(counts) == utd * (120 - 40)
    if script != "ddpg":  # the count, by which the actor is delayed, leaves out none
        assert [args[4] for args in counts] == list(range(int(40 * utd), int(120 * utd)))


@EACH_SCRIPT
@pytest.mark.parametrize("env_id", ["BoxEndsAtFive-v0", "BoxNeverEnds-v0"])
def test_the_buffer_holds_decisions_with_their_true_successors(script, env_id, folder):
    """Five steps to a true end, or to a time limit; then a step that only resets, which is not stored."""
    flags = ("--num-envs", 3, "--total-timesteps", 180, "--learning-starts", 100, "--checkpoint-every", 90)
    small = ("--hidden-size", 4, "--batch-size", 4, "--eval-episodes", 1, "--num-threads", 1, "--exploration-noise", 2)
    _, result = train(script, "--env-id", f"probes:{env_id}", *flags, *small)
    saved = checkpoint(result.folder)["buffer"]
    # a segment is 30 steps of each environment: five episodes, each with its reset step
    assert saved["count"] == len(saved["rows"]) == 3 * 2 * 5 * 5
    size = 5 if env_id == "BoxEndsAtFive-v0" else 1
    obs, action, next_obs, reward, terminated = saved["rows"].split([size, 1, size, 1, 1], 1)
    assert (reward == 1).all() and (action.abs() <= 1).all() and action.std() > 0.3
    if env_id == "BoxNeverEnds-v0":
        assert (next_obs == 1 - obs).all() and not terminated.any()
    else:
        assert (obs.sum(1) == 1).all()
        stage = obs.argmax(1)
        assert torch.equal(next_obs, torch.eye(6, 5)[stage + 1])
        assert torch.equal(terminated[:, 0], (stage == 4).float())


def filled(script, size, count):
    """A buffer of Spy's transitions whose rewards are 0, 1, 2, ... in the order of their coming, three at a time."""
    module, args, _ = make(script)
    buffer = module.ReplayBuffer(size, module.make_envs(args, 1), torch.device("cpu"))
    for n in range(0, count, 3):
        reward = torch.arange(n, min(n + 3, count))[:, None].float()
        obs, action, next_obs, _, terminated = batch_of(len(reward), n)
        buffer.add(obs, action, next_obs, reward, terminated[:, None])
    return buffer


def rewards(buffer):
    return set(buffer.sample(1000)[3].int().tolist())


@EACH_SCRIPT
def test_the_buffer_keeps_the_latest_and_samples_all_of_them_and_nothing_else(script):
    torch.manual_seed(0)
    assert rewards(filled(script, 10, 7)) == set(range(7))
    assert rewards(filled(script, 10, 23)) == set(range(13, 23))
    obs, action, next_obs, reward, terminated = filled(script, 10, 7).sample(64)
    assert [x.shape for x in (obs, action, next_obs)] == [(64, 3)] * 3
    assert reward.shape == terminated.shape == (64,)
    first = batch_of(3, 0)
    row = reward.int().tolist().index(1)
    for x, y in zip((obs, action, next_obs, terminated), (*first[:3], first[4]), strict=True):
        assert torch.equal(x[row], y[1])


@EACH_SCRIPT
@pytest.mark.parametrize(("count", "size"), [(7, 10), (23, 10), (7, 20), (23, 20), (7, 4), (23, 4), (10, 10)])
def test_a_saved_buffer_goes_on_in_one_of_any_size(script, count, size):
    torch.manual_seed(0)
    saved = filled(script, 10, count).state_dict()
    assert saved["rows"].untyped_storage().nbytes() == min(count, 10) * 11 * 4, "more than the filled part is saved"
    buffer = filled(script, size, 0)
    buffer.load_state_dict(saved)
    held = min(count, 10, size)
    assert rewards(buffer) == set(range(count - held, count))
    more = batch_of(1)
    buffer.add(*more[:3], torch.tensor([[100.0]]), torch.zeros(1, 1))
    kept = min(held + 1, size)
    assert rewards(buffer) == {100, *range(count - kept + 1, count)}


@EACH_SCRIPT
def test_a_full_buffer_is_saved_without_a_copy_and_a_part_of_one_as_that_part(script):
    module, args, _ = make(script)
    buffer = module.ReplayBuffer(5, module.make_envs(args, 1), torch.device("cpu"))
    rows = torch.randn(3, sum(buffer.widths)).split(buffer.widths, 1)
    buffer.add(*rows)
    assert len(buffer.state_dict()["rows"].untyped_storage()) == 3 * 11 * 4
    buffer.add(*rows)
    assert buffer.state_dict()["rows"].data_ptr() == buffer.rows.data_ptr()


def test_what_a_full_memory_refuses_names_the_size(monkeypatch, capsys):
    """23 transitions of 11 numbers of 4 bytes fit into 1024 free bytes, and 24 do not."""
    module, args, _ = make("td3")
    text = mock.Mock(return_value="MemTotal: 9 kB\nMemAvailable:   1 kB\n")
    monkeypatch.setattr("pathlib.Path.read_text", text)
    module.ReplayBuffer(23, module.make_envs(args, 1), torch.device("cpu"))  # 1012 of 1024 bytes
    with pytest.raises(SystemExit) as stop:
        module.ReplayBuffer(24, module.make_envs(args, 1), torch.device("cpu"))
    assert stop.value.code == 2
    assert re.search(r"24 .* take 0\.0 GiB, and 0\.0 GiB are free$", capsys.readouterr().err.strip())


@EACH_SCRIPT
def test_actions_of_evaluation_have_no_noise(script):
    *_, agent = make(script)
    obs = torch.randn(4, 3)
    assert torch.equal(agent.act(obs, greedy=True), agent.act(obs, greedy=True))
    assert (np.abs(agent.act(obs, greedy=True).numpy()) <= 1).all()
    assert script != "sac" or not torch.equal(agent.act(obs), agent.act(obs))
