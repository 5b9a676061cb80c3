"""A run that is killed and resumed ends with the same bits as a run that never stopped."""

import contextlib
import hashlib
import os
import signal
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest
import torch
from harness import BY_PROCESS, SCRIPTS, checkpoint, differences, end, parse, scalars, state, train, write_checkpoint
from stops import SEGMENT, small, stop

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
EACH_FAMILY = pytest.mark.parametrize("script", BY_PROCESS)
NORMALISED = ("--norm-obs", "--norm-reward")
RUNS = [
    ("reinforce", "probes:CartPole7-v0", ()),
    ("reinforce_baseline", "probes:Pendulum7-v0", ()),
    ("a2c", "CartPole-v1", NORMALISED),
    ("ppo", "Pendulum-v1", NORMALISED),
    ("trpo", "Pendulum-v1", (*NORMALISED, "--num-envs", 1, "--num-steps", 32)),  # with one row, alignment shows in bits
    ("ddpg", "probes:Pendulum7-v0", ("--ou-noise",)),
    ("td3", "Pendulum-v1", ("--buffer-size", 100)),  # it is full early, and turns over
    ("sac", "probes:Pendulum7-v0", ()),
]


@pytest.mark.parametrize(("script", "env_id", "flags"), RUNS)
def test_killed_and_resumed_run_ends_with_same_bits(script, env_id, flags, folder):
    flags = small(script, 12, *flags, env_id=env_id)
    resume = ()
    for _ in range(2 if script in BY_PROCESS else 1):
        status, *_ = stop(signal.SIGKILL, script, *(resume or flags), cwd=folder, checkpoints=3)
        assert status == -signal.SIGKILL
        (run,) = folder.glob("runs/*")
        resume = ("--resume", run.relative_to(folder))
        assert 0 < checkpoint(run)["step"] < checkpoint(run)["args"]["total_timesteps"]
    _, resumed = train(script, *resume)

    os.mkdir("never_stopped")
    os.chdir("never_stopped")
    _, whole = train(script, *flags)
    assert differences(state(run), state(whole.folder)) == []
    assert (resumed.mean, resumed.deviation, resumed.steps) == (whole.mean, whole.deviation, whole.steps)


@EACH_SCRIPT
def test_same_seed_gives_same_bits_and_another_seed_does_not(script, folder):
    def trained(*flags):
        return state(train(script, *small(script, 2, *flags))[1].folder)

    one, same, other = trained(), trained(), trained("--seed", 2)
    assert differences(one, same) == []
    assert any("agent" in place for place in differences(one, other))


@EACH_SCRIPT
def test_longer_total_extends_finished_run(script, folder):
    """Two segments and two more are four, if the learning rate is constant."""
    steady = ("--no-anneal-lr",) if hasattr(parse(script), "anneal_lr") else ()
    env_id = "probes:DrawsAnywhere-v0" if script in BY_PROCESS else None  # draws from Python's and numpy's generators
    _, short = train(script, *small(script, 2, *steady, env_id=env_id))
    _, longer = train(script, *small(script, 4, *steady, env_id=env_id))
    _, extended = train(script, "--resume", short.folder, "--total-timesteps", longer.steps)
    assert (extended.steps, extended.folder) == (longer.steps, short.folder)
    assert differences(state(short.folder), state(longer.folder)) == []
    assert checkpoint(short.folder)["args"]["total_timesteps"] == longer.steps


@EACH_SCRIPT
def test_resumed_run_keeps_its_flags(script, folder):
    """A flag that is given with --resume wins; the others are the run's, by the command line and by train."""
    changed = ("--gamma", 0.9, "--seed", 7, "--matmul-precision", "high")
    _, trained = train(script, *small(script, 1, *changed))
    before = checkpoint(trained.folder)["args"]
    total = trained.steps + SCRIPTS[script].period
    status, _, stderr = end(script, "--resume", trained.folder, "--total-timesteps", total, "--gamma", 0.8)
    assert status == 0, stderr
    expected = before | {"total_timesteps": total, "gamma": 0.8}
    assert checkpoint(trained.folder)["args"] | {"resume": ""} == expected

    module = import_module(script)
    total += SCRIPTS[script].period
    with contextlib.redirect_stdout(None):
        module.train(module.Args(resume=str(trained.folder), total_timesteps=total))
    expected |= {"total_timesteps": total}
    assert asdict(module.read(trained.folder)["args"]) == expected


