"""Train with Stable-Baselines3 or SBX as its users do, and leave what our scripts leave: run.py and speed.py read it.

    python benchmarks/scores/sb3.py --algorithm ppo --env-id CartPole-v1 --num-envs 8 --hyper '{"n_steps": 32}'
    ... --evaluate RUN --eval-episodes 100

Only the end of a run is saved: one that is interrupted has no checkpoint, and run.py begins it again. An Atari game has
the wrappers of Stable-Baselines3 in training, and is not evaluated.
"""

import importlib
import json
import os
import re
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch.utils.tensorboard import SummaryWriter

OFF_POLICY = ("ddpg", "td3", "sac")
NOISES = {"normal": NormalActionNoise, "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise}


@dataclass
class Args:
    algorithm: Literal["ppo", "a2c", "trpo", "ddpg", "td3", "sac"] = "ppo"  # TRPO is that of sb3-contrib
    package: Literal["stable_baselines3", "sbx"] = "stable_baselines3"  # whose; the weights of SBX are not saved
    env_id: str = "CartPole-v1"  # environment: an id that gymnasium knows, or module:Id to import one
    seed: int = 1  # the same seed and flags give the same bits on a CPU
    total_timesteps: int = 100_000  # environment steps in all, summed over environments
    num_envs: int = 1  # environments stepped one after the other (DummyVecEnv)
    num_threads: int = 1  # torch's CPU threads
    device: str = "cpu"  # where the networks live
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of torch's float32 products
    normalize: bool = False  # VecNormalize: observations and rewards by running statistics
    noise_type: Literal["none", "normal", "ornstein-uhlenbeck"] = "none"  # added to actions, off-policy
    noise_std: float = 0.1  # its deviation, in actions of [-1, 1]
    hyper: str = "{}"  # JSON: what else the algorithm's constructor is given; "lin_0.1" falls linearly from 0.1 to 0
    stop_at: float = np.inf  # end training when the mean return of 20 training episodes is this
    checkpoint_every: int = 50_000  # environment steps between evaluations
    eval_episodes: int = 20  # episodes of an evaluation
    evaluate: str = ""  # play this run folder's policy, greedily, and do not train
    resume: str = ""  # the same: a checkpoint is of a run that has ended


def from_json(name, value):
    """A constructor's argument as JSON can have it -> as the constructor takes it."""
    if isinstance(value, str) and value.startswith("lin_"):
        start = float(value.removeprefix("lin_"))
        return lambda remaining: remaining * start
    if name == "policy_kwargs" and "activation_fn" in value:
        return value | {"activation_fn": getattr(torch.nn, value["activation_fn"])}
    return value


def make_model(args):
    """The algorithm with fresh networks, on training environments."""
    if "ale_py:" in args.env_id:
        envs = VecFrameStack(make_atari_env(args.env_id, args.num_envs, seed=args.seed), 4)
    else:
        envs = make_vec_env(args.env_id, args.num_envs, seed=args.seed)
    hyper = {name: from_json(name, value) for name, value in json.loads(args.hyper).items()}
    if args.normalize:
        envs = VecNormalize(envs, gamma=hyper.get("gamma", 0.99))
    if args.noise_type != "none":
        size = envs.action_space.shape[0]
        hyper["action_noise"] = NOISES[args.noise_type](np.zeros(size), np.full(size, args.noise_std))
    if args.evaluate and args.algorithm in OFF_POLICY:
        hyper["buffer_size"] = 1
    package = importlib.import_module("sb3_contrib" if args.algorithm == "trpo" else args.package)
    algorithm = getattr(package, args.algorithm.upper())
    policy = "CnnPolicy" if "ale_py:" in args.env_id else "MlpPolicy"
    return algorithm(policy, envs, seed=args.seed, device=args.device, **hyper)


def evaluate(model, args):
    """Undiscounted returns of the greedy policy, an episode in each of as many environments -> (episodes,).

    On the environments and seed of our scripts' evaluations: the same first states. Rewards are the environment's own,
    observations are normalised by the training's statistics.
    """
    n = args.eval_episodes
    if "ale_py:" in args.env_id:
        return np.full(n, np.nan)
    envs, normaliser = gym.make_vec(args.env_id, n), model.get_vec_normalize_env()
    obs, returns, ended = envs.reset(seed=args.seed)[0], np.zeros(n), np.zeros(n, bool)
    while not ended.all():
        action, _ = model.predict(normaliser.normalize_obs(obs) if normaliser else obs, deterministic=True)
        obs, reward, terminated, truncated, _ = envs.step(action)
        returns += reward * ~ended
        ended |= terminated | truncated
    envs.close()
    return returns


class Log(BaseCallback):
    """Our scripts' tags, clock and evaluations, at the steps at which they have them."""

    def __init__(self, args, writer):
        super().__init__()
        self.args, self.writer, self.logged, self.evaluated = args, writer, 0, 0
        self.returns = deque(maxlen=20)

    def _on_training_start(self):
        self.began = time.perf_counter()

    def _on_step(self):
        self.returns.extend(info["episode"]["r"] for info in self.locals["infos"] if "episode" in info)
        step, total = self.num_timesteps, self.args.total_timesteps
        if step - self.logged >= total / 500:
            self.log()
        if step < total and step - self.evaluated >= self.args.checkpoint_every:
            self.evaluated = step
            self.writer.add_scalar("charts/eval_return", evaluate(self.model, self.args).mean(), step)
        stop_at = self.args.stop_at
        return stop_at == np.inf or len(self.returns) < 20 or np.mean(self.returns) < stop_at

    def log(self):
        """Write what is known at this step -> seconds since training began."""
        self.logged, seconds = self.num_timesteps, time.perf_counter() - self.began
        self.writer.add_scalar("charts/SPS", self.num_timesteps / seconds, self.num_timesteps)
        if self.returns:
            self.writer.add_scalar("charts/episodic_return", np.mean(self.returns), self.num_timesteps)
        return seconds


def save(model, args, seconds, folder):
    """Put the policy and the normaliser's statistics into the folder, whole."""
    normaliser = model.get_vec_normalize_env()
    statistics = normaliser.obs_rms if normaliser else None
    state = {
        "step": model.num_timesteps,
        "seconds": seconds,
        "args": vars(args),
        "policy": model.policy.state_dict(),
        "normaliser": statistics and {"mean": torch.tensor(statistics.mean), "var": torch.tensor(statistics.var)},
    }
    torch.save(state, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def restore(model, saved):
    """The saved policy, and the statistics by which it saw observations, in the place of the fresh ones."""
    model.policy.load_state_dict(saved["policy"])
    if saved["normaliser"]:
        statistics = model.get_vec_normalize_env().obs_rms
        statistics.mean, statistics.var = (saved["normaliser"][name].numpy() for name in ("mean", "var"))


def main():
    """Train, or load what was trained; evaluate, and print the line that other programs read."""
    args = tyro.cli(Args, description=__doc__)
    args.evaluate = args.evaluate or args.resume
    folder = Path(args.evaluate)
    if args.evaluate:
        saved = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        args = tyro.cli(Args, default=Args(**saved["args"]))
        args.evaluate = str(folder)
    torch.set_num_threads(args.num_threads)
    torch.set_float32_matmul_precision(args.matmul_precision)
    model = make_model(args)
    if args.evaluate:
        restore(model, saved)
        step, seconds, returns = saved["step"], saved["seconds"], evaluate(model, args)
    else:
        name = re.sub("[/:]", "-", args.env_id)
        folder = Path(f"runs/{name}__sb3_{args.algorithm}__{args.seed}__{int(time.time())}")
        folder.mkdir(parents=True)
        with SummaryWriter(folder) as writer:
            log = Log(args, writer)
            model.learn(args.total_timesteps, callback=log)
            step, seconds = model.num_timesteps, log.log()
            save(model, args, seconds, folder)
            returns = evaluate(model, args)
            writer.add_scalar("charts/eval_return", returns.mean(), step)
    score = f"eval_return={returns.mean():.2f} +/- {returns.std():.2f} ({len(returns)} episodes)"
    print(f"{score} | {step} steps | {seconds:.1f} s | {step / seconds:.0f} steps/s | {folder}")


if __name__ == "__main__":
    sys.path.append(os.getcwd())  # for --env-id module:Id
    main()
