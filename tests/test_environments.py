"""What a script does around the algorithm: spaces, seeds, steps, logs, video, ranks, flags."""

import re
import shutil
import sys
import time
from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest
import torch
from harness import BY_PROCESS, OFF_POLICY, ROOT, SCRIPTS, checkpoint, differences, parse, scalars, state, train
from moviepy import VideoFileClip
from probes import Spy

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
EACH_FAMILY = pytest.mark.parametrize("script", BY_PROCESS)  # for what stands below the rule and in no other way


def small(script, updates, *flags, env_id=None):
    row = SCRIPTS[script]
    return ("--env-id", env_id or row.env_ids[-1], *row.short, "--total-timesteps", updates * row.period, *flags)


@pytest.fixture
def spy():
    Spy.seeds.clear()
    Spy.actions.clear()
    return Spy


@EACH_SCRIPT
def test_actions_from_minus_one_to_one_span_the_bounds_of_each_dimension(script, spy):
    envs = import_module(script).make_envs(parse(script, "--env-id", "probes:Spy-v0"), 4)
    low, high = envs.single_action_space.low, envs.single_action_space.high
    assert (low == -1).all() and (high == 1).all() and low.shape == (3,)
    envs.reset(seed=0)
    envs.step(np.array([[-1, -1, -1], [1, 1, 1], [0, 0.5, -0.5], [-7, 7, 0]], np.float32))
    assert np.allclose(spy.actions, [[-2, 0, 10], [2, 1, 30], [0, 0.75, 15], [-2, 1, 20]])


@EACH_SCRIPT
def test_actions_at_the_bounds_are_not_rounded_beyond_them(script, spy):
    envs = import_module(script).make_envs(parse(script, "--env-id", "probes:ActsToTenths-v0"), 1)
    envs.reset(seed=0)
    envs.step(np.ones((1, 3), np.float32))
    assert envs.unwrapped.single_action_space.contains(spy.actions[0])


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in OFF_POLICY])
def test_bounds_that_are_some_are_kept(script, spy):
    """There is no size to rescale by: actions are as the policy gives them, and the nearest that is allowed."""
    envs = import_module(script).make_envs(parse(script, "--env-id", "probes:ActsFromZero-v0"), 2)
    envs.reset(seed=0)
    envs.step(np.array([[-1, -7, 7], [2, 7, -7]], np.float32))
    assert np.array_equal(spy.actions, [[0, -7, 5], [2, 7, -7]])


@EACH_FAMILY
def test_an_environment_with_statistics_of_its_own(script, spy, folder):
    _, result = train(script, *small(script, 20, env_id="probes:OwnStatistics-v0"))
    assert scalars(result.folder)["charts/episodic_return"][-1][1] == 7


