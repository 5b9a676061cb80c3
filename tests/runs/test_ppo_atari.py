"""Runs of ppo_atari.py: lives, rewards and scores of games, films, and other environments of images."""

import functools
import os
import re
import signal
from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest
import torch
from harness import TORCHRUN, checkpoint, differences, end, parse, run_ok, scalars, state, train
from moviepy import VideoFileClip
from stops import stop

import ppo_atari

SMALL = ("--num-envs", 2, "--num-steps", 32, "--num-minibatches", 2, "--update-epochs", 1, "--eval-episodes", 2)
CATCH = ("--env-id", "games:Catch-v0", *SMALL)
PACMAN = "ale_py:ALE/MsPacman-v5"  # three lives, rewards of 10 and more


def play(training):
    """Random play of two games -> rewards, ends and lives, each (1000, 2)."""
    args = parse("ppo_atari", "--env-id", PACMAN, *SMALL)
    with closing(ppo_atari.make_envs(args, 2, training=training)) as envs:
        envs.reset(seed=1)
        envs.action_space.seed(1)
        seen = []
        for _ in range(1000):
            _, reward, terminated, _, info = envs.step(envs.action_space.sample())
            seen.append((reward, terminated, info["lives"]))
    return map(np.array, zip(*seen, strict=True))


def test_training_clips_rewards_and_ends_episodes_with_a_life():
    reward, terminated, lives = play(training=True)
    assert set(np.unique(reward)) == {0, 1}
    lost = lives[1:] < lives[:-1]
    assert lost.any()
    assert (terminated[1:][lost]).all()
    # The game goes on: after the first life is lost there are two, and later one.
    for game in lives.T:
        assert [n for n, before in zip(game[1:], game, strict=False) if n < before][:2] == [2, 1]


def test_evaluation_plays_whole_games_for_their_own_rewards():
    reward, terminated, lives = play(training=False)
    assert set(np.unique(reward)) >= {0, 10}
    lost = lives[1:] < lives[:-1]
    assert (terminated[1:][lost] == (lives[1:][lost] == 0)).all()
    assert lost.sum() > terminated.sum() > 0


def test_evaluation_is_the_score_of_the_game():
    """The same policy in ale-py's environment, without anything of ours."""
    torch.manual_seed(3)
    args = parse("ppo_atari", "--env-id", PACMAN, "--seed", 5)
    with closing(ppo_atari.make_envs(args, 1)) as envs:
        agent = ppo_atari.Agent(envs, args)
    scores = ppo_atari.evaluate(agent, args, 2)
    torch.manual_seed(5)
    game = dict(repeat_action_probability=0.0, reward_clipping=False)
    with closing(gym.make_vec(PACMAN, 2, None, **game)) as envs:
        obs, _ = envs.reset(seed=5)
        expected, done = np.zeros(2), np.zeros(2, bool)
        while not done.all():
            action = agent.act(torch.as_tensor(obs.reshape(2, -1))).numpy()
            obs, reward, terminated, truncated, _ = envs.step(action)
            expected += np.where(done, 0, reward)
            done |= terminated | truncated
    assert scores.tolist() == expected.tolist()
    assert (scores > 0).all()


def test_evaluation_again_samples_the_same_actions(folder):
    _, result = train("ppo_atari", *CATCH, "--total-timesteps", 128, "--eval-episodes", 20)
    again, other = (train("ppo_atari", "--evaluate", result.folder, *flags)[1] for flags in ((), ("--seed", 2)))
    assert (again.mean, again.deviation) == (result.mean, result.deviation)
    assert again.mean != other.mean


def test_untrained_policy_ends_its_games():
    """The most likely action alone might never fire a new ball in Breakout."""
    args = parse("ppo_atari", "--env-id", "ale_py:ALE/Breakout-v5")
    with closing(ppo_atari.make_envs(args, 1)) as envs:
        agent = ppo_atari.Agent(envs, args)
        steps, act = [], agent.act
    agent.act = lambda obs, greedy: steps.append(1) or act(obs, greedy)
    ppo_atari.evaluate(agent, args, 4)
    assert len(steps) < 2000


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), (0, True, True, 1)),
        (("--num-threads", 2), (0, True, True, 2)),
        (("--env-kwargs", '{"repeat_action_probability": 0.25}'), (0.25, True, True, 1)),
        (("--env-kwargs", '{"reward_clipping": false, "life_loss_info": false}'), (0, False, False, 1)),
        (("--env-kwargs", '{"num_threads": 3}'), (0, True, True, 3)),
    ],
)
def test_env_kwargs_override_each_option_of_the_game(flags, expected):
    names = ("repeat_action_probability", "reward_clipping", "life_loss_info", "num_threads")
    with closing(ppo_atari.make_envs(parse("ppo_atari", *flags), 2)) as envs:
        assert tuple(envs.unwrapped.spec.kwargs[name] for name in names) == expected


