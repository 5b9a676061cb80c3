"""What the benchmarks share: arguments, processes, the line and log that a run leaves, tables as CSV, provenance."""

import ast
import csv
import hashlib
import importlib.metadata
import io
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr
from datetime import UTC, datetime
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "figures"
COLOURS = {  # one for each script, in every figure; Okabe and Ito's, which the colour-blind tell apart, and two more
    "reinforce": "#999999",
    "reinforce_baseline": "#56B4E9",
    "a2c": "#009E73",
    "a3c": "#7F5539",
    "trpo": "#CC79A7",
    "ppo": "#0072B2",
    "ppo_atari": "#0072B2",
    "ddpg": "#E69F00",
    "td3": "#D55E00",
    "sac": "#6A3D9A",
}
PACKAGES = ("torch", "gymnasium", "numpy", "stable_baselines3")
PROVENANCE = ("date", "commit", "command", "python", *PACKAGES, "cpu", "cores")
LAST_LINE = re.compile(
    r"eval_return=(?P<eval_return>\S+) \+/- (?P<eval_std>\S+) \((?P<episodes>\d+) episodes\)"
    r" \| (?P<steps>\d+) steps \| (?P<seconds>\S+) s \| (?P<steps_per_second>\S+) steps/s \| (?P<folder>.+)"
)


def fail(message, status=2):
    """Say in one line what is wrong and end the program."""
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(status)


def parse_args(cls, description, argv, default=None):
    """Command-line arguments -> an instance of the dataclass cls; one line and exit status 2 if they are wrong."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(cls, description=description, args=argv, **({"default": default} if default else {}))
    except SystemExit as stop:
        if stop.code:
            fail(box.getvalue().encode("ascii", "ignore").decode().split(" error: ")[-1])
        raise


def parse_seeds(text):
    """'1-3,7' -> [1, 2, 3, 7]."""
    seeds = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not match or (match[2] and int(match[2]) < int(match[1])):
            fail(f"--seeds {text}: give numbers and ranges, such as 1-20 or 1,3,7-9")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(seeds)) < len(seeds):
        fail(f"--seeds {text} names a seed twice")
    return seeds


def code_sha256(path):
    """The first 12 digits of the SHA-256 of a script's code, without its docstring and its comments."""
    code = ast.unparse(ast.parse(Path(path).read_text().split('"""', 2)[-1]))
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def git(*arguments):
    """What git prints in this repository, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def version(package):
    """Installed version of a package, empty if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cpu_model():
    """The processor's name as the system gives it."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def now():
    """Date and time, as the tables have them."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine():
    """The columns of the machine that this runs on, and of its versions."""
    versions = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **versions, "cpu": cpu_model(), "cores": os.cpu_count()}


def origin():
    """The columns of the command and its commit, which a change of anything but tables and figures makes '-dirty'."""
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    others = ("benchmarks/results", "benchmarks/figures", "*.md", "*.csv")
    dirty = git("status", "--porcelain", "--", ".", *(f":(exclude){name}" for name in others))
    words = [word.replace(f"{ROOT}{os.sep}", "") for word in sys.argv[1:]]
    command = shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *words])
    return {"commit": commit + ("-dirty" if dirty else ""), "command": command}


def provenance():
    """Columns that say where a row comes from."""
    values = {"date": now()} | origin() | machine()
    return {name: values[name] for name in PROVENANCE}


def start(command, folder, cores=0, **kwargs):
    """Start a process in a folder, on so many cores, with its outputs in files there (a full pipe would stop it)."""
    mine = os.sched_getaffinity(0) if cores and hasattr(os, "sched_setaffinity") else ()
    if mine:  # a child inherits them
        os.sched_setaffinity(0, sorted(mine)[:cores])
    try:
        with open(Path(folder, "stdout"), "wb") as out, open(Path(folder, "stderr"), "wb") as err:
            return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **kwargs)
    finally:
        if mine:
            os.sched_setaffinity(0, mine)


