"""Checks that take too long for the test suite: kills at random moments, memory of long runs, many runs on Ray.

    python tests/tools/soak.py kills       # SIGKILL for 50 runs; each resumed run must end with the same bits
    python tests/tools/soak.py memory      # 200k steps of each script; memory may grow by 20 MB after 20k
    python tests/tools/soak.py ray         # 500 short runs on a local Ray that loses a worker and then its head

Each prints a line for every try and one for all. The exit status is 1 if a check failed.
"""

import csv
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from harness import ROOT, SCRIPTS, differences, environment, run_ok, start, state


@dataclass
class Kills:
    """Kill a run, resume it, and compare it with a run that was never stopped."""

    count: int = 50  # kills; the scripts take turns, and every second kill comes while a checkpoint is written
    updates: int = 120  # updates of each run; there is a checkpoint after every second one
    seed: int = 0  # seed of the moments
    scripts: tuple[str, ...] = tuple(SCRIPTS)


@dataclass
class Memory:
    """Compare the memory of a run at 20k steps and at its end."""

    steps: int = 200_000
    scripts: tuple[str, ...] = tuple(SCRIPTS)


@dataclass
class Ray:
    """Make many short runs on a Ray of this machine, and once more without Ray."""

    runs: int = 500
    jobs: int = 2  # runs at a time


@dataclass
class Resident:
    """One run in this process; `memory` starts it."""

    script: str
    steps: int


def flags(script, updates):
    row = SCRIPTS[script]
    ends = ("--total-timesteps", updates * row.period, "--checkpoint-every", 2 * row.period)
    return ("--env-id", row.env_ids[-1], *row.short, "--eval-episodes", 1, *ends)


