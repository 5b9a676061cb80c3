"""benchmarks/scaling.py: its model by hand numbers, its flags, and the tables of SCALING.md."""

import importlib

import pytest
from harness import ROOT, parse


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("scaling")


def row(size, act, env_step, update, rest, processes=1):
    """A row with two updates in ten vector steps."""
    times = {"act_us": act, "env_step_us": env_step, "update_us": update, "rest_us": rest}
    counts = {"size": size, "processes": processes, "vector_steps": 10, "updates": 2}
    return {name: str(value) for name, value in {"script": "ppo", **counts, **times}.items()}


def test_model_by_hand(scaling):
    """With 1 and 5 environments act takes 10 and 14 us, env_step 20 and 60, update 100 and 500, the rest 5 and 5.

    With 3, between them: 12 + 40 + 5 and 2/10 of 300 in a vector step are 117 us, in which 3 environments step. Two
    processes step 6, and an all-reduce of 15 us makes an update 315, a vector step 120 us.
    """
    rows = [row(1, 10, 20, 100, 5), row(5, 14, 60, 500, 5), row(3, 0, 0, 0, 0), row(3, 0, 0, 0, 0, processes=2)]
    assert scaling.predict(rows, rows[2]) == pytest.approx(1e6 * 3 / 117)
    assert scaling.predict(rows, rows[3], all_reduce_us=15) == pytest.approx(1e6 * 6 / 120)


def test_split_batch_by_hand(scaling):
    """100 us for a batch of 64 and 196 for one of 256 are 68 and half a microsecond for each of the batch.

    Two processes with 256 take 68 + 64 and an all-reduce of 15 us.
    """
    rows = [row(64, 0, 0, 100, 0), row(256, 0, 0, 196, 0), row(256, 0, 0, 999, 0, processes=2)]
    rows = [row | {"all_reduce_us": "20"} for row in rows]
    assert scaling.predict_split(rows, rows[2], all_reduce_us=15) == pytest.approx(68 + 64 + 15)
    (line,) = scaling.split_table(rows, {"ppo": 15.0}).splitlines()[2:]
    assert line == "| `ppo.py` | 256 | 196 | 999 | 20 | 147 | 0.20 | 1.33 |"


@pytest.mark.parametrize("script", ["ppo", "td3", "sac"])
def test_two_processes_share_the_batch_of_one(scaling, script):
    def batch(size, processes):
        args = parse(script, *scaling.RUNS["split"][script](size, processes).split())
        return args.num_envs * args.num_steps // args.num_minibatches if script == "ppo" else args.batch_size

    for size in scaling.SIZES["split"][1]:
        assert (batch(size, 1), batch(size, 2)) == (size, size // 2)


def test_tables_show_the_committed_rows(scaling):
    rows = scaling.common.read_rows(ROOT / "benchmarks" / "results" / "scaling.csv", scaling.COLUMNS)
    text = scaling.PAGE.read_text()
    assert rows and scaling.with_tables(text, rows) == text
    broken = [row | {"steps_per_second": "1"} for row in rows]
    assert scaling.with_tables(text, broken) != text  # so the marks are there
