"""Algorithm x environment x seed, by a table of flags: final evaluations and learning curves, as two CSV tables.

    python benchmarks/scores/run.py --seeds 1-3
    python benchmarks/scores/run.py --envs CartPole-v1 --scripts ppo a2c --dry-run
    python benchmarks/scores/run.py --ray auto --work /shared/suite

Each run has a folder in --work. The same command again goes on: a finished run is not made again, one that has a
checkpoint is resumed. A run is known by its script's contents, environment, flags and seed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import joblib
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

HERE = Path(__file__).resolve().parent
COLUMNS = ("script", "env", "seed", "key", "flags", "eval_return", "eval_std", "episodes", "steps", "seconds")
COLUMNS += ("steps_per_second", "peak_rss_mb", "script_sha256", *common.PROVENANCE)
CURVE_COLUMNS = ("script", "env", "seed", "key", "steps", "eval_return", "train_return", "seconds")
POINTS = 50  # of the training return in a curve
TAKEN = ("--env-id", "--seed", "--num-threads", "--device", "--resume", "--evaluate")  # flags that no table gives


@dataclass
class Args:
    suite: Path = HERE / "suite.toml"  # table of flags: for each environment, script or name = "flags"
    scripts: tuple[str, ...] = ()  # only these scripts of the table, such as: ppo sac; none: all
    envs: tuple[str, ...] = ()  # only these environments of the table; none: all
    seeds: str = "1-5"  # seeds of each: 1-10 or 1,3,7-9
    jobs: int = os.cpu_count()  # runs at a time, each with one torch thread
    ray: str = ""  # make the runs on a Ray cluster: its address, or auto for that of this machine
    work: Path = Path("runs/suite")  # folder of the runs' folders; on a cluster one that all its machines share
    out: Path = common.RESULTS / "suite.csv"  # table of the runs; their curves are in NAME_curves.csv
    eval_episodes: int = 100  # episodes of the final evaluation
    dry_run: bool = False  # say what is done and what is to do, and do nothing


@dataclass(frozen=True)
class Task:
    """One run, and all that a process on another machine has to know to make it."""

    source: Path  # the script
    env: str
    seed: int
    flags: str
    episodes: int  # of the final evaluation
    work: Path
    origin: tuple = ()  # of the row: commit and command

    @property
    def sha256(self):
        return common.code_sha256(self.source)

    @property
    def key(self):
        """Digest of all that the result depends on but the seed. The commit is no part of it: a script is one file."""
        words = json.dumps([self.source.name, self.sha256, self.env, self.flags])
        return hashlib.sha256(words.encode()).hexdigest()[:12]

    @property
    def folder(self):
        return self.work / f"{self.source.stem}__{re.sub('[/:]', '-', self.env)}__{self.seed}__{self.key}"

    @property
    def identity(self):
        """What no two rows of the table share."""
        return self.key, str(self.seed), str(self.episodes)


def read_suite(path):
    """The table of flags -> {(environment, name): (file of the script, flags)}.

    A name is a script's, or one that the table [scripts] declares: name = "file.py flags", flags that it always gets.
    """
    try:
        table = tomllib.loads(path.read_text())
        declared = {name: shlex.split(command) for name, command in table.pop("scripts", {}).items()}
        entries = {}
        for env, row in table.items():
            for name, flags in row.items():
                script, *always = declared.get(name, [f"{name}.py"])
                words = always + shlex.split(flags)
                if taken := {word.split("=")[0].replace("_", "-") for word in words} & set(TAKEN):
                    common.fail(f"{taken.pop()}: {path} gives it to {name}, but that is for the runner to do")
                if not (common.ROOT / script).is_file():
                    common.fail(f"--suite {path}: {env}: there is no {script}")
                entries[env, name] = common.ROOT / script, shlex.join(words)
    except (OSError, ValueError, AttributeError) as error:
        common.fail(f"--suite {path}: {error}")
    return entries


def make_tasks(args):
    """All runs that are asked for, seed by seed, so that a grid that is stopped has as many seeds in each cell."""
    entries, origin = read_suite(args.suite), common.origin()
    envs, scripts = zip(*entries, strict=True)
    for flag, asked, known in (("--envs", args.envs, envs), ("--scripts", args.scripts, scripts)):
        if unknown := set(asked) - set(known):
            common.fail(f"{flag} {unknown.pop()}: {args.suite} has {', '.join(dict.fromkeys(known))}")
    return [
        Task(source, env, seed, flags, args.eval_episodes, args.work.resolve(), tuple(origin.items()))
        for seed in common.parse_seeds(args.seeds)
        for (env, name), (source, flags) in entries.items()
        if (not args.envs or env in args.envs) and (not args.scripts or name in args.scripts)
    ]


def start(task, lock, *flags):
    """Run the script to its end in its task's folder; its output is in files there -> peak memory, MB."""
    command = [sys.executable, str(task.folder / task.source.name), *flags]
    process = common.start(command, task.folder, pass_fds=[lock.fileno()])  # it keeps the lock if this one is killed
    RUNNING.add(process)
    _, status, usage = os.wait4(process.pid, 0)
    RUNNING.discard(process)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = common.last_line(task.folder, "stderr") or common.last_line(task.folder, "stdout")
        raise RuntimeError(f"exit status {process.returncode}: {last}")
    return common.peak_rss_mb(usage)


RUNNING = set()  # processes of this one


