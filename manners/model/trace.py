"""The memory of a training step, counted before it is taken.

A copy of the backbone whose tensors have shapes but no data runs the code of a training step: every layer, kernel and autograd
function is called, nothing is computed, and each block of memory is noted when it is made and when it is let go. What an
implementation keeps for backward is thereby counted as it is kept, whatever the family, the adapter or the attention. What a kernel
takes for itself and gives back before it returns is not seen.
"""

import copy
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manners.model.roles import Backbone
from manners.model.score import Scores
from manners.model.tree import TokenTree


class Traced(NamedTuple):
    """Bytes beyond weights, adapters and optimizer: what the graph keeps from forward to backward, the most that is alive at any
    moment of the two, and how much of that most is gradients of weights."""

    kept: int
    peak: int
    gradients: int


class Ledger(TorchDispatchMode):
    """While it is entered, `now` is the number of bytes of all blocks made since and alive, and `peak` the most that it has been.

    `known` are tensors whose memory was there before: views of them are not new. Blocks are counted once, however many tensors
    share them. `gradients` is set from outside; `gradients_at_peak` is what it was at the peak.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = self.gradients = self.gradients_at_peak = 0
        # The storage objects are kept, lest an address be used again.
        self._known = {storage._cdata: storage for storage in (t.untyped_storage() for t in known)}
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._alive or key in self._known:
            return
        size = storage.nbytes()
        self._alive.add(key)
        weakref.finalize(storage, self._drop, key, size).atexit = False
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def shadow(backbone: Backbone) -> Backbone:
    """A copy of the backbone, roles included, whose tensors have no data (and no tokenizer). It takes no memory to speak of.

    Use it inside `trace` only.
    """
    # A trace's inputs, ids and positions, are real tensors.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        return copy.deepcopy(backbone, {id(backbone.tokenizer): None})


def trace(
    backbone: Backbone,
    role: str,
    tree: TokenTree,
    *,
    gradients: bool = False,
    graph: bool = True,
    forward: Callable[[Backbone, TokenTree], Scores] | None = None,
) -> Traced:
    """Count one forward and backward on a tree; with `graph=False` a forward alone, as a reference pass makes it. `forward` is how the
    tree is scored, if not by log-probabilities.

    The backbone is a shadow, or a real one, on which the step is really computed. `gradients` says whether the gradients of the
    weights are there already, as they are from the second micro-batch of a step on. The loss is the sum of all that was scored:
    what a trainer makes of it is small beside the rest. No gradient is left behind.

    Raises RuntimeError for a shadow whose model looks into its data (the routers of experts, for one).
    """
    model = backbone.model
    trained = list(backbone.trainable(role).values())
    inputs = [tree.tokens_T, tree.positions_T, tree.predictor_N, tree.target_N, tree.response_N, tree.last_R]
    heads = [p for head in backbone.heads.values() for p in head.parameters()]
    ledger = Ledger([*model.parameters(), *model.buffers(), *heads, *inputs])
    hooks = [p.register_post_accumulate_grad_hook(lambda p: _arrived(ledger, p, new=not gradients)) for p in trained]
    mode = getattr(next(model.parameters()), "fake_mode", None) or nullcontext()
    with mode, ledger, backbone.role(role), torch.set_grad_enabled(graph):
        try:
            if gradients and graph:
                ledger.gradients = sum(map(_bytes, trained))
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter)
            before = ledger.now
            scores = forward(backbone, tree) if forward is not None else backbone.score(tree, entropy=graph)
            kept = ledger.now - before
            if graph:
                parts = [t.sum() for t in (scores.logp_N, scores.value_N, scores.reward_RK) if t is not None and t.requires_grad]
                torch.stack(parts).sum().backward()
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in trained:
                parameter.grad = None
    return Traced(kept, ledger.peak, ledger.gradients_at_peak)


def _arrived(ledger: Ledger, parameter: nn.Parameter, *, new: bool) -> None:
    if new:
        ledger.gradients += _bytes(parameter)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
