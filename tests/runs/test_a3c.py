"""a3c.py: workers in processes of their own, which share the weights and the optimizer's statistics."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from harness import ROOT, checkpoint, end, run, scalars, start, train
from stops import wait_for_checkpoints

SHORT = ("--num-envs", 2, "--hidden-size", 8, "--num-steps", 16, "--eval-episodes", 2)
ENDLESS = (*SHORT, "--total-timesteps", 10**7, "--checkpoint-every", 3200, "--eval-episodes", 0)


def weights(agent):
    """Without the statistics of rewards, which a3c.py does not have."""
    return {name: value for name, value in agent.state_dict().items() if not name.startswith("norm_return")}


@pytest.mark.parametrize(("env_id", "flags"), [("CartPole-v1", ()), ("Pendulum-v1", ("--norm-obs", "--ent-coef", 0.1))])
def test_one_worker_is_a2c_to_the_bit(env_id, flags, folder):
    """Across checkpoints: weights, the optimizer's statistics, counts and evaluations."""
    flags = (*SHORT, "--env-id", env_id, "--total-timesteps", 1000, "--checkpoint-every", 256, *flags)
    (ours, our_result), (theirs, their_result) = train("a3c", *flags, "--num-workers", 1), train("a2c", *flags)
    for name, value in weights(theirs).items():
        assert torch.equal(weights(ours)[name], value), name
    assert (our_result.steps, our_result.mean) == (their_result.steps, their_result.mean)
    our_state, their_state = (
        checkpoint(r.folder)["state"][0]["optimizer"]["state"] for r in (our_result, their_result)
    )
    for place, state in their_state.items():
        assert all(torch.equal(our_state[place][name], value) for name, value in state.items())
    our_log, their_log = scalars(our_result.folder), scalars(their_result.folder)
    assert our_log["charts/eval_return"] == their_log["charts/eval_return"]
    assert set(our_log) - set(their_log) == {"losses/staleness"}
    assert {value for _, value in our_log["losses/staleness"]} == {0}  # nobody else updates
    ours, theirs = ({value for _, value in log["losses/explained_variance"]} for log in (our_log, their_log))
    assert ours & theirs


def test_updates_of_both_workers_arrive(folder):
    """Each update is of 32 steps. Without a lock, the optimizer's own count may lose a few."""
    _, result = train("a3c", *SHORT, "--total-timesteps", 32_000)
    assert result.steps in (32_000, 32_032)  # one of them may be on its way when the other reaches the total
    saved = checkpoint(result.folder)
    assert saved["step"] == result.steps
    counts = [state["step"].item() for state in saved["state"][0]["optimizer"]["state"].values() if state["step"]]
    assert len(counts) == 12
    assert all(0.9 * result.steps / 32 <= count <= result.steps / 32 for count in counts)
    log = scalars(result.folder)
    assert max(value for _, value in log["losses/staleness"]) >= 1
    rates = [rate for _, rate in log["charts/learning_rate"]]
    assert 0 <= rates[-1] < rates[0] / 10


@pytest.mark.slow
def test_resumed_run_goes_on_from_its_checkpoint(folder):
    _, first = train("a3c", *SHORT, "--total-timesteps", 640)
    saved = checkpoint(first.folder)
    agent, second = train("a3c", "--resume", first.folder, "--total-timesteps", 1280)
    assert 1280 <= second.steps <= 1280 + 32
    assert second.folder == first.folder
    before = saved["state"][0]["agent"]["critic.1.0.weight"]
    assert 0 < (agent.critic[1][0].weight - before).abs().max() < 0.5
    again, third = train("a3c", "--resume", first.folder, "--total-timesteps", 1280)  # it is finished
    assert third.steps == second.steps
    assert torch.equal(again.critic[1][0].weight, agent.critic[1][0].weight)


# ---- ends


