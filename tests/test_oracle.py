"""The same numbers through Stable-Baselines3's own functions, which nobody here wrote."""

from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

import a2c
import ddpg
import ppo
import sac
import td3

close = torch.testing.assert_close
GAMMA, LAMBDA = 0.97, 0.9


def rollout(seed, T=24, N=3):
    """A random rollout under next-step autoreset: after each end, a step that only resets, of reward 0."""
    rng = np.random.default_rng(seed)
    chance = rng.choice([0.0, 0.1, 0.5, 1.0])
    done = np.zeros((T + 1, N), bool)  # done[t]: obs[t] is its episode's last
    done[0] = rng.random(N) < chance
    for t in range(T):
        done[t + 1] = (rng.random(N) < chance) & ~done[t]
    terminated = done[1:] & (rng.random((T, N)) < 0.5)
    reward = np.where(done[:-1], 0, rng.normal(size=(T, N)))
    return reward, rng.normal(size=(T + 1, N)), terminated, done


def buffer_of(reward, value, episode_start):
    """Stable-Baselines3's buffer of one environment, filled by its own `add`."""
    steps = len(reward)
    box = gym.spaces.Box(-1, 1, (1,))
    buffer = RolloutBuffer(steps, box, box, device="cpu", gae_lambda=LAMBDA, gamma=GAMMA)
    for t in range(steps):
        zero = np.zeros((1, 1), np.float32)
        args = (np.array([x]) for x in (reward[t], episode_start[t]))
        buffer.add(zero, zero, *args, torch.tensor([value[t]]), torch.zeros(1))
    return buffer


@pytest.mark.parametrize("seed", range(30))
def test_gae(seed):
    """Stable-Baselines3 has no reset steps, and at a truncation adds gamma V(last observation) to the reward."""
    reward, value, terminated, done = rollout(seed)
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (reward, value, terminated, done[1:])]
    advantage = ppo.gae(*tensors, GAMMA, LAMBDA)
    for n in range(reward.shape[1]):
        decided = ~done[:-1, n]
        cut = done[1:, n] & ~terminated[:, n]
        bootstrapped = (reward[:, n] + GAMMA * cut * value[1:, n])[decided]
        ended = done[1:, n][decided]
        buffer = buffer_of(bootstrapped, value[:-1, n][decided], np.concatenate([[True], ended[:-1]]))
        buffer.compute_returns_and_advantage(torch.tensor([value[-1, n]]), ended[-1:])
        mine = advantage[torch.tensor(decided), n]
        close(mine, torch.tensor(buffer.advantages[:, 0]), rtol=1e-4, atol=1e-5)
        returns = mine + tensors[1][:-1, n][torch.tensor(decided)]
        close(returns, torch.tensor(buffer.returns[:, 0]), rtol=1e-4, atol=1e-5)


class Notes(Logger):
    """Keeps what Stable-Baselines3 logs of an update."""

    def __init__(self):
        super().__init__(None, [])

    def record(self, key, value, exclude=None):
        self.name_to_value[key] = value


def pair(env_id, flags, clip_range_vf=None):
    """Our agent and Stable-Baselines3's, of the same random weights and flags."""
    torch.manual_seed(0)
    args = ppo.Args(env_id=env_id, hidden_size=16, norm_adv=False, **flags)
    agent = ppo.Agent(ppo.make_envs(args, 1), args)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = PPO(
        "MlpPolicy",
        env_id,
        learning_rate=args.learning_rate,
        n_steps=32,
        batch_size=32,
        n_epochs=1,
        normalize_advantage=False,
        clip_range=args.clip_coef,
        clip_range_vf=clip_range_vf,
        ent_coef=args.ent_coef,
        vf_coef=args.vf_coef / 2,  # our value loss has the paper's E[(V - R)^2] / 2, theirs the plain mean
        max_grad_norm=args.max_grad_norm,
        policy_kwargs={"net_arch": [16, 16], "activation_fn": torch.nn.Tanh},
        device="cpu",
    )
    theirs.set_logger(Notes())
    for mine, other in matched(agent, theirs.policy):
        other.data.copy_(mine)
    return args, agent, theirs


