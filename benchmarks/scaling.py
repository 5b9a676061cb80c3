"""How speed and memory follow the sizes: environments, width, batch, threads, replay buffer. One table, one figure.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only width
    python benchmarks/scaling.py --draw

Each point is one run of a script, alone, by its command line; --draw makes the figure from the table and runs nothing.
"""

import os
import shlex
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import common
from tqdm import tqdm

COLUMNS = (
    "curve",
    "script",
    "size",
    "threads",
    "flags",
    "steps",
    "steps_per_second",
    "peak_rss_mb",
    *common.PROVENANCE,
)
FIGURE = common.ROOT / "benchmarks" / "figures" / "scaling"
SIZES = {  # by curve, the flag that is varied, and its values
    "environments": ("--num-envs", (1, 4, 16, 64, 256, 1024)),
    "width": ("--hidden-size", (32, 64, 128, 256, 512, 1024)),
    "batch": ("--batch-size", (32, 128, 512, 2048)),
    "buffer": ("--buffer-size", (1_000, 10_000, 100_000, 1_000_000)),
}
REPLAY = "--env-id Pendulum-v1 --learning-starts 100"
RUNS = {  # by curve and script, the other flags of the run of a size
    "environments": {
        "ppo": lambda n: f"--total-timesteps {int(4000 * n**0.8)}",
        "a2c": lambda n: f"--total-timesteps {int(8000 * n**0.8)}",
        "sac": lambda n: f"{REPLAY} --utd {1 / n} --total-timesteps {int(1000 * n**0.8)}",  # an update per vector step
    },
    "width": {
        "ppo": lambda n: "--total-timesteps 16384",
        "td3": lambda n: f"{REPLAY} --total-timesteps 500",
        "sac": lambda n: f"{REPLAY} --total-timesteps 500",
    },
    "batch": {script: lambda n: f"{REPLAY} --total-timesteps 500" for script in ("td3", "sac")},
    "buffer": {  # random actions alone, as many as fill it
        "td3": lambda n: f"--num-envs 50 --hidden-size 16 --total-timesteps {n} --learning-starts {n - 50}"
    },
}


@dataclass
class Args:
    only: str = ""  # one curve; else all
    out: Path = Path("benchmarks/results/scaling.csv")  # rows of a curve that is run again are replaced
    draw: bool = False  # make the figure from the table, and run nothing


def run(script, flags, threads):
    """Run a script on as many cores as threads -> steps, steps per second, peak resident memory (10^6 bytes)."""
    words = [*shlex.split(flags), "--num-threads", str(threads), "--device", "cpu", "--eval-episodes", "1"]
    with tempfile.TemporaryDirectory() as folder:
        process = common.start([sys.executable, str(common.ROOT / f"{script}.py"), *words], folder, cores=threads)
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            common.stop(process)
        result = common.parse_last_line(common.last_line(folder, "stdout"))
        if not result:
            common.fail(f"{script}.py {flags}: {common.last_line(folder, 'stderr')}", status=1)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return result["steps"], result["steps_per_second"], peak


def draw(rows):
    """A panel for each curve, a line for each script and number of threads, both axes logarithmic."""
    import matplotlib.pyplot as plt

    names = [name for name in SIZES if any(row["curve"] == name for row in rows)]
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), squeeze=False, layout="constrained")
    colors = {"ppo": "C0", "a2c": "C1", "td3": "C2", "sac": "C3"}
    for axis, name in zip(axes[0], names, strict=True):
        column = "peak_rss_mb" if name == "buffer" else "steps_per_second"
        for script in RUNS[name]:
            for threads, style in (("1", "-o"), ("2", "--s")):
                mine = [row for row in rows if (row["curve"], row["script"], row["threads"]) == (name, script, threads)]
                points = sorted((int(row["size"]), float(row[column])) for row in mine)
                if points:
                    label = f"{script}.py, {threads} thread{'s' * (threads == '2')}"
                    axis.plot(*zip(*points, strict=True), style, color=colors[script], label=label, markersize=4)
        axis.set(xscale="log", yscale="log", xlabel=SIZES[name][0], title=name)
        axis.set_ylabel("peak memory, MB" if name == "buffer" else "environment steps per second")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    FIGURE.parent.mkdir(exist_ok=True)
    for ending in ("svg", "png"):
        figure.savefig(FIGURE.with_suffix(f".{ending}"), dpi=120)


def main():
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    if args.only and args.only not in SIZES:
        common.fail(f"--only {args.only}: there are {', '.join(SIZES)}")
    rows = common.open_rows(args.out, COLUMNS)
    if args.draw:
        draw(rows)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [args.only] if args.only else list(SIZES)
    points = [
        (curve, script, size, threads)
        for curve in chosen
        for script in RUNS[curve]
        for size in SIZES[curve][1]
        for threads in ((1,) if curve == "buffer" else (1, 2))
    ]
    origin = common.provenance()
    for curve in chosen:
        rows = [row for row in rows if row["curve"] != curve]
    for curve, script, size, threads in tqdm(points, unit="run"):
        flags = f"{SIZES[curve][0]} {size} {RUNS[curve][script](size)}"
        steps, rate, peak = run(script, flags, threads)
        row = {"curve": curve, "script": script, "size": size, "threads": threads, "flags": flags, "steps": steps}
        rows.append(row | {"steps_per_second": f"{rate:.1f}", "peak_rss_mb": f"{peak:.1f}"} | origin)
        common.replace_rows(args.out, COLUMNS, rows)
    draw(common.read_rows(args.out, COLUMNS))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
