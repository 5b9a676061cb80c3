"""A run that was stopped and resumed is the run that was never stopped, bit by bit."""

import contextlib
import hashlib
import os
import random
import re
import shlex
import shutil
import signal
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from harness import (
    BY_PROCESS,
    SCRIPTS,
    checkpoint,
    differences,
    end,
    last_line,
    parse,
    run,
    scalars,
    start,
    state,
    train,
    write_checkpoint,
)

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
EACH_FAMILY = pytest.mark.parametrize("script", BY_PROCESS)  # for what stands below the rule and in no other way
NORMALISED = ("--norm-obs", "--norm-reward")
RUNS = [
    ("reinforce", "probes:CartPole7-v0", ()),
    ("reinforce_baseline", "probes:Pendulum7-v0", NORMALISED),
    ("a2c", "CartPole-v1", NORMALISED),
    ("ppo", "CartPole-v1", ()),
    ("ppo", "Pendulum-v1", NORMALISED),
    ("ddpg", "probes:Pendulum7-v0", ("--ou-noise",)),
    ("td3", "Pendulum-v1", ("--buffer-size", 100)),  # it is full early, and turns over
    ("sac", "probes:Pendulum7-v0", ()),
]
SEGMENT = 32  # updates between two checkpoints
MOMENTS = random.Random()  # a run seeds Python's own


def small(script, segments, *flags, env_id=None):
    """The flags of a run of so many segments: some updates, in which episodes end, and then a checkpoint."""
    row = SCRIPTS[script]
    ends = ("--total-timesteps", segments * SEGMENT * row.period, "--checkpoint-every", SEGMENT * row.period)
    return ("--env-id", env_id or row.env_ids[0], *row.short, *ends, *flags)


def wait(process, cwd, checkpoints, seconds=60):
    """Return soon after a process has put so many checkpoints in place -> seconds between the last two."""
    seen, deadline = [], time.monotonic() + seconds
    while len(seen) < checkpoints:
        assert process.poll() is None, f"ended before it could be stopped: {process.stderr.read()}"
        assert time.monotonic() < deadline, "no checkpoint in time"
        now = [path.stat().st_mtime for path in cwd.glob("runs/*/checkpoint.pt")]
        seen += [moment for moment in now if moment not in seen]
        time.sleep(0.005)
    return seen[-1] - seen[-2]


def stop(number, script, *flags, cwd, checkpoints):
    """Start a run, send it a signal at some moment after so many checkpoints -> exit status, output, errors."""
    process = start(script, *flags, cwd=cwd)
    try:
        segment = wait(process, cwd, checkpoints)
        time.sleep(MOMENTS.uniform(0, min(segment, 0.2)))
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(("script", "env_id", "flags"), RUNS)
def test_killed_and_resumed_is_never_stopped(script, env_id, flags, folder):
    kills = 3 if script in BY_PROCESS and flags else 1  # one of either family is stopped again and again
    flags = small(script, 12, *flags, env_id=env_id)
    resume = ()
    for _ in range(kills):
        # A resumed run finds a checkpoint, which `wait` counts as its first.
        status, *_ = stop(signal.SIGKILL, script, *(resume or flags), cwd=folder, checkpoints=3)
        assert status == -signal.SIGKILL
        (run,) = folder.glob("runs/*")
        resume = ("--resume", run.relative_to(folder))
        assert 0 < checkpoint(run)["step"] < checkpoint(run)["args"]["total_timesteps"]
    _, result = train(script, *resume)

    os.mkdir("never_stopped")
    os.chdir("never_stopped")
    _, expected = train(script, *flags)
    assert differences(state(run), state(expected.folder)) == []
    assert (result.mean, result.deviation, result.steps) == (expected.mean, expected.deviation, expected.steps)


@EACH_SCRIPT
def test_the_same_seed_gives_the_same_bits_and_another_does_not(script, folder):
    def weights(*flags):
        return state(train(script, *small(script, 2, *flags))[1].folder)

    one, same, other = weights(), weights(), weights("--seed", "2")
    assert differences(one, same) == []
    assert any("agent" in place for place in differences(one, other))


