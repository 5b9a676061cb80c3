"""Do critics promise too much? DDPG, TD3 without each of its fixes, TD3 and SAC on Pendulum-v1.

    python benchmarks/studies/overestimation.py

Predicted is what the actor climbs (Q of DDPG, Q_1 of TD3, the smaller of SAC's two) of its own action, in 128 states of
the replay buffer. Collected is the discounted return of the policy from there over 1000 steps, without a time limit and
without exploration noise. SAC's critics predict the entropy of all later actions too, so that is collected as well.
"""

import numpy as np
import study
import torch
from study import Setting, add, at, band, common, main, spread


def predicted_and_collected(module, agent, env_id, obs, gamma):
    """The action value that the actor climbs, of its own actions in these states, and what it then collects; (B,), (B,)

    For SAC, collected is r[0] + sum_t gamma^t (r[t] - alpha log pi[t]).
    """
    bonuses, actions, soft = [], [], hasattr(agent, "sample")

    def policy(obs):
        if not soft:
            return agent.act(obs)
        action, log_prob = agent.sample(obs)
        bonuses.append(-agent.log_alpha.exp() * log_prob)
        actions.append(action)
        return action

    with torch.no_grad():
        _, reward, _ = study.simulate(policy, env_id, study.states_of(env_id, obs), study.HORIZON)
        if soft:
            reward[1:] += torch.stack(bonuses[1:])
        q = module.q_value(agent.critic, obs, actions[0] if soft else agent.act(obs)).view(-1, len(obs))
    return q.amin(0) if soft else q[0], study.discounted(reward, gamma)


def value_gap(module, run, notes):
    """Note predicted and collected action values, in states of the replay buffer."""
    obs = run.state["buffer"].sample(2 * study.STATES)[0]
    pair = predicted_and_collected(module, run.state["agent"], run.args.env_id, obs, run.args.gamma)
    for name, values in zip(("predicted", "collected"), pair, strict=True):
        add(notes, name, run.step, values.mean().item())


def one_critic(module, notes):
    """The target is the first critic's, and not the smaller of two."""
    q_target = module.q_target
    module.q_target = lambda next_q, *rest: q_target(next_q[:1], *rest)


FLAGS = f"{study.SMALL} --total-timesteps 12000"  # so long that the second half is free of the start
LOOK = at(study.EIGHTHS, value_gap)
SETTINGS = {
    "DDPG": Setting("ddpg", FLAGS, common.COLOURS["ddpg"], (LOOK,)),
    "TD3": Setting("td3", FLAGS, common.COLOURS["td3"], (LOOK,)),
    "TD3, one critic in the target": Setting("td3", FLAGS, "#000000", (one_critic, LOOK)),
    "TD3, no noise on the target": Setting("td3", f"{FLAGS} --policy-noise 0", "#56B4E9", (LOOK,)),
    "TD3, no delay": Setting("td3", f"{FLAGS} --policy-frequency 1", "#999999", (LOOK,)),
    "SAC": Setting("sac", FLAGS, common.COLOURS["sac"], (LOOK,)),
}


def draw(found):
    figure, axes = common.panels(1, 2)
    for name, setting in SETTINGS.items():
        band(axes[0], found.gaps(name), color=setting.colour, label=name)
        band(axes[1], found.curves(name, "episodic_return"), color=setting.colour)
    axes[0].axhline(0, color="black", linewidth=0.8)
    axes[0].set_yscale("symlog", linthresh=20)
    axes[0].set(xlabel="environment steps", ylabel="predicted less collected")
    axes[1].set(xlabel="environment steps", ylabel="return of 20 episodes")
    for axis in axes:
        common.steps_axis(axis)
    common.legend(figure, *axes[0].get_legend_handles_labels(), columns=3)
    return figure


def table(found):
    rows = []
    for name in SETTINGS:
        gap = np.array([y[len(y) // 2 :].mean() for _, y in found.gaps(name)])
        score = spread(found.last(name, "eval_return"))
        rows.append((name, spread(gap, 1), f"{np.sum(gap > 0)} of {len(gap)}", score))
    header = ("Pendulum-v1", "predicted less collected", "seeds that promise too much", "return at the end")
    return common.markdown(header, rows)


if __name__ == "__main__":
    main("overestimation", SETTINGS, draw, table, __doc__)
