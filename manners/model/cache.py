"""Keys and values kept between decoding steps, as attention patterns: the model code below never sees a cache.

A prompt runs once as a one-node row under `Prefill`. Its keys and values are copied to the slots of its samples, and from then on
each step is a row with one token a slot under `SlotCache`. Attention goes slot by slot over the slot's own keys, so that what a slot
computes depends on nothing of its neighbours, not even on how long they are.

Axes: `A` slots that decode in a step, `H'` key/value heads, `D` width of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from manners.model.attention import Shape, TreePattern, attend_span, attending
from manners.model.tree import TokenTree, TreeBuilder

STEP = 64
"""The capacity of a slot is a multiple of this, which keeps every slot's memory aligned alike."""


class Prefill(TreePattern):
    """Causal attention over one prompt that keeps what each layer's attention was handed: keys and values (1, H', P, D)."""

    def __init__(self, tree: TokenTree):
        super().__init__(tree)
        self.layers: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, prompt_ids: Sequence[int], device: torch.device) -> "Prefill":
        builder = TreeBuilder()
        builder.node(prompt_ids)
        return cls(builder.build().to(device))

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        self.layers.append((key, value))
        return super().attend(module, query, key, value, shape)


class SlotCache:
    """One token a slot: keys and values (slots, H', capacity, D) of each layer, in the order in which layers call attention.

    Memory is reserved with the first prompt, whose layers say how many heads they have, and not written before it is needed, so a
    generous capacity costs addresses rather than memory.
    """

    def __init__(self, slots: int, capacity: int):
        self.lengths = [0] * slots
        self.capacity = -(-capacity // STEP) * STEP
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._active: list[int] = []
        self._layer = 0

    def fill(self, slot: int, prompt: Prefill) -> None:
        """Start a slot anew with a prompt's keys and values."""
        if not self._layers:
            self._layers = [(self._reserve(key), self._reserve(value)) for key, value in prompt.layers]
        length = prompt.tree.tokens_T.numel()
        for (keys, values), (key, value) in zip(self._layers, prompt.layers, strict=True):
            keys[slot, :, :length], values[slot, :, :length] = key[0], value[0]
        self.lengths[slot] = length

    def _reserve(self, row: Tensor) -> Tensor:
        return row.new_empty(len(self.lengths), row.shape[1], self.capacity, row.shape[3])

    @contextmanager
    def step(self, active: Sequence[int]) -> Iterator[None]:
        """Within this block a model runs one row whose first tokens belong to the slots `active`, in this order.

        What the row has beyond them is padding that attends to itself. After the block the active slots are a token longer.
        """
        self._active, self._layer = list(active), 0
        device = self._layers[0][0].device if self._layers else None
        self._slot_A = torch.tensor(self._active, device=device)
        self._end_A = torch.tensor([self.lengths[slot] for slot in self._active], device=device)
        self._ones = torch.ones(1, self.capacity, dtype=torch.bool, device=device)
        with attending(self):
            yield
        if self._layer != len(self._layers):
            raise RuntimeError(f"{self._layer} layers attended in a decoding step but {len(self._layers)} with the prompt")
        for slot in self._active:
            self.lengths[slot] += 1

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Tensor:
        (keys, values), count = self._layers[self._layer], len(self._active)
        self._layer += 1
        keys[self._slot_A, :, self._end_A] = key[0, :, :count].transpose(0, 1)
        values[self._slot_A, :, self._end_A] = value[0, :, :count].transpose(0, 1)
        outputs = []
        for place, slot in enumerate(self._active):
            end = self.lengths[slot] + 1
            start = 0 if shape.window is None else max(0, end - shape.window)
            seen = (slice(slot, slot + 1), slice(None), slice(start, end))
            mask = self._ones[:, : end - start]  # none at all would mean causal from the first key on: a single query would see one key
            outputs.append(attend_span(query[:, :, place : place + 1], keys[seen], values[seen], mask, shape))
        outputs.append(value[:, :, count:].repeat_interleave(query.shape[1] // value.shape[1], 1))
        return torch.cat(outputs, 2)
