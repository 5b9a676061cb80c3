"""benchmarks/run.py: the grid makes its rows, once each, however often it is stopped, here and on Ray."""

import contextlib
import csv
import importlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from unittest import mock

import pytest
import torch
from harness import (
    HELPERS,
    OFF_POLICY,
    ROOT,
    SCRIPTS,
    checkpoint,
    environment,
    last_line,
    parse,
    scalars,
    train,
    write_checkpoint,
)
from soak import grid_on_ray

RUN = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--suite", "suite.toml", "--out", "out/suite.csv"]
CURVE = ("seed", "steps", "eval_return", "train_return")
SAME = ("script", "env", "seed", "key", "flags", "eval_return", "eval_std", "episodes", "steps", "script_sha256")


@pytest.fixture
def suite(folder):
    """Writes the table of the working folder -> a function of {environment: {script: flags}}."""
    for total in (1, 2, 40):
        Path("checkpoints", str(total)).mkdir(parents=True)
        for step in range(1, total + 1):
            torch.save({"step": step, "args": {"total_timesteps": total}}, f"checkpoints/{total}/{step}.pt")

    def write(**table):
        """Rows of the stand-in get the folder of its checkpoints."""
        lines = []
        for env, row in table.items():
            lines.append(f'["{env}"]')
            for script, flags in row.items():
                extra = f" --checkpoints {folder / 'checkpoints'}" if "standin" in str(script) else ""
                lines.append(f'"{script}" = "{flags}{extra}"')
        (folder / "suite.toml").write_text("\n".join(lines))

    yield write
    for process in started:
        process.terminate()  # nothing, if it has ended; else it ends its runs first
        process.wait(timeout=60)
    started.clear()


started = []  # the runners of a test


def start(*flags):
    """A runner's process; stdin is closed, and its outputs are files, which a script that outlives it may hold."""
    with open("stdout", "w") as stdout, open("stderr", "w") as stderr:
        command = [*RUN, "--work", "work", "--jobs", "2", *map(str, flags)]
        process = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    started.append(process)
    return process


def run(*flags, status=0):
    """A runner to its end, which has to be of this status -> standard output, standard error."""
    ended = start(*flags).wait(timeout=120)
    stdout, stderr = Path("stdout").read_text(), Path("stderr").read_text()
    assert ended == status, stderr
    return stdout, stderr


def rows(path="out/suite.csv", columns=SAME):
    """A table's rows by these columns, in an order of their own."""
    with open(path, newline="") as file:
        return sorted(tuple(row[name] for name in columns) for row in csv.DictReader(file))


def starts(work="work"):
    """What was started in each run's folder: {folder's first words: [train, resume, evaluate, ...]}."""
    kinds = {"--env-id": "train", "--resume": "resume", "--evaluate": "evaluate"}
    return {
        path.parent.name.rsplit("__", 1)[0]: [kinds[shlex.split(line)[2]] for line in path.read_text().splitlines()]
        for path in Path(work).glob("*/log")
    }


def wait_for(condition, seconds=60):
    """Return the condition's first true value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, Path("stderr").read_text()
        time.sleep(0.02)
    return value


def is_alive(pid):
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def begun(count):
    """The processes that work in the runs' folders, when so many runs have had a third checkpoint, else none."""
    steps = [int(path.read_text().split()[0]) for path in Path("work").glob("*/runs/*/step")]
    if sum(step >= 3 for step in steps) < count:
        return []
    return [int(path.read_text()) for path in Path("work").glob("*/pid")]


