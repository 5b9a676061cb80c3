"""What does PPO's clipped ratio prevent? Ten epochs on each rollout of CartPole-v1, by clip range.

    python benchmarks/studies/clipping.py

After the ten epochs, KL(pi_old || pi) is averaged over the observations of the rollout.
"""

from study import RETURN, Setting, common, curves, main, spread
from trust_region import divergences

CLIPS = {"0.1": (0.1, "#56B4E9"), "0.2": (0.2, "#0072B2"), "0.4": (0.4, "#009E73"), "none": (1e9, "#D55E00")}
SETTINGS = {
    f"clip {name}": Setting(
        "ppo",
        f"--update-epochs 10 --clip-coef {coefficient}",
        colour,
        (divergences,),
        (RETURN, "losses/clipfrac"),
    )
    for name, (coefficient, colour) in CLIPS.items()
}


def draw(found):
    figure, axes = common.panels(1, 3)
    curves(axes[0], found, SETTINGS, "kl", "KL(old, new), nats", yscale="log", ylim=(1e-6, None))
    curves(axes[1], found, SETTINGS, "clipfrac", "share of clipped samples")
    curves(axes[2], found, SETTINGS, "episodic_return", "return of 20 episodes")
    common.legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def table(found):
    rows = []
    for name in SETTINGS:
        largest = [y.max() for _, y in found.curves(name, "kl")]
        mean = [y.mean() for _, y in found.curves(name, "episodic_return")]
        rows.append((name, spread(largest, 3), spread(mean), spread(found.last(name, "eval_return"))))
    return common.markdown(("", "largest KL, nats", "return, mean over training", "return at the end"), rows)


if __name__ == "__main__":
    main("clipping", SETTINGS, draw, table, __doc__)
