"""Side by side with Stable-Baselines3 and SBX: steps per second at equal sizes, and seconds until solved.

    python benchmarks/speed/speed.py
    python benchmarks/speed/speed.py --threads 2 --only ppo-equal-sizes --sides eager stable_baselines3
    python benchmarks/speed/speed.py --draw

comparisons.toml has what is compared. Whole processes take turns (A B C D A B C D ...), so that what else the machine
does falls on all; a ratio is the median over the turns of ours / theirs. A process has as many cores as threads. Rates
are those of the second half of a run: without its start, without compiling, and off-policy without the first random
steps. Seconds until solved are counted from the start of the process.
"""

import math
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / "scores" / "sb3.py"  # leaves the same log and last line as our scripts
OURS = {"eager": "", "compiled": "--compile"}  # sides, and the flags that they add to our script
PEERS = ("stable_baselines3", "sbx")
SIDES = (*OURS, *PEERS)
NO_SBX = ("a2c.py", "trpo.py", "ppo_atari.py")
SHOWN = [f"{name}-equal-sizes" for name in ("ppo", "a2c", "trpo", "ppo_atari", "td3", "sac")]  # in the README
COLUMNS = ("comparison", "side", "seed", "threads", "device", "steps", "seconds", "steps_per_second")
COLUMNS += ("second_half_steps_per_second", "startup_seconds", "solved_at_steps", "solved_seconds", "peak_rss_mb")
COLUMNS += ("sbx", *common.PROVENANCE)
COMPARISONS = tomllib.loads((HERE / "comparisons.toml").read_text())


@dataclass
class Args:
    repeats: int = 3  # turns of the comparisons of steps per second; turn i has seed i
    seeds: str = "1-3"  # seeds, each a turn, of the comparisons of time to solved: 1-5 or 1,3,7-9
    threads: Literal[0, 1, 2] = 0  # threads and cores of a process; 0: what the comparison has
    device: Literal["cpu", "cuda"] = "cpu"  # where networks live; SBX takes turns on the CPU alone
    only: tuple[str, ...] = ()  # names of the comparisons to run; none: all
    sides: tuple[Literal["eager", "compiled", "stable_baselines3", "sbx"], ...] = SIDES  # who takes turns
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of every side but SBX
    out: Path = common.RESULTS / "speed.csv"  # table of all runs; rows of the same comparison are replaced
    draw: bool = False  # write the tables of docs/results.md and README.md from --out, and run nothing


