"""Attention of runs of queries to chains of runs of keys on a CPU, keeping queries, keys, values and outputs for backward, each once.

torch's own attention, called for each run, keeps what that call was given: keys and values joined for it, a mask as numbers, and an
output beside the joined one that the next layer keeps. Here what was joined is joined again in backward (a copy, no arithmetic), masks
are shared by all layers, and the output is laid out as the next layer takes it. The kernels are those that torch's attention calls.

Axes: `T` tokens of the row, `H` heads, `H'` key/value heads, `D` width of a head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

_KERNEL = "_scaled_dot_product_flash_attention_for_cpu"


class Run(NamedTuple):
    """Queries `first` to `last` (exclusive) of the row, and the runs of keys that they attend to, in order, their own the last.
    `mask` (queries, keys) is added to the scores; None is causal attention to the own run, which then is the only one."""

    first: int
    last: int
    chain: tuple[tuple[int, int], ...]
    mask: Tensor | None


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend_runs` computes these: floats of full precision on a CPU, heads of one width."""
    same = query.dtype == key.dtype == value.dtype and query.shape[-1] == key.shape[-1] == value.shape[-1]
    plain = query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64)
    return same and plain and all(t.stride(-1) == 1 for t in (query, key, value)) and hasattr(torch.ops.aten, _KERNEL)


def attend_runs(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run], scaling: float) -> Tensor:
    """Queries (1, H, T, D), keys and values (1, H', T, D) of a row to outputs (1, H, T, D). The runs tile the row in order."""
    return _Runs.apply(query, key, value, tuple(runs), scaling)


def _joined(row: Tensor, chain: Sequence[tuple[int, int]]) -> Tensor:
    """The parts of a row (1, H', T, D) end to end."""
    parts = [row[:, :, first:last] for first, last in chain]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


class _Runs(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: tuple[Run, ...], scaling: float) -> Tensor:
        _, heads, tokens, width = query.shape
        output = query.new_empty(1, tokens, heads, width).transpose(1, 2)  # the next layer takes (T, H D)
        sums = []
        for run in runs:
            given = query[:, :, run.first : run.last], _joined(key, run.chain), _joined(value, run.chain)
            part, lse = getattr(torch.ops.aten, _KERNEL)(*given, 0.0, run.mask is None, attn_mask=run.mask, scale=scaling)
            output[:, :, run.first : run.last] = part
            sums.append(lse)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.runs, ctx.scaling = runs, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, *sums = ctx.saved_tensors
        backward, grad = getattr(torch.ops.aten, f"{_KERNEL}_backward"), grad_outputs[0]
        # Laid out (T, H D), as the products before want them.
        grads = [t.new_zeros(1, t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2) for t in (query, key, value)]
        for run, lse in zip(ctx.runs, sums, strict=True):
            own = slice(run.first, run.last)
            given = query[:, :, own], _joined(key, run.chain), _joined(value, run.chain), output[:, :, own], lse
            found = backward(grad[:, :, own], *given, 0.0, run.mask is None, attn_mask=run.mask, scale=ctx.scaling)
            grads[0][:, :, own] = found[0]
            lengths = [last - first for first, last in run.chain]
            for whole, of_chain in zip(grads[1:], found[1:], strict=True):
                for (first, last), part in zip(run.chain, of_chain.split(lengths, 2), strict=True):
                    whole[:, :, first:last] += part
        return *grads, None, None


# --- in parts, without gradients ------------------------------------------------------------------------------------------------


def attend_part(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scaling: float) -> tuple[Tensor, Tensor]:
    """Queries (1, H, Tq, D) over some of their keys: outputs (1, H, Tq, D) and the log of the sum of weights (1, H, Tq), which `joined`
    needs. `mask` (Tq, Tk) is added to the scores. No gradients."""
    output, lse = getattr(torch.ops.aten, _KERNEL)(query, key, value, 0.0, causal, attn_mask=mask, scale=scaling)[:2]
    return output, lse


def joined(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys, from `attend_part` over each: outputs weighted by their shares of the weights, and the
    log of the sum of both."""
    share = torch.sigmoid(second[1] - first[1])[..., None].to(first[0].dtype)
    return torch.lerp(first[0], second[0], share), torch.logaddexp(first[1], second[1])