def status(pid):
    """State and parent of a process; a zombie's state is Z, as that of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except FileNotFoundError:
        return "Z", "0"


def descendants(pid):
    """All processes that it started, and that those started."""
    children = [int(name) for name in os.listdir("/proc") if name.isdigit() and status(name)[1] == str(pid)]
    return [*children, *(other for child in children for other in descendants(child))]


def alive(pids):
    return [pid for pid in pids if status(pid)[0] != "Z"]


def stop_in_the_middle(folder, *flags, kill, checkpoints=2):
    """Start two workers, and after some checkpoints call kill(process, workers) -> status, errors, seconds it took."""
    process = start("a3c", *ENDLESS, *flags, cwd=folder)
    try:
        wait_for_checkpoints(process, folder, checkpoints)
        others = descendants(process.pid)
        workers = [pid for pid in others if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
        began = time.monotonic()
        kill(process, workers)
        _, stderr = process.communicate(timeout=60)
        seconds = time.monotonic() - began
        time.sleep(0.5)
        assert alive(others) == []
    finally:
        process.kill()
    (line,) = [line for line in stderr.splitlines() if line.startswith("a3c.py: error: ")]
    return process.returncode, line, seconds


linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are listed in /proc")


@linux
@pytest.mark.parametrize("flags", [(), pytest.param(("--async-envs",), marks=pytest.mark.slow)], ids=["", "async"])
def test_killed_worker_ends_the_run(flags, tmp_path):
    code, line, seconds = stop_in_the_middle(
        tmp_path, *flags, kill=lambda _, workers: os.kill(workers[0], signal.SIGKILL)
    )
    assert code == 2
    assert "worker" in line
    assert "SIGKILL" in line
    assert "--resume" in line
    assert seconds < 10
    (run_folder,) = tmp_path.glob("runs/*")
    assert checkpoint(run_folder)["step"] >= 6400


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signal_saves_and_stops_all_processes(number, tmp_path):
    code, line, _ = stop_in_the_middle(tmp_path, kill=lambda process, _: process.send_signal(number))
    assert code == 128 + number
    (run_folder,) = tmp_path.glob("runs/*")
    assert f"continues from {checkpoint(run_folder)['step']})" in line


@linux
def test_signal_does_not_wait_for_the_next_checkpoint(tmp_path):
    def terminate_in_the_first_segment(process, _):
        while not (tmp_path / "stepped").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)

    flags = ("--env-id", "probes:LeavesAFile-v0", "--checkpoint-every", 10**7)
    code, _, _ = stop_in_the_middle(tmp_path, *flags, checkpoints=0, kill=terminate_in_the_first_segment)
    assert code == 128 + signal.SIGTERM


@linux
def test_error_at_a_checkpoint_stops_all_processes(tmp_path):
    flags = ("--env-id", "probes:RaisesInMain-v0", "--checkpoint-every", 320, "--eval-episodes", 2)
    process = start("a3c", *ENDLESS, *flags, cwd=tmp_path)
    try:
        _, stderr = process.communicate(timeout=60)  # the workers hold its output
    finally:
        process.kill()
    assert process.returncode == 1
    assert "RuntimeError: the simulator broke" in stderr


@linux
def test_workers_end_with_the_main_process(tmp_path):
    process = start("a3c", *ENDLESS, cwd=tmp_path)
    try:
        wait_for_checkpoints(process, tmp_path, 1)
        others = descendants(process.pid)
    finally:
        process.kill()
    process.communicate(timeout=20)  # the workers hold its output
    deadline = time.monotonic() + 10
    while alive(others) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(others) == []


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("Raises-v0", "RuntimeError: the simulator broke"),
        pytest.param("NanReward-v0", "an observation or reward is not finite", marks=pytest.mark.slow),
    ],
)
def test_error_in_a_worker_is_one_line(env_id, words, tmp_path):
    code, _, stderr = run("a3c", *ENDLESS, "--env-id", f"probes:{env_id}", cwd=tmp_path)
    assert code == 2
    line = stderr.strip().splitlines()[-1]
    assert line.startswith("a3c.py: error: worker ")
    assert words in line


def test_other_device_is_refused(folder):
    code, _, stderr = end("a3c", "--device", "cuda")
    assert code == 2
    assert len(stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_torchrun_is_refused(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    code, _, stderr = run("a3c", *SHORT, cwd=tmp_path, launcher=launcher)
    assert code != 0
    assert "--num-workers" in stderr


def test_cell_says_what_to_do(folder):
    cell = {"__name__": "notebook"}
    exec(compile((ROOT / "a3c.py").read_text(), "<cell>", "exec"), cell)
    with pytest.raises(cell["RunError"], match="save the file and import it"):
        cell["train"](cell["Args"](total_timesteps=100))


@pytest.mark.slow
def test_train_works_in_a_thread_and_twice(folder):
    ended = []
    flags = (*SHORT, "--total-timesteps", 320)
    for _ in range(2):
        thread = threading.Thread(target=lambda: ended.append(train("a3c", *flags)))
        thread.start()
        thread.join()
    assert len(ended) == 2
    time.sleep(0.5)
    assert not multiprocessing.active_children()
