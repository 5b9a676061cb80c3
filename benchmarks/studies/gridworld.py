"""A gridworld that pays at its goal alone; python a2c.py --env-id benchmarks.studies.gridworld:Gridworld-v0."""

import gymnasium as gym
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
