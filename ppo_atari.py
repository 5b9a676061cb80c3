# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.11", "gymnasium>=1.2.1", "ale-py[vector]>=0.12", "moviepy", "tensorboard", "tqdm", "tyro"]
# ///
"""Proximal policy optimization (PPO, Schulman et al. 2017, https://arxiv.org/abs/1707.06347).

    Maximise E[min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)] - c_v E[(V(s) - R)^2] / 2 + c_e E[H]
    with ratio = pi / pi_old, advantage A (GAE, arXiv:1506.02438), R = A + V_old(s), entropy H.

    python ppo_atari.py
    ... --resume runs/FOLDER

Shapes: T steps, N environments, B steps in a batch; D numbers are an observation, A an action.
"""

import hashlib
import json
import math
import os
import random
import signal
import sys
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import torch.distributed.nn  # later, it would keep the process group
import tyro
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import vector as wrappers
from torch import distributed as dist, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

NAME = "ppo_atari"


@dataclass
class Args:
    env_id: str = "ale_py:ALE/Pong-v5"  # module:Id
    env_kwargs: str = "{}"  # its keyword arguments, as JSON
    num_envs: int = 8  # N, environments
    async_envs: bool = False  # a process for each environment
    total_timesteps: int = 3_000_000  # environment steps in all
    num_steps: int = 128  # T, steps of each environment in a rollout
    learning_rate: float = 2.5e-4  # step size of Adam
    anneal_lr: bool = True  # lower the learning rate linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda: 0 is the TD error, 1 all rewards of the rollout
    num_minibatches: int = 4  # minibatches in an epoch
    update_epochs: int = 4  # passes over each rollout
    norm_adv: bool = True  # normalise advantages in each batch
    clip_coef: float = 0.1  # eps, how far the ratio may move from 1
    ent_coef: float = 0.01  # c_e, weight of the entropy
    vf_coef: float = 0.5  # c_v, weight of the value loss
    max_grad_norm: float = 0.5  # largest norm of the gradient
    norm_reward: bool = False  # divide rewards by the deviation of the return
    initial_std: float = 1.0  # initial deviation of actions
    seed: int = 1  # the same seed gives the same bits on a CPU
    device: str = "auto"  # cpu, cuda, mps or auto
    num_threads: int = 1  # CPU threads of torch
    matmul_precision: str = "highest"  # highest, high or medium
    compile: bool = False  # slower start, faster run
    checkpoint_every: int = 250_000  # steps between checkpoints
    eval_episodes: int = 20  # episodes of an evaluation; 0 for none
    capture_video: bool = False  # film the final policy
    resume: str = ""  # continue this folder's run; flags given now win
    evaluate: str = ""  # evaluate this folder's run


def make_vec(args, num_envs, training, **kwargs):
    """Environments with flat observations."""
    if "ale_py:" in args.env_id:  # in training lives are episodes
        ale = dict(num_threads=args.num_threads, life_loss_info=training, reward_clipping=training)
        if "render_mode" in kwargs:  # only single games film
            args, ale = replace(args, async_envs=True), {"frameskip": 1}
            ale["wrappers"] = [gym.wrappers.AtariPreprocessing, lambda e: gym.wrappers.FrameStackObservation(e, 4)]
        kwargs = {"repeat_action_probability": 0} | ale | kwargs
    torch.manual_seed(args.seed)  # evaluations sample actions
    envs = gym.make_vec(args.env_id, num_envs, "async" if args.async_envs else None, **kwargs)
    space = envs.single_observation_space
    if not isinstance(space, Box) or len(space.shape) != 1:
        with suppress(NotImplementedError):  # refused below
            envs = wrappers.FlattenObservation(envs)
    return envs


