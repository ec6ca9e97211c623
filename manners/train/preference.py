"""Learning from pairs without a judge: direct preference optimisation (Rafailov 2023) and its family.

    L = - log sigma( beta [ (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x)) ] )

y_w is the chosen and y_l the rejected response, log pi the sum over the response's trained tokens (not the mean: that is another
loss), the reference the policy as it was before the first step. Implicit reward: beta (log pi - log ref).

`LOSSES` is the table of all that can stand in the place of that formula: a new pairwise loss is a function in ops/losses.py and a row
here. The commands `dpo`, `orpo`, `simpo` and `cpo` differ in their rows and settings alone; KTO, which has no pairs, is in kto.py.

Departures from the common recipe: a prompt is stored and computed once for both responses (token tree); the reference's
log-probabilities are computed once and kept (references.py), so no second model is ever in memory.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from manners.core.console import console
from manners.core.errors import InputError, nearest
from manners.core.plugins import load_function
from manners.core.run import open_run
from manners.model.score import Scores
from manners.ops import losses
from manners.ops.losses import LossTerms, Term
from manners.ops.segments import segment_count
from manners.train.learner import Learner, Micro, count_steps
from manners.train.plan import describe, tell_of_soft_labels
from manners.train.references import answer_logps, kept_reference, reference_for, reference_logps, tolerance
from manners.train.stage import Stage, TrainSettings, finish, fit, identifying, prepare
from manners.train.watch import Displacement

__all__ = ["LOSSES", "DPOLoss", "PairRow", "PairSettings", "PreferenceLoss", "pair_loss", "reference_for", "reference_logps"]

DEFAULT_RATE = {"lora": 5e-6, "full": 5e-7}
"""Zephyr's rates (alignment-handbook: QLoRA 5e-6, full 5e-7)."""
ORPO_RATE = {"lora": 5e-5, "full": 5e-6}
"""Full as the authors' Mistral run; ten times that for LoRA is ours."""
SIMPO_RATE = {"lora": 6e-6, "full": 6e-7}
"""Full as the authors' Llama-3-Base run (others: 3e-7 to 1e-6); ten times that for LoRA is ours."""
CPO_RATE = {"lora": 1e-5, "full": 1e-6}
"""Full as TRL's CPOConfig; ten times that for LoRA is ours."""
OF_A_PAIR = ("chosen_tokens_P", "rejected_tokens_P", "margin_P")
"""What a loss is given of each pair beside what it compares, if it has an argument of that name."""


class PairRow(NamedTuple):
    """A pairwise loss: L = factor x function(chosen_P, rejected_P, ...) + nll x (negative mean log-probability of the chosen answer).

    `function` is given log-ratios to the reference, or log-probabilities where `needs_reference` is False; sums over the answer's trained
    tokens, or means if `length` says so. `settings` are the trainer's settings that it takes under their names; `defaults` their values
    where the trainer leaves them open, if not the function's own.
    """

    function: Callable[..., Tensor]
    settings: tuple[str, ...] = ("beta",)
    length: Literal["sum", "mean"] = "sum"
    needs_reference: bool = True
    defaults: Mapping[str, Any] = {}
    factor: str | None = None
    """The setting that is the function's factor; none is 1."""
    command: str = "dpo"


SMOOTHED, SHAPED = ("beta", "label_smoothing"), ("beta", "alpha")
LOSSES = {
    "sigmoid": PairRow(losses.dpo, SMOOTHED),
    "robust": PairRow(losses.robust_dpo, SMOOTHED),
    "hinge": PairRow(losses.hinge),
    "ipo": PairRow(losses.ipo, length="mean"),
    "rpo": PairRow(losses.dpo, SMOOTHED, defaults={"nll": 1.0}),
    "odpo": PairRow(losses.odpo, SHAPED),
    "r_dpo": PairRow(losses.r_dpo, SHAPED),
    "js_divergence": PairRow(losses.js_divergence),
    "forward_kl": PairRow(losses.forward_kl),
    "alpha_divergence": PairRow(losses.alpha_divergence, SHAPED),
    "sppo_hard": PairRow(losses.sppo),
    "apo_zero": PairRow(losses.apo_zero),
    "apo_down": PairRow(losses.apo_down),
    "nca_pair": PairRow(losses.nca),
    "exo_pair": PairRow(losses.exo, SMOOTHED),
    "discopop": PairRow(losses.discopop, SHAPED),
    "orpo": PairRow(losses.odds_ratio, (), "mean", False, {"nll": 1.0, "beta": 0.1}, factor="beta", command="orpo"),
    "simpo": PairRow(losses.simpo, ("beta", "gamma_beta_ratio"), "mean", False, {"beta": 2.0}, command="simpo"),
    "cpo": PairRow(losses.cpo, SMOOTHED, "sum", False, {"nll": 1.0}, command="cpo"),
}
"""Every pairwise loss by name; where TRL has it, under TRL's name."""


