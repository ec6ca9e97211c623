"""Tree attention alone: what it is handed is honoured, ignored as harmless or refused; masks, heads and trees against slow versions."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from manners.core.errors import InputError
from manners.core.records import TokenGroup, TokenResponse
from manners.model import attention
from manners.model.attention import Shape, TreePattern, allowed, attend_span, attending
from manners.model.roles import Backbone
from manners.model.tree import TokenTree, TreeBuilder
from tests.families import tiny
from tests.oracles import float64_everywhere, plain_logps


class OddAttention(nn.Module):
    """Stands for a family's attention module."""

    layer_idx = 0


def rows(heads: int, tokens: int, width: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(1, heads, tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_node(tokens: int) -> TokenTree:
    builder = TreeBuilder()
    builder.node(list(range(tokens)))
    return builder.build()


def call(tokens: int = 5, mask: Tensor | None = None, module: nn.Module | None = None, tree: TokenTree | None = None, **given) -> Tensor:
    q, k, v = (rows(2, tokens, seed=s) for s in range(3))
    with attending(TreePattern(tree or one_node(tokens))):
        return attention._tree_attention(module or OddAttention(), q, k, v, mask, **given)[0]


# --- arguments ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["position_bias", "alibi", "head_mask", "cu_seq_lens_q", "block_table", "a_new_one"])
def test_an_unknown_argument_is_refused_by_name(name):
    with pytest.raises(InputError, match=rf"^OddAttention hands its attention {name}, which .*\.$"):
        call(**{name: torch.zeros(1)})
    call(**{name: None})  # not used by this layer


def test_all_that_is_unknown_is_named_at_once():
    with pytest.raises(InputError, match=r"alibi, position_bias, dropout=0\.1, attention_mask, is_causal=False"):
        call(mask=torch.zeros(1, 1, 5, 5), position_bias=1, alibi=2, dropout=0.1, is_causal=False)


@pytest.mark.parametrize(
    "mask", [torch.zeros(1, 1, 5, 5), torch.ones(1, 1, 5, 5, dtype=torch.bool), torch.ones(1, 5)], ids=["add", "bool", "pad"]
)
def test_a_dense_mask_is_refused(mask):
    with pytest.raises(InputError, match="OddAttention hands its attention attention_mask"):
        call(mask=mask)


def test_dropout_is_refused():
    with pytest.raises(InputError, match=r"dropout=0\.1"):
        call(dropout=0.1)
    call(dropout=0.0)


def test_attention_that_is_not_causal_is_refused():
    with pytest.raises(InputError, match="is_causal=False"):
        call(is_causal=False)
    bidirectional = OddAttention()
    bidirectional.is_causal = False
    with pytest.raises(InputError, match="is_causal=False"):
        call(module=bidirectional)
    call(is_causal=True)


def test_harmless_arguments_change_nothing():
    given = {name: (torch.arange(5) if "position" in name else True) for name in attention.HARMLESS}
    assert torch.equal(call(**given), call())


def test_what_is_honoured_changes_the_result():
    plain = call()
    for given in ({"scaling": 1.0}, {"sliding_window": 2}, {"softcap": 0.5}, {"s_aux": torch.ones(2)}):
        assert not torch.allclose(call(**given), plain), given
    assert torch.equal(call(scaling=4**-0.5), plain)


def test_outside_attending_is_a_clear_error():
    q = rows(2, 5)
    with pytest.raises(RuntimeError, match=r"outside `attending"):
        attention._tree_attention(OddAttention(), q, q, q, None)
    model = tiny("llama")
    Backbone(model)
    with pytest.raises(RuntimeError, match=r"outside `attending"):
        model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=False)


def test_a_row_of_another_length_than_the_tree_is_an_error():
    with pytest.raises(RuntimeError, match="a row of 5 tokens under a tree of 4"):
        call(tree=one_node(4))


def test_a_batch_of_two_is_an_error():
    q = rows(2, 5).expand(2, -1, -1, -1)
    with attending(TreePattern(one_node(5))), pytest.raises(RuntimeError, match="one row, not 2"):
        attention._tree_attention(OddAttention(), q, q, q, None)


def test_the_pattern_is_put_back_after_an_error_and_nests():
    outer, inner = TreePattern(one_node(2)), TreePattern(one_node(3))
    with attending(outer):
        with pytest.raises(ZeroDivisionError), attending(inner):
            assert attention.current_pattern() is inner
            _ = 1 / 0
        assert attention.current_pattern() is outer
    assert attention.current_pattern() is None


def test_outputs_may_be_viewed_as_the_librarys_own_may():
    """AFMoE and JetMoE call `view` on what attention returns."""
    assert call().is_contiguous()
    assert call(tokens=len(fork().tokens_T), tree=fork()).is_contiguous()


# --- masks, heads, caps and sinks against slow versions -----------------------------------------------------------------------------


def fork() -> TokenTree:
    """A prompt with two responses, one of which goes on twice, and a second root."""
    builder = TreeBuilder()
    root = builder.node([3, 4, 5, 6])
    left = builder.node([7, 8, 9], root)
    builder.node([10, 11], root)
    builder.node([12, 13, 14, 15], left)
    builder.node([16], left)
    builder.node([17, 18])
    return builder.build()


def visible(tree: TokenTree, query: int, key: int, window: int | None) -> bool:
    """Token by token, by walking up from the query's node."""
    node = next(i for i, n in enumerate(tree.nodes) if n.start <= query < n.end)
    ancestors = set()
    while node >= 0:
        ancestors.add(node)
        node = tree.nodes[node].parent
    if not any(tree.nodes[a].start <= key < tree.nodes[a].end for a in ancestors) or key > query:
        return False
    return window is None or int(tree.positions_T[query] - tree.positions_T[key]) < window


def slow(q: Tensor, k: Tensor, v: Tensor, sees: Callable[[int, int], bool], shape: Shape) -> Tensor:
    """Attention written from its formula, one head and one query at a time."""
    out = torch.zeros(q.shape[1], q.shape[2], v.shape[3], dtype=torch.float64)
    for h in range(q.shape[1]):
        kv = h * k.shape[1] // q.shape[1]
        for t in range(q.shape[2]):
            keys = [s for s in range(k.shape[2]) if sees(t, s)]
            scores = [float(q[0, h, t] @ k[0, kv, s]) * shape.scaling for s in keys]
            if shape.softcap is not None:
                scores = [float(torch.tanh(torch.tensor(s / shape.softcap, dtype=torch.float64))) * shape.softcap for s in scores]
            weights = torch.tensor(scores, dtype=torch.float64).exp()
            total = weights.sum() + (shape.sinks_H[h].exp() if shape.sinks_H is not None else 0.0)
            for weight, s in zip(weights, keys, strict=True):
                out[h, t] += weight / total * v[0, kv, s]
    return out[None]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 5, 100])
