"""What a script sees of an environment, and an environment of a script: spaces, actions, seeds, steps, evaluations."""

import json
from importlib import import_module

import gymnasium as gym
import numpy as np
import pytest
import torch
from harness import (
    BY_PROCESS,
    OFF_POLICY,
    SCRIPTS,
    checkpoint,
    differences,
    end,
    last_line,
    parse,
    scalars,
    state,
    train,
)
from probes import Spy

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
EACH_FAMILY = pytest.mark.parametrize("script", BY_PROCESS)
ON_POLICY = [script for script in SCRIPTS if script not in OFF_POLICY]


def small(script, updates, *flags, env_id=None):
    row = SCRIPTS[script]
    return ("--env-id", env_id or row.env_ids[-1], *row.short, "--total-timesteps", updates * row.period, *flags)


def make_envs(script, env_id, num_envs, *flags):
    return import_module(script).make_envs(parse(script, "--env-id", env_id, *flags), num_envs)


@pytest.fixture
def spy():
    """The environment that notes seeds and actions, with its notes empty."""
    Spy.seeds.clear()
    Spy.actions.clear()
    return Spy


@EACH_SCRIPT
@pytest.mark.parametrize(
    ("env_id", "size"),
    [("probes:DictObs-v0", 6), ("probes:DiscreteObs-v0", 2), ("probes:ImageObs-v0", 16), ("cases:Image-v0", 768)],
)
def test_observations_are_flattened(script, env_id, size):
    envs = make_envs(script, env_id, 2)
    assert envs.single_observation_space.shape == (size,)
    assert envs.reset(seed=0)[0].shape == (2, size)
    envs.close()


@EACH_SCRIPT
def test_bytes_are_scaled_to_one(script):
    """Half of the picture is lit: 255 becomes 1."""
    envs = make_envs(script, "cases:Image-v0", 2)
    obs, _ = envs.reset(seed=0)
    assert set(obs.flatten()) == {0, 1}
    assert obs.mean() == 0.5
    envs.close()


@EACH_FAMILY
def test_action_of_one_spans_the_bounds_of_each_dimension(script, spy):
    envs = make_envs(script, "probes:Spy-v0", 4)
    low, high = envs.single_action_space.low, envs.single_action_space.high
    assert (low == -1).all()
    assert (high == 1).all()
    envs.reset(seed=0)
    envs.step(np.array([[-1, -1, -1], [1, 1, 1], [0, 0.5, -0.5], [-7, 7, 0]], np.float32))
    assert np.allclose(spy.actions, [[-2, 0, 10], [2, 1, 30], [0, 0.75, 15], [-2, 1, 20]])


@EACH_FAMILY
def test_action_is_never_rounded_beyond_its_bounds(script, spy):
    envs = make_envs(script, "probes:ActsToTenths-v0", 1)
    envs.reset(seed=0)
    envs.step(np.ones((1, 3), np.float32))
    assert envs.unwrapped.single_action_space.contains(spy.actions[0])


@pytest.mark.parametrize("script", ["ppo"])
def test_half_bounded_box_is_clipped(script, spy):
    """The bounds are [0, inf), (-inf, inf) and (-inf, 5]: no size to rescale by."""
    envs = make_envs(script, "probes:ActsFromZero-v0", 2)
    envs.reset(seed=0)
    envs.step(np.array([[-1, -7, 7], [2, 7, -7]], np.float32))
    assert np.array_equal(spy.actions, [[0, -7, 5], [2, 7, -7]])


@EACH_FAMILY
@pytest.mark.parametrize("env_id", ["probes:Spy-v0", "probes:ActsFromZero-v0"])
def test_clipping_leaves_the_stored_action_alone(script, env_id, spy):
    """The log-probability is of the action that the policy drew."""
    envs = make_envs(script, env_id, 2)
    envs.reset(seed=0)
    action = np.array([[-7, 7, 7], [7, -7, -7]], np.float32)
    before = action.copy()
    envs.step(action)
    assert np.array_equal(action, before)


