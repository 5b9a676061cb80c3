"""What does a time limit cost that is taken for a death? PPO on Pendulum-v1, where every episode ends at its limit.

    python benchmarks/studies/truncation.py

Predicted is the value of states that the policy visits, collected the discounted return from there, without a limit.
"""

import study
import torch
from study import Setting, add, at, band, common, curves, main, spread


def death_at_limits(module, notes):
    """A time limit counts as a death: what is done is terminated."""
    env_step = module.Run.env_step

    def changed(run, action):
        obs, reward, _, done = env_step(run, action)
        return obs, reward, done, done

    module.Run.env_step = changed


def value_gap(module, run, notes):
    """Note predicted values and what is collected."""
    agent, args = run.state["agent"], run.args
    obs = study.visited(module, agent, args, 2 * study.STATES)
    with torch.no_grad():
        predicted = agent.value(obs) * study.reward_unit(agent)
    _, reward, _ = study.simulate(agent.act, args.env_id, study.states_of(args.env_id, obs), study.HORIZON)
    add(notes, "predicted", run.step, predicted.mean().item())
    add(notes, "collected", run.step, study.discounted(reward, args.gamma).mean().item())


FLAGS = f"{study.PPO_PENDULUM} --num-steps 64 --total-timesteps 100000"
LOOK = at(study.EIGHTHS, value_gap)
SETTINGS = {
    "bootstrapped": Setting("ppo", FLAGS, common.COLOURS["ppo"], (LOOK,)),
    "as a death": Setting("ppo", FLAGS, "#D55E00", (death_at_limits, LOOK)),
}


def draw(found):
    figure, axes = common.panels(1, 2)
    curves(axes[0], found, SETTINGS, "episodic_return", "return of 20 episodes")
    for name, setting in SETTINGS.items():
        band(axes[1], found.gaps(name), color=setting.colour)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[1].set(xlabel="environment steps", ylabel="value less what is collected")
    common.steps_axis(axes[1])
    common.legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def table(found):
    rows = []
    for name in SETTINGS:
        mean, gap = ([y.mean() for _, y in x] for x in (found.curves(name, "episodic_return"), found.gaps(name)))
        rows.append((name, spread(mean), spread(gap, 1), spread(found.last(name, "eval_return"))))
    return common.markdown(
        ("time limits", "return, mean over training", "value less what is collected", "return at the end"), rows
    )


if __name__ == "__main__":
    main("truncation", SETTINGS, draw, table, __doc__)
