"""Several processes under torchrun are one run."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import (
    BY_PROCESS,
    HELPERS,
    SCRIPTS,
    TORCHRUN,
    checkpoint,
    differences,
    end,
    environment,
    last_line,
    parse,
    run,
    run_ok,
    scalars,
    start,
    state,
    train,
)
from stops import wait_for_checkpoints

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
NEEDS_PROC = pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="/proc tells a process's rank")
UPDATES = 100


def long(script):
    """Flags of a run of so many updates by two processes, with ten checkpoints."""
    period = SCRIPTS[script].period
    steps = ("--total-timesteps", 2 * UPDATES * period, "--checkpoint-every", 20 * period)
    return (*SCRIPTS[script].short, "--env-id", "probes:Pendulum7-v0", *steps)


@pytest.fixture(scope="module", params=BY_PROCESS)
def never_stopped(request, tmp_path_factory):
    """A run by two processes -> the script, the folder it was started in, its standard output."""
    folder = tmp_path_factory.mktemp("never_stopped")
    status, stdout, stderr = run(request.param, *long(request.param), cwd=folder, launcher=TORCHRUN)
    assert status == 0, stderr
    return request.param, folder, stdout


def test_two_processes_print_one_line_and_keep_one_folder(never_stopped):
    """Steps and logged numbers count the environments of both."""
    script, cwd, stdout = never_stopped
    assert len(stdout.splitlines()) == 1
    result = last_line(stdout)
    period = SCRIPTS[script].period
    assert result.steps == 2 * UPDATES * period
    assert [path.name for path in cwd.glob("runs/*")] == [result.folder.name]
    assert len(list((cwd / result.folder).glob("events.*"))) == 1
    log, steps = scalars(cwd / result.folder), [2 * period * k for k in range(1, UPDATES + 1)]
    assert [step for step, _ in log["charts/SPS"]] == steps
    assert all(step in steps for points in log.values() for step, _ in points)
    args = parse(script)
    shares = torch.linspace(1, 1 / UPDATES, UPDATES) if hasattr(args, "anneal_lr") else torch.ones(UPDATES)
    rates = [rate for _, rate in log["charts/learning_rate"]]
    assert rates == pytest.approx((args.learning_rate * shares).tolist())


def test_checkpoint_holds_the_state_of_every_process(never_stopped):
    """Their agents are equal; their replay is not."""
    _, cwd, stdout = never_stopped
    first, second = checkpoint(cwd / last_line(stdout).folder)["state"]
    assert differences(first["agent"], second["agent"]) == []
    if "buffer" in first:
        assert first["buffer"]["count"] > 0
        assert differences(first["buffer"], second["buffer"])


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """A run of every script by two processes -> the folder, {script: its last line}."""
    folder = tmp_path_factory.mktemp("of_two")
    command = [sys.executable, *TORCHRUN, str(HELPERS / "ranks.py")]
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0, ended.stderr
    return folder, dict(zip(SCRIPTS, map(last_line, ended.stdout.splitlines()), strict=True))


@EACH_SCRIPT
def test_two_processes_agree_after_each_update(script, of_two):
    """Parameters and statistics are equal though the numbers of real steps are not; the environments' seeds differ."""
    folder, results = of_two
    first, second = (torch.load(folder / f"{script}{rank}.pt") for rank in (0, 1))
    assert len(set(first["digests"])) >= 3
    assert first["digests"] == second["digests"]
    assert differences(first["agent"], second["agent"]) == []
    assert differences(first["agent"], checkpoint(folder / results[script].folder)["state"][0]["agent"]) == []
    assert len(first["seeds"]) == len(second["seeds"]) == 2
    assert not set(first["seeds"]) & set(second["seeds"])


@pytest.mark.xfail(reason="only the first process knows which folder it made")
def test_processes_name_the_same_folder(of_two):
    """Each process tells how to resume when it stops."""
    folder, results = of_two
    for script, result in results.items():
        for rank in (0, 1):
            assert torch.load(folder / f"{script}{rank}.pt")["folders"] == {str(result.folder)}


@EACH_SCRIPT
def test_gradient_is_mean_over_processes(script, of_two):
    folder, _ = of_two
    for rank in (0, 1):
        found = torch.load(folder / f"{script}{rank}.pt")
        torch.testing.assert_close(found["gradients"], found["expected_gradients"])


@pytest.mark.parametrize("script", ["a2c", "ppo"])
def test_statistics_are_of_all_processes(script, of_two):
    """1, 3, 5, 7 have mean 4 and variance 5, whichever process saw which."""
    folder, _ = of_two
    for rank in (0, 1):
        found = torch.load(folder / f"{script}{rank}.pt")["statistics"]
        torch.testing.assert_close(torch.tensor(found), torch.tensor([[4.0, 5.0], [4.0, 5.0]]))


@pytest.mark.slow
@NEEDS_PROC
@pytest.mark.parametrize("script", ["td3"])
def test_run_leaves_no_thread_of_its_process_group(script, tmp_path):
    """Such a thread sometimes aborts a process that has finished: torchrun then reports a failure."""
    flags = (*SCRIPTS[script].short, "--total-timesteps", 10 * SCRIPTS[script].period)
    status, _, stderr = run("tests/helpers/threads", script, *flags, cwd=tmp_path, launcher=TORCHRUN)
    assert status == 0, stderr


def rank_of(pid):
    """The rank that torchrun gave to a process."""
    return int(re.search(r"(?:^|\0)RANK=(\d)", Path(f"/proc/{pid}/environ").read_text())[1])


def children(pid):
    return [
        int(line) for line in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    ]