def linear(*modules):
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]


def matched(agent, policy):
    """Pairs of the same parameter in our agent and in Stable-Baselines3's policy: all of either's parameters."""
    pairs = [
        *zip(linear(agent.actor), linear(policy.mlp_extractor.policy_net, policy.action_net), strict=True),
        *zip(linear(agent.critic), linear(policy.mlp_extractor.value_net, policy.value_net), strict=True),
    ]
    if agent.log_std is not None:
        pairs.append((agent.log_std, policy.log_std))
    assert len(pairs) == len(list(agent.parameters())) == len(list(policy.parameters()))
    return pairs


def batch_of(agent, seed, size=32, moved=0.3):
    """Decisions under an older policy and value than the agent's, whose ratios lie in and beyond the clip range."""
    rng = torch.manual_seed(seed)
    obs = torch.randn(size, agent.actor[0].in_features, generator=rng)
    with torch.no_grad():
        action = agent.act(obs).clone()
        old_log_prob = agent.log_prob(obs, action)[0] + moved * torch.randn(size, generator=rng)
        old_value = agent.critic(obs) + moved * torch.randn(size, generator=rng)
    advantage = 2 * torch.randn(size, generator=rng)
    return [obs, action, old_log_prob, old_value, advantage, old_value + advantage]


def with_reset_steps(batch):
    """The same decisions among reset steps of other content, which Stable-Baselines3's buffer never holds."""
    padded = [torch.cat([x, 2 * x[:9].flip(0) if x.is_floating_point() else x[:9]]) for x in batch]
    order = torch.randperm(len(padded[0]), generator=torch.manual_seed(0))
    valid = torch.cat([torch.ones(len(batch[0])), torch.zeros(9)])
    return [x[order] for x in (*padded, valid)]


def their_update(theirs, batch):
    obs, action, old_log_prob, old_value, advantage, returns = (x.numpy() for x in batch)
    buffer = theirs.rollout_buffer
    buffer.reset()
    buffer.observations[:, 0], buffer.actions[:, 0] = obs, action.reshape(len(obs), -1)
    buffer.log_probs[:, 0], buffer.values[:, 0] = old_log_prob, old_value
    buffer.advantages[:, 0], buffer.returns[:, 0] = advantage, returns
    buffer.pos, buffer.full = len(obs), True
    theirs.train()
    return theirs.logger.name_to_value


SETTINGS = {
    "defaults": {},
    "entropy": {"ent_coef": 0.05, "vf_coef": 1.3, "clip_coef": 0.1},
    "no norm bound": {"max_grad_norm": 1e3, "learning_rate": 1e-3},
}