class Agent(nn.Module):
    """Actor pi(a|s), categorical or Gaussian, and critic V(s)."""

    def __init__(self, envs, args):
        super().__init__()
        D, A = envs.single_observation_space.shape[0], gym.spaces.flatdim(envs.single_action_space)
        self.discrete = isinstance(envs.single_action_space, Discrete)
        relu, self.shape = nn.ReLU(), envs.unwrapped.single_observation_space.shape
        require(len(self.shape or ()) == 3 and envs.observation_space.dtype == np.uint8, f"{D} numbers, not an image")
        convs = nn.Conv2d(min(self.shape), 32, 8, 4), relu, nn.Conv2d(32, 64, 4, 2), relu, nn.Conv2d(64, 64, 3), relu
        self.cnn = nn.Sequential(nn.Upsample(84), *convs, nn.Flatten(), nn.Linear(64 * 7 * 7, 512), relu)
        self.cnn.apply(lambda m: hasattr(m, "weight") and nn.init.orthogonal_(m.weight, 2**0.5))
        self.norm_return = RunningNorm(1)
        self.actor, self.critic = nn.Linear(512, A), nn.Linear(512, 1)
        self.log_std = nn.Parameter(torch.full((A,), math.log(args.initial_std)))  # if continuous

    def features(self, obs):
        """Images (..., D) -> (..., 512), the obs of value and log_prob."""
        images = obs.view(-1, *self.shape).movedim(1 + self.shape.index(min(self.shape)), 1)
        return self.cnn(images.contiguous(memory_format=torch.channels_last) / 255).view(*obs.shape[:-1], 512)

    def value(self, obs):
        """V(s) for obs (..., D) -> (...)"""
        return self.critic(obs).squeeze(-1)

    def log_prob(self, obs, action):
        """log pi(a|s) and the entropy, both (...), for obs (..., D) and action (...) or (..., A)."""
        output = self.actor(obs)
        if self.discrete:
            log_probs = output.log_softmax(-1)
            return log_probs.gather(-1, action[..., None]).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)
        z = (action - output) / self.log_std.exp()
        log_scale = self.log_std + math.log(2 * math.pi) / 2
        return -(z**2 / 2 + log_scale).sum(-1), (log_scale + 0.5).sum().expand(z.shape[:-1])

    @torch.no_grad()
    def act(self, obs, greedy=False):
        """Actions (N,) or (N, A) for obs (N, D): sampled, or the mode if greedy."""
        output = self.actor(self.features(obs))
        if self.discrete:
            return output.softmax(-1).multinomial(1).squeeze(-1)  # evaluations too
        return output if greedy else output + self.log_std.exp() * torch.randn_like(output)


class RunningNorm(nn.Module):
    """Normalise by the mean and variance so far, clip to +-10; (..., size)."""

    def __init__(self, size):
        super().__init__()
        for name, value in (("mean", 0.0), ("var", 1.0), ("count", 0.0)):
            self.register_buffer(name, torch.full((size,), value))

    def update(self, x):
        """Take in x (n, size): moments of two samples together (Chan et al. 1979)."""
        n = rank_mean(torch.ones_like(x).sum(0))
        mean = rank_mean(x.sum(0)) / n
        var = rank_mean(((x - mean) ** 2).sum(0)) / n
        delta, share = mean - self.mean, n / (self.count + n)
        self.var += share * (var - self.var + (1 - share) * delta**2)
        self.mean += share * delta
        self.count += n

    def forward(self, x):
        return ((x - self.mean) / (self.var + 1e-8).sqrt()).clamp(-10, 10)

    def scale(self, reward, real, G, gamma):
        """Rewards (T, N) over the deviation of G[t] = reward[t] + gamma real[t] G[t-1], and the last G (N,)."""
        returns = torch.zeros_like(reward)
        for t in range(len(reward)):
            G = returns[t] = reward[t] + gamma * real[t] * G
        self.update(returns[real][:, None])
        return (reward / (self.var + 1e-8).sqrt()).clamp(-10, 10), G


def gae(reward, value, terminated, done, gamma, gae_lambda):
    """Generalised advantage estimates (GAE eq. 16), which bootstrap at time limits; all (T, N), but value (T+1, N).
    delta[t] = reward[t] + gamma (1 - terminated[t]) value[t+1] - value[t]
    advantage[t] = delta[t] + gamma lambda (1 - done[t]) advantage[t+1],  done = terminated or truncated
    """
    delta = reward + gamma * (1 - terminated) * value[1:] - value[:-1]
    decay = gamma * gae_lambda * (1 - done)
    advantage = torch.zeros_like(value)  # advantage[T] = 0
    for t in reversed(range(len(delta))):
        advantage[t] = delta[t] + decay[t] * advantage[t + 1]
    return advantage[:-1]


