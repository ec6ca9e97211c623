"""`manners report scripts=false`: what the page says of a made-up run, that nothing in it can run, and that missing parts are left out
politely. The page with scripts is the same and more: test_scripts.py."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from manners.core.files import read_json, write_json
from manners.feedback.checkers import Language
from manners.report import story
from manners.report.page import ReportSettings, render, report
from manners.report.read import Stage, read_run
from tests.report import fabricate

PLANTED = (
    "<script>alert('1')</script>",
    "</script><img src=x onerror=alert(2)>",
    "</style></svg><b onload=alert(3)>",
    "datum['x'] \"; ${7*7} {{ 7 * 7 }} {% raw %} \\u2028 ]]> --> &lt;",
    "half \ud800 pair",
)


class Page(HTMLParser):
    """The page as a browser would read it: elements, ids, text outside of style, and whether every element was closed."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of one seed and its page."""
    folder = fabricate.run(tmp_path_factory.mktemp("runs") / "quickstart")
    report(ReportSettings(run=str(folder), scripts=False))
    return folder


@pytest.fixture(scope="module")
def page(made) -> Page:
    return Page((made / "report.html").read_text(encoding="utf-8"))


def test_the_first_lines_tell_the_result_with_its_interval(made, page):
    (found,) = [
        row
        for row in read_json(made / "summary.json")["comparisons"]
        if (row["a"], row["b"], row["set"], row["metric"]) == ("dpo", "start", "test", "gold")
    ]
    numbers = f"{found['difference']:.2f} higher than the start (95 % interval {found['low']:+.2f} to {found['high']:+.2f})"
    assert f"After training, dpo scores {numbers}" in page.text
    assert page.text.index("After training") < page.text.index("Explain the moon landing") < page.text.index("Results Means over 150")


def test_the_three_classics_stand_side_by_side_with_badges(made, page):
    first = page.text[: page.text.index("Results Means over")]
    for _, prompt, _ in fabricate.CLASSICS:
        assert prompt in first
    for answers in fabricate.ANSWERS.values():
        assert all(" ".join(answer.split()) in first for answer in answers)
    assert "✗ echoes the prompt" in first and "✓ declines" in first and "✗ does not decline" in first
    assert "not French" in first


def test_every_part_is_there(page):
    assert {"results", "differences", "clusters", "training", "kl", "samples", "budget", "settings", "again"} <= set(page.ids)
    assert page.tags.count("svg") == 2 * 6, "each chart twice: for wide and for narrow screens"
    assert "extract (held out)" in page.text and "Question 149 about safety" in page.text
    assert "manners dpo data=dpo.jsonl epochs=2" in page.text and "manners 0.1.0, torch 2.13.0" in page.text
    assert page.open == []


