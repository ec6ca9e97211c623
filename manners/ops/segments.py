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
