"""`manners eval shift`: where alignment acts. At each token of an answer, how far the aligned model is from its base, and how often it
would say something else; and which weights moved.

The contexts are the aligned model's own sampled answers, over which KL(aligned || base) is the expectation that it is defined as, and the
references of the file, if it has any. Both models read the same tokens, in the aligned model's format. Following the study of "superficial
alignment" by Lin and others (2023), a token is unshifted where the aligned model's likeliest token is the base's likeliest, too, marginal
where it is the base's second or third, shifted beyond.

    rows.jsonl      a row an answer: set, id, prompt, answer, kl and rank of each token, and the shares under `values`
    results.json    figures with intervals over prompts; under `details` the curve over positions, the tokens that shift most, the update
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from manners.core.config import as_list
from manners.core.console import progress
from manners.core.errors import InputError
from manners.core.records import Group, Prompt, Response, TokenGroup
from manners.data.chat import ChatFormat
from manners.data.formats import read
from manners.evaluate.beside import beside, own, speaker
from manners.evaluate.intervals import ends, resampled_columns
from manners.evaluate.measurement import Measured, MeasureSettings, measure, spaced
from manners.evaluate.results import Result, result
from manners.evaluate.subject import MICRO_TOKENS, Subject
from manners.model.draw import Sampling
from manners.model.probe import check_length
from manners.model.shift import Speaker, shifts
from manners.model.tree import pack
from manners.model.update import Update, updates

VERSION = 1
SHOWN = 30
"""Tokens listed as those that shift most."""
KINDS = {"unshifted": (1, 1), "marginal": (2, 3), "shifted": (4, None)}
"""Ranks with the base of the aligned model's likeliest token."""
REFERENCE = "reference"


class ShiftSettings(MeasureSettings):
    """Settings of `manners eval shift`."""

    base: str
    """The model before alignment, as model is named."""
    prompts: Annotated[list[str], BeforeValidator(as_list), Field(min_length=1)]
    """Files of prompts, by commas; of rows with answers, these are the references."""
    samples: Annotated[int, Field(ge=0)] = 1
    """Answers that model samples to each prompt; 0 takes the references alone."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Of the samples; 0 is greedy, for which the figures are no expectation over model's answers."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest sampled answer in tokens."""


def shift(settings: ShiftSettings) -> dict[str, Any]:
    """Measure and write; returns what `results.json` holds."""
    return measure(settings, "shift", VERSION, (), _asked, [*settings.prompts, settings.base])


def _asked(settings: ShiftSettings, subject: Subject) -> Measured:
    local = own(subject, "shift")
    assert local.fmt is not None
    ours, theirs = speaker(local), beside(local, settings.base)
    asked, given = contexts(settings)
    sampling = Sampling(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed, stage="shift")
    sets: dict[str, list[Group]] = {}
    if settings.samples:
        sets["sampled"] = local.answer([group.prompt for group in asked], sampling, samples=settings.samples)
    if given:
        sets[REFERENCE] = given
    if not sets:
        raise InputError(f"{', '.join(settings.prompts)} holds no answers, and samples=0 asks for none; there is nothing to look along.")
    rows: list[dict[str, Any]] = []
    results: list[Result] = []
    details: dict[str, Any] = {"sets": {}}
    for name, groups in sets.items():
        found = along(ours, theirs, local.fmt, name, groups)
        rows += found
        results += figures(found, name)
        details["sets"][name] = {"positions": positions(found), "tokens": most_shifted(found, local.fmt.tokenizer)}
    for row in rows:
        del row["top"]
    notes = []
    changed = updates(ours, theirs)
    if changed is None:
        notes.append("the two models are not of one architecture, so their weights are not compared.")
    else:
        details["update"] = by_layer(changed)
        if total := details["update"]["relative"]:
            results.append(result("update_norm", {"value": total, "low": None, "high": None, "n": 1}, version=VERSION, direction="none"))
    return Measured(rows, results, notes, details)


