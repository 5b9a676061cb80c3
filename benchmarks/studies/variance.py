"""What does a baseline win? REINFORCE on CartPole-v1 with returns as they are, normalised, and less a learned value.

    python benchmarks/studies/variance.py

The policy gradient of an episode is sum_t grad log pi(a|s) (G[t] - b). Its variance is the trace of its covariance over
256 episodes of the policy as it then is, the same episodes for each baseline b.
"""

import numpy as np
import torch
from study import Setting, add, at, band, common, main, spread, thin

EPISODES = 256
BASELINES = {"none": "no baseline", "constant": "mean return", "learned": "learned V(s)"}


def count_episodes(module, notes):
    """Note the mean return of the latest 100 episodes, by how many were played, and when it first is 195."""
    log_and_save, returns, curve = module.Run.log_and_save, [], {}

    def changed(run, metrics, optimizer):
        returns.extend(run.envs.return_queue)
        curve[len(returns)] = np.mean(returns[-100:])
        if len(returns) >= 100 and curve[len(returns)] >= 195 and "episodes_to_195" not in notes:
            add(notes, "episodes_to_195", run.step, len(returns))
        notes["mean_of_100"] = thin(curve)
        log_and_save(run, metrics, optimizer)

    module.Run.log_and_save = changed


def gradient_variances(module, run, notes):
    """Note the variance of the gradient by each baseline."""
    agent, args, N = run.state["agent"], run.args, EPISODES
    envs = module.make_envs(args, N)
    obs, rows, valid = torch.as_tensor(envs.reset(seed=0)[0]).float(), [], torch.ones(N)
    while valid.any():
        action = agent.act(obs)
        next_obs, reward, terminated, truncated, _ = envs.step(action.numpy())
        done = torch.as_tensor(terminated | truncated).float()
        rows.append((obs, action, torch.as_tensor(reward).float(), done, valid))
        obs, valid = torch.as_tensor(next_obs).float(), valid * (1 - done)
    envs.close()
    obs, action, reward, done, valid = (torch.stack(column) for column in zip(*rows, strict=True))
    to_go = module.returns_to_go(reward, done, args.gamma)
    with torch.no_grad():
        mean = (valid * to_go).sum() / valid.sum()
        baselines = {"none": torch.zeros_like(to_go), "constant": mean.expand_as(to_go), "learned": agent.value(obs)}
    for name, baseline in baselines.items():
        gradients = []
        for n in range(N):
            steps = valid[:, n] == 1
            log_prob, _ = agent.log_prob(obs[steps, n], action[steps, n])
            loss = -(log_prob * (to_go - baseline)[steps, n]).sum()
            parts = torch.autograd.grad(loss, list(agent.actor.parameters()))
            gradients.append(torch.cat([part.flatten() for part in parts]))
        add(notes, f"gradient_variance_{name}", run.step, torch.stack(gradients).var(0).sum().item())


LOOKS = at((0, 0.05, 0.1, 0.2, 0.4, 0.7, 1), gradient_variances)
SETTINGS = {
    "returns as they are": Setting("reinforce", "--no-norm-returns", "#E69F00", (count_episodes,)),
    "returns normalised": Setting("reinforce", "", common.COLOURS["reinforce"], (count_episodes,)),
    "learned baseline": Setting(
        "reinforce_baseline", "", common.COLOURS["reinforce_baseline"], (count_episodes, LOOKS)
    ),
}


def draw(found):
    figure, axes = common.panels(1, 2)
    for name, setting in SETTINGS.items():
        band(axes[0], found.curves(name, "mean_of_100"), color=setting.colour, label=name)
    axes[0].axhline(195, color="black", linewidth=0.8)
    axes[0].set(xlabel="episodes", ylabel="mean return of 100 episodes")
    for (name, label), colour in zip(BASELINES.items(), ("#E69F00", "#CC79A7", "#009E73"), strict=True):
        band(axes[1], found.curves("learned baseline", f"gradient_variance_{name}"), color=colour, label=label)
    axes[1].set(xlabel="environment steps", ylabel="variance of an episode's gradient", yscale="log")
    common.steps_axis(axes[1])
    for axis in axes:
        axis.legend(frameon=False)
    return figure


def table(found):
    of = {name: [y for _, y in found.curves("learned baseline", f"gradient_variance_{name}")] for name in BASELINES}
    rows = []
    for name, (baseline, label) in zip(SETTINGS, BASELINES.items(), strict=True):
        ratios = np.median(np.array(of[baseline]) / np.array(of["learned"]), 0)
        episodes = spread(found.last(name, "episodes_to_195"))
        rows.append((name, episodes, label, f"{ratios.min():.1f} to {ratios.max():.1f}"))
    learns = "CartPole-v1", "episodes until 100 of them average 195"
    return common.markdown((*learns, "baseline", "variance by that with a learned one, as training goes on"), rows)


if __name__ == "__main__":
    main("variance", SETTINGS, draw, table, __doc__, seeds="1-10")
