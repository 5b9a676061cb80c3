"""What the studies share: runs of settings over seeds, hooks that change a script or look on, tables, figures."""

import contextlib
import functools
import importlib
import io
import math
import multiprocessing
import re
import shlex
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

sys.path.insert(0, str(common.ROOT))
COLUMNS = ("setting", "script", "flags", "seed", "quantity", "x", "y", *common.PROVENANCE)
RETURN, SPS = "charts/episodic_return", "charts/SPS"
POINTS = 40  # a curve keeps the means of so many equal parts of its run
STATES, HORIZON = 64, 1000  # of Monte-Carlo returns: what gamma 0.99 leaves of step 1000 is 4e-5
EIGHTHS = tuple(k / 8 for k in range(1, 9))
# Small networks and batches learn Pendulum as well, at a fifth of the time.
SMALL = "--hidden-size 64 --batch-size 128"
PPO_PENDULUM = (
    "--env-id Pendulum-v1 --gamma 0.95 --learning-rate 0.001 --num-minibatches 16 --update-epochs 10 --norm-reward"
)


@dataclass(frozen=True)
class Setting:
    """Runs of one kind: a script, its flags, its colour, hooks(module, notes), tags of its log to keep.

    says: a pattern; its group, in what the run prints, is kept as the words x of the quantity "says".
    """

    script: str
    flags: str = ""
    colour: str = "#000000"
    hooks: tuple = ()
    tags: tuple = (RETURN,)
    says: str = ""


@dataclass
class Args:
    seeds: str = "1-5"  # seeds of each setting: 1-10 or 1,3,7-9
    jobs: int = 1  # runs at a time, each with one torch thread
    flags: str = ""  # more flags for every run, for a quick look; needs --out
    out: Path | None = None  # folder for rows and figure; the table is then only printed
    draw: bool = False  # make the figure and the table from the rows, and run nothing


# Runs ----------------------------------------------------------------------------------------------------------------


def thin(curve, points=POINTS):
    """A curve {step: value} -> steps and values of so many equal parts: the last step of each, and its mean value."""
    parts, start, end = {}, min(curve, default=0), max(curve, default=1)
    for step, value in sorted(curve.items()):
        part = math.ceil((step - start) * points / max(end - start, 1))
        parts.setdefault(max(part, 1), []).append((step, value))
    return [part[-1][0] for part in parts.values()], [float(np.mean([y for _, y in part])) for part in parts.values()]


def add(notes, quantity, x, y):
    """Add a point to a curve."""
    for column, number in zip(notes.setdefault(quantity, ([], [])), (x, y), strict=True):
        column.append(number)


def run(setting, seed, more):
    """Train once, in a process of its own, for hooks change the script -> {quantity: (x, y)}, each a list."""
    module, notes, stdout = importlib.import_module(setting.script), {}, io.StringIO()
    for hook in setting.hooks:
        hook(module, notes)
    words = shlex.split(f"{setting.flags} --seed {seed} --num-threads 1 --device cpu {more}")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(stdout):
        with contextlib.redirect_stderr(io.StringIO()):
            module.train(tyro.cli(module.Args, args=words))
        result = common.parse_last_line(stdout.getvalue().splitlines()[-1])
        curves = common.read_scalars(result["folder"], *setting.tags)
    if setting.says:
        words = re.search(setting.says, stdout.getvalue())[1].split()
        notes["says"] = words, [0] * len(words)
    curves = dict(zip(setting.tags, curves, strict=True))
    notes |= {tag.partition("/")[2]: thin(curve) for tag, curve in curves.items()}
    if SPS in curves:
        notes["seconds"] = thin({step: step / rate for step, rate in curves[SPS].items()})
    return notes | {"eval_return": ([result["steps"]], [result["eval_return"]])}


def rows_of(name, setting, flags, seed, notes):
    """The rows of a run, one for each quantity; lists have spaces between their numbers."""
    words = lambda column: " ".join(f"{x:.5g}" if isinstance(x, float) else str(x) for x in column)  # noqa: E731
    known = {"setting": name, "script": setting.script, "flags": flags, "seed": str(seed)}
    return [known | {"quantity": quantity, "x": words(x), "y": words(y)} for quantity, (x, y) in notes.items()]


