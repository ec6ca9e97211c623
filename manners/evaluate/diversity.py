"""How different answers are from each other, by their words or by their meaning.

`distinct` (Li 2016) is the share of n-grams that are distinct. It falls with the amount of text, whoever wrote it, so models that
answer at different lengths cannot be compared by it; `expectation_adjusted` (Liu 2022, as used by Kirk 2024) divides by the number of
distinct n-grams that so many draws from the vocabulary would have. Words are split at white space, and an n-gram ends with its answer.

`self_bleu` (Zhu 2018) asks how well each answer is foretold by the others: 1 if all say the same. `entropy` is that of the words. Both
hang on the amount of text, too: compare equally many answers of about one length. `embedding_distance` is of meaning, given vectors.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

VOCABULARY = 50_257
"""V of the adjustment: the vocabulary of GPT-2, as in the code of Kirk 2024. Values with another V cannot be compared with these."""
ORDERS = (1, 2, 3, 4, 5)
BLEU_ORDERS = (1, 2, 3, 4)
EPSILON = 0.1
"""Matches that an order without one counts for, as in `method1` of NLTK's smoothing (Chen and Cherry 2014)."""


def counts(texts: Sequence[str], n: int) -> tuple[int, int]:
    """(distinct, all) n-grams of words over the texts."""
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        grams = _grams(text.split(), n)
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


def entropy(texts: Sequence[str]) -> float:
    """Entropy of the words of all texts in nats: -sum p log p over the share p of each word; 0 without words. It is at most the log of
    the number of words, so short texts cannot score high."""
    shares = np.array(list(Counter(word for text in texts for word in text.split()).values()), dtype=np.float64)
    shares /= shares.sum() or 1
    return float(-(shares * np.log(shares)).sum()) + 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """The mean over texts of BLEU-4 against all the others: 0 nothing in common, 1 all the same. Raises ValueError for fewer than two.

    BLEU with the brevity penalty of the reference closest in length (the shorter of two as close), and an order without a match counted
    as EPSILON of one, as NLTK's `sentence_bleu` with `method1`; that compares each two texts anew, while here the largest and second
    largest count of every n-gram over all texts are enough, which makes 500 texts a matter of a second. A text too short to have an n-gram
    of some order is scored by the orders it has, so that equal short texts score 1; an empty text scores 1 if another is empty, else 0.
    """
    if len(texts) < 2:
        raise ValueError("self-BLEU needs two texts")
    split = [text.split() for text in texts]
    lengths = Counter(map(len, split))
    held = {n: [Counter(_grams(words, n)) for words in split] for n in BLEU_ORDERS}
    most = {n: _two_largest(held[n]) for n in BLEU_ORDERS}
    total = 0.0
    for i, words in enumerate(split):
        others = lengths - Counter([len(words)])
        if not words:
            total += float(0 in others)
            continue
        logs = []
        for n in BLEU_ORDERS:
            own = held[n][i]
            if own:
                matches = sum(min(count, _largest_but(i, most[n][gram])) for gram, count in own.items())
                logs.append(math.log((matches or EPSILON) / own.total()))
                if n == 1 and not matches:
                    logs = [-math.inf]  # nothing in common at all, as in NLTK
                    break
        closest = min(others, key=lambda length: (abs(length - len(words)), length))
        penalty = 1.0 if len(words) > closest else math.exp(1 - closest / len(words))
        total += penalty * math.exp(sum(logs) / len(logs))
    return total / len(texts)


def _two_largest(counters: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Of every n-gram its largest count, the second largest, and the number of the text that holds the largest."""
    found: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for number, counter in enumerate(counters):
        for gram, count in counter.items():
            first, second, holder = found.get(gram, (0, 0, -1))
            found[gram] = (count, first, number) if count > first else (first, max(second, count), holder)
    return found


def _largest_but(number: int, largest: tuple[int, int, int]) -> int:
    """The largest count over all texts but one."""
    first, second, holder = largest
    return second if holder == number else first


def embedding_distance(vectors_RD: np.ndarray) -> float:
    """1 less the mean cosine over all pairs of rows (Kirk 2024, with the vectors of Sentence-BERT). Raises ValueError for fewer than two
    rows, or one of length zero."""
    norms_R = np.linalg.norm(vectors_RD, axis=1)
    if len(vectors_RD) < 2 or not norms_R.all():
        raise ValueError("a distance needs two vectors, none of them zero")
    unit_RD = vectors_RD / norms_R[:, None]
    cosines = (np.square(unit_RD.sum(0)).sum() - len(unit_RD)) / (len(unit_RD) * (len(unit_RD) - 1))
    return float(1 - cosines)


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
