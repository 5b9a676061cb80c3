"""Bad input is one line on standard error that names the cause, and exit status 2. Nothing that was saved is lost."""

import pickle
import shutil
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import children
from harness import ALL, BY_PROCESS, OFF_POLICY, SCRIPTS, checkpoint, end, parse, run, train, write_checkpoint
from torch import nn

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
EACH_FAMILY = pytest.mark.parametrize("script", BY_PROCESS)


def assert_refused(outcome, script, *words):
    """Status 2, nothing on standard output, and one line that has these words."""
    status, stdout, stderr = outcome
    assert (status, stdout) == (2, ""), outcome
    line = stderr.rsplit("\r", 1)[-1].strip("\n").splitlines()[-1]
    others = [other for other in stderr.replace("\r", "\n").splitlines() if other not in ("", line)]
    assert all("steps" in other for other in others), f"more than the bar and one line: {stderr}"
    assert line.startswith(f"{script}.py: error: ")
    for word in words:
        assert word in line, f"{word} is not in: {line}"
    assert len(line) < 700, f"a line that nobody reads: {line}"


def assert_nothing_was_made(folder):
    assert not (folder / "runs").exists()


ENVIRONMENTS = {
    # --env-id: words of the line
    "CartPol-v1": ["CartPol", "Did you mean: `CartPole`?"],
    "CartPole-v7": ["CartPole", "v1"],
    "not an id": ["not an id"],
    "no_such_module:CartPole-v1": ["No module named 'no_such_module'"],
    "probes:NoSuch-v0": ["NoSuch"],
    ":": [],
    ".:CartPole-v1": [],
    "gymnasium:CartPole:v1": [],
    "probes:ActsInMultiBinary-v0": ["actions MultiBinary(3) are not supported"],
    "probes:ActsInMultiDiscrete-v0": ["actions MultiDiscrete([2 3]) are not supported"],
    "probes:ActsFromOne-v0": ["actions Discrete(3, start=1) are not supported"],
    "probes:ActsInIntegers-v0": ["int64"],
    "probes:ObservesSequences-v0": ["observations Sequence", "cannot be flattened"],
    "cases:Mission-v0": ["Sentence()", "cannot be flattened"],
    "cases:ResetsAtOnce-v0": ["SAME_STEP", "NEXT_STEP"],
}


@EACH_FAMILY
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_unusable_environment(script, env_id, folder):
    outcome = end(script, "--env-id", env_id, *SCRIPTS[script].short, "--total-timesteps", 10)
    assert_refused(outcome, script, f"--env-id {env_id}", *ENVIRONMENTS[env_id])
    assert_nothing_was_made(folder)


@pytest.mark.parametrize("script", OFF_POLICY)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "probes:UnboundedActionReward-v0", "probes:ActsInDoubles-v0"])
def test_off_policy_scripts_need_a_bounded_box(script, env_id, folder):
    outcome = end(script, "--env-id", env_id, *SCRIPTS[script].short, "--total-timesteps", 10)
    assert_refused(outcome, script, f"{script}.py needs a bounded Box of actions")
    assert_nothing_was_made(folder)


ENV_KWARGS = {
    "3": [],
    "[1]": [],
    "{is_slippery: 1}": ["property name"],
    '{"no_such": 1}': ["unexpected keyword argument 'no_such'"],
}


@EACH_FAMILY
@pytest.mark.parametrize("text", ENV_KWARGS)
def test_env_kwargs_that_do_not_fit(script, text, folder):
    outcome = end(script, "--env-id", "Pendulum-v1", "--env-kwargs", text)
    assert_refused(outcome, script, text, *ENV_KWARGS[text])
    assert_nothing_was_made(folder)


@pytest.mark.parametrize("script", ALL)
def test_number_out_of_its_range(script, folder):
    """Below the range of every flag that takes a number, and above it where it has an upper end."""
    for field in fields(import_module(script).Args):
        bad = {int: ["-1", "0"], float: ["-0.1", "nan", "inf", "-inf"]}.get(field.type, [])
        may_be_0 = field.name in ("seed", "learning_starts", "eval_episodes", "num_workers")
        bad = [value for value in bad if value != "0" or not may_be_0]
        bad += ["1"] * (field.name == "num_steps")
        bad += ["1.01"] * (field.name in ("gamma", "gae_lambda", "tau"))
        bad += ["0"] * (field.name in ("initial_std", "alpha"))
        bad += [str(2**70)] * (field.name == "seed") + ["1025"] * (field.name == "num_threads")
        flag = f"--{field.name.replace('_', '-')}"
        for value in bad:
            assert_refused(end(script, flag, value), script, f"{flag} {value}")
    assert_nothing_was_made(folder)