def contexts(settings: ShiftSettings) -> tuple[list[Group], list[Group]]:
    """The prompts, and those of them that come with a reference, with it as their response."""
    asked: list[Group] = []
    for path in settings.prompts:
        data = read(path)
        if data.kind == "text":
            raise InputError(f"{path} holds plain text; eval shift wants prompts, with or without answers.")
        asked += spaced(data.groups, settings.rows)
    given = []
    for group in asked:
        responses = group.responses[:1]
        if not responses and isinstance(text := group.columns.get(REFERENCE), str) and text.strip():
            responses = [Response.answer(text)]
        if responses:
            given.append(Group(group.prompt, responses, row=group.row))
    return asked, given


def along(ours: Speaker, theirs: Speaker, fmt: ChatFormat, name: str, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A row for each answer: KL and rank of each token that the model has to write, the stop token included."""
    rows: list[dict[str, Any]] = []
    with progress() as bar:
        task = bar.add_task(name, total=len(groups), note="")
        for number, group in enumerate(groups):
            encoded = fmt.encode(group) if group.responses else TokenGroup([], [])
            longest = len(encoded.prompt_ids) + max((len(r.token_ids) for r in encoded.responses), default=0)
            for speaks in (ours, theirs):
                check_length(speaks.backbone.model, longest)
            for first, part in _affordable(encoded):
                tree = pack([part])
                found = shifts(ours, theirs, tree)
                for place in range(len(part.responses)):
                    mine = (tree.response_N == place).numpy()
                    kl_n, rank_n, top_n = (values.numpy()[mine] for values in (found.kl_N, found.rank_N, found.top_N))
                    answer = group.responses[first + place].text
                    rows.append(_row(name, f"{group.prompt.id}-{number}", group.prompt, answer, kl_n, rank_n, top_n))
            bar.update(task, advance=1)
    return rows


def _affordable(group: TokenGroup) -> Iterable[tuple[int, TokenGroup]]:
    """A group in parts of about MICRO_TOKENS tokens, each with the number of its first response."""
    size = max(1, MICRO_TOKENS // max([1, *(len(r.token_ids) for r in group.responses)]))
    for first in range(0, len(group.responses), size):
        yield first, TokenGroup(group.prompt_ids, group.responses[first : first + size])


def _row(name: str, asked: str, prompt: Prompt, answer: str, kl_n: np.ndarray, rank_n: np.ndarray, top_n: np.ndarray) -> dict[str, Any]:
    count = max(1, len(kl_n))
    values: dict[str, float] = {"kl": float(kl_n.sum()), "kl_token": float(kl_n.sum()) / count}
    values |= {kind: float(_between(rank_n, *ranks).mean()) if len(rank_n) else 0.0 for kind, ranks in KINDS.items()}
    return {
        "id": asked,
        "set": name,
        "prompt": prompt.messages[-1].content if prompt.messages else "",
        "answer": answer,
        "tokens": len(kl_n),
        "kl": [round(float(v), 6) for v in kl_n],
        "rank": rank_n.tolist(),
        "top": top_n.tolist(),
        "values": values,
    }


def _between(rank_n: np.ndarray, low: int, high: int | None) -> np.ndarray:
    return (rank_n >= low) & (rank_n <= (np.inf if high is None else high))


# --- figures --------------------------------------------------------------------------------------------------------------------


def figures(rows: Sequence[dict[str, Any]], name: str) -> list[Result]:
    """KL an answer and a token, the share of tokens whose top choice changed, and the three shares. Sums are over all tokens, so a long
    answer counts for more; intervals draw prompts."""
    ranks = [np.array(row["rank"]) for row in rows]
    sums = {"kl_token": [sum(row["kl"]) for row in rows], "top_changed": [float((r > 1).sum()) for r in ranks]}
    sums |= {kind: [float(_between(r, *limits).sum()) for r in ranks] for kind, limits in KINDS.items()}
    tokens = [float(row["tokens"]) for row in rows]
    found = {"kl_answer": ratio(rows, sums["kl_token"], [1.0] * len(rows))}
    found |= {called: ratio(rows, values, tokens) for called, values in sums.items()}
    return [result(called, estimate, version=VERSION, direction="none", set=name) for called, estimate in found.items()]


def ratio(rows: Sequence[dict[str, Any]], above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """The sum of `above` by the sum of `below`, with an interval that draws prompts; all answers to a prompt go together."""
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for row, a, b in zip(rows, above, below, strict=True):
        totals[row["id"]] += a, b
    sums_PX = np.stack(list(totals.values())) if totals else np.zeros((0, 2))
    if not sums_PX[:, 1].sum():
        return {"value": None, "low": None, "high": None, "n": 0, "reason": "no tokens"}
    drawn_BX = resampled_columns(sums_PX)
    drawn_BX = drawn_BX[drawn_BX[:, 1] > 0]  # a resample of prompts that do not reach this far
    low, high = ends(drawn_BX[:, 0] / drawn_BX[:, 1])
    return {"value": float(sums_PX[:, 0].sum() / sums_PX[:, 1].sum()), "low": low, "high": high, "n": len(sums_PX)}


def positions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """KL a token, and the share of tokens whose top choice changed, by how far into the answer: bins 0, 1, 2-3, 4-7 and so on."""
    longest = max((row["tokens"] for row in rows), default=0)
    starts = [0] + [2**k for k in range(max(0, longest - 1).bit_length())]
    found = []
    for first, last in zip(starts, [*starts[1:], 2 * starts[-1] or 1], strict=True):
        cut = [(row["kl"][first:last], np.array(row["rank"][first:last])) for row in rows]
        tokens = [float(len(kl)) for kl, _ in cut]
        if sum(tokens):
            kl = ratio(rows, [sum(kl) for kl, _ in cut], tokens)
            changed = ratio(rows, [float((rank > 1).sum()) for _, rank in cut], tokens)
            found.append({"from": first, "to": min(last, longest) - 1, "tokens": int(sum(tokens)), "kl": kl, "top_changed": changed})
    return found


def most_shifted(rows: Sequence[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Which tokens alignment brought in: of each token that the aligned model likes best somewhere, how often, how often the base does not,
    and the KL there; those with the most KL first."""
    found: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for row in rows:
        for top, rank, kl in zip(row["top"], row["rank"], row["kl"], strict=True):
            entry = found[top]
            entry[0], entry[1], entry[2] = entry[0] + 1, entry[1] + (rank > 1), entry[2] + kl
    total = sum(entry[2] for entry in found.values()) or 1.0
    order = sorted(found, key=lambda token: (-found[token][2], token))
    return [
        {
            "token": token,
            "text": tokenizer.decode([token], clean_up_tokenization_spaces=False),
            "times": int(found[token][0]),
            "changed": int(found[token][1]),
            "kl": found[token][2],
            "share": found[token][2] / total,
        }
        for token in order[:SHOWN]
        if found[token][2] > 0
    ]


def by_layer(changed: Sequence[Update]) -> dict[str, Any]:
    """The update's norm by layer and by module, each relative to the norm of the weights it changed."""

    def relative(part: Sequence[Update]) -> dict[str, float | None]:
        norm, weight = (float(np.sqrt(sum(x * x for x in values))) for values in ([u.change for u in part], [u.weight for u in part]))
        return {"norm": norm, "relative": norm / weight if weight else None}

    layers = sorted({u.layer for u in changed if u.layer is not None})
    return {
        **relative(changed),
        "layers": [{"layer": layer, **relative([u for u in changed if u.layer == layer])} for layer in layers],
        "modules": [
            {"layer": u.layer, "module": u.module, "norm": u.change, "relative": u.relative} for u in changed if u.layer is not None
        ],
        "others": [{"module": u.module, "norm": u.change, "relative": u.relative} for u in changed if u.layer is None],
    }
