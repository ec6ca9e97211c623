"""`manners judge check`: a judge is measured against people before it is trusted. docs/judges.md.

    verdicts.jsonl    a row a comparison: what people said, what the judge said in each order
    check.json        agreement, kappa, consistency, position, length and self bias, each with its interval
    answers/          every answer of the judge

The judge sees neither the label nor whose an answer is. A panel is measured as one judge.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field
from rich import box
from rich.table import Table

import manners
from manners.core import files
from manners.core.console import console
from manners.core.errors import InputError
from manners.core.run import open_run
from manners.evaluate.intervals import absent, percent_interval
from manners.feedback.agreement import coefficients
from manners.feedback.comparisons import Comparison, read_comparisons
from manners.feedback.judge import Opinion, of_panel, side
from manners.feedback.judge_settings import CompareKeys, one_as_list
from manners.feedback.judging import compared, identifying
from manners.model.sampler import AnySampler

SIDES = {"a": 1.0, "b": 0.0, "tie": 0.5}
TRUSTED = 0.4
"""A kappa below is called so: Landis and Koch (1977) call less than this fair at most."""


class CheckSettings(CompareKeys):
    """Settings of `manners judge check`."""

    positional: ClassVar[str] = "data"

    data: str
    """File of comparisons that people labelled."""
    out: str
    """Folder to write."""
    map: str | None = None
    """Names of columns and coding of labels, as in prompt=query,a=reply_1,b=reply_2,coding=1/2/0."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many comparisons only."""
    own: Annotated[list[str] | None, BeforeValidator(one_as_list)] = None
    """Names that the file gives to the judge's own answers, for its bias towards itself. None takes the judge's name."""


def check(settings: CheckSettings, samplers: Mapping[str, AnySampler] | None = None) -> dict[str, Any]:
    """Judge, measure, and return what `check.json` holds. Raises InputError for a file without labels, and as `judging.label` does."""
    with open_run(settings.out, settings.model_dump(), identifying(settings, "judge check")) as run:
        if run.manifest is not None:
            report = files.read_json(run.path / "check.json")
            show(report)
            return report
        started = time.time()
        items, dropped = read_comparisons(settings.data, columns=settings.map, limit=settings.rows)
        if not any(item.label for item in items):
            raise InputError(
                f"{settings.data} does not say which answer people preferred; a check needs a label (annotator1 ..., label, or chosen and "
                "rejected). map=label=COLUMN,coding=1/2/0 names the column and what its values mean."
            )
        opinions, judges = compared(settings, run.path / "answers", items, samplers)
        shares = [of_panel([given[i].share for given in opinions], settings.panel) for i in range(len(items))]
        report = {
            "judge": settings.judge,
            "data": Path(settings.data).name,
            "comparisons": len(items),
            "dropped": dict(dropped),
            "people": dict(Counter(item.label or "no majority" for item in items)),
            **measured(items, shares, [[given[i] for given in opinions] for i in range(len(items))], settings.own or settings.judge),
        }
        costs = {name: judge.pop("cost") for name, judge in judges.items()}
        report["judges"] = judges
        report["flags"] = flags(report)
        files.write_jsonl(
            run.path / "verdicts.jsonl", [_row(*both) for both in zip(items, shares, zip(*opinions, strict=True), strict=True)]
        )
        files.write_json(run.path / "check.json", report)
        seconds = round(time.time() - started, 3)
        run.finish(
            {"stage": "judge check", "manners": manners.__version__, "settings": settings.model_dump(), "cost": costs, "seconds": seconds}
        )
    show(report)
    return report


def measured(
    items: Sequence[Comparison], shares: Sequence[float | None], opinions: Sequence[Sequence[Opinion]], own: Sequence[str]
) -> dict[str, Any]:
    """Every figure of the report. `shares` are answer a's, None where unscored.

    `agreement` is over comparisons that people decided, a tie of the judge counting one half; `kappa` over all with a label, ties being a
    label of their own. `agreement_one_order` is what asking in the file's order alone would have given.
    """
    known = [(item, share, given) for item, share, given in zip(items, shares, opinions, strict=True) if item.label is not None]
    decided = [(i, s, g) for i, s, g in known if i.label != "tie"]
    hits = [_hit(item, share) for item, share, _ in decided if share is not None]
    one = [_hit(i, v) for i, _, g in decided if (v := _given_order(g)) is not None]
    longer = [_hit(item, side_of(len(item.a), len(item.b))) for item, share, _ in decided if share is not None]
    everything = [(item, share, given) for item, share, given in zip(items, shares, opinions, strict=True) if share is not None]
    firsts = [f for _, _, given in everything for o in given if (f := o.first_shown) is not None]
    alike = [float(c) for _, _, given in everything for o in given if (c := o.consistent) is not None]
    return {
        "scored": len(everything),
        "unscored": dict(
            Counter(next((o.why for o in g if o.share is None), "") for s, g in zip(shares, opinions, strict=True) if s is None)
        ),
        "agreement": percent_interval(hits, share=True),
        "agreement_one_order": percent_interval(one, share=True),
        "agreement_of_longer": percent_interval(longer, share=True),
        "kappa": kappa([(i.label, s) for i, s, _ in known if s is not None]),
        "consistent": percent_interval(alike, share=True),
        "first_shown_wins": percent_interval(firsts),
        "longer_wins": length_bias(everything),
        "own_wins": self_bias(everything, own),
    }


def _hit(item: Comparison, share: float) -> float:
    right = SIDES[item.label or ""]
    return 0.5 if side(share) == 0.5 else float(side(share) == right)


def _given_order(opinions: Sequence[Opinion]) -> float | None:
    return of_panel([o.verdicts[0].share for o in opinions if o.verdicts], "mean")