def test_the_window_mask_equals_a_loop(window):
    queries, keys = torch.tensor([4, 5, 6, 7]), torch.arange(8)
    mask = allowed(queries, keys, window)
    for i, q in enumerate(queries.tolist()):
        for j, k in enumerate(keys.tolist()):
            assert bool(mask[i, j]) == (k <= q and (window is None or k > q - window))


SHAPES = {
    "plain": Shape(0.5),
    "window": Shape(0.5, window=3),
    "window-of-one": Shape(0.5, window=1),
    "softcap": Shape(0.7, softcap=0.8),
    "sinks": Shape(0.5, sinks_H=torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)),
    "all": Shape(0.9, window=3, softcap=1.5, sinks_H=torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_tree_equals_attention_written_from_its_formula(shape, kv_heads):
    tree, asked = fork(), SHAPES[shape]
    n = len(tree.tokens_T)
    q, k, v = rows(4, n), rows(kv_heads, n, seed=1), rows(kv_heads, n, width=3 if asked.softcap else 4, seed=2)
    found = TreePattern(tree).attend(OddAttention(), q, k, v, asked)
    expected = slow(q, k, v, lambda t, s: visible(tree, t, s, asked.window), asked)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0], ids=["fused", "explicit"])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_heads_equal_repeated_heads(softcap, masked):
    q, k, v = rows(6, 5), rows(2, 5, seed=1), rows(2, 5, seed=2)
    mask = allowed(torch.arange(5), torch.arange(5), 2) if masked else None
    shape = Shape(0.5, softcap=softcap)
    repeated = attend_span(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), mask, shape)
    assert torch.allclose(attend_span(q, k, v, mask, shape), repeated, rtol=0, atol=1e-14)


