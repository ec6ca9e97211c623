"""Products by either library against float64."""

import os
import subprocess
import sys

import pytest
import torch

from manners.ops import products


@pytest.fixture(params=products.ENGINES)
def engine(request, monkeypatch):
    """Both engines where both are there."""
    monkeypatch.setenv("MANNERS_PRODUCTS", request.param)
    products.engine.cache_clear()
    yield products.engine()
    products.engine.cache_clear()


@pytest.mark.parametrize("n, k, m", [(1, 5, 3), (7, 24, 1), (33, 16, 48), (64, 130, 70)])
def test_equal_to_float64_however_the_factors_lie(engine, n, k, m):
    numbers = torch.Generator().manual_seed(n)
    x, w = torch.randn(n, k, generator=numbers), torch.randn(m, k, generator=numbers)
    expected = x.double() @ w.double().t()
    for left in (x, x.t().contiguous().t(), torch.cat([x, x], 1)[:, :k]):
        for right in (w, w.t().contiguous().t()):
            assert (products.product(left, right).double() - expected).abs().max() < 1e-5 * k


def test_other_types_and_empty_factors_go_to_torch(engine):
    x, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(products.product(x, w), x @ w.t())
    assert products.product(torch.zeros(0, 4), torch.zeros(5, 4)).shape == (0, 5)


def test_the_variable_decides():
    code = "from manners.ops.products import engine; print(engine())"
    for asked in products.ENGINES:
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "MANNERS_PRODUCTS": asked}, capture_output=True, text=True)
        # A build of torch may lack oneDNN; it never lacks its own.
        assert done.stdout.strip() in {asked, "torch"}
