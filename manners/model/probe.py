"""Before a model is first used: does tree attention compute what the model itself computes?

A few random tokens go through both, in float32 whatever the weights are kept in: in bfloat16 a trained model differs from itself by
0.3 nats and a leak between siblings adds as little. Families that mix along the row without asking attention, or hand their attention
something that ours cannot honour, are refused by name before a single weight is trained on wrong numbers. What so short a row cannot
show (a window of thousands of tokens, positions beyond a table) is checked by what layers declare, and by `check_length`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manners.core.errors import InputError, MannersError
from manners.core.records import TokenGroup, TokenResponse
from manners.model import attention
from manners.model.attention import TreePattern, attending
from manners.model.roles import BASE, Backbone
from manners.model.score import Head, token_logps
from manners.model.tree import TokenTree, pack

TOLERANCE = {torch.float64: 1e-5}
"""Largest difference of a token's log-probability, in nats, that is rounding, if it is not the one below."""
TOLERANCE_FLOAT32 = 2e-3
"""Trained weights in float32 differ by about 3e-5."""
HALVES = (torch.bfloat16, torch.float16)
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention", "dense", "sparse"})


def refuse_by_kind(model: PreTrainedModel, *, output: bool = True) -> None:
    """Raise InputError for a family known not to be a causal model that mixes tokens in attention only, from class and config alone.

    With `output` it also needs an output layer over the vocabulary.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{name} is an encoder-decoder model; Manners needs a causal (decoder-only) language model.")
    if output and model.get_output_embeddings() is None:
        raise InputError(f"{name} has no output layer over the vocabulary (it classifies or embeds); give a causal language model.")
    if getattr(config, "is_decoder", None) is False and any(getattr(m, "is_causal", None) is False for m in model.modules()):
        raise InputError(f"{name} attends to later tokens as well as earlier ones; Manners needs a causal language model.")
    if getattr(model, "_is_stateful", False):
        raise InputError(f"{name} carries a state along the row (state-space or recurrent layers), which a token tree cannot fork.")
    if getattr(config, "alibi", False):
        raise InputError(f"{name} uses ALiBi position biases, which tree attention does not compute.")
    if not getattr(model, "_supports_attention_backend", False):
        raise InputError(f"{name} computes attention on its own, not through transformers' attention interface; it is not supported.")
    odd = sorted(set(getattr(config, "layer_types", None) or []) - KNOWN_LAYERS)
    if odd:
        raise InputError(f"{name} has layers of type {', '.join(odd)}, which mix tokens in a way a token tree cannot follow.")
    if getattr(config, "attn_temperature_tuning", False):
        raise InputError(
            f"{name} scales attention by a token's place in the row (attn_temperature_tuning), which in a tree is not its position."
        )
    if any("dynamic" in str(rope.get("rope_type")) for rope in rope_settings(config)):
        raise InputError(f"{name} uses dynamic RoPE, which depends on the longest position of the row; set rope_type to linear or yarn.")


def check_length(model: PreTrainedModel, longest: int) -> None:
    """Raise InputError if the model cannot compute a conversation of `longest` tokens (prompt and response together) in a tree.

    Learned and tabled positions end somewhere. Longrope turns all angles of a row at once when one of its positions is beyond the
    original length, so that what a conversation gives would depend on its company. Other RoPE models may go beyond their length.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    ropes = rope_settings(config)
    for rope in ropes:
        original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        if rope.get("rope_type") == "longrope" and original and longest > original:
            raise InputError(
                f"{name} uses longrope, which turns all angles of a row when one conversation is longer than the original {original} "
                f"positions; the longest here has {longest} tokens: shorten it (max_length) to {original}."
            )
    limit = None if ropes else _positions(config)
    if limit is not None and longest > limit:
        raise InputError(f"{name} has {limit} positions, but the longest conversation has {longest} tokens: shorten it (max_length).")


def rope_settings(config: Any) -> list[dict[str, Any]]:
    """The RoPE settings: none, one, or one for each kind of layer."""
    rope: Any = getattr(config, "rope_parameters", None) or {}
    nested = [v for v in rope.values() if isinstance(v, dict) and "rope_type" in v]
    return nested or ([rope] if rope else [])


def _positions(config: Any) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def probe(backbone: Backbone, *, seed: int = 0) -> float:
    """Largest difference in nats between tree and plain log-probabilities on a few random tokens, under the base weights.

    The backbone is left as it was. Raises InputError, naming the family, if the difference is more than rounding, if a layer does
    not go through attention, or if a sliding window of the config never reaches it.
    """
    model = backbone.model
    refuse_by_kind(model)
    groups = _random_groups(model, seed)
    tree = pack(groups).to(backbone.device)
    with _probing(backbone):
        hidden, pattern = _tree_states(model, tree)
        tree_N = token_logps(Head.of(model), hidden[tree.predictor_N], tree.target_N)[0]
        _check_layers(model, pattern)
        plain_N = plain_logps(model, groups)
    worst = float((tree_N - plain_N).abs().max()) if len(plain_N) else 0.0
    _within(model, worst, "other log-probabilities", "nats")
    return worst


