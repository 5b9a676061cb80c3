"""Command lines that nobody thought of: each starts a run, or is refused in one line with status 2.

python -m pytest tests/test_flags.py --hypothesis-profile=release tries 500 of each script, and not 40.
"""

import contextlib
import io
from dataclasses import fields
from importlib import import_module
from itertools import chain
from pathlib import Path

import pytest
import torch
from harness import SCRIPTS, parse, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ENVIRONMENTS = ["CartPole-v1", "Pendulum-v1", "CartPol-v1", "probes:NoSuch-v0", "no_such:Id", "probes:SameStep-v0"]
ENVIRONMENTS += ["probes:UnboundedActionReward-v0", "probes:ActsInMatrix-v0", "", ":", "a:b:c", ".:x", "os:", "/", "-"]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)  # a shell passes no NUL
SPECIAL = ["", "x", "1.5", "0x10", "1_0", " 1", "1e3", "nan", "inf", "-inf", "-0", "True"]
INTEGERS = st.integers(-2, 40) | st.sampled_from([2**k + i for k in (31, 32, 53, 62, 63, 64) for i in (-1, 0, 1)])
NUMBERS = st.sampled_from(SPECIAL) | INTEGERS.map(str) | st.integers().map(str) | WORDS
FLOATS = st.floats(0, 1).map(str) | st.floats().map(str) | NUMBERS
TEXTS = {
    "env_id": st.sampled_from(ENVIRONMENTS),
    "device": st.sampled_from(["auto", "cpu", "cuda", "mps", "cpu:0", "meta"]),
    "resume": st.sampled_from(["trained", "none", "trained/checkpoint.pt", "/", "."]),
}
TEXTS["evaluate"] = TEXTS["resume"]


def words_of(field):
    """A flag in one of its forms, with a value that may be anything."""
    flag = f"--{field.name.replace('_', '-')}"
    if field.type is bool:  # --async-envs would start processes; other tests do
        forms = [[f"--no-{flag[2:]}"], [flag, "maybe"], [f"{flag}=True"], *[[flag]] * (field.name != "async_envs")]
        return st.sampled_from(forms)
    usual = {int: st.integers(1, 9).map(str), float: st.floats(0, 1).map(str), str: TEXTS.get(field.name)}[field.type]
    unusual = {int: NUMBERS, float: FLOATS, str: WORDS}[field.type]
    # Not by one_of, which would give each alternative inside of unusual the weight of a usual one.
    values = st.sampled_from([usual, usual, usual, unusual]).flatmap(lambda values: values)
    return st.one_of(values.map(lambda value: [flag, value]), values.map(lambda value: [f"{flag}={value}"]))


def lines_of(script):
    """Up to four flags, or what is none."""
    flags = st.one_of(*[words_of(field) for field in fields(import_module(script).Args)])
    strays = st.lists(WORDS, max_size=2)
    return st.lists(st.one_of(*[flags] * 9, strays), max_size=4).map(lambda parts: [*chain(*parts)])


class Started(BaseException):
    """The run is at its first step of an environment."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_line_of_flags_starts_a_run_or_is_refused(script, folder, monkeypatch, record_property):
    module, counts = import_module(script), {"started": 0, "refused": 0}
    _, trained = train(script, *SCRIPTS[script].short, "--total-timesteps", SCRIPTS[script].period)
    trained.folder.rename("trained")

    def started(self, action):
        self.bar.close()
        self.writer.close()
        self.envs.close()
        raise Started

    monkeypatch.setattr(module.Run, "env_step", started)

    @given(lines_of(script))
    @settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
    def check(words):
        if {"-h", "--help"} & set(words):
            return
        before = Path("trained", "checkpoint.pt").read_bytes()
        stdout, stderr = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                module.train(parse(script, *words))
            assert "eval_return=" in stdout.getvalue()  # --evaluate
            counts["started"] += 1
        except Started:
            counts["started"] += 1
        except SystemExit as stop:
            assert stop.code == 2
            line = stderr.getvalue()
            assert line.startswith(f"{script}.py: error: ") and line.endswith("\n") and len(line.splitlines()) == 1
            assert len(line) > len(f"{script}.py: error: \n"), "it does not say what"
            assert not stdout.getvalue()
            counts["refused"] += 1
        assert Path("trained", "checkpoint.pt").read_bytes() == before

    try:
        check()
    finally:
        torch.set_num_threads(1)
    record_property("counts", counts)
    assert min(counts.values()) > 0.1 * sum(counts.values()), f"one-sided: {counts}"
