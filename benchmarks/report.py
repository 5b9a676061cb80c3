"""What run.py has measured, as the README's tables and as figures: scores, learning curves, profiles, costs.

    python benchmarks/report.py

Scores are of the final policy, not of the best over time: the interquartile mean over seeds, with a 95 % stratified
bootstrap interval (rliable). Tables go into the README between their marks, figures (SVG and PNG) into a folder.
"""

import io
import math
import re
import shlex
import statistics
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import common
import matplotlib
import numpy as np
import run
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from rliable import library

# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow that white paper swallows
COLORS = {
    "reinforce": "#000000",
    "reinforce_baseline": "#E69F00",
    "a2c": "#009E73",
    "a3c": "#7F3C8D",
    "trpo": "#999999",
    "ppo": "#0072B2",
    "ddpg": "#CC79A7",
    "td3": "#56B4E9",
    "sac": "#D55E00",
}
PEERS = {"sb3": "SB3"}  # the first word of a name in the suite, before the script that it is a peer of
RESAMPLINGS = 2000  # of the bootstrap
ENOUGH = 10  # evaluations in a run that make a curve; below, the training's return is drawn
SAME_TOTAL = 0.05  # two runs of one --total-timesteps differ by less: they end with a rollout, or with its episodes
GRID = 50  # points of a curve over several environments
MOST = 40  # points of a curve in one
FIGURES = {
    "learning_steps": "Return over environment steps, by environment",
    "learning_seconds": "Return over seconds, by environment",
    "profiles": "Share of runs whose final score is above a threshold, by group of environments",
    "sample_efficiency": "Score over environment steps, by group of environments",
}
LABELS = {
    "eval_return": "return of the greedy policy",
    "train_return": "return of training episodes",
    "steps": "environment steps",
    "seconds": "seconds of training, one thread",
}


@dataclass
class Args:
    table: Path = Path("benchmarks/results/suite.csv")  # runs, as run.py wrote them; NAME_curves.csv is beside it
    suite: Path = Path("benchmarks/suite.toml")  # table of flags: runs with other flags are left out
    peers: Path = Path("benchmarks/peers.toml")  # published scores, and the scores between which others are normalised
    readme: Path = Path(
        "docs/results.md"
    )  # where the tables go: <!-- results --> ... <!-- end -->, and the same for cost
    figures: Path = Path("benchmarks/figures")  # folder of the figures
    episodes: int = 100  # only runs whose final evaluation was of so many episodes


def algorithm(name):
    """'sb3 ppo' -> 'ppo'; one of our scripts is its own."""
    return name.split()[-1]


