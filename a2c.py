# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch>=2.11", "gymnasium[classic-control]>=1.2.1", "moviepy>=1", "tensorboard>=2", "tqdm>=4", "tyro>=1"
# ]
# ///
"""A2C: advantage actor-critic, A3C in one process (Mnih et al. 2016, arXiv:1602.01783), with GAE (arXiv:1506.02438).

maximise  E[log pi(a|s) A] - c_v E[(V(s) - R)^2] / 2 + c_e E[H],  R = A + V(s), no gradient into A and R

    python a2c.py
    ... --env-id Acrobot-v1 --total-timesteps 200000
    ... --resume RUN --total-timesteps 200000

T steps of N environments are a rollout, B of its transitions a batch; D numbers are an observation, A an action.
Unlike the paper: one process steps all environments together, actor and critic share no layer, Adam trains both.
Unlike most peers: a time limit is no death, for the true last observation's value is bootstrapped, and the step on
which gymnasium resets an environment and ignores the action is left out of every mean.
"""

import atexit
import functools
import hashlib
import importlib
import inspect
import io
import math
import os
import random
import re
import signal
import sys
import time
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import vector as wrappers
from torch import distributed, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    env_id: str = "CartPole-v1"  # environment: an id that gymnasium knows, or module:Id to import one
    total_timesteps: int = 400_000  # environment steps in all, summed over environments
    num_envs: int = 32  # N, environments stepped side by side (on each rank)
    num_steps: int = 16  # T, steps of each environment per rollout
    learning_rate: float = 3e-3  # Adam's step size
    anneal_lr: bool = True  # lower the learning rate linearly to 0
    gamma: float = 0.99  # discount, 0 to 1
    gae_lambda: float = 1.0  # 0 to 1: GAE is the TD error at 0, the whole return minus the value at 1
    norm_adv: bool = False  # advantages to mean 0 and deviation 1 in each batch
    ent_coef: float = 0.0  # c_e, weight of the entropy bonus
    vf_coef: float = 0.5  # c_v, weight of the value loss
    max_grad_norm: float = 0.5  # gradients of a larger norm are scaled down to this one
    norm_obs: bool = False  # observations to mean 0 and deviation 1, by running statistics
    norm_reward: bool = False  # rewards divided by the running deviation of the discounted return
    initial_std: float = 1.0  # deviation that the actions of a Box, -1 to 1, begin with; it is learned
    hidden_size: int = 64  # units in each of the two hidden layers
    seed: int = 1  # the same seed and flags give the same bits on a CPU
    device: str = "auto"  # where networks and data live: cpu, cuda, mps, or auto, which takes a GPU if there is one
    num_threads: int = 1  # torch's CPU threads; small networks lose time to more
    compile: bool = False  # torch.compile the loss and its gradient as one graph
    cuda_graph: bool = False  # on CUDA: capture each kind of update whole, and replay it
    async_envs: bool = False  # step each environment in a process of its own
    checkpoint_every: int = 50_000  # environment steps between checkpoints; each evaluates, and cuts episodes under way
    eval_episodes: int = 20  # episodes of an evaluation
    capture_video: bool = False  # film an episode of the last evaluation (mp4 in the run folder)
    resume: str = ""  # go on with this run folder, on its flags and those given beside it
    evaluate: str = ""  # play this run folder's policy, greedily, and do not train


