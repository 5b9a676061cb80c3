"""Stable-Baselines3 is the oracle: from the same weights and batches, it ends with the same weights.

Each test trains by a script's own command line, records the batches, and gives them to Stable-Baselines3's `train`.
"""

from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents import record
from oracle import GAMMA, actor_critic_pairs, copy_weights, linear, make_theirs
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutBufferSamples

import ppo

close = torch.testing.assert_close
LAMBDA = 0.9
BOTH = pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])


def random_rollout(seed, T=24, N=3):
    """A rollout under next-step autoreset: after each end comes a step that only resets, with reward 0."""
    rng = np.random.default_rng(seed)
    chance = rng.choice([0.0, 0.1, 0.5, 1.0])
    done = np.zeros((T + 1, N), bool)  # done[t]: obs[t] is the last of its episode
    done[0] = rng.random(N) < chance
    for t in range(T):
        done[t + 1] = (rng.random(N) < chance) & ~done[t]
    terminated = done[1:] & (rng.random((T, N)) < 0.5)
    reward = np.where(done[:-1], 0, rng.normal(size=(T, N)))
    return reward, rng.normal(size=(T + 1, N)), terminated, done


def rollout_buffer(reward, value, episode_start):
    """Stable-Baselines3's buffer of one environment, filled by its own `add`."""
    box, zero = gym.spaces.Box(-1, 1, (1,)), np.zeros((1, 1), np.float32)
    buffer = RolloutBuffer(len(reward), box, box, device="cpu", gae_lambda=LAMBDA, gamma=GAMMA)
    for t in range(len(reward)):
        start, v = np.array([episode_start[t]]), torch.tensor([value[t]])
        buffer.add(zero, zero, np.array([reward[t]]), start, v, torch.zeros(1))
    return buffer


@pytest.mark.parametrize("seed", range(30))
def test_gae(seed):
    """Stable-Baselines3 has no reset steps. It adds gamma V(last observation) to the reward of a truncated step."""
    reward, value, terminated, done = random_rollout(seed)
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (reward, value, terminated, done[1:])]
    advantage = ppo.gae(*tensors, GAMMA, LAMBDA)
    for n in range(reward.shape[1]):
        real = ~done[:-1, n]
        truncated = done[1:, n] & ~terminated[:, n]
        bootstrapped = (reward[:, n] + GAMMA * truncated * value[1:, n])[real]
        ended = done[1:, n][real]
        buffer = rollout_buffer(bootstrapped, value[:-1, n][real], np.concatenate([[True], ended[:-1]]))
        buffer.compute_returns_and_advantage(torch.tensor([value[-1, n]]), ended[-1:])
        close(advantage[torch.tensor(real), n], torch.tensor(buffer.advantages[:, 0]), rtol=1e-4, atol=1e-5)


def check_weights(pairs, before, tolerance=1e-5):
    """Each pair is equal, and has moved by more than 20 times the tolerance."""
    for (ours, theirs), start in zip(pairs, before, strict=True):
        close(ours.detach(), theirs.detach(), rtol=0, atol=tolerance)
        assert (ours.detach() - start).abs().max() > 20 * tolerance


def check_on_policy(script, algorithm, env_id, flags, kwargs, names):
    """Train on the same batches; compare the weights at the end, and the metrics of each update."""
    common = f"--env-id {env_id} --hidden-size 16 --gamma {GAMMA} --learning-rate 0.003 --no-anneal-lr --norm-reward"
    agent, calls = record(script, *common.split(), "--eval-episodes", 0, *flags.split())
    policy = {"activation_fn": torch.nn.Tanh, "optimizer_kwargs": {"eps": 1e-4}}
    theirs = make_theirs(algorithm, env_id, policy, learning_rate=0.003, **kwargs)
    before = copy_weights(actor_critic_pairs(calls[0].agent, theirs.policy))
    for call in calls:
        obs, action, advantage, returns, *old_log_prob = call.batch
        batch = RolloutBufferSamples(obs, action, None, old_log_prob[0] if old_log_prob else None, advantage, returns)
        theirs.rollout_buffer.get = lambda batch_size, batch=batch: iter([batch])
        theirs.train()
        log = theirs.logger.name_to_value
        # Our value loss is halved, and their entropy is negative.
        log |= {"value_loss": log["value_loss"] / 2, "entropy": -log["entropy_loss"]}
        for ours, their_name in names.items():
            assert call.metrics[ours].item() == pytest.approx(log[their_name], rel=1e-3, abs=1e-5), ours
    check_weights(actor_critic_pairs(agent, theirs.policy), before)
    return calls


@BOTH
@pytest.mark.parametrize(
    ("flags", "kwargs"),
    [
        ("", {}),
        ("--norm-adv --max-grad-norm 1000", {"normalize_advantage": True, "max_grad_norm": 1000}),
        ("--ent-coef 0.05 --vf-coef 1.3", {"ent_coef": 0.05, "vf_coef": 0.65}),
    ],
)
def test_a2c(env_id, flags, kwargs, folder):
    """Six updates, each from a rollout of 8 steps in 4 environments."""
    names = {"policy_loss": "policy_loss", "value_loss": "value_loss", "entropy": "entropy"}
    kwargs = {"use_rms_prop": False, "vf_coef": 0.25} | kwargs
    flags = f"--num-envs 4 --num-steps 8 --total-timesteps {6 * 32} {flags}"
    assert len(check_on_policy("a2c", A2C, env_id, flags, kwargs, names)) == 6


