"""`manners eval attention` on tiny models: self-comparison is nought, planted models are seen, controls and the equivalence test judge."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from manners.core.files import read_json, read_jsonl
from manners.evaluate import profiles as profiles_of
from manners.evaluate.attention import AttentionSettings, attention
from manners.evaluate.profiles import BARELY, MOVES, OPEN, Profiles, difference, equivalence, halves
from manners.evaluate.tafagent import summarise
from manners.model.roles import BASE, Backbone, Lora
from manners.model.shift import Speaker
from tests.conftest import TEMPLATE
from tests.tiny import byte_tokenizer, tiny_folder, tiny_llama

LENGTH = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread_here():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    words = ["stone", "river", "so", "the", "a", "green", "walks", "and", "light", "old"]
    rows = [{"text": " ".join(generator.choice(words, 40))} for _ in range(6)] + [{"text": "Too short."}]
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the tiny model that changes layer 1 alone, and much."""
    from transformers import AutoModelForCausalLM

    backbone = Backbone(AutoModelForCausalLM.from_pretrained(str(tiny_model)))
    backbone.add_adapter("policy", Lora(rank=4))
    with torch.no_grad():
        for name, parameter in backbone.trainable("policy").items():
            if ".layers.1." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.5)
    folder = tmp_path_factory.mktemp("adapter") / "policy"
    backbone.save_adapter("policy", folder, str(tiny_model))
    byte_tokenizer(TEMPLATE).save_pretrained(str(folder))
    return folder


def values(report: dict, set_: str) -> dict:
    return {r["name"]: r for r in report["results"] if r.get("set") == set_}


def test_a_model_against_itself_moves_nothing(tiny_model, texts, tmp_path):
    settings = {"base": str(tiny_model), "model": str(tiny_model), "data": [str(texts)], "rows": 6, "length": LENGTH, "chat": True}
    report = attention(AttentionSettings(out=str(tmp_path / "out"), **settings))
    assert list(report["details"]["sets"]) == ["text", "chat", "random"]
    for name, held in report["details"]["sets"].items():
        found = values(report, name)
        for measure in ("gamma", "entropy", "sink", "sink_4", "mean_distance"):
            gap = found[f"delta_{measure}"]
            assert (gap["value"], gap["low"], gap["high"]) == (0, 0, 0), (name, measure)
        assert found["gamma"]["value"] == found["base_gamma"]["value"] and found["gamma"]["low"] <= found["gamma"]["value"]
        assert found["delta_js"]["value"] == 0 and held["equivalence"]["verdict"] == BARELY
        assert held["halves"]["spread"] > 0 and held["sequences"] == 6 and held["d_min"] == 5
        assert len(held["models"]["base"]["layers"]) == 2 and np.shape(held["models"]["base"]["heads"]["gamma"]) == (2, 4)
    rows = read_jsonl(tmp_path / "out" / "rows.jsonl")
    assert len(rows) == 18 and {r["tokens"] for r in rows} == {LENGTH} and rows[0]["values"]["delta_entropy"] == 0
    assert any("6 sequences from 6 texts; 1 texts are shorter" in note for note in report["notes"])
    assert read_json(tmp_path / "out" / "results.json") == json.loads(json.dumps(report))
    assert "NaN" not in (tmp_path / "out" / "results.json").read_text()


def test_an_adapter_changes_its_own_layer_and_equals_the_merged_model(tiny_model, adapter, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merged = tmp_path / "merged"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(tiny_model)), str(adapter))
    model.merge_and_unload().save_pretrained(str(merged))
    byte_tokenizer(TEMPLATE).save_pretrained(str(merged))
    made = {}
    for name, model_name in (("adapter", adapter), ("merged", merged)):
        made[name] = attention(
            AttentionSettings(base=str(tiny_model), model=str(model_name), rows=5, length=LENGTH, out=str(tmp_path / f"out-{name}"))
        )
    one, two = (made[name]["details"]["sets"]["random"]["difference"] for name in ("adapter", "merged"))
    assert one["entropy"]["value"] == pytest.approx(two["entropy"]["value"], abs=1e-5) and abs(one["entropy"]["value"]) > 1e-3
    assert one["gamma"]["value"] == pytest.approx(two["gamma"]["value"], abs=1e-4)
    first, second = one["layers"]
    assert (first["entropy"]["value"], first["gamma"]["value"], first["js"]) == (0, 0, 0)
    assert abs(second["entropy"]["value"]) > 1e-3 and second["js"] > 0


