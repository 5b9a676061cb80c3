"""benchmarks/speed/parts.py and scaling.py: the parts of a run, the products of an update, the table of sizes."""

import importlib
import subprocess
import sys

import pytest
import torch
from harness import OFF_POLICY, ROOT, SCRIPTS, environment, parse

# Matrix products of an update. A network of three layers has 3 forward, and backward 5, or 6 if its input has a
# gradient too. PPO: actor and critic. DDPG: 3 target actor, 3 target critic, 3 + 5 critic; 3 + 5 actor, 3 + 6 critic.
# TD3 has two critics and an actor step in every second update, SAC two critics and no target actor.
PRODUCTS = {"reinforce": 8, "reinforce_baseline": 16, "a2c": 16, "ppo": 16, "ddpg": 31, "td3": 33.5, "sac": 51}
SPEED = ROOT / "benchmarks" / "speed"


@pytest.fixture
def parts(folder, monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    return importlib.import_module("parts")


def batches(parts, script, count):
    module, row = importlib.import_module(script), SCRIPTS[script]
    flags = ("--env-id", row.env_ids[0], *row.short, "--total-timesteps", "3000", "--device", "cpu")
    return module, *parts.batches_of(module, parse(script, *flags), count)


@pytest.mark.parametrize("script", PRODUCTS)
def test_floor_counts_the_products_of_an_update(script, parts, monkeypatch):
    monkeypatch.setattr(parts, "ROUNDS", 2)
    update_ms, floor_ms, products = parts.floor(*batches(parts, script, parts.UPDATES))
    assert products == PRODUCTS[script]
    assert update_ms > 0
    assert floor_ms > 0


@pytest.mark.parametrize("script", ["ppo", *OFF_POLICY])
def test_repeated_update_moves_every_parameter(script, parts):
    module, run, found = batches(parts, script, 2)
    before = [parameter.clone() for parameter in run.state["agent"].parameters()]
    parts.update(module, run, module.backward, found)
    changed = [not torch.equal(*pair) for pair in zip(before, run.state["agent"].parameters(), strict=True)]
    assert sum(changed) >= len(changed) - 1  # PPO's log_std has no gradient on CartPole


@pytest.mark.slow
def test_parts_names_what_a_run_calls(folder):
    flags = ["--total-timesteps", "10240", "--num-envs", "8", "--eval-episodes", "1", "--hidden-size", "8"]
    command = [sys.executable, str(SPEED / "parts.py"), "ppo.py", *flags]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    calls = {cells[1].strip(): cells[2].strip() for line in lines if len(cells := line.split("|")) == 6}
    # 80 rollouts of 16 steps, with 4 minibatches and 5 epochs
    assert {"env_step": "1280", "gae": "80", "backward": "1600", "Adam.step": "1600"}.items() <= calls.items()
    assert "its 16 matrix products alone" in lines[-1]


def test_page_of_scaling_shows_the_committed_rows(parts):
    scaling = importlib.import_module("scaling")
    rows = scaling.common.read_rows(scaling.PATH, scaling.COLUMNS)
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert scaling.common.with_table(page, "scaling", scaling.table(rows)) == page
