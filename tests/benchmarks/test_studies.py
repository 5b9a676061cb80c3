"""benchmarks/studies/: quantities by hand numbers, hooks, and tables that are those of the rows."""

import csv
import importlib
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
sys.path.insert(0, str(ROOT / "benchmarks" / "studies"))

import common
import estimators
import gridworld
import overestimation
import study
import truncation
import trust_region
import variance
from estimators import bias_and_variance, n_step
from study import discounted, simulate, states_of, thin

import a2c
import reinforce_baseline

FILES = sorted((ROOT / "benchmarks" / "studies").glob("*.py"))
STUDIES = [path.stem for path in FILES if "SETTINGS =" in path.read_text()]
close = torch.testing.assert_close


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


def test_divergence():
    # Of the fair coin from one of 1/4: (log 2 + log 2/3) / 2; of a state in which nothing changed: 0
    old, new = torch.tensor([[0.5, 0.5], [0.3, 0.7]]).log(), torch.tensor([[0.25, 0.75], [0.3, 0.7]]).log()
    assert trust_region.divergence(old, new) == pytest.approx((math.log(2) + math.log(2 / 3)) / 4)


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
    monkeypatch.setattr(study, "HORIZON", 3)
    actor = SimpleNamespace(act=lambda obs: torch.zeros(len(obs), 1))
    actor.critic = lambda obs: torch.stack([obs[:, 2], 100 + obs[:, 2]])
    obs = torch.tensor([[1.0, 0, 2], [0, 1, -1]])
    module = SimpleNamespace(q_value=lambda critic, obs, action: critic(obs))
    predicted, collected = overestimation.predicted_and_collected(module, actor, "Pendulum-v1", obs, 0.5)
    close(predicted, torch.tensor([2.0, -1]))
    soft = SimpleNamespace(log_alpha=torch.tensor(math.log(0.2)))
    soft.sample = lambda obs: (torch.zeros(len(obs), 1), torch.full((len(obs),), -3.0))
    soft.critic = lambda obs: torch.stack([obs[:, 2], 1 - obs[:, 2]])
    predicted, more = overestimation.predicted_and_collected(module, soft, "Pendulum-v1", obs, 0.5)
    close(predicted, torch.tensor([-1.0, -1]))
    close(more - collected, torch.full((2,), 0.2 * 3 * (0.5 + 0.25)))
    # The first two rewards by hand: upright at 2 rad/s costs 0.1 * 4, and a side at -1 rad/s (pi / 2)^2 + 0.1.
    close(simulate(actor.act, "Pendulum-v1", states_of("Pendulum-v1", obs), 1)[1][0], torch.tensor([-0.4, -2.5674]))


def test_baseline_of_zero_changes_no_gradient(monkeypatch):
    monkeypatch.setattr(variance, "EPISODES", 6)
    args = reinforce_baseline.Args(hidden_size=8)
    torch.manual_seed(0)
    agent = reinforce_baseline.Agent(reinforce_baseline.make_envs(args, 1), args)
    torch.nn.init.zeros_(agent.critic[-1].weight)
    run, notes = SimpleNamespace(state={"agent": agent}, args=args, step=7), {}
    variance.gradient_variances(reinforce_baseline, run, notes)
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
    study.at((1, 0.05, 0.1, 0.5, 0.55), look)(a2c, {})
    looked_at, _ = train("a2c", *flags)
    assert looks == [16, 80, 96, 160]
    close(list(plain.parameters()), list(looked_at.parameters()), rtol=0, atol=0)


def test_seconds_are_steps_by_steps_per_second(folder):
    flags = "--num-envs 2 --num-steps 8 --hidden-size 8 --eval-episodes 2 --total-timesteps 160"
    notes = study.run(study.Setting("a2c", flags, tags=(study.RETURN, study.SPS)), 1, "")
    (steps, rates), (same_steps, seconds) = notes["SPS"], notes["seconds"]
    assert steps == same_steps == list(range(16, 161, 16))
    assert seconds == pytest.approx(np.array(steps) / rates)


def test_hooks_change_the_script():
    class Run:
        def env_step(self, action):
            return "obs", "reward", "terminated", "done"

    def q_target(next_q, reward, terminated, gamma):
        return next_q.amin(0) + reward

    module = SimpleNamespace(Run=Run, q_target=q_target, gae=None)
    truncation.death_at_limits(module, {})
    assert module.Run().env_step(0) == ("obs", "reward", "done", "done")
    overestimation.one_critic(module, {})
    close(module.q_target(torch.tensor([[5.0], [1.0]]), torch.tensor([2.0]), 0, 0), torch.tensor([7.0]))
    estimators.use("1 step", module, {})
    # 1 + 0.5 * 2 - 4 = -2, whatever lambda is
    close(module.gae(column(1.0, 1), column(4.0, 2, 6), *[torch.zeros(2, 1)] * 2, 0.5, 0.9)[0], torch.tensor([-2.0]))


def test_episodes_are_counted_until_the_last_hundred_are_good(monkeypatch):
    """60 at a time: 60 of return 300 are too few; then 100 of the last have 40 * 0 + 60 * 300, and then 60 * 0 + ..."""
    module, notes = SimpleNamespace(Run=SimpleNamespace(log_and_save=lambda run, metrics, optimizer: None)), {}
    variance.count_episodes(module, notes)
    for step, value in enumerate((300, 0, 300, 300, 300), 1):
        queue = SimpleNamespace(return_queue=[float(value)] * 60)
        module.Run.log_and_save(SimpleNamespace(envs=queue, step=step), None, None)
    assert notes["mean_of_100"] == ([60, 120, 180, 240, 300], [300.0, 120.0, 180.0, 300.0, 300.0])
    assert notes["episodes_to_195"] == ([4], [240])


