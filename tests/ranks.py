"""Run under torchrun by test_ranks.py: a run of several processes, each of which writes what it finds to {rank}.pt."""

import copy
import hashlib
import importlib
import os
import sys
from pathlib import Path
from unittest import mock

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


def transitions(agent, rank):
    """Of a replay buffer: as many on either rank."""
    rng = torch.manual_seed(rank)
    return [*torch.randn(3, 8, 3, generator=rng), *torch.randn(2, 8, generator=rng)]


BATCHES = {
    "reinforce": (decisions(1), "--no-norm-returns"),
    "reinforce_baseline": (decisions(2), "--no-norm-adv"),
    "a2c": (decisions(2), "--no-norm-adv", "--max-grad-norm", "1e9"),
    "ppo": (decisions(4, log_prob=-5), "--no-norm-adv", "--max-grad-norm", "1e9"),
    "ddpg": (transitions,),
    "td3": (transitions,),
    "sac": (transitions,),
}
script, *flags = sys.argv[1:]
batch_of, *more = BATCHES[script]
module, found, rank = importlib.import_module(script), {}, int(os.environ["RANK"])
distributed.init_process_group("gloo")


def updated(agent, batch):
    """The weights after an update by SGD, with no noise in it."""
    named = [(name, p) for name, p in agent.named_parameters() if not name.startswith("target_")]
    parameters = [p for _, p in named]
    with mock.patch.object(torch, "randn_like", torch.zeros_like):
        if batch_of is transitions:
            parts = agent.critic.parameters(), [p for name, p in named if not name.startswith("critic")]
            optimizers = [torch.optim.SGD([module.flatten(part)], lr=0.1) for part in parts]
            module.update(agent, *optimizers, batch, *(() if script == "ddpg" else (0,)), args)
        else:
            module.update(agent, torch.optim.SGD([module.flatten(parameters)], lr=0.1), batch, args)
    return [parameter.detach() for parameter in agent.parameters()]


# One step on a minibatch of each rank is one step on both in one: each decision weighs the same.
sys.argv = [f"{script}.py", *flags, *more]
args = module.parse_args()
torch.manual_seed(0)
agent = module.Agent(module.make_envs(args, 1), args)
both = [torch.cat(pair) for pair in zip(batch_of(agent, 0), batch_of(agent, 1), strict=True)]
with mock.patch.object(module, "average_over_ranks", lambda gradient, weight: None):
    found["expected"] = updated(copy.deepcopy(agent), both)
found["updated"] = updated(agent, batch_of(agent, rank))

if hasattr(module, "RunningNorm"):
    norm = module.RunningNorm(1, True)
    norm.update(torch.tensor([[[1.0]], [[3.0]]]) + 4 * rank, torch.ones(2, 1))  # 1 and 3, 5 and 7
    found["normalised"] = norm(torch.tensor([[5.0]]))

digests, update = [], module.update


def noted(agent, *rest):
    """An update of the run; what the weights are after it is to be the same on both ranks."""
    metrics = update(agent, *rest)
    weights = torch.cat([parameter.detach().flatten() for parameter in agent.parameters()])
    digests.append(hashlib.sha256(weights.numpy().tobytes()).hexdigest())
    return metrics


module.update = noted
sys.argv = [f"{script}.py", *flags]
found["agent"] = module.train(module.parse_args()).state_dict()
found["digests"] = digests
found["seeds"] = probes.Spy.seeds[:2]  # those of this process's two environments
torch.save(found, f"{rank}.pt")
if distributed.is_initialized():
    distributed.barrier()
    distributed.destroy_process_group()
