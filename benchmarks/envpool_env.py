"""EnvPool's environments, stepped by threads in C++, as ids that gymnasium.make_vec, and so every script, takes:

    python ppo.py --env-id benchmarks.envpool_env:EnvPool/HalfCheetah-v5

Importing this file registers all that EnvPool has of classic control, Box2D, toy text and MuJoCo, each by EnvPool's id
after EnvPool/. A step after an episode's last ignores its action and resets, as gymnasium's own do by default, so that
obs[t+1] is always the true successor of obs[t].
"""

import warnings
from typing import ClassVar

import envpool
import gymnasium as gym
import numpy as np
from envpool.registration import registry
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space

FAMILIES = ("envpool.classic_control", "envpool.box2d", "envpool.toy_text", "envpool.mujoco.gym")
# EnvPool gives gymnasium its bounds in float64 for spaces of float32, and each new pool would be warned of that.
warnings.filterwarnings("ignore", ".*precision lowered by casting to float32")


def spaces_of(name):
    """The spaces of one environment's observations and actions: EnvPool's, with float32 for all real numbers."""
    spec = envpool.make_spec(name)
    obs, action = spec.gymnasium_observation_space, spec.gymnasium_action_space
    if isinstance(obs, Box) and np.issubdtype(obs.dtype, np.floating):
        # EnvPool's own bounds of these are not all true: LunarLander's, they say, are above 0.
        obs = Box(-np.inf, np.inf, obs.shape, np.float32)
    if isinstance(action, Box):
        action = Box(action.low.astype(np.float32), action.high.astype(np.float32))
    return obs, action


class EnvPool(gym.vector.VectorEnv):
    """num_envs environments `name`: after an episode's end a step ignores its action, resets, and pays nothing."""

    metadata: ClassVar = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(self, name, num_envs, max_episode_steps=None, render_mode=None):
        if render_mode is not None:
            raise gym.error.Error(f"EnvPool/{name} has no render mode, and {render_mode} was asked for; try {name}")
        self.num_envs, self.pool = num_envs, None
        self.single_observation_space, self.single_action_space = spaces_of(name)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.settings, self.time_limit = {"task_id": name, "num_envs": num_envs}, np.inf
        if max_episode_steps is not None:
            # At its own limit EnvPool says truncated, whether or not the episode terminates there too. So its limit is
            # a step later, where nobody sees it: all that it calls done is terminated, and `step` keeps the time limit.
            self.settings["max_episode_steps"], self.time_limit = max_episode_steps + 1, max_episode_steps

    def reset(self, *, seed=None, options=None):
        """Begin an episode in each environment; with a seed, the same episodes as after any other reset with it."""
        super().reset(seed=seed)
        if seed is not None or self.pool is None:
            # EnvPool takes a seed when it makes a pool, and only then. It adds each environment's index to it.
            first = np.random.SeedSequence(seed).generate_state(1)[0] >> 2
            self.pool = None  # its threads end before there are others
            self.pool = envpool.make_gymnasium(seed=int(first), **self.settings)
        obs, _ = self.pool.reset()
        return obs.astype(self.observation_space.dtype), {}

    def step(self, actions):
        """-> observations, rewards, terminated, truncated (but not terminated), and an info without anything."""
        obs, reward, terminated, _, info = self.pool.step(actions)
        truncated = ~terminated & (info["elapsed_step"] >= self.time_limit)
        if truncated.any():
            # These take the one step to EnvPool's limit, and nobody sees it; so the next resets them, like all others.
            self.pool.step(actions[truncated], np.flatnonzero(truncated))
        return obs.astype(self.observation_space.dtype), reward, terminated, truncated, {}

    def close_extras(self):
        self.pool = None  # which ends its threads; EnvPool's own close does not


for name, (family, _, settings) in registry.specs.items():
    if family in FAMILIES and "/" not in name:  # one with a / is another name of one without
        limit = settings.get("max_episode_steps")
        gym.register(f"EnvPool/{name}", vector_entry_point=EnvPool, max_episode_steps=limit, kwargs={"name": name})
