"""What takes too long for the suite: kills at random moments, and the memory of long runs.

    python tests/soak.py kills             # 50 times SIGKILL over the seven scripts; each resumed run ends bit-equal
    python tests/soak.py memory            # 200k steps of each script; the resident set may grow by 20 MB after 20k

Each prints a line for every try and one for all; the exit status is 1 if anything was lost or grew.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import tyro
from harness import ROOT, SCRIPTS, differences, environment, run_ok, start, state

sys.path.insert(0, str(ROOT))


@dataclass
class Kills:
    """Kill, resume, and compare with a run that was never stopped."""

    count: int = 50  # kills, over the scripts in turn; every second one waits for a save and strikes in it
    updates: int = 120  # of each run, with a checkpoint after every second one
    seed: int = 0  # of the moments


@dataclass
class Memory:
    """The resident set at 20k steps and at the end of a run."""

    steps: int = 200_000
    scripts: tuple[str, ...] = tuple(SCRIPTS)


@dataclass
class Resident:
    """One run, in this process: what `memory` starts."""

    script: str
    steps: int


def flags(script, updates):
    row = SCRIPTS[script]
    ends = ("--total-timesteps", updates * row.period, "--checkpoint-every", 2 * row.period)
    return ("--env-id", row.env_ids[-1], *row.short, "--eval-episodes", 1, *ends)


def kill(script, updates, in_save, moments, cwd):
    """Start a run and kill it -> the step of the checkpoint that it leaves, and whether it was saving."""
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
    assert process.returncode == -signal.SIGKILL, "it had ended before; more --updates would do"
    return import_module(script).load_checkpoint(folder)["step"], (folder / "checkpoint.tmp").exists()


def kills(args):
    moments, expected, lost, saving = random.Random(args.seed), {}, 0, 0
    for number in range(args.count):
        script = list(SCRIPTS)[number % len(SCRIPTS)]
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
    tick = module.Run.tick

    def watch(run, *rest):
        tick(run, *rest)
        if not seen and run.step >= 20_000:
            seen.append(resident_mb())

    module.Run.tick = watch
    small = ("--hidden-size", "16", "--num-threads", "1", "--total-timesteps", str(args.steps), "--seed", "1")
    replay = ("--batch-size", "16", "--buffer-size", "10000") if "batch_size" in module.Args.__annotations__ else ()
    sys.argv = [f"{args.script}.py", *small, *replay]
    module.train(module.parse_args())
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
    print(f"the resident set grew by {max(grown):.1f} MB at most, of 20")
    return int(max(grown) > 20)


def main(args):
    return {Kills: kills, Memory: memory, Resident: resident}[type(args)](args)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Kills | Memory | Resident, description=__doc__)))
