"""The page of a run that measured over-optimisation: the panel, its words, and the picture as a file of its own."""

from xml.etree import ElementTree

import pytest

from manners.core.files import read_json, write_json
from manners.report import story
from manners.report.page import ReportSettings, report
from manners.report.read import read_run
from tests.conftest import write_rows
from tests.evaluate.test_overoptimisation import HERE, pool_rows
from tests.report import fabricate
from tests.report.test_page import Page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from manners.evaluate.overoptimisation import OveroptimisationSettings, overoptimisation

    run = tmp_path_factory.mktemp("runs") / "run"
    pool = write_rows(tmp_path_factory.mktemp("pool") / "rows.jsonl", pool_rows())
    proxy = {"length": "length", "honest": "tests.evaluate.test_overoptimisation:noisy"}
    overoptimisation(OveroptimisationSettings(data=str(pool), proxy=proxy, gold=f"{HERE}:gold", out=str(run / "curve")))
    found = read_json(run / "curve" / "curve.json")
    (points,) = [c["points"] for c in found["curves"] if c["name"] == "length"]
    policies = {**found["curves"][0], "name": "ppo <b>", "proxy": "length", "law": "rl"}
    policies["points"] = [{k: v for k, v in {**p, "step": 2 * i}.items() if k != "n"} for i, p in enumerate(points)]
    write_json(run / "curve" / "curve.json", {**found, "policies": [policies]})
    return run


def test_the_panel_tells_what_was_measured(folder):
    report(ReportSettings(run=str(folder), pictures=str(folder / "pictures"), scripts=False))
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "over-optimisation" in page.ids and page.tags.count("svg") == 2
    length = read_json(folder / "curve" / "curve.json")["curves"][0]
    fall = length["observed"]["fall"]
    assert f"Choosing the best of up to 16 answers by length takes the gold score from {length['points'][0]['gold']:.2f}" in page.text
    assert f"{fall['value']:.2f} lost (95 % interval {fall['low']:+.2f} to {fall['high']:+.2f})" in page.text
    assert "length , longer: answers are" in page.text or "length, longer: answers are" in page.text
    assert "ppo <b>" in page.text and "best of 1 to 16" in page.text and "7 kept policies" in page.text
    assert "script" not in page.tags and "No trained model has been compared" not in page.text


def test_the_picture_stands_alone(folder):
    text = (folder / "pictures" / "curve.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "prefers-color-scheme: dark" in text and "--accent: #0072b2" in text
    used = {word.split(")")[0] for word in text.split("var(")[1:]}
    assert used and all(f"{name}:" in text for name in used), "every colour that is used is told"
    assert "<script" not in text and "http://www.w3.org/2000/svg" in text


def test_what_is_said_follows_the_interval(folder):
    (told,) = story.overoptimisation(read_run(folder))
    assert "and back to" in told["lead"] and [panel["title"] for panel in told["panels"]] == ["length", "honest"]
    assert {row["line"] for row in told["panels"][0]["points"]} == {
        "gold, best of n",
        "proxy, best of n",
        "gold, ppo <b>",
        "proxy, ppo <b>",
    }
    curve = read_json(folder / "curve" / "curve.json")["curves"][0]
    for low, high, says in ((-2, -1, "rises to the end"), (-1, 1, "cannot be told from chance"), (1, 2, "and back to")):
        curve["observed"]["fall"] = {"value": (low + high) / 2, "low": low, "high": high, "n": 9}
        assert says in story._lead(curve)


def test_a_run_without_curves_or_with_broken_ones_has_no_panel(tmp_path):
    folder = fabricate.run(tmp_path / "quickstart")
    assert story.overoptimisation(read_run(folder)) == []
    write_json(folder / "sft" / "curve.json", {"curves": [{"name": "x", "points": [{"d": 1}]}, "y"]})
    report(ReportSettings(run=str(folder), scripts=False))
    assert 'id="over-optimisation"' not in (folder / "report.html").read_text(encoding="utf-8")
