"""Several processes under torchrun are one run."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from harness import (
    BY_PROCESS,
    SCRIPTS,
    TESTS,
    TORCHRUN,
    checkpoint,
    differences,
    end,
    environment,
    last_line,
    parse,
    run,
    scalars,
    start,
    state,
    train,
)

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)


UPDATES = 100  # of a run by two processes, of which each adds a period to an update


def long(script):
    """The flags of a run of so many updates, with ten checkpoints; its replay is in them."""
    period = SCRIPTS[script].period
    steps = ("--total-timesteps", 2 * UPDATES * period, "--checkpoint-every", 20 * period)
    return (*SCRIPTS[script].short, "--env-id", "probes:Pendulum7-v0", "--num-threads", 1, *steps)


@pytest.fixture(scope="module", params=BY_PROCESS)
def never_stopped(request, tmp_path_factory):
    """A run by two processes that loses nobody -> the script, the folder it was started in, its standard output."""
    folder = tmp_path_factory.mktemp("never_stopped")
    status, stdout, stderr = run(request.param, *long(request.param), cwd=folder, launcher=TORCHRUN)
    assert status == 0, stderr
    return request.param, folder, stdout


def test_two_processes_print_one_line_and_keep_one_folder(never_stopped):
    script, cwd, stdout = never_stopped
    assert len(stdout.splitlines()) == 1
    result = last_line(stdout)
    period = SCRIPTS[script].period
    assert result.steps == 2 * UPDATES * period
    assert [path.name for path in cwd.glob("runs/*")] == [result.folder.name]
    # One log, of the first rank; an update is of the environments of both, and so is every count.
    assert len(list((cwd / result.folder).glob("events.*"))) == 1
    log, steps = scalars(cwd / result.folder), [2 * period * k for k in range(1, UPDATES + 1)]
    assert [step for step, _ in log["charts/SPS"]] == steps
    assert all(step in steps for points in log.values() for step, _ in points)
    assert log["charts/SPS"][-1][1] == pytest.approx(result.speed, rel=0.2)
    args = parse(script)
    shares = torch.linspace(1, 1 / UPDATES, UPDATES) if hasattr(args, "anneal_lr") else torch.ones(UPDATES)
    rates = [rate for _, rate in log["charts/learning_rate"]]
    assert rates == pytest.approx((args.learning_rate * shares).tolist())


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """A run of every script by two processes -> their folder, and {script: its last line}."""
    folder = tmp_path_factory.mktemp("of_two")
    command = [sys.executable, *TORCHRUN, str(TESTS / "ranks.py")]
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return folder, dict(zip(SCRIPTS, map(last_line, ended.stdout.splitlines()), strict=True))


@EACH_SCRIPT
def test_two_processes_agree(script, of_two):
    """Weights and statistics are the same after each update, environments are not; an update is of both minibatches."""
    folder, results = of_two
    first, second = (torch.load(folder / f"{script}{rank}.pt") for rank in (0, 1))
    assert differences(first["agent"], second["agent"]) == []
    assert differences(first["agent"], checkpoint(folder / results[script].folder)["agent"]) == []
    assert first["digests"] == second["digests"] and len(set(first["digests"])) >= 3
    assert len(first["seeds"]) == 2 and not set(first["seeds"]) & set(second["seeds"])

    for found in (first, second):
        torch.testing.assert_close(found["updated"], found["expected"])
        if "normalised" in found:  # of 1, 3, 5, 7: mean 4 and variance 5
            torch.testing.assert_close(found["normalised"], torch.tensor([[1 / 5**0.5]]))
    assert differences(first["updated"], second["updated"]) == []


def rank_of(pid):
    """The rank of a process, as torchrun told it."""
    return int(re.search(r"(?:^|\0)RANK=(\d)", open(f"/proc/{pid}/environ").read())[1])


def lose_a_rank(process, rank, folder, number=signal.SIGKILL):
    """Send a rank of a run a signal after two more checkpoints of it -> how the whole ends, and in how many seconds."""
    seen, deadline = [], time.monotonic() + 90
    while len(set(seen)) < 3:  # the first may be an old one
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint in time"
        seen += [path.stat().st_mtime_ns for path in folder.glob("runs/*/checkpoint.pt")]
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    (pid,) = [int(child) for child in children if rank_of(child) == rank]
    os.kill(pid, number)
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr, time.monotonic() - began


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="a process's rank is read from /proc")
@pytest.mark.parametrize("never_stopped", ["td3"], indirect=True)  # it has all to lose that the others have
def test_a_rank_that_dies_ends_the_run_which_goes_on_from_its_checkpoint(never_stopped, tmp_path, monkeypatch):
    """Every rank's replay is in the checkpoint: what follows has the same bits as a run that lost nobody."""
    script, other_cwd, stdout = never_stopped
    expected = last_line(stdout)
    process = start(script, *long(script), cwd=tmp_path, launcher=TORCHRUN)
    status, stdout, stderr, seconds = lose_a_rank(process, 1, tmp_path)
    assert status == 1 and stdout == "" and seconds < 30
    assert "Signal 9 (SIGKILL)" in stderr and re.search(r"rank +: 1 ", stderr)
    (folder,) = tmp_path.glob("runs/*")
    resume = ("--resume", folder.relative_to(tmp_path))
    assert checkpoint(folder)["step"] < expected.steps

    # one process has no use for the data of two, but can play what they learned
    monkeypatch.chdir(tmp_path)
    status, stdout, stderr = end(script, *resume)
    assert (status, stdout) == (2, "") and re.fullmatch(rf"{script}.py: error: .* is of 2 ranks, .* not of 1\n", stderr)
    train(script, "--evaluate", folder.relative_to(tmp_path))

    # torchrun starts both anew when one dies, and they resume
    process = start(script, *resume, cwd=tmp_path, launcher=(*TORCHRUN, "--max-restarts", "1"))
    status, stdout, stderr, _ = lose_a_rank(process, 0, tmp_path)
    assert status == 0, stderr
    assert differences(state(folder), state(other_cwd / expected.folder)) == []
    assert (last_line(stdout).mean, last_line(stdout).steps) == (expected.mean, expected.steps)


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="a process's rank is read from /proc")
def test_a_signal_to_one_rank_stops_all(tmp_path):
    """After the same update: what they save holds the state of both."""
    process = start("ppo", *long("ppo"), "--total-timesteps", 10**6, cwd=tmp_path, launcher=TORCHRUN)
    try:
        status, stdout, stderr, seconds = lose_a_rank(process, 1, tmp_path, signal.SIGTERM)
    finally:
        process.kill()
    assert status != 0 and stdout == "" and seconds < 30
    (folder,) = tmp_path.glob("runs/*")
    saved = checkpoint(folder)
    assert f"stopped at step {saved['step']}: python ppo.py --resume {folder.relative_to(tmp_path)}" in stderr
    assert len(saved["others"]) == 1


@pytest.mark.parametrize("never_stopped", ["ppo"], indirect=True)
def test_two_hosts_are_one_run(never_stopped, tmp_path):
    """Two torchruns that reach each other by two addresses, as two machines do: the same bits as two processes here."""
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
    assert other == "" and not (tmp_path / "host1" / "runs").exists()
    result = last_line(stdout)
    assert differences(state(tmp_path / "host0" / result.folder), state(other_cwd / expected.folder)) == []


def test_what_a_cluster_says_of_ranks_is_torchruns_to_use(folder, monkeypatch):
    """Some set it for every process: without torchrun there is one, which counts its own steps and saves."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, result = train("ppo", *SCRIPTS["ppo"].short, "--total-timesteps", SCRIPTS["ppo"].period)
    assert result.steps == checkpoint(result.folder)["step"] == SCRIPTS["ppo"].period
    train("ppo", "--evaluate", result.folder)
