"""benchmarks/studies.py: quantities by hand numbers, hooks, and sentences that follow their numbers."""

import csv
import math
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from harness import ROOT, environment, train

pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT / "benchmarks"))

import studies
import study_reports
import study_runs
from study_runs import STUDIES, bias_and_variance, discounted, n_step, simulate, states_of, thin, total_variance

import a2c
import reinforce_baseline
from benchmarks import gridworld

close = torch.testing.assert_close
FIGURES = ROOT / "benchmarks" / "figures"


def column(*numbers):
    return torch.tensor(numbers)[:, None]


def test_discounted_return():
    # 1 + 0.5 * 2 + 0.25 * 3 = 2.75; 4 + 0.25 * 8 = 6
    close(discounted(torch.tensor([[1.0, 4], [2, 0], [3, 8]]), 0.5), torch.tensor([2.75, 6]))


# gamma 0.5, rewards 1 2 3, values 4 8 2 6, n = 2; the last has but one step of the rollout left: 3 + 0.5 * 6 - 2 = 4.
# No end: 1 + 0.5 * 2 + 0.25 * 2 - 4 = -1.5 and 2 + 0.5 * 3 + 0.25 * 6 - 8 = -3.
# Terminated at step 1: 1 + 0.5 * 2 - 4 = -2 and 2 - 8 = -6. Truncated there: -1.5 and 2 + 0.5 * 2 - 8 = -5.
@pytest.mark.parametrize(
    ("terminated", "done", "expected"),
    [(0.0, 0.0, (-1.5, -3.0, 4.0)), (1.0, 1.0, (-2.0, -6.0, 4.0)), (0.0, 1.0, (-1.5, -5.0, 4.0))],
)
def test_n_step(terminated, done, expected):
    reward, value = column(1.0, 2, 3), column(4.0, 8, 2, 6)
    ends = column(0.0, terminated, 0), column(0.0, done, 0)
    close(n_step(reward, value, *ends, 0.5, 2), column(*expected))


def test_one_step_is_lambda_0_and_all_steps_are_lambda_1():
    torch.manual_seed(0)
    reward, value, done = torch.randn(20, 6), torch.randn(21, 6), (torch.rand(20, 6) < 0.2).float()
    terminated = done * (torch.rand(20, 6) < 0.5)
    for n, gae_lambda in ((1, 0), (20, 1), (50, 1)):
        expected = a2c.gae(reward, value, terminated, done, 0.9, gae_lambda)
        close(n_step(reward, value, terminated, done, 0.9, n), expected)


def test_bias_and_variance():
    # Differences 1, 3 (mean 2, variance 2) and 4, 2 (mean 3, variance 2): 4 - 2 / 2 and 9 - 2 / 2. Variances 2 and 0.
    estimate, truth = torch.tensor([[1.0, 3], [5, 5]]), torch.tensor([[0.0, 0], [1, 3]])
    assert bias_and_variance(estimate, truth) == (5.5, 1.0)


def test_unbiased_estimate_has_no_bias_on_average():
    """Without its correction, the square of four paths' mean would be a quarter of their variance, 9 + 1."""
    torch.manual_seed(0)
    squared_bias, variance = bias_and_variance(3 * torch.randn(20_000, 4), torch.randn(20_000, 4))
    assert abs(squared_bias) < 0.1
    assert abs(variance - 9) < 0.2


def test_total_variance():
    # 0 and 2 have variance 2, 0 and 4 have 8
    assert total_variance(torch.tensor([[0.0, 0], [2, 4]])) == 10


def test_divergence():
    # Of the fair coin from one of 1/4: (log 2 + log 2/3) / 2; of a state in which nothing changed: 0
    old, new = torch.tensor([[0.5, 0.5], [0.3, 0.7]]).log(), torch.tensor([[0.25, 0.75], [0.3, 0.7]]).log()
    assert study_runs.divergence(old, new) == pytest.approx((math.log(2) + math.log(2 / 3)) / 4)