def policy_loss(log_prob, old_log_prob, advantage, clip_coef):
    """-E[min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)], ratio = pi / pi_old (PPO eq. 7); (B,) -> ()"""
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantage).mean()


def value_loss(value, returns):
    """E[(V(s) - R)^2] / 2 (L^VF of PPO, halved); (B,) -> ()"""
    return nn.functional.mse_loss(value, returns) / 2


def loss(agent, batch, args):
    """The loss of a batch -> (), and metrics."""
    obs, action, advantage, returns, old_log_prob = batch
    if args.norm_adv and len(advantage) > 1:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    obs = agent.features(obs)
    log_prob, entropy = agent.log_prob(obs, action)
    l_policy = policy_loss(log_prob, old_log_prob, advantage, args.clip_coef)
    l_value = value_loss(agent.value(obs), returns)
    metrics = {"policy_loss": l_policy, "value_loss": l_value, "entropy": entropy.mean()}
    log_ratio = (log_prob - old_log_prob).detach()
    metrics["approx_kl"] = (log_ratio.expm1() - log_ratio).mean()  # KL(pi_old || pi)
    metrics["clipfrac"] = (log_ratio.expm1().abs() > args.clip_coef).float().mean()
    return l_policy + args.vf_coef * l_value - args.ent_coef * metrics["entropy"], metrics


