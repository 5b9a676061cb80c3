"""Algorithm x environment x seed, by a table of flags: final evaluations and learning curves, as two CSV tables.

    python benchmarks/run.py --seeds 1-3
    python benchmarks/run.py --envs CartPole-v1 --scripts ppo a2c --dry-run
    python benchmarks/run.py --ray auto --work /shared/suite

Each run has a folder of its own in --work. The same command again goes on: a run that has its result is not made again,
one that has a checkpoint is resumed, be it that this program was stopped or killed, or that a worker of Ray was lost.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import sys
import threading
import time
import tomllib
from concurrent import futures
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import common
from tqdm import tqdm

COLUMNS = (
    "script",
    "env",
    "seed",
    "key",
    "flags",
    "eval_return",
    "eval_std",
    "episodes",
    "steps",
    "seconds",
    "steps_per_second",
    "peak_rss_mb",
    "script_sha256",
    *common.PROVENANCE,
)
LATER = ("peak_rss_mb",)  # tables that were begun before it was measured are taken
CURVE_COLUMNS = ("script", "env", "seed", "key", "steps", "eval_return", "train_return", "seconds")
POINTS = 50  # of the training return in a curve
OURS = ("--env-id", "--seed", "--num-threads", "--device", "--resume", "--evaluate")  # flags that no table gives


@dataclass
class Args:
    suite: Path = Path("benchmarks/suite.toml")  # table of flags: for each environment, script or name = "flags"
    scripts: tuple[str, ...] = ()  # only these scripts of the table, such as: ppo sac; none: all
    envs: tuple[str, ...] = ()  # only these environments of the table; none: all
    seeds: str = "1-10"  # seeds of each: 1-10 or 1,3,7-9
    jobs: int = 0  # runs at a time, each with one torch thread; 0: as many as there are cores
    ray: str = ""  # make the runs on a Ray cluster: its address, or auto for that of this machine; local: start one
    work: Path = Path("runs/suite")  # folder of the runs' folders; on a cluster one that all its machines share
    out: Path = Path("benchmarks/results/suite.csv")  # table of the runs; their curves are in NAME_curves.csv beside it
    eval_episodes: int = 100  # episodes of the final evaluation
    dry_run: bool = False  # say what is done and what is to do, and do nothing


@dataclass(frozen=True)
class Task:
    """One run, and all that a process on another machine has to know to make it."""

    name: str  # of the script in the table
    source: Path  # the script
    env: str
    seed: int
    flags: str  # as the table has them, those that belong to the name first
    sha256: str  # of the script's contents
    key: str  # digest of all that the result depends on, but the seed: script, contents, environment and flags
    episodes: int  # of the final evaluation
    work: Path  # the grid's folder

    def __str__(self):
        return f"{Path(self.name).name} {self.env} seed {self.seed}"

    @property
    def copy(self):
        """The script as it was when the grid began: an edit since then changes no run."""
        return self.work / "scripts" / self.sha256 / self.source.name

    @property
    def folder(self):
        """What this run leaves: its outputs, its own folder under runs/, and at last result.json."""
        return self.work / f"{self.source.stem}__{re.sub('[/:]', '-', self.env)}__{self.seed}__{self.key}"

    @property
    def identity(self):
        """What no two rows of the table share."""
        return self.key, str(self.seed), str(self.episodes)


def read_flags(args, table, name, flags):
    """A line of the table, name = "flags" -> its flags as words; the program ends if they are not what they must be."""
    if not isinstance(flags, str):
        common.fail(f'--suite {args.suite}: {table}: {name} is not of the form script = "flags"')
    try:
        words = shlex.split(flags)
    except ValueError as error:
        common.fail(f"--suite {args.suite}: {table}: {name}: {flags}: {error}")
    common.refuse_taken(words, OURS, f"{args.suite} gives it to {name}, but that is for the runner to do")
    return words


def read_suite(args):
    """The part of the table that was asked for -> {(environment, name): (path of the script without .py, flags)}.

    A name is a script's, or one that the table [scripts] declares: name = "file.py flags", flags that it always gets.
    """
    try:
        table = tomllib.loads(args.suite.read_text())
    except (OSError, ValueError) as error:
        common.fail(f"--suite {args.suite}: {error}")
    declared = {}
    for name, command in table.pop("scripts", {}).items():
        words = read_flags(args, "scripts", name, command)
        if not (words and words[0].endswith(".py")):
            common.fail(f'--suite {args.suite}: scripts: {name} is not of the form name = "file.py flags"')
        declared[name] = (words[0].removesuffix(".py"), shlex.join(words[1:]))
    entries = {}
    for env, row in table.items():
        for name, flags in row.items() if isinstance(row, dict) else [(row, None)]:
            read_flags(args, env, name, flags)
            script, always = declared.get(name, (name, ""))
            entries[env, name] = script, f"{always} {flags}" if always else flags
    known = {"--envs": {env for env, _ in entries}, "--scripts": {name for _, name in entries}}
    for flag, asked in (("--envs", args.envs), ("--scripts", args.scripts)):
        for name in asked:
            if name not in known[flag]:
                common.fail(f"{flag} {name}: {args.suite} has {', '.join(sorted(known[flag]))}")
    chosen = {
        (env, name): entry
        for (env, name), entry in entries.items()
        if (not args.envs or env in args.envs) and (not args.scripts or name in args.scripts)
    }
    if not chosen:
        common.fail(f"--suite {args.suite} has no such script for such an environment")
    return chosen


def make_tasks(entries, seeds, args):
    """All runs of the grid, seed by seed: so a grid that is stopped has about as many seeds in each of its cells."""
    cells = []
    for (env, name), (script, flags) in entries.items():
        source = common.ROOT / f"{script}.py"
        if not source.is_file():
            common.fail(f"--suite {args.suite}: {source} is not a file")
        sha256 = common.contents_sha256(source)
        # Not the commit: a script is one file, so its contents say what ran, and a commit elsewhere costs no run.
        key = hashlib.sha256(json.dumps([source.name, sha256, env, flags]).encode()).hexdigest()[:12]
        cells.append((name, source, env, flags, sha256, key))
    return [
        Task(name, source, env, seed, flags, sha256, key, args.eval_episodes, args.work.resolve())
        for seed in seeds
        for name, source, env, flags, sha256, key in cells
    ]


def copy_scripts(tasks):
    """Put the scripts where the runs start them."""
    for task in tasks:
        if not task.copy.exists():
            task.copy.parent.mkdir(parents=True, exist_ok=True)
            draft = task.copy.with_suffix(".tmp")
            shutil.copy(task.source, draft)
            draft.replace(task.copy)


def read_result(task):
    """What a finished run left, or None; the evaluation has to be of as many episodes as are asked for."""
    try:
        result = json.loads((task.folder / "result.json").read_text())
    except (FileNotFoundError, ValueError):  # the latter after a power cut, before the disk had it
        return None
    return result if result["row"]["episodes"] == task.episodes else None


def find_checkpoint(task):
    """The folder, under the task's, of the run that has a checkpoint, or None."""
    found = sorted(task.folder.glob("runs/*/checkpoint.pt"))
    return found[0].parent.relative_to(task.folder) if found else None