def test_thin_keeps_the_means_of_the_parts():
    assert thin({10: 1.0, 20: 3.0, 30: 5.0, 40: 7.0}, points=2) == ([20, 40], [2.0, 6.0])
    assert thin({}) == ([], [])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_simulation_matches_the_environment(env_id):
    """From the states of five environments, with their actions, to their observations, rewards and true ends."""
    rng, steps, envs = np.random.default_rng(0), 60, [gym.make(env_id).unwrapped for _ in range(5)]
    seen = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
    discrete = env_id == "CartPole-v1"
    shape = (steps, 5) if discrete else (steps, 5, 1)
    actions = torch.as_tensor(rng.integers(0, 2, shape) if discrete else rng.uniform(-1.5, 1.5, shape)).float()
    actions = actions.long() if discrete else actions
    queue = list(actions)
    obs, reward, terminated = simulate(
        lambda _: queue.pop(0), env_id, states_of(env_id, torch.tensor(np.array(seen))), steps
    )
    for k, env in enumerate(envs):
        for t in range(steps):
            action = actions[t, k].item() if discrete else 2 * actions[t, k].clamp(-1, 1).numpy()
            after, paid, end, *_ = env.step(action)
            np.testing.assert_allclose(obs[t + 1, k], after, atol=2e-3)
            assert reward[t, k].item() == pytest.approx(paid, abs=2e-2)
            assert terminated[t, k] == end
            if end:
                assert not reward[t + 1 :, k].any()
                assert not terminated[t + 1 :, k].any()
                break
    assert terminated.sum() == (5 if discrete else 0)


def test_simulation_has_no_time_limit():
    """Pendulum's 200 steps and CartPole's 500 are passed; balanced by hand, the pole stays up."""
    balance = lambda obs: (obs[:, 2] + 0.3 * obs[:, 3] > 0).long()  # noqa: E731
    _, reward, terminated = simulate(balance, "CartPole-v1", torch.zeros(2, 4), 700)
    assert reward.sum() == 1400
    assert not terminated.any()
    _, reward, _ = simulate(lambda obs: torch.zeros(len(obs), 1), "Pendulum-v1", torch.tensor([[3.0, 0.0]]), 300)
    assert len(reward) == 300
    assert (reward < -0.1).all()


def test_soft_return_includes_entropy_after_the_first_action(monkeypatch):
    monkeypatch.setattr(study_runs, "HORIZON", 3)
    actor = SimpleNamespace(act=lambda obs: torch.zeros(len(obs), 1))
    actor.critic = lambda obs: torch.stack([obs[:, 2], 100 + obs[:, 2]])
    obs = torch.tensor([[1.0, 0, 2], [0, 1, -1]])
    module = SimpleNamespace(q_value=lambda critic, obs, action: critic(obs))
    predicted, collected = study_runs.predicted_and_collected(module, actor, "Pendulum-v1", obs, 0.5)
    close(predicted, torch.tensor([2.0, -1]))
    soft = SimpleNamespace(log_alpha=torch.tensor(math.log(0.2)))
    soft.sample = lambda obs: (torch.zeros(len(obs), 1), torch.full((len(obs),), -3.0))
    soft.critic = lambda obs: torch.stack([obs[:, 2], 1 - obs[:, 2]])
    predicted, more = study_runs.predicted_and_collected(module, soft, "Pendulum-v1", obs, 0.5)
    close(predicted, torch.tensor([-1.0, -1]))
    close(more - collected, torch.full((2,), 0.2 * 3 * (0.5 + 0.25)))
    # The first two rewards by hand: upright at 2 rad/s costs 0.1 * 4, and a side at -1 rad/s (pi / 2)^2 + 0.1.
    close(simulate(actor.act, "Pendulum-v1", states_of("Pendulum-v1", obs), 1)[1][0], torch.tensor([-0.4, -2.5674]))


def test_baseline_of_zero_changes_no_gradient(monkeypatch):
    monkeypatch.setattr(study_runs, "EPISODES", 6)
    args = reinforce_baseline.Args(hidden_size=8)
    torch.manual_seed(0)
    agent = reinforce_baseline.Agent(reinforce_baseline.make_envs(args, 1), args)
    torch.nn.init.zeros_(agent.critic[-1].weight)
    run, notes = SimpleNamespace(state={"agent": agent}, args=args, step=7), {}
    study_runs.gradient_variances(reinforce_baseline, run, notes)
    none, constant, learned = (notes[f"gradient_variance_{name}"] for name in ("none", "constant", "learned"))
    assert none == learned
    assert none[0] == [7]
    assert 0 < constant[1][0] < none[1][0]


def test_looking_changes_nothing_in_the_run(folder, monkeypatch):
    """It comes at its fractions, and its random numbers are not those of the training."""
    flags = shlex.split("--num-envs 2 --num-steps 8 --hidden-size 8 --eval-episodes 2 --total-timesteps 160")
    plain, _ = train("a2c", *flags)
    looks = []

    def look(module, run, notes):
        looks.append(run.step)
        torch.randn(100)

    monkeypatch.setattr(a2c.Run, "log_and_save", a2c.Run.log_and_save)
    study_runs.at((1, 0.05, 0.1, 0.5, 0.55), look)(a2c, {})
    looked_at, _ = train("a2c", *flags)
    assert looks == [16, 80, 96, 160]
    close(list(plain.parameters()), list(looked_at.parameters()), rtol=0, atol=0)


