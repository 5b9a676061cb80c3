"""RLHF: the task, the three losses, and what stage 3 leaves alone."""

import copy
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from harness import parse, scalars, train

import rlhf

TINY = (
    *("--num-envs", 16, "--batch-size", 8, "--hidden-size", 16, "--sft-steps", 4, "--reward-steps", 4),
    *("--total-timesteps", 800, "--eval-episodes", 2),
)


def words(text):
    return torch.tensor([[rlhf.WORDS.index(word) for word in line.split()] for line in text.strip().splitlines()])


def random_agent(*flags):
    """With large weights, so that words differ in probability."""
    torch.manual_seed(0)
    args = parse("rlhf", *TINY, *flags)
    agent = rlhf.Agent(None, args)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return agent, args


# ---- the task


def entropy_of_the_grammar():
    """Of a word after the first, in nats, exactly."""
    at = rlhf.IS["start"] / rlhf.IS["start"].sum()
    of_word = -torch.special.xlogy(rlhf.CHAIN, rlhf.CHAIN).sum(1)
    total = 0
    for _ in range(rlhf.L - 1):
        total += at @ of_word
        at = at @ rlhf.CHAIN
    return (total / (rlhf.L - 1)).item()


def test_grammar_is_a_markov_chain():
    torch.testing.assert_close(rlhf.CHAIN.sum(1), torch.ones(rlhf.W))
    some = rlhf.reviews(1000)
    assert some.shape == (1000, rlhf.L)
    assert (rlhf.CHAIN[some[:, :-1], some[:, 1:]] > 0).all()
    assert set(some.unique().tolist()) == set(range(rlhf.W))


def test_gold_by_hand():
    text = """
    the film was very wonderful and the plot was dull and this cast was wonderful but
    the film film was long and this plot was moving but its ending was superb but
    """
    kind, harsh, repeated, breaks = [1, 2], [1, 0], [1, 1], [0, 1]
    expected = [k - h - r / 2 - b for k, h, r, b in zip(kind, harsh, repeated, breaks, strict=True)]
    assert rlhf.gold(words(text)).tolist() == expected


def test_held_out_prompts_are_a_quarter_and_grammatical():
    assert rlhf.HELD_OUT.sum() == len(rlhf.PROMPTS) / 4 == 12
    assert (rlhf.CHAIN[rlhf.PROMPTS[:, :-1], rlhf.PROMPTS[:, 1:]] > 0).all()
    used = {tuple(prompt) for prompt in rlhf.PROMPTS[~rlhf.HELD_OUT].tolist()}
    evaluated = rlhf.make_envs(parse("rlhf"), 200, training=False)
    trained = rlhf.make_envs(parse("rlhf"), 200)
    for envs, inside in ((evaluated, False), (trained, True)):
        obs, _ = envs.reset(seed=1)
        assert (obs[:, rlhf.P :] == -1).all()
        assert {tuple(row) in used for row in obs[:, : rlhf.P].astype(int).tolist()} == {inside}


def test_environment_pays_gold_at_the_last_word():
    envs = rlhf.make_envs(parse("rlhf"), 3)
    envs.reset(seed=1)
    for t in range(rlhf.P, rlhf.L):
        obs, reward, terminated, truncated, _ = envs.step([t, 2 * t, 7])
        assert (terminated == (t == rlhf.L - 1)).all()
        assert not truncated.any()
        assert obs[:, t].tolist() == [t, 2 * t, 7]
        expected = rlhf.gold(torch.tensor(obs).long()) if t == rlhf.L - 1 else torch.zeros(3)
        assert reward.tolist() == expected.tolist()
    obs, reward, terminated, *_ = envs.step([0, 0, 0])  # only resets
    assert (obs[:, rlhf.P :] == -1).all()
    assert not reward.any()
    assert not terminated.any()


