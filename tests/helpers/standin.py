"""Stands in for a script where only its outside matters: command line, files, last line; no seconds for torch.

Its checkpoint at step k of n is the file n/k.pt of --checkpoints. It ends with status 9 if another works in its folder.
"""

import argparse
import fcntl
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def save(folder, step, args):
    shutil.copy(Path(args.checkpoints, str(args.steps), f"{step}.pt"), folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")
    words = f"{step} {args.checkpoints} {args.steps} {args.pause} {args.linger} {args.seed}"
    (folder / "step.tmp").write_text(words)  # whole before it has its name: a test reads it at any time
    (folder / "step.tmp").replace(folder / "step")


def main():
    parser = argparse.ArgumentParser()
    for name in ("env-id", "seed", "num-threads", "device", "resume", "evaluate", "checkpoints"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--steps", type=int, default=1)  # each with a checkpoint
    parser.add_argument("--pause", type=float, default=0)  # seconds of a step
    parser.add_argument("--linger", type=float, default=0)  # seconds between the last checkpoint and the end
    parser.add_argument("--eval-episodes", type=int, default=1)
    parser.add_argument("--fail-seed", default="")  # fail with this seed
    parser.add_argument("--memory", type=int, default=0)  # 10^6 bytes that it takes while it trains
    args = parser.parse_args()
    alone = open("alone", "a")  # noqa: SIM115
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(9)
    Path("pid").write_text(str(os.getpid()))
    if args.seed and args.seed == args.fail_seed:
        print(f"first line\nseed {args.seed} was told to fail", file=sys.stderr)
        sys.exit(3)
    folder, step = Path(args.resume or args.evaluate or f"runs/{args.env_id}__standin__{args.seed}__1790000000"), 0
    if args.resume or args.evaluate:
        step, args.checkpoints, *numbers, args.seed = (folder / "step").read_text().split()
        step, args.steps, args.pause, args.linger = int(step), int(numbers[0]), float(numbers[1]), float(numbers[2])
    folder.mkdir(parents=True, exist_ok=True)
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    bytearray(b"x") * (args.memory * 10**6)
    while step < args.steps and not args.evaluate:
        time.sleep(args.pause)
        step += 1
        save(folder, step, args)
        if stopped:
            sys.exit(143)
    if not args.evaluate:
        time.sleep(args.linger)
    score = f"eval_return={10 * int(args.seed)}.00 +/- 1.00 ({args.eval_episodes} episodes)"
    print(f"{score} | {step} steps | 1.0 s | {step} steps/s | {folder}")


if __name__ == "__main__":
    main()
