"""--compile changes the speed and nothing else."""

import contextlib
import shutil
from importlib import import_module

import pytest
import torch
from harness import OFF_POLICY, SCRIPTS, parse, state, train
from stops import small
from torch._dynamo.utils import counters

NEEDS_COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags"),
    [("ppo", ("--ent-coef", 0.01, "--norm-obs", "--norm-reward")), ("sac", ())],
)
def test_compiled_run_equals_eager_to_rounding(script, flags, folder):
    """After several updates, with every branch of the loss."""
    flags = (*small(script, 4 if script in OFF_POLICY else 2), *flags)
    eager, compiled = (state(train(script, *flags, *more)[1].folder)["state"][0] for more in ((), ("--compile",)))
    torch.testing.assert_close(compiled["agent"], eager["agent"], rtol=1e-3, atol=1e-5)


@pytest.fixture
def traced(monkeypatch):
    """Trace without a C++ compiler -> a list of (fullgraph, graphs), one for each compiled function."""
    compile, calls = torch.compile, []

    def trace(function, *, fullgraph=False, options=None, **kwargs):
        graphs = []
        calls.append((fullgraph, graphs))

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        return compile(function, fullgraph=fullgraph, backend=backend, **kwargs)

    monkeypatch.setattr(torch, "compile", trace)
    yield calls
    torch.compiler.reset()


@pytest.mark.parametrize(
    "script", [s if s in ("ppo", "sac") else pytest.param(s, marks=pytest.mark.slow) for s in SCRIPTS]
)
def test_each_objective_is_one_graph_forward_and_backward(script, traced, folder):
    """A second graph of the same objective may only be for other sizes of a batch."""
    counters.clear()
    flags = small(script, 1, "--compile", env_id="Pendulum-v1" if script == "ppo" else None)
    with contextlib.redirect_stdout(None):
        import_module(script).train(parse(script, *flags), merge=False)
    ((fullgraph, graphs),) = traced
    assert fullgraph
    assert not counters["graph_break"]
    objectives = 2 if script in OFF_POLICY else 1
    assert objectives <= len(graphs) <= 2 * objectives


@pytest.mark.slow
def test_many_flag_sets_in_one_process_compile(traced, folder):
    """Each run compiles for itself: torch's limit of recompilations is not reached."""
    for size in range(2, 12):
        train("reinforce", *small("reinforce", 1), "--compile", "--hidden-size", size, "--gamma", 1 - size / 50)
    assert len(traced) == 10
    assert all(graphs for _, graphs in traced)
