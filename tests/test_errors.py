"""Bad input is one line on standard error that names it, exit status 2, and nothing lost."""

import contextlib
import io
import pickle
import re
import resource
import shutil
import tracemalloc
import zipfile
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import BY_PROCESS, OFF_POLICY, SCRIPTS, checkpoint, end, parse, run, train, write_checkpoint
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
    ":": ["module:Id"],
    ".:CartPole-v1": ["module:Id"],
    "gymnasium:CartPole:v1": ["module:Id"],
    "probes:ActsInMultiBinary-v0": ["MultiBinary(3)", "Box of floats with one axis"],
    "probes:ActsInMultiDiscrete-v0": ["MultiDiscrete([2 3])", "Box of floats with one axis"],
    "probes:ActsInMatrix-v0": ["(2, 2)", "Box of floats with one axis"],
    "probes:ActsFromOne-v0": ["start=1", "Box of floats with one axis"],
    "probes:ActsInIntegers-v0": ["int64", "floats"],
    "probes:ObservesSequences-v0": ["observations", "Box"],
    "probes:SameStep-v0": ["SAME_STEP", "NEXT_STEP"],
}


@EACH_SCRIPT
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_unusable_environment(script, env_id, folder):
    outcome = end(script, "--env-id", env_id, *SCRIPTS[script].short, "--total-timesteps", 10)
    assert_refused(outcome, script, "--env-id", env_id, *ENVIRONMENTS[env_id])
    assert script not in OFF_POLICY or "be Discrete" not in outcome[2]
    assert no_runs(folder)


@pytest.mark.parametrize("script", OFF_POLICY)
@pytest.mark.parametrize(
    "env_id",
    [
        "CartPole-v1",
        "probes:UnboundedActionReward-v0",
        "probes:ActsInDoubles-v0",
        "probes:ActsInAlmostAll-v0",
    ],
)
def test_actions_that_are_in_no_bounded_box(script, env_id, folder):
    """The line names the scripts that can use them, and they do."""
    outcome = end(script, "--env-id", env_id, *SCRIPTS[script].short, "--total-timesteps", 10)
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
def test_a_batch_beyond_the_memory(script, folder):
    outcome = end(script, "--batch-size", 10**12)
    assert_refused(outcome, script, "1000000000000 observations", "GiB are free")
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
        bad += ["0"] * (field.name == "initial_std")
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
        (["--evaluate", "runs/none", "--resume", "runs/none"], ["--evaluate", "--resume", "one of them"]),
        (["--num-threads", "1025"], ["--num-threads 1025", "1024"]),
        (["--hidden-size", str(10**8)], ["--hidden-size 100000000", "GiB are free"]),
        (["--num-envs", str(10**12)], ["000000000000 observations", "GiB are free"]),
        (["--eval-episodes", str(10**12)], ["1000000000000 observations", "GiB are free"]),
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


@pytest.mark.parametrize("script", ["a2c", "ppo"])
def test_an_advantage_alone_is_not_normalised(script, folder):
    """It would be 0, and no policy be learnt."""
    flags = ("--num-envs", 2, "--num-steps", 2, "--total-timesteps", 4)
    flags += ("--num-minibatches", 4) if script == "ppo" else ("--num-envs", 1, "--num-steps", 1)
    assert_refused(end(script, *flags, "--norm-adv"), script, "--no-norm-adv")
    assert no_runs(folder)
    train(script, *flags, "--no-norm-adv")


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


def assert_not_loaded(script, folder):
    """One line and status 2, from the function that --resume and --evaluate call."""
    stderr = io.StringIO()
    with pytest.raises(SystemExit) as stop, contextlib.redirect_stderr(stderr):
        import_module(script).load_checkpoint(folder)
    assert_refused((stop.value.code, "", stderr.getvalue()), script, "checkpoint.pt", "damaged")


def test_truncated_checkpoint(damaged):
    """At 50 lengths, from nothing to all but the last byte."""
    script, folder, path = damaged
    whole = path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 50).astype(int):
        path.write_bytes(whole[:length])
        assert_not_loaded(script, folder)
    assert_checkpoint_refused(script, folder, "checkpoint.pt", "damaged")


