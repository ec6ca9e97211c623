"""The weights that are watched are those of the library's eager attention, and the model computes what it computes without a watcher."""

import pytest
import torch

from manners.model.attention import Shape, allowed, attend_span
from manners.model.roles import BASE, Backbone, Lora
from manners.model.weights import attention_weights, watch
from tests.families import tiny
from tests.oracles import float64_everywhere
from tests.tiny import tiny_llama

IDS = [5, 9, 40, 12, 33, 7, 21, 50, 18, 3, 11, 29, 6]


def watched(backbone: Backbone, role: str = BASE, **given) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Whole weights (H, T, T) of each layer, and the last hidden states."""
    layers: dict[int, list[torch.Tensor]] = {}

    def see(layer, weights, _window):
        layers.setdefault(layer, []).append(torch.nn.functional.pad(weights, (0, len(IDS) - weights.shape[-1])))

    hidden = watch(backbone, role, IDS, see, **given)
    return [torch.cat(parts, 1) for _, parts in sorted(layers.items())], hidden


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "gpt-oss", "qwen3"])
@pytest.mark.parametrize("rows", [4, 256])
def test_weights_equal_those_of_eager_attention(family, rows):
    model = tiny(family).double()
    with float64_everywhere(), torch.no_grad():
        model.set_attn_implementation("eager")
        plain = model(input_ids=torch.tensor([IDS]), use_cache=False, output_attentions=True, output_hidden_states=True)
        weights, hidden = watched(Backbone(model), rows=rows)
    assert len(weights) == len(plain.attentions)
    for ours, theirs in zip(weights, plain.attentions, strict=True):
        assert ours.shape == theirs[0].shape and torch.allclose(ours, theirs[0], atol=1e-9)
    assert torch.allclose(hidden, plain.hidden_states[-1][0], atol=1e-9)


def test_the_last_row_alone_is_the_last_of_all():
    backbone = Backbone(tiny_llama().double())
    with float64_everywhere():
        every, hidden = watched(backbone)
        last, same = watched(backbone, last_only=True)
    assert all(torch.allclose(a[:, -1:], b, atol=1e-12) for a, b in zip(every, last, strict=True))
    assert torch.allclose(hidden, same, atol=1e-9)


def test_the_windows_are_told():
    seen = []
    watch(Backbone(tiny("gemma2")), BASE, IDS, lambda layer, weights, window: seen.append((layer, window)))
    assert seen == [(0, 5), (1, None)]


@pytest.mark.parametrize("extra", [{"softcap": 2.0}, {"sinks_H": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)}, {"window": 3}])
def test_weights_make_the_output_of_tree_attention(extra):
    draw = lambda heads, seed: torch.randn(1, heads, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    query, key, value, shape = draw(4, 0), draw(2, 1), draw(2, 2), Shape(0.5, **extra)
    mask = allowed(torch.arange(9), torch.arange(9), shape.window)
    weights = attention_weights(query, key, mask, shape)
    assert torch.allclose(weights @ value[0].repeat_interleave(2, 0), attend_span(query, key, value, mask, shape)[0], atol=1e-12)


def test_an_adapter_is_seen_as_the_merged_model_is():
    backbone = Backbone(tiny_llama().double())
    backbone.add_adapter("policy", Lora(rank=4))
    with torch.no_grad():
        for name, parameter in backbone.trainable("policy").items():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
    merged = tiny_llama().double()
    modules = dict(backbone.model.named_modules())
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            layer = modules.get(name.removesuffix(".weight"))
            if hasattr(layer, "get_delta_weight"):
                parameter += layer.get_delta_weight("policy")
    with float64_everywhere():
        before, adapted, whole = watched(backbone)[0], watched(backbone, "policy")[0], watched(Backbone(merged))[0]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(adapted, whole, strict=True))
    assert not torch.allclose(adapted[0], before[0], atol=1e-3)
