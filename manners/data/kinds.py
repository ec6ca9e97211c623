"""Groups of one kind as groups of another: pairs as rankings, good answers as demonstrations. What cannot go along is named.

    demonstrations   one answer                  labelled   one answer, good or bad
    pairs            two, the first is better    rankings   several, each with a rank
    picks            several, one is the best    ratings    one, with a number for each aspect
    classes          one text or answer, with the name of its class
    text             no prompt                   prompts    no answer

What a kind has no place for, but a column can hold (a margin, a label, aspects), goes along as a column of its own name and is found
there again on the way back. What would have to be made up (a second answer, a label) is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from manners.core.records import TEXT_ROLE, Group, Message, Prompt, Response
from manners.data.shapes import CLASS, RowRefused

Became = tuple[list[Group], list[str]]
"""Groups of the new kind, and what was lost on the way."""
OTHER_ANSWERS = "answers that are not the best"
BAD = "answers labelled bad"
COMPARISON = "which two answers were compared"
ROLES_LOST = "who says what"
ANSWERS = "the answers"
POLICY = "several answers become pairs by a policy, of which there are several: use manners pairs"


def as_kind(group: Group, kind: str, wanted: str) -> Became:
    """A group of `kind` as groups of the kind `wanted`, and what is lost. Raises RowRefused where something would have to be made up."""
    group = gathered(group, kind)
    if kind == wanted:
        return [group], []
    if wanted == "prompts" and kind != "text":
        return [replace(_kept(group), responses=[])], [ANSWERS] if group.responses else []
    if wanted == "text" and kind not in ("text", "prompts", "classes"):
        groups, lost = as_kind(group, kind, "demonstrations")
        return [_as_text(one) for one in groups], [*lost, ROLES_LOST]
    way = WAYS.get((kind, wanted))
    if way is None:
        raise RowRefused(f"{kind} cannot become {wanted}: {_missing(kind, wanted)}")
    return way(group)


def gathered(group: Group, kind: str) -> Group:
    """The group with what an earlier conversion put into columns: under `columns`, or as margin and probability of a pair."""
    columns = dict(group.columns)
    held = columns.pop("columns", None)
    if isinstance(held, Mapping):
        columns |= held
    elif "columns" in group.columns:
        columns["columns"] = held
    margin, sure = group.margin, group.probability
    if kind == "pairs":
        if margin is None and _is_number(columns.get("margin")):
            margin = float(columns.pop("margin"))
        if sure is None and _is_number(columns.get("probability")):
            sure = float(columns.pop("probability"))
    return replace(group, columns=columns, margin=margin, probability=sure)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _missing(kind: str, wanted: str) -> str:
    if kind == "text":
        return "a text has no prompt"
    if kind == "prompts":
        return "a prompt has no answer; manners generate answers prompts"
    if wanted == "labelled" and kind == "demonstrations":
        return "nobody said whether the answer is good or bad"
    if wanted in ("pairs", "rankings", "picks"):
        return "a row has one answer only"
    return "nobody gave what those need"


def _kept(group: Group, **more: Any) -> Group:
    """The group with margin, probability and `more` as columns: a kind that has no place for them keeps them under their names."""
    said = {"margin": group.margin, "probability": group.probability, **more}
    return replace(group, margin=None, probability=None, columns={**group.columns, **{k: v for k, v in said.items() if v is not None}})


def _with(response: Response, **scores: float) -> Response:
    return replace(response, scores=scores)


def _one(group: Group, place: int = 0) -> Group:
    """The group with one of its answers, as a demonstration."""
    return replace(group, responses=[_with(group.responses[place])])


def _sureness(group: Group) -> list[str]:
    """The numbers of a comparison, where it has them."""
    return [name for name, value in (("the margin", group.margin), ("the probability", group.probability)) if value is not None]


def _pair_as_chosen(group: Group) -> Became:
    return [replace(_one(group), margin=None, probability=None)], [OTHER_ANSWERS, *_sureness(group)]


def _pair_as_labelled(group: Group) -> Became:
    marked = [_with(response, label=label) for response, label in zip(group.responses, (1.0, 0.0), strict=True)]
    return [replace(group, responses=[one], margin=None, probability=None) for one in marked], [COMPARISON, *_sureness(group)]


def _pair_as_ranking(group: Group) -> Became:
    return [_kept(replace(group, responses=[_with(r, rank=rank) for r, rank in zip(group.responses, (1.0, 2.0), strict=True)]))], []


def _pair_as_pick(group: Group) -> Became:
    return [_kept(replace(group, responses=[_with(r, best=best) for r, best in zip(group.responses, (1.0, 0.0), strict=True)]))], []


def _labelled_as_demonstration(group: Group) -> Became:
    if not group.responses[0].scores["label"]:
        return [], [BAD]
    return [_kept(_one(group), label=True)], []


def _demonstration_as_labelled(group: Group) -> Became:
    columns = dict(group.columns)
    label = columns.pop("label", None)
    if not isinstance(label, bool):
        raise RowRefused("demonstrations cannot become labelled: nobody said whether the answer is good or bad")
    return [replace(group, responses=[_with(group.responses[0], label=float(label))], columns=columns)], []


def _best_rank(group: Group) -> int:
    """The place of the one best answer. Raises RowRefused where two are."""
    ranks = [r.scores["rank"] for r in group.responses]
    if ranks.count(min(ranks)) > 1:
        raise RowRefused("two answers share the best rank, so none is the best")
    return ranks.index(min(ranks))


def _ranking_as_pair(group: Group) -> Became:
    if len(group.responses) != 2:
        raise RowRefused(POLICY)
    best = _best_rank(group)
    values = {r.scores["rank"] for r in group.responses}
    pair = replace(group, responses=[_with(group.responses[best]), _with(group.responses[1 - best])])
    return [gathered(pair, "pairs")], [] if values == {1.0, 2.0} else ["the values of the ranks"]


def _ranking_as_pick(group: Group) -> Became:
    best = _best_rank(group)
    lost = sorted(r.scores["rank"] for r in group.responses) != [1.0, *[2.0] * (len(group.responses) - 1)]
    picked = [_with(r, best=float(place == best)) for place, r in enumerate(group.responses)]
    return [replace(group, responses=picked)], ["the order of the answers behind the best"] if lost else []


def _pick_as_ranking(group: Group) -> Became:
    return [replace(group, responses=[_with(r, rank=2.0 - r.scores["best"]) for r in group.responses])], []


def _pick_as_pair(group: Group) -> Became:
    return _ranking_as_pair(_pick_as_ranking(group)[0][0])


def _ranking_as_demonstration(group: Group) -> Became:
    return [_one(group, _best_rank(group))], [OTHER_ANSWERS]


def _pick_as_demonstration(group: Group) -> Became:
    return _ranking_as_demonstration(_pick_as_ranking(group)[0][0])


def _rating_as_demonstration(group: Group) -> Became:
    return [_kept(_one(group), aspects=dict(group.responses[0].scores))], []


def _demonstration_as_rating(group: Group) -> Became:
    columns = dict(group.columns)
    aspects = columns.pop("aspects", None)
    if not isinstance(aspects, Mapping) or not aspects or not all(map(_is_number, aspects.values())):
        raise RowRefused("demonstrations cannot become ratings: nobody rated the answer")
    return [replace(group, responses=[_with(group.responses[0], **{k: float(v) for k, v in aspects.items()})], columns=columns)], []


def _class_as(wanted: str) -> Callable[[Group], Became]:
    def way(group: Group) -> Became:
        if bool(group.prompt.messages) == (wanted == "text"):
            raise RowRefused("a text has no prompt" if wanted != "text" else "classes of answers become demonstrations, not text")
        label = next(iter(group.responses[0].scores)).removeprefix(CLASS)
        return [_kept(_one(group), label=label)], []

    return way


def _as_class(group: Group) -> Became:
    columns = dict(group.columns)
    label = columns.pop("label", None)
    if not isinstance(label, str) or not label.strip():
        raise RowRefused("no row says which class it is of")
    return [replace(group, responses=[_with(group.responses[0], **{f"{CLASS}{label}": 1.0})], columns=columns)], []


def _as_text(group: Group) -> Group:
    """All turns as one text, a blank line between."""
    turns = (*group.prompt.messages, *group.responses[0].turns)
    text = "\n\n".join(turn.content for turn in turns)
    kept = _kept(group)
    return replace(kept, prompt=Prompt((), group.prompt.source, group.prompt.cluster), responses=[Response((Message(TEXT_ROLE, text),))])


WAYS: dict[tuple[str, str], Callable[[Group], Became]] = {
    ("pairs", "demonstrations"): _pair_as_chosen,
    ("pairs", "labelled"): _pair_as_labelled,
    ("pairs", "rankings"): _pair_as_ranking,
    ("pairs", "picks"): _pair_as_pick,
    ("labelled", "demonstrations"): _labelled_as_demonstration,
    ("demonstrations", "labelled"): _demonstration_as_labelled,
    ("rankings", "pairs"): _ranking_as_pair,
    ("rankings", "picks"): _ranking_as_pick,
    ("rankings", "demonstrations"): _ranking_as_demonstration,
    ("picks", "pairs"): _pick_as_pair,
    ("picks", "rankings"): _pick_as_ranking,
    ("picks", "demonstrations"): _pick_as_demonstration,
    ("ratings", "demonstrations"): _rating_as_demonstration,
    ("demonstrations", "ratings"): _demonstration_as_rating,
    ("classes", "demonstrations"): _class_as("demonstrations"),
    ("classes", "text"): _class_as("text"),
    ("demonstrations", "classes"): _as_class,
    ("text", "classes"): _as_class,
}
"""From one kind to another, where a row is enough to tell how."""
