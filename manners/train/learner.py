"""The one optimizer loop: micro-batches by token budget, one division by the step's weight, exact resume.

Every trainer hands `Learner.step` a list of token groups and a loss. The step's groups are packed into token trees of at most
`micro_tokens` tokens, each is scored and differentiated, and the gradients of all are those of one sum divided by one weight: how
the step was cut, over micro-batches or processes, does not show.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from manners.core import files
from manners.core.config import Settings
from manners.core.errors import InputError, MannersError
from manners.core.records import TokenGroup
from manners.model.decoder import forget
from manners.model.roles import Backbone
from manners.model.score import Scores
from manners.model.tree import TokenTree, pack, partition
from manners.ops.losses import LossTerms

MAX_SKIPPED_IN_A_ROW = 5
"""Steps with a loss or gradient that is not finite are skipped and counted; so many on end mean that the run has diverged."""


class OptimizerSettings(Settings):
    """How weights move. All trainers share these keys."""

    epochs: Annotated[int, Field(ge=1)] = 1
    """Times that every row is seen."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Groups (demonstrations, pairs) in an optimizer step."""
    learning_rate: Annotated[float, Field(ge=0)] | None = None
    """Peak learning rate; the trainer's default depends on `finetune`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[float, Field(ge=0)] = 0.1
    """Share of all steps if below 1, else a number of steps."""
    min_learning_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where cosine and linear end, as a share of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled decay, on every trained weight."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the running mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay of the running mean of squared gradients."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term that keeps it from dividing by zero."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """A longer gradient is scaled down to this norm."""
    micro_tokens: Annotated[int, Field(ge=1)] = 768
    """Token budget of a micro-batch: memory follows this, not the batch size."""
    checkpointing: bool = False
    """Recompute activations in backward: less memory, slower."""
    seed: int = 0
    """Of the order of rows, of fresh weights and of samples."""
    save_every: Annotated[int, Field(ge=1)] = 25
    """Optimizer steps between checkpoints."""


class Micro(NamedTuple):
    """A micro-batch: groups and their packed tree. Responses are numbered through, group after group."""

    groups: list[TokenGroup]
    tree: TokenTree


class Loss(Protocol):
    """What a trainer asks of the model."""

    def weigh(self, micro: Micro) -> dict[str, float]:
        """The weight of each term on this micro-batch, known before the model runs: the step divides by their sum."""
        ...

    def __call__(self, scores: Scores, micro: Micro) -> LossTerms:
        """The terms on this micro-batch; their weights equal `weigh`'s."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A loss that has to know something of the whole step before its first micro-batch (KTO's reference point)."""

    def prepare(self, learner: "Learner", groups: Sequence[TokenGroup]) -> None:
        """Called once a step, with this process's share of it, before `weigh`."""
        ...


def schedule_factor(step: int, total: int, schedule: str, warmup: float, floor: float) -> float:
    """Learning rate of step `step` (0-based) of `total` as a share of the peak.

    Linear rise over the warm-up steps, whose first is 1/warmup_steps, not 0; then constant, or cosine or linear down to `floor`,
    which would be reached at step `total`.
    """
    rise = math.ceil(warmup * total) if warmup < 1 else int(warmup)
    if step < rise:
        return (step + 1) / rise
    if schedule == "constant":
        return 1.0
    progress = (step - rise) / max(1, total - rise)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return floor + (1 - floor) * shape