def interrupted(script, number, folder, monkeypatch):
    """A run in this process that gets the signal in the middle of its 20th update."""
    module, calls = import_module(script), []
    update = module.update

    def kill(*args):
        calls.append(args)
        if len(calls) == 20:
            os.kill(os.getpid(), number)
        return update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "update", kill)
        outcome = end(script, *small(script, 1000))
    assert len(calls) < 20 + 50
    return outcome


@EACH_SCRIPT
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(script, number, folder, monkeypatch):
    if (script, number) in zip(BY_PROCESS, (signal.SIGINT, signal.SIGTERM), strict=True):
        status, stdout, stderr = stop(number, script, *small(script, 1000), cwd=folder, checkpoints=2)
    else:
        status, stdout, stderr = interrupted(script, number, folder, monkeypatch)
    assert status == 128 + number
    assert stdout == ""
    assert "Traceback" not in stderr
    (run,) = folder.glob("runs/*")
    saved = checkpoint(run)["step"]
    assert re.search(rf"\bstep {saved}\b", stderr)

    # The words after "python" are the command to go on with; here it is given an end that is near.
    words = shlex.split(stderr.strip().splitlines()[-1].partition("python ")[2])
    assert words == [f"{script}.py", "--resume", str(run.relative_to(folder))]
    _, result = train(script, *words[1:], "--total-timesteps", saved + 100)
    assert saved + 100 <= result.steps < saved + 100 + SCRIPTS[script].period
    assert result.folder == run.relative_to(folder)


@pytest.mark.parametrize("script", BY_PROCESS[:1])
def test_two_signals_in_a_row_leave_a_whole_checkpoint(script, folder):
    """The second comes while the first is being answered, at once or about a save's length later, or when it was."""
    long_end = "import atexit, runpy, sys, time; atexit.register(time.sleep, 2); del sys.argv[0]; "
    long_end += "runpy.run_path(sys.argv[0], run_name='__main__')"
    for delay, launcher in ((0, ()), (0.02, ()), (None, ("-c", long_end))):
        process = start(script, *small(script, 1000), cwd=folder, launcher=launcher)
        wait(process, folder, 2)
        process.send_signal(signal.SIGINT)
        answer = ""
        while delay is None and "stopped at step" not in answer:
            line = process.stderr.readline()
            assert line, f"ended without saying that it stopped: {answer}"
            answer += line
        time.sleep(0.5 if delay is None else delay)
        process.send_signal(signal.SIGINT)
        stderr = answer + process.communicate(timeout=60)[1]
        # A signal that comes after the answer ends the process at once; a shell calls both 130.
        assert process.returncode in (130, -signal.SIGINT), stderr
        assert "Traceback" not in stderr and "KeyboardInterrupt" not in stderr
        (run,) = folder.glob("runs/*")
        saved = import_module(script).load_checkpoint(run)["step"]
        assert f"step {saved}:" in stderr
        shutil.rmtree(folder / "runs")


@pytest.mark.parametrize(
    ("env_id", "signals_at", "steps", "logged"),
    [
        ("probes:CartPole7-v0", (3,), 7, True),  # one signal waits for the episodes' ends
        ("probes:Endless-v0", (3, 6), 6, False),  # which never come here
    ],
)
def test_a_second_signal_ends_an_evaluation(env_id, signals_at, steps, logged, folder, monkeypatch):
    act, calls = import_module("ppo").Agent.act, []

    def interrupted(agent, obs, greedy=False):
        if greedy:
            calls.append(obs)
            assert len(calls) <= steps, "the evaluation goes on"
            if len(calls) in signals_at:
                os.kill(os.getpid(), signal.SIGINT)
        return act(agent, obs, greedy)

    monkeypatch.setattr(import_module("ppo").Agent, "act", interrupted)
    status, stdout, stderr = end("ppo", *small("ppo", 3, env_id=env_id))
    assert (status, stdout, len(calls)) == (130, "", steps)
    (run,) = folder.glob("runs/*")
    period = SCRIPTS["ppo"].period
    assert checkpoint(run)["step"] == (SEGMENT + 1) * period
    assert f"step {(SEGMENT + 1) * period}:" in stderr
    assert [step for step, _ in scalars(run).get("charts/eval_return", ())] == ([SEGMENT * period] if logged else [])


