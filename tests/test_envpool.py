"""benchmarks/envpool_env.py: EnvPool's environments end, reset and move as gymnasium's own do."""

import os
import time
from collections import namedtuple
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from harness import OFF_POLICY, SCRIPTS, differences, end, last_line, parse, run, run_ok, state, train

pytest.importorskip("envpool")
pytestmark = pytest.mark.filterwarnings("ignore:.*(precision lowered|out of date)")

# T steps of N environments: obs (T + 1, N, ...), all others (T, N, ...); resets: this step only reset the environment.
Rollout = namedtuple("Rollout", "obs action reward terminated truncated done resets length")
IDS = ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5")
LIMITS = {"CartPole-v1": 500, "Pendulum-v1": 200, "HalfCheetah-v5": 1000}
FIRST = {
    "CartPole-v1": lambda obs: (np.abs(obs) <= 0.05).all(-1),
    "Pendulum-v1": lambda obs: np.abs(obs[..., 2]) <= 1,
    "HalfCheetah-v5": lambda obs: (np.abs(obs[..., :8]) <= 0.1).all(-1) & (np.abs(obs[..., 8:]) < 0.6).all(-1),
}


def make(name, num_envs=4, **kwargs):
    return gym.make_vec(f"benchmarks.envpool_env:EnvPool/{name}", num_envs, **kwargs)


def rollout(envs, steps, seed=1, actions=None):
    """Play these actions, or random ones, and look at all that came back only when all is over."""
    envs.action_space.seed(seed)
    obs, rows = [envs.reset(seed=seed)[0]], []
    for t in range(steps):
        action = envs.action_space.sample() if actions is None else actions[t]
        *row, info = envs.step(action)
        assert info == {}
        obs.append(row.pop(0))
        rows.append((action, *row))
    action, reward, terminated, truncated = (np.stack(column) for column in zip(*rows, strict=True))
    done = terminated | truncated
    resets = np.concatenate([np.zeros_like(done[:1]), done[:-1]])
    length = np.zeros(done.shape, int)
    for t in range(steps):
        length[t] = np.where(resets[t], 0, (length[t - 1] if t else 0) + 1)
    return Rollout(np.stack(obs), action, reward, terminated, truncated, done, resets, length)


def fallen(obs):
    return (np.abs(obs[..., 0]) > 2.4) | (np.abs(obs[..., 2]) > 12 * 2 * np.pi / 360)


@pytest.mark.parametrize("name", IDS)
def test_an_episode_ends_and_the_next_step_only_resets(name):
    limit = LIMITS[name]
    envs = make(name)
    r = rollout(envs, 2 * limit + 20)
    assert r.resets.sum(0).min() >= 2
    assert not r.done[r.resets].any() and (r.reward[r.resets] == 0).all()
    assert FIRST[name](r.obs[1:][r.resets]).all() and FIRST[name](r.obs[0]).all()
    assert not FIRST[name](r.obs[1:][r.done]).all(), "an episode's last observation is one of the next episode"
    assert (r.truncated == ((r.length == limit) & ~r.terminated)).all() and r.length.max() <= limit
    if name == "CartPole-v1":
        assert (r.terminated == fallen(r.obs[1:])).all() and r.terminated.sum() > 20
    else:
        assert not r.terminated.any() and r.truncated.sum() == 2 * envs.num_envs


@pytest.mark.parametrize("name", IDS)
def test_the_action_of_a_reset_is_ignored(name):
    envs = make(name, max_episode_steps=7)
    r = rollout(envs, 60)
    at_resets = r.resets.reshape(*r.resets.shape, *[1] * (r.action.ndim - 2))
    actions = np.where(at_resets, np.roll(r.action, 1, axis=1), r.action)
    assert (actions != r.action).any() and r.resets.sum() >= 4 * 7
    other = rollout(envs, 60, 1, actions)
    for name in ("obs", "reward", "terminated", "truncated"):
        assert np.array_equal(getattr(r, name), getattr(other, name)), name


