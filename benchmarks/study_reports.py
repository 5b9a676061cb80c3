"""What a study's table says: a figure, and a sentence whose words follow from the numbers."""

import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from study_runs import ESTIMATORS, GRID, gridworld

# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow that white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))
SURE = 0.8  # of the pairs of two runs in which one is better: from here on a sentence says so
PENDULUM, CARTPOLE, GRIDWORLD, CAR = "Pendulum-v1", "CartPole-v1", "Gridworld-v0", "MountainCarContinuous-v0"


class Table:
    """A study's runs: for a setting and a quantity, a pair of arrays x and y for each seed."""

    def __init__(self, rows):
        self.seeds, self.cells = {}, {}
        for row in rows:
            seed = int(row["seed"])
            self.seeds.setdefault(row["setting"], set()).add(seed)
            self.cells[row["setting"], row["quantity"], seed] = row["x"].split(), np.array(row["y"].split(), float)

    def columns(self, setting, quantity):
        """(x, y) of each seed that has the quantity; x are words."""
        found = [self.cells.get((setting, quantity, seed)) for seed in sorted(self.seeds[setting])]
        return [cell for cell in found if cell]

    def curves(self, setting, quantity):
        """As columns, but x are numbers."""
        return [(np.array(x, float), y) for x, y in self.columns(setting, quantity)]

    def last(self, setting, quantity):
        """The last value of each seed; not a number for one that lacks it -> (seeds,)"""
        cells = [self.cells.get((setting, quantity, seed)) for seed in sorted(self.seeds[setting])]
        return np.array([cell[1][-1] if cell else np.nan for cell in cells])

    def named(self, setting, quantity, name):
        """The value whose x is this word, of each seed that has the quantity -> (seeds,)"""
        return np.array([y[x.index(name)] for x, y in self.columns(setting, quantity)])


# Words ---------------------------------------------------------------------------------------------------------------


def number(x):
    """Digits that a reader can use."""
    return f"{x:.0f}" if abs(x) >= 100 or x == round(x) else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2g}"


def spread(values):
    """'120 (90 to 150)': median, smallest and largest; what never came about is later than all, and counted."""
    values = np.asarray(values, float)
    known = values[~np.isnan(values)]
    if not len(known):
        return f"never in {len(values)} runs"
    middle = np.median(late_if_never(values))
    middle = number(middle) if np.isfinite(middle) else "never"
    never = f"; never in {len(values) - len(known)} of {len(values)}" if len(known) < len(values) else ""
    return f"{middle} ({number(known.min())} to {number(known.max())}{never})"


def late_if_never(values):
    """A step that was never reached is later than all others."""
    return np.nan_to_num(np.asarray(values, float), nan=np.inf)


def share_above(a, b):
    """Share of the pairs, a run of each, in which a's value is the larger one; a tie counts half."""
    a, b = np.asarray(a, float)[:, None], np.asarray(b, float)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def against(one, other, a, b, more="better", less="worse"):
    """'one is better than other', 'one is worse than other', or that they are not told apart: SURE of the pairs."""
    share = share_above(a, b)
    if 1 - SURE < share < SURE:
        return f"{one} and {other} are not told apart"
    return f"{one} is {more if share >= SURE else less} than {other}"