def batches(rows: int, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Row indices of every optimizer step: each epoch a new permutation keyed by (seed, epoch); its last batch may be smaller."""
    for epoch in range(epochs):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        for start in range(0, rows, batch_size):
            yield order[start : start + batch_size]


def count_steps(rows: int, batch_size: int, epochs: int) -> int:
    """Number of optimizer steps that `batches` yields."""
    return math.ceil(rows / batch_size) * epochs


Forward = Callable[[Backbone, TokenTree], Scores]
"""How a micro-batch is scored, when not as `policy_scores`."""


def policy_scores(backbone: Backbone, tree: TokenTree) -> Scores:
    """Log-probabilities and entropies under the active role: what most losses ask for."""
    return backbone.score(tree, entropy=True)


class Beside(NamedTuple):
    """What else counts in an optimizer step: other rows, with a loss, a forward and micro-batches of their own (PPO-ptx)."""

    name: str
    groups: Sequence[TokenGroup]
    loss: Loss
    forward: Forward = policy_scores


class Learner:
    """AdamW on the trainable weights of one role, its head included.

    `all_reduce` sums a tensor over processes in place; the learner calls it on the weights of the step and, once a step, on each
    gradient, so that no wrapper needs to own the forward pass.
    """

    def __init__(
        self,
        backbone: Backbone,
        role: str,
        settings: OptimizerSettings,
        learning_rate: float,
        total_steps: int,
        all_reduce: Callable[[Tensor], None] | None = None,
        forward: Forward = policy_scores,
    ):
        self.backbone, self.role, self.settings, self.learning_rate = backbone, role, settings, learning_rate
        self.total_steps, self.step_index, self.skipped = total_steps, 0, 0
        self._skipped_in_a_row = 0
        self._forward = forward
        self.all_reduce = all_reduce or (lambda _: None)
        self.parameters = backbone.trainable(role)
        if not self.parameters:
            raise ValueError(f"role '{role}' has no trainable weight")
        backbone.checkpointing(settings.checkpointing)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def step(self, groups: Sequence[TokenGroup], loss: Loss, *beside: Beside) -> dict[str, float]:
        """One optimizer step on a batch and on what counts beside it, whose loss is added and whose other metrics are named after it.

        Returns metrics; raises MannersError when the run has diverged.
        """
        started = time.perf_counter()
        metrics = self.accumulate(groups, loss)
        for part in beside:
            more = self.accumulate(part.groups, part.loss, part.forward)
            metrics["micro_batches"] += more.pop("micro_batches")
            metrics["loss"] += more["loss"]
            metrics |= {f"{part.name}/{name}": value for name, value in more.items()}
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                self.all_reduce(parameter.grad)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.max_grad_norm))
        rate = self.learning_rate * schedule_factor(
            self.step_index, self.total_steps, self.settings.schedule, self.settings.warmup, self.settings.min_learning_rate
        )
        if math.isfinite(norm) and math.isfinite(metrics["loss"]):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            forget(self.backbone)  # AdamW in one pass changes weights without a trace that the decoding copy could see
            self._skipped_in_a_row = 0
        else:
            self.skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise MannersError(
                    f"the loss or its gradient was not a finite number in {MAX_SKIPPED_IN_A_ROW} steps running (step "
                    f"{self.step_index + 1}); the newest checkpoint keeps the last good weights: lower learning_rate and start anew."
                )
        self.optimizer.zero_grad(set_to_none=True)
        self.step_index += 1
        seconds = time.perf_counter() - started
        tokens = sum(g.tokens for part in (groups, *(b.groups for b in beside)) for g in part)
        return {
            "step": self.step_index,
            **metrics,
            "learning_rate": rate,
            "grad_norm": norm,
            "skipped": self.skipped,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
        }

    def accumulate(self, groups: Sequence[TokenGroup], loss: Loss, forward: Forward | None = None) -> dict[str, float]:
        """Add the gradient of the step's loss to `.grad` (this process's share of it) and return the metrics. `forward` is how the
        micro-batches are scored, if not as the learner's own.

        The loss is sum over terms of coefficient x total / weight, totals and weights summed over all micro-batches and processes.
        """
        if isinstance(loss, Prepares):
            loss.prepare(self, groups)
        micros = [Micro(part, pack(part)) for part in partition(groups, self.settings.micro_tokens)]
        announced = [loss.weigh(micro) for micro in micros]
        weights = self._sum_over_processes(announced)
        totals: dict[str, float] = dict.fromkeys(weights, 0.0)
        coefficients: dict[str, float] = {}
        measured: dict[str, list[float]] = {}
        for micro, expected in zip(micros, announced, strict=True):
            for name, (total, coefficient) in self._differentiate(
                micro, expected, weights, loss, measured, forward or self._forward
            ).items():
                totals[name] += total
                coefficients[name] = coefficient
        means = {name: total / weights[name] if weights[name] else 0.0 for name, total in totals.items()}
        return {
            "loss": sum(coefficients.get(name, 1.0) * mean for name, mean in means.items()),
            **{f"loss/{name}": mean for name, mean in means.items() if len(means) > 1},
            **{name: total / weight if weight else 0.0 for name, (total, weight) in measured.items()},
            "micro_batches": len(micros),
        }

    def _differentiate(
        self,
        micro: Micro,
        expected: dict[str, float],
        weights: dict[str, float],
        loss: Loss,
        measured: dict[str, list[float]],
        forward: Forward,
    ) -> dict[str, tuple[float, float]]:
        """Add one micro-batch's gradient to `.grad` and its metrics to `measured`; returns total and coefficient of each term.

        No tensor leaves it: what is left of a graph lies in pieces all over the heap, and the next one's tensors, a little larger,
        would not fit between them.
        """
        with self.backbone.role(self.role):
            scores = forward(self.backbone, micro.tree)
        found = loss(scores, micro)
        if {name: term.weight for name, term in found.terms.items()} != expected:
            raise RuntimeError(f"a loss announced weights {expected} and returned others")
        parts = [t.total * (t.coefficient / weights[name]) for name, t in found.terms.items() if weights[name] > 0]
        if parts:
            torch.stack(parts).sum().backward()
        drawn = scores.entropy_N
        entropy = {} if drawn is None else {"entropy": (float(drawn.sum()), float(micro.tree.targets))}
        for name, (total, weight) in {**found.metrics, **entropy}.items():
            pair = measured.setdefault(name, [0.0, 0.0])
            pair[0] += total
            pair[1] += weight
        return {name: (float(term.total.detach()), term.coefficient) for name, term in found.terms.items()}

    def _sum_over_processes(self, announced: list[dict[str, float]]) -> dict[str, float]:
        names = sorted({name for weights in announced for name in weights})
        summed = torch.tensor([sum(w.get(name, 0.0) for w in announced) for name in names], dtype=torch.float64)
        self.all_reduce(summed)
        return dict(zip(names, summed.tolist(), strict=True))

    # --- resume --------------------------------------------------------------------------------------------------------------

    def save(self, folder: Path, extra: dict[str, Any] | None = None) -> None:
        """Write all that the next step depends on: weights, optimizer, counters, random state, threads. Safetensors and JSON only."""
        save_file({n: p.detach().contiguous() for n, p in self._stored().items()}, str(folder / "weights.safetensors"))
        state: dict[str, Tensor] = {"random.torch": torch.get_rng_state()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                state[f"{name}::{key}"] = value.detach().contiguous()
        save_file(state, str(folder / "optimizer.safetensors"))
        counters = {"step": self.step_index, "skipped": self.skipped, "skipped_in_a_row": self._skipped_in_a_row}
        environment = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        files.write_json(folder / "state.json", {**counters, "environment": environment, **(extra or {})})

    def restore(self, folder: Path) -> dict[str, Any]:
        """Go back to where `save` was called; returns state.json. Sets the number of threads it was saved under, for equal bits."""
        state = files.read_json(folder / "state.json")
        weights = load_file(str(folder / "weights.safetensors"))
        if weights.keys() != self._stored().keys():
            raise InputError(f"the checkpoint {folder} holds other weights than this run trains; remove the run folder to start anew.")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
        stored = load_file(str(folder / "optimizer.safetensors"))
        torch.set_rng_state(stored.pop("random.torch"))
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, value in stored.items():
            name, field = key.split("::")
            by_name.setdefault(name, {})[field] = value
        self.optimizer.state.clear()
        for name, values in by_name.items():
            self.optimizer.state[self.parameters[name]] = values
        self.step_index, self.skipped = state["step"], state["skipped"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        torch.set_num_threads(state["environment"]["threads"])
        return state

    def _stored(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items()}