@pytest.mark.parametrize("name", IDS)
def test_the_observation_at_a_time_limit_is_the_true_successor(name):
    """The one that the same actions lead to where there is no limit yet; and nothing terminates there."""
    short, long = rollout(make(name, max_episode_steps=5), 5), rollout(make(name, max_episode_steps=50), 5)
    assert short.truncated[-1].all() and not long.done.any()
    assert np.array_equal(short.obs, long.obs) and np.array_equal(short.reward, long.reward)


def test_at_a_time_limit_termination_wins():
    """A pole that is pushed to one side falls at step 8 to 11; at step 9 of 9 EnvPool itself calls that truncated."""
    actions = np.ones((11, 64), int)
    free = rollout(make("CartPole-v1", 64), 11, 1, actions)
    falls = free.terminated.argmax(0)
    assert (falls < 8).any() and (falls == 8).any() and (falls > 8).any()
    r = rollout(make("CartPole-v1", 64, max_episode_steps=9), 9, 1, actions)
    assert np.array_equal(r.terminated, free.terminated[:9])
    assert np.array_equal(r.truncated[8], falls > 8) and not r.truncated[:8].any()


CLASSIC = {  # what gymnasium's own environment has for a state, by the observation
    "CartPole-v1": lambda obs: obs,
    "Acrobot-v1": lambda obs: np.array([np.arctan2(obs[1], obs[0]), np.arctan2(obs[3], obs[2]), obs[4], obs[5]]),
    "MountainCar-v0": lambda obs: obs,
    "MountainCarContinuous-v0": lambda obs: obs,
    "Pendulum-v1": lambda obs: np.array([np.arctan2(obs[1], obs[0]), obs[2]]),
}


@pytest.mark.parametrize("name", CLASSIC)
def test_every_step_of_classic_control_is_gymnasiums(name):
    """Put gymnasium's environment where this one was, and one step leads both to the same place, at limits too."""
    env = gym.make(name).unwrapped
    for limit in (12, None):
        envs = make(name, **({"max_episode_steps": limit} if limit else {}))
        r = rollout(envs, 150)
        for t, i in np.argwhere(~r.resets):
            env.reset()
            env.state = CLASSIC[name](r.obs[t, i].astype(np.float64))
            obs, reward, terminated, _, _ = env.step(r.action[t, i])
            if name == "Pendulum-v1" and abs(obs[2]) == 8:
                continue
            assert np.allclose(obs, r.obs[t + 1, i], rtol=1e-4, atol=1e-5)
            assert reward == pytest.approx(r.reward[t, i], rel=1e-4, abs=1e-5)
            assert terminated == r.terminated[t, i]


def test_a_pendulum_of_full_speed_is_not_gymnasiums():
    """EnvPool turns it by the speed from before the cut to 8: what the README says of it is true still."""
    envs, env = make("Pendulum-v1"), gym.make("Pendulum-v1").unwrapped
    obs, cut = envs.reset(seed=1)[0], 0
    for _ in range(199):
        state = [CLASSIC["Pendulum-v1"](x) for x in obs.astype(np.float64)]
        action = np.where(obs[:, 2:] < 0, np.float32(-2), np.float32(2))  # along with its motion
        obs = envs.step(action)[0]
        for i, (angle, speed) in enumerate(state):
            uncut = speed + (15 * np.sin(angle) + 3 * action[i, 0]) * 0.05
            assert np.allclose(obs[i, :2], [np.cos(angle + uncut * 0.05), np.sin(angle + uncut * 0.05)], atol=1e-5)
            env.reset()
            env.state = np.array([angle, speed])
            theirs = env.step(action[i])[0]
            assert theirs[2] == pytest.approx(obs[i, 2], abs=1e-5)
            if abs(uncut) > 8.1:
                cut += 1
                assert np.abs(theirs[:2] - obs[i, :2]).max() > 1e-3
    assert cut > 20


