"""The exact KL of two roles against the sum over the vocabulary, and its agreement with the estimate from samples."""

import pytest
import torch

from manners.core.records import TokenGroup, TokenResponse
from manners.model import score
from manners.model.divergence import exact_kl
from manners.model.roles import BASE, Backbone, Lora
from manners.model.tree import pack
from tests.tiny import tiny_llama


@pytest.fixture
def backbone() -> Backbone:
    made = Backbone(tiny_llama())
    made.add_adapter("policy", Lora(4), seed=1)
    with torch.no_grad():
        for name, parameter in made.trainable("policy").items():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_it_is_the_sum_over_the_vocabulary(backbone, temperature, monkeypatch):
    groups = [
        TokenGroup([1, 10, 11], [TokenResponse([20, 21, 2], [True] * 3), TokenResponse([30], [True])]),
        TokenGroup([1, 12], [TokenResponse([40, 41], [True] * 2)]),
    ]
    tree = pack(groups)
    monkeypatch.setattr(score, "CHUNK_BYTES", 4 * 261 * 4)  # several chunks
    found = exact_kl(backbone, "policy", BASE, tree, temperature)
    expected = []
    for group in groups:
        for response in group.responses:
            logits = {}
            for role in ("policy", BASE):
                alone = pack([TokenGroup(group.prompt_ids, [response])])
                with torch.no_grad(), backbone.role(role):
                    hidden = score.trunk(backbone.model, alone).index_select(0, alone.predictor_N)
                    logits[role] = (backbone.model.lm_head(hidden) / temperature).double()
            ours, theirs = (torch.log_softmax(logits[role], -1) for role in ("policy", BASE))
            expected += (ours.exp() * (ours - theirs)).sum(-1).tolist()
    assert found.tolist() == pytest.approx(expected, abs=1e-5) and min(expected) > 0
    assert torch.equal(exact_kl(backbone, BASE, BASE, tree), torch.zeros(6))
    assert backbone.active == BASE
