"""What ddpg.py, td3.py and sac.py store, sample and explore, and how many updates they make."""

import collections
import math
from importlib import import_module

import pytest
import torch
from harness import OFF_POLICY, checkpoint, parse, train

EACH_SCRIPT = pytest.mark.parametrize("script", OFF_POLICY)
close = torch.testing.assert_close
SMALL = ("--hidden-size", 4, "--batch-size", 4, "--eval-episodes", 0)


def play(script, env_id, *flags):
    """Run a script -> its agent, and the columns of the replay buffer that the checkpoint holds."""
    agent, result = train(script, "--env-id", f"probes:{env_id}", *SMALL, *flags)
    return agent, checkpoint(result.folder)["state"][0]["buffer"]["columns"]


def buffer_of(script, size, transitions=0):
    """A buffer with transitions of 2 + 1 + 2 numbers, added three at a time; the rewards are 1, 2, 3, ..."""
    module = import_module(script)
    envs = module.make_envs(parse(script, "--env-id", "probes:NumberedSteps-v0"), 1)
    buffer = module.ReplayBuffer(size, envs, torch.device("cpu"))
    for rows in torch.arange(1.0, transitions + 1).split(3):
        obs = torch.stack([rows, -rows], 1)
        buffer.add(obs, 10 * rows[:, None], obs + 1, rows, rows % 2)
    return buffer


def rewards(buffer):
    """The rewards that 1000 samples have."""
    torch.manual_seed(0)
    return set(buffer.sample(1000)[3].int().tolist())


@EACH_SCRIPT
@pytest.mark.parametrize("env_id", ["NumberedSteps-v0", "NumberedCut-v0", "ReusesMemory-v0"])
def test_buffer_holds_decisions_with_their_true_successors(script, env_id, folder):
    """Five steps to a true end or to a time limit. The step that only resets is not stored, a checkpoint cuts nothing.

    ReusesMemory writes each observation over the one before it.
    """
    flags = "--num-envs 3 --total-timesteps 192 --learning-starts 100 --checkpoint-every 96"
    _, (obs, action, next_obs, reward, terminated) = play(script, env_id, *flags.split())
    # Twice 32 steps of 3 environments: 5 episodes of 5 steps and a reset step, and 2 steps.
    assert len(obs) == 2 * 3 * (5 * 5 + 2)
    episode, step = obs.T
    assert len(episode.unique()) == 2 * 3 * 6
    assert torch.equal(next_obs, torch.stack([episode, step + 1], 1))
    close(reward, action[:, 0])
    assert action.std() > 0.3
    ends = step == 4 if env_id != "NumberedCut-v0" else torch.zeros(len(step))
    assert torch.equal(terminated, ends.float())


@EACH_SCRIPT
def test_buffer_keeps_the_latest_and_samples_all_of_them_and_nothing_else(script):
    assert rewards(buffer_of(script, 10, 1)) == {1}
    assert rewards(buffer_of(script, 10, 7)) == set(range(1, 8))
    assert rewards(buffer_of(script, 10, 23)) == set(range(14, 24))


@EACH_SCRIPT
def test_samples_are_whole_transitions(script):
    obs, action, next_obs, reward, terminated = buffer_of(script, 10, 23).sample(64)
    assert [x.shape for x in (obs, action, next_obs)] == [(64, 2), (64, 1), (64, 2)]
    assert reward.shape == terminated.shape == (64,)
    assert torch.equal(obs, torch.stack([reward, -reward], 1))
    assert torch.equal(action, 10 * reward[:, None])
    assert torch.equal(next_obs, obs + 1)
    assert torch.equal(terminated, reward % 2)


@EACH_SCRIPT
@pytest.mark.parametrize(("transitions", "size"), [(7, 10), (23, 10), (7, 20)])
def test_restored_buffer_goes_on_where_it_was_saved(script, transitions, size):
    saved = buffer_of(script, 10, transitions).state_dict()
    assert len(saved["columns"][0]) == min(transitions, 10), "only the filled part is saved"
    buffer = buffer_of(script, size)
    buffer.load_state_dict(saved)
    assert rewards(buffer) == set(range(max(1, transitions - 9), transitions + 1))
    new = torch.tensor([100.0])
    buffer.add(torch.zeros(1, 2), new[:, None], torch.zeros(1, 2), new, new)
    assert rewards(buffer) == {100, *range(max(1, transitions - 8), transitions + 1)}


