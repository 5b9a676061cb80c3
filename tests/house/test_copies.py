"""Shared blocks are the same in every script, and a script needs nothing but its own file and the packages it names."""

import ast
import re
import sys
import tomllib

import pytest
from copies import ROOT, SCRIPTS, SHARED, blocks_of, fixed, read, source

PACKAGES = {"torch", "numpy", "gymnasium", "tensorboard", "tyro", "tqdm"}
WITH_ANOTHER = {"numpy"}  # gymnasium installs it
FOR_FILMS = {"moviepy"}  # gymnasium imports it
FOR_GAMES = {"ale-py"}  # gymnasium imports it, for ppo_atari.py alone
# Functions, classes and flags of the first edition
GONE = {"target_kl", "clip_vloss", "cuda_graph", "parse_args", "load_checkpoint", "refuse", "tick", "finish", "flatten"}
GONE |= {"loss_of_critic", "loss_of_actor", "gradient", "gradient_step", "normalise", "Critic", "Adam", "CudaGraph"}
GONE |= {"choose_products", "check_memory", "average_over_ranks", "signals_given_back"}


def imported(script):
    """The packages that a script imports, without the standard library."""
    names = set()
    for node in ast.walk(ast.parse(read(script))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names |= {node.module.partition(".")[0]}
            if node.module == "torch.utils.tensorboard":
                names |= {"tensorboard"}
    return names - sys.stdlib_module_names


def defined(script):
    """Names of the functions, classes and flags of a script."""
    names = set()
    for node in ast.walk(ast.parse(read(script))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
    return names


def metadata(script):
    """A script's inline metadata, as uv and pipx read it."""
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", read(script), re.MULTILINE)[1]
    return tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(True)))


def packages(requirements):
    """The names in a list of requirements: torch>=2.11 is torch."""
    return {re.match(r"[\w-]+", line)[0] for line in requirements}


@pytest.mark.parametrize(("block", "scripts"), SHARED, ids=[f"{block}-{scripts[0]}" for block, scripts in SHARED])
def test_shared_block_is_the_same(block, scripts):
    assert len({source(read(script), block) for script in scripts}) == 1


def test_fix_restores_changed_copies():
    model, changed = read("ppo"), read("a2c").replace("delta = reward", "delta = 2 * reward").replace("fsync", "sync")
    assert changed != read("a2c")
    assert fixed(changed, model, blocks_of("a2c", "ppo")) == read("a2c")


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_imports_no_other_file(script):
    assert imported(script) == PACKAGES


@pytest.mark.parametrize("script", SCRIPTS)
def test_inline_metadata_names_the_packages(script):
    given = metadata(script)
    games = FOR_GAMES if script == "ppo_atari" else set()
    assert packages(given["dependencies"]) == imported(script) - WITH_ANOTHER | FOR_FILMS | games
    if script != "ppo_atari":
        assert given == metadata("ppo")
    assert given["requires-python"] == ">=3.11"


def test_requirements_name_the_packages():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] not in "#-"]
    assert packages(lines) == PACKAGES | FOR_FILMS | FOR_GAMES


@pytest.mark.parametrize("script", SCRIPTS)
def test_first_edition_is_gone(script):
    assert not GONE & defined(script)
