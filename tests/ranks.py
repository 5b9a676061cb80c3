"""Run under torchrun by test_ranks.py: a run of several processes, each of which writes what it finds to {rank}.pt."""

import importlib
import os
import sys
from pathlib import Path

import probes
import torch
import torch.distributed.nn  # before there is a process group, which it would keep alive
from torch import distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def decisions(columns, log_prob=0.0):
    """A function of a rank that makes random decisions, 3 among the steps of rank 0 and 11 among those of rank 1."""

    def batch(agent, rank):
        size, rng = 12, torch.manual_seed(rank)
        obs, action = torch.randn(size, 3, generator=rng), torch.randn(size, 3, generator=rng)
        first, *rest = torch.randn(columns, size, generator=rng)
        return [obs, action, first + log_prob, *rest, (torch.arange(size) < (3, 11)[rank]).float()]

    return batch


BATCHES = {
    "reinforce": (decisions(1), "--no-norm-returns"),
    "reinforce_baseline": (decisions(2), "--no-norm-adv"),
    "a2c": (decisions(2), "--no-norm-adv", "--max-grad-norm", "1e9"),
    "ppo": (decisions(4, log_prob=-5), "--no-norm-adv", "--max-grad-norm", "1e9"),
}
script, *flags = sys.argv[1:]
batch, *more = BATCHES[script]
module, found, rank = importlib.import_module(script), {}, int(os.environ["RANK"])
distributed.init_process_group("gloo")

# One step on a minibatch of each rank is one step on both in one: each decision weighs the same.
sys.argv = [f"{script}.py", *flags, *more]
args = module.parse_args()
torch.manual_seed(0)
agent = module.Agent(module.make_envs(args, 1), args)
parameters = list(agent.parameters())
both = [torch.cat(pair) for pair in zip(batch(agent, 0), batch(agent, 1), strict=True)]
gradients = torch.autograd.grad(module.loss(agent, both, args)[0], parameters)
found["expected"] = [p.detach() - 0.1 * gradient for p, gradient in zip(parameters, gradients, strict=True)]
module.update(agent, torch.optim.SGD(parameters, lr=0.1), batch(agent, rank), args)
found["updated"] = [parameter.detach() for parameter in parameters]

if hasattr(module, "RunningNorm"):
    norm = module.RunningNorm(1, True)
    norm.update(torch.tensor([[[1.0]], [[3.0]]]) + 4 * rank, torch.ones(2, 1))  # 1 and 3, 5 and 7
    found["normalised"] = norm(torch.tensor([[5.0]]))

sys.argv = [f"{script}.py", *flags]
found["agent"] = module.train(module.parse_args()).state_dict()
found["seeds"] = probes.Spy.seeds[:2]  # those of this process's two environments
torch.save(found, f"{rank}.pt")
if distributed.is_initialized():
    distributed.barrier()
    distributed.destroy_process_group()
