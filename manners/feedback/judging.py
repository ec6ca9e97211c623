"""`manners judge label` and `manners judge rate`: models judge answers, and every judgement says by whom and how. docs/judges.md.

    votes.jsonl     label: a row a judge and comparison, in the shape that `manners pairs` and `manners eval agreement` read
    pairs.jsonl     label: chosen, rejected, margin, `probability` (for soft_labels=true)
    rated.jsonl     rate: a row a prompt, its answers with their marks, in the shape that `manners pairs` binarises
    judge.json      counts: what was scored and what not and why, how often the first-shown answer won, tokens
    answers/        every answer of each judge by what it was asked: what makes a run repeatable, and resumable
    manifest.json   written last

All but the manifest depends on the settings, the data and the judges' answers alone: made again from `answers/`, without a judge, it is the
same bytes.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import manners
from manners.core import files
from manners.core.chance import stream_of, uniform
from manners.core.console import console
from manners.core.errors import InputError, nearest
from manners.core.run import RunFolder, content_hash, file_hash, open_run
from manners.data.writers.constitution import Principle, read_principles
from manners.data.writers.seeds import STARTER, starter_file
from manners.feedback.comparisons import Comparison, read_answers, read_comparisons
from manners.feedback.judge import Criterion, Judge, JudgePrompts, Manner, Mark, Opinion, open_judge, told
from manners.feedback.judge_settings import CompareKeys, JudgeSettings, LabelSettings, RateSettings
from manners.feedback.rulings import write_labels, write_marks
from manners.model.sampler import AnySampler

ASPECTS = Path(__file__).parent / "prompts" / "aspects.yaml"


# --- the commands -----------------------------------------------------------------------------------------------------------------


def label(settings: LabelSettings, samplers: Mapping[str, AnySampler] | None = None) -> dict[str, Any]:
    """Judge, write, and return what `judge.json` holds. `samplers` take the places of judges by their names.

    Raises InputError for settings and files that cannot be used and for judges that give no log-probabilities where these are asked for;
    MannersError for an endpoint that stays away and a budget that is spent: what was answered by then is kept.
    """
    if settings.clamp is not None and not 0 <= settings.clamp[0] <= 0.5 <= settings.clamp[1] <= 1:
        raise InputError(f"clamp={settings.clamp} must be two probabilities around one half, as in [0.4,0.6].")
    if settings.principles is not None and settings.rubric is not None:
        raise InputError("principles= and rubric= both say what is better; give one of them.")
    with open_run(settings.out, settings.model_dump(), identifying(settings, "judge label")) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already; nothing to do")
            return files.read_json(run.path / "judge.json")
        started = time.time()
        items, dropped = read_comparisons(
            settings.data, columns=settings.map, limit=settings.rows, seed=settings.seed, per_prompt=settings.pairs
        )
        criteria = _criteria(settings, items)
        opinions, judges = asked(settings, run.path / "answers", samplers, lambda judge: _compared(judge, items, criteria, settings))
        report = write_labels(settings, run.path, items, criteria, opinions, dropped)
        report = {**report, "judges": judges}
        return _finished(run, settings, "judge label", report, started)


def rate(settings: RateSettings, samplers: Mapping[str, AnySampler] | None = None) -> dict[str, Any]:
    """Rate every answer in every aspect, write, and return what `judge.json` holds. Raises as `label` does."""
    low, high = settings.scale
    if not 0 <= low < high <= 10:
        raise InputError(f"scale={settings.scale} must be two whole numbers from 0 to 10, the lower one first.")
    aspects = aspects_of(settings.aspects)
    with open_run(settings.out, settings.model_dump(), identifying(settings, "judge rate")) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already; nothing to do")
            return files.read_json(run.path / "judge.json")
        started = time.time()
        sources = {"": settings.data} if isinstance(settings.data, str) else settings.data
        table = list(read_answers(sources, settings.rows))
        answers = [answer for _, several in table for answer in several]
        if not answers:
            raise InputError(f"{settings.data} holds no answers.")
        criterion = Criterion("rubric", rubric_of(settings.rubric))
        ask = lambda judge: judge.rate(answers, aspects, criterion, references=settings.references)
        marks, judges = asked(settings, run.path / "answers", samplers, lambda judge: _marked(judge, ask(judge)))
        report = write_marks(settings, run.path, table, list(aspects), list(zip(*marks, strict=True)))
        return _finished(run, settings, "judge rate", {**report, "judges": judges}, started)


def _finished(run: RunFolder, settings: JudgeSettings, stage: str, report: dict[str, Any], started: float) -> dict[str, Any]:
    costs = {name: judge.pop("cost") for name, judge in report["judges"].items()}
    files.write_json(run.path / "judge.json", report)
    seconds = round(time.time() - started, 3)
    whole = {"stage": stage, "manners": manners.__version__, "settings": settings.model_dump(), "cost": costs, "seconds": seconds, **report}
    run.finish(whole)
    for name, cost in costs.items():
        console.print(
            f"{name}: {cost['misses']:,} questions asked, {cost['hits']:,} answered from memory; about {cost['prompt_tokens']:,} tokens "
            f"read and {cost['completion_tokens']:,} written"
        )
    return report


# --- asking ---------------------------------------------------------------------------------------------------------------------


def manner_of(settings: JudgeSettings) -> Manner:
    """How the settings let a judge be asked."""
    taken = ("verdict", "thoughts", "orders", "ties", "max_new_tokens")
    low, high = getattr(settings, "scale", (1, 5))
    return Manner(**{key: getattr(settings, key) for key in taken if hasattr(settings, key)}, low=low, high=high)


@contextmanager
def judging(settings: JudgeSettings, name: str, folder: Path, sampler: AnySampler | None = None) -> Iterator[Judge]:
    """One of the settings' judges, opened."""
    voice: dict[str, Any] = {"slots": settings.slots}
    if name.startswith(("http://", "https://")):
        keys = ("concurrency", "per_minute", "timeout", "tries", "key_env", "extra")
        voice |= {key: getattr(settings, key) for key in keys}
    prompts = Path(settings.prompts) if settings.prompts else None
    place = folder if len(settings.judge) == 1 else folder / str(settings.judge.index(name) + 1)
    with open_judge(
        name, manner_of(settings), place, fmt=settings.format, prompts=prompts, budget=settings.budget, sampler=sampler, **voice
    ) as judge:
        yield judge


