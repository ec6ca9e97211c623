"""What PPO minimises on a micro-batch: the clipped surrogate of the policy, the critic's loss, and text beside them.

All are sums over tokens and their weight; the learner divides. Old log-probabilities, advantages, values and returns are columns of the
rollout, of which each takes the part that belongs to its micro-batch.
"""

import math
from typing import TYPE_CHECKING

from manners.core.plugins import load_function
from manners.model.score import Scores
from manners.ops.kl import approx_kl
from manners.ops.losses import LossTerms, Term
from manners.ops.policy import clipped_policy, clipped_value, ratio
from manners.train.learner import Micro
from manners.train.rollout import Rollout
from manners.train.sft import SFTLoss

if TYPE_CHECKING:
    from manners.train.ppo import PPOSettings


class ValueLoss:
    """c_v max((V - G)^2, (V_clip - G)^2) / 2 a token."""

    def __init__(self, rollout: Rollout, settings: "PPOSettings"):
        self.rollout, self.settings = rollout, settings

    def weigh(self, micro: Micro) -> dict[str, float]:
        return {"value": float(micro.tree.targets)}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        assert scores.value_N is not None
        value_N, clip, count = scores.value_N, self.settings.value_clip or math.inf, float(micro.tree.targets)
        old_N, return_N = (self.rollout.at(micro, column, value_N) for column in (self.rollout.value_N, self.rollout.return_N))
        total = clipped_value(value_N, old_N, return_N, clip).sum()
        moved = float(((value_N.detach() - old_N).abs() > clip).sum())
        metrics = {"loss/value": (float(total.detach()), count), "value_clipfrac": (moved, count)}
        return LossTerms({"value": Term(total, count, self.settings.value_coef)}, metrics)


class PolicyLoss:
    """The clipped surrogate; with a shared critic also the value loss, with `entropy_coef` also the entropy bonus.

    The bonus has the value of the entropy H and the gradient of its score-function estimate, E[-(log pi + H) rho grad log pi], with H
    as the baseline: no further product with the vocabulary is made for it.
    """

    def __init__(self, rollout: Rollout, settings: "PPOSettings"):
        self.rollout, self.settings, self.largest = rollout, settings, 0.0
        self.value = ValueLoss(rollout, settings) if settings.value == "shared" else None
        self.function = load_function(settings.loss, "loss") if settings.loss else None

    def weigh(self, micro: Micro) -> dict[str, float]:
        count = float(micro.tree.targets)
        more = {"entropy": count} if self.settings.entropy_coef else {}
        return {"policy": count, **more, **(self.value.weigh(micro) if self.value else {})}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        logp_N, settings, count = scores.logp_N, self.settings, float(micro.tree.targets)
        old_N = self.rollout.at(micro, self.rollout.old_logp_N, logp_N)
        advantage_N = self.rollout.at(micro, self.rollout.advantage_N, logp_N)
        if self.function is not None:
            loss_N = self.function(logp_N, old_N, advantage_N)
        else:
            loss_N = clipped_policy(logp_N, old_N, advantage_N, settings.clip, settings.dual_clip)
        found = LossTerms({"policy": Term(loss_N.sum(), count)})
        if settings.entropy_coef:
            assert scores.entropy_N is not None
            leading_N = -(logp_N.detach() + scores.entropy_N) * ratio(logp_N, old_N)
            bonus_N = scores.entropy_N + leading_N - leading_N.detach()
            found.terms["entropy"] = Term(-bonus_N.sum(), count, settings.entropy_coef)
        if self.value is not None:
            value = self.value(scores, micro)
            found.terms |= value.terms
            found.metrics |= value.metrics
        ratio_N = ratio(logp_N.detach(), old_N)
        self.largest = max(self.largest, float(ratio_N.max()))
        sums = {
            "loss/policy": loss_N.detach().sum(),
            "ratio": ratio_N.sum(),
            "ratio_square": (ratio_N**2).sum(),
            "clipfrac": ((ratio_N - 1).abs() > settings.clip).sum(),
            "approx_kl": approx_kl(logp_N, old_N, "k3").sum(),
        }
        found.metrics |= {name: (float(total), count) for name, total in sums.items()}
        return found


class PtxLoss(SFTLoss):
    """c_ptx times the next-token loss on text beside the rollouts (Ouyang 2022, eq. 2)."""

    def __init__(self, coefficient: float):
        super().__init__()
        self.coefficient = coefficient

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        found = super().__call__(scores, micro)
        found.terms["nll"].coefficient = self.coefficient
        return LossTerms(found.terms, {"nll": (float(found.terms["nll"].total.detach()), found.terms["nll"].weight)})
