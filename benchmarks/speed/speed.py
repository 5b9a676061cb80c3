"""Side by side with Stable-Baselines3 and SBX: steps per second at equal sizes, and seconds until solved.

    python benchmarks/speed/speed.py
    python benchmarks/speed/speed.py --threads 2 --only ppo-equal-sizes --sides eager stable_baselines3
    python benchmarks/speed/speed.py --draw

Whole processes take turns (A B C D A B C D ...), so that what else the machine does falls on all; a ratio is the median
over the turns of ours / theirs. A process has as many cores as threads. --draw writes the tables of docs/results.md,
and measures nothing.
"""

import json
import math
import os
import re
import shlex
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

# Sides, and the flags that they add to our script
OURS = {"eager": "", "compiled": "--compile", "old": ""}  # old: the scripts of another commit, by --old
PEERS = {"stable_baselines3": "stable_baselines3", "sbx": "sbx-rl"}  # sides by module, and the packages' names
SIDES = (*OURS, *PEERS)
COLUMNS = (
    "comparison",
    "side",
    "seed",
    "threads",
    "device",
    "steps",
    "seconds",
    "steps_per_second",
    "second_half_steps_per_second",
    "startup_seconds",
    "solved_at_steps",
    "solved_seconds",
    "peak_rss_mb",
    "sbx",
    *common.PROVENANCE,
)


@dataclass
class Args:
    repeats: int = 3  # turns of the comparisons of steps per second; turn i has seed i
    seeds: str = "1-3"  # seeds, each a turn, of the comparisons of time to solved: 1-5 or 1,3,7-9
    threads: Literal[0, 1, 2] = 0  # threads and cores of a process; 0: what the comparison has
    device: Literal["cpu", "cuda"] = "cpu"  # where networks live; SBX takes turns on the CPU alone
    steps: int = 0  # environment steps of a run that compares steps per second; 0: what the comparison has
    only: tuple[str, ...] = ()  # names of the comparisons to run; none: all
    sides: tuple[Literal["eager", "compiled", "old", "stable_baselines3", "sbx"], ...] = SIDES  # who takes turns
    old: Path | None = None  # a checkout of another commit, whose scripts take turns as the side "old"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of every side but old and SBX
    out: Path = common.RESULTS / "speed.csv"  # table of all runs; rows of the same comparison are replaced
    draw: bool = False  # write the tables of docs/results.md from --out and stop


@dataclass
class Comparison:
    name: str  # as --only and the table call it
    script: str  # ours
    flags: str  # its flags, beyond seed, threads, device
    peer: dict  # theirs: algorithm, environment, steps, and flags as the zoo has them
    solved: float | None = None  # mean return of 20 training episodes to reach; None: compare steps per second
    threads: int = 1  # of a process on either side


