"""Train with Stable-Baselines3 or SBX as their users do, and print what was measured as a line of JSON, for speed.py.

    python benchmarks/peer.py '{"package": "stable_baselines3", "algorithm": "PPO", "env_id": "CartPole-v1",
        "num_envs": 8, "steps": 100000, "solved": 475, "seed": 1, "threads": 1, "device": "cpu",
        "flags": {"policy": "MlpPolicy", "n_steps": 32, "learning_rate": "lin_0.001"}}'

Training is timed from the call of learn() on: after the imports, with environments and networks made.
"""

import importlib
import json
import sys
import time
from collections import deque

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecFrameStack


class Watch(BaseCallback):
    """Notes the seconds at half of the steps, and the step and seconds at which it is solved, which ends training."""

    def __init__(self, half, solved):
        super().__init__()
        self.half, self.solved, self.returns = half, solved, deque(maxlen=20)
        self.half_steps = self.half_seconds = self.solved_at_steps = self.solved_seconds = None

    def _on_training_start(self):
        self.began = time.perf_counter()

    def _on_step(self):
        if self.half_steps is None and self.num_timesteps >= self.half:
            self.half_steps, self.half_seconds = self.num_timesteps, time.perf_counter() - self.began
        if self.solved is None:
            return True
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.returns.extend(ended)
        if ended and len(self.returns) == 20 and sum(self.returns) / 20 >= self.solved:
            self.solved_at_steps, self.solved_seconds = self.num_timesteps, time.perf_counter() - self.began
        return self.solved_at_steps is None


def schedule(value):
    """'lin_0.001', as the zoo writes it -> a function of the remaining share of training; any other value as it is."""
    if not (isinstance(value, str) and value.startswith("lin_")):
        return value
    start = float(value.removeprefix("lin_"))
    return lambda remaining: remaining * start


def main(spec):
    """Train as spec says -> environment steps, seconds of training, and what Watch noted."""
    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision(spec.get("matmul_precision", "highest"))
    if spec.get("atari"):
        envs = VecFrameStack(make_atari_env(spec["env_id"], n_envs=spec["num_envs"], seed=spec["seed"]), 4)
    else:
        envs = make_vec_env(spec["env_id"], n_envs=spec["num_envs"], seed=spec["seed"])
    flags = {name: schedule(value) for name, value in spec["flags"].items()}
    if std := flags.pop("noise_std", None):
        size = envs.action_space.shape[0]
        flags["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, std))
    algorithm = getattr(importlib.import_module(spec["package"]), spec["algorithm"])
    model = algorithm(env=envs, seed=spec["seed"], device=spec["device"], **flags)
    watch = Watch(spec["steps"] / 2, spec["solved"])
    started, began = time.time(), time.perf_counter()
    model.learn(spec["steps"], callback=watch)
    seconds = time.perf_counter() - began
    noted = ("half_steps", "half_seconds", "solved_at_steps", "solved_seconds")
    return {"steps": model.num_timesteps, "seconds": seconds, "began": started} | {
        name: getattr(watch, name) for name in noted
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
