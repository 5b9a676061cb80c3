"""How speed and memory follow the sizes: environments, processes, width, batch, its split, threads, replay buffer.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only environments
    python benchmarks/scaling.py --draw

Each point is a run of a script, alone, with clocks around its parts. A model whose constants are taken at the two ends
of the environments' curve in one process predicts what lies between, and two processes; likewise an update whose batch
two processes share. --draw makes the figure and the tables of SCALING.md from results/scaling.csv and runs nothing.
"""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import signal
import statistics
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import common
from tqdm import tqdm

PARTS = ("act_us", "simulate_us", "env_step_us", "update_us", "all_reduce_us")  # columns of times
COLUMNS = (
    "curve",
    "script",
    "size",
    "threads",
    "processes",
    "flags",
    "steps",
    "steps_per_second",
    "vector_steps",
    "updates",
    *PARTS,
    "rest_us",
    "peak_rss_mb",
    *common.PROVENANCE,
)
FIGURES = common.ROOT / "benchmarks" / "figures"
PAGE = common.ROOT / "benchmarks" / "SCALING.md"
COLORS = {
    "reinforce": "#999999",
    "reinforce_baseline": "#56b4e9",
    "a2c": "#e69f00",
    "ppo": "#0072b2",
    "ddpg": "#009e73",
    "td3": "#cc79a7",
    "sac": "#d55e00",
}
STYLES = {  # by threads and processes: how a line is drawn, and called
    (1, 1): ("-o", "1 process, 1 thread"),
    (2, 1): ("--s", "1 process, 2 threads"),
    (1, 2): (":^", "2 processes, 1 thread each"),
}
SIZES = {  # by curve, what is varied, and its values
    "environments": ("--num-envs", (1, 4, 16, 64, 256, 1024)),
    "width": ("--hidden-size", (32, 64, 128, 256, 512, 1024)),
    "batch": ("--batch-size", (32, 128, 512, 2048)),
    "split": ("batch, shared by the processes", (64, 256, 1024, 4096)),
    "buffer": ("--buffer-size", (1_000, 10_000, 100_000, 1_000_000)),
}
CHEETAH = "--env-id HalfCheetah-v5 --learning-starts 1000"


def on_policy(vector_steps, least):
    """Flags for n environments in each of p processes: so many vector steps, and at least so many steps."""
    return lambda n, p: f"--num-envs {n} --total-timesteps {max(least, vector_steps * n * p)}"


def one_update(n, p):
    """Off-policy flags for one update per vector step: the update ratio falls as environments are added."""
    rest = f"--utd {1 / (n * p)} --buffer-size 300000 --total-timesteps {1000 + 160 * n * p}"
    return f"--num-envs {n} {CHEETAH} {rest}"


def width(steps):
    return lambda n, p: f"--hidden-size {n} --total-timesteps {steps}"


def batch(n, p):
    """Off-policy flags for a batch of n transitions, of which each process has its share."""
    return f"--batch-size {n // p} --total-timesteps 1300"


