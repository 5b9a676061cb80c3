"""Why is there a KL penalty? rlhf.py with six weights of it: the learned reward, and what people really like.

    python benchmarks/studies/reward_hacking.py

Both are drawn over the square root of the KL divergence from the reference, as in Gao et al. (2022, arXiv:2210.10760).
"""

import numpy as np
from study import Setting, common, main, spread

BETAS = {0: "#D55E00", 0.02: "#E69F00", 0.05: "#CC79A7", 0.1: "#0072B2", 0.2: "#56B4E9", 0.5: "#009E73"}
TAGS = "losses/score", "losses/gold", "losses/kl"
SETTINGS = {
    f"beta {beta:g}": Setting("rlhf", f"--beta {beta:g}", colour, tags=TAGS, says=r"after PPO:\n(.*)")
    for beta, colour in BETAS.items()
}


def draw(found):
    figure, axes = common.panels(1, 2)
    for name, setting in SETTINGS.items():
        for axis, quantity in zip(axes, ("score", "gold"), strict=True):
            for (_, kl), (_, value) in zip(found.curves(name, "kl"), found.curves(name, quantity), strict=True):
                distance = np.sqrt(np.maximum(kl, 0))
                (line,) = axis.plot(distance, value, color=setting.colour, alpha=0.6, linewidth=1.1)
                axis.plot(distance[-1], value[-1], "o", color=setting.colour, markersize=4)
            line.set_label(name)
    axes[0].set(title="what the reward model says", ylabel="deviations of the reference's scores")
    axes[1].set(title="what people like (gold)", ylabel="gold")
    for axis in axes:
        axis.set_xlabel("square root of KL(policy, reference)")
        axis.axhline(0, color="black", linewidth=0.6)
    common.legend(figure, *axes[0].get_legend_handles_labels(), columns=6)
    return figure


def table(found):
    rows = []
    for name in SETTINGS:
        score, kl = (np.median(found.last(name, quantity)) for quantity in ("score", "kl"))
        response = " ".join(found.columns(name, "says")[0][0])
        rows.append((name, f"{score:.2f}", f"{kl:.1f}", spread(found.last(name, "eval_return"), 2), response))
    return common.markdown(("", "learned reward", "KL, nats", "gold of the evaluation", "a response"), rows)


if __name__ == "__main__":
    main("reward_hacking", SETTINGS, draw, table, __doc__)