def read_peak(task):
    """Peak memory, as text, of the process that ended the training; empty if no runner was left to see its end."""
    try:
        return (task.folder / "peak_rss_mb").read_text()
    except FileNotFoundError:
        return ""


def is_trained(run_folder):
    """Whether a checkpoint is the last of its run: the process was killed between this one and its end."""
    import torch  # slow, and only what was interrupted needs it

    saved = torch.load(run_folder / "checkpoint.pt", map_location="cpu", weights_only=True, mmap=True)
    return saved["step"] >= saved["args"]["total_timesteps"]


@contextlib.contextmanager
def claim(folder, pause):
    """Hold a run's folder, so that two processes never work in it -> the lock, or None if told to stop.

    The lock goes on to the script that works here, and lasts until that has ended, too. So whoever finds it held, with
    nobody left above the script (a runner or a worker of Ray was killed), ends the script and goes on from its last
    checkpoint. On another machine it cannot be ended: there it is waited for.
    """
    with open(folder / "lock", "a+") as lock:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            lock.seek(0)
            holder = re.fullmatch(r"(\S+) (\d+)\n", lock.read())
            if holder and holder[1] == platform.node():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(holder[2]), signal.SIGKILL)  # not SIGTERM: a checkpoint at another step is another run
            if pause(0.1):
                yield None
                return
        yield lock


def launch(task, flags, lock, pause):
    """Run the script in its task's folder to its end -> its exit status, or None if told to stop."""
    with open(task.folder / "log", "a") as log:
        log.write(f"{common.now()} {platform.node()} {shlex.join(flags)}\n")
    lock.truncate(0)
    # In a session of its own, for Ctrl-C is for the runner, which then stops the script by itself.
    command = [sys.executable, str(task.copy), *flags]
    process = common.start(command, task.folder, pass_fds=[lock.fileno()], start_new_session=True)
    try:
        lock.write(f"{platform.node()} {process.pid}\n")
        lock.flush()
        while not (usage := common.poll(process)):
            if pause(0.05):
                return None
        if process.returncode == 0 and "--evaluate" not in flags:
            (task.folder / "peak_rss_mb").write_text(f"{common.peak_rss_mb(usage):.1f}")
        return process.returncode
    finally:
        common.stop(process)  # by SIGTERM, at which a script saves a checkpoint
        lock.truncate(0)