def gaps(table, setting, whole=False):
    """Predicted less collected, the mean over the second half of the run, or the whole, of each seed -> (seeds,)"""
    return np.array([gap[0 if whole else len(gap) // 2 :].mean() for _, gap in differences(table, setting)])


def differences(table, setting):
    """Curves of predicted less collected."""
    pairs = zip(table.curves(setting, "predicted"), table.curves(setting, "collected"), strict=True)
    return [(x, predicted - collected) for (x, predicted), (_, collected) in pairs]


def sentence_variance(table):
    names = ("returns as they are", "returns normalised", "learned baseline")
    episodes = {name: table.last(name, "episodes_to_195") for name in names}
    rows = ", ".join(f"with {name} {spread(episodes[name])}" for name in names)
    late = [late_if_never(episodes[name]) for name in names]
    verdicts = [
        against("the baseline", other, late[2], late[k], "slower", "faster")
        for k, other in enumerate(("none", "normalising"))
    ]
    curves = {
        name: [y for _, y in table.curves("learned baseline", f"gradient_variance_{name}")]
        for name in ("none", "constant", "learned")
    }
    # The median over seeds at each stage of training
    ratio = {name: np.median(np.array(curves[name]) / np.array(curves["learned"]), 0) for name in ("none", "constant")}
    return (
        f"REINFORCE's episodes until 100 of them average 195, median (smallest to largest) of {len(late[0])} seeds,"
        f" {rows} ({'; '.join(verdicts)}); the gradient's variance without a baseline is {ratio['none'].min():.1f} to"
        f" {ratio['none'].max():.1f} times that with the learned one, by stage of training (the literature: up to 10),"
        f" and with a constant baseline {ratio['constant'].min():.1f} to {ratio['constant'].max():.1f} times."
    )


def sentence_estimators(table):
    parts = []
    for env in (CARTPOLE, PENDULUM):
        bias, variance = (
            {name: table.named(f"{env} lambda=0.95", quantity, name) for name in ESTIMATORS}
            for quantity in ("squared_bias", "variance")
        )
        falls = share_above(bias["n=1"], bias["n=128"]) >= SURE
        grows = share_above(variance["n=128"], variance["n=1"]) >= SURE
        least = min(ESTIMATORS, key=lambda name: np.median(bias[name] + variance[name]))
        trained = [name for name in ESTIMATORS if f"{env} {name}" in table.seeds]
        scores = {name: table.last(f"{env} {name}", "eval_return") for name in trained}
        top = max(np.median(score) for score in scores.values())
        best = [f"{name}, {spread(scores[name])}" for name in trained if np.median(scores[name]) == top]
        parts.append(
            f"on {env}, from one step to 128, the squared bias of a return's estimate goes from {spread(bias['n=1'])}"
            f" to {spread(bias['n=128'])}, its variance from {spread(variance['n=1'])} to {spread(variance['n=128'])}"
            f" ({'as taught' if falls and grows else 'not as taught'}; their sum is least for {least}), and the best"
            f" median of final returns is that of {' and '.join(best)}, where one step has"
            f" {spread(scores['n=1'])}"
        )
    names = [name for name in ESTIMATORS if f"{CARTPOLE} {name}" in table.seeds]
    solved = {name: late_if_never(table.last(f"{CARTPOLE} {name}", "solved")) for name in names}
    first = min(names, key=lambda name: np.median(solved[name]))
    plain, learned = (table.last(f"{CARTPOLE} {name}", "solved") for name in ("reinforce", "reinforce_baseline"))
    verdict = against("it", "REINFORCE", solved[first], late_if_never(plain), "later", "earlier")
    solved_first = table.last(f"{CARTPOLE} {first}", "solved")
    return (
        f"To a mean return of 195 on {CARTPOLE}, A2C takes {spread(solved_first)} environment steps with {first}, its"
        f" fastest estimate, REINFORCE {spread(plain)}, and with a baseline {spread(learned)} ({verdict});"
        f" {'; '.join(parts)}."
    )


def collapses(table, setting):
    """How many runs end with less than a twentieth of the largest entropy, and a return that is not near the best."""
    actions, enough = (2, 475) if setting.startswith(CARTPOLE) else (4, 0.8)
    entropy, score = table.last(setting, "entropy"), table.last(setting, "eval_return")
    return int(((entropy < 0.05 * np.log(actions)) & (score < enough)).sum())


def sentence_entropy(table):
    parts = []
    for env in (CARTPOLE, GRIDWORLD):
        coefficients = ("0", "0.01", "0.05")
        scores = {x: table.last(f"{env} {x}", "eval_return") for x in coefficients}
        rows = ", ".join(
            f"{x}: {spread(scores[x])}, {number(np.median(table.last(f'{env} {x}', 'entropy')))} nats,"
            f" {collapses(table, f'{env} {x}')} of {len(scores[x])} collapsed"
            for x in coefficients
        )
        verdicts = " and ".join(against(x, "0", scores[x], scores["0"]) for x in coefficients[1:])
        parts.append(f"on {env}, {rows} ({verdicts})")
    return f"A2C's final return and entropy by entropy coefficient {'; '.join(parts)}."


def over_training(table, setting):
    """Mean return of all training episodes, as the log has them, of each seed -> (seeds,)"""
    return np.array([y.mean() for _, y in table.curves(setting, "episodic_return")])


def sentence_clipping(table):
    clips, rates = ("0.1", "0.2", "0.4", "none"), ("0.003", "0.03", "0.1")
    moves = {name: [y.max() for _, y in table.curves(f"ppo, clip {name}", "divergence")] for name in clips}
    ppo = {name: over_training(table, f"ppo, clip {name}") for name in clips}
    a2c = {rate: over_training(table, f"a2c, step {rate}") for rate in rates}
    of_ppo = ", ".join(
        f"{name}: {spread(moves[name])}, {spread(ppo[name])} and"
        f" {spread(table.last(f'ppo, clip {name}', 'eval_return'))}"
        for name in clips
    )
    of_a2c = ", ".join(
        f"{rate}: {spread(a2c[rate])} and {spread(table.last(f'a2c, step {rate}', 'eval_return'))}" for rate in rates
    )
    further = against("none", "0.2", moves["none"], moves["0.2"], "further", "less far")
    verdicts = "; ".join(against(rate, "0.003", a2c[rate], a2c["0.003"]) for rate in rates[1:])
    worse = against("none", "0.2", ppo["none"], ppo["0.2"])
    return (
        f"PPO of 10 epochs by clip range, the KL divergence (nats) of a rollout's updates, mean of some five rollouts,"
        f" at its largest, the mean return over training and the final one, {of_ppo} ({further}, and by the mean return"
        f" {worse}); A2C's returns by step size, {of_a2c} (by the mean return {verdicts})."
    )


def sentence_overestimation(table):
    mine = {script.upper(): gaps(table, script) for script in ("ddpg", "td3", "sac")}
    words = {True: "too high", False: "too low"}
    rows = ", ".join(
        f"{name} {spread(gap)}, " + (words[bool(gap[0] > 0)] if len({*np.sign(gap)}) == 1 else "of no one sign")
        for name, gap in mine.items()
    )
    verdict = against("TD3's", "DDPG's", mine["TD3"], mine["DDPG"], "higher", "lower")
    return (
        f"Action values less the discounted return that is collected, mean over the second half of training on"
        f" {PENDULUM}: {rows} ({verdict})."
    )


def sentence_fixes(table):
    scores = {name: table.last(name, "eval_return") for name in table.seeds}
    off = {name: gaps(table, name) for name in table.seeds}
    rows = ", ".join(f"{name}: {spread(scores[name])} and {spread(off[name])}" for name in scores)
    others = [name for name in scores if name != "td3"]
    by_return = ", ".join(against(name, "td3", scores[name], scores["td3"]) for name in others)
    by_value = ", ".join(against(name, "td3", off[name], off["td3"], "higher", "lower") for name in others)
    return (
        f"Final return on {PENDULUM}, and action values less what is collected, {rows}; by return {by_return}; by those"
        f" values {by_value}."
    )


def sentence_temperature(table):
    scores = {name: table.last(name, "eval_return") for name in table.seeds}
    rows = ", ".join(
        f"{name}: {spread(scores[name])} and {spread(table.last(name, 'entropy'))} nats" for name in scores
    )
    others = [name for name in scores if name != "learned"]
    verdicts = ", ".join(against(name, "learned", scores[name], scores["learned"]) for name in others)
    return (
        f"SAC's final return on {PENDULUM} and its entropy by temperature, {rows} (by return {verdicts}); the learned"
        f" one ends at {spread(table.last('learned', 'alpha'))}."
    )


def sentence_truncation(table):
    parts, kinds = [], ("bootstrapped", "as a death")
    for env in (PENDULUM, CAR):
        right, wrong = (over_training(table, f"{env}, {kind}") for kind in kinds)
        ends = " and ".join(spread(table.last(f"{env}, {kind}", "eval_return")) for kind in kinds)
        verdict = against("a death", "a bootstrap", wrong, right)
        parts.append(f"on {env} {spread(right)} and {spread(wrong)} ({verdict}), at the end {ends}")
    right, wrong = (gaps(table, f"{PENDULUM}, {kind}", whole=True) for kind in kinds)
    verdict = against("the latter", "the former", wrong, right, "higher", "lower")
    return (
        f"PPO's mean return over training, its time limits bootstrapped and taken for deaths, {'; '.join(parts)}; its"
        f" value less what is collected on {PENDULUM} is, over training, {spread(right)} and {spread(wrong)}"
        f" ({verdict})."
    )


def pendulum_pictures(table, script):
    """Values and torques of a script's picture -> (GRID, GRID) each"""
    return [table.columns(script, quantity)[0][1].reshape(GRID, GRID) for quantity in ("value", "torque")]


def grid_snapshots(table):
    """{step: (values, actions)} of the gridworld, (gridworld.SIZE, gridworld.SIZE) each."""
    found = {}
    for setting, quantity, seed in table.cells:
        if setting == "gridworld" and quantity.startswith("value at "):
            step = int(quantity.removeprefix("value at "))
            pair = (table.cells[setting, f"{name} at {step}", seed][1] for name in ("value", "action"))
            found[step] = [x.reshape(gridworld.SIZE, gridworld.SIZE) for x in pair]
    return dict(sorted(found.items()))


def value_error(value, best):
    """Mean distance of a gridworld's values from the best ones, over the cells that are not the goal."""
    return float(np.abs(value - best).flat[: gridworld.GOAL].mean())


def sentence_pictures(table):
    middle, scripts = GRID // 2, [name for name in table.seeds if name != "gridworld"]
    values, torques = zip(*(pendulum_pictures(table, script) for script in scripts), strict=True)
    rows = ", ".join(
        f"{script.upper()} {number(value[middle, middle])} and {number(value[middle, 0])}"
        f" (its final return: {number(table.last(script, 'eval_return')[0])})"
        for script, value in zip(scripts, values, strict=True)
    )
    pushes = np.sign(torques)
    agree = 100 * (pushes == pushes[0]).all(0).mean()
    best, snapshots = gridworld.value_iteration(0.99), grid_snapshots(table)
    errors = [f"{value_error(value, best):.2f} after {step} steps" for step, (value, _) in snapshots.items()]
    return (
        f"Upright at rest and hanging {PENDULUM} is worth, each by its own discount, {rows}, and the {len(scripts)}"
        f" policies push the same way in {agree:.0f} % of the states; in the gridworld A2C's values are off those of"
        f" the best policy by {', '.join(errors)} in the mean."
    )


def sentence(study, table):
    """The study's numbers in words: what they do not show, it does not say."""
    return globals()[f"sentence_{study}"](table)


# Figures -------------------------------------------------------------------------------------------------------------


def band(axis, curves, label="", style=0):
    """The median of the seeds' curves, and the middle half of them, where all of them are."""
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return
    steps = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 80)
    values = np.array([np.interp(steps, x, y) for x, y in curves])
    low, middle, high = np.percentile(values, (25, 50, 75), axis=0)
    colour = COLOURS[style % len(COLOURS)]
    axis.plot(steps, middle, color=colour, linestyle=DASHES[style % len(DASHES)], label=label, linewidth=1.8)
    axis.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)


def panels(rows, columns, width=4.2, height=3.2):
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def caption(table):
    """What lines and bands are."""
    seeds = max(len(seeds) for seeds in table.seeds.values())
    return f"line: median of {seeds} seed{'s'[: seeds - 1]}, band: the middle half of them"


def legend(figure, axis, table, columns=4):
    """Below the panels, where it covers nothing, with what the bands are."""
    handles, labels = axis.get_legend_handles_labels()
    title = caption(table)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, title=title, title_fontsize=9
    )


