"""Where a script's time goes: its parts, and the torch operations of its updates.

    python benchmarks/parts.py ppo.py --num-envs 8 --num-steps 32 --num-minibatches 1 --update-epochs 20

Flags go to the script, which is trained once with a clock around its functions and then, for the operations, under
torch's profiler. A part that stands under another is contained in it. A script of another commit is given by its path.
"""

import importlib
import sys
import tempfile
from collections import defaultdict
from contextlib import chdir
from pathlib import Path

import common
import floor
import torch
from torch.profiler import ProfilerActivity, profile

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::dot")
FUNCTIONS = (
    "tanh",
    "relu",
    "threshold",
    "exp",
    "expm1",
    "log",
    "softplus",
    "pow",
    "sqrt",
    "where",
    "clamp",
    "minimum",
    "maximum",
)
ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "sum",
    "mean",
    "lerp",
    "abs",
    "gt",
    "amin",
    "norm",
    "renorm",
    "fill",
    "zero",
)
UPDATES = 300  # under torch's profiler


def timed(spent, owner, name, label):
    """Put a clock around owner.name, if it has that."""
    function = getattr(owner, name, None)

    def clocked(*args, **kwargs):
        began = common.seconds()
        try:
            return function(*args, **kwargs)
        finally:
            spent[label].append(common.seconds() - began)

    if function:
        setattr(owner, name, clocked)


def watch(module, spent):
    """Clocks around what a script and torch do in a loop."""
    make_envs = module.make_envs

    def watched_envs(*args, **kwargs):
        envs = make_envs(*args, **kwargs)
        timed(spent, envs, "step", "  envs.step")
        return envs

    module.make_envs = watched_envs
    timed(spent, module.Agent, "act", "act")
    timed(spent, module.Run, "env_step", "env_step")
    for name in ("gae", "returns_to_go"):
        timed(spent, module, name, name)
    if hasattr(module, "ReplayBuffer"):
        timed(spent, module.ReplayBuffer, "add", "buffer.add")
        timed(spent, module.ReplayBuffer, "sample", "buffer.sample")
    timed(spent, module, "backward", "backward")
    timed(spent, module.nn.utils, "clip_grad_norm_", "clip_grad_norm_")
    timed(spent, torch.optim.Adam, "step", "Adam.step")
    timed(spent, module, "polyak_update", "polyak_update")
    timed(spent, module.Run, "log_and_save", "log_and_save")


def kind(operation):
    """What sort of work an operation of torch's profiler is."""
    name = operation.removeprefix("aten::").strip("_").split("_")[0]
    if operation in PRODUCTS:
        return "matrix products"
    if operation.startswith("Optimizer.step") or "fused_adam" in operation:
        return "Adam"
    if name in FUNCTIONS:
        return "functions (tanh, relu, exp, ...)"
    if name in ARITHMETIC:
        return "arithmetic and sums"
    return "views, copies, autograd"


def main(script, *flags):
    script = path = Path(script).resolve()
    if not path.is_file():
        common.fail(f"{script} is no file")
    sys.path.insert(0, str(path.parent))
    sys.argv = [path.name, *flags]
    module, spent = importlib.import_module(path.stem), defaultdict(list)
    watch(module, spent)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        began = common.seconds()
        module.main()
        whole = common.seconds() - began
        print(f"\n| {path.name} | calls | us each | share of {whole:.1f} s |\n|---|---|---|---|")
        for part, seconds in spent.items():
            name, mean = part.replace("  ", "&nbsp;&nbsp;"), 1e6 * sum(seconds) / len(seconds)
            print(f"| {name} | {len(seconds)} | {mean:.0f} | {sum(seconds) / whole:.0%} |")

        found = defaultdict(lambda: [0, 0.0])
        module, run, batches = floor.batches_of(script, flags, UPDATES)
        with profile(activities=[ProfilerActivity.CPU]) as watcher:
            floor.update(module, run, module.backward, batches)
        for event in watcher.key_averages():
            found[kind(event.key)][0] += event.count
            found[kind(event.key)][1] += event.self_cpu_time_total
        print("\n| operations | in an update | us, by the profiler |\n|---|---|---|")
        for name, (count, microseconds) in sorted(found.items(), key=lambda item: -item[1][1]):
            print(f"| {name} | {count / UPDATES:.0f} | {microseconds / UPDATES:.0f} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        common.fail("name a script, and give its flags after it")
    if "--compile" in sys.argv:
        common.fail("--compile: one graph has no parts to put a clock around; floor.py measures it")
    main(*sys.argv[1:])