def read_toml(flag, path):
    """A TOML file's tables; the program ends if there are none."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        common.fail(f"{flag} {path}: {error}")


def choose(rows):
    """The newest row of each seed, of as many total steps as the newest of all, in the order of seeds."""
    newest = max(rows, key=lambda row: row["date"], default=None)
    chosen = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        if abs(int(row["steps"]) / int(newest["steps"]) - 1) < SAME_TOTAL:
            chosen[int(row["seed"])] = row
    return [chosen[seed] for seed in sorted(chosen)]


def read_cells(args):
    """What was measured with the flags of the suite -> {(environment, name): rows}, all of its cells in its order.

    The script's contents may have been others: its plumbing changes, and the footer of the tables has the commits.
    """
    curves = {}
    for row in common.read_rows(run.curves_of(args.table), run.CURVE_COLUMNS):
        curves.setdefault((row["key"], row["seed"]), []).append(row)
    found = {}
    for row in common.read_rows(args.table, run.COLUMNS, run.LATER):
        if int(row["episodes"]) == args.episodes:
            row["curve"] = curves.get((row["key"], row["seed"]), [])
            found.setdefault((row["script"], row["env"], *shlex.split(row["flags"])), []).append(row)
    entries = run.read_suite(run.Args(suite=args.suite))
    return {
        (env, name): choose(found.get((f"{Path(script).name}.py", env, *shlex.split(flags)), []))
        for (env, name), (script, flags) in entries.items()
    }


def column(rows, name):
    """A column of numbers; cells that nobody measured are left out."""
    return np.array([float(row[name]) for row in rows if row[name] != ""])


def iqm(scores):
    """Interquartile mean over seeds and tasks: scores (seeds, tasks, ...) -> (...), at least one axis.

    It is rliable's metrics.aggregate_iqm for each point of a curve at once. Of fewer than four numbers nothing is cut.
    """
    scores = np.sort(scores.reshape(-1, *scores.shape[2:]), axis=0)
    cut = len(scores) // 4
    return np.atleast_1d(scores[cut : len(scores) - cut].mean(0))


def interval(scores, statistic=iqm):
    """A statistic of scores (seeds, tasks, ...), and the lower and upper end of its interval, all (...)."""
    np.random.seed(0)  # the generator that rliable draws from, whatever random_state it is given
    points, ends = library.get_interval_estimates({"": scores}, statistic, reps=RESAMPLINGS)
    return points[""], *ends[""]


def score_text(rows):
    """'500.0 (499.1 to 500.0), n 10'; for fewer than four seeds, which tell no interval, without; empty for none."""
    if not rows:
        return ""
    (mean,), (low,), (high,) = interval(column(rows, "eval_return")[:, None])
    band = f" ({low:,.1f} to {high:,.1f})" if len(rows) > 3 else ""
    return f"{mean:,.1f}{band}, n {len(rows)}"


def median_text(rows, name):
    """The median over seeds of a column; empty if nobody measured it."""
    values = column(rows, name)
    return f"{statistics.median(values):,.0f}" if len(values) else ""


def markdown(header, lines):
    """A table of cells -> its text."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (header, ["---"] * len(header), *lines))


def pairs_of(cells):
    """{(environment, script): (our rows, those of the peer)}, for each of our scripts in the suite."""
    peer = {(env, algorithm(name)): rows for (env, name), rows in cells.items() if name != algorithm(name)}
    return {
        (env, name): (rows, peer.get((env, name), [])) for (env, name), rows in cells.items() if name == algorithm(name)
    }


def results_table(cells, peers):
    """A line for each script in each environment: what it reached, what the peer did here, what was published."""
    header = ("environment", "script", "steps", "IQM (95 %), seeds", "Stable-Baselines3, here", "published", "source")
    lines = []
    for (env, name), (ours, theirs) in pairs_of(cells).items():
        published = peers[env].get(name, {})
        deviation = f" ± {published['deviation']:,.1f}" if "deviation" in published else ""
        lines.append(
            (
                env,
                f"`{name}.py`",
                median_text(ours or theirs, "steps"),
                score_text(ours),
                score_text(theirs),
                f"{published['score']:,.1f}{deviation}" if published else "",
                published.get("source", ""),
            )
        )
    return markdown(header, lines)


def cost_table(cells):
    """A line for each script in each environment that was measured: steps, seconds, memory."""
    ours_and_theirs = ("seconds", "peak_rss_mb")
    header = ("environment", "script", "steps", "seconds", "peak, MB", "SB3: seconds", "SB3: peak, MB")
    lines = []
    for (env, name), (ours, theirs) in pairs_of(cells).items():
        if ours or theirs:
            costs = [median_text(rows, column) for rows in (ours, theirs) for column in ours_and_theirs]
            lines.append((env, f"`{name}.py`", median_text(ours or theirs, "steps"), *costs))
    return markdown(header, lines)


def footer(cells):
    """Where the rows come from: seeds, commits, versions, machine."""
    rows = [row for cell in cells.values() for row in cell]

    def values(name):
        return ", ".join(sorted({row[name] for row in rows} - {""}))

    seeds = run.ranges({int(row["seed"]) for row in rows})
    versions = ", ".join(f"{name} {values(name)}" for name in ("python", *common.PACKAGES) if values(name))
    return (
        f"Seeds {seeds}; commits {values('commit')}; {versions}; {values('cores')} cores, {values('cpu')}. "
        "`benchmarks/results/suite.csv` has each run with its command."
    )


