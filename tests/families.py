"""Tiny random models of many families, for parity tests: large initial weights so that faults show, windows shorter than the rows."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

COMMON: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
SLIDING = {"sliding_window": 5}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.5] * 4, "long_factor": [4.0] * 4}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"use_sliding_window": True, **SLIDING, **LAYERS}),
    "gemma2": (
        "Gemma2Config",
        {**SLIDING, **LAYERS, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0, "query_pre_attn_scalar": 8},
    ),
    "mistral": ("MistralConfig", SLIDING),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
    "gpt-oss": ("GptOssConfig", {**SLIDING, **LAYERS, **MOE}),
    "gemma3": ("Gemma3TextConfig", {**SLIDING, **LAYERS, "query_pre_attn_scalar": 8}),
    "phi": ("PhiConfig", {"num_key_value_heads": 4}),
    "phi3": ("Phi3Config", SLIDING),
    "olmo2": ("Olmo2Config", {}),
    "gpt-neox": ("GPTNeoXConfig", {"rotary_pct": 0.5, "attention_dropout": 0.0, "hidden_dropout": 0.0}),
    "cohere2": ("Cohere2Config", {**SLIDING, **LAYERS, "logit_scale": 0.25}),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.7, "embedding_multiplier": 2.0}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.5}),
    "qwen3-moe": ("Qwen3MoeConfig", MOE),
    "starcoder2": ("Starcoder2Config", SLIDING),
    "afmoe": ("AfmoeConfig", {**SLIDING, **LAYERS, **MOE, "num_dense_layers": 1}),
    "apertus": ("ApertusConfig", {}),
    "arcee": ("ArceeConfig", {}),
    "cohere": ("CohereConfig", {}),
    "ernie4_5": ("Ernie4_5Config", {}),
    "exaone4": ("Exaone4Config", {**SLIDING, **LAYERS}),
    "gemma": ("GemmaConfig", {}),
    "glm4": ("Glm4Config", {}),
    "gpt-bigcode": ("GPTBigCodeConfig", {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    "granite-moe": ("GraniteMoeConfig", {**MOE, "logits_scaling": 3.0, "residual_multiplier": 0.7}),
    "helium": ("HeliumConfig", {}),
    "hunyuan": ("HunYuanDenseV1Config", {}),
    "jetmoe": ("JetMoeConfig", {**MOE, "kv_channels": 8}),
    "minicpm3": ("MiniCPM3Config", LATENT),
    "ministral": ("MinistralConfig", {**SLIDING, **LAYERS}),
    "mixtral": ("MixtralConfig", {**SLIDING, **MOE}),
    "nanochat": ("NanoChatConfig", {}),
    "nemotron": ("NemotronConfig", {}),
    "olmo": ("OlmoConfig", {}),
    "olmo3": ("Olmo3Config", {**SLIDING, **LAYERS}),
    "olmoe": ("OlmoeConfig", MOE),
    "persimmon": ("PersimmonConfig", {"attention_dropout": 0.0, "hidden_dropout": 0.0}),
    "phi3-longrope": ("Phi3Config", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
    "phimoe": ("PhimoeConfig", MOE),
    "qwen2-moe": ("Qwen2MoeConfig", {**MOE, "shared_expert_intermediate_size": 24}),
    "seed-oss": ("SeedOssConfig", {}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "vaultgemma": ("VaultGemmaConfig", {**SLIDING, **LAYERS, "query_pre_attn_scalar": 8}),
}
"""Families whose parity holds. Those that are refused are in test_probe.py."""


def tiny(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random model of the family, in eval mode."""
    return build(*FAMILIES[family], seed=seed, dtype=dtype)


def build(class_name: str, special: dict[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random causal model from the name of its config class and what it wants beside the common sizes; None drops one of those."""
    given = {k: v for k, v in {**COMMON, **special}.items() if v is not None}
    config = getattr(transformers, class_name)(**given)
    torch.manual_seed(seed)
    more = {"experts_implementation": "eager"} if "num_experts" in special else {}
    model = transformers.AutoModelForCausalLM.from_config(config, **more).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or "sinks" in name:  # norms, biases and sinks start at ones or zeros, where faults hide
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()
