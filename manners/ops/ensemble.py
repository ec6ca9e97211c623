"""Several reward models made into one (Coste 2023), against scores that only one of them believes. Axes: `M` members, `R` responses."""

from torch import Tensor

from manners.core.errors import InputError, nearest

WAYS = ("mean", "worst", "uncertainty")


def combine(scores_MR: Tensor, how: str = "mean", coefficient: float = 0.5) -> Tensor:
    """One score a response, (R,).

    "mean": the members' mean; "worst": their least; "uncertainty": mean - coefficient * variance (Coste 2023), the
    variance that of the population (divided by M), so that one member alone has none. Coste takes 0.5 for best-of-N and 0.1 for PPO.
    Members must share mean and spread (`calibration.normaliser`) or the widest decides. Raises InputError for another `how`.
    """
    if how == "mean":
        return scores_MR.mean(0)
    if how == "worst":
        return scores_MR.amin(0)
    if how == "uncertainty":
        mean_R = scores_MR.mean(0)
        return mean_R - coefficient * (scores_MR - mean_R).square().mean(0)
    raise InputError(f"Scores of an ensemble cannot be combined by '{how}'; {nearest(how, WAYS)}")
