# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.11", "gymnasium[classic-control]>=1.2.1", "moviepy", "tensorboard", "tqdm", "tyro"]
# ///
"""Reinforcement learning from human feedback (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155).

1. Supervised fine-tuning (SFT) on film reviews:  minimise  E[-log pi(word | words before)]
2. Reward model r, from noisy comparisons:  minimise  E[-log sigmoid(r(preferred) - r(other))]
3. PPO:  maximise  E[r(review) - beta KL],  KL = sum of log(pi / pi_ref) over words, pi_ref = SFT's

    Simulated people like kind words, no repetition, good grammar: this is called gold.
    Training sees only their noisy comparisons; evaluations measure gold itself, as eval_return.

    python rlhf.py
    ... --beta 0    (then the score rises, and gold falls)
    ... --evaluate runs/FOLDER --prompt "the film was"

Shapes: L words are a review: P a prompt, T = L - P a response; N reviews are a rollout, B a batch.
"""

import hashlib
import json
import math
import os
import random
import signal
import sys
import time
from contextlib import ExitStack, closing
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

NAME = "rlhf"


@dataclass
class Args:
    env_id: str = "Reviews"  # there is only this one
    env_kwargs: str = "{}"  # its keyword arguments, as JSON
    prompt: str = ""  # words that evaluations start from, such as: the film was
    num_envs: int = 128  # N, responses in a rollout
    sft_steps: int = 600  # updates of stage 1
    reward_steps: int = 400  # updates of stage 2
    total_timesteps: int = 100_000  # steps of stage 3, PPO: a word each, and one to reset
    batch_size: int = 64  # reviews, or pairs of them, in an update of stages 1 and 2
    learning_rate: float = 1e-3  # step size of Adam
    beta: float = 0.1  # weight of the KL penalty
    group_size: int = 1  # G > 1: G responses to a prompt instead of a critic (GRPO)
    gae_lambda: float = 0.95  # lambda: 0 is the TD error, 1 all rewards of the rollout
    num_minibatches: int = 4  # minibatches in an epoch
    update_epochs: int = 4  # passes over each rollout
    clip_coef: float = 0.2  # eps, how far the ratio may move from 1
    max_grad_norm: float = 1.0  # gradients longer than this are shortened
    hidden_size: int = 64  # width of the transformers of 2 layers, 4 heads
    seed: int = 1  # the same seed gives the same bits on a CPU
    device: str = "auto"  # cpu, cuda, mps or auto
    num_threads: int = 1  # CPU threads of torch
    matmul_precision: str = "highest"  # highest, high or medium
    compile: bool = False  # slower start, faster run
    checkpoint_every: int = 200_000  # steps between checkpoints
    eval_episodes: int = 256  # responses of an evaluation; 0 for none
    capture_video: bool = False  # refused: text cannot be filmed
    resume: str = ""  # continue this folder's run; flags given now win
    evaluate: str = ""  # evaluate this folder's run


# The grammar. For each class of words: the words, and the probability of each class to follow.
GRAMMAR = {
    "start": ("the this that its", {"subject": 1}),
    "subject": ("film plot acting music ending dialogue cast script camera pacing humour costume", {"was": 1}),
    "was": ("was", {"adverb": 1 / 2, "nice": 1 / 6, "harsh": 1 / 6, "plain": 1 / 6}),
    "adverb": ("quite really rather very", {"nice": 1 / 3, "harsh": 1 / 3, "plain": 1 / 3}),
    "nice": ("wonderful delightful superb charming brilliant moving", {"join": 1}),
    "harsh": ("dull tedious clumsy awful bland noisy", {"join": 1}),
    "plain": ("long quiet slow french early loud", {"join": 1}),
    "join": ("and but", {"start": 1}),
}
CLASS = {word: name for name, (words, _) in GRAMMAR.items() for word in words.split()}
WORDS = list(CLASS)
L, P, W = 16, 3, len(WORDS)
IS = {name: torch.tensor([float(CLASS[word] == name) for word in WORDS]) for name in GRAMMAR}  # 1 for its words
# P(next word | word) (W, W), and all prompts, such as "the film was" (., P). A quarter is for evaluations.
CHAIN = torch.stack([sum(p * IS[k] / IS[k].sum() for k, p in GRAMMAR[CLASS[word]][1].items()) for word in WORDS])
PROMPTS = torch.tensor([[i, j, WORDS.index("was")] for i in range(4) for j in IS["subject"].nonzero().flatten()])
HELD_OUT = torch.arange(len(PROMPTS)) % 4 == 0


