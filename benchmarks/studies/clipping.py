"""What does PPO's clipped ratio prevent? Ten epochs on each rollout of CartPole-v1, by clip range.

    python benchmarks/studies/clipping.py

The KL divergence is that of the policy before a rollout's updates from the one after them, exact, in the states of the
first minibatch.
"""

import torch
from study import RETURN, Setting, common, curves, main, spread, thin


def divergence(old, new):
    """KL(old || new) in nats, the mean over states, of log-probabilities (B, A) -> ()"""
    return (old.exp() * (old - new)).sum(-1).mean().item()


def divergence_per_rollout(module, notes):
    """Note how far a rollout's updates move the policy."""
    backward, log_and_save, before, curve = module.backward, module.Run.log_and_save, [], {}

    def log_probs(agent, obs):
        with torch.no_grad():
            return agent.actor(obs).log_softmax(-1)

    def noted(loss, agent, batch, args):
        if not before:
            before.extend([batch[0], log_probs(agent, batch[0])])
        return backward(loss, agent, batch, args)

    def compared(run, metrics, optimizer):
        obs, old = before
        curve[run.step] = divergence(old, log_probs(run.state["agent"], obs))
        notes["divergence"] = thin(curve)
        before.clear()
        log_and_save(run, metrics, optimizer)

    module.backward, module.Run.log_and_save = noted, compared


CLIPS = {"0.1": (0.1, "#56B4E9"), "0.2": (0.2, "#0072B2"), "0.4": (0.4, "#009E73"), "none": (1e9, "#D55E00")}
SETTINGS = {
    f"clip {name}": Setting(
        "ppo",
        f"--update-epochs 10 --clip-coef {coefficient}",
        colour,
        (divergence_per_rollout,),
        (RETURN, "losses/clipfrac"),
    )
    for name, (coefficient, colour) in CLIPS.items()
}


def draw(found):
    figure, axes = common.panels(1, 3)
    curves(axes[0], found, SETTINGS, "divergence", "KL(old, new) of a rollout, nats", yscale="log")
    curves(axes[1], found, SETTINGS, "clipfrac", "share of samples outside the range")
    curves(axes[2], found, SETTINGS, "episodic_return", "return of 20 episodes")
    common.legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def table(found):
    rows = []
    for name in SETTINGS:
        largest = [y.max() for _, y in found.curves(name, "divergence")]
        mean = [y.mean() for _, y in found.curves(name, "episodic_return")]
        rows.append((name, spread(largest, 3), spread(mean), spread(found.last(name, "eval_return"))))
    return common.markdown(("", "largest KL, nats", "return, mean over training", "return at the end"), rows)


if __name__ == "__main__":
    main("clipping", SETTINGS, draw, table, __doc__)
