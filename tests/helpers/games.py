"""Small games of images. Their ids are games:Name-v0."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete


class Catch(gym.Env):
    """A ball falls straight down a grid of 20 x 20; a paddle moves left, stays, or moves right.

    The last step pays 1 if the paddle (5 wide) is under the ball, else -1. Bytes, channels last.
    """

    action_space = Discrete(3)

    def __init__(self, size=20):
        self.size = size
        self.observation_space = Box(0, 255, (size, size, 1), np.uint8)

    def draw(self):
        grid = np.zeros((20, 20), np.uint8)
        grid[self.row, self.column] = 255
        grid[19, max(0, self.paddle - 2) : self.paddle + 3] = 128
        image = np.kron(grid, np.ones((self.size // 20, self.size // 20), np.uint8))
        edge = self.size - len(image)
        return np.pad(image, (0, edge))[..., None]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.column, self.paddle = 0, int(self.np_random.integers(20)), 10
        return self.draw(), {}

    def step(self, action):
        self.row += 1
        self.paddle = int(np.clip(self.paddle + int(action) - 1, 0, 19))
        end = self.row == 19
        caught = abs(self.paddle - self.column) <= 2
        return self.draw(), float(end) * (1 if caught else -1), end, False, {}


class Steer(gym.Env):
    """Spaces of CarRacing-v3: a colour image, three numbers as action. Best is to steer towards the lit half."""

    observation_space = Box(0, 255, (96, 96, 3), np.uint8)
    action_space = Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))

    def draw(self):
        self.right = bool(self.np_random.integers(2))
        image = np.zeros((96, 96, 3), np.uint8)
        image[:, 48 * self.right :][:, :48, 1] = 200
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action):
        reward = float(action[0] if self.right else -action[0])
        return self.draw(), reward, False, False, {}


class Grey(Steer):
    """Not an image: no channels."""

    observation_space = Box(0, 255, (96, 96), np.uint8)

    def draw(self):
        return super().draw()[..., 0]


class Floats(Grey):
    """Not bytes: numbers from 0 to 1 would be divided by 255 once more."""

    observation_space = Box(0, 1, (8, 8, 3), np.float32)

    def draw(self):
        super().draw()
        return np.zeros((8, 8, 3), np.float32)


gym.register("Floats-v0", Floats, max_episode_steps=10)
gym.register("Catch-v0", Catch)
gym.register("Catch84-v0", Catch, kwargs={"size": 84})
gym.register("Steer-v0", Steer, max_episode_steps=10)
gym.register("Grey-v0", Grey, max_episode_steps=10)