def measure(settings, args, path):
    """Make the runs that the table lacks, each into the table as it ends. Rows of another commit are replaced."""
    seeds = common.parse_seeds(args.seeds)
    origin = common.provenance()
    rows = [row for row in common.open_rows(path, COLUMNS) if row["commit"] == origin["commit"]]
    rows = [] if origin["commit"].endswith("-dirty") else rows
    done = {(row["setting"], row["flags"], row["seed"]) for row in rows}
    flags = {name: f"{setting.flags} {args.flags}".strip() for name, setting in settings.items()}
    missing = [(name, seed) for seed in seeds for name in settings if (name, flags[name], str(seed)) not in done]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn, max_tasks_per_child=1) as pool:
        runs = {pool.submit(run, settings[name], seed, args.flags): (name, seed) for name, seed in missing}
        try:
            for ended in tqdm(as_completed(runs), total=len(runs), unit="run"):
                name, seed = runs[ended]
                rows += [row | origin for row in rows_of(name, settings[name], flags[name], seed, ended.result())]
                common.replace_rows(path, COLUMNS, rows)
        finally:
            pool.shutdown(cancel_futures=True)


class Table:
    """A study's rows: for a setting and a quantity, a pair of arrays x and y for each seed."""

    def __init__(self, rows):
        self.seeds, self.cells = {}, {}
        for row in rows:
            self.seeds.setdefault(row["setting"], set()).add(int(row["seed"]))
            place = row["setting"], row["quantity"], int(row["seed"])
            self.cells[place] = row["x"].split(), np.array(row["y"].split(), float)

    def columns(self, setting, quantity):
        """(x, y) of each seed that has the quantity; x are words."""
        found = [self.cells.get((setting, quantity, seed)) for seed in sorted(self.seeds[setting])]
        return [cell for cell in found if cell]

    def curves(self, setting, quantity):
        """As columns, but x are numbers."""
        return [(np.array(x, float), y) for x, y in self.columns(setting, quantity)]

    def last(self, setting, quantity):
        """The last value of each seed; NaN where a seed has none -> (seeds,)"""
        cells = [self.cells.get((setting, quantity, seed)) for seed in sorted(self.seeds[setting])]
        return np.array([cell[1][-1] if cell else np.nan for cell in cells])

    def gaps(self, setting):
        """Curves of the predicted value less the return that was collected."""
        pairs = zip(self.curves(setting, "predicted"), self.curves(setting, "collected"), strict=True)
        return [(x, predicted - collected) for (x, predicted), (_, collected) in pairs]


def main(name, settings, draw, table, description, seeds="1-5"):
    """Run the settings, draw the figure, and write the table into docs/claims.md.

    draw: Table -> figure; table: Table -> rows of Markdown, the header first.
    """
    args = common.parse_args(Args, description, sys.argv[1:], Args(seeds))
    if args.flags and not args.out:
        common.fail("--flags needs --out: the committed rows have none")
    path = (args.out or common.RESULTS) / f"study_{name}.csv"
    if not args.draw:
        measure(settings, args, path)
    found = Table(common.read_rows(path, COLUMNS))
    common.save_figure(draw(found), (args.out or common.FIGURES) / f"study_{name}.svg")
    lines = table(found)
    print("\n".join(lines))
    if not args.out:
        common.write_table(common.ROOT / "docs" / "claims.md", name, lines)


# Figures and tables --------------------------------------------------------------------------------------------------


def band(axis, curves, **line):
    """The median of the seeds' curves, and their range."""
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return
    steps = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 80)
    low, middle, high = np.percentile([np.interp(steps, x, y) for x, y in curves], (0, 50, 100), axis=0)
    axis.plot(steps, middle, **{"linewidth": 1.8} | line)
    axis.fill_between(steps, low, high, color=line.get("color"), alpha=0.15, linewidth=0)