def run(spec, side, seed, threads, args):
    """Train once, in a process of its own -> a row's measurements.

    The clock is that of the log: it runs neither in imports nor in the evaluation at the end. A peer whose time to
    solved is asked for stops when it is.
    """
    if side in OURS:
        words = [common.ROOT / spec["script"], *shlex.split(f"{spec['flags']} {OURS[side]}")]
    else:
        words = [PEER, *shlex.split(spec["peer"]), "--package", side]
        words += ["--stop-at", spec["solved"]] if "solved" in spec else []
    words += ["--seed", seed, "--num-threads", threads, "--device", args.device, "--eval-episodes", 1]
    words += ["--checkpoint-every", 10**9, "--matmul-precision", args.matmul_precision]
    command = [sys.executable, *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        began, process = time.time(), common.start(command, folder, cores=threads)
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            common.stop(process)
        if process.returncode:
            error = common.last_line(folder, "stderr")
            common.fail(f"{shlex.join(command[1:])} ended with {process.returncode}: {error}", status=1)
        result = common.parse_last_line(common.last_line(folder, "stdout"))
        run_folder = Path(folder, result["folder"])
        clock, steps = common.read_clock(run_folder), result["steps"]
        half = min(step for step in clock if step >= steps / 2)
        row = {"steps": steps, "seconds": f"{clock[steps]:.3f}", "steps_per_second": f"{steps / clock[steps]:.1f}"}
        row["startup_seconds"] = f"{common.training_began(run_folder) - began:.2f}"
        row["peak_rss_mb"] = f"{common.peak_rss_mb(usage):.2f}"
        if "solved" not in spec and half < steps:
            row["second_half_steps_per_second"] = f"{(steps - half) / (clock[steps] - clock[half]):.1f}"
        if "solved" in spec and (at := common.solved_at(run_folder, spec["solved"])) is not None:
            row |= {"solved_at_steps": at, "solved_seconds": f"{clock[at]:.3f}"}
        return row


def sides_of(spec, args):
    """Who takes turns."""
    without = {"sbx"} if spec["script"] in NO_SBX or args.device == "cuda" else set()
    return [side for side in SIDES if side in args.sides and side not in without]


def turns(spec, args):
    """The seeds of a comparison, one for each turn."""
    return common.parse_seeds(args.seeds) if "solved" in spec else range(1, args.repeats + 1)


def measure(name, args, bar):
    """All runs of a comparison, in turns -> its rows."""
    spec = COMPARISONS[name]
    threads = args.threads or spec.get("threads", 1)
    rows, origin = [], common.provenance() | {"sbx": common.version("sbx-rl")}
    for seed in turns(spec, args):
        for side in sides_of(spec, args):
            bar.set_postfix_str(f"{name} {side} seed {seed}")
            first = {"comparison": name, "side": side, "seed": seed, "threads": threads, "device": args.device}
            rows.append(first | run(spec, side, seed, threads, args) | origin)
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


def line_of(rows):
    """The line of the table of one comparison on so many threads."""
    name, solved = rows[0]["comparison"], rows[0]["comparison"].endswith("-solved")
    columns = ("startup_seconds", "solved_seconds") if solved else ("second_half_steps_per_second",)
    mine = {side: values(rows, side, *columns) for side in SIDES}
    cells = [median(mine[side], ",.1f" if solved else ",.0f") for side in SIDES]
    if solved:
        counts = [f"{sum(map(math.isfinite, mine[side]))} of {len(mine[side])}" for side in SIDES]
        cells = [f"{cell} ({n})" if mine[side] else "" for side, cell, n in zip(SIDES, cells, counts, strict=True)]
    script = f"`{name.partition('-')[0]}.py`{', same flags' * ('same-flags' in name)}"
    return [script, rows[0]["threads"], *cells, *(ratio(mine["eager"], mine[peer]) for peer in PEERS)]


def tables(rows):
    """{mark: lines}: steps per second at equal sizes, and seconds until solved."""
    header, found = ("script", "threads", "ours", "compiled", "SB3", "SBX", "ours / SB3", "ours / SBX"), {}
    for ending in ("-equal-sizes", "-solved"):
        lines = []
        for name in COMPARISONS:
            mine = [row for row in rows if row["comparison"] == name and name.endswith(ending)]
            for setting in sorted({(row["threads"], row["device"]) for row in mine}):
                lines.append(line_of([row for row in mine if (row["threads"], row["device"]) == setting]))
        found[f"speed{ending}"] = common.markdown(header, lines)
    return found


def readme_table(rows):
    """Six rows of the steps per second, on the threads that a comparison has by itself."""
    lines = []
    for name in SHOWN:
        threads = str(COMPARISONS[name].get("threads", 1))
        mine = [row for row in rows if (row["comparison"], row["threads"], row["device"]) == (name, threads, "cpu")]
        if mine:
            script, _, ours, _, theirs, _, by, _ = line_of(mine)
            lines.append((script, ours, theirs, by))
    return common.markdown(("script", "steps/s", "Stable-Baselines3", "ratio"), lines)


def main():
    """Measure the comparisons that were asked for, write their rows as each is done, and print the tables."""
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    if unknown := set(args.only) - set(COMPARISONS):
        common.fail(f"--only {unknown.pop()}: there are {', '.join(COMPARISONS)}")
    rows = common.open_rows(args.out, COLUMNS)  # fails now rather than after the runs
    if args.draw:
        for mark, lines in tables(rows).items():
            common.write_table(common.ROOT / "docs" / "results.md", mark, lines)
        common.write_table(common.ROOT / "README.md", "speed", readme_table(rows))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [name for name in COMPARISONS if name in args.only or not args.only]
    total = sum(len(turns(COMPARISONS[name], args)) * len(sides_of(COMPARISONS[name], args)) for name in chosen)
    with tqdm(total=total, unit="run") as bar:
        for name in chosen:
            new = measure(name, args, bar)
            replaced = (name, str(args.threads or COMPARISONS[name].get("threads", 1)), args.device)
            same = [(row["comparison"], row["threads"], row["device"]) == replaced for row in rows]
            kept = [row for row, old in zip(rows, same, strict=True) if not (old and row["side"] in args.sides)]
            common.replace_rows(args.out, COLUMNS, kept + new)
            rows = common.read_rows(args.out, COLUMNS)
    for lines in tables([row for row in rows if row["comparison"] in chosen]).values():
        print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
