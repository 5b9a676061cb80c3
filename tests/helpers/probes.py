"""Environments with known answers, unusual spaces, or faults. Their ids are probes:Name-v0."""

import multiprocessing
import os
import random
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Sequence
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Probe(gym.Env):
    """Observations are 0, rewards are 1, and episodes end after `length` steps. Each probe changes one thing."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)
    length = 1

    def observe(self):
        return np.zeros(1, np.float32)

    def reward(self, action):
        return 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        reward = self.reward(action)
        self.t += 1
        return self.observe(), reward, self.t >= self.length, False, {}


class SeenReward(Probe):
    """One step. The observation is -1 or 1, drawn at each reset. The reward is the observation."""

    def observe(self):
        if self.t == 0:
            self.sign = self.np_random.choice([-1.0, 1.0])
        return np.array([self.sign], np.float32)

    def reward(self, action):
        return self.sign


class BoxActionReward(Probe):
    """One step. The best action is (0.75, -2) in [0, 1] x [-4, 4]. Rescaled to [-1, 1], it is (0.5, -0.5)."""

    action_space = Box(np.array([0, -4], np.float32), np.array([1, 4], np.float32))

    def reward(self, action):
        return -(((action[0] - 0.75) / 0.5) ** 2) - ((action[1] + 2) / 4) ** 2


class LeavesAFile(Probe):
    """Each step leaves the file `stepped` in the working directory."""

    def step(self, action):
        Path("stepped").touch()
        return super().step(action)


class UnboundedActionReward(Probe):
    """One step. Actions have no bounds. The best action is 3."""

    action_space = Box(-np.inf, np.inf, (1,), np.float32)

    def reward(self, action):
        return -((action[0] - 3) ** 2)


class DelayedReward(Probe):
    """Two steps. The second step rewards the first action: 1 for action 1. The observation is the step."""

    length = 2

    def observe(self):
        return np.array([self.t % 2], np.float32)

    def reward(self, action):
        if self.t == 0:
            self.first = action
            return 0.0
        return float(self.first)


class Endless(Probe):
    """No end. Observations are 0, 1, 0, 1, ... so that the last one before a time limit is an ordinary one."""

    length = np.inf

    def observe(self):
        return np.array([self.t % 2], np.float32)


class EndsAtFive(Probe):
    """Five steps. The observation is the step, one-hot. The last observation is 0."""

    observation_space = Box(0, 1, (5,), np.float32)
    length = 5

    def observe(self):
        return np.eye(6, 5, dtype=np.float32)[self.t]


class UnequalLengths(Probe):
    """1 to 4 steps, drawn at each reset. The reward is -1. The observation is the number of steps left, one-hot."""

    observation_space = Box(0, 1, (4,), np.float32)

    def observe(self):
        if self.t == 0:
            self.length = int(self.np_random.integers(1, 5))
        return np.eye(5, dtype=np.float32)[self.length - self.t, 1:]

    def reward(self, action):
        return -1.0


class NumberedSteps(Probe):
    """Five steps. The reward is the action. Observed are the episode's number, drawn at the reset, and the step's."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    length = 5

    def observe(self):
        if self.t == 0:
            self.episode = self.np_random.random()
        return np.array([self.episode, self.t], np.float32)

    def reward(self, action):
        return float(action[0])


class NumberedEndless(NumberedSteps):
    """The same without an end."""

    length = np.inf


class FirstEpisodePays(Probe):
    """1 to 9 steps, drawn at each reset. The reward is 1 in the first episode after seeding, then 100."""

    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        out = super().reset(seed=seed)
        self.pay = 1.0 if seed is not None else 100.0
        self.length = int(self.np_random.integers(1, 10))
        return out

    def reward(self, action):
        return self.pay


class Spy(Probe):
    """Seven steps. Records seeds and actions. Each dimension of the action has its own bounds."""

    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Box(np.array([-2, 0, 10], np.float32), np.array([2, 1, 30], np.float32))
    length = 7
    seeds, actions = [], []

    def observe(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seeds.append(seed)
        return super().reset(seed=seed)

    def step(self, action):
        self.actions.append(np.array(action))
        return super().step(action)


class SpyOfLengths(Spy):
    """1 to 9 steps, drawn at each reset."""

    def reset(self, *, seed=None, options=None):
        out = super().reset(seed=seed)
        self.length = int(self.np_random.integers(1, 10))
        return out


class DrawsAnywhere(Spy):
    """The reward is drawn from the global generators of Python and numpy."""

    def reward(self, action):
        return random.random() + np.random.rand()


class DictObs(Probe):
    """One step. The observation is a Dict. One of its entries is the right action."""

    observation_space = Dict({"noise": Box(-1, 1, (2, 2), np.float32), "right": Discrete(2)})

    def observe(self):
        if self.t == 0:
            self.right = int(self.np_random.integers(2))
        return {"noise": self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32), "right": self.right}

    def reward(self, action):
        return 1.0 if action == self.right else -1.0


class DiscreteObs(DictObs):
    observation_space = Discrete(2)

    def observe(self):
        return super().observe()["right"]


class ImageObs(DictObs):
    """The observation is an image of bytes. The lit half tells the right action: 0 for the left, 1 for the right."""

    observation_space = Box(0, 255, (4, 4, 1), np.uint8)

    def observe(self):
        image = np.zeros((4, 4, 1), np.uint8)
        image[:, 2 * super().observe()["right"] :][:, :2] = 255
        return image


