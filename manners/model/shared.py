"""Log-probabilities of many continuations whose contexts begin alike: what several rows begin with is computed once.

    few-shot prefix ──┬── question ──┬── option
                      │              └── option
                      └── question ──┬── option ...

The rows (a context, a continuation) become a tree of branches, a branch a run of tokens that the rows below it have in common. These
three levels are the usual case; any nesting is found as well, and rows that share nothing are as good as without it. The last token of
a row is never computed: nobody reads what it predicts. So options of one token, such as the letters of MMLU, cost nothing but a look.

A subtree that fits a micro-batch is computed with others in one row. One that does not fit leaves its trunk's keys and values behind,
as they are (there is no graph), and what hangs below it attends to them. Attention to a trunk, kept or in the same row, and attention
to what is below it are two calls, whose outputs are joined by the sums of their weights: nothing is copied, and a trunk needs no mask.

Axes: `T` tokens of the row, `P` tokens of the kept prefix, `U` places that predict something, `H`, `H'`, `D` as in `attention`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manners.model.attention import Shape, attend_span, attending
from manners.model.roles import Backbone
from manners.model.score import Head, chunk_rows
from manners.ops.attention import attend_part, can_attend, joined

WORTH = 32
"""Fewest tokens for which a forward pass of its own pays; a shorter trunk is computed once in every micro-batch instead."""
MICRO_TOKENS = 2048

DENSE = 192
"""Most tokens of a subtree that is attended to by one call with a mask; a larger one is cut at its trunk."""

Ids = Sequence[int]
Part = tuple[Tensor, Tensor]
"""Outputs (1, H, T, D) of attention over some of the keys, and the log of the sum of weights (1, H, T)."""
Kept = list[tuple[Tensor, Tensor]]
"""Keys and values (1, H', P, D) of each layer, in the order in which layers call attention."""


class Scored(NamedTuple):
    """A continuation's summed log-probability in nats, its tokens, and whether each of them was the likeliest."""

    logp: float
    tokens: int
    greedy: bool


class Ask(NamedTuple):
    """After the token at `offset` of its branch, how likely is `token`? Asked by a row."""

    offset: int
    token: int
    row: int


@dataclass
class Branch:
    """Tokens `ids`, the first at position `depth`, what is asked of them, and the branches that go on from the last of them."""

    ids: list[int]
    depth: int
    asks: list[Ask]
    children: "list[Branch]"

    @property
    def tokens(self) -> int:
        return len(self.ids) + sum(child.tokens for child in self.children)


def branches(rows: Sequence[tuple[Ids, Ids]]) -> list[Branch]:
    """The tree of rows (context, continuation). Raises ValueError for a row of which either is empty."""
    if not all(len(context) and len(continuation) for context, continuation in rows):
        raise ValueError("a context and a continuation need at least one token each")
    whole = [[*context, *continuation] for context, continuation in rows]
    order = sorted(range(len(rows)), key=lambda row: whole[row][:-1])
    return _grow(whole, [len(context) for context, _ in rows], order, 0)


def _grow(whole: list[list[int]], firsts: list[int], order: list[int], depth: int) -> list[Branch]:
    """Branches of the rows `order`, sorted by what is computed of them, from position `depth` on, before which all are the same."""
    found = []
    for _, members in groupby(order, key=lambda row: whole[row][depth]):
        group = list(members)
        first, last = whole[group[0]], whole[group[-1]]  # in a sorted list what these two share, all share
        stop = min(len(first), len(last)) - 1
        end = next((at for at in range(depth, stop) if first[at] != last[at]), stop)
        asks = [
            Ask(place - 1 - depth, whole[row][place], row)
            for row in group
            for place in range(max(firsts[row], depth + 1), min(end + 1, len(whole[row])))
        ]
        longer = [row for row in group if len(whole[row]) - 1 > end]
        found.append(Branch(first[depth:end], depth, asks, _grow(whole, firsts, longer, end)))
    return found


def continuation_logps(
    backbone: Backbone,
    role: str,
    rows: Sequence[tuple[Ids, Ids]],
    *,
    micro_tokens: int = MICRO_TOKENS,
    progress: Callable[[int], Any] | None = None,
) -> list[Scored]:
    """For each row (context, continuation), both as token ids and neither empty, what the model says of the continuation. No graph.

    `progress` is told how many tokens of the tree are done.
    """
    scoring = _Scoring(backbone, len(rows), micro_tokens, progress)
    with torch.no_grad(), backbone.role(role):
        scoring.walk(branches(rows), [])
    counts = [len(continuation) for _, continuation in rows]
    return [Scored(*found) for found in zip(scoring.logp.tolist(), counts, scoring.greedy.tolist(), strict=True)]


class _Scoring:
    """Sums by row, filled as the tree is walked."""

    def __init__(self, backbone: Backbone, rows: int, micro_tokens: int, progress: Callable[[int], Any] | None):
        self.model, self.head, self.device = backbone.model, Head.of(backbone.model), backbone.device
        self.micro_tokens, self.progress, self.done = micro_tokens, progress, 0
        self.logp = torch.zeros(rows, dtype=torch.float64)
        self.greedy = torch.ones(rows, dtype=torch.bool)

    def walk(self, below: Sequence[Branch], kept: Kept) -> None:
        """Compute branches that hang below one kept prefix."""
        waiting, tokens, left = [], 0, list(reversed(below))
        while left:
            branch = left.pop()
            size = branch.tokens
            if size > self.micro_tokens and branch.children:
                if len(branch.ids) < WORTH:
                    left += reversed(_pushed(branch))
                else:
                    trunk = Branch(branch.ids, branch.depth, branch.asks, [])
                    self.walk(branch.children, self.compute([trunk], kept, keep=True))
                continue
            if waiting and tokens + size > self.micro_tokens:
                self.compute(waiting, kept)
                waiting, tokens = [], 0
            waiting.append(branch)
            tokens += size
        if waiting:
            self.compute(waiting, kept)

    def compute(self, roots: Sequence[Branch], kept: Kept, keep: bool = False) -> Kept:
        """One forward pass over whole subtrees; what was asked is added up. Returns keys and values with the prefix's if told to `keep`."""
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        asks: list[Ask] = []

        def lay(branch: Branch) -> Block:
            start = len(tokens)
            stop = start + len(branch.ids)
            tokens.extend(branch.ids)
            positions.extend(range(branch.depth, branch.depth + len(branch.ids)))
            places.extend(start + ask.offset for ask in branch.asks)
            asks.extend(branch.asks)
            children = [lay(child) for child in branch.children]
            return Block(start, stop, len(tokens), children)

        blocks = [lay(root) for root in roots]
        positions_T = torch.tensor(positions, device=self.device)
        pattern = _Below(blocks, positions_T, kept, keep)
        with attending(pattern):
            ids = torch.tensor(tokens, device=self.device)
            hidden_TD = self.model.base_model(input_ids=ids[None], position_ids=positions_T[None], use_cache=False)[0][0]
        self._read(hidden_TD, places, asks)
        self.done += len(tokens)
        if self.progress is not None:
            self.progress(self.done)
        return pattern.layers

    def _read(self, hidden_TD: Tensor, places: list[int], asks: list[Ask]) -> None:
        """Add what was asked to the sums of the rows. A place that several rows ask is read once."""
        if not asks:
            return
        place_U, which = torch.tensor(places, device=self.device).unique(return_inverse=True)
        token = torch.tensor([ask.token for ask in asks], device=self.device)
        row = torch.tensor([ask.row for ask in asks])
        hidden_UD = hidden_TD.index_select(0, place_U)
        size = chunk_rows(self.head, hidden_UD)
        for start in range(0, len(place_U), size):
            logits = self.head(hidden_UD[start : start + size])
            here = ((which >= start) & (which < start + size)).nonzero()[:, 0]
            local, wanted = which[here] - start, token[here]
            logp = logits[local, wanted] - torch.logsumexp(logits, -1)[local]
            self.logp.index_add_(0, row[here.cpu()], logp.double().cpu())
            missed = here[logits.argmax(-1)[local] != wanted].cpu()
            self.greedy[row[missed]] = False


def _pushed(branch: Branch) -> list[Branch]:
    """The children of a short trunk, each with the trunk before it; what was asked of the trunk is asked of the first."""
    found = []
    for number, child in enumerate(branch.children):
        asks = [ask._replace(offset=ask.offset + len(branch.ids)) for ask in child.asks]
        found.append(Branch([*branch.ids, *child.ids], branch.depth, [*(branch.asks if number == 0 else ()), *asks], child.children))
    return found


class Block(NamedTuple):
    """A subtree in the row: its trunk from `start` to `stop`, its children from there to `end`."""

    start: int
    stop: int
    end: int
    children: "list[Block]"


def _seen(block: Block) -> Tensor:
    """Boolean (queries, keys) within a subtree: the trunk's earlier tokens, and of the children's each own."""
    size, trunk = block.end - block.start, block.stop - block.start
    seen = torch.zeros(size, size, dtype=torch.bool)
    seen[:trunk, :trunk] = torch.ones(trunk, trunk, dtype=torch.bool).tril()
    seen[trunk:, :trunk] = True
    for child in block.children:
        own = slice(child.start - block.start, child.end - block.start)
        seen[own, own] = _seen(child)
    return seen


class _Below:
    """Attention of subtrees of one row to a kept prefix, if there is one, and each to itself."""

    def __init__(self, blocks: Sequence[Block], positions_T: Tensor, kept: Kept, keep: bool):
        self.blocks, self.positions_T, self.kept, self.keep = blocks, positions_T, kept, keep
        self.layers: Kept = []
        self._layer = 0
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        before = self.kept[self._layer] if self.kept else None
        self._layer += 1
        if self.keep:
            pair = (key, value) if before is None else (torch.cat([before[0], key], 2), torch.cat([before[1], value], 2))
            self.layers.append(pair)
        plain = shape.softcap is None and shape.sinks_H is None and shape.window is None
        if not (plain and can_attend(query, key, value)):
            return self._explicit(query, key, value, before, shape)
        own = _end_to_end([self._within(block, query, key, value, shape.scaling) for block in self.blocks])
        return (own if before is None else joined(attend_part(query, *before, None, False, shape.scaling), own))[0]

    def _within(self, block: Block, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Part:
        """Attention of a subtree to itself."""
        start, stop, end, children = block
        part = lambda queries, keys, mask, causal: attend_part(
            query[:, :, queries], key[:, :, keys], value[:, :, keys], mask, causal, scaling
        )
        whole, trunk, below = slice(start, end), slice(start, stop), slice(stop, end)
        if not children:
            return part(whole, whole, None, True)
        if end - start <= DENSE:
            return part(whole, whole, self._mask(block, query.dtype), False)
        inner = _end_to_end([self._within(child, query, key, value, scaling) for child in children])
        return _end_to_end([part(trunk, trunk, None, True), joined(part(below, trunk, None, False), inner)])

    def _mask(self, block: Block, dtype: torch.dtype) -> Tensor:
        """A subtree's mask as numbers to add, the same for all layers."""
        name = block.start, dtype
        if name not in self._masks:
            seen = _seen(block)
            self._masks[name] = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))
        return self._masks[name]

    def _explicit(self, query: Tensor, key: Tensor, value: Tensor, before: tuple[Tensor, Tensor] | None, shape: Shape) -> Tensor:
        """Subtree by subtree over prefix and own keys in one: windows, soft-caps, sinks, and what the CPU's kernel does not take."""
        outputs, prefix, device = [], 0 if before is None else before[0].shape[2], query.device
        for block in self.blocks:
            own = slice(block.start, block.end)
            keys, values = key[:, :, own], value[:, :, own]
            if before is not None:
                keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
            seen = _seen(block).to(device)
            mask = torch.cat([seen.new_ones(len(seen), prefix), seen], 1)
            if shape.window is not None:
                places = torch.cat([torch.arange(prefix, device=device), self.positions_T[own]])
                mask &= self.positions_T[own, None] - places[None] < shape.window
            outputs.append(attend_span(query[:, :, own], keys, values, mask, shape))
        return torch.cat(outputs, 2)


def _end_to_end(parts: Sequence[Part]) -> Part:
    """Outputs and sums of runs of queries that lie side by side."""
    return parts[0] if len(parts) == 1 else (torch.cat([output for output, _ in parts], 2), torch.cat([lse for _, lse in parts], 2))