class PairSettings(TrainSettings):
    """Keys of every trainer that takes any pairwise loss."""

    loss: str | None = "sigmoid"
    """The loss: a name of the table on the page, or one of your own, module:function."""
    beta: Annotated[float, Field(gt=0)] | None = None
    """Strength of the leash to the reference; none means the loss's own: 2 for simpo, 0.1 for all others."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """Share of labels assumed flipped; none means the loss's own: 0 for sigmoid and rpo, 0.1 for robust, 0.001 for exo_pair."""
    alpha: float | None = None
    """The second number of odpo (1), r_dpo (0.01), alpha_divergence (0.5) and discopop (0.05); none means the one in brackets."""
    nll: Annotated[float, Field(ge=0)] | None = None
    """Coefficient of the chosen answer's negative mean log-probability; none means 1 for rpo and 0 for all others."""
    length: Literal["sum", "mean"] | None = None
    """Whether log-ratios are summed over an answer's tokens or averaged; none means the loss's own: mean for ipo, else sum."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """What a token counts that lies past the length of the pair's shorter answer (LD-DPO); 1 is off."""
    soft_labels: bool = False
    """Learn from each pair both ways, weighed by its column probability; a pair without one counts as certain."""


class DPOSettings(PairSettings):
    """Settings of `manners dpo`."""

    beta: Annotated[float, Field(gt=0)] = 0.1  # pyright: ignore[reportIncompatibleVariableOverride]
    """Strength of the leash to the reference."""


class ORPOSettings(TrainSettings):
    """Settings of `manners orpo`."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Coefficient of the odds ratio, the paper's lambda."""
    soft_labels: bool = False
    """Learn from each pair both ways, weighed by its column probability; a pair without one counts as certain."""


class SimPOSettings(TrainSettings):
    """Settings of `manners simpo`."""

    beta: Annotated[float, Field(gt=0)] = 2.0
    """Scale of the mean log-probability as a reward. Not DPO's: values of 2 to 10 are usual."""
    gamma_beta_ratio: Annotated[float, Field(ge=0)] = 0.25
    """The margin to reach, divided by beta: nats a token."""
    nll: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the chosen answer's negative mean log-probability."""
    soft_labels: bool = False
    """Learn from each pair both ways, weighed by its column probability; a pair without one counts as certain."""


class CPOSettings(TrainSettings):
    """Settings of `manners cpo`."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Scale of the difference of the summed log-probabilities."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels assumed flipped."""
    nll: Annotated[float, Field(ge=0)] = 1.0
    """Coefficient of the chosen answer's negative mean log-probability, the paper's behaviour cloning."""
    soft_labels: bool = False
    """Learn from each pair both ways, weighed by its column probability; a pair without one counts as certain."""


# --- the loss ----------------------------------------------------------------------------------------------------------------


