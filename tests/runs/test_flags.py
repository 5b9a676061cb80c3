"""Command lines that nobody thought of: each starts a run, or is refused with status 2 and no traceback.

--hypothesis-profile=release tries 500 of each script instead of 40.
"""

import contextlib
from dataclasses import fields
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
import torch
from harness import SCRIPTS, end, train
from hypothesis import HealthCheck, given, settings, strategies as st

ENVIRONMENTS = ["CartPole-v1", "Pendulum-v1", "CartPol-v1", "probes:NoSuch-v0", "no_such:Id", "probes:SameStep-v0"]
ENVIRONMENTS += ["probes:UnboundedActionReward-v0", "probes:ActsInMatrix-v0", "", ":", "a:b:c", ".:x", "os:", "/", "-"]
TEXTS = {
    "env_id": ENVIRONMENTS,
    "env_kwargs": ["{}", "", "3", "[]", "null", "{", '{"no_such": 1}', '{"num_envs": 2}', '{"render_mode": "no"}'],
    "device": ["auto", "cpu", "cuda", "mps", "cpu:0", "meta"],
    "matmul_precision": ["highest", "high", "medium", "low", ""],
    "resume": ["trained", "none", "trained/checkpoint.pt", "/", "."],
    "evaluate": ["trained", "none", "trained/checkpoint.pt", "/", "."],
}
SIZES = ("num_envs", "num_steps", "num_threads", "hidden_size", "batch_size", "buffer_size", "eval_episodes")
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)  # a shell passes no NUL
SPECIAL = st.sampled_from(["", "x", "1.5", "0x10", "1_0", " 1", "1e3", "nan", "inf", "-inf", "-0", "True"])
LARGE = st.sampled_from([2**k + i for k in (31, 32, 53, 62, 63, 64) for i in (-1, 0, 1)])


def values_of(field):
    """Usual values of a flag three times in four, else anything. What would fill the memory is left out."""
    if field.name in TEXTS:
        usual, unusual = st.sampled_from(TEXTS[field.name]), WORDS
    elif field.type is float:
        usual, unusual = st.floats(0, 1).map(str), st.floats().map(str) | LARGE.map(str) | SPECIAL | WORDS
    else:
        integers = st.integers(-2, 40) if field.name in SIZES else st.integers(-2, 40) | LARGE
        usual, unusual = st.integers(1, 9).map(str), integers.map(str) | SPECIAL
    return st.sampled_from([usual, usual, usual, unusual]).flatmap(lambda values: values)


def words_of(field):
    """A flag in one of its forms, with a value."""
    flag = f"--{field.name.replace('_', '-')}"
    if field.type is bool:  # --async-envs starts processes; other tests do
        forms = [[f"--no-{flag[2:]}"], [flag, "maybe"], [f"{flag}=True"], *[[flag]] * (field.name != "async_envs")]
        return st.sampled_from(forms)
    return values_of(field).map(lambda value: [flag, value]) | values_of(field).map(lambda value: [f"{flag}={value}"])


def lines_of(script):
    """Up to four flags, or stray words."""
    flags = st.one_of(*[words_of(field) for field in fields(import_module(script).Args)])
    strays = st.lists(WORDS, max_size=2)
    return st.lists(st.one_of(*[flags] * 9, strays), max_size=4).map(lambda parts: [*chain(*parts)])


class Started(BaseException):
    """The run is at its first step."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_any_line_of_flags_starts_a_run_or_is_refused(script, folder, monkeypatch):
    module, counts = import_module(script), {"started": 0, "refused": 0}
    _, trained = train(script, *SCRIPTS[script].short, "--total-timesteps", SCRIPTS[script].period)
    trained.folder.rename("trained")
    before = Path("trained", "checkpoint.pt").read_bytes()

    def started(self, action):
        raise Started

    monkeypatch.setattr(module.Run, "env_step", started)

    @given(lines_of(script))
    @settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
    def check(words):
        if {"-h", "--help"} & set(words):
            return
        status = "started"
        with contextlib.suppress(Started):
            status, stdout, stderr = end(script, *words)
        if status == "started":
            counts["started"] += 1
        elif status == 0:
            assert "eval_return=" in stdout  # --evaluate
            counts["started"] += 1
        else:
            assert (status, stdout) == (2, "")
            assert stderr.startswith(f"{script}.py: error: ") == (len(stderr.splitlines()) == 1)
            assert len(stderr) > len(f"{script}.py: error: \n"), "it does not say what is wrong"
            counts["refused"] += 1
        assert Path("trained", "checkpoint.pt").read_bytes() == before

    try:
        check()
    finally:
        torch.set_num_threads(1)
    assert min(counts.values()) > 0.1 * sum(counts.values()), f"one-sided: {counts}"
