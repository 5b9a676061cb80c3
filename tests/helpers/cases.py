"""Environments that give users of other libraries trouble, each cut down to its cause; importable as cases:Id."""

import subprocess
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Case(gym.Env):
    """Zero observations, reward 0 and no end; each case changes one thing."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)

    def observe(self):
        return np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), 0.0, False, False, {}


class Seed32(Case):
    """Takes seeds of 31 bits and no larger ones, as Atari's emulator does."""

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.int32(seed)  # raises OverflowError from 2**31 on
        return super().reset(seed=seed)


class Child(Case):
    """Owns a process, as many simulators do, and ends it in close(). Its id is a line of the file `children`.

    From step `fails` on it raises an error.
    """

    def __init__(self, fails=10**9):
        self.fails, self.t = fails, 0
        self.simulator = subprocess.Popen(["sleep", "600"])
        with open("children", "a") as file:
            file.write(f"{self.simulator.pid}\n")

    def step(self, action):
        self.t += 1
        if self.t >= self.fails:
            raise RuntimeError("the simulator broke")
        return super().step(action)

    def close(self):
        self.simulator.kill()
        self.simulator.wait()


class BoxChild(Child):
    action_space = Box(-1, 1, (1,), np.float32)


class Single(Case):
    """Only one may be open at a time, as with a robot or a port."""

    action_space = Box(-1, 1, (1,), np.float32)
    is_open = False

    def __init__(self):
        if Single.is_open:
            raise RuntimeError("port 11311 is in use")
        Single.is_open = True

    def close(self):
        Single.is_open = False


class Forever(Case):
    """Never ends where the seed is odd; else ends after three steps. Has no time limit."""

    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.odd = seed % 2 if seed is not None else self.odd
        self.t = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.t += 1
        return self.observe(), 1.0, self.t >= 3 and not self.odd, False, {}


class Image(Case):
    """Bytes from 0 to 255. One half is bright; the action's sign must name it. Ten steps: 10 is best, 5 is chance."""

    observation_space = Box(0, 255, (16, 16, 3), np.uint8)
    action_space = Box(-1, 1, (1,), np.float32)

    def observe(self):
        self.right = int(self.np_random.integers(2))
        image = np.zeros((16, 2, 8, 3), np.uint8)
        image[:, self.right] = 255
        return image.reshape(16, 16, 3)

    def step(self, action):
        reward = float((action[0] > 0) == self.right)
        return self.observe(), reward, False, False, {}


class Matrix(Case):
    """Actions are a matrix of two rows and three columns."""

    action_space = Box(-1, 1, (2, 3), np.float32)

    def step(self, action):
        assert action.shape == (2, 3)
        reward = -float(np.square(action - 0.5).sum())
        return self.observe(), reward, False, False, {}


class Sentence(Space):
    """A space of a library's own, which gymnasium cannot flatten and says nothing about."""

    def __repr__(self):
        return "Sentence()"


class Mission(Case):
    """One of the observations is in words."""

    observation_space = Dict({"image": Box(0, 255, (7, 7, 3), np.uint8), "mission": Sentence(None, None)})


class Paddles(gym.vector.VectorEnv):
    """A vector environment with an entry point of its own. Episodes last `length` steps; the next step resets."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(self, num_envs, length=4):
        self.num_envs, self.length = num_envs, length
        self.single_observation_space = Box(0, length, (2,), np.float32)
        self.single_action_space = Box(-2, 2, (1,), np.float32)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def observe(self):
        return np.repeat(self.t[:, None], 2, axis=1).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = np.zeros(self.num_envs, int)
        return self.observe(), {}

    def step(self, actions):
        self.t = np.where(self.t == self.length, 0, self.t + 1)
        ended = self.t == self.length
        return self.observe(), (self.t > 0).astype(np.float64), ended, np.zeros_like(ended), {}


def resets_at_once(num_envs, **kwargs):
    return SyncVectorEnv([Case] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


LIMITS = {Seed32: 20, Child: 5, BoxChild: 5, Single: 20, Forever: None, Image: 10, Matrix: 10, Mission: 10}
for case, limit in LIMITS.items():
    gym.register(f"{case.__name__}-v0", case, max_episode_steps=limit, disable_env_checker=True)
gym.register("Paddles-v0", vector_entry_point=Paddles)
gym.register("ResetsAtOnce-v0", vector_entry_point=resets_at_once)


def children():
    """The processes of all Child environments so far in the working folder -> those that still run."""
    file = Path("children")
    pids = file.read_text().split() if file.exists() else []
    assert pids, "no environment was made"
    return [pid for pid in pids if is_alive(pid)]


def is_alive(pid):
    """Whether a process runs; one that has ended but that nobody has waited for does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
