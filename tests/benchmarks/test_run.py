"""benchmarks/scores/run.py: the grid makes its rows, once each, however often it is stopped, here and on Ray."""

import csv
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
import tyro
from harness import HELPERS, OFF_POLICY, ROOT, checkpoint, environment, parse, scalars, train

pytest.importorskip("joblib")
SCORES = ROOT / "benchmarks" / "scores"
RUN = [sys.executable, str(SCORES / "run.py"), "--suite", "suite.toml", "--out", "suite.csv", "--work", "work"]
SAME = ("script", "env", "seed", "key", "flags", "eval_return", "eval_std", "episodes", "steps", "script_sha256")


@pytest.fixture
def suite(folder):
    """Writes the table of the working folder -> a function of {environment: {name: flags}}."""
    for total in (1, 2, 40):
        Path("checkpoints", str(total)).mkdir(parents=True)
        for step in range(1, total + 1):
            torch.save({"step": step, "args": {"total_timesteps": total}}, f"checkpoints/{total}/{step}.pt")
    always = f"--checkpoints {folder / 'checkpoints'}"

    def write(script=HELPERS / "standin.py", **table):
        lines = ["[scripts]", f'standin = "{script} {always}"']
        for env, row in table.items():
            lines += [f'["{env}"]', *(f'{name} = "{flags}"' for name, flags in row.items())]
        Path("suite.toml").write_text("\n".join(lines))

    yield write
    for process in started:
        process.terminate()
        process.wait(timeout=60)
    started.clear()


started = []  # the runners of a test


def start(*flags):
    """A runner's process, with its outputs in files."""
    with open("stdout", "w") as stdout, open("stderr", "w") as stderr:
        command = [*RUN, "--jobs", "2", *map(str, flags)]
        process = subprocess.Popen(command, env=environment(), stdout=stdout, stderr=stderr)
    started.append(process)
    return process


def run(*flags, status=0):
    """A runner to its end, which has to be of this status -> standard output, standard error."""
    ended = start(*flags).wait(timeout=120)
    stdout, stderr = Path("stdout").read_text(), Path("stderr").read_text()
    assert ended == status, stderr
    return stdout, stderr


def rows(path="suite.csv", columns=SAME):
    with open(path, newline="") as file:
        return sorted(tuple(row[name] for name in columns) for row in csv.DictReader(file))


