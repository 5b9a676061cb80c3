"""README.md and docs/: commands and blocks of Python run, shortened by flags; links and anchors exist; lengths hold."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import (
    ALL,
    OFF_POLICY,
    ROOT,
    TORCHRUN,
    end,
    environment,
    last_line,
    page_blocks,
    page_commands,
    train,
)

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
}
README = PAGES["README.md"]
# Addresses elsewhere, which are tried by hand
OUTSIDE = {"https://docs.astral.sh/uv/"}
PLACEHOLDER = re.compile(r"runs/(?P<env_id>[^\s/]+)__(?P<script>\w+)__(?P<seed>\d+)__\d+")
SHORT = dict.fromkeys(ALL, "--total-timesteps 512 --num-envs 4 --eval-episodes 2")
SHORT |= {script: f"{SHORT[script]} --learning-starts 448" for script in OFF_POLICY}
SHORT["rlhf"] += " --sft-steps 2 --reward-steps 2 --num-envs 8"
# Commands that begin so are not run here: they set a machine up, .ci/run runs them, or they do not end.
NOT_RUN = [
    "python3 -m venv",
    "python -m venv",
    ".",
    "source",
    "cd",
    "git clone",
    "pip install",
    "tensorboard",
]
NOT_RUN += [
    "pytest",
    "python -m pytest",
    "ruff",
    "cp",
    "diff",
    "python tests/tools/",
    "python benchmarks/",
    "ray start",
]
# Flags of other programs that the pages name
OTHER_FLAGS = "--help --standalone --nproc-per-node --nnodes --node-rank --master-addr --master-port --max-restarts"
OTHER_FLAGS += " --virtual-local-rank"
OTHER_FLAGS += " --logdir --index-url --cov --cov-config --hypothesis-profile --fix --only --repeats --jobs"
OTHER_FLAGS += " --head --port --address --ray --work --seeds --envs --dry-run --flags --out"


def is_script(words):
    """Whether a command starts one of the scripts, by python or by torchrun."""
    return words[0] in ("python", "python3", "torchrun") and any(word.removesuffix(".py") in ALL for word in words)


def by_process(words):
    """Commands without flags and those of torchrun run in a process of their own, the others in this one."""
    return words[0] == "torchrun" or len(words) == 2


def parameter(words):
    return pytest.param(words, id=" ".join(words), marks=[pytest.mark.slow] if by_process(words) else [])


EVERY_COMMAND = [words for text in PAGES.values() for words in page_commands(text)]
COMMANDS = [parameter(words) for words in dict.fromkeys(map(tuple, EVERY_COMMAND)) if is_script(words)]
BLOCKS = [block for text in PAGES.values() for block in page_blocks(text, "python")]


def write_files(folder):
    """Put the scripts there, and each block of Python whose first line is "# name.py" as that file."""
    for script in ALL:
        shutil.copy(ROOT / f"{script}.py", folder)
    for block in BLOCKS:
        if name := re.match(r"# (\w+\.py)\n", block):
            Path(folder, name[1]).write_text(block)


def make_run(place):
    """Train the run that a command or block takes for granted: runs/ENV__SCRIPT__SEED__TIME."""
    names = PLACEHOLDER.fullmatch(place)
    row = ALL[names["script"]]
    flags = (*row.short, "--total-timesteps", row.period, "--seed", names["seed"])
    _, result = train(names["script"], "--env-id", names["env_id"], *flags)
    result.folder.rename(place)


@pytest.mark.parametrize("words", COMMANDS)
def test_command_runs(words, folder, monkeypatch):
    if "HalfCheetah-v5" in words:
        pytest.importorskip("mujoco")
    write_files(folder)
    for word in words:
        if PLACEHOLDER.fullmatch(word):
            make_run(word)
    (script,) = {word.removesuffix(".py") for word in words} & set(ALL)
    flags = words[words.index(f"{script}.py") + 1 :]
    asks_help = {"-h", "--help"} & set(flags)
    more = [] if asks_help else SHORT[script].split()
    if by_process(words):
        launcher = TORCHRUN[:2] if words[0] == "torchrun" else ()
        command = [sys.executable, *launcher, *words[1:], *more]
        ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
        status, stdout, stderr = ended.returncode, ended.stdout, ended.stderr
    else:
        monkeypatch.syspath_prepend(folder)
        status, stdout, stderr = end(script, *flags, *more)
    assert status == 0, stderr
    if asks_help:
        assert "--total-timesteps" in stdout
    else:
        result = last_line(stdout)
        assert (folder / result.folder / "checkpoint.pt").is_file()
        assert ("--capture-video" in words) == bool(list(folder.rglob("*.mp4")))


def test_python_blocks_run(folder, monkeypatch):
    """Totals are shortened; the folders of runs that they name exist."""
    write_files(folder)
    monkeypatch.syspath_prepend(folder)
    blocks = [block for block in BLOCKS if not re.match(r"# \w+\.py\n", block)]
    assert blocks
    for block in blocks:
        for place in PLACEHOLDER.finditer(block):
            if not Path(place[0]).exists():
                make_run(place[0])
        exec(re.sub(r"total_timesteps=[\d_]+", "total_timesteps=512", block), {})


def test_every_command_is_known():
    """Each is run above or listed in NOT_RUN, and the files that it names exist."""
    for words in EVERY_COMMAND:
        command = shlex.join(words)
        assert is_script(words) or any(words[0] == known or command.startswith(known) for known in NOT_RUN), command
        for word in words:
            if re.fullmatch(r"[\w/]+\.(txt|py|toml)", word) and not word.startswith("my_"):
                assert (ROOT / word).is_file(), command


def test_first_commands_do_all_the_setup():
    """A clone of the repository, then four install and train; with requirements-dev.txt, four install and test."""
    commands = [shlex.join(words) for words in page_commands(README)]
    assert [command.split()[:2] for command in commands[:2]] == [["git", "clone"], ["cd", "policy-gradients"]]
    assert commands[5] == "python ppo.py"
    for setup, last in (("requirements.txt", "python ppo.py"), ("requirements-dev.txt", "python -m pytest")):
        place = commands.index(last)
        assert commands[place - 3 : place + 1] == [
            "python3 -m venv .venv",
            ". .venv/bin/activate",
            f"pip install -r {setup}",
            last,
        ]


def test_result_lines_have_the_form_that_programs_read():
    lines = re.findall(r"^eval_return=.*$", "\n".join(PAGES.values()), re.M)
    assert lines
    for line in lines:
        last_line(line)


def test_flags_exist():
    text = "\n".join(PAGES.values())
    names = {name for script in ALL for name in importlib.import_module(script).Args.__annotations__}
    known = {f"--{name.replace('_', '-')}" for name in names}
    known |= {f"--no-{flag[2:]}" for flag in known} | set(OTHER_FLAGS.split())
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


def test_lengths():
    """A page is read in one sitting: the README has 220 lines and 1,800 words at most, another page 150 lines."""
    assert len(README.splitlines()) <= 220
    assert len(README.split()) <= 1800
    long = [name for name, text in PAGES.items() if len(text.splitlines()) > 150]
    assert not set(long) - {"README.md"}


def anchors(text):
    """The anchors that GitHub makes of a page's headings."""
    return {
        re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    """Files, figures and anchors of this repository exist; each address elsewhere is in OUTSIDE."""
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        if target.startswith("http"):
            assert target in OUTSIDE
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path.read_text()), target