def test_group_has_one_prompt():
    envs = rlhf.make_envs(parse("rlhf", "--group-size", 4), 32)
    obs, _ = envs.reset(seed=1)
    groups = torch.tensor(obs).view(8, 4, rlhf.L)
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].unique(dim=0)) > 1


def test_people_prefer_by_the_sigmoid_of_the_difference():
    pool = words("""
    the film was wonderful and the plot was superb and this cast was very moving but
    the film was wonderful and the plot was superb and this cast was very dull but
    """)
    margin = (rlhf.gold(pool)[0] - rlhf.gold(pool)[1]).item()
    assert margin == 2
    torch.manual_seed(0)
    preferred, other = rlhf.compare(pool, 40_000)
    mixed = (preferred != other).any(1)
    share = (preferred[mixed] == pool[0]).all(1).float().mean().item()
    assert share == pytest.approx(torch.tensor(2.0).sigmoid().item(), abs=0.01)


# ---- probabilities


def test_probability_of_a_response_is_the_product_of_its_words():
    agent, _ = random_agent()
    some = rlhf.reviews(3)
    log_prob, entropy = agent.log_prob(agent.policy, some)
    assert log_prob.shape == entropy.shape == (3, rlhf.L - rlhf.P)
    for t in range(rlhf.P, rlhf.L):
        probs = agent.policy(some[:, :t])[:, -1].softmax(-1)  # it has seen only the words before
        torch.testing.assert_close(log_prob[:, t - rlhf.P].exp(), probs[torch.arange(3), some[:, t]])
        torch.testing.assert_close(entropy[:, t - rlhf.P], -(probs * probs.log()).sum(-1))


def test_kl_estimate_is_near_the_exact_kl():
    """Over all responses of two words."""
    agent, _ = random_agent()
    prompt, W = words("the film was"), rlhf.W
    pairs = torch.cartesian_prod(torch.arange(W), torch.arange(W))
    every = torch.cat([prompt.expand(len(pairs), -1), pairs], 1)
    sampled = agent.policy.write(prompt.expand(20_000, -1), 5)
    with torch.no_grad():
        log_ratio, probability = [], None
        for some in (every, sampled):
            log_prob, ref_log_prob = (agent.log_prob(m, some)[0].sum(1) for m in (agent.policy, agent.reference))
            probability = log_prob.exp() if probability is None else probability
            log_ratio.append(log_prob - ref_log_prob)
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0))
    exact = (probability * log_ratio[0]).sum()
    assert exact > 0.1
    assert abs(log_ratio[1].mean() - exact) < 4 * log_ratio[1].std() / 20_000**0.5


def test_word_after_does_not_change_the_output_before():
    agent, _ = random_agent()
    some = rlhf.reviews(4)
    changed = some.clone()
    changed[:, 9:] = torch.randint(rlhf.W, (4, rlhf.L - 9))
    torch.testing.assert_close(agent.policy(some)[:, :9], agent.policy(changed)[:, :9])


# ---- rewards and losses


def test_word_rewards_by_hand():
    log_prob, ref_log_prob = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-2.0, -2.0, -1.0]])
    reward = rlhf.word_rewards(torch.tensor([4.0]), log_prob, ref_log_prob, 0.5)
    torch.testing.assert_close(reward, torch.tensor([[-0.5, 0.0, 5.0]]))


def test_group_advantage_by_hand():
    """Deviations of 1, 3 are sqrt 2; of 2, 2 nothing."""
    advantage = rlhf.group_advantage(torch.tensor([1.0, 3.0, 2.0, 2.0]), 2)
    torch.testing.assert_close(advantage, torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0, 0.0]))


def test_reward_loss_by_hand():
    agent, args = random_agent()
    pair = torch.stack([rlhf.reviews(5), rlhf.reviews(5)])
    found, metrics = rlhf.reward_loss(agent, pair, args)
    margin = (agent.reward_model(pair[0]) - agent.reward_model(pair[1]))[:, -1, 0]
    torch.testing.assert_close(found, (1 + (-margin).exp()).log().mean())
    assert metrics["accuracy"] == (margin > 0).float().mean()


