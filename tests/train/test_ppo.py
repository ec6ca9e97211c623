"""PPO: the chain from rewards to losses against its formulas, a bandit with a known optimum, the leash, faults, settings and docs."""

import json
import math
from pathlib import Path
from typing import cast

import pytest
import torch

from manners.core.errors import InputError, MannersError
from manners.core.files import read_jsonl
from manners.core.records import Group, Prompt, Response, TokenGroup, TokenResponse
from manners.core.run import RunFolder
from manners.data.chat import ChatFormat
from manners.feedback.reward_model import RewardModel
from manners.model.load import load_model
from manners.model.reward import Card, Member
from manners.model.roles import BASE, Backbone, Lora
from manners.model.sampler import Sampler
from manners.model.score import Scores
from manners.model.tree import pack
from manners.train.actors import VALUE, add_critic
from manners.train.learner import Beside, Micro
from manners.train.ppo import DEFAULT_RATE, PPO, PPOSettings, learn, ppo
from manners.train.rollout import Actors, Rollout, credit, judge, stream
from manners.train.surrogate import PolicyLoss, PtxLoss, ValueLoss
from tests.markdown import DOCS, table
from tests.oracles import leashed_optimum, ppo_chain, ppo_losses
from tests.tiny import tiny_folder, tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")


def settings_of(**given) -> PPOSettings:
    return PPOSettings(**{"data": "-", "out": "-", "reward": "length", **given})


# --- by hand ------------------------------------------------------------------------------------------------------------------------


def filled(lengths: list[int], samples: int = 1, **columns) -> Rollout:
    """A rollout of responses of these lengths, prompts of two tokens, with per-token columns as lists."""
    groups, tokens = [], []
    for place, start in enumerate(range(0, len(lengths), samples)):
        sizes = lengths[start : start + samples]
        groups.append(Group(Prompt.user("p"), [Response.answer("a", finish_reason="stop") for _ in sizes], row=place))
        tokens.append(TokenGroup([1, 2], [TokenResponse([5] * n, [True] * n) for n in sizes], row=place))
    flat = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
    made = Rollout(0, groups, tokens, torch.zeros(sum(lengths), dtype=torch.float64))
    for name, column in flat.items():
        setattr(made, name, column)
    return made


def test_the_worked_values_through_the_chain():
    """P2, P3, P4 of the fact sheet, then P5 and P6 as losses of a micro-batch."""
    made = filled(
        [4],
        old_logp_N=[-1, -0.5, -2, -0.1],
        reference_logp_N=[-1.2, -0.4, -1.5, -0.1],
        value_N=[0.5, 0.6, 0.4, 0.9],
        shaped_R=[1.5],
    )
    credit(made, settings_of(), beta=0.05)
    assert made.reward_N.tolist() == pytest.approx([-0.01, 0.005, 0.025, 1.5])
    assert made.return_N.tolist() == pytest.approx([1.3929875, 1.44525, 1.495, 1.5])
    assert made.advantage_N.tolist() == pytest.approx([0.196863801, -0.07413659769, 1.34366596, -1.466393163])
    assert made.measured["rlhf_reward"] == pytest.approx(1.52) and made.measured["non_score_reward"] == pytest.approx(0.02)
    assert made.measured["advantage_mean"] == pytest.approx(0.858309375)
    credit(made, settings_of(whiten_advantages=False), beta=0.05)
    assert made.advantage_N.tolist() == pytest.approx([0.8929875, 0.84525, 1.095, 0.6])
    credit(made, settings_of(kl_estimator="k3"), beta=0.05)
    assert made.reward_N[0] == pytest.approx(-0.05 * 0.01873075308) and made.measured["rlhf_reward"] == pytest.approx(1.52)