# https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ppo.yml
PPO_CARTPOLE = {
    "env_id": "CartPole-v1",
    "num_envs": 8,
    "steps": 100_000,
    "flags": {
        "policy": "MlpPolicy",
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": "lin_0.001",
        "clip_range": "lin_0.2",
    },
}
PPO_SAME = (
    "--env-id CartPole-v1 --num-envs 8 --num-steps 32 --num-minibatches 1 --update-epochs 20 --hidden-size 64"
    " --gamma 0.98 --gae-lambda 0.8 --learning-rate 1e-3 --anneal-lr --clip-coef 0.2 --ent-coef 0"
)
# https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/a2c.yml; 5 steps and rate 7e-4 are its defaults
A2C_CARTPOLE = {
    "env_id": "CartPole-v1",
    "num_envs": 8,
    "steps": 500_000,
    "flags": {"policy": "MlpPolicy", "ent_coef": 0.0},
}
A2C_SAME = (
    "--env-id CartPole-v1 --num-envs 8 --num-steps 5 --hidden-size 64 --gamma 0.99 --gae-lambda 1 --no-norm-adv"
    " --learning-rate 7e-4 --no-anneal-lr --ent-coef 0 --max-grad-norm 0.5"
)
# The zoo's TRPO has 1,024 steps an update and 0.98 as lambda; here in 8 environments, the value's batch is the rollout
TRPO_CARTPOLE = {
    "package": "sb3_contrib",
    "env_id": "CartPole-v1",
    "num_envs": 8,
    "steps": 100_000,
    "flags": {
        "policy": "MlpPolicy",
        "n_steps": 128,
        "batch_size": 1024,
        "gae_lambda": 0.98,
        "cg_max_steps": 10,
        "n_critic_updates": 20,
    },
}
TRPO_SAME = (
    "--env-id CartPole-v1 --num-envs 8 --num-steps 128 --hidden-size 64 --gamma 0.99 --gae-lambda 0.98"
    " --learning-rate 1e-3 --cg-iters 10 --cg-damping 0.1 --max-kl 0.01 --backtrack-iters 10 --vf-epochs 20"
)
# https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ppo.yml; the defaults of ppo_atari.py are the same
PPO_ATARI = {
    "env_id": "ale_py:PongNoFrameskip-v4",
    "atari": True,
    "num_envs": 8,
    "steps": 20_480,
    "flags": {
        "policy": "CnnPolicy",
        "n_steps": 128,
        "batch_size": 256,
        "n_epochs": 4,
        "learning_rate": "lin_2.5e-4",
        "clip_range": "lin_0.1",
        "ent_coef": 0.01,
        "vf_coef": 0.5,
    },
}
REPLAY = {
    "env_id": "Pendulum-v1",
    "num_envs": 1,
    "steps": 6000,
    "flags": {
        "policy": "MlpPolicy",
        "policy_kwargs": {"net_arch": [256, 256]},
        "learning_rate": 1e-3,
        "batch_size": 256,
        "buffer_size": 1_000_000,
        "learning_starts": 1000,
        "train_freq": 1,
        "gradient_steps": 1,
        "gamma": 0.99,
        "tau": 0.01,
    },
}
REPLAY_SAME = (
    "--env-id Pendulum-v1 --num-envs 1 --hidden-size 256 --batch-size 256 --buffer-size 1000000 --learning-starts 1000"
    " --utd 1 --gamma 0.99 --tau 0.01"
)
# https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ddpg.yml, td3.yml and sac.yml
ZOO_PENDULUM = {
    "policy": "MlpPolicy",
    "learning_rate": 1e-3,
    "gamma": 0.98,
    "buffer_size": 200_000,
    "learning_starts": 10_000,
    "train_freq": 1,
    "gradient_steps": 1,
    "policy_kwargs": {"net_arch": [400, 300]},
    "noise_std": 0.1,
}
PENDULUM = {"env_id": "Pendulum-v1", "num_envs": 1, "steps": 20_000}
REPLAY_SOLVED = {
    "ddpg": PENDULUM | {"flags": ZOO_PENDULUM},
    "td3": PENDULUM | {"flags": ZOO_PENDULUM},
    "sac": PENDULUM | {"flags": {"policy": "MlpPolicy", "learning_rate": 1e-3}},
}
# Until solved: ours by flags picked for that, PPO's on seeds 1-12, and of the last three, which learn Pendulum-v1 with
# small networks too, on seeds 1-3 (their steps have room for 20 episodes after that)
SMALL = "--hidden-size 64 --batch-size 128 --total-timesteps 10000"
OURS_SOLVED = {
    "ppo": "--num-envs 16 --num-steps 64 --learning-rate 5e-3 --gamma 0.98 --total-timesteps 60000",
    "a2c": "",
    "ddpg": f"{SMALL} --exploration-noise 0.1",
    "td3": f"{SMALL} --exploration-noise 0.1",
    "sac": f"{SMALL} --utd 0.5",
}
# The peers by their zoo's flags, and by ours: these are OURS_SOLVED and our defaults in their words
THEIRS_SOLVED = {"ppo": PPO_CARTPOLE, "a2c": A2C_CARTPOLE} | REPLAY_SOLVED
SMALL_PEER = {"policy_kwargs": {"net_arch": [64, 64]}, "batch_size": 128}
SAME = {
    "ppo": {"n_steps": 64, "n_epochs": 5, "learning_rate": "lin_0.005", "gae_lambda": 0.95, "clip_range": 0.2},
    "a2c": {"n_steps": 16, "learning_rate": "lin_0.003"},
    "ddpg": SMALL_PEER | {"noise_std": 0.1},
    "td3": SMALL_PEER | {"noise_std": 0.1},
    "sac": SMALL_PEER | {"train_freq": 2},
}
SAME_SOLVED = {
    "ppo": PPO_CARTPOLE | {"num_envs": 16, "steps": 60_000, "flags": PPO_CARTPOLE["flags"] | SAME["ppo"]},
    "a2c": A2C_CARTPOLE | {"num_envs": 32, "steps": 400_000, "flags": A2C_CARTPOLE["flags"] | SAME["a2c"]},
} | {name: REPLAY | {"steps": 10_000, "flags": REPLAY["flags"] | SAME[name]} for name in REPLAY_SOLVED}
COMPARISONS = [
    Comparison("ppo-equal-sizes", "ppo.py", PPO_SAME, PPO_CARTPOLE | {"algorithm": "PPO"}),
    Comparison("trpo-equal-sizes", "trpo.py", TRPO_SAME, TRPO_CARTPOLE | {"algorithm": "TRPO"}),
    Comparison("ppo_atari-equal-sizes", "ppo_atari.py", "--eval-episodes 1", PPO_ATARI | {"algorithm": "PPO"}),
    Comparison("a2c-equal-sizes", "a2c.py", A2C_SAME, A2C_CARTPOLE | {"algorithm": "A2C"}),
    *[
        Comparison(f"{name}-equal-sizes", f"{name}.py", REPLAY_SAME, REPLAY | {"algorithm": name.upper()}, threads=2)
        for name in REPLAY_SOLVED
    ],
]
for name, flags in OURS_SOLVED.items():
    threshold, threads = (-200, 2) if name in REPLAY_SOLVED else (475, 1)
    for ending, peers in (("solved", THEIRS_SOLVED), ("same-flags-solved", SAME_SOLVED)):
        peer = peers[name] | {"algorithm": name.upper()}
        COMPARISONS.append(Comparison(f"{name}-{ending}", f"{name}.py", flags, peer, threshold, threads))
