"""Side by side with Stable-Baselines3: steps per second at equal sizes, and seconds until solved at each side's best.

    python benchmarks/speed.py
    python benchmarks/speed.py --threads 2 --compile --only ppo-equal-sizes

Whole processes take turns (A B A B ...), so that what else the machine does falls on both; a ratio is the median over
the turns of ours / theirs. The off-policy scripts' updates are also measured beside their matrix products alone
(floor.py). A new script adds its lines to COMPARISONS.
"""

import json
import math
import os
import shlex
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import common
from tqdm import tqdm

PEER = "stable_baselines3"
COLUMNS = (
    "comparison",
    "side",
    "seed",
    "threads",
    "steps",
    "seconds",
    "steps_per_second",
    "second_half_steps_per_second",
    "solved_at_steps",
    "solved_seconds",
    "peak_rss_mb",
    "update_ms",
    "floor_ms",
    "multiple",
    *common.PROVENANCE,
)


@dataclass
class Args:
    repeats: int = 5  # turns of the comparisons of steps per second; turn i has seed i
    seeds: str = "1-5"  # seeds, each a turn, of the comparisons of time to solved: 1-5 or 1,3,7-9
    threads: Literal[0, 1, 2] = 0  # torch's CPU threads on either side; 0: what the comparison has
    steps: int = 0  # environment steps of a run that compares steps per second; 0: what the comparison has
    compile: bool = False  # our scripts with --compile too, in the comparisons of steps per second
    only: tuple[str, ...] = ()  # names of the comparisons to run; none: all
    out: Path = Path("benchmarks/results/speed.csv")  # table of all runs; rows of the same comparison are replaced


@dataclass
class Comparison:
    name: str  # as --only and the table call it
    script: str  # ours
    flags: str  # its flags, beyond seed, threads, device
    peer: dict  # theirs: package, algorithm, environment, steps, and flags as the zoo has them
    solved: float | None = None  # mean return of 20 training episodes to reach; None: compare steps per second
    threads: int = 1  # torch's CPU threads on either side
    floor: bool = False  # measure our update, too, beside its matrix products alone


