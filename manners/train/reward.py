"""Reward models: a linear head on a language model learns what people prefer (Stiennon 2020; Ouyang 2022).

    P(y_w > y_l | x) = sigma(r(x, y_w) - r(x, y_l)),        L = -log sigma(r(x, y_w) - r(x, y_l))

r is the head's output at the last token of the answer, its stop token. Rankings, picks, ratings by aspect and labels have losses of
their own (judgements.py). After training each head's scores are brought to mean 0 and standard deviation 1 on a stated set, which is
saved with the model; then the model is held against prompts that it did not see, and against the rule that the longer answer wins.

Departures from the common recipe: a prompt is computed once for all its answers; pairs longer than `max_length` are left out, not cut,
because a score depends on the end of an answer; the head computes in float32.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from manners.core import files
from manners.core.console import console
from manners.core.errors import InputError, MannersError, nearest
from manners.core.plugins import load_function
from manners.core.records import Group, TokenGroup
from manners.core.run import RunFolder, file_hash, open_run
from manners.data.chat import ChatFormat
from manners.data.checks import trust
from manners.data.formats import DataFile, parse_map, read
from manners.data.shapes import CLASS, CLASS_SHAPES, RATING_SHAPES
from manners.evaluate import scores as evaluation
from manners.feedback.reward_model import MICRO_TOKENS
from manners.model.export import save_tokenizer
from manners.model.load import ModelSource, load_tokenizer, resolve
from manners.model.probe import check_length, probe
from manners.model.reward import REWARD, Card, Member, one_score, outputs, save_reward
from manners.model.roles import BASE, Backbone
from manners.ops.calibration import normaliser
from manners.train import trackers
from manners.train.judgements import LabelLoss, PairLoss, RankingLoss, RatingLoss, reward_scores
from manners.train.learner import Learner, Loss, count_steps
from manners.train.plan import describe, tell_of_soft_labels
from manners.train.stage import Stage, TrainSettings, base_model, base_name, finish, fit, identifying, lora_of

DEFAULT_RATE = {"lora": 1e-4, "full": 1e-5, "frozen": 1e-3}
"""LoRA as TRL's RewardTrainer, full as Llama 2 (Touvron 2023); the rate of a head on a frozen body is ours."""
OBJECTIVES = {
    "pairs": ("bradley-terry",),
    "rankings": ("ranking", "plackett-luce", "pick-best"),
    "picks": ("pick-best", "ranking"),
    "ratings": ("ratings",),
    "classes": ("labels",),
}
"""What can be learned from each kind of rows; the first is the default."""
BEST, EVERY, NONE = "chosen", "all", "none"
NORMAL_ROWS = 1000
"""So many training rows, the first of the file, are enough to fix two numbers on."""


class RewardSettings(TrainSettings):
    """Settings of `manners reward`."""

    objective: Literal["auto", "bradley-terry", "ranking", "plackett-luce", "pick-best", "ratings", "labels"] = "auto"
    """What is learned; auto goes by the rows: pairs, rankings, picks, ratings (or labels=K)."""
    labels: Annotated[int, Field(ge=2)] | None = None
    """Learn to tell so many labels apart (cross-entropy) instead of preferences."""
    good: str | None = None
    """The label whose log-odds are the score; the last one in alphabetical order if not given."""
    aspect_weights: str | None = None
    """Weights of the aspects in the score, such as helpfulness=0.65,verbosity=-0.4; all equal if not given."""
    margin: Annotated[float, Field(ge=0)] | Literal["none", "column"] = "none"
    """By how much the chosen answer should win: a number, or column for each row's own margin (0 where it has none)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs assumed to be labelled the wrong way round."""
    soft_labels: bool = False
    """Learn from each pair both ways, weighed by its column probability; a pair without one counts as certain."""
    centring: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of (r_w + r_l)^2, which draws scores to a mean of zero; 0.01 is usual where it is used."""
    finetune: Literal["lora", "full", "frozen"] = "lora"  # pyright: ignore[reportIncompatibleVariableOverride]
    """What is trained beside the head: an adapter, every weight, or nothing."""
    members: Annotated[int, Field(ge=1)] = 1
    """Heads (with adapters of their own) on the one backbone, each with its own first weights and order of rows."""
    combine: Literal["mean", "worst", "uncertainty"] = "mean"
    """How members become one score."""
    coefficient: Annotated[float, Field(ge=0)] = 0.5
    """How much variance between members costs, for combine=uncertainty."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts that is held out and reported on, all rows of a prompt together."""
    test: str | None = None
    """A further file of the same kind to report on."""
    normalise: str = "auto"
    """On what scores get mean 0 and standard deviation 1: chosen (the better training answers), all (all of them), a file, or none.
    auto is chosen, and none for labels."""


