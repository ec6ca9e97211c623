"""What a reward model can learn from, as losses over the rewards of a micro-batch: pairs, rankings, picks, ratings, labels.

Each loss finds what was said of a group by its row. All are sums and weights; the formulas are in ops/losses.py. A prompt with all its
responses is one group and so one tree, never cut over micro-batches: K responses cost K forward passes, not K(K-1).

Axes: `P` pairs, `R` responses, `K` responses of one prompt or outputs of the head.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from manners.core.records import TokenGroup
from manners.model.roles import Backbone
from manners.model.score import Scores
from manners.model.tree import TokenTree
from manners.ops import losses
from manners.ops.losses import LossTerms, Term
from manners.train.learner import Micro


def reward_scores(backbone: Backbone, tree: TokenTree) -> Scores:
    """The rewards under the active role: how a reward model's learner scores a micro-batch."""
    return backbone.rewards(tree, backbone.active)


def rewards_of(scores: Scores) -> Tensor:
    """`reward_RK` of a pass of `reward_scores`."""
    if scores.reward_RK is None:
        raise RuntimeError("this pass has no rewards")
    return scores.reward_RK


class PairLoss:
    """Bradley and Terry's loss on pairs (Ouyang 2022, eq. 1), chosen first, with margins, label smoothing and centring.

        L = -(1-e) log sigma(z) - e log sigma(-z) + c (r_w + r_l)^2,    z = r_w - r_l - m

    `margins` maps a row to its m. With `soft` a pair's e is 1 - p, p its `probability` of being the right way round (1 where it has
    none). `function`, if given, replaces the first two summands: it takes the rewards of the chosen and the
    rejected responses, (P,) each, and returns a loss for each pair, (P,).
    """

    def __init__(
        self,
        margins: Mapping[int, float] | None = None,
        label_smoothing: float = 0.0,
        centring: float = 0.0,
        function: Callable[[Tensor, Tensor], Tensor] | None = None,
        soft: bool = False,
    ):
        self.soft = soft
        self.margins, self.label_smoothing, self.centring, self.function = margins, label_smoothing, centring, function

    def weigh(self, micro: Micro) -> dict[str, float]:
        pairs = float(len(micro.groups))
        return {"pairs": pairs, "centring": pairs} if self.centring else {"pairs": pairs}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        chosen_P, rejected_P = rewards_of(scores)[:, 0].view(-1, 2).unbind(1)
        if self.function is not None:
            loss_P = self.function(chosen_P, rejected_P)
        else:
            margin_P = chosen_P.new_tensor([self.margins[g.row] for g in micro.groups]) if self.margins else None
            flipped: Tensor | float = self.label_smoothing
            if self.soft:
                flipped = chosen_P.new_tensor([0.0 if g.probability is None else 1 - g.probability for g in micro.groups])
            loss_P = losses.bradley_terry(chosen_P, rejected_P, margin_P, flipped)
        weights = self.weigh(micro)
        terms = {"pairs": Term(loss_P.sum(), weights["pairs"])}
        if self.centring:
            terms["centring"] = Term(losses.centring(chosen_P, rejected_P).sum(), weights["centring"], self.centring)
        return LossTerms(terms, _pair_metrics(chosen_P.detach(), rejected_P.detach()))


def _pair_metrics(chosen_P: Tensor, rejected_P: Tensor) -> dict[str, tuple[float, float]]:
    count, both = float(len(chosen_P)), torch.cat([chosen_P, rejected_P])
    right_P = (chosen_P > rejected_P).double() + 0.5 * (chosen_P == rejected_P).double()
    sums = {
        "rewards/chosen": chosen_P.sum(),
        "rewards/rejected": rejected_P.sum(),
        "rewards/margins": (chosen_P - rejected_P).sum(),
        "rewards/accuracies": right_P.sum(),
        "rewards/squares": both.square().sum() / 2,
    }
    return {name: (float(total), count) for name, total in sums.items()}


