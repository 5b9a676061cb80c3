"""The first Ctrl-C or SIGTERM saves and stops a run, the second ends it at once."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from importlib import import_module
from pathlib import Path

import pytest
from harness import BY_PROCESS, SCRIPTS, checkpoint, end, scalars, start, train
from stops import MOMENTS, SEGMENT, small, stop, wait_for_checkpoints

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
EACH_FAMILY = pytest.mark.parametrize("script", BY_PROCESS)


def send_in_step(number, script, step, monkeypatch):
    """Send this process a signal in the environment step that begins at this count."""
    module = import_module(script)
    env_step = module.Run.env_step

    def interrupted(run, action):
        if run.step == step:
            os.kill(os.getpid(), number)
        return env_step(run, action)

    monkeypatch.setattr(module.Run, "env_step", interrupted)


def check_stopped(script, number, status, stdout, stderr, folder):
    """The run ended by a signal, saved, and said how to go on -> the words after the script's name, the step."""
    assert (status, stdout) == (128 + number, "")
    assert "Traceback" not in stderr
    (path,) = folder.glob("runs/*")
    path, saved = path.relative_to(folder), checkpoint(path)["step"]
    message = stderr.strip().splitlines()[-1]
    assert re.search(rf"{script}.py: error: stopped \(step {saved}; --resume .* continues from {saved}\)", message)
    words = shlex.split(re.search(r"; (.*) continues", message)[1])
    assert words == ["--resume", str(path)]
    return words, saved


@EACH_SCRIPT
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_stops_and_says_how_to_resume(script, number, folder, monkeypatch):
    period = SCRIPTS[script].period
    with monkeypatch.context() as patch:
        send_in_step(number, script, 20 * period, patch)
        outcome = end(script, *small(script, 1000))
    words, saved = check_stopped(script, number, *outcome, folder)
    assert saved == 21 * period
    _, result = train(script, *words, "--total-timesteps", saved + 100)
    assert saved + 100 <= result.steps < saved + 100 + period
    assert str(result.folder) == words[1]


@pytest.mark.parametrize(("script", "number"), [("ppo", signal.SIGINT), ("td3", signal.SIGTERM)])
def test_signal_to_a_program_saves_and_stops(script, number, folder):
    outcome = stop(number, script, *small(script, 1000), cwd=folder, checkpoints=2)
    check_stopped(script, number, *outcome, folder)


def test_second_signal_ends_at_once(folder):
    """REINFORCE waits for the episode's end, which does not come here."""
    pairs = [(signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)]
    flags = (*SCRIPTS["reinforce"].short, "--env-id", "probes:Endless-v0")
    processes = []
    try:
        for index in range(len(pairs)):
            processes.append(start("reinforce", *flags, "--seed", index, cwd=folder))
        for process, (first, second) in zip(processes, pairs, strict=True):
            while not list(folder.glob(f"runs/*__{processes.index(process)}__*/events*")):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            process.send_signal(first)
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(second)
            stdout, stderr = process.communicate(timeout=60)
            assert (process.returncode, stdout) == (128 + second, "")
            assert "Traceback" not in stderr
    finally:
        for process in processes:
            process.kill()


def test_two_signals_in_a_row_leave_a_whole_checkpoint(folder):
    process = start("ppo", *small("ppo", 1000), cwd=folder)
    try:
        wait_for_checkpoints(process, folder, 2)
        process.send_signal(signal.SIGINT)
        time.sleep(MOMENTS.uniform(0, 0.03))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (130, -signal.SIGINT), stderr
    assert "Traceback" not in stderr
    (path,) = folder.glob("runs/*")
    import_module("ppo").read(path)