def results():
    """When each run ended."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path("work").glob("*/result.json")}


def wait_for_checkpoints(count, step=3, seconds=60):
    """Wait until so many runs have had so many checkpoints -> their processes."""
    deadline = time.monotonic() + seconds
    while True:
        steps = [int(path.read_text().split()[0]) for path in Path("work").glob("*/runs/*/step")]
        if sum(x >= step for x in steps) >= count:
            return [int(path.read_text()) for path in Path("work").glob("*/pid")]
        assert time.monotonic() < deadline, Path("stderr").read_text()
        time.sleep(0.02)


def test_each_run_is_made_once_and_has_a_row(suite):
    suite(Left={"standin": "--steps 2"}, Right={"standin": ""})
    stdout, _ = run("--seeds", "1-2", "--eval-episodes", 7)
    assert "4 of 4 runs" in stdout
    columns = ("script", "env", "seed", "eval_return", "eval_std", "episodes", "steps", "seconds", "steps_per_second")
    expected = [
        ("standin.py", env, str(seed), f"{10 * seed}.0", "1.0", "7", steps, "1.0", f"{steps}.0")
        for env, steps in (("Left", "2"), ("Right", "1"))
        for seed in (1, 2)
    ]
    assert rows(columns=columns) == expected
    curve = ("script", "env", "seed", "steps", "eval_return")
    assert rows("suite_curves.csv", curve) == [(*row[:3], row[6], row[3]) for row in expected]
    for name in ("date", "commit", "command", "python", "torch", "cpu", "cores", "peak_rss_mb"):
        assert all(value for (value,) in rows(columns=(name,)))
    before, made = rows(), results()
    stdout, _ = run("--seeds", "1-2", "--eval-episodes", 7)
    assert "0 of 0 runs" in stdout
    Path("suite.csv").unlink()  # the folders have the results
    run("--seeds", "1-2", "--eval-episodes", 7)
    assert (rows(), results()) == (before, made)
    run("--seeds", "2-3", "--eval-episodes", 7, "--envs", "Left")
    assert set(rows()) - set(before) == {row for row in rows() if row[1:3] == ("Left", "3")}


def test_changed_script_or_flags_are_a_new_run(suite, folder):
    script = folder / "standin.py"
    script.write_text((HELPERS / "standin.py").read_text())
    suite(script, Left={"standin": ""})
    run("--seeds", 1)
    script.write_text(script.read_text() + "another = 1\n")
    run("--seeds", 1)
    suite(script, Left={"standin": "--steps 2"})
    run("--seeds", 1)
    assert len({row[3] for row in rows()}) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopped_grid_continues(number, suite):
    """Each run goes on from its checkpoint. A killed runner leaves its scripts: they end first, or are named."""
    suite(Left={"standin": "--steps 40 --pause 0.05"})
    process = start("--seeds", "1-2")
    scripts = wait_for_checkpoints(2)
    process.send_signal(number)
    if number == signal.SIGINT:  # a terminal gives Ctrl-C to all of them
        for pid in scripts:
            os.kill(pid, signal.SIGTERM)
    status = process.wait(timeout=30)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    if number == signal.SIGKILL:
        _, stderr = run("--seeds", "1-2", status=1)
        assert "still works on it" in stderr
        for pid in scripts:
            os.kill(pid, signal.SIGKILL)
    run("--seeds", "1-2")
    assert rows(columns=("seed", "steps")) == [("1", "40"), ("2", "40")]


def test_failed_run_is_named_and_the_others_continue(suite):
    suite(Left={"standin": "--fail-seed 2"})
    stdout, stderr = run("--seeds", "1-3", status=1)
    assert "standin Left seed 2 failed: exit status 3: seed 2 was told to fail" in stderr
    assert "2 of 3 runs" in stdout
    assert rows(columns=("seed",)) == [("1",), ("3",)]


def test_dry_run_only_prints(suite):
    suite(Left={"standin": ""})
    stdout, _ = run("--seeds", "1-2", "--dry-run")
    assert stdout.startswith("standin Left | 0 of 2 | --checkpoints")
    assert not Path("work").exists()


def test_second_runner_in_the_same_folder_is_refused(suite):
    suite(Left={"standin": "--steps 40 --pause 0.1"})
    start("--seeds", 1)
    wait_for_checkpoints(1, step=1)
    _, stderr = run("--seeds", 2, status=2)
    assert "another run.py is at work there" in stderr


@pytest.mark.parametrize(
    ("table", "flags", "said"),
    [
        ("[Left", [], "suite.toml"),
        ('Left = "x"', [], "suite.toml"),
        ('[Left]\nnothing = ""', [], "there is no nothing.py"),
        ('[Left]\nppo = "--seed 3"', [], "--seed"),
        ('[Left]\nppo = ""', ["--envs", "Right"], "--envs Right"),
        ('[Left]\nppo = ""', ["--scripts", "a2c"], "--scripts a2c"),
        ('[Left]\nppo = ""', ["--seeds", "3-1"], "--seeds 3-1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(table, flags, said, folder):
    Path("suite.toml").write_text(table)
    _, stderr = run(*flags, status=2)
    assert said in stderr
    assert len(stderr.splitlines()) == 1
    assert not Path("work").exists()


def test_suite_has_every_promised_cell():
    """Every cell that the results are to have is there, and each script understands its flags."""
    table = tomllib.loads((SCORES / "suite.toml").read_text())
    peers = table.pop("scripts")
    first = ("reinforce", "reinforce_baseline", "a2c", "ppo")
    expected = {
        "CartPole-v1": (*first[:3], "a3c", "trpo", "ppo"),
        "Acrobot-v1": (*first[:3], "a3c", "trpo", "ppo"),
        "LunarLander-v3": first,
        "Pendulum-v1": ("a2c", "trpo", "ppo", *OFF_POLICY),
        "InvertedPendulum-v5": (*first, *OFF_POLICY),
    }
    for env in ("MountainCarContinuous-v0", "LunarLanderContinuous-v3", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"):
        expected[env] = ("ppo", *OFF_POLICY)
    expected |= {"ale_py:ALE/Pong-v5": ("ppo_atari",), "ale_py:ALE/Breakout-v5": ("ppo_atari",), "Reviews": ("rlhf",)}
    for env, row in table.items():
        ours = {script: flags for script, flags in row.items() if script not in peers}
        assert tuple(ours) == expected.pop(env)
        for script, flags in ours.items():
            args = parse(script, "--env-id", env, *shlex.split(flags))
            has_curve = args.checkpoint_every <= args.total_timesteps
            assert has_curve or script == "rlhf", f"{script} {env} has no curve"
    assert not expected


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore::DeprecationWarning")
def test_flags_of_the_peers_are_theirs(monkeypatch):
    """Stable-Baselines3 takes them, and as many steps as ours do."""
    for package in ("stable_baselines3", "mujoco", "Box2D"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(SCORES)
    sb3 = importlib.import_module("sb3")
    table = tomllib.loads((SCORES / "suite.toml").read_text())
    peers = table.pop("scripts")
    for env, row in table.items():
        for name in [name for name in row if name.startswith("sb3 ")]:
            command = [*shlex.split(peers[name]), "--env-id", env, *shlex.split(row[name])]
            monkeypatch.setattr(sys, "argv", command)
            theirs, ours = tyro.cli(sb3.Args), parse(name.split()[1], *shlex.split(row[name.split()[1]]))
            assert theirs.total_timesteps == ours.total_timesteps, f"{env} {name}"
            model = sb3.make_model(theirs)  # refuses what Stable-Baselines3 does not take
            assert type(model).__name__ == name.split()[1].upper()
            model.env.close()


def test_row_and_curve_match_the_run(suite):
    flags = "--total-timesteps 2048 --checkpoint-every 1024 --eval-episodes 2"
    suite(**{"CartPole-v1": {"ppo": flags}})
    run("--seeds", "3", "--eval-episodes", 5)
    (made,) = Path("work").resolve().glob("*/runs/*")
    expected = vars(parse("ppo", "--seed", 3, "--device", "cpu", "--num-threads", 1, *shlex.split(flags)))
    assert checkpoint(made)["args"] == expected
    (row,) = rows(columns=("eval_return", "eval_std", "steps"))
    points = rows("suite_curves.csv", ("steps", "eval_return", "train_return"))
    os.chdir(made.parents[1])
    _, final = train("ppo", "--evaluate", made.relative_to(Path.cwd()), "--eval-episodes", 5)
    assert tuple(map(float, row)) == (final.mean, final.deviation, 2048)
    tags = scalars(made)
    evaluations = dict(tags["charts/eval_return"]) | {2048: final.mean}
    returns = dict(tags["charts/episodic_return"])
    assert {int(step): float(value) for step, value, _ in points if value} == pytest.approx(evaluations, abs=0.005)
    assert {int(step): float(value) for step, _, value in points} == pytest.approx(returns, abs=0.005)


@pytest.mark.slow
def test_grid_on_ray_has_the_same_rows(suite):
    pytest.importorskip("ray")
    suite(Left={"standin": "--steps 2"})
    run("--seeds", "1-4")
    here = rows()
    run("--seeds", "1-4", "--ray", "local", "--work", "elsewhere", "--out", "ray.csv")
    assert rows("ray.csv") == here


@pytest.mark.slow
def test_run_of_stable_baselines_has_a_row(folder):
    pytest.importorskip("stable_baselines3")
    flags = "--total-timesteps 1024 --checkpoint-every 512 --eval-episodes 2 --num-envs 2 --normalize"
    Path("suite.toml").write_text(
        f'[scripts]\n"sb3 ppo" = "benchmarks/scores/sb3.py --algorithm ppo"\n[CartPole-v1]\n"sb3 ppo" = "{flags}"\n'
    )
    run("--seeds", "3", "--eval-episodes", 5)
    ((script, steps, episodes),) = rows(columns=("script", "steps", "episodes"))
    assert (script, episodes) == ("sb3.py", "5")
    assert int(steps) >= 1024
    assert [step for (step,) in rows("suite_curves.csv", ("steps",))][-1] == steps
