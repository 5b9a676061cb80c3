"""benchmarks/speed/speed.py: peers get the flags of our scripts; a run that never solves counts as infinite."""

import importlib
import math

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
    if name in ("ddpg", "td3"):
        words["noise_std"] = args.exploration_noise
    return words


@pytest.mark.parametrize("name", ["ppo", "a2c", "ddpg", "td3", "sac"])
def test_peer_has_our_flags(name, speed):
    spec = speed.COMPARISONS[f"{name}-same-flags-solved"]
    args = harness.parse(name, *spec["flags"].split())
    peer, defaults = spec["peer"], {"a2c": {"gamma": 0.99, "gae_lambda": 1.0}}.get(name, {})
    assert (peer["env_id"], peer["num_envs"], peer["steps"]) == (args.env_id, args.num_envs, args.total_timesteps)
    assert defaults | peer["flags"] == in_their_words(args, name) | {"policy": "MlpPolicy"}


def test_unsolved_run_counts_as_infinite_time(speed):
    mine, theirs = [1.0, math.inf, 3.0, math.inf], [2.0, 4.0, math.inf, math.inf]
    assert speed.ratio(mine, theirs) == "0.50 (0.00 to inf)"  # the last turn has no solved run


def test_every_comparison_is_understood(speed):
    """Our script takes its flags, and the peer has an algorithm of its name."""
    for name, spec in speed.COMPARISONS.items():
        assert name.endswith(("-equal-sizes", "-solved"))
        harness.parse(spec["script"].removesuffix(".py"), *spec["flags"].split())
        assert spec["peer"].keys() >= {"algorithm", "env_id", "num_envs", "steps", "flags"}
        assert ("solved" in spec) == name.endswith("-solved")


def test_page_shows_the_committed_rows(speed):
    rows = speed.common.read_rows(speed.common.RESULTS / "speed.csv", speed.COLUMNS)
    page = (harness.ROOT / "docs" / "results.md").read_text()
    assert rows
    for mark, lines in speed.tables(rows).items():
        assert speed.common.with_table(page, mark, lines) == page
