"""Run under torchrun by test_ranks.py: a run of each script by several processes, which write {script}{rank}.pt."""

import copy
import hashlib
import importlib
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import probes
import torch
import torch.distributed.nn  # before there is a process group, which it would keep alive
from harness import SCRIPTS, parse
from torch import distributed


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


def flags(script):
    """Those of a run of eight periods, in environments that note their seeds.

    REINFORCE's, which waits for whole episodes, have episodes of lengths that differ between ranks.
    """
    row = SCRIPTS[script]
    env_id = "probes:SpyOfLengths-v0" if script.startswith("reinforce") else "probes:Spy-v0"
    ends = ("--env-id", env_id, "--total-timesteps", 8 * row.period, "--num-threads", 1)
    normalised = ("--norm-obs", "--norm-reward") if hasattr(parse(script), "norm_obs") else ()
    return (*row.short, *ends, *normalised, *(("--target-kl", 0.001) if script == "ppo" else ()))


def updated(module, agent, batch, args):
    """The weights after an update by SGD, with no noise in it."""
    named = [(name, p) for name, p in agent.named_parameters() if not name.startswith("target_")]
    parameters = [p for _, p in named]
    with mock.patch.object(torch, "randn_like", torch.zeros_like):
        if hasattr(args, "utd"):
            parts = agent.critic.parameters(), [p for name, p in named if not name.startswith("critic")]
            optimizers = [torch.optim.SGD([module.flatten(part)], lr=0.1) for part in parts]
            delay = () if module.__name__ == "ddpg" else (0,)
            module.update(agent, *optimizers, batch, *delay, args)
        else:
            module.update(agent, torch.optim.SGD([module.flatten(parameters)], lr=0.1), batch, args)
    return [parameter.detach() for parameter in agent.parameters()]


def of_one_update(module, rank, batch_of, *more):
    """One step on a minibatch of each rank is one step on both in one: each decision weighs the same."""
    args = parse(module.__name__, *flags(module.__name__), *more)
    torch.manual_seed(0)
    agent = module.Agent(module.make_envs(args, 1), args)
    both = [torch.cat(pair) for pair in zip(batch_of(agent, 0), batch_of(agent, 1), strict=True)]
    with mock.patch.object(module, "average_over_ranks", lambda gradient, weight: None):
        expected = updated(module, copy.deepcopy(agent), both, args)
    return {"expected": expected, "updated": updated(module, agent, batch_of(agent, rank), args)}


def of_statistics(module, rank):
    """What the running statistics make of 5, if either rank saw two numbers: 1 and 3, 5 and 7."""
    norm = module.RunningNorm(1, True)
    norm.update(torch.tensor([[[1.0]], [[3.0]]]) + 4 * rank, torch.ones(2, 1))
    return {"normalised": norm(torch.tensor([[5.0]]))}


def of_a_run(module):
    """The agent at the end of a run, its weights after each update, and the seeds of this rank's two environments."""
    digests, update = [], module.update

    def noted(agent, *rest):
        metrics = update(agent, *rest)
        weights = torch.cat([parameter.detach().flatten() for parameter in agent.parameters()])
        digests.append(hashlib.sha256(weights.numpy().tobytes()).hexdigest())
        return metrics

    probes.Spy.seeds.clear()
    with mock.patch.object(module, "update", noted):
        agent = module.train(parse(module.__name__, *flags(module.__name__)))
    return {"agent": agent.state_dict(), "digests": digests, "seeds": probes.Spy.seeds[:2]}


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for script, (batch_of, *more) in BATCHES.items():
        module = importlib.import_module(script)
        found = of_one_update(module, rank, batch_of, *more)
        found |= of_statistics(module, rank) if hasattr(module, "RunningNorm") else {}
        torch.save(found | of_a_run(module), f"{script}{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