class PreferenceLoss:
    """A pairwise loss as a sum over pairs, for the learner.

    `function` takes what it compares of the chosen and the rejected answers, (P,) each, and by name what it asks for of `OF_A_PAIR`, and
    returns a loss for each pair, (P,). `reference` maps a row to the reference's log-probabilities (chosen, rejected); without one the
    function is given the policy's own. `beta` scales the implicit rewards, which are metrics. The NLL term is over the trained tokens of
    the chosen answer alone. With `soft`, a pair whose chosen answer is the better one with probability p has the loss

        p function(chosen, rejected) + (1 - p) function(rejected, chosen)

    which is the expected loss over labels drawn with that probability (Mitchell 2023 for DPO; Lee 2023, RLAIF, for a judge's labels).
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        reference: Mapping[int, tuple[float, float]] | None,
        beta: float,
        *,
        name: str = "dpo",
        length: str = "sum",
        factor: float = 1.0,
        nll: float = 0.0,
        ld_alpha: float = 1.0,
        soft: bool = False,
    ):
        self.soft = soft
        self.function, self.reference, self.beta, self.name = function, reference, beta, name
        self.length, self.factor, self.nll, self.ld_alpha = length, factor, nll, ld_alpha
        self._asks = [key for key in OF_A_PAIR if key in inspect.signature(function).parameters]

    @property
    def needs_margin(self) -> bool:
        """Whether a pair without a margin cannot be learned from."""
        return "margin_P" in self._asks

    def weigh(self, micro: Micro) -> dict[str, float]:
        pairs = float(len(micro.groups))
        return {self.name: pairs, "nll": pairs} if self.nll else {self.name: pairs}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        pairs = len(micro.groups)
        tokens_P2 = segment_count(scores.response_N, scores.responses).view(pairs, 2)
        change_P2 = logp_P2 = answer_logps(scores, self.ld_alpha).view(pairs, 2)
        if self.reference is not None:
            change_P2 = logp_P2 - logp_P2.new_tensor([self.reference[g.row] for g in micro.groups])
        compared_P2 = change_P2 / tokens_P2 if self.length == "mean" else change_P2
        chosen_P, rejected_P = compared_P2.unbind(1)
        asked: dict[str, Tensor] = {}
        if self._asks:
            asked = {"chosen_tokens_P": tokens_P2[:, 0].to(logp_P2), "rejected_tokens_P": tokens_P2[:, 1].to(logp_P2)}
        if self.needs_margin:
            asked["margin_P"] = logp_P2.new_tensor([g.margin for g in micro.groups])  # pyright: ignore[reportArgumentType]
        loss_P = self.function(chosen_P, rejected_P, **{key: asked[key] for key in self._asks})
        if self.soft:
            swapped = {"chosen_tokens_P": "rejected_tokens_P", "rejected_tokens_P": "chosen_tokens_P"}
            other_P = self.function(rejected_P, chosen_P, **{key: asked[swapped[key]] for key in self._asks})
            sure_P = logp_P2.new_tensor([1.0 if g.probability is None else g.probability for g in micro.groups])
            loss_P = sure_P * loss_P + (1 - sure_P) * other_P
        weights = self.weigh(micro)
        terms = {self.name: Term(loss_P.sum(), weights[self.name], self.factor)}
        own_P2 = scores.logp_R.view(pairs, 2)
        if self.nll:
            terms["nll"] = Term(-(own_P2[:, 0] / tokens_P2[:, 0]).sum(), weights["nll"], self.nll)
        return LossTerms(terms, self._metrics(chosen_P, rejected_P, change_P2, own_P2, tokens_P2))

    def _metrics(
        self, chosen_P: Tensor, rejected_P: Tensor, change_P2: Tensor, logp_P2: Tensor, tokens_P2: Tensor
    ) -> dict[str, tuple[float, float]]:
        """The field's names. `accuracies` counts ties as one half, so an untrained policy scores 0.5 where there is a reference."""
        with torch.no_grad():
            count = float(len(chosen_P))
            gap_P = chosen_P - rejected_P
            right_P = (gap_P > 0).float() + 0.5 * (gap_P == 0).float()
            mean_P2 = logp_P2 / tokens_P2
            sums = {
                "rewards/chosen": self.beta * chosen_P.sum(),
                "rewards/rejected": self.beta * rejected_P.sum(),
                "rewards/margins": self.beta * gap_P.sum(),
                "rewards/accuracies": right_P.sum(),
                "logps/chosen": logp_P2[:, 0].sum(),
                "logps/rejected": logp_P2[:, 1].sum(),
                "logps/chosen_per_token": mean_P2[:, 0].sum(),
                "logps/rejected_per_token": mean_P2[:, 1].sum(),
                "length/chosen": tokens_P2[:, 0].sum(),
                "length/rejected": tokens_P2[:, 1].sum(),
                "length/drift": (gap_P.sign() * (tokens_P2[:, 0] - tokens_P2[:, 1])).sum(),
            }
            if self.reference is not None:
                sums["logratios/chosen"], sums["logratios/rejected"] = change_P2.sum(0)
                sums["logratios/both_fell"] = (change_P2 < 0).all(1).sum()
            return {name: (float(total), count) for name, total in sums.items()}