@dataclass(slots=True)
class Task:
    """What is learned: the loss, and what the head's outputs are."""

    kind: str
    outputs: tuple[str, ...]
    weights: tuple[float, ...] | None
    good: str | None
    loss: Loss
    start: tuple[float, ...] | None = None
    """Where the head's outputs begin, if not at 0."""


def reward(settings: RewardSettings) -> dict[str, Any]:
    """Train a reward model; returns the run's manifest. A finished run is returned as it is."""
    with open_run(settings.out, settings.model_dump(), _identifying(settings)) as run:
        if run.manifest is not None:
            console.print(f"{run.path} is finished already")
            return run.manifest
        started = time.time()
        data = read_judgements(settings, settings.data, settings.rows)
        task = task_of(settings, data)
        stage, roles = load(settings, data, task)
        every, data_groups = stage.groups, stage.data.groups
        train, held = split([prompt_key(g) for g in data_groups], settings.validation, settings.seed)
        stage.groups = [every[i] for i in train]
        test = encoded(settings, stage, settings.test) if settings.test is not None else None
        normal = normal_set(settings, stage, task.kind, [data_groups[i] for i in train])
        rate = settings.learning_rate if settings.learning_rate is not None else DEFAULT_RATE[settings.finetune]
        describe(settings, stage, rate, reward_scores)
        skipped = sum(train_member(run, stage, role, m, settings, rate, task.loss) for m, role in enumerate(roles))
        stage.backbone.checkpointing(False)
        card = normalised(card_of(settings, stage, task), settings, stage, roles, normal)
        report: dict[str, Any] = {}
        if held:
            report["validation"] = report_on(card, stage, roles, [data_groups[i] for i in held], [every[i] for i in held])
        if test is not None:
            report["test"] = report_on(card, stage, roles, *test)
        if not report:
            report["train"] = report_on(card, stage, roles, [data_groups[i] for i in train], stage.groups)
        for name, found in report.items():
            evaluation.say(found, name)
        files.write_json(run.path / "report.json", {"kind": card.kind, **report})
        extra = {"report": report, "skipped_steps": skipped, "validation_rows": len(held), "card": card_json(card)}
        manifest = finish(run, stage, settings, "reward", started, extra, lambda folder: write(folder, stage, roles, card))
        files.remove(run.path / "members")
        return manifest


# --- rows ---------------------------------------------------------------------------------------------------------------------


def read_judgements(settings: RewardSettings, path: str, rows: int | None = None) -> DataFile:
    """Rows that say what is better. Raises InputError for rows of another kind."""
    data = read(
        path,
        column_map=parse_map(settings.map) if settings.map else None,
        limit=rows,
        first=CLASS_SHAPES if settings.labels or settings.objective == "labels" else RATING_SHAPES,
    )
    known = OBJECTIVES.get(data.kind)
    if known is None:
        more = " For rows with a label of a class, say how many there are: labels=2." if data.kind in ("labelled", "text") else ""
        raise InputError(
            f"{path} holds {data.kind} ({data.shape} rows), which do not say what is better; a reward model needs pairs, rankings, picks, "
            f"ratings or labels. Give another file, or name the columns with map=.{more}"
        )
    if settings.objective != "auto" and settings.objective not in known:
        raise InputError(
            f"{path} holds {data.kind}, from which objective={settings.objective} cannot be learned; known are: {', '.join(known)}."
        )
    return data


