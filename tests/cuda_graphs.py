"""CUDA graphs on a CPU: what is captured is noted operation by operation, and replayed on the same memory.

As on a GPU, a capture computes nothing that stays, numbers that Python gives are constants of the graph, whatever it
makes has the same memory at each replay, and a look from the host at what is captured is an error.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


class Graph(TorchDispatchMode):
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.replays = [], {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name in LOOKS:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        given = [*zip(args, function._schema.arguments, strict=False)]
        given += [(kwargs[x.name], x) for x in function._schema.arguments if x.name in kwargs]
        for value, argument in given:
            if argument.alias_info and argument.alias_info.is_write:
                for x in tensors(value):
                    self.before.setdefault(memory(x), (x, x.detach().clone()))
        out = function(*args, **kwargs)
        old = {memory(x) for x in tensors((args, kwargs))}
        self.calls.append((function, args, kwargs, [memory(x) not in old for x in tensors(out)], out))
        return out

    @contextlib.contextmanager
    def capture(self):
        generator = torch.get_rng_state()
        with self:
            yield
        with torch.no_grad():
            for x, value in self.before.values():
                x.copy_(value)
            for *_, new, out in self.calls:
                for x, is_new in zip(tensors(out), new, strict=True):
                    if is_new and x.is_floating_point():
                        x.fill_(torch.nan)  # nothing was computed: only a replay does
        torch.set_rng_state(generator)

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, args, kwargs, new, out in self.calls:
            again = function(*args, **kwargs)
            for x, y, is_new in zip(tensors(out), tensors(again), new, strict=True):
                if is_new:
                    x.copy_(y)


class Stream:
    """In place of torch.cuda.Stream: on a CPU all is in order anyway."""

    def wait_stream(self, stream):
        assert isinstance(stream, Stream)
        assert stream is not self


def on_cpu(monkeypatch):
    """Puts these in place of torch.cuda's -> a list of all graphs that will be made."""
    main, graphs = Stream(), []

    def make():
        graphs.append(Graph())
        return graphs[-1]

    for name, value in {
        "CUDAGraph": make,
        "graph": lambda graph, capture_error_mode: graph.capture(),
        "Stream": Stream,
        "current_stream": lambda: main,
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return graphs
