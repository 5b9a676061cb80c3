"""Started by torchrun from test_ranks.py: each of two processes writes what it sees to {script}{rank}.pt.

The environments are importable as ranks:Id.
"""

import copy
import hashlib
import importlib
import os
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gymnasium as gym
import probes
import torch
from harness import OFF_POLICY, SCRIPTS, parse
from torch import distributed


def nan_on_rank_1():
    """The second process sees NaN at its 37th step."""
    return probes.Fault("observation", when=37 if os.environ.get("RANK") == "1" else -1)


gym.register("NanOnRank1-v0", nan_on_rank_1, disable_env_checker=True)


def flags(script):
    """A short run, with episodes of random lengths: the processes have unequal numbers of real steps."""
    ends = ("--env-id", "probes:SpyOfLengths-v0", "--total-timesteps", 16 * SCRIPTS[script].period)
    normalised = ("--norm-obs", "--norm-reward") if hasattr(parse(script), "norm_obs") else ()
    return (*SCRIPTS[script].short, *ends, *normalised)


def random_batch(script, rank):
    """Transitions, or 3 real steps of the first process and 11 of the second."""
    rng = torch.manual_seed(rank)
    size = 8 if script in OFF_POLICY else (3, 11)[rank]
    columns = {"reinforce": 1, "ppo": 3}.get(script, 2)
    if script in OFF_POLICY:
        return [*torch.randn(3, size, 3, generator=rng), *torch.rand(2, size, generator=rng)]
    return [*torch.randn(2, size, 3, generator=rng), *torch.randn(columns, size, generator=rng)]


def gradients(module, rank):
    """What `backward` leaves in each objective's gradients, and the mean of both processes' own gradients."""
    args = parse(module.NAME, *flags(module.NAME))
    torch.manual_seed(0)
    agent = module.Agent(module.make_envs(args, 1), args)
    names = ("critic_objective", "actor_objective") if module.NAME in OFF_POLICY else ("loss",)
    found, expected = [], []

    def gradient():
        taken = {name: p.grad.clone() for name, p in agent.named_parameters() if p.grad is not None}
        agent.zero_grad()
        return taken

    for objective in (getattr(module, name) for name in names):
        own = []
        for r in (0, 1):
            with mock.patch.object(torch, "randn_like", torch.zeros_like):
                objective(agent, random_batch(module.NAME, r), args)[0].backward()
            own.append(gradient())
        expected.append({name: (own[0][name] + own[1][name]) / 2 for name in own[0]})
        with mock.patch.object(torch, "randn_like", torch.zeros_like):
            module.backward(objective, agent, random_batch(module.NAME, rank), args)
        found.append(gradient())
    return {"gradients": found, "expected_gradients": expected}


def statistics(module, rank):
    """Mean and variance of 1, 3, 5, 7, of which each process sees some."""
    found = []
    for numbers in ([1.0, 3.0], [5.0, 7.0]), ([1.0], [3.0, 5.0, 7.0]):
        norm = module.RunningNorm(1)
        norm.update(torch.tensor(numbers[rank])[:, None])
        found.append((norm.mean.item(), norm.var.item()))
    return {"statistics": found}


def whole_run(module):
    """The agent at the end, digests of all its numbers before each gradient, this process's seeds and its folder."""
    digests, backward = [], module.backward
    folders, log_and_save = set(), module.Run.log_and_save

    def look(run, *rest):
        folders.add(str(run.folder))
        log_and_save(run, *rest)

    def noted(loss, agent, batch, args):
        numbers = torch.cat([tensor.flatten() for tensor in agent.state_dict().values()])
        digests.append(hashlib.sha256(numbers.numpy().tobytes()).hexdigest())
        return backward(loss, agent, batch, args)

    probes.Spy.seeds.clear()
    with mock.patch.object(module, "backward", noted), mock.patch.object(module.Run, "log_and_save", look):
        agent = module.train(parse(module.NAME, *flags(module.NAME)), merge=False)
    agent = copy.deepcopy(agent.state_dict())
    return {"agent": agent, "digests": digests, "seeds": probes.Spy.seeds[:2], "folders": folders}


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for script in SCRIPTS:
        module = importlib.import_module(script)
        found = gradients(module, rank) | whole_run(module)
        if hasattr(module, "RunningNorm"):
            found |= statistics(module, rank)
        torch.save(found, f"{script}{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