def task_of(settings: RewardSettings, data: DataFile) -> Task:
    """The loss and the head that rows and settings ask for. Raises InputError where they do not fit together."""
    how = OBJECTIVES[data.kind][0] if settings.objective == "auto" else settings.objective
    if settings.loss and how != "bradley-terry":
        raise InputError(f"loss= replaces the loss on pairs, and {settings.data} holds {data.kind}; leave it out.")
    one = (("reward",), (1.0,), None)
    if how == "bradley-terry":
        column = settings.margin == "column"
        if column and all(group.margin is None for group in data.groups):
            raise InputError(f"margin=column, but no row of {settings.data} has a margin; give a number, or leave it out.")
        constant = settings.margin if isinstance(settings.margin, float) else 0.0
        margins = {i: (g.margin or 0.0) if column else constant for i, g in enumerate(data.groups)} if column or constant else None
        function = load_function(settings.loss, "loss") if settings.loss else None
        if settings.soft_labels and (settings.label_smoothing or margins or function):
            raise InputError("soft_labels says how sure each label is, and goes with none of label_smoothing, margin and loss.")
        tell_of_soft_labels([group.probability for group in data.groups], settings.soft_labels, settings.data)
        return Task("pairs", *one, PairLoss(margins, settings.label_smoothing, settings.centring, function, settings.soft_labels))
    if how in ("ranking", "plackett-luce", "pick-best"):
        ranks = {i: [r.scores.get("rank", 1 - r.scores.get("best", 0)) for r in g.responses] for i, g in enumerate(data.groups)}
        if how == "plackett-luce" and any(len(set(places)) < len(places) for places in ranks.values()):
            raise InputError(f"{settings.data} has rankings with ties, which objective=plackett-luce cannot use; use objective=ranking.")
        if how == "pick-best" and any(places.count(min(places)) > 1 for places in ranks.values()):
            raise InputError(f"{settings.data} has rankings with several best answers; use objective=ranking.")
        return Task(data.kind, *one, RankingLoss(ranks, how))
    if how == "ratings":
        aspects = sorted({name for g in data.groups for r in g.responses for name in r.scores})
        given = {i: [[r.scores.get(a, float("nan")) for a in aspects] for r in g.responses] for i, g in enumerate(data.groups)}
        start = np.nanmean(np.array([row for rows in given.values() for row in rows]), 0)
        return Task("ratings", tuple(aspects), aspect_weights(settings, aspects), None, RatingLoss(given), tuple(start.tolist()))
    names = [next(name for name in g.responses[0].scores if name.startswith(CLASS)) for g in data.groups]
    labels = sorted(set(names))
    if settings.labels is not None and len(labels) != settings.labels:
        shown = ", ".join(label.removeprefix(CLASS) for label in labels[:8])
        raise InputError(f"labels={settings.labels}, but {settings.data} has {len(labels)} labels: {shown}.")
    plain = tuple(label.removeprefix(CLASS) for label in labels)
    if settings.good is not None and settings.good not in plain:
        raise InputError(f"good={settings.good} is no label of {settings.data}; {nearest(settings.good, plain)}")
    return Task("labels", plain, None, settings.good or plain[-1], LabelLoss({i: labels.index(name) for i, name in enumerate(names)}))


def aspect_weights(settings: RewardSettings, aspects: Sequence[str]) -> tuple[float, ...]:
    """The aspects' weights in the score, in order. Raises InputError for an aspect that no row has and for a weight that is no number."""
    if settings.aspect_weights is None:
        return (1 / len(aspects),) * len(aspects)
    given: dict[str, float] = {}
    for word in filter(None, (w.strip() for w in settings.aspect_weights.split(","))):
        name, _, value = word.partition("=")
        if name not in aspects:
            raise InputError(f"aspect_weights names '{name}', which no row of {settings.data} has; {nearest(name, aspects)}")
        try:
            given[name] = float(value)
        except ValueError:
            raise InputError(f"aspect_weights: '{word}' is not of the form name=number.") from None
    return tuple(given.get(name, 0.0) for name in aspects)


