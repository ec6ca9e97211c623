"""Distinct n-grams, self-BLEU, entropy and distance, against worked values and NLTK."""

import math

import numpy as np
import pytest

from manners.evaluate.diversity import adjusted, counts, distinct, embedding_distance, entropy, expectation_adjusted, self_bleu

THREE = ["i am going", "i am going", "lets go i i"]


@pytest.mark.parametrize(("unique", "total", "value"), [(6, 10, 0.6000537258), (600, 5000, 0.6040599546)])
def test_adjusted_has_its_worked_values(unique, total, value):
    vocabulary = 50_257 if total == 10 else 1000
    assert adjusted(unique, total, vocabulary) == pytest.approx(value, rel=1e-9)


def test_a_small_set_by_hand():
    assert [counts(THREE, n) for n in (1, 2, 3, 4, 5)] == [(5, 10), (5, 7), (3, 4), (1, 1), (0, 0)]
    assert distinct(THREE, 1) == 0.5 and distinct(THREE, 2) == pytest.approx(5 / 7) and distinct(THREE, 5) == 0
    assert expectation_adjusted(THREE) == pytest.approx(0.592879102, rel=1e-8)


def test_no_ngram_spans_two_answers():
    assert counts(["a b", "b a"], 2) == (2, 2)
    assert counts(["a b b a"], 2) == (3, 3)


def test_without_text_it_is_nought():
    assert distinct([], 1) == distinct(["", " "], 1) == expectation_adjusted([]) == 0


def test_adjustment_forgives_length():
    """The same share of distinct words is worth more where there was more text to repeat in."""
    assert adjusted(3000, 6000, 5000) > adjusted(300, 600, 5000)


SAID = [
    "the cat sat on the mat today",
    "the cat sat on the mat and slept",
    "a dog ran over the long bridge",
    "the cat sat on the mat today",
    "words that no other text has",
    "the the the the cat cat",
]


def test_self_bleu_is_nltks():
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    split = [text.split() for text in SAID]
    known = [sentence_bleu(split[:i] + split[i + 1 :], own, smoothing_function=smooth) for i, own in enumerate(split)]
    assert self_bleu(SAID) == pytest.approx(sum(known) / len(known), rel=1e-12)
    for i in range(len(SAID)):
        for j in range(i):
            both = [sentence_bleu([split[b]], split[a], smoothing_function=smooth) for a, b in ((i, j), (j, i))]
            assert self_bleu([SAID[i], SAID[j]]) == pytest.approx(sum(both) / 2, rel=1e-12)


def test_self_bleu_at_its_ends():
    assert self_bleu(["yes", "yes"]) == self_bleu(["", ""]) == 1 and self_bleu(["yes", "no"]) == self_bleu(["", "no"]) == 0
    assert self_bleu(["one two three four five"] * 3) == pytest.approx(1)
    with pytest.raises(ValueError):
        self_bleu(["alone"])


def test_entropy_of_words():
    assert entropy(["a b", "c d"]) == pytest.approx(math.log(4))
    assert entropy(["a a", "a b"]) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert entropy(["a a"]) == entropy([]) == entropy([""]) == 0


def test_distance_of_vectors_has_its_worked_value():
    assert embedding_distance(np.array([[1.0, 0], [1, 1], [0, 1]])) == pytest.approx(0.5285954792)
    assert embedding_distance(np.array([[1.0, 2], [2, 4]])) == pytest.approx(0)
    for bad in ([[1.0, 2]], [[1.0, 2], [0, 0]]):
        with pytest.raises(ValueError):
            embedding_distance(np.array(bad))
