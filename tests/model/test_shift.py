"""Divergence and ranks at each token against a slow version; the norm of the update against weights merged by hand."""

import pytest
import torch

from manners.core.errors import InputError
from manners.core.records import TokenGroup, TokenResponse
from manners.model import score
from manners.model.roles import BASE, Backbone, Lora
from manners.model.shift import Speaker, shifts
from manners.model.tree import pack
from manners.model.update import updates
from tests.tiny import tiny_llama

GROUP = TokenGroup([7, 8, 9, 10], [TokenResponse([20, 30, 40, 50, 60], [True] * 5), TokenResponse([70, 80, 90], [True, True, False])])


def adapted(**kind) -> Backbone:
    """A backbone with a role `policy` whose adapter is far from nothing, and a role `other`."""
    backbone = Backbone(tiny_llama(width=32).double())
    for name, seed in (("policy", 1), ("other", 2)):
        backbone.add_adapter(name, Lora(rank=4, **kind))
        with torch.no_grad():
            for place, parameter in enumerate(backbone.trainable(name).values()):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * seed + place), dtype=torch.float64)
                parameter.add_(0.1 * noise)
    return backbone


def slow(backbone: Backbone, role: str) -> torch.Tensor:
    found = []
    backbone.model.set_attn_implementation("eager")
    with backbone.role(role), torch.no_grad():
        for response in GROUP.responses:
            ids = GROUP.prompt_ids + response.token_ids
            logits = backbone.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            found += [logits[3 + i] for i, trained in enumerate(response.trained) if trained]
    backbone.model.set_attn_implementation("manners_tree")
    return torch.stack(found)


@pytest.mark.parametrize("chunk", [2**25, 3000])
def test_divergence_and_rank_against_whole_logits(chunk, monkeypatch):
    monkeypatch.setattr(score, "CHUNK_BYTES", chunk)
    backbone = adapted()
    found = shifts(Speaker(backbone, "policy"), Speaker(backbone, BASE), pack([GROUP]))
    ours, theirs = slow(backbone, "policy"), slow(backbone, BASE)
    p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
    assert torch.allclose(found.kl_N, (p.exp() * (p - q)).sum(-1), atol=1e-6) and float(found.kl_N.mean()) > 1e-3
    assert torch.equal(found.top_N, ours.argmax(-1))
    order = theirs.argsort(-1, descending=True)
    assert found.rank_N.tolist() == [1 + order[n].tolist().index(int(found.top_N[n])) for n in range(7)]


def test_a_model_against_itself_and_against_a_copy():
    backbone, copy = adapted(), adapted()
    tree = pack([GROUP])
    for ours, theirs in (
        (Speaker(backbone, "policy"), Speaker(backbone, "policy")),
        (Speaker(backbone, "policy"), Speaker(copy, "policy")),
    ):
        found = shifts(ours, theirs, tree)
        assert found.kl_N.tolist() == [0.0] * 7 and found.rank_N.tolist() == [1] * 7
        assert {u.change for u in updates(ours, theirs) or ()} == {0.0}


def test_output_layers_of_two_widths_are_refused():
    wide = tiny_llama(width=32)
    wide.resize_token_embeddings(300)
    with pytest.raises(InputError, match="for 300 and 261 tokens"):
        shifts(Speaker(Backbone(wide), BASE), Speaker(Backbone(tiny_llama(width=32)), BASE), pack([GROUP]))


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_the_update_of_an_adapter_is_that_of_the_merged_model(kind):
    backbone, plain = adapted(**kind), Backbone(tiny_llama(width=32).double())
    modules = dict(backbone.model.named_modules())
    merged = tiny_llama(width=32).double()
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            layer = modules.get(name.removesuffix(".weight"))
            if hasattr(layer, "get_delta_weight"):
                moved = parameter + layer.get_delta_weight("policy")
                if kind.get("use_dora"):
                    moved *= (layer.lora_magnitude_vector["policy"].weight / moved.norm(dim=1))[:, None]
                parameter.copy_(moved)
    inside = updates(Speaker(backbone, "policy"), Speaker(backbone, BASE)) or []
    across = updates(Speaker(backbone, "policy"), Speaker(plain, BASE)) or []
    whole = updates(Speaker(Backbone(merged), BASE), Speaker(plain, BASE)) or []
    assert len(inside) == len(across) == len(whole) == len(list(merged.parameters()))
    for a, b, c in zip(inside, across, whole, strict=True):
        assert (a.name, a.layer, a.module) == (b.name, b.layer, b.module) == (c.name, c.layer, c.module)
        assert a.change == pytest.approx(c.change, rel=1e-9, abs=1e-9) == b.change and a.weight == pytest.approx(c.weight)
    first = inside[1]
    assert (first.name, first.layer, first.module) == ("model.layers.0.self_attn.q_proj.weight", 0, "self_attn.q_proj")
    assert first.relative is not None and first.relative > 0.01 and inside[0].relative == 0


def test_the_update_between_two_adapters_is_their_difference():
    backbone = adapted()
    found = {u.name: u.change for u in updates(Speaker(backbone, "policy"), Speaker(backbone, "other")) or ()}
    layer = dict(backbone.model.named_modules())["model.layers.1.mlp.up_proj"]
    expected = (layer.get_delta_weight("policy") - layer.get_delta_weight("other")).norm().item()
    assert found["model.layers.1.mlp.up_proj.weight"] == pytest.approx(expected)


def test_another_architecture_has_no_update():
    assert updates(Speaker(Backbone(tiny_llama(width=32)), BASE), Speaker(Backbone(tiny_llama(width=32, layers=3)), BASE)) is None
