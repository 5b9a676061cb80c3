"""What do value and policy look like? Four scripts on Pendulum-v1, and A2C in a gridworld as it learns; one seed.

python benchmarks/studies/pictures.py
"""

import gridworld
import numpy as np
import torch
from study import PPO_PENDULUM, SMALL, Setting, at, common, main, reward_unit

GRID = 41  # points along each axis of a picture
ANGLE, VELOCITY = np.meshgrid(np.linspace(-np.pi, np.pi, GRID), np.linspace(-8, 8, GRID))


def pendulum(module, run, notes):
    """Note value and greedy torque (N m) over the states of Pendulum, (velocity, angle)."""
    agent = run.state["agent"]
    obs = torch.as_tensor(np.stack([np.cos(ANGLE), np.sin(ANGLE), VELOCITY], -1).reshape(-1, 3)).float()
    with torch.no_grad():
        action = agent.act(obs, greedy=True)
        if hasattr(agent, "value"):
            value = agent.value(obs) * reward_unit(agent)
        else:
            value = module.q_value(agent.critic, obs, action).amin(0)
    notes["value"] = [GRID, GRID], value.tolist()
    notes["torque"] = [GRID, GRID], (2 * action[:, 0].clamp(-1, 1)).tolist()


def grid(module, run, notes):
    """Note the values of all cells at this step, and the greedy actions."""
    agent, cells, size = run.state["agent"], torch.eye(gridworld.SIZE**2), [gridworld.SIZE] * 2
    with torch.no_grad():
        notes[f"value at {run.step}"] = size, agent.value(cells).tolist()
        notes[f"action at {run.step}"] = size, agent.act(cells, greedy=True).tolist()


A2C = (
    "--env-id Pendulum-v1 --total-timesteps 1000000 --num-envs 8 --gamma 0.95 --gae-lambda 0.95 --norm-adv"
    " --learning-rate 2e-3 --norm-reward"
)
SETTINGS = {
    script: Setting(script, flags, hooks=(at([1], pendulum),))
    for script, flags in (
        ("a2c", A2C),
        ("ppo", f"{PPO_PENDULUM} --num-steps 64 --total-timesteps 100000"),
        ("td3", f"{SMALL} --total-timesteps 6000"),
        ("sac", f"{SMALL} --total-timesteps 6000"),
    )
}
PENDULUM = tuple(SETTINGS)
SETTINGS["gridworld"] = Setting(
    "a2c",
    "--env-id benchmarks.studies.gridworld:Gridworld-v0 --total-timesteps 100000",
    hooks=(at((0, 0.03, 0.1, 0.3, 1), grid),),
)


def picture(found, script, quantity):
    return found.columns(script, quantity)[0][1].reshape(GRID, GRID)


def snapshots(found):
    """{step: (values, actions)} of the gridworld, (SIZE, SIZE) each."""
    steps = sorted(int(name.split()[2]) for setting, name, _ in found.cells if name.startswith("value at "))
    shape = gridworld.SIZE, gridworld.SIZE
    pair = lambda step: [found.columns("gridworld", f"{x} at {step}")[0][1].reshape(shape) for x in ("value", "action")]  # noqa: E731
    return {step: pair(step) for step in steps}


def draw(found):
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(11, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.8, 1))
    axes = above.subplots(2, len(PENDULUM), sharex=True, sharey=True)
    box = {"extent": (-180, 180, -8, 8), "origin": "lower", "aspect": "auto"}
    for (top, bottom), script in zip(axes.T, PENDULUM, strict=True):
        value = top.imshow(picture(found, script, "value"), cmap="viridis", **box)
        torque = bottom.imshow(picture(found, script, "torque"), cmap="PuOr", vmin=-2, vmax=2, **box)
        top.set_title(f"{script.upper()}: value")
        bottom.set(title="torque, N m", xlabel="angle (0: up)", xticks=(-180, 0, 180))
        above.colorbar(value, ax=top)
        above.colorbar(torque, ax=bottom)
    for axis in axes[:, 0]:
        axis.set_ylabel("velocity, rad/s")
    shown = {f"{step:,} steps": pair for step, pair in snapshots(found).items()}
    shown["the best values"] = gridworld.value_iteration(0.99), None
    axes = below.subplots(1, len(shown))
    for axis, (title, (value, action)) in zip(axes, shown.items(), strict=True):
        value = value.copy()
        value.flat[gridworld.GOAL] = np.nan
        cells = axis.imshow(value, cmap="viridis", vmin=-0.5, vmax=1)
        if action is not None:
            row, column = np.divmod(np.arange(gridworld.GOAL), gridworld.SIZE)
            up, right = np.array(gridworld.MOVES)[action.flat[: gridworld.GOAL].astype(int)].T
            axis.quiver(column, row, right, -up, color="white", scale=16, width=0.008, pivot="mid", rasterized=True)
        axis.plot(gridworld.SIZE - 1, gridworld.SIZE - 1, "*", color="#D55E00", markersize=9)
        axis.set(title=title, xticks=(), yticks=())
    below.colorbar(cells, ax=list(axes), extend="both")
    return figure


def table(found):
    middle, best = GRID // 2, gridworld.value_iteration(0.99)
    rows = [
        (
            name.upper(),
            f"{value[middle, middle]:.1f}",
            f"{value[middle, 0]:.0f}",
            f"{found.last(name, 'eval_return')[0]:.0f}",
        )
        for name, value in ((name, picture(found, name, "value")) for name in PENDULUM)
    ]
    errors = [
        (f"{step:,}", f"{np.abs(value - best).flat[: gridworld.GOAL].mean():.2f}")
        for step, (value, _) in snapshots(found).items()
    ]
    return [
        *common.markdown(("Pendulum-v1", "value upright at rest", "hanging", "return at the end"), rows),
        "",
        *common.markdown(("gridworld, steps", "mean error of A2C's values"), errors),
    ]


if __name__ == "__main__":
    main("pictures", SETTINGS, draw, table, __doc__, seeds="1")