@pytest.mark.parametrize("script", ["reinforce", "ppo", "td3"])
def test_a_third_signal_ends_what_would_never_end(script, folder, monkeypatch):
    """As an episode that the REINFORCE scripts wait for."""
    act, calls = import_module(script).Agent.act, []

    def interrupted(agent, obs, *args):
        calls.append(obs)
        assert len(calls) <= 10, "it goes on"
        for _ in range(3 if len(calls) == 10 else 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return act(agent, obs, *args)

    monkeypatch.setattr(import_module(script).Agent, "act", interrupted)
    status, stdout, stderr = end(script, *small(script, 1000, env_id="probes:BoxEndless-v0"))
    assert (status, stdout) == (143, "")
    assert "stopped at once" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("method", ["fork", "forkserver"])  # Python's own choice on Linux, until and from 3.14 on
def test_an_interrupt_at_the_keyboard_stops_a_run_of_several_processes(method, folder):
    """A terminal sends it to all: the environments' processes leave the answer to the script, and end in silence."""
    script = BY_PROCESS[0]
    launcher = f"import multiprocessing, runpy, sys; multiprocessing.set_start_method('{method}'); del sys.argv[0]; "
    launcher = ("-c", launcher + "runpy.run_path(sys.argv[0], run_name='__main__')")
    flags = (*small(script, 1000), "--async-envs")
    process = start(script, *flags, cwd=folder, launcher=launcher, start_new_session=True)
    try:
        wait(process, folder, 2)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    (path,) = folder.glob("runs/*")
    saved = checkpoint(path)["step"]
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1].startswith(f"stopped at step {saved}: python {script}.py --resume")
    assert "Traceback" not in stderr

    if method == "fork":
        more = ("--resume", path, "--total-timesteps", saved + 100)
        status, _, stderr = run(script, *more, cwd=folder)
        assert status == 0 and "Traceback" not in stderr


@EACH_FAMILY
@pytest.mark.parametrize(("signals", "status"), [(1, 0), (2, 130)])
def test_a_signal_after_the_last_update(signals, status, script, folder, monkeypatch):
    """One lets the evaluation end as it would have, as nothing is left to stop; with two it is not waited for."""
    module = import_module(script)
    evaluate = module.evaluate

    def interrupted(*args, **kwargs):
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(module, "evaluate", interrupted)
    ended, stdout, stderr = end(script, *small(script, 1))
    (run,) = folder.glob("runs/*")
    assert ended == status
    assert checkpoint(run)["step"] == SEGMENT * SCRIPTS[script].period
    if signals == 1:
        assert last_line(stdout).folder == run.relative_to(folder)
    else:
        assert stdout == ""
        words = shlex.split(stderr.strip().splitlines()[-1].partition("python ")[2])
        assert words == [f"{script}.py", "--evaluate", str(run.relative_to(folder))]
        monkeypatch.undo()
        os.chdir(folder)
        train(script, *words[1:])


@EACH_FAMILY
def test_a_signal_in_the_last_update(script, folder, monkeypatch):
    """The run has ended, and says so by its line: there is nothing to resume."""
    module = import_module(script)
    tick = module.Run.tick

    def interrupted(run, *args):
        if run.step == SEGMENT * SCRIPTS[script].period:
            os.kill(os.getpid(), signal.SIGINT)
        return tick(run, *args)

    monkeypatch.setattr(module.Run, "tick", interrupted)
    _, result = train(script, *small(script, 1))
    assert result.steps == checkpoint(result.folder)["step"] == SEGMENT * SCRIPTS[script].period


