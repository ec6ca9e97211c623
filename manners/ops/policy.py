"""The clipped losses of proximal policy optimisation (PPO, Schulman 2017), one number a response token. Axis: `N` response tokens.

What PPO does with them (means, coefficients, epochs) is the learner's; here is what one token contributes.
"""

import torch
from torch import Tensor

LARGEST = 20.0
"""Log-ratios are clamped to +-LARGEST before they are exponentiated: e^20 is still far from what float32 can hold."""


def ratio(logp_N: Tensor, old_logp_N: Tensor) -> Tensor:
    """rho = pi(y_t) / pi_old(y_t) = exp(logp - old_logp), (N,), with the exponent clamped to +-20 (no gradient beyond)."""
    return (logp_N - old_logp_N).clamp(-LARGEST, LARGEST).exp()


def clipped_policy(logp_N: Tensor, old_logp_N: Tensor, advantage_N: Tensor, clip: float, dual_clip: float | None = None) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), (N,) (Schulman 2017, eq. 7, as a loss).

    `old_logp_N` and `advantage_N` are constants of the roll-out. The gradient is zero once the ratio has gone beyond the clip in the
    direction that the advantage asks for. With `dual_clip` c > 1 the loss of a token with A < 0 is at most -c A (Ye 2020):
    without it a bad token that has become much more likely outweighs all others.
    """
    ratio_N = ratio(logp_N, old_logp_N)
    loss_N = torch.maximum(-advantage_N * ratio_N, -advantage_N * ratio_N.clamp(1 - clip, 1 + clip))
    if dual_clip is None:
        return loss_N
    return torch.where(advantage_N < 0, torch.minimum(loss_N, -dual_clip * advantage_N), loss_N)


def clipped_value(value_N: Tensor, old_value_N: Tensor, return_N: Tensor, clip: float) -> Tensor:
    """max((V - G)^2, (V_clip - G)^2) / 2, (N,), with V_clip = V_old + clip(V - V_old, -clip, clip).

    The half is part of it. `old_value_N` and `return_N` (G) are constants of the roll-out. Source: the value loss of OpenAI's
    lm-human-preferences.
    """
    near_N = old_value_N + (value_N - old_value_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((value_N - return_N) ** 2, (near_N - return_N) ** 2)