@EACH_FAMILY
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--device", "tpu"], ["--device tpu"]),
        (["--resume", "runs/none"], ["runs/none", "No such file"]),
        (["--evaluate", "runs/none"], ["runs/none", "No such file"]),
    ],
)
def test_bad_flag(script, flags, words, folder):
    assert_refused(end(script, *SCRIPTS[script].short, "--total-timesteps", 10, *flags), script, *words)
    assert_nothing_was_made(folder)


@EACH_FAMILY
@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--no-such-flag", "3"], "--no-such-flag"),
        (["--num-envs"], "--num-envs"),
        (["--num-envs", "two"], "two"),
        (["--num-envs", "1.5"], "1.5"),
        (["--gamma", "x"], "x"),
        (["stray"], "stray"),
        (["--capture-video", "maybe"], "maybe"),
    ],
)
def test_word_that_is_no_flag(script, flags, word, folder):
    """The message is tyro's own."""
    status, stdout, stderr = end(script, *flags)
    assert (status, stdout) == (2, "")
    assert word in stderr
    assert "Traceback" not in stderr
    assert_nothing_was_made(folder)


@EACH_SCRIPT
@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_absent_device(script, device, folder):
    assert_refused(end(script, "--device", device), script, f"--device {device}", "only cpu")
    assert_nothing_was_made(folder)


@pytest.mark.parametrize(
    ("script", "flags", "word"),
    [
        ("ppo", ["--num-envs", 2, "--num-steps", 4, "--num-minibatches", 3], "--num-minibatches"),
        ("ppo", ["--num-envs", 8, "--num-steps", 1, "--num-minibatches", 1], "--num-steps"),
        ("a2c", ["--num-envs", 8, "--num-steps", 1], "--num-steps"),
    ],
)
def test_rollout_that_may_have_too_few_rows_is_refused(script, flags, word, folder):
    """Every second step may only reset. A minibatch needs two of the others, or its deviation is NaN."""
    assert_refused(end(script, *flags, "--total-timesteps", 64), script, word)
    assert_nothing_was_made(folder)


@pytest.mark.parametrize(("script", "flags"), [("ppo", ["--num-steps", 4, "--num-minibatches", 2]), ("a2c", [])])
@pytest.mark.parametrize("env_id", ["probes:SeenReward-v0", "probes:BoxSeenReward-v0"])
def test_smallest_rollout_trains_on_the_shortest_episodes(script, flags, env_id, folder):
    """Episodes of one step: every second step only resets."""
    flags = flags or ["--num-steps", 2, "--norm-adv"]
    _, result = train(script, "--env-id", env_id, "--num-envs", 2, *flags, "--total-timesteps", 64)
    assert result.steps == 64


@pytest.mark.parametrize(
    ("script", "flag", "value", "word"),
    [("ppo", "--env-id", "CartPol-v1", "CartPole"), ("td3", "--gamma", "nan", "nan")],
)
def test_shell_sees_one_line(script, flag, value, word, tmp_path):
    """By the command line: libraries add no warnings, and the process has exit status 2."""
    outcome = run(script, flag, value, cwd=tmp_path)
    assert_refused(outcome, script, f"{flag} {value}", word)
    assert len(outcome[2].splitlines()) == 1
    assert_nothing_was_made(tmp_path)


@pytest.fixture(scope="module", params=BY_PROCESS)
def trained(request, tmp_path_factory):
    """A run to copy and to damage -> script, folder."""
    script, path = request.param, tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        _, result = train(script, *SCRIPTS[script].short, "--total-timesteps", SCRIPTS[script].period)
    return script, path / result.folder


@pytest.fixture
def copied(trained, folder):
    """A copy of the run -> script, its folder, its checkpoint."""
    shutil.copytree(trained[1], folder / "copy")
    return trained[0], Path("copy"), Path("copy", "checkpoint.pt")


def assert_checkpoint_refused(script, path, *words):
    """Neither --evaluate nor --resume takes it, and both leave the folder as it is."""
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for flags in (["--evaluate", path], ["--resume", path, "--total-timesteps", 10**6]):
        assert_refused(end(script, *flags), script, str(path / "checkpoint.pt"), *words)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert not Path("runs").exists()


def test_missing_checkpoint(copied):
    script, folder, path = copied
    path.unlink()
    assert_checkpoint_refused(script, folder, "No such file")


def test_truncated_checkpoint(copied):
    """At 50 lengths, from nothing to all but the last byte."""
    script, folder, path = copied
    module, whole = import_module(script), path.read_bytes()
    for length in np.linspace(0, len(whole) - 1, 50).astype(int):
        path.write_bytes(whole[:length])
        with pytest.raises(module.RunError, match="it is damaged"):
            module.read(folder)
    assert_checkpoint_refused(script, folder, "it is damaged")


