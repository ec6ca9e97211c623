"""The charts of attention profiles and shifts: drawn from what the commands write, every series there, nothing of a model's text."""

import xml.etree.ElementTree as ElementTree

import pytest

from manners.report.charts import NARROW, WIDE
from manners.report.profile_charts import attention_charts, shift_charts


def interval(value: float) -> dict:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def attention_results(control: bool = False) -> dict:
    curve = [{"distance": float(d), "attention": 0.1 / d} for d in (1, 10, 100)]
    layers = [{"layer": layer, "gamma": 0.9 + layer / 10} for layer in range(3)]
    layers[1]["gamma"] = None
    who = ("base", "model", "control") if control else ("base", "model")
    held = {"models": {name: {"profile": curve, "layers": layers} for name in who}}
    held["difference"] = {"layers": [{"layer": layer, "gamma": interval(0.01 * layer)} for layer in range(3)]}
    held["equivalence"] = {"margin": 0.02, "verdict": "not told"}
    return {"details": {"sets": {"text": held, "random": held}}}


def shift_results() -> dict:
    bins = [{"from": 0, "to": 0, "kl": interval(2.0)}, {"from": 1, "to": 1, "kl": interval(1.0)}, {"from": 2, "to": 3, "kl": interval(0.2)}]
    shares = [
        {"name": name, "set": set_, "value": value}
        for set_ in ("sampled", "reference")
        for name, value in (("unshifted", 0.8), ("marginal", 0.15), ("shifted", 0.05))
    ]
    modules = [{"layer": n, "module": m, "relative": 0.01 * n} for n in range(3) for m in ("self_attn.q_proj", "mlp.up_proj")]
    update = {"layers": [{"layer": n, "relative": 0.01 * n} for n in range(3)], "modules": modules}
    tokens = [{"token": 1, "text": "<script>"}]
    sets = {"sampled": {"positions": bins, "tokens": tokens}, "reference": {"positions": bins, "tokens": []}}
    return {"results": shares, "details": {"sets": sets, "update": update}}


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_chart_is_drawn(width):
    found = attention_charts(attention_results(control=True), width) | shift_charts(shift_results(), width)
    sets = [f"{kind}/{name}" for name in ("text", "random") for kind in ("decay", "layers", "change")]
    assert list(found) == [*sets, "positions", "choices", "update", "modules"]
    for name, drawing in found.items():
        assert drawing.startswith("<svg role=") and "<script" not in drawing, name
        assert ElementTree.fromstring(drawing).tag.endswith("svg")


def test_the_series_are_named():
    found = attention_charts(attention_results(control=True), WIDE)
    assert all(word in found["decay/text"] for word in ("before", "after", "plain text", "distance in tokens"))
    shifts = shift_charts(shift_results(), WIDE)
    assert all(word in shifts["choices"] for word in ("unshifted", "marginal", "shifted", "reference"))
    assert "mlp.up_proj" in shifts["modules"] and "token of the answer" in shifts["positions"]


def test_what_is_not_there_is_not_drawn():
    alone = {"models": {"model": {"profile": [{"distance": 1.0, "attention": 0.1}], "layers": [{"layer": 0, "gamma": 1.0}]}}}
    assert list(attention_charts({"details": {"sets": {"random": alone}}}, WIDE)) == ["decay/random", "layers/random"]
    curve = [{"distance": 10, "attention": 0.1}, {"distance": 20, "attention": 0.05}]
    last = {"protocol": "tafagent", "sets": {"random": {"models": {"model": {"curve": curve}}}}}
    assert list(attention_charts({"details": last}, WIDE)) == ["decay/random"]
    assert attention_charts({}, WIDE) == {} and shift_charts({"results": [], "details": {"sets": {}}}, WIDE) == {}
