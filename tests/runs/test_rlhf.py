"""Runs of rlhf.py: its three stages, --prompt, and what it shows."""

import os
import re
import signal

import pytest
import torch
from harness import TORCHRUN, checkpoint, differences, end, last_line, run_ok, scalars, state, train
from stops import stop
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlhf

# An update of stage 1 is 128 words, one of stage 2 is 256; a rollout is 16 * 14.
SMALL = (
    *("--num-envs", 16, "--batch-size", 8, "--hidden-size", 16, "--sft-steps", 50, "--reward-steps", 25),
    *("--total-timesteps", 6400, "--eval-episodes", 32, "--checkpoint-every", 640),
)
STAGES = (6400, 12_800, 19_200)  # the steps at which each ends


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "checkpoints"), [(1, 3), (2, 13), (3, 23)])
def test_run_killed_in_any_stage_resumes_to_the_same_bits(stage, checkpoints, folder):
    status, *_ = stop(signal.SIGKILL, "rlhf", *SMALL, cwd=folder, checkpoints=checkpoints)
    assert status == -signal.SIGKILL
    (killed,) = folder.glob("runs/*")
    saved = checkpoint(killed)
    assert saved["state"][0]["agent"]["stage"] == stage
    assert saved["step"] <= STAGES[stage - 1]
    _, resumed = train("rlhf", "--resume", killed.relative_to(folder))

    os.mkdir("never_stopped")
    os.chdir("never_stopped")
    _, whole = train("rlhf", *SMALL)
    assert differences(state(killed), state(whole.folder)) == []
    assert (resumed.mean, resumed.deviation, resumed.steps) == (whole.mean, whole.deviation, whole.steps)


@pytest.mark.slow
@pytest.mark.parametrize("total", STAGES[:2])
def test_checkpoint_between_two_stages_resumes_to_the_same_bits(total, folder):
    """The run is stopped where a stage has ended and the next has not begun."""
    seen, log_and_save = [], rlhf.Run.log_and_save

    def look(run, *rest):
        log_and_save(run, *rest)
        if run.step == total:
            assert run.saved == total
            seen.append(run.folder)
            raise KeyboardInterrupt

    flags = (*SMALL, "--checkpoint-every", 1280)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rlhf.Run, "log_and_save", look)
        train("rlhf", *flags)
    train("rlhf", "--resume", seen[0])
    _, whole = train("rlhf", *flags)
    assert differences(state(seen[0]), state(whole.folder)) == []


@pytest.mark.slow
def test_resumed_run_with_fewer_updates_begins_the_next_stage(folder):
    """Its stage 1 has more updates behind it than it is now to have."""
    status, *_ = stop(signal.SIGTERM, "rlhf", *SMALL, cwd=folder, checkpoints=3)
    assert status == 128 + signal.SIGTERM
    (stopped,) = folder.glob("runs/*")
    assert checkpoint(stopped)["state"][0]["agent"]["stage"] == 1
    agent, _ = train("rlhf", "--resume", stopped.relative_to(folder), "--sft-steps", 5)
    assert agent.stage == 3
    assert agent.pool.any()


def test_run_shows_samples_and_logs_each_stage(folder):
    status, stdout, _ = end("rlhf", *SMALL)
    assert status == 0
    result, lines = last_line(stdout), stdout.splitlines()
    assert (lines[0], lines[6], len(lines)) == ("before PPO:", "after PPO:", 13)
    prompts = [" ".join(rlhf.WORDS[i] for i in prompt) for prompt in rlhf.PROMPTS[rlhf.HELD_OUT][:5]]
    for sample, prompt in zip(lines[1:6] + lines[7:12], 2 * prompts, strict=True):
        assert sample.startswith(prompt)
        assert len(sample.split()) == rlhf.L
        assert set(sample.split()) <= set(rlhf.WORDS)
    events = EventAccumulator(str(result.folder)).Reload()
    assert {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]} == {"before PPO", "after PPO"}
    log = scalars(result.folder)
    begin = 0
    for end_of_stage, tag in zip(STAGES, ("sft_loss", "reward_loss", "score"), strict=True):
        steps = [step for step, _ in log[f"losses/{tag}"]]
        assert begin < steps[0] <= steps[-1] <= end_of_stage + 224
        begin = end_of_stage
    assert {"losses/kl", "losses/gold", "losses/entropy", "losses/accuracy", "charts/eval_return"} <= log.keys()
    assert log["losses/kl"][0][1] == pytest.approx(0, abs=1e-5)  # the policy begins as the reference