def mlp(inputs, hidden, outputs, gain):
    """Two tanh layers, (..., inputs) -> (..., outputs); orthogonal weights, the last of this gain; biases 0."""
    layers = [nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, outputs)]
    for linear, scale in zip(layers[::2], (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(linear.weight, scale)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(*layers)


class Agent(nn.Module):
    """pi(a|s): categorical, or a Gaussian of one deviation for all s, in [-1, 1] (make_envs rescales); V(s)."""

    def __init__(self, envs, args):
        super().__init__()
        obs_dim, size = envs.single_observation_space.shape[0], gym.spaces.flatdim(envs.single_action_space)
        discrete = isinstance(envs.single_action_space, Discrete)
        self.actor = mlp(obs_dim, args.hidden_size, size, gain=0.01)
        self.log_std = None if discrete else nn.Parameter(torch.full((size,), math.log(args.initial_std)))
        # On the way from 0 to returns of 100 its second tanh layer would saturate at a gain of 1, and see no state.
        gain = 1.0 if args.norm_reward else 10.0
        self.critic = nn.Sequential(mlp(obs_dim, args.hidden_size, 1, gain), nn.Flatten(-2))
        self.norm_obs, self.norm_reward = RunningNorm(obs_dim, args.norm_obs), RunningNorm(1, args.norm_reward)

    def log_prob(self, obs, action):
        """log pi(a|s) and the entropy of pi, both (...), for normalised obs (..., D) and action (...) or (..., A)."""
        output = self.actor(obs)
        if self.log_std is None:
            log_probs = output.log_softmax(-1)
            return log_probs.gather(-1, action[..., None])[..., 0], -(log_probs.exp() * log_probs).sum(-1)
        z = (action - output) / self.log_std.exp()
        constant = self.log_std + math.log(2 * math.pi) / 2
        return -(z**2 / 2 + constant).sum(-1), (constant + 0.5).sum().expand(z.shape[:-1])

    @torch.inference_mode()
    def act(self, obs, greedy=False):
        """Actions (N,) of a Discrete space or (N, A) of a Box for obs (N, D): sampled from pi, or its mode."""
        output = self.actor(self.norm_obs(obs))
        if self.log_std is None:
            noise = -torch.empty_like(output).exponential_().log()  # Gumbel: the argmax is a sample of the softmax
            return (output if greedy else output + noise).argmax(-1)
        return output if greedy else output + self.log_std.exp() * torch.randn_like(output)


class RunningNorm(nn.Module):
    """If on: x (T, N, size) -> (x - mean) / std, within +-10, by the statistics of all valid steps on all ranks."""

    def __init__(self, size, on):
        super().__init__()
        self.on = on
        self.register_buffer("stats", torch.tensor([[0.0], [0.0], [1.0]]).repeat(1, size))  # count, mean, variance

    def forward(self, x):
        return ((x - self.stats[1]) / (self.stats[2] + 1e-8).sqrt()).clamp(-10, 10) if self.on else x

    def update(self, x, valid):
        if not self.on:
            return
        count, mean, variance = self.stats
        n, total, squares = all_sum(torch.stack([(valid[..., None] * (x - mean) ** k).sum((0, 1)) for k in range(3)]))
        count += n
        variance += (squares - n * variance) / count - (total / count) ** 2
        variance.clamp_(min=0)  # rounding
        mean += total / count

    def scale(self, reward, discounted, valid, gamma):
        """reward (T, N) / std of the discounted return so far, G[t] = reward[t] + gamma valid[t] G[t-1]."""
        if not self.on:
            return reward
        for t in range(len(reward)):
            discounted[t] = reward[t] + gamma * valid[t] * discounted[t - 1]  # discounted[-1]: the last rollout's end
        self.update(discounted[..., None], valid)
        return (reward / (self.stats[2] + 1e-8).sqrt()).clamp(-10, 10)


def gae(reward, value, terminated, done, gamma, gae_lambda):
    """Generalized advantage estimates (GAE eq. 16); terminated and done (terminated or truncated) are 1 or 0.

    delta[t] = reward[t] + gamma (1 - terminated[t]) value[t+1] - value[t]
    advantage[t] = delta[t] + gamma lambda (1 - done[t]) advantage[t+1]         all (T, N), but value (T+1, N) -> (T, N)
    """
    delta = reward + gamma * (1 - terminated) * value[1:] - value[:-1]
    decay = gamma * gae_lambda * (1 - done)
    advantage = [torch.zeros_like(delta[0])]
    for t in reversed(range(len(delta))):
        advantage.append(delta[t] + decay[t] * advantage[-1])
    return torch.stack(advantage[:0:-1])


def normalise(x, weight):
    """x to mean 0 and deviation 1, as weight @ x takes the mean; (B,) -> (B,)"""
    x = x - weight @ x
    return x / ((weight @ x**2).sqrt() + 1e-8)


def policy_loss(log_prob, advantage, weight):
    """-E[log pi(a|s) A], whose gradient is the policy gradient (Williams 1992, Sutton et al. 2000); (B,) -> ()"""
    return -(weight @ (log_prob * advantage))


def value_loss(value, returns, weight):
    """The value's squared error, E[(V(s) - R)^2] / 2, half of that in PPO eq. 9; (B,) -> ()"""
    error = (value - returns) ** 2
    return weight @ error / 2


def loss(agent, batch, args):
    """The objective's negative on a batch, to be minimised -> (), and what to log of it."""
    obs, action, advantage, returns, valid = batch
    weight = valid / valid.sum().clamp(min=1)  # weight @ x is the mean of x over decisions, without the reset steps
    normalised = normalise(advantage, weight) if args.norm_adv else advantage
    (log_prob, entropy), value = agent.log_prob(obs, action), agent.critic(obs)
    l_policy = policy_loss(log_prob, normalised, weight)
    l_value = value_loss(value, returns, weight)
    entropy = weight @ entropy
    total = l_policy + args.vf_coef * l_value - args.ent_coef * entropy

    variance = weight @ (returns - weight @ returns) ** 2
    explained = 1 - weight @ advantage**2 / variance.clamp(min=1e-8)  # the advantage is what V(s) left of the return
    metrics = {"policy_loss": l_policy, "value_loss": l_value, "entropy": entropy, "explained_variance": explained}
    return total, metrics


def update(agent, optimizer, batch, args):
    """One gradient step on a batch; returns detached metrics."""
    weights = optimizer.param_groups[0]["params"][0]
    weights.grad, metrics = gradient(loss, weights.parts, agent, batch, args)
    average_over_ranks(weights.grad, batch[-1].sum())
    metrics["grad_norm"] = weights.grad.norm()
    weights.grad[None].renorm_(2, 0, args.max_grad_norm)  # clipping: in place, if its norm is larger
    optimizer.step()
    return metrics


def train(args):
    """Act for T steps in each of N environments, compute targets, update; again, until total_timesteps -> agent."""
    run, T, N = Run(args), args.num_steps, args.num_envs
    envs, device = make_envs(args, N), run.device
    agent = Agent(envs, args).to(device)
    optimizer = Adam([flatten(agent.parameters())], lr=args.learning_rate, eps=1e-4, fused=True)
    run.start(envs, agent=agent, optimizer=optimizer)
    obs = torch.zeros(T + 1, *envs.observation_space.shape, device=device)
    action = agent.act(obs[:T]).clone()  # of their shape and type; the rollout overwrites it
    reward, terminated, discounted = torch.zeros(3, T, N, device=device)
    done = torch.zeros(T + 1, N, device=device)  # done[t]: obs[t] is its episode's last, so step t only resets
    while run.step < args.total_timesteps and not args.evaluate:
        # Act: a rollout begins on the row that was one too many for the last, or on fresh observations.
        obs[0], done[0] = obs[T], done[T]
        if run.new_segment:
            obs[0], done[0], discounted[-1] = run.reset(), 0, 0
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - args.anneal_lr * run.step / args.total_timesteps)
        for t in range(T):
            action[t] = agent.act(obs[t])
            obs[t + 1], reward[t], terminated[t], done[t + 1] = run.env_step(action[t])

        # Targets: one call of the critic on all T + 1 rows gives every value that a bootstrap needs.
        with torch.no_grad():
            valid, norm_obs = 1 - done[:T], agent.norm_obs(obs)
            value = agent.critic(norm_obs)
            scaled = agent.norm_reward.scale(reward, discounted, valid, args.gamma)
            advantage = gae(scaled, value, terminated, done[1:], args.gamma, args.gae_lambda)
            rollout = (norm_obs[:T], action, advantage, advantage + value[:T], valid)
            rollout = [x.flatten(0, 1) for x in rollout]
            agent.norm_obs.update(obs[:T], valid)

        # Update.
        metrics = update(agent, optimizer, rollout, args)
        run.tick(metrics, optimizer)
    return run.finish()


# ----------------------------------------------------------------------------------------------------------------------
# The algorithm ends here. What else a run needs is below, the same in every script.
SCRIPT, SIGNALS = Path(__file__).stem, (signal.SIGINT, signal.SIGTERM)


def refuse(bad, message):
    """If the input is bad: one line on standard error, and exit status 2."""
    if bad:
        print(f"{SCRIPT}.py: error: {' '.join(str(message).split())}", file=sys.stderr)
        sys.exit(2)


def check_memory(numbers, device, what):
    """Refuse what takes so many float32 numbers, if the device has no room for them."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif (meminfo := Path("/proc/meminfo")).exists():
        free = 1024 * int(re.search(r"MemAvailable: *(\d+)", meminfo.read_text())[1])
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    need, free = numbers * 4 / 2**30, free / 2**30
    refuse(need > free, f"{what} take {need:.1f} GiB, and {free:.1f} GiB are free")


def parse_args():
    """Flags of the command line, over those of the run that --resume or --evaluate names, each in its range."""
    try:
        with redirect_stderr(io.StringIO()) as box:
            args = tyro.cli(Args, description=__doc__.splitlines()[0])
            refuse(args.resume and args.evaluate, "--resume trains and --evaluate does not: give one of them")
            if run := args.resume or args.evaluate:
                saved = load_checkpoint(run)["args"]
                args = tyro.cli(Args, default=saved)
                refuse(args.env_id != saved.env_id, f"--env-id {args.env_id}, but {run} is of {saved.env_id}")
    except SystemExit as end:
        words = box.getvalue().split("╮")[-1].encode("ascii", "ignore").decode()  # without tyro's frame
        refuse(end.code, words.removeprefix(f"{SCRIPT}.py: error: "))
        raise
    for name, value in vars(args).items():
        low = 1 if type(value) is int else 0
        low = {"seed": 0, "learning_starts": 0, "initial_std": 1e-3}.get(name, low)
        high = 2**62 if type(value) is int else 1e100
        high = {"gamma": 1, "gae_lambda": 1, "tau": 1, "num_threads": 1024}.get(name, high)
        bad = not isinstance(value, str) and not low <= value <= high
        refuse(bad, f"--{name.replace('_', '-')} {value} is not from {low} to {high}")
    size, parts = getattr(args, "num_steps", 1) * args.num_envs, getattr(args, "num_minibatches", 1)
    refuse(size % parts, f"--num-minibatches {parts} does not divide --num-steps times --num-envs, {size}")
    single = hasattr(args, "num_steps") and args.norm_adv and size // parts == 1
    refuse(single, "--norm-adv leaves nothing of an advantage in a batch of one step: give --no-norm-adv")
    total, starts = args.total_timesteps, getattr(args, "learning_starts", -1)
    refuse(starts >= total, f"--learning-starts {starts} leaves no step of --total-timesteps {total} to learn at")
    return args


def make_envs(args, num_envs, **kwargs):
    """Vector environment: flat observations, Discrete actions or Box actions in [-1, 1]; NEXT_STEP autoreset."""
    refuse(not re.fullmatch("([^:.][^:]*:)?[^:]*", args.env_id), f"--env-id {args.env_id} is no Id and no module:Id")
    try:
        if args.async_envs:
            resource_tracker.ensure_running()  # when it begins, it unblocks signals
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # its processes stay so: the script answers
        envs = gym.make_vec(args.env_id, num_envs, "async" if args.async_envs else None, **kwargs)
        if not isinstance(envs.single_observation_space, Box) or len(envs.single_observation_space.shape) != 1:
            envs = wrappers.FlattenObservation(envs)
    except (gym.error.Error, ImportError, NotImplementedError) as error:
        refuse(True, f"--env-id {args.env_id}: {error}")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for process in getattr(envs.unwrapped, "processes", ()):
        process.terminate = process.kill  # by SIGTERM it would never end, and what waits for it neither
        atexit.register(process.kill)
    flat = isinstance(envs.single_observation_space, Box)
    refuse(not flat, f"--env-id {args.env_id} has observations of no fixed size, which flatten to no Box")
    mode, space = envs.metadata.get("autoreset_mode"), envs.single_action_space
    device = getattr(envs.unwrapped, "device", None)  # where it takes and gives tensors, as GPU simulators do
    refuse(mode and mode.name != "NEXT_STEP", f"--env-id {args.env_id} resets in {mode}; it has to be NEXT_STEP")
    box = isinstance(space, Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
    bounded = box and (space.high / 2 - space.low / 2 < 1e38).all()  # float32 can hold its size
    others = getattr(Agent, "others", "")  # scripts for the actions that this one has no use for
    acts, kinds = f"--env-id {args.env_id} acts in {space}", "a bounded Box" if others else "Discrete from 0 or a Box"
    usable = box or (isinstance(space, Discrete) and space.start == 0)
    refuse(not usable, f"{acts}; it has to be {kinds} of floats with one axis")
    refuse(others and not bounded, f"{acts}; it has to be a bounded Box, or try {others}")
    if box:  # which may have some bounds; and what is rescaled may be rounded beyond one
        low, high = (torch.tensor(x, device=device) if device else x for x in (space.low, space.high))
        envs = wrappers.TransformAction(envs, lambda a: a.clip(low, high))
    if bounded:
        unit = Box(-1, 1, space.shape)
        envs = wrappers.TransformAction(envs, lambda a: low + (a.clip(-1, 1) + 1) / 2 * (high - low), None, unit)
    return envs if device else wrappers.RecordEpisodeStatistics(envs, buffer_length=20, stats_key="whole_episode")


def evaluate(agent, args, episodes, seed, video=None, signals=()):
    """Undiscounted returns of the greedy policy, an episode in each of as many environments -> float64 (episodes,)."""
    envs = make_envs(args, episodes, **({"render_mode": "rgb_array"} if video else {}))
    envs = wrappers.RecordVideo(envs, str(video), episode_trigger=lambda episode: episode == 0) if video else envs
    obs, returns, ended = envs.reset(seed=seed)[0], np.zeros(episodes), np.zeros(episodes, bool)
    weight, device = next(agent.parameters()), getattr(envs.unwrapped, "device", None)
    while not ended.all() and len(signals) < 2:  # who asks again does not wait for the end of episodes
        action = agent.act(torch.as_tensor(obs, dtype=weight.dtype, device=weight.device), greedy=True)
        obs, *rest, _ = envs.step(action.to(device) if device else action.cpu().numpy())
        reward, terminated, truncated = (torch.as_tensor(x).cpu().numpy() for x in rest)
        returns += np.where(ended, 0, reward)
        ended |= terminated | truncated
    envs.close()
    return returns


def load_checkpoint(run, **parts):
    """Read a run folder's checkpoint, executing nothing in it, and load the parts from it."""
    try:
        path = Path(run, "checkpoint.pt")
        content = path.read_bytes()
        checksum = hashlib.sha256(memoryview(content)[:-32]).digest()  # a slice would be one more copy of a replay
        refuse(checksum != content[-32:], f"{path} is damaged: its checksum is another")
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        refuse(saved["script"] != SCRIPT, f"{path} is of {saved['script']}.py")
        saved["args"] = Args(**saved["args"])
        of_ranks, rank = [saved, *saved["others"]], distributed.get_rank() if distributed.is_initialized() else 0
        for name, part in parts.items():
            state = of_ranks[min(rank, len(of_ranks) - 1)][name]
            if isinstance(part, torch.optim.Optimizer):  # a rate given beside --resume wins
                state["param_groups"][0]["lr"] = part.param_groups[0]["lr"]
            part.load_state_dict(state)
        return saved
    except Exception as error:
        refuse(True, f"{path} is missing, damaged, or of another environment: {str(error) or repr(error)}")


def all_sum(tensor):
    """Sum over torchrun's ranks, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


def average_over_ranks(gradient, weight):
    """Mean of a gradient over ranks, in place, each weighted by its number of decisions, in one all-reduce."""
    if distributed.is_initialized():
        total = all_sum(torch.cat([weight * gradient, weight.view(1)]))
        gradient.copy_(total[:-1] / total[-1].clamp(min=1))


def flatten(parameters):
    """One parameter that has all of these as its parts, now views of it: a step takes one call, not one for each."""
    parts = list(parameters)
    weights = nn.Parameter(nn.utils.parameters_to_vector(parts).detach())
    nn.utils.vector_to_parameters(weights.data, parts)
    weights.parts = parts
    return weights


def gradient(loss, parts, agent, batch, args):
    """The gradient of loss(agent, batch, args) -> (scalar, metrics) by all parts in one tensor, and the metrics."""
    if args.compile and not torch.compiler.is_compiling():
        return compiled(gradient)(loss, parts, agent, batch, args)
    total, metrics = loss(agent, batch, args)
    gradients = torch.autograd.grad(total, parts)
    return torch.cat([x.flatten() for x in gradients]), {name: metric.detach() for name, metric in metrics.items()}


@functools.cache
def compiled(function):
    """The function as one graph, forward and backward, which draws the same noise as without."""
    torch._dynamo.config.trace_autograd_ops = True
    return torch.compile(function, fullgraph=True, options={"fallback_random": True})


def choose_products(hidden_size):
    """On a CPU: products of large layers by oneDNN where MKL is slower, on AMD, for that leaves AVX-512 unused.

    "medium" lets oneDNN round to bfloat16, which it does by AMX alone: without, these are products in float32.
    """
    cpuinfo = Path("/proc/cpuinfo")
    features = cpuinfo.read_text() if cpuinfo.exists() else ""
    faster = hidden_size >= 128 and "AuthenticAMD" in features and "avx512f" in features and "amx" not in features
    torch.set_float32_matmul_precision("medium" if faster else "highest")


class Adam(torch.optim.Adam):
    """Torch's, but for its detours by torch's compiler, the import of which takes as long as that of torch itself."""

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class CudaGraph:
    """An update of one kind (shapes; with the actor or not): made thrice as it is, then captured, and then replayed.

    A graph has the memory that it was captured on, and numbers in it are constants: so each batch is copied to where
    the first was, and learning rates are tensors.
    """

    def __init__(self):
        self.calls = 0

    def __call__(self, update, agent, given):
        batch = next(x for x in given if isinstance(x, list))
        groups = [x.param_groups[0] for x in given if isinstance(x, torch.optim.Optimizer)]
        rates = [group["lr"] for group in groups]
        self.calls += 1
        if self.calls <= 3:  # what is made once is made now, and aside, as torch asks for
            main, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                metrics = update(agent, *given)
            main.wait_stream(side)
            return metrics
        if self.calls == 4:
            self.graph, self.batch = torch.cuda.CUDAGraph(), [x.clone() for x in batch]
            self.rates = [torch.tensor(rate, device=batch[0].device) for rate in rates]
            for group, rate in zip(groups, self.rates, strict=True):
                group.update(lr=rate, capturable=True)
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # NCCL has threads of its own
                self.metrics = update(agent, *[self.batch if x is batch else x for x in given])
            for group, rate in zip(groups, rates, strict=True):
                group.update(lr=rate, capturable=False)
        torch._foreach_copy_(self.batch, batch)
        for rate, now in zip(self.rates, rates, strict=True):
            rate.fill_(now)
        self.graph.replay()
        return self.metrics


def graphed(update):
    """The update, which with --cuda-graph has a graph for each of its kinds."""

    @functools.wraps(update)
    def by_graph(agent, *given):
        args, count = given[-1], sum(x for x in given if isinstance(x, int))
        if not args.cuda_graph:
            return update(agent, *given)
        shapes = [x.shape for part in given if isinstance(part, list) for x in part]
        kind = (count % getattr(args, "policy_frequency", 1) > 0, *shapes)
        graphs = agent.__dict__.setdefault("graphs", {})
        graphs[kind] = graph = graphs.pop(kind, None) or CudaGraph()
        if len(graphs) > 8:  # each has memory: let go the one that was not asked for longest
            del graphs[next(iter(graphs))]
        return graph(update, agent, given)

    return by_graph


class Run:
    """Device and ranks, steps and seconds so far, folder, log, checkpoints and signals of one run."""

    def __init__(self, args):
        found = (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")).type
        refuse(args.device not in ("auto", "cpu", found), f"--device {args.device} is not here; {found} would do")
        self.device = torch.device(found if args.device == "auto" else args.device)
        refuse(args.cuda_graph and self.device.type != "cuda", f"--cuda-graph is for --device cuda, not {self.device}")
        if distributed.is_torchelastic_launched() and not distributed.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            importlib.import_module("torch.distributed.nn")  # imported later, its defaults would keep the group alive
            store, rank, ranks = next(distributed.rendezvous("env://"))
            store = distributed.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)  # else it has the dead's
            patience = timedelta(days=7)  # with the first rank, which evaluates; of a dead one torchrun hears itself
            distributed.init_process_group(store=store, rank=rank, world_size=ranks, timeout=patience)
            atexit.register(distributed.destroy_process_group)  # else its threads may abort the process at its end
        alone = not distributed.is_initialized()
        self.rank, self.ranks = (0, 1) if alone else (distributed.get_rank(), distributed.get_world_size())
        torch.set_num_threads(args.num_threads)
        if self.device.type == "cpu":
            choose_products(args.hidden_size)
        torch.manual_seed(args.seed)
        rows = max(args.num_envs * getattr(args, "num_steps", 1), getattr(args, "batch_size", 1), args.eval_episodes)
        sizes = f"--hidden-size {args.hidden_size} and {rows} observations"  # a layer's weights and outputs, some times
        check_memory(10 * args.hidden_size * (args.hidden_size + rows), self.device, sizes)
        self.args, self.step, self.seconds, self.new_segment, self.signals = args, 0, 0.0, True, []
        self.folder = Path("runs") if self.rank else None  # other ranks write nothing
        for number in () if args.evaluate else SIGNALS:
            signal.signal(number, self.note)

    def note(self, number, frame):
        """A first signal stops the run after the update or evaluation under way, a second after the update."""
        self.signals.append(number)
        if len(self.signals) > 2:
            print(f"stopped at once, after step {self.step}; {self.kept()}", file=sys.stderr)
            sys.exit(128 + number)

    def kept(self):
        """What the end of a run leaves."""
        there = self.rank or (self.folder and (self.folder / "checkpoint.pt").exists())
        return f"{self.folder} keeps the last checkpoint" if there else "no checkpoint was saved yet"

    def start(self, envs, **parts):
        """Name what a checkpoint holds; take up a run, or make a new folder; open the log."""
        args, self.envs, self.parts, given = self.args, envs, parts, self.args.resume or self.args.evaluate
        self.tensors = getattr(envs.unwrapped, "device", None)
        self.largest, self.latest = torch.zeros(1, device=self.device), torch.tensor(torch.nan, device=self.device)
        blind = args.capture_video and "rgb_array" not in envs.metadata.get("render_modes", ())
        refuse(blind, f"--capture-video: {args.env_id} has no render mode rgb_array")
        if given:
            self.folder = Path(given)
            saved = load_checkpoint(self.folder, **parts)
            self.step, self.seconds, ranks = saved["step"], saved["seconds"], 1 + len(saved["others"])
            other = f"{self.folder} is of {ranks} ranks, each with its own environments and data, not of {self.ranks}"
            refuse(args.resume and ranks != self.ranks, other)
            finished = args.resume and self.step >= args.total_timesteps
            refuse(finished, f"{self.folder} has its {self.step} steps; a larger --total-timesteps would extend it")
        stamp = int(time.time())
        while self.rank == 0 and not self.folder:
            folder = Path("runs", f"{re.sub('[/:]', '-', args.env_id)}__{SCRIPT}__{args.seed}__{stamp}")
            try:
                folder.mkdir(parents=True)
                self.folder = folder
            except OSError as error:  # if it is there, another run of this second has it: take the next
                refuse(not folder.is_dir(), f"cannot write {folder}: {error.strerror}")
                stamp += 1
        if self.rank == 0 and not args.evaluate:
            try:
                self.writer = SummaryWriter(self.folder, purge_step=self.step + 1, max_queue=1000)
            except OSError as error:
                refuse(True, f"cannot write {self.folder}: {error.strerror}")
            self.writer.add_text("flags", "\n".join(f"    {name} = {value}" for name, value in vars(args).items()))
            lines = {"delay": 10, "mininterval": 10, "bar_format": "{n} steps{postfix}, {rate_fmt}\n"}
            style = {"unit_scale": True} if sys.stderr.isatty() else lines
            self.bar = tqdm(total=args.total_timesteps, initial=self.step, unit=" steps", **style)
        self.began, self.saved, self.logged = time.perf_counter() - self.seconds, self.step, self.step

    def reset(self):
        """Start a segment: seed every generator by (seed, step, rank), reset the environments -> obs (N, D)."""
        self.new_segment = False
        *seeds, env_seed = np.random.SeedSequence([self.args.seed, self.step, self.rank]).generate_state(4).tolist()
        for seeder, seed in zip((random.seed, np.random.seed, torch.manual_seed), seeds, strict=True):
            seeder(seed)
        obs = torch.as_tensor(self.envs.reset(seed=env_seed)[0])
        obs = obs.to(self.device, torch.float32, copy=True)  # the environment may use its memory again
        self.check_finite(obs.cpu().numpy(), "an observation")
        self.so_far, self.over = torch.zeros(2, len(obs), device=self.device), torch.zeros(len(obs), device=self.device)
        return obs

    def check_finite(self, values, what):
        if not np.isfinite(values).all():
            refuse(True, f"{what} is not finite at step {self.step}; {self.kept()}")

    def env_step(self, action):
        """-> next_obs (N, D), reward, terminated, done (N,), all in one transfer to the device, or none."""
        action = action.to(self.tensors or "cpu")
        if not self.tensors:
            action = action.numpy()
            self.check_finite(action, "an action")
        try:
            obs, reward, terminated, truncated, _ = self.envs.step(action)
        except Exception:
            failed = f"an environment failed at step {self.step}; {self.kept()}"
            print(f"{SCRIPT}.py: error: {failed}", file=sys.stderr)
            raise
        self.step += self.args.num_envs * self.ranks
        stack = torch.column_stack if self.tensors else np.column_stack
        row = torch.as_tensor(stack([obs, reward, terminated, terminated | truncated])).float()
        if self.tensors:  # nothing here waits for the device: it is when it logs that tick looks
            row = row.to(self.device)
            self.largest = torch.maximum(self.largest, row.abs().amax(0))  # of each column; NaN is larger than all
            self.so_far += torch.stack([row[:, -3], 1 - self.over])  # a step that only resets is none of an episode
            self.over = row[:, -1]
            self.latest = torch.where(self.over > 0, self.so_far, self.latest)
            self.envs.return_queue, self.envs.length_queue = self.latest
            self.so_far *= 1 - self.over
        else:
            if not np.isfinite(row.numpy()).all():  # one look is enough as long as all are
                self.check_finite(row[:, :-3].numpy(), "an observation")
                self.check_finite(row[:, -3].numpy(), "a reward")
            row = row.to(self.device)
        return row[:, :-3], row[:, -3], row[:, -2], row[:, -1]

    def tick(self, metrics, optimizer):
        """After an update: log; save on time, at the end, or at a signal, which then ends the program."""
        args, ended, self.seconds = self.args, self.step >= self.args.total_timesteps, time.perf_counter() - self.began
        stop = 0 if ended else len(self.signals)  # what has ended is not stopped
        stop = int(all_sum(torch.tensor(stop, device=self.device))) if self.ranks > 1 else stop
        save = ended or stop or self.step - self.saved >= args.checkpoint_every
        log = ended or self.step - self.logged >= args.total_timesteps / 500
        tags = {}
        if self.tensors:
            metrics = {"largest_observation": self.largest[:-3].amax(), "largest_reward": self.largest[-3]} | metrics
        if metrics and (log or save):
            tags = dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))
        for name, value in tags.items():
            self.check_finite(value, name)
        if self.rank == 0 and log:
            self.logged, tags = self.step, {f"losses/{name}": value for name, value in tags.items()}
            tags |= {"charts/learning_rate": optimizer.param_groups[0]["lr"], "charts/SPS": self.step / self.seconds}
            for name, queue in (("return", self.envs.return_queue), ("length", self.envs.length_queue)):
                mean = torch.as_tensor(queue).cpu().double().nanmean().item()  # NaN: no episode has ended yet
                tags |= {} if np.isnan(mean) else {f"charts/episodic_{name}": mean}
            for tag, value in tags.items():
                self.writer.add_scalar(tag, value, self.step)
            mean = tags.get("charts/episodic_return")
            self.bar.set_postfix_str("no episode has ended" if mean is None else f"return {mean:.1f}", refresh=False)
            self.bar.update(min(self.step, args.total_timesteps) - self.bar.n)
        if save:
            weights = nn.utils.parameters_to_vector(self.parts["agent"].parameters())
            self.check_finite(weights.numpy(force=True), "a weight")
            self.save()
            if self.rank == 0 and not ended and not stop:
                returns = evaluate(self.parts["agent"], args, args.eval_episodes, args.seed, signals=self.signals)
                if len(self.signals) < 2:
                    self.writer.add_scalar("charts/eval_return", returns.mean(), self.step)
                self.writer.flush()
        if stop:
            if self.rank == 0:
                self.bar.close()
                print(f"stopped at step {self.step}: python {SCRIPT}.py --resume {self.folder}", file=sys.stderr)
            sys.exit(128 + [*self.signals, signal.SIGTERM][0])

    def save(self):
        """Replace the checkpoint at once, whole; what follows is a new segment, as it will be after --resume."""
        self.saved, self.new_segment = self.step, True
        of_ranks = [{name: part.state_dict() for name, part in self.parts.items()}] * self.ranks
        if self.ranks > 1:
            distributed.gather_object(of_ranks[0], None if self.rank else of_ranks)
        if self.rank == 0:
            state = {"script": SCRIPT, "step": self.step, "seconds": self.seconds, "others": of_ranks[1:]}
            state["args"] = vars(self.args) | {"resume": "", "evaluate": ""}
            temporary = self.folder / "checkpoint.tmp"
            try:
                with open(temporary, "w+b") as file:  # not put together in memory, which a replay buffer may fill
                    torch.save(state | of_ranks[0], file)
                    file.seek(0)
                    file.write(hashlib.file_digest(file, "sha256").digest())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.folder / "checkpoint.pt")
                self.writer.flush()
            except (OSError, RuntimeError) as error:  # torch.save makes the latter of the former
                reason = error if isinstance(error, OSError) else error.__context__ or error
                temporary.unlink(missing_ok=True)
                refuse(True, f"cannot save at step {self.step}: {reason}; {self.kept()}")

    def finish(self):
        """Evaluate the policy, film it if asked, print the line that other programs read -> agent."""
        args, agent = self.args, self.parts["agent"]
        if self.rank == 0:
            returns = evaluate(agent, args, args.eval_episodes, args.seed, signals=self.signals)
            if not args.evaluate:
                self.bar.close()
                if len(self.signals) > 1:  # it was cut short
                    print(f"trained, not evaluated: python {SCRIPT}.py --evaluate {self.folder}", file=sys.stderr)
                    sys.exit(128 + self.signals[0])
                self.writer.add_scalar("charts/eval_return", returns.mean(), self.step)
                self.writer.close()
            score = f"eval_return={returns.mean():.2f} +/- {returns.std():.2f} ({len(returns)} episodes)"
            speed = f"{self.step} steps | {self.seconds:.1f} s | {self.step / self.seconds:.0f} steps/s"
            print(score, speed, self.folder, sep=" | ")
            if args.capture_video:
                evaluate(agent, args, 1, args.seed, self.folder / "video")
        if distributed.is_initialized():
            distributed.barrier()  # no rank hangs up on another
        return agent


@contextmanager
def signals_given_back():
    """However the block ends, signals do again what they did before it, in a notebook say; a script they just end."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if __name__ == "__main__" else handler)


train, update = signals_given_back()(train), graphed(update)

if __name__ == "__main__":
    sys.path.append(os.getcwd())  # for --env-id module:Id
    train(parse_args())
