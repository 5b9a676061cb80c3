"""What the tests share: the table of scripts, how to run one, how to read what it leaves."""

import contextlib
import hashlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]


@dataclass(frozen=True)
class Script:
    """A script's row: two environments, flags of a small run, steps between two of its updates, its tags, what to film.

    REINFORCE plays whole episodes, so that its environments here, and all probes that it is run on, end after 7 steps.
    """

    env_ids: tuple
    short: tuple
    period: int
    losses: tuple
    film: str = "CartPole-v1"


SHORT = "--num-envs 2 --hidden-size 8 --eval-episodes 2"
WHOLE_EPISODES = ("probes:CartPole7-v0", "probes:Pendulum7-v0")
SCRIPTS = {
    "reinforce": Script(
        env_ids=WHOLE_EPISODES,
        short=shlex.split(SHORT),
        period=14,
        losses=("policy_loss", "entropy"),
    ),
    "reinforce_baseline": Script(
        env_ids=WHOLE_EPISODES,
        short=shlex.split(SHORT),
        period=14,
        losses=("policy_loss", "value_loss", "entropy", "explained_variance"),
    ),
    "a2c": Script(
        env_ids=("CartPole-v1", "Pendulum-v1"),
        short=shlex.split(f"{SHORT} --num-steps 16"),
        period=32,
        losses=("policy_loss", "value_loss", "entropy", "explained_variance"),
    ),
    "ppo": Script(
        env_ids=("CartPole-v1", "Pendulum-v1"),
        short=shlex.split(f"{SHORT} --num-steps 16 --num-minibatches 2 --update-epochs 2"),
        period=32,
        losses=("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac", "explained_variance"),
    ),
    "trpo": Script(
        env_ids=("CartPole-v1", "Pendulum-v1"),
        short=shlex.split(f"{SHORT} --num-steps 16 --vf-epochs 2"),
        period=32,
        losses=("surrogate", "kl", "value_loss", "explained_variance"),
    ),
}

REPLAY = shlex.split(f"{SHORT} --batch-size 8 --learning-starts 1")
OFF_POLICY = ("ddpg", "td3", "sac")
BY_PROCESS = ("ppo", "td3")  # of either family one, for what takes a process and is the same bytes in all seven
for name in OFF_POLICY:
    SCRIPTS[name] = Script(
        env_ids=("probes:Pendulum7-v0", "Pendulum-v1"),
        short=REPLAY,
        period=2,
        losses=("qf_loss", "qf_values", "actor_loss", *(("alpha", "entropy") if name == "sac" else ())),
        film="probes:Pendulum7-v0",
    )

# a3c.py trains in other processes, where the tests cannot look; tests/runs/test_a3c.py has most of its own.
A3C = Script(
    env_ids=("CartPole-v1", "Pendulum-v1"),
    short=shlex.split(f"{SHORT} --num-steps 16"),
    period=32,
    losses=(*SCRIPTS["a2c"].losses, "staleness"),
)
# rlhf.py has one environment, and stages; tests/runs/test_rlhf.py has most of its own.
RLHF = Script(
    env_ids=("Reviews", "Reviews"),
    short=shlex.split("--num-envs 4 --hidden-size 8 --sft-steps 2 --reward-steps 2 --batch-size 4 --eval-episodes 2"),
    period=56,
    losses=("sft_loss", "reward_loss", "accuracy", "policy_loss", "value_loss", "entropy", "score", "gold", "kl"),
)
# ppo_atari.py takes images alone; tests/runs/test_ppo_atari.py has most of its own.
PIXELS = Script(
    env_ids=("games:Catch-v0", "games:Steer-v0"),
    short=shlex.split("--num-envs 2 --num-steps 16 --num-minibatches 2 --update-epochs 2 --eval-episodes 2"),
    period=32,
    losses=SCRIPTS["ppo"].losses,
)
ALL = SCRIPTS | {"a3c": A3C, "rlhf": RLHF, "ppo_atari": PIXELS}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LAST_LINE = re.compile(
    r"eval_return=(?P<mean>-?\d+\.\d\d|nan) \+/- (?P<deviation>\d+\.\d\d|nan) \((?P<episodes>\d+) episodes\)"
    r" \| (?P<steps>\d+) steps \| (?P<seconds>\d+\.\d) s \| (?P<speed>\d+) steps/s"
    r" \| (?P<folder>runs/(?P<env_id>[^ ]+)__(?P<script>\w+)__(?P<seed>\d+)__(?P<time>\d{10}))"
)


