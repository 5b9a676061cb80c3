"""Stable-Baselines3's policies with our weights."""

import gymnasium as gym
import torch
from stable_baselines3.common.logger import Logger

GAMMA = 0.97


class Logs(Logger):
    """Keeps what Stable-Baselines3 logs of its last update."""

    def __init__(self):
        super().__init__(None, [])

    def record(self, key, value, exclude=None):
        self.name_to_value[key.removeprefix("train/")] = value


def make_theirs(algorithm, env_id, policy, **kwargs):
    policy = {"net_arch": [16, 16]} | policy
    theirs = algorithm("MlpPolicy", gym.make(env_id), policy_kwargs=policy, device="cpu", gamma=GAMMA, **kwargs)
    theirs.set_logger(Logs())
    return theirs


def linear(*modules):
    """Weights and biases of all linear layers, in order."""
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]


def actor_critic_pairs(agent, policy):
    """Pairs of the same parameter in our agent and in Stable-Baselines3's policy."""
    pairs = [
        *zip(linear(agent.actor), linear(policy.mlp_extractor.policy_net, policy.action_net), strict=True),
        *zip(linear(agent.critic), linear(policy.mlp_extractor.value_net, policy.value_net), strict=True),
    ]
    return pairs + ([] if agent.discrete else [(agent.log_std, policy.log_std)])


def copy_weights(pairs):
    """Give Stable-Baselines3 our weights -> a copy of them."""
    for ours, theirs in pairs:
        theirs.data.copy_(ours)
    return [ours.detach().clone() for ours, _ in pairs]
