"""Bad input is one line on standard error that names it, exit status 2, and nothing lost."""

import pickle
import re
import shutil
import zipfile
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import BY_PROCESS, OFF_POLICY, SCRIPTS, checkpoint, end, parse, run, train
from torch import nn

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)


def assert_refused(outcome, script, *words):
    """Status 2, nothing on standard output, and one line that says which script and has these words."""
    status, stdout, stderr = outcome
    assert (status, stdout) == (2, ""), stderr
    assert stderr.endswith("\n") and len(stderr.splitlines()) == 1, f"not one line: {stderr}"
    assert stderr.startswith(f"{script}.py: error: ")
    for word in words:
        assert word in stderr, f"{word} is not in: {stderr}"


def no_runs(folder):
    return not (folder / "runs").exists()


ENVIRONMENTS = {
    # --env-id: words of the line
    "CartPol-v1": ["CartPol", "Did you mean: `CartPole`?"],
    "CartPole-v7": ["CartPole", "v1"],
    "not an id": ["not an id"],
    "no_such_module:CartPole-v1": ["no_such_module"],
    "probes:NoSuch-v0": ["NoSuch"],
    "probes:ActsInMultiBinary-v0": ["MultiBinary(3)", "Discrete", "Box"],
    "probes:ActsInMultiDiscrete-v0": ["MultiDiscrete([2 3])", "Discrete", "Box"],
    "probes:ActsInMatrix-v0": ["(2, 2)", "Discrete", "Box"],
    "probes:ActsFromOne-v0": ["start=1", "Discrete", "Box"],
    "probes:SameStep-v0": ["SAME_STEP", "NEXT_STEP"],
}


@EACH_SCRIPT
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_unusable_environment(script, env_id, folder):
    assert_refused(end(script, "--env-id", env_id), script, "--env-id", env_id, *ENVIRONMENTS[env_id])
    assert no_runs(folder)


@pytest.mark.parametrize("script", OFF_POLICY)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "probes:UnboundedActionReward-v0"])
def test_actions_that_are_in_no_bounded_box(script, env_id, folder):
    """The line names the scripts that can use them, and they do."""
    outcome = end(script, "--env-id", env_id)
    assert_refused(outcome, script, env_id, "bounded Box")
    others = re.findall(r"(\w+)\.py", outcome[2])[1:]
    assert set(others) == set(SCRIPTS) - set(OFF_POLICY)
    for other in others:
        train(other, "--env-id", env_id, *SCRIPTS[other].short, "--total-timesteps", 1)


@pytest.mark.parametrize("script", OFF_POLICY)
def test_learning_starts_before_the_end(script, folder):
    for starts in (50, 51):
        flags = ("--learning-starts", starts, "--total-timesteps", 50)
        assert_refused(end(script, *flags), script, "--learning-starts", str(starts), "--total-timesteps 50")
    assert no_runs(folder)


@pytest.mark.parametrize("script", OFF_POLICY)
def test_a_buffer_beyond_the_memory(script, folder):
    """10^12 rows of Pendulum's 3 + 1 + 3 + 1 + 1 numbers of 4 bytes are 33527.6 GiB."""
    flags = ("--buffer-size", 10**12, "--total-timesteps", 10**12)
    assert_refused(end(script, *flags), script, "--buffer-size", "33527.6 GiB")
    assert no_runs(folder)


@EACH_SCRIPT
def test_every_number_is_in_its_range(script, folder):
    """Of every flag that takes a number: what is below its range, above it, no number, or of another type."""
    for field in fields(import_module(script).Args):
        bad = {
            int: ["-1", "x", "1.5", "nan", *([] if field.name in ("seed", "learning_starts") else ["0"])],
            float: ["-0.1", "x", "nan", "inf", "-inf"] + ["1.01"] * (field.name in ("gamma", "gae_lambda", "tau")),
        }.get(field.type, [])
        flag = f"--{field.name.replace('_', '-')}"
        for value in bad:
            assert_refused(end(script, flag, value), script, flag, value)
    assert no_runs(folder)


@EACH_SCRIPT
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no-such-flag", "3"], ["--no-such-flag"]),
        (["--num-envs"], ["--num-envs"]),
        (["stray"], ["stray"]),
        (["--capture-video", "maybe"], ["maybe"]),
        (["--device", "tpu"], ["--device", "tpu", "cpu"]),
        (["--seed", str(2**64)], ["--seed"]),
        (["--env-id", "probes:Spy-v0", "--capture-video"], ["--capture-video", "rgb_array"]),
        (["--resume", "runs/none"], ["runs/none", "missing"]),
        (["--evaluate", "runs/none"], ["runs/none", "missing"]),
    ],
)
def test_bad_flags(script, flags, words, folder):
    assert_refused(end(script, *flags), script, *words)
    assert no_runs(folder)


