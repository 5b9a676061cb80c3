"""Milliseconds of a script's update, and of the matrix products in it alone: the floor that no update gets below.

    python benchmarks/floor.py td3.py --hidden-size 256 --num-threads 2

Flags go to the script, which trains until it has made some updates. Those that follow are then made again and again, in
turn with their products: every mm, bmm, addmm, baddbmm and dot that was called, of the same shapes and layouts, into
memory that is there already. Prints one line of JSON; speed.py calls it.
"""

import dataclasses
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


@torch.no_grad()
def measure(update, calls):
    """Medians over rounds of an update, and of its products alone, in turn -> milliseconds of both, and their ratio."""
    with Products() as products, torch.enable_grad():
        for *args, flags in calls:
            seen = dataclasses.replace(flags, compile=False, cuda_graph=False)  # a graph would hide its products
            update(*args, seen)
    work = [(multiply, a, b, multiply(a, b)) for multiply, a, b in products.operands]

    def floor():
        for multiply, a, b, out in work:
            multiply(a, b, out=out)

    def learn():
        with torch.enable_grad():
            for args in calls:
                update(*args)

    times = [(milliseconds(learn), milliseconds(floor)) for _ in range(ROUNDS)]
    update_ms, floor_ms = (statistics.median(column) / len(calls) for column in zip(*times, strict=True))
    multiple = statistics.median(mine / floor for mine, floor in times)
    return {"update_ms": update_ms, "floor_ms": floor_ms, "multiple": multiple, "products": len(work) / len(calls)}


def main(script, *flags):
    """Train the script up to its updates, and print what was measured of them."""
    sys.path.insert(0, str(common.ROOT))
    module, calls = importlib.import_module(Path(script).stem), []
    update, made = module.update, 0

    def watch(*args):
        nonlocal made
        made += 1
        if made > WARM:
            calls.append(args)
        if len(calls) == UPDATES:
            print(json.dumps(measure(update, calls)))
            raise SystemExit
        return update(*args)

    module.update = watch
    sys.argv = [f"{module.__name__}.py", *flags]
    module.train(module.parse_args())
    common.fail(f"{script} made {made} updates, and {WARM + UPDATES} are needed: give more steps", status=1)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        common.fail("name a script, and give its flags after it")
    main(*sys.argv[1:])
