"""The page with scripts: only its own run, text stays text, many runs fit, and in a browser models are filtered and answers compared."""

import json
import re
import shutil
from pathlib import Path

import pytest

from manners.core.files import write_json
from manners.report import assets
from manners.report.figures import as_data
from manners.report.page import ReportSettings, render, report
from manners.report.read import read_runs
from tests.feedback.web.serving import browser_path, browsing
from tests.report import fabricate
from tests.report.test_page import PLANTED, Page
from tests.report.test_profile_charts import attention_results, shift_results


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A run with strings that would run in answers, prompts, names, settings and evaluations, and its page."""
    swap = {fabricate.ANSWERS["dpo"][0]: PLANTED[0], fabricate.ANSWERS["sft"][1]: PLANTED[1], fabricate.CLASSICS[0][1]: PLANTED[3]}
    swap |= {"safety": PLANTED[2], "bon": PLANTED[0]}
    folder = fabricate.run(tmp_path_factory.mktemp("p") / "run", tests=20, held_out=4, replace=swap)
    settings = {"model": PLANTED[1], PLANTED[0]: PLANTED[2], "data": PLANTED[1]}
    write_json(folder / "sft" / "manifest.json", {"stage": PLANTED[0], "settings": settings, "notes": {PLANTED[2]: 3}, "seconds": 1})
    figure = {"name": PLANTED[0], "set": PLANTED[1], "value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "reason": PLANTED[2]}
    content = {"evaluation": PLANTED[1], "model": PLANTED[0], "results": [figure], "notes": [PLANTED[3]]}
    write_json(folder / "eval" / "results.json", content)
    write_json(folder / "eval" / "manifest.json", {"stage": "eval", "settings": {}})
    write_json(folder / "plan.json", {"file": PLANTED[1], "recipe": {"about": PLANTED[2]}, "versions": {PLANTED[0]: PLANTED[1]}})
    report(ReportSettings(run=str(folder)))
    return folder


def scripts_of(text: str) -> list[tuple[str, str]]:
    """Attributes and content of every script element, as a browser ends them."""
    return re.findall(r"<script([^>]*)>(.*?)</script", text, re.S | re.I)


def test_only_the_pages_own_scripts_are_allowed(planted):
    text = (planted / "report.html").read_text(encoding="utf-8")
    running = [content for attributes, content in scripts_of(text) if "application/json" not in attributes]
    assert running == [assets.library(), assets.script()]
    page = Page(text)
    (policy,) = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert policy == assets.policy(running) and policy.count("'sha256-") == 2
    assert "unsafe-eval" not in policy and "script-src 'unsafe" not in policy and "connect-src" not in policy
    assert not [name for name, _ in page.attributes if name.startswith("on")] and not {"img", "iframe", "b0"} & set(page.tags)
    assert page.open == []
    for word in PLANTED[:4]:
        assert " ".join(word.split()) in page.text, word
    assert len(text) < 5_000_000


def test_the_script_never_reads_text_as_html():
    script = assets.script()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
    assert "https://" not in script and "http://" not in script and "<!--" not in assets.library() and "</script" not in assets.library()


def test_specifications_hold_no_tag_and_come_back_the_same():
    content = {"values": [{"model": word, "x": 0.1234567890123} for word in PLANTED]}
    held = re.fullmatch(r'<script type="application/json">(.*)</script>', as_data(content), re.S)
    assert held and "<" not in held[1] and ">" not in held[1]
    assert [row["model"] for row in json.loads(held[1])["values"]] == list(PLANTED)


def test_many_runs_are_one_page(planted, tmp_path):
    one = fabricate.run(tmp_path / "runs" / "0", tests=6, held_out=2)
    for number in range(1, 12):
        shutil.copytree(one, tmp_path / "runs" / str(number))
    runs = read_runs([tmp_path / "runs"])
    assert [run.name for run in runs] == sorted(map(str, range(12)))
    page = Page(render(runs))
    assert "12 runs side by side: 60 models" in page.text and page.open == [] and len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 4, "two charts of all runs, wide and narrow; none of a single run"
    assert page.text.count("Do it again") >= 12


def test_evaluations_with_charts_are_drawn_and_broken_ones_are_not(planted, tmp_path):
    for name, content in (
        ("attention", attention_results()),
        ("shift", shift_results()),
        ("broken", {"details": {"sets": {"x": 3}}, "results": []}),
    ):
        kind = "attention" if name == "broken" else name
        content["results"] = [
            {"version": 1, "low": None, "high": None, "n": 3, "direction": "none", **row} for row in content.get("results", [])
        ]
        write_json(tmp_path / name / "results.json", {"evaluation": kind, "model": name, **content})
    page = Page(render(read_runs([tmp_path])))
    assert page.tags.count("svg") == 2 * (6 + 4) and "attention of attention" in page.text and "decay, random" in page.text


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(planted, width):
    browser_path()
    with browsing(viewport={"width": width, "height": 844}) as context:
        page = context.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("a dialog"))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{planted / 'report.html'}")
        page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        for chart in page.query_selector_all(".chart"):
            chart.scroll_into_view_if_needed()
        count = lambda what: page.evaluate(f"document.querySelectorAll('{what}').length")
        for _ in range(200):  # wait_for_function would need eval, which the page's policy forbids
            if count(".run-here") == count(".chart"):
                break
            page.wait_for_timeout(50)
        assert count(".run-here") == count(".chart") > 3
        assert said == [] and [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing makes the page itself scroll sideways"
        before = page.locator("#ledger-table tbody tr:visible").count()
        page.locator("[data-chip]").first.click()
        assert page.locator("#ledger-table tbody tr:visible").count() == before - 1
        page.locator("[data-chip]").first.click()
        page.fill("#browse [name=text]", "number 7")
        assert page.locator("#cards .sample:visible").count() == 1
        page.fill("#browse [name=text]", "")
        page.select_option("#browse [name=a]", "start")
        page.select_option("#browse [name=b]", "dpo")
        page.select_option("#browse [name=order]", "gain")
        assert page.locator("#cards ins").count() > 0 and page.locator("#cards del").count() > 0
        gains = page.evaluate(
            """[...document.querySelectorAll('#cards .sample')].map((card) => {
                 const of = (model) => Number([...card.querySelectorAll('.answer')].find((a) => a.dataset.model === model).dataset.score);
                 return of('dpo') - of('start');
               })"""
        )
        assert gains == sorted(gains, reverse=True)
