"""Token trees: a batch without padding, in which a prompt is stored and computed once for all its responses.

All tokens of a batch lie end to end in one row. The row is cut into *nodes*, runs of tokens; a node may have a parent, and a token
attends to its ancestors and to earlier tokens of its own node. A prompt is a root and its responses hang below it, each at the
positions it would have had alone. Nothing else is in the row: no pad token can leak into a mask, a mean or a reward.

Axes: `T` tokens of the row, `N` trained response tokens (targets), `R` responses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from manners.core.records import TokenGroup


class Node(NamedTuple):
    """Tokens `start` (inclusive) to `end` (exclusive) of the row; `parent` is the index of an earlier node, or -1 for a root."""

    start: int
    end: int
    parent: int


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A packed batch.

    `tokens_T`, `positions_T`: ids and positions in the conversation. `nodes` tile the row in order, parents before children.
    `predictor_N`: index in the row of the token whose hidden state predicts target n; `target_N`: the id to predict;
    `response_N`: which response it belongs to, in rising order; `responses`: R; `group_R`: the group of each response; `last_R`: index in
    the row of each response's last trained token, where a reward is read (-1 if it has none).
    """

    tokens_T: Tensor
    positions_T: Tensor
    nodes: tuple[Node, ...]
    predictor_N: Tensor
    target_N: Tensor
    response_N: Tensor
    group_R: Tensor
    last_R: Tensor

    @property
    def responses(self) -> int:
        return self.group_R.numel()

    @property
    def targets(self) -> int:
        """N, the number of trained tokens."""
        return self.target_N.numel()

    def chain(self, node: int) -> list[Node]:
        """The node's ancestors from the root down, then the node itself."""
        chain = []
        while node >= 0:
            chain.append(self.nodes[node])
            node = self.nodes[node].parent
        return chain[::-1]

    def to(self, device: torch.device | str) -> "TokenTree":
        """The same tree with its tensors on `device`."""
        if self.tokens_T.device == torch.device(device):
            return self
        moved = [t.to(device) for t in (self.tokens_T, self.positions_T)]
        flat = [t.to(device) for t in (self.predictor_N, self.target_N, self.response_N, self.group_R, self.last_R)]
        return TokenTree(moved[0], moved[1], self.nodes, *flat)


class TreeBuilder:
    """Lays nodes end to end and marks response tokens on chains of nodes.

    `pack` covers the usual case of a prompt and its responses; a builder takes any tree: a dialogue that forks at each turn,
    few-shot examples shared by many questions.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._nodes: list[Node] = []
        self._spans: list[list[tuple[int, int, int]]] = []
        self._groups: list[int] = []

    def node(self, token_ids: Sequence[int], parent: int = -1) -> int:
        """Append a run of tokens below `parent` and return its index. Raises ValueError for an empty run or an unknown parent."""
        if not token_ids:
            raise ValueError("a node needs at least one token")
        if not -1 <= parent < len(self._nodes):
            raise ValueError(f"parent {parent} is not an earlier node (there are {len(self._nodes)})")
        start = len(self._tokens)
        first = self._positions[self._nodes[parent].end - 1] + 1 if parent >= 0 else 0
        self._tokens.extend(token_ids)
        self._positions.extend(range(first, first + len(token_ids)))
        self._nodes.append(Node(start, len(self._tokens), parent))
        return len(self._nodes) - 1

    def response(self, spans: Sequence[tuple[int, int, int]], group: int) -> int:
        """Declare a response of `group`: trained spans `(node, start, end)`, offsets within the node, in order. Return its index."""
        for node, start, end in spans:
            length = self._nodes[node].end - self._nodes[node].start
            if not 0 <= start <= end <= length:
                raise ValueError(f"span {start}:{end} is outside node {node} of {length} tokens")
        self._spans.append(list(spans))
        self._groups.append(group)
        return len(self._spans) - 1

    def build(self) -> TokenTree:
        """The finished tree. The first token of a root has no predictor and is never a target."""
        predictor, target, response = [], [], []
        for index, spans in enumerate(self._spans):
            for place, before in self._predicted(spans):
                predictor.append(before)
                target.append(self._tokens[place])
                response.append(index)
        as_long = lambda values: torch.tensor(values, dtype=torch.long)
        return TokenTree(
            as_long(self._tokens),
            as_long(self._positions),
            tuple(self._nodes),
            as_long(predictor),
            as_long(target),
            as_long(response),
            as_long(self._groups),
            as_long([self._last(spans) for spans in self._spans]),
        )

    def _last(self, spans: Sequence[tuple[int, int, int]]) -> int:
        """Place of the last token of the last span that has any; -1 without one."""
        return next((self._nodes[node].start + end - 1 for node, start, end in reversed(spans) if end > start), -1)

    def _predicted(self, spans: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
        """Pairs (place of a target in the row, place of the token that predicts it)."""
        for node_index, start, end in spans:
            node = self._nodes[node_index]
            for place in range(node.start + start, node.start + end):
                if place > node.start:
                    yield place, place - 1
                elif node.parent >= 0:
                    yield place, self._nodes[node.parent].end - 1


def pack(groups: Sequence[TokenGroup]) -> TokenTree:
    """Pack groups into one tree: each prompt a root (if it has tokens), each response a node below it.

    Responses are numbered in order: all of the first group, then all of the second. Raises ValueError for an empty batch.
    """
    if not groups:
        raise ValueError("nothing to pack: the batch has no group")
    builder = TreeBuilder()
    for index, group in enumerate(groups):
        root = builder.node(group.prompt_ids) if group.prompt_ids else -1
        for response in group.responses:
            node = builder.node(response.token_ids, root)
            builder.response([(node, start, end) for start, end in runs(response.trained)], index)
    return builder.build()


def runs(marks: Sequence[bool]) -> list[tuple[int, int]]:
    """Maximal runs of true values as (start, end).

    >>> runs([False, True, True, False, True])
    [(1, 3), (4, 5)]
    """
    found, start = [], None
    for i, mark in enumerate(marks):
        if mark and start is None:
            start = i
        elif not mark and start is not None:
            found.append((start, i))
            start = None
    if start is not None:
        found.append((start, len(marks)))
    return found


def partition(groups: Sequence[TokenGroup], token_budget: int) -> list[list[TokenGroup]]:
    """Cut a batch into micro-batches of at most `token_budget` computed tokens each; a longer group stands alone.

    Groups are dealt longest first into the fullest micro-batch that still takes them (best-fit decreasing), so the cut depends on
    the groups and the budget alone, and few micro-batches are nearly empty.
    """
    order = sorted(range(len(groups)), key=lambda i: (-groups[i].tokens, i))
    bins: list[tuple[int, list[int]]] = []
    for i in order:
        size = groups[i].tokens
        fitting = [b for b, (used, _) in enumerate(bins) if used + size <= token_budget]
        if fitting:
            best = max(fitting, key=lambda b: (bins[b][0], -b))
            bins[best] = (bins[best][0] + size, [*bins[best][1], i])
        else:
            bins.append((size, [i]))
    return [[groups[i] for i in sorted(members)] for _, members in bins]
