"""Losses as pure functions of log-probabilities, and the form in which they reach the learner.

A loss returns sums and weights, never means: only the learner divides, once, by the weight of the whole optimizer step over all
micro-batches and processes. Averages of averages would weigh a token of a short micro-batch more than one of a long.

Axes: `N` response tokens, `P` preference pairs, `K` responses to one prompt.
"""

from dataclasses import dataclass, field

from torch import Tensor, logcumsumexp
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


def dpo(logratio_chosen_P: Tensor, logratio_rejected_P: Tensor, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation (Rafailov 2023, eq. 7), (P,): -log sigma(beta h), h = logratio_chosen - logratio_rejected.

    A log-ratio is the summed log-probability of a response under the policy minus that under the reference. With
    `label_smoothing` e (conservative DPO): -(1-e) log sigma(beta h) - e log sigma(-beta h).
    """
    margin_P = beta * (logratio_chosen_P - logratio_rejected_P)
    return -(1 - label_smoothing) * logsigmoid(margin_P) - label_smoothing * logsigmoid(-margin_P)


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | float | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Pairwise loss of a reward model (Bradley and Terry 1952; Ouyang 2022, eq. 1), (P,): -log sigma(z), z = r_w - r_l - m.

    `chosen_P` and `rejected_P` hold r_w and r_l. `margin_P` is by how much the chosen response should win (Touvron 2023, Llama 2,
    eq. 2). With `label_smoothing` e, the share of labels taken to be wrong: -(1-e) log sigma(z) - e log sigma(-z). Unchanged when a
    constant is added to all rewards of a prompt; `centring` takes that freedom away.
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
