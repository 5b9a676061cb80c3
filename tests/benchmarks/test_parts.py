"""benchmarks/floor.py, parts.py, scaling.py and curve.py find the parts of a script's training."""

import csv
import importlib
import json
import shlex
import subprocess
import sys

import pytest
from harness import OFF_POLICY, ROOT, SCRIPTS, environment, train

# Matrix products of an update. A network of three layers has 3 forward, and backward 5, or 6 if its input has a
# gradient too. PPO: actor and critic. DDPG: 3 target actor, 3 target critic, 3 + 5 critic; 3 + 5 actor, 3 + 6 critic.
# TD3 has two critics and an actor step in every second update, SAC two critics and no target actor.
PRODUCTS = {"reinforce": 8, "reinforce_baseline": 16, "a2c": 16, "ppo": 16, "ddpg": 31, "td3": 33.5, "sac": 51}


@pytest.fixture
def benchmarks(folder, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def program(name, *words):
    """Standard output of a benchmark's process, which must succeed."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *map(str, words)]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("script", PRODUCTS)
def test_floor_counts_the_products_of_an_update(script, benchmarks, monkeypatch):
    floor, row = benchmarks("floor"), SCRIPTS[script]
    monkeypatch.setattr(floor, "ROUNDS", 2)
    flags = ("--env-id", row.env_ids[0], *row.short, "--total-timesteps", "3000", "--device", "cpu")
    found = floor.measure(*floor.batches_of(f"{script}.py", flags, floor.UPDATES))
    assert found["products"] == PRODUCTS[script]
    assert found["update_ms"] > 0
    assert found["floor_ms"] > 0


@pytest.mark.parametrize("script", ["ppo", *OFF_POLICY])
def test_repeated_update_moves_every_parameter(script, benchmarks):
    torch, floor, row = benchmarks("torch"), benchmarks("floor"), SCRIPTS[script]
    flags = ("--env-id", row.env_ids[0], *row.short, "--total-timesteps", "3000", "--device", "cpu")
    module, run, batches = floor.batches_of(f"{script}.py", flags, 2)
    before = [parameter.clone() for parameter in run.state["agent"].parameters()]
    floor.update(module, run, module.backward, batches)
    changed = [not torch.equal(*pair) for pair in zip(before, run.state["agent"].parameters(), strict=True)]
    assert sum(changed) >= len(changed) - 1  # PPO's log_std has no gradient on CartPole


@pytest.mark.slow
def test_parts_names_what_a_run_calls(folder):
    flags = shlex.split("--total-timesteps 10240 --num-envs 8 --eval-episodes 1 --hidden-size 8")
    lines = program("parts.py", ROOT / "ppo.py", *flags).splitlines()
    calls = {cells[1].strip(): cells[2].strip() for line in lines if len(cells := line.split("|")) == 6}
    # 80 rollouts of 128 steps, with 4 minibatches and 5 epochs
    expected = {"env_step": "1280", "gae": "80", "log_and_save": "80"} | dict.fromkeys(
        ("backward", "Adam.step"), "1600"
    )
    assert expected.items() <= calls.items()
    assert any(line.startswith("| matrix products | 16 |") for line in lines)


@pytest.mark.slow
def test_scaling_counts_steps_and_updates(folder):
    """8 rollouts of 16 steps in 4 environments, each with 20 updates. The second half counts, without its last step."""
    flags = shlex.split("--num-envs 4 --total-timesteps 512 --hidden-size 8 --eval-episodes 1 --device cpu")
    found = json.loads(program("scaling.py", "--one", "ppo", *flags).splitlines()[-1])
    assert (found["vector_steps"], found["updates"], found["steps"]) == (63, 60, 508)
    assert found["update_us"] > 0
    assert "all_reduce_us" not in found


def test_curve_has_a_row_for_each_evaluation(benchmarks, monkeypatch):
    flags = ("--total-timesteps", "128", "--checkpoint-every", "64", "--device", "cpu")
    _, result = train("ppo", *SCRIPTS["ppo"].short, *flags)
    curve = benchmarks("curve")
    monkeypatch.setattr(sys, "argv", ["curve.py", str(result.folder), "--out", "curve.csv"])
    curve.main()
    with open("curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["64", "128"]
    assert float(rows[-1]["charts/eval_return"]) == pytest.approx(result.mean, abs=0.01)
    assert all("--checkpoint-every=64" in row["flags"] and row["commit"] for row in rows)