@EACH_SCRIPT
def test_environment_gets_actions_in_its_bounds_only(script, spy, folder):
    random = ("--learning-starts", 190) if script in OFF_POLICY else ()
    train(script, *small(script, 1 + 200 // SCRIPTS[script].period, *random, env_id="probes:Spy-v0"))
    actions = np.array(spy.actions)
    assert (actions >= [-2, 0, 10]).all()
    assert (actions <= [2, 1, 30]).all()
    spread = (actions.max(0) - actions.min(0)) / [4, 1, 20]
    assert (spread > 0.9).all(), "the actions do not span what the bounds allow"


@EACH_SCRIPT
def test_actions_may_be_a_matrix(script, folder):
    """The environment itself asserts the shape, also in the evaluation."""
    train(script, *small(script, 3, env_id="cases:Matrix-v0"))


@pytest.mark.parametrize("script", ON_POLICY)
def test_discrete_actions_without_bounds_train(script, folder):
    train(script, *small(script, 2, env_id="probes:ActsInDoubles-v0"))


@EACH_FAMILY
def test_statistics_of_the_environment_do_not_replace_those_of_the_run(script, folder):
    _, result = train(script, *small(script, 20, env_id="probes:OwnStatistics-v0"))
    assert scalars(result.folder)["charts/episodic_return"][-1][1] == 7


@EACH_FAMILY
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 2**31, 2**62])
def test_seeds_fit_31_bits(script, seed, folder):
    """At the start, after each checkpoint and in evaluations."""
    env_id = "cases:Seed32-v0" if script == "ppo" else "probes:Spy-v0"
    Spy.seeds.clear()
    train(script, *small(script, 3, "--checkpoint-every", SCRIPTS[script].period, "--seed", seed, env_id=env_id))
    assert all(0 <= seed < 2**31 - 1000 for seed in Spy.seeds)


@EACH_SCRIPT
def test_every_environment_and_segment_has_its_own_seed(script, spy, folder, monkeypatch):
    """Two environments and two segments; evaluations, which have other seeds, are left out."""
    flags = small(script, 2, "--checkpoint-every", SCRIPTS[script].period, "--eval-episodes", 0, env_id="probes:Spy-v0")

    def seeds(*more):
        spy.seeds.clear()
        train(script, *flags, *more)
        return list(spy.seeds)

    one = seeds()
    assert len(one) == len(set(one)) == 4
    assert seeds() == one
    assert not set(seeds("--seed", 2)) & set(one)


@EACH_FAMILY
def test_env_kwargs_reach_the_environment(script):
    """Without slipping, these moves cross the lake."""
    if script == "td3":
        envs = make_envs(script, "Pendulum-v1", 1, "--env-kwargs", json.dumps({"g": 3.5}))
        assert envs.unwrapped.envs[0].unwrapped.g == 3.5
        return
    envs = make_envs(script, "FrozenLake-v1", 1, "--env-kwargs", json.dumps({"is_slippery": False}))
    envs.reset(seed=1)
    rewards = [envs.step(np.array([action]))[1][0] for action in (1, 1, 2, 1, 2, 2)]
    assert rewards == [0, 0, 0, 0, 0, 1]


@EACH_FAMILY
def test_env_kwargs_reach_evaluation_and_loaded_agent(script, folder, monkeypatch):
    made = []
    make_vec = gym.make_vec
    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: made.append(kwargs) or make_vec(*args, **kwargs))
    _, result = train(script, *small(script, 1, "--env-kwargs", '{"g": 3.5}'))
    import_module(script).load(result.folder)
    assert [kwargs["g"] for kwargs in made] == [3.5] * 3


@EACH_FAMILY
def test_own_vector_environment_trains(script, folder):
    """An entry point for vectors, as EnvPool's environments have. An episode pays 1 a step and lasts as told."""
    flags = ("--env-kwargs", '{"length": 6}', "--eval-episodes", 3)
    _, result = train(script, *small(script, 20, *flags, env_id="cases:Paddles-v0"))
    assert (result.mean, result.deviation, result.episodes) == (6, 0, 3)
    assert scalars(result.folder)["charts/episodic_length"][-1][1] == 6


@pytest.mark.parametrize("script", ["a2c", "ppo", *OFF_POLICY])
def test_async_environments_give_the_same_bits(script, folder):
    flags = small(script, 3, "--checkpoint-every", 2 * SCRIPTS[script].period)
    same, other = (train(script, *flags, *more)[1].folder for more in ((), ("--async-envs",)))
    assert checkpoint(other)["args"]["async_envs"]
    assert differences(state(same), state(other)) == []