def over_steps(axis, table, names, quantity, ylabel, title, **kwargs):
    """A panel of curves over environment steps."""
    for style, (setting, label) in enumerate(names.items()):
        band(axis, table.curves(setting, quantity), label, style)
    axis.set(xlabel="environment steps", ylabel=ylabel, title=title, **kwargs)
    axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))


def dots(axis, columns, ylabel, title):
    """A column of dots, a dot for each seed, and a bar at its median: {name: values}"""
    for k, values in enumerate(columns.values()):
        values = values[~np.isnan(values)]
        spots = k + 0.25 * (np.arange(len(values)) / max(1, len(values) - 1) - 0.5)
        axis.plot(spots, values, "o", color=COLOURS[0], markersize=4, alpha=0.7)
        if len(values):
            axis.plot([k - 0.3, k + 0.3], [np.median(values)] * 2, color=COLOURS[1], linewidth=2)
    axis.set(ylabel=ylabel, title=title)
    names = [textwrap.fill(name, 16) for name in columns]
    axis.set_xticks(range(len(columns)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)


def draw_variance(names, table):
    figure, (axes,) = panels(1, 2, width=5)
    for style, setting in enumerate(names):
        curves = table.curves(setting, "mean_of_100")
        for x, y in curves:
            axes[0].plot(x, y, color=COLOURS[style], alpha=0.25, linewidth=0.8)
        band(axes[0], curves, setting, style)
    axes[0].axhline(195, color="black", linewidth=0.8)
    axes[0].set(
        xlabel="episodes", ylabel="mean return of 100 episodes", title="REINFORCE on CartPole-v1; thin: each seed"
    )
    for style, (name, label) in enumerate(
        {"none": "no baseline", "constant": "mean return", "learned": "learned V(s)"}.items()
    ):
        for setting in names:
            band(axes[1], table.curves(setting, f"gradient_variance_{name}"), label, style)
    axes[1].set(
        xlabel="environment steps",
        ylabel="trace of the covariance",
        yscale="log",
        title="Gradient of an episode, by baseline",
    )
    axes[1].xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    for axis in axes:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=8, ncols=3)
    figure.supxlabel(caption(table), fontsize=9)
    return figure