def probe_trunk(backbone: Backbone, *, seed: int = 0) -> float:
    """The same of a model without an output layer: the largest difference of its last states, as a share of their root mean square.

    Raises InputError as `probe` does.
    """
    model = backbone.model
    refuse_by_kind(model, output=False)
    groups = _random_groups(model, seed)
    tree = pack(groups).to(backbone.device)
    with _probing(backbone):
        hidden, pattern = _tree_states(model, tree)
        _check_layers(model, pattern)
        plain = plain_states(model, groups)
    worst = float((hidden[tree.last_R] - plain).abs().max() / plain.square().mean().sqrt().clamp(min=1e-30))
    _within(model, worst, "other states", "of their size")
    return worst


@contextmanager
def _probing(backbone: Backbone) -> Iterator[None]:
    """Within this block the base computes in eval mode and at least float32; what its code raises becomes a sentence."""
    model, name = backbone.model, type(backbone.model).__name__
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), backbone.role(BASE), _in_float32(model):
            yield
    except (MannersError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # model code of any family: what it may raise is not ours to list
        raise InputError(f"{name} does not run under tree attention: {type(error).__name__}: {error}") from error
    finally:
        for module in training:
            module.training = True


def _tree_states(model: PreTrainedModel, tree: TokenTree) -> tuple[Tensor, TreePattern]:
    """Last states (T, D) of a tree's row, and what its layers asked of attention."""
    pattern = TreePattern(tree)
    with attending(pattern):
        return model.base_model(input_ids=tree.tokens_T[None], position_ids=tree.positions_T[None], use_cache=False)[0][0], pattern


def _within(model: PreTrainedModel, worst: float, what: str, unit: str) -> None:
    """Raise InputError unless a difference is rounding."""
    limit = TOLERANCE.get(model.dtype, TOLERANCE_FLOAT32)
    if not worst <= limit:
        raise InputError(
            f"{type(model).__name__} gives {what} under tree attention than by itself (they differ by {worst:.2g} {unit}, rounding is "
            f"below {limit:g}); this model family is not supported."
        )


def plain_states(model: PreTrainedModel, groups: list[TokenGroup]) -> Tensor:
    """The last state (R, D) of every response by the model's own forward, one sequence at a time."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        rows = [[*group.prompt_ids, *response.token_ids] for group in groups for response in group.responses]
        return torch.stack(
            [model.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)[0][0, -1] for ids in rows]
        )
    finally:
        model.set_attn_implementation(before or attention.NAME)


def plain_logps(model: PreTrainedModel, groups: list[TokenGroup]) -> Tensor:
    """The same log-probabilities as the tree's, by the model's own forward, one padded-free sequence at a time."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
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
        model.set_attn_implementation(before or attention.NAME)


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Within this block modules with half-precision weights compute in float32, each holding a wide copy only while it runs."""
    kept: dict[nn.Parameter, Tensor] = {}

    def halves(module: nn.Module) -> list[nn.Parameter]:
        return [p for p in module.parameters(recurse=False) if p.dtype in HALVES]

    def widen(module: nn.Module, _: Any) -> None:
        for parameter in halves(module):
            kept[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def narrow(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter in kept:
                parameter.data = kept.pop(parameter)

    with ExitStack() as hooks:
        for module in model.modules():
            if halves(module):
                hooks.callback(module.register_forward_pre_hook(widen).remove)
                hooks.callback(module.register_forward_hook(narrow).remove)
        try:
            yield
        finally:  # a module that raised has not been narrowed
            for parameter, data in kept.items():
                parameter.data = data


def _random_groups(model: PreTrainedModel, seed: int) -> list[TokenGroup]:
    """Prompts with two and one responses and a row without prompt, no longer than the model's positions."""
    config = model.config.get_text_config()
    generator, vocabulary = torch.Generator().manual_seed(seed), config.vocab_size
    originals = [rope.get("original_max_position_embeddings") for rope in rope_settings(config)]
    limit = min([16, *(n for n in [_positions(config), *originals] if n)])
    draw = lambda n: torch.randint(min(3, vocabulary - 1), vocabulary, (n,), generator=generator).tolist()

    def group(prompt: int, *lengths: int) -> TokenGroup:
        prompt = min(prompt, limit // 2)
        ids = draw(prompt)
        return TokenGroup(ids, [TokenResponse(draw(n), [True] * n) for n in (min(n, limit - prompt) for n in lengths)])

    return [group(9, 7, 5), group(0, 11), group(3, 4)]


def _check_layers(model: PreTrainedModel, pattern: TreePattern) -> None:
    """The probe's row is shorter than most windows, so which layer attends through which window is compared with the config."""
    config, name = model.config.get_text_config(), type(model).__name__
    if len(pattern.calls) != config.num_hidden_layers:
        raise InputError(
            f"{name} has {config.num_hidden_layers} layers but called attention {len(pattern.calls)} times; "
            "what its layers do otherwise a token tree cannot follow."
        )
    types, window = getattr(config, "layer_types", None) or [], getattr(config, "sliding_window", None) or None
    wanted = [window if kind == "sliding_attention" else None for kind in types] if types else [window] * len(pattern.calls)
    for place, (layer, given) in enumerate(pattern.calls):
        expected = wanted[layer if layer >= 0 else place]
        if given != expected:
            raise InputError(
                f"{name} declares {_window(expected)} for layer {place} but hands its attention {_window(given)}; it is not supported."
            )


def _window(size: int | None) -> str:
    return "no sliding window" if size is None else f"a sliding window of {size} tokens"
