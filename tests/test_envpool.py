"""benchmarks/envpool_env.py: EnvPool's environments end, reset and move as DESIGN.md, section 4, and gymnasium say."""

import os
import shlex
import sys
import time
import warnings
from collections import namedtuple
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from harness import OFF_POLICY, SCRIPTS, differences, end, parse, run_ok, state, train

pytest.importorskip("envpool")
pytestmark = pytest.mark.filterwarnings("ignore:.*(precision lowered|out of date)")

# T steps of N environments: obs (T + 1, N, ...), all others (T, N, ...); resets: this step only reset the environment.
Rollout = namedtuple("Rollout", "obs action reward terminated truncated done resets length")
IDS = ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5")
LIMITS = {"CartPole-v1": 500, "Pendulum-v1": 200, "HalfCheetah-v5": 1000}
FIRST = {
    "CartPole-v1": lambda obs: (np.abs(obs) <= 0.05).all(-1),
    "Pendulum-v1": lambda obs: np.abs(obs[..., 2]) <= 1,
    "HalfCheetah-v5": lambda obs: (np.abs(obs[..., :8]) <= 0.1).all(-1) & (np.abs(obs[..., 8:]) < 0.6).all(-1),
}


def make(name, num_envs=4, **kwargs):
    return gym.make_vec(f"benchmarks.envpool_env:EnvPool/{name}", num_envs, **kwargs)


def rollout(envs, steps, seed=1, actions=None):
    """Play these actions, or random ones, and look at all that came back only when all is over."""
    envs.action_space.seed(seed)
    obs, rows = [envs.reset(seed=seed)[0]], []
    for t in range(steps):
        action = envs.action_space.sample() if actions is None else actions[t]
        *row, info = envs.step(action)
        assert info == {}
        obs.append(row.pop(0))
        rows.append((action, *row))
    action, reward, terminated, truncated = (np.stack(column) for column in zip(*rows, strict=True))
    done = terminated | truncated
    resets = np.concatenate([np.zeros_like(done[:1]), done[:-1]])
    length = np.zeros(done.shape, int)
    for t in range(steps):
        length[t] = np.where(resets[t], 0, (length[t - 1] if t else 0) + 1)
    return Rollout(np.stack(obs), action, reward, terminated, truncated, done, resets, length)


def fallen(obs):
    return (np.abs(obs[..., 0]) > 2.4) | (np.abs(obs[..., 2]) > 12 * 2 * np.pi / 360)


@pytest.mark.parametrize("name", IDS)
def test_an_episode_ends_and_the_next_step_only_resets(name):
    limit = LIMITS[name]
    envs = make(name)
    r = rollout(envs, 2 * limit + 20)
    assert r.resets.sum(0).min() >= 2
    assert not r.done[r.resets].any() and (r.reward[r.resets] == 0).all()
    assert FIRST[name](r.obs[1:][r.resets]).all() and FIRST[name](r.obs[0]).all()
    assert not FIRST[name](r.obs[1:][r.done]).all(), "an episode's last observation is one of the next episode"
    assert (r.truncated == ((r.length == limit) & ~r.terminated)).all() and r.length.max() <= limit
    if name == "CartPole-v1":
        assert (r.terminated == fallen(r.obs[1:])).all() and r.terminated.sum() > 20
    else:
        assert not r.terminated.any() and r.truncated.sum() == 2 * envs.num_envs


@pytest.mark.parametrize("name", IDS)
def test_the_action_of_a_reset_is_ignored(name):
    envs = make(name, max_episode_steps=7)
    r = rollout(envs, 60)
    shifted = np.roll(r.action, 1, axis=1)
    other = np.where(r.resets.reshape(*r.resets.shape, *[1] * (r.action.ndim - 2)), shifted, r.action)
    assert (other != r.action).any() and r.resets.sum() >= 4 * 7
    assert all(np.array_equal(x, y) for x, y in zip(r._replace(action=0), rollout(envs, 60, 1, other)._replace(action=0)))


@pytest.mark.parametrize("name", IDS)
def test_the_observation_at_a_time_limit_is_the_true_successor(name):
    """The one that the same actions lead to where there is no limit yet; and nothing terminates there."""
    short, long = rollout(make(name, max_episode_steps=5), 5), rollout(make(name, max_episode_steps=50), 5)
    assert short.truncated[-1].all() and not long.done.any()
    assert np.array_equal(short.obs, long.obs) and np.array_equal(short.reward, long.reward)


def test_at_a_time_limit_termination_wins():
    """Under a push to one side a pole falls within 8 to 11 steps, which EnvPool alone would call truncated at step 9."""
    actions = np.ones((11, 64), int)
    free = rollout(make("CartPole-v1", 64), 11, 1, actions)
    falls = free.terminated.argmax(0)
    assert (falls < 8).any() and (falls == 8).any() and (falls > 8).any()
    r = rollout(make("CartPole-v1", 64, max_episode_steps=9), 9, 1, actions)
    assert np.array_equal(r.terminated, free.terminated[:9])
    assert np.array_equal(r.truncated[8], falls > 8) and not r.truncated[:8].any()
