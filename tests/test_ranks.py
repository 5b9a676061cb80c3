"""Several processes under torchrun are one run."""

import subprocess
import sys

import pytest
import torch
from harness import (
    BY_PROCESS,
    SCRIPTS,
    TESTS,
    TORCHRUN,
    checkpoint,
    differences,
    environment,
    last_line,
    parse,
    run,
    scalars,
)

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)


@pytest.mark.parametrize("script", BY_PROCESS)
def test_two_processes_print_one_line_and_keep_one_folder(script, tmp_path):
    row = SCRIPTS[script]
    flags = (*row.short, "--env-id", row.env_ids[-1], "--total-timesteps", 6 * row.period)
    status, stdout, stderr = run(script, *flags, cwd=tmp_path, launcher=TORCHRUN)
    assert status == 0, stderr
    assert len(stdout.splitlines()) == 1
    result = last_line(stdout)
    assert result.steps == 6 * row.period
    assert [path.name for path in tmp_path.glob("runs/*")] == [result.folder.name]
    # an update is of the environments of both
    assert [step for step, _ in scalars(tmp_path / result.folder)["charts/SPS"]] == [
        2 * row.period * k for k in (1, 2, 3)
    ]


@EACH_SCRIPT
def test_two_processes_agree(script, tmp_path):
    """Weights and statistics are the same, environments are not; an update is that on both minibatches in one."""
    row = SCRIPTS[script]
    flags = (*row.short, "--env-id", "probes:Spy-v0", "--total-timesteps", 8 * row.period, "--num-threads", 1)
    flags += ("--norm-obs", "--norm-reward") if hasattr(parse(script), "norm_obs") else ()
    flags += ("--target-kl", 0.001) if hasattr(parse(script), "target_kl") else ()
    command = [sys.executable, *TORCHRUN, str(TESTS / "ranks.py"), script, *map(str, flags)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert differences(first["agent"], second["agent"]) == []
    assert differences(first["agent"], checkpoint(tmp_path / last_line(ended.stdout).folder)["agent"]) == []
    assert not set(first["seeds"]) & set(second["seeds"])

    for found in (first, second):
        torch.testing.assert_close(found["updated"], found["expected"])
        if "normalised" in found:  # of 1, 3, 5, 7: mean 4 and variance 5
            torch.testing.assert_close(found["normalised"], torch.tensor([[1 / 5**0.5]]))
    assert differences(first["updated"], second["updated"]) == []
