"""The decoding copy: merged, packed, computed together; and what is known of row and key numbers."""

import copy

import pytest
import torch
from torch import nn

from manners.core.errors import MannersError
from manners.core.records import TokenGroup, TokenResponse
from manners.model import cache, decoder
from manners.model.decoder import REFERENCE_ROWS, can_pack, decoder_of
from manners.model.draw import Sampling
from manners.model.roles import BASE, Backbone
from manners.model.sampler import Sampler
from manners.model.tree import pack
from tests.families import tiny
from tests.model.test_roles import backbone as with_adapters
from tests.model.test_roles import disturb
from tests.model.test_sampler import STOP, LetterFormat, prompts, tokens

packs = pytest.mark.skipif(not decoder._packing_works(), reason="no kernels for packed float16 weights on this processor")


def largest_gap(b: Backbone, role: str, packed: bool, scorer: Backbone | None = None) -> float:
    """Largest difference in nats between what sampling and scoring (by another model, if given) say of sampled tokens."""
    given, scorer = prompts(9, 3, 6), scorer or b
    with torch.no_grad():
        sampler = Sampler(b, LetterFormat(), role=role, slots=4, packed=packed)
        drawn = sampler.sample_ids(given, Sampling(max_new_tokens=14), samples=3, stop_ids=STOP)
        groups = [
            TokenGroup(ids, [TokenResponse(d.token_ids, [True] * len(d.token_ids)) for d in row])
            for ids, row in zip(given, drawn, strict=True)
        ]
        with scorer.role(role):
            scored = scorer.score(pack(groups)).logp_N
    said = torch.tensor([lp for row in drawn for d in row for lp in d.policy_logprobs])
    return float((scored - said).abs().max())


def rounded(model: nn.Module) -> nn.Module:
    """A copy whose linear layers have weights of float16's precision; tied weights are untied, for an embedding is not packed."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and "lora_" not in name:
            module.weight = nn.Parameter(module.weight.detach().half().float(), requires_grad=False)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "mistral", "phi3", "gpt-neox"])
def test_packed_and_plain_say_what_scoring_says(family):
    """Packed weights are float16's: scoring with weights rounded so agrees as closely as plain sampling with plain scoring."""
    b = Backbone(tiny(family, dtype=torch.float32))
    assert largest_gap(b, BASE, packed=False) < 1e-4
    if can_pack(b.model):
        assert largest_gap(b, BASE, packed=True, scorer=Backbone(rounded(b.model))) < 1e-4


@pytest.mark.parametrize("role", [BASE, "policy"])
def test_an_adapter_is_merged(role):
    b = with_adapters()
    b.model.float()
    disturb(b, "policy")
    assert largest_gap(b, role, packed=False) < 1e-4
    if can_pack(b.model):
        other = with_adapters()
        other.model.float()
        disturb(other, "policy")
        # The merged weight is rounded, not the base's: a bound of float16's precision on log-probabilities of a model this wild.
        assert largest_gap(b, role, packed=True, scorer=other) < 0.1


@packs
def test_packing_rounds_to_float16_and_nothing_else():
    numbers = torch.Generator().manual_seed(0)
    w, x = torch.randn(40, 24, generator=numbers), torch.randn(5, 24, generator=numbers)
    packed = decoder._Packed(w, torch.ones(40))
    packed.pack()
    expected = x.double() @ w.half().double().t() + 1
    assert (packed(x).double() - expected).abs().max() < 1e-5


def test_what_must_not_be_packed_is_not():
    """Weights beyond float16's range, other precisions, and routers that choose experts."""
    b = Backbone(tiny("llama", dtype=torch.float32))
    with torch.no_grad():
        b.model.lm_head.weight[0, 0] = 70000.0
    assert not can_pack(b.model)
    assert not can_pack(tiny("llama", dtype=torch.float64))
    assert not can_pack(tiny("qwen3-moe", dtype=torch.float32))


def test_a_copy_is_kept_until_a_weight_changes():
    b = Backbone(tiny("llama", dtype=torch.float32))
    first = decoder_of(b, BASE)
    assert decoder_of(b, BASE) is first
    before = decoder_of(b, BASE, packed=False)
    assert before is not first and decoder_of(b, BASE, packed=False) is before
    with torch.no_grad():
        b.model.model.layers[0].self_attn.q_proj.weight.mul_(1.5)
    assert decoder_of(b, BASE, packed=False) is not before


def test_sampling_follows_a_trained_weight():
    b = with_adapters()
    b.model.float()
    ask = lambda: tokens(
        Sampler(b, LetterFormat(), role="policy").sample_ids(prompts(6), Sampling(max_new_tokens=16), stop_ids=frozenset())
    )
    before = ask()
    disturb(b, "policy")
    assert ask() != before


def test_layers_of_one_input_are_one_product(monkeypatch):
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(
        decoder._Plain,
        "__init__",
        lambda self, w, b: (made.append(tuple(w.shape)), setattr(self, "_weight", w), setattr(self, "_bias", b))[0],
    )
    weights = [torch.randn(n, 8) for n in (6, 2, 2)]
    together = decoder._Together(decoder._Plain, weights, [None, None, None])
    assert made == [(10, 8)]
    x = torch.randn(1, 3, 8)
    for index, weight in enumerate(weights):
        assert torch.allclose(together.part(index)(x), x @ weight.t(), atol=1e-6)
    other = torch.randn(1, 3, 8)
    assert torch.allclose(together.part(1)(other), other @ weights[1].t(), atol=1e-6), "another input is computed anew"


