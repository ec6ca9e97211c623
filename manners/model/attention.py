"""Attention over a token tree, as one function registered with transformers' attention interface.

The library's model code runs unchanged; only the inner product of queries, keys and values is ours. It cannot be told by keyword
which tree a row holds (some families drop keywords they do not know), so the tree travels in a context variable that `attending`
sets. What a family hands to its attention is honoured (sliding window, soft-cap, sinks), ignored if known to be harmless, and
otherwise refused by name: a silently dropped argument would be a silently wrong model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from manners.core.errors import InputError
from manners.model.tree import TokenTree
from manners.ops.attention import Run, attend_runs, can_attend

NAME = "manners_tree"
HARMLESS = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits", "cache_position"}
    | {"past_key_values", "return_dict", "is_causal", "layer_idx"}
)


class Pattern(Protocol):
    """Who attends to whom in the row that runs now, and where keys and values are kept."""

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, shape: "Shape") -> Tensor:
        """Queries (1, H, T, D), keys and values (1, H', T, D) to outputs (1, H, T, D)."""
        ...


class Shape:
    """What a layer asks of its attention beside queries, keys and values."""

    __slots__ = ("scaling", "sinks_H", "softcap", "window")

    def __init__(self, scaling: float, window: int | None = None, softcap: float | None = None, sinks_H: Tensor | None = None):
        self.scaling, self.window, self.softcap, self.sinks_H = scaling, window, softcap, sinks_H


_pattern: ContextVar[Pattern | None] = ContextVar("manners_attention_pattern", default=None)


@contextmanager
def attending(pattern: Pattern | None) -> Iterator[None]:
    """Within this block, models set to tree attention attend by `pattern`."""
    token = _pattern.set(pattern)
    try:
        yield
    finally:
        _pattern.reset(token)


def current_pattern() -> Pattern | None:
    """The pattern that attention would use now."""
    return _pattern.get()


class TreePattern:
    """Full attention over one tree, without a cache: node by node, causal for a root, ancestors and own below."""

    def __init__(self, tree: TokenTree):
        self.tree = tree
        self.calls: list[tuple[int, int | None]] = []
        """Layer index (-1: the layer does not know it) and window of every attention call so far, for the start-up probe."""
        place = {node.start: index for index, node in enumerate(tree.nodes)}
        self._chains = [[place[node.start] for node in tree.chain(index)] for index in range(len(tree.nodes))]
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        self._joint: dict[tuple[int | None, torch.dtype], list[Run]] = {}

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        self.calls.append((getattr(module, "layer_idx", -1), shape.window))
        if query.shape[2] != self.tree.tokens_T.numel():
            raise RuntimeError(f"attention was asked for a row of {query.shape[2]} tokens under a tree of {self.tree.tokens_T.numel()}")
        if shape.softcap is None and shape.sinks_H is None and can_attend(query, key, value):
            return attend_runs(query, key, value, self._runs(shape.window, query.dtype), shape.scaling)
        # Split once: the backward of a slice writes a whole row of zeros for each node, that of a split writes the row once.
        lengths = [node.end - node.start for node in self.tree.nodes]
        queries, keys, values = (row.split(lengths, 2) for row in (query, key, value))
        outputs = []
        for index, chain in enumerate(self._chains):
            mask = self._mask(index, shape.window)
            outputs.append(attend_span(queries[index], _gather(keys, chain), _gather(values, chain), mask, shape))
        return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]

    def _runs(self, window: int | None, dtype: torch.dtype) -> list[Run]:
        """The nodes as runs of queries and keys, the same for all layers. A root and its only child, next to it, are one causal run."""
        if (window, dtype) not in self._joint:
            nodes, runs, index = self.tree.nodes, [], 0
            parents = [node.parent for node in nodes]
            while index < len(nodes):
                first, last, parent = nodes[index]
                only = parent < 0 and parents[index + 1 : index + 2] == [index] and parents.count(index) == 1
                if only and (window is None or nodes[index + 1].end - first <= window):
                    last = nodes[index + 1].end
                    runs.append(Run(first, last, ((first, last),), None))
                    index += 2
                    continue
                allowed = self._mask(index, window)
                added = None if allowed is None else torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
                runs.append(Run(first, last, tuple(nodes[i][:2] for i in self._chains[index]), added))
                index += 1
            self._joint[window, dtype] = runs
        return self._joint[window, dtype]

    def _mask(self, index: int, window: int | None) -> Tensor | None:
        """Boolean (queries, keys) of a node, or None where plain causal attention is the same."""
        if (index, window) not in self._masks:
            positions = self.tree.positions_T
            node, chain = self.tree.nodes[index], self.tree.chain(index)
            query_positions = positions[node.start : node.end]
            key_positions = torch.cat([positions[s.start : s.end] for s in chain])
            plain = len(chain) == 1 and (window is None or node.end - node.start <= window)
            self._masks[index, window] = None if plain else allowed(query_positions, key_positions, window)
        return self._masks[index, window]


def _gather(parts: Sequence[Tensor], chain: Sequence[int]) -> Tensor:
    """The parts of a row, (1, H, T of the node, D) each, that a chain of nodes covers, end to end."""
    return parts[chain[0]] if len(chain) == 1 else torch.cat([parts[index] for index in chain], 2)


def allowed(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Boolean (queries, keys): along a chain of nodes positions rise one by one, so causality and window are a matter of position."""
    distance = query_positions[:, None] - key_positions[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def attend_span(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, shape: Shape) -> Tensor:
    """Attention of queries (1, H, Tq, D) to keys and values (1, H', Tk, D); `mask` is boolean (Tq, Tk), None means causal."""
    if shape.softcap is None and shape.sinks_H is None:
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=shape.scaling, enable_gqa=grouped
        )
    return _attend_explicit(query, key, value, mask, shape)


def _attend_explicit(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, shape: Shape) -> Tensor:
    """The same with a soft-cap on the scores (Gemma 2) or a learned sink beside them (GPT-OSS), which the fused kernels lack."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * shape.scaling
    if shape.softcap is not None:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    if shape.sinks_H is not None:
        sinks = shape.sinks_H.to(scores.dtype).view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, sinks], -1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


def _tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. Returns outputs (1, T, H, D). Raises InputError for an argument nobody has taught us."""
    unknown = sorted(name for name, given in others.items() if name not in HARMLESS and given is not None)
    if dropout:
        unknown.append(f"dropout={dropout}")
    if attention_mask is not None:
        unknown.append("attention_mask")
    if others.get("is_causal") is False or not getattr(module, "is_causal", True):
        unknown.append("is_causal=False")
    if unknown:
        raise InputError(
            f"{type(module).__name__} hands its attention {', '.join(unknown)}, which tree attention does not know and will not "
            "silently ignore; this model family is not supported."
        )
    pattern = _pattern.get()
    if pattern is None:
        raise RuntimeError("a model set to tree attention ran outside `attending(...)`: use Backbone.score or the sampler")
    if query.shape[0] != 1:
        raise RuntimeError(f"tree attention runs one row, not {query.shape[0]}")
    shape = Shape(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    # contiguous, as the library's own functions leave it: some families take a view of it (AFMoE, JetMoE)
    return pattern.attend(module, query, key, value, shape).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    """The tree says who attends to whom: no dense mask is built."""
    return None


AttentionInterface.register(NAME, _tree_attention)
AttentionMaskInterface.register(NAME, _no_mask)
