"""Agents with random weights, their gradients, and a record of what a run trains on."""

import copy
from dataclasses import dataclass
from importlib import import_module
from unittest import mock

import torch
from harness import train
from torch.nn.utils import parameters_to_vector


def make_agent(module, env_id, **flags):
    """An agent as a script starts with it -> agent, args."""
    args = module.Args(env_id=env_id, **flags)
    envs = module.make_envs(args, 1)
    agent = module.Agent(envs, args)
    envs.close()
    return agent, args


def random_agent(module, env_id, size=40, **flags):
    """An agent of random weights, a batch of observations and its actions for them -> agent, obs, action, args."""
    rng = torch.manual_seed(3)
    agent, args = make_agent(module, env_id, hidden_size=16, **flags)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    layers = [layer for layer in agent.actor.modules() if isinstance(layer, torch.nn.Linear)]
    obs = torch.randn(size, layers[0].in_features, generator=rng)
    return agent, obs, agent.act(obs), args


def gradient(total, parameters):
    """The gradient of a number by all of these parameters, as one vector; 0 for those that it does not depend on."""
    parameters = list(parameters)
    parts = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True, retain_graph=True)
    return parameters_to_vector(parts)


@dataclass
class Call:
    """A call of a script's `backward`: the loss, the agent before the step, the batch, torch's generator, metrics."""

    loss: str
    agent: torch.nn.Module
    batch: list
    rng: torch.Tensor
    metrics: dict


def record(script, *flags):
    """Train by these flags in the working folder -> the agent, and all calls of `backward` in order."""
    module, calls = import_module(script), []
    backward = module.backward

    def recorded(loss, agent, batch, args):
        before = copy.deepcopy(agent), [x.clone() for x in batch], torch.get_rng_state()
        metrics = backward(loss, agent, batch, args)
        calls.append(Call(loss.__name__, *before, metrics))
        return metrics

    with mock.patch.object(module, "backward", recorded):
        agent, _ = train(script, *flags)
    return agent, calls
