"""How far fine-tuning moved each weight: the Frobenius norm of the change, and relative to that of the weight it began from.

Of adapters on one backbone the change is formed from the adapter alone (LoRA: s B A; DoRA: its whole effect), so that nothing is lost to
rounding; of two models it is the difference of their weights.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor

from manners.model.roles import Backbone
from manners.model.shift import Speaker

_NUMBERED = re.compile(r"^(?:.*?\.)?(\d+)\.(.+)$")


class Update(NamedTuple):
    """The change of one weight. `layer` is None for what stands outside the layers; `module` is the name within the layer."""

    name: str
    layer: int | None
    module: str
    change: float
    weight: float

    @property
    def relative(self) -> float | None:
        return self.change / self.weight if self.weight else None


@torch.no_grad()
def updates(ours: Speaker, theirs: Speaker) -> list[Update] | None:
    """What `ours` changed against `theirs`, weight by weight in the model's order; None if the two are not of one architecture."""
    before = dict(_weights(theirs.backbone))
    if ours.backbone is theirs.backbone:
        changes = ((name, _added(module, weight, ours), _added(module, weight, theirs)) for name, (weight, module) in before.items())
        moved = {name: _difference(a, b) for name, a, b in changes}
    else:
        after = dict(_weights(ours.backbone))
        if {n: w.shape for n, (w, _) in after.items()} != {n: w.shape for n, (w, _) in before.items()}:
            return None
        moved = {name: _whole(*after[name], ours) - _whole(*before[name], theirs).to(after[name][0].device) for name in before}
    found = []
    for name, (weight, module) in before.items():
        change = moved[name]
        numbered = _NUMBERED.match(name.removesuffix(".weight"))
        layer, inner = (int(numbered[1]), numbered[2]) if numbered else (None, name.removesuffix(".weight"))
        size = 0.0 if change is None else _norm(change)
        found.append(Update(name, layer, inner, size, _norm(_whole(weight, module, theirs))))
    return found


def _weights(backbone: Backbone) -> Iterator[tuple[str, tuple[Tensor, Any]]]:
    """Each weight of the base by the name it had before an adapter wrapped its layer, with the adapted layer that holds it, if any."""
    modules = dict(backbone.model.named_modules())
    for name, parameter in backbone.model.named_parameters():
        if ".lora_" not in name:
            holder = modules.get(name.removesuffix(".base_layer.weight")) if name.endswith(".base_layer.weight") else None
            yield name.replace(".base_layer.", "."), (parameter.detach(), holder if isinstance(holder, LoraLayer) else None)


def _added(module: Any, weight: Tensor, speaker: Speaker) -> Tensor | None:
    """What the speaker's adapter adds to a weight; None if nothing."""
    adapter = speaker.backbone.adapter_of(speaker.role)
    if module is None or adapter is None or adapter not in module.scaling:
        return None
    delta = module.get_delta_weight(adapter)
    magnitudes = getattr(module, "lora_magnitude_vector", {})
    if adapter in magnitudes:
        turned = (weight + delta).T if module.fan_in_fan_out else weight + delta
        scaled = turned * (magnitudes[adapter].weight / torch.linalg.norm(turned, dim=1))[:, None]
        return (scaled.T if module.fan_in_fan_out else scaled) - weight
    return delta


def _whole(weight: Tensor, module: Any, speaker: Speaker) -> Tensor:
    """A weight as the speaker computes with it."""
    added = _added(module, weight, speaker)
    return weight if added is None else weight + added


def _difference(ours: Tensor | None, theirs: Tensor | None) -> Tensor | None:
    if theirs is None:
        return ours
    return -theirs if ours is None else ours - theirs


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
