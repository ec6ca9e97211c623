"""Overlap with references: SQuAD's script, ROUGE-L and other languages, against values worked by hand."""

import pytest

from manners.feedback.overlap import exact_match, found_in, language_code, normalised, rouge_l, squad_exact, token_f1


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("The  Norman's army!", "normans army"),
        ("a an the", ""),
        ("An apple, a day.", "apple day"),
        ("theatre anthem", "theatre anthem"),
        ("U.S.-born", "usborn"),
        ("Café—Olé", "café—olé"),  # SQuAD's script knows ASCII punctuation only
        ("1,000\n\tmen", "1000 men"),
    ],
)
def test_normalisation_is_that_of_squads_script(text, bare):
    assert normalised(text) == bare


@pytest.mark.parametrize(
    ("said", "golds", "exact", "f1"),
    [
        ("Denver Broncos", ["The Denver Broncos"], 1, 1),
        ("in the year 1995 AD", ["1995"], 0, 0.4),  # 4 tokens said, 1 gold, 1 common
        ("x x y", ["x y y"], 0, 2 / 3),  # a token counts as often as both have it
        ("Santa Clara", ["Levi's Stadium", "Santa Clara, California"], 0, 0.8),  # the best gold
        ("red", ["blue"], 0, 0),
        ("", ["blue"], 0, 0),
        ("", [], 1, 1),  # no answer, and none given
        ("blue", [], 0, 0),
        ("the", ["a"], 1, 1),  # nothing is left of either: SQuAD 2's rule
    ],
)
def test_squad_by_hand(said, golds, exact, f1):
    assert squad_exact(said, golds) == exact
    assert token_f1(said, golds) == pytest.approx(f1)


def test_articles_count_in_exact_match_and_not_in_squads():
    assert exact_match("the cat", ["Cat."]) == 0 == exact_match("", ["cat"])
    assert squad_exact("the cat", ["Cat."]) == 1
    assert exact_match(" Yes. ", ["no", "yes"]) == 1


def test_rouge_l_has_its_worked_values():
    assert rouge_l("the cat sat on the mat", ["the cat is on the mat"]) == pytest.approx(0.8333333333)
    assert rouge_l("the cat sat", ["the cat is on the mat"]) == pytest.approx(0.4444444444)
    assert rouge_l("the cat sat", ["nothing", "the cat is on the mat"]) == pytest.approx(0.4444444444)
    assert rouge_l("", ["the cat"]) == rouge_l("?!", ["the cat"]) == rouge_l("cat", []) == 0
    assert rouge_l("running dogs", ["run dog"]) == 1 > rouge_l("running dogs", ["run dog"], "de")


def test_other_languages_have_their_own_words():
    assert normalised("Das ist der „Bär“!", "de") == "das ist der bär"
    assert token_f1("die Brücke", ["Brücke"], "de") == pytest.approx(2 / 3)  # its article is a word
    assert rouge_l("schöne Häuser", ["schöne Häuser"], "de") == 1 and rouge_l("schöne Häuser", ["hässliche Häuser"], "de") == 0.5
    assert normalised("我喜欢北京。", "zh") == "我 喜 欢 北 京"
    assert token_f1("我喜欢北京", ["我喜欢上海"], "zh") == rouge_l("我喜欢北京", ["我喜欢上海"], "zh") == pytest.approx(0.6)
    assert squad_exact("北京", ["北京。"], "zh") == 1 and token_f1("東京タワー", ["東京"], "ja") == pytest.approx(2 * 2 / 7)
    assert [language_code(name) for name in ("English", "EN", "zh-CN", "Japanese", "Xhosa")] == ["en", "en", "zh", "ja", "xhosa"]


def test_gold_spans_are_looked_for_where_they_should_be():
    context = "Denver won in Denver."
    assert found_in(context, [("Denver", 0), ("Denver", 14), ("won", None)]) == (["Denver", "Denver", "won"], 0, 0)
    assert found_in(context, [("Denver", 3), ("denver", 0), ("Paris", None)]) == (["Denver"], 1, 2)