def test_the_chain_against_its_oracle():
    generator = torch.Generator().manual_seed(3)
    lengths = [3, 1, 5, 2, 4, 2]
    draw = lambda scale=1.0: [(torch.randn(n, generator=generator, dtype=torch.float64) * scale).tolist() for n in lengths]
    old, reference, values, new, now = draw(), draw(), draw(), draw(0.4), draw(0.4)
    scores = torch.randn(len(lengths), generator=generator, dtype=torch.float64).tolist()
    flat = lambda rows: [x for row in rows for x in row]
    made = filled(lengths, 2, old_logp_N=flat(old), reference_logp_N=flat(reference), value_N=flat(values), shaped_R=scores)
    settings = settings_of(gamma=0.9, lam=0.8, value="shared", samples=2, clip=0.3, value_clip=0.25, value_coef=0.5)
    credit(made, settings, beta=0.1)
    told = ppo_chain(old, reference, values, scores, 0.1, 0.9, 0.8)
    assert made.reward_N.tolist() == pytest.approx(told["rewards"]) and made.return_N.tolist() == pytest.approx(told["returns"])
    assert made.advantage_N.tolist() == pytest.approx(told["whitened"])
    # any micro-batch takes its own part of the columns
    for picked in ([0, 1, 2], [2, 0]):
        groups = [made.tokens[i] for i in picked]
        micro = Micro(groups, pack(groups))
        part = lambda rows, picked=picked: flat([rows[2 * i + k] for i in picked for k in range(2)])
        logp = [o + d for o, d in zip(part(old), part(new), strict=True)]
        value = [v + d for v, d in zip(part(values), part(now), strict=True)]
        each = lambda name, picked=picked: [told[name][n] for i in picked for n in range(made.starts[i], made.starts[i + 1])]
        policy, critic = ppo_losses(logp, part(old), each("whitened"), value, part(values), each("returns"), 0.3, 0.25)
        as_tensor = lambda column: torch.tensor(column, dtype=torch.float64)
        found = PolicyLoss(made, settings)(Scores(as_tensor(logp), micro.tree.response_N, 2, value_N=as_tensor(value)), micro)
        for name, expected, coefficient in (("policy", policy, 1.0), ("value", critic, 0.5)):
            term = found.terms[name]
            assert float(term.total) / term.weight == pytest.approx(expected, abs=1e-12) and term.coefficient == coefficient
        own = ValueLoss(made, settings)(Scores(as_tensor([]), micro.tree.response_N, 2, value_N=as_tensor(value)), micro)
        assert float(own.terms["value"].total) == float(found.terms["value"].total)


def test_clip_fractions_ratio_and_approx_kl():
    made = filled([3], old_logp_N=[0, 0, 0], advantage_N=[1, 1, 1], value_N=[0, 0, 0], return_N=[1, 1, 1])
    logp_N = torch.tensor([0.1, -0.2, 0.0], dtype=torch.float64)
    micro = Micro(made.tokens, pack(made.tokens))
    loss = PolicyLoss(made, settings_of(clip=0.15))
    metrics = loss(Scores(logp_N, micro.tree.response_N, 1), micro).metrics
    assert metrics["approx_kl"] == (pytest.approx(3 * 0.007967223718), 3.0)  # P15
    assert metrics["clipfrac"] == (1.0, 3.0) and loss.largest == pytest.approx(math.exp(0.1))
    value_N = torch.tensor([0.1, 0.3, 0.9], dtype=torch.float64)
    scores = Scores(logp_N, micro.tree.response_N, 1, value_N=value_N)
    assert ValueLoss(made, settings_of())(scores, micro).metrics["value_clipfrac"] == (2.0, 3.0)


def test_the_entropy_bonus_has_the_value_and_on_average_the_gradient_of_the_entropy():
    logits_V = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64, requires_grad=True)
    entropy = lambda: -(torch.softmax(logits_V, 0) * torch.log_softmax(logits_V, 0)).sum()
    expected = torch.autograd.grad(entropy(), logits_V)[0]
    found, probabilities = torch.zeros(3, dtype=torch.float64), torch.softmax(logits_V, 0).detach()
    for token in range(3):
        made = filled([1], old_logp_N=[math.log(probabilities[token])], advantage_N=[0.0])
        micro = Micro(made.tokens, pack(made.tokens))
        scores = Scores(torch.log_softmax(logits_V, 0)[token][None], micro.tree.response_N, 1, entropy_N=entropy().detach()[None])
        term = PolicyLoss(made, settings_of(entropy_coef=0.01))(scores, micro).terms["entropy"]
        assert float(term.total.detach()) == pytest.approx(-float(entropy().detach())) and term.coefficient == 0.01
        found -= probabilities[token] * torch.autograd.grad(term.total, logits_V)[0]
    assert torch.allclose(found, expected)