def draw_estimators(names, table):
    figure, axes = panels(2, 3, width=4.6, height=3.4)
    for row, env in zip(axes, (CARTPOLE, PENDULUM), strict=True):
        for style, quantity in enumerate(("squared_bias", "variance")):
            columns = [column for name in names if name.startswith(env) for column in table.columns(name, quantity)]
            if columns:
                values = np.array([y for _, y in columns])
                middle = np.maximum(np.median(values, 0), 1e-3)
                ends = np.maximum(np.abs(np.stack([values.min(0), values.max(0)]).clip(1e-3) - middle), 0)
                row[0].errorbar(
                    range(len(middle)),
                    middle,
                    ends,
                    fmt="os"[style],
                    color=COLOURS[style],
                    capsize=2,
                    linestyle="",
                    label=quantity.replace("_", " "),
                )
                row[0].set_xticks(
                    range(len(middle)), columns[0][0], rotation=45, ha="right", rotation_mode="anchor", fontsize=8
                )
        row[0].set(yscale="log", ylabel="(discounted return)$^2$", title=f"{env}: the estimate of a return")
        mine = {name.removeprefix(f"{env} "): name for name in names if name.startswith(env)}
        goal = 195 if env == CARTPOLE else -300
        solved = {label: table.last(name, "solved") for label, name in mine.items()}
        dots(row[1], solved, "environment steps", f"{env}: to a mean return of {goal}")
        row[1].yaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        dots(
            row[2],
            {label: table.last(name, "eval_return") for label, name in mine.items()},
            "return",
            f"{env}: at the end",
        )
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title_fontsize=9,
        title="left: median and range over seeds, 0.001 at least; right: a dot for each seed, a bar at the median",
    )
    return figure


