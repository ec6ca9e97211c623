"""The probe: what a token tree cannot follow is refused by name, faults are seen, and the model is left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from manners.core.errors import InputError
from manners.model import attention
from manners.model import probe as probing
from manners.model.probe import check_length, plain_logps, probe, refuse_by_kind
from manners.model.roles import BASE, Backbone, Lora
from tests.families import COMMON, LATENT, LAYERS, LONGROPE, MOE, SLIDING, build, tiny

EXPERTS = {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
FALCON_H1 = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
STATE, OWN, KINDS, BOTH_WAYS = "carries a state", "computes attention on its own", "has layers of type", "attends to later tokens"

REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "bert": ("BertConfig", {}, "BertLMHeadModel", BOTH_WAYS),
    "bert-as-decoder": ("BertConfig", {"is_decoder": True}, "BertLMHeadModel", "other log-probabilities"),
    "bloom": ("BloomConfig", {"n_head": 4, "n_layer": 2}, "BloomForCausalLM", OWN),
    "codegen": ("CodeGenConfig", {"rotary_dim": 4}, "CodeGenForCausalLM", OWN),
    "deepseek-v3.2": ("DeepseekV32Config", {**LATENT, **EXPERTS}, "DeepseekV32ForCausalLM", KINDS + " indexed_attention"),
    "diffllama": ("DiffLlamaConfig", {}, "DiffLlamaForCausalLM", "has 2 layers but called attention 4 times"),
    "doge": ("DogeConfig", {}, "DogeAttention", "hands its attention attention_mask"),
    "dynamic-rope": ("LlamaConfig", DYNAMIC, "LlamaForCausalLM", "dynamic RoPE"),
    "falcon": ("FalconConfig", {"head_dim": None, "num_kv_heads": 2}, "FalconForCausalLM", OWN),
    "falcon-alibi": ("FalconConfig", {"head_dim": None, "alibi": True}, "FalconForCausalLM", "ALiBi"),
    "falcon-h1": ("FalconH1Config", FALCON_H1, "FalconH1ForCausalLM", STATE),
    "gpt-j": ("GPTJConfig", {"rotary_dim": 4}, "GPTJForCausalLM", OWN),
    "hrm": ("HrmTextConfig", {}, "HrmTextForCausalLM", "other log-probabilities"),
    "jamba": (
        "JambaConfig",
        {"mamba_d_state": 4, "mamba_d_conv": 2, "num_experts": 2, "num_experts_per_tok": 1},
        "JambaForCausalLM",
        STATE,
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, "Lfm2ForCausalLM", KINDS + " conv"),
    "llama4": ("Llama4TextConfig", {**MOE, "attention_chunk_size": 5}, "Llama4ForCausalLM", KINDS + " chunked_attention"),
    "llama4-temperature": ("Llama4TextConfig", {**MOE, "layer_types": ["full_attention"] * 2}, "Llama4ForCausalLM", "place in the row"),
    "mamba": ("MambaConfig", {"state_size": 4}, "MambaForCausalLM", STATE),
    "mamba2": ("Mamba2Config", {"num_heads": 8, "state_size": 4, "n_groups": 1}, "Mamba2ForCausalLM", STATE),
    "minimax": ("MiniMaxConfig", {}, "MiniMaxForCausalLM", KINDS + " linear_attention"),
    "modernbert-decoder": ("ModernBertDecoderConfig", {}, "ModernBertDecoderForCausalLM", "other log-probabilities"),
    "moshi": ("MoshiConfig", SLIDING, "MoshiForCausalLM", "declares a sliding window of 5 tokens for layer 0 but hands its attention no"),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, "MptForCausalLM", OWN),
    "openai-gpt": ("OpenAIGPTConfig", {}, "OpenAIGPTLMHeadModel", OWN),
    "olmo-hybrid": ("OlmoHybridConfig", {}, "OlmoHybridForCausalLM", STATE),
    "qwen3-next": ("Qwen3NextConfig", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 24}, "Qwen3NextForCausalLM", STATE),
    "recurrent-gemma": ("RecurrentGemmaConfig", {"lru_width": 32}, "RecurrentGemmaForCausalLM", STATE),
    "roberta": ("RobertaConfig", {}, "RobertaForCausalLM", BOTH_WAYS),
    "rwkv": ("RwkvConfig", {}, "RwkvForCausalLM", STATE),
    "stablelm": ("StableLmConfig", {}, "StableLmForCausalLM", OWN),
    "xglm": ("XGLMConfig", {"d_model": 32}, "XGLMForCausalLM", OWN),
}
"""Config class, its settings, the class that the refusal names, and the reason."""


def llama() -> Backbone:
    return Backbone(tiny("llama", dtype=torch.float32))


@pytest.mark.parametrize("family", REFUSED)
def test_what_a_tree_cannot_follow_is_refused_by_name(family):
    config, special, name, reason = REFUSED[family]
    model = build(config, special, dtype=torch.float32)
    with pytest.raises(InputError, match=f"^{name} .*{reason}") as refused:
        probe(Backbone(model))
    said = str(refused.value)
    assert said.endswith(".") and "\n" not in said


def test_an_encoder_decoder_is_refused():
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 61}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **heads))
    with pytest.raises(InputError, match=r"^BartForConditionalGeneration is an encoder-decoder model.*\.$"):
        refuse_by_kind(model)


@pytest.mark.parametrize("kind", ["LlamaForSequenceClassification", "LlamaModel"])
def test_a_model_without_an_output_layer_is_refused(kind):
    model = getattr(transformers, kind)(transformers.LlamaConfig(**COMMON))
    with pytest.raises(InputError, match=rf"^{kind} has no output layer over the vocabulary.*\.$"):
        refuse_by_kind(model)


@pytest.mark.parametrize("config", ["DeepseekV2Config", "DeepseekV3Config", "Glm4MoeLiteConfig"])
def test_routers_that_stay_in_float32_pass(config):
    """Their float64 parity ends at 1e-8, where the router computes in float32, so they are not among FAMILIES."""
    assert probe(Backbone(build(config, {**LATENT, **EXPERTS}, dtype=torch.float32))) < 1e-3


# --- lengths ------------------------------------------------------------------------------------------------------------------------


def test_longrope_ends_at_its_original_length_because_there_all_angles_turn():
    model = tiny("phi3-longrope")
    check_length(model, 32)
    with pytest.raises(InputError, match=r"^Phi3ForCausalLM uses longrope.*32 positions; the longest here has 33 tokens.*\.$"):
        check_length(model, 33)
    ids = torch.randint(3, 61, (1, 33))
    first = lambda n: plain(model, ids[:, :n])[0, :8]
    assert torch.equal(first(31), first(32))
    assert not torch.allclose(first(32), first(33), atol=1e-3)


def test_longrope_of_one_kind_of_layer_is_found():
    model = tiny("gemma3")
    default = {"rope_type": "default", "rope_theta": 1e4}
    scaled = {**LONGROPE, "original_max_position_embeddings": 16}
    model.config.rope_parameters = {"sliding_attention": default, "full_attention": scaled}
    check_length(model, 16)
    with pytest.raises(InputError, match="longrope"):
        check_length(model, 17)
    model.config.rope_parameters["full_attention"] = {**default, "rope_type": "dynamic"}
    with pytest.raises(InputError, match="dynamic RoPE"):
        refuse_by_kind(model)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt-bigcode"])
def test_learned_positions_end_where_their_table_does(family):
    model = tiny(family)
    check_length(model, 64)
    plain(model, torch.full((1, 64), 5))
    with pytest.raises(InputError, match=rf"^{type(model).__name__} has 64 positions, but the longest conversation has 65 tokens.*\.$"):
        check_length(model, 65)
    with pytest.raises(IndexError):
        plain(model, torch.full((1, 65), 5))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-oss", "gpt-neox"])
def test_other_rope_models_may_go_beyond(family):
    check_length(tiny(family), 10_000)


def plain(model, ids: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("settings", [("GPT2Config", {"max_position_embeddings": 8}), ("LlamaConfig", {"vocab_size": 4})], ids=str)
def test_small_tables_are_no_reason_to_refuse(settings):
    assert probe(Backbone(build(*settings, dtype=torch.float32))) < 1e-3


# --- planted faults -----------------------------------------------------------------------------------------------------------------


def test_the_size_of_the_gap_is_told():
    honest = attention.TokenTree.chain

    def leaky(tree, index):
        node = tree.nodes[index]
        siblings = [n for n in tree.nodes[:index] if n.parent == node.parent and node.parent >= 0]
        return [*honest(tree, index)[:-1], *siblings, node]

    with (
        patch.object(attention.TokenTree, "chain", leaky),
        pytest.raises(InputError, match=r"LlamaForCausalLM gives other .*\(they differ by \d\.\d* nats, rounding is below 0\.002\)"),
    ):
        probe(llama())


def test_logits_that_are_not_numbers_are_refused():
    b = llama()
    with torch.no_grad():
        b.model.lm_head.weight[3] = float("nan")
    with pytest.raises(InputError, match="differ by nan"):
        probe(b)


def test_a_layer_that_skips_attention_is_refused():
    honest = LlamaDecoderLayer.forward

    def skipping(self, hidden_states, *args, **kwargs):
        if self.self_attn.layer_idx == 1:
            return hidden_states + self.mlp(hidden_states)
        return honest(self, hidden_states, *args, **kwargs)

    with (
        patch.object(LlamaDecoderLayer, "forward", skipping),
        pytest.raises(InputError, match="LlamaForCausalLM has 2 layers but called attention 1 times"),
    ):
        probe(llama())


@contextmanager
def handing(window: int | None) -> Iterator[None]:
    """Plant a fault: every layer hands its attention this window."""
    honest = attention.Shape.__init__

    def other(self, scaling, _=None, softcap=None, sinks_H=None):
        honest(self, scaling, window, softcap, sinks_H)

    with patch.object(attention.Shape, "__init__", other):
        yield


LONG = {"sliding_window": 4096}


@pytest.mark.parametrize(
    ("config", "special", "window", "said"),
    [
        ("MistralConfig", LONG, None, "a sliding window of 4096 tokens for layer 0 but hands its attention no sliding window"),
        ("Gemma3TextConfig", {**LONG, **LAYERS}, None, "a sliding window of 4096 tokens for layer 0 but hands its attention no"),
        ("Gemma3TextConfig", {**LONG, **LAYERS}, 4096, "no sliding window for layer 1 but hands its attention a sliding window of 4096"),
        ("MistralConfig", LONG, 2048, "a sliding window of 4096 tokens for layer 0 but hands its attention a sliding window of 2048"),
        ("LlamaConfig", {}, 4096, "no sliding window for layer 0"),
    ],
)
def test_a_window_too_long_for_the_row_to_show_is_checked_by_declaration(config, special, window, said):
    b = Backbone(build(config, special, dtype=torch.float32))
    assert probe(b) < 2e-3
    with handing(window), pytest.raises(InputError, match=f"{type(b.model).__name__} declares {said}"):
        probe(b)


@pytest.mark.parametrize("error", [TypeError("odd"), IndexError("odd"), KeyError("odd"), AssertionError("odd"), NotImplementedError("odd")])
def test_whatever_model_code_raises_becomes_one_sentence(error):
    b = llama()
    with (
        patch.object(LlamaDecoderLayer, "forward", side_effect=error),
        pytest.raises(InputError, match=rf"^LlamaForCausalLM does not run under tree attention: {type(error).__name__}: .*odd"),
    ):
        probe(b)


@pytest.mark.parametrize("error", [InputError("Said already."), torch.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_what_is_not_the_familys_fault_passes_through(error):
    with patch.object(LlamaDecoderLayer, "forward", side_effect=error), pytest.raises(type(error)) as raised:
        probe(llama())
    assert raised.value is error


# --- the model afterwards -----------------------------------------------------------------------------------------------------------


def state(b: Backbone) -> dict[str, Any]:
    return {
        "role": b.active,
        "training": [m.training for m in b.model.modules()],
        "implementation": b.model.config._attn_implementation,
        "pattern": attention.current_pattern(),
        "weights": {n: (p.data_ptr(), p.dtype, p.requires_grad, p._version) for n, p in b.model.named_parameters()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in b.model.modules()],
        "rng": torch.get_rng_state().tolist(),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("failing", ["not", "under the tree", "by itself"])
def test_all_is_left_as_it_was(dtype, failing):
    b = Backbone(tiny("llama-tied", dtype=dtype))
    b.add_adapter("policy", Lora(4))
    b.checkpointing(True)
    b.model.base_model.layers[0].eval()  # some modules in train mode, some not
    honest = LlamaDecoderLayer.forward

    def broken(self, *args, **kwargs):
        eager = self.self_attn.config._attn_implementation == "eager"
        if self.self_attn.layer_idx == 1 and eager == (failing == "by itself"):
            self.input_layernorm.forward = lambda *_: 1 / 0
        try:
            return honest(self, *args, **kwargs)
        finally:
            vars(self.input_layernorm).pop("forward", None)

    with b.role("policy"):
        before = state(b)
        if failing == "not":
            probe(b)
        else:
            with patch.object(LlamaDecoderLayer, "forward", broken), pytest.raises(InputError, match="ZeroDivisionError"):
                probe(b)
        assert state(b) == before
    assert b.active == BASE


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "gpt2", "gpt-oss", "qwen3-moe", "opt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_probed_in_float32(family, dtype):
    """In bfloat16 itself a tiny Llama's log-probabilities differ by 0.4 nats from rounding alone."""
    b = Backbone(tiny(family, dtype=dtype))
    gap = probe(b)
    assert gap < 1e-4
    wide = Backbone(tiny(family, dtype=dtype).float())
    assert gap == pytest.approx(probe(wide), abs=1e-4)
    assert {p.dtype for p in b.model.parameters()} == {dtype}


def test_plain_means_the_librarys_eager_attention():
    b = llama()
    groups = probing._random_groups(b.model, 0)
    with patch.object(attention.TreePattern, "attend", side_effect=AssertionError("tree attention ran")), torch.no_grad():
        found = plain_logps(b.model, groups)
    assert len(found) == sum(sum(r.trained) for g in groups for r in g.responses) - 1  # the first token of a row has no predictor
    assert b.model.config._attn_implementation == attention.NAME