def reviews(n):
    """Reviews as people write them: a Markov chain -> (n, L)"""
    words = IS["start"].multinomial(n, replacement=True)[:, None]
    while words.shape[1] < L:
        words = torch.cat([words, CHAIN[words[:, -1]].multinomial(1)], 1)
    return words


def gold(words):
    """How people like reviews (B, L): nice words less harsh ones, repetitions and breaks of the grammar -> (B,)"""
    count = nn.functional.one_hot(words, W).sum(1).float()
    repeated = (count - 1).clamp(min=0) @ (IS["subject"] + IS["nice"] + IS["harsh"] + IS["plain"])
    breaks = (CHAIN[words[:, :-1], words[:, 1:]] == 0).sum(1)
    return count.clamp(max=1) @ (IS["nice"] - IS["harsh"]) - repeated / 2 - breaks


class Reviews(gym.vector.VectorEnv):
    """Write reviews: an observation (N, L) is the words so far, then -1; an action the next word. Ends pay gold."""

    def __init__(self, num_envs, prompts, group_size, show):
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
        self.num_envs, self.prompts, self.group_size, self.show = num_envs, prompts, group_size, show
        self.single_observation_space, self.single_action_space = Box(-1, W - 1, (L,)), Discrete(W)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        drawn = self.np_random.integers(len(self.prompts), size=self.num_envs // self.group_size)
        prompts = self.prompts[drawn].repeat_interleave(self.group_size, 0)
        self.words = nn.functional.pad(prompts, (0, L - prompts.shape[1]), value=-1)
        return self.words.numpy().astype(np.float32), {}

    def step(self, action):
        reward, ended, never = np.zeros(self.num_envs), np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        length = int((self.words[0] >= 0).sum())
        if length == L:  # the step after an episode's end only resets
            return self.reset()[0], reward, ended, never, {}
        self.words[:, length] = torch.as_tensor(action)
        if length == L - 1:
            reward, ended = gold(self.words).numpy(), ~ended
            if self.show:
                print(*map(text, self.words[:8]), sep="\n")
        return self.words.numpy().astype(np.float32), reward, ended, never, {}


def text(words):
    return " ".join(WORDS[i] for i in words)


def make_vec(args, num_envs, training):
    """Environments. Evaluations start from --prompt, or from prompts that stages 2 and 3 do not have."""
    require(args.env_id == "Reviews" and not args.capture_video, "there is only Reviews, and no film of it")
    prompt = [WORDS.index(word) if word in WORDS else -1 for word in args.prompt.split()]
    require(-1 not in prompt and len(prompt) < L, f"--prompt takes less than {L} of these words: {' '.join(WORDS)}")
    if training:
        return Reviews(num_envs, PROMPTS[~HELD_OUT], args.group_size, show=False)
    torch.manual_seed(args.seed)  # the same policy then writes the same
    return Reviews(num_envs, torch.tensor([prompt]) if prompt else PROMPTS[HELD_OUT], 1, show=args.evaluate != "")


class Transformer(nn.Module):
    """A causal transformer: words (B, l) -> (B, l, outputs). The output at a word depends on the words up to it."""

    def __init__(self, outputs, args):
        super().__init__()
        D = args.hidden_size
        layer = nn.TransformerEncoderLayer(D, 4, 4 * D, 0.0, "gelu", batch_first=True, norm_first=True)
        layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(D), enable_nested_tensor=False)
        self.body = nn.ModuleDict({"word": nn.Embedding(W, D), "place": nn.Embedding(L, D), "layers": layers})
        self.head = nn.Linear(D, outputs)

    def forward(self, words):
        x = self.body["word"](words) + self.body["place"].weight[: words.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1], words.device)
        return self.head(self.body["layers"](x, mask, is_causal=True))

    @torch.no_grad()
    def write(self, words, length=L):
        """Continue words (B, l) by samples -> (B, length)"""
        while words.shape[1] < length:
            words = torch.cat([words, self(words)[:, -1].softmax(-1).multinomial(1)], 1)
        return words