@EACH_FAMILY
def test_signals_are_given_back_after_training(script, folder, monkeypatch):
    """In a notebook, Ctrl-C must interrupt what runs after `train` as it did before, however that ended."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def given_back():
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    train(script, *small(script, 1))
    assert given_back()
    with pytest.raises(RuntimeError, match="the simulator broke"):
        train(script, *small(script, 2, env_id="probes:Raises-v0"))
    assert given_back()
    assert end(script, *small(script, 2, env_id="probes:NanReward-v0"))[0] == 2
    assert given_back()
    assert interrupted(script, signal.SIGINT, folder, monkeypatch)[0] == 130
    assert given_back()


@EACH_FAMILY
def test_the_working_folder_can_be_the_run(script, folder):
    _, trained = train(script, *small(script, 1))
    os.chdir(trained.folder)
    status, stdout, stderr = end(script, "--evaluate", ".")
    assert (status, stdout.partition(" ")[0]) == (0, f"eval_return={trained.mean:.2f}"), stderr
    total = trained.steps + SCRIPTS[script].period
    status, stdout, stderr = end(script, "--resume", ".", "--total-timesteps", total)
    assert status == 0, stderr
    assert checkpoint(".")["step"] == total
    assert not Path("runs").exists()


@pytest.mark.parametrize("script", ["a2c", "td3", "sac"])
def test_rates_beside_resume_win(script, folder):
    """Annealing, where there is some, goes on along the new rate's line; what follows a resumed rate is logged so."""
    flags = ("--policy-lr", "--q-lr") if script == "sac" else ("--learning-rate",)
    _, trained = train(script, *small(script, 1))
    given = [word for flag, rate in zip(flags, (0.03, 0.02), strict=False) for word in (flag, rate)]
    total = trained.steps + SCRIPTS[script].period
    train(script, "--resume", trained.folder, "--total-timesteps", total, *given)
    saved = checkpoint(trained.folder)
    left = SCRIPTS[script].period / total if hasattr(parse(script), "anneal_lr") else 1
    rates = {name: part["param_groups"][0]["lr"] for name, part in saved.items() if name.endswith("optimizer")}
    expected = {
        "actor_optimizer": 0.03,
        "critic_optimizer": 0.02 if script == "sac" else 0.03,
        "optimizer": 0.03 * left,
    }
    assert rates == pytest.approx({name: expected[name] for name in rates}) and rates


def test_a_temperature_beside_resume_wins(folder):
    """Fixed, it is that of the flag; learned, the checkpoint's is where it was."""
    _, trained = train("sac", *small("sac", 1))
    learned = checkpoint(trained.folder)["agent"]["log_alpha"]
    total, period = trained.steps, SCRIPTS["sac"].period
    train("sac", "--resume", trained.folder, "--total-timesteps", total + period, "--alpha", 0.7)
    assert checkpoint(trained.folder)["agent"]["log_alpha"] == pytest.approx(learned.item(), abs=0.01)
    fixed = ("--no-autotune", "--alpha", 0.7)
    train("sac", "--resume", trained.folder, "--total-timesteps", total + 2 * period, *fixed)
    assert checkpoint(trained.folder)["agent"]["log_alpha"].exp() == pytest.approx(0.7, rel=0.01)


@EACH_FAMILY
def test_a_folder_that_cannot_be_written_to_any_more(script, folder, monkeypatch):
    _, trained = train(script, *small(script, 1))
    before = (trained.folder / "checkpoint.pt").read_bytes()

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(import_module(script), "SummaryWriter", refused)
    status, stdout, stderr = end(script, "--resume", trained.folder, "--total-timesteps", 2 * trained.steps)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert str(trained.folder) in stderr and "Permission denied" in stderr
    assert (trained.folder / "checkpoint.pt").read_bytes() == before


@EACH_SCRIPT
def test_a_checkpoint_is_flushed_before_it_is_put_in_place(script, folder, monkeypatch):
    """A machine that fails in the middle of saving leaves the old checkpoint, whole, and the run goes on from it."""
    _, whole = train(script, *small(script, 3))
    flush, calls = os.fsync, []

    def fail_at_the_second(file):
        (path,) = Path("runs").glob("*/checkpoint.tmp")
        content = path.read_bytes()  # what has left the program, and will be flushed
        assert content[-32:] == hashlib.sha256(content[:-32]).digest()
        calls.append(file)
        if len(calls) == 2:
            raise OSError("the disk is gone")
        flush(file)

    monkeypatch.setattr(os, "fsync", fail_at_the_second)
    status, stdout, stderr = end(script, *small(script, 3))
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert "cannot save" in stderr and "the disk is gone" in stderr
    monkeypatch.undo()
    os.chdir(folder)
    (run,) = set(Path("runs").iterdir()) - {whole.folder}
    assert checkpoint(run)["step"] == SEGMENT * SCRIPTS[script].period
    train(script, "--resume", run)
    assert differences(state(run), state(whole.folder)) == []


