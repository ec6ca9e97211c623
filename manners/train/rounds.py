"""Rounds of sampling and learning, for the trainers that learn from their own samples (ppo.py, grpo.py).

A trainer collects a rollout and learns from it; what is around that is here: progress, the verdict on every rollout and the way back,
checkpoints, what a run that is lost leaves behind. Nothing here knows an algorithm.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from manners.core import files
from manners.core.console import console, progress
from manners.core.errors import InputError, MannersError, ended
from manners.core.run import RunFolder
from manners.model.fetch import quiet
from manners.train import trackers
from manners.train.learner import Learner
from manners.train.leash import Leash, kl_of
from manners.train.rollout import Rollout
from manners.train.stage import Stage, interruptible, write_policy


class Trainer(Protocol):
    """What learns in rounds. `settings` has rounds, save_every and snapshot_every beside those of `TrainSettings`."""

    name: str
    settings: Any
    policy: Learner
    leash: Leash
    round: int

    def collect(self) -> Rollout:
        """A rollout of the policy as it is: sampled, judged and scored. Raises PolicyLost, or what the reward raises."""
        ...

    def learn_from(self, rollout: Rollout) -> dict[str, Any]:
        """All updates on a rollout. Returns the round's metrics."""
        ...

    def skipped(self) -> int:
        """Steps so far that were left out because something was not finite."""
        ...

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...


@dataclass
class Outcome:
    """How a run ended: what was measured of the policy that is its result, and why it stopped early, if it did."""

    closing: dict[str, float]
    stopped: str | None
    rounds: int
    good_round: int
    skipped: int
    alarms: dict[str, int]


class PolicyLost(MannersError):
    """The policy cannot be sampled from or scored any more."""


@contextmanager
def policys_fault() -> Iterator[None]:
    """What fails in this block, but for the user's own errors, is the policy's fault."""
    try:
        yield
    except InputError:
        raise
    except MannersError as error:
        raise PolicyLost(str(error)) from error


def learn(run: RunFolder, trainer: Trainer, stage: Stage | None = None) -> Outcome:
    """All rounds, from the newest checkpoint on or from the first, and a last rollout to see what came of them.

    Raises MannersError for a policy that is lost, after the last good one was written to `last_good/`.
    """
    settings = trainer.settings
    if run.checkpoints:
        trainer.restore(run.checkpoints[-1])
        console.print(f"going on from round {trainer.round:,} of {settings.rounds:,}")
    run.rewind(trainer.round)
    with trackers.tracking(run, settings.track, settings.model_dump()) as tracked, progress() as bar, interruptible() as interrupted:
        task = bar.add_task(trainer.name, total=settings.rounds, completed=trainer.round, note="")
        while True:
            try:
                rollout = trainer.collect()
            except PolicyLost as error:
                trainer.leash.roll_back()
                raise MannersError(_lost(run, trainer, stage, str(error))) from error
            except (MannersError, KeyboardInterrupt):
                if trainer.round:
                    _checkpoint(run, trainer)  # the reward has failed, and the policy is none the worse for it
                raise
            files.write_jsonl(run.path / "rollouts" / f"round-{trainer.round + 1:05d}.jsonl", rollout.table())
            if fault := trainer.leash.verdict(rollout):
                trainer.leash.roll_back()
                if not fault.planned or trainer.round == 0:
                    raise MannersError(_lost(run, trainer, stage, fault.why))
                back = f"back to the policy of round {trainer.leash.good_round + 1:,}."
                console.print(f"stopped before round {trainer.round + 1:,}: {fault.why}; {back}")
                return _outcome(trainer, fault.why)
            if trainer.round == settings.rounds:
                return _outcome(trainer, None)
            try:
                metrics = trainer.learn_from(rollout)
            except MannersError as error:
                trainer.leash.roll_back()
                raise MannersError(_lost(run, trainer, stage, str(error))) from error
            run.log({**metrics, "alarms": trainer.leash.alarms(metrics)})
            tracked.send(metrics)
            bar.update(task, advance=1, note=f"score {metrics['score']:.3f}  KL {kl_of(metrics):.2f}")
            if settings.snapshot_every and trainer.round % settings.snapshot_every == 0 and stage is not None:
                keep_policy(run.path / "snapshots" / f"round-{trainer.round:05d}", trainer, stage)
            if interrupted.is_set() or trainer.round % settings.save_every == 0:
                _checkpoint(run, trainer)
            if interrupted.is_set():
                console.print(f"stopped after round {trainer.round:,} and saved; the same command goes on from there.")
                raise KeyboardInterrupt


def _checkpoint(run: RunFolder, trainer: Trainer) -> None:
    if not run.checkpoints or run.checkpoints[-1].name != f"step-{trainer.round:08d}":
        with run.checkpoint(trainer.round) as folder:
            trainer.save(folder)


def _lost(run: RunFolder, trainer: Trainer, stage: Stage | None, why: str) -> str:
    """Write the last good policy beside the run; what to say about it."""
    if trainer.round == 0 or stage is None:
        return f"round {trainer.round + 1:,}: {ended(why)}"
    keep_policy(run.path / "last_good", trainer, stage)
    return (
        f"round {trainer.round + 1:,}: {ended(why)} The policy of round {trainer.leash.good_round + 1:,} is kept in "
        f"{run.path / 'last_good'}; for another run lower learning_rate, raise beta, or set kl_budget."
    )


def _outcome(trainer: Trainer, stopped: str | None) -> Outcome:
    leash = trainer.leash
    return Outcome(leash.good_measured, stopped, trainer.round, leash.good_round, trainer.skipped(), dict(leash.counts))


def keep_policy(folder: Path, trainer: Trainer, stage: Stage) -> None:
    """The policy as a folder that loads like any model."""
    with files.whole_folder(folder) as partial, quiet():
        write_policy(partial, stage, trainer.settings)


def mean_of(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the optimizer steps of a round, without what is said once a round."""
    left = {"step", "tokens", "seconds", "tokens_per_second", "learning_rate", "skipped", "micro_batches"}
    return {name: sum(s[name] for s in steps) / len(steps) for name in steps[0] if name not in left}


def manifest_of(outcome: Outcome, rollout_size: int) -> dict[str, Any]:
    """What the manifest says of the rounds."""
    return {
        "rounds": outcome.rounds,
        "episodes": outcome.rounds * rollout_size,
        "stopped": outcome.stopped,
        "policy_of_round": outcome.good_round + 1,
        "closing": outcome.closing,
        "skipped_steps": outcome.skipped,
        "alarms": outcome.alarms,
    }