def DPOLoss(
    reference: Mapping[int, tuple[float, float]],
    beta: float,
    label_smoothing: float = 0.0,
    function: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> PreferenceLoss:
    """DPO's own loss, or `function` on the summed log-ratios (P,) of chosen and rejected answers in its place."""
    return PreferenceLoss(function or partial(losses.dpo, beta=beta, label_smoothing=label_smoothing), reference, beta)


def find_loss(loss: str | PairRow | Callable[..., Tensor] | None) -> PairRow:
    """The row of a loss: a name of the table, module:function, a function, or a row itself; None is DPO's own.

    Raises InputError, naming the nearest, for a name that is not in the table.
    """
    if isinstance(loss, PairRow):
        return loss
    if callable(loss):
        return PairRow(loss, _open(loss))
    if loss is not None and ":" in loss:
        return find_loss(load_function(loss, "loss"))
    name = "sigmoid" if loss is None else loss
    if name not in LOSSES:
        raise InputError(f"there is no loss '{name}'; {nearest(name, LOSSES)}")
    return LOSSES[name]


def _open(function: Callable[..., Tensor]) -> tuple[str, ...]:
    """The settings that a function of the user's asks for: arguments behind the first two, without a default, not of a pair."""
    found = list(inspect.signature(function).parameters.values())[2:]
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in found if p.default is p.empty and p.kind in plain and p.name not in OF_A_PAIR)


def pair_loss(
    loss: str | PairRow | Callable[..., Tensor] | None,
    settings: Any,
    reference: Mapping[int, tuple[float, float]] | Tensor | None = None,
    name: str = "dpo",
) -> PreferenceLoss:
    """The learner's loss of a row of the table, with its numbers from the attributes of `settings`; one that is missing or None has the
    row's default. `reference` maps the rows of the groups to (chosen, rejected) log-probabilities, or is (P, 2) if the rows are 0 to P-1;
    it is needed where the row says so.

    Raises InputError for an unknown name, and for a setting that was given and would have no effect.
    """
    row = find_loss(loss)
    takes = {*row.settings, *filter(None, [row.factor])}
    for key in ("label_smoothing", "alpha"):
        if getattr(settings, key, None) is not None and key not in takes:
            knowing = ", ".join(other for other, known in LOSSES.items() if key in known.settings and known.needs_reference)
            raise InputError(f"loss={loss} has no {key}; leave it out, or use one that has: {knowing}.")
    given = lambda key: row.defaults.get(key) if getattr(settings, key, None) is None else getattr(settings, key)
    values = {key: value for key in row.settings if (value := given(key)) is not None}
    if missing := [key for key in row.settings if key not in values and key not in _defaults(row.function)]:
        raise InputError(f"the loss {loss} asks for '{missing[0]}', which is no setting; give that argument a default.")
    if row.function is losses.exo and values.get("label_smoothing") == 0:
        raise InputError("loss=exo_pair needs a label_smoothing above 0; leave it out for 0.001.")
    if row.function is losses.alpha_divergence and values.get("alpha") == 1:
        raise InputError("loss=alpha_divergence with alpha=1 is the reverse KL, which is loss=sigmoid.")
    soft = getattr(settings, "soft_labels", False)
    if soft and values.get("label_smoothing"):
        raise InputError("soft_labels and label_smoothing both say how sure a label is; set one of them.")
    if soft and "margin_P" in inspect.signature(row.function).parameters:
        raise InputError(f"loss={loss} learns from margins, which have no soft form here; leave out soft_labels.")
    if isinstance(reference, Tensor):
        reference = dict(enumerate(reference.tolist()))
    beta = given("beta") or _defaults(row.function).get("beta", 1.0)
    return PreferenceLoss(
        partial(row.function, **values),
        reference if row.needs_reference else None,
        beta,
        name=name,
        length=getattr(settings, "length", None) or row.length,
        factor=(given(row.factor) or 1.0) if row.factor else 1.0,
        nll=given("nll") or 0.0,
        ld_alpha=getattr(settings, "ld_alpha", 1.0),
        soft=soft,
    )


