"""What do workers gain that do not wait for each other? A3C with 1 to 8 workers, and A2C with as many environments.

    python benchmarks/studies/asynchrony.py
    python benchmarks/studies/asynchrony.py --draw

Each worker has 8 environments of CartPole-v1. Staleness is how many updates others made between the pull of the weights
and the push of the gradient. The table is benchmarks/results/study_asynchrony.csv, the figure
benchmarks/figures/study_asynchrony.svg.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

ENVS, STEPS, POINTS = 8, 400_000, 40
WORKERS = {1: "#56B4E9", 2: "#0072B2", 4: "#D55E00", 8: "#CC79A7"}
SETTINGS = {
    **{f"A3C, {n} workers": ("a3c", f"--num-workers {n} --num-envs {ENVS}", n) for n in WORKERS},
    **{f"A2C, {n * ENVS} environments": ("a2c", f"--num-envs {n * ENVS}", n) for n in WORKERS},
}
TABLE = common.ROOT / "benchmarks" / "results" / "study_asynchrony.csv"
FIGURE = common.ROOT / "benchmarks" / "figures" / "study_asynchrony.svg"
COLUMNS = ("setting", "seed", "step", "seconds", "episodic_return", "staleness", "steps_per_second", *common.PROVENANCE)


@dataclass
class Args:
    seeds: str = "1-5"  # seeds of each setting, one run at a time
    draw: bool = False  # draw the figure from the table, and run nothing


def run(script, flags, seed):
    """Train once by the command line -> for each of POINTS parts: step, seconds, mean return, mean staleness; speed."""
    with tempfile.TemporaryDirectory() as folder:
        words = f"--total-timesteps {STEPS} --checkpoint-every {STEPS} --eval-episodes 0 --seed {seed} {flags}".split()
        command = [sys.executable, str(common.ROOT / f"{script}.py"), *words]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (run_folder,) = Path(folder).glob("runs/*")
        returns, staleness = common.read_scalars(run_folder, "charts/episodic_return", "losses/staleness")
        clock = common.read_clock(run_folder)
    parts = {}
    for step in sorted(returns):
        parts.setdefault(min(step * POINTS // STEPS, POINTS - 1), []).append(step)
    rows = []
    for steps in parts.values():
        stale = [staleness[step] for step in steps if step in staleness]
        mean = np.mean([returns[step] for step in steps])
        rows.append((steps[-1], clock[steps[-1]], mean, np.mean(stale) if stale else 0))
    return rows, max(clock) / clock[max(clock)]


def measure(args):
    """All runs -> the rows of the table. Settings take turns, so that what else the machine does falls on all."""
    origin, rows = common.provenance(), []
    runs = [(name, seed) for seed in common.parse_seeds(args.seeds) for name in SETTINGS]
    for name, seed in tqdm(runs, unit="run"):
        script, flags, _ = SETTINGS[name]
        points, speed = run(script, flags, seed)
        for step, seconds, episodic_return, staleness in points:
            row = {"setting": name, "seed": seed, "step": step, "seconds": f"{seconds:.2f}"}
            row |= {"episodic_return": f"{episodic_return:.1f}", "staleness": f"{staleness:.2f}"}
            rows.append(row | {"steps_per_second": f"{speed:.0f}"} | origin)
    return rows


def draw(rows):
    """Medians over seeds: return by environment steps and by seconds, and staleness."""
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "studies", "font.size": 10}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    for name, (script, _, n) in SETTINGS.items():
        mine = [row for row in rows if row["setting"] == name]
        seeds = sorted({row["seed"] for row in mine})
        curves = [[row for row in mine if row["seed"] == seed] for seed in seeds]
        points = range(min(map(len, curves)))
        median = {
            column: [np.median([float(curve[k][column]) for curve in curves]) for k in points]
            for column in ("step", "seconds", "episodic_return", "staleness")
        }
        line = {"color": WORKERS[n], "linestyle": "-" if script == "a3c" else ":", "linewidth": 1.8, "label": name}
        axes[0].plot(median["step"], median["episodic_return"], **line)
        axes[1].plot(median["seconds"], median["episodic_return"], **line)
        if script == "a3c":
            axes[2].plot(median["step"], median["staleness"], **line)
    axes[0].set(xlabel="environment steps", ylabel="return of 20 episodes")
    axes[1].set(xlabel="seconds", ylabel="return of 20 episodes")
    axes[2].set(xlabel="environment steps", ylabel="staleness, updates")
    for axis in (axes[0], axes[2]):
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, metadata={"Date": None})


def summary(rows):
    """A row of text for each setting: steps per second, staleness, and the return of the last part."""
    for name in SETTINGS:
        mine = [row for row in rows if row["setting"] == name]
        last = {row["seed"]: row for row in mine}.values()
        speed, returns = ([float(row[column]) for row in last] for column in ("steps_per_second", "episodic_return"))
        stale = np.mean([float(row["staleness"]) for row in mine])
        print(f"| {name} | {np.median(speed):,.0f} | {stale:.2f} | {np.median(returns):.0f} | {min(returns):.0f} |")


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    if not args.draw:
        common.replace_rows(TABLE, COLUMNS, measure(args))
    table = common.read_rows(TABLE, COLUMNS)
    draw(table)
    summary(table)