def draw_entropy(names, table):
    figure, axes = panels(2, 2)
    for row, env, most in zip(axes, (CARTPOLE, GRIDWORLD), (2, 4), strict=True):
        mine = {name: f"coefficient {name.split()[1]}" for name in names if name.startswith(env)}
        over_steps(row[0], table, mine, "entropy", "nats", f"{env}: entropy (dotted: uniform)")
        row[0].axhline(np.log(most), color="black", linewidth=0.8, linestyle=":")
        over_steps(row[1], table, mine, "episodic_return", "return", f"{env}: training episodes")
    legend(figure, axes[0][0] if axes[0][0].lines[1:] else axes[1][0], table)
    return figure


def draw_clipping(names, table):
    figure, axes = panels(2, 3)
    ppo = {name: name for name in names if name.startswith("ppo")}
    a2c = {name: name for name in names if name.startswith("a2c")}
    over_steps(
        axes[0][0], table, ppo, "divergence", "KL divergence (nats)", "PPO: what a rollout's updates move", yscale="log"
    )
    over_steps(axes[0][1], table, ppo, "clipfrac", "share of the samples", "PPO: beyond the clip range")
    over_steps(axes[0][2], table, ppo, "episodic_return", "return", "PPO: training episodes")
    over_steps(
        axes[1][0],
        table,
        a2c,
        "divergence",
        "KL divergence (nats)",
        "A2C: what an update moves",
        yscale="log",
        ylim=(1e-7, 3),
    )
    over_steps(axes[1][1], table, a2c, "entropy", "nats", "A2C: entropy of the policy")
    over_steps(axes[1][2], table, a2c, "episodic_return", "return", "A2C: training episodes")
    for row in axes:
        row[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=8, ncols=4)
    figure.supxlabel(f"CartPole-v1; {caption(table)}", fontsize=9)
    return figure


