"""The hashes of near-duplicates, against the library's and against runs of words joined one by one."""

import random
import zlib

from datasketch import MinHash

from manners.core.text import words
from manners.data.near import PERMUTATIONS, minima, shingles


def test_minima_are_the_library_s():
    draw = random.Random(0)
    for size in (1, 3, 80):
        values = [draw.getrandbits(32) for _ in range(size)]
        oracle = MinHash(num_perm=PERMUTATIONS, hashfunc=lambda value: value, scheme="affine32")
        oracle.update_batch(values)
        assert minima(values).tolist() == oracle.hashvalues.tolist()


def test_shingles_are_hashes_of_runs_of_words():
    draw = random.Random(1)
    for alphabet in ("abc", "aé中"):
        for count in (0, 1, 4, 5, 6, 40):
            text = " ".join("".join(draw.choices(alphabet, k=draw.randint(1, 4))) for _ in range(count))
            said = words(text)
            runs = [said[i : i + 5] for i in range(len(said) - 4)] or ([said] if said else [])
            assert shingles(text) == {zlib.crc32(" ".join(run).encode()) for run in runs}