NEW = ("trpo.py", "ppo_atari.py")
PEER = Path(__file__).parent / "peer.py"


def run(command, folder, threads):
    """Run a whole process on as many cores -> the last line that it printed, its start, and its peak memory (MB)."""
    began = time.time()
    process = common.start(command, folder, cores=threads)
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        common.stop(process)
    if process.returncode:
        error = common.last_line(folder, "stderr")
        common.fail(f"{shlex.join(command[1:])} ended with {process.returncode}: {error}", status=1)
    return common.last_line(folder, "stdout"), began, common.peak_rss_mb(usage)


def run_ours(comparison, side, seed, threads, args):
    """Train our script once -> a row's measurements; its clock runs neither in imports nor in the evaluation."""
    root = args.old.resolve() if side == "old" else common.ROOT
    command = [sys.executable, str(root / comparison.script), *shlex.split(f"{comparison.flags} {OURS[side]}")]
    if side != "old":
        command += ["--matmul-precision", args.matmul_precision]
    command += ["--seed", str(seed), "--num-threads", str(threads), "--device", args.device]
    if comparison.solved is None:
        command += ["--total-timesteps", str(args.steps or comparison.peer["steps"])]
    with tempfile.TemporaryDirectory() as folder:
        line, began, peak = run(command, folder, threads)
        result = common.parse_last_line(line)
        if not result:
            common.fail(f"{comparison.script} ended with an unknown line: {line}", status=1)
        run_folder = Path(folder, result["folder"])
        clock = common.read_clock(run_folder)
        solved = None if comparison.solved is None else common.solved_at(run_folder, comparison.solved)
        steps, rate = result["steps"], result["steps_per_second"]  # the line's seconds have one digit, its rate more
        half = min((step for step in clock if step >= steps / 2), default=None)
        return {
            "steps": steps,
            "seconds": steps / rate,
            "half_steps": half,
            "half_seconds": clock.get(half),
            "startup_seconds": common.training_began(run_folder) - began,
            "solved_at_steps": solved,
            "solved_seconds": clock.get(solved),
            "peak_rss_mb": peak,
        }


