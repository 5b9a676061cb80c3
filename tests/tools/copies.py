"""Copy what the scripts share from one of them to the others.

    python tests/tools/copies.py --fix ppo

Each block of SHARED that the named script has, and all below its rule, goes to the scripts that share it.
tests/house/test_copies.py checks that the copies are the same.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ON_POLICY = ("reinforce", "reinforce_baseline", "a2c", "ppo", "a3c", "trpo")
OFF_POLICY = ("ddpg", "td3", "sac")
CONTROL = (*ON_POLICY, *OFF_POLICY)
SCRIPTS = (*CONTROL, "rlhf", "ppo_atari")
ROLLOUTS = ("a2c", "ppo", "a3c", "trpo")
RULE = "\n# -----"
CRITICS = ("reinforce_baseline", "a2c", "ppo", "a3c", "trpo")
EVERY_FLAG = "env_kwargs device num_threads matmul_precision compile resume evaluate"
CONTROL_FLAGS = "async_envs gamma eval_episodes capture_video"
FAMILY_FLAGS = "env_id hidden_size"  # with another default in each family
ON_POLICY_FLAGS = f"{FAMILY_FLAGS} initial_std"
OFF_POLICY_FLAGS = f"{FAMILY_FLAGS} num_envs tau buffer_size batch_size learning_starts utd"
# A block is a function, a class, a method (Class.method), or a flag (Args.name). These scripts share it.
SHARED = [
    *[(f"Args.{name}", SCRIPTS) for name in EVERY_FLAG.split()],
    *[(f"Args.{name}", (*CONTROL, "ppo_atari")) for name in CONTROL_FLAGS.split()],
    ("Args.checkpoint_every", CONTROL),
    ("Args.seed", tuple(script for script in SCRIPTS if script != "a3c")),
    *[(f"Args.{name}", ON_POLICY) for name in ON_POLICY_FLAGS.split()],
    *[(f"Args.{name}", OFF_POLICY) for name in OFF_POLICY_FLAGS.split()],
    ("Args.norm_obs", ROLLOUTS),
    *[(f"Args.{name}", ("a2c", "ppo", "a3c")) for name in ("num_steps", "ent_coef", "vf_coef", "max_grad_norm")],
    ("Args.norm_reward", ("a2c", "ppo", "trpo", "ppo_atari")),
    ("Args.learning_rate", ON_POLICY[:5]),
    *[(block, (*ON_POLICY[:5], "ppo_atari")) for block in ("Args.anneal_lr", "Agent.log_prob")],
    *[(f"Args.{name}", ("reinforce", "reinforce_baseline")) for name in ("num_envs", "total_timesteps")],
    *[(f"Args.{name}", ("ddpg", "td3")) for name in ("learning_rate", "exploration_noise")],
    ("Args.norm_adv", ("reinforce_baseline", "ppo", "ppo_atari")),
    ("make_vec", CONTROL),
    *[(block, ON_POLICY) for block in ("mlp", "Agent.act")],
    ("Agent.value", (*CRITICS, "ppo_atari")),
    ("value_loss", (*CRITICS, "rlhf", "ppo_atari")),
    ("gae", (*ROLLOUTS, "rlhf", "ppo_atari")),
    ("policy_loss", ("ppo", "rlhf", "ppo_atari")),
    ("policy_loss", ("reinforce", "reinforce_baseline", "a2c", "a3c")),
    ("returns_to_go", ("reinforce", "reinforce_baseline")),
    ("Agent", ("a2c", "ppo")),
    *[(block, ("a2c", "ppo", "trpo")) for block in ("Agent.__init__", "RunningNorm")],
    ("RunningNorm", ("ppo", "ppo_atari")),
    *[(block, ROLLOUTS) for block in ("RunningNorm.__init__", "RunningNorm.update", "RunningNorm.forward")],
    *[(block, OFF_POLICY) for block in ("mlp", "ReplayBuffer", "polyak_update")],
    *[(block, ("ddpg", "td3")) for block in ("Agent.act", "actor_loss")],
    ("q_value", ("td3", "sac")),
]


def read(script):
    return (ROOT / f"{script}.py").read_text()


def tail(text):
    """The rule, and all below it."""
    assert text.count(RULE) == 1, "there must be one rule"
    return text[text.index(RULE) :]


def lines_of(text, block):
    """The first line of a block, and the line after its last; the first line of the script is 0."""
    nodes = ast.parse(text).body
    for name in block.split("."):
        found = [node for node in nodes if name in (getattr(node, "name", None), flag_name(node))]
        assert len(found) == 1, f"{block}: found {len(found)} times"
        nodes = getattr(found[0], "body", [])
    first = min([found[0].lineno, *(decorator.lineno for decorator in getattr(found[0], "decorator_list", []))])
    return first - 1, found[0].end_lineno


def flag_name(node):
    return getattr(node.target, "id", None) if isinstance(node, ast.AnnAssign) else None


def source(text, block):
    first, end = lines_of(text, block)
    return "\n".join(text.splitlines()[first:end])


def blocks_of(script, model):
    """The blocks that both scripts share."""
    return [block for block, scripts in SHARED if {script, model} <= set(scripts)]


def fixed(text, model, blocks):
    """A script's text with these blocks, and all below the rule, as in the model's text."""
    for block in blocks:
        first, end = lines_of(text, block)
        lines = text.splitlines()
        text = "\n".join([*lines[:first], source(model, block), *lines[end:]]) + "\n"
    return text.replace(tail(text), tail(model))


def main():
    if len(sys.argv) != 3 or sys.argv[1] != "--fix" or sys.argv[2] not in SCRIPTS:
        sys.exit(f"usage: python tests/tools/copies.py --fix {{{','.join(SCRIPTS)}}}")
    model = sys.argv[2]
    for script in SCRIPTS:
        before = read(script)
        after = fixed(before, read(model), blocks_of(script, model))
        if after != before:
            (ROOT / f"{script}.py").write_text(after)
            print(f"{script}.py follows {model}.py")


if __name__ == "__main__":
    main()
