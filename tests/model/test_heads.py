"""Heads on roles: what they say equals a plain forward's, their gradients survive checkpointing, and they are counted and trained."""

import copy

import pytest
import torch
from torch import Tensor

from manners.core.records import TokenGroup, TokenResponse
from manners.model.probe import plain_states
from manners.model.roles import BASE, Backbone, Lora
from manners.model.score import Scores
from manners.model.trace import shadow, trace
from manners.model.tree import TokenTree, pack
from manners.train import memory
from manners.train.judgements import PairLoss, reward_scores, rewards_of
from manners.train.learner import Learner, Micro, OptimizerSettings, policy_scores
from tests.families import tiny
from tests.oracles import float64_everywhere
from tests.tiny import tiny_llama


@pytest.fixture(autouse=True)
def exact():
    """Norms and softmax in float64, too."""
    with float64_everywhere():
        yield


def groups() -> list[TokenGroup]:
    """Three prompts with two answers each; of the first answer of all the last token is not trained."""
    answer = lambda *ids: TokenResponse(list(ids), [True] * len(ids))
    first = TokenResponse([7, 8, 9], [True, True, False])
    return [
        TokenGroup([5, 6, 4], [first, answer(9, 10)], row=0),
        TokenGroup([11], [answer(12), answer(13, 14, 15, 16)], row=1),
        TokenGroup([], [answer(17, 18), answer(19, 20, 21)], row=2),
    ]


def backbone(role: str = "reward", outputs: int = 1) -> Backbone:
    """A float64 Llama with an adapter that is not zero, and a head."""
    made = Backbone(tiny("llama"))
    made.add_adapter(role, Lora(rank=4), seed=1)
    with torch.no_grad():
        for name, parameter in made.trainable(role).items():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    made.add_head(role, outputs, seed=2)
    return made


def states(made: Backbone, role: str) -> list[Tensor]:
    """Last states (T, D) of each conversation by the model's own forward, one at a time, under a role."""
    before = made.model.config._attn_implementation
    with made.role(role), torch.no_grad():
        made.model.set_attn_implementation("eager")
        rows = [torch.tensor([[*g.prompt_ids, *r.token_ids]]) for g in groups() for r in g.responses]
        found = [made.model.base_model(input_ids=row, use_cache=False)[0][0] for row in rows]
        made.model.set_attn_implementation(before)
    return found


def test_rewards_are_the_heads_at_the_last_trained_token():
    made = backbone(outputs=3)
    tree, head = pack(groups()), made.heads["reward"]
    with torch.no_grad():
        said = rewards_of(made.rewards(tree, "reward"))
    lengths = [len(g.prompt_ids) + len(r.token_ids) for g in groups() for r in g.responses]
    last = [n - 1 for n in lengths]
    last[0] -= 1  # its last token is not trained
    expected = torch.stack([head(hidden[place]) for hidden, place in zip(states(made, "reward"), last, strict=True)])
    assert said.shape == (6, 3) and torch.allclose(said, expected, rtol=0, atol=1e-10)
    assert made.active == BASE


def test_a_response_without_a_trained_token_has_no_reward():
    made = backbone()
    silent = TokenGroup([5], [TokenResponse([6], [True]), TokenResponse([7, 8], [False, False])])
    with pytest.raises(ValueError, match="response 1 has no trained token"):
        made.rewards(pack([silent]), "reward")


def test_values_are_the_heads_before_each_token_with_or_without_logits():
    made = backbone("value")
    tree, head = pack(groups()), made.heads["value"]
    with torch.no_grad():
        alone = made.values(tree, "value")
        with made.role("value"):
            beside = made.score(tree, value="value")
            plain = made.score(tree)
    assert alone.value_N is not None and beside.value_N is not None and alone.logp_N.numel() == 0
    assert torch.equal(alone.value_N, beside.value_N) and torch.equal(beside.logp_N, plain.logp_N) and plain.value_N is None
    found, row = [], 0
    for group in groups():
        for response in group.responses:
            hidden, start = states(made, "value")[row], len(group.prompt_ids)
            found += [hidden[start + i - 1] for i, trained in enumerate(response.trained) if trained and start + i > 0]
            row += 1
    assert torch.allclose(alone.value_N, head(torch.stack(found))[:, 0], rtol=0, atol=1e-10)


def test_the_shared_trunk_runs_one_role_and_the_head_is_another_s():
    """A critic on the policy's trunk: the head of role value, the adapter of role policy."""
    made = backbone("policy")
    made.add_role("value", "policy")
    made.add_head("value", seed=9)
    assert made.adapter_of("value") == "policy"
    tree = pack(groups())
    with torch.no_grad(), made.role("policy"):
        first = made.score(tree, value="value").value_N
        second = made.values(tree, "value").value_N
    assert first is not None and second is not None and torch.equal(first, second)