def peak_rss_mb(usage):
    """The largest resident memory of an ended process, 10^6 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in which the system counts
    return usage.ru_maxrss * unit / 1e6


def stop(process):
    """End a process that was started here, and wait until it has."""
    if process.returncode is None:
        process.terminate()
        process.wait()


def last_line(folder, stream):
    """Last line with something on it that the process in this folder wrote to 'stdout' or 'stderr'; may be empty.

    tyro draws a frame around its messages, which is left out.
    """
    lines = [line.strip(" \t\r╭╮╰╯│─") for line in Path(folder, stream).read_text(errors="replace").split("\n")]
    return next((line for line in reversed(lines) if line and not line.startswith("For full helptext")), "")


def parse_last_line(line):
    """The line with which every script ends -> its numbers and its folder; None if it is another line."""
    match = LAST_LINE.fullmatch(line)
    if not match:
        return None
    values = match.groupdict()
    values |= {name: float(values[name]) for name in ("eval_return", "eval_std", "seconds", "steps_per_second")}
    values |= {name: int(values[name]) for name in ("episodes", "steps")}
    return values


def read_scalars(run_folder, *tags):
    """A dictionary {step: value} for each tag of a run's TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow, so not for --help

    events = EventAccumulator(str(run_folder), size_guidance={"scalars": 0}).Reload()
    known = events.Tags()["scalars"]
    return [{event.step: event.value for event in events.Scalars(tag)} if tag in known else {} for tag in tags]


def read_clock(run_folder):
    """{step: seconds since training began} by the script's own clock, which charts/SPS has divided into the step."""
    (rates,) = read_scalars(run_folder, "charts/SPS")
    return {step: step / rate for step, rate in rates.items()}


def training_began(run_folder):
    """When a run's clock began, as time.time() has it: a log's time less the seconds that the clock then had."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = EventAccumulator(str(run_folder), size_guidance={"scalars": 0}).Reload().Scalars("charts/SPS")[0]
    return first.wall_time - first.step / first.value


def solved_at(run_folder, threshold):
    """First logged step at which the mean return of the last 20 training episodes is at least threshold, or None."""
    (returns,) = read_scalars(run_folder, "charts/episodic_return")
    return next((step for step, value in sorted(returns.items()) if value >= threshold), None)


def append_rows(path, columns, rows):
    """Add rows to a CSV file, which is made with its folder and header if it is not there."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        fail(f"--out {path}: cannot write it: {error.strerror}")


def read_rows(path, columns):
    """Rows of a CSV file, as dictionaries of strings; none if there is no such file."""
    if not Path(path).exists():
        return []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(columns):
            fail(f"{path} has other columns than this command writes; give a new name, or move it away")
        return list(reader)


def open_rows(path, columns):
    """Rows of a CSV file, as read_rows; makes sure, before anything is measured, that it takes more."""
    append_rows(path, columns, [])
    return read_rows(path, columns)


def replace_rows(path, columns, rows):
    """Put a CSV file of these rows in the place of the old one, at once: a reader sees the old or the new."""
    draft = Path(path).with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    append_rows(draft, columns, rows)
    draft.replace(path)


def panels(rows, columns):
    """A figure for a page, and its axes: an array of rows, or of one row's axes."""
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "figures", "font.size": 10 if columns < 3 else 12}
    size = ({1: 5, 2: 9}.get(columns, 11), 3.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    return figure, axes


def steps_axis(axis):
    """Environment steps as 20k or 1M."""
    axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1000:g}k" if x else "0")


def legend(figure, handles, labels, columns=4):
    """Above the panels."""
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def save_figure(figure, path):
    """The same bytes from the same numbers."""
    import matplotlib.pyplot as plt

    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def markdown(header, rows):
    """A table's lines."""
    return [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]


def with_table(text, mark, lines):
    """A page with these lines between <!-- mark --> and <!-- end -->."""
    head, _, rest = text.partition(f"<!-- {mark} -->\n")
    if not rest:
        fail(f"the page has no <!-- {mark} -->")
    return f"{head}<!-- {mark} -->\n" + "\n".join(lines) + "\n<!-- end -->" + rest.partition("<!-- end -->")[2]


def write_table(page, mark, lines):
    """Put a table into a page."""
    page.write_text(with_table(page.read_text(), mark, lines))
