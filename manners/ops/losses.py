"""Losses as pure functions of log-probabilities, and the form in which they reach the learner.

A loss returns sums and weights, never means: only the learner divides, once, by the weight of the whole optimizer step over all
micro-batches and processes. Averages of averages would weigh a token of a short micro-batch more than one of a long.

Axes: `N` response tokens, `P` preference pairs.
"""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import logsigmoid


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