@pytest.mark.parametrize("segment", [1, 3])
@pytest.mark.parametrize("script", BY_PROCESS)
def test_signal_during_an_evaluation_stops_with_all_saved(script, segment, folder, monkeypatch):
    """In the first evaluation of three, and in the last, after the training."""
    module = import_module(script)
    evaluate, calls = module.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == segment:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", interrupted)
        outcome = end(script, *small(script, 3))
    words, saved = check_stopped(script, signal.SIGTERM, *outcome, folder)
    assert saved == segment * SEGMENT * SCRIPTS[script].period
    assert len(calls) == segment
    _, result = train(script, *words)
    assert result.steps == 3 * SEGMENT * SCRIPTS[script].period


@EACH_FAMILY
def test_signal_in_the_last_update_loses_nothing(script, folder, monkeypatch):
    """Training has ended and is saved; the evaluation can be had later."""
    steps = SEGMENT * SCRIPTS[script].period
    with monkeypatch.context() as patch:
        send_in_step(signal.SIGINT, script, steps - 2, patch)
        outcome = end(script, *small(script, 1))
    words, saved = check_stopped(script, signal.SIGINT, *outcome, folder)
    assert saved == steps
    status, stdout, _ = end(script, "--evaluate", words[1])
    assert status == 0 and f"| {steps} steps |" in stdout
    assert "charts/eval_return" not in scalars(words[1])


def test_signal_stops_an_evaluation_by_its_command(folder, monkeypatch):
    _, trained = train("ppo", *small("ppo", 1))
    module = import_module("ppo")
    act = module.Agent.act

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return act(*args, **kwargs)

    monkeypatch.setattr(module.Agent, "act", interrupted)
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("it went on to a second action"))
    status, stdout, stderr = end("ppo", "--evaluate", trained.folder)
    assert (status, stdout, stderr.count("\n")) == (130, "", 1)


def live_processes(group):
    """Their ids in a process group."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and not state.startswith("Z")]


FORKSERVER = pytest.param("forkserver", marks=pytest.mark.xfail(reason="Ctrl-C ends the environments' processes first"))


@pytest.mark.parametrize("method", ["fork", FORKSERVER])  # Python's default on Linux, before and from 3.14
def test_interrupt_to_all_processes_of_async_envs_saves_and_leaves_none(method, folder):
    """A terminal sends Ctrl-C to the whole process group."""
    code = f"import multiprocessing, runpy, sys; multiprocessing.set_start_method('{method}'); del sys.argv[0]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    flags = (*small("ppo", 1000, "--eval-episodes", 0), "--async-envs")
    process = start("ppo", *flags, cwd=folder, launcher=("-c", code), start_new_session=True)
    try:
        wait_for_checkpoints(process, folder, 1)
        assert len(live_processes(process.pid)) > 2
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        check_stopped("ppo", signal.SIGINT, process.returncode, stdout, stderr, folder)
        assert live_processes(process.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@EACH_FAMILY
def test_train_leaves_signals_alone(script, folder, monkeypatch):
    """While it runs, after its end, and after an error: a notebook's Ctrl-C is the notebook's."""
    module = import_module(script)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    act, seen = module.Agent.act, []

    def look(*args, **kwargs):
        seen.append([signal.getsignal(number) for number in numbers])
        return act(*args, **kwargs)

    monkeypatch.setattr(module.Agent, "act", look)
    train(script, *small(script, 1))
    with pytest.raises(RuntimeError, match="the simulator broke"):
        train(script, *small(script, 2, env_id="probes:Raises-v0"))
    assert seen
    assert all(handlers == before for handlers in seen)
    assert [signal.getsignal(number) for number in numbers] == before


@EACH_FAMILY
def test_interrupt_of_train_closes_everything(script, folder, monkeypatch):
    """Without main, Ctrl-C is Python's KeyboardInterrupt: it comes out, and the last checkpoint stays."""
    period = SCRIPTS[script].period
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without it
    with monkeypatch.context() as patch:
        send_in_step(signal.SIGINT, script, 40 * period, patch)
        with pytest.raises(KeyboardInterrupt):
            train(script, *small(script, 3))
    (path,) = Path("runs").iterdir()
    assert checkpoint(path)["step"] == SEGMENT * period
    train(script, "--resume", path)