@EACH_SCRIPT
@pytest.mark.parametrize(("transitions", "size"), [(7, 4), (23, 4), (23, 20)])
def test_full_buffer_of_another_size_is_refused(script, transitions, size):
    saved = buffer_of(script, 10, transitions).state_dict()
    buffer = buffer_of(script, size)
    with pytest.raises(import_module(script).RunError, match=r"^the size of the replay buffer changed$"):
        buffer.load_state_dict(saved)


@EACH_SCRIPT
def test_saved_buffer_does_not_change_while_the_run_goes_on(script):
    buffer = buffer_of(script, 10, 10)
    saved = buffer.state_dict()
    buffer.columns[3].fill_(-1)
    assert torch.equal(saved["columns"][3], torch.arange(1.0, 11.0))


@EACH_SCRIPT
def test_actions_are_uniform_until_learning_starts(script, folder):
    """Numbers uniform in [-1, 1] have the mean 0 and the deviation 1 / sqrt(3); half of them are within 0.5 of 0."""
    flags = "--num-envs 8 --total-timesteps 4008 --learning-starts 4000 --utd 0"
    _, (_, action, *_) = play(script, "BoxEndless-v0", *flags.split())
    assert len(action) == 4008
    action = action[:4000]
    assert action.mean().item() == pytest.approx(0, abs=0.03)
    assert action.std().item() == pytest.approx(3**-0.5, rel=0.03)
    assert (action.abs() < 0.5).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert action.abs().max() <= 1


@pytest.mark.parametrize(
    ("script", "flags", "memory"),
    [("ddpg", ["--ou-noise"], 0.85), ("ddpg", [], 0.0), ("td3", [], 0.0)],
)
def test_exploration_noise_is_added_to_the_policys_actions(script, flags, memory, folder):
    """Ornstein-Uhlenbeck noise is 0.85 of the noise a step before and new noise; Gaussian noise is new noise alone."""
    num_envs, steps = 50, 200
    flags = [*flags, "--learning-starts", num_envs, "--utd", 0, "--exploration-noise", 0.05]
    flags += ["--num-envs", num_envs, "--total-timesteps", num_envs * steps]
    agent, (obs, action, *_) = play(script, "BoxEndless-v0", *flags)
    noise = (action - agent.act(obs)).view(steps, num_envs)[50:]
    before, after = noise[:-1], noise[1:]
    assert (before * after).mean().item() / noise.square().mean().item() == pytest.approx(memory, abs=0.04)
    assert noise.std().item() == pytest.approx(0.05 * (1 - memory**2) ** -0.5, rel=0.05)


@EACH_SCRIPT
def test_noisy_actions_stay_within_bounds(script, folder):
    _, (_, action, *_) = play(
        script, "BoxEndless-v0", "--total-timesteps", 100, "--learning-starts", 9, "--exploration-noise", 2
    )
    assert action.abs().max() <= 1


@EACH_SCRIPT
@pytest.mark.parametrize(("num_envs", "utd"), [(1, 1), (3, 0.5), (8, 2), (1, 0.3), (8, 0.05)])
def test_updates_are_counted_by_environment_steps(script, num_envs, utd, folder, monkeypatch):
    """utd updates for each environment step after the 40th, with any number of environments, across a checkpoint."""
    module, steps = import_module(script), []
    plain_sample = module.ReplayBuffer.sample

    def sample(buffer, batch_size):
        steps.append(buffer.count)  # without episode ends, each environment step is a transition
        assert batch_size == 4
        return plain_sample(buffer, batch_size)

    monkeypatch.setattr(module.ReplayBuffer, "sample", sample)
    flags = f"--num-envs {num_envs} --utd {utd} --total-timesteps 120 --learning-starts 40 --checkpoint-every 72"
    play(script, "BoxEndless-v0", *flags.split())
    assert len(steps) == pytest.approx(utd * (120 - 40))
    assert min(steps) > 40
    assert max(collections.Counter(steps).values()) <= math.ceil(utd * num_envs)
