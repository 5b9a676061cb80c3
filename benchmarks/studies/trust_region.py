"""How far does one update move the policy? A2C with a large step, TRPO and PPO on CartPole-v1.

    python benchmarks/studies/trust_region.py
    python benchmarks/studies/trust_region.py --draw

After each update, KL(pi_old || pi) is averaged over the observations of the rollout that the update learned from. The
table is benchmarks/results/study_trust_region.csv, the figure benchmarks/figures/study_trust_region.svg.
"""

import contextlib
import copy
import importlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

sys.path.insert(0, str(common.ROOT))
COMMON = {"num_envs": 32, "num_steps": 32, "total_timesteps": 100_000, "eval_episodes": 20, "num_threads": 1}
SETTINGS = {
    "A2C, step 0.03": ("a2c", {"learning_rate": 0.03, "anneal_lr": False}, "#009E73"),
    "TRPO": ("trpo", {}, "#D55E00"),
    "PPO": ("ppo", {}, "#0072B2"),
}
TABLE = common.ROOT / "benchmarks" / "results" / "study_trust_region.csv"
FIGURE = common.ROOT / "benchmarks" / "figures" / "study_trust_region.svg"
COLUMNS = ("setting", "seed", "step", "kl", "episodic_return", *common.PROVENANCE)


@dataclass
class Args:
    seeds: str = "1-5"  # seeds of each setting
    draw: bool = False  # draw the figure from the table, and run nothing


def log_policy(agent, obs):
    with torch.no_grad():
        return agent.actor(obs).log_softmax(-1)


def run(script, flags, seed):
    """Train once -> step, KL divergence and mean return of 20 training episodes after each update."""
    module = importlib.import_module(script)
    env_step, log_and_save, seen, rows, old = module.Run.env_step, module.Run.log_and_save, [], [], []

    def note_observation(self, action):
        result = env_step(self, action)
        seen.append(result[0])
        return result

    def note_divergence(self, metrics, optimizer):
        agent, obs = self.state["agent"], torch.cat(seen)
        if old:
            before, after = log_policy(old[0], obs), log_policy(agent, obs)
            kl = (before.exp() * (before - after)).sum(-1).mean().item()
            rows.append((self.step, kl, float(np.mean(self.envs.return_queue)) if self.envs.return_queue else np.nan))
        old[:] = [copy.deepcopy(agent)]
        seen.clear()
        log_and_save(self, metrics, optimizer)

    module.Run.env_step, module.Run.log_and_save = note_observation, note_divergence
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            module.train(module.Args(**COMMON, **flags, seed=seed))
    finally:
        module.Run.env_step, module.Run.log_and_save = env_step, log_and_save
    return rows


def measure(args):
    """All runs -> the rows of the table."""
    origin, rows = common.provenance(), []
    runs = [(name, seed) for name in SETTINGS for seed in common.parse_seeds(args.seeds)]
    for name, seed in tqdm(runs, unit="run"):
        script, flags, _ = SETTINGS[name]
        for step, kl, episodic_return in run(script, flags, seed):
            row = {"setting": name, "seed": seed, "step": step, "kl": f"{kl:.3g}"}
            rows.append(row | {"episodic_return": f"{episodic_return:.1f}"} | origin)
    return rows


def draw(rows):
    """Median over seeds, and the range of all seeds: KL divergence of each update, and return."""
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "studies", "font.size": 10}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, (_, _, colour) in SETTINGS.items():
        mine = [row for row in rows if row["setting"] == name]
        steps = sorted({int(row["step"]) for row in mine})
        for axis, column in zip(axes, ("kl", "episodic_return"), strict=True):
            of_step = {step: [] for step in steps}
            for row in mine:
                of_step[int(row["step"])].append(float(row[column]))
            values = np.array([np.percentile(of_step[step], [0, 50, 100]) for step in steps]).T
            axis.plot(steps, values[1], color=colour, label=name, linewidth=1.8)
            axis.fill_between(steps, values[0], values[2], color=colour, alpha=0.18, linewidth=0)
    axes[0].axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    axes[0].set(yscale="log", ylim=(1e-5, None), ylabel="KL(old, new) of an update", xlabel="environment steps")
    axes[1].set(ylabel="return of 20 episodes", xlabel="environment steps")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=len(SETTINGS), frameon=False)
    for axis in axes:
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, metadata={"Date": None})


def summary(rows):
    """A row of text for each setting: the median and the largest KL divergence, the return at the end."""
    for name in SETTINGS:
        mine = [row for row in rows if row["setting"] == name]
        kl, last = [float(row["kl"]) for row in mine], max(int(row["step"]) for row in mine)
        returns = [float(row["episodic_return"]) for row in mine if int(row["step"]) == last]
        print(f"| {name} | {np.median(kl):.4f} | {max(kl):.3f} | {np.median(returns):.0f} | {min(returns):.0f} |")


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    if not args.draw:
        common.replace_rows(TABLE, COLUMNS, measure(args))
    table = common.read_rows(TABLE, COLUMNS)
    draw(table)
    summary(table)