@pytest.mark.parametrize("env_id", [PACMAN, "ale_py:ALE/SpaceInvaders-v5"])
def test_filmed_game_is_the_game_that_is_evaluated(env_id, monkeypatch):
    """gymnasium's wrappers, which can film, and ale-py's vector environment: the same images, the same score."""
    first_frame = functools.partial(gym.wrappers.AtariPreprocessing, noop_max=0)
    monkeypatch.setattr(gym.wrappers, "AtariPreprocessing", first_frame)
    args = parse("ppo_atari", "--env-id", env_id)
    with closing(ppo_atari.make_envs(args, 1, training=False, render_mode="rgb_array")) as envs:
        envs.reset(seed=1)
        envs.action_space.seed(1)
        actions, filmed, score, done = [], [], 0, False
        while not done:
            actions.append(envs.action_space.sample())
            obs, reward, terminated, truncated, _ = envs.step(actions[-1])
            filmed.append(obs[0])
            score += reward[0]
            done = terminated[0] or truncated[0]
            assert envs.render()[0].shape == (210, 160, 3)
    given = '{"noop_max": 0, "use_fire_reset": false}'
    args = parse("ppo_atari", "--env-id", env_id, "--env-kwargs", given)
    with closing(ppo_atari.make_envs(args, 1, training=False)) as envs:
        envs.reset(seed=2)
        steps = [envs.step(action) for action in actions]
    assert score == sum(step[1][0] for step in steps) > 0
    assert steps[-1][2][0] or steps[-1][3][0]
    for image, step in list(zip(filmed, steps, strict=True))[3:]:  # the first stacks are filled up in another way
        assert (image == step[0][0]).all()


def test_film_is_in_colour_at_the_size_of_the_game(folder):
    flags = ("--env-id", "ale_py:ALE/Pong-v5", *SMALL, "--total-timesteps", 128, "--eval-episodes", 0)
    _, result = train("ppo_atari", *flags, "--capture-video")
    (film,) = (result.folder / "video").glob("*.mp4")
    with VideoFileClip(str(film)) as clip:
        frames = list(clip.iter_frames())
    assert len(frames) > 700  # no policy loses a game of Pong sooner
    assert frames[0].shape == (210, 160, 3)
    assert np.ptp(frames[300].astype(int), axis=-1).max() > 50  # it is not grey


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--env-id", "ale_py:ALE/Pongo-v5"), "Environment `Pongo` doesn't exist in namespace ALE"),
        (("--env-id", "CartPole-v1"), "4 numbers, not an image"),
        (("--env-id", "Blackjack-v1"), "numbers, not an image"),
        (("--env-id", "games:Grey-v0"), "9216 numbers, not an image"),
        (("--env-id", "games:Floats-v0"), "192 numbers, not an image"),
        (("--env-id", "ale_py:PongNoFrameskip-v4"), "num_threads"),
        (("--env-kwargs", '{"frameskip": 0}'), "frameskip must be positive"),
    ],
)
def test_bad_environment_is_one_line(flags, words, folder):
    status, stdout, stderr = end("ppo_atari", *SMALL, *flags)
    assert (status, stdout) == (2, "")
    assert re.fullmatch(r"ppo_atari\.py: error: .*\n", stderr)
    assert words in stderr
    assert not (folder / "runs").exists()


def test_colour_images_and_continuous_actions(folder):
    """As CarRacing-v3 has them."""
    flags = ("--env-id", "games:Steer-v0", *SMALL, "--total-timesteps", 128)
    status, stdout, stderr = end("ppo_atari", *flags)
    assert status == 0, stderr
    assert "eval_return=" in stdout


BREAKOUT = ("--env-id", "ale_py:ALE/Breakout-v5", *SMALL)


@pytest.mark.parametrize("game", [CATCH, pytest.param(BREAKOUT, marks=pytest.mark.slow)])
def test_killed_run_resumes_to_the_same_bits(game, folder):
    flags = (*game, "--total-timesteps", 1536, "--checkpoint-every", 192)
    status, *_ = stop(signal.SIGKILL, "ppo_atari", *flags, cwd=folder, checkpoints=3)
    assert status == -signal.SIGKILL
    (killed,) = folder.glob("runs/*")
    _, resumed = train("ppo_atari", "--resume", killed.relative_to(folder))
    os.mkdir("never_stopped")
    os.chdir("never_stopped")
    _, whole = train("ppo_atari", *flags)
    assert differences(state(killed), state(whole.folder)) == []
    assert (resumed.mean, resumed.steps) == (whole.mean, whole.steps)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_game_of_some_thousand_steps(seed, folder):
    flags = ("--seed", seed, "--total-timesteps", 4096, "--checkpoint-every", 1024, "--eval-episodes", 1)
    _, result = train("ppo_atari", *flags)
    assert result.steps == 4096
    assert -21 <= result.mean <= 21
    log = scalars(result.folder)
    assert [step for step, _ in log["charts/eval_return"]] == [1024, 2048, 3072, 4096]
    assert checkpoint(result.folder)["step"] == 4096
    entropies = [value for _, value in log["losses/entropy"]]
    assert all(1.5 < value <= np.log(6) + 1e-6 for value in entropies)


@pytest.mark.slow
def test_two_processes_have_the_same_agent(tmp_path):
    run_ok("ppo_atari", *CATCH, "--total-timesteps", 512, cwd=tmp_path, launcher=TORCHRUN)
    (folder,) = tmp_path.glob("runs/*")
    first, second = (saved["agent"] for saved in checkpoint(folder)["state"])
    assert differences(first, second) == []
