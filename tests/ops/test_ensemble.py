"""Worked value R7 of algorithms.md 2.9, and each way against a loop."""

import statistics

import pytest
import torch

from manners.core.errors import InputError
from manners.ops.ensemble import WAYS, combine

FIVE = torch.tensor([1, 0.5, 1.5, -0.2, 0.7], dtype=torch.float64)[:, None]


def test_worked_values():
    """R7: mean .7, least -.2, population variance .316, coefficient .5."""
    assert combine(FIVE, "mean").item() == pytest.approx(0.7, abs=1e-9)
    assert combine(FIVE, "worst").item() == pytest.approx(-0.2, abs=1e-9)
    assert combine(FIVE, "uncertainty").item() == pytest.approx(0.542, abs=1e-9)
    assert combine(FIVE, "uncertainty", 0.1).item() == pytest.approx(0.7 - 0.0316, abs=1e-9)


def test_against_a_loop():
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    columns = scores.t().tolist()
    assert combine(scores, "mean").tolist() == pytest.approx([statistics.fmean(c) for c in columns])
    assert combine(scores, "worst").tolist() == [min(c) for c in columns]
    expected = [statistics.fmean(c) - 0.3 * statistics.pvariance(c) for c in columns]
    assert combine(scores, "uncertainty", 0.3).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("how", WAYS)
def test_one_member_decides_alone(how):
    scores = torch.randn(1, 5)
    assert torch.equal(combine(scores, how), scores[0])
    assert combine(torch.zeros(3, 0), how).shape == (0,)


def test_an_unknown_way_is_refused():
    with pytest.raises(InputError, match="did you mean 'worst'"):
        combine(FIVE, "wrost")
