"""Direct preference optimisation: learn from pairs without a judge (Rafailov 2023).

    L = - log sigma( beta [ (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x)) ] )

y_w is the chosen and y_l the rejected response, log pi the sum over the response's trained tokens (not the mean: that is another
loss), the reference the policy as it was before the first step. Implicit reward: beta (log pi - log ref).

Departures from the common recipe: a prompt is stored and computed once for both responses (token tree); the reference's
log-probabilities are computed once, before the first step, and kept in the run folder, so no second model is ever in memory.
"""

import time
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from manners.core import files
from manners.core.console import console, progress
from manners.core.plugins import load_function
from manners.core.records import TokenGroup
from manners.core.run import RunFolder, open_run
from manners.model.logprob import response_logps
from manners.model.roles import Backbone
from manners.model.score import Scores
from manners.ops import losses
from manners.ops.losses import LossTerms, Term
from manners.ops.segments import segment_count
from manners.train.learner import Learner, Micro, count_steps
from manners.train.plan import describe
from manners.train.stage import TrainSettings, finish, fit, identifying, prepare

DEFAULT_RATE = {"lora": 5e-6, "full": 5e-7}
"""Zephyr's rates (alignment-handbook: QLoRA 5e-6, full 5e-7)."""


class DPOSettings(TrainSettings):
    """Settings of `manners dpo`."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the leash to the reference."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels assumed flipped (conservative DPO)."""


class DPOLoss:
    """The loss above, as a sum over pairs. `reference` maps a row to the reference's log-probabilities (chosen, rejected).

    `function`, if given, replaces the formula: it takes the log-ratios of the chosen and the rejected responses, (P,) each, and
    returns a loss for each pair, (P,).
    """

    def __init__(
        self,
        reference: dict[int, tuple[float, float]],
        beta: float,
        label_smoothing: float = 0.0,
        function: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        self.reference, self.beta = reference, beta
        self.function = function or (lambda chosen_P, rejected_P: losses.dpo(chosen_P, rejected_P, beta, label_smoothing))

    def weigh(self, micro: Micro) -> dict[str, float]:
        return {"dpo": float(len(micro.groups))}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        pairs = len(micro.groups)
        logp_P2 = scores.logp_R.view(pairs, 2)
        reference_P2 = logp_P2.new_tensor([self.reference[g.row] for g in micro.groups])
        chosen_P, rejected_P = (logp_P2 - reference_P2).unbind(1)
        loss_P = self.function(chosen_P, rejected_P)
        return LossTerms({"dpo": Term(loss_P.sum(), float(pairs))}, self._metrics(chosen_P, rejected_P, logp_P2, scores))

    def _metrics(self, chosen_P: Tensor, rejected_P: Tensor, logp_P2: Tensor, scores: Scores) -> dict[str, tuple[float, float]]:
        """The field's names. `accuracies` counts ties as one half, so an untrained policy scores 0.5."""
        with torch.no_grad():
            count = float(len(chosen_P))
            tokens_P2 = segment_count(scores.response_N, scores.responses).view(-1, 2)
            right_P = (chosen_P > rejected_P).float() + 0.5 * (chosen_P == rejected_P).float()
            sums = {
                "rewards/chosen": self.beta * chosen_P.sum(),
                "rewards/rejected": self.beta * rejected_P.sum(),
                "rewards/margins": self.beta * (chosen_P - rejected_P).sum(),
                "rewards/accuracies": right_P.sum(),
                "logps/chosen": logp_P2[:, 0].sum(),
                "logps/rejected": logp_P2[:, 1].sum(),
                "length/chosen": tokens_P2[:, 0].sum(),
                "length/rejected": tokens_P2[:, 1].sum(),
            }
            return {name: (float(total), count) for name, total in sums.items()}


def reference_logps(backbone: Backbone, role: str, groups: Sequence[TokenGroup], micro_tokens: int) -> Tensor:
    """Summed log-probability of each group's two responses under a role, (P, 2), without a graph."""
    with progress() as bar:
        found = bar.track(response_logps(backbone, role, groups, micro_tokens), total=len(groups), description="reference")
        return torch.tensor([[logp for logp, _ in pair] for pair in found], dtype=torch.float64)


def kept_reference(run: RunFolder, backbone: Backbone, role: str, groups: Sequence[TokenGroup], micro_tokens: int) -> Tensor:
    """The reference's log-probabilities (P, 2), computed at the first start of a run and read from its folder ever after."""
    kept = run.path / "reference"
    if not kept.exists():
        logp_P2 = reference_logps(backbone, role, groups, micro_tokens)
        with files.whole_folder(kept) as folder:
            save_file({"logp_P2": logp_P2.contiguous()}, str(folder / "logps.safetensors"))
    return load_file(str(kept / "logps.safetensors"))["logp_P2"]


def dpo(settings: DPOSettings) -> dict:
    """Train a policy on preference pairs; returns the run's manifest. A finished run is returned as it is."""
    with open_run(settings.out, settings.model_dump(), identifying(settings, "dpo")) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already")
            return run.manifest
        started = time.time()
        stage = prepare(settings, kinds=("pairs",))
        rate = settings.learning_rate if settings.learning_rate is not None else DEFAULT_RATE[settings.finetune]
        describe(settings, stage, rate)
        reference_P2 = kept_reference(run, stage.backbone, stage.role, stage.groups, settings.micro_tokens)
        reference = {group.row: (chosen, rejected) for group, (chosen, rejected) in zip(stage.groups, reference_P2.tolist(), strict=True)}
        steps = count_steps(len(stage.groups), settings.batch_size, settings.epochs)
        learner = Learner(stage.backbone, stage.role, settings, rate, steps)
        function = load_function(settings.loss, "loss") if settings.loss else None
        loss = DPOLoss(reference, settings.beta, settings.label_smoothing, function)
        fit(run, learner, stage.groups, loss, settings, "dpo")
        return finish(run, stage, settings, "dpo", started, {"skipped_steps": learner.skipped, "beta": settings.beta})
