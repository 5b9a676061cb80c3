"""What a run shows and writes: TensorBoard's tags, the bar, the last line, videos, help; and what flags change."""

import re
from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest
from harness import (
    ALL,
    BY_PROCESS,
    ROOT,
    SCRIPTS,
    checkpoint,
    differences,
    end,
    last_line,
    parse,
    run,
    scalars,
    state,
    train,
)

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
EACH_FAMILY = pytest.mark.parametrize("script", BY_PROCESS)


def small(script, updates, *flags, env_id=None):
    row = SCRIPTS[script]
    return ("--env-id", env_id or row.env_ids[-1], *row.short, "--total-timesteps", updates * row.period, *flags)


@EACH_SCRIPT
def test_log_has_the_usual_tags_by_environment_steps(script, folder):
    """CartPole pays 1 a step, so that an episode's return is its length."""
    row = SCRIPTS[script]
    _, result = train(script, *small(script, 10, "--checkpoint-every", 8 * row.period, env_id=row.env_ids[0]))
    log = scalars(result.folder)
    charts = ["episodic_return", "episodic_length", "SPS", "learning_rate", "eval_return"]
    missing = {*(f"charts/{tag}" for tag in charts), *(f"losses/{tag}" for tag in row.losses)} - log.keys()
    assert not missing
    assert all(np.isfinite(value) for points in log.values() for _, value in points)
    assert [step for step, _ in log[f"losses/{row.losses[0]}"]] == [row.period * k for k in range(1, 11)]
    assert [step for step, _ in log["charts/eval_return"]] == [row.period * k for k in (8, 10)]
    assert log["charts/eval_return"][-1][1] == pytest.approx(result.mean, abs=0.01)
    if "CartPole" in row.env_ids[0]:
        assert log["charts/episodic_return"] == log["charts/episodic_length"]
        assert 7 <= log["charts/episodic_return"][-1][1] < 60  # near a random policy's 22, or the time limit


@EACH_FAMILY
def test_last_line_agrees_with_checkpoint_and_log(script, folder):
    status, stdout, stderr = end(script, *small(script, 3, "--seed", 5, "--eval-episodes", 4))
    assert status == 0, stderr
    result = last_line(stdout)
    assert len(stdout.splitlines()) == 1
    assert result.folder.name.startswith(f"Pendulum-v1__{script}__5__")
    assert (result.episodes, result.steps) == (4, checkpoint(result.folder)["step"])
    assert checkpoint(result.folder)["seconds"] == pytest.approx(result.seconds, abs=0.06)


def test_last_line_stands_alone_when_both_outputs_are_one_stream(tmp_path):
    """The bar is closed first."""
    one_stream = (
        "import os, runpy, sys; os.dup2(1, 2); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], None, '__main__')"
    )
    status, stdout, _ = run("ppo", *small("ppo", 2), cwd=tmp_path, launcher=("-c", one_stream))
    assert status == 0, stdout
    assert "steps/s]" in stdout
    last_line(stdout)


@EACH_FAMILY
def test_bar_shows_steps_and_return(script, folder, monkeypatch):
    module, bars, shown = import_module(script), [], []

    class Bar(module.tqdm):
        def set_postfix_str(self, text, refresh):
            shown.append(text)

    monkeypatch.setattr(module, "tqdm", lambda **kwargs: bars.append(Bar(**kwargs)) or bars[-1])
    _, result = train(script, *small(script, 20, env_id="probes:Pendulum7-v0"))
    (bar,) = bars
    assert bar.n == bar.total == result.steps
    assert shown[-1] == f"return {scalars(result.folder)['charts/episodic_return'][-1][1]:.1f}"


@EACH_FAMILY
def test_return_in_the_log_is_the_mean_of_twenty_episodes(script):
    envs = import_module(script).make_envs(parse(script, "--env-id", "probes:Spy-v0"), 1)
    assert envs.return_queue.maxlen == envs.length_queue.maxlen == 20


@EACH_FAMILY
def test_video_shows_an_episode(script, folder):
    """As many frames as the episode has observations, and they show something that moves."""
    video = pytest.importorskip("moviepy").VideoFileClip
    film = SCRIPTS[script].film
    _, result = train(script, *small(script, 1, "--capture-video", "--eval-episodes", 1, env_id=film))
    (path,) = (result.folder / "video").glob("*.mp4")
    with video(str(path)) as clip:
        frames = list(clip.iter_frames())
    cartpole = film == "CartPole-v1"
    assert frames[0].shape == ((400, 600, 3) if cartpole else (500, 500, 3))
    assert len(frames) == pytest.approx(result.mean + 1 if cartpole else 8, abs=2)
    assert frames[0].std() > 5
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50


@EACH_FAMILY
def test_video_of_an_evaluation(script, folder):
    _, trained = train(script, *small(script, 1, env_id=SCRIPTS[script].film))
    assert not list(trained.folder.rglob("*.mp4"))
    train(script, "--evaluate", trained.folder, "--capture-video")
    assert len(list(trained.folder.rglob("*.mp4"))) == 1


