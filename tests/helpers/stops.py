"""Short runs with several checkpoints, and how to stop them."""

import random
import time

from harness import SCRIPTS, start

SEGMENT = 32  # updates between two checkpoints
MOMENTS = random.Random()  # its own generator: a run seeds Python's


def small(script, segments, *flags, env_id=None):
    """Flags of a run with so many checkpoints; episodes end between them."""
    row = SCRIPTS[script]
    steps = SEGMENT * row.period
    ends = ("--total-timesteps", segments * steps, "--checkpoint-every", steps)
    return ("--env-id", env_id or row.env_ids[0], *row.short, *ends, *flags)


def wait_for_checkpoints(process, cwd, count, seconds=90):
    """Wait until so many checkpoints were put in place; one that is there already counts."""
    seen = set()
    deadline = time.monotonic() + seconds
    while len(seen) < count:
        assert process.poll() is None, f"it ended too early: {process.stderr.read()}"
        assert time.monotonic() < deadline, "no checkpoint in time"
        seen |= {path.stat().st_mtime_ns for path in cwd.glob("runs/*/checkpoint.pt")}
        time.sleep(0.005)


def stop(number, script, *flags, cwd, checkpoints):
    """Start a run and signal it at a random moment after so many checkpoints -> exit status, output, errors."""
    process = start(script, *flags, cwd=cwd)
    try:
        wait_for_checkpoints(process, cwd, checkpoints)
        time.sleep(MOMENTS.uniform(0, 0.1))
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, stdout, stderr
