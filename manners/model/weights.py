"""A model's attention weights, looked at layer by layer while it runs, and never kept.

The kernels that models run on return no weights, and transformers' eager attention returns those of all layers at once. Here the layer
is asked for its queries and keys in the usual way, the weights of a block of rows are formed, handed on and used to make the output,
so that what is seen is what the model computed with: under an adapter, with grouped heads, windows, soft-caps and sinks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from manners.model.attention import Shape, TreePattern, allowed, attending
from manners.model.roles import Backbone
from manners.model.tree import TreeBuilder

ROWS = 256
"""Rows of a layer's weights that are there at once."""
See = Callable[[int, Tensor, int | None], None]
"""Called with the layer, weights (H, Q, K) of the rows K - Q to K - 1, and the layer's window."""


def attention_weights(query: Tensor, key: Tensor, mask: Tensor, shape: Shape) -> Tensor:
    """Weights (H, Q, K) of queries (1, H, Q, D) over keys (1, H', K, D) where `mask` (Q, K) allows, in at least float32.

    A learned sink takes its share of a row and is left out.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query[0].to(wide) @ key[0].to(wide).transpose(1, 2) * shape.scaling
    if shape.softcap is not None:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    scores = scores.masked_fill_(~mask, float("-inf"))
    if shape.sinks_H is not None:
        scores = torch.cat([scores, shape.sinks_H.to(wide).view(-1, 1, 1).expand(-1, scores.shape[1], 1)], -1)
    return torch.softmax(scores, -1)[..., : key.shape[2]]


class WatchedPattern(TreePattern):
    """Attention over one sequence whose weights `see` looks at: all rows, or only the last."""

    def __init__(self, token_ids: Sequence[int], see: See, *, last_only: bool = False, rows: int = ROWS):
        builder = TreeBuilder()
        builder.node(list(token_ids))
        super().__init__(builder.build())
        self.see, self.last_only, self.rows = see, last_only, rows

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        layer, length = len(self.calls), query.shape[2]
        place = torch.arange(length, device=query.device)
        weights_of = lambda a, b: attention_weights(query[:, :, a:b], key[:, :, :b], allowed(place[a:b], place[:b], shape.window), shape)
        if self.last_only:
            self.see(layer, weights_of(length - 1, length), shape.window)
            return super().attend(module, query, key, value, shape)
        self.calls.append((getattr(module, "layer_idx", -1), shape.window))
        value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        outputs = []
        for first in range(0, length, self.rows):
            last = min(first + self.rows, length)
            weights = weights_of(first, last)
            self.see(layer, weights, shape.window)
            outputs.append(weights.to(value.dtype) @ value[0, :, :last])
        return torch.cat(outputs, 1)[None]


@torch.no_grad()
def watch(backbone: Backbone, role: str, token_ids: Sequence[int], see: See, *, last_only: bool = False, rows: int = ROWS) -> Tensor:
    """Run a sequence under a role and let `see` look at each layer's weights; returns the last hidden states (T, D)."""
    pattern = WatchedPattern(token_ids, see, last_only=last_only, rows=rows)
    tree = pattern.tree = pattern.tree.to(backbone.device)
    with backbone.role(role), attending(pattern):
        row = {"input_ids": tree.tokens_T[None], "position_ids": tree.positions_T[None]}
        return backbone.model.base_model(**row, use_cache=False)[0][0]