@EACH_FAMILY
def test_video_that_fails_does_not_cost_the_result(script, folder):
    """This environment renders nothing. The result is printed before, and all is saved."""
    status, stdout, stderr = end(script, *small(script, 1, "--capture-video", env_id="probes:Spy-v0"))
    result = last_line(stdout)
    assert status == 2
    assert "render_mode" in stderr
    assert f"--resume {result.folder} continues from {result.steps}" in stderr
    assert checkpoint(result.folder)["step"] == result.steps


@pytest.mark.parametrize("script", ALL)
def test_help_explains_every_flag(script, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script, "--help")
    assert not stop.value.code
    shown = re.sub(r"[\s│|]+", "", capsys.readouterr().out)
    source = (ROOT / f"{script}.py").read_text()
    for field in fields(import_module(script).Args):
        phrase = re.search(rf"^    {field.name}: .*  # (.+)$", source, re.M)
        assert phrase, f"{field.name} has no phrase"
        flag = f"--{field.name.replace('_', '-')}"
        assert flag in shown
        assert re.sub(r"[\s|]+", "", phrase[1]) in shown, f"{flag} is not explained"


@pytest.mark.parametrize("script", ALL)
def test_help_begins_with_the_docstring_and_fits_in_a_terminal(script, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # a longer line would be broken inside a word
    status, stdout, _ = end(script, "--help")
    assert status == 0
    assert import_module(script).__doc__.splitlines()[0] in stdout
    assert f"python {script}.py" in stdout
    assert max(map(len, stdout.splitlines())) <= 100


@pytest.mark.parametrize("script", ALL)
def test_every_flag_is_used(script):
    source = (ROOT / f"{script}.py").read_text()
    names = [field.name for field in fields(import_module(script).Args)]
    assert not [name for name in names if not re.search(rf"\b(args|self)\.{name}\b", source)]


@pytest.mark.parametrize("script", [script for script in SCRIPTS if hasattr(parse(script), "anneal_lr")])
def test_learning_rate_falls_linearly_and_stays_positive(script, folder):
    rates = {}
    for flag in ("--anneal-lr", "--no-anneal-lr"):
        _, result = train(script, *small(script, 4, "--learning-rate", 0.004, flag))
        rates[flag] = [value for _, value in scalars(result.folder)["charts/learning_rate"]]
        saved = checkpoint(result.folder)["state"][0]["optimizer"]["param_groups"][0]
        assert saved["lr"] == pytest.approx(rates[flag][-1])
    assert rates["--anneal-lr"] == pytest.approx([0.004, 0.003, 0.002, 0.001])
    assert rates["--no-anneal-lr"] == pytest.approx([0.004] * 4)


@EACH_FAMILY
def test_learning_rate_is_positive_when_the_total_is_passed(script, folder):
    _, result = train(script, *small(script, 1), "--total-timesteps", 3 * SCRIPTS[script].period + 1)
    assert all(rate > 0 for _, rate in scalars(result.folder)["charts/learning_rate"])


# The algorithm's flags, each with another value than its default.
ON_POLICY = ["--gamma 0.5", "--initial-std 0.5", "--no-anneal-lr", "--learning-rate 0.01"]
NORMS = ["--norm-obs", "--norm-reward"]
A2C = [*ON_POLICY, *NORMS, "--gae-lambda 0.5", "--ent-coef 0.1", "--vf-coef 0.1", "--max-grad-norm 0.01"]
REPLAY = ["--gamma 0.5", "--tau 0.5", "--buffer-size 3", "--batch-size 4", "--learning-starts 5", "--utd 2"]
REPLAY += ["--exploration-noise 0.5"]
DDPG = [*REPLAY, "--learning-rate 0.01"]
CHANGES = {
    "reinforce": [*ON_POLICY, "--no-norm-returns"],
    "reinforce_baseline": [*ON_POLICY, "--no-norm-adv"],
    "a2c": [*A2C, "--norm-adv"],
    "ppo": [*A2C, "--no-norm-adv", "--clip-coef 0.001", "--update-epochs 3", "--num-minibatches 1"],
    "trpo": [*ON_POLICY[:2], *NORMS, "--learning-rate 0.01", "--gae-lambda 0.5", "--max-kl 0.1", "--cg-iters 1"],
    "ddpg": [*DDPG, "--ou-noise"],
    "td3": [*DDPG, "--policy-noise 1", "--noise-clip 0.01", "--policy-frequency 1"],
    "sac": [*REPLAY, "--policy-lr 0.01", "--q-lr 0.01", "--alpha 0.5", "--no-autotune"],
}
CHANGES["trpo"] += ["--cg-damping 1", "--vf-epochs 3"]  # tests/math/test_trust_region.py has those of the line search
CHANGE_NOTHING = ["--eval-episodes 3", "--num-threads 2", "--device cpu", "--matmul-precision high"]


@EACH_SCRIPT
def test_flags_change_what_they_should(script, folder):
    """The algorithm's flags change what is learnt; those of running do not."""

    def weights(flags):
        _, result = train(script, *small(script, 4, env_id="probes:Spy-v0"), *flags.split())
        agent = state(result.folder)["state"][0]["agent"]
        return {name: x for name, x in agent.items() if "norm_" not in name and not name.startswith("actor.0.")}

    base = weights("")
    for flags in CHANGES[script]:
        assert differences(base, weights(flags)), f"{flags} changes nothing"
    for flags in CHANGE_NOTHING:
        assert differences(base, weights(flags)) == [], f"{flags} changes what is learnt"