def test_a_control_is_measured_beside(tiny_model, adapter, tmp_path):
    report = attention(
        AttentionSettings(
            base=str(tiny_model), model=str(tiny_model), control=str(adapter), rows=4, length=LENGTH, out=str(tmp_path / "out")
        )
    )
    found = values(report, "random")
    assert found["delta_gamma"]["value"] == 0 and found["control_delta_gamma"]["value"] != 0
    assert "plain text moved gamma" in " ".join(report["notes"])


def uniform() -> Backbone:
    """Queries of nought: every key of a row gets the same weight."""
    model = tiny_llama(width=32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    return Backbone(model)


def test_a_model_whose_attention_is_uniform():
    found = Profiles(LENGTH, drop=0)
    for seed in range(4):
        found.add(Speaker(uniform(), BASE), torch.randint(5, 200, (LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist())
    row = found.row(0)
    assert row["entropy"] == pytest.approx(1, abs=1e-6) and row["mean_distance"] == pytest.approx((LENGTH - 1) / 4, abs=1e-5)
    assert row["sink"] == pytest.approx(np.mean([1 / (i + 1) for i in range(1, LENGTH)]), abs=1e-6)
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, LENGTH + 1))])
    expected = [(harmonic[-1] - harmonic[d]) / (LENGTH - d) for d in range(LENGTH)]
    assert found.kept_LHD[1, 3] / 4 / found.count_D == pytest.approx(expected, abs=1e-7)
    assert found.describe()["gamma_last_row"] == pytest.approx(0, abs=1e-6)


def planted(gamma: float, noise: float, sequences: int = 30, seed: int = 0) -> Profiles:
    """Profiles of one layer and head that decay by gamma, each sequence a little otherwise."""
    found, generator = Profiles(256), np.random.default_rng(seed)
    d = np.maximum(np.arange(256), 1)
    found.windows = [None]
    found.kept_LHD, found.measures_XLH = np.zeros((1, 1, 256)), np.zeros((4, 1, 1))
    for _ in range(sequences):
        mine = (found.count_D * d ** -(gamma + noise * generator.normal()))[None]
        found._binned.append(profiles_of.binned(mine, found.count_D, found.bins))
        found._measures.append(np.zeros((4, 1)))
        found._last.append(mine[0])
        found.kept_LHD = found.kept_LHD + mine
    return found


@pytest.mark.parametrize(
    "shift, noise, verdict", [(0.0, 0.01, BARELY), (0.008, 0.01, BARELY), (0.1, 0.01, MOVES), (-0.1, 0.01, MOVES), (0.02, 0.05, OPEN)]
)
def test_the_equivalence_test_judges_a_planted_shift(shift, noise, verdict):
    gap = difference(planted(0.9, noise), planted(0.9 + shift, noise, seed=1))["gamma"]
    assert gap["low"] < gap["value"] < gap["high"] and abs(gap["value"] - shift) < 0.02
    assert equivalence(gap)["verdict"] == verdict


def test_halves_are_as_wide_as_the_noise():
    quiet, loud = halves(planted(0.9, 0.01)), halves(planted(0.9, 0.1))
    assert 0 < quiet["spread"] < 0.02 and loud["spread"] > 5 * quiet["spread"] and loud["mean"] < loud["spread"]
    assert equivalence({"value": 0.01, "low": 0.005, "high": 0.015}, spread=loud["spread"])["within_halves"]
    assert halves(planted(0.9, 0.01, sequences=3))["spread"] is None
    assert equivalence({"value": 0.0, "low": None, "high": None})["verdict"] == OPEN


def test_a_bad_fit_is_flagged():
    found = planted(0.9, 0.01)
    waves = np.tile([1.0, 60.0], len(found.bins))[: len(found.bins)]
    found._binned = [b * waves for b in found._binned]
    assert not found.describe()["reliable"] and planted(0.9, 0.01).describe()["reliable"]


def test_a_window_ends_the_fit_of_its_layer():
    from tests.families import tiny

    found = Profiles(64, d_min=1)
    found.add(Speaker(Backbone(tiny("gemma2")), BASE), [int(i) for i in np.random.default_rng(0).integers(3, 60, 64)])
    assert found.windows == [5, None] and found.whole.tolist() == [False, True]
    inside = [end <= 5 for _, end in found.bins]
    assert ((found.weight_LK[0] > 0) == inside).all() and (found.weight_LK[1] > 0).all()
    beyond = found.kept_LHD[0][:, 5:]
    assert (beyond == 0).all() and (found.kept_LHD[1][:, 5:60] > 0).all()


