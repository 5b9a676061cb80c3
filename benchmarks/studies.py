"""Claims that people teach with these algorithms, each tried over seeds: a table, a figure, and a sentence of numbers.

    python benchmarks/studies.py variance
    python benchmarks/studies.py variance --draw

A study is some settings, each a script with flags and at times a changed line, over seeds; study_runs.py has them, and
makes a run. The table is benchmarks/results/study_NAME.csv, the figure benchmarks/figures/study_NAME.svg and .png. What
follows -- goes to every script, after its own flags, for a quick look.
"""

import json
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common
import study_runs
import tyro
from tqdm import tqdm

COLUMNS = ("setting", "script", "flags", "seed", "quantity", "x", "y", "script_sha256", *common.PROVENANCE)
PRELOAD = ["study_runs", "torch._dynamo", "tensorboard.backend.event_processing.event_accumulator"]
SAME = ("setting", "flags", "seed", "script_sha256", "commit")


@dataclass
class Args:
    study: tyro.conf.Positional[str]  # variance, estimators, entropy, clipping, overestimation, fixes, temperature, ...
    seeds: str = ""  # seeds of each setting: 1-10 or 1,3,7-9; the study's own if not given
    jobs: int = 1  # runs at a time, each with one torch thread
    settings: tuple[str, ...] = ()  # only these settings; then there is no sentence
    out: Path | None = None  # folder for table and figure, in place of benchmarks/results and benchmarks/figures
    draw: bool = False  # make figure and sentence from the table, and run nothing


def numbers(column):
    """A list as a cell of the table: its words with spaces between; numbers have five digits."""
    return " ".join(word if isinstance(word, str) else f"{word:.5g}" for word in column)


def steps(column):
    """As numbers, but integers keep all digits."""
    return " ".join(str(word) if isinstance(word, int) else numbers([word]) for word in column)


def rows_of(folder, known):
    """What a finished run has noted, a row for each quantity, and its final evaluation; None if it has no such line."""
    result = common.parse_last_line(common.last_line(folder, "stdout"))
    if not result:
        return None
    notes = json.loads(Path(folder, "notes.json").read_text())
    notes["eval_return"] = [result["steps"]], [result["eval_return"]]
    return [known | {"quantity": name, "x": steps(x), "y": numbers(y)} for name, (x, y) in notes.items()]


def make_runs(study, flags, args):
    """What is known of every run before it is made, seeds first, so that a study that is stopped can be read."""
    origin = common.provenance()
    unknown = [name for name in args.settings if name not in study.settings]
    if unknown:
        common.fail(f"--settings {unknown[0]}: the study has {', '.join(study.settings)}")
    runs = []
    for seed in common.parse_seeds(args.seeds or study.seeds):
        for name in args.settings or study.settings:
            setting = study.settings[name]
            script = common.ROOT / f"{setting.script}.py"
            known = {"setting": name, "script": script.name, "flags": f"{setting.flags} {shlex.join(flags)}".strip()}
            runs.append(known | {"seed": str(seed), "script_sha256": common.contents_sha256(script)} | origin)
    return runs


def run_all(runs, rows, path, flags, args):
    """Make the runs, args.jobs at a time, each into the table as it ends -> the number that failed."""
    # Each run is a process of its own, forked from one that has imported all: that saves the seconds imports take.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOAD)
    here = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, here))  # its server does not know sys.path
    waiting, running, failed = list(runs), {}, 0
    bar = tqdm(total=len(runs), unit="run", desc=args.study)
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                known, folder = waiting.pop(0), tempfile.TemporaryDirectory()
                words = args.study, known["setting"], known["seed"], flags, folder.name
                process = processes.Process(target=study_runs.run, args=words)
                process.start()
                running[known["setting"], known["seed"]] = process, folder, known
            time.sleep(0.05)
            for name, (process, folder, known) in list(running.items()):
                if process.exitcode is None:
                    continue
                new = None if process.exitcode else rows_of(folder.name, known)
                if new:
                    rows += new
                    common.replace_rows(path, COLUMNS, rows)
                    bar.set_postfix_str(f"{', seed '.join(name)}: {new[-1]['y']}", refresh=False)
                else:
                    failed += 1
                    error = common.last_line(folder.name, "stderr") or common.last_line(folder.name, "stdout")
                    tqdm.write(f"{', seed '.join(name)} failed: {error}", file=sys.stderr)
                bar.update()
                del running[name]
                folder.cleanup()
    finally:
        for process, folder, _ in running.values():
            process.terminate()
            process.join()
            folder.cleanup()
        bar.close()
    return failed


def main():
    """Make the runs that the table lacks, then the figure and the sentence."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    args, flags = common.parse_args(Args, __doc__, words[:split]), words[split + 1 :]
    common.refuse_taken(flags, ("--seed", "--num-threads"), "the seeds come from --seeds, and a run has one thread")
    if args.study not in study_runs.STUDIES:
        common.fail(f"{args.study} is no study; there are {', '.join(study_runs.STUDIES)}")
    try:
        import study_reports
    except ImportError as error:
        common.fail(f"{error}: pip install -r benchmarks/requirements.txt")
    if args.jobs < 1:
        common.fail(f"--jobs {args.jobs} must be 1 or more")
    if flags and not args.out:
        common.fail(f"{shlex.join(flags)}: with flags of its own a study needs --out; the committed table has none")
    study = study_runs.STUDIES[args.study]
    path = (args.out or common.ROOT / "benchmarks" / "results") / f"study_{args.study}.csv"
    failed = 0
    if not args.draw:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        runs, rows = make_runs(study, flags, args), common.open_rows(path, COLUMNS)
        # The table is of one state of the code: what another made goes, and what a changed, uncommitted one made, too.
        rows = [row for row in rows if row["commit"] == runs[0]["commit"] and not row["commit"].endswith("-dirty")]
        done = {tuple(row[name] for name in SAME) for row in rows}
        missing = [run for run in runs if tuple(run[name] for name in SAME) not in done]
        try:
            failed = run_all(missing, rows, path, flags, args)
        except KeyboardInterrupt:
            print("stopped: the same command goes on from here", file=sys.stderr)
            sys.exit(130)
    table = study_reports.Table(common.read_rows(path, COLUMNS))
    present = [name for name in study.settings if name in table.seeds]
    if not present:
        common.fail(f"{path} has no runs: make them without --draw", status=1 if failed else 2)
    study_reports.draw(args.study, present, table, args.out or common.ROOT / "benchmarks" / "figures")
    if len(present) == len(study.settings):
        print(study_reports.sentence(args.study, table))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
