"""The scripts stay short: lines, bytes, nesting, and what changes from one script to the next."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RULE = "# -----"  # the line that ends the algorithm begins so
# A script may have so many lines and bytes; the rule stands on this line or above. A later script is held as soon as
# its file exists.
SCRIPTS = {
    "reinforce": (515, 26_500, 250),
    "reinforce_baseline": (515, 26_500, 250),
    "a2c": (515, 26_500, 250),
    "a3c": (550, 28_000, 285),
    "trpo": (550, 28_000, 285),
    "ppo": (515, 26_500, 250),
    "ppo_atari": (515, 26_500, 250),
    "rlhf": (635, 33_000, 370),
    "ddpg": (515, 26_500, 250),
    "td3": (515, 26_500, 250),
    "sac": (515, 26_500, 250),
}
# From one script to the next, `diff` may show so many changed lines, those of both sides together.
STEPS = {
    ("reinforce", "reinforce_baseline"): 40,
    ("reinforce_baseline", "a2c"): 100,
    ("a2c", "ppo"): 50,
    ("a2c", "trpo"): 120,
    ("a2c", "a3c"): 120,
    ("ppo", "ppo_atari"): 70,
    ("ddpg", "td3"): 45,
    ("td3", "sac"): 90,
}
COLUMNS = 120
LINES_BELOW_THE_RULE = 265
LINES_OF_A_FUNCTION = 45
LINES_OF_RUN = 150
LEVELS = 4
FIRST_SEVEN = ("reinforce", "reinforce_baseline", "a2c", "ppo", "ddpg", "td3", "sac")

HERE = [name for name in SCRIPTS if (ROOT / f"{name}.py").exists()]
STEPS_HERE = [step for step in STEPS if set(step) <= set(HERE)]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCK = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match, ast.ClassDef, *FUNCTION)


def read(script):
    return (ROOT / f"{script}.py").read_text()


def rule_line(script):
    """The number of the line that ends the algorithm."""
    found = [number for number, line in enumerate(read(script).splitlines(), 1) if line.startswith(RULE)]
    assert len(found) == 1, f"{script}.py has {len(found)} lines that begin with {RULE}"
    return found[0]


def below_the_rule(script):
    return "\n".join(read(script).split("\n")[rule_line(script) - 1 :])


def nodes(script, kind):
    return [node for node in ast.walk(ast.parse(read(script))) if isinstance(node, kind)]


def length(node):
    """Lines of a function or class, with its decorators."""
    return node.end_lineno + 1 - min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def depth(node):
    """Levels of blocks inside a node. An elif is on the level of its if."""
    levels = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        is_elif = is_elif and child.col_offset == node.col_offset
        levels = max(levels, depth(child) + (isinstance(child, BLOCK) and not is_elif))
    return levels


def changed_lines(one, other):
    """What `diff one.py other.py | grep -c '^[<>]'` counts."""
    shown = subprocess.run(["diff", f"{one}.py", f"{other}.py"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 1, shown.stderr
    return sum(line.startswith(("<", ">")) for line in shown.stdout.splitlines())


def test_every_script_has_a_budget():
    assert set(FIRST_SEVEN) <= {path.stem for path in ROOT.glob("*.py")} <= set(SCRIPTS)


@pytest.mark.parametrize("script", HERE)
def test_script_is_short(script):
    lines, size, rule = SCRIPTS[script]
    assert len(read(script).splitlines()) <= lines
    assert (ROOT / f"{script}.py").stat().st_size <= size
    assert rule_line(script) <= rule
    assert max(map(len, read(script).splitlines())) <= COLUMNS


@pytest.mark.parametrize("script", HERE)
def test_plumbing_is_short_and_the_same_in_every_script(script):
    assert len(below_the_rule(script).splitlines()) - 1 <= LINES_BELOW_THE_RULE  # without the rule itself
    assert below_the_rule(script) == below_the_rule("ppo")


@pytest.mark.parametrize("script", HERE)
def test_functions_are_short(script):
    too_long = [node.name for node in nodes(script, FUNCTION) if length(node) > LINES_OF_A_FUNCTION]
    assert not too_long
    (run,) = [node for node in nodes(script, ast.ClassDef) if node.name == "Run"]
    assert length(run) <= LINES_OF_RUN


@pytest.mark.parametrize("script", HERE)
def test_blocks_are_not_nested_deeply(script):
    too_deep = [node.name for node in nodes(script, FUNCTION) if depth(node) > LEVELS]
    assert not too_deep


def test_elif_is_no_deeper_than_its_if():
    assert depth(ast.parse("if a:\n    x\nelif b:\n    x\nelse:\n    x")) == 1
    assert depth(ast.parse("if a:\n    x\nelse:\n    if b:\n        x")) == 2
    assert depth(ast.parse("for a in b:\n    with c:\n        if d:\n            x")) == 3


@pytest.mark.parametrize("script", HERE)
def test_one_statement_a_line(script):
    lines = [node.lineno for node in nodes(script, ast.stmt)]
    assert not {line for line in lines if lines.count(line) > 1}


@pytest.mark.parametrize("step", STEPS_HERE, ids=" -> ".join)
def test_next_script_changes_few_lines(step):
    assert changed_lines(*step) <= STEPS[step]


def test_readme_counts_the_changed_lines_of_each_step():
    rows = re.findall(r"`diff (\w+)\.py (\w+)\.py` \| (\d+) \|", (ROOT / "README.md").read_text())
    shown = {(one, other): int(count) for one, other, count in rows}
    assert shown == {step: changed_lines(*step) for step in STEPS_HERE}