def signal_rank(process, rank, folder, number=signal.SIGKILL):
    """Send a rank of a run a signal after two more checkpoints -> exit status, output, errors of the whole."""
    try:
        wait_for_checkpoints(process, folder, 3)  # the first may be an old one
        (pid,) = [child for child in children(process.pid) if rank_of(child) == rank]
        os.kill(pid, number)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        left = children(process.pid)  # torchrun starts each in a session of its own
        process.kill()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return process.returncode, stdout, stderr


@pytest.mark.slow
@NEEDS_PROC
@pytest.mark.parametrize("never_stopped", ["td3"], indirect=True)  # it has a replay buffer to lose
def test_killed_rank_ends_the_run_which_resumes_to_same_bits(never_stopped, tmp_path, monkeypatch):
    script, other_cwd, stdout = never_stopped
    expected = last_line(stdout)
    process = start(script, *long(script), cwd=tmp_path, launcher=TORCHRUN)
    status, stdout, stderr = signal_rank(process, 1, tmp_path)
    assert (status, stdout) == (1, "")
    assert "Signal 9 (SIGKILL)" in stderr
    (folder,) = tmp_path.glob("runs/*")
    resume = ("--resume", folder.relative_to(tmp_path))
    assert checkpoint(folder)["step"] < expected.steps

    # Another number of processes cannot resume it, but can evaluate it.
    monkeypatch.chdir(tmp_path)
    status, stdout, stderr = end(script, *resume)
    assert (status, stdout) == (2, "")
    assert re.fullmatch(rf"{script}.py: error: {resume[1]} has 2 processes, not 1 .*\n", stderr)
    train(script, "--evaluate", resume[1])

    # When a process dies, torchrun starts both again, and they resume. It has to give them a new store of addresses.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    process = start(script, *resume, cwd=tmp_path, launcher=(*TORCHRUN, "--max-restarts", "1"))
    status, stdout, stderr = signal_rank(process, 0, tmp_path)
    assert status == 0, stderr
    assert differences(state(folder), state(other_cwd / expected.folder)) == []
    assert (last_line(stdout).mean, last_line(stdout).steps) == (expected.mean, expected.steps)


@NEEDS_PROC
def test_signal_to_one_rank_stops_all(tmp_path):
    """After the same update: they save the states of both, and say how to go on."""
    process = start("ppo", *long("ppo"), "--total-timesteps", 10**6, cwd=tmp_path, launcher=TORCHRUN)
    status, stdout, stderr = signal_rank(process, 1, tmp_path, signal.SIGTERM)
    assert status != 0
    assert stdout == ""
    (folder,) = tmp_path.glob("runs/*")
    saved = checkpoint(folder)
    assert len(saved["state"]) == 2
    step = saved["step"]
    hint = f"stopped (step {step}; --resume {folder.relative_to(tmp_path)} continues from {step})"
    assert f"ppo.py: error: {hint}" in stderr


def test_nan_on_one_rank_ends_all(tmp_path):
    flags = (*SCRIPTS["ppo"].short, "--env-id", "ranks:NanOnRank1-v0", "--total-timesteps", 10**6)
    status, stdout, stderr = run("ppo", *flags, cwd=tmp_path, launcher=TORCHRUN)
    assert status != 0
    assert stdout == ""
    assert "ppo.py: error: an observation or reward is not finite" in stderr
    assert not list(tmp_path.glob("runs/*/checkpoint.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("never_stopped", ["ppo"], indirect=True)
def test_two_hosts_are_one_run(never_stopped, tmp_path):
    """Two torchruns that reach each other by two addresses, as two machines do."""
    script, other_cwd, stdout = never_stopped
    expected = last_line(stdout)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    hosts = []
    for host in (0, 1):
        where = ("--nnodes", "2", "--node-rank", str(host), "--master-addr", "127.0.0.1", "--master-port", port)
        launcher = (*TORCHRUN[:2], *where, "--local-addr", f"127.0.0.{1 + host}", "--nproc-per-node", "1")
        (tmp_path / f"host{host}").mkdir()
        hosts.append(start(script, *long(script), cwd=tmp_path / f"host{host}", launcher=launcher))
    try:
        (stdout, stderr), (other, _) = [host.communicate(timeout=120) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], stderr
    assert other == ""
    assert not (tmp_path / "host1" / "runs").exists()
    result = last_line(stdout)
    assert differences(state(tmp_path / "host0" / result.folder), state(other_cwd / expected.folder)) == []


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch compiles by a C++ compiler")
@pytest.mark.parametrize("script", BY_PROCESS)
def test_compiled_processes_agree(script, tmp_path):
    """With --compile the gradients are averaged too; up to rounding the run is the one without."""
    period = SCRIPTS[script].period
    flags = (*SCRIPTS[script].short, "--env-id", "probes:SpyOfLengths-v0", "--total-timesteps", 8 * period)
    agents = []
    for more in ((), ("--compile",)):
        result = run_ok(script, *flags, *more, cwd=tmp_path, launcher=TORCHRUN, timeout=400)
        first, second = checkpoint(tmp_path / result.folder)["state"]
        assert differences(first["agent"], second["agent"]) == []
        agents.append(first["agent"])
    torch.testing.assert_close(*agents, rtol=1e-3, atol=1e-5)


def test_cluster_variables_without_torchrun_mean_nothing(folder, monkeypatch):
    """Some clusters set RANK for every process: without torchrun it is one process, which counts its own steps."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, result = train("ppo", *SCRIPTS["ppo"].short, "--total-timesteps", SCRIPTS["ppo"].period)
    assert result.steps == checkpoint(result.folder)["step"] == SCRIPTS["ppo"].period
