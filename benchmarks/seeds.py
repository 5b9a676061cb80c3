"""Run a script over seeds, by its command line, and keep each run's last line as a row of a table.

    python benchmarks/seeds.py ppo.py --seeds 1-20 --threshold 475 --out benchmarks/results/ppo_CartPole-v1.csv
    python benchmarks/seeds.py ppo.py --seeds 1-10 --out pendulum.csv -- --env-id Pendulum-v1 --total-timesteps 200000

What follows -- goes to the script. Runs are made in temporary folders. The same command again does what is missing: a
row is there if script, its contents, flags, commit, seed and --solved are the same.
"""

import shlex
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common
import tyro
from tqdm import tqdm

COLUMNS = (
    "script",
    "env",
    "seed",
    "flags",
    "eval_return",
    "eval_std",
    "episodes",
    "steps",
    "seconds",
    "steps_per_second",
    "solved_threshold",
    "solved_at_steps",
    "script_sha256",
    *common.PROVENANCE,
)


@dataclass
class Args:
    script: tyro.conf.Positional[Path]  # script to run
    out: Path  # CSV file, made or continued
    seeds: str = "1-20"  # seeds to run: 1-20 or 1,3,7-9
    jobs: int = 2  # processes at a time, each with one torch thread
    solved: float | None = None  # note the step at which the mean return of 20 training episodes reaches this
    threshold: float | None = None  # count in the summary the seeds whose evaluation is this or more


def row_of(folder, args):
    """The columns that a finished run in this folder fills; None if its last line is not the one agreed on."""
    result = common.parse_last_line(common.last_line(folder, "stdout"))
    if not result:
        return None
    run_folder = Path(folder, result.pop("folder"))
    row = result | {"env": run_folder.name.rsplit("__", 3)[0]}  # as the folder's name has it: ALE/Pong is ALE-Pong
    if args.solved is not None:
        row["solved_at_steps"] = common.solved_at(run_folder, args.solved)
    return row


def run_all(seeds, flags, args, known):
    """Run the script for these seeds, append each row as it comes -> the new rows, the number of failed runs."""
    command = [sys.executable, str(args.script.resolve()), "--num-threads", "1", *flags]
    waiting, running, rows, failed = list(seeds), {}, [], 0
    bar = tqdm(total=len(seeds), unit="run", desc=args.script.name)
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                seed, folder = waiting.pop(0), tempfile.TemporaryDirectory()
                running[seed] = common.start([*command, "--seed", str(seed)], folder.name), folder
            time.sleep(0.1)
            for seed, (process, folder) in list(running.items()):
                if process.poll() is None:
                    continue
                row = None if process.returncode else row_of(folder.name, args)
                if row:
                    rows.append(known | {"seed": seed} | row)
                    common.append_rows(args.out, COLUMNS, rows[-1:])
                    bar.set_postfix_str(f"seed {seed}: {row['eval_return']:.2f}")
                else:
                    failed += 1
                    error = common.last_line(folder.name, "stderr") or common.last_line(folder.name, "stdout")
                    tqdm.write(f"seed {seed} failed with exit status {process.returncode}: {error}", file=sys.stderr)
                bar.update()
                del running[seed]
                folder.cleanup()
    finally:
        for process, folder in running.values():
            common.stop(process)
            folder.cleanup()
        bar.close()
    return rows, failed


def summary(rows, args):
    """One line about the evaluations of these rows."""
    scores = [float(row["eval_return"]) for row in rows]
    if not scores:
        return f"0 seeds | {args.out}"
    parts = [f"{len(scores)} seeds"]
    if args.threshold is not None:
        parts.append(f"{sum(score >= args.threshold for score in scores)} at {args.threshold:g} or more")
    parts += [f"mean {statistics.mean(scores):.2f}", f"min {min(scores):.2f}", f"max {max(scores):.2f}", str(args.out)]
    return " | ".join(parts)


def main():
    """Run the seeds that the file does not have yet, then sum up all that were asked for."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    args, flags = common.parse_args(Args, __doc__, words[:split]), words[split + 1 :]
    seeds = common.parse_seeds(args.seeds)
    if not args.script.is_file():
        common.fail(f"{args.script} is not a file")
    if args.jobs < 1:
        common.fail(f"--jobs {args.jobs} must be 1 or more")
    common.refuse_taken(flags, ("--seed", "--num-threads"), "the seeds come from --seeds, and a run has one thread")
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    known = {
        "script": args.script.name,
        "flags": shlex.join(flags),
        "solved_threshold": "" if args.solved is None else str(args.solved),
        "script_sha256": common.contents_sha256(args.script),
    }
    known |= common.provenance()
    same = ("script", "flags", "solved_threshold", "script_sha256", "commit")
    old = common.open_rows(args.out, COLUMNS)
    done = [row for row in old if all(row[name] == known[name] for name in same) and int(row["seed"]) in seeds]
    if done or old:
        print(f"{args.out}: {len(done)} of {len(seeds)} seeds are done, {len(old) - len(done)} other rows stay")
    missing = [seed for seed in seeds if str(seed) not in [row["seed"] for row in done]]
    try:
        new, failed = run_all(missing, flags, args, known)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    print(summary(done + new, args) + (f" | {failed} failed" if failed else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