def test_the_explicit_path_equals_the_fused_one_where_its_cap_is_out_of_reach():
    q, k, v = (rows(4, 7, seed=s) for s in range(3))
    capped = attend_span(q, k, v, None, Shape(0.5, softcap=1e7))
    sunk = attend_span(q, k, v, None, Shape(0.5, sinks_H=torch.full((4,), -1e9)))
    for found in (capped, sunk):
        assert torch.allclose(found, attend_span(q, k, v, None, Shape(0.5)), rtol=0, atol=1e-12)


# --- deeper trees through a whole model ---------------------------------------------------------------------------------------------


def unrolled(builder: TreeBuilder, leaves: list[list[int]], trained: set[int]) -> tuple[TokenTree, list[TokenGroup]]:
    """The builder's tree with a response for each chain of nodes, and each chain as a row of its own."""
    rows = []
    for chain in leaves:
        builder.response([(i, 0, builder._nodes[i].end - builder._nodes[i].start) for i in chain if i in trained], len(rows))
        ids, marks = [], []
        for i in chain:
            node = builder._nodes[i]
            ids += builder._tokens[node.start : node.end]
            marks += [i in trained] * (node.end - node.start)
        rows.append(TokenGroup([], [TokenResponse(ids, marks)]))
    return builder.build(), rows


@pytest.fixture(scope="module")
def pair():
    """A tiny Llama as the library runs it, and the same as a backbone."""
    plain = tiny("llama")
    backbone = Backbone(copy.deepcopy(plain))
    plain.set_attn_implementation("eager")
    return plain, backbone


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss", "gpt2"])
def test_a_dialogue_that_forks_at_each_turn_equals_its_branches(family):
    plain = tiny(family)
    backbone = Backbone(copy.deepcopy(plain))
    plain.set_attn_implementation("eager")
    builder = TreeBuilder()
    question = builder.node([5, 6, 7, 8, 9, 10])
    answers = [builder.node(ids, question) for ids in ([11, 12, 13], [14, 15, 16, 17])]
    follow = [builder.node(ids, answers[0]) for ids in ([18, 19], [20, 21, 22])]
    last = [builder.node([23, 24, 25], follow[0]), builder.node([26, 27], follow[0]), builder.node([28], follow[1])]
    leaves = [[question, answers[0], follow[0], leaf] for leaf in last[:2]]
    leaves += [[question, answers[0], follow[1], last[2]], [question, answers[1]]]
    tree, rows = unrolled(builder, leaves, {*answers, *last})
    with float64_everywhere(), torch.no_grad():
        assert torch.allclose(backbone.score(tree).logp_N, plain_logps(plain, rows), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(50))
def test_a_random_tree_equals_its_branches(pair, seed):
    plain, backbone = pair
    draw = random.Random(seed)
    builder, depth, children = TreeBuilder(), [], set()
    for index in range(draw.randint(1, 12)):
        parent = draw.choice([i for i in range(-1, index) if i < 0 or depth[i] < 3])
        builder.node([draw.randint(3, 60) for _ in range(draw.randint(1, 5))], parent)
        depth.append(depth[parent] + 1 if parent >= 0 else 0)
        children.add(parent)
    leaves = []
    for leaf in set(range(len(depth))) - children:
        chain = [leaf]
        while (above := builder._nodes[chain[0]].parent) >= 0:
            chain.insert(0, above)
        leaves.append(chain)
    trained = {i for i in range(len(depth)) if draw.random() < 0.7} | {leaves[0][-1]}
    tree, rows = unrolled(builder, leaves, trained)
    with float64_everywhere(), torch.no_grad():
        found = backbone.score(tree)
        if not tree.targets:  # a single token has no predictor
            return
        assert torch.allclose(found.logp_N, plain_logps(plain, rows), rtol=0, atol=1e-10)
        assert found.response_N.tolist() == sorted(found.response_N.tolist())