@BOTH
@pytest.mark.parametrize(
    ("flags", "kwargs"),
    [
        ("", {}),
        ("--no-norm-adv --max-grad-norm 1000", {"normalize_advantage": False, "max_grad_norm": 1000}),
        ("--ent-coef 0.05 --vf-coef 1.3", {"ent_coef": 0.05, "vf_coef": 0.65}),
    ],
)
def test_ppo(env_id, flags, kwargs, folder):
    """Two rollouts, four epochs from each, three minibatches in an epoch; ratios leave the clip range."""
    names = {"policy_loss": "policy_gradient_loss", "value_loss": "value_loss", "entropy": "entropy"}
    names |= {"approx_kl": "approx_kl", "clipfrac": "clip_fraction"}
    kwargs = {"n_epochs": 1, "clip_range": 0.02, "vf_coef": 0.25} | kwargs
    flags = f"--num-envs 4 --num-steps 24 --num-minibatches 3 --update-epochs 4 --clip-coef 0.02 {flags}"
    calls = check_on_policy("ppo", PPO, env_id, f"{flags} --total-timesteps {2 * 96}", kwargs, names)
    assert len(calls) == 2 * 4 * 3
    assert max(call.metrics["clipfrac"] for call in calls) > 0.1


def actor_and_critic_pairs(agent, theirs):
    """Pairs of the same parameter in our networks and targets and in Stable-Baselines3's."""
    pairs = []
    for our_critic, their_critic in ((agent.critic, theirs.critic), (agent.target_critic, theirs.critic_target)):
        pairs += zip(linear(our_critic), linear(*their_critic.q_networks), strict=True)
    if isinstance(theirs, SAC):  # its mean and log-deviation are two layers, ours are one
        *hidden, weight, bias = linear(agent.actor)
        mean, log_std = theirs.actor.mu, theirs.actor.log_std
        size = len(bias) // 2
        pairs += zip(hidden, linear(theirs.actor.latent_pi), strict=True)
        pairs += [(weight[:size], mean.weight), (bias[:size], mean.bias)]
        pairs += [(weight[size:], log_std.weight), (bias[size:], log_std.bias)]
    else:
        for our_actor, their_actor in ((agent.actor, theirs.actor), (agent.target_actor, theirs.actor_target)):
            pairs += zip(linear(our_actor), linear(their_actor.mu), strict=True)
    return pairs


def noise_of(call):
    """The noise that a call drew, drawn again."""
    torch.set_rng_state(call.rng)
    return torch.randn_like(call.batch[1])


def same_noise(algorithm, critic_call, actor_call):
    """Stable-Baselines3 draws what our calls drew; SAC draws the actor's noise first."""
    if algorithm is SAC:
        noise = iter([noise_of(actor_call), noise_of(critic_call)])
        return mock.patch.object(torch.distributions.Normal, "rsample", lambda x: x.loc + x.scale * next(noise))
    noise = noise_of(critic_call)
    return mock.patch.object(torch.Tensor, "normal_", lambda x, mean, std: x.copy_(std * noise))


def updates_of(calls):
    """Pairs of a critic's call and the actor's call on the same batch, which is None if the actor was not updated."""
    for k, call in enumerate(calls):
        following = calls[k + 1] if k + 1 < len(calls) else None
        if call.loss == "critic_objective":
            yield call, following if following and following.loss == "actor_objective" else None


def check_off_policy(script, algorithm, flags, **kwargs):
    """Train on the same batches with the same noise; compare the weights of networks and targets at the end."""
    # The first update has an odd number: TD3's actor waits for the second one, as in Stable-Baselines3.
    common = f"--env-id probes:Spy-v0 --hidden-size 16 --gamma {GAMMA} --tau 0.1 --batch-size 32 --learning-starts 29"
    agent, calls = record(script, *f"{common} --total-timesteps 37 --eval-episodes 0 {flags}".split())
    policy = {"activation_fn": torch.nn.ReLU}
    kwargs |= {"learning_rate": 1e-3, "tau": 0.1, "buffer_size": 100}
    theirs = make_theirs(algorithm, "probes:Spy-v0", policy, **kwargs)
    if algorithm is SAC:
        theirs.critic.optimizer.param_groups[0]["eps"] /= 2  # they halve the critic's loss
    before = copy_weights(actor_and_critic_pairs(calls[0].agent, theirs))
    updates = list(updates_of(calls))
    assert len(updates) == 8
    for critic_call, actor_call in updates:
        obs, action, next_obs, reward, terminated = critic_call.batch
        assert 0 < terminated.sum() < 32
        batch = ReplayBufferSamples(obs, action, next_obs, terminated[:, None], reward[:, None])
        theirs.replay_buffer.sample = lambda batch_size, env, batch=batch: batch
        with same_noise(algorithm, critic_call, actor_call):
            theirs.train(1, 32)
    check_weights(actor_and_critic_pairs(agent, theirs), before)
    return agent, theirs


def test_ddpg(folder):
    check_off_policy("ddpg", DDPG, "")


@pytest.mark.parametrize("delay", [1, 2])
def test_td3(delay, folder):
    flags = f"--policy-frequency {delay} --policy-noise 0.4 --noise-clip 0.3"
    check_off_policy("td3", TD3, flags, policy_delay=delay, target_policy_noise=0.4, target_noise_clip=0.3)


def test_sac_with_a_learned_temperature(folder):
    agent, theirs = check_off_policy("sac", SAC, "--alpha 0.3", ent_coef="auto_0.3")
    close(agent.log_alpha.detach(), theirs.log_ent_coef.detach()[0], rtol=1e-5, atol=1e-6)
    assert abs(agent.log_alpha.exp().item() - 0.3) > 1e-3


def test_sac_with_a_fixed_temperature(folder):
    agent, _ = check_off_policy("sac", SAC, "--alpha 0.3 --no-autotune", ent_coef=0.3)
    assert agent.log_alpha.exp().item() == pytest.approx(0.3)
