"""How different answers are from each other, by their words.

`distinct` (Li 2016) is the share of n-grams that are distinct. It falls with the amount of text, whoever wrote it, so models that
answer at different lengths cannot be compared by it; `expectation_adjusted` (Liu 2022, as used by Kirk 2024) divides by the number of
distinct n-grams that so many draws from the vocabulary would have. Words are split at white space, and an n-gram ends with its answer.
"""

import math
from collections.abc import Sequence

VOCABULARY = 50_257
"""V of the adjustment: the vocabulary of GPT-2, as in the code of Kirk 2024. Values with another V cannot be compared with these."""
ORDERS = (1, 2, 3, 4, 5)


def counts(texts: Sequence[str], n: int) -> tuple[int, int]:
    """(distinct, all) n-grams of words over the texts."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen), total


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams; 0 if there is none."""
    unique, total = counts(texts, n)
    return unique / total if total else 0.0


def adjusted(unique: int, total: int, vocabulary: int = VOCABULARY) -> float:
    """U / (V (1 - ((V - 1) / V)^C)): distinct n-grams U over what is expected of C uniform draws from V; 0 for C = 0.

    1 - ((V - 1) / V)^C is computed as -expm1(C log1p(-1 / V)), which keeps its digits for a large V.
    """
    return unique / (vocabulary * -math.expm1(total * math.log1p(-1 / vocabulary))) if total else 0.0


def expectation_adjusted(texts: Sequence[str], vocabulary: int = VOCABULARY) -> float:
    """The mean over n = 1 to 5 of `adjusted`. Uniform draws are not how text is made: above 1 is possible for few words only."""
    return sum(adjusted(*counts(texts, n), vocabulary) for n in ORDERS) / len(ORDERS)
