"""What is the same in several scripts is the same to the byte, and what changes from one to the next stays small.

The scripts are copies of each other on purpose; a change to a shared block goes to all of them by

    python tests/test_copies.py --fix ppo

which takes each block that the named script shares, and all below its rule, into the scripts that share it.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ON_POLICY = ("reinforce", "reinforce_baseline", "a2c", "ppo")
OFF_POLICY = ("ddpg", "td3", "sac")
SCRIPTS = (*ON_POLICY, *OFF_POLICY)
RULE = "\n# ------"
# A block is a function, a class, a method (Class.method), or a flag (Args.name); it is shared by these scripts.
CRITICS = ("reinforce_baseline", "a2c", "ppo")
RUNNING_FLAGS = (
    "gamma seed device compile cuda_graph async_envs checkpoint_every eval_episodes capture_video resume evaluate"
)
FAMILY_FLAGS = "env_id hidden_size num_threads"  # the defaults are the family's
REPLAY_FLAGS = "total_timesteps num_envs tau buffer_size batch_size learning_starts utd"
SHARED = [
    *[(f"Args.{name}", SCRIPTS) for name in RUNNING_FLAGS.split()],
    *[(f"Args.{name}", ON_POLICY) for name in f"{FAMILY_FLAGS} anneal_lr norm_obs norm_reward initial_std".split()],
    *[(f"Args.{name}", OFF_POLICY) for name in f"{FAMILY_FLAGS} {REPLAY_FLAGS}".split()],
    *[(f"Args.{name}", ("a2c", "ppo")) for name in ("num_steps", "vf_coef", "max_grad_norm")],
    *[(f"Args.{name}", ("ddpg", "td3")) for name in ("learning_rate", "exploration_noise")],
    *[(block, ON_POLICY) for block in ("mlp", "Agent.log_prob", "Agent.act", "RunningNorm", "normalise")],
    ("Agent", CRITICS),
    ("returns", ("reinforce", "reinforce_baseline")),
    ("policy_loss", ("reinforce", "reinforce_baseline", "a2c")),
    ("value_loss", ("reinforce_baseline", "a2c")),
    ("gae", ("a2c", "ppo")),
    ("update", ("a2c", "ppo")),
    *[(block, OFF_POLICY) for block in ("mlp", "Critic", "ReplayBuffer", "gradient_step", "polyak_update")],
    *[(block, ("ddpg", "td3")) for block in ("Agent.act", "actor_loss", "loss_of_actor")],
    ("critic_loss", ("td3", "sac")),
]
# The lines, of both sides, that `diff` may show: a step up the ladder is one idea.
BUDGETS = {
    ("reinforce", "reinforce_baseline"): 40,
    ("reinforce_baseline", "a2c"): 90,
    ("a2c", "ppo"): 50,
    ("ddpg", "td3"): 45,
    ("td3", "sac"): 90,
}


def read(script):
    return (ROOT / f"{script}.py").read_text()


def tail(text):
    """All from the rule on."""
    assert text.count(RULE) == 1, "one rule parts the algorithm from the plumbing"
    return text[text.index(RULE) :]


def span(text, block):
    """The lines of a block of a script -> first, and one beyond the last, counted from 0."""
    nodes = ast.parse(text).body
    for name in block.split("."):
        found = [
            node
            for node in nodes
            if getattr(node, "name", None) == name
            or (isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == name)
        ]
        assert len(found) == 1, f"{block}: found {len(found)} times"
        nodes = getattr(found[0], "body", [])
    first = min([found[0].lineno, *(d.lineno for d in getattr(found[0], "decorator_list", []))])
    return first - 1, found[0].end_lineno


def source(text, block):
    first, end = span(text, block)
    return "\n".join(text.splitlines()[first:end])


def fixed(text, model, blocks):
    """The script with these blocks, and all below the rule, as the model has them."""
    for block in blocks:
        first, end = span(text, block)
        lines = text.splitlines()
        text = "\n".join([*lines[:first], source(model, block), *lines[end:]]) + "\n"
    return text.replace(tail(text), tail(model))


def changed_lines(one, other):
    """What `diff one.py other.py | grep -c '^[<>]'` counts."""
    shown = subprocess.run(["diff", f"{one}.py", f"{other}.py"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 1, shown.stderr
    return sum(line.startswith(("<", ">")) for line in shown.stdout.splitlines())


@pytest.mark.parametrize("script", SCRIPTS)
def test_below_the_rule_all_scripts_are_the_same(script):
    assert tail(read(script)) == tail(read(SCRIPTS[0]))


@pytest.mark.parametrize(("block", "scripts"), SHARED, ids=[f"{block}-{scripts[0]}" for block, scripts in SHARED])
def test_shared_blocks_are_the_same(block, scripts):
    assert len({source(read(script), block) for script in scripts}) == 1


@pytest.mark.parametrize("pair", BUDGETS, ids=" -> ".join)
def test_a_step_of_the_ladder_is_small(pair):
    assert changed_lines(*pair) <= BUDGETS[pair]


def test_the_readme_counts_the_steps_of_the_ladder():
    rows = re.findall(r"\| `diff (\w+)\.py (\w+)\.py` \| (\d+) \|", (ROOT / "README.md").read_text())
    assert {(one, other): int(lines) for one, other, lines in rows} == {pair: changed_lines(*pair) for pair in BUDGETS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_of_a_script_comes_from_another(script):
    """It imports what requirements.txt names and the standard library, so that the file alone can be copied."""
    allowed = {"torch", "numpy", "gymnasium", "tyro", "tqdm"} | sys.stdlib_module_names
    for node in ast.walk(ast.parse(read(script))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= allowed


def test_fix_puts_back_what_drifted():
    model, drifted = read("ppo"), read("a2c").replace("delta = reward", "delta = 2 * reward").replace("fsync", "sync")
    blocks = [block for block, scripts in SHARED if {"a2c", "ppo"} <= set(scripts)]
    assert drifted != read("a2c")
    assert fixed(drifted, model, blocks) == read("a2c")


def main():
    if len(sys.argv) != 3 or sys.argv[1] != "--fix" or sys.argv[2] not in SCRIPTS:
        sys.exit(f"usage: python tests/test_copies.py --fix {{{','.join(SCRIPTS)}}}")
    model = sys.argv[2]
    for script in SCRIPTS:
        blocks = [block for block, scripts in SHARED if {script, model} <= set(scripts)]
        before = read(script)
        after = fixed(before, read(model), blocks)
        if after != before:
            (ROOT / f"{script}.py").write_text(after)
            print(f"{script}.py follows {model}.py")


if __name__ == "__main__":
    main()
