"""Estimates of a KL divergence from log-probabilities of sampled tokens, and what holds it near a target. Axis: `N` response tokens.

With y drawn from pi and d = log pi(y) - log pi_ref(y), three estimates of KL(pi || pi_ref) (Schulman, "Approximating KL divergence",
2020). As *values* k1 and k3 have the right mean. As *losses* to go backward through, on samples of the policy itself, only k2 leads
towards lower KL(pi || pi_ref): the gradient of k1 has mean zero, that of k3 belongs to KL(pi_ref || pi).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from manners.core.errors import InputError, MannersError, nearest
from manners.ops.policy import LARGEST


def k1(logp_N: Tensor, reference_logp_N: Tensor) -> Tensor:
    """d, (N,): unbiased, of high variance, and negative for many a token."""
    return logp_N - reference_logp_N


def k2(logp_N: Tensor, reference_logp_N: Tensor) -> Tensor:
    """d^2 / 2, (N,): biased where the policies differ much, of low variance."""
    return 0.5 * (logp_N - reference_logp_N) ** 2


def k3(logp_N: Tensor, reference_logp_N: Tensor) -> Tensor:
    """e^-d - 1 + d, (N,): unbiased and never negative. d is clamped to at least -20, beyond which there is no gradient."""
    delta_N = (logp_N - reference_logp_N).clamp(min=-LARGEST)
    return (-delta_N).expm1() + delta_N


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def estimator(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The estimate called `name`. Raises InputError for another name than k1, k2, k3."""
    if name not in ESTIMATORS:
        raise InputError(f"There is no KL estimator '{name}'; {nearest(name, ESTIMATORS)}")
    return ESTIMATORS[name]


def approx_kl(new_logp_N: Tensor, old_logp_N: Tensor, name: str = "k3") -> Tensor:
    """KL(pi_old || pi_new) of each token of a roll-out of pi_old, (N,), by estimator `name`: how far the updates have gone.

    With d = log pi_new - log pi_old: k1 is -d, k2 is d^2 / 2, k3 is e^d - 1 - d. Zero before the first update. Not for a gradient.
    """
    return estimator(name)(old_logp_N.detach(), new_logp_N.detach())


@dataclass(slots=True)
class KLController:
    """The coefficient beta of the KL in the reward: fixed, or drawn towards a target (Ziegler 2019).

    With a `target`: e = clip(KL / target - 1, -0.2, 0.2), beta <- beta (1 + e n / horizon), n the episodes since the last update.
    """

    beta: float
    target: float | None = None
    """In nats a *sequence* (the sum over a response's tokens, averaged over responses), not a token. None leaves beta as it is."""
    horizon: float = 10_000
    """In episodes (responses). The smaller, the faster beta moves."""

    def update(self, kl_seq: float, episodes: int) -> float:
        """Take a roll-out's mean KL a sequence into account and return the beta for the next. Raises MannersError if it is not finite."""
        if not math.isfinite(kl_seq):
            raise MannersError(f"The KL to the reference is {kl_seq}: the policy has diverged. Lower the learning rate.")
        if self.target is not None:
            error = min(max(kl_seq / self.target - 1, -0.2), 0.2)
            self.beta *= 1 + error * episodes / self.horizon
        return self.beta

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold for `load`; target and horizon come from the settings."""
        return {"beta": self.beta}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's `state()`."""
        self.beta = float(state["beta"])
