"""Which library multiplies, that it does so in float32, and that nobody waits for a compiler that nobody asked for."""

import csv
import subprocess
import sys
from importlib import import_module
from unittest import mock

import pytest
import torch
from harness import BY_PROCESS, ROOT, SCRIPTS, TESTS, parse

import ppo

AMD, INTEL = "vendor_id : AuthenticAMD", "vendor_id : GenuineIntel"


@pytest.mark.parametrize("script", BY_PROCESS)
@pytest.mark.parametrize(
    ("cpuinfo", "hidden_size", "chosen"),
    [
        (f"{AMD}\nflags : avx2 avx512f avx512_bf16", 128, "medium"),
        (f"{AMD}\nflags : avx2 avx512f avx512_bf16", 64, "highest"),  # a call of oneDNN costs more than it saves
        (f"{AMD}\nflags : avx2", 256, "highest"),
        (f"{AMD}\nflags : avx2 avx512f amx_tile amx_bf16", 256, "highest"),  # by AMX it would be bfloat16
        (f"{INTEL}\nflags : avx2 avx512f", 256, "highest"),
        (None, 256, "highest"),  # no Linux
    ],
)
def test_large_products_on_amd_are_those_of_onednn(script, cpuinfo, hidden_size, chosen, monkeypatch):
    module, file = import_module(script), mock.Mock()
    file.exists.return_value, file.read_text.return_value = cpuinfo is not None, cpuinfo
    monkeypatch.setattr(module, "Path", {"/proc/cpuinfo": file}.get)
    torch.set_float32_matmul_precision("high")
    module.choose_products(hidden_size)
    assert torch.get_float32_matmul_precision() == chosen


@pytest.mark.parametrize("script", BY_PROCESS)
@pytest.mark.parametrize(("device", "chosen"), [("cpu", [37]), ("meta", [])])
def test_a_run_chooses_by_its_width_and_on_a_cpu_alone(script, device, chosen, monkeypatch):
    """What a user has set for a GPU stays."""
    module, seen = import_module(script), []
    monkeypatch.setattr(module, "choose_products", seen.append)
    monkeypatch.setattr(module, "check_memory", lambda *_: None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device(device))
    module.Run(parse(script, "--hidden-size", 37, "--device", device))
    assert seen == chosen


@pytest.mark.parametrize("rows", [1, 40, 256])
def test_products_are_of_float32_whatever_was_chosen(rows):
    """bfloat16 would make 1 of 1 + 2^-20."""
    number, unit = torch.full((rows, 256), 1 + 2**-20), torch.eye(256)
    assert not torch.equal(number.bfloat16().float() @ unit, number)
    ppo.choose_products(256)
    assert torch.equal(number @ unit, number)
    assert torch.equal(
        torch.baddbmm(torch.zeros(2, 1, 256), number.expand(2, -1, -1), unit.expand(2, -1, -1))[1], number
    )


def test_the_benchmark_of_products(folder):
    """A row for each size, with the ratio of its two times; nonsense is refused in a line."""
    command = [sys.executable, ROOT / "benchmarks" / "products.py", "--rounds", "1", "--widths", "16", "--out", "t.csv"]
    if torch.cpu.get_capabilities().get("amx_tile"):
        pytest.skip("there oneDNN multiplies in bfloat16")
    subprocess.run([*command, "--rows", "4", "8", "--threads", "1"], check=True, capture_output=True)
    with open("t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["threads"], row["rows"], row["width"]) for row in rows] == [("1", "4", "16"), ("1", "8", "16")]
    assert all(
        float(row["ratio"]) == pytest.approx(float(row["mkl_us"]) / float(row["onednn_us"]), 0.1) for row in rows
    )
    done = subprocess.run([*command, "--rows", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_adam_is_that_of_torch(script):
    """The same bits in three steps, and in three more after a checkpoint."""
    module, weights, states = import_module(script), [], []
    for kind in (torch.optim.Adam, module.Adam):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(50))
        optimizer = kind([weight], lr=0.1, eps=1e-4, fused=True)
        for step in range(6):
            if step == 3:
                state, optimizer = optimizer.state_dict(), kind([weight], lr=1.0, eps=1e-4, fused=True)
                optimizer.load_state_dict(state)
            weight.grad = torch.randn(50)
            optimizer.step()
        weights.append(weight.detach())
        states.append(optimizer.state_dict())
    assert torch.equal(*weights)
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert all(torch.equal(states[0]["state"][0][name], value) for name, value in states[1]["state"][0].items())


@pytest.mark.parametrize("script", BY_PROCESS)
def test_a_run_imports_no_compiler(script, folder):
    """Half of a script's start would be torch._dynamo; nor does a resumed run."""
    flags = ["--env-id", SCRIPTS[script].env_ids[0], *SCRIPTS[script].short, "--total-timesteps", "96"]
    lines = f"""
import sys, pathlib, {script}
for flags in ({flags}, ["--total-timesteps", "192", "--resume", "RUN"]):
    sys.argv[1:] = [word if word != "RUN" else str(next(pathlib.Path("runs").iterdir())) for word in flags]
    {script}.train({script}.parse_args())
    print([name for name in sys.modules if name == "torch._dynamo"])
"""
    path = {"PYTHONPATH": f"{ROOT}:{TESTS}"}
    done = subprocess.run([sys.executable, "-c", lines], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1::2] == ["[]", "[]"]
