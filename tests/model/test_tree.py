"""Packing: positions, predictors, spans, micro-batches."""

import pytest

from manners.core.records import TokenGroup, TokenResponse
from manners.model.tree import TreeBuilder, pack, partition, runs


def group(prompt: int, *responses: int) -> TokenGroup:
    return TokenGroup(list(range(prompt)), [TokenResponse(list(range(100, 100 + n)), [True] * n) for n in responses])


def test_a_pair_stores_its_prompt_once():
    tree = pack([group(3, 2, 4)])
    assert tree.tokens_T.tolist() == [0, 1, 2, 100, 101, 100, 101, 102, 103]
    assert tree.positions_T.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert [tuple(n) for n in tree.nodes] == [(0, 3, -1), (3, 5, 0), (5, 9, 0)]
    # the first token of each response is predicted by the last of the prompt
    assert tree.predictor_N.tolist() == [2, 3, 2, 5, 6, 7]
    assert tree.target_N.tolist() == [100, 101, 100, 101, 102, 103]
    assert tree.response_N.tolist() == [0, 0, 1, 1, 1, 1]
    assert tree.group_R.tolist() == [0, 0]


def test_spans_of_a_dialogue_are_targets_and_the_turns_between_are_not():
    dialogue = TokenGroup([1, 2], [TokenResponse([3, 4, 5, 6, 7], [True, True, False, False, True])])
    tree = pack([dialogue])
    assert tree.target_N.tolist() == [3, 4, 7]
    assert tree.predictor_N.tolist() == [1, 2, 5]


def test_the_first_token_of_plain_text_has_no_predictor():
    tree = pack([TokenGroup([], [TokenResponse([5, 6, 7], [True] * 3)])])
    assert tree.target_N.tolist() == [6, 7]
    assert tree.predictor_N.tolist() == [0, 1]


def test_a_builder_forks_at_each_turn_and_spans_follow_the_chain():
    builder = TreeBuilder()
    prompt = builder.node([1, 2])
    first = builder.node([3, 4], prompt)
    left, right = builder.node([5], first), builder.node([6, 7], first)
    builder.response([(first, 0, 2), (left, 0, 1)], 0)
    builder.response([(right, 1, 2)], 0)
    tree = builder.build()
    assert tree.positions_T.tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert tree.predictor_N.tolist() == [1, 2, 3, 5]
    assert [tuple(n) for n in tree.chain(right)] == [(0, 2, -1), (2, 4, 0), (5, 7, 1)]


def test_a_builder_refuses_what_makes_no_tree():
    builder = TreeBuilder()
    with pytest.raises(ValueError, match="at least one token"):
        builder.node([])
    with pytest.raises(ValueError, match="parent 0"):
        builder.node([1], 0)
    node = builder.node([1])
    with pytest.raises(ValueError, match="outside node"):
        builder.response([(node, 0, 2)], 0)
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([])


def test_runs():
    assert runs([]) == []
    assert runs([True, True]) == [(0, 2)]
    assert runs([False, True, False, True]) == [(1, 2), (3, 4)]


def test_best_fit_decreasing_as_worked_by_hand():
    """algorithms S4: lengths 3, 2, 4 with capacity 6 give bins {4, 2} and {3}."""
    groups = [group(1, 2), group(1, 1), group(1, 3)]
    assert [[g.tokens for g in micro] for micro in partition(groups, 6)] == [[2, 4], [3]]


def test_a_group_beyond_the_budget_stands_alone():
    groups = [group(5, 5), group(1, 1)]
    assert [len(m) for m in partition(groups, 4)] == [1, 1]
    assert [len(m) for m in partition(groups, 1000)] == [2]
