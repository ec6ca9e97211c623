"""Roles: a switch changes nothing but the output, and backward may happen anywhere."""

import threading

import peft
import pytest
import torch
from safetensors.torch import save_file

from manners.core.errors import InputError
from manners.core.records import TokenGroup, TokenResponse
from manners.model import attention
from manners.model.roles import BASE, Backbone, Lora, copy_of
from manners.model.tree import pack
from tests.families import tiny
from tests.model.test_parity import groups
from tests.oracles import float64_everywhere


def backbone(family: str = "llama") -> Backbone:
    made = Backbone(tiny(family, dtype=torch.float32))
    made.add_adapter("policy", Lora(4), seed=1)
    made.add_adapter("other", Lora(2), seed=2)
    return made


def disturb(b: Backbone, role: str, seed: int = 3) -> None:
    """Give an adapter weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in b.trainable(role).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)


def logps(b: Backbone, role: str) -> torch.Tensor:
    with b.role(role):
        return b.score(pack(groups())).logp_N


def gradients(b: Backbone, role: str) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in b.trainable(role).items() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-oss"])
def test_a_fresh_adapter_gives_the_base_bit_for_bit(family):
    b = backbone(family)
    assert torch.equal(logps(b, "policy"), logps(b, BASE))


def test_roles_differ_once_trained_and_a_copy_stays_behind():
    b = backbone()
    disturb(b, "policy")
    b.copy_adapter("policy", "reference")
    assert torch.equal(logps(b, "policy"), logps(b, "reference"))
    before = logps(b, "reference")
    disturb(b, "policy", seed=9)
    assert torch.equal(logps(b, "reference"), before)
    assert not torch.equal(logps(b, "policy"), before)
    assert not b.trainable("reference")


def test_a_hundred_switches_leave_weights_and_requires_grad_alone():
    b = backbone()
    flags = {n: p.requires_grad for n, p in b.model.named_parameters()}
    weights = copy_of(dict(b.model.named_parameters()))
    for i in range(100):
        with b.role(("policy", "other", BASE)[i % 3]), b.role("policy"):
            pass
    assert b.active == BASE
    assert flags == {n: p.requires_grad for n, p in b.model.named_parameters()}
    assert all(torch.equal(p, weights[n]) for n, p in b.model.named_parameters())
    assert any(flags.values())


def test_an_unknown_role_names_the_nearest():
    with pytest.raises(KeyError, match="policy"), backbone().role("polcy"):
        pass


def test_backward_after_leaving_the_role_and_from_another_thread():
    b = backbone()
    disturb(b, "policy")
    logps(b, "policy").sum().backward()
    expected = gradients(b, "policy")
    assert expected and all(g.abs().max() > 0 for g in expected.values())

    for checkpointed in (False, True):
        b.checkpointing(checkpointed)
        b.model.zero_grad()
        loss = logps(b, "policy").sum()
        with b.role("other"):
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
        found = gradients(b, "policy")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[n], expected[n]) for n in expected), f"checkpointed: {checkpointed}"
        assert not gradients(b, "other")


@pytest.mark.parametrize("full", [False, True])
def test_checkpointing_changes_no_gradient(full):
    found = []
    for checkpointed in (False, True):
        b = Backbone(tiny("gemma2"))
        role = BASE
        if full:
            b.train_base()
        else:
            b.add_adapter("policy", Lora(4), seed=1)
            disturb(b, role := "policy")
        b.checkpointing(checkpointed)
        with float64_everywhere(), b.role(role):
            b.score(pack(groups())).logp_N.square().sum().backward()
        found.append(gradients(b, role))
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][n], g, rtol=1e-12, atol=1e-12) for n, g in found[1].items())


def test_two_roles_in_one_loss_under_checkpointing():
    """PPO sums the losses of policy and value: both graphs recompute in one backward, each under its own role."""
    b = backbone()
    disturb(b, "policy")
    disturb(b, "other")
    expected = {}
    for role in ("policy", "other"):
        b.model.zero_grad()
        logps(b, role).square().sum().backward()
        expected |= gradients(b, role)
    b.model.zero_grad()
    b.checkpointing(True)
    (logps(b, "policy").square().sum() + logps(b, "other").square().sum()).backward()
    found = gradients(b, "policy") | gradients(b, "other")
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[n], g, rtol=1e-5, atol=1e-6) for n, g in expected.items())


def test_a_recompute_asserts_its_role():
    b = backbone()
    _, restore = b.recompute()
    with pytest.raises(RuntimeError, match="recompute for role"), restore:
        b._switch("other")
    assert b.active == BASE
    assert attention.current_pattern() is None


def test_adapters_are_saved_as_peft_knows_them(tmp_path):
    b = backbone()
    disturb(b, "policy")
    b.save_adapter("policy", tmp_path, base_name="somewhere")
    plain = peft.PeftModel.from_pretrained(tiny("llama", dtype=torch.float32), str(tmp_path))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    theirs = plain(ids).logits.log_softmax(-1)[0, 1:4].gather(1, ids[0, 2:, None])[:, 0]
    again = Backbone(tiny("llama", dtype=torch.float32))
    again.load_adapter("policy", tmp_path)
    with again.role("policy"):
        ours = again.score(pack([TokenGroup([5, 6], [TokenResponse([7, 8, 9], [True] * 3)])])).logp_N
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(logps(again, "policy"), logps(b, "policy"))
    assert "somewhere" in (tmp_path / "adapter_config.json").read_text()


def test_an_adapter_of_another_model_is_refused(tmp_path):
    b = backbone()
    b.save_adapter("policy", tmp_path)
    weights = {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}
    save_file(weights, str(tmp_path / "adapter_model.safetensors"))
    with pytest.raises(InputError, match="does not fit this model"):
        Backbone(tiny("llama", dtype=torch.float32)).load_adapter("policy", tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_named_target_must_be_a_layer(family):
    known, misspelt = {"llama": ("q_proj", "q_prj"), "gpt2": ("c_attn", "c_atn")}[family]
    b = Backbone(tiny(family, dtype=torch.float32))
    said = f"^lora_targets names '{misspelt}', and {type(b.model).__name__} has no such layer; did you mean '{known}'\\?$"
    for targets in ([misspelt], [known, misspelt]):
        with pytest.raises(InputError, match=said):
            b.add_adapter("policy", Lora(2, targets=targets))
    with pytest.raises(InputError, match=f"lora_targets names 'xyz', .* known are: .*{known}.*[^?]$"):
        b.add_adapter("policy", Lora(2, targets=[known, "xyz"]))
    with pytest.raises(InputError, match=f"lora_targets names no layer of .* known are: .*{known}"):
        b.add_adapter("policy", Lora(2, targets=[]))
    assert b.roles == (BASE,) and not any("lora" in n for n, _ in b.model.named_parameters())


def test_targets_are_names_or_ends_of_names_whatever_adapters_there_are():
    b = backbone()
    b.add_adapter("one", Lora(2, targets=["model.layers.0.self_attn.q_proj"]))
    b.add_adapter("ends", Lora(3, 5, targets=["self_attn.q_proj", "v_proj"]))
    adapted = lambda role: {n.split(".lora_")[0].removeprefix("model.layers.") for n in b.trainable(role)}
    assert adapted("one") == {"0.self_attn.q_proj"}
    assert adapted("ends") == {f"{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")}
    assert b.lora("ends") == Lora(3, 5, ["self_attn.q_proj", "v_proj"])
    for inner in ("base_layer", "lora_A", "policy"):
        with pytest.raises(InputError, match=f"lora_targets names '{inner}', .* no such layer"):
            b.add_adapter("more", Lora(2, targets=["q_proj", inner]))
    with pytest.raises(InputError, match="LoRA found no layer to adapt in LlamaForCausalLM: ") as told:
        b.add_adapter("more", Lora(2, targets=["mlp"]))
    assert "\n" not in str(told.value)