def curves(axis, found, settings, quantity, ylabel, **kwargs):
    """A panel of a quantity over environment steps, a band for each setting."""
    for name, setting in settings.items():
        band(axis, found.curves(name, quantity), color=setting.colour, label=name)
    axis.set(xlabel="environment steps", ylabel=ylabel, **kwargs)
    common.steps_axis(axis)


def spread(values, digits=0):
    """'120 (90 to 150)': median, smallest and largest; a value that never came about is 'never'."""
    values = np.nan_to_num(np.asarray(values, float), nan=np.inf)
    numbers = np.median(values), values.min(), values.max()
    middle, low, high = (f"{x:,.{digits}f}" if np.isfinite(x) else "never" for x in numbers)
    return f"{middle} ({low} to {high})"


# Policies outside of training ----------------------------------------------------------------------------------------


def at(fractions, look):
    """A hook: look(module, run, notes) at these fractions of the run, after an update; the training's draws stay."""
    return functools.partial(look_at, fractions, look)


def look_at(fractions, look, module, notes):
    log_and_save, left = module.Run.log_and_save, sorted(fractions)

    def changed(run, metrics, optimizer):
        log_and_save(run, metrics, optimizer)
        due = [fraction for fraction in left if run.step >= fraction * run.args.total_timesteps]
        if due:
            del left[: len(due)]
            with torch.random.fork_rng(devices=()):
                look(module, run, notes)

    module.Run.log_and_save = changed


def discounted(reward, gamma):
    """sum_t gamma^t reward[t]; (T, B) -> (B,)"""
    total = torch.zeros_like(reward[0])
    for row in reward.flip(0):
        total = row + gamma * total
    return total


def states_of(env_id, obs):
    """The simulator's states (B, 4) or (B, 2) that are observed like this: of CartPole-v1, or of Pendulum-v1."""
    return obs if env_id == "CartPole-v1" else torch.stack([torch.atan2(obs[:, 1], obs[:, 0]), obs[:, 2]], 1)


def simulate(policy, env_id, states, steps):
    """Play from each of these states on, with no time limit; a reward after the true end is 0.

    policy: obs (B, D) -> action -> obs (T + 1, B, D), reward (T, B), terminated (T, B): 1 in the step that is the end.
    It is gymnasium's own simulator: that of CartPole steps many at once, and the arithmetic of Pendulum takes arrays.
    """
    cartpole = env_id == "CartPole-v1"
    env = CartPoleVectorEnv(len(states), max_episode_steps=steps + 2) if cartpole else PendulumEnv()
    env.reset(seed=0)
    env.state = states.double().numpy().T.copy()
    first = states if cartpole else torch.stack([states[:, 0].cos(), states[:, 0].sin(), states[:, 1]], 1)
    obs, rewards, ends, alive = [first.float()], [], [], torch.ones(len(states))
    for _ in range(steps):
        action = policy(obs[-1]).numpy()
        next_obs, reward, terminated, *_ = env.step(action if cartpole else 2 * action.clip(-1, 1).T)
        obs.append(torch.as_tensor(next_obs if cartpole else next_obs.T.copy()).float())
        rewards.append(alive * torch.as_tensor(reward).float())
        ends.append(alive * torch.as_tensor(terminated).float())
        alive = alive - ends[-1]
    return torch.stack(obs), torch.stack(rewards), torch.stack(ends)


def visited(module, agent, args, count, steps=100):
    """Observations (count, D) after so many steps of the policy's own, none of them an episode's last."""
    envs = module.make_envs(args, 2 * count)
    obs, _ = envs.reset(seed=0)
    for _ in range(steps):
        obs, _, terminated, truncated, _ = envs.step(agent.act(torch.as_tensor(obs).float()).numpy())
    envs.close()
    return torch.as_tensor(obs[~(terminated | truncated)][:count]).float()


def reward_unit(agent):
    """What a reward of 1 is to the critic, which is taught rewards divided by their returns' running deviation."""
    return (agent.norm_return.var[0] + 1e-8).sqrt()  # the variance is 1 if rewards are not normalised