@EACH_SCRIPT
def test_an_environment_gets_actions_within_its_bounds_alone(script, spy, folder):
    random = ("--learning-starts", 190) if script in OFF_POLICY else ()
    train(script, *small(script, 1 + 200 // SCRIPTS[script].period, *random, env_id="probes:Spy-v0"))
    actions = np.array(spy.actions)
    assert (actions >= [-2, 0, 10]).all() and (actions <= [2, 1, 30]).all()
    spread = (actions.max(0) - actions.min(0)) / [4, 1, 20]
    assert (spread > 0.9).all(), "the actions do not span what the bounds allow"


@EACH_SCRIPT
def test_environments_get_seeds_of_their_own(script, spy, folder, monkeypatch):
    """Two environments in two segments; the evaluations, which have seeds of their own, are left out."""
    monkeypatch.setattr(import_module(script), "evaluate", lambda agent, args, episodes, *_, **__: np.zeros(episodes))
    flags = small(script, 2, "--checkpoint-every", SCRIPTS[script].period, env_id="probes:Spy-v0")

    def seeds(*more):
        spy.seeds.clear()
        train(script, *flags, *more)
        return list(spy.seeds)

    one = seeds()
    assert len(one) == len(set(one)) == 4, "two environments, or two segments, have the same seed"
    assert seeds() == one
    assert not set(seeds("--seed", 2)) & set(one)


@EACH_SCRIPT
def test_async_environments_give_the_same_bits(script, folder):
    flags = small(script, 3, "--checkpoint-every", 2 * SCRIPTS[script].period)
    same, other = (train(script, *flags, *more)[1].folder for more in ((), ("--async-envs",)))
    assert checkpoint(other)["args"]["async_envs"]
    assert differences(state(same), state(other)) == []


@EACH_SCRIPT
def test_steps_are_environment_steps_over_all_environments(script, folder, monkeypatch):
    """The total is passed within one update; TensorBoard, checkpoint and last line all count what was stepped."""
    module, period = import_module(script), SCRIPTS[script].period
    counts = []

    make_envs = module.make_envs

    def counted(*args, **kwargs):
        """The first that is made is for training, and those after it for evaluation."""
        envs = make_envs(*args, **kwargs)
        step, index = envs.step, len(counts)
        counts.append(0)

        def count(actions):
            counts[index] += envs.num_envs
            return step(actions)

        envs.step = count
        return envs

    monkeypatch.setattr(module, "make_envs", counted)
    _, result = train(script, *small(script, 1), "--total-timesteps", 3 * period + 1)
    assert counts[0] == result.steps == checkpoint(result.folder)["step"] == 4 * period
    assert scalars(result.folder)["charts/eval_return"][0][0] == 4 * period


@EACH_SCRIPT
def test_evaluation_plays_one_whole_episode_each(script, folder):
    """Episodes end after 1 to 9 steps, by the seed; any but the first of an environment would pay 100 a step."""
    module, args = import_module(script), parse(script, "--env-id", "probes:FirstEpisodePays-v0")
    agent = module.Agent(module.make_envs(args, 1), args)
    returns = module.evaluate(agent, args, episodes=6, seed=40)
    assert returns.dtype == np.float64 and returns.shape == (6,)
    lengths = [int(np.random.Generator(np.random.PCG64(40 + i)).integers(1, 10)) for i in range(6)]
    assert returns.tolist() == lengths and len(set(lengths)) > 1


@EACH_SCRIPT
def test_evaluation_is_greedy_and_leaves_the_generators_alone(script, spy):
    module, args = import_module(script), parse(script, "--env-id", "probes:Spy-v0")
    torch.manual_seed(0)
    agent = module.Agent(module.make_envs(args, 1), args)
    before = torch.get_rng_state()
    module.evaluate(agent, args, 1, 0)
    first, spy.actions[:] = list(spy.actions), []
    module.evaluate(agent, args, 1, 0)
    assert np.array_equal(first, spy.actions)
    assert torch.equal(torch.get_rng_state(), before)


@EACH_SCRIPT
def test_log(script, folder):
    """The tags that other programs know, on the axis of environment steps; CartPole pays 1 a step."""
    row = SCRIPTS[script]
    flags = small(script, 10, "--checkpoint-every", 8 * row.period, env_id=row.env_ids[0])
    _, result = train(script, *flags)
    log = scalars(result.folder)
    charts = ["episodic_return", "episodic_length", "SPS", "learning_rate", "eval_return"]
    missing = {*(f"charts/{tag}" for tag in charts), *(f"losses/{tag}" for tag in row.losses)} - log.keys()
    assert not missing
    assert all(np.isfinite(value) for points in log.values() for _, value in points)
    assert [step for step, _ in log[f"losses/{row.losses[0]}"]] == [row.period * k for k in range(1, 11)]
    assert [step for step, _ in log["charts/eval_return"]] == [row.period * k for k in (8, 10)]
    assert log["charts/eval_return"][-1][1] == pytest.approx(result.mean, abs=0.01)
    assert log["charts/SPS"][-1][1] == pytest.approx(result.speed, rel=0.2)
    if "CartPole" in row.env_ids[0]:
        assert log["charts/episodic_return"] == log["charts/episodic_length"]
        assert 7 <= log["charts/episodic_return"][-1][1] < 60  # near a random policy's 22, or the time limit


@EACH_SCRIPT
def test_flags_are_in_the_log(script, folder):
    _, result = train(script, *small(script, 1, "--gamma", 0.875))
    events = b"".join(path.read_bytes() for path in result.folder.glob("events.*"))
    for field in fields(import_module(script).Args):
        assert field.name.encode() in events
    assert b"0.875" in events


@EACH_FAMILY
def test_a_resumed_run_goes_on_in_its_log(script, folder):
    """Also from a checkpoint that is older than the end of the log, as a crash leaves it."""
    row = SCRIPTS[script]
    _, result = train(script, *small(script, 2))
    path = result.folder / "checkpoint.pt"
    older = path.read_bytes()
    for total in (3, 4):
        time.sleep(1)  # TensorBoard reads its files in the order of the seconds in their names
        path.write_bytes(older)
        train(script, "--resume", result.folder, "--total-timesteps", total * row.period)
    steps = [step for step, _ in scalars(result.folder)[f"losses/{row.losses[0]}"]]
    assert steps == [row.period * k for k in (1, 2, 3, 4)]


@EACH_FAMILY
def test_the_bar_shows_steps_and_return(script, folder, monkeypatch):
    module, bars, shown = import_module(script), [], []

    class Bar(module.tqdm):
        def set_postfix_str(self, text, refresh):
            shown.append(text)

    monkeypatch.setattr(module, "tqdm", lambda **kwargs: bars.append(Bar(**kwargs)) or bars[-1])
    _, result = train(script, *small(script, 20, env_id="probes:Pendulum7-v0"))
    (bar,) = bars
    assert bar.n == bar.total == result.steps
    assert (shown[0] == "no episode has ended") == (script == "td3")  # whose first update comes after one step
    assert shown[-1] == f"return {scalars(result.folder)['charts/episodic_return'][-1][1]:.1f}"


@EACH_SCRIPT
def test_the_return_that_is_shown_is_of_twenty_episodes(script):
    envs = import_module(script).make_envs(parse(script, "--env-id", "probes:Spy-v0"), 1)
    assert envs.return_queue.maxlen == envs.length_queue.maxlen == 20


@EACH_SCRIPT
def test_video_shows_an_episode(script, folder):
    """As many frames as the episode has observations, and they show something that moves."""
    film = SCRIPTS[script].film
    _, result = train(script, *small(script, 1, "--capture-video", "--eval-episodes", 1, env_id=film))
    (path,) = (result.folder / "video").glob("*.mp4")
    with VideoFileClip(str(path)) as clip:
        frames = list(clip.iter_frames())
    cartpole = film == "CartPole-v1"
    assert frames[0].shape == ((400, 600, 3) if cartpole else (500, 500, 3))
    assert len(frames) == pytest.approx(result.mean + 1 if cartpole else 8, abs=2)
    assert frames[0].std() > 5
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50


@EACH_SCRIPT
def test_video_of_an_evaluation(script, folder):
    _, trained = train(script, *small(script, 1, env_id=SCRIPTS[script].film))
    assert not list(trained.folder.rglob("*.mp4"))
    train(script, "--evaluate", trained.folder, "--capture-video")
    assert len(list(trained.folder.rglob("*.mp4"))) == 1


@EACH_SCRIPT
def test_help_explains_every_flag(script, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(script, "--help")
    assert not stop.value.code
    shown = re.sub(r"[\s│]+", "", capsys.readouterr().out)
    source = (ROOT / f"{script}.py").read_text()
    for field in fields(import_module(script).Args):
        phrase = re.search(rf"^    {field.name}: .*  # (.+)$", source, re.M)
        assert phrase, f"{field.name} has no phrase"
        flag = f"--{field.name.replace('_', '-')}"
        assert flag in shown
        assert re.sub(r"\s+", "", phrase[1]) in shown, f"{flag} is not explained"


@EACH_SCRIPT
def test_every_flag_is_used(script):
    source = (ROOT / f"{script}.py").read_text()
    unused = [
        f.name for f in fields(import_module(script).Args) if not re.search(rf"\b(args|self)\.{f.name}\b", source)
    ]
    assert not unused


def test_an_epoch_of_ppo_is_the_rollout_in_minibatches_of_another_order(folder, monkeypatch):
    """Three epochs of two minibatches: each has every advantage once, and an order of its own."""
    module, minibatches = import_module("ppo"), []
    update = module.update

    def note(agent, optimizer, batch, args):
        minibatches.append(batch[4].tolist())
        return update(agent, optimizer, batch, args)

    monkeypatch.setattr(module, "update", note)
    train("ppo", *small("ppo", 1, "--update-epochs", 3))
    epochs = [first + second for first, second in zip(minibatches[::2], minibatches[1::2], strict=True)]
    assert len(epochs) == 3 and len(set(epochs[0])) == 32
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_target_kl_ends_the_epochs_of_ppo(folder, monkeypatch):
    """Three rollouts of 5 epochs of 2 minibatches; when any divergence is too much, one epoch each."""
    module, calls = import_module("ppo"), []
    update = module.update
    monkeypatch.setattr(module, "update", lambda *args: calls.append(args) or update(*args))

    def updates(*flags):
        calls.clear()
        train("ppo", *small("ppo", 3, "--update-epochs", 5, "--learning-rate", 0.01, *flags))
        return len(calls)

    assert updates() == updates("--target-kl", 1e9) == 3 * 5 * 2
    assert updates("--target-kl", 1e-9) == 3 * 1 * 2


def test_the_divergence_that_is_logged_is_not_the_ranks_sum(folder, monkeypatch):
    """They stop together by the sum, which `all_sum` makes in place; here as of two ranks with the same rollout."""

    def logged():
        return scalars(train("ppo", *small("ppo", 2, "--target-kl", 1e9))[1].folder)["losses/approx_kl"]

    expected = logged()
    monkeypatch.setattr(import_module("ppo"), "all_sum", lambda tensor: tensor.mul_(2))
    assert logged() == expected


@pytest.mark.parametrize("script", [script for script in SCRIPTS if hasattr(parse(script), "anneal_lr")])
def test_anneal_lr(script, folder):
    flags = small(script, 4, "--learning-rate", 0.004)
    rates = {}
    for flag in ("--anneal-lr", "--no-anneal-lr"):
        _, result = train(script, *flags, flag)
        rates[flag] = [value for _, value in scalars(result.folder)["charts/learning_rate"]]
        assert checkpoint(result.folder)["optimizer"]["param_groups"][0]["lr"] == pytest.approx(rates[flag][-1])
        assert checkpoint(result.folder)["optimizer"]["param_groups"][0]["eps"] == 1e-4  # README says why
    assert rates["--anneal-lr"] == pytest.approx([0.004, 0.003, 0.002, 0.001])
    assert rates["--no-anneal-lr"] == pytest.approx([0.004] * 4)


# Flags of the algorithm: what all scripts of a family have, and each one's own.
ON_POLICY = ["--gamma 0.5", "--norm-obs", "--norm-reward", "--initial-std 0.5", "--no-anneal-lr"]
A2C = [*ON_POLICY, "--gae-lambda 0.5", "--ent-coef 0.1", "--vf-coef 0.1", "--max-grad-norm 0.01"]
REPLAY = ["--gamma 0.5", "--tau 0.5", "--buffer-size 3", "--batch-size 4", "--learning-starts 5", "--utd 2"]
DDPG = [*REPLAY, "--learning-rate 0.01", "--exploration-noise 0.5"]
SAC = [
    "--exploration-noise 0.5",
    "--policy-lr 0.01",
    "--q-lr 0.01",
    "--policy-frequency 2",
    "--alpha 0.5",
    "--no-autotune",
]
CHANGES = {
    "reinforce": [*ON_POLICY, "--no-norm-returns"],
    "reinforce_baseline": [*ON_POLICY, "--no-norm-adv"],
    "a2c": [*A2C, "--norm-adv"],
    "ppo": [*A2C, "--no-norm-adv", "--clip-vloss --clip-coef 0.01", "--update-epochs 3", "--num-minibatches 1"],
    "ddpg": [*DDPG, "--ou-noise"],
    "td3": [*DDPG, "--policy-noise 1", "--noise-clip 0.01", "--policy-frequency 1"],
    "sac": [*REPLAY, *SAC],
}


@EACH_SCRIPT
def test_flags_change_what_they_should(script, folder):
    """Against the same run without them: the algorithm's flags change the weights, those of running do not."""

    def weights(flags):
        _, result = train(script, *small(script, 4, "--num-threads", 1, env_id="probes:Spy-v0"), *flags.split())
        return {name: x for name, x in state(result.folder)["agent"].items() if not name.startswith("norm_")}

    base = weights("")
    for flags in CHANGES[script]:
        assert differences(base, weights(flags)), f"{flags} changes nothing"
    for flags in ("--eval-episodes 3", "--num-threads 2", "--device cpu"):
        assert differences(base, weights(flags)) == [], f"{flags} changes what is learnt"


@EACH_SCRIPT
def test_copied_alone_with_its_metadata(script):
    """The inline metadata names what the file imports, so that a copy runs without this repository."""
    source = (ROOT / f"{script}.py").read_text()
    block = re.match(r"# /// script\n((?:# .*\n)+?)# ///\n", source)[1]
    least = re.search(r'requires-python = ">=(.*)"', block)[1]  # hashlib.file_digest came with 3.11
    assert f"Python {least} or newer" in (ROOT / "README.md").read_text()
    dependencies = set(re.findall(r'"([a-z]+)[^"]*"', block.split("dependencies")[1]))
    imports = set(re.findall(r"^(?:from|import) (\w+)", source, re.M)) - sys.stdlib_module_names
    assert imports - dependencies <= {"numpy"}  # which gymnasium brings


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch compiles by a C++ compiler")
@pytest.mark.parametrize(
    ("script", "flags"),
    [("ppo", ("--clip-vloss", "--ent-coef", 0.01, "--norm-obs", "--norm-reward")), ("sac", ())],
)
def test_compiled_is_eager_to_rounding(script, flags, folder):
    """Long, as compiling takes its time. Several updates, with every branch of the loss."""
    compiled_functions = import_module(script).compiled
    compiled_functions.cache_clear()
    every = (*small(script, 4 if script in OFF_POLICY else 2), *flags)
    eager, compiled = (state(train(script, *every, *more)[1].folder)["agent"] for more in ((), ("--compile",)))
    assert compiled_functions.cache_info().currsize == 1
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-5)
