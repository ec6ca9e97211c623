"""Draws against a slow oracle in float64: the right token for every u, its log-probability, ties, and frequencies."""

import math

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from manners.core.chance import uniform
from manners.core.errors import InputError
from manners.model import draw as module
from manners.model.draw import Sampling, draw, policy_logps, stream_key

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.9},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 256},
    {"top_k": 400},
    {"top_k": 10_000},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1e-4},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.5, "top_k": 300, "top_p": 0.99},
    {"temperature": 1.3, "top_p": 0.97, "min_p": 0.001},
]


def oracle(logits: list[float], s: Sampling, forbidden: frozenset[int] = frozenset()) -> list[tuple[int, float]]:
    """The truncated distribution as (token, probability), likeliest first, written from the definitions."""
    allowed = [(value, token) for token, value in enumerate(logits) if token not in forbidden]
    ordered = sorted(allowed, key=lambda pair: (-pair[0], pair[1]))
    weights = [math.exp((value - ordered[0][0]) / s.temperature) for value, _ in ordered]

    def first(count: int) -> list[float]:
        total = math.fsum(weights[:count])
        return [w / total for w in weights[:count]]

    probabilities = first(s.top_k or len(weights))
    if s.top_p < 1:
        count = next(n for n in range(1, len(probabilities) + 1) if math.fsum(probabilities[:n]) >= s.top_p or n == len(probabilities))
        probabilities = first(count)
    probabilities = first(sum(p >= s.min_p * probabilities[0] for p in probabilities))
    return [(token, p) for p, (_, token) in zip(probabilities, ordered, strict=False)]


def invert(distribution: list[tuple[int, float]], u: float) -> tuple[int, float]:
    """The token at which the cumulated probability passes u, and its log-probability."""
    passed = 0.0
    for token, p in distribution:
        passed += p
        if passed > u:
            return token, math.log(p)
    return distribution[-1][0], math.log(distribution[-1][1])