def check_update(env_id, flags, batch_maker, **kwargs):
    args, agent, theirs = pair(env_id, flags, **kwargs)
    batch = batch_maker(agent)
    before = [parameter.detach().clone() for parameter in agent.parameters()]
    optimizer = torch.optim.Adam([ppo.flatten(agent.parameters())], lr=args.learning_rate, eps=1e-5)
    metrics = ppo.update(agent, optimizer, with_reset_steps(batch), args)
    logged = their_update(theirs, batch)
    for mine, other in matched(agent, theirs.policy):
        close(mine.detach(), other.detach(), rtol=1e-5, atol=1e-6)
    pairs = zip(before, agent.parameters(), strict=True)
    assert all((old - new).abs().max() > args.learning_rate / 10 for old, new in pairs), "a parameter did not move"
    for name, value in {
        "policy_loss": logged["train/policy_gradient_loss"],
        "value_loss": logged["train/value_loss"] / 2,
        "entropy": -logged["train/entropy_loss"],
        "approx_kl": logged["train/approx_kl"],
        "clipfrac": logged["train/clip_fraction"],
    }.items():
        assert metrics[name].item() == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_one_update_gives_the_same_weights(env_id, setting):
    check_update(env_id, SETTINGS[setting], lambda agent: batch_of(agent, seed=1))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_one_update_with_clipped_values_gives_the_same_weights(env_id):
    """Where the clipped error is the larger one, our maximum of two errors is Stable-Baselines3's clipped error."""

    def batch(agent):
        rows = batch_of(agent, seed=2)
        value, old_value = agent.critic(rows[0]).detach(), rows[3]
        rows[5] = value + 2 * (value - old_value)  # the value has moved towards the return
        return rows

    check_update(env_id, {"clip_vloss": True, "clip_coef": 0.2}, batch, clip_range_vf=0.2)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_one_update_of_a2c_gives_the_same_weights(env_id):
    torch.manual_seed(0)
    args = a2c.Args(env_id=env_id, hidden_size=16, ent_coef=0.05, vf_coef=1.3, norm_adv=False)
    agent = a2c.Agent(a2c.make_envs(args, 1), args)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = A2C(
        "MlpPolicy",
        env_id,
        learning_rate=args.learning_rate,
        n_steps=32,
        use_rms_prop=False,
        normalize_advantage=False,
        ent_coef=args.ent_coef,
        vf_coef=args.vf_coef / 2,
        max_grad_norm=args.max_grad_norm,
        policy_kwargs={"net_arch": [16, 16], "activation_fn": torch.nn.Tanh},
        device="cpu",
    )
    theirs.set_logger(Notes())
    for mine, other in matched(agent, theirs.policy):
        other.data.copy_(mine)
    batch = batch_of(agent, seed=1)
    padded = with_reset_steps(batch)
    optimizer = torch.optim.Adam([a2c.flatten(agent.parameters())], lr=args.learning_rate, eps=1e-5)
    metrics = a2c.update(agent, optimizer, [*padded[:2], *padded[4:]], args)
    logged = their_update(theirs, batch)
    for mine, other in matched(agent, theirs.policy):
        close(mine.detach(), other.detach(), rtol=1e-5, atol=1e-6)
    assert metrics["policy_loss"].item() == pytest.approx(logged["train/policy_loss"], rel=1e-4)
    assert metrics["value_loss"].item() == pytest.approx(logged["train/value_loss"] / 2, rel=1e-4)


def replayed(size=64):
    """Transitions of Pendulum's sizes, some of them terminal."""
    rng = torch.Generator().manual_seed(3)
    obs, next_obs = torch.randn(2, size, 3, generator=rng)
    action = 2 * torch.rand(size, 1, generator=rng) - 1
    return [obs, action, next_obs, torch.randn(size, generator=rng), (torch.arange(size) % 5 == 0).float()]


def copy_networks(agent, theirs):
    """Fill both agents' networks and targets with the same random weights -> all pairs of the same tensor."""
    pairs = []
    for target in ("", "target_"):
        networks = getattr(theirs, "critic_target" if target else "critic").q_networks
        layers = zip(*([x for x in network if isinstance(x, torch.nn.Linear)] for network in networks), strict=True)
        critic = getattr(agent, f"{target}critic")
        for layer, weight, bias in zip(layers, critic.weights, critic.biases, strict=True):
            for k, linear_k in enumerate(layer):
                pairs += [(weight[k].T, linear_k.weight), (bias[k, 0], linear_k.bias)]
        if isinstance(theirs, TD3):
            actor = theirs.actor_target if target else theirs.actor
            pairs += zip(linear(getattr(agent, f"{target}actor")), linear(actor.mu), strict=True)
    if isinstance(theirs, SAC):  # whose mean and log of the deviation are two layers, and ours are one
        *hidden, weight, bias = linear(agent.actor)
        pairs += zip(hidden, linear(theirs.actor.latent_pi), strict=True)
        for row, layer in enumerate((theirs.actor.mu, theirs.actor.log_std)):
            pairs += [(weight[row : row + 1], layer.weight), (bias[row : row + 1], layer.bias)]
    rng = torch.Generator().manual_seed(1)
    for mine, other in pairs:
        value = 0.3 * torch.randn(mine.shape, generator=rng)
        mine.data.copy_(value)
        other.data.copy_(value)
    return pairs