def test_hooks_change_the_script():
    class Run:
        def env_step(self, action):
            return "obs", "reward", "terminated", "done"

    def q_target(next_q, reward, terminated, gamma):
        return next_q.amin(0) + reward

    module = SimpleNamespace(Run=Run, q_target=q_target, gae=None)
    study_runs.death_at_limits(module, {})
    assert module.Run().env_step(0) == ("obs", "reward", "done", "done")
    study_runs.one_critic(module, {})
    close(module.q_target(torch.tensor([[5.0], [1.0]]), torch.tensor([2.0]), 0, 0), torch.tensor([7.0]))
    study_runs.returns_of_n_steps(1)(module, {})
    # 1 + 0.5 * 2 - 4 = -2, whatever lambda is
    close(module.gae(column(1.0, 1), column(4.0, 2, 6), *[torch.zeros(2, 1)] * 2, 0.5, 0.9)[0], torch.tensor([-2.0]))


def test_episodes_are_counted_until_the_last_hundred_are_good(monkeypatch):
    """60 at a time: 60 of return 300 are too few; then 100 of the last have 40 * 0 + 60 * 300, and then 60 * 0 + ..."""
    module, notes = SimpleNamespace(Run=SimpleNamespace(log_and_save=lambda run, metrics, optimizer: None)), {}
    study_runs.count_episodes(module, notes)
    for step, value in enumerate((300, 0, 300, 300, 300), 1):
        queue = SimpleNamespace(return_queue=[float(value)] * 60)
        module.Run.log_and_save(SimpleNamespace(envs=queue, step=step), None, None)
    assert notes["mean_of_100"] == ([60, 120, 180, 240, 300], [300.0, 120.0, 180.0, 300.0, 300.0])
    assert notes["episodes_to_195"] == ([4], [240])


@pytest.mark.parametrize("rate", [0, 0.01])
def test_divergence_is_between_the_policies_before_and_after_an_update(rate, folder, monkeypatch):
    notes = {}
    for name, function in (("backward", a2c.backward), ("Run", type("Run", (a2c.Run,), {}))):
        monkeypatch.setattr(a2c, name, function)
    study_runs.divergence_per_rollout(a2c, notes)
    train(
        "a2c", *shlex.split(f"--num-envs 2 --num-steps 8 --total-timesteps 64 --learning-rate {rate} --eval-episodes 1")
    )
    steps, values = notes["divergence"]
    assert steps == [16, 32, 48, 64]
    assert all(value > 1e-6 if rate else abs(value) < 1e-8 for value in values)


@pytest.mark.parametrize(("env_id", "chance"), [("CartPole-v1", 0.0), ("Pendulum-v1", 2e-5)])
def test_estimates_with_a_critic_of_zeros(env_id, chance, monkeypatch):
    """All values 0: n steps miss the rest of the return, less the more they are, and the whole rollout misses least."""
    for name, size in (("STATES", 6), ("PATHS", 16), ("HORIZON", 300)):
        monkeypatch.setattr(study_runs, name, size)
    args = a2c.Args(env_id=env_id, num_steps=128, hidden_size=8)
    torch.manual_seed(0)
    agent = a2c.Agent(a2c.make_envs(args, 1), args)
    torch.nn.init.zeros_(agent.critic[-1][-1].weight)
    notes = {}
    study_runs.estimators(a2c, SimpleNamespace(state={"agent": agent}, args=args, step=0), notes)
    bias, variance = (dict(zip(*notes[name], strict=True)) for name in ("squared_bias", "variance"))
    assert bias["n=1"] > bias["n=5"] > bias["n=16"] > bias["n=128"]
    # CartPole's first reward is 1; Pendulum's has but the cost of the torque to vary by, 0.001 of 0 to 4.
    assert variance["n=1"] <= chance
    for x, y in (("n=1", "lambda=0"), ("n=128", "lambda=1")):
        assert bias[x] == pytest.approx(bias[y], rel=1e-4, abs=1e-3)
        assert variance[x] == pytest.approx(variance[y], rel=1e-4)