def rows(count: int, vocabulary: int, dtype: torch.dtype, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(count, vocabulary, generator=generator, dtype=dtype) * spread
    return logits, torch.rand(count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("vocabulary", "spread", "dtype"), [(61, 2.0, torch.float64), (1500, 1.0, torch.float64), (1500, 3.0, torch.float32)]
)
def test_draws_equal_the_oracle(settings, vocabulary, spread, dtype):
    """Spread 1 lies mostly beyond the sorted top, so that rows fall back to the whole; spread 3 mostly within."""
    s = Sampling(**settings)
    logits_SV, u_S = rows(24, vocabulary, dtype, spread)
    drawn = draw(logits_SV, u_S, s)
    for i in range(24):
        token, logp = invert(oracle(logits_SV[i].tolist(), s), float(u_S[i]))
        assert int(drawn.token_S[i]) == token
        assert float(drawn.logp_S[i]) == pytest.approx(logp, abs=1e-12 if dtype == torch.float64 else 1e-6)
    policy_S = torch.log_softmax(logits_SV.double(), -1).gather(1, drawn.token_S[:, None])[:, 0]
    assert torch.allclose(drawn.policy_logp_S, policy_S, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_some_rows_fall_back_and_some_do_not(monkeypatch):
    seen = []
    honest = module._whole
    monkeypatch.setattr(module, "_whole", lambda shift, weight: seen.append(shift.shape[0]) or honest(shift, weight))
    draw(*rows(24, 1500, torch.float32, 1.0), Sampling())
    assert seen == [1] * len(seen) and 3 < len(seen) < 24


@pytest.mark.parametrize("vocabulary", [40, 2000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_go_by_token_id(vocabulary, dtype):
    """A row of equal logits is drawn in order of id, whatever topk thinks of it; greedy takes the lowest id of the largest."""
    u_S = (torch.arange(vocabulary, dtype=torch.float64) + 0.5) / vocabulary
    flat_SV = torch.zeros(vocabulary, vocabulary, dtype=dtype)
    assert torch.equal(draw(flat_SV, u_S, Sampling()).token_S, torch.arange(vocabulary))
    assert int(draw(flat_SV, u_S, Sampling(top_k=9)).token_S.max()) == 8
    row_SV = torch.zeros(2, vocabulary, dtype=dtype)
    row_SV[:, [11, 17, 30]] = 2.0
    assert draw(row_SV, u_S[:2], Sampling(temperature=0)).token_S.tolist() == [11, 11]
    assert draw(row_SV, torch.tensor([0.0, 0.99], dtype=torch.float64), Sampling(top_k=2)).token_S.tolist() == [11, 17]


def test_top_p_takes_the_smallest_set_and_at_least_one():
    logits_SV = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    last = lambda p: int(draw(logits_SV, torch.tensor([1 - 2.0**-53]), Sampling(top_p=p)).token_S)
    assert [last(p) for p in (0.01, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, 1.0)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_top_p_counts_what_top_k_left():
    """Of .4, .3, .2, .1 top-k 2 leaves 4/7 and 3/7: half the mass is the first token alone, though it has .4 of the whole."""
    logits_SV = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    end = torch.tensor([0.999])
    assert int(draw(logits_SV, end, Sampling(top_k=2, top_p=0.5)).token_S) == 0
    assert int(draw(logits_SV, end, Sampling(top_p=0.5)).token_S) == 1


def test_a_token_without_probability_is_never_drawn():
    logits_SV = torch.tensor([[0.0, -1e4, 0.0], [float("-inf"), 0.0, float("-inf")]])
    ends = torch.full((2,), 1 - 2.0**-53, dtype=torch.float64)
    assert draw(logits_SV, ends, Sampling()).token_S.tolist() == [2, 1]
    assert draw(logits_SV, torch.zeros(2, dtype=torch.float64), Sampling()).token_S.tolist() == [0, 1]


def test_forbidden_tokens_are_left_out_of_the_distribution_but_not_of_the_policy():
    logits_SV = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 2, dtype=torch.float64).log()
    forbidden_SV = torch.tensor([[True, False, False, False], [False] * 4])
    for s in (Sampling(), Sampling(temperature=0)):
        drawn = draw(logits_SV, torch.zeros(2, dtype=torch.float64), s, forbidden_SV)
        assert drawn.token_S.tolist() == [1, 0]
        assert drawn.policy_logp_S.exp().tolist() == pytest.approx([0.3, 0.4])
        assert drawn.logp_S.exp().tolist() == pytest.approx([0.3, 0.4] if s.greedy else [0.5, 0.4])


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_p": 0.95}, {"temperature": 0}], ids=str)
def test_a_row_has_the_same_bits_alone_and_in_company(settings):
    """In float32 and with a real vocabulary's width, with sorted tops and fallen-back rows; two threads share a lone row's sums."""
    torch.set_num_threads(2)
    logits_SV, u_S = rows(40, 50_000, torch.float32, 4.0)
    s = Sampling(**settings)
    together = draw(logits_SV, u_S, s)
    for i in range(40):
        for alone, all_S in zip(draw(logits_SV[i : i + 1], u_S[i : i + 1], s), together, strict=True):
            assert torch.equal(alone, all_S[i : i + 1])


def test_twenty_thousand_draws_have_their_frequencies():
    p = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2], dtype=torch.float64)
    key = stream_key(Sampling(seed=7), 0, 0)
    u_S = torch.tensor([uniform(key, i) for i in range(20_000)], dtype=torch.float64)
    counts = torch.bincount(draw(p.log().expand(20_000, -1), u_S, Sampling()).token_S, minlength=5)
    assert chisquare(counts.numpy(), (p * 20_000).numpy()).pvalue > 0.01


def test_uniform_numbers_are_uniform_along_positions_and_along_samples():
    s = Sampling(seed=5, stage="ppo")
    along = [uniform(stream_key(s, 3, 1), i) for i in range(4000)]
    across = [uniform(stream_key(s, row, sample), 0) for row in range(100, 180) for sample in range(50)]
    for numbers in (along, across):
        assert kstest(numbers, "uniform").pvalue > 0.01
        assert all(0 <= u < 1 and u * 2**53 == int(u * 2**53) for u in numbers)
    assert len(set(along + across)) == 8000


def test_every_part_of_the_key_matters():
    base = {"seed": 1, "stage": "sft", "round": 2, "row": 3, "sample": 4}
    key = lambda **k: stream_key(Sampling(seed=k["seed"], stage=k["stage"], round=k["round"]), k["row"], k["sample"])
    keys = {key(**base)} | {key(**{**base, name: value}) for name, value in {**dict.fromkeys(base, 9), "stage": "dpo"}.items()}
    assert len(keys) == 6
    assert key(**base) == key(**base)
    assert key(**{**base, "row": 1, "sample": 23}) != key(**{**base, "row": 12, "sample": 3})


def test_the_key_is_the_same_in_every_process():
    """Numbers written down, so that a change of the key is a decision and not an accident."""
    key = stream_key(Sampling(seed=1, stage="ppo", round=2), 3, 4)
    assert [uniform(key, i) for i in range(2)] == [0.6860170114916412, 0.3595192148217021]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 2}, "min_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": 200}, "min_new_tokens"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, named):
    with pytest.raises(InputError, match=named) as caught:
        Sampling(**settings)
    assert str(caught.value).endswith(f"not {settings[named]}.")


def test_sampling_says_what_it_is():
    assert str(Sampling(temperature=0, top_p=0.5)) == "greedy"
    assert str(Sampling(0.7, top_p=0.9, seed=3, round=2)) == "temperature=0.7 top_p=0.9 round=2 seed=3"


def test_policy_logps_are_a_log_softmax():
    logits_SV, _ = rows(3, 50, torch.float64, 4.0)
    token_S = torch.tensor([1, 2, 3])
    assert torch.allclose(policy_logps(logits_SV, token_S), torch.log_softmax(logits_SV, -1)[torch.arange(3), token_S], rtol=0, atol=1e-13)