def gradients(checkpointing: bool) -> dict[str, Tensor]:
    made = backbone()
    made.checkpointing(checkpointing)
    loss = PairLoss()
    tree = pack(groups())
    with made.role("reward"):
        scores = reward_scores(made, tree)
    loss(scores, Micro(groups(), tree)).terms["pairs"].total.backward()  # runs under BASE: the recompute finds its role
    return {name: p.grad.clone() for name, p in made.trainable("reward").items() if p.grad is not None}


def test_gradients_are_the_same_under_checkpointing():
    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys() and len(plain) > 10
    assert all(torch.allclose(plain[n], recomputed[n], rtol=0, atol=1e-12) for n in plain)
    assert plain["head.reward.weight"].abs().max() > 0
    assert plain["head.reward.bias"].abs().max() < 1e-12  # a shift of all rewards changes nothing
    assert max(float(g.abs().max()) for n, g in plain.items() if "lora_A" in n) > 0


def test_a_head_is_trained_with_its_role_and_no_other():
    made = backbone("policy")
    made.add_adapter("reward", Lora(rank=4), seed=5)
    made.add_head("reward", seed=6)
    before = {role: {n: p.detach().clone() for n, p in made.trainable(role).items()} for role in ("policy", "reward")}
    assert {"head.reward.weight", "head.reward.bias"} <= before["reward"].keys() and "head.reward.weight" not in before["policy"]
    learner = Learner(made, "reward", OptimizerSettings(warmup=0), 1e-2, 2, forward=reward_scores)
    for _ in range(2):
        learner.step(groups(), PairLoss(centring=0.1))
    assert all(torch.equal(p, before["policy"][n]) for n, p in made.trainable("policy").items())
    assert not torch.equal(made.heads["reward"].weight, before["reward"]["head.reward.weight"])


def test_a_frozen_body_trains_its_head_alone():
    made = Backbone(tiny("llama"))
    made.add_role("reward")
    made.add_head("reward")
    assert set(made.trainable("reward")) == {"head.reward.weight", "head.reward.bias"}
    with pytest.raises(ValueError, match="exists already"):
        made.add_role("reward")


def test_how_a_head_begins():
    """Weights of standard deviation 1/sqrt(D+1) (0.0360609223 for 768), bias 0, the same for the same seed; float32 or wider."""
    made = Backbone(tiny_llama(width=64))
    for role, more in {"a": {"seed": 1}, "b": {"seed": 1}, "c": {"seed": 2}, "d": {"zero": True}}.items():
        made.add_role(role)
        made.add_head(role, 400, **more)
    a, b, c, d = (made.heads[role].weight for role in "abcd")
    assert float(a.detach().std()) == pytest.approx(65**-0.5, rel=0.02) and a.dtype == torch.float32
    assert torch.equal(a, b) and not torch.equal(a, c) and not d.any() and not made.heads["a"].bias.any()


def test_a_deep_copy_has_heads_of_its_own():
    made = backbone()
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.heads["reward"].weight.zero_()
    assert made.heads["reward"].weight.abs().max() > 0
    assert shadow(made).heads["reward"].weight.shape == made.heads["reward"].weight.shape


def measured(made: Backbone, forward) -> int:
    """Peak bytes of one forward and backward really run, by the same ledger."""
    return trace(made, "reward", pack(groups()), forward=forward).peak


@pytest.mark.parametrize("forward", [reward_scores, policy_scores])
def test_the_memory_of_a_reward_step_is_counted_as_it_is_taken(forward):
    made = backbone()
    counted = trace(shadow(made), "reward", pack(groups()), forward=forward)
    assert counted.peak == pytest.approx(measured(made, forward), rel=0.02) and 0 < counted.kept <= counted.peak
    assert all(p.grad is None for p in made.trainable("reward").values())


def test_the_plan_of_a_reward_run_is_exact():
    made = backbone()
    plan = memory.plan(made, "reward", groups(), OptimizerSettings(), reward_scores)
    assert plan.exact
    head = sum(p.numel() * p.element_size() for p in made.heads["reward"].parameters())
    assert plan.moments == 2 * sum(p.numel() * p.element_size() for p in made.trainable("reward").values()) and plan.adapter > head


def test_scores_hold_what_was_asked_for():
    made = backbone()
    with torch.no_grad():
        said: Scores = made.rewards(pack(groups()), "reward")
    assert said.value_N is None and said.entropy_N is None and said.reward_RK is not None
    assert plain_states(made.model, groups()).shape[0] == said.responses == 6
    tree: TokenTree = pack(groups())
    assert tree.last_R.tolist()[0] == 4  # prompt of three, two trained tokens, one that is not
