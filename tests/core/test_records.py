"""Records: what identifies a prompt, and what a group counts."""

import pytest

from manners.core.records import Group, Message, Prompt, Response, TokenGroup, TokenResponse


def test_a_prompt_is_known_by_its_messages_alone():
    prompt = Prompt.user("Hello?", source="a.jsonl", cluster="3")
    assert prompt.id == Prompt((Message("user", "Hello?"),)).id and len(prompt.id) == 16
    assert prompt.source == "a.jsonl" and prompt.cluster == "3"
    others = [
        Prompt.user("Hello"),
        Prompt((Message("system", "Hello?"),)),
        Prompt((Message("user", "Hel"), Message("user", "lo?"))),
        Prompt(()),
    ]
    assert len({prompt.id, *(other.id for other in others)}) == 5


def test_a_prompt_id_is_the_same_in_every_process():
    assert Prompt.user("2 + 2 = ?").id == "15331e13dd5755f1"


def test_half_a_surrogate_pair_has_an_id():
    assert Prompt.user("\ud83d").id != Prompt.user("?").id


def test_the_text_of_a_response_is_its_last_turn():
    assert Response.answer("yes", finish_reason="stop").text == "yes"
    assert Response((Message("assistant", "a"), Message("user", "b"), Message("assistant", "c"))).text == "c"
    assert Response(()).text == ""


def test_records_do_not_share_their_scores():
    a, b = Response.answer("a"), Response.answer("b")
    a.scores["label"] = 1.0
    assert b.scores == {}


def test_tokens_and_targets_are_counted():
    first = TokenResponse([5, 6, 7], [True, False, True])
    group = TokenGroup([1, 2], [first, TokenResponse([8], [True])])
    assert (first.targets, group.tokens, group.targets) == (2, 6, 3)
    assert TokenGroup([], []).tokens == 0


def test_marks_must_be_as_many_as_tokens():
    with pytest.raises(ValueError, match="2 tokens but 1 marks"):
        TokenResponse([1, 2], [True])


def test_a_group_has_no_row_and_no_margin_unless_told():
    group = Group(Prompt.user("x"), [])
    assert (group.row, group.margin) == (-1, None)