class Agent(nn.Module):
    """Policy pi, reference pi_ref, reward model r, critic V, and the reviews that people compare."""

    def __init__(self, envs, args):
        super().__init__()
        self.policy, self.reference = Transformer(W, args), Transformer(W, args)
        self.reward_model, self.critic = Transformer(1, args), Transformer(1, args)
        for name, value in (("stage", 1), ("score_mean", 0.0), ("score_std", 1.0), ("pool", [[0] * L] * 36 * 128)):
            self.register_buffer(name, torch.tensor(value))

    def log_prob(self, model, words):
        """log pi(word | words before) and the entropy there, for the responses in words (B, L) -> (B, T) twice"""
        log_probs = model(words[:, :-1])[:, P - 1 :].log_softmax(-1)
        return log_probs.gather(-1, words[:, P:, None]).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)

    def value(self, words):
        """V before each word of the responses in words (B, L) -> (B, T)"""
        return self.critic(words[:, :-1])[:, P - 1 :, 0]

    def score(self, words):
        """r of reviews (B, L), in stage 3 the reference's have mean 0, deviation 1 -> (B,)"""
        return (self.reward_model(words)[:, -1, 0] - self.score_mean) / self.score_std

    def act(self, obs, greedy=False):
        """The next word (N,) for obs (N, L): sampled, in evaluations too."""
        words = obs[:, obs[0] >= 0].long()
        return self.policy.write(words, words.shape[1] + 1)[:, -1]


def compare(pool, n):
    """People compare n pairs: they prefer a to b with probability sigmoid(gold(a) - gold(b)); (., L) -> (2, n, L)"""
    a, b = pool[torch.randint(len(pool), (2, n))]
    prefer_a = torch.bernoulli((gold(a) - gold(b)).sigmoid()).bool()[:, None]
    return torch.stack([torch.where(prefer_a, a, b), torch.where(prefer_a, b, a)])


def sft_loss(agent, words, args):
    """E[-log pi(word | words before)] of reviews (B, L) -> (), and metrics."""
    total = nn.functional.cross_entropy(agent.policy(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())
    return total, {"sft_loss": total}


def reward_loss(agent, batch, args):
    """E[-log sigmoid(r(preferred) - r(other))] (Bradley and Terry 1952) of pairs (2, B, L) -> (), and metrics."""
    margin = agent.score(batch[0]) - agent.score(batch[1])
    total = -nn.functional.logsigmoid(margin).mean()
    return total, {"reward_loss": total, "accuracy": (margin > 0).float().mean()}


def word_rewards(score, log_prob, ref_log_prob, beta):
    """-beta log(pi / pi_ref) for each word, and the score for the last (RLHF eq. 2); (B,), (B, T) twice -> (B, T)"""
    reward = -beta * (log_prob - ref_log_prob)
    reward[:, -1] += score
    return reward


def group_advantage(returns, G):
    """(Return - mean) / deviation in each group of G (GRPO, arXiv:2402.03300); (N,) -> (N,)"""
    groups = returns.view(-1, G)  # RLOO (arXiv:2402.14740): less the others' mean, undivided
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-8)).flatten()


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
    """The loss of responses: words (B, L), the rest (B, T) -> (), and metrics. Prompts take no gradient."""
    words, advantage, returns, old_log_prob = batch
    if args.group_size == 1:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_prob, entropy = agent.log_prob(agent.policy, words)
    l_policy = policy_loss(log_prob, old_log_prob, advantage, args.clip_coef)
    l_value = value_loss(agent.value(words), returns) if args.group_size == 1 else 0 * l_policy
    metrics = {"policy_loss": l_policy, "value_loss": l_value, "entropy": entropy.mean()}
    return l_policy + 0.5 * l_value, metrics


def fit(run, agent, optimizer, loss, draw, end, args):
    """Stages 1 and 2: update on one new batch after the other."""
    while run.step < end:
        if run.needs_reset:  # at first, and after a checkpoint
            run.reset()
        batch = draw().to(run.device)
        optimizer.zero_grad()
        metrics = run.backward(loss, agent, batch, args)
        optimizer.step()
        run.step += batch.numel() * run.ranks
        if run.rank == 0:
            run.bar.set_description_str(f"stage {agent.stage}", refresh=False)
        run.log_and_save(metrics, optimizer)


