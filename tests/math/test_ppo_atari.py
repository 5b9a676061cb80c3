"""ppo_atari.py: what the network sees, and the gradient that actor and critic share."""

import torch
from harness import parse, train
from torch.nn import functional as F

import ppo_atari


def agent_for(env_id, *flags):
    torch.manual_seed(0)
    args = parse("ppo_atari", "--env-id", env_id, *flags)
    envs = ppo_atari.make_envs(args, 3)
    return envs, ppo_atari.Agent(envs, args), args


def images(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def by_hand(agent, x):
    """The network of Mnih et al. (2015) on images (B, C, 84, 84) of numbers from 0 to 1."""
    (one, two, three), linear = [m for m in agent.cnn if isinstance(m, torch.nn.Conv2d)], agent.cnn[-2]
    assert [tuple(m.weight.shape[2:]) for m in (one, two, three)] == [(8, 8), (4, 4), (3, 3)]
    x = F.conv2d(x, one.weight, one.bias, stride=4).relu()
    x = F.conv2d(x, two.weight, two.bias, stride=2).relu()
    x = F.conv2d(x, three.weight, three.bias, stride=1).relu()
    assert x.shape[1:] == (64, 7, 7)
    return F.linear(x.flatten(1), linear.weight, linear.bias).relu()


def test_frames_of_a_game_are_the_channels():
    """Four frames of 84 x 84 bytes, the oldest first, divided by 255."""
    envs, agent, _ = agent_for("ale_py:ALE/Pong-v5")
    assert envs.unwrapped.single_observation_space.shape == (4, 84, 84)
    obs = images(5, 3, 4 * 84 * 84)
    expected = by_hand(agent, obs.view(15, 4, 84, 84) / 255)
    assert agent.features(obs).shape == (5, 3, 512)
    torch.testing.assert_close(agent.features(obs).view(15, 512), expected)
    envs.close()


def test_channels_may_be_last_and_images_of_any_size():
    envs, agent, _ = agent_for("games:Steer-v0")
    obs = images(2, 96 * 96 * 3)
    upright = obs.view(2, 96, 96, 3).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(agent.features(obs), by_hand(agent, F.interpolate(upright, (84, 84))))
    envs.close()
    envs, agent, _ = agent_for("games:Catch-v0")
    obs = images(2, 400)
    upright = obs.view(2, 1, 20, 20) / 255
    torch.testing.assert_close(agent.features(obs), by_hand(agent, F.interpolate(upright, (84, 84))))
    envs.close()


def test_white_is_one_and_black_is_zero():
    envs, agent, _ = agent_for("games:Catch84-v0")
    conv = next(module for module in agent.cnn if isinstance(module, torch.nn.Conv2d))
    torch.nn.init.ones_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    first = []
    conv.register_forward_hook(lambda module, inputs, output: first.append((inputs[0], output)))
    agent.features(torch.full((1, 84 * 84), 255, dtype=torch.uint8))
    agent.features(torch.zeros((1, 84 * 84), dtype=torch.uint8))
    (white, white_sum), (black, black_sum) = first
    assert (white == 1).all() and (black == 0).all()
    assert (white_sum == 64).all() and (black_sum == 0).all()  # each filter sums 8 x 8 pixels
    envs.close()


def test_shared_network_gets_the_gradient_of_both_losses():
    envs, agent, args = agent_for("games:Catch84-v0", "--ent-coef", 0.1)
    obs, action = images(6, 84 * 84), torch.tensor([0, 1, 2, 0, 1, 2])
    advantage, returns, old = torch.linspace(-1, 1, 6), torch.linspace(0, 3, 6), torch.full((6,), -1.1)
    ppo_atari.loss(agent, (obs, action, advantage, returns, old), args)[0].backward()
    together = [p.grad.clone() for p in agent.cnn.parameters()]

    def gradient(objective):
        agent.zero_grad()
        objective.backward()
        return [p.grad.clone() for p in agent.cnn.parameters()]

    log_prob, entropy = agent.log_prob(agent.features(obs), action)
    normed = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    actor = gradient(ppo_atari.policy_loss(log_prob, old, normed, args.clip_coef) - 0.1 * entropy.mean())
    critic = gradient(0.5 * ppo_atari.value_loss(agent.value(agent.features(obs)), returns))
    for both, one, other in zip(together, actor, critic, strict=True):
        assert one.any() and other.any()
        torch.testing.assert_close(both, one + other, atol=1e-6, rtol=1e-4)
    envs.close()


def test_bytes_in_storage_give_the_same_bits_as_floats(folder, monkeypatch):
    flags = ("--env-id", "games:Catch-v0", "--num-envs", 2, "--num-steps", 16, "--total-timesteps", 64)
    seen = set()
    backward = ppo_atari.backward
    weights = []

    def look(loss, agent, batch, args):
        seen.add(batch[0].dtype)
        return backward(loss, agent, batch, args)

    monkeypatch.setattr(ppo_atari, "backward", look)
    weights.append(train("ppo_atari", *flags, "--eval-episodes", 2)[0].state_dict())
    assert seen == {torch.uint8}
    seen.clear()
    env_step, reset = ppo_atari.Run.env_step, ppo_atari.Run.reset

    def env_step_in_floats(run, action):
        obs, *others = env_step(run, action)
        return obs.float(), *others

    monkeypatch.setattr(ppo_atari.Run, "env_step", env_step_in_floats)
    monkeypatch.setattr(ppo_atari.Run, "reset", lambda run: reset(run).float())
    weights.append(train("ppo_atari", *flags, "--eval-episodes", 2)[0].state_dict())
    assert seen == {torch.float32}
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name]), name
