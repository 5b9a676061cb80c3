"""Bias against variance: n-step returns and GAE, on the same rollouts of 128 steps.

    python benchmarks/studies/estimators.py

After a quarter of a run, 128 paths start from each of 64 states that the policy visits. An estimate's bias is its mean
less that of the discounted return over 1000 steps, its variance that over the paths of a state; both are means over the
states, with no time limit. GAE with lambda 0 is one step, with lambda 1 all 128.
"""

import functools

import numpy as np
import study
import torch
from study import Setting, add, at, common, main, spread

import a2c

PATHS = 128
ENVIRONMENTS = {
    "CartPole-v1": ("a2c", "--num-steps 128 --num-envs 4 --total-timesteps 100000"),
    "Pendulum-v1": ("ppo", f"{study.PPO_PENDULUM} --num-steps 128 --num-envs 16 --total-timesteps 60000"),
}


def n_step(reward, value, terminated, done, gamma, n):
    """The n-step return less the value; it ends with the episode, or with the rollout. As gae, (T, N) -> (T, N).

    A[t] = delta[t] + gamma delta[t+1] + ... + gamma^(n-1) delta[t+n-1], of the TD errors that gae sums up, too
         = reward[t] + ... + gamma^(n-1) reward[t+n-1] + gamma^n value[t+n] - value[t]
    """
    delta = reward + gamma * (1 - terminated) * value[1:] - value[:-1]
    advantage, weight, T = torch.zeros_like(delta), torch.ones_like(delta), len(delta)
    for k in range(min(n, T)):
        advantage[: T - k] += weight * delta[k:]
        weight = gamma * weight[:-1] * (1 - done[k : T - 1])
    return advantage


def bias_and_variance(estimate, truth):
    """Squared bias and variance of a return's estimate, each the mean over S states; both (S, K), of K paths -> (), ()

    The mean of the truth over the same paths stands for the true value. By chance alone, the square of a mean
    difference would be its variance / K: that is taken off, so that the expectation is the squared bias.
    """
    difference = estimate - truth
    squared_bias = difference.mean(1) ** 2 - difference.var(1) / difference.shape[1]
    return squared_bias.mean().item(), estimate.var(1).mean().item()


ESTIMATORS = {f"{n} steps" if n > 1 else "1 step": functools.partial(n_step, n=n) for n in (1, 5, 16, 64, 128)}
ESTIMATORS |= {f"lambda {x}": functools.partial(a2c.gae, gae_lambda=x) for x in (0.5, 0.9, 0.95)}


def use(name, module, notes):
    """Train with this estimate."""
    module.gae = lambda *columns: ESTIMATORS[name](*columns[:5])


def compare(module, run, notes):
    """Note squared bias and variance of each estimate of the return from a state, as a rollout's first step has it."""
    agent, args = run.state["agent"], run.args
    start = study.visited(module, agent, args, study.STATES).repeat_interleave(PATHS, 0)
    obs, reward, terminated = study.simulate(agent.act, args.env_id, study.states_of(args.env_id, start), study.HORIZON)
    truth, T = study.discounted(reward, args.gamma), args.num_steps
    with torch.no_grad():
        value = agent.value(obs[: T + 1]) * study.reward_unit(agent)
    for name, estimator in ESTIMATORS.items():
        estimate = estimator(reward[:T], value, terminated[:T], terminated[:T], args.gamma)[0] + value[0]
        squared_bias, variance = bias_and_variance(estimate.view(-1, PATHS), truth.view(-1, PATHS))
        add(notes, "squared_bias", name.replace(" ", "_"), squared_bias)
        add(notes, "variance", name.replace(" ", "_"), variance)


SETTINGS = {
    f"{env_id}, {name}": Setting(
        script,
        flags,
        hooks=(functools.partial(use, name), *((at([0.25], compare),) if name == "lambda 0.95" else ())),
    )
    for env_id, (script, flags) in ENVIRONMENTS.items()
    for name in ESTIMATORS
}


def measured(found, env_id, quantity):
    """{estimator: values of the seeds}"""
    columns = found.columns(f"{env_id}, lambda 0.95", quantity)
    return {name: [y[x.index(name.replace(" ", "_"))] for x, y in columns] for name in ESTIMATORS}


def draw(found):
    figure, axes = common.panels(2, 2)
    for row, env_id in zip(axes, ENVIRONMENTS, strict=True):
        for quantity, colour in (("squared_bias", "#D55E00"), ("variance", "#0072B2")):
            values = np.maximum(list(measured(found, env_id, quantity).values()), 1e-4)
            middle = np.median(values, 1)
            ends = np.abs(np.stack([values.min(1), values.max(1)]) - middle)
            row[0].errorbar(range(len(middle)), middle, ends, fmt="o", color=colour, label=quantity.replace("_", " "))
        row[0].set(yscale="log", ylabel="(return)$^2$", title=f"{env_id}: an estimate of the return")
        scores = [found.last(f"{env_id}, {name}", "eval_return") for name in ESTIMATORS]
        for k, values in enumerate(scores):
            row[1].plot([k] * len(values), values, "o", color="#0072B2", alpha=0.6)
            row[1].plot([k - 0.3, k + 0.3], [np.median(values)] * 2, color="#D55E00", linewidth=2)
        row[1].set(ylabel="return", title=f"{env_id}: at the end, each seed")
        for axis in row:
            axis.set_xticks(range(len(ESTIMATORS)), ESTIMATORS, rotation=40, ha="right", rotation_mode="anchor")
    axes[0][0].legend(frameon=False)
    return figure


def table(found):
    header, rows = ["estimate"], [[name] for name in ESTIMATORS]
    for env_id in ENVIRONMENTS:
        header += [f"{env_id}: squared bias", "variance", "return at the end"]
        bias, variance = measured(found, env_id, "squared_bias"), measured(found, env_id, "variance")
        for row, name in zip(rows, ESTIMATORS, strict=True):
            score = spread(found.last(f"{env_id}, {name}", "eval_return"))
            row += [*(f"{float(f'{np.median(x[name]):.2g}'):g}" for x in (bias, variance)), score]
    return common.markdown(header, rows)


if __name__ == "__main__":
    main("estimators", SETTINGS, draw, table, __doc__)