class BoxDelayedReward(DelayedReward):
    """DelayedReward with actions in a Box. The best first action is 0.5. The second observation shows it."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def observe(self):
        return np.array([1, self.first] if self.t == 1 else [0, 0], np.float32)

    def reward(self, action):
        if self.t == 0:
            self.first = action[0]
            return 0.0
        return 1 - (self.first - 0.5) ** 2


class Fault(Probe):
    """At step `when`, one quantity has a bad value or the step fails. Resets after the first count as steps."""

    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, quantity, value=np.nan, when=37, length=7):
        self.quantity, self.value, self.when, self.length, self.count = quantity, value, when, length, 0

    def reset(self, *, seed=None, options=None):
        self.count += seed is None  # an autoreset is a step of the vector environment
        self.odd = seed % 2 if seed is not None else self.odd
        obs, info = super().reset(seed=seed)
        return (obs * np.nan if self.quantity == "reset" else obs), info

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.count += 1
        if self.count > 10_000:
            raise TimeoutError("the run did not stop")
        if self.count == self.when:
            in_main = multiprocessing.parent_process() is None
            if {"raise": True, "raise in one": self.odd, "raise in main": in_main}.get(self.quantity):
                raise RuntimeError("the simulator broke")
            if self.quantity == "exit":
                os._exit(1)
            if self.quantity == "observation":
                obs = obs + np.float32(self.value)
            if self.quantity == "whole observation":
                obs = self.value
            if self.quantity == "reward":
                reward = self.value
        return obs, reward, *rest


class ActsInMultiBinary(Probe):
    action_space = MultiBinary(3)


class ActsInMultiDiscrete(Probe):
    action_space = MultiDiscrete([2, 3])


class ActsInMatrix(Probe):
    action_space = Box(-1, 1, (2, 2), np.float32)


class ActsFromOne(Probe):
    action_space = Discrete(3, start=1)


class ActsInIntegers(Probe):
    action_space = Box(0, 10, (1,), np.int64)


class ActsInDoubles(Probe):
    action_space = Box(-np.inf, np.inf, (2,), np.float64)


class ActsFromZero(Spy):
    """Some of its bounds are infinite."""

    action_space = Box(np.array([0, -np.inf, -np.inf], np.float32), np.array([np.inf, np.inf, 5], np.float32))


class ActsToTenths(Spy):
    """In single precision, low + (high - low) is larger than high."""

    action_space = Box(np.full(3, -0.1, np.float32), np.full(3, 0.2, np.float32))


class OwnStatistics(Spy):
    """Puts statistics where gymnasium's RecordEpisodeStatistics puts them."""

    def step(self, action):
        *out, info = super().step(action)
        return *out, info | {"episode": {"r": 1.0}}


class ActsInAlmostAll(Probe):
    """Its bounds fit in single precision, but high - low does not."""

    action_space = Box(-3e38, 3e38, (1,), np.float32)


class ObservesSequences(Probe):
    observation_space = Sequence(Discrete(2))

    def observe(self):
        return (0, 1)


def same_step(num_envs, **kwargs):
    return SyncVectorEnv([Probe] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def reuses_memory(num_envs, **kwargs):
    """All observations share the same memory."""
    return SyncVectorEnv([NumberedSteps] * num_envs, copy=False)


for probe in list(vars().values()):
    if isinstance(probe, type) and issubclass(probe, Probe) and probe is not Fault:
        gym.register(f"{probe.__name__}-v0", probe, disable_env_checker=True)
gym.register(
    "EndsAtLimit-v0", EndsAtFive, max_episode_steps=5, disable_env_checker=True
)  # the true end is at the time limit
gym.register("NumberedCut-v0", NumberedEndless, max_episode_steps=5, disable_env_checker=True)
gym.register("ReusesMemory-v0", NumberedSteps, vector_entry_point=reuses_memory, disable_env_checker=True)
gym.register("NeverEnds-v0", Endless, max_episode_steps=5, disable_env_checker=True)
for probe in ("SeenReward", "EndsAtFive", "EndsAtLimit", "NeverEnds", "UnequalLengths", "Endless"):
    spec = gym.spec(f"{probe}-v0")  # the same with actions in a Box, which have no effect
    boxed = type(f"Box{probe}", (spec.entry_point,), {"action_space": Box(-1, 1, (1,), np.float32)})
    gym.register(f"Box{probe}-v0", boxed, max_episode_steps=spec.max_episode_steps, disable_env_checker=True)
for name in ("CartPole", "Pendulum"):  # truncated before the pole can fall
    gym.register(f"{name}7-v0", gym.spec(f"{name}-v1").entry_point, max_episode_steps=7)
gym.register("SameStep-v0", Probe, vector_entry_point=same_step)
for name, kwargs in {
    "NanObservation": {"quantity": "observation"},
    "InfObservation": {"quantity": "observation", "value": np.inf},
    "NanReward": {"quantity": "reward"},
    "InfReward": {"quantity": "reward", "value": -np.inf},
    "HugeReward": {"quantity": "reward", "value": 1e39},  # finite in double precision, infinite in single precision
    "NanRewardSoon": {"quantity": "reward", "when": 3},
    "NanReset": {"quantity": "reset", "length": 1000},
    "Raises": {"quantity": "raise"},
    "OneRaises": {"quantity": "raise in one"},  # one of two environments, because their seeds are consecutive
    "RaisesInMain": {"quantity": "raise in main", "when": 3},  # not in a process that the run started
    "Exits": {"quantity": "exit"},
    "WrongShape": {"quantity": "whole observation", "value": np.zeros(3, np.float32)},
    "WrongType": {"quantity": "whole observation", "value": np.array(["left"])},
}.items():
    gym.register(f"{name}-v0", Fault, kwargs=kwargs, disable_env_checker=True)