def test_flipped_bit_in_checkpoint(copied):
    """200 single bits all over the file."""
    script, folder, path = copied
    module, whole = import_module(script), path.read_bytes()
    generator = np.random.default_rng(0)
    for place in np.linspace(0, len(whole) - 1, 200).astype(int):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << generator.integers(8)
        path.write_bytes(flipped)
        with pytest.raises(module.RunError, match="it is damaged"):
            module.read(folder)
    assert_checkpoint_refused(script, folder, "it is damaged")
    path.write_bytes(whole)
    module.read(folder)


def test_file_that_is_no_checkpoint(copied):
    script, folder, path = copied
    content = checkpoint(folder)
    for other in (
        b"hello",
        [1, 2],
        nn.Linear(2, 2).state_dict(),
        {"script": script},
        content | {"args": None},
    ):
        write_checkpoint(path, other)
        assert_checkpoint_refused(script, folder)
    torch.save(content, path)  # without its checksum
    assert_checkpoint_refused(script, folder, "it is damaged")


def test_checkpoint_with_unknown_flag(copied):
    script, folder, path = copied
    content = checkpoint(folder)
    write_checkpoint(path, content | {"args": content["args"] | {"old_flag": 1}})
    assert_checkpoint_refused(script, folder, "old_flag")


def test_checkpoint_of_another_script(copied):
    script, folder, path = copied
    write_checkpoint(path, checkpoint(folder) | {"script": "another"})
    assert_checkpoint_refused(script, folder, "another.py saved it")


class Exploit:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_checkpoint_is_executed(copied):
    script, folder, path = copied
    write_checkpoint(path, checkpoint(folder) | {"state": Exploit()})
    assert_checkpoint_refused(script, folder)
    write_checkpoint(path, pickle.dumps(Exploit()))
    assert_checkpoint_refused(script, folder)
    assert not Path("executed").exists()
    pickle.loads(path.read_bytes())  # the exploit works where it is let
    assert Path("executed").exists()


@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        (("--resume", "copy", "--total-timesteps", 10**6, "--hidden-size", 24), "these flags do not fit copy"),
        (("--resume", "copy", "--total-timesteps", 10**6, "--env-id", "probes:Spy-v0"), "these flags do not fit copy"),
        (("--evaluate", "copy", "--env-id", "probes:Spy-v0"), "copy has another --env-id"),
    ],
)
def test_flags_that_do_not_fit_the_checkpoint(copied, flags, cause):
    """The line names the right cause: the checkpoint is neither missing nor damaged. It stays as it is."""
    script, _, path = copied
    before = path.read_bytes()
    outcome = end(script, *flags)
    assert_refused(outcome, script, cause)
    assert path.read_bytes() == before


def test_smaller_replay_buffer_is_refused_on_resume(folder):
    flags = (*SCRIPTS["td3"].short, "--env-id", "Pendulum-v1")
    _, result = train("td3", *flags, "--total-timesteps", 40)
    outcome = end("td3", "--resume", result.folder, "--buffer-size", 10, "--total-timesteps", 80)
    assert_refused(outcome, "td3", "replay buffer")


def test_larger_replay_buffer_is_refused_on_resume_when_the_smaller_is_full(folder):
    """Else the rows between would be zeros."""
    flags = (*SCRIPTS["td3"].short, "--env-id", "Pendulum-v1")
    _, result = train("td3", *flags, "--total-timesteps", 40, "--buffer-size", 10)
    outcome = end("td3", "--resume", result.folder, "--buffer-size", 20, "--total-timesteps", 80)
    assert_refused(outcome, "td3", "replay buffer")


def faulty(script, env_id, *flags):
    """Flags of a run with a checkpoint after each update, in whose first environment something fails at its step 37."""
    ends = ("--total-timesteps", 100 * SCRIPTS[script].period, "--checkpoint-every", SCRIPTS[script].period)
    return ("--env-id", f"probes:{env_id}", *SCRIPTS[script].short, "--eval-episodes", 0, *ends, *flags)


def last_checkpoint_before_fault(script):
    """Step 37 of two environments is step 74."""
    return 73 // SCRIPTS[script].period * SCRIPTS[script].period


def assert_last_checkpoint_is_kept(script, folder):
    (run_folder,) = folder.glob("runs/*")
    saved = last_checkpoint_before_fault(script)
    assert checkpoint(run_folder)["step"] == saved
    total = saved + SCRIPTS[script].period  # ends before the environment fails again
    _, result = train(script, "--resume", run_folder.relative_to(folder), "--total-timesteps", total)
    assert result.steps == total


