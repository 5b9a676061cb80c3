"""A gridworld whose best values are known exactly; python a2c.py --env-id benchmarks.studies.gridworld:Gridworld-v0."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete

SIZE = 10
GOAL = SIZE * SIZE - 1
COST = 0.01
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left


def move(cell, action):
    """-> next cell, reward, terminated: 1 for the step onto the goal, -COST for any other; a wall holds its place."""
    row, column = divmod(cell, SIZE)
    row = min(max(row + MOVES[action][0], 0), SIZE - 1)
    column = min(max(column + MOVES[action][1], 0), SIZE - 1)
    after = row * SIZE + column
    return after, 1.0 if after == GOAL else -COST, after == GOAL


def value_iteration(gamma):
    """V(s) = max_a r + gamma V(s'), from 0 until nothing changes -> (SIZE, SIZE); V(goal) = 0, as all is over there."""
    value, change = np.zeros(SIZE * SIZE), 1.0
    while change > 1e-12:
        new = np.zeros_like(value)
        for cell in range(GOAL):
            steps = [move(cell, action) for action in range(len(MOVES))]
            new[cell] = max(reward + gamma * value[after] for after, reward, _ in steps)
        change, value = np.abs(new - value).max(), new
    return value.reshape(SIZE, SIZE)


class Gridworld(gym.Env):
    """From a random cell to the goal in the last row and column; the observation is the cell's number, row by row."""

    observation_space = Discrete(SIZE * SIZE)
    action_space = Discrete(len(MOVES))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(GOAL))
        return self.cell, {}

    def step(self, action):
        self.cell, reward, terminated = move(self.cell, int(action))
        return self.cell, reward, terminated, False, {}


gym.register("Gridworld-v0", Gridworld, max_episode_steps=100)