@pytest.mark.parametrize("script", ["a2c", "td3", "sac"])
def test_learning_rate_given_with_resume_wins(script, folder):
    """Where the rate is annealed, it goes on along the line of the new one."""
    flags = ("--policy-lr", "--q-lr") if script == "sac" else ("--learning-rate",)
    _, trained = train(script, *small(script, 1))
    given = [word for flag, rate in zip(flags, (0.03, 0.02), strict=False) for word in (flag, rate)]
    total = trained.steps + SCRIPTS[script].period
    train(script, "--resume", trained.folder, "--total-timesteps", total, *given)
    (saved,) = checkpoint(trained.folder)["state"]
    left = SCRIPTS[script].period / total if hasattr(parse(script), "anneal_lr") else 1
    rates = {name: part["param_groups"][0]["lr"] for name, part in saved.items() if name.endswith("optimizer")}
    expected = {
        "actor_optimizer": 0.03,
        "critic_optimizer": 0.02 if script == "sac" else 0.03,
        "optimizer": 0.03 * left,
    }
    assert rates
    assert rates == pytest.approx({name: expected[name] for name in rates})
    assert scalars(trained.folder)["charts/learning_rate"][-1][1] == pytest.approx(0.03 * left)


def test_fixed_alpha_given_with_resume_wins(folder):
    """A learned alpha goes on from where it was; --no-autotune sets it to the flag."""
    _, trained = train("sac", *small("sac", 1))
    total, period = trained.steps, SCRIPTS["sac"].period

    def log_alpha():
        return checkpoint(trained.folder)["state"][0]["agent"]["log_alpha"]

    learned = log_alpha()
    train("sac", "--resume", trained.folder, "--total-timesteps", total + period, "--alpha", 0.7)
    assert log_alpha() == pytest.approx(learned.item(), abs=0.01)
    train("sac", "--resume", trained.folder, "--total-timesteps", total + 2 * period, "--no-autotune", "--alpha", 0.7)
    assert log_alpha().exp() == pytest.approx(0.7, rel=1e-6)


@EACH_FAMILY
def test_resumed_run_continues_its_log(script, folder, monkeypatch):
    """Steps that a killed run logged after its last checkpoint are logged once."""
    module = import_module(script)
    monkeypatch.setattr(module.Run, "signal", 0)
    env_step = module.Run.env_step
    period = SCRIPTS[script].period

    def die(run, action):
        if run.step >= (SEGMENT + SEGMENT // 2) * period:
            raise KeyboardInterrupt
        return env_step(run, action)

    with monkeypatch.context() as patch:
        patch.setattr(module.Run, "env_step", die)
        with pytest.raises(KeyboardInterrupt):
            train(script, *small(script, 3))
    (run,) = Path("runs").iterdir()
    logged = [step for step, _ in scalars(run)["charts/SPS"]]
    assert logged[-1] > checkpoint(run)["step"] == SEGMENT * period
    train(script, "--resume", run)
    log = scalars(run)
    steps = [step for step, _ in log["charts/SPS"]]
    assert steps == sorted(set(steps))
    assert steps[: len(logged)] == logged
    assert steps[-1] == 3 * SEGMENT * period
    assert [step for step, _ in log["charts/eval_return"]] == [k * SEGMENT * period for k in (1, 2, 3)]
    assert list(Path("runs").iterdir()) == [run]


@EACH_FAMILY
def test_seconds_of_resumed_run_add_up(script, folder):
    """The last line has the seconds of all training, and the speed is by them."""
    _, trained = train(script, *small(script, 1))
    write_checkpoint(trained.folder / "checkpoint.pt", checkpoint(trained.folder) | {"seconds": 1000.0})
    assert train(script, "--evaluate", trained.folder)[1].seconds == 1000
    total = trained.steps + 100 * SCRIPTS[script].period
    _, result = train(script, "--resume", trained.folder, "--total-timesteps", total)
    assert 1000 < result.seconds < 1100
    assert result.speed == round(total / result.seconds)


@EACH_SCRIPT
def test_failure_while_saving_leaves_last_checkpoint(script, folder, monkeypatch):
    """The new file is whole and flushed before it takes the place of the last one."""
    _, whole = train(script, *small(script, 3))
    fsync, calls = os.fsync, []

    def fail_at_second_call(file):
        (path,) = Path("runs").glob("*/checkpoint.tmp")
        content = path.read_bytes()
        assert content[-32:] == hashlib.sha256(content[:-32]).digest()
        calls.append(file)
        if len(calls) == 2:
            raise OSError("the disk is gone")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_at_second_call)
        with pytest.raises(OSError, match="the disk is gone") as caught:
            train(script, *small(script, 3))
    (run,) = set(Path("runs").iterdir()) - {whole.folder}
    saved = checkpoint(run)["step"]
    assert saved == SEGMENT * SCRIPTS[script].period
    assert f"--resume {run} continues from {saved}" in caught.value.__notes__[0]
    train(script, "--resume", run)
    assert differences(state(run), state(whole.folder)) == []


