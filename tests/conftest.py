"""One thread in every process; scripts, helpers, tools and benchmarks can be imported; changes of a run are undone."""

import os
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("default", max_examples=40, deadline=None, derandomize=True, database=None)
settings.register_profile("release", settings.get_profile("default"), max_examples=500, derandomize=False)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def put_back():
    """main installs signal handlers, and a run sets threads and precision: undo it after each test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A new working folder, because scripts write runs/ where they are started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
