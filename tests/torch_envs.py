"""A vector environment of torch tensors, as a simulator on a GPU is, and its twin of arrays; importable as
torch_envs:Id."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

LIMIT = 20


class Point(gym.vector.VectorEnv):
    """Push points on a line to 0: obs (position, velocity); beyond +-2 is the end, and there is a time limit.

    Every tensor is on the device, and the observation in the same memory at every step. The step after an episode's
    last resets, without a look at its action, and pays nothing. At the step `when` after a reset of all, the quantity
    `bad` of the first point is NaN, and at the next it is a number again.
    """

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}

    def __init__(self, num_envs, device="cpu", discrete=False, bad="", when=5, render_mode=None):
        self.num_envs, self.device, self.bad, self.when = num_envs, torch.device(device), bad, when
        self.single_observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = Discrete(3) if discrete else Box(-2, 2, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generator = torch.Generator(self.device)
        self.first = torch.arange(num_envs, device=self.device) == 0
        self.obs = torch.zeros(num_envs, 2, device=self.device)

    def start(self):
        return 2 * torch.rand(self.num_envs, 2, generator=self.generator, device=self.device) - 1

    def reset(self, *, seed=None, options=None):
        self.generator.manual_seed(seed)
        self.state, self.age, self.count = self.start(), torch.zeros(self.num_envs, device=self.device), 0
        self.over = torch.zeros_like(self.first)
        return self.obs.copy_(self.state), {}

    def step(self, action):
        assert action.device.type == self.device.type and len(action) == self.num_envs
        force = action - 1.0 if action.dim() == 1 else action[:, 0]
        position, velocity = self.state.unbind(1)
        velocity = 0.9 * velocity + 0.25 * force
        position = position + 0.25 * velocity
        reset, self.count = self.over, self.count + 1
        self.state = torch.where(reset[:, None], self.start(), torch.stack([position, velocity], 1))
        self.age = torch.where(reset, 0, self.age + 1)
        reward = torch.where(reset, 0, 1 - position**2 - 0.1 * velocity**2)
        terminated = ~reset & (position.abs() > 2)
        truncated = ~reset & (self.age >= LIMIT)
        self.over = terminated | truncated
        self.obs.copy_(self.state)
        if self.count == self.when and self.bad == "observation":
            self.obs[:, 1] = torch.where(self.first, torch.nan, velocity)
        if self.count == self.when and self.bad == "reward":
            reward = torch.where(self.first, torch.nan, reward)
        return self.obs, reward, terminated, truncated, {}


class ArrayPoint(gym.vector.VectorEnv):
    """The same numbers in arrays of numpy."""

    metadata: ClassVar = Point.metadata

    def __init__(self, num_envs, **kwargs):
        self.num_envs, self.point = num_envs, Point(num_envs, **kwargs)
        for space in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
            setattr(self, space, getattr(self.point, space))

    def reset(self, *, seed=None, options=None):
        return self.point.reset(seed=seed)[0].numpy().copy(), {}

    def step(self, action):
        *columns, info = self.point.step(torch.from_numpy(action))
        return (*(column.numpy().copy() for column in columns), info)


class MixedPoint(ArrayPoint):
    """Gives tensors and takes arrays, as it has no device; another library's arrays come like that."""

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return torch.from_numpy(obs), info

    def step(self, action):
        assert isinstance(action, np.ndarray)
        obs, *rest = super().step(action)
        return torch.from_numpy(obs), *rest


gym.register("MixedPoint-v0", vector_entry_point=MixedPoint)
for name, kwargs in {
    "Point": {},
    "Push": {"discrete": True},
    "PointNanReward": {"bad": "reward"},
    "PointNanObservation": {"bad": "observation"},
}.items():
    gym.register(f"{name}-v0", vector_entry_point=Point, kwargs=kwargs)
    gym.register(f"Array{name}-v0", vector_entry_point=ArrayPoint, kwargs=kwargs)
    gym.register(f"Cuda{name}-v0", vector_entry_point=Point, kwargs={"device": "cuda", **kwargs})