def with_tables(readme, cells, peers):
    """The README's text with the tables between their marks; nothing stands there if nothing was measured."""
    measured = any(cells.values())
    tables = {"results": results_table(cells, peers), "cost": cost_table(cells)}
    figures = "\n\n".join(f"![{alt}](benchmarks/figures/{name}.svg)" for name, alt in FIGURES.items())
    after = {"results": f"\n{figures}\n", "cost": ""}
    for name, table in tables.items():
        text = f"{table}\n\n{footer(cells)}\n{after[name]}" if measured else ""
        block = f"<!-- {name} -->\n{text}<!-- end -->"
        readme, count = re.subn(f"<!-- {name} -->\n.*?<!-- end -->", lambda _, block=block: block, readme, flags=re.S)
        if count != 1:
            common.fail(f"--readme: <!-- {name} --> and <!-- end --> have to stand there once, not {count} times")
    return readme


def points_of(row, kind):
    """A column of a run's curve -> its steps and values (points,), without the points at which it is empty."""
    points = sorted((int(point["steps"]), float(point[kind])) for point in row["curve"] if point[kind] != "")
    return np.array(points).reshape(-1, 2).T


def latest(row, kind, steps):
    """The latest value of a curve until each of these steps; before its first point, that one."""
    at, values = points_of(row, kind)
    return values[np.maximum(np.searchsorted(at, steps, side="right") - 1, 0)]


def kinds_of(cells):
    """{environment: the column that its curves show}: the evaluations if every run has enough of them."""
    fewest = {}
    for (env, _), rows in cells.items():
        fewest[env] = min(fewest.get(env, ENOUGH), *(points_of(row, "eval_return").shape[1] for row in rows))
    return {env: "eval_return" if count >= ENOUGH else "train_return" for env, count in fewest.items()}


def curve_of(rows, kind):
    """Curves of the seeds of one cell -> steps, seconds (points,), and the values at these steps (seeds, points)."""
    runs = [points_of(row, kind)[0] for row in rows]
    steps = runs[0][runs[0] >= max(at[0] for at in runs)]
    steps = steps if len(steps) else runs[0][-1:]
    stride = math.ceil(len(steps) / MOST)
    steps = steps[::-stride][::-1]  # the last is always among them
    until = np.append(steps[:-1], np.inf)  # the last point is each run's own last
    seconds = np.median([latest(row, "seconds", until) for row in rows], axis=0)
    return steps, seconds, np.stack([latest(row, kind, until) for row in rows])


def style(name):
    """A script has its colour in every figure; a peer that of the script, dashed."""
    ours = name == algorithm(name)
    return {"color": COLORS.get(algorithm(name), "#777777"), "linestyle": "-" if ours else "--", "linewidth": 1.6}


def draw_band(axis, x, name, estimates):
    """A line, and around it the interval."""
    middle, low, high = estimates
    axis.plot(x, middle, **style(name))
    axis.fill_between(x, low, high, color=style(name)["color"], alpha=0.15, linewidth=0)