def test_flipped_bit(damaged):
    """200 single bits, one in each 200th of the file: weights, pickle, the archive's own tables, the checksum."""
    script, folder, path = damaged
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for part in range(200):
        place, bit = generator.integers(part * len(whole) // 200, (part + 1) * len(whole) // 200), generator.integers(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        assert_not_loaded(script, folder)
    path.write_bytes(whole)
    import_module(script).load_checkpoint(folder)


def test_not_a_checkpoint(damaged):
    script, folder, path = damaged
    content = checkpoint(folder)
    archive = io.BytesIO()
    zipfile.ZipFile(archive, "w").writestr("hello", "hello")
    others = {
        "a text": b"hello",
        "a list": [1, 2],
        "weights alone": nn.Linear(2, 2).state_dict(),
        "a script's name alone": {"script": script},
        "no flags": {**content, "args": None},
        "a flag of another version": {**content, "args": content["args"] | {"old": 1}},
        "no weights": {name: part for name, part in content.items() if name != "agent"},
        "a zip of something else": archive.getvalue(),
    }
    for other in others.values():
        write_checkpoint(path, other)
        assert_checkpoint_refused(script, folder, "checkpoint.pt")
    torch.save(content, path)  # all is right, but for the checksum
    assert_checkpoint_refused(script, folder, "checkpoint.pt", "damaged")


class Exploit:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_checkpoint_is_executed(damaged):
    script, folder, path = damaged
    write_checkpoint(path, {**checkpoint(folder), "agent": Exploit()})
    assert_checkpoint_refused(script, folder, "checkpoint.pt")
    write_checkpoint(path, pickle.dumps(Exploit()))
    assert_checkpoint_refused(script, folder, "checkpoint.pt")
    assert not Path("executed").exists()
    pickle.loads(path.read_bytes())  # the exploit does work where it is let
    assert Path("executed").exists()


def test_checkpoint_of_another_script(damaged):
    script, folder, path = damaged
    write_checkpoint(path, {**checkpoint(folder), "script": "another"})
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
    outcome = end(script, *faulty(script, env_id))
    assert_refused(outcome, script, quantity, f"step 74; {next(Path('runs').iterdir())} keeps the last checkpoint")
    assert_last_checkpoint_is_kept(script, folder)


@EACH_SCRIPT
def test_a_first_observation_that_is_none_stops_the_run(script, folder):
    outcome = end(script, *faulty(script, "NanReset-v0"))
    assert_refused(outcome, script, "observation", "step 0; no checkpoint was saved yet")


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


@pytest.mark.parametrize("script", ["reinforce", "a2c"])
def test_a_weight_that_is_none_is_not_saved(script, folder):
    """The loss that it comes from is a number, and the next will not be: only the weights can tell."""
    rate = ("--learning-rate", "1e39")  # infinite in single precision
    outcome = end(
        script, *SCRIPTS[script].short, "--env-id", SCRIPTS[script].env_ids[-1], "--checkpoint-every", 1, *rate
    )
    assert_refused(outcome, script, "a weight is not finite", f"step {SCRIPTS[script].period}")
    assert not list(folder.glob("runs/*/checkpoint.pt"))


@EACH_SCRIPT
@pytest.mark.parametrize(
    ("env_id", "error", "words"),
    [
        ("Raises-v0", RuntimeError, "the simulator broke"),
        ("WrongShape-v0", ValueError, "shape"),
        ("WrongType-v0", TypeError, "<U4"),
    ],
)
def test_an_environment_that_fails_keeps_its_error_and_the_step(script, env_id, error, words, folder, capsys):
    """Step 37 of two environments, which is not over: 72 steps are."""
    with pytest.raises(error, match=words):
        train(script, *faulty(script, env_id))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{script}.py: error: ")]
    assert len(lines) == 1 and "an environment failed at step 72" in lines[0]
    assert_last_checkpoint_is_kept(script, folder)


@pytest.mark.parametrize(
    ("script", "env_id", "words"),
    [
        ("ppo", "Raises-v0", "RuntimeError: the simulator broke"),
        ("td3", "OneRaises-v0", "RuntimeError: the simulator broke"),  # the others live
        ("ppo", "WrongShape-v0", "ValueError"),
        ("td3", "Exits-v0", "EOFError"),  # its process is gone, without a word
    ],
)
def test_an_environment_that_fails_in_its_process_ends_the_run(script, env_id, words, folder):
    """The script must not wait for the other processes, and shows the environment's own line."""
    status, stdout, stderr = run(script, *faulty(script, env_id), "--async-envs", cwd=folder, timeout=60)
    assert (status, stdout) == (1, "")
    assert "Traceback" in stderr and words in stderr
    assert f"{script}.py: error: an environment failed at step 72" in stderr
    assert_last_checkpoint_is_kept(script, folder)


@EACH_SCRIPT
def test_a_full_disk_keeps_the_last_checkpoint(script, folder):
    """No file may be larger than half a checkpoint from some moment on; the run says so, and leaves no half of one."""
    flags = ("--env-id", SCRIPTS[script].env_ids[0], *SCRIPTS[script].short, "--hidden-size", 64)
    _, whole = train(script, *flags, "--total-timesteps", SCRIPTS[script].period)
    path = whole.folder / "checkpoint.pt"
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        outcome = end(script, "--resume", whole.folder, "--total-timesteps", 3 * SCRIPTS[script].period)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    total = 3 * SCRIPTS[script].period
    assert_refused(outcome, script, "cannot save", f"step {total}", "File too large", str(whole.folder))
    assert path.read_bytes() == before
    assert not list(whole.folder.glob("*.tmp"))
    _, result = train(script, "--resume", whole.folder, "--total-timesteps", total)
    assert result.steps == total


def test_a_checkpoint_is_not_put_together_in_memory(folder, monkeypatch):
    """What Python allocates while some 6 MB are saved; a replay buffer may be as large as the memory."""
    module, peaks = import_module("ppo"), []
    save = module.Run.save

    def watched(run):
        tracemalloc.start()
        save(run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    monkeypatch.setattr(module.Run, "save", watched)
    flags = ("--env-id", SCRIPTS["ppo"].env_ids[0], *SCRIPTS["ppo"].short, "--hidden-size", 512)
    _, result = train("ppo", *flags, "--total-timesteps", SCRIPTS["ppo"].period)
    size = (result.folder / "checkpoint.pt").stat().st_size
    assert size > 5e6
    assert max(peaks) < size / 5
