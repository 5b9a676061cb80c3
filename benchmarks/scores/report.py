"""What run.py has measured: the table of scores in docs/results.md, and figures of learning curves.

    python benchmarks/scores/report.py

A score is of the final policy, not of the best on the way: the interquartile mean over seeds, with a 95 % stratified
bootstrap interval (rliable); of fewer than four seeds the mean. Runs count that have the flags of suite.toml and end
with an evaluation of 100 episodes (Atari: 20); of each seed the newest. Rows of scripts that have changed since are
marked.
"""

import shlex
import statistics
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import run
from rliable import library
from run import common

EPISODES = {"ale_py:ALE/Pong-v5": 20, "ale_py:ALE/Breakout-v5": 20}  # of the final evaluation; 100 elsewhere
RESAMPLINGS = 2000  # of the bootstrap
SAME_TOTAL = 0.05  # two runs of one --total-timesteps differ by less: they end with a rollout, or with its episodes
POINTS = 40  # of a curve
CURVES = ("CartPole-v1", "Pendulum-v1")  # of learning_defaults.svg
FIGURES = {"learning_control": "control", "learning_mujoco": "MuJoCo", "learning_atari": "Atari"}  # figure: group
BEFORE = {"reinforce_baseline": "reinforce", "a2c": "reinforce_baseline", "a3c": "a2c", "trpo": "a2c", "ppo": "a2c"}
BEFORE |= {"td3": "ddpg", "sac": "td3"}  # what a script's own figure shows beside it
DEFAULTS = {  # environment: where its scripts count as solved, and which have it, or its flags, by default
    "CartPole-v1": (475, "reinforce reinforce_baseline a2c a3c trpo ppo"),
    "Pendulum-v1": (-200, "ddpg td3 sac"),
    "Reviews": (1.5, "rlhf"),
}
SHOWN = {  # in the README
    "ppo": ("CartPole-v1", "Acrobot-v1", "LunarLander-v3", "Hopper-v5", "Walker2d-v5"),
    "ppo_atari": ("ale_py:ALE/Pong-v5",),
    "td3": ("LunarLanderContinuous-v3", "HalfCheetah-v5"),
    "sac": ("Pendulum-v1", "HalfCheetah-v5"),
}


@dataclass
class Args:
    table: Path = common.RESULTS / "suite.csv"  # runs, as run.py wrote them; NAME_curves.csv has their curves
    suite: Path = run.HERE / "suite.toml"  # table of flags: runs with other flags are left out
    peers: Path = run.HERE / "peers.toml"  # published scores
    page: Path = common.ROOT / "docs" / "results.md"  # where the tables go: <!-- scores --> ... <!-- end -->
    readme: Path = common.ROOT / "README.md"  # where ten of the scores go
    figures: Path = common.FIGURES


def choose(rows):
    """The newest row of each seed, of as many steps as the newest of all, in the order of seeds."""
    newest = max(rows, key=lambda row: row["date"], default=None)
    chosen = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        if abs(int(row["steps"]) / int(newest["steps"]) - 1) < SAME_TOTAL:
            chosen[int(row["seed"])] = row
    return [chosen[seed] for seed in sorted(chosen)]


def read_cells(args):
    """What was measured with the flags of the suite -> {(environment, name): rows}, all of its cells in its order."""
    curves, found = {}, {}
    for row in common.read_rows(run.curves_of(args.table), run.CURVE_COLUMNS):
        curves.setdefault((row["key"], row["seed"]), []).append(row)
    for row in common.read_rows(args.table, run.COLUMNS):
        if int(row["episodes"]) == EPISODES.get(row["env"], 100):
            row["curve"] = curves.get((row["key"], row["seed"]), [])
            found.setdefault((row["script"], row["env"], *shlex.split(row["flags"])), []).append(row)
    entries = run.read_suite(args.suite)
    return {
        (env, name): choose(found.get((source.name, env, *shlex.split(flags)), []))
        for (env, name), (source, flags) in entries.items()
    }


def iqm(scores):
    """Interquartile mean over seeds and tasks: scores (seeds, tasks, ...) -> (...), at least one axis.

    It is rliable's metrics.aggregate_iqm for each point of a curve at once. Of fewer than four numbers nothing is cut.
    """
    scores = np.sort(scores.reshape(-1, *scores.shape[2:]), axis=0)
    cut = len(scores) // 4
    return np.atleast_1d(scores[cut : len(scores) - cut].mean(0))


def interval(scores):
    """The interquartile mean of scores (seeds, tasks, ...), and both ends of its interval, all (...)."""
    np.random.seed(0)  # the generator that rliable draws from, whatever random_state it is given
    points, ends = library.get_interval_estimates({"": scores}, iqm, reps=RESAMPLINGS)
    return points[""], *ends[""]


def score_text(rows):
    """'500.0 (499.1 to 500.0), n 10'; for fewer than four seeds, which tell no interval, without; empty for none."""
    if not rows:
        return ""
    scores = np.array([float(row["eval_return"]) for row in rows])
    (mean,), (low,), (high,) = interval(scores[:, None])
    band = f" ({low:,.1f} to {high:,.1f})" if len(rows) > 3 else ""
    return f"{mean:,.1f}{band}, n {len(rows)}"


def is_old(rows):
    """Whether a row was measured on other contents of its script than there are now."""
    return any(row["script_sha256"] != common.code_sha256(common.ROOT / row["script"]) for row in rows)


