"""`loss=module:function` replaces a trainer's loss and is part of the run's identity."""

import pytest

from manners.core.files import read_json, read_jsonl


@pytest.fixture(autouse=True)
def losses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_losses.py").write_text(
        "def double(logp_N):\n    return -2 * logp_N\n\n\n"
        "def hinge(chosen_P, rejected_P):\n    return (1 - 0.1 * (chosen_P - rejected_P)).clamp(min=0)\n"
    )


def first_loss(run) -> float:
    return read_jsonl(run / "metrics.jsonl")[0]["loss"]


def test_sft(manners, tiny_model, demonstrations, tmp_path):
    for name, more in (("plain", []), ("own", ["loss=own_losses:double"])):
        assert manners("sft", f"model={tiny_model}", f"data={demonstrations}", f"out={name}", "epochs=1", *more).code == 0
    assert first_loss(tmp_path / "own") == pytest.approx(2 * first_loss(tmp_path / "plain"), rel=1e-5)
    assert "loss_source" in read_json(tmp_path / "own" / "settings.json")["identifying"]


def test_dpo_by_a_hinge_starts_at_one(manners, tiny_model, pairs, tmp_path):
    assert manners("dpo", f"model={tiny_model}", f"data={pairs}", "out=own", "epochs=1", "loss=own_losses:hinge").code == 0
    assert first_loss(tmp_path / "own") == pytest.approx(1.0, abs=1e-4)


def test_a_misspelt_one_is_refused_before_anything_is_written(manners, tiny_model, demonstrations, tmp_path):
    refused = manners("sft", f"model={tiny_model}", f"data={demonstrations}", "out=own", "loss=own_losses:doubel")
    assert refused.code == 2 and "did you mean 'double'" in refused.error
    assert not (tmp_path / "own").exists()