@pytest.mark.parametrize("script", ["ppo"])
@pytest.mark.parametrize("minibatches", [3, 2048])
def test_minibatches_divide_the_batch(script, minibatches, folder):
    flags = ("--num-envs", 16, "--num-steps", 64, "--num-minibatches", minibatches)
    assert_refused(end(script, *flags), script, "--num-minibatches", str(minibatches), "1024")
    assert no_runs(folder)


@EACH_SCRIPT
@pytest.mark.skipif(torch.accelerator.is_available(), reason="here is one")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_absent_device(script, device, folder):
    assert_refused(end(script, "--device", device), script, "--device", device, "cpu")
    assert no_runs(folder)


@pytest.mark.parametrize("script", BY_PROCESS)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--env-id", "CartPol-v1"], ["--env-id", "CartPole"]),
        (["--gamma", "nan"], ["--gamma", "nan"]),
    ],
)
def test_the_shell_sees_the_same(script, flags, words, tmp_path):
    """By the command line: no warning of a library beside the line, and the exit status of the process."""
    assert_refused(run(script, *flags, cwd=tmp_path), script, *words)
    assert no_runs(tmp_path)


@EACH_SCRIPT
def test_run_folder_that_cannot_be_written(script, folder):
    (folder / "runs").write_text("a file where a folder should be")
    assert_refused(end(script), script, "cannot write", "runs")


@pytest.fixture(scope="module", params=SCRIPTS)
def trained(request, tmp_path_factory):
    """A run of each script, to copy and to damage."""
    script, path = request.param, tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        _, result = train(script, *SCRIPTS[script].short, "--total-timesteps", SCRIPTS[script].period)
    return script, path / result.folder


@pytest.fixture
def damaged(trained, folder):
    """A copy of the run -> script, its folder, its checkpoint."""
    shutil.copytree(trained[1], folder / "copy")
    return trained[0], Path("copy"), Path("copy", "checkpoint.pt")


def assert_checkpoint_refused(script, path, *words):
    """Neither --evaluate nor --resume takes it, and both leave the folder as it is."""
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for flags in (["--evaluate", path], ["--resume", path, "--total-timesteps", 10**6]):
        assert_refused(end(script, *flags), script, str(path), *words)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert not Path("runs").exists()


def test_missing_checkpoint(damaged):
    script, folder, path = damaged
    path.unlink()
    assert_checkpoint_refused(script, folder, "checkpoint.pt", "missing")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.9, -1])
def test_truncated_checkpoint(damaged, keep):
    script, folder, path = damaged
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert_checkpoint_refused(script, folder, "checkpoint.pt", "damaged")


def test_flipped_bit(damaged):
    """One bit in the middle of each record of the file, weights and pickle alike."""
    script, folder, path = damaged
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [record for record in archive.infolist() if record.file_size]
    assert len(records) > 10
    for record in records:
        name, extra = (int.from_bytes(whole[record.header_offset + k :][:2], "little") for k in (26, 28))
        middle = record.header_offset + 30 + name + extra + record.file_size // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
        assert_refused(end(script, "--evaluate", folder), script, "checkpoint.pt", "damaged")


def test_not_a_checkpoint(damaged):
    script, folder, path = damaged
    content = checkpoint(folder)
    others = {
        "a text": lambda: path.write_text("hello"),
        "a list": lambda: torch.save([1, 2], path),
        "weights alone": lambda: torch.save(nn.Linear(2, 2).state_dict(), path),
        "a script's name alone": lambda: torch.save({"script": script}, path),
        "no flags": lambda: torch.save({**content, "args": None}, path),
        "a flag of another version": lambda: torch.save({**content, "args": content["args"] | {"old": 1}}, path),
        "no weights": lambda: torch.save({name: part for name, part in content.items() if name != "agent"}, path),
        "a zip of something else": lambda: zipfile.ZipFile(path, "w").writestr("hello", "hello"),
    }
    for write in others.values():
        write()
        assert_checkpoint_refused(script, folder, "checkpoint.pt")


class Exploit:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_checkpoint_is_executed(damaged):
    script, folder, path = damaged
    torch.save({**checkpoint(folder), "agent": Exploit()}, path)
    assert_checkpoint_refused(script, folder, "checkpoint.pt")
    path.write_bytes(pickle.dumps(Exploit()))
    assert_checkpoint_refused(script, folder, "checkpoint.pt")
    assert not Path("executed").exists()
    pickle.loads(path.read_bytes())  # the exploit does work where it is let
    assert Path("executed").exists()


