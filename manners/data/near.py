"""Texts that are the same but for a few words: MinHash and banding find candidates, the true Jaccard index decides.

A text is the set of its runs of five words (lower case; of fewer words, the whole text). The minimum of a random hash over the set is the
same for two texts with probability J, their Jaccard index (Broder 1997); b bands of r such minima make a candidate of two texts with
probability 1 - (1 - J^r)^b. Candidates are compared word for word, so that no text is called a duplicate which is none; some are missed.
"""

import zlib
from collections.abc import Callable, Iterable
from itertools import accumulate

import numpy as np
from datasketch import MinHash

from manners.core.text import words

SHINGLE = 5
PERMUTATIONS = 100
FOUND = 0.95
"""Chance at least with which a pair that is just alike enough becomes a candidate."""
BUCKET = 8
"""Texts of one band that are compared at most: many more share it only where all are of one template."""
_A, _B = np.asarray(MinHash(num_perm=PERMUTATIONS, scheme="affine32").permutations, dtype=np.uint32)[:, :, None]
"""Factors and summands of the hashes, modulo 2^32: (PERMUTATIONS, 1) each."""


def shingles(text: str, size: int = SHINGLE) -> set[int]:
    """Hashes of a text's runs of `size` words; of the whole text if it has fewer words; of nothing if it has none."""
    said = words(text)
    if len(said) < size:
        return {zlib.crc32(" ".join(said).encode("utf-8", "surrogatepass"))} if said else set()
    joined = " ".join(said)
    if joined.isascii():  # a character is a byte, so a run is a slice
        raw, ends = memoryview(joined.encode()), [*accumulate(len(word) + 1 for word in said)]
        return {zlib.crc32(raw[start : end - 1]) for start, end in zip([0, *ends], ends[size - 1 :], strict=False)}
    return {zlib.crc32(" ".join(said[i : i + size]).encode("utf-8", "surrogatepass")) for i in range(len(said) - size + 1)}


def jaccard(a: set[int], b: set[int]) -> float:
    """Size of what two sets share over the size of both together; 0 for two empty sets."""
    together = len(a | b)
    return len(a & b) / together if together else 0.0


def found_with(similarity: float, bands: int, rows: int) -> float:
    """Chance that two texts of this Jaccard index agree in at least one band.

    >>> round(found_with(0.8, 25, 10), 10)
    0.9415565161
    """
    return 1 - (1 - similarity**rows) ** bands


def banding(threshold: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows a band): the longest rows, which give the fewest false candidates, that still find pairs at the threshold.

    >>> banding(0.7)
    (20, 5)
    """
    rows = max((r for r in range(1, 21) if found_with(threshold, permutations // r, r) >= FOUND), default=1)
    return permutations // rows, rows


def minima(shingled: Iterable[int]) -> np.ndarray:
    """The least value of each hash over a set of 32-bit numbers: (PERMUTATIONS,) of uint32, as `datasketch.MinHash` has them.

    The numbers are mixed by the last step of MurmurHash3 first. Making a `MinHash` a text takes longer than the hashing.
    """
    mixed = np.fromiter(shingled, dtype=np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    return (_A * mixed + _B).min(axis=1)


class NearTexts:
    """Texts added one by one, each with a number; tells which earlier ones a text is like. Holds `bands` hashes a text, not the text.

    `again` gives the shingles of an earlier text by its number, to compare with.
    """

    def __init__(self, threshold: float, again: Callable[[int], set[int]]) -> None:
        self.threshold, self.again = threshold, again
        self.bands, self.rows = banding(threshold)
        self.buckets: dict[int, int | list[int]] = {}
        self.compared = 0

    def keys(self, shingled: Iterable[int]) -> list[int]:
        """The keys of a text's bands, of eight bytes, other ones for each band; none for a text without words."""
        values = list(shingled)
        if not values:
            return []
        least = minima(values)[: self.bands * self.rows].astype(np.uint64).reshape(self.bands, self.rows)
        mixed = np.full(self.bands, 0x9E3779B97F4A7C15, dtype=np.uint64) + np.arange(self.bands, dtype=np.uint64)
        for column in least.T:
            mixed = (mixed ^ column) * np.uint64(0xBF58476D1CE4E5B9)
            mixed ^= mixed >> np.uint64(29)
        return mixed.tolist()

    def like(self, shingled: set[int], keys: Iterable[int], allowed: Callable[[int], bool] = lambda number: True) -> list[int]:
        """Numbers of earlier texts whose Jaccard index with this one is at least the threshold; only of those that are `allowed`."""
        seen: dict[int, None] = {}
        for key in keys:
            held = self.buckets.get(key)
            if held is not None:
                for number in [held] if isinstance(held, int) else held:
                    if allowed(number):
                        seen[number] = None
        self.compared += len(seen)
        return [number for number in seen if jaccard(shingled, self.again(number)) >= self.threshold]

    def add(self, number: int, keys: Iterable[int]) -> None:
        """Hold a text under its bands' keys."""
        for key in keys:
            held = self.buckets.get(key)
            if held is None:
                self.buckets[key] = number
            elif isinstance(held, int):
                self.buckets[key] = [held, number]
            elif len(held) < BUCKET:
                held.append(number)