def test_each_run_is_made_once_and_has_a_row(suite):
    suite(Left={"tests/helpers/standin": "--steps 2"}, Right={"tests/helpers/standin": ""})
    run("--seeds", "1-2", "--eval-episodes", 7)
    columns = ("script", "env", "seed", "eval_return", "eval_std", "episodes", "steps", "seconds", "steps_per_second")
    expected = [
        ("standin.py", env, str(seed), f"{10 * seed}.0", "1.0", "7", steps, "1.0", f"{steps}.0")
        for env, steps in (("Left", "2"), ("Right", "1"))
        for seed in (1, 2)
    ]
    assert rows(columns=columns) == expected
    assert set(starts()) == {f"standin__{env}__{seed}" for env in ("Left", "Right") for seed in (1, 2)}
    assert all(kinds == ["train", "evaluate"] for kinds in starts().values())
    curve = ("script", "env", "seed", "steps", "eval_return")
    assert rows("out/suite_curves.csv", curve) == [(*row[:3], row[6], row[3]) for row in expected]
    with open("out/suite.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert row["command"].startswith("python benchmarks/run.py --suite suite.toml")
            assert all(
                row[name] for name in ("date", "commit", "python", "torch", "gymnasium", "numpy", "cpu", "cores")
            )
            assert row["flags"] in tomllib.loads(Path("suite.toml").read_text())[row["env"]].values()

    # Another commit is no reason to run again: the script is the same file. Neither is a table that is gone, as the
    # runs' folders have the results, nor a folder that is gone, as the table has them.
    table, curves = Path("out/suite.csv"), Path("out/suite_curves.csv")
    before = rows()
    with open(table, newline="") as file:
        (commit,) = {row["commit"] for row in csv.DictReader(file)}
    table.write_text(table.read_text().replace(f",{commit},", ",abcdef0,"))
    stdout, _ = run("--seeds", "1-2", "--eval-episodes", 7)
    assert "4 of 4 runs are done" in stdout
    table.unlink()
    curves.unlink()
    run("--seeds", "1-2", "--eval-episodes", 7)
    assert rows() == before
    assert rows("out/suite_curves.csv", curve) == [(*row[:3], row[6], row[3]) for row in expected]
    assert all(kinds == ["train", "evaluate"] for kinds in starts().values())
    run("--seeds", "1-2", "--eval-episodes", 7, "--work", "elsewhere")
    assert starts("elsewhere") == {}

    # What is new is run: a seed, and, for another number of episodes, the evaluation alone.
    run("--seeds", "2-3", "--eval-episodes", 7, "--envs", "Left")
    assert set(rows()) - set(before) == {row for row in rows() if row[1:3] == ("Left", "3")}
    run("--seeds", "2", "--eval-episodes", 5, "--envs", "Left", "--scripts", "tests/helpers/standin")
    assert starts()["standin__Left__2"] == ["train", "evaluate", "evaluate"]
    assert len(rows()) == 6
    assert len(rows("out/suite_curves.csv", curve)) == 5  # one training, one curve


def test_two_runners_with_one_table_lose_nothing(folder, monkeypatch):
    """Each reads the tables, adds its rows and puts the new ones in place: one after the other."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    grid = importlib.import_module("run")
    read, threads = grid.common.read_rows, []

    def slow(*args):
        found = read(*args)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(grid.common, "read_rows", slow)
    for seed in (1, 2, 3):
        row = dict.fromkeys(grid.COLUMNS, "x") | {"seed": seed}
        result = {"row": row, "curve": [dict.fromkeys(grid.CURVE_COLUMNS[4:], "y")]}
        args = grid.Args(out=folder / "suite.csv")
        threads.append(threading.Thread(target=grid.gather, args=([result], args)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert sorted(row["seed"] for row in read("suite.csv", grid.COLUMNS)) == ["1", "2", "3"]
    assert sorted(row["seed"] for row in read("suite_curves.csv", grid.CURVE_COLUMNS)) == ["1", "2", "3"]


def test_changed_script_or_flags_are_a_new_run(suite, folder):
    script = folder / "standin_here.py"
    script.write_text((HELPERS / "standin.py").read_text())
    suite(Left={script.with_suffix(""): ""})
    run("--seeds", 1)
    script.write_text(script.read_text() + "# another line\n")
    run("--seeds", 1)
    suite(Left={script.with_suffix(""): "--steps 2"})
    run("--seeds", 1)
    assert sorted(row[-2] for row in rows()) == ["1", "1", "2"]
    assert len(set(rows(columns=("key",)))) == 3


def test_declared_name_adds_its_flags(suite):
    suite(Left={"my name": "--steps 2"}, scripts={"my name": "tests/helpers/standin.py --pause 0.01"})
    table = Path("suite.toml")
    table.write_text(table.read_text().replace('"--steps 2"', f'"--steps 2 --checkpoints {Path.cwd()}/checkpoints"'))
    stdout, _ = run("--seeds", 1, "--scripts", "my name")
    ((script, _, _, _, flags, *_, steps, _),) = rows()
    assert (script, steps) == ("standin.py", "2")
    assert flags.startswith("--pause 0.01 --steps 2 --checkpoints ")
    assert "my name Left | done 1" in stdout
    table.write_text(table.read_text().replace("0.01", "0.02"))
    run("--seeds", 1)
    assert len({row[3] for row in rows()}) == 2


def test_peak_memory_is_of_the_training(suite):
    """Of the script's own process, not of the runner's or of the evaluation's."""
    suite(Left={"tests/helpers/standin": "--memory 300"}, Right={"tests/helpers/standin": ""})
    run("--seeds", 1)
    large, small = (float(peak) for _, peak in rows(columns=("env", "peak_rss_mb")))
    assert 300 < large < 400
    assert 5 < small < 100


def test_old_table_without_memory_is_continued(suite):
    suite(Left={"tests/helpers/standin": ""})
    run("--seeds", 1)
    table = Path("out/suite.csv")
    lines = [line.split(",") for line in table.read_text().splitlines()]
    place = lines[0].index("peak_rss_mb")
    table.write_text("".join(",".join(line[:place] + line[place + 1 :]) + "\n" for line in lines))
    stdout, _ = run("--seeds", "1-2")
    assert "1 of 2 runs are done" in stdout
    first, second = rows(columns=("seed", "peak_rss_mb"))
    assert first == ("1", "")
    assert float(second[1]) > 5


def test_editing_the_script_changes_no_started_run(suite, folder):
    script = folder / "standin_here.py"
    script.write_text((HELPERS / "standin.py").read_text())
    suite(Left={script.with_suffix(""): "--steps 40 --pause 0.02"})
    process = start("--seeds", 1)
    wait_for(lambda: begun(1))
    script.write_text("raise SystemExit(5)")
    assert process.wait(timeout=60) == 0, Path("stderr").read_text()
    assert len(rows()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_grid_continues(suite, number):
    """What was under way is resumed, what was done is left alone, and no two processes work on one run."""
    suite(Left={"tests/helpers/standin": "--steps 40 --pause 0.05"}, Right={"tests/helpers/standin": ""})
    process = start("--seeds", "1-2")
    pids = wait_for(lambda: begun(1))
    process.send_signal(number)
    status = process.wait(timeout=30)
    left = [pid for pid in pids if is_alive(pid)]
    if number == signal.SIGKILL:
        assert status == -number
        assert left, "no script outlived its runner, so that there was nothing to end"
    else:
        assert status == 130
        assert left == []
        assert "the same command goes on" in Path("stderr").read_text()
        steps = [int(path.read_text().split()[0]) for path in Path("work").glob("*Left*/runs/*/step")]
        assert steps, "the script was not left the time to save"
        assert max(steps) < 40

    # one that was stopped before its first checkpoint has to begin anew
    saved = {path.parents[2].name.rpartition("__")[0] for path in Path("work").glob("*/runs/*/checkpoint.pt")}
    finished = {path.parent for path in Path("work").glob("*/result.json")}
    before = {folder: (folder / "log").read_text() for folder in finished}
    run("--seeds", "1-2")
    assert not [pid for pid in left if is_alive(pid)]
    assert before == {folder: (folder / "log").read_text() for folder in finished}
    assert [row[1:3] for row in rows()] == [("Left", "1"), ("Left", "2"), ("Right", "1"), ("Right", "2")]
    assert {row[-2] for row in rows() if row[1] == "Left"} == {"40"}
    kinds = starts()
    assert kinds["standin__Left__1"] == ["train", "resume", "evaluate"]
    assert "standin__Left__1" in saved
    assert {name: kinds[name] for name in saved if kinds[name].count("train") != 1} == {}


def test_run_killed_after_its_last_checkpoint_is_only_evaluated(suite):
    suite(Left={"tests/helpers/standin": "--steps 40 --linger 100"})
    process = start("--seeds", 1)
    wait_for(lambda: [path for path in Path("work").glob("*/runs/*/step") if path.read_text().startswith("40 ")])
    process.kill()
    process.wait()
    run("--seeds", 1)
    assert starts() == {"standin__Left__1": ["train", "evaluate"]}
    assert len(rows()) == 1


def test_repeated_task_returns_the_old_result(suite, monkeypatch):
    """As Ray does with a run whose worker was lost between its end and the answer."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runner = importlib.import_module("run")
    suite(Left={"tests/helpers/standin": ""})
    args = runner.Args(suite=Path("suite.toml"), work=Path("work"))
    tasks = runner.make_tasks(runner.read_suite(args), [1], args)
    runner.copy_scripts(tasks)
    first = runner.execute(tasks[0], {"commit": "abcdef0"})
    assert first["row"]["eval_return"] == 10
    assert runner.execute(tasks[0], {"commit": "1234567"}) == first
    assert starts() == {"standin__Left__1": ["train", "evaluate"]}


def test_failed_run_is_named_and_the_others_continue(suite):
    suite(Left={"tests/helpers/standin": "--fail-seed 2"}, Right={"tests/helpers/standin": ""})
    _, stderr = run("--seeds", "1-3", status=1)
    assert "standin Left seed 2 failed: exit status 3: seed 2 was told to fail" in stderr
    assert [row[1:3] for row in rows()] == [("Left", "1"), ("Left", "3"), *(("Right", str(seed)) for seed in (1, 2, 3))]
    run("--seeds", "1-3", status=1)  # it is tried again, and nothing else is
    assert starts()["standin__Left__2"] == ["train", "train"]
    assert sum(map(len, starts().values())) == 2 + 5 * 2

    (failed,) = Path("work").glob("standin__Left__2__*")
    (failed / "runs" / "damaged").mkdir(parents=True)
    (failed / "runs" / "damaged" / "checkpoint.pt").write_text("not a checkpoint")
    _, stderr = run("--seeds", "1-4", status=1)
    assert "standin Left seed 2 failed: " in stderr
    assert len(rows()) == 7


def test_dry_run_only_prints(suite):
    suite(Left={"tests/helpers/standin": "--steps 2"}, Right={"tests/helpers/standin": ""})
    stdout, _ = run("--seeds", "1-3,5", "--dry-run")
    assert stdout.splitlines()[0].startswith("standin Left | to do 1-3,5 | --steps 2")
    assert not Path("work").exists()
    assert not Path("out").exists()
    run("--seeds", "1-2", "--envs", "Right")
    stdout, _ = run("--seeds", "1-3,5", "--dry-run")
    assert "standin Right | done 1-2, mean 15.00 | to do 3,5 |" in stdout
    assert len(stdout.splitlines()) == 2


def test_second_runner_in_the_same_folder_is_refused(suite):
    suite(Left={"tests/helpers/standin": "--steps 40 --pause 0.2"})
    first = start("--seeds", 1)
    wait_for(lambda: begun(1))
    second = subprocess.run([*RUN, "--work", "work"], capture_output=True, text=True)
    first.terminate()
    assert first.wait(timeout=30) == 130
    assert second.returncode == 2
    assert "another run.py is at work there" in second.stderr


STANDIN = 'A = {"tests/helpers/standin" = "--steps 2"}'


@pytest.mark.parametrize(
    ("table", "flags", "said"),
    [
        (None, (), "suite.toml"),
        ("A = [", (), "suite.toml"),
        ("", (), "suite.toml"),
        ('A = "--steps 2"', (), "suite.toml"),
        ('A = {"tests/helpers/standin" = 2}', (), "tests/helpers/standin"),
        ('A = {"tests/helpers/standin" = "--seed 2"}', (), "--seed"),
        ('A = {"tests/helpers/standin" = "--device=cuda"}', (), "--device"),
        ('A = {"tests/helpers/standin" = "--a \'b"}', (), "tests/helpers/standin"),
        ('A = {nothing = ""}', (), "nothing.py"),
        ('A = {"my name" = ""}\n[scripts]\n"my name" = "standin"', (), "my name"),
        ('A = {"my name" = ""}\n[scripts]\n"my name" = "tests/helpers/standin.py --seed 2"', (), "--seed"),
        ('A = {"my name" = ""}\n[scripts]\n"my name" = 2', (), "my name"),
        (STANDIN, ("--envs", "B"), "--envs B"),
        (STANDIN, ("--scripts", "sac"), "--scripts sac"),
        (STANDIN, ("--seeds", "3-1"), "--seeds 3-1"),
        (STANDIN, ("--jobs", "-1"), "--jobs -1"),
        (STANDIN, ("--eval-episodes", "0"), "--eval-episodes 0"),
        (STANDIN, ("--work", "file/work"), "--work"),
        (STANDIN, ("--out", "other.csv"), "other.csv"),
        (STANDIN, ("--out", "file/suite.csv"), "file/suite.csv"),
        (STANDIN, ("--nonsense",), "--nonsense"),
    ],
)
def test_bad_input_is_one_line_and_status_2(table, flags, said, folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", [*RUN[1:], "--work", "work", "--seeds", "1", *flags])
    Path("file").touch()
    Path("other.csv").write_text("other,columns\n1,2\n")
    if table is not None:
        Path("suite.toml").write_text(table)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module("run").main()
    _, stderr = capsys.readouterr()
    assert stopped.value.code == 2
    assert said in stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.startswith("run.py: error: ")
    assert not list(Path("work").glob("*/log"))


def test_suite_has_every_promised_cell():
    """Every cell that the results are to have is there, and each script understands its flags."""
    table = tomllib.loads((ROOT / "benchmarks" / "suite.toml").read_text())
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
    assert peers == {
        f"sb3 {name}": f"benchmarks/sb3.py --algorithm {name}" for name in ("ppo", "a2c", "trpo", *OFF_POLICY)
    }
    for env, row in table.items():
        ours = {script: flags for script, flags in row.items() if script not in peers}
        assert tuple(ours) == expected.pop(env)
        assert set(row) - set(ours) == {f"sb3 {script}" for script in ours} & set(peers)
        for script, flags in ours.items():
            args = parse(script, "--env-id", env, *shlex.split(flags))
            assert args.env_id == env
            assert args.checkpoint_every <= args.total_timesteps, f"{script} {env} has no curve"
    assert not expected


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore::DeprecationWarning")
def test_peers_have_our_steps_and_evaluations(monkeypatch):
    for package in ("stable_baselines3", "mujoco", "Box2D"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sb3 = importlib.import_module("sb3")
    table = tomllib.loads((ROOT / "benchmarks" / "suite.toml").read_text())
    peers, seen = table.pop("scripts"), 0
    for env, row in table.items():
        for name in set(row) & set(peers):
            command = [*shlex.split(peers[name]), "--env-id", env, *shlex.split(row[name])]
            monkeypatch.setattr(sys, "argv", command)
            theirs, ours = sb3.parse_args(), parse(name.split()[1], *shlex.split(row[name.split()[1]]))
            for flag in ("total_timesteps", "checkpoint_every", "eval_episodes"):
                assert getattr(theirs, flag) == getattr(ours, flag), f"{env} {name} {flag}"
            model = sb3.make_model(theirs)  # refuses what Stable-Baselines3 does not take
            assert type(model).__name__ == name.split()[1].upper()
            model.env.close()
            seen += 1
    assert seen == 36


def test_row_and_curve_match_the_run(suite):
    flags = "--total-timesteps 2048 --checkpoint-every 1024 --eval-episodes 2"
    suite(**{"CartPole-v1": {"ppo": flags}})
    run("--seeds", "3", "--eval-episodes", 5)
    (made,) = Path("work").resolve().glob("*/runs/*")
    expected = vars(parse("ppo", "--seed", 3, "--device", "cpu", "--num-threads", 1, *shlex.split(flags)))
    assert checkpoint(made)["args"] == expected
    (row,) = rows(columns=("eval_return", "eval_std", "steps"))
    points = rows("out/suite_curves.csv", ("steps", "eval_return", "train_return"))
    os.chdir(made.parents[1])
    _, final = train("ppo", "--evaluate", made.relative_to(Path.cwd()), "--eval-episodes", 5)
    assert tuple(map(float, row)) == (final.mean, final.deviation, 2048)
    tags = scalars(made)
    evaluations = dict(tags["charts/eval_return"]) | {2048: final.mean}
    returns = dict(tags["charts/episodic_return"])
    assert len(returns) == 4
    assert {int(step): float(value) for step, value, _ in points if value} == pytest.approx(evaluations, abs=0.005)
    assert {int(step): float(value) for step, _, value in points} == pytest.approx(returns, abs=0.005)


def test_finished_run_is_known_by_its_checkpoint(folder, monkeypatch):
    """The runner only evaluates a run whose checkpoint has all steps, and resumes another."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runner = importlib.import_module("run")
    flags = ("--total-timesteps", 64, "--device", "cpu")
    _, result = train("ppo", *SCRIPTS["ppo"].short, *flags)
    assert runner.is_trained(folder / result.folder)
    saved = checkpoint(result.folder)
    saved["step"] = 32
    write_checkpoint(result.folder / "checkpoint.pt", saved)
    assert not runner.is_trained(folder / result.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "flags"),
    [
        ("ppo", '--num-envs 2 --normalize --hyper \'{"n_steps": 64, "use_sde": true, "learning_rate": "lin_0.001"}\''),
        ("td3", '--noise-type normal --hyper \'{"learning_starts": 500, "policy_kwargs": {"net_arch": [8]}}\''),
    ],
)
def test_row_and_curve_of_stable_baselines_match_the_run(algorithm, flags, suite, monkeypatch, capsys):
    """By the runner, which starts a copy of sb3.py: steps, final evaluation, curve, the training's return."""
    pytest.importorskip("stable_baselines3")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    sb3 = importlib.import_module("sb3")
    flags = f"--total-timesteps 1024 --checkpoint-every 512 --eval-episodes 2 {flags}"
    Path("suite.toml").write_text(
        f'[scripts]\n"sb3 {algorithm}" = "benchmarks/sb3.py --algorithm {algorithm}"\n'
        f'[Pendulum-v1]\n"sb3 {algorithm}" = """{flags}"""\n'
    )
    run("--seeds", 3, "--eval-episodes", 5)
    (made,) = Path("work").resolve().glob("*/runs/*")
    ((script, given, mean, deviation, episodes, steps, seconds, peak),) = rows(
        columns=("script", "flags", "eval_return", "eval_std", "episodes", "steps", "seconds", "peak_rss_mb")
    )
    assert (script, given, episodes, steps) == ("sb3.py", f"--algorithm {algorithm} {flags}", "5", "1024")
    assert float(seconds) > 0
    assert float(peak) > 100

    def played(episodes):
        """As a process started in the run's folder would, but for the seconds that it takes to start."""
        words = ["sb3.py", "--evaluate", f"runs/{made.name}", "--eval-episodes", str(episodes)]
        with contextlib.chdir(made.parents[1]), mock.patch.object(sys, "argv", words):
            sb3.main()
        return last_line(capsys.readouterr().out)

    two, five = played(2), played(5)
    assert (float(mean), float(deviation)) == (five.mean, five.deviation)
    assert -2000 < five.mean < -300  # of Pendulum's own rewards, which VecNormalize does not divide
    tags = scalars(made)
    assert [step for step, _ in tags["charts/eval_return"]] == [512, 1024]
    # what training saw at its end, of the policy that it had in hand
    assert tags["charts/eval_return"][-1][1] == pytest.approx(two.mean, abs=0.01)
    evaluations = dict(tags["charts/eval_return"]) | {1024: five.mean}
    points = rows("out/suite_curves.csv", ("steps", "eval_return", "train_return"))
    assert {int(step): float(value) for step, value, _ in points if value} == pytest.approx(evaluations, abs=0.005)
    returns = dict(tags["charts/episodic_return"])
    assert 200 <= min(returns) <= 402  # at the first log after the end of the first episodes
    logged = {int(step): float(value) for step, _, value in points if int(step) in returns}
    assert len(logged) > 10
    assert logged == pytest.approx({step: returns[step] for step in logged}, abs=0.005)


@pytest.mark.slow
def test_stopped_stable_baselines_run_starts_again(suite):
    pytest.importorskip("stable_baselines3")
    Path("suite.toml").write_text('[Pendulum-v1]\n"benchmarks/sb3" = "--total-timesteps 2048 --eval-episodes 2"\n')
    process = start("--seeds", 1)
    wait_for(lambda: list(Path("work").glob("*/runs/*/events*")))
    process.terminate()
    assert process.wait(timeout=60) == 130
    assert not list(Path("work").glob("*/runs/*/checkpoint.pt"))
    stdout, _ = run("--seeds", 1, "--dry-run")
    assert "to do 1" in stdout
    process = start("--seeds", 1)
    wait_for(lambda: list(Path("work").glob("*/runs/*/checkpoint.pt")))
    assert process.wait(timeout=60) == 0
    assert list(starts().values()) == [["train", "train", "evaluate"]]


@pytest.mark.slow
def test_killed_ray_worker_is_replaced(suite):
    pytest.importorskip("ray")
    suite(**{"CartPole-v1": {"ppo": "--total-timesteps 40000 --checkpoint-every 8000 --eval-episodes 2"}})
    process = start("--seeds", "1-2", "--ray", "local")
    (locked, *_) = wait_for(lambda: [path.parents[2] / "lock" for path in Path("work").glob("*/runs/*/checkpoint.pt")])
    script = int(locked.read_text().split()[1])
    worker = int(subprocess.run(["ps", "-o", "ppid=", "-p", str(script)], capture_output=True, text=True).stdout)
    os.kill(worker, signal.SIGKILL)
    assert process.wait(timeout=240) == 0, Path("stderr").read_text()
    assert not is_alive(script)
    killed = locked.parent.name.split("__")[2]
    assert starts() == {
        f"ppo__CartPole-v1__{seed}": ["train", *(["resume"] if seed == killed else []), "evaluate"] for seed in "12"
    }

    assert all(float(peak) > 100 for (peak,) in rows(columns=("peak_rss_mb",)))

    run("--seeds", "1-2", "--out", "local/suite.csv", "--work", "work_here")
    assert rows() == rows("local/suite.csv")
    there, here = (set(rows(f"{out}/suite_curves.csv", CURVE)) for out in ("out", "local"))
    assert {row for row in there if row[0] != killed} == {row for row in here if row[0] != killed}
    # A resumed process knows no episode from before, and the evaluation after the checkpoint may not be on disk yet.
    there, here = ({row[:3] for row in curve if row[2]} for curve in (there, here))
    assert there <= here
    assert len(here - there) <= 1


@pytest.mark.slow
def test_grid_on_ray_survives_losing_a_worker_and_the_head(folder):
    """What tests/tools/soak.py does with 500 runs: each is made, none twice, and the table is the local one."""
    pytest.importorskip("ray")
    assert grid_on_ray(40, 2, folder) == []