@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_gridworld_values_by_hand(gamma):
    """From a distance of d: gamma^(d-1) for the goal, less 0.01 for each of the d - 1 steps before."""
    row, col = np.mgrid[:10, :10]
    distance = (9 - row) + (9 - col)
    before = np.maximum(distance - 1, 0)
    expected = np.where(distance > 0, gamma**before - 0.01 * (1 - gamma**before) / (1 - gamma), 0)
    np.testing.assert_allclose(gridworld.value_iteration(gamma), expected, atol=1e-9)


def test_gridworld_moves():
    env = gym.make("Gridworld-v0")
    starts = {env.reset(seed=seed)[0] for seed in range(300)}
    assert gridworld.GOAL not in starts
    assert len(starts) > 80
    env.unwrapped.cell = 0
    path = [env.step(action)[:3] for action in (0, 3, 1, 2)]  # into two walls, right, down
    assert path == [(0, -0.01, False), (0, -0.01, False), (1, -0.01, False), (11, -0.01, False)]
    env.unwrapped.cell = 98
    assert env.step(1)[:3] == (99, 1.0, True)
    env.reset()
    env.unwrapped.cell = 0
    ends = [env.step(0)[3] for _ in range(100)]
    assert ends.index(True) == 99


def test_words():
    assert study_reports.spread([3.0, 1, 2]) == "2 (1 to 3)"
    assert study_reports.spread([300.0, math.nan, 100, 200]) == "250 (100 to 300; never in 1 of 4)"
    assert study_reports.spread([math.nan, math.nan, 100]) == "never (100 to 100; never in 2 of 3)"
    assert study_reports.spread([math.nan]) == "never in 1 runs"
    # Of the six pairs, a is larger in three and equal in one
    assert study_reports.share_above([1, 3], [0, 1, 5]) == pytest.approx((3 + 0.5) / 6)
    assert study_reports.against("a", "b", [2, 3], [1, 1]) == "a is better than b"
    assert study_reports.against("a", "b", [0, 0], [1, 1], "higher", "lower") == "a is lower than b"
    assert study_reports.against("a", "b", [0, 2], [1, 1]) == "a and b are not told apart"


def table_of(**values):
    """A table of made-up runs: setting -> quantity -> a curve for each seed, with steps 1, 2, ..."""
    return study_reports.Table(
        {
            "setting": setting,
            "seed": str(seed),
            "quantity": quantity,
            "x": " ".join(str(k + 1) for k in range(len(curve))),
            "y": " ".join(map(str, curve)),
        }
        for setting, quantities in values.items()
        for quantity, curves in quantities.items()
        for seed, curve in enumerate(curves)
    )


def gap(*numbers):
    """Runs whose predictions are off by this in the second half, and by 50 in the first."""
    return {"predicted": [[50, 50, x - 10, x - 10] for x in numbers], "collected": [[0, 0, -10, -10]] * len(numbers)}


def test_sentence_follows_its_numbers():
    sure = study_reports.sentence(
        "overestimation", table_of(ddpg=gap(8, 9, 10), td3=gap(-3, -2, -1), sac=gap(-1, 0.5, 1))
    )
    assert "DDPG 9 (8 to 10), too high, TD3 -2 (-3 to -1), too low, SAC 0.5 (-1 to 1), of no one sign" in sure
    assert "(TD3's is lower than DDPG's)" in sure
    other = study_reports.sentence("overestimation", table_of(ddpg=gap(1, 2), td3=gap(5, 6), sac=gap(1, 2)))
    assert "(TD3's is higher than DDPG's)" in other
    unsure = study_reports.sentence("overestimation", table_of(ddpg=gap(1, 3), td3=gap(2, 2), sac=gap(1, 2)))
    assert "(TD3's and DDPG's are not told apart)" in unsure


def test_sentence_of_the_baseline_follows_its_numbers():
    def runs(episodes, **variances):
        named = {f"gradient_variance_{name}": [curve, curve] for name, curve in variances.items()}
        return {"episodes_to_195": [[x] for x in episodes]} | named

    table = table_of(
        **{
            "returns as they are": runs([300, 400]),
            "returns normalised": runs([100, 200]),
            "learned baseline": runs([100, 200], none=[8, 30], constant=[4, 2], learned=[4, 2]),
        }
    )
    text = study_reports.sentence("variance", table)
    assert "with returns as they are 350 (300 to 400)" in text
    assert "with learned baseline 150 (100 to 200)" in text
    assert "(the baseline is faster than none; the baseline and normalising are not told apart)" in text
    assert "2.0 to 15.0 times that with the learned one" in text
    assert "with a constant baseline 1.0 to 1.0 times" in text