def test_unstable_row_numbers_are_stepped_over():
    """A layer that gives other bits at 5 and 6 rows, as some libraries do: 5 rows run as 7."""

    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1 + 1e-6 if x.shape[-2] in (5, 6) else 1)

    b = Backbone(tiny("llama", dtype=torch.float32))
    found = decoder.Decoder(b, BASE, packed=False)
    odd = Odd(8, 8).requires_grad_(False)
    with torch.no_grad():
        odd.weight.copy_(torch.eye(8))
    found._products = {("odd", 8, 8): (8, odd)}
    assert [found.rows(n) for n in (4, 5, 6, 7)] == [4, 7, 7, 7]


def test_where_no_row_number_is_stable_it_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(cache, "_said", set())
    found = decoder.Decoder(Backbone(tiny("llama", dtype=torch.float32)), BASE, packed=False)
    monkeypatch.setattr(found, "stable", lambda rows, head: rows == REFERENCE_ROWS)
    assert (found.rows(9), capsys.readouterr().err) == (16, "")
    assert [found.rows(n) for n in (17, 18)] == [17, 18]
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("warning: no number of rows near 17") and said.count("warning") == 1 and "may hang on which" in said


def test_where_no_span_is_stable_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(cache, "_said", set())
    spans = cache._Spans(4, 2, 16, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(spans, "first_span", 64)
    monkeypatch.setattr(spans, "_agrees", lambda span: False)
    assert spans.span(100) == 128
    assert "no span of keys near 128" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("heads, key_heads, width", [(4, 2, 16), (9, 3, 64)])
def test_spans_give_a_slot_the_same_bits(heads, key_heads, width):
    """A slot of 40 keys attends alone in the first span, and among longer and shorter ones in every span that is chosen."""
    spans = cache._Spans(heads, key_heads, width, torch.float32, torch.device("cpu"))
    if spans.first_span is None:
        pytest.skip("no span is stable on this processor: attention goes slot by slot")
    chosen = [spans.span(n) for n in (1, 63, 65, 200, 500)]
    assert chosen == sorted(chosen) and all(span >= n for span, n in zip(chosen, (1, 63, 65, 200, 500), strict=True))
    numbers, rows = torch.Generator().manual_seed(11), heads // key_heads
    own = [torch.randn(1, key_heads, n, width, generator=numbers) for n in (rows, 40, 40)]

    def attend(span: int, before: int, after: int) -> torch.Tensor:
        """The slot's output with so many slots before and after it, whose lengths go up to the span."""
        slots = before + 1 + after
        queries, keys, values = (torch.randn(slots, key_heads, n, width, generator=numbers) for n in (rows, span, span))
        lengths = torch.randint(1, span + 1, (slots,), generator=numbers)
        lengths[before] = 40
        queries[before], keys[before, :, :40], values[before, :, :40] = own[0][0], own[1][0], own[2][0]
        hidden = torch.zeros(slots, span).masked_fill_(torch.arange(span) >= lengths[:, None], float("-inf"))
        hidden = hidden[:, None, None].expand(-1, key_heads, rows, -1).reshape(-1, rows, span)
        output = cache._attend_rows(queries.reshape(-1, rows, width), keys, values, hidden, span)
        return output.view(slots, key_heads, rows, width)[before]

    alone = attend(chosen[0], 0, 0)
    for span in chosen:
        for before, after in [(0, 0), (0, 3), (3, 0), (5, 26)]:
            assert torch.equal(attend(span, before, after), alone), (span, before, after)


def test_slots_together_equal_slots_one_by_one(monkeypatch):
    """The fast path of attention against the slow one."""
    b = Backbone(tiny("llama", dtype=torch.float32))
    ask = lambda: [
        d
        for row in Sampler(b, LetterFormat(), slots=4, packed=False).sample_ids(
            prompts(30, 3, 9), Sampling(max_new_tokens=20), samples=2, stop_ids=frozenset()
        )
        for d in row
    ]
    fast = ask()
    monkeypatch.setattr(cache._Spans, "__init__", lambda self, *_: setattr(self, "first_span", None))
    cache._spans.clear()
    slow = ask()
    cache._spans.clear()
    for one, other in zip(fast, slow, strict=True):
        shared = next((i for i, (a, c) in enumerate(zip(one.token_ids, other.token_ids, strict=True)) if a != c), len(one.token_ids))
        assert shared >= 1
        assert one.policy_logprobs[:shared] == pytest.approx(other.policy_logprobs[:shared], abs=1e-4)
    assert sum(a.token_ids == c.token_ids for a, c in zip(fast, slow, strict=True)) >= 5


@packs
def test_an_adapter_that_diverged_is_not_packed():
    b = with_adapters()
    b.model.float()
    layer = b.model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.lora_A["policy"].weight.fill_(1e3)
        layer.lora_B["policy"].weight.fill_(1e3)
    with pytest.raises(MannersError, match="float16's range"):
        decoder_of(b, "policy", packed=True)