@pytest.mark.parametrize("group_size", [1, 4])
def test_prompts_take_no_gradient(group_size):
    agent, args = random_agent("--group-size", group_size)
    outputs = []
    for model in (agent.policy, agent.critic):
        model.register_forward_hook(lambda module, inputs, output: output.retain_grad() or outputs.append(output))
    some, shape = rlhf.reviews(8), (8, rlhf.L - rlhf.P)
    old_log_prob = agent.log_prob(agent.policy, some)[0].detach()
    outputs.clear()
    rlhf.loss(agent, (some, torch.randn(shape), torch.randn(shape), old_log_prob), args)[0].backward()
    assert len(outputs) == (2 if group_size == 1 else 1)  # a group needs no critic
    for output in outputs:
        assert (output.grad[:, : rlhf.P - 1] == 0).all()
        assert (output.grad[:, rlhf.P - 1 :].abs().sum(-1) > 0).all()


# ---- the stages


def test_only_policy_and_critic_move_in_stage_3(folder):
    kept = {}

    def look(run, agent, optimizer, args):
        kept["before"] = copy.deepcopy(agent.state_dict())
        ppo(run, agent, optimizer, args)
        kept["after"] = agent.state_dict()

    ppo = rlhf.ppo
    with mock.patch.object(rlhf, "ppo", look):
        train("rlhf", *TINY)
    moved = {k.split(".")[0] for k, v in kept["before"].items() if not torch.equal(v, kept["after"][k])}
    assert moved == {"policy", "critic"}
    reference = {k: v for k, v in kept["before"].items() if k.startswith("reference.")}
    assert all(torch.equal(v, kept["before"][k.replace("reference", "policy")]) for k, v in reference.items())


def test_scores_are_standardised_over_the_reference(folder):
    agent, _ = train("rlhf", *TINY)
    score = agent.score(agent.pool)
    assert score.mean().item() == pytest.approx(0, abs=1e-4)
    assert score.std().item() == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Stages 1 and 2 by default, and a first step of stage 3 -> the agent, its run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        agent, result = train("rlhf", "--total-timesteps", 1, "--eval-episodes", 0, "--checkpoint-every", 10**9)
    return agent, folder / result.folder


@pytest.mark.slow
def test_model_of_stage_1_is_near_the_entropy_of_the_grammar(trained):
    agent, _ = trained
    torch.manual_seed(1)
    some = rlhf.reviews(4000)
    with torch.no_grad():
        found = torch.nn.functional.cross_entropy(agent.reference(some[:, :-1]).flatten(0, 1), some[:, 1:].flatten())
    assert 0.99 < found.item() / entropy_of_the_grammar() < 1.03


@pytest.mark.slow
def test_reward_model_is_as_accurate_as_the_noise_allows(trained):
    """On pairs that it was not trained on."""
    agent, _ = trained
    torch.manual_seed(1)
    pool = agent.reference.write(rlhf.PROMPTS[rlhf.HELD_OUT].repeat(200, 1))
    with torch.no_grad():
        preferred, other = rlhf.compare(pool, 20_000)
        found = (agent.score(preferred) > agent.score(other)).float().mean()
        best = (rlhf.gold(preferred) - rlhf.gold(other)).abs().sigmoid().mean()
    assert found > best - 0.03


@pytest.mark.slow
def test_large_beta_keeps_the_policy_at_the_reference(trained, folder):
    _, run = trained
    copied = shutil.copytree(run, Path("runs", run.name))
    flags = ("--beta", 10, "--learning-rate", 3e-4, "--total-timesteps", 40_000, "--eval-episodes", 0)
    _, result = train("rlhf", "--resume", copied, *flags)
    kl = [value for _, value in scalars(result.folder)["losses/kl"]]
    assert abs(kl[-1]) < 0.5