def prompt_key(group: Group) -> str:
    """What rows of the same prompt have in common; plain text, which has no prompt, is its own."""
    return group.prompt.id if group.prompt.messages else hashlib.sha256(group.responses[0].text.encode("utf-8", "replace")).hexdigest()


def split(keys: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on and of those held out: `share` of the prompts, at least one, all rows of a prompt on one side.

    Raises InputError if there is only one prompt, so that nothing would be left to train on.
    """
    if not share:
        return list(range(len(keys))), []
    drawn = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).hexdigest())
    if len(drawn) < 2:
        raise InputError("there is only one prompt, so none can be held out; give more rows, or validation=0.")
    held = set(drawn[: max(1, round(share * len(drawn)))])
    return [i for i, key in enumerate(keys) if key not in held], [i for i, key in enumerate(keys) if key in held]


# --- model --------------------------------------------------------------------------------------------------------------------


def load(settings: RewardSettings, data: DataFile, task: Task) -> tuple[Stage, list[str]]:
    """The model with the members' heads and adapters, the rows as tokens, all checked before anything is trained.

    Rows longer than `max_length` are left out and counted. Raises InputError for what cannot be trained.
    """
    source = resolve(settings.model)
    tokenizer = load_tokenizer(source)
    chat_format = ChatFormat.of(tokenizer, settings.format)
    data, groups = fitting(data, chat_format, settings.max_length)
    counts = trust(groups, chat_format, data.groups, settings.max_length)
    backbone, roles = add_members(source, settings, tokenizer, task)
    check_length(backbone.model, max(map(_longest, groups)))
    return Stage(source, backbone, roles[0], chat_format, data, groups, probe(backbone), None, counts), roles


def fitting(data: DataFile, chat_format: ChatFormat, max_length: int) -> tuple[DataFile, list[TokenGroup]]:
    """The rows of at most `max_length` tokens and their encoding; each token group's `row` is its index in the file's groups, which the
    losses go by. Raises InputError if none is left."""
    tokens = [replace(chat_format.encode(group), row=index) for index, group in enumerate(data.groups)]
    kept = [(group, encoded) for group, encoded in zip(data.groups, tokens, strict=True) if _longest(encoded) <= max_length]
    left_out = len(tokens) - len(kept)
    if not kept:
        raise InputError(f"every row of {data.path} is longer than max_length={max_length} tokens; raise it.")
    if left_out:
        data = replace(data, groups=[group for group, _ in kept])
        data.notes[f"longer than {max_length} tokens, left out"] = left_out
    return data, [encoded for _, encoded in kept]


def _longest(group: TokenGroup) -> int:
    return len(group.prompt_ids) + max(len(r.token_ids) for r in group.responses)


def add_members(
    source: ModelSource, settings: RewardSettings, tokenizer: PreTrainedTokenizerBase, task: Task
) -> tuple[Backbone, list[str]]:
    """A backbone with a role a member: a fresh adapter or a copy of the source's (or none, or the base itself) and a head."""
    if settings.finetune == "full":
        if settings.members > 1:
            raise InputError("members of an ensemble share one backbone, so finetune=full can have only one; use lora or frozen.")
        backbone = Backbone(base_model(source, settings), tokenizer, source.base)
        backbone.train_base()
        roles = [BASE]
    else:
        backbone = Backbone(base_model(source, settings), tokenizer, source.base)
        roles = [REWARD, *(f"{REWARD}-{m}" for m in range(1, settings.members))]
        trained = settings.finetune == "lora"
        for m, role in enumerate(roles):
            if source.adapter is not None and (trained or m == 0):
                backbone.load_adapter(role, source.adapter, trainable=trained)
            elif trained:
                backbone.add_adapter(role, lora_of(settings), seed=settings.seed + m)
            else:
                backbone.add_role(role, roles[0] if m else BASE)
    for m, role in enumerate(roles):
        backbone.add_head(role, len(task.outputs), seed=settings.seed + m)
        if task.start is not None:
            with torch.no_grad():
                backbone.heads[role].bias.copy_(torch.tensor(task.start))
    return backbone, roles


def train_member(run: RunFolder, stage: Stage, role: str, member: int, settings: RewardSettings, rate: float, loss: Loss) -> int:
    """Train one head and its adapter; returns the number of skipped steps.

    The members of an ensemble are trained one after the other, each in a folder of its own below `members/` until all are done.
    """
    settings = settings.model_copy(update={"seed": settings.seed + member})
    steps = count_steps(len(stage.groups), settings.batch_size, settings.epochs)
    learner = Learner(stage.backbone, role, settings, rate, steps, forward=reward_scores)
    if settings.members == 1:
        fit(run, learner, stage.groups, loss, settings, "reward")
        return learner.skipped
    own = RunFolder(run.path / "members" / str(member))
    own.path.mkdir(parents=True, exist_ok=True)
    fit(own, learner, stage.groups, loss, settings, f"reward {member + 1} of {settings.members}")
    if not own.checkpoints or learner.step_index > files.read_json(own.checkpoints[-1] / "state.json")["step"]:
        with own.checkpoint(learner.step_index) as folder:
            learner.save(folder)
    records = [r for m in range(member + 1) for r in _records(run.path / "members" / str(m), m, steps)]
    files.write_jsonl(run.path / "metrics.jsonl", records)
    trackers.catch_up(run, settings.track, settings.model_dump())
    return learner.skipped


def _records(folder: Path, member: int, steps: int) -> list[dict[str, Any]]:
    """A member's metrics, with steps numbered through over all members."""
    return [{**record, "step": member * steps + record["step"], "member": member} for record in RunFolder(folder).metrics]


# --- what was learned -----------------------------------------------------------------------------------------------------------


def card_of(settings: RewardSettings, stage: Stage, task: Task) -> Card:
    """The card, without normalisers."""
    return Card(
        kind=task.kind,
        outputs=task.outputs,
        weights=task.weights,
        good=task.good,
        members=tuple(Member(settings.seed + m) for m in range(settings.members)),
        combine=settings.combine,
        coefficient=settings.coefficient,
        body=settings.finetune,
        base="" if settings.finetune == "full" else base_name(settings.model, stage.source),
        template=stage.format.template,
        max_length=settings.max_length,
    )


def card_json(card: Card) -> dict[str, Any]:
    """The card as the manifest holds it: without the template, which is with the tokenizer."""
    return {key: value for key, value in asdict(card).items() if key != "template"}


def normal_set(settings: RewardSettings, stage: Stage, kind: str, groups: Sequence[Group]) -> tuple[str, list[TokenGroup]] | None:
    """What scores are normalised on, in words and as tokens; None if they are not. `groups` are the training rows."""
    how = settings.normalise if settings.normalise != "auto" else NONE if kind == "labels" else BEST
    if how == NONE:
        return None
    pairs = list(zip(groups, stage.groups, strict=True))[:NORMAL_ROWS]
    rows = "the training rows" if len(pairs) == len(groups) else f"the first {len(pairs):,} training rows"
    if how == EVERY:
        return f"all answers of {rows}", [tokens for _, tokens in pairs]
    if how == BEST:
        return f"the better answers of {rows}", [_best(group, tokens) for group, tokens in pairs]
    return f"all answers of {how}", encoded(settings, stage, how, judged=False)[1]


def normalised(
    card: Card, settings: RewardSettings, stage: Stage, roles: Sequence[str], normal: tuple[str, list[TokenGroup]] | None
) -> Card:
    """The card with each member's gain and bias, fixed on `normal_set`. Raises MannersError if the scores there are all equal."""
    if normal is None:
        return card
    said, tokens = normal
    found = outputs(stage.backbone, roles, tokens, settings.micro_tokens)
    members = []
    for m, member in enumerate(card.members):
        alone = replace(card, members=(Member(),), combine="mean")
        try:
            gain, bias = normaliser(one_score(alone, found[m : m + 1]).numpy())
        except InputError as error:
            raise MannersError(f"the scores cannot be normalised on {said}: {error} Give another set, or normalise=none.") from error
        members.append(replace(member, gain=gain, bias=bias))
    console.print(f"scores have mean 0 and standard deviation 1 on {said} ({found.shape[1]:,})")
    return replace(card, members=tuple(members), normalised_on=said)


def _best(group: Group, tokens: TokenGroup) -> TokenGroup:
    """The group with its best responses alone: all that no other one beats."""
    beaten = {worse for _, worse in evaluation.ordered(group)}
    return replace(tokens, responses=[r for i, r in enumerate(tokens.responses) if i not in beaten])


def encoded(settings: RewardSettings, stage: Stage, path: str, *, judged: bool = True) -> tuple[list[Group], list[TokenGroup]]:
    """The rows of a further file and their tokens. Raises InputError if they are of another kind than the training rows."""
    data = read_judgements(settings, path) if judged else read(path, first=RATING_SHAPES)
    if judged and data.kind != stage.data.kind:
        raise InputError(f"{path} holds {data.kind}, but the model was trained on {stage.data.kind}; give a file of the same kind.")
    if not any(group.responses for group in data.groups):
        raise InputError(f"{path} holds prompts without answers, on which nothing can be scored.")
    data, tokens = fitting(data, stage.format, settings.max_length)
    return data.groups, tokens


def report_on(card: Card, stage: Stage, roles: Sequence[str], groups: Sequence[Group], tokens: Sequence[TokenGroup]) -> dict[str, Any]:
    """How good the model is on rows of its own kind (see evaluate/scores.py); of an ensemble, each member's accuracy beside."""
    said_MRK = outputs(stage.backbone, roles, tokens, MICRO_TOKENS)
    if card.kind == "ratings":
        given = np.array([[r.scores.get(a, np.nan) for a in card.outputs] for g in groups for r in g.responses])
        return evaluation.rating_report(said_MRK.mean(0).numpy(), given, card.outputs, _keys(groups))
    if card.kind == "labels":
        label_R = np.array(
            [card.outputs.index(next(n for n in g.responses[0].scores if n.startswith(CLASS)).removeprefix(CLASS)) for g in groups]
        )
        return evaluation.label_report(said_MRK.mean(0).numpy(), label_R, card.outputs, _keys(groups))
    report = evaluation.preference_report(evaluation.judged(groups, nested(one_score(card, said_MRK), groups)), card.logit)
    if len(roles) > 1:
        each = [replace(card, members=(member,), combine="mean") for member in card.members]
        alone = [evaluation.judged(groups, nested(one_score(c, said_MRK[m : m + 1]), groups)) for m, c in enumerate(each)]
        report["members"] = [evaluation.preference_report(pairs, c.logit)["accuracy"] for pairs, c in zip(alone, each, strict=True)]
    return report


def _keys(groups: Sequence[Group]) -> list[str]:
    return [prompt_key(group) for group in groups for _ in group.responses]


def nested(score_R: Tensor, groups: Sequence[Group]) -> list[list[float]]:
    """Scores in a row as a list for each group."""
    return [part.tolist() for part in score_R.split([len(group.responses) for group in groups])]


def write(folder: Path, stage: Stage, roles: Sequence[str], card: Card) -> None:
    """The reward model's folder, whole."""
    save_reward(folder, stage.backbone, roles, card)
    save_tokenizer(stage.backbone.tokenizer, folder, stage.format.template)


def _identifying(settings: RewardSettings) -> dict[str, Any]:
    content = identifying(settings, "reward")
    for key in ("test", "normalise"):
        path = Path(getattr(settings, key) or "")
        content[f"{key}_sha256"] = file_hash(path) if path.is_file() else None
    return content
