"""Reductions of flat per-token numbers to their responses. Axes: `N` response tokens, `R` responses."""

import torch
from torch import Tensor


def segment_sum(values_N: Tensor, response_N: Tensor, responses: int) -> Tensor:
    """Sum of each response's values, (R,); zero for a response without tokens. Differentiable.

    Summed in the order of the tokens, so the result does not depend on what else is in the batch.
    """
    return values_N.new_zeros(responses).index_add(0, response_N, values_N)


def segment_count(response_N: Tensor, responses: int) -> Tensor:
    """Number of tokens of each response, (R,), as integers."""
    return torch.bincount(response_N, minlength=responses)


def segment_last(response_N: Tensor, responses: int) -> Tensor:
    """Index of each response's last token, (R,); -1 for a response without tokens. `response_N` must be in rising order."""
    count_R = segment_count(response_N, responses)
    return (count_R.cumsum(0) - 1).masked_fill(count_R == 0, -1)


def segment_place(response_N: Tensor, responses: int) -> Tensor:
    """How many tokens of its response come before each token, (N,). `response_N` must be in rising order."""
    count_R = segment_count(response_N, responses)
    first_R = count_R.cumsum(0) - count_R
    return torch.arange(response_N.numel(), device=response_N.device) - first_R[response_N]