def test_checkpoint_of_another_script(damaged):
    script, folder, path = damaged
    torch.save({**checkpoint(folder), "script": "another"}, path)
    assert_checkpoint_refused(script, folder, "another.py")


def test_checkpoint_of_another_environment(damaged):
    script, folder, _ = damaged
    for flags in (["--evaluate", folder], ["--resume", folder, "--total-timesteps", 10**6]):
        assert_refused(end(script, *flags, "--env-id", "probes:Spy-v0"), script, str(folder), "probes:Spy-v0")


def faulty(script, env_id, *flags):
    """Flags of a run with a checkpoint after each update, in whose first environment something fails at its step 37."""
    ends = ("--total-timesteps", 100 * SCRIPTS[script].period, "--checkpoint-every", SCRIPTS[script].period)
    return ("--env-id", f"probes:{env_id}", *SCRIPTS[script].short, *ends, *flags)


def assert_last_checkpoint_is_kept(script, folder):
    """Step 37 of two environments is step 74; the run goes on from the last checkpoint before it."""
    (run_folder,) = folder.glob("runs/*")
    saved = 73 // SCRIPTS[script].period * SCRIPTS[script].period
    assert checkpoint(run_folder)["step"] == saved
    total = saved + SCRIPTS[script].period  # ends before the environment fails again
    _, result = train(script, "--resume", run_folder.relative_to(folder), "--total-timesteps", total)
    assert result.steps == total


@EACH_SCRIPT
@pytest.mark.parametrize(
    ("env_id", "quantity"),
    [
        ("NanObservation-v0", "observation"),
        ("InfObservation-v0", "observation"),
        ("NanReward-v0", "reward"),
        ("InfReward-v0", "reward"),
        ("HugeReward-v0", "reward"),
    ],
)
def test_a_number_that_is_none_stops_the_run(script, env_id, quantity, folder):
    assert_refused(end(script, *faulty(script, env_id)), script, quantity, "step 74")
    assert_last_checkpoint_is_kept(script, folder)


@EACH_SCRIPT
def test_a_first_observation_that_is_none_stops_the_run(script, folder):
    assert_refused(end(script, *faulty(script, "NanReset-v0")), script, "observation", " step ")


@EACH_SCRIPT
def test_an_evaluation_ends_whatever_it_is_paid(script, folder):
    """A return that is no number is a result, or refused, but nothing to wait for."""
    module, args = import_module(script), parse(script, "--env-id", "probes:NanRewardSoon-v0")
    agent = module.Agent(module.make_envs(args, 1), args)
    try:
        assert np.isnan(module.evaluate(agent, args, 2, 0)).all()
    except SystemExit as stop:
        assert stop.code == 2


@EACH_SCRIPT
def test_a_loss_that_is_none_stops_the_run(script, folder):
    """Weights that overflow: the line names what, and the checkpoint on disk is of before."""
    flags = ("--env-id", SCRIPTS[script].env_ids[-1], *SCRIPTS[script].short, "--checkpoint-every", "1")
    flags += ("--total-timesteps", 10 * SCRIPTS[script].period)
    flags += ("--max-grad-norm", "1e30") if hasattr(parse(script), "max_grad_norm") else ()
    rates = [name for name in vars(parse(script)) if name in ("learning_rate", "policy_lr", "q_lr")]
    outcome = end(script, *flags, *(word for name in rates for word in (f"--{name.replace('_', '-')}", "1e30")))
    assert_refused(outcome, script, " step ")
    assert any(f"{what} is " in outcome[2] for what in (*SCRIPTS[script].losses, "a weight", "an action")), outcome
    for path in folder.glob("runs/*"):
        if (path / "checkpoint.pt").exists():
            assert all(weight.isfinite().all() for weight in checkpoint(path)["agent"].values())


@EACH_SCRIPT
def test_an_environment_that_raises_keeps_its_error(script, folder):
    with pytest.raises(RuntimeError, match="the simulator broke"):
        train(script, *faulty(script, "Raises-v0"))
    assert_last_checkpoint_is_kept(script, folder)


@pytest.mark.parametrize("script", BY_PROCESS)
def test_an_environment_that_raises_in_its_process_ends_the_run(script, folder):
    """The script must not wait for the other processes, and shows the environment's own line."""
    status, stdout, stderr = run(script, *faulty(script, "Raises-v0"), "--async-envs", cwd=folder, timeout=60)
    assert (status, stdout) == (1, "")
    assert "Traceback" in stderr and "RuntimeError: the simulator broke" in stderr
    assert_last_checkpoint_is_kept(script, folder)
