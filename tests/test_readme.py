"""Every command of the README runs; what would take long is shortened by flags after its own."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import (
    OFF_POLICY,
    ROOT,
    SCRIPTS,
    TORCHRUN,
    end,
    environment,
    last_line,
    readme_blocks,
    readme_commands,
    train,
)

PLACEHOLDER = re.compile(r"runs/(?P<env_id>[^\s/]+)__(?P<script>\w+)__(?P<seed>\d+)__\d+")
SHORT = dict.fromkeys(SCRIPTS, "--total-timesteps 512 --num-envs 4 --eval-episodes 2 --num-threads 1")
SHORT |= {script: f"{SHORT[script]} --learning-starts 448" for script in OFF_POLICY}
# What begins with these words sets a machine up, is run by .ci/run, or is a server that does not end.
NOT_RUN = [
    "python3 -m venv",
    "python -m venv",
    ".",
    "source",
    "cd",
    "git clone",
    "pip install",
    "tensorboard",
    "uv run",
]
NOT_RUN += ["pytest", "python -m pytest", "ruff", "cp", "diff"]


def is_script(words):
    """A command that starts one of the scripts, by python or by torchrun."""
    return words[0] in ("python", "python3", "torchrun") and any(word.removesuffix(".py") in SCRIPTS for word in words)


COMMANDS = [words for words in readme_commands() if is_script(words)]


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words) for words in COMMANDS])
def test_command_runs(words, folder, monkeypatch):
    """By a process of its own without flags and under torchrun; else in this one, which is there already."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for block in readme_blocks("python"):  # a block whose first line is "# name.py" is that file
        if name := re.match(r"# (\w+\.py)\n", block):
            Path(name[1]).write_text(block)
    for word in words:
        if run := PLACEHOLDER.fullmatch(word):
            script = run["script"]
            flags = (*SCRIPTS[script].short, "--total-timesteps", SCRIPTS[script].period)
            _, result = train(script, "--env-id", run["env_id"], *flags)
            result.folder.rename(word)

    (script,) = {word.removesuffix(".py") for word in words} & set(SCRIPTS)
    flags = words[words.index(f"{script}.py") + 1 :]
    asks_help = {"-h", "--help"} & set(flags)
    more = [] if asks_help else SHORT[script].split()
    if words[0] == "torchrun" or not flags:
        launcher = TORCHRUN[:2] if words[0] == "torchrun" else ()
        command = [sys.executable, *launcher, *words[1:], *more]
        ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
        status, stdout, stderr = ended.returncode, ended.stdout, ended.stderr
    else:
        monkeypatch.syspath_prepend(folder)  # what a process finds beside its script
        status, stdout, stderr = end(script, *flags, *more)
    assert status == 0, stderr
    if asks_help:
        assert "--total-timesteps" in stdout
    else:
        result = last_line(stdout)
        assert (folder / result.folder / "checkpoint.pt").is_file()
        assert ("--capture-video" in words) == bool(list(folder.rglob("*.mp4")))


def test_the_blocks_for_a_notebook_run(folder):
    """Those that are no file; a run's folder in them is one that was trained, and a total a short one."""
    _, result = train("ppo", *SCRIPTS["ppo"].short, "--total-timesteps", SCRIPTS["ppo"].period)
    blocks = [block for block in readme_blocks("python") if not re.match(r"# \w+\.py\n", block)]
    for block in blocks:
        found = {}
        exec(PLACEHOLDER.sub(str(result.folder), block).replace("50_000", "64"), found)
        assert found["agent"].actor
    assert len(blocks) == 2 and found["action"].shape == (1,)


def test_every_other_command_is_known():
    """What neither runs here nor is set-up would be a command that nothing checks."""
    for words in readme_commands():
        known = any(words[: len(start.split())] == start.split() for start in NOT_RUN)
        assert known or is_script(words), shlex.join(words)
        for word in words:  # the files that set-up names are there
            if re.fullmatch(r"[\w/]+\.(txt|py|toml)", word) and not word.startswith("my_"):
                assert (ROOT / word).is_file(), shlex.join(words)


def test_the_two_first_commands_do_all_the_set_up():
    """One installs and runs the main job, one installs and passes the tests, from nothing but a checkout."""
    install = ["python3 -m venv .venv", ". .venv/bin/activate", "pip install -r requirements.txt"]
    commands = [shlex.join(words) for words in readme_commands()]
    assert commands[:4] == [*install, "python ppo.py"]
    assert commands[4:8] == [*install, "python -m pytest"]


def test_the_lines_that_it_shows_are_of_the_form_that_programs_read():
    lines = re.findall(r"^eval_return=.*$", (ROOT / "README.md").read_text(), re.M)
    assert lines
    for line in lines:
        last_line(line)


def test_the_flags_that_it_names_exist():
    text = (ROOT / "README.md").read_text()
    known = {f"--{name.replace('_', '-')}" for script in SCRIPTS for name in __import__(script).Args.__annotations__}
    known |= {f"--no-{flag[2:]}" for flag in known} | {
        "--help",
        "--standalone",
        "--nproc-per-node",
        "--logdir",
        "--fix",
    }
    known |= {"--max-restarts", "--nnodes", "--node-rank", "--master-addr", "--master-port"}
    known |= {"--cov", "--cov-config"}
    known |= {"--head", "--port", "--address", "--ray", "--work", "--seeds"}
    known |= {"--index-url", "--hypothesis-profile", "--only", "--repeats"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


def test_its_tables_of_speed_are_those_that_were_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    speed = importlib.import_module("speed")
    rows = speed.common.read_rows(ROOT / "benchmarks" / "results" / "speed.csv", speed.COLUMNS)
    text = (ROOT / "README.md").read_text()
    assert len(rows) > 50 and "| SAC | 2 | compiled |" in text
    assert speed.with_tables(text, rows) == text


def test_its_tables_of_scores_and_costs_are_those_that_were_measured(monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("rliable.library")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    report = importlib.import_module("report")
    folder, text = ROOT / "benchmarks", (ROOT / "README.md").read_text()
    cells = report.read_cells(report.Args(folder / "results" / "suite.csv", folder / "suite.toml"))
    assert report.with_tables(text, cells, report.read_toml("--peers", folder / "peers.toml")) == text
