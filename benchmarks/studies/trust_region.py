"""How far does one update move the policy? A2C with a large step, TRPO and PPO on CartPole-v1.

    python benchmarks/studies/trust_region.py

After each update, KL(pi_old || pi) is averaged over the observations of the rollout that the update learned from.
"""

import copy

import numpy as np
import torch
from study import RETURN, Setting, band, common, curves, main, spread


def divergence(old, new):
    """KL(old || new) in nats, the mean over states, of log-probabilities (B, A) -> ()"""
    return (old.exp() * (old - new)).sum(-1).mean().item()


def divergences(module, notes):
    """Note how far each update moves the policy, in the states of the rollout that it learned from."""
    env_step, log_and_save, seen, old, curve = module.Run.env_step, module.Run.log_and_save, [], [], {}

    def note_observation(self, action):
        if not seen:  # the rollout's beginning
            old[:] = [copy.deepcopy(self.state["agent"])]
        result = env_step(self, action)
        seen.append(result[0][result[3] == 0])  # an episode's last observation is in no loss
        return result

    def note_divergence(self, metrics, optimizer):
        with torch.no_grad():
            policies = old[0], self.state["agent"]
            curve[self.step] = divergence(*(policy.actor(torch.cat(seen)).log_softmax(-1) for policy in policies))
        notes["kl"] = list(curve), list(curve.values())
        seen.clear()
        log_and_save(self, metrics, optimizer)

    module.Run.env_step, module.Run.log_and_save = note_observation, note_divergence


FLAGS = "--num-envs 32 --num-steps 32 --total-timesteps 100000"
SETTINGS = {
    "A2C, step 0.03": Setting(
        "a2c", f"{FLAGS} --learning-rate 0.03 --no-anneal-lr", common.COLOURS["a2c"], (divergences,), (RETURN,)
    ),
    "TRPO": Setting("trpo", FLAGS, common.COLOURS["trpo"], (divergences,)),
    "PPO": Setting("ppo", FLAGS, common.COLOURS["ppo"], (divergences,)),
}


def draw(found):
    figure, axes = common.panels(1, 2)
    for name, setting in SETTINGS.items():
        band(axes[0], found.curves(name, "kl"), color=setting.colour)
    axes[0].axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    axes[0].set(yscale="log", ylim=(1e-5, None), ylabel="KL(old, new) of an update", xlabel="environment steps")
    common.steps_axis(axes[0])
    curves(axes[1], found, SETTINGS, "episodic_return", "return of 20 episodes")
    common.legend(figure, *axes[1].get_legend_handles_labels())
    return figure


def table(found):
    rows = []
    for name in SETTINGS:
        kl = [y for _, y in found.curves(name, "kl")]
        middle, largest = np.median(np.concatenate(kl)), max(y.max() for y in kl)
        rows.append((name, f"{middle:.4f}", f"{largest:.3f}", spread(found.last(name, "eval_return"))))
    return common.markdown(("CartPole-v1", "median KL", "largest KL", "return at the end"), rows)


if __name__ == "__main__":
    main("trust_region", SETTINGS, draw, table, __doc__)
