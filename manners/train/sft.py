"""Supervised fine-tuning: the next-token loss on what the assistant says.

    L = - 1/M sum_i sum_t m_it log pi(y_it | x_i, y_i,<t),    M = number of trained tokens of the optimizer step

The mask m is 1 on every assistant turn and its stop token, 0 on everything else; of plain text every token is trained. M is counted
over the whole step, all micro-batches and processes, so a long answer weighs as many tokens as it has and no more.

Departures from the common recipe: no padding and no packing limit (a batch is a token tree); dropout is off.
"""

import time
from collections.abc import Callable

from torch import Tensor

from manners.core.console import console
from manners.core.plugins import load_function
from manners.core.run import open_run
from manners.model.score import Scores
from manners.ops.losses import LossTerms, Term, nll
from manners.train.learner import Learner, Micro, count_steps
from manners.train.plan import describe
from manners.train.stage import TrainSettings, finish, fit, identifying, prepare

DEFAULT_RATE = {"lora": 2e-4, "full": 2e-5}
"""Ten times the full rate for LoRA, as is usual; full as TRL, Zephyr and Llama 2."""


class SFTSettings(TrainSettings):
    """Settings of `manners sft`."""

    epochs: int = 3


class SFTLoss:
    """The loss above, as a sum over tokens and its weight M. `function` takes logp_N and returns a loss for each token, (N,)."""

    def __init__(self, function: Callable[[Tensor], Tensor] = nll):
        self.function = function

    def weigh(self, micro: Micro) -> dict[str, float]:
        return {"nll": float(micro.tree.targets)}

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        return LossTerms({"nll": Term(self.function(scores.logp_N).sum(), float(micro.tree.targets))})


def sft(settings: SFTSettings) -> dict:
    """Fine-tune a model on demonstrations or plain text; returns the run's manifest. A finished run is returned as it is."""
    with open_run(settings.out, settings.model_dump(), identifying(settings, "sft")) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already")
            return run.manifest
        started = time.time()
        stage = prepare(settings, kinds=("demonstrations", "text"))
        rate = settings.learning_rate if settings.learning_rate is not None else DEFAULT_RATE[settings.finetune]
        describe(settings, stage, rate)
        steps = count_steps(len(stage.groups), settings.batch_size, settings.epochs)
        learner = Learner(stage.backbone, stage.role, settings, rate, steps)
        loss = SFTLoss(load_function(settings.loss, "loss")) if settings.loss else SFTLoss()
        fit(run, learner, stage.groups, loss, settings, "sft")
        return finish(run, stage, settings, "sft", started, {"skipped_steps": learner.skipped})