def kill(script, updates, in_save, moments, cwd):
    """Start a run and kill it -> the step of its checkpoint, and whether it was writing one."""
    process = start(script, *flags(script, updates), cwd=cwd)
    while not list(cwd.glob("runs/*/checkpoint.pt")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    (folder,) = cwd.glob("runs/*")
    time.sleep(moments.uniform(0, 0.5))
    while in_save and process.poll() is None and not (folder / "checkpoint.tmp").exists():
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run had ended: give more --updates"
    return import_module(script).read(folder)["step"], (folder / "checkpoint.tmp").exists()


def kills(args):
    moments, expected, lost, saving = random.Random(args.seed), {}, 0, 0
    for number in range(args.count):
        script = args.scripts[number % len(args.scripts)]
        with tempfile.TemporaryDirectory() as name:
            cwd = Path(name)
            if script not in expected:
                never_stopped = run_ok(script, *flags(script, args.updates), cwd=cwd)
                expected[script] = state(cwd / never_stopped.folder), never_stopped.mean, never_stopped.deviation
                os.rename(cwd / "runs", cwd / "never_stopped")
            step, in_save = kill(script, args.updates, number % 2, moments, cwd)
            (folder,) = cwd.glob("runs/*")
            result = run_ok(script, "--resume", folder.relative_to(cwd), cwd=cwd)
            places = differences(state(folder), expected[script][0])
            if (result.mean, result.deviation) != expected[script][1:]:
                places.append("the evaluation")
        lost, saving = lost + bool(places), saving + in_save
        words = "inside a save" if in_save else "between saves"
        print(f"{number + 1}: {script}.py killed {words}, resumed from {step}: {places or 'the same bits'}", flush=True)
    print(f"{args.count} kills, {saving} inside a save, {args.count - lost} resumed to the same bits")
    return int(lost > 0)


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def resident(args):
    module, seen = import_module(args.script), []
    log_and_save = module.Run.log_and_save

    def watch(run, *rest):
        log_and_save(run, *rest)
        if not seen and run.step >= 20_000:
            seen.append(resident_mb())

    module.Run.log_and_save = watch
    small = ("--hidden-size", "16", "--num-threads", "1", "--total-timesteps", str(args.steps), "--seed", "1")
    replay = ("--batch-size", "16", "--buffer-size", "10000") if "batch_size" in module.Args.__annotations__ else ()
    sys.argv = [f"{args.script}.py", *small, *replay]
    module.main()
    print(f"{seen[0]:.1f} {resident_mb():.1f}")


def memory(args):
    grown = []
    for script in args.scripts:
        command = [sys.executable, __file__, "resident", "--script", script, "--steps", str(args.steps)]
        with tempfile.TemporaryDirectory() as cwd:
            ended = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        before, after = map(float, ended.stdout.splitlines()[-1].split())
        grown.append(after - before)
        print(
            f"{script}.py: {before:.0f} MB at 20k steps, {after:.0f} MB at {args.steps}: {grown[-1]:+.1f}", flush=True
        )
    print(f"memory grew by {max(grown):.1f} MB at most; 20 are allowed")
    return int(max(grown) > 20)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Head:
    """The head of a Ray cluster of its own, with so many cores; `lose` kills it and all that it started, at once."""

    def __init__(self, cores, log, env):
        """log: the open file that has what Ray says."""
        self.port, self.folder = free_port(), tempfile.mkdtemp(prefix="ray")  # short, for it has sockets in there
        flags = ["--port", str(self.port), "--num-cpus", str(cores), "--include-dashboard", "false"]
        command = ["ray", "start", "--head", "--block", "--temp-dir", self.folder, *flags]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        deadline = time.monotonic() + 120
        ask = ["ray", "health-check", "--address", self.address]
        while subprocess.run(ask, env=env, capture_output=True).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, f"Ray did not start: {log.name}"

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def lose(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        time.sleep(2)  # its workers notice, and end
        shutil.rmtree(self.folder, ignore_errors=True)


SAME = ("script", "env", "seed", "key", "flags", "eval_return", "eval_std", "episodes", "steps", "script_sha256")


def table(path, columns=SAME):
    """The rows of a table, by what does not depend on when and where they were made, in an order of their own."""
    with open(path, newline="") as file:
        return sorted(tuple(row[name] for name in columns) for row in csv.DictReader(file))


def logs(work, having):
    """What was started in the runs' folders that have such a file: {folder's name: lines of its log}."""
    folders = [path.parent for path in work.glob(f"*/{having}")]
    return {folder.name: (folder / "log").read_text().splitlines() for folder in folders}


def ps(pid, column):
    """What ps says of a process; nothing if it has ended."""
    return subprocess.run(["ps", "-o", f"{column}=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()


def grid_on_ray(runs, jobs, cwd, say=print):
    """Make a grid on Ray, kill a worker, then the head, and start it again -> what went wrong, a list of words."""
    env = environment() | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
    env |= {"RAY_AUTH_TOKEN_PATH": str(cwd / "token")}
    env |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # not a minute until a head that is lost is given up
    (cwd / "token").touch(0o600)
    (cwd / "token").write_text(secrets.token_hex(32))
    for step in (1, 2):
        (cwd / "checkpoints" / "2").mkdir(parents=True, exist_ok=True)
        torch.save({"step": step, "args": {"total_timesteps": 2}}, cwd / "checkpoints" / "2" / f"{step}.pt")
    row = f'"tests/helpers/standin" = "--steps 2 --pause 0.2 --checkpoints {cwd / "checkpoints"}"'
    (cwd / "suite.toml").write_text(f"[Left]\n{row}\n[Right]\n{row}\n")

    def start_grid(name, *flags):
        command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--suite", "suite.toml", "--jobs", str(jobs)]
        command += ["--seeds", f"1-{runs // 2}", "--eval-episodes", "3", "--work", name, "--out", f"{name}/suite.csv"]
        with open(cwd / f"{name}.txt", "a") as log:
            return subprocess.Popen([*command, *flags], cwd=cwd, stdout=log, stderr=log, env=env)

    def wait_for(condition, grid):
        while not (value := condition()):
            assert grid.poll() is None, (cwd / "there.txt").read_text()
            time.sleep(0.02)
        return value

    def at_work():
        """A worker of Ray, and its stand-in, which trains and has no checkpoint yet; or none."""
        for path in work.glob("*/lock"):
            words = path.read_text().split()
            if len(words) == 2 and not list(path.parent.glob("runs/*/step")):
                worker = ps(words[1], "ppid")
                if worker and ps(worker, "args").startswith("ray::"):  # not what took up an orphan
                    return int(worker), int(words[1])

    work, began = cwd / "there", time.monotonic()
    with open(cwd / "head.txt", "a") as log:
        head = Head(jobs, log, env)
        try:
            grid = start_grid("there", "--ray", head.address)
            wait_for(lambda: len(logs(work, "result.json")) >= runs // 5, grid)
            for pid in wait_for(at_work, grid):  # with what the worker had started, as if its machine were lost
                os.kill(pid, signal.SIGKILL)
            say(f"a worker killed after {len(logs(work, 'result.json'))} runs, {time.monotonic() - began:.0f} s")
            wait_for(lambda: len(logs(work, "result.json")) >= runs // 2, grid)
            failed = (cwd / "there.txt").read_text().count(" failed: ")
        finally:
            head.lose()
        status = grid.wait(timeout=180)
        before = logs(work, "result.json")
        say(f"the head killed after {len(before)} runs, {time.monotonic() - began:.0f} s: status {status}")
        head = Head(jobs, log, env)
        try:
            again = start_grid("there", "--ray", head.address).wait()
        finally:
            head.lose()
    say(f"the same command on a new head, {time.monotonic() - began:.0f} s: status {again}")
    here = start_grid("here").wait()
    say(f"the same without Ray, {time.monotonic() - began:.0f} s: status {here}")

    after, made = logs(work, "log"), logs(work, "result.json")
    cut = [name for name, lines in after.items() if len(lines) > 2]  # a run is a training and an evaluation
    rows = table(work / "suite.csv")
    checks = {
        "a run failed for its worker, and had to wait for the same command": failed,
        f"the grid that lost its head ended with {status}": status != 1,
        f"the grid that went on ended with {again}, and the local one with {here}": (again, here) != (0, 0),
        f"of {runs} runs {len(made)} have a result, and {len(rows)} rows are in the table": not (
            len(after) == len(made) == len(rows) == len(set(rows)) == runs
        ),
        "something was made again after its result": any(after[name] != before[name] for name in before)
        or not all(made_once(work / name) for name in made),
        f"{len(cut)} runs were taken up again, and 1 to {1 + jobs} were cut": not 1 <= len(cut) <= 1 + jobs,
        "the table is not the local one": rows != table(cwd / "here" / "suite.csv"),
    }
    wrong = [words for words, bad in checks.items() if bad]
    say(f"{len(made)} runs, {len(cut)} of them cut and taken up again: {'; '.join(wrong) or 'all well'}")
    return wrong


def made_once(folder):
    """Whether nothing was started in a run's folder after it had its result."""
    return (folder / "log").stat().st_mtime_ns <= (folder / "result.json").stat().st_mtime_ns


def ray(args):
    with tempfile.TemporaryDirectory() as cwd:
        return int(bool(grid_on_ray(args.runs, args.jobs, Path(cwd))))


def main(args):
    return {Kills: kills, Memory: memory, Ray: ray, Resident: resident}[type(args)](args)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Kills | Memory | Ray | Resident, description=__doc__)))
