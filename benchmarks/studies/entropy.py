"""Does an entropy bonus keep a policy from settling too early? A2C on CartPole-v1 and in a gridworld.

    python benchmarks/studies/entropy.py

A run has collapsed if it ends with less than 5 % of the entropy of a uniform policy and a poor return: below 475 on
CartPole-v1, below 0.8 in the gridworld, which pays only at the goal.
"""

import numpy as np
from study import RETURN, Setting, common, curves, main, spread

ENVIRONMENTS = {  # flags, actions, a good return
    "CartPole-v1": ("--num-envs 8 --num-steps 5 --total-timesteps 50000", 2, 475),
    "Gridworld-v0": (
        "--env-id benchmarks.studies.gridworld:Gridworld-v0 --num-envs 8 --num-steps 5 --total-timesteps 30000"
        " --learning-rate 0.01",
        4,
        0.8,
    ),
}
COEFFICIENTS = {0: "#D55E00", 0.01: "#0072B2", 0.05: "#009E73"}
SETTINGS = {
    f"{env_id}, {coefficient}": Setting(
        "a2c", f"{flags} --ent-coef {coefficient}", colour, tags=(RETURN, "losses/entropy")
    )
    for env_id, (flags, _, _) in ENVIRONMENTS.items()
    for coefficient, colour in COEFFICIENTS.items()
}


def collapses(found, name):
    """How many runs end with a settled policy and a poor return."""
    _, actions, good = ENVIRONMENTS[name.split(",")[0]]
    entropy, score = found.last(name, "entropy"), found.last(name, "eval_return")
    return int(((entropy < 0.05 * np.log(actions)) & (score < good)).sum())


def draw(found):
    figure, axes = common.panels(2, 2)
    for row, (env_id, (_, actions, _)) in zip(axes, ENVIRONMENTS.items(), strict=True):
        mine = {name: setting for name, setting in SETTINGS.items() if name.startswith(env_id)}
        curves(row[0], found, mine, "entropy", "entropy, nats", title=env_id)
        row[0].axhline(np.log(actions), color="black", linewidth=0.8, linestyle=":")
        curves(row[1], found, mine, "episodic_return", "return of 20 episodes", title=env_id)
    labels = [f"bonus {coefficient}" for coefficient in COEFFICIENTS]
    common.legend(figure, axes[0][0].lines[: len(labels)], labels)
    return figure


def table(found):
    rows = []
    for name in SETTINGS:
        env_id, coefficient = name.split(", ")
        score, entropy = found.last(name, "eval_return"), np.median(found.last(name, "entropy"))
        digits = 0 if env_id == "CartPole-v1" else 2
        collapsed = f"{collapses(found, name)} of {len(score)}"
        rows.append((env_id, coefficient, spread(score, digits), f"{entropy:.2f}", collapsed))
    return common.markdown(("environment", "bonus", "return at the end", "entropy, nats", "collapsed"), rows)


if __name__ == "__main__":
    main("entropy", SETTINGS, draw, table, __doc__, seeds="1-8")