def test_the_page_opens_offline_and_runs_nothing(made, page):
    assert not {"script", "iframe", "object", "embed", "img", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    outside = [value for name, value in page.attributes if name in ("src", "href", "xlink:href") and not value.startswith(("#", "data:,"))]
    assert outside == []
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    text = (made / "report.html").read_text(encoding="utf-8")
    assert "url(http" not in text and "@import" not in text
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert len(text) < 1_500_000


def test_drawings_are_whole_and_their_clip_paths_do_not_collide(made):
    text = (made / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    ids = [element.get("id") for drawing in drawings for element in ElementTree.fromstring(drawing).iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert all("var(--ink)" in drawing or "var(--soft)" in drawing for drawing in drawings)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_what_a_model_wrote_is_text_and_nothing_else(tmp_path):
    swap = {fabricate.ANSWERS["dpo"][0]: PLANTED[0], fabricate.ANSWERS["sft"][1]: PLANTED[1], fabricate.ANSWERS["start"][2]: PLANTED[4]}
    swap |= {fabricate.CLASSICS[0][1]: PLANTED[3], fabricate.CLASSICS[1][1]: PLANTED[2], "safety": PLANTED[2], "facts": PLANTED[3]}
    swap |= {"bon": PLANTED[0]}
    safe = {key: value.encode("utf-8", "replace").decode() for key, value in swap.items()}  # files are UTF-8
    folder = fabricate.run(tmp_path / "run", tests=20, held_out=4, replace=safe)
    write_json(folder / "plan.json", {"file": PLANTED[1], "recipe": {"about": PLANTED[2]}, "versions": {PLANTED[0]: PLANTED[1]}})
    report(ReportSettings(run=str(folder), scripts=False))
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "img", "b0"} & set(page.tags) and not [name for name, _ in page.attributes if name.startswith("on")]
    for planted in PLANTED[:4]:
        assert " ".join(planted.split()) in page.text, planted
    assert page.open == [] and "49" not in re.findall(r"\$?\{?(49)\}?", page.text[page.text.index("datum") : page.text.index("datum") + 60])
    assert text.lower().count("<script") == 0 and text.lower().count("</style>") == 1
    assert page.text.count(PLANTED[0]) >= 8, "a model's name stands in answers, tables and charts"


def test_a_lone_surrogate_does_not_stop_the_page(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    path = folder / "evaluate-dpo" / "answers.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[0]["answer"] = PLANTED[4]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")  # as an escape, which JSON allows
    write_json(folder / "compare" / "settings.json", {})
    write_json(folder / "compare" / "manifest.json", {"stage": "compare"})
    report(ReportSettings(run=str(folder), scripts=False))
    assert "half ? pair" in (folder / "report.html").read_text(encoding="utf-8")


def test_several_seeds(tmp_path):
    folder = fabricate.run(tmp_path / "run", seeds=2, tests=30, held_out=10)
    told = report(ReportSettings(run=str(folder), out=str(tmp_path / "page.html"), scripts=False))
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "2 training runs" in page.text and "seed-1/dpo" in page.text
    assert told["out"] == str(tmp_path / "page.html") and not (folder / "report.html").exists()
    by_seed = next(row for row in story.difference_rows(read_run(folder)) if row["a"] == "dpo")["by_seed"]
    assert re.fullmatch(r"[+−]\d\.\d\d, [+−]\d\.\d\d", by_seed) and by_seed in page.text


# --- what is missing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (["summary.json", "compare/summary.json"], "There is no summary of this run"),
        (["sft", "bon", "dpo"], "No training curves were found"),
        ([f"evaluate-{model}" for model in fabricate.MEANS], "No answers were found"),
        (["compare"], "Results Means over"),
    ],
)
def test_a_missing_part_is_left_out_with_a_sentence(made, tmp_path, gone, said):
    folder = shutil.copytree(made, tmp_path / "run")
    for name in gone:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    if gone[0].startswith("evaluate"):  # the folders named in the settings are those of the run that was copied
        for name in ("settings.json", "manifest.json"):
            (folder / "compare" / name).unlink()
    page = Page(render(read_run(folder)))
    assert said in page.text and page.open == []