@pytest.mark.parametrize(
    ("more", "shaped"),
    [
        ({}, [3.0, -1.0]),
        ({"missing_end": "keep"}, [3.0, 5.0]),
        ({"missing_end": "subtract", "missing_end_score": -2}, [3.0, 3.0]),
        ({"reward_scale": 0.5, "reward_clip": 2, "missing_end": "keep"}, [1.5, 2.0]),
    ],
)
def test_how_scores_are_shaped(more, shaped):
    made = filled([2, 2], 2)
    made.groups[0].responses[1].finish_reason = "length"
    judge(made, lambda groups: [[3.0, 5.0] for _ in groups], settings_of(**more))
    assert made.shaped_R.tolist() == shaped and made.score_R.tolist() == [3.0, 5.0]
    assert made.measured["score"] == 4.0 and made.measured["score_std"] == 1.0
    assert [r.scores["reward"] for r in made.groups[0].responses] == [3.0, 5.0]


def test_the_stream_of_prompts_takes_every_row_once_a_pass():
    taken = [i for start in range(0, 30, 5) for i in stream(10, start, 5, 7, "x")]
    assert [sorted(taken[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert taken == list(stream(10, 0, 30, 7, "x")) != list(stream(10, 0, 30, 8, "x"))


# --- small models -------------------------------------------------------------------------------------------------------------------


class Bytes:
    """A format of numbers: the prompt's text is its ids, an answer's text its ids."""

    stop_ids = frozenset({2})

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return [int(word) for word in prompt.messages[0].content.split()]

    def decode(self, token_ids) -> str:
        return " ".join(map(str, token_ids))


def actors_of(backbone: Backbone, reward, prompts: list[str], shared: bool = False, rank: int = 8, slots: int = 64) -> Actors:
    backbone.add_adapter("policy", Lora(rank), seed=1)
    critic = add_critic(backbone, "policy", reward, shared=shared, seed=2)
    fmt = Bytes()
    groups = [Group(Prompt.user(text), [], row=i) for i, text in enumerate(prompts)]
    ids = [fmt.prompt_ids(g.prompt) for g in groups]
    return Actors(backbone, "policy", BASE, critic, Sampler(backbone, fmt, role="policy", slots=slots), reward, groups, ids)


def counted(wanted):
    """A reward: how many of an answer's tokens are `wanted`."""
    return lambda groups: [[float(sum(t in wanted for t in r.token_ids)) for r in g.responses] for g in groups]


PROMPTS = ["1 10 11", "1 12 13 14", "1 15 16 17 18", "1 19 20"]


def test_at_learning_rate_0_the_ratio_stays_1_and_the_kl_0(tmp_path):
    settings = settings_of(
        learning_rate=0, episodes=48, rollout_size=16, batch_size=8, epochs=2, max_new_tokens=8, missing_end="keep", micro_tokens=60
    )
    made = PPO(actors_of(Backbone(tiny_llama()), counted(range(50, 90)), PROMPTS), settings)
    before = {n: p.detach().clone() for n, p in made.policy.parameters.items()}
    outcome = learn(RunFolder(tmp_path), made)
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert len(records) == 3
    for record in records:
        assert record["ratio"] == pytest.approx(1, abs=1e-5) and record["ratio_max"] == pytest.approx(1, abs=1e-5)
        assert record["approx_kl"] == pytest.approx(0, abs=1e-9) and record["clipfrac"] == 0 and record["ratio_var"] < 1e-9
        assert record["kl_seq"] == pytest.approx(0, abs=1e-5) and record["kl_exact"] == pytest.approx(0, abs=1e-5)
        assert record["sampler_gap"] < 1e-3 and record["policy_steps"] == 4
    assert outcome.closing["kl_seq"] == pytest.approx(0, abs=1e-5)
    assert all(torch.equal(before[n], p) for n, p in made.policy.parameters.items())


def lively() -> Backbone:
    """A random model whose logits vary by more than those of a fresh one, so that it has preferences to be changed."""
    model = tiny_llama()
    model.config.tie_word_embeddings = False
    drawn = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(5)) * 0.15
    model.lm_head.weight = torch.nn.Parameter(drawn)
    return Backbone(model)


REFERENCE, REWARDS = [0.5, 0.3, 0.2], [1.0, 0.0, -1.0]


def bandit() -> Backbone:
    """A model that answers the prompt "1" by token 3, 4 or 5 with the probabilities of REFERENCE, and by no other."""
    model = tiny_llama(width=32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        h = model.base_model(input_ids=torch.tensor([[1]]))[0][0, 0]
        wanted = torch.full((model.lm_head.out_features,), -25.0)
        wanted[3:6] = torch.tensor(REFERENCE).log()
        across = torch.eye(len(h)) - torch.outer(h, h) / h.dot(h)
        noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)) / len(h) ** 0.5
        noise[torch.isclose(wanted, torch.tensor(-25.0))] = 0.0
        model.lm_head.weight.copy_(torch.outer(wanted, h) / h.dot(h) + noise @ across)
    return Backbone(model)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_a_bandit_reaches_its_leashed_optimum(beta, tmp_path):
    """D14: one token, three outcomes. The optimum is known in closed form for every beta."""
    reward = lambda groups: [[REWARDS[r.token_ids[0] - 3] if 3 <= r.token_ids[0] < 6 else -5.0 for r in g.responses] for g in groups]
    backbone = bandit()
    settings = settings_of(
        learning_rate=5e-4,
        episodes=50 * 32,
        rollout_size=32,
        batch_size=32,
        samples=32,
        epochs=2,
        max_new_tokens=1,
        temperature=1.0,
        missing_end="keep",
        beta=beta,
        micro_tokens=1000,
        kl_probe=1,
    )
    made = PPO(actors_of(backbone, reward, ["1"], slots=32), settings)
    tree = pack([TokenGroup([1], [TokenResponse([t], [True]) for t in (3, 4, 5)])])
    policy = lambda: backbone.score(tree).logp_N.exp().tolist()
    with torch.no_grad(), backbone.role("policy"):
        assert policy() == pytest.approx(REFERENCE, abs=1e-4)
    learn(RunFolder(tmp_path), made)
    optimum = leashed_optimum(REFERENCE, REWARDS, beta)
    if beta == 0.5:
        assert optimum == pytest.approx([0.9186723059, 0.07459726603, 0.006730428085])
    with torch.no_grad(), backbone.role("policy"):
        assert policy() == pytest.approx(optimum, abs=0.01)
    kl = sum(p * math.log(p / q) for p, q in zip(optimum, REFERENCE, strict=True))
    assert made.leash.good_round == 50
    assert read_jsonl(tmp_path / "metrics.jsonl")[-1]["kl_exact"] == pytest.approx(kl, abs=0.02)


@pytest.mark.parametrize("shared", [False, True])
def test_a_score_rises_while_the_kl_keeps_below_its_target(shared, tmp_path):
    wanted = range(50, 90)
    settings = settings_of(
        learning_rate=1e-3,
        episodes=18 * 64,
        epochs=2,
        batch_size=32,
        max_new_tokens=10,
        temperature=1.0,
        missing_end="keep",
        beta=0.25,
        kl_target=9.0,
        kl_horizon=2000,
        micro_tokens=2000,
        value="shared" if shared else "own",
    )
    made = PPO(actors_of(lively(), counted(wanted), PROMPTS, shared=shared), settings)
    assert (made.critic is None) == shared and ("head.policy.weight" in made.policy.parameters) == shared
    outcome = learn(RunFolder(tmp_path), made)
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert outcome.closing["score"] > records[0]["score"] + 1
    thirds = [sum(r["score"] for r in records[i : i + 6]) for i in (0, 6, 12)]
    assert thirds[0] < thirds[1] < thirds[2]
    assert max(r["kl_seq"] for r in records) < 9 and outcome.closing["kl_seq"] < 9
    assert records[-1]["beta"] < 0.25
    assert set(records[0]) == set(records[-1])


def test_shared_and_own_critic_agree_before_anything_is_learned(tmp_path):
    """Both begin with a head of zeros, so the first rollout, its advantages and its policy loss are the same."""
    first = []
    for shared in (False, True):
        few = {"episodes": 32, "rollout_size": 32, "batch_size": 32, "epochs": 1, "max_new_tokens": 6, "missing_end": "keep"}
        settings = settings_of(learning_rate=1e-3, value="shared" if shared else "own", **few)
        made = PPO(actors_of(Backbone(tiny_llama()), counted(range(50, 90)), PROMPTS, shared=shared), settings)
        learn(RunFolder(tmp_path / str(shared)), made)
        first += read_jsonl(tmp_path / str(shared) / "metrics.jsonl")
    own, shared = first
    for name in ("score", "kl_seq", "advantage_mean", "return_std", "value_mean", "loss/policy", "loss/value", "entropy", "ratio"):
        assert own[name] == pytest.approx(shared[name], abs=1e-6), name
    assert own["value_mean"] == pytest.approx(own["shaped_score"]) and own["tokens"] == 2 * shared["tokens"]
    a, b = ((tmp_path / name / "rollouts" / "round-00001.jsonl").read_text() for name in ("False", "True"))
    assert [r["responses"][0]["token_ids"] for r in map(json.loads, a.splitlines())] == [
        r["responses"][0]["token_ids"] for r in map(json.loads, b.splitlines())
    ]


def test_a_critic_begins_as_the_reward_model_of_the_same_backbone():
    backbone = Backbone(tiny_llama())
    backbone.add_adapter("policy", Lora(4), seed=1)
    backbone.add_adapter("reward", Lora(4), seed=2, trainable=False)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "lora_B.reward" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    backbone.add_head("reward", seed=3, trainable=False)
    card = Card("pairs", members=(Member(gain=2.0, bias=0.5),))
    model = RewardModel("rm", Path("rm"), backbone, ["reward"], card, cast(ChatFormat, None))
    assert add_critic(backbone, "policy", model, shared=False, seed=0) == VALUE
    tree = pack([TokenGroup([1, 10, 11], [TokenResponse([12, 13], [True, True])])])
    with torch.no_grad():
        ours, theirs = backbone.values(tree, VALUE).value_N, backbone.values(tree, "reward").value_N
        assert ours is not None and theirs is not None and torch.allclose(ours, 2.0 * theirs + 0.5, atol=1e-5)
    assert len(backbone.trainable(VALUE)) == 2 + len(backbone.trainable("policy")) and not backbone.trainable("reward")


def test_ptx_adds_its_gradient_at_temperature_1_and_in_micro_batches_of_its_own():
    texts = [TokenGroup([1], [TokenResponse([30 + i, 31, 32, 33], [True] * 4)], row=i) for i in range(3)]
    settings = settings_of(learning_rate=0, temperature=0.5, rollout_size=8, batch_size=8, max_new_tokens=5, missing_end="keep", ptx_rows=3)
    made = PPO(actors_of(Backbone(tiny_llama()), counted(range(50, 90)), PROMPTS), settings, texts)
    rollout = made.collect()
    credit(rollout, settings, 0.05)
    loss, [beside] = PolicyLoss(rollout, settings), made._beside()
    assert {g.token_ids[0] for t in beside.groups for g in t.responses} == {30, 31, 32}

    def gradient(groups, loss, *more, forward=None):
        made.policy.accumulate(groups, loss, forward)
        for part in more:
            made.policy.accumulate(part.groups, part.loss, part.forward)
        found = {n: p.grad.clone() for n, p in made.policy.parameters.items() if p.grad is not None}
        made.policy.optimizer.zero_grad(set_to_none=True)
        return found

    both, alone = gradient(rollout.tokens, loss, beside), gradient(rollout.tokens, loss)
    text = gradient(beside.groups, PtxLoss(1.0), forward=beside.forward)
    assert all(torch.allclose(both[n], alone[n] + 27.8 * text[n], atol=1e-5) for n in both)
    metrics = made.policy.step(rollout.tokens, loss, beside)
    with torch.no_grad(), made.actors.backbone.role("policy"):
        nll = -float(made.actors.backbone.score(pack(texts)).logp_N.mean())
    assert metrics["ptx/nll"] == pytest.approx(nll) and metrics["ptx/loss"] == pytest.approx(27.8 * nll, rel=1e-5)
    assert metrics["loss"] == pytest.approx(metrics["loss/policy"] + 27.8 * nll, rel=1e-5)
    assert isinstance(beside, Beside) and metrics["micro_batches"] == 2


def test_one_step_follows_the_sign_of_the_advantage():
    """REINFORCE's view: what was better than expected becomes likelier, what was worse less likely."""
    settings = settings_of(
        learning_rate=1e-3, schedule="constant", rollout_size=8, batch_size=8, max_new_tokens=1, missing_end="keep", kl_probe=0
    )
    for sign in (1.0, -1.0):
        made = PPO(actors_of(lively(), counted([]), PROMPTS), settings)
        rollout = made.collect()
        rollout.advantage_N = sign * torch.ones_like(rollout.old_logp_N)
        made.policy.step(rollout.tokens, PolicyLoss(rollout, settings))
        with torch.no_grad(), made.actors.backbone.role("policy"):
            moved_N = made.actors.backbone.score(pack(rollout.tokens), temperature=0.7).logp_N - rollout.old_logp_N
        assert (sign * moved_N > 0).float().mean() > 0.9 and sign * float(moved_N.mean()) > 0


def test_old_log_probabilities_from_the_sampler_save_a_pass_and_say_the_same(tmp_path):
    first = []
    for source in ("scorer", "sampler"):
        settings = settings_of(
            episodes=16, rollout_size=16, batch_size=16, epochs=1, max_new_tokens=6, missing_end="keep", old_logps=source
        )
        made = PPO(actors_of(Backbone(tiny_llama()), counted(range(50, 90)), PROMPTS), settings)
        learn(RunFolder(tmp_path / source), made)
        first += read_jsonl(tmp_path / source / "metrics.jsonl")
    assert first[0]["score"] == first[1]["score"] and first[0]["kl_seq"] == pytest.approx(first[1]["kl_seq"], abs=1e-2)
    assert 0 < first[1]["sampler_gap"] < 1e-3
    made = PPO(actors_of(Backbone(tiny_llama()), counted(range(50, 90)), PROMPTS), settings_of(max_sampler_gap=1e-9, max_new_tokens=6))
    with pytest.raises(MannersError, match="more than max_sampler_gap=1e-09"):
        made.collect()


def test_the_policy_rests_once_approx_kl_is_passed():
    settings = settings_of(
        learning_rate=1e-2, rollout_size=16, batch_size=4, epochs=3, max_new_tokens=6, missing_end="keep", max_approx_kl=1e-4, episodes=64
    )
    made = PPO(actors_of(Backbone(tiny_llama()), counted(range(50, 90)), PROMPTS), settings)
    rollout = made.collect()
    credit(rollout, settings, 0.05)
    metrics = made.update(rollout)
    assert made.critic is not None
    assert metrics["policy_steps"] < 12 == made.critic.step_index and made.policy.step_index == 12


# --- the command --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    tiny_folder(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {c}."}) + "\n" for c in "abcdef"))
    (folder / "fakes.py").write_text(
        "calls = 0\n"
        "def count(responses): return [float(sum(c > 'm' for c in t)) for t in responses]\n"
        "def nan_in_round_3(responses):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return [float('nan') if calls == 3 else 1.0 for _ in responses]\n"
        "def short(responses): return [1.0]\n"
    )
    return folder


def run(tiny: Path, out: Path, monkeypatch, **given) -> dict:
    monkeypatch.chdir(tiny)
    few = {
        "rollout_size": 16,
        "batch_size": 16,
        "episodes": 64,
        "epochs": 1,
        "max_new_tokens": 8,
        "missing_end": "keep",
        "learning_rate": 1e-3,
    }
    values = {"model": str(tiny / "model"), "data": str(tiny / "prompts.jsonl"), "reward": "fakes:count", **few, **given}
    return ppo(PPOSettings(out=str(out), **values))


def test_a_run_writes_whole_rollouts_a_policy_and_what_the_page_explains(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    manifest = run(tiny, out, monkeypatch, ptx_data=str(tiny / "text.jsonl") if (tiny / "text.jsonl").exists() else None, snapshot_every=2)
    assert manifest["rounds"] == 4 and manifest["stopped"] is None and manifest["policy_of_round"] == 5
    assert manifest["memory"]["measured"] > 0 and manifest["memory"]["copies"] > 0
    rollouts = sorted((out / "rollouts").iterdir())
    assert [p.name for p in rollouts] == [f"round-{i:05d}.jsonl" for i in range(1, 6)]
    rows = read_jsonl(rollouts[0])
    assert len(rows) == 4 and all(len(r["responses"]) == 4 for r in rows)
    answer = rows[0]["responses"][0]
    assert answer.keys() == {"text", "finish_reason", "score", "shaped_score", "kl", "token_ids"}
    assert answer["score"] == sum(c > "m" for c in answer["text"]) and answer["kl"] == pytest.approx(0, abs=1e-4)
    assert (out / "snapshots" / "round-00004" / "adapter_model.safetensors").read_bytes() == (
        out / "model" / "adapter_model.safetensors"
    ).read_bytes()
    load_model(str(out / "model"))
    assert run(tiny, out, monkeypatch, snapshot_every=2) == json.loads((out / "manifest.json").read_text())
    more = run(
        tiny,
        tmp_path / "more",
        monkeypatch,
        model=str(out),
        value="shared",
        entropy_coef=0.01,
        ptx_data=str(Path(__file__).parents[2] / "manners/data/starter/demonstrations.jsonl"),
        ptx_rows=2,
    )
    assert more["rounds"] == 4
    first = read_jsonl(tmp_path / "more" / "metrics.jsonl")[0]
    assert first["kl_seq"] == pytest.approx(0, abs=1e-4)  # the reference is the adapter that it began with
    page = (DOCS / "ppo.md").read_text(encoding="utf-8")
    told = table(page, "Key").keys()
    logged = {key for name in (out, tmp_path / "more") for r in read_jsonl(name / "metrics.jsonl") for key in r}
    assert logged == told


def test_a_budget_stops_the_run_and_takes_the_policy_back(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    manifest = run(tiny, out, monkeypatch, learning_rate=2e-2, epochs=4, kl_budget=0.3, snapshot_every=1, beta=0, episodes=160)
    good = manifest["policy_of_round"] - 1
    assert "above kl_budget=0.3" in manifest["stopped"] and 0 <= good < manifest["rounds"] < 10
    kept = (out / "model" / "adapter_model.safetensors").read_bytes()
    if good:
        assert kept == (out / "snapshots" / f"round-{good:05d}" / "adapter_model.safetensors").read_bytes()
    assert kept != (out / "snapshots" / f"round-{manifest['rounds']:05d}" / "adapter_model.safetensors").read_bytes()
    assert manifest["closing"]["kl_seq"] <= 0.3


def test_a_reward_that_fails_in_the_middle_loses_nothing(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"the reward 'fakes:nan_in_round_3' returned nan for answer 1 to row \d"):
        run(tiny, out, monkeypatch, reward="fakes:nan_in_round_3", save_every=100)
    assert not (out / "manifest.json").exists() and [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000002"]
    manifest = run(tiny, out, monkeypatch, reward="fakes:nan_in_round_3", save_every=100)
    assert manifest["rounds"] == manifest["steps"] == 4


def test_a_diverging_run_keeps_the_last_good_policy_and_does_not_finish(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(MannersError, match="last_good"):
        run(tiny, out, monkeypatch, learning_rate=1e4, epochs=4, episodes=160)
    assert not (out / "manifest.json").exists() and not (out / "model").exists()
    load_model(str(out / "last_good"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"reward": "fakes:short"}, "returned 1 scores for 16 answers"),
        ({"missing_end": "replace", "max_new_tokens": 1}, "none of 16 answers ended within max_new_tokens=1"),
        ({"max_length": 30, "max_new_tokens": 20}, "no prompt leaves room for max_new_tokens=20"),
        ({"samples": 3}, "rollout_size=16 is no multiple of samples=3"),
        ({"batch_size": 12}, "rollout_size=16 is no multiple of batch_size=12"),
        ({"finetune": "full"}, "manners ppo trains an adapter"),
        ({"reward": "lenght"}, "did you mean 'length'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(given, says, tiny, tmp_path, monkeypatch):
    with pytest.raises(MannersError) as raised:
        run(tiny, tmp_path / "run", monkeypatch, **given)
    assert says in str(raised.value) and not (tmp_path / "run" / "manifest.json").exists()


def test_prompts_that_are_too_long_are_left_out_and_counted(tiny, tmp_path, monkeypatch):
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("Hi.", "Say it. " * 60, "Ho.")))
    manifest = run(tiny, tmp_path / "run", monkeypatch, data=str(tmp_path / "mixed.jsonl"), episodes=16)
    assert manifest["rows"] == 2 and any("left out" in note and count == 1 for note, count in manifest["notes"].items())
    assert {r["row"] for r in read_jsonl(tmp_path / "run" / "rollouts" / "round-00001.jsonl")} == {0, 2}


def test_the_settings_table_has_every_key_with_its_default():
    rows = table((DOCS / "ppo.md").read_text(encoding="utf-8"), "Setting")
    assert rows.keys() == PPOSettings.model_fields.keys()
    for key, field in PPOSettings.model_fields.items():
        shown = rows[key][0].strip("`")
        if field.is_required():
            assert shown == "needed", key
        elif isinstance(field.default, bool) or field.default is None or isinstance(field.default, str):
            assert shown == (field.default if isinstance(field.default, str) else str(field.default).lower()), key
        else:
            assert float(shown) == field.default, key
    assert all(str(rate) in rows["learning_rate"][1] for rate in DEFAULT_RATE.values())