@EACH_FAMILY
def test_checkpoint_is_replaced_at_once(script, folder, monkeypatch):
    """At every moment the file is absent or whole."""
    replace, seen = os.replace, []

    def look(source, target):
        if os.path.exists(target):
            seen.append(import_module(script).read(Path(target).parent)["step"])
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    _, result = train(script, *small(script, 3))
    assert seen == [k * SEGMENT * SCRIPTS[script].period for k in (1, 2)]
    assert [path.name for path in result.folder.glob("checkpoint*")] == ["checkpoint.pt"]


@EACH_FAMILY
def test_two_runs_in_one_second_get_two_folders(script, folder, monkeypatch):
    module = import_module(script)
    monkeypatch.setattr(module.time, "time", lambda: 1790000000.5)
    results = [train(script, *small(script, 1, "--seed", 3))[1] for _ in range(3)]
    assert len({result.folder for result in results}) == 3
    assert all((result.folder / "checkpoint.pt").exists() for result in results)


@EACH_FAMILY
def test_resuming_finished_run_prints_its_line_again(script, folder):
    _, trained = train(script, *small(script, 1))
    before = (trained.folder / "checkpoint.pt").read_bytes()
    _, again = train(script, "--resume", trained.folder)
    assert again == trained
    assert (trained.folder / "checkpoint.pt").read_bytes() == before


@EACH_FAMILY
def test_working_folder_can_be_the_run(script, folder):
    _, trained = train(script, *small(script, 1))
    os.chdir(trained.folder)
    status, stdout, stderr = end(script, "--evaluate", ".")
    assert (status, stdout.partition(" ")[0]) == (0, f"eval_return={trained.mean:.2f}"), stderr
    total = trained.steps + SCRIPTS[script].period
    status, _, stderr = end(script, "--resume", ".", "--total-timesteps", total)
    assert status == 0, stderr
    assert checkpoint(".")["step"] == total
    assert not Path("runs").exists()


@pytest.mark.parametrize(("script", "env_id", "flags"), RUNS)
def test_evaluate_repeats_the_last_evaluation(script, env_id, flags, folder):
    """And writes nothing; flags that are given with it win."""
    agent, trained = train(script, *small(script, 1, *flags, env_id=env_id))
    before = {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()}
    loaded, result = train(script, "--evaluate", trained.folder)
    assert result == trained
    assert differences(agent.state_dict(), loaded.state_dict()) == []
    assert train(script, "--evaluate", trained.folder, "--eval-episodes", 5)[1].episodes == 5
    assert {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()} == before
    assert list(Path("runs").iterdir()) == [trained.folder]


@pytest.mark.parametrize("script", ["a2c", "ppo"])
def test_running_statistics_are_in_the_checkpoint(script, folder):
    """Without them an evaluation plays another policy than was trained."""
    agent, trained = train(script, *small(script, 1, *NORMALISED, env_id="Pendulum-v1"))
    obs = torch.tensor([[0.3, -0.4, 5.0]])
    assert (agent.norm_obs(obs) - obs).abs().min() > 1e-3
    loaded, _ = import_module(script).load(trained.folder)
    assert torch.equal(loaded.norm_obs(obs), agent.norm_obs(obs))
    assert torch.equal(loaded.act(obs, greedy=True), agent.act(obs, greedy=True))