RUNS = {  # by curve and script, the flags of the run of a size in so many processes
    "environments": {
        **{script: on_policy(1024, 8192) for script in ("reinforce", "reinforce_baseline", "a2c")},
        "ppo": on_policy(512, 4096),
        **dict.fromkeys(("ddpg", "td3", "sac"), one_update),
    },
    "width": {"ppo": width(8192), "td3": width(1300), "sac": width(1300)},
    "batch": {"td3": batch, "sac": batch},
    # Four minibatches of 16 steps: a quarter as many environments as transitions in a batch
    "split": {"ppo": lambda n, p: on_policy(512, 4096)(n // 4 // p, p), "td3": batch, "sac": batch},
    "buffer": {  # random actions alone, as many as fill it
        "td3": lambda n, p: (
            f"--buffer-size {n} --num-envs 50 --hidden-size 16 --total-timesteps {n} --learning-starts {n - 50}"
        )
    },
}


@dataclass
class Args:
    only: str = ""  # one curve; else all
    scripts: tuple[
        Literal["reinforce", "reinforce_baseline", "a2c", "ppo", "ddpg", "td3", "sac"], ...
    ] = ()  # none: all
    device: str = "cpu"  # where networks and data live: cpu or cuda
    out: Path = Path("benchmarks/results/scaling.csv")  # rows of a script's curve that is run again are replaced
    draw: bool = False  # make the figures and tables from the table, and run nothing


def clock(spent, owner, name, label):
    """Put a clock around owner.name, which notes the seconds of each call."""
    function = getattr(owner, name)

    def clocked(*args, **kwargs):
        began = common.seconds()
        try:
            return function(*args, **kwargs)
        finally:
            spent[label].append(common.seconds() - began)

    setattr(owner, name, clocked)


class UpdateClock:
    """Note the seconds of each update: from the first optimizer's zero_grad to the last step of any, or polyak_update.

    What rank_mean takes in the update is noted as its all-reduce.
    """

    def __init__(self, module, spent):
        self.spent, self.first, self.began = spent, None, None
        adam = sys.modules["torch"].optim.Adam
        zero_grad, step, rank_mean = adam.zero_grad, adam.step, module.rank_mean

        def zeroed(optimizer, *args, **kwargs):
            self.first = self.first or optimizer
            if optimizer is self.first:
                self.end()
                self.began, self.reduced = common.seconds(), 0.0
            return zero_grad(optimizer, *args, **kwargs)

        def stepped(optimizer, *args, **kwargs):
            value = step(optimizer, *args, **kwargs)
            self.latest = common.seconds()
            return value

        def meant(tensor):
            began, value = common.seconds(), rank_mean(tensor)
            if self.began is not None:
                self.reduced += common.seconds() - began
            return value

        adam.zero_grad, adam.step, module.rank_mean = zeroed, stepped, meant
        if polyak_update := getattr(module, "polyak_update", None):

            def moved(*args):
                polyak_update(*args)
                self.latest = common.seconds()

            module.polyak_update = moved

    def end(self):
        """Close the update that is open, if there is one."""
        if self.began is None:
            return
        self.spent["update_us"].append(self.latest - self.began)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            self.spent["all_reduce_us"].append(self.reduced)
        self.began = None


def one(script, *flags):
    """Train with clocks around the parts, and print as JSON what rank 0 has found: the rate, and means of the parts.

    All are of the second half of the vector steps; evaluations are not in it.
    """
    sys.path.insert(0, str(common.ROOT))
    sys.argv = [f"{script}.py", *flags]
    module, spent, stamps = importlib.import_module(script), defaultdict(list), []
    make_envs, evaluate, updates = module.make_envs, module.evaluate, UpdateClock(module, spent)

    def watched_envs(*args, **kwargs):
        envs = make_envs(*args, **kwargs)
        clock(spent, envs, "step", "simulate_us")
        return envs

    module.make_envs = watched_envs
    clock(spent, module.Agent, "act", "act_us")
    clock(spent, module.Run, "env_step", "env_step_us")
    env_step, log_and_save = module.Run.env_step, module.Run.log_and_save

    def logged(run, *rest):
        updates.end()
        log_and_save(run, *rest)

    def stamped(run, action):
        stamps.append((common.seconds(), run.step, len(spent["update_us"])))
        return env_step(run, action)

    def outside(*args, **kwargs):  # what an evaluation takes, and its calls of act and step, are not the loop's
        kept = {label: len(values) for label, values in spent.items()}
        stamps.append((common.seconds(), None, None))
        returns = evaluate(*args, **kwargs)
        for label, length in kept.items():
            del spent[label][length:]
        return returns

    module.Run.env_step, module.Run.log_and_save, module.evaluate = stamped, logged, outside
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        module.main()
    stamps = stamps[
        : [*(step for _, step, _ in stamps), None].index(None)
    ]  # until the first evaluation: of rank 0 alone
    (began, first, before), (ended, last, after) = stamps[len(stamps) // 2], stamps[-1]
    calls = len(stamps) - 1 - len(stamps) // 2
    found = {name: 1e6 * statistics.mean(spent[name][len(spent[name]) // 2 :]) for name in PARTS if spent[name]}
    parts = calls * (found["act_us"] + found["env_step_us"]) + (after - before) * found.get("update_us", 0)
    found |= {"steps_per_second": (last - first) / (ended - began), "vector_steps": calls, "updates": after - before}
    found |= {"steps": last, "rest_us": (1e6 * (ended - began) - parts) / calls}  # targets, storing, logging, Python
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(found))


def run(script, flags, threads, processes, device):
    """One point, on as many cores as threads and processes -> its row."""
    words = [script, *shlex.split(flags), "--num-threads", str(threads), "--device", device, "--eval-episodes", "1"]
    words += ["--checkpoint-every", "1000000000"]  # one would cut the time that is measured
    launcher = [sys.executable, str(Path(__file__).resolve()), "--one", *words]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher = [sys.executable, *torchrun, *launcher[1:]]
    with tempfile.TemporaryDirectory() as folder:
        process = common.start(launcher, folder, cores=threads * processes)
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            common.stop(process)
        if process.returncode:
            common.fail(f"{script}.py {flags}: {common.last_line(folder, 'stderr')}", status=1)
        found = json.loads(common.last_line(folder, "stdout"))
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    found |= {"peak_rss_mb": peak if processes == 1 else ""}
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in found.items()}


def number(row, name):
    return float(row[name] or 0)


def line(small, large, name):
    """The part's time as a + b size, through two rows -> a function of the size."""
    sizes, times = [number(row, "size") for row in (small, large)], [number(row, name) for row in (small, large)]
    slope = (times[1] - times[0]) / (sizes[1] - sizes[0])
    return lambda size: times[0] + slope * (size - sizes[0])


def predict(rows, row, all_reduce_us=0.0):
    """A row's steps per second by the model: N P / (act + env_step + rest + u (update + all-reduce)), u updates in it.

    Each part's time is a + b N through N = 1 and N = 1024 in one process. Each of P processes has its own N and a core
    of its own; all of them wait in each update for the all-reduce. Of the row itself only N, P and u are used.
    """
    size, processes = int(row["size"]), int(row["processes"])
    mine = select(rows, script=row["script"], processes=1)
    mine = sorted(mine, key=lambda other: int(other["size"]))
    parts = {name: line(mine[0], mine[-1], name)(size) for name in ("act_us", "env_step_us", "rest_us", "update_us")}
    updates = number(row, "updates") / number(row, "vector_steps")
    per_vector_step = parts["act_us"] + parts["env_step_us"] + parts["rest_us"]
    per_vector_step += updates * (parts["update_us"] + all_reduce_us)
    return 1e6 * size * processes / per_vector_step


def select(rows, **values):
    return [row for row in rows if all(row[name] == str(value) for name, value in values.items())]


def parts_table(rows):
    """What limits each script: the parts of a vector step with few and many environments, one process, one thread."""
    lines = ["| script | environments | act | simulate | transfer, checks | update, its share | rest | steps/s |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for script in RUNS["environments"]:
        for row in select(rows, script=script, processes=1)[1::2]:
            updates = number(row, "updates") / number(row, "vector_steps")
            times = {"act": number(row, "act_us"), "simulate": number(row, "simulate_us")}
            times |= {"transfer": number(row, "env_step_us") - number(row, "simulate_us")}
            times |= {"update": updates * number(row, "update_us"), "rest": number(row, "rest_us")}
            whole = sum(times.values())
            cells = [f"{value:,.0f} us ({value / whole:.0%})" for value in times.values()]
            rate = f"{number(row, 'steps_per_second'):,.0f}"
            lines.append(f"| `{script}.py` | {row['size']} | {' | '.join(cells)} | {rate} |")
    return "\n".join(lines)


def all_reduce(rows, script):
    """The median of what two processes took for it over all numbers of environments, in microseconds."""
    times = [number(row, "all_reduce_us") for row in select(rows, script=script, processes=2)]
    return statistics.median(times) if times else 0


def model_table(rows):
    """Predicted against measured steps per second for 1 and 2 processes; what made the constants is in brackets."""
    lines = [
        "| script | environments each | 1 process: measured | predicted | 2 processes: measured | predicted | gain |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for script in RUNS["environments"]:
        singles = {row["size"]: row for row in select(rows, script=script, processes=1)}
        pairs = {row["size"]: row for row in select(rows, script=script, processes=2)}
        ends = sorted(singles, key=int)[:1] + sorted(singles, key=int)[-1:]
        for size in sorted(singles, key=int):
            one = number(singles[size], "steps_per_second")
            forecast = predict(rows, singles[size])
            cells = [f"{one:,.0f}", f"({forecast:,.0f})" if size in ends else f"{forecast:,.0f}"]
            if size in pairs:
                two = number(pairs[size], "steps_per_second")
                forecast = predict(rows, pairs[size], all_reduce(rows, script))
                cells += [f"{two:,.0f}", f"{forecast:,.0f}", f"{two / one:.2f}"]
            lines.append(f"| `{script}.py` | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def reduce_table(rows):
    """The all-reduce of a script's gradients, and the update that it is part of."""
    lines = ["| script | update, us | of it all-reduce, us | update of one process, us |", "|---|---|---|---|"]
    for script in RUNS["environments"]:
        pairs, singles = (select(rows, script=script, processes=count) for count in (2, 1))
        medians = (
            [
                statistics.median(number(row, name) for row in group)
                for group, name in ((pairs, "update_us"), (pairs, "all_reduce_us"), (singles, "update_us"))
            ]
            if pairs
            else []
        )
        lines.append(f"| `{script}.py` | {' | '.join(f'{value:,.0f}' for value in medians)} |")
    return "\n".join(lines)


def predict_split(rows, row, all_reduce_us):
    """Microseconds of a row's update by the model: a + b B / P + all-reduce, for a batch of B shared by P processes.

    a and b are of one process with the smallest and the largest batch.
    """
    mine = sorted(select(rows, script=row["script"], processes=1), key=lambda other: int(other["size"]))
    return line(mine[0], mine[-1], "update_us")(int(row["size"]) / int(row["processes"])) + all_reduce_us


def split_table(rows, all_reduces):
    """An update of one process, and of two that share its batch: measured, predicted, and what is gained."""
    lines = ["| script | batch | one process, us | two, us | of it all-reduce, us | predicted, us | gain | predicted |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in select(rows, processes=2):
        (single,) = select(rows, script=row["script"], size=row["size"], processes=1)
        times = [number(single, "update_us"), number(row, "update_us"), number(row, "all_reduce_us")]
        times.append(predict_split(rows, row, all_reduces[row["script"]]))
        cells = [f"{time:,.0f}" for time in times] + [f"{times[0] / times[i]:.2f}" for i in (1, 3)]
        lines.append(f"| `{row['script']}.py` | {row['size']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_tables(text, rows):
    """SCALING.md's text with the tables of these rows between their marks."""
    rows, split = (select(rows, curve=curve, threads=1) for curve in ("environments", "split"))
    tables = {"parts": parts_table(rows), "model": model_table(rows), "reduce": reduce_table(rows)}
    tables["split"] = split_table(split, {script: all_reduce(rows, script) for script in RUNS["split"]})
    for name, table in tables.items():
        made = f"<!-- {name} -->\n{table}\n<!-- end -->"
        text = re.sub(f"<!-- {name} -->.*?<!-- end -->", lambda _, made=made: made, text, flags=re.DOTALL)
    return text


def draw(rows):
    """A panel for each curve, a line for each script, threads and processes, both axes logarithmic."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "scaling"
    names = [name for name in SIZES if any(row["curve"] == name for row in rows)]
    wide = min(len(names), 2)
    high = -(-len(names) // wide)
    figure, axes = plt.subplots(high, wide, figsize=(5.5 * wide, 4 * high), squeeze=False, layout="constrained")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        column = {"buffer": "peak_rss_mb", "split": "update_us"}.get(name, "steps_per_second")
        for script in RUNS[name]:
            for (threads, processes), (style, _) in STYLES.items():
                mine = select(rows, curve=name, script=script, threads=threads, processes=processes)
                points = sorted((int(row["size"]), float(row[column])) for row in mine)
                if points:
                    axis.plot(*zip(*points, strict=True), style, color=COLORS[script], markersize=4)
        axis.set(xscale="log", yscale="log", xlabel=SIZES[name][0], title=name)
        labels = {"buffer": "peak memory, MB", "split": "microseconds of an update"}
        axis.set_ylabel(labels.get(name, "environment steps per second"))
        axis.grid(alpha=0.3, which="both")
    lines = [plt.Line2D([], [], color=color, label=f"{script}.py") for script, color in COLORS.items()]
    for style, label in STYLES.values():
        lines += plt.plot([], [], style, color="black", label=label, markersize=4)
    figure.legend(handles=lines, loc="outside lower center", ncols=5)
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / "scaling.png", dpi=120)
    figure.savefig(FIGURES / "scaling.svg", metadata={"Date": None})


def points_of(curve, scripts):
    """The runs of a curve: script, size, threads, processes; of these scripts alone, if any are named."""
    two_processes = ((1, 1), (1, 2))
    ways = {"environments": two_processes, "split": two_processes, "buffer": ((1, 1),)}.get(curve, ((1, 1), (2, 1)))
    chosen = [script for script in RUNS[curve] if script in scripts or not scripts]
    return [(curve, script, size, *way) for script in chosen for size in SIZES[curve][1] for way in ways]


def main():
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
        return
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    if args.only and args.only not in SIZES:
        common.fail(f"--only {args.only}: there are {', '.join(SIZES)}")
    rows = common.open_rows(args.out, COLUMNS)
    if not args.draw:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        chosen, origin = [args.only] if args.only else list(SIZES), common.provenance()
        for curve in chosen:  # its old rows stay until it is whole
            new = []
            points = points_of(curve, args.scripts)
            for _, script, size, threads, processes in tqdm(points, unit="run", desc=curve):
                flags = RUNS[curve][script](size, processes)
                row = {"curve": curve, "script": script, "size": size, "threads": threads, "processes": processes}
                new.append(row | {"flags": flags} | run(script, flags, threads, processes, args.device) | origin)
            replaced = {(curve, script) for _, script, *_ in points}
            rows = [row for row in rows if (row["curve"], row["script"]) not in replaced] + new
            common.replace_rows(args.out, COLUMNS, rows)
    rows = common.read_rows(args.out, COLUMNS)
    if missing := [curve for curve in SIZES if not any(row["curve"] == curve for row in rows)]:
        common.fail(
            f"{args.out} has no rows of {missing[0]}; figure and page stay as they are", status=2 if args.draw else 0
        )
    draw(rows)
    PAGE.write_text(with_tables(PAGE.read_text(), rows))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