def test_evaluation_shows_responses_to_the_prompt(folder):
    _, result = train("rlhf", *SMALL)
    status, stdout, stderr = end(
        "rlhf", "--evaluate", result.folder, "--prompt", "the ending was", "--eval-episodes", 9
    )
    assert status == 0, stderr
    *samples, _ = stdout.splitlines()
    assert len(samples) == 8
    assert len(set(samples)) > 1
    assert all(sample.startswith("the ending was ") and len(sample.split()) == rlhf.L for sample in samples)
    _, stdout, _ = end("rlhf", "--evaluate", result.folder)
    again = last_line(stdout)
    assert (again.mean, again.deviation) == (result.mean, result.deviation)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--prompt", "the weather was"), "--prompt takes less than 16 of these words: the this"),
        (("--prompt", "very " * 16), "--prompt takes less than 16"),
        (("--env-id", "CartPole-v1"), "there is only Reviews"),
        (("--capture-video",), "no film"),
        (("--group-size", 3), "--num-envs: a multiple of --group-size"),
        (("--num-minibatches", 17), "not below --num-minibatches"),
        (("--hidden-size", 18), "--hidden-size: a multiple of 4"),
    ],
)
def test_bad_flag_is_one_line(flags, words, folder):
    status, stdout, stderr = end("rlhf", *SMALL, *flags)
    assert (status, stdout) == (2, "")
    assert re.fullmatch(r"rlhf\.py: error: .*\n", stderr.split("steps/s]")[-1].lstrip("\r"))
    assert words in stderr


def test_groups_need_no_critic(folder):
    agent, result = train("rlhf", *SMALL, "--group-size", 4)
    assert {value for _, value in scalars(result.folder)["losses/value_loss"]} == {0}
    assert (agent.critic.head.weight.grad is None) or not agent.critic.head.weight.grad.any()
    assert not torch.equal(agent.policy.head.weight, agent.reference.head.weight)


@pytest.mark.slow
def test_two_processes_have_the_same_agent_but_for_their_pools(tmp_path):
    result = run_ok("rlhf", *SMALL, cwd=tmp_path, launcher=TORCHRUN)
    assert result.steps >= 2 * 12_800 + 6400
    first, second = (saved["agent"] for saved in checkpoint(tmp_path / result.folder)["state"])
    assert differences(first, second) == ["/pool"]


@pytest.mark.slow
def test_compiled_run_learns_as_the_plain_one(tmp_path):
    results = [run_ok("rlhf", *SMALL, *flags, cwd=tmp_path) for flags in ((), ("--compile",))]
    losses = [scalars(tmp_path / result.folder)["losses/sft_loss"] for result in results]
    assert losses[0][-1][1] == pytest.approx(losses[1][-1][1], rel=0.05)


def test_signal_saves_in_the_first_stage(folder):
    status, stdout, stderr = stop(signal.SIGINT, "rlhf", *SMALL, "--sft-steps", 10**6, cwd=folder, checkpoints=1)
    assert (status, stdout) == (130, "")
    (stopped,) = folder.glob("runs/*")
    step = checkpoint(stopped)["step"]
    assert f"rlhf.py: error: stopped (step {step}; --resume {stopped.relative_to(folder)}" in stderr