def check_replay_update(module, peer, updates, flags=(), **kwargs):
    """The given number of updates on one batch, with the same noise on either side -> the same weights on both."""
    args = module.Args(env_id="Pendulum-v1", hidden_size=16, **dict(flags))
    torch.manual_seed(0)
    agent = module.Agent(module.make_envs(args, 1), args)
    actor = [*agent.actor.parameters(), *([agent.log_alpha] if module is sac else [])]
    parts = (agent.critic.parameters(), actor)
    optimizers = [torch.optim.Adam([module.flatten(part)], lr=1e-3, fused=True) for part in parts]
    rates = {"learning_rate": getattr(args, "learning_rate", 1e-3), "gamma": args.gamma, "tau": args.tau}
    policy = {"net_arch": [16, 16], "activation_fn": torch.nn.ReLU}
    theirs = peer("MlpPolicy", "Pendulum-v1", policy_kwargs=policy, device="cpu", **rates, **kwargs)
    theirs.set_logger(Notes())
    pairs = copy_networks(agent, theirs)
    before = [mine.detach().clone() for mine, _ in pairs]

    batch = replayed()
    columns = [x[:, None] if x.dim() == 1 else x for x in batch]
    obs, action, next_obs, reward, terminated = columns
    theirs.replay_buffer.sample = lambda *args, **kwargs: ReplayBufferSamples(obs, action, next_obs, terminated, reward)
    noise = {True: torch.randn(64, 1), False: torch.randn(64, 1)}  # for the actions at next_obs, and at obs

    for count in range(1, updates + 1):
        drawn = iter([noise[True], noise[False]])
        with mock.patch.object(torch, "randn_like", lambda x, drawn=drawn: next(drawn)):
            module.update(agent, *optimizers, batch, *(() if module is ddpg else (count,)), args)
        if peer is SAC:  # it draws the action at obs first
            drawn = iter([noise[False], noise[True]])
            rsample = mock.patch.object(
                torch.distributions.Normal, "rsample", lambda self, drawn=drawn: self.loc + self.scale * next(drawn)
            )
        else:
            rsample = mock.patch.object(torch.Tensor, "normal_", lambda x, mean, std: x.copy_(std * noise[True]))
        with rsample:
            theirs.train(1, 64)

    for mine, other in pairs:
        close(mine.detach(), other.detach(), rtol=1e-4, atol=2e-5)
    moved = [(mine.detach() - old).abs().max() > 1e-6 for (mine, _), old in zip(pairs, before, strict=True)]
    assert all(moved), "a tensor did not move"
    return agent, theirs


@pytest.mark.parametrize("updates", [1, 4])
def test_updates_of_ddpg_give_the_same_weights(updates):
    check_replay_update(ddpg, DDPG, updates)


@pytest.mark.parametrize("updates", [1, 4])
@pytest.mark.parametrize("delay", [1, 2])
def test_updates_of_td3_give_the_same_weights(updates, delay):
    """Theirs counts updates from 1, as the paper does, and so does this test: the second is the first of the actor."""
    if (updates, delay) == (1, 2):
        updates = 2
    flags = {"policy_frequency": delay, "policy_noise": 0.4, "noise_clip": 0.3}
    check_replay_update(td3, TD3, updates, flags, policy_delay=delay, target_policy_noise=0.4, target_noise_clip=0.3)


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("autotune", [True, False])
def test_updates_of_sac_give_the_same_weights(updates, autotune):
    """Theirs halves the critics' loss, which Adam undoes, and adds 1e-6 within the logarithm, which 2 updates hide."""
    agent, theirs = check_replay_update(
        sac, SAC, updates, {"alpha": 0.3, "autotune": autotune}, ent_coef="auto_0.3" if autotune else 0.3
    )
    if autotune:
        close(agent.log_alpha.detach(), theirs.log_ent_coef.detach()[0], rtol=1e-5, atol=1e-6)
    assert (agent.log_alpha.exp().item() == pytest.approx(0.3)) != autotune