def asked(
    settings: JudgeSettings,
    folder: Path,
    samplers: Mapping[str, AnySampler] | None,
    ask: Callable[[Judge], tuple[list[Any], dict[str, Any]]],
) -> tuple[list[list[Any]], dict[str, dict[str, Any]]]:
    """What each judge says, one judge after another so that only one model is in memory, and what each did in numbers."""
    if twice := [name for name, n in Counter(settings.judge).items() if n > 1]:
        raise InputError(f"the panel names the judge '{twice[0]}' twice; a judge without chance says the same again.")
    said, numbers = [], {}
    for name in settings.judge:
        with judging(settings, name, folder, (samplers or {}).get(name)) as judge:
            found, numbers[name] = ask(judge)
            said.append(found)
    return said, numbers


def _compared(judge: Judge, items: Sequence[Comparison], criteria: Sequence[Criterion], settings: CompareKeys):
    opinions = judge.compare(items, criteria, references=settings.references)
    return opinions, told(judge, opinions)


def compared(
    settings: CompareKeys, folder: Path, items: Sequence[Comparison], samplers: Mapping[str, AnySampler] | None = None
) -> tuple[list[list[Opinion]], dict[str, dict[str, Any]]]:
    """Every judge's opinion of every comparison, by the settings' rubric."""
    criteria = [Criterion("rubric", rubric_of(settings.rubric))] * len(items)
    return asked(settings, folder, samplers, lambda judge: _compared(judge, items, criteria, settings))


def _marked(judge: Judge, marks: Sequence[Mapping[str, Mark]]) -> tuple[list[Any], dict[str, Any]]:
    flat = [mark for answer in marks for mark in answer.values()]
    numbers = {
        "marks": len(flat),
        "scored": sum(mark.value is not None for mark in flat),
        "unscored": dict(Counter(mark.why for mark in flat if mark.value is None)),
        "read": dict(Counter(mark.heard.read for mark in flat if mark.value is not None)),
        "cost": {**judge.recorded.counts.as_dict(), "tokens_in_folder": judge.recorded.spent},
    }
    return list(marks), numbers


def rubric_of(text: str | None) -> str:
    """The words of a rubric: a file's, or themselves."""
    if text is None:
        return ""
    path = Path(text).expanduser()
    if len(text) < 300 and "\n" not in text and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    if len(text.split()) == 1:
        raise InputError(f"rubric={text} is no file, and a rubric of one word says little; write sentences, or name a text file.")
    return text.strip()


def aspects_of(named: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Aspects with their descriptions. Raises InputError for a name that does not ship."""
    if isinstance(named, Mapping):
        return dict(named)
    known = files.read_mapping(ASPECTS, "aspects")
    for name in named:
        if name not in known:
            raise InputError(f"there is no aspect '{name}'; {nearest(name, known)} Others are described: aspects={{NAME: what it means}}.")
    return {name: str(known[name]) for name in named}


def _criteria(settings: LabelSettings, items: Sequence[Comparison]) -> list[Criterion]:
    """By what each comparison is judged: a principle drawn for it, else the rubric."""
    if settings.principles is None:
        return [Criterion("rubric" if settings.rubric else "", rubric_of(settings.rubric))] * len(items)
    listed = read_principles(_file(settings.principles))
    draw = lambda item: listed[int(uniform(stream_of(settings.seed, item.key, "principle"), 0) * len(listed))]
    return [_criterion(draw(item)) for item in items]


def _criterion(principle: Principle) -> Criterion:
    otherwise = f"{principle.critique} The better answer is the one that does better in this."
    return Criterion(principle.name, principle.choice or otherwise)


def _file(name: str) -> Path:
    return starter_file(name) if name.startswith(STARTER) else Path(name).expanduser()


def identifying(settings: JudgeSettings, stage: str) -> dict[str, Any]:
    """What can change what is written, beside the judges' answers."""
    content: dict[str, Any] = settings.model_dump(exclude=set(settings.silent)) | {"stage": stage}
    data = getattr(settings, "data", {})
    for key, name in [("data", data)] if isinstance(data, str) else [(f"data.{k}", v) for k, v in data.items()]:
        if Path(name).is_file():
            content[f"{key}_sha256"] = file_hash(name)
    for key in ("principles", "rubric"):
        name = getattr(settings, key, None)
        if name and len(name) < 300 and _file(name).is_file():
            content[f"{key}_sha256"] = file_hash(_file(name))
    content["judge_sha256"] = [content_hash(Path(name)) if Path(name).is_dir() else name for name in settings.judge]
    content["prompts_sha256"] = JudgePrompts(Path(settings.prompts) if settings.prompts else None).hash
    return content