def draw_overestimation(names, table):
    figure, (axes,) = panels(1, len(names) + 1, width=3.6)
    for axis, setting in zip(axes, names, strict=False):
        band(axis, table.curves(setting, "predicted"), "predicted by the critic", 1)
        band(axis, table.curves(setting, "collected"), "collected from there on", 0)
        axis.set(xlabel="environment steps", title=setting.upper())
        axis.sharey(axes[0])
    axes[0].set_ylabel("discounted return")
    for style, setting in enumerate(names):
        band(axes[-1], differences(table, setting), f"{setting.upper()}, difference", style + 2)
    axes[-1].axhline(0, color="black", linewidth=0.8)
    axes[-1].set(xlabel="environment steps", ylabel="discounted return", title="predicted less collected")
    axes[-1].set_yscale("symlog", linthresh=20)
    handles = [axis.get_legend_handles_labels() for axis in (axes[0], axes[-1])]
    figure.legend(
        handles[0][0] + handles[1][0],
        handles[0][1] + handles[1][1],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        title=f"Pendulum-v1, in states of the replay buffer; SAC with its entropy; {caption(table)}",
        title_fontsize=9,
    )
    return figure


def draw_fixes(names, table):
    figure, (axes,) = panels(1, 3, width=4.4)
    mine = {name: name for name in names}
    over_steps(axes[0], table, mine, "episodic_return", "return", "Pendulum-v1: training episodes")
    for style, setting in enumerate(names):
        band(axes[1], differences(table, setting), setting, style)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[1].set(xlabel="environment steps", ylabel="discounted return", title="predicted less collected")
    axes[1].set_yscale("symlog", linthresh=20)
    dots(
        axes[2], {name: table.last(name, "eval_return") for name in names}, "return", "at the end, a dot for each seed"
    )
    legend(figure, axes[0], table, columns=5)
    return figure


def draw_temperature(names, table):
    figure, (axes,) = panels(1, 4, width=3.8)
    mine = {name: name for name in names}
    over_steps(axes[0], table, mine, "episodic_return", "return", "SAC on Pendulum-v1")
    over_steps(axes[1], table, mine, "entropy", "nats", "entropy of the policy")
    over_steps(axes[2], table, mine, "alpha", "reward per nat", "temperature", yscale="log")
    dots(
        axes[3], {name: table.last(name, "eval_return") for name in names}, "return", "at the end, a dot for each seed"
    )
    legend(figure, axes[0], table)
    return figure


