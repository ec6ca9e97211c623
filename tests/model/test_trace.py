"""The count of a step's memory against what really is kept: torch's saved tensors, and a step that is really computed."""

import pytest
import torch

from manners.core.records import TokenGroup, TokenResponse
from manners.model.roles import BASE, Backbone
from manners.model.trace import Ledger, shadow, trace
from manners.model.tree import TokenTree, pack
from tests.families import tiny

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]


def group(prompt: int, *responses: int) -> TokenGroup:
    ids = lambda n: [3 + i % 50 for i in range(n)]
    return TokenGroup(ids(prompt), [TokenResponse(ids(n), [True] * n) for n in responses])


def tree() -> TokenTree:
    return pack([group(9, 7, 5), group(0, 11), group(3, 4)])


def backbone(family: str, full: bool) -> tuple[Backbone, str]:
    made = Backbone(tiny(family, dtype=torch.float32))
    if full:
        made.train_base()
        return made, BASE
    made.add_adapter("policy")
    return made, "policy"


def near(traced: tuple[int, ...]):
    """Some kernels and torch's checkpointing hold a few small tensors more, or fewer, where there is no data."""
    return pytest.approx(tuple(traced), rel=0.02)


def saved_bytes(backbone: Backbone, role: str, packed: TokenTree) -> int:
    """Bytes of all storages that torch saves for backward and that were not there before."""
    before = [
        *backbone.model.parameters(),
        *backbone.model.buffers(),
        packed.tokens_T,
        packed.positions_T,
        packed.predictor_N,
        packed.target_N,
    ]
    known = {t.untyped_storage()._cdata for t in before}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage
        return tensor

    with backbone.role(role), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        scores = backbone.score(packed, entropy=True)
    total = sum(storage.nbytes() for storage in saved.values())
    scores.logp_N.sum().backward()
    for parameter in backbone.trainable(role).values():
        parameter.grad = None
    return total


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3", "gemma2", "gpt2", "mistral", "phi3", "olmo2", "gpt-neox", "cohere2"])
def test_the_count_of_a_shadow_is_what_a_real_step_takes(family, full):
    made, role = backbone(family, full)
    copy, packed = shadow(made), tree()
    for gradients in (False, True):
        counted, real = trace(copy, role, packed, gradients=gradients), trace(made, role, packed, gradients=gradients)
        assert counted[:2] == near(real[:2])
        # Two moments of almost the same height may change places, and one of them has a gradient more.
        assert counted.gradients == pytest.approx(real.gradients, abs=0.05 * real.peak)
        assert counted.peak >= counted.kept > 0
    # The output layer's gradient is kept by its autograd function itself, and what it saves on the way does not outlive it.
    assert counted.kept == pytest.approx(saved_bytes(made, role, packed), rel=0.05)
    assert all(p.grad is None for p in made.model.parameters())


def test_gradients_are_counted_once_and_only_where_they_are():
    made, role = backbone("llama", full=True)
    size = sum(p.numel() * p.element_size() for p in made.trainable(role).values())
    first, later = (trace(shadow(made), role, tree(), gradients=there) for there in (False, True))
    assert first.kept == later.kept and first.gradients <= size == later.gradients
    assert later.peak > size + later.kept


def test_checkpointing_keeps_less_and_a_reference_pass_nothing():
    made, role = backbone("llama", full=False)
    copy, packed = shadow(made), pack([group(40, 20, 20)] * 4)
    plain = trace(copy, role, packed)
    reference = trace(copy, role, packed, graph=False)
    copy.checkpointing(True)
    checkpointed = trace(copy, role, packed)
    made.checkpointing(True)
    assert checkpointed == near(trace(made, role, packed))
    assert checkpointed.kept < 0.22 * plain.kept and checkpointed.peak < 0.8 * plain.peak
    assert reference.gradients == 0 and reference.kept < 0.02 * plain.kept and reference.peak < plain.peak


def test_activations_grow_by_the_row_and_by_the_layer_as_paper_says():
    """Three rows, two layers: what is added from two to three is added each time again."""
    made, role = backbone("llama", full=False)
    two, three, nine = (trace(shadow(made), role, pack([group(20, 12)] * rows), gradients=True) for rows in (2, 3, 9))
    assert nine.kept == two.kept + 7 * (three.kept - two.kept) and nine.peak == two.peak + 7 * (three.peak - two.peak)


def test_a_shadow_shares_nothing_with_its_model():
    made, role = backbone("llama-tied", full=True)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    copy = shadow(made)
    trace(copy, role, tree())
    assert copy.tokenizer is None and copy.roles == made.roles
    assert {n: p.shape for n, p in copy.model.named_parameters()} == {n: p.shape for n, p in made.model.named_parameters()}
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in made.model.named_parameters())
    assert all(type(b) is torch.Tensor for b in made.model.buffers())


def test_models_that_look_into_their_data_are_told():
    made, role = backbone("mixtral", full=False)
    with pytest.raises(RuntimeError):
        trace(shadow(made), role, tree())
    assert trace(made, role, tree()).kept > 0


def test_the_ledger_counts_storages_and_their_end():
    there = torch.zeros(100)
    with Ledger([there]) as ledger:
        view = there[:50]
        made = torch.zeros(1000)
        other = made.view(10, 100)[2:]
        assert ledger.now == ledger.peak == 4000
        big = torch.zeros(5000)
        del big
        assert (ledger.now, ledger.peak) == (4000, 24000)
        del made
        assert ledger.now == 4000, "a view keeps it"
        del other
        assert ledger.now == 0
    assert view.numel() == 50
