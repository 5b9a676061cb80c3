"""--cuda-graph changes how an update is computed, and nothing of what: on a CPU with graphs that are emulated."""

import importlib
from types import SimpleNamespace

import cuda_graphs
import pytest
import torch
from harness import SCRIPTS, differences, end, scalars, state, train

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
# A graph's learning rate is a float32, and these are such numbers: a power of two, annealed by sixteenths.
RATE = 2**-9
RATES = dict.fromkeys(SCRIPTS, ("--learning-rate", RATE)) | {"sac": ("--policy-lr", RATE, "--q-lr", 2 * RATE)}


def small(script, *flags):
    """Sixteen rollouts; episodes of the REINFORCE scripts have 7 steps, so that all their updates have one shape."""
    row, steps = SCRIPTS[script], 16 * SCRIPTS[script].period
    lengths = ("--total-timesteps", steps, "--checkpoint-every", steps // 2)
    return ("--env-id", row.env_ids[-1], *row.short, *RATES[script], *lengths, *flags)


@pytest.fixture
def emulated(monkeypatch):
    """Graphs on a CPU, which no script refuses then -> a list of all that are made."""
    for script in SCRIPTS:
        module = importlib.import_module(script)

        def refuse(bad, message, module=module, refuse=module.refuse):
            refuse(bad and "--cuda-graph" not in message, message)

        monkeypatch.setattr(module, "refuse", refuse)
    return cuda_graphs.on_cpu(monkeypatch)


@EACH_SCRIPT
def test_a_run_by_graphs_ends_with_the_same_bits(script, folder, emulated):
    """Each update's batch, learning rate and noise are its own; TD3's two kinds of update have a graph each."""
    _, plain = train(script, *small(script))
    assert not emulated
    _, by_graph = train(script, *small(script, "--cuda-graph"))
    assert [graph.replays > 3 for graph in emulated] == [True] * (2 if script == "td3" else 1)
    assert differences(state(plain.folder), state(by_graph.folder)) == []
    assert plain.mean == by_graph.mean
    plain, by_graph = scalars(plain.folder), scalars(by_graph.folder)
    assert plain.keys() == by_graph.keys()
    assert all(plain[tag] == by_graph[tag] for tag in plain.keys() - {"charts/SPS"})


def by_graph(script):
    """A wrapper around an update that sums a batch -> a function of the size, and the sizes that the update saw."""
    module, seen = importlib.import_module(script), []

    def update(agent, optimizer, batch, args):
        seen.append(len(batch[0]))
        return {"sum": batch[0].sum()}

    graphed, agent, optimizer = module.graphed(update), SimpleNamespace(), torch.optim.Adam([torch.zeros(1)])

    def sum_of(size):
        batch = [torch.rand(size)]
        assert graphed(agent, optimizer, batch, module.Args(cuda_graph=True))["sum"] == batch[0].sum()

    return sum_of, seen


@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_another_shape_has_another_graph(script, emulated):
    """And each is made three times as it is before; a capture is a call that computes nothing."""
    sum_of, seen = by_graph(script)
    for size in (2, 3, 2, 3, 2, 2, 3, 3, 2, 2, 2):
        sum_of(size)
    assert seen == [2, 3, 2, 3, 2, 2, 3, 3]
    assert [graph.replays for graph in emulated] == [4, 1]


def test_eight_graphs_are_kept(emulated):
    """Of ever new shapes the one that was not asked for longest goes, and its memory with it."""
    sum_of, seen = by_graph("reinforce")
    for size in (*range(1, 9), *[1] * 4):
        sum_of(size)
    assert len(emulated) == 1 and emulated[0].replays == 2
    sum_of(9)  # in place of 2
    seen.clear()
    sum_of(1)
    assert not seen and emulated[0].replays == 3
    for _ in range(4):
        sum_of(2)  # in place of 3, from the beginning
    assert seen == [2, 2, 2, 2] and len(emulated) == 2


@EACH_SCRIPT
def test_without_a_gpu_it_is_refused(script, folder):
    status, stdout, stderr = end(script, *small(script, "--cuda-graph", "--device", "cpu"))
    assert (status, stdout) == (2, "")
    assert stderr == f"{script}.py: error: --cuda-graph is for --device cuda, not cpu\n"
    assert not list(folder.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [(), ("--compile",)])
@EACH_SCRIPT
def test_on_a_gpu(script, compiled, folder, monkeypatch):
    """An update never waits for it; by real graphs weights are the same to rounding, and so the noise is the same."""
    module = importlib.import_module(script)
    update = module.update

    def unsynchronised(*given):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return update(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with monkeypatch.context() as patch:
        patch.setattr(module, "update", unsynchronised)
        _, plain = train(script, *small(script, "--device", "cuda"))
    _, by_graph = train(script, *small(script, "--device", "cuda", "--cuda-graph", *compiled))
    assert plain.steps == by_graph.steps
    for name, value in state(plain.folder)["agent"].items():
        torch.testing.assert_close(state(by_graph.folder)["agent"][name], value, rtol=1e-3, atol=1e-4)