def learn(run, args):
    """Act for T steps in N environments, compute targets, update."""
    half = args.num_steps // 2 * args.num_envs  # the others may only reset
    require(2 * args.num_minibatches <= half, "--num-minibatches is too large")
    agent = Agent(run.envs, args).to(run.device)
    # Adam divides by the gradient's size; where only noise is left, its default eps would make full steps.
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-4, fused=True)
    run.start(agent=agent, optimizer=optimizer)
    while run.step < args.total_timesteps:
        # Act.
        fraction_left = 1 - run.step / args.total_timesteps if args.anneal_lr else 1
        optimizer.param_groups[0]["lr"] = args.learning_rate * fraction_left
        if run.needs_reset:  # at first, and after a checkpoint
            obs, real = run.reset(), torch.ones(args.num_envs, dtype=torch.bool, device=run.device)
            G = torch.zeros(args.num_envs, device=run.device)
        steps = []
        for _ in range(args.num_steps):
            action = agent.act(obs)
            next_obs, reward, terminated, done = run.env_step(action)
            steps.append((obs, action, reward, terminated, done, real))
            obs, real = next_obs, done == 0  # the step after an episode's end only resets: it is not real
        all_obs, action, reward, terminated, done, reals = (torch.stack(x) for x in zip(*steps, strict=True))

        # Targets.
        with torch.no_grad():
            features = torch.cat([agent.features(x) for x in torch.cat([all_obs, obs[None]]).split(32)])
            value, (log_prob, _) = agent.value(features), agent.log_prob(features[:-1], action)
            if args.norm_reward:
                reward, G = agent.norm_return.scale(reward, reals, G, args.gamma)
            advantage = gae(reward, value, terminated, done, args.gamma, args.gae_lambda)
            rollout = [x[reals] for x in (all_obs, action, advantage, advantage + value[:-1], log_prob)]

        # Update.
        for _ in range(args.update_epochs):
            for index in torch.randperm(len(rollout[0]), device=run.device).tensor_split(args.num_minibatches):
                optimizer.zero_grad()
                metrics = run.backward(loss, agent, [x[index] for x in rollout], args)
                metrics["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        metrics["explained_variance"] = 1 - rollout[2].var(correction=0) / rollout[3].var(correction=0).clamp(min=1e-8)
        run.log_and_save(metrics, optimizer)


# ----------------------------------------------------------------------------------------------------------------------
# The same in every script.


class RunError(Exception):
    """The run cannot start or go on."""


def require(good, message):
    if not good:
        raise RunError(message)


def make_envs(args, num_envs, training=True, **kwargs):
    """Environments; a Box of actions is rescaled to [-1, 1] if bounded, else clipped."""
    envs = None
    try:
        envs = make_vec(args, num_envs, training, **json.loads(args.env_kwargs) | kwargs)
        obs, actions, mode = envs.single_observation_space, envs.single_action_space, envs.metadata["autoreset_mode"]
        box = isinstance(actions, Box) and actions.dtype.kind == "f"
        require(isinstance(obs, Box), f"observations {obs} cannot be flattened")
        require(box or (isinstance(actions, Discrete) and actions.start == 0), f"actions {actions} are not supported")
        require(mode == gym.vector.AutoresetMode.NEXT_STEP, f"{mode} is not NEXT_STEP")
    except Exception as error:
        if envs:
            envs.close()
        raise RunError(f"--env-id {args.env_id} {args.env_kwargs}: {str(error) or repr(error)}") from error
    if box and actions.is_bounded():
        low, high, unit = actions.low, actions.high, Box(-1, 1, actions.shape)
        envs = wrappers.TransformAction(envs, lambda a: (low + (a + 1) / 2 * (high - low)).clip(low, high), None, unit)
    elif box:
        envs = wrappers.TransformAction(envs, lambda a: a.clip(actions.low, actions.high))
    return wrappers.RecordEpisodeStatistics(envs, buffer_length=20, stats_key="run")


def evaluate(agent, args, episodes, video=None):
    """Returns of the policy, one episode in each environment -> (episodes,)."""
    envs = make_envs(args, episodes, training=False, **({"render_mode": "rgb_array"} if video else {}))
    with closing(wrappers.RecordVideo(envs, str(video)) if video else envs) as envs:
        obs, returns, done = envs.reset(seed=args.seed % 2**30)[0], np.zeros(episodes), np.zeros(episodes, bool)
        device, step = next(agent.parameters()).device, 0
        while not done.all() and step < 30_000:
            require(not Run.signal, "stopped")
            action = agent.act(torch.as_tensor(obs, dtype=torch.float32, device=device), greedy=True).cpu().numpy()
            obs, reward, terminated, truncated, _ = envs.step(action.reshape(envs.action_space.shape))
            returns += np.where(done, 0, reward)
            done |= terminated | truncated
            step += 1
    if not done.all():
        print(f"{NAME}.py: {(~done).sum()} of {episodes} episodes were cut at {step} steps", file=sys.stderr)
    return returns


def read(folder):
    """The checkpoint in a folder; its last 32 bytes are the SHA-256 of the rest."""
    path = Path(folder, "checkpoint.pt")
    try:
        content = path.read_bytes()
        require(hashlib.sha256(content[:-32]).digest() == content[-32:], "it is damaged")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        require(checkpoint["script"] == NAME, f"{checkpoint['script']}.py saved it")
        return checkpoint | {"args": Args(**checkpoint["args"] | {"resume": "", "evaluate": ""})}
    except Exception as error:
        raise RunError(f"cannot load {path}: {error}"[:300]) from error


def load(folder):
    """The agent of a run, on the CPU, and its flags."""
    checkpoint = read(folder)
    with closing(make_envs(checkpoint["args"], 1)) as envs:
        agent = Agent(envs, checkpoint["args"])
    agent.load_state_dict(checkpoint["state"][0]["agent"])
    return agent, checkpoint["args"]


def rank_mean(*tensors):
    """Means over processes, in place; returns the first."""
    if dist.is_initialized():
        flat = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(flat, dist.ReduceOp.AVG)
        for x, mean in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
            x.copy_(mean.view_as(x))
    return tensors[0]


def backward(loss, agent, batch, args):
    """The gradient of a loss, averaged over processes -> metrics."""
    total, metrics = loss(agent, batch, args)
    total.backward()
    if dist.is_initialized():
        rank_mean(*[p.grad for p in agent.parameters() if p.grad is not None])
    return {k: v.detach() for k, v in metrics.items()}


class Run(ExitStack):
    """Environments, progress, log and checkpoints of a run."""

    signal = 0  # main sets it: save and stop

    def __init__(self, args):
        super().__init__()
        found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        require(args.device in ("auto", "cpu", found.type), f"--device {args.device}: there is only {found.type}")
        self.device = torch.device(found if args.device == "auto" else args.device)
        if dist.is_torchelastic_launched() and not dist.is_initialized():
            dist.init_process_group(timeout=99 * dist.default_pg_timeout)
            self.callback(dist.destroy_process_group)
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        torch.set_num_threads(args.num_threads)
        torch.set_float32_matmul_precision(args.matmul_precision)
        torch.manual_seed(args.seed)
        self.args, self.total, self.step, self.saved, self.seconds = args, args.total_timesteps, 0, 0, 0.0
        self.needs_reset, self.backward = True, backward
        if args.compile:
            torch.compiler.reset()
            torch._dynamo.config.trace_autograd_ops = True  # one graph for both passes
            self.backward = torch.compile(backward, fullgraph=True, options={"fallback_random": True})
        self.envs = self.enter_context(closing(make_envs(args, args.num_envs)))
        self.dtype = np.uint8 if self.envs.single_observation_space.dtype == np.uint8 else np.float32

    def start(self, **state):
        """Say what a checkpoint holds, resume, open the log."""
        args, self.state, self.folder = self.args, state, Path(self.args.resume)
        if args.resume:
            saved = read(self.folder)
            self.step = self.saved = saved["step"]
            self.seconds, states = saved["seconds"], saved["state"]
            require(len(states) == self.ranks, f"{self.folder} has {len(states)} processes, not {self.ranks}")
            for name, part in state.items():
                flags = {k: v for k, v in part.state_dict().items() if k == "param_groups"}  # an optimizer's
                try:
                    part.load_state_dict(states[self.rank][name] | flags)
                except (RuntimeError, ValueError) as error:
                    raise RunError(f"these flags do not fit {self.folder}: {error}"[:300]) from error
        name, second = f"{args.env_id.replace('/', '-').replace(':', '-')}__{NAME}__{args.seed}", int(time.time())
        while not args.resume and self.folder.exists():
            self.folder, second = Path(f"runs/{name}__{second}"), second + 1
        if self.rank == 0:
            self.writer = self.enter_context(SummaryWriter(self.folder, purge_step=self.step + 1))
            style = {"unit": " steps", "mininterval": 0.1 if sys.stderr.isatty() else 30}
            self.bar = self.enter_context(tqdm(total=self.total, initial=self.step, **style))
        self.began = time.perf_counter() - self.seconds

    def reset(self):
        """Seed by (seed, step, rank), reset the environments -> obs (N, D)."""
        self.needs_reset = False
        seed = int(np.random.SeedSequence([self.args.seed, self.step, self.rank]).generate_state(1)[0]) // 4  # 30 bits
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)
        obs = torch.as_tensor(self.envs.reset(seed=seed)[0].astype(self.dtype), device=self.device)
        require(obs.isfinite().all(), "an observation is not finite")
        return obs

    def env_step(self, action):
        """Step the environments -> obs (N, D), and reward, terminated, done (N,)."""
        action = action.cpu().numpy().reshape(self.envs.action_space.shape)
        obs, reward, terminated, truncated, _ = self.envs.step(action)
        self.step += len(obs) * self.ranks
        obs, rows = obs.astype(self.dtype), np.stack([reward, terminated, terminated | truncated]).astype(np.float32)
        require(np.isfinite(obs).all() and np.isfinite(rows).all(), "an observation or reward is not finite")
        return torch.as_tensor(obs, device=self.device), *torch.as_tensor(rows, device=self.device)

    def log_and_save(self, metrics, optimizer):
        """Log; save and evaluate when it is time; stop at a signal."""
        args, ended, self.seconds = self.args, self.step >= self.total, time.perf_counter() - self.began
        tags = {f"losses/{k}": v.item() for k, v in metrics.items()}
        require(all(map(math.isfinite, tags.values())), f"not finite: {tags}")
        stop = not ended and rank_mean(torch.tensor(float(Run.signal), device=self.device)) > 0
        save = ended or stop or self.step - self.saved >= args.checkpoint_every
        if self.rank == 0 and (save or self.step - self.bar.n >= self.total / 500):
            tags |= {"charts/learning_rate": optimizer.param_groups[0]["lr"], "charts/SPS": self.step / self.seconds}
            if self.envs.return_queue:
                tags["charts/episodic_return"] = np.mean(self.envs.return_queue)
                tags["charts/episodic_length"] = np.mean(self.envs.length_queue)
                self.bar.set_postfix_str(f"return {tags['charts/episodic_return']:.1f}", refresh=False)
            for tag in tags:
                self.writer.add_scalar(tag, tags[tag], self.step)
            self.bar.update(self.step - self.bar.n)
        if not save:
            return
        states = [{name: part.state_dict() for name, part in self.state.items()}] * self.ranks
        if self.ranks > 1:
            dist.gather_object(states[0], None if self.rank else states)
        if self.rank == 0:
            saved = {"script": NAME, "args": vars(args), "step": self.step, "seconds": self.seconds, "state": states}
            with open(self.folder / "checkpoint.tmp", "w+b") as file:
                torch.save(saved, file)
                file.seek(0)
                file.write(hashlib.file_digest(file, "sha256").digest())
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, self.folder / "checkpoint.pt")
        self.saved, self.needs_reset = self.step, True
        require(not stop, "stopped")
        if self.rank == 0 and args.eval_episodes and not ended:
            returns = evaluate(self.state["agent"], args, args.eval_episodes)
            self.writer.add_scalar("charts/eval_return", returns.mean(), self.step)