def side_of(a: float, b: float) -> float:
    """1 if a is larger, 0 if b is, else one half."""
    return 0.5 if a == b else float(a > b)


def kappa(pairs: Sequence[tuple[str | None, float]]) -> dict[str, Any]:
    """Cohen's kappa of people's label and the judge's, each a, b or tie."""
    place = {1.0: 0, 0.0: 1, 0.5: 2}
    votes = np.array([[place[SIDES[label or ""]], place[side(share)]] for label, share in pairs]).reshape(-1, 2)
    if not len(votes):
        return absent("nothing was scored")
    return {k: v for k, v in coefficients(votes, np.arange(3.0), ["people", "judge"], "nominal")["cohen_kappa"][0].items() if k not in "ab"}


def length_bias(scored: Sequence[tuple[Comparison, float, Sequence[Opinion]]]) -> dict[str, Any]:
    """How often the longer answer (in characters) wins with the judge and with people, on the same comparisons, and the difference."""
    rows = [
        (side(share) if len(item.a) > len(item.b) else 1 - side(share), _of_people(item, len(item.a) > len(item.b)))
        for item, share, _ in scored
        if item.label is not None and len(item.a) != len(item.b)
    ]
    return _against_people(rows)


def self_bias(scored: Sequence[tuple[Comparison, float, Sequence[Opinion]]], own: Sequence[str]) -> dict[str, Any] | None:
    """The same of the judge's own answers against others'; None where no comparison has an own answer on one side alone."""
    rows = [
        (side(share) if item.models[0] in own else 1 - side(share), _of_people(item, item.models[0] in own))
        for item, share, _ in scored
        if item.models is not None and item.label is not None and (item.models[0] in own) != (item.models[1] in own)
    ]
    return _against_people(rows) if rows else None


def _of_people(item: Comparison, first: bool) -> float:
    share = SIDES[item.label or ""]
    return share if first else 1 - share


def _against_people(rows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {
        "judge": percent_interval([judge for judge, _ in rows]),
        "people": percent_interval([people for _, people in rows]),
        "difference": percent_interval([judge - people for judge, people in rows]),
    }


def _row(item: Comparison, share: float | None, opinions: Sequence[Opinion]) -> dict[str, Any]:
    return {
        **item.kept,
        "people": item.label,
        "probability_a": None if share is None else round(share, 9),
        "unscored": "" if share is not None else next((o.why for o in opinions if o.share is None), ""),
        "judges": {
            o.judge: {
                "orders": [None if v.share is None else round(v.share, 9) for v in o.verdicts],
                "said": [v.heard.said for v in o.verdicts],
            }
            for o in opinions
        },
        "characters": [len(item.a), len(item.b)],
        **({"models": list(item.models)} if item.models else {}),
    }


# --- telling ----------------------------------------------------------------------------------------------------------------------


def flags(report: Mapping[str, Any]) -> list[str]:
    """What speaks against trusting the judge, in words."""
    found = []
    agreement, longer = report["agreement"], report["agreement_of_longer"]
    if agreement["value"] is None:
        return ["nothing that people decided was scored"]
    if agreement["low"] <= 50:
        found.append("its agreement with people is not told apart from chance")
    elif agreement["value"] <= longer["value"]:
        found.append("choosing the longer answer agrees with people no less")
    if (value := report["kappa"]["value"]) is None or value < TRUSTED:
        found.append(f"kappa is {'not defined' if value is None else f'{value:.2f}'}: fair agreement at most")
    if (first := report["first_shown_wins"])["value"] is not None and not first["low"] <= 50 <= first["high"]:
        found.append(f"the {'first' if first['value'] > 50 else 'second'}-shown answer wins more often than the other")
    if (same := report["consistent"])["value"] is not None and same["value"] < 75:
        found.append(f"both orders name the same winner in {same['value']:.0f} % only")
    for name, what in (("longer_wins", "longer answers"), ("own_wins", "its own answers")):
        gap = (report[name] or {}).get("difference", absent())
        if gap["value"] is not None and not gap["low"] <= 0 <= gap["high"]:
            found.append(f"it takes {what} {'more' if gap['value'] > 0 else 'less'} often than people do")
    if report["unscored"]:
        found.append(f"{sum(report['unscored'].values())} of {report['comparisons']} comparisons have no verdict")
    return found


def show(report: Mapping[str, Any]) -> None:
    """Print the table and what speaks against the judge."""
    table = Table("", "%", "95 % interval", "n", box=box.SIMPLE_HEAD)
    rows = {
        "agrees with people": report["agreement"],
        "  asked in one order alone": report["agreement_one_order"],
        "  the longer answer would": report["agreement_of_longer"],
        "same winner in both orders": report["consistent"],
        "first-shown answer wins": report["first_shown_wins"],
        "longer answer wins": report["longer_wins"]["judge"],
        "  with people": report["longer_wins"]["people"],
        **(
            {"own answer wins": report["own_wins"]["judge"], "  own, with people": report["own_wins"]["people"]}
            if report["own_wins"]
            else {}
        ),
    }
    for name, e in rows.items():
        value = ("-", "-") if e["value"] is None else (f"{e['value']:.1f}", f"{e['low']:.1f} to {e['high']:.1f}")
        table.add_row(name, *value, str(e["n"]))
    console.print(table)
    k = report["kappa"]
    if k["value"] is not None:
        console.print(f"Cohen's kappa with people: {k['value']:.2f} ({k['low']:.2f} to {k['high']:.2f}), ties a label of their own")
    console.print(f"{report['scored']} of {report['comparisons']} comparisons scored")
    for flag in report["flags"]:
        console.print(f"against this judge: {flag}")
