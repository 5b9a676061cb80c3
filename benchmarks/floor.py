"""Milliseconds of a script's update, and of the matrix products in it alone: the floor that no update gets below.

    python benchmarks/floor.py td3.py --hidden-size 256 --num-threads 2

Flags go to the script, which trains until it has made some updates. Those that follow are then made again and again, in
turn with their products: every mm, bmm, addmm, baddbmm and dot that was called, of the same shapes and layouts, into
memory that is there already. Prints one line of JSON; speed.py calls it.
"""

import importlib
import json
import statistics
import sys
from pathlib import Path

import common
import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm": torch.mm, "addmm": torch.mm, "bmm": torch.bmm, "baddbmm": torch.bmm, "dot": torch.dot}
WARM, UPDATES, ROUNDS, REPEATS = 50, 2, 30, 10  # of 2 updates, one has TD3's delayed actor


class Products(TorchDispatchMode):
    """Notes the operands of each matrix product that is called, forward and backward."""

    def __init__(self):
        super().__init__()
        self.operands = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            self.operands.append((PRODUCTS[name], *[x.detach().clone() for x in args[-2:]]))
        elif name in ("linear", "matmul", "mv", "addmv"):
            raise NotImplementedError(f"{name} is a product that the floor would leave out")
        return function(*args, **(kwargs or {}))


def milliseconds(function):
    """Mean over REPEATS calls."""
    began = common.seconds()
    for _ in range(REPEATS):
        function()
    return (common.seconds() - began) / REPEATS * 1000


class Enough(Exception):
    """Ends the training when what was wanted of it is there."""


def batches_of(script, flags, count):
    """Train a script by its command line -> the module, its run, and what run.backward was given in so many updates.

    An update begins with a step of the only optimizer or, off-policy, of the critics'; the first WARM are left out.
    """
    path = Path(script).resolve()
    sys.path.insert(0, str(path.parent if path.is_file() else common.ROOT))
    module, runs, found, made = importlib.import_module(path.stem), [], [], 0
    start = module.Run.start

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

    module.Run.start, sys.argv = started, [f"{module.__name__}.py", *flags]
    try:
        module.main()
    except Enough:
        module.Run.start = start
        return module, runs[0], found
    common.fail(f"{script} made {made} updates, and {WARM + count + 1} are needed: give more steps", status=1)


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


def measure(module, run, batches):
    """Medians over rounds of an update, and of its products alone, in turn -> milliseconds of both, and their ratio."""
    with Products() as products:
        update(module, run, module.backward, batches)  # not compiled: that would hide its products
    work = [(multiply, a, b, multiply(a, b)) for multiply, a, b in products.operands]

    @torch.no_grad()
    def floor():
        for multiply, a, b, out in work:
            multiply(a, b, out=out)

    def learn():
        update(module, run, run.unwatched, batches)

    times = [(milliseconds(learn), milliseconds(floor)) for _ in range(ROUNDS)]
    update_ms, floor_ms = (statistics.median(column) / UPDATES for column in zip(*times, strict=True))
    multiple = statistics.median(mine / floor for mine, floor in times)
    return {"update_ms": update_ms, "floor_ms": floor_ms, "multiple": multiple, "products": len(work) / UPDATES}


def main(script, *flags):
    """Train the script up to its updates, and print what was measured of them."""
    print(json.dumps(measure(*batches_of(script, flags, UPDATES))))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        common.fail("name a script, and give its flags after it")
    main(*sys.argv[1:])
