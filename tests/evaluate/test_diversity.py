"""Distinct n-grams, plain and adjusted for the amount of text, against worked values."""

import pytest

from manners.evaluate.diversity import adjusted, counts, distinct, expectation_adjusted

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
