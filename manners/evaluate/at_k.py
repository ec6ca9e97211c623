"""pass@k and maj@k: what k samples would have brought, estimated without bias from n >= k of them."""

from collections.abc import Hashable, Sequence
from itertools import combinations
from math import comb, prod

import numpy as np

from manners.evaluate.intervals import SEED
from manners.reason.answers import vote

EXACT = 5_000
"""Up to so many subsets are all looked at; of more, so many are drawn."""


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that at least one of k samples is right, from n samples of which `right` are (Chen 2021): 1 - C(n-right, k) / C(n, k).

    It is the mean over all subsets of k. Raises ValueError unless 1 <= k <= n and 0 <= right <= n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} cannot be told from {n} samples of which {right} are right")
    if n - right < k:
        return 1.0
    return 1 - prod(1 - k / i for i in range(n - right + 1, n + 1))


def maj_at_k(answers: Sequence[Hashable | None], target: Hashable, k: int, weights: Sequence[float] | None = None) -> float:
    """Chance that the vote of k of the answers is `target`: the mean over all subsets of k, or over 5,000 drawn without putting back.
    With `weights`, one an answer, that the greatest sum of them is.

    A subset keeps the order of the samples, in which equal votes are broken; a subset without any answer is wrong. Raises ValueError
    unless 1 <= k <= n.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} cannot be told from {n} samples")
    if comb(n, k) <= EXACT:
        subsets = list(combinations(range(n), k))
    else:
        generator = np.random.default_rng(SEED)
        subsets = [sorted(generator.choice(n, size=k, replace=False)) for _ in range(EXACT)]
    weighing = lambda subset: None if weights is None else [weights[i] for i in subset]
    return sum(vote([answers[i] for i in subset], weighing(subset)) == target for subset in subsets) / len(subsets)