def panels(titles):
    """A figure of as many panels, at most three side by side -> the figure, and {title: its axis}."""
    wide = min(3, len(titles))
    tall = -(-len(titles) // wide)
    figure = Figure(figsize=(3.9 * wide, 3.2 * tall + 0.6), layout="constrained")
    axes = figure.subplots(tall, wide, squeeze=False)
    for axis in axes.flat[len(titles) :]:
        axis.set_axis_off()
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title)
        axis.grid(alpha=0.3, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, dict(zip(titles, axes.flat, strict=False))


def add_legend(figure, names, **others):
    """One legend for all panels, below them; others: what else is drawn, as the label and its style."""
    order = [*COLORS, *map(algorithm, names)]
    names = sorted(set(names), key=lambda name: (name != algorithm(name), order.index(algorithm(name))))
    labels = [name if name == algorithm(name) else f"{algorithm(name)}, {PEERS[name.split()[0]]}" for name in names]
    handles = [Line2D([], [], **style(name)) for name in names]
    handles += [Line2D([], [], **look) for look in others.values()]
    figure.legend(handles, [*labels, *others], loc="outside lower center", ncols=4, frameon=False)


GOAL = {"color": "#777777", "linestyle": ":", "linewidth": 1.2}


def draw_curves(cells, peers):
    """Return over steps, and over seconds: a panel for each environment, a band for each script and peer -> figures."""
    kinds, bands = kinds_of(cells), {}
    for (env, name), rows in cells.items():
        steps, seconds, values = curve_of(rows, kinds[env])
        bands[env, name] = {"steps": steps, "seconds": seconds}, interval(values[:, None])
    return [draw_panels(cells, bands, kinds, peers, x_name) for x_name in ("steps", "seconds")]


def draw_panels(cells, bands, kinds, peers, x_name):
    """One of the two figures of draw_curves, from the estimates of both."""
    figure, axes = panels(list(kinds))
    for env, axis in axes.items():
        here = {name: rows for (other, name), rows in cells.items() if other == env}
        ends, low = [], peers[env]["random"]
        for name in here:
            x, estimates = bands[env, name]
            draw_band(axis, x[x_name], name, estimates)
            ends.append(x[x_name][-1])
        axis.axhline(peers[env]["goal"], **GOAL)
        if max(ends) > 5 * min(ends):
            axis.set_xscale("log")
        bottom, top = axis.get_ylim()
        axis.set_ylim(max(bottom, low - 0.3 * (peers[env]["goal"] - low)), top)
        counts = sorted({len(rows) for rows in here.values()})
        axis.set_title(f"{env}, n = {' to '.join(map(str, sorted({counts[0], counts[-1]})))}")
        axis.set_xlabel(LABELS[x_name])
        axis.xaxis.set_major_formatter(EngFormatter(sep="") if x_name == "steps" else "{x:,g}")
        axis.set_ylabel(LABELS[kinds[env]])
    add_legend(figure, [name for _, name in cells], goal=GOAL)
    return figure


def normalise(scores, env, peers):
    """0 for a random policy, 1 for the goal."""
    random, goal = peers[env]["random"], peers[env]["goal"]
    return (scores - random) / (goal - random)


def groups_of(cells, peers):
    """{group: {name: {environment: rows}}}, of those that were run in every environment of the group that was run.

    What has fewer than half of the seeds of the group's largest cell counts as not run: one seed would be the n of all.
    So does an environment that is left to one script alone, where others have more: there is nothing to compare.
    """
    most = Counter()
    for (env, _), rows in cells.items():
        group = peers[env]["group"]
        most[group] = max(most[group], len(rows))
    groups = {}
    for (env, name), rows in cells.items():
        group = peers[env]["group"]
        if 2 * len(rows) >= most[group]:
            groups.setdefault(group, {}).setdefault(name, {})[env] = rows
    for group, names in groups.items():
        scripts = Counter(env for rows in names.values() for env in rows)
        every = {env for env, count in scripts.items() if count > 1} or set(scripts)
        kept = {name: {env: mine for env, mine in rows.items() if env in every} for name, rows in names.items()}
        groups[group] = {name: rows for name, rows in kept.items() if set(rows) == every}
    return {group: names for group, names in groups.items() if names}


def group_panels(groups):
    """A panel for each group, with its environments and the number of seeds -> the figure, and {group: its axis}."""
    figure, axes = panels(list(groups))
    for group, axis in axes.items():
        envs = list(next(iter(groups[group].values())))
        counts = sorted({min(map(len, rows.values())) for rows in groups[group].values()})
        seeds = " to ".join(map(str, sorted({counts[0], counts[-1]})))
        axis.set_title(f"{group}, n = {seeds}\n{', '.join(envs)}", fontsize=7)
    add_legend(figure, [name for names in groups.values() for name in names])
    return figure, axes


def matrix(rows, peers, values):
    """values(row) of each run, normalised -> (seeds, environments, ...), with as many seeds of each environment."""
    seeds = min(map(len, rows.values()))
    columns = [np.stack([normalise(values(row), env, peers) for row in mine[:seeds]]) for env, mine in rows.items()]
    return np.stack(columns, 1)


def draw_profiles(cells, peers):
    """Performance profiles: the share of runs that end above a score -> figure."""
    groups, levels = groups_of(cells, peers), np.linspace(0, 1.2, 121)
    figure, axes = group_panels(groups)
    for group, axis in axes.items():
        for name, rows in groups[group].items():
            scores = matrix(rows, peers, lambda row: np.float64(row["eval_return"]))
            above = interval(scores, lambda x: (x.reshape(-1, 1) > levels).mean(0))
            draw_band(axis, levels, name, above)
        axis.set_xlabel("score of the final policy (0: random, 1: goal)")
        axis.set_ylabel("share of runs above it")
        axis.set_ylim(-0.02, 1.02)
    return figure


def score_at(row, kind, steps, random):
    """A run's return at each of these steps (points,): a random policy's before its first, its last after its end."""
    return np.where(steps >= points_of(row, kind)[0][0], latest(row, kind, steps), random)


def draw_efficiency(cells, peers):
    """Sample efficiency: the score over environment steps, over all environments of a group -> figure."""
    groups, kinds = groups_of(cells, peers), kinds_of(cells)
    figure, axes = group_panels(groups)
    for group, axis in axes.items():
        rows = [row for names in groups[group].values() for cell in names.values() for row in cell]
        first = min(points_of(row, kinds[row["env"]])[0][0] for row in rows)
        steps = np.geomspace(first, max(int(row["steps"]) for row in rows), GRID)
        for name, mine in groups[group].items():
            scores = matrix(
                mine, peers, lambda row, at=steps: score_at(row, kinds[row["env"]], at, peers[row["env"]]["random"])
            )
            draw_band(axis, steps, name, interval(scores))
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_xlabel("environment steps in each environment")
        axis.set_ylabel("score (0: random, 1: goal)")
        axis.set_ylim(max(axis.get_ylim()[0], -0.3), min(axis.get_ylim()[1], 1.3))
    return figure


def save(figure, folder, name):
    """Write a figure as PNG, and as SVG with coordinates to a tenth of a point; the same figure is the same bytes."""
    figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    lines = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), text.getvalue())
    (folder / f"{name}.svg").write_text(lines)


