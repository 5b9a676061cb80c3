"""benchmarks/speed/speed.py: peers get the flags of our scripts; a run that never solves counts as infinite."""

import importlib
import json
import math
import shlex

import harness
import pytest


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(harness.ROOT / "benchmarks" / "speed")
    return importlib.import_module("speed")


def in_their_words(args, name):
    """Our flags in the names of a peer."""
    words = {"gamma": args.gamma}
    if name in ("ppo", "a2c"):
        words |= {"n_steps": args.num_steps, "gae_lambda": args.gae_lambda, "ent_coef": args.ent_coef}
        words["learning_rate"] = f"lin_{args.learning_rate}" if args.anneal_lr else args.learning_rate
    else:
        words |= {"batch_size": args.batch_size, "buffer_size": args.buffer_size, "tau": args.tau}
        words["learning_rate"] = args.q_lr if name == "sac" else args.learning_rate
        words["policy_kwargs"] = {"net_arch": [args.hidden_size] * 2}
        words |= {"learning_starts": args.learning_starts, "train_freq": round(1 / args.utd), "gradient_steps": 1}
    if name == "ppo":
        batch = args.num_envs * args.num_steps // args.num_minibatches
        words |= {"batch_size": batch, "n_epochs": args.update_epochs, "clip_range": args.clip_coef}
    return words


def peer_flags(spec):
    """The flags of a comparison's peer, each of which has a value -> {flag: value}"""
    words = shlex.split(spec["peer"])
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("name", ["ppo", "a2c", "ddpg", "td3", "sac"])
def test_peer_has_our_flags(name, speed):
    spec = speed.COMPARISONS[f"{name}-same-flags-solved"]
    args, peer = harness.parse(name, *spec["flags"].split()), peer_flags(spec)
    sizes = (args.env_id, str(args.num_envs), str(args.total_timesteps))
    assert (peer["--env-id"], peer["--num-envs"], peer["--total-timesteps"]) == sizes
    defaults = {"a2c": {"gamma": 0.99, "gae_lambda": 1.0}}.get(name, {})
    assert defaults | json.loads(peer["--hyper"]) == in_their_words(args, name)
    assert float(peer.get("--noise-std", 0)) == getattr(args, "exploration_noise", 0)


def test_unsolved_run_counts_as_infinite_time(speed):
    mine, theirs = [1.0, math.inf, 3.0, math.inf], [2.0, 4.0, math.inf, math.inf]
    assert speed.ratio(mine, theirs) == "0.50 (0.00 to inf)"  # the last turn has no solved run


def test_every_comparison_is_understood(speed):
    """Our script takes its flags, and the peer has an algorithm of its name."""
    for name, spec in speed.COMPARISONS.items():
        assert name.endswith(("-equal-sizes", "-solved"))
        harness.parse(spec["script"].removesuffix(".py"), *spec["flags"].split())
        assert peer_flags(spec).keys() >= {"--algorithm", "--env-id", "--num-envs", "--total-timesteps"}
        assert ("solved" in spec) == name.endswith("-solved")


def test_page_shows_the_committed_rows(speed):
    rows = speed.common.read_rows(speed.common.RESULTS / "speed.csv", speed.COLUMNS)
    page = (harness.ROOT / "docs" / "results.md").read_text()
    assert rows
    for mark, lines in speed.tables(rows).items():
        assert speed.common.with_table(page, mark, lines) == page
    readme = (harness.ROOT / "README.md").read_text()
    assert speed.common.with_table(readme, "speed", speed.readme_table(rows)) == readme


def test_line_of_a_table(speed):
    """Medians over turns; a side that took no turns has an empty cell; ratios are taken turn by turn."""
    turns = {"eager": ("200", "300", "100"), "stable_baselines3": ("100", "100", "100")}
    first = {"comparison": "trpo-equal-sizes", "threads": "1"}
    rows = [first | {"side": k, "second_half_steps_per_second": x} for k, column in turns.items() for x in column]
    assert speed.line_of(rows) == ["`trpo.py`", "1", "200", "", "100", "", "2.00 (1.00 to 3.00)", ""]
    solved = {"comparison": "a2c-same-flags-solved", "threads": "2", "startup_seconds": "1"}
    rows = [solved | {"side": "eager", "solved_seconds": x} for x in ("4", "", "2")]
    cells = ["`a2c.py`, same flags", "2", "5.0 (2 of 3)", "", "", "", "", ""]
    assert speed.line_of(rows) == cells