MUJOCO = {"HalfCheetah-v5": 1, "Hopper-v5": 1, "Walker2d-v5": 1, "Swimmer-v5": 2, "InvertedPendulum-v5": 0}


@pytest.mark.parametrize("name", MUJOCO)
def test_the_first_steps_in_mujoco_are_gymnasiums(name):
    """From the same positions and speeds (where it stands matters to none of them) the same actions lead as far.

    Only the first: the two may be of different versions of MuJoCo, and a contact magnifies what rounding left between
    them. Over 30 seeds it was at most 3e-5 of an observation within 8 steps, and 1e-2 within 20, in HalfCheetah.
    """
    mujoco = pytest.importorskip("mujoco")
    env = gym.make(name)
    model, data = env.unwrapped.model, env.unwrapped.data
    r, compared = rollout(make(name, 16), 8), 0
    for i in range(16):
        env.reset()
        mujoco.mj_resetData(model, data)
        state = np.concatenate([np.zeros(MUJOCO[name]), r.obs[0, i]])
        env.unwrapped.set_state(state[: model.nq], state[model.nq : model.nq + model.nv])
        for t in range(8):
            obs, reward, terminated, _, _ = env.step(r.action[t, i])
            assert np.allclose(obs, r.obs[t + 1, i], rtol=1e-3, atol=1e-3)
            assert reward == pytest.approx(r.reward[t, i], rel=1e-3, abs=1e-3)
            assert terminated == r.terminated[t, i]
            compared += 1
            if terminated:
                break
    assert compared >= 32


@pytest.mark.parametrize("name", IDS)
def test_seeds(name):
    envs = make(name, max_episode_steps=6)
    one, same, other = rollout(envs, 40), rollout(envs, 40), rollout(envs, 40, seed=2)
    again = rollout(make(name, max_episode_steps=6), 40)
    for x, y, z in zip(one, same, again, strict=True):
        assert np.array_equal(x, y) and np.array_equal(x, z)
    starts = np.concatenate([one.obs[0], one.obs[1:][one.resets], other.obs[0], other.obs[1:][other.resets]])
    assert len(np.unique(starts, axis=0)) == len(starts), "two episodes begin the same"
    states = [envs.reset(seed=seed)[0] for seed in (0, 2**31, 2**32, 2**32 + 1, 2**62)]
    states += [envs.reset()[0], envs.reset()[0], make(name).reset()[0], make(name).reset()[0]]
    assert len(np.unique(np.concatenate(states), axis=0)) == len(states) * envs.num_envs


def ids():
    import_module("benchmarks.envpool_env")
    return [name for name in gym.registry if name.startswith("EnvPool/")]


def test_every_id_has_spaces_that_scripts_take_and_keeps_to_them():
    """All of the four families, and those that gymnasium has too, with its actions, sizes and time limits."""
    known, compared = ids(), 0
    expected = (
        "CartPole-v1",
        "Acrobot-v1",
        "LunarLander-v3",
        "BipedalWalker-v3",
        "FrozenLake-v1",
        "Humanoid-v5",
        "Ant-v5",
    )
    assert {f"EnvPool/{name}" for name in (*IDS, *expected)} <= set(known) and len(known) > 50
    for name in known:
        script = import_module("ppo")
        args = parse("ppo", "--env-id", f"benchmarks.envpool_env:{name}")
        envs = script.make_envs(args, 2)
        inner = envs.unwrapped
        assert inner.num_envs == 2 and inner.metadata["autoreset_mode"] is gym.vector.AutoresetMode.NEXT_STEP
        obs = [envs.reset(seed=1)[0], envs.step(envs.action_space.sample())[0]]
        assert np.isfinite(obs).all() and np.ndim(obs) == 3
        raw = [inner.reset(seed=1)[0], inner.step(inner.action_space.sample())[0]]
        assert all(x in inner.observation_space for x in raw)
        assert not (inner.observation_space.dtype == np.float64 or inner.action_space.dtype == np.float64)
        if isinstance(inner.single_action_space, gym.spaces.Box):
            assert inner.single_action_space.is_bounded()
        try:
            own = gym.make(name.removeprefix("EnvPool/"))
        except (gym.error.Error, ImportError):
            continue  # one that gymnasium does not have, or has not installed
        compared += 1
        assert inner.single_action_space == own.action_space
        assert inner.spec.max_episode_steps == own.spec.max_episode_steps
        if not isinstance(own.observation_space, gym.spaces.Tuple):
            assert inner.single_observation_space.shape == own.observation_space.shape
    assert compared >= 10