@pytest.mark.parametrize("rate", [0, 0.01])
def test_divergence_is_between_the_policies_before_and_after_an_update(rate, folder, monkeypatch):
    notes = {}
    monkeypatch.setattr(a2c, "Run", type("Run", (a2c.Run,), {}))
    trust_region.divergences(a2c, notes)
    train(
        "a2c", *shlex.split(f"--num-envs 2 --num-steps 8 --total-timesteps 64 --learning-rate {rate} --eval-episodes 1")
    )
    steps, values = notes["kl"]
    assert steps == [16, 32, 48, 64]
    assert all(value > 1e-6 if rate else abs(value) < 1e-8 for value in values)


@pytest.mark.parametrize(("env_id", "chance"), [("CartPole-v1", 0.0), ("Pendulum-v1", 2e-5)])
def test_estimates_with_a_critic_of_zeros(env_id, chance, monkeypatch):
    """All values 0: n steps miss the rest of the return, less the more they are, and the whole rollout misses least."""
    for owner, name, size in ((study, "STATES", 6), (estimators, "PATHS", 16), (study, "HORIZON", 300)):
        monkeypatch.setattr(owner, name, size)
    args = a2c.Args(env_id=env_id, num_steps=128, hidden_size=8)
    torch.manual_seed(0)
    agent = a2c.Agent(a2c.make_envs(args, 1), args)
    torch.nn.init.zeros_(agent.critic[-1][-1].weight)
    notes = {}
    estimators.compare(a2c, SimpleNamespace(state={"agent": agent}, args=args, step=0), notes)
    bias, spread = (dict(zip(*notes[name], strict=True)) for name in ("squared_bias", "variance"))
    assert bias["1_step"] > bias["5_steps"] > bias["16_steps"] > bias["128_steps"]
    # CartPole's first reward is 1; Pendulum's has but the cost of the torque to vary by, 0.001 of 0 to 4.
    assert spread["1_step"] <= chance


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


def test_spread():
    assert study.spread([3.0, 1, 2]) == "2 (1 to 3)"
    assert study.spread([0.5, 0.25], 2) == "0.38 (0.25 to 0.50)"
    assert study.spread([300.0, math.nan, 1000, 200]) == "650 (200 to never)"
    assert study.spread([math.nan, math.nan, 100]) == "never (100 to never)"


def test_gaps_are_predicted_less_collected():
    row = {"setting": "td3", "seed": "1", "x": "10 20"}
    rows = [row | {"quantity": "predicted", "y": "5 7"}, row | {"quantity": "collected", "y": "1 8"}]
    ((x, y),) = study.Table(rows).gaps("td3")
    assert (x.tolist(), y.tolist()) == ([10, 20], [4, -1])


def command(name, *words):
    program = [sys.executable, str(ROOT / "benchmarks" / "studies" / f"{name}.py"), *words]
    return subprocess.run(program, env=environment(), capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize(
    ("words", "names"),
    [(["--seeds", "x"], "--seeds x"), (["--flags=--seed 3"], "--out"), (["--nonsense"], "--nonsense")],
)
def test_bad_input_is_one_line_and_status_2(words, names, folder):
    done = command("clipping", *words)
    assert done.returncode == 2
    assert names in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_runs_become_rows_a_figure_and_a_table(folder):
    """Run again, it makes the missing runs alone; drawn again, the figure has the same bytes."""
    Path("out").mkdir()
    tiny = "--flags=--total-timesteps 320 --num-envs 4 --num-steps 16 --hidden-size 8 --eval-episodes 2"
    done = command("truncation", tiny, "--out", "out", "--seeds", "4")
    assert done.returncode == 0, done.stderr
    with open("out/study_truncation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["setting"], row["seed"]) for row in rows} == {("bootstrapped", "4"), ("as a death", "4")}
    assert {row["quantity"] for row in rows} == {"predicted", "collected", "episodic_return", "eval_return"}
    assert all(row["commit"] and row["torch"] and row["cpu"] and row["date"] for row in rows)
    assert done.stdout.splitlines()[0].startswith("| time limits |")
    before = Path("out/study_truncation.svg").read_bytes()
    again = command("truncation", "--out", "out", "--draw")
    assert again.stdout == done.stdout
    assert Path("out/study_truncation.svg").read_bytes() == before


@pytest.mark.parametrize("name", STUDIES)
def test_committed_study_is_complete(name):
    """All seeds of all settings, of one clean commit; the page has its table and its figure."""
    module, rows = importlib.import_module(name), common.read_rows(common.RESULTS / f"study_{name}.csv", study.COLUMNS)
    found = study.Table(rows)
    assert found.seeds.keys() == module.SETTINGS.keys()
    assert len({frozenset(seeds) for seeds in found.seeds.values()}) == 1
    assert {(row["setting"], row["flags"]) for row in rows} == {(x, y.flags) for x, y in module.SETTINGS.items()}
    (commit,) = {row["commit"] for row in rows}
    assert not commit.endswith("-dirty")
    page = (ROOT / "docs" / "claims.md").read_text()
    assert common.with_table(page, name, module.table(found)) == page
    assert f"figures/study_{name}.svg" in page
    assert (common.FIGURES / f"study_{name}.svg").stat().st_size < 300_000
