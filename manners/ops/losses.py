"""Losses as pure functions of log-probabilities, and the form in which they reach the learner.

A loss returns sums and weights, never means: only the learner divides, once, by the weight of the whole optimizer step over all
micro-batches and processes. Averages of averages would weigh a token of a short micro-batch more than one of a long.

Axes: `N` response tokens, `R` responses, `P` preference pairs, `K` responses to one prompt.
"""

import math
from dataclasses import dataclass, field

from torch import Tensor, logcumsumexp, where
from torch.nn.functional import log_softmax, logsigmoid


@dataclass(slots=True)
class Term:
    """One named part of a loss: a differentiable `total` and the `weight` (tokens, pairs) that the whole step's total is divided by."""

    total: Tensor
    weight: float
    coefficient: float = 1.0


@dataclass(slots=True)
class LossTerms:
    """What a loss says of one micro-batch. `metrics` are (total, weight) too, plain numbers."""

    terms: dict[str, Term]
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)


def nll(logp_N: Tensor) -> Tensor:
    """Negative log-likelihood of each trained token, (N,). Source: SFT, the next-token loss on responses only."""
    return -logp_N


# --- preference losses -------------------------------------------------------------------------------------------------------
#
# Each takes what it compares of the chosen and the rejected answers, (P,) each, and returns a loss for each pair, (P,). Those with a
# reference are given log-ratios, Delta = log pi(y|x) - log ref(y|x); those without are given log-probabilities. "Summed" is over an
# answer's trained tokens, "mean" is that divided by their number. Which a loss means is part of the loss: DPO on means, or SimPO on
# sums, is something else. h = chosen_P - rejected_P throughout. Arguments that are named `chosen_tokens_P`, `rejected_tokens_P` and
# `margin_P` are of the pair, all others are numbers with the default of the reference implementation.


EXPONENT = 80.0
"""Largest exponent of the f-divergences: e^80 is still a float32."""
CERTAIN = -1e-6
"""The odds of an answer whose mean log-probability is above this are taken there: at 0 they are infinite."""