# https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/hyperparams/ppo.yml
PPO_CARTPOLE = {
    "package": PEER,
    "algorithm": "PPO",
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
    "package": PEER,
    "algorithm": "A2C",
    "env_id": "CartPole-v1",
    "num_envs": 8,
    "steps": 500_000,
    "flags": {"policy": "MlpPolicy", "ent_coef": 0.0},
}
A2C_SAME = (
    "--env-id CartPole-v1 --num-envs 8 --num-steps 5 --hidden-size 64 --gamma 0.99 --gae-lambda 1 --no-norm-adv"
    " --learning-rate 7e-4 --no-anneal-lr --ent-coef 0 --max-grad-norm 0.5"
)
REPLAY = {
    "package": PEER,
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
COMPARISONS = [
    Comparison("ppo-equal-sizes", "ppo.py", PPO_SAME, PPO_CARTPOLE),
    Comparison("ppo-solved", "ppo.py", "", PPO_CARTPOLE, solved=475),
    Comparison("a2c-equal-sizes", "a2c.py", A2C_SAME, A2C_CARTPOLE),
    Comparison("a2c-solved", "a2c.py", "", A2C_CARTPOLE, solved=475),
    *[
        Comparison(
            f"{name}-equal-sizes", f"{name}.py", REPLAY_SAME, REPLAY | {"algorithm": name.upper()}, None, 2, True
        )
        for name in ("ddpg", "td3", "sac")
    ],
]


def run(command, folder):
    """Run a whole process -> the last line that it printed, and its peak resident memory (MB, 10^6 bytes)."""
    process = common.start(command, folder)
    try:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        common.stop(process)
    if process.returncode:
        error = common.last_line(folder, "stderr")
        common.fail(f"{shlex.join(command[1:])} ended with {process.returncode}: {error}", status=1)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in which the system counts ru_maxrss
    return common.last_line(folder, "stdout"), usage.ru_maxrss * unit / 1e6


def run_ours(comparison, flags, seed, args):
    """Train our script once -> a row's measurements; its clock runs neither in imports nor in the evaluation."""
    command = [sys.executable, str(common.ROOT / comparison.script), *shlex.split(f"{comparison.flags} {flags}")]
    threads = args.threads or comparison.threads
    command += ["--seed", str(seed), "--num-threads", str(threads), "--device", "cpu"]
    if comparison.solved is None:
        command += ["--total-timesteps", str(args.steps or comparison.peer["steps"])]
    with tempfile.TemporaryDirectory() as folder:
        line, peak = run(command, folder)
        result = common.parse_last_line(line)
        if not result:
            common.fail(f"{comparison.script} ended with an unknown line: {line}", status=1)
        clock = common.read_clock(Path(folder, result["folder"]))
        solved = None
        if comparison.solved is not None:
            solved = common.solved_at(Path(folder, result["folder"]), comparison.solved)
        floor = {}
        if comparison.floor:
            floor = json.loads(run([command[0], str(common.ROOT / "benchmarks" / "floor.py"), *command[1:]], folder)[0])
    steps, rate = result["steps"], result["steps_per_second"]  # the line's seconds have one digit, its rate has more
    half = min((step for step in clock if step >= steps / 2), default=None)
    return {
        "steps": steps,
        "seconds": steps / rate,
        "half_steps": half,
        "half_seconds": clock.get(half),
        "solved_at_steps": solved,
        "solved_seconds": clock.get(solved),
        "peak_rss_mb": peak,
        **floor,
    }


def run_theirs(comparison, seed, args):
    """Train the peer once -> a row's measurements; where solved is asked for, it stops when it is."""
    steps = (args.steps if comparison.solved is None else 0) or comparison.peer["steps"]
    threads = args.threads or comparison.threads
    spec = comparison.peer | {"steps": steps, "solved": comparison.solved, "seed": seed, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        line, peak = run([sys.executable, str(common.ROOT / "benchmarks" / "peer.py"), json.dumps(spec)], folder)
    return json.loads(line) | {"peak_rss_mb": peak}


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
    row |= {name: f"{result[name]:.3f}" for name in ("update_ms", "floor_ms", "multiple") if name in result}
    return row | {"peak_rss_mb": f"{result['peak_rss_mb']:.1f}"}


def measure(comparison, args, bar):
    """All runs of a comparison, in turns -> its rows."""
    ours = {comparison.script: ""}
    if args.compile and comparison.solved is None:
        ours[f"{comparison.script} --compile"] = "--compile"
    rows, origin = [], common.provenance()
    for seed in turns(comparison, args):
        for side in (*ours, PEER):
            bar.set_postfix_str(f"{comparison.name} {side} seed {seed}")
            result = (
                run_theirs(comparison, seed, args) if side == PEER else run_ours(comparison, ours[side], seed, args)
            )
            threads = args.threads or comparison.threads
            first = {"comparison": comparison.name, "side": side, "seed": seed, "threads": threads}
            rows.append(first | finish_row(result) | origin)
            bar.update()
    return rows


def turns(comparison, args):
    """The seeds of a comparison, one for each turn."""
    return common.parse_seeds(args.seeds) if comparison.solved is not None else range(1, args.repeats + 1)


def values(rows, side, column):
    """A column of one side's rows, by turn; an empty cell (never solved) is infinite."""
    return [float(row.get(column) or math.inf) for row in rows if row["side"] == side]


def table(comparison, rows):
    """Lines of the printed table, one per side: medians over the turns, ratios to the peer turn by turn."""
    column = "steps_per_second" if comparison.solved is None else "solved_seconds"
    lines, theirs = [], values(rows, PEER, column)
    for side in dict.fromkeys(row["side"] for row in rows):
        mine = values(rows, side, column)
        cells = [comparison.name, side, str(rows[0]["threads"])]
        if comparison.solved is None:
            late = values(rows, side, "second_half_steps_per_second")
            cells += [f"{statistics.median(mine):,.0f}", f"{statistics.median(late):,.0f}", "", "", ""]
        else:
            steps = values(rows, side, "solved_at_steps")
            cells += ["", "", f"{sum(map(math.isfinite, mine))} of {len(mine)}"]
            cells += [f"{statistics.median(steps):,.0f}", f"{statistics.median(mine):.2f}"]
        ratios = [a / b for a, b in zip(mine, theirs, strict=True) if math.isfinite(a) or math.isfinite(b)]
        if side == PEER or not ratios:
            cells.append("")
        else:
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        cells.append(f"{statistics.median(values(rows, side, 'peak_rss_mb')):.0f}")
        for part in ("update_ms", "floor_ms", "multiple"):
            middle = statistics.median(values(rows, side, part))
            cells.append(f"{middle:.2f}" if math.isfinite(middle) else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main():
    """Measure the comparisons that were asked for, write their rows as each is done, and print the table."""
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    names = [comparison.name for comparison in COMPARISONS]
    if unknown := [name for name in args.only if name not in names]:
        common.fail(f"--only {unknown[0]}: there are {', '.join(names)}")
    if args.repeats < 1 or args.steps < 0:
        common.fail(f"--repeats {args.repeats} must be 1 or more, and --steps {args.steps} 0 or more")
    common.open_rows(args.out, COLUMNS)  # fails now rather than after the runs
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [comparison for comparison in COMPARISONS if not args.only or comparison.name in args.only]
    runs = [len(turns(comparison, args)) * (2 + (args.compile and comparison.solved is None)) for comparison in chosen]
    lines = [
        "| comparison | side | threads | steps/s | second half | solved | at steps | at s | ours / theirs | peak MB"
        " | update ms | floor ms | update / floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tqdm(total=sum(runs), unit="run") as bar:
        for comparison in chosen:
            rows = measure(comparison, args, bar)
            replaced = (comparison.name, str(args.threads or comparison.threads))
            kept = [
                row for row in common.open_rows(args.out, COLUMNS) if (row["comparison"], row["threads"]) != replaced
            ]
            common.replace_rows(args.out, COLUMNS, kept + rows)
            lines += table(comparison, rows)
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
