"""Where a script's time goes: its parts, and an update beside its matrix products alone.

    python benchmarks/speed/parts.py ppo.py --num-envs 8 --num-steps 32 --num-minibatches 1 --update-epochs 20

Flags go to the script, which is trained once, with a clock around its functions. A part that stands under another is
contained in it. Then some updates are made again and again, in turn with their products: every mm, bmm, addmm, baddbmm
and dot that was called, of the same shapes and layouts, into memory that is there already.
"""

import contextlib
import importlib
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

sys.path.insert(0, str(common.ROOT))
PRODUCTS = {"mm": torch.mm, "addmm": torch.mm, "bmm": torch.bmm, "baddbmm": torch.bmm, "dot": torch.dot}
WARM, UPDATES, ROUNDS, REPEATS = 50, 2, 30, 10  # of 2 updates, one has TD3's delayed actor


def timed(spent, owner, name, label):
    """Put a clock around owner.name, if it has that."""
    function = getattr(owner, name, None)

    def clocked(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[label].append(time.perf_counter() - began)

    if function:
        setattr(owner, name, clocked)


def watch(module):
    """Clocks around what a script and torch do in a loop -> {part: seconds of each call}"""
    spent, make_envs = defaultdict(list), module.make_envs

    def watched_envs(*args, **kwargs):
        envs = make_envs(*args, **kwargs)
        timed(spent, envs, "step", "&nbsp;&nbsp;envs.step")
        return envs

    module.make_envs = watched_envs
    for owner, names in (
        (module.Agent, ("act",)),
        (module.Run, ("env_step", "log_and_save")),
        (getattr(module, "ReplayBuffer", None), ("add", "sample")),
        (module, ("gae", "returns_to_go", "backward", "update_policy", "polyak_update")),
        (module.nn.utils, ("clip_grad_norm_",)),
    ):
        for name in names:
            timed(spent, owner, name, name)
    timed(spent, torch.optim.Adam, "step", "Adam.step")
    return spent


class Products(TorchDispatchMode):
    """Notes the operands of each matrix product that is called, forward and backward."""

    def __init__(self):
        super().__init__()
        self.operands = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            self.operands.append((PRODUCTS[name], *[x.detach().clone() for x in args[-2:]]))
        elif name in ("linear", "matmul", "mv", "addmv", "convolution"):
            raise NotImplementedError(f"{name} is a product that would be left out")
        return function(*args, **(kwargs or {}))


class Enough(Exception):
    """Ends the training when what was wanted of it is there."""


def batches_of(module, flags, count):
    """Train a script -> its run, and what run.backward was given in so many updates; the first WARM are left out.

    An update begins with a step of the only optimizer or, off-policy, of the critics'.
    """
    runs, found, made, start = [], [], 0, module.Run.start

    def started(run, **state):
        start(run, **state)
        runs.append(run)
        run.unwatched, run.backward = run.backward, watched

    def watched(loss, agent, batch, args):
        nonlocal made
        made += loss.__name__ in ("loss", "critic_objective")
        if made > WARM + count:
            raise Enough
        if made > WARM:
            found.append((loss, agent, batch, args))
        return runs[0].unwatched(loss, agent, batch, args)

    module.Run.start = started
    try:
        with contextlib.suppress(Enough):
            module.train(flags)
            common.fail(f"{made} updates were made, and {WARM + count + 1} are needed: give more steps", status=1)
    finally:
        module.Run.start = start
    return runs[0], found


def update(module, run, backward, batches):
    """The updates of these batches once more, as the script's learn makes them."""
    for loss, agent, batch, args in batches:
        name = {"critic_objective": "critic_optimizer", "actor_objective": "actor_optimizer"}
        optimizer = run.state[name.get(loss.__name__, "optimizer")]
        optimizer.zero_grad()
        backward(loss, agent, batch, args)
        if hasattr(args, "max_grad_norm"):
            torch.nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
        optimizer.step()
        if loss.__name__ == "actor_objective":
            for part in ("actor", "critic"):
                if target := getattr(agent, f"target_{part}", None):
                    module.polyak_update(target, getattr(agent, part), args.tau)


def floor(module, run, batches):
    """Medians over rounds, in turn: milliseconds of an update, of its products alone, and how many those are."""
    with Products() as products:
        update(module, run, module.backward, batches)  # not compiled: that would hide its products
    work = [(multiply, a, b, multiply(a, b)) for multiply, a, b in products.operands]

    @torch.no_grad()
    def multiply_all():
        for multiply, a, b, out in work:
            multiply(a, b, out=out)

    def milliseconds(function, *args):
        began = time.perf_counter()
        for _ in range(REPEATS):
            function(*args)
        return (time.perf_counter() - began) / REPEATS * 1000

    times = [
        (milliseconds(update, module, run, run.unwatched, batches), milliseconds(multiply_all)) for _ in range(ROUNDS)
    ]
    return *(statistics.median(column) / UPDATES for column in zip(*times, strict=True)), len(work) / UPDATES


def main(script, *flags):
    import tyro

    module = importlib.import_module(Path(script).stem)
    args = tyro.cli(module.Args, args=flags)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run, batches = batches_of(module, args, UPDATES)
        mine, products, count = floor(module, run, batches)
        spent, began = watch(module), time.perf_counter()
        module.train(args)
        whole = time.perf_counter() - began
    parts = [(name, len(x), f"{1e6 * sum(x) / len(x):.0f}", f"{sum(x) / whole:.0%}") for name, x in spent.items()]
    print("\n".join(common.markdown((Path(script).name, "calls", "us each", f"share of {whole:.1f} s"), parts)))
    print(f"\nAn update takes {mine:.2f} ms, its {count:g} matrix products alone {products:.2f} ms.")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        common.fail("name a script, and give its flags after it")
    main(*sys.argv[1:])