def test_collapse_is_a_settled_policy_with_a_poor_return():
    table = table_of(
        **{
            # settled and poor; settled and good; poor, but not settled
            "CartPole-v1 0": {"entropy": [[0.6, 0.01], [0.6, 0.01], [0.6, 0.3]], "eval_return": [[100], [500], [100]]},
            "Gridworld-v0 0": {"entropy": [[0.01], [0.01], [0.3]], "eval_return": [[-1], [0.93], [-1]]},
        }
    )
    assert study_reports.collapses(table, "CartPole-v1 0") == 1
    assert study_reports.collapses(table, "Gridworld-v0 0") == 1


def command(*words):
    program = [sys.executable, str(ROOT / "benchmarks" / "studies.py"), *words]
    return subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["nonsense"], "variance"),
        (["clipping", "--settings", "nonsense"], "ppo, clip 0.1"),
        (["clipping", "--seeds", "x"], "--seeds x"),
        (["clipping", "--", "--seed", "3"], "--seed"),
        (["clipping", "--draw", "--out", "none"], "no runs"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, names, folder):
    done = command(*words)
    assert done.returncode == 2
    assert names in done.stderr
    assert len(done.stderr.splitlines()) == 1


TINY = shlex.split("--total-timesteps 160 --learning-starts 20 --eval-episodes 2 --hidden-size 8 --batch-size 8")


@pytest.mark.slow
def test_setting_becomes_rows_and_a_figure(folder):
    words = ["overestimation", "--settings", "td3", "--out", "out", "--seeds", "4"]
    done = command(*words, "--", *TINY)
    assert done.returncode == 0, done.stderr
    with open("out/study_overestimation.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = {row["quantity"]: row for row in reader}
    assert tuple(reader.fieldnames) == studies.COLUMNS
    assert rows.keys() == {"predicted", "collected", "episodic_return", "eval_return", "cpu_seconds"}
    assert rows["predicted"]["x"] == "20 40 60 80 100 120 140 160"
    assert all(float(y) < -100 for y in rows["collected"]["y"].split())
    for row in rows.values():
        assert (row["setting"], row["seed"], row["script"]) == ("td3", "4", "td3.py")
        assert row["flags"].endswith("--batch-size 8")
        assert row["commit"] and row["torch"] and row["cpu"] and row["date"]
    before = [Path(f"out/study_overestimation.{ending}").read_bytes() for ending in ("svg", "png")]
    assert before[0].startswith(b"<?xml") and before[1].startswith(b"\x89PNG")
    again = command(*words, "--draw")
    assert again.returncode == 0, again.stderr
    assert [Path(f"out/study_overestimation.{ending}").read_bytes() for ending in ("svg", "png")] == before


@pytest.mark.slow
def test_failed_run_is_named_and_the_others_continue(folder):
    """DDPG has no flag for a delay."""
    words = ["overestimation", "--settings", "ddpg", "td3", "--out", "out", "--seeds", "4"]
    done = command(*words, "--", *TINY, "--policy-frequency", "1")
    assert done.returncode == 1
    assert "ddpg, seed 4 failed: Unrecognized options: --policy-frequency" in done.stderr
    assert "\ntd3,td3.py," in Path("out/study_overestimation.csv").read_text()
    assert Path("out/study_overestimation.svg").exists()


def committed():
    """The studies that have a table."""
    return [name for name in STUDIES if (ROOT / "benchmarks" / "results" / f"study_{name}.csv").exists()]


@pytest.mark.parametrize("name", committed())
def test_committed_study_is_complete(name, tmp_path):
    """All seeds of all settings, of one clean commit; figures of at most 300 kB; the sentence that the page has."""
    rows = studies.common.read_rows(ROOT / "benchmarks" / "results" / f"study_{name}.csv", studies.COLUMNS)
    study, table = STUDIES[name], study_reports.Table(rows)
    seeds = set(studies.common.parse_seeds(study.seeds))
    assert table.seeds == dict.fromkeys(study.settings, seeds)
    assert {(row["setting"], row["flags"]) for row in rows} == {(x, y.flags) for x, y in study.settings.items()}
    (commit,) = {row["commit"] for row in rows}
    assert not commit.endswith("-dirty")
    assert study_reports.sentence(name, table) in (ROOT / "benchmarks" / "README.md").read_text()
    study_reports.draw(name, list(study.settings), table, tmp_path)
    for ending in ("svg", "png"):
        assert (FIGURES / f"study_{name}.{ending}").stat().st_size < 300_000
        assert (tmp_path / f"study_{name}.{ending}").stat().st_size < 300_000
