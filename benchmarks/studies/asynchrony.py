"""What do workers gain that do not wait for each other? A3C with 1 to 8 workers, and A2C with as many environments.

    python benchmarks/studies/asynchrony.py

Each worker has 8 environments of CartPole-v1. Staleness is how many updates others made between the pull of the weights
and the push of the gradient. Give --jobs 1: the runs share the cores.
"""

import numpy as np
from study import RETURN, SPS, Setting, common, main, spread

ENVS, FLAGS = 8, "--total-timesteps 400000 --checkpoint-every 400000 --eval-episodes 20"
WORKERS = {1: "#56B4E9", 2: "#0072B2", 4: "#D55E00", 8: "#CC79A7"}
TAGS = RETURN, SPS
SETTINGS = {
    f"A3C, {n} worker{'s' * (n > 1)}": Setting(
        "a3c", f"{FLAGS} --num-workers {n} --num-envs {ENVS}", colour, tags=(*TAGS, "losses/staleness")
    )
    for n, colour in WORKERS.items()
} | {
    f"A2C, {n * ENVS} environments": Setting("a2c", f"{FLAGS} --num-envs {n * ENVS}", colour, tags=TAGS)
    for n, colour in WORKERS.items()
}


def medians(found, name, quantity):
    """Medians over seeds of each part of the runs -> steps, values"""
    curves = found.curves(name, quantity)
    parts = min(len(x) for x, _ in curves)
    return tuple(np.median([column[:parts] for column in columns], 0) for columns in zip(*curves, strict=True))


def draw(found):
    figure, axes = common.panels(1, 3)
    for name, setting in SETTINGS.items():
        line = {"color": setting.colour, "linestyle": "-" if setting.script == "a3c" else ":", "linewidth": 1.8}
        steps, returns = medians(found, name, "episodic_return")
        axes[0].plot(steps, returns, label=name, **line)
        axes[1].plot(medians(found, name, "seconds")[1], returns, **line)
        if setting.script == "a3c":
            axes[2].plot(*medians(found, name, "staleness"), **line)
    axes[0].set(xlabel="environment steps", ylabel="return of 20 episodes")
    axes[1].set(xlabel="seconds", ylabel="return of 20 episodes")
    axes[2].set(xlabel="environment steps", ylabel="staleness, updates")
    for axis in (axes[0], axes[2]):
        common.steps_axis(axis)
    common.legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def table(found):
    rows, names = [], list(SETTINGS)
    for n, alone, together in zip(WORKERS, names[: len(WORKERS)], names[len(WORKERS) :], strict=True):
        speeds = [f"{np.median(found.last(name, 'SPS')):,.0f}" for name in (alone, together)]
        stale = np.mean([y.mean() for _, y in found.curves(alone, "staleness")])
        ends = [spread(found.last(name, "eval_return")) for name in (alone, together)]
        rows.append((n * ENVS, n, speeds[0], f"{stale:.2f}", ends[0], speeds[1], ends[1]))
    columns = "A3C, workers", "steps/s", "staleness", "return at the end", "A2C, steps/s", "return at the end"
    return common.markdown(("environments", *columns), rows)


if __name__ == "__main__":
    main("asynchrony", SETTINGS, draw, table, __doc__)
