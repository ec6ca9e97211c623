"""`manners judge winrate`: a judge compares the answers of models to the same prompts, in both orders; votes and win rates.

    votes.jsonl     a row a prompt, pair of models and order, in the shape that `manners eval winrate` reads (AlpacaEval's)
    winrate.json    what `manners eval winrate` says of them
    answers/        every answer of the judge

`preference` is 1 plus the probability that the second answer is the better one (2 for sure, 1 surely not, 1.5 undecided), null without a
verdict.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

import manners
from manners.core import files
from manners.core.errors import InputError, nearest
from manners.core.run import file_hash, open_run
from manners.evaluate.winrate import WinrateSettings, winrate
from manners.feedback.comparisons import Answered, Comparison, read_answers
from manners.feedback.judge import Opinion
from manners.feedback.judge_settings import CompareKeys
from manners.feedback.judging import compared, identifying
from manners.model.sampler import AnySampler


class JudgedSettings(CompareKeys):
    """Settings of `manners judge winrate`."""

    rest: ClassVar[str] = "models"

    models: list[str] | dict[str, str]
    """Files of answers by model: words NAME=FILE, or a mapping. A folder of `manners evaluate` stands for its answers."""
    out: str
    """Folder to write."""
    against: str | None = None
    """Compare each model with this one; None compares every two."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many prompts only."""
    swaps: Literal["tie", "average"] = "average"
    """What two orders make that name different winners: a tie, or the mean of both verdicts."""


def judged(settings: JudgedSettings, samplers: Mapping[str, AnySampler] | None = None) -> dict[str, Any]:
    """Judge, write the votes, and return what `manners eval winrate` says of them. Raises as `judging.label` and `winrate` do."""
    sources = sources_of(settings)
    if settings.against is not None and settings.against not in sources:
        raise InputError(f"against={settings.against} is none of the models; {nearest(settings.against, sources)}")
    hashes = {f"{name}_sha256": file_hash(file) for name, file in sources.items()}
    with open_run(settings.out, settings.model_dump(), identifying(settings, "judge winrate") | hashes) as run:
        votes = run.path / "votes.jsonl"
        count = WinrateSettings(votes=str(votes), reference=settings.against, swaps=settings.swaps, out=str(run.path / "winrate.json"))
        if run.manifest is not None:
            return winrate(count)
        started = time.time()
        items = meetings(sources, settings.against, settings.rows)
        opinions, judges = compared(settings, run.path / "answers", items, samplers)
        files.write_jsonl(votes, [vote for i, item in enumerate(items) for given in opinions for vote in votes_of(item, given[i])])
        report = winrate(count)
        costs = {name: judge.pop("cost") for name, judge in judges.items()}
        seconds = round(time.time() - started, 3)
        settled = {"manners": manners.__version__, "settings": settings.model_dump(), "judges": judges, "cost": costs, "seconds": seconds}
        run.finish({"stage": "judge winrate", **settled})
    return {**report, "judges": judges}


def sources_of(settings: JudgedSettings) -> dict[str, str]:
    """Model -> file of answers. Raises InputError for a word without a name, and fewer than two models."""
    given = settings.models
    if isinstance(given, list):
        pairs = [word.partition("=") for word in given]
        if wrong := [word for word, equals, file in pairs if not equals or not file]:
            raise InputError(f"'{wrong[0]}' names no file; write NAME=FILE, a word for each model.")
        given = {name: file for name, _, file in pairs}
    if len(given) < 2:
        raise InputError("a win rate is between models: give two files of answers or more, as in start=FILE sft=FILE.")
    found = {name: str(Path(file) / "answers.jsonl") if Path(file).is_dir() else file for name, file in given.items()}
    for name, file in found.items():
        if not Path(file).is_file():
            raise InputError(f"{name}={given[name]}: there is no file {file}; give a file of answers, or a folder of manners evaluate.")
    return found


def meetings(sources: Mapping[str, str], against: str | None, limit: int | None) -> list[Comparison]:
    """Every prompt that two models answered, for every two models, or for each and the one to compare with, which comes first."""
    found = []
    for _, answers in read_answers(sources, limit):
        first: dict[str, Answered] = {}
        for answer in answers:
            first.setdefault(answer.model, answer)
        for one, two in combinations(first, 2):
            if against not in (None, one, two):
                continue
            a, b = (first[two], first[one]) if two == against else (first[one], first[two])
            found.append(Comparison(len(found), a.prompt, a.text, b.text, a.reference, None, (a.model, b.model), kept=a.kept))
    return found


def votes_of(item: Comparison, opinion: Opinion) -> Sequence[dict[str, Any]]:
    """A vote for each order, as it was shown."""
    assert item.models is not None
    found = []
    for verdict in opinion.verdicts:
        one, two = (1, 0) if verdict.swapped else (0, 1)
        texts = (item.a, item.b)
        found.append(
            {
                "instruction": item.conversation,
                "generator_1": item.models[one],
                "output_1": texts[one],
                "generator_2": item.models[two],
                "output_2": texts[two],
                "annotator": opinion.judge,
                "preference": None if verdict.first is None else round(2 - verdict.first, 9),
            }
        )
    return found