@EACH_SCRIPT
def test_steps_are_counted_over_all_environments(script, folder, monkeypatch):
    """The total is passed within one update. Log, checkpoint and last line count the same steps."""
    module, period = import_module(script), SCRIPTS[script].period
    counts, env_step = [], module.Run.env_step

    def counted(run, action):
        counts.append(run.envs.num_envs)
        return env_step(run, action)

    monkeypatch.setattr(module.Run, "env_step", counted)
    _, result = train(script, *small(script, 1), "--total-timesteps", 3 * period + 1)
    assert sum(counts) == result.steps == checkpoint(result.folder)["step"] == 4 * period
    assert scalars(result.folder)["charts/eval_return"][0][0] == 4 * period


@EACH_SCRIPT
def test_evaluation_plays_one_whole_episode_each(script):
    """Episodes end after 1 to 9 steps, by the seed. Later episodes of an environment would pay 100 a step."""
    module, args = import_module(script), parse(script, "--env-id", "probes:FirstEpisodePays-v0", "--seed", 40)
    agent = module.Agent(module.make_envs(args, 1), args)
    returns = module.evaluate(agent, args, 6)
    lengths = [int(np.random.Generator(np.random.PCG64(40 + i)).integers(1, 10)) for i in range(6)]
    assert returns.tolist() == lengths
    assert len(set(lengths)) > 1


@EACH_SCRIPT
def test_evaluation_is_greedy_and_leaves_the_generators_alone(script, spy):
    module, args = import_module(script), parse(script, "--env-id", "probes:Spy-v0")
    torch.manual_seed(0)
    agent = module.Agent(module.make_envs(args, 1), args)
    before = torch.get_rng_state()
    module.evaluate(agent, args, 1)
    first, spy.actions[:] = list(spy.actions), []
    module.evaluate(agent, args, 1)
    assert np.array_equal(first, spy.actions)
    assert torch.equal(torch.get_rng_state(), before)


@EACH_FAMILY
def test_endless_evaluation_is_cut_and_says_so(script, capsys):
    """Episodes of odd seeds never end; the other one ends after 3 steps."""
    module, args = import_module(script), parse(script, "--env-id", "cases:Forever-v0", "--seed", 2)
    agent = module.Agent(module.make_envs(args, 1), args)
    assert module.evaluate(agent, args, 2).tolist() == [3, 30_000]
    assert capsys.readouterr().err == f"{script}.py: 1 of 2 episodes were cut at 30000 steps\n"


@EACH_FAMILY
def test_evaluation_that_ends_says_nothing(script, folder):
    status, _, stderr = end(script, *small(script, 1))
    assert status == 0
    assert "cut" not in stderr


@EACH_FAMILY
def test_no_evaluation(script, folder, monkeypatch):
    """Not at checkpoints, not at the end; the last line keeps its form."""
    module = import_module(script)
    monkeypatch.setattr(module, "evaluate", None)
    flags = ("--eval-episodes", 0, "--checkpoint-every", SCRIPTS[script].period)
    status, stdout, stderr = end(script, *small(script, 3, *flags))
    assert status == 0, stderr
    result = last_line(stdout)
    assert np.isnan([result.mean, result.deviation]).all()
    assert (result.episodes, result.steps) == (0, 3 * SCRIPTS[script].period)


@EACH_FAMILY
def test_return_that_is_nan_ends_the_evaluation(script):
    module, args = import_module(script), parse(script, "--env-id", "probes:NanRewardSoon-v0")
    agent = module.Agent(module.make_envs(args, 1), args)
    assert np.isnan(module.evaluate(agent, args, 2)).all()


@pytest.mark.slow
def test_frozen_lake_without_slipping_is_solved(folder):
    """All returns are 1: the flag that makes the ice hold reaches training and evaluation."""
    flags = ("--env-id", "FrozenLake-v1", "--env-kwargs", '{"is_slippery": false}', "--ent-coef", 0.05)
    _, result = train("ppo", *flags, "--num-steps", 64)
    assert result.mean == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_sac_learns_from_bytes(seed, folder):
    """10 is best and 5 is chance. Bytes that are not scaled saturate the networks."""
    _, result = train("sac", "--env-id", "cases:Image-v0", "--total-timesteps", 1500, "--seed", seed)
    assert result.mean == 10
