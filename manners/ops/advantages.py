"""From a roll-out's scores to what each token is credited with. Axes: `N` response tokens, `R` responses.

Tokens lie end to end, response after response, without padding; `response_N` (in rising order) says whose each is. Everything here is
a constant of the roll-out: no gradient goes through.
"""

import math

import torch
from torch import Tensor

from manners.ops.kl import estimator as kl_estimator
from manners.ops.segments import segment_last, segment_place


@torch.no_grad()
def token_rewards(
    old_logp_N: Tensor, reference_logp_N: Tensor, score_R: Tensor, response_N: Tensor, beta: float, estimator: str = "k1"
) -> Tensor:
    """R_t = -beta KL_t + [t is the response's last token] score, (N,) (Ziegler 2019; Ouyang 2022, eq. 2).

    KL_t is estimated by "k1", "k2" or "k3" of `manners.ops.kl`. The score stands on the last real token; that of a response without
    tokens goes nowhere.
    """
    reward_N = -beta * kl_estimator(estimator)(old_logp_N, reference_logp_N)
    last_R = segment_last(response_N, score_R.numel())
    there_R = last_R >= 0
    reward_N[last_R[there_R]] += score_R[there_R].to(reward_N.dtype)
    return reward_N


@torch.no_grad()
def gae(
    reward_N: Tensor, value_N: Tensor, response_N: Tensor, responses: int, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman 2016, eq. 16) of each response on its own: advantages and returns, both (N,).

    delta_t = R_t + gamma V_{t+1} - V_t with V = 0 after a response's last token; A_t = delta_t + gamma lam A_{t+1}; G_t = A_t + V_t.
    `value_N` is the value of the state *before* each token. Advantages are not whitened here, since returns must not be.
    """
    place_N = segment_place(response_N, responses)
    longest = int(place_N.max()) + 1 if place_N.numel() else 0
    # One row a place, with zeros behind the ends: beyond its end a response has neither reward nor value, so its advantage there is 0.
    reward_TR, value_TR = reward_N.new_zeros(longest, responses), value_N.new_zeros(longest + 1, responses)
    reward_TR[place_N, response_N] = reward_N
    value_TR[place_N, response_N] = value_N
    advantage_TR = reward_TR + gamma * value_TR[1:] - value_TR[:-1]
    for t in range(longest - 2, -1, -1):
        advantage_TR[t] += gamma * lam * advantage_TR[t + 1]
    advantage_N = advantage_TR[place_N, response_N]
    return advantage_N, advantage_N + value_N


@torch.no_grad()
def whiten(values_N: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8), (N,), over all tokens together; the mean is added again where `shift_mean` is False.

    var is the population's. Fewer than two values come back as they are. Mean and variance are formed in float64, so that equal
    values give exactly 0 and not their rounding errors blown up. Source: OpenAI's lm-human-preferences.
    """
    if values_N.numel() < 2:
        return values_N
    wide_N = values_N.double()
    mean = wide_N.mean()
    white_N = (wide_N - mean) / (wide_N.var(correction=0) + 1e-8).sqrt()
    return (white_N if shift_mean else white_N + mean).to(values_N.dtype)


@torch.no_grad()
def explained_variance(return_N: Tensor, value_N: Tensor, centred: bool = True) -> float:
    """1 - Var(G - V) / Var(G): 1 for a perfect critic, 0 for one that knows no more than the mean, below 0 for a harmful one.

    With `centred` False the mean of (G - V)^2 stands for its variance, as in OpenAI's code: a constant error then counts too. Not a
    number where the returns do not vary.
    """
    spread = return_N.double().var(correction=0).item() if return_N.numel() else 0.0
    if not spread > 0:
        return math.nan
    error_N = return_N.double() - value_N.double()
    return 1 - (error_N.var(correction=0) if centred else error_N.square().mean()).item() / spread