def ppo(run, agent, optimizer, args):
    """Stage 3: write N responses, score them, update; repeat."""
    while run.step < run.total:
        # Act.
        if run.needs_reset:
            obs = run.reset()
        for _ in range(L - P):
            action = agent.act(obs)
            obs, liking, _, _ = run.env_step(action)
        words = obs.long()
        obs = run.env_step(action)[0]  # the step after an episode's end only resets

        # Targets. Training sees only the score; gold is for the log.
        with torch.no_grad():
            log_prob, ref_log_prob = (agent.log_prob(model, words)[0] for model in (agent.policy, agent.reference))
            score, value = agent.score(words), agent.value(words)
            reward = word_rewards(score, log_prob, ref_log_prob, args.beta)
            never = torch.zeros_like(reward.T)  # no flags: V after the last word is padded with 0
            advantage = gae(reward.T, nn.functional.pad(value, (0, 1)).T, never, never, 1, args.gae_lambda).T
            if args.group_size > 1:
                advantage = group_advantage(reward.sum(1), args.group_size)[:, None].expand_as(reward)
            rollout = words, advantage, advantage + value, log_prob

        # Update.
        for _ in range(args.update_epochs):
            for index in torch.randperm(len(words), device=run.device).tensor_split(args.num_minibatches):
                agent.zero_grad()  # stage 2's too, for clipping
                metrics = run.backward(loss, agent, [x[index] for x in rollout], args)
                metrics["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        metrics |= {"score": score.mean(), "gold": liking.mean(), "kl": (log_prob - ref_log_prob).sum(1).mean()}
        if run.rank == 0:
            shown = [f"{name} {metrics[name]:.2f}" for name in ("score", "gold", "kl", "entropy")]
            run.bar.set_description_str(f"stage 3, {', '.join(shown)}", refresh=False)
        run.log_and_save(metrics, optimizer)


def learn(run, args):
    """The three stages. A step is a word of a batch in stages 1 and 2, an action in stage 3."""
    fits = args.num_envs % args.group_size == args.hidden_size % 4 == 0 and args.num_minibatches <= args.num_envs
    require(fits, "--num-envs: a multiple of --group-size, not below --num-minibatches; --hidden-size: a multiple of 4")
    agent = Agent(run.envs, args).to(run.device)
    policy, reward_model, critic = (list(m.parameters()) for m in (agent.policy, agent.reward_model, agent.critic))
    sft, rm, rl = (
        torch.optim.Adam(part, lr=args.learning_rate, fused=True) for part in (policy, reward_model, policy + critic)
    )
    second = args.sft_steps * args.batch_size * L * run.ranks
    third = second + 2 * args.reward_steps * args.batch_size * L * run.ranks
    run.total = third + args.total_timesteps
    run.start(agent=agent, sft=sft, rm=rm, rl=rl)
    if agent.stage == 1:
        fit(run, agent, sft, sft_loss, lambda: reviews(args.batch_size), second, args)
        run.reset()
        agent.reference.load_state_dict(agent.policy.state_dict())
        for model in (agent.reward_model, agent.critic):
            model.body.load_state_dict(agent.policy.body.state_dict())
        agent.pool.copy_(agent.reference.write(PROMPTS[~HELD_OUT].repeat(128, 1).to(run.device)))
        agent.stage.fill_(2)
    if agent.stage == 2:
        fit(run, agent, rm, reward_loss, lambda: compare(agent.pool.cpu(), args.batch_size), third, args)
        with torch.no_grad():
            scores = agent.reward_model(agent.pool)[:, -1, 0]
        rank_mean(agent.score_mean.copy_(scores.mean()), agent.score_std.copy_(scores.std()))
        agent.stage.fill_(3)
        run.needs_reset = True
    ppo(run, agent, rl, args)
    if run.rank == 0:
        for name, model in (("before PPO", agent.reference), ("after PPO", agent.policy)):
            samples = "\n".join(map(text, model.write(PROMPTS[HELD_OUT][:5].to(run.device))))
            run.writer.add_text(name, samples, run.step)
            run.bar.write(f"{name}:\n{samples}")


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