def draw(cells, peers, folder):
    """Draw all figures into a folder."""
    matplotlib.rcParams |= {"svg.hashsalt": "policy gradients", "svg.fonttype": "none", "font.size": 9}
    folder.mkdir(parents=True, exist_ok=True)
    measured = {cell: rows for cell, rows in cells.items() if rows}
    figures = (*draw_curves(measured, peers), draw_profiles(measured, peers), draw_efficiency(measured, peers))
    for figure, name in zip(figures, FIGURES, strict=True):
        save(figure, folder, name)


def main():
    """Write the tables and draw the figures, of whatever was measured."""
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    for flag, path in (("--table", args.table), ("--readme", args.readme)):
        if not path.is_file():
            common.fail(f"{flag} {path} is no file; run.py writes the table, between its marks it goes into the README")
    cells, peers = read_cells(args), read_toml("--peers", args.peers)
    if not any(cells.values()):
        common.fail(f"--table {args.table} has no run with the flags of {args.suite} over {args.episodes} episodes")
    for (env, name), rows in cells.items():
        if not {"group", "random", "goal"} <= peers.get(env, {}).keys():
            common.fail(f"--peers {args.peers}: {env} has to have a group, random and goal")
        for row in rows:
            if not row["curve"]:
                common.fail(f"{run.curves_of(args.table)} has no curve of {env}, {name}, seed {row['seed']}")
    readme = with_tables(args.readme.read_text(), cells, peers)
    draw(cells, peers, args.figures)
    args.readme.write_text(readme)
    for (env, name), rows in cells.items():
        print(f"{name} {env} | {score_text(rows) or 'no run'}")


if __name__ == "__main__":
    main()
