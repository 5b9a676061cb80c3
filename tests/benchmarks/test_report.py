"""benchmarks/scores/report.py: statistics by hand, the rows that it takes, and the page of a small made-up suite."""

import importlib
import sys
from pathlib import Path

import pytest
from harness import ROOT

pytest.importorskip("matplotlib")
pytest.importorskip("rliable.library")

SUITE = """
[scripts]
"sb3 ppo" = "benchmarks/scores/sb3.py --algorithm ppo"
[Left-v1]
a2c = ""
ppo = '--gamma 0.9 --hyper "a b"'
"sb3 ppo" = "--num-envs 8"
[Right-v1]
ppo = ""
"""
PEERS = """
[Left-v1]
group = "control"
ppo = {score = 90.0, deviation = 1.5, source = "a paper, 1M"}
[Right-v1]
group = "MuJoCo"
"""
PAGE = (
    "# Title\n<!-- scores -->\nold\n<!-- end -->\n<!-- defaults -->\n<!-- end -->\n<!-- speed -->\nkept\n<!-- end -->\n"
)
PPO_FLAGS = '--gamma 0.9 --hyper "a b"'


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "scores"))
    return importlib.import_module("report")


@pytest.fixture
def report(module, folder, monkeypatch):
    """The module for a made-up suite: the working folder has that, published scores and two pages."""
    for name, text in (("suite.toml", SUITE), ("peers.toml", PEERS), ("page.md", PAGE), ("readme.md", PAGE)):
        Path(name).write_text(text)
    monkeypatch.setattr(module, "SHOWN", {"ppo": ["Left-v1"]})
    monkeypatch.setattr(module, "DEFAULTS", {"Left-v1": (2.5, "a2c ppo")})
    monkeypatch.setattr(module, "CURVES", ["Left-v1"])
    monkeypatch.setattr(module, "FIGURES", {"left": "control", "right": "MuJoCo"})
    return module


def row(script="ppo.py", env="Left-v1", seed=1, score=50.0, flags=PPO_FLAGS, **other):
    """A row of the table of runs; its key is its place in it, see write."""
    values = {"script": script, "env": env, "seed": seed, "flags": flags, "eval_return": score, "episodes": 100}
    values |= {"steps": 1000, "seconds": 2.0, "peak_rss_mb": 350.0, "date": f"2026-01-01T00:00:0{seed}+00:00"}
    return values | {"commit": "aaaaaaa", "python": "3.11", "cpu": "a cpu", "cores": 2} | other


def write(report, *rows, points=4):
    """The tables of these runs, each with a curve that rises to its score in so many evaluations."""
    run, curve = report.run, []
    for place, values in enumerate(rows):
        values["key"] = f"key{place}"
        known = {name: values[name] for name in ("script", "env", "seed", "key")}
        for point in range(1, points + 1):
            share = point / points
            steps, score = int(values["steps"] * share), values["eval_return"] * share
            curve.append(
                known | {"steps": steps, "eval_return": score, "train_return": score - 1, "seconds": 2 * share}
            )
    run.common.replace_rows("suite.csv", run.COLUMNS, rows)
    run.common.replace_rows("suite_curves.csv", run.CURVE_COLUMNS, curve)


def cells(report):
    return report.read_cells(report.Args(table=Path("suite.csv"), suite=Path("suite.toml")))


def test_interquartile_mean_by_hand(report):
    np = report.np
    scores = np.array([[1.0], [100.0], [3.0], [4.0], [2.0], [5.0], [-50.0], [6.0]])  # without 2 at either end: 2 3 4 5
    assert report.iqm(scores) == pytest.approx([3.5])
    assert report.iqm(np.array([[1.0, 2.0], [3.0, 60.0]])) == pytest.approx([2.5])  # of all tasks together
    assert report.iqm(np.array([[1.0], [2.0], [6.0]])) == pytest.approx([3.0])  # a quarter of three is none
    curves = np.random.default_rng(0).normal(size=(9, 2, 5))
    aggregate = importlib.import_module("rliable.metrics").aggregate_iqm
    assert report.iqm(curves) == pytest.approx([aggregate(curves[:, :, point]) for point in range(5)])


def test_interval_contains_the_mean_and_is_reproducible(report):
    scores = report.np.random.default_rng(0).normal(5, 1, size=(40, 1))
    (mean,), (low,), (high,) = report.interval(scores)
    assert low < mean < high
    # 1.09 / sqrt(40) is the interquartile mean's deviation for a Gaussian; 1.96 of them on either side
    assert high - low == pytest.approx(2 * 1.96 * 1.09 / 40**0.5, rel=0.3)
    assert [*map(float, (low, high))] == [float(end[0]) for end in report.interval(scores)[1:]]