@dataclass(frozen=True)
class Result:
    mean: float
    deviation: float
    episodes: int
    steps: int
    seconds: float
    speed: float
    folder: Path


def last_line(stdout):
    """The line that other programs read: the last on standard output, and of its exact form."""
    lines = stdout.splitlines()
    assert lines, "nothing on standard output"
    match = LAST_LINE.fullmatch(lines[-1])
    assert match, f"not of the form that other programs read: {lines[-1]}"
    return Result(*(kind(match[name]) for name, kind in Result.__annotations__.items()))


def environment():
    """The tests' own environments are importable as probes:Id; one thread for each process."""
    return os.environ | {"PYTHONPATH": str(HELPERS), "OMP_NUM_THREADS": "1"}


def start(script, *flags, cwd, launcher=(), **kwargs):
    """A script's process, started by its command line."""
    command = [sys.executable, *launcher, str(ROOT / f"{script}.py"), *map(str, flags)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True, **kwargs)


def run(script, *flags, cwd, launcher=(), timeout=150):
    """Run a script to its end by its command line -> exit status, standard output, standard error."""
    process = start(script, *flags, cwd=cwd, launcher=launcher)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def run_ok(script, *flags, cwd, **kwargs):
    """Run a script that must succeed -> the result that its last line gives."""
    status, stdout, stderr = run(script, *flags, cwd=cwd, **kwargs)
    assert status == 0, f"{script} {flags} ended with {status}: {stderr}"
    return last_line(stdout)


def parse(script, *flags):
    """The Args that a command line gives, without starting a process."""
    module, words = importlib.import_module(script), [str(flag) for flag in flags]
    args = tyro.cli(module.Args, args=words)
    if folder := args.resume or args.evaluate:
        args = tyro.cli(module.Args, default=module.read(folder)["args"], args=words)
    return args


def train(script, *flags):
    """Run a script in this process, in the working folder -> the agent, and the result on its last line."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        agent = importlib.import_module(script).train(parse(script, *flags), merge=False)
    return agent, last_line(stdout.getvalue())


def end(script, *flags):
    """Run a script's main in this process -> exit status, standard output, standard error."""
    module, stdout, stderr = importlib.import_module(script), io.StringIO(), io.StringIO()
    argv, status = [f"{script}.py", *map(str, flags)], 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), mock.patch.object(sys, "argv", argv):
        try:
            module.main()
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            module.Run.signal = 0
    return status, stdout.getvalue(), stderr.getvalue()


def checkpoint(folder):
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)


def write_checkpoint(path, content):
    """As the scripts do: what torch saves of it, or bytes as they are, and then their SHA-256."""
    file = io.BytesIO(content if isinstance(content, bytes) else b"")
    if not isinstance(content, bytes):
        torch.save(content, file)
    Path(path).write_bytes(file.getvalue() + hashlib.sha256(file.getvalue()).digest())


def differences(one, other, path=""):
    """The places at which two nests of dicts, lists and tensors are not the same bits."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [place for key in one for place in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for index, pair in pairs for place in differences(*pair, f"{path}/{index}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    return [] if one == other else [path]


def state(folder):
    """What a checkpoint holds of the run itself: all but the clock and the flags."""
    return {name: part for name, part in checkpoint(folder).items() if name not in ("seconds", "args")}


def scalars(folder):
    """TensorBoard's events of a run: tag -> [(step, value), ...]."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def page_blocks(text, *languages):
    """A page's fenced code blocks of these languages, in order."""
    blocks = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S)
    return [block for language, block in blocks if language in languages]


def page_commands(text):
    """The commands of a page's shell blocks, each a list of words; lines that end in a backslash are joined."""
    commands = []
    for block in page_blocks(text, "sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.removeprefix("$ ").split("&&"):
                if words := shlex.split(part, comments=True):
                    commands.append(words)
    return commands