@EACH_SCRIPT
@pytest.mark.parametrize("env_id", ["NanObservation-v0", "InfObservation-v0", "NanReward-v0", "HugeReward-v0"])
def test_number_that_is_not_finite_stops_the_run(script, env_id, folder):
    outcome = end(script, *faulty(script, env_id))
    (run_folder,) = Path("runs").iterdir()
    hint = f"step 74; --resume {run_folder} continues from {last_checkpoint_before_fault(script)}"
    assert_refused(outcome, script, "an observation or reward is not finite", hint)
    assert_last_checkpoint_is_kept(script, folder)


@EACH_FAMILY
def test_first_observation_that_is_not_finite_stops_the_run(script, folder):
    outcome = end(script, *faulty(script, "NanReset-v0"))
    assert_refused(outcome, script, "an observation is not finite", "step 0; no checkpoint was saved")


@EACH_SCRIPT
def test_diverging_run_stops(script, folder):
    """The line names what is not finite, and the run saves no such weights."""
    row = SCRIPTS[script]
    flags = ("--env-id", row.env_ids[-1], *row.short, "--total-timesteps", 10 * row.period, "--eval-episodes", 0)
    rates = ("--policy-lr", "1e30", "--q-lr", "1e30") if script == "sac" else ("--learning-rate", "1e30")
    assert_refused(end(script, *flags, *rates), script, "not finite", "no checkpoint was saved")
    assert not list(folder.glob("runs/*/checkpoint.pt"))


@EACH_FAMILY
def test_metric_that_is_not_finite_stops_the_run(script, folder, monkeypatch):
    """Weights that it comes from are not saved, although observations and rewards are still finite."""
    module, row = import_module(script), SCRIPTS[script]
    backward = module.backward
    monkeypatch.setattr(module, "backward", lambda *args: backward(*args) | {"loss": torch.tensor(torch.nan)})
    with pytest.raises(module.RunError, match="not finite"):
        train(script, *row.short, "--total-timesteps", 10 * row.period)
    assert not list(folder.glob("runs/*/checkpoint.pt"))


@EACH_FAMILY
@pytest.mark.parametrize(
    ("env_id", "error", "words"),
    [("Raises-v0", RuntimeError, "the simulator broke"), ("WrongShape-v0", ValueError, "shape")],
)
def test_error_of_an_environment_keeps_its_type_and_names_the_step(script, env_id, error, words, folder):
    """Step 37 of two environments fails: 72 steps are over."""
    with pytest.raises(error, match=words) as raised:
        train(script, *faulty(script, env_id))
    (run_folder,) = Path("runs").iterdir()
    saved = last_checkpoint_before_fault(script)
    assert raised.value.__notes__ == [f"(step 72; --resume {run_folder} continues from {saved})"]
    assert_last_checkpoint_is_kept(script, folder)


@pytest.mark.parametrize(
    ("script", "env_id", "words"),
    [
        ("td3", "OneRaises-v0", "RuntimeError: the simulator broke"),
        ("ppo", "Exits-v0", "Error"),  # its process is gone without a word
    ],
)
def test_environment_that_fails_in_its_process_ends_the_run(script, env_id, words, folder):
    """The script does not wait for the processes that live, and shows the environment's own error."""
    status, stdout, stderr = run(script, *faulty(script, env_id), "--async-envs", cwd=folder, timeout=60)
    assert (status, stdout) == (1, "")
    assert words in stderr
    assert "step 72; --resume runs/" in stderr
    assert_last_checkpoint_is_kept(script, folder)


def test_no_process_of_an_environment_is_left_after_its_error(folder):
    flags = ("--env-id", "cases:Child-v0", "--env-kwargs", '{"fails": 3}', *SCRIPTS["ppo"].short, "--async-envs")
    status, stdout, stderr = run("ppo", *flags, cwd=folder, timeout=60)
    assert (status, stdout) == (1, "")
    assert "the simulator broke" in stderr
    assert not children()


def test_run_folder_that_cannot_be_written(folder):
    """The error is the system's own, and names the folder."""
    (folder / "runs").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="runs"):
        train("ppo", *SCRIPTS["ppo"].short)


@EACH_FAMILY
def test_message_speaks_of_a_checkpoint_only_if_there_is_one(script, folder):
    flags = faulty(script, "NanReward-v0")
    assert_refused(end(script, *flags, "--checkpoint-every", 10**6), script, "no checkpoint was saved")
    assert not list(Path("runs").glob("*/checkpoint.pt"))
    assert parse(script, *flags).checkpoint_every < 74
    assert_refused(end(script, *flags), script, "continues from")
    assert len(list(Path("runs").glob("*/checkpoint.pt"))) == 1