@EACH_SCRIPT
def test_a_longer_total_extends_a_finished_run(script, folder):
    """Without annealing, whose slope is of the total, two segments and two more are four.

    Also where an environment draws from Python's and numpy's own generators, which a segment seeds too.
    """
    steady = ("--no-anneal-lr",) if hasattr(parse(script), "anneal_lr") else ()
    env_id = "probes:DrawsAnywhere-v0" if script in BY_PROCESS else None
    _, short = train(script, *small(script, 2, *steady, env_id=env_id))
    _, longer = train(script, *small(script, 4, *steady, env_id=env_id))
    total = 4 * SEGMENT * SCRIPTS[script].period
    _, extended = train(script, "--resume", short.folder, "--total-timesteps", total)
    assert (extended.steps, extended.folder) == (total, short.folder)
    assert differences(state(short.folder), state(longer.folder)) == []
    assert checkpoint(short.folder)["args"]["total_timesteps"] == total


@EACH_FAMILY
def test_seconds_go_on(script, folder):
    """The last line's seconds are of all that was trained, and its rate is by them."""
    _, trained = train(script, *small(script, 1))
    write_checkpoint(trained.folder / "checkpoint.pt", checkpoint(trained.folder) | {"seconds": 1000.0})
    assert train(script, "--evaluate", trained.folder)[1].seconds == 1000
    total = trained.steps + 100 * SCRIPTS[script].period
    _, result = train(script, "--resume", trained.folder, "--total-timesteps", total)
    assert 1000 < result.seconds < 1100
    assert result.speed == round(total / result.seconds)


@EACH_SCRIPT
def test_resuming_a_finished_run_says_so(script, folder):
    _, result = train(script, *small(script, 1))
    before = (result.folder / "checkpoint.pt").read_bytes()
    status, stdout, stderr = end(script, "--resume", result.folder)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert str(result.folder) in stderr and str(result.steps) in stderr and "--total-timesteps" in stderr
    assert (result.folder / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(("script", "env_id", "flags"), RUNS)
def test_evaluate_gives_the_evaluation_that_training_ended_with(script, env_id, flags, folder):
    agent, trained = train(script, *small(script, 2, *flags, env_id=env_id))
    before = {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()}
    played, result = train(script, "--evaluate", trained.folder)
    assert (result.mean, result.deviation, result.episodes) == (trained.mean, trained.deviation, trained.episodes)
    assert (result.steps, result.folder) == (trained.steps, trained.folder)
    assert differences(agent.state_dict(), played.state_dict()) == []
    assert {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()} == before
    assert list(Path("runs").iterdir()) == [trained.folder]


@EACH_SCRIPT
def test_flags_beside_evaluate_win(script, folder):
    _, trained = train(script, *small(script, 1))
    assert train(script, "--evaluate", trained.folder, "--eval-episodes", 5)[1].episodes == 5


@pytest.mark.parametrize("script", [script for script in SCRIPTS if hasattr(parse(script), "norm_obs")])
@pytest.mark.parametrize("flags", [("--norm-obs",), ("--norm-obs", "--norm-reward")])
def test_running_statistics_are_in_the_checkpoint(script, flags, folder):
    """Without them an evaluation plays another policy than was trained, the commonest mistake with this feature."""
    agent, trained = train(script, *small(script, 1, *flags, env_id=SCRIPTS[script].env_ids[1]))
    obs = torch.tensor([[0.3, -0.4, 5.0]])
    assert (agent.norm_obs(obs) - obs).abs().min() > 1e-3
    played, _ = train(script, "--evaluate", trained.folder)
    assert torch.equal(played.norm_obs(obs), agent.norm_obs(obs))
    assert torch.equal(played.act(obs, greedy=True), agent.act(obs, greedy=True))