def test_each_file_may_be_missing_or_broken(tmp_path):
    whole = fabricate.run(tmp_path / "whole", tests=10, held_out=2)
    names = [
        path.relative_to(whole)
        for path in sorted(whole.rglob("*"))
        if path.is_file() and path.parent.name in ("dpo", "evaluate-dpo", "compare", "whole")
    ]
    assert len(names) >= 10
    for number, name in enumerate(names):
        folder = shutil.copytree(whole, tmp_path / str(number))
        content = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(content[: len(content) // 2], encoding="utf-8")
        assert story.results(read_run(folder)) and story.headline(read_run(folder)) is not None, name
        (folder / name).write_text("[1, null]\n3\n{}", encoding="utf-8")
        story.samples(read_run(folder)), story.budget(read_run(folder)), story.settings(read_run(folder))
        (folder / name).unlink()
        assert "Do it again" in render(read_run(folder)) if number % 4 == 0 else read_run(folder)


def test_strange_numbers_in_the_summary_are_left_out(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    write_json(
        folder / "summary.json",
        {
            "models": {"start": {"gold": {"value": None}}, "new": {"gold": {"value": 0.5}}, "odd": 3},
            "comparisons": [{"metric": "gold"}, 7],
            "clusters": [],
        },
    )
    run = read_run(folder)
    assert story.headline(run) is None and story.forest_rows(run) == story.cluster_rows(run) == story.kl_rows(run) == []
    assert "No trained model has been compared with a start yet." in Page(render(run)).text


def test_a_folder_that_is_no_run_is_refused(manners, tmp_path):
    missing = manners("report", tmp_path / "nowhere")
    assert missing.code == 2 and "there is no folder" in missing.error
    empty = manners("report", f"run={tmp_path}")
    assert empty.code == 2 and "nothing to report on" in empty.error


def test_the_command(manners, made, tmp_path):
    done = manners("report", made, f"out={tmp_path / 'a.html'}", "--json")
    assert done.code == 0 and json.loads(done.stdout[-1])["models"] == list(fabricate.MEANS)


# --- words --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.2, "higher"), (-0.2, -0.1, "lower"), (-0.1, 0.1, "no difference"), (0.0, 0.1, "no difference")]
)
def test_the_verdict_is_what_the_test_allows_or_else_the_interval(low, high, said):
    assert story.verdict({"low": low, "high": high}) == said
    assert story.verdict({"low": low, "high": high, "verdict": "no difference"}) == "no difference"


def test_a_worse_or_unclear_result_is_said_so(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    for said, words in (("lower", "scores 0.15 lower than the start"), ("no difference", "shows no difference from the start: −0.15")):
        summary = read_json(made / "summary.json")
        for row in summary["comparisons"]:
            row |= {"difference": -0.15, "low": -0.2, "high": -0.1, "verdict": said}
        write_json(folder / "summary.json", summary)
        assert words in Page(render(read_run(folder))).text


def test_badges_follow_what_the_prompt_wants(monkeypatch):
    monkeypatch.setattr(story.annotator, "echoes", lambda prompt, answer: prompt in answer)
    monkeypatch.setattr(story.annotator, "language_of", lambda answer: Language("fr" if "chien" in answer else "en", 0.5))
    monkeypatch.setattr(story.annotator, "refuses", lambda answer: answer.startswith("No"))
    monkeypatch.setattr(story.annotator, "repeats", lambda answer: "la la la" in answer)
    row = lambda answer, finish="stop", **wants: {"prompt": "Ask", "answer": answer, "finish_reason": finish, "wants": wants}
    assert story.badges(row("Le chien", language="fr")) == [(True, "stops"), (True, "own words"), (True, "French")]
    assert story.badges(row("The dog", "length", language="fr")) == [(False, "cut off"), (True, "own words"), (False, "not French")]
    assert story.badges(row("Done.\n### Prompt\nAnd now"))[0] == (False, "runs on")
    assert story.badges(row("No, sorry", refuse=True))[-1] == (True, "declines")
    assert story.badges(row("Ask: sure", refuse=True))[1:] == [(False, "echoes the prompt"), (False, "does not decline")]
    assert story.badges(row("No", refuse=False))[-1] == (False, "declines") == story.badges(row("No"))[-1]
    assert story.badges(row("la la la"))[-1] == (False, "repeats itself")
    assert story.badges(row(" ", "length")) == [(False, "cut off"), (False, "says nothing")]


def test_commands_can_be_pasted():
    settings = {
        "model": "runs/a b",
        "prompts": ["x", "y"],
        "rows": None,
        "models": {"start": ["e", "f"], "sft": ["g"]},
        "deep": True,
        "rate": 5e-4,
    }
    stage = Stage("seed-0/x", "x", {"stage": "evaluate"}, settings=settings)
    assert story.command(stage) == "manners evaluate 'model=runs/a b' prompts=x,y 'models=start=e,f sft=g' deep=true rate=0.0005"


# --- verdicts, unseen answers, effects ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(made, tmp_path_factory) -> tuple[Path, str]:
    """The run with unseen answers, a grid of effects, names that would run if they could, and a difference that no test bears out."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("judged") / "run")
    summary = read_json(folder / "summary.json")
    for row in summary["comparisons"]:
        if (row["a"], row["b"], row["set"], row["metric"]) == ("dpo", "bon", "test", "gold"):
            row |= {"low": 0.01, "high": 0.5, "difference": 0.25, "p_holm": 0.123, "verdict": "no difference"}
    for name, value in (("sft", -20.0), ("dpo", -31.5)):
        estimate = {"value": value, "low": value - 1, "high": value + 1, "n": 150}
        summary["models"][name] |= {f"logp/{PLANTED[0]}": estimate, f"logp_token/{PLANTED[0]}": {**estimate, "value": value / 20}}
    summary["best"]["test"] = {"sentence": f"no model is the best: {PLANTED[1]}"}
    write_json(folder / "summary.json", summary)
    row = {"difference": 0.31, "low": 0.1, "high": 0.5, "p_holm": 0.002, "verdict": "higher", "size": 0.2}
    cell = {"levels": {PLANTED[2]: PLANTED[0]}, "gold": {"value": 4.5, "low": 4.0, "high": 5.0}, "kl": {"value": None}}
    grid = {
        **{"metric": "gold", "set": "test", "factors": {PLANTED[2]: [PLANTED[0], "b"]}, "cells": {PLANTED[3]: cell}},
        "effects": [{**row, "factor": PLANTED[2], "level": "b", "less": PLANTED[0]}],
        "interactions": [{**row, "factors": ["labels", "algorithm"], "verdict": "no difference", "p_holm": 0.4}],
        "larger": [{**row, "a": "labels", "b": "judge"}, {"broken": True}],
    }
    write_json(folder / "effects" / "effects.json", grid)
    write_json(folder / "effects" / "manifest.json", {"stage": "effects", "settings": {"models": {"dpo": ["evaluate-dpo"]}}, "seconds": 1})
    return folder, render(read_run(folder))


def test_a_difference_that_the_test_does_not_bear_out_is_none(judged):
    text = Page(judged[1]).text
    assert "+0.25 +0.01 to +0.50 0.123 no difference" in text, "although its interval leaves out nought"
    assert text.count("no difference") > 3 and "higher" in text and "told apart" not in text[: text.index("Results")]
    assert "no model is the best" in text


def test_unseen_answers_and_effects_have_their_tables_and_run_nothing(judged):
    page = Page(judged[1])
    assert {"unseen", "effects"} <= set(page.ids) and page.open == []
    assert "−31.5" in page.text and ("−1.57" in page.text or "−1.58" in page.text)
    assert "b − <script>" in page.text and "+0.31 +0.10 to +0.50 +0.20 0.002 higher" in page.text
    assert "labels by algorithm" in page.text and "labels and judge: labels is the larger (+0.31, +0.10 to +0.50)." in page.text
    assert not {"script", "img"} & set(page.tags) and not [name for name, _ in page.attributes if name.startswith("on")]
    assert judged[1].lower().count("<script") == 0


def test_the_grid_does_not_hide_models_from_the_page(judged):
    """A stage of effects names fewer models than the comparison."""
    assert read_run(judged[0]).models == list(fabricate.MEANS)


def test_quality_is_drawn_against_kl_with_names(made):
    text = (made / "report.html").read_text(encoding="utf-8")
    drawing = next(d for d in re.findall(r"<svg.*?</svg>", text, re.S) if "Gold score against divergence" in d)
    assert all(f">{name}<" in drawing for name in fabricate.KL)
