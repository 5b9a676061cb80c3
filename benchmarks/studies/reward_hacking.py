"""Why is there a KL penalty? rlhf.py with six weights of it: the learned reward, and what people really like.

    python benchmarks/studies/reward_hacking.py
    python benchmarks/studies/reward_hacking.py --draw

Both are drawn over the square root of the KL divergence from the reference, as in Gao et al. (2022, arXiv:2210.10760).
The table is benchmarks/results/study_reward_hacking.csv, the figure benchmarks/figures/study_reward_hacking.svg.
"""

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

BETAS = {0: "#D55E00", 0.02: "#E69F00", 0.05: "#CC79A7", 0.1: "#0072B2", 0.2: "#56B4E9", 0.5: "#009E73"}
TABLE = common.ROOT / "benchmarks" / "results" / "study_reward_hacking.csv"
FIGURE = common.ROOT / "benchmarks" / "figures" / "study_reward_hacking.svg"
COLUMNS = ("beta", "seed", "step", "score", "gold", "kl", "eval_return", "response", *common.PROVENANCE)
METRICS = ("score", "gold", "kl")


@dataclass
class Args:
    seeds: str = "1-5"  # seeds of each weight
    jobs: int = 2  # runs at a time, each with one thread
    draw: bool = False  # draw the figure from the table, and run nothing


def run(beta, seed):
    """Train once -> the rows of its stage 3; the last has the evaluation and a response."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(common.ROOT / "rlhf.py"), "--beta", str(beta), "--seed", str(seed)]
        stdout = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
        result = common.parse_last_line(stdout.splitlines()[-1])
        points = common.read_scalars(Path(folder, result["folder"]), *(f"losses/{name}" for name in METRICS))
    rows = []
    for step in sorted(points[0]):
        row = {"beta": beta, "seed": seed, "step": step, "eval_return": "", "response": ""}
        rows.append(row | {name: f"{point[step]:.3f}" for name, point in zip(METRICS, points, strict=True)})
    response = re.search(r"after PPO:\n(.*)", stdout)[1]
    rows[-1] |= {"eval_return": result["eval_return"], "response": response}
    return rows


def measure(args):
    """All runs -> the rows of the table."""
    runs = [(beta, seed) for seed in common.parse_seeds(args.seeds) for beta in BETAS]
    origin = common.provenance()
    with ThreadPoolExecutor(args.jobs) as pool:
        found = list(tqdm(pool.map(lambda pair: run(*pair), runs), total=len(runs), unit="run"))
    return [row | origin for rows in found for row in rows]


def draw(rows):
    """A line for each seed; a dot where it ends."""
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "studies", "font.size": 10}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for beta, colour in BETAS.items():
        for seed in sorted({row["seed"] for row in rows}):
            mine = [row for row in rows if float(row["beta"]) == beta and row["seed"] == seed]
            distance = np.sqrt(np.maximum([float(row["kl"]) for row in mine], 0))
            for axis, name in zip(axes, ("score", "gold"), strict=True):
                height = [float(row[name]) for row in mine]
                label = f"beta {beta:g}" if seed == "1" else None
                axis.plot(distance, height, color=colour, alpha=0.6, linewidth=1.1, label=label)
                axis.plot(distance[-1], height[-1], "o", color=colour, markersize=4)
    axes[0].set(title="what the reward model says", ylabel="deviations of the reference's scores")
    axes[1].set(title="what people like (gold)", ylabel="gold")
    for axis in axes:
        axis.set_xlabel("square root of KL(policy, reference)")
        axis.axhline(0, color="black", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.set_tick_params(labelleft=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(FIGURE, metadata={"Date": None})


def summary(rows):
    """For each weight: medians over seeds of the last rollout's metrics and the evaluation; a response of seed 1."""
    print("| beta | score | KL, nats | gold of the evaluation (min to max) | a response |\n|---|---|---|---|---|")
    for beta in BETAS:
        ends = [row for row in rows if float(row["beta"]) == beta and row["eval_return"]]
        score, kl, gold = (np.array([float(row[name]) for row in ends]) for name in ("score", "kl", "eval_return"))
        range_of = f"{np.median(gold):.2f} ({gold.min():.2f} to {gold.max():.2f})"
        print(f"| {beta:g} | {np.median(score):.2f} | {np.median(kl):.1f} | {range_of} | {ends[0]['response']} |")
    ends = {(float(row["beta"]), row["seed"]): row for row in rows if row["eval_return"]}
    seeds = sorted({seed for _, seed in ends}, key=int)
    pairs = [(ends[0.0, seed], ends[0.1, seed]) for seed in seeds]
    higher = sum(float(without["score"]) > float(penalised["score"]) for without, penalised in pairs)
    lower = sum(float(without["eval_return"]) < float(penalised["eval_return"]) for without, penalised in pairs)
    print(f"\nWithout a penalty, against 0.1: a higher score in {higher}, lower gold in {lower} of {len(seeds)} seeds.")


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    if not args.draw:
        common.replace_rows(TABLE, COLUMNS, measure(args))
    table = common.read_rows(TABLE, COLUMNS)
    draw(table)
    summary(table)
