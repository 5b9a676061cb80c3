"""benchmarks/report.py: statistics by hand, the rows that it takes, tables and figures of a small made-up suite."""

import csv
import importlib
import re
import sys
from pathlib import Path

import pytest
from harness import ROOT

pytest.importorskip("matplotlib")
pytest.importorskip("rliable.library")

SUITE = """
[scripts]
"sb3 ppo" = "benchmarks/sb3.py --algorithm ppo"
[Left-v1]
a2c = ""
ppo = '--gamma 0.9 --hyper "a b"'
"sb3 ppo" = "--num-envs 8"
[Right-v1]
ppo = ""
"""
PEERS = """
[Left-v1]
group = "all"
random = 0
goal = 100
ppo = {score = 90.0, deviation = 1.5, source = "a paper, 1M"}
[Right-v1]
group = "all"
random = -10
goal = 0
"""
README = (
    "# Title\n<!-- results -->\nold\n<!-- end -->\n<!-- cost -->\n<!-- end -->\n<!-- speed -->\nkept\n<!-- end -->\n"
)
PPO_FLAGS = '--gamma 0.9 --hyper "a b"'


@pytest.fixture
def report(folder, monkeypatch):
    """The module; the working folder has a suite, published scores and a README."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name, text in (("suite.toml", SUITE), ("peers.toml", PEERS), ("README.md", README)):
        Path(name).write_text(text)
    return importlib.import_module("report")


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


def start(report, monkeypatch, *flags):
    """report.py by its command line, in this process."""
    names = {"table": "suite.csv", "suite": "suite.toml", "peers": "peers.toml", "figures": "figures"}
    command = ["report.py", *[word for name, path in names.items() for word in (f"--{name}", path)], *flags]
    monkeypatch.setattr(sys, "argv", command)
    report.main()


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


def test_tables_and_figures(report, monkeypatch, capsys):
    peer = {"script": "sb3.py", "flags": "--algorithm ppo --num-envs 8", "peak_rss_mb": "", "commit": "bbbbbbb"}
    write(
        report,
        *[row(seed=seed, score=80.0) for seed in (1, 2, 3, 5)],
        row(seed=4, score=60.0, seconds=4.0, peak_rss_mb=380.0),
        row(seed=1, score=1234.56, steps=2000, **peer),
    )
    start(report, monkeypatch)
    text = Path("README.md").read_text()
    results, cost = (text.split(f"<!-- {name} -->\n")[1].split("\n\n")[0] for name in ("results", "cost"))
    assert results.splitlines()[2:] == [
        "| Left-v1 | `a2c.py` |  |  |  |  |  |",
        "| Left-v1 | `ppo.py` | 1,000 | 80.0 (66.7 to 80.0), n 5 | 1,234.6, n 1 | 90.0 ± 1.5 | a paper, 1M |",
        "| Right-v1 | `ppo.py` |  |  |  |  |  |",
    ]
    assert cost.splitlines()[2:] == ["| Left-v1 | `ppo.py` | 1,000 | 2 | 350 | 2 |  |"]
    assert text.count("Seeds 1-5; commits aaaaaaa, bbbbbbb; python 3.11; 2 cores, a cpu.") == 2
    assert text.startswith("# Title\n<!-- results -->\n| environment |")
    assert text.endswith("<!-- end -->\n<!-- speed -->\nkept\n<!-- end -->\n")
    assert "ppo Left-v1 | 80.0 (66.7 to 80.0), n 5" in capsys.readouterr().out

    names = ("learning_steps", "learning_seconds", "profiles", "sample_efficiency")
    assert all(text.count(f"](benchmarks/figures/{name}.svg)") == 1 for name in names)
    assert {path.name for path in Path("figures").iterdir()} == {f"{n}.{end}" for n in names for end in ("svg", "png")}
    before = {path: path.read_bytes() for path in Path("figures").iterdir()}
    assert all(len(drawing) > 5000 for drawing in before.values())
    start(report, monkeypatch)
    assert before == {path: path.read_bytes() for path in Path("figures").iterdir()}
    assert Path("README.md").read_text() == text
    assert b"return of training episodes" in before[Path("figures/learning_steps.svg")]

    # With enough evaluations their curve is drawn, and so it says.
    write(report, *[row(seed=seed, score=80.0) for seed in (1, 2)], points=12)
    start(report, monkeypatch)
    assert "return of the greedy policy" in Path("figures/learning_steps.svg").read_text()


def test_curve_ends_at_the_last_point_of_each_run(report):
    """REINFORCE ends with its episodes: each seed at other steps."""
    write(report, row(seed=1, score=80.0), row(seed=2, score=40.0, steps=1010))
    steps, seconds, values = report.curve_of(cells(report)["Left-v1", "ppo"], "eval_return")
    assert steps.tolist() == [500, 750, 1000]  # from where each has a point, 252 for one of them
    assert seconds.tolist() == [0.75, 1.25, 2.0]  # medians of 1 and 0.5 (at 252), 1.5 and 1 (at 505), 2 and 2
    assert values.tolist() == [[40.0, 60.0, 80.0], [10.0, 20.0, 40.0]]


def test_group_has_scripts_that_ran_in_all_its_environments(report):
    """And of environments that more than one script was run in, if there are such."""
    peers = report.read_toml("--peers", Path("peers.toml"))
    measured = {("Left-v1", name): [row()] for name in ("ppo", "a2c", "td3")}
    measured |= {("Right-v1", name): [row(env="Right-v1")] for name in ("ppo", "a2c")}
    (names,) = report.groups_of(measured, peers).values()
    assert names.keys() == {"ppo", "a2c"}
    assert all(rows.keys() == {"Left-v1", "Right-v1"} for rows in names.values())
    del measured["Right-v1", "a2c"]
    (names,) = report.groups_of(measured, peers).values()
    assert names.keys() == {"ppo", "a2c", "td3"}
    assert all(rows.keys() == {"Left-v1"} for rows in names.values())


def test_group_has_a_score_for_each_seed_and_environment(report):
    write(report, row(score=50.0), row(env="Right-v1", flags="", score=-5.0))
    measured = {cell: rows for cell, rows in cells(report).items() if rows}
    peers = report.read_toml("--peers", Path("peers.toml"))
    (names,) = report.groups_of(measured, peers).values()
    scores = report.matrix(names["ppo"], peers, lambda row: float(row["eval_return"]))
    assert scores.tolist() == [[0.5, 0.5]]
    (mine,) = names["ppo"]["Left-v1"]
    at = report.score_at(mine, "eval_return", report.np.array([100, 250, 700, 5000]), random=-7.0)
    assert at.tolist() == [-7.0, 12.5, 25.0, 50.0]


def test_cell_with_few_seeds_is_left_out(report):
    peers = report.read_toml("--peers", Path("peers.toml"))
    left = [row(seed=seed) for seed in range(1, 6)]
    for right, envs in ((2, {"Left-v1"}), (3, {"Left-v1", "Right-v1"})):
        write(report, *left, *[row(env="Right-v1", flags="", seed=seed) for seed in range(1, right + 1)])
        measured = {cell: rows for cell, rows in cells(report).items() if rows}
        assert set(report.groups_of(measured, peers)["all"]["ppo"]) == envs


@pytest.mark.parametrize(
    ("broken", "flags", "said"),
    [
        (None, ("--table", "nothing.csv"), "nothing.csv"),
        (None, ("--readme", "nothing.md"), "nothing.md"),
        (None, ("--suite", "nothing.toml"), "nothing.toml"),
        (None, ("--peers", "nothing.toml"), "nothing.toml"),
        (None, ("--episodes", "7"), "no run"),
        ("README.md", (), "<!-- results -->"),
        ("suite_curves.csv", (), "suite_curves.csv"),
        ("peers.toml", (), "Left-v1"),
        ("suite.csv", (), "suite.csv"),
    ],
)
def test_bad_input_is_one_line_and_status_2(report, monkeypatch, capsys, broken, flags, said):
    write(report, row())
    if broken:
        with open(broken) as file:
            header = next(csv.reader(file))
        Path(broken).write_text(",".join(header if broken == "suite_curves.csv" else ["other"]).replace("other", ""))
    with pytest.raises(SystemExit) as stopped:
        start(report, monkeypatch, *flags)
    _, stderr = capsys.readouterr()
    assert stopped.value.code == 2
    assert said in stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.startswith("report.py: error: ")
    assert not Path("figures").exists()
    assert broken == "README.md" or Path("README.md").read_text() == README


def test_readme_shows_the_committed_rows(report):
    """Rows of ours by the flags that suite.toml has now. The other rows stay in the README until they are run again."""
    folder, text = ROOT / "benchmarks", (ROOT / "README.md").read_text()
    cells = report.read_cells(report.Args(folder / "results" / "suite.csv", folder / "suite.toml"))
    made = report.with_tables(text, cells, report.read_toml("--peers", folder / "peers.toml"))
    lines = re.findall(r"^\| \S+-v\d \| `\w+\.py` \| [\d,]+ \| \d.*$", made, re.M)
    assert len(lines) > 50
    assert not set(lines) - set(text.splitlines())