def scores_table(cells, peers):
    """A line for each of our scripts in each environment: its score, its peer's here, and what was published."""
    lines = []
    for (env, name), ours in cells.items():
        if " " in name or peers[env]["group"] == "RLHF":  # a peer, such as: sb3 ppo
            continue
        theirs, published = cells.get((env, f"sb3 {name}"), []), peers.get(env, {}).get(name, {})
        deviation = f" ± {published['deviation']:,.1f}" if "deviation" in published else ""
        mark = " *" if ours and is_old(ours) else ""
        line = [env, f"`{name}.py`"]
        for column in ("steps", "seconds"):
            values = [float(row[column]) for row in ours]
            line.append(f"{statistics.median(values):,.0f}" if values else "")
        commits = ", ".join(sorted({row["commit"] for row in theirs}))
        line += [score_text(ours) + mark, score_text(theirs) + f" ({commits})" * bool(theirs)]
        lines.append([*line, f"{published['score']:,.1f}{deviation}" if published else "", published.get("source", "")])
    header = ("environment", "script", "steps", "seconds", "score (95 %)", "SB3, here", "published", "source")
    return common.markdown(header, lines)


def readme_table(cells, peers):
    """Ten rows of the scores, without their costs."""
    shown = {(env, name): rows for (env, name), rows in cells.items() if env in SHOWN.get(name, ())}
    lines = [line.split("| ") for line in scores_table(shown, peers)]
    return ["| ".join(column for k, column in enumerate(line) if k not in (4, 6)) for line in lines]


def defaults_table(cells):
    """How many seeds solve a script's own task by its defaults, and the scores of the worst, median and best seed."""
    lines = []
    for env, (solved, names) in DEFAULTS.items():
        for name in names.split():
            rows = cells.get((env, name), [])
            scores = sorted(float(row["eval_return"]) for row in rows)
            if scores:
                count = f"{sum(score >= solved for score in scores)} of {len(scores)}"
                steps = statistics.median(float(row["steps"]) for row in rows)
                ends = (f"{x:,.{1 + (env == 'Reviews')}f}" for x in (scores[0], statistics.median(scores), scores[-1]))
                lines.append([f"`{name}.py`", env, f"{steps:,.0f}", f"{count}{' *' * is_old(rows)}", *ends])
    return common.markdown(("script", "environment", "steps", "solved", "worst", "median", "best"), lines)


def curve_of(rows):
    """Greedy evaluations of the seeds of one cell -> steps (points,), values (seeds, points)."""
    runs = []
    for row in [row for row in rows if row["curve"]]:
        points = sorted((int(x["steps"]), float(x["eval_return"])) for x in row["curve"] if x["eval_return"] != "")
        runs.append(np.array(points).reshape(-1, 2).T)
    steps = np.linspace(max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs), POINTS)
    return steps, np.stack([np.interp(steps, x, y) for x, y in runs])


def draw(cells, envs, columns=3):
    """A panel for each of these environments: a band for each script -> figure"""
    figure, axes = common.panels(-(-len(envs) // columns), min(len(envs), columns))
    handles, axes = {}, np.atleast_1d(axes)
    for axis in axes.flat[len(envs) :]:
        axis.set_axis_off()
    for axis, env in zip(axes.flat, envs, strict=False):
        ends = []
        for name, colour in common.COLOURS.items():
            rows = cells.get((env, f"curve {name}")) or cells.get((env, name), [])
            if any(row["curve"] for row in rows):
                steps, values = curve_of(rows)
                middle, low, high = interval(values[:, None])
                (handles[name],) = axis.plot(steps, middle, color=colour)
                axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
                ends.append(steps[-1])
        how = "sampled actions" if env.startswith("ale_py") else "greedy policy"
        axis.set(title=env, xlabel="environment steps", ylabel=f"return, {how}")
        axis.set_xscale("log" if ends and max(ends) > 5 * min(ends) else "linear")
        common.steps_axis(axis)
    common.legend(figure, handles.values(), handles.keys(), columns=2 * min(len(envs), columns) + 1)
    return figure


def main():
    """Write the table and draw the figures, of whatever was measured."""
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    cells, peers = read_cells(args), tomllib.loads(args.peers.read_text())
    if not any(cells.values()):
        common.fail(f"--table {args.table} has no run with the flags of {args.suite}")
    common.write_table(args.page, "scores", scores_table(cells, peers))
    common.write_table(args.page, "defaults", defaults_table(cells))
    common.write_table(args.readme, "scores", readme_table(cells, peers))
    for name, group in FIGURES.items():
        envs = [env for env in dict.fromkeys(env for env, _ in cells) if peers[env]["group"] == group]
        common.save_figure(draw(cells, envs), args.figures / f"{name}.svg")
    common.save_figure(draw(cells, CURVES, columns=1), args.figures / "learning_defaults.svg")
    for env, (_, names) in (DEFAULTS | {"ale_py:ALE/Pong-v5": (18, "ppo_atari"), "Reviews": (1.5, "")}).items():
        for name in names.split():
            shown = {cell: rows for cell, rows in cells.items() if cell[1].split()[-1] in (name, BEFORE.get(name))}
            common.save_figure(draw(shown, [env]), args.figures / f"curve_{name}.svg")
    for (env, name), rows in cells.items():
        print(f"{name} {env} | {score_text(rows) or 'no run'}")


if __name__ == "__main__":
    main()
