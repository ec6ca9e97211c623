"""The tree of shared beginnings against one plain forward a row: log-probabilities, what is greedy, and how much is computed."""

import random
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from manners.core.records import TokenGroup, TokenResponse
from manners.model.probe import plain_logps
from manners.model.roles import BASE, Backbone, Lora
from manners.model.shared import branches, continuation_logps
from tests.tiny import tiny_llama

Row = tuple[list[int], list[int]]


def ids(numbers: random.Random, n: int) -> list[int]:
    return [numbers.randrange(5, 200) for _ in range(n)]


def few_shot(prefix: int = 60, questions: int = 6, seed: int = 0) -> list[Row]:
    """Prefix, questions, four options each; and rows that share nothing, or everything, or are short."""
    numbers = random.Random(seed)
    shared = ids(numbers, prefix)
    rows = []
    for _ in range(questions):
        question = ids(numbers, numbers.randrange(3, 50))
        rows += [([*shared, *question], ids(numbers, numbers.randrange(1, 6))) for _ in range(4)]
    return [*rows, rows[0], (shared[:10], shared[10:20]), ([7], [8]), (ids(numbers, 5), ids(numbers, 3))]


def slow(model: Any, rows: list[Row]) -> list[float]:
    one = lambda row: TokenGroup(row[0], [TokenResponse(row[1], [True] * len(row[1]))])
    with torch.no_grad():
        return [plain_logps(model, [one(row)]).sum().item() for row in rows]


@pytest.mark.parametrize("micro_tokens", [40, 100, 300, 10_000])
def test_every_cut_gives_the_plain_log_probabilities(micro_tokens: int, one_thread: None) -> None:
    """40 keeps the prefix and parts of questions, 10,000 computes one row without any."""
    backbone, rows = Backbone(tiny_llama()), few_shot()
    found = continuation_logps(backbone, BASE, rows, micro_tokens=micro_tokens)
    assert [one.logp for one in found] == pytest.approx(slow(backbone.model, rows), abs=1e-4)
    assert [one.tokens for one in found] == [len(row[1]) for row in rows]


def test_greedy_is_told(one_thread: None) -> None:
    backbone = Backbone(tiny_llama())
    context = ids(random.Random(1), 40)
    with torch.no_grad():
        logits = backbone.model.get_output_embeddings()(_last(backbone.model, context))
    first, second = logits.topk(2).indices.tolist()
    found = continuation_logps(backbone, BASE, [(context, [first]), (context, [second]), (context, [second, first])])
    assert [one.greedy for one in found] == [True, False, False]
    assert found[0].logp > found[1].logp


def _last(model: Any, context: list[int]) -> torch.Tensor:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    hidden = model.base_model(input_ids=torch.tensor([context]), use_cache=False)[0][0, -1]
    model.set_attn_implementation(before)
    return hidden


@pytest.mark.parametrize("family", ["window", "softcap"])
def test_windows_and_soft_caps_are_honoured_behind_a_kept_prefix(family: str, one_thread: None) -> None:
    shape: dict[str, Any] = {
        "vocab_size": 261,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    if family == "window":
        model: Any = MistralForCausalLM(MistralConfig(**shape))
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=5.0))
    backbone, rows = Backbone(model.eval()), few_shot(questions=3)
    for micro_tokens in (40, 10_000):
        found = continuation_logps(backbone, BASE, rows, micro_tokens=micro_tokens)
        assert [one.logp for one in found] == pytest.approx(slow(backbone.model, rows), abs=1e-4)


def test_a_role_with_an_adapter_scores_as_itself(one_thread: None) -> None:
    backbone, rows = Backbone(tiny_llama()), few_shot(questions=2)
    backbone.add_adapter("policy", Lora(rank=4))
    with torch.no_grad():
        for parameter in backbone.trainable("policy").values():
            parameter.add_(0.05)
    plain, adapted = (continuation_logps(backbone, role, rows, micro_tokens=100) for role in (BASE, "policy"))
    with backbone.role("policy"):
        expected = slow(backbone.model, rows)
    assert [one.logp for one in adapted] == pytest.approx(expected, abs=1e-4)
    assert abs(plain[0].logp - adapted[0].logp) > 1e-2


def test_what_is_shared_is_computed_once(one_thread: None) -> None:
    """Prefix 60, two questions of 10, two options of 3 each: the last token of a row is never computed."""
    numbers = random.Random(3)
    prefix, questions = ids(numbers, 60), [ids(numbers, 10), ids(numbers, 10)]
    rows = [([*prefix, *question], ids(numbers, 3)) for question in questions for _ in range(2)]
    assert sum(branch.tokens for branch in branches(rows)) == 60 + 2 * 10 + 4 * 2
    letters = [([*prefix, *question], [letter]) for question in questions for letter in (30, 31, 32, 33)]
    assert sum(branch.tokens for branch in branches(letters)) == 60 + 2 * 10, "options of one token are only looked at"
    computed: list[int] = []
    continuation_logps(Backbone(tiny_llama()), BASE, rows, micro_tokens=64, progress=computed.append)
    assert computed[-1] == 60 + 2 * 10 + 4 * 2 and len(computed) > 1, "in several passes, too"


def test_an_empty_side_is_refused() -> None:
    for row in (([], [5]), ([5], [])):
        with pytest.raises(ValueError, match="at least one token"):
            branches([row])
