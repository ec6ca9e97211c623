"""The plan of a run's memory: its parts, the micro-batch it is made for, and what the manifest says of it."""

import json
from pathlib import Path

import pytest
import torch

from manners.core.memory import forget_peak, give_back_freed_memory, peak_resident, resident
from manners.core.records import TokenGroup, TokenResponse
from manners.model.roles import BASE, Backbone, Lora
from manners.train import memory
from manners.train.learner import OptimizerSettings
from tests.families import tiny
from tests.tiny import tiny_llama


def rows(*lengths: int) -> list[TokenGroup]:
    return [TokenGroup([5] * (n // 2), [TokenResponse([6] * (n - n // 2), [True] * (n - n // 2))], row=i) for i, n in enumerate(lengths)]


def test_the_heaviest_micro_batch():
    heaviest, several = memory.heaviest_micro_batch(rows(10, 20, 30, 40), OptimizerSettings(batch_size=4, micro_tokens=60))
    assert sum(g.tokens for g in heaviest) == 60 and several
    heaviest, several = memory.heaviest_micro_batch(rows(10, 20, 30, 40), OptimizerSettings(batch_size=4, micro_tokens=100))
    assert sum(g.tokens for g in heaviest) == 100 and not several
    heaviest, several = memory.heaviest_micro_batch(rows(90, 10), OptimizerSettings(batch_size=1, micro_tokens=5))
    assert sum(g.tokens for g in heaviest) == 90 and not several


@pytest.mark.parametrize("full", [False, True])
def test_the_parts_of_a_plan(full):
    backbone = Backbone(tiny_llama())
    role = BASE if full else "policy"
    if full:
        backbone.train_base()
    else:
        backbone.add_adapter(role, Lora(rank=4))
    weights = sum(p.numel() * 4 for n, p in backbone.model.named_parameters() if ".lora_" not in n)
    adapter = sum(p.numel() * 4 for n, p in backbone.model.named_parameters() if ".lora_" in n)
    trained = weights if full else adapter
    plan = memory.plan(backbone, role, rows(*[40] * 8), OptimizerSettings(batch_size=8, micro_tokens=80))
    buffers = sum(b.numel() * b.element_size() for b in backbone.model.buffers())
    assert (plan.weights, plan.adapter, plan.moments, plan.gradients) == (weights + buffers, adapter, 2 * trained, trained)
    assert plan.tokens == 80 and plan.exact and plan.activations > plan.kept > 0
    assert plan.libraries > 50e6 and plan.holes >= 100e6
    parts = plan.libraries + plan.weights + plan.adapter + plan.moments + plan.gradients + plan.activations + plan.holes
    assert plan.peak == parts
    assert not backbone.model.training and all(p.grad is None for p in backbone.model.parameters())
    small = memory.plan(backbone, role, rows(*[40] * 8), OptimizerSettings(batch_size=8, micro_tokens=40))
    assert small.kept < 0.6 * plan.kept
    said = memory.sentence(plan, torch.device("cpu"))
    assert "at the peak" in said and "activations of 80 tokens" in said and "about" not in said


def test_experts_are_planned_from_shorter_rows():
    backbone = Backbone(tiny("mixtral", dtype=torch.float32))
    backbone.add_adapter("policy")
    groups = rows(*[48] * 4)
    plan = memory.plan(backbone, "policy", groups, OptimizerSettings(batch_size=4, micro_tokens=200))
    from manners.model.trace import trace
    from manners.model.tree import pack

    real = trace(backbone, "policy", pack(groups))
    assert not plan.exact and plan.kept == pytest.approx(real.kept, rel=0.15)
    assert memory.sentence(plan, torch.device("cpu")).startswith("about ")


def test_shortened_rows_are_cut_and_never_empty():
    [group] = memory.shortened(rows(9), 4)
    assert (len(group.prompt_ids), len(group.responses[0].token_ids)) == (1, 2)


def test_what_does_not_fit_is_said():
    plan = memory.MemoryPlan(1, 1, 1, 1, 1, 10**15, 1, 0, 8, 0, True)
    assert memory.sentence(plan, torch.device("cpu")).endswith("it does not fit; lower micro_tokens, or set checkpointing=true")


def test_resident_memory_is_seen_to_come_and_go():
    if not forget_peak():
        pytest.skip("the peak can be forgotten on Linux only")
    give_back_freed_memory()
    before = resident()
    block = torch.ones(40_000_000)
    assert resident() - before > 150e6
    del block
    give_back_freed_memory()
    assert resident() - before < 50e6 and peak_resident() - before > 150e6
    assert forget_peak() and peak_resident() - before < 80e6


def test_plan_and_measurement_are_in_the_manifest(tiny_model: Path, demonstrations: Path, tmp_path: Path, manners):
    outcome = manners("sft", f"model={tiny_model}", f"data={demonstrations}", f"out={tmp_path / 'run'}", "format=plain", "epochs=1")
    assert outcome.code == 0 and "GB planned" in outcome.stderr and "memory:" in outcome.stderr
    found = json.loads((tmp_path / "run" / "manifest.json").read_text())["memory"]
    assert found["planned"] > found["weights"] > 0 and found["measured"] > 0
    assert found["measured_over_planned"] == pytest.approx(found["measured"] / found["planned"], abs=1e-3)
    # The plan adds an estimate of 100 MB for holes, and so small a run makes none.
    assert 0.7 < found["measured_over_planned"] < 1.15