def draw_truncation(names, table):
    figure, axes = panels(2, 2, width=4.8)
    for row, env in zip(axes, (PENDULUM, CAR), strict=True):
        mine = {name: f"time limits {name.split(', ')[1]}" for name in names if name.startswith(env)}
        over_steps(row[0], table, mine, "episodic_return", "return", f"{env}: training episodes")
        if env == CAR:
            over_steps(
                row[1], table, mine, "explained_variance", "share", f"{env}: explained variance", ylim=(-0.2, 1.02)
            )
            continue
        for style, setting in enumerate(mine):
            band(row[1], differences(table, setting), mine[setting], style)
        row[1].axhline(0, color="black", linewidth=0.8)
        row[1].set(xlabel="environment steps", ylabel="discounted return", title=f"{env}: value less what is collected")
        row[1].xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    legend(figure, axes[0][0] if axes[0][0].lines else axes[1][0], table)
    return figure


def draw_pictures(names, table):
    scripts = [name for name in names if name != "gridworld"]
    figure = plt.figure(figsize=(13, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.8, 1))
    if scripts:
        grid = above.subplots(2, len(scripts), sharex=True, sharey=True, squeeze=False)
        for column, script in zip(grid.T, scripts, strict=True):
            value, torque = pendulum_pictures(table, script)
            score = table.last(script, "eval_return")[0]
            box = {"extent": (-180, 180, -8, 8), "origin": "lower", "aspect": "auto"}
            pictures = (
                column[0].imshow(value, cmap="viridis", **box),
                column[1].imshow(torque, cmap="PuOr", vmin=-2, vmax=2, **box),
            )
            column[0].set_title(f"{script.upper()}: value")
            column[1].set(
                title=f"{script.upper()}: torque (scores {number(score)})",
                xlabel="angle (degrees; 0 is up)",
                xticks=(-180, -90, 0, 90, 180),
            )
            for axis, picture, label in zip(column, pictures, ("discounted return", "N m"), strict=True):
                above.colorbar(picture, ax=axis, label=label if script == scripts[-1] else None)
        for axis in grid[:, 0]:
            axis.set_ylabel("velocity (rad/s)")
        above.suptitle("Pendulum-v1")
    snapshots = grid_snapshots(table)
    if snapshots:
        best = gridworld.value_iteration(0.99)
        axes = below.subplots(1, len(snapshots) + 1)
        shown = {f"{step} steps": pair for step, pair in snapshots.items()} | {"the best policy": (best, None)}
        for axis, (title, (value, action)) in zip(axes, shown.items(), strict=True):
            value = value.copy()
            value.flat[gridworld.GOAL] = np.nan
            picture = axis.imshow(value, cmap="viridis", vmin=-0.5, vmax=1)
            if action is not None:
                row, column = np.divmod(np.arange(gridworld.GOAL), gridworld.SIZE)
                right = np.array([0, 1, 0, -1])[action.flat[: gridworld.GOAL].astype(int)]
                up = np.array([1, 0, -1, 0])[action.flat[: gridworld.GOAL].astype(int)]
                axis.quiver(
                    column,
                    row,
                    right,
                    up,
                    color="white",
                    scale=16,
                    width=0.008,
                    headwidth=5,
                    pivot="mid",
                    rasterized=True,
                )
            axis.plot(gridworld.SIZE - 1, gridworld.SIZE - 1, "*", color=COLOURS[1], markersize=9)
            axis.set(title=title, xticks=(), yticks=())
        below.colorbar(picture, ax=list(axes), label="value", extend="both")
        below.suptitle("A2C in a gridworld: V(s) and the likeliest action as it learns; star: goal, +1; a step: -0.01")
    return figure


def draw(study, names, table, folder):
    """The figure of these settings as SVG and PNG, the same bytes from the same table."""
    matplotlib.rcParams["svg.hashsalt"] = "studies"
    figure = globals()[f"draw_{study}"](names, table)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"study_{study}.svg", metadata={"Date": None})
    figure.savefig(folder / f"study_{study}.png", dpi=110)
    plt.close(figure)