def read_curve(run_folder, steps, eval_return):
    """Rows of a run's curve: at each evaluation, and at the first log of each fiftieth of the run.

    The last one has the final evaluation, in place of that of a few episodes with which the script ends.
    """
    evaluations, returns = common.read_scalars(run_folder, "charts/eval_return", "charts/episodic_return")
    clock = common.read_clock(run_folder)
    evaluations[steps], thin = eval_return, {}
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


def execute(task, origin, pause=time.sleep):
    """Do what a run still lacks -> {"row", "curve"}, {"error"} if it failed, or None if told to stop.

    origin: the columns of command and commit. pause(seconds) waits, and returns true if all is to stop.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    with claim(task.folder, pause) as lock:
        if lock is None:
            return None
        if result := read_result(task):
            return result
        run_folder = find_checkpoint(task)
        if not (run_folder and is_trained(task.folder / run_folder)):
            if run_folder:
                flags = ["--resume", str(run_folder)]
            else:
                shutil.rmtree(task.folder / "runs", ignore_errors=True)  # of a run that was killed before it saved
                flags = ["--env-id", task.env, "--seed", str(task.seed), "--num-threads", "1", "--device", "cpu"]
                flags += shlex.split(task.flags)
            status = launch(task, flags, lock, pause)
            if status != 0:
                return failure(task, status)
            run_folder = find_checkpoint(task)
        flags = ["--evaluate", str(run_folder), "--eval-episodes", str(task.episodes)]
        status = launch(task, flags, lock, pause)
        final = common.parse_last_line(common.last_line(task.folder, "stdout"))
        if status != 0 or not final:
            return failure(task, status)
        final.pop("folder")
        row = {"script": task.source.name, "env": task.env, "seed": task.seed, "key": task.key, "flags": task.flags}
        row |= final | {"peak_rss_mb": read_peak(task), "script_sha256": task.sha256, "date": common.now()}
        row |= origin | common.machine()
        result = {"row": row, "curve": read_curve(task.folder / run_folder, final["steps"], final["eval_return"])}
        draft = task.folder / "result.tmp"
        draft.write_text(json.dumps(result))
        draft.replace(task.folder / "result.json")
        return result


def failure(task, status):
    """What execute returns for a script that did not end as it should."""
    if status is None:
        return None
    last = common.last_line(task.folder, "stderr") or common.last_line(task.folder, "stdout")
    return {"error": f"exit status {status}: {last}"}


def run_here(tasks, origin, args):
    """Make the runs in processes of this machine, args.jobs at a time; yields each with its result, as it ends."""
    stopping = threading.Event()
    pool = futures.ThreadPoolExecutor(args.jobs)
    try:
        running = {pool.submit(execute, task, origin, stopping.wait): task for task in tasks}
        for future in futures.as_completed(running):
            if error := future.exception():  # a full disk, a damaged checkpoint: the other runs go on
                result = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
            else:
                result = future.result()
            yield running[future], result
    finally:
        stopping.set()
        pool.shutdown(cancel_futures=True)


def connect_to_ray(args):
    """Ray itself, connected to the cluster that was asked for."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        common.fail("--ray needs Ray: pip install -r benchmarks/requirements.txt")
    options = {"num_cpus": args.jobs, "include_dashboard": False} if args.ray == "local" else {}
    try:
        ray.init(args.ray, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        common.fail(f"--ray {args.ray}: {error}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own in place
    ray.cloudpickle.register_pickle_by_value(common)  # the other machines need no copy of this repository
    return ray


def run_on_ray(ray, tasks, origin):
    """Make the runs on the Ray cluster; yields each with its result, as it ends."""
    # A worker that is lost, with its machine or alone, is not the run's fault: another takes the run up.
    remote = ray.remote(num_cpus=1, max_retries=-1)(execute)
    pending = {}
    try:
        pending |= {remote.remote(task, origin): task for task in tasks}
        while pending:
            for reference in ray.wait(list(pending))[0]:
                task = pending.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    result = {"error": str(error).strip().splitlines()[-1]}
                yield task, result
    finally:
        for reference in pending:
            ray.cancel(reference)  # raises KeyboardInterrupt in execute, where launch stops the script
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=60)
        ray.shutdown()


def curves_of(out):
    """The path of the table of curves that belongs to a table of runs."""
    return out.with_name(f"{out.stem}_curves.csv")


def gather(results, args):
    """Put results into the two tables, curves first: a run that has its row has its curve.

    Another runner, with a folder of its own, may have the same tables: they take turns.
    """
    with open(args.out.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        curves, rows = common.read_rows(curves_of(args.out), CURVE_COLUMNS), common.read_rows(args.out, COLUMNS, LATER)
        new = {(result["row"]["key"], str(result["row"]["seed"])) for result in results}
        curves = [row for row in curves if (row["key"], row["seed"]) not in new]
        for result in results:
            run = {name: result["row"][name] for name in CURVE_COLUMNS[:4]}
            curves += [run | row for row in result["curve"]]
            rows.append(result["row"])
        common.replace_rows(curves_of(args.out), CURVE_COLUMNS, curves)
        common.replace_rows(args.out, COLUMNS, rows)


def ranges(seeds):
    """[1, 2, 3, 7] -> '1-3,7', the form of --seeds."""
    parts = []
    for seed in sorted(seeds):
        if parts and parts[-1][1] == seed - 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def describe(tasks, rows):
    """A line for each cell of the grid: its seeds by what is left to do, and the mean of those that are done."""
    scores = {(row["key"], row["seed"], row["episodes"]): float(row["eval_return"]) for row in rows}
    cells = {}
    for task in tasks:
        cells.setdefault((Path(task.name).name, task.env, task.flags), []).append(task)
    for (name, env, flags), cell in cells.items():
        done = [task for task in cell if task.identity in scores]
        left = [task for task in cell if task.identity not in scores]
        begun = [task.seed for task in left if find_checkpoint(task)]
        parts = [f"{name} {env}"]
        if done:
            mean = statistics.mean(scores[task.identity] for task in done)
            parts.append(f"done {ranges(task.seed for task in done)}, mean {mean:.2f}")
        if begun:
            parts.append(f"to resume {ranges(begun)}")
        if fresh := [task.seed for task in left if task.seed not in begun]:
            parts.append(f"to do {ranges(fresh)}")
        yield " | ".join([*parts, flags or "defaults"])


@contextlib.contextmanager
def only_runner(work):
    """Hold the folder of the grid, or end the program if another runner does."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = open(work / "lock", "a")  # noqa: SIM115
    except OSError as error:
        common.fail(f"--work {work}: cannot write it: {error.strerror}")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            common.fail(f"--work {work}: another run.py is at work there; give this one a folder of its own")
        yield


def run_all(tasks, done, origin, args):
    """Make the runs that are not done, each into the tables as it ends -> the number that failed."""
    todo = [task for task in tasks if task.identity not in done]
    runner = run_on_ray(connect_to_ray(args), todo, origin) if args.ray and todo else run_here(todo, origin, args)
    began, failed = time.monotonic(), 0
    with contextlib.closing(runner), tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="run") as bar:
        for ended, (task, result) in enumerate(runner, 1):
            if "error" in result:
                failed += 1
                tqdm.write(f"{task} failed: {result['error']}", file=sys.stderr)
                note = f"{task} failed"
            else:
                gather([result], args)
                note = f"{task}: {result['row']['eval_return']:.2f}"
            left = (time.monotonic() - began) / ended * (len(todo) - ended)
            bar.set_postfix_str(f"{note}, end {datetime.now() + timedelta(seconds=left):%d %b %H:%M}", refresh=False)
            bar.update()
    return failed


def main():
    """Make what the grid lacks, or say what that is."""
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    if args.jobs < 0 or args.eval_episodes < 1:
        common.fail(f"--jobs {args.jobs} must be 0 or more, and --eval-episodes {args.eval_episodes} 1 or more")
    args.jobs = args.jobs or os.cpu_count()
    tasks = make_tasks(read_suite(args), common.parse_seeds(args.seeds), args)
    if args.dry_run:
        print("\n".join(describe(tasks, common.read_rows(args.out, COLUMNS, LATER))))
        return
    rows = common.open_rows(args.out, COLUMNS, LATER)
    common.open_rows(curves_of(args.out), CURVE_COLUMNS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with only_runner(tasks[0].work):
        copy_scripts(tasks)
        done = {task.identity for task in tasks} & {(row["key"], row["seed"], row["episodes"]) for row in rows}
        if rows:
            print(f"{args.out}: {len(done)} of {len(tasks)} runs are done, {len(rows) - len(done)} other rows stay")
        try:
            failed = run_all(tasks, done, common.origin(), args)
        except KeyboardInterrupt:
            print("stopped: the same command goes on from here", file=sys.stderr)
            sys.exit(130)
    print("\n".join(describe(tasks, common.read_rows(args.out, COLUMNS, LATER))))
    print(f"{len(tasks) - failed} of {len(tasks)} runs | {args.out}" + (f" | {failed} failed" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
