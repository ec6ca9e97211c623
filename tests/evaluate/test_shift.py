"""`manners eval shift` on tiny models: nothing where nothing changed, a planted change where it was planted, figures by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from manners.core.files import read_json, read_jsonl
from manners.evaluate.shift import ShiftSettings, figures, most_shifted, positions, ratio, shift
from tests.conftest import TEMPLATE, write_rows
from tests.tiny import byte_tokenizer


@pytest.fixture(scope="module", autouse=True)
def one_thread_here():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"Say {word}.", "reference": f"{word}, as you wish." if i else ""} for i, word in enumerate(["yes", "no", "so"])]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts_test.jsonl", rows)


@pytest.fixture(scope="module")
def changed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one matrix of layer 1 doubled."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("changed") / "model"
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(2)
    model.save_pretrained(str(folder))
    byte_tokenizer(TEMPLATE).save_pretrained(str(folder))
    return folder


def by_name(report: dict) -> dict:
    return {(r.get("set", ""), r["name"]): r for r in report["results"]}


def test_a_model_against_itself_shifts_nothing(tiny_model, prompts, tmp_path):
    report = shift(
        ShiftSettings(
            base=str(tiny_model), model=str(tiny_model), prompts=[str(prompts)], samples=2, max_new_tokens=8, out=str(tmp_path / "out")
        )
    )
    found = by_name(report)
    for name in ("sampled", "reference"):
        assert found[name, "kl_token"]["value"] == found[name, "kl_answer"]["value"] == found[name, "top_changed"]["value"] == 0
        assert [found[name, kind]["value"] for kind in ("unshifted", "marginal", "shifted")] == [1, 0, 0]
    assert found["sampled", "kl_token"]["n"] == 3 and found["reference", "kl_token"]["n"] == 2
    assert report["details"]["update"]["norm"] == 0 and report["details"]["sets"]["sampled"]["tokens"] == []
    rows = read_jsonl(tmp_path / "out" / "rows.jsonl")
    assert [r["set"] for r in rows] == ["sampled"] * 6 + ["reference"] * 2
    assert all(len(r["kl"]) == len(r["rank"]) == r["tokens"] for r in rows) and rows[-1]["answer"] == "so, as you wish."


def test_a_planted_change_shows_at_its_layer_alone(tiny_model, changed, prompts, tmp_path):
    words = {"base": str(tiny_model), "model": str(changed), "prompts": [str(prompts)], "max_new_tokens": 8}
    report = shift(ShiftSettings(out=str(tmp_path / "out"), **words))
    update = report["details"]["update"]
    assert [layer["norm"] > 0 for layer in update["layers"]] == [False, True]
    assert [m["module"] for m in update["modules"] if m["norm"]] == ["mlp.up_proj"]
    assert next(m for m in update["modules"] if m["norm"])["relative"] == pytest.approx(1)
    assert all(other["norm"] == 0 for other in update["others"]) and "embed_tokens" in update["others"][0]["module"]
    found = by_name(report)
    assert found["sampled", "kl_token"]["value"] > 0 and found["", "update_norm"]["value"] == pytest.approx(update["relative"])
    shares = [found["sampled", kind]["value"] for kind in ("unshifted", "marginal", "shifted")]
    assert sum(shares) == pytest.approx(1) and found["sampled", "top_changed"]["value"] == pytest.approx(1 - shares[0])
    rows = [r for r in read_jsonl(tmp_path / "out" / "rows.jsonl") if r["set"] == "reference"]
    total, tokens = sum(sum(r["kl"]) for r in rows), sum(r["tokens"] for r in rows)
    assert found["reference", "kl_token"]["value"] == pytest.approx(total / tokens, abs=1e-6)
    again = shift(ShiftSettings(out=str(tmp_path / "out"), **words))
    assert again == read_json(tmp_path / "out" / "results.json") == json.loads(json.dumps(report))


def row(id_: str, kl: list[float], rank: list[int], top: list[int]) -> dict:
    return {"id": id_, "kl": kl, "rank": rank, "top": top, "tokens": len(kl)}


ROWS = [row("a", [1.0, 0.0, 0.5], [4, 1, 2], [7, 8, 7]), row("b", [0.5, 0.0, 0.0, 0.0, 0.0], [3, 1, 1, 1, 1], [7, 8, 8, 8, 9])]


def test_figures_by_hand():
    found = {r["name"]: r for r in figures(ROWS, "sampled")}
    assert found["kl_answer"]["value"] == 1.0 and found["kl_token"]["value"] == pytest.approx(2 / 8)
    assert [found[kind]["value"] for kind in ("unshifted", "marginal", "shifted", "top_changed")] == [5 / 8, 2 / 8, 1 / 8, 3 / 8]
    assert (found["kl_token"]["low"], found["kl_token"]["high"]) == pytest.approx((0.1, 0.5))


def test_answers_to_one_prompt_are_drawn_together():
    same = [row("a", [1.0], [1], [1]), row("a", [3.0], [1], [1])]
    found = ratio(same, [1.0, 3.0], [1.0, 1.0])
    assert (found["value"], found["low"], found["high"], found["n"]) == (2, 2, 2, 1)
    assert ratio([], [], [])["value"] is None


def test_positions_by_hand():
    found = positions(ROWS)
    assert [(b["from"], b["to"], b["tokens"]) for b in found] == [(0, 0, 2), (1, 1, 2), (2, 3, 3), (4, 4, 1)]
    assert [b["kl"]["value"] for b in found] == pytest.approx([0.75, 0, 0.5 / 3, 0])
    assert [b["top_changed"]["value"] for b in found] == pytest.approx([1, 0, 1 / 3, 0])
    assert [(b["from"], b["to"]) for b in positions([row("a", [1.0], [1], [1])])] == [(0, 0)] and positions([]) == []


def test_the_tokens_that_shift_most_by_hand():
    found = most_shifted(ROWS, byte_tokenizer())
    assert [(t["token"], t["times"], t["changed"], t["kl"], t["share"]) for t in found] == [(7, 3, 3, 2.0, 1.0)]
    assert found[0]["text"] == byte_tokenizer().decode([7])


@pytest.mark.parametrize(
    "words, said",
    [
        (["prompts={alone}", "samples=0"], "holds no answers, and samples=0 asks for none"),
        (["prompts={texts}"], "holds plain text; eval shift wants prompts"),
        (["prompts={alone}", "temperature=-1"], "temperature"),
    ],
)
def test_bad_input_is_named(manners, tiny_model, tmp_path, words, said):
    alone = write_rows(tmp_path / "alone.jsonl", [{"prompt": "Say a."}, {"prompt": "Say b."}])
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "One."}])
    words = [word.format(alone=alone, texts=texts) for word in words]
    assert said in manners("eval", "shift", f"base={tiny_model}", f"model={tiny_model}", *words, f"out={tmp_path / 'out'}").error


def test_an_uneven_number_of_tokens_is_no_trouble_for_the_bootstrap():
    rows = [row(str(i), [1.0] * n, [1] * n, [5] * n) for i, n in enumerate([1, 1, 1, 40])]
    last = positions(rows)[-1]
    assert last["tokens"] == 8 and last["kl"]["value"] == 1 and np.isfinite(last["kl"]["low"])