def test_what_it_cannot_do_is_refused_in_a_line(folder):
    with pytest.raises(gym.error.Error, match="render"):
        make("CartPole-v1", render_mode="rgb_array")
    flags = ("--env-id", "benchmarks.envpool_env:EnvPool/CartPole-v1", *SCRIPTS["ppo"].short)
    for flag, word in (("--capture-video", "render"), ("--async-envs", "entry point")):
        status, stdout, stderr = end("ppo", *flags, flag)
        assert (status, stdout, stderr.count("\n")) == (2, "", 1) and word in stderr
    status, _, stderr = end("ppo", *flags, "--env-id", "benchmarks.envpool_env:EnvPool/CartPole-v7")
    assert status == 2 and "EnvPool/CartPole" in stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
def test_threads_end_with_their_pool():
    """Evaluations make environments again and again, and each reset with a seed makes a pool."""

    before = set(os.listdir("/proc/self/task"))

    def new(expected):
        """How many threads are new, as soon as they are as many as expected: one that ended is listed a moment more."""
        deadline = time.monotonic() + 5
        while (count := len(set(os.listdir("/proc/self/task")) - before)) != expected and time.monotonic() < deadline:
            time.sleep(0.01)
        return count

    envs = make("CartPole-v1")
    envs.reset(seed=1)
    pool = len(set(os.listdir("/proc/self/task")) - before)
    assert pool > 0
    envs.reset(seed=2)
    assert new(pool) == pool
    envs.close()
    assert new(0) == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_trains_and_evaluates(script, folder):
    name = "Pendulum-v1" if script in OFF_POLICY else "CartPole-v1"
    flags = ("--env-id", f"benchmarks.envpool_env:EnvPool/{name}", *SCRIPTS[script].short)
    _, trained = train(script, *flags, "--total-timesteps", 500)
    assert trained.folder.name.startswith(f"benchmarks.envpool_env-EnvPool-{name}__{script}__1__")
    low, high = (-200 * 16.3, -1) if script in OFF_POLICY else (7, 500)
    assert low <= trained.mean <= high and trained.episodes == 2
    _, result = train(script, "--evaluate", trained.folder)
    assert (result.mean, result.deviation) == (trained.mean, trained.deviation)


RESUMED = [("ppo", "CartPole-v1", 320, "--no-anneal-lr"), ("sac", "HalfCheetah-v5", 200, "")]


@pytest.mark.parametrize(("script", "name", "segment", "more"), RESUMED)
def test_a_run_in_two_parts_ends_with_the_bits_of_one_in_one(script, name, segment, more, folder):
    """By the command line, from another folder than the repository's: a script's own folder is on Python's path."""
    flags = ("--env-id", f"benchmarks.envpool_env:EnvPool/{name}", *SCRIPTS[script].short, *more.split())
    flags = (*flags, "--checkpoint-every", segment)
    status, stdout, stderr = run(script, *flags, "--total-timesteps", 2 * segment, cwd=folder)
    assert status == 0 and "warn" not in stderr.lower(), stderr
    whole = last_line(stdout)
    half = run_ok(script, *flags, "--total-timesteps", segment, cwd=folder)
    rest = run_ok(script, "--resume", half.folder, "--total-timesteps", 2 * segment, cwd=folder)
    assert (whole.steps, whole.mean, whole.deviation) == (rest.steps, rest.mean, rest.deviation)
    assert differences(state(folder / whole.folder), state(folder / rest.folder)) == []