def _defaults(function: Callable[..., Tensor]) -> dict[str, Any]:
    """The arguments of a function that have a default."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.default is not p.empty}


# --- rows --------------------------------------------------------------------------------------------------------------------


def set_aside(stage: Stage, found: Mapping[str, Iterable[int]]) -> dict[str, dict[str, Any]]:
    """Take rows out of the stage that nothing, or something wrong, would be learned from, and say which.

    `found` maps a reason to indices of `stage.data.groups` (the `row` of a token group). Returns, for the manifest, how many rows each
    reason cost and the first of their numbers in the file, from 1, with those that could not be read. Raises InputError if none is left.
    """
    told = {why: sorted({stage.data.groups[i].row + 1 for i in rows}) for why, rows in found.items()}
    gone = {i for rows in found.values() for i in rows}
    stage.groups = [group for group in stage.groups if group.row not in gone]
    for why, numbers in told.items():
        if numbers:
            shown = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
            console.print(f"  {why}: {len(numbers):,} rows left out (row {shown})")
    if not stage.groups:
        why = max(told, key=lambda reason: len(told[reason]))
        raise InputError(f"{stage.data.path}: no row is left to learn from; {why} ({len(told[why]):,} rows, first row {told[why][0]}).")
    for number, why in stage.data.refused:
        told.setdefault(why, []).append(number)
    return {why: {"count": len(numbers), "rows": numbers[:20]} for why, numbers in told.items() if numbers}


def wrong_pairs(stage: Stage, needs_margin: bool) -> dict[str, list[int]]:
    """Pairs that teach nothing, or not what they should: answers equal as tokens (after the cut at max_length), no usable margin."""
    equal = [g.row for g in stage.groups if g.responses[0].token_ids == g.responses[1].token_ids]
    found = {"chosen and rejected have the same tokens": equal}
    if needs_margin:
        found["no margin above 0, which this loss needs"] = [g.row for g in stage.groups if g.margin is None or not g.margin > 0]
    return found


# --- the commands ------------------------------------------------------------------------------------------------------------


def dpo(settings: DPOSettings) -> dict:
    """Train a policy on preference pairs; returns the run's manifest. A finished run is returned as it is."""
    row = find_loss(settings.loss)
    if row.command != "dpo":
        raise InputError(f"loss={settings.loss} has a command of its own, with defaults of its own: manners {row.command}.")
    return _train(settings, "dpo", row, DEFAULT_RATE)


def orpo(settings: ORPOSettings) -> dict:
    """SFT and an odds ratio in one stage, without a reference (Hong 2024); returns the run's manifest."""
    return _train(settings, "orpo", _own(settings.loss, LOSSES["orpo"]), ORPO_RATE)


def simpo(settings: SimPOSettings) -> dict:
    """Mean log-probability as the reward, and a margin to reach, without a reference (Meng 2024); returns the run's manifest."""
    return _train(settings, "simpo", _own(settings.loss, LOSSES["simpo"]), SIMPO_RATE)


def cpo(settings: CPOSettings) -> dict:
    """DPO with a uniform reference, and the chosen answers' likelihood (Xu 2024); returns the run's manifest."""
    return _train(settings, "cpo", _own(settings.loss, LOSSES["cpo"]), CPO_RATE)


def _own(loss: str | None, row: PairRow) -> PairRow:
    """The command's row, with the user's function in it if there is one. Raises InputError for a name of the table."""
    if loss is None:
        return row
    function = load_function(loss, "loss")
    return row._replace(function=function, settings=_open(function))


def _train(settings: TrainSettings, name: str, row: PairRow, rates: dict[str, float]) -> dict:
    """What the commands on pairs share."""
    pair_loss(row, settings, {}, name)  # complains before anything is written
    with open_run(settings.out, settings.model_dump(), identifying(settings, name)) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already")
            return run.manifest
        started = time.time()
        stage = prepare(settings, kinds=("pairs",))
        loss = pair_loss(row, settings, {}, name)
        left_out = set_aside(stage, wrong_pairs(stage, loss.needs_margin))
        tell_of_soft_labels([group.probability for group in stage.groups], loss.soft, settings.data)
        rate = settings.learning_rate if settings.learning_rate is not None else rates[settings.finetune]
        describe(settings, stage, rate)
        if row.needs_reference:
            logp_P2 = kept_reference(run, stage.backbone, stage.role, stage.groups, settings.micro_tokens, loss.ld_alpha)
            loss.reference = {
                group.row: (chosen, rejected) for group, (chosen, rejected) in zip(stage.groups, logp_P2.tolist(), strict=True)
            }
        steps = count_steps(len(stage.groups), settings.batch_size, settings.epochs)
        learner = Learner(stage.backbone, stage.role, settings, rate, steps)
        watch = Displacement(row.needs_reference, tolerance(stage.backbone))
        fit(run, learner, stage.groups, loss, settings, name, watch)
        extra = {"skipped_steps": learner.skipped, "beta": loss.beta, "left_out": left_out, "displacement": watch.summary()}
        return finish(run, stage, settings, name, started, extra)
