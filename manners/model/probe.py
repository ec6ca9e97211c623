"""Before a model is first used: does tree attention compute what the model itself computes?

A few random tokens go through both. Families that mix along the row without asking attention, or hand their attention something
that ours cannot honour, are refused by name before a single weight is trained on wrong numbers.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manners.core.errors import InputError
from manners.core.records import TokenGroup, TokenResponse
from manners.model import attention
from manners.model.attention import TreePattern, attending
from manners.model.roles import BASE, Backbone
from manners.model.score import Head, token_logps
from manners.model.tree import pack

TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Largest difference of a token's log-probability, in nats, that is rounding. Trained weights in float32 differ by about 3e-5."""
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention", "dense", "sparse"})


def refuse_by_kind(model: PreTrainedModel) -> None:
    """Raise InputError for a family known to mix tokens outside attention, from its class and config alone."""
    name, config = type(model).__name__, model.config.get_text_config()
    if getattr(model, "_is_stateful", False):
        raise InputError(f"{name} carries a state along the row (state-space or recurrent layers), which a token tree cannot fork.")
    if not getattr(model, "_supports_attention_backend", False):
        raise InputError(f"{name} computes attention on its own, not through transformers' attention interface; it is not supported.")
    odd = sorted(set(getattr(config, "layer_types", None) or []) - KNOWN_LAYERS)
    if odd:
        raise InputError(f"{name} has layers of type {', '.join(odd)}, which mix tokens in a way a token tree cannot follow.")
    if getattr(config, "alibi", False):
        raise InputError(f"{name} uses ALiBi position biases, which tree attention does not compute.")
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kinds = {str(v.get("rope_type")) for v in (rope.values() if all(isinstance(v, dict) for v in rope.values()) and rope else [rope])}
    if "dynamic" in kinds:
        raise InputError(f"{name} uses dynamic RoPE, which depends on the longest position of the row; set rope_type to linear or yarn.")


def probe(backbone: Backbone, *, seed: int = 0) -> float:
    """Largest difference in nats between tree and plain log-probabilities on a few random tokens, under the base weights.

    Raises InputError, naming the family, if it is more than rounding, if a layer does not go through attention, or if a sliding
    window of the config never reaches it.
    """
    model, name = backbone.model, type(backbone.model).__name__
    refuse_by_kind(model)
    groups = _random_groups(model, seed)
    tree = pack(groups).to(backbone.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), backbone.role(BASE):
            pattern = TreePattern(tree)
            with attending(pattern):
                hidden = model.base_model(input_ids=tree.tokens_T[None], position_ids=tree.positions_T[None], use_cache=False)[0][0]
            tree_N = token_logps(Head.of(model), hidden[tree.predictor_N], tree.target_N)[0]
            _check_layers(model, pattern)
            plain_N = plain_logps(model, groups)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{name} does not run under tree attention: {error}") from error
    finally:
        model.train(was_training)
    worst = float((tree_N - plain_N).abs().max())
    limit = TOLERANCE.get(model.dtype, 2e-3)
    if not worst <= limit:
        raise InputError(
            f"{name} gives other log-probabilities under tree attention than by itself (they differ by {worst:.2g} nats, rounding is "
            f"below {limit:g}); this model family is not supported."
        )
    return worst


def plain_logps(model: PreTrainedModel, groups: list[TokenGroup]) -> Tensor:
    """The same log-probabilities as the tree's, by the model's own forward, one padded-free sequence at a time."""
    model.set_attn_implementation("eager")
    try:
        found = []
        for group in groups:
            for response in group.responses:
                ids = torch.tensor([group.prompt_ids + response.token_ids], device=model.device)
                logits = model(input_ids=ids, use_cache=False).logits[0]
                logps = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
                first = len(group.prompt_ids)
                places = [first + i for i, trained in enumerate(response.trained) if trained and first + i > 0]
                found.append(logps[[p - 1 for p in places], ids[0, places]])
        return torch.cat(found)
    finally:
        model.set_attn_implementation(attention.NAME)


def _random_groups(model: PreTrainedModel, seed: int) -> list[TokenGroup]:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    draw = lambda n: torch.randint(min(3, vocabulary - 1), vocabulary, (n,), generator=generator).tolist()
    responses = lambda *lengths: [TokenResponse(draw(n), [True] * n) for n in lengths]
    return [TokenGroup(draw(9), responses(7, 5)), TokenGroup([], responses(11)), TokenGroup(draw(3), responses(4))]


def _check_layers(model: PreTrainedModel, pattern: TreePattern) -> None:
    config, name = model.config.get_text_config(), type(model).__name__
    if len(pattern.calls) != config.num_hidden_layers:
        raise InputError(
            f"{name} has {config.num_hidden_layers} layers but called attention {len(pattern.calls)} times; "
            "its other layers mix tokens in a way a token tree cannot follow."
        )
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    if sliding and pattern.windows <= {None}:
        raise InputError(f"{name} has sliding-window layers but does not hand the window to its attention; it is not supported.")
