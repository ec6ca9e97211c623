"""Log-probabilities without the whole matrix of logits: against formulas in float64, at chunk borders, extremes and in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manners.core.records import TokenGroup, TokenResponse
from manners.model import score as scoring
from manners.model.roles import Backbone
from manners.model.score import Head, token_logps
from manners.model.tree import pack
from tests.families import build, tiny
from tests.model.test_parity import groups
from tests.oracles import float64_everywhere

N, D, V = 7, 6, 23
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 3.0},
    "scaled": {"scale": 0.37},
    "all": {"bias": True, "softcap": 2.0, "scale": 1.7},
}


def head(*, bias: bool = False, scale: float = 1.0, softcap: float | None = None, trained: bool = False) -> Head:
    torch.manual_seed(0)
    layer = nn.Linear(D, V, bias=bias, dtype=torch.float64)
    return Head(layer.requires_grad_(trained), scale, softcap)


def inputs(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that want a gradient, targets with a repeat, and a weight for each."""
    g = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(N, D, dtype=torch.float64, generator=g) * 2).requires_grad_()
    return (
        hidden,
        torch.randint(0, V, (N,), generator=g).index_fill(0, torch.tensor([2]), 5),
        torch.randn(N, dtype=torch.float64, generator=g),
    )


def formula(h: Head, hidden: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies with all logits at once."""
    logits = hidden @ h.layer.weight.T + (0 if h.layer.bias is None else h.layer.bias)
    logits = logits * h.scale
    if h.softcap is not None:
        logits = torch.tanh(logits / h.softcap) * h.softcap
    logp = torch.log_softmax(logits / temperature, -1)
    return logp[torch.arange(len(target)), target], -(logp.exp() * logp).sum(-1)


@contextmanager
def chunks_of(rows: int, vocabulary: int = V) -> Iterator[None]:
    with patch.object(scoring, "CHUNK_BYTES", 4 * vocabulary * rows):
        yield


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [1, 3, N, 10**6])
def test_values_and_gradients_equal_the_formula(trained, kind, rows):
    for temperature in (1.0, 0.6, 2.5):
        h, (hidden, target, weight) = head(trained=trained, **HEADS[kind]), inputs()
        with chunks_of(rows):
            assert scoring.chunk_rows(h, hidden) == rows
            logp, entropy = token_logps(h, hidden, target, temperature, entropy=True)
            (logp * weight).sum().backward()
        found = [hidden.grad, *(p.grad for p in h.layer.parameters())]
        h2, (hidden2, _, _) = head(trained=trained, **HEADS[kind]), inputs()
        expected, expected_entropy = formula(h2, hidden2, target, temperature)
        (expected * weight).sum().backward()
        wanted = [hidden2.grad, *(p.grad for p in h2.layer.parameters())]
        assert torch.allclose(logp, expected, rtol=0, atol=1e-12)
        assert torch.allclose(entropy, expected_entropy, rtol=0, atol=1e-12)
        assert not entropy.requires_grad
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert (a is None) == (b is None) == (not trained and a is not found[0])
            assert a is None or torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_entropy_is_none_unless_asked_for_and_values_need_no_graph(trained):
    h, (hidden, target, _) = head(trained=trained), inputs()
    assert token_logps(h, hidden, target)[1] is None
    with torch.no_grad():
        logp, entropy = token_logps(h, hidden, target, 0.7, entropy=True)
    assert not logp.requires_grad
    assert torch.allclose(torch.stack([logp, entropy]), torch.stack(formula(h, hidden, target, 0.7)), rtol=0, atol=1e-12)


def test_a_second_backward_says_what_to_do():
    h, (hidden, target, _) = head(), inputs()
    loss = token_logps(h, hidden, target)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward through the same log-probabilities twice: score again instead"):
        loss.backward()


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("entropy", [False, True])
def test_no_targets_give_an_empty_result_and_a_gradient_of_zero(trained, entropy):
    h, (hidden, _, _) = head(trained=trained), inputs()
    logp, found = token_logps(h, hidden[:0], torch.zeros(0, dtype=torch.long), entropy=entropy)
    assert logp.shape == (0,)
    assert found is None if not entropy else found.shape == (0,)
    logp.sum().backward()
    assert torch.equal(hidden.grad, torch.zeros(N, D, dtype=torch.float64))


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(trained, dtype):
    """Logits of ±1e4: the likeliest token has log-probability 0, others thousands of nats less, and nothing overflows."""
    layer = nn.Linear(1, 4, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e4], [-1e4], [0.0], [1e4 - 2]]))
    layer.requires_grad_(trained)
    hidden = torch.tensor([[1.0], [1.0], [-1.0], [1.0]], dtype=dtype, requires_grad=True)
    logp, entropy = token_logps(Head(layer), hidden, torch.tensor([0, 1, 1, 3]), entropy=True)
    rest = torch.log1p(torch.exp(torch.tensor(-2.0, dtype=dtype)))
    assert torch.allclose(logp, torch.stack([-rest, -2e4 - rest, 0 * rest, -2 - rest]), atol=2e-3)
    assert bool((entropy >= -2e-3).all()) and bool((entropy < 1).all())
    logp.sum().backward()
    assert bool(hidden.grad.isfinite().all())


# --- through a model ----------------------------------------------------------------------------------------------------------------


def scores(backbone: Backbone, **given) -> scoring.Scores:
    return backbone.score(pack(groups()), **given)


@pytest.mark.parametrize("family", ["llama", "granite", "cohere2", "gemma2", "phi"])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_change_nothing_that_counts(family, rows):
    """Output layers with scaling (Granite), scale (Cohere), soft-cap (Gemma 2) and bias (Phi)."""
    found = []
    for size in (rows, 1000):
        backbone = Backbone(tiny(family))
        backbone.train_base()
        backbone.model.get_output_embeddings().requires_grad_(False)
        with float64_everywhere(), chunks_of(size, 61):
            given = scores(backbone, temperature=0.8, entropy=True)
            given.logp_N.square().sum().backward()
        found.append((given.logp_N, given.entropy_N, backbone.model.base_model.layers[0].mlp.parameters().__next__().grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_tied_heads_sum_both_gradients(checkpointed):
    backbone = Backbone(tiny("llama-tied"))
    backbone.train_base()
    backbone.checkpointing(checkpointed)
    with float64_everywhere(), chunks_of(3, 61):
        scores(backbone).logp_N.square().sum().backward()
    plain = tiny("llama-tied")
    plain.set_attn_implementation("eager")
    with float64_everywhere():
        for group in groups():
            for response in group.responses:
                ids = torch.tensor([group.prompt_ids + response.token_ids])
                logp = torch.log_softmax(plain(input_ids=ids, use_cache=False).logits[0], -1)
                first = len(group.prompt_ids)
                places = [first + i for i, t in enumerate(response.trained) if t and first + i > 0]
                logp[[p - 1 for p in places], ids[0, places]].square().sum().backward()
    assert backbone.model.lm_head.weight is backbone.model.base_model.embed_tokens.weight
    expected = plain.lm_head.weight.grad
    assert torch.allclose(backbone.model.lm_head.weight.grad, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("full", [False, True])
def test_an_empty_response_scores_zero_and_trains_nothing(full):
    backbone = Backbone(tiny("llama", dtype=torch.float32))
    if full:
        backbone.train_base()
    else:
        backbone.add_adapter("policy")
    role = "base" if full else "policy"
    with backbone.role(role):
        nothing = backbone.score(pack([TokenGroup([5, 6, 7], [TokenResponse([8, 9], [False, False])])]), entropy=True)
        mixed = backbone.score(pack([TokenGroup([5, 6, 7], [TokenResponse([8, 9], [False, False]), TokenResponse([8], [True])])]))
    assert nothing.logp_N.shape == nothing.entropy_N.shape == (0,)
    assert nothing.logp_R.tolist() == [0.0]
    assert mixed.logp_R.shape == (2,) and float(mixed.logp_R[0].detach()) == 0.0 and float(mixed.logp_R[1].detach()) < 0
    nothing.logp_R.sum().backward()
    gradients = [p.grad for p in backbone.trainable(role).values() if p.grad is not None]
    assert gradients and all(float(g.abs().max()) == 0.0 for g in gradients)


@pytest.mark.parametrize("full", [False, True])
def test_log_probabilities_of_a_bfloat16_model_are_float32(full):
    backbone = Backbone(tiny("llama", dtype=torch.bfloat16))
    if full:
        backbone.train_base()
    given = scores(backbone, entropy=True)
    assert given.logp_N.dtype == given.entropy_N.dtype == given.logp_R.dtype == torch.float32
    with torch.no_grad():
        hidden = scoring.trunk(backbone.model, pack(groups()))[pack(groups()).predictor_N]
        logits = backbone.model.lm_head(hidden).double()
    expected = torch.log_softmax(logits, -1).gather(1, pack(groups()).target_N[:, None])[:, 0]
    assert torch.allclose(given.logp_N.double(), expected, rtol=0, atol=1e-4)
    if full:
        given.logp_N.sum().backward()
        assert backbone.model.lm_head.weight.grad.dtype == torch.bfloat16


# --- memory -------------------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the largest tensor, in elements, that any operation returns, and the largest with a side of the vocabulary."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.elements, self.logits = vocabulary, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
                if tensor.dim() == 2 and tensor.shape[-1] == self.vocabulary:
                    self.logits = max(self.logits, tensor.numel())
        return given


WIDE = 4096
ROWS = 8


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_matrix_of_all_logits_never_exists(full, checkpointed):
    """512 targets, a vocabulary of 4096, chunks of 8 rows: no operation of forward or backward returns more than a chunk.

    Weights (4096 x 8) and their gradients are no larger than a chunk here, so that every tensor can be held to the same bound.
    """
    sizes = {"hidden_size": 8, "head_dim": 2, "intermediate_size": 16, "num_key_value_heads": 4, "max_position_embeddings": 1024}
    backbone = Backbone(build("LlamaConfig", {**sizes, "vocab_size": WIDE}, dtype=torch.float32))
    role = "base"
    if full:
        backbone.train_base()
    else:
        backbone.add_adapter(role := "policy")
    backbone.checkpointing(checkpointed)
    responses = [TokenResponse([7 + i] * 64, [True] * 64) for i in range(8)]
    tree = pack([TokenGroup([5, 6, 7], responses)])
    assert tree.targets == 512
    with chunks_of(ROWS, WIDE), backbone.role(role):
        for entropy in (False, True):
            with Largest(WIDE) as seen:
                backbone.score(tree, entropy=entropy, temperature=0.9).logp_N.square().sum().backward()
            assert seen.logits == seen.elements == ROWS * WIDE, "the largest tensor is a chunk of logits"


def test_the_tracker_sees_a_matrix_of_all_logits():
    """Plant the fault: with chunks of any size the same test must fail."""
    h, (hidden, target, _) = head(trained=False), inputs()
    with Largest(V) as seen:
        token_logps(h, hidden, target)[0].sum().backward()
    assert seen.logits == N * V
    with chunks_of(2), Largest(V) as seen:
        token_logps(h, inputs()[0], target)[0].sum().backward()
    assert seen.logits < N * V