def report(agent, args, step, seconds, folder):
    """Evaluate, print the last line, film -> mean return."""
    returns = evaluate(agent, args, args.eval_episodes) if args.eval_episodes else np.array([math.nan])
    score = f"eval_return={returns.mean():.2f} +/- {returns.std():.2f} ({args.eval_episodes} episodes)"
    print(f"{score} | {step} steps | {seconds:.1f} s | {step / seconds:.0f} steps/s | {folder}", flush=True)
    if args.capture_video:
        evaluate(agent, args, 1, Path(folder, "video"))
    return returns.mean()


def train(args, merge=True):
    """Train by these flags -> agent; a saved run's replace defaults."""
    if (folder := args.resume or args.evaluate) and merge:
        given = {k: v for k, v in vars(args).items() if v != getattr(Args, k)}
        args = replace(read(folder)["args"], **given)
    low = dict(num_steps=2, num_workers=0, seed=0, learning_starts=0, eval_episodes=0, initial_std=1e-6, alpha=1e-6)
    high = dict(gamma=1, gae_lambda=1, tau=1, num_threads=1024, seed=2**62)
    for name, value in vars(args).items():
        kind = type(getattr(Args, name))
        least, most = low.get(name, int(kind is int)), high.get(name, 1e100)
        good = kind is str or (least <= value <= most and kind(value) == value)
        require(good, f"--{name.replace('_', '-')} {value} is not a {kind.__name__} from {least} to {most}")
    require(not args.resume or not args.evaluate, "give --resume or --evaluate, not both")
    args = replace(args, **{k: type(getattr(Args, k))(v) for k, v in vars(args).items()})
    if args.evaluate:
        checkpoint, (agent, _) = read(folder), load(folder)
        require(args.env_id == checkpoint["args"].env_id, f"{folder} has another --env-id")
        report(agent, args, checkpoint["step"], checkpoint["seconds"], folder)
        return agent
    with Run(args) as run:
        try:
            learn(run, args)
            if run.rank == 0:
                run.bar.close()
                mean = report(run.state["agent"], args, run.step, run.seconds, run.folder)
                run.writer.add_scalar("charts/eval_return", mean, run.step)
        except Exception as error:
            hint = f"--resume {run.folder} continues from {run.saved}" if run.saved else "no checkpoint was saved"
            error.add_note(f"(step {run.step}; {hint})")
            raise
    return run.state["agent"]


def main():
    """Train by the command line; Ctrl-C saves and stops."""

    def on_signal(number, frame):
        if Run.signal:
            os._exit(128 + number)  # the second ends it
        Run.signal = number

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # for --async-envs
    sys.path.append(os.getcwd())  # for module:Id
    try:
        args = tyro.cli(Args, description=__doc__)
        if folder := args.resume or args.evaluate:
            args = tyro.cli(Args, default=read(folder)["args"])
        train(args, merge=False)
    except RunError as exc:
        print(" ".join(f"{NAME}.py: error: {exc} {' '.join(getattr(exc, '__notes__', ()))}".split()), file=sys.stderr)
        sys.exit(128 + Run.signal if Run.signal else 2)


if __name__ == "__main__":
    main()
