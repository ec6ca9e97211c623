"""Tree against plain, per family, in float64: log-probabilities to 1e-10, gradients to 1e-10 of the largest; and planted faults fail."""

import copy
from unittest.mock import patch

import pytest
import torch

from manners.core.records import TokenGroup, TokenResponse
from manners.model import attention
from manners.model.probe import probe
from manners.model.roles import Backbone
from manners.model.tree import TreeBuilder, pack
from tests.families import FAMILIES, tiny
from tests.oracles import float64_everywhere, plain_logps

SLIDING = [f for f, (_, special) in FAMILIES.items() if "sliding_window" in special]


def groups() -> list[TokenGroup]:
    """Prompts with two and one responses, a row without prompt, untrained tokens between spans; all longer than the windows."""
    draw = torch.Generator().manual_seed(1)
    ids = lambda n: torch.randint(3, 61, (n,), generator=draw).tolist()
    spans = [True] * 3 + [False] * 4 + [True] * 3
    return [
        TokenGroup(ids(9), [TokenResponse(ids(10), spans), TokenResponse(ids(7), [True] * 7)]),
        TokenGroup([], [TokenResponse(ids(11), [True] * 11)]),
        TokenGroup(ids(4), [TokenResponse(ids(8), [True] * 8)]),
    ]


def compare(family: str) -> tuple[float, float]:
    """Largest difference of log-probabilities, and of gradients relative to the largest gradient."""
    plain = tiny(family)
    model = copy.deepcopy(plain)
    plain.set_attn_implementation("eager")
    backbone = Backbone(model)
    backbone.train_base()
    weights = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with float64_everywhere():
        tree = pack(groups())
        logp_N = backbone.score(tree).logp_N
        expected_N = plain_logps(plain, groups())
        weights = weights[: len(expected_N)]
        (logp_N * weights).sum().backward()
        (expected_N * weights).sum().backward()
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
    largest = max(float(g.abs().max()) for _, g in pairs if g is not None)
    gap = max(float(((a if a is not None else torch.zeros_like(b)) - b).abs().max()) for a, b in pairs if b is not None)
    return float((logp_N - expected_N).abs().max()), gap / largest


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_plain(family):
    logp_gap, gradient_gap = compare(family)
    assert logp_gap < 1e-10
    assert gradient_gap < 1e-10


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_frozen_output_layer_gives_the_same_gradients(family):
    """The fused path (head frozen, gradient formed in the forward pass) against the recomputing one."""
    found = []
    for frozen in (True, False):
        backbone = Backbone(tiny(family))
        backbone.train_base()
        if frozen:
            backbone.model.get_output_embeddings().requires_grad_(False)
        with float64_everywhere():
            backbone.score(pack(groups()), temperature=0.7).logp_N.square().sum().backward()
        found.append(backbone.model.base_model.layers[0].mlp.up_proj.weight.grad)
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-10 * float(found[1].abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_leak_between_siblings_is_seen(family):
    """Where positions alone decide, a second response would attend to the first; plant that and parity must fail."""
    honest = attention.TokenTree.chain

    def leaky(tree, index):
        chain = honest(tree, index)
        node = tree.nodes[index]
        siblings = [n for n in tree.nodes[:index] if n.parent == node.parent and node.parent >= 0]
        return chain[:-1] + siblings + chain[-1:]

    with patch.object(attention.TokenTree, "chain", leaky):
        assert compare(family)[0] > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_position_is_seen(family):
    honest = TreeBuilder.node

    def shifted(self, token_ids, parent=-1):
        index = honest(self, token_ids, parent)
        if parent >= 0:
            node = self._nodes[index]
            self._positions[node.start : node.end] = [p + 1 for p in self._positions[node.start : node.end]]
        return index

    with patch.object(TreeBuilder, "node", shifted):
        assert compare(family)[0] > 1e-3


def drop(name):
    """Plant a fault: the attention forgets one of the arguments it was handed."""
    honest = attention.Shape.__init__

    def forgetful(self, scaling, window=None, softcap=None, sinks_H=None):
        given = {"window": window, "softcap": softcap, "sinks_H": sinks_H, name: None}
        honest(self, scaling, **given)

    return patch.object(attention.Shape, "__init__", forgetful)


@pytest.mark.parametrize("family", SLIDING)
def test_a_dropped_window_is_seen(family):
    with drop("window"):
        assert compare(family)[0] > 1e-3


def test_a_dropped_cap_is_seen():
    with drop("softcap"):
        assert compare("gemma2")[0] > 1e-3


def test_a_dropped_sink_is_seen():
    with drop("sinks_H"):
        assert compare("gpt-oss")[0] > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_accepts_every_family_here(family):
    assert probe(Backbone(tiny(family, dtype=torch.float32))) < 2e-3


def test_the_probe_refuses_a_leak_by_name():
    backbone = Backbone(tiny("llama", dtype=torch.float32))
    with (
        patch.object(attention, "allowed", lambda q, k, w: torch.ones(len(q), len(k), dtype=torch.bool)),
        pytest.raises(Exception, match="LlamaForCausalLM"),
    ):
        probe(backbone)