class RankingLoss:
    """Several responses to a prompt, ordered: each prompt counts once. `ranks` maps a row to its responses' places, 0 or 1 the best.

    `how`: "ranking", the mean over all strictly ordered pairs of -log sigma(r_better - r_worse) (Ouyang 2022, eq. 1); "plackett-luce",
    the likelihood of the full ranking, which must have no ties; "pick-best", -log softmax(r) at the first place (Ziegler 2019, eq. 1).
    """

    def __init__(self, ranks: Mapping[int, Sequence[float]], how: str = "ranking"):
        self.ranks, self.how = ranks, how

    def weigh(self, micro: Micro) -> dict[str, float]:
        return {self.how: float(len(micro.groups))}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        found, right, total = [], 0.0, 0.0
        for group, reward_K in _by_group(rewards_of(scores)[:, 0], micro.groups):
            ranks_K = torch.tensor(self.ranks[group.row], dtype=torch.float64, device=reward_K.device)
            found.append(self._one(reward_K, ranks_K))
            said_K = reward_K.detach()
            gap_KK, better_KK = said_K[:, None] - said_K[None, :], ranks_K[:, None] < ranks_K[None, :]
            right += float(((gap_KK > 0).double() + 0.5 * (gap_KK == 0).double())[better_KK].mean())
            total += float(said_K.mean())
        count = self.weigh(micro)[self.how]
        metrics = {"rewards/accuracies": (right, count), "rewards/mean": (total, count)}
        return LossTerms({self.how: Term(torch.stack(found).sum(), count)}, metrics)

    def _one(self, reward_K: Tensor, ranks_K: Tensor) -> Tensor:
        if self.how == "ranking":
            return losses.ranking(reward_K, ranks_K)
        if self.how == "plackett-luce":
            return losses.plackett_luce(reward_K[ranks_K.argsort()])
        return losses.pick_best(reward_K, int(ranks_K.argmin()))


class RatingLoss:
    """Squared error of each aspect that was rated. `ratings` maps a row to (R, K) numbers; NaN where an aspect was not rated."""

    def __init__(self, ratings: Mapping[int, Sequence[Sequence[float]]]):
        self.ratings = ratings

    def _given(self, micro: Micro) -> Tensor:
        return torch.tensor([aspects_K for group in micro.groups for aspects_K in self.ratings[group.row]], dtype=torch.float64)

    def weigh(self, micro: Micro) -> dict[str, float]:
        return {"ratings": float(self._given(micro).isfinite().sum())}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        said_RK = rewards_of(scores)
        given_RK = self._given(micro).to(said_RK)
        rated_RK = given_RK.isfinite()
        off = (said_RK - given_RK.nan_to_num())[rated_RK]
        count = float(rated_RK.sum())
        return LossTerms({"ratings": Term(off.square().sum(), count)}, {"errors/absolute": (float(off.detach().abs().sum()), count)})


class LabelLoss:
    """Cross-entropy of a response's label among K. `labels` maps a row to the label's index."""

    def __init__(self, labels: Mapping[int, int]):
        self.labels = labels

    def weigh(self, micro: Micro) -> dict[str, float]:
        return {"labels": float(len(micro.groups))}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        logits_RK = rewards_of(scores)
        label_R = torch.tensor([self.labels[group.row] for group in micro.groups], device=logits_RK.device)
        right = float((logits_RK.detach().argmax(1) == label_R).sum())
        count = float(len(micro.groups))
        total = cross_entropy(logits_RK, label_R, reduction="sum")
        return LossTerms({"labels": Term(total, count)}, {"accuracies": (right, count)})


def _by_group(reward_R: Tensor, groups: Sequence[TokenGroup]) -> Iterator[tuple[TokenGroup, Tensor]]:
    """Each group with the rewards (K,) of its responses."""
    yield from zip(groups, reward_R.split([len(group.responses) for group in groups]), strict=True)