def test_newest_row_of_each_seed_counts(report):
    write(
        report,
        row(seed=2, score=2.0),
        row(seed=1, score=10.0, date="2026-01-03"),
        row(seed=1, score=1.0, date="2026-01-02", script_sha256="another"),
        row(seed=10, score=3.0, date="2026-01-01"),
    )
    chosen = cells(report)["Left-v1", "ppo"]
    assert [(row["seed"], float(row["eval_return"])) for row in chosen] == [("1", 10.0), ("2", 2.0), ("10", 3.0)]
    assert [len(row["curve"]) for row in chosen] == [4, 4, 4]


def test_rows_with_other_flags_are_left_out(report):
    write(
        report,
        row(seed=1, steps=1020),  # a rollout more
        row(seed=2, steps=2000),  # when the default was another
        row(seed=3, flags=""),
        row(seed=4, episodes=20),
        row(seed=5, env="Elsewhere-v1"),
        row(seed=6, script="a2c.py"),
        row(seed=7, flags="--gamma 0.9   --hyper 'a b'"),  # the same words
        row(seed=8, script="sb3.py", flags="--algorithm ppo --num-envs 8"),
        row(seed=9, script="sb3.py", flags="--algorithm a2c --num-envs 8"),
        row(seed=7, date="2026-01-09"),
    )
    seeds = {cell: [row["seed"] for row in rows] for cell, rows in cells(report).items()}
    assert seeds == {
        ("Left-v1", "a2c"): [],
        ("Left-v1", "ppo"): ["1", "7"],
        ("Left-v1", "sb3 ppo"): ["8"],
        ("Right-v1", "ppo"): [],
    }


def test_a_row_is_known_by_code_without_comments(report):
    texts = ('"""A"""\nx = 1  # one\n', '"""B"""\n# two\nx = 1\n', '"""A"""\nx = 2\n')
    for name, text in zip("abc", texts, strict=True):
        Path(name).write_text(text)
    assert report.common.code_sha256("a") == report.common.code_sha256("b") != report.common.code_sha256("c")


def test_table_and_figures(report, monkeypatch, capsys):
    """A score of four seeds has an interval; a row of another script's contents has a mark; an empty cell is empty."""
    sha = report.common.code_sha256(ROOT / "ppo.py")
    mine = [row(seed=seed, score=float(score), script_sha256=sha) for seed, score in enumerate((1, 2, 3, 4), 1)]
    theirs = row(seed=1, score=7.0, script="sb3.py", flags="--algorithm ppo --num-envs 8")
    write(report, *mine, theirs, row(env="Right-v1", score=5.0, flags="", script_sha256="another"))
    words = ("--table", "suite.csv", "--suite", "suite.toml", "--peers", "peers.toml", "--page", "page.md")
    monkeypatch.setattr(sys, "argv", ["report.py", *words, "--readme", "readme.md", "--figures", "."])
    report.main()
    head, _, a2c, left, right, end, mark, *rest = Path("page.md").read_text().splitlines()[2:]
    assert head == "| environment | script | steps | seconds | score (95 %) | SB3, here | published | source |"
    assert a2c == "| Left-v1 | `a2c.py` |  |  |  |  |  |  |"
    assert left.startswith("| Left-v1 | `ppo.py` | 1,000 | 2 | 2.5 (")
    assert left.endswith("), n 4 | 7.0, n 1 (aaaaaaa) | 90.0 ± 1.5 | a paper, 1M |")
    assert right == "| Right-v1 | `ppo.py` | 1,000 | 2 | 5.0, n 1 * |  |  |  |"
    assert (end, mark) == ("<!-- end -->", "<!-- defaults -->")
    head, _, defaults, *rest = rest
    assert defaults == "| `ppo.py` | Left-v1 | 1,000 | 2 of 4 | 1.0 | 2.5 | 4.0 |"
    assert rest == ["<!-- end -->", "<!-- speed -->", "kept", "<!-- end -->"]
    head, _, row_of_readme = Path("readme.md").read_text().splitlines()[2:5]
    assert head == "| environment | script | steps | score (95 %) | published | source |"
    assert row_of_readme.startswith("| Left-v1 | `ppo.py` | 1,000 | 2.5 (")
    before = {path: path.read_bytes() for path in Path().glob("*.svg")}
    report.main()
    assert len(before) == 3 + 2 + 1  # groups, defaults, scripts, Pong
    assert before == {path: path.read_bytes() for path in Path().glob("*.svg")}


def test_curve_is_of_the_steps_that_all_seeds_have(report):
    write(report, row(seed=1, score=100.0), row(seed=2, score=60.0, steps=960), points=4)
    steps, values = report.curve_of(cells(report)["Left-v1", "ppo"])
    assert (steps[0], steps[-1]) == (250, 960)
    assert values[:, -1] == pytest.approx([96, 60])


def test_page_shows_the_committed_rows(module):
    args = module.Args()
    page, peers = args.page.read_text(), module.tomllib.loads(args.peers.read_text())
    cells, readme = module.read_cells(args), args.readme.read_text()
    assert module.common.with_table(page, "scores", module.scores_table(cells, peers)) == page
    assert module.common.with_table(page, "defaults", module.defaults_table(cells)) == page
    assert module.common.with_table(readme, "scores", module.readme_table(cells, peers)) == readme