def run_theirs(comparison, package, seed, threads, args):
    """Train a peer once -> a row's measurements; where solved is asked for, it stops when it is."""
    steps = (args.steps if comparison.solved is None else 0) or comparison.peer["steps"]
    spec = {"steps": steps, "solved": comparison.solved, "seed": seed, "threads": threads}
    spec |= {"matmul_precision": args.matmul_precision, "device": args.device}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PEER), json.dumps({"package": package} | comparison.peer | spec)]
        line, began, peak = run(command, folder, threads)
    result = json.loads(line)
    return result | {"startup_seconds": result["began"] - began, "peak_rss_mb": peak}


def finish_row(result):
    """A run's measurements -> the columns of its row; the second half's rate only for a run that went to its end."""
    steps, seconds = result["steps"], result["seconds"]
    row = {name: result[name] for name in ("steps", "solved_at_steps")}
    row |= {"seconds": f"{seconds:.3f}", "steps_per_second": f"{steps / seconds:.1f}"}
    if result["solved_seconds"] is not None:
        row["solved_seconds"] = f"{result['solved_seconds']:.3f}"
    elif result["half_steps"] is not None and result["half_steps"] < steps:
        rate = (steps - result["half_steps"]) / (seconds - result["half_seconds"])
        row["second_half_steps_per_second"] = f"{rate:.1f}"
    row["startup_seconds"] = f"{result['startup_seconds']:.3f}"
    return row | {"peak_rss_mb": f"{result['peak_rss_mb']:.1f}"}


def sides_of(comparison, args):
    """Who takes turns. SBX has no A2C and is measured on the CPU; it and the first edition have none of NEW."""
    missing = {"sbx"} if comparison.script in ("a2c.py", *NEW) or args.device == "cuda" else set()
    missing |= {"old"} if args.old is None or comparison.script in NEW else set()
    return [side for side in SIDES if side in args.sides and side not in missing]


def turns(comparison, args):
    """The seeds of a comparison, one for each turn."""
    return common.parse_seeds(args.seeds) if comparison.solved is not None else range(1, args.repeats + 1)


def measure(comparison, args, bar):
    """All runs of a comparison, in turns -> its rows."""
    threads = args.threads or comparison.threads
    rows, origin = [], common.provenance() | {"sbx": common.version("sbx-rl")}
    for seed in turns(comparison, args):
        for side in sides_of(comparison, args):
            bar.set_postfix_str(f"{comparison.name} {side} seed {seed}")
            if side in OURS:
                result = run_ours(comparison, side, seed, threads, args)
            else:
                result = run_theirs(comparison, side, seed, threads, args)
            first = {"comparison": comparison.name, "side": side, "seed": seed, "threads": threads}
            rows.append(first | {"device": args.device} | finish_row(result) | origin)
            bar.update()
    return rows


def values(rows, side, *columns):
    """The sum of columns of one side's rows, by turn; an empty cell (never solved) is infinite."""
    return [sum(float(row[column] or math.inf) for column in columns) for row in rows if row["side"] == side]


def median(numbers, form):
    """As text; empty for no numbers, and for what at least half of the turns did not reach."""
    middle = statistics.median(numbers) if numbers else math.inf
    return format(middle, form) if math.isfinite(middle) else ""