# --- tafagent's protocol --------------------------------------------------------------------------------------------------------------


def test_the_protocol_of_tafagent_on_planted_curves():
    d = (10, 50, 200, 1000)
    curve = np.array([0.1 * np.power(d, -0.8)] * 3)
    results, details = summarise(d, {"model": curve, "base": curve * [1, 1, 1, 2]}, 1)
    found = {r["name"]: r["value"] for r in results}
    assert found["gamma"] == pytest.approx(0.8) and found["gamma_long"] == pytest.approx(0.8)
    assert found["delta_gamma"] == pytest.approx(0.8 - found["base_gamma"]) and found["delta_gamma"] > 0
    assert [w["from"] for w in details["models"]["model"]["windows"]] == [10, 50]


def test_the_protocol_of_tafagent_on_text(tiny_model, texts, tmp_path):
    settings = AttentionSettings(
        model=str(tiny_model), base=str(tiny_model), protocol="tafagent", random=False, data=[str(texts)], distances=[5, 30, 35, 40],
        rows=3, out=str(tmp_path / "out"),
    )  # fmt: skip
    found = values(attention(settings), "text")
    assert found["delta_gamma"]["value"] == found["delta_gamma"]["high"] == 0 and found["gamma_long"]["n"] == 3
    row = read_jsonl(tmp_path / "out" / "rows.jsonl")[0]
    assert row["tokens"] == 90 and len(row["model"]) == 4 and row["model"] == row["base"]


def test_the_protocol_of_tafagent_by_command(manners, tmp_path):
    model = tiny_llama(width=16)
    model.resize_token_embeddings(1200)
    model.save_pretrained(str(tmp_path / "model"))
    byte_tokenizer().save_pretrained(str(tmp_path / "model"))
    out = tmp_path / "out"
    words = ["protocol=tafagent", "distances=5,10,20,30,40,50", "rows=3", f"out={out}"]
    assert manners("eval", "attention", f"model={tmp_path / 'model'}", *words).code == 0
    report = read_json(out / "results.json")
    found = {r["name"]: r for r in report["results"]}
    assert (
        report["details"]["length"] == 100
        and list(report["details"]["sets"]) == ["random"]
        and math.isfinite(found["gamma"]["value"])
        and found["gamma_long"]["n"] == 3
    )
    assert report["details"]["sets"]["random"]["pade"]["theta"] == 10000.0 and len(read_jsonl(out / "rows.jsonl")) == 3


# --- bad input ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (["protocol=tafagent"], "draws tokens from number 1,000 on, and the model has 261"),
        (["chat=true"], "chat=true puts texts into the chat template, and there are none"),
        (["random=false"], "random=false leaves nothing to measure on"),
        (["d_min=40", "length=64"], "d_min=40 leaves no room for a fit"),
        (["data={texts}", "length=400"], "0 of 7 texts have 400 tokens or more"),
        (["data={prompts}", "length=64"], "wants plain text"),
    ],
)
def test_bad_input_is_named(manners, tiny_model, texts, demonstrations, tmp_path, words, said):
    words = [word.format(texts=texts, prompts=demonstrations) for word in words]
    assert said in manners("eval", "attention", f"model={tiny_model}", *words, f"out={tmp_path / 'out'}").error


def test_another_tokenizer_and_what_only_answers_are_refused(manners, tiny_model, demonstrations, tmp_path):
    other = tiny_folder(tmp_path / "other")
    path = other / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(state))
    told = manners("eval", "attention", f"model={tiny_model}", f"base={other}", f"out={tmp_path / 'one'}").error
    assert "have different tokenizers (2 of 261 tokens differ" in told
    told = manners("eval", "attention", f"model={demonstrations}", f"out={tmp_path / 'two'}").error
    assert "only answers; eval attention looks inside" in told
    deeper = tiny_folder(tmp_path / "deeper", layers=3)
    told = manners("eval", "attention", f"model={tiny_model}", f"base={deeper}", "rows=2", "length=40", f"out={tmp_path / 'three'}").error
    assert "differ in their number of layers or heads" in told
