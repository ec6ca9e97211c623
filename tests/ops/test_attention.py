"""Runs of queries to chains of runs of keys, against torch's own attention with every key in one mask."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from manners.ops.attention import Run, attend_runs, can_attend

ROOT, LEFT, RIGHT, OTHER = (0, 5), (5, 8), (8, 12), (12, 19)
"""A root with two children, then a row of its own."""
TOKENS = 19


def mask(first: int, last: int, chain: tuple[tuple[int, int], ...], dtype: torch.dtype) -> Tensor:
    places = torch.cat([torch.arange(*part) for part in chain])
    return torch.zeros(last - first, len(places), dtype=dtype).masked_fill_(places > torch.arange(first, last)[:, None], float("-inf"))


def runs(dtype: torch.dtype) -> list[Run]:
    chains = [(ROOT,), (ROOT, LEFT), (ROOT, RIGHT), (OTHER,)]
    return [Run(*chain[-1], chain, None if len(chain) == 1 else mask(*chain[-1], chain, dtype)) for chain in chains]


def rows(dtype: torch.dtype, heads: int, key_heads: int, seed: int = 0) -> list[Tensor]:
    """Queries, keys, values as a model's layers leave them: views of (T, H D)."""
    numbers = torch.Generator().manual_seed(seed)
    make = lambda n: torch.randn(1, TOKENS, n, 8, dtype=dtype, generator=numbers).transpose(1, 2).requires_grad_()
    return [make(heads), make(key_heads), make(key_heads)]


def whole(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for run in runs(query.dtype):
        for first, last in run.chain:
            for place in range(run.first, run.last):
                seen[place, first : min(last, place + 1)] = True
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True)


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (6, 2)])
def test_values_and_gradients_equal_one_mask_over_all(heads, key_heads):
    given, weight = rows(torch.float64, heads, key_heads), torch.randn(1, heads, TOKENS, 8, dtype=torch.float64)
    ours, own = attend_runs(*given, runs(torch.float64), 0.3), whole(*given, 0.3)
    assert torch.allclose(ours, own, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, given, weight), torch.autograd.grad(own, given, weight), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_it_keeps_each_of_four_tensors_once():
    """Beside one number a query and head: no joined keys, no second output."""
    given, kept = rows(torch.float32, 6, 2), {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = attend_runs(*given, runs(torch.float32), 0.3)
    assert output.untyped_storage().data_ptr() in kept
    assert output.transpose(1, 2).is_contiguous(), "the next layer takes a view"
    assert sum(kept.values()) == 4 * TOKENS * (8 * (6 + 2 + 2 + 6) + 6)


def test_what_it_can_compute():
    q, k, v = rows(torch.float32, 6, 2)
    assert can_attend(q, k, v)
    assert not can_attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert not can_attend(q, k.double(), v)
    assert not can_attend(q, k, v[..., :4])
    assert not can_attend(q.transpose(2, 3), k, v)