def ratio(mine, theirs):
    """Median of mine / theirs turn by turn, with the smallest and the largest, as text."""
    ratios = [a / b for a, b in zip(mine, theirs, strict=False) if math.isfinite(a) or math.isfinite(b)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def lines_of(rows):
    """Lines of the table of one comparison, one per side; with compilation and imports for time to solved."""
    solved = rows[0]["comparison"].endswith("-solved")
    columns = ("startup_seconds", "solved_seconds") if solved else ("steps_per_second",)
    lines = []
    for side in [side for side in SIDES if values(rows, side, "seed")]:
        mine = values(rows, side, *columns)
        algorithm, _, kind = rows[0]["comparison"].partition("-")
        same = ", same flags" if kind == "same-flags-solved" else ""
        cells = [algorithm.upper() + same, rows[0]["threads"], side]
        if solved:
            steps = values(rows, side, "solved_at_steps")
            cells += [f"{sum(map(math.isfinite, mine))} of {len(mine)}", median(steps, ",.0f"), median(mine, ".1f")]
        else:
            cells += [median(mine, ",.0f"), median(values(rows, side, "second_half_steps_per_second"), ",.0f")]
        others = PEERS if solved else (*PEERS, "old")
        cells += [ratio(mine, values(rows, other, *columns)) if side in OURS else "" for other in others]
        cells += [
            median(values(rows, side, "startup_seconds"), ".1f"),
            median(values(rows, side, "peak_rss_mb"), ".0f"),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def tables(rows):
    """Two tables of all rows: steps per second at equal sizes, and seconds until solved."""
    equal = "| | threads | side | steps/s | second half | / SB3 | / SBX | / old | start, s | peak, MB |"
    solved = "| | threads | side | solved | at step | at s | / SB3 | / SBX | start, s | peak, MB |"
    texts = []
    for ending, header in (("-equal-sizes", equal), ("-solved", solved)):
        lines = [header, "|" + "---|" * (header.count("|") - 1)]
        for comparison in COMPARISONS:
            mine = [row for row in rows if row["comparison"] == comparison.name and comparison.name.endswith(ending)]
            for setting in sorted({(row["threads"], row["device"]) for row in mine}):
                lines += lines_of([row for row in mine if (row["threads"], row["device"]) == setting])
        texts.append("\n".join(lines))
    return texts


def with_tables(readme, rows):
    """The page's text with the tables between its marks."""
    for name, text in zip(("equal sizes", "solved"), tables(rows), strict=True):
        begin, end = f"<!-- speed: {name} -->\n", "\n<!-- end -->"
        readme = re.sub(f"{begin}.*?{end}", lambda _, block=begin + text + end: block, readme, flags=re.S)
    return readme


def main():
    """Measure the comparisons that were asked for, write their rows as each is done, and print the tables."""
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    names = [comparison.name for comparison in COMPARISONS]
    if unknown := [name for name in args.only if name not in names]:
        common.fail(f"--only {unknown[0]}: there are {', '.join(names)}")
    if args.repeats < 1 or args.steps < 0:
        common.fail(f"--repeats {args.repeats} must be 1 or more, and --steps {args.steps} 0 or more")
    chosen = [comparison for comparison in COMPARISONS if not args.only or comparison.name in args.only]
    chosen = [comparison for comparison in chosen if sides_of(comparison, args)]
    if not chosen:
        common.fail(f"--sides {' '.join(args.sides)}: nobody of these is in what --only names")
    rows = common.open_rows(args.out, COLUMNS)  # fails now rather than after the runs
    readme = common.ROOT / "docs" / "results.md"
    if args.draw:
        if not rows:
            common.fail(f"{args.out} has no rows, and docs/results.md keeps its tables")
        readme.write_text(with_tables(readme.read_text(), rows))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    total = sum(len(turns(comparison, args)) * len(sides_of(comparison, args)) for comparison in chosen)
    with tqdm(total=total, unit="run") as bar:
        for comparison in chosen:
            new = measure(comparison, args, bar)
            replaced = (comparison.name, str(args.threads or comparison.threads), args.device)
            kept = [row for row in rows if (row["comparison"], row["threads"], row["device"]) != replaced]
            common.replace_rows(args.out, COLUMNS, kept + new)
            rows = common.read_rows(args.out, COLUMNS)
    mine = [row for row in rows if row["comparison"] in [comparison.name for comparison in chosen]]
    print("\n\n".join(tables(mine)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