def dpo(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation (Rafailov 2023, eq. 7), on summed log-ratios, (P,): -log sigma(beta h).

    With `label_smoothing` e, the share of labels taken to be wrong (conservative DPO, Mitchell 2023):
    -(1-e) log sigma(beta h) - e log sigma(-beta h), least where the policy says 1-e. Defaults: Mitchell's code.
    """
    margin_P = beta * (chosen_P - rejected_P)
    return -(1 - label_smoothing) * logsigmoid(margin_P) - label_smoothing * logsigmoid(-margin_P)


def robust_dpo(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """Robust DPO (Chowdhury 2024), on summed log-ratios, (P,): [-(1-e) log sigma(beta h) + e log sigma(-beta h)] / (1 - 2e).

    An unbiased estimate of DPO's loss on true labels where a share e < 1/2 of those given is flipped. Not bounded below: it goes to
    minus infinity with h, at the rate beta e / (1 - 2e).
    """
    margin_P = beta * (chosen_P - rejected_P)
    return (-(1 - label_smoothing) * logsigmoid(margin_P) + label_smoothing * logsigmoid(-margin_P)) / (1 - 2 * label_smoothing)


def hinge(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1) -> Tensor:
    """Hinge on summed log-ratios, (P,): max(0, 1 - beta h) (SLiC, Zhao 2023, as in RSO, Liu 2024; TRL's `hinge`)."""
    return (1 - beta * (chosen_P - rejected_P)).clamp(min=0)


def ipo(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1) -> Tensor:
    """Identity preference optimisation (Azar 2023), on *mean* log-ratios, (P,): (h - 1 / (2 beta))^2.

    The paper's formula sums; its authors told TRL that the mean is meant, and TRL and HALOs take it. A beta goes with one of the two.
    """
    return (chosen_P - rejected_P - 1 / (2 * beta)) ** 2


def odpo(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """DPO with an offset (Amini 2024), on summed log-ratios, (P,): -log sigma(beta h - alpha log m), m = s_w - s_l > 0 the difference
    of the answers' scores."""
    return -logsigmoid(beta * (chosen_P - rejected_P) - alpha * margin_P.log())


def r_dpo(
    chosen_P: Tensor, rejected_P: Tensor, chosen_tokens_P: Tensor, rejected_tokens_P: Tensor, beta: float = 0.1, alpha: float = 0.01
) -> Tensor:
    """Length-regularised DPO (Park 2024), on summed log-ratios, (P,): -log sigma(beta h + alpha (|y_w| - |y_l|)).

    A chosen answer that is longer has part of its margin for nothing, so it is not pushed further for its length.
    """
    return -logsigmoid(beta * (chosen_P - rejected_P) + alpha * (chosen_tokens_P - rejected_tokens_P))


def js_divergence(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1) -> Tensor:
    """f-DPO (Wang 2024) under the Jensen-Shannon divergence, on summed log-ratios, (P,): -log sigma(beta [g(u_w) - g(u_l)]),
    g(u) = log sigma(u). DPO itself is g(u) = u, the reverse KL."""
    return -logsigmoid(beta * (logsigmoid(chosen_P) - logsigmoid(rejected_P)))


def forward_kl(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1) -> Tensor:
    """f-DPO (Wang 2024) under the forward KL, on summed log-ratios, (P,): as `js_divergence` with g(u) = -e^-u, exponent at most 80."""
    return -logsigmoid(beta * ((-rejected_P).clamp(max=EXPONENT).exp() - (-chosen_P).clamp(max=EXPONENT).exp()))


def alpha_divergence(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1, alpha: float = 0.5) -> Tensor:
    """f-DPO (Wang 2024) under an alpha-divergence, on summed log-ratios, (P,): as `js_divergence` with
    g(u) = e^((alpha-1)u) / (alpha-1), exponent at most 80. `alpha` is not 1, where it would be the reverse KL."""
    chosen_P, rejected_P = (((alpha - 1) * u).clamp(max=EXPONENT).exp() / (alpha - 1) for u in (chosen_P, rejected_P))
    return -logsigmoid(beta * (chosen_P - rejected_P))


def sppo(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1) -> Tensor:
    """Self-play preference optimisation with hard labels (Wu 2024; TRL's `sppo_hard`), on summed log-ratios, (P,):
    (chosen - 1/(2 beta))^2 + (rejected + 1/(2 beta))^2."""
    return (chosen_P - 0.5 / beta) ** 2 + (rejected_P + 0.5 / beta) ** 2


def apo_zero(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation, zero (D'Oosterlinck 2024), on summed log-ratios, (P,):
    1 - sigma(beta chosen) + sigma(beta rejected). For chosen answers that are better than the model's own."""
    return 1 - (beta * chosen_P).sigmoid() + (beta * rejected_P).sigmoid()


def apo_down(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation, down (D'Oosterlinck 2024), on summed log-ratios, (P,):
    sigma(beta chosen) + 1 - sigma(beta h). For chosen answers that are worse than the model's own: both fall, the rejected more."""
    return (beta * chosen_P).sigmoid() + 1 - (beta * (chosen_P - rejected_P)).sigmoid()


def nca(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1) -> Tensor:
    """Noise contrastive alignment of a pair (Chen 2024; TRL's `nca_pair`), on summed log-ratios, (P,):
    -log sigma(beta chosen) - [log sigma(-beta chosen) + log sigma(-beta rejected)] / 2."""
    return -logsigmoid(beta * chosen_P) - 0.5 * logsigmoid(-beta * chosen_P) - 0.5 * logsigmoid(-beta * rejected_P)


def exo(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1, label_smoothing: float = 1e-3) -> Tensor:
    """Efficient exact optimisation of a pair (Ji 2024; TRL's `exo_pair`), on summed log-ratios, (P,): the KL divergence of
    (sigma(beta h), sigma(-beta h)) from (1-e, e). `label_smoothing` e must be above 0."""
    margin_P = beta * (chosen_P - rejected_P)
    chosen_term_P = margin_P.sigmoid() * (logsigmoid(margin_P) - math.log1p(-label_smoothing))
    return chosen_term_P + (-margin_P).sigmoid() * (logsigmoid(-margin_P) - math.log(label_smoothing))


def discopop(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1, alpha: float = 0.05) -> Tensor:
    """DiscoPOP's log-ratio modulated loss (Lu 2024), on summed log-ratios, (P,): -(1-m) log sigma(z) + m e^-z, z = beta h,
    m = sigma(z / alpha). `alpha` is the paper's temperature tau; the exponent is at most 80."""
    margin_P = beta * (chosen_P - rejected_P)
    share_P = (margin_P / alpha).sigmoid()
    return -(1 - share_P) * logsigmoid(margin_P) + share_P * (-margin_P).clamp(max=EXPONENT).exp()


def kto(
    logratio_R: Tensor,
    good_R: Tensor,
    z0: float | Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation (Ethayarajh 2024), on summed log-ratios Delta of answers that are good or not, (R,):

    desirable_weight (1 - sigma(beta (Delta - z0))) of a good answer, undesirable_weight (1 - sigma(beta (z0 - Delta))) of a bad one.
    `z0` >= 0 estimates KL(pi || ref) and carries no gradient. Defaults: HALOs, TRL.
    """
    side_R = 2.0 * good_R.to(logratio_R) - 1.0
    weight_R = undesirable_weight + (desirable_weight - undesirable_weight) * good_R.to(logratio_R)
    return weight_R * (beta * side_R * (z0 - logratio_R)).sigmoid()


def odds_ratio(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """The odds-ratio part of ORPO (Hong 2024, eq. 7), on *mean log-probabilities* of the policy, no reference, (P,):
    -log sigma(lo_w - lo_l), lo = l - log(1 - e^l) the log-odds of an answer with mean log-probability l.

    ORPO is -chosen + lambda times this (eq. 6), lambda 0.1. An l above -1e-6 counts as -1e-6, where its gradient ends.
    """
    return -logsigmoid(log_odds(chosen_P) - log_odds(rejected_P))


def log_odds(mean_P: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = e^mean, finite up to mean = 0, (P,)."""
    mean_P = mean_P.clamp(max=CERTAIN)
    return mean_P - log1mexp(mean_P)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact to rounding near 0 and far from it."""
    return where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p())


def simpo(chosen_P: Tensor, rejected_P: Tensor, beta: float = 2.0, gamma_beta_ratio: float = 0.25) -> Tensor:
    """SimPO (Meng 2024), on *mean log-probabilities* of the policy, no reference, (P,): -log sigma(beta h - gamma).

    gamma = beta x gamma_beta_ratio is the margin to reach. Defaults: the authors' code; their published runs took beta 2 to 10 and
    ratios 0.1 to 0.8.
    """
    return -logsigmoid(beta * (chosen_P - rejected_P - gamma_beta_ratio))


def cpo(chosen_P: Tensor, rejected_P: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Contrastive preference optimisation (Xu 2024), on summed log-probabilities of the policy, no reference, (P,): DPO with a uniform
    reference, -log sigma(beta h). The method adds the negative mean log-probability of the chosen answer, with coefficient 1."""
    return dpo(chosen_P, rejected_P, beta, label_smoothing)


def length_desensitised(logp_N: Tensor, place_N: Tensor, limit_N: Tensor, alpha: float) -> Tensor:
    """Token log-probabilities as LD-DPO sums them (Liu 2024), (N,): those from place `limit_N` of their answer on times `alpha`.

    The limit is the length of the shorter answer of the pair; alpha = 1 is DPO. Done to policy and reference alike.
    """
    return where(place_N < limit_N, logp_N, alpha * logp_N)


# --- reward models -----------------------------------------------------------------------------------------------------------


def bradley_terry(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | float | None = None, label_smoothing: Tensor | float = 0.0
) -> Tensor:
    """Pairwise loss of a reward model (Bradley and Terry 1952; Ouyang 2022, eq. 1), (P,): -log sigma(z), z = r_w - r_l - m.

    `chosen_P` and `rejected_P` hold r_w and r_l. `margin_P` is by how much the chosen response should win (Touvron 2023, Llama 2,
    eq. 2). With `label_smoothing` e, the share of labels taken to be wrong (of all pairs, or one for each, (P,)): -(1-e) log sigma(z) -
    e log sigma(-z). Unchanged when a constant is added to all rewards of a prompt; `centring` takes that freedom away.
    """
    gap_P = chosen_P - rejected_P
    if margin_P is not None:
        gap_P = gap_P - margin_P
    return -(1 - label_smoothing) * logsigmoid(gap_P) - label_smoothing * logsigmoid(-gap_P)


def centring(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """(r_w + r_l)^2, (P,), without a coefficient: draws the rewards of a pair to a mean of zero (Eisenstein 2023)."""
    return (chosen_P + rejected_P) ** 2


def ranking(reward_K: Tensor, ranks_K: Tensor) -> Tensor:
    """Mean over all strictly ordered pairs of one prompt's K responses of -log sigma(r_better - r_worse), () (Ouyang 2022, eq. 1).

    `ranks_K` are places, 0 the best; responses of equal rank form no pair. Without any ordered pair the loss is a zero that backward
    can go through. A prompt counts once however many pairs it has, so the mean is part of the loss and not the learner's division.
    """
    better_KK = ranks_K[:, None] < ranks_K[None, :]
    if not better_KK.any():
        return reward_K[:0].sum()
    return -logsigmoid((reward_K[:, None] - reward_K[None, :])[better_KK]).mean()


def pick_best(reward_K: Tensor, best: int) -> Tensor:
    """-log softmax(r)_best, (): one of K responses was picked, nothing is known of the others (Ziegler 2019, eq. 1)."""
    return -log_softmax(reward_K, 0)[best]


def plackett_luce(reward_K: Tensor) -> Tensor:
    """Negative log-likelihood of a full ranking (Plackett 1975), (): sum over k < K of logsumexp(r_k, ..., r_K) - r_k.

    `reward_K` stands in the order of the ranking, the best first. The best is picked of all, the next of the rest, and so on: K = 2 is
    `bradley_terry`, the first summand alone is `pick_best`.
    """
    rest_K = logcumsumexp(reward_K.flip(0), 0).flip(0)
    return (rest_K - reward_K)[:-1].sum()