def read_curve(run_folder, steps, eval_return):
    """Rows of a run's curve: at each evaluation, and at the first log of each fiftieth of the run.

    The last one has the final evaluation, in place of that of a few episodes with which the script ends.
    """
    evaluations, returns = common.read_scalars(run_folder, "charts/eval_return", "charts/episodic_return")
    clock, thin = common.read_clock(run_folder), {}
    evaluations[steps] = eval_return
    for step in sorted(returns):
        thin.setdefault(step * POINTS // steps, step)

    def latest(curve, step, digits):
        """The curve's value at its last log until this step; empty if there is none yet."""
        before = [other for other in curve if other <= step]
        return round(curve[max(before)], digits) if before else ""

    return [
        {
            "steps": step,
            "eval_return": round(evaluations[step], 2) if step in evaluations else "",
            "train_return": latest(returns, step, 2),
            "seconds": latest(clock, step, 1),
        }
        for step in sorted({*evaluations, *thin.values()})
    ]


def finish(task, lock):
    """Do what a run still lacks -> {"row", "curve"}."""
    result = task.folder / "result.json"
    if result.exists() and (known := json.loads(result.read_text()))["row"]["episodes"] == task.episodes:
        return known
    if not (task.folder / task.source.name).exists():  # an edit since then changes no run
        shutil.copy(task.source, task.folder)
    saved = [path.parent for path in task.folder.glob("runs/*/checkpoint.pt")]
    flags = ("--env-id", task.env, "--seed", str(task.seed), "--num-threads", "1", "--device", "cpu")
    peak = start(task, lock, *(("--resume", str(saved[0])) if saved else (*flags, *shlex.split(task.flags))))
    (run_folder,) = (path.parent for path in task.folder.glob("runs/*/checkpoint.pt"))
    start(task, lock, "--evaluate", str(run_folder), "--eval-episodes", str(task.episodes))
    final = common.parse_last_line(common.last_line(task.folder, "stdout"))
    curve = read_curve(run_folder, final["steps"], final["eval_return"])
    del final["folder"]
    row = {"script": task.source.name, "env": task.env, "seed": task.seed, "key": task.key, "flags": task.flags}
    row |= final | {"peak_rss_mb": f"{peak:.1f}", "script_sha256": task.sha256, "date": common.now()}
    found = {"row": row | dict(task.origin) | common.machine(), "curve": curve}
    draft = result.with_suffix(".tmp")
    draft.write_text(json.dumps(found))
    draft.replace(result)
    return found


def make_run(task):
    """A run in its folder, which is locked for it -> task, {"row", "curve"} or {"error"}."""
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        with open(task.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return task, finish(task, lock)
    except BlockingIOError:
        return task, {"error": "a process of a runner that was killed still works on it"}
    except Exception as error:  # the others go on
        return task, {"error": " ".join(str(error).split())}


def curves_of(out):
    """The path of the table of curves that belongs to a table of runs."""
    return out.with_name(f"{out.stem}_curves.csv")


def gather(found, out):
    """Put a result into the two tables, the curve first: a run that has its row has its curve."""
    run = {name: found["row"][name] for name in CURVE_COLUMNS[:4]}
    curves = common.read_rows(curves_of(out), CURVE_COLUMNS)
    curves = [row for row in curves if (row["key"], row["seed"]) != (run["key"], str(run["seed"]))]
    common.replace_rows(curves_of(out), CURVE_COLUMNS, curves + [run | row for row in found["curve"]])
    common.append_rows(out, COLUMNS, [found["row"]])


def backend(args):
    """Where the runs are made: threads here, each with a process, or Ray's workers."""
    if not args.ray:
        return joblib.parallel_config("threading", n_jobs=args.jobs)
    import ray
    from ray.util.joblib import register_ray

    ray.init(args.ray, log_to_driver=False, logging_level="ERROR")
    ray.cloudpickle.register_pickle_by_value(common)  # the other machines need no copy of this repository
    register_ray()
    return joblib.parallel_config("ray", n_jobs=int(ray.cluster_resources()["CPU"]))


def describe(tasks, done):
    """A line for each cell: how many of its seeds are done."""
    cells = {}
    for task in tasks:
        cells.setdefault((task.source.stem, task.env, task.flags), []).append(task.identity in done)
    for (script, env, flags), finished in cells.items():
        print(f"{script} {env} | {sum(finished)} of {len(finished)} | {flags or 'defaults'}")


def stop(number, frame):
    """SIGTERM, as Ctrl-C: the scripts save and stop."""
    for process in list(RUNNING):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
    raise KeyboardInterrupt


def main():
    """Make what the grid lacks, each run into the tables as it ends; or say what that is."""
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    tasks, rows = make_tasks(args), common.open_rows(args.out, COLUMNS)
    done = {(row["key"], row["seed"], row["episodes"]) for row in rows}
    describe(tasks, done)
    if args.dry_run:
        return
    signal.signal(signal.SIGTERM, stop)
    todo, failed = [task for task in tasks if task.identity not in done], 0
    args.work.mkdir(parents=True, exist_ok=True)
    with open(args.work / "lock", "w") as lock, backend(args), tqdm(total=len(todo), unit="run") as bar:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            common.fail(f"--work {args.work}: another run.py is at work there")
        for task, found in joblib.Parallel(return_as="generator_unordered")(joblib.delayed(make_run)(x) for x in todo):
            name = f"{task.source.stem} {task.env} seed {task.seed}"
            if "error" in found:
                failed += 1
                tqdm.write(f"{name} failed: {found['error']}", file=sys.stderr)
            else:
                gather(found, args.out)
                bar.set_postfix_str(f"{name}: {found['row']['eval_return']:.2f}", refresh=False)
            bar.update()
    print(f"{len(todo) - failed} of {len(todo)} runs | {args.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
