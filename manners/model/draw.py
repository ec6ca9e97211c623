"""Drawing a token: a keyed uniform number, and the inverse of a truncated distribution in descending order of probability.

The order of truncations is fixed: temperature, then top-k, then top-p (of what top-k left, renormalised), then min-p. Each leaves
the likeliest tokens, so what is left of a row is always a prefix of its descending order (equal logits in order of token id), and a
draw is the place where the cumulated probability passes u. Descending order, because rounding moves a boundary in proportion to the
mass before it: with the large probabilities first, rounding flips a token ten times less often than in vocabulary order.

Axes: `S` rows (slots), `V` vocabulary, `K` the likeliest tokens that are sorted.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manners.core.chance import stream_of
from manners.core.errors import InputError

TOP = 256
"""How many of the likeliest tokens are sorted; a row whose u lies beyond their mass is sorted whole."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Temperature 0 is greedy: the largest logit, of equal ones the lowest id; truncations then do nothing.

    `top_k` 0, `top_p` 1 and `min_p` 0 truncate nothing. Stop tokens cannot be drawn before `min_new_tokens` other tokens were.
    `seed`, `stage` and `round` are part of every draw's key, with the row, the sample's index and the token's position.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    seed: int = 0
    stage: str = ""
    round: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be 0 (greedy) or more, not {self.temperature}.")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 (off) or more, not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1 (off), not {self.top_p}.")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p must be between 0 (off) and 1, not {self.min_p}.")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}.")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise InputError(f"min_new_tokens must be between 0 and max_new_tokens={self.max_new_tokens}, not {self.min_new_tokens}.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def __str__(self) -> str:
        """What tells one way of sampling from another, without the lengths: "temperature=0.7 top_p=0.9 seed=3"."""
        if self.greedy:
            return "greedy"
        settings = {"top_k": (self.top_k, 0), "top_p": (self.top_p, 1.0), "min_p": (self.min_p, 0.0), "round": (self.round, 0)}
        given = [f"{name}={value:g}" for name, (value, off) in settings.items() if value != off]
        return " ".join([f"temperature={self.temperature:g}", *given, f"seed={self.seed}"])


class Draws(NamedTuple):
    """Drawn tokens (S,), and in float64 their log-probabilities (S,) under the distribution drawn from and under the policy."""

    token_S: Tensor
    logp_S: Tensor
    policy_logp_S: Tensor


def stream_key(sampling: Sampling, row: int, sample: int) -> bytes:
    """Key of all draws of sample `sample` of row `row`; `uniform(key, position)` is the number for the token at `position`."""
    # The stage comes last: whatever it contains, two different sets of fields never give the same text.
    return stream_of(sampling.seed, sampling.round, row, sample, sampling.stage)


def draw(logits_SV: Tensor, u_S: Tensor, sampling: Sampling, forbidden_SV: Tensor | None = None) -> Draws:
    """Draw one token a row by the uniform numbers `u_S` (float64); tokens marked in `forbidden_SV` are left out.

    A row's result depends on its own logits and number alone, bit for bit. `logp_S` is of the distribution drawn from, after
    temperature and truncation and renormalised; greedy draws report the untruncated policy there too.
    """
    if logits_SV.shape[0] == 1:  # torch sums a lone row in parts, one a thread, and several rows each in one go: other bits
        twice = None if forbidden_SV is None else forbidden_SV.expand(2, -1)
        return Draws(*(t[:1] for t in draw(logits_SV.expand(2, -1), u_S.expand(2), sampling, twice)))
    shaped_SV = logits_SV if forbidden_SV is None else logits_SV.masked_fill(forbidden_SV, float("-inf"))
    if sampling.greedy:
        token_S = shaped_SV.argmax(-1)
        policy_S = policy_logps(logits_SV, token_S)
        return Draws(token_S, policy_S, policy_S)
    shift_SV, weight_SV, total_S = _weights(shaped_SV, sampling.temperature)
    vocabulary = logits_SV.shape[1]
    likeliest = _likeliest(shift_SV, weight_SV, max(TOP, sampling.top_k + 1))
    token_S, logp_S, decided_S = _invert(likeliest, total_S, u_S, sampling, vocabulary)
    for row in (~decided_S).nonzero()[:, 0].tolist():
        one = slice(row, row + 1)
        whole = _whole(shift_SV[one], weight_SV[one])
        token_S[one], logp_S[one], _ = _invert(whole, total_S[one], u_S[one], sampling, vocabulary)
    if sampling.temperature == 1.0 and forbidden_SV is None:
        return Draws(token_S, logp_S, _gather(shift_SV, token_S) - total_S.log())
    return Draws(token_S, logp_S, policy_logps(logits_SV, token_S))


def policy_logps(logits_SV: Tensor, token_S: Tensor) -> Tensor:
    """Log-probabilities (S,) of tokens under the logits as they are: temperature 1, no truncation."""
    shift_SV, _, total_S = _weights(logits_SV, 1.0)
    return _gather(shift_SV, token_S) - total_S.log()


def _weights(logits_SV: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits less the row's largest over the temperature, their exponentials, and the sums (S,) of these in float64."""
    shift_SV = logits_SV - logits_SV.amax(-1, keepdim=True)
    if temperature != 1.0:
        shift_SV /= temperature
    weight_SV = shift_SV.exp()
    return shift_SV, weight_SV, weight_SV.sum(-1, dtype=torch.float64)


def _gather(values_SV: Tensor, token_S: Tensor) -> Tensor:
    return values_SV.gather(1, token_S[:, None])[:, 0].double()


class _Sorted(NamedTuple):
    """The likeliest tokens of each row in descending order, in float64; the first `sure_S` of them are certain to be in place."""

    shift_SK: Tensor
    weight_SK: Tensor
    token_SK: Tensor
    sure_S: Tensor


def _likeliest(shift_SV: Tensor, weight_SV: Tensor, width: int) -> _Sorted:
    if shift_SV.shape[1] <= width:
        return _whole(shift_SV, weight_SV)
    token_SK = shift_SV.topk(width, sorted=False).indices.sort().values
    shift_SK, order_SK = shift_SV.gather(1, token_SK).sort(descending=True, stable=True)
    token_SK = token_SK.gather(1, order_SK)
    # Of tokens as likely as the last one here, topk took some and left others, whichever it liked.
    sure_S = (shift_SK > shift_SK[:, -1:]).sum(-1)
    return _Sorted(shift_SK.double(), weight_SV.gather(1, token_SK).double(), token_SK, sure_S)


def _whole(shift_SV: Tensor, weight_SV: Tensor) -> _Sorted:
    token_SV = _descending(shift_SV)
    sure_S = torch.full_like(token_SV[:, 0], shift_SV.shape[1])
    return _Sorted(shift_SV.gather(1, token_SV).double(), weight_SV.gather(1, token_SV).double(), token_SV, sure_S)


def _descending(shift_SV: Tensor) -> Tensor:
    """Token ids (S, V) in descending order of values that are at most 0, equal ones by id."""
    if shift_SV.dtype != torch.float32 or shift_SV.device.type != "cpu":
        return shift_SV.sort(descending=True, stable=True).indices
    # torch takes 25 ms for a row of 49,152 on two cores. Bits of floats above 0 order as integers do: with the id below them, one
    # integer sort of numpy's, which takes 0.2 ms, gives the stable order.
    ids_V = torch.arange(shift_SV.shape[1])
    packed_SV = (shift_SV.abs().view(torch.int32).long() << 32) | ids_V
    return torch.from_numpy(np.sort(packed_SV.numpy(), axis=1)) & 0xFFFFFFFF


def _invert(row: _Sorted, total_S: Tensor, u_S: Tensor, sampling: Sampling, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (S,), log-probabilities (S,) and whether the sorted part was enough to know them (S,)."""
    width, sure_S = row.weight_SK.shape[1], row.sure_S
    mass_SK = row.weight_SK.cumsum(-1)
    mass_of = lambda count_S: mass_SK.gather(1, (count_S.clamp(1, width) - 1)[:, None])[:, 0]
    by_k = sampling.top_k if sampling.top_k < vocabulary else 0
    kept_S = torch.full_like(sure_S, by_k or vocabulary)
    if sampling.top_p < 1:
        before_S = mass_of(kept_S) if by_k else total_S
        kept_S = kept_S.minimum(1 + (mass_SK < sampling.top_p * before_S[:, None]).sum(-1))
    # The largest weight is 1, so min-p compares with weights as they are; a weight that underflowed to 0 is never drawn.
    likely_S = ((row.weight_SK >= sampling.min_p) & (row.weight_SK > 0)).sum(-1)
    kept_S = kept_S.minimum(torch.where(likely_S < width, likely_S, vocabulary))
    closed_S = kept_S <= sure_S
    kept_mass_S = torch.where(closed_S, mass_of(kept_S), total_S)
    target_S = u_S * kept_mass_S
    decided_S = closed_S & (sure_S >= by_k)
    if not by_k and sampling.top_p == 1 and sampling.min_p == 0:  # the mass of the whole row is known without sorting it
        decided_S = closed_S | ((sure_S > 0) & (target_S < mass_of(sure_S)))
    place_S = (mass_SK <= target_S[:, None]).sum(-1).minimum(kept_S.clamp(1, width) - 1)
    logp_S = row.shift_SK.gather(1, place_S[:, None])[:, 0] - kept_mass_S.log()
    return row.token_SK.gather(1, place_S[:, None])[:, 0], logp_S, decided_S
