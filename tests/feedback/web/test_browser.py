"""The page in headless Chromium: a whole session by keyboard and by finger, and texts that would like to run."""

import re
from contextlib import closing
from typing import Any

import pytest

from manners.feedback import ballots
from manners.feedback.items import in_answers
from manners.feedback.store import Store
from tests.conftest import write_rows
from tests.feedback.web.injections import INJECTIONS
from tests.feedback.web.serving import browsing, served

GOOD = "The good one, number"
GUARD = """
window.hits = 0;
window.pwned = () => { window.hits += 1; };
window.alert = window.prompt = window.confirm = window.pwned;
"""
FOREIGN = (
    "script, iframe, object, embed, img, svg, math, video, audio, form, input, button, select, style, link, meta, base, a, template, "
    "marquee, details"
)
"""Elements that no text may bring along."""

UNNAMED = """() => [...document.querySelectorAll("button, input, textarea")]
  .filter((x) => !x.getAttribute("aria-label") && !x.innerText && !x.labels?.length && x.checkVisibility()).length"""
"""Controls without a name for who cannot see them."""
ODD = """() => [...document.querySelectorAll(".text *")].flatMap((x) => x.getAttributeNames())
  .filter((x) => !["class", "tabindex", "role", "start"].includes(x) && !x.startsWith("aria-")).length"""
"""Attributes that the page's own script does not set."""
CONTRAST = """() => {
  const light = (v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const lum = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(light); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (x) => {
    for (; x; x = x.parentElement) { const c = getComputedStyle(x).backgroundColor; if (!/, 0\\)$/.test(c)) return c; }
    return "rgb(255, 255, 255)";
  };
  const found = [...document.querySelectorAll("#work button:not(:disabled) > span, #work p, #work h1, #work h2, #count")];
  return found.filter((x) => x.innerText).map((x) => {
    const [a, b] = [lum(getComputedStyle(x).color), lum(behind(x))].sort((m, n) => n - m);
    return [x.innerText, (a + 0.05) / (b + 0.05)];
  });
}"""


class Watched:
    """A page of which is kept what it fetched, said and tried."""

    def __init__(self, context: Any, url: str):
        self.url, self.fetched, self.said = url, [], []
        context.add_init_script(GUARD)
        self.page = context.new_page()
        self.page.on("request", lambda request: self.fetched.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append("a dialog"))
        self.page.goto(url)

    def enter(self, name: str) -> None:
        self.page.get_by_label("Your name").fill(name)
        self.page.keyboard.press("Enter")
        self.page.locator("#main").wait_for()

    def count(self, text: str) -> None:
        """Wait until the page says so many."""
        self.page.locator("#count", has_text=re.compile(f"^{re.escape(text)}$")).wait_for()

    def check(self) -> None:
        """Nothing ran, nothing was fetched from elsewhere, nothing went wrong."""
        assert self.page.evaluate("window.hits") == 0
        assert all(address.startswith(self.url) or address.startswith("data:,") for address in self.fetched), self.fetched
        assert not [text for text in self.said if "focused element" not in text], self.said


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {i}", "a": f"{GOOD} {i}.", "b": f"A bad one {i}.", "model_a": "m-good", "model_b": "m-bad"}
        for i in range(count)
    ]


def good_place(page: Any) -> int:
    return next(i for i in (0, 1) if GOOD in page.locator(".answer").nth(i).inner_text())


def test_a_whole_session(tmp_path):
    data = write_rows(tmp_path / "two.jsonl", rows_of(6))
    guide = tmp_path / "guide.md"
    guide.write_text("# How\n\nTake the **good** one.", encoding="utf-8")
    out = tmp_path / "out"
    with (
        served(data=str(data), mode="choose", out=str(out), guidelines=str(guide)) as (url, _),
        browsing(viewport={"width": 1280, "height": 800}) as context,
    ):
        seen = Watched(context, url)
        page = seen.page
        seen.enter("Anna")
        seen.count("0 of 6")
        assert page.locator("#guide").is_visible() and page.locator("#guide strong").inner_text() == "good"
        page.keyboard.press("?")
        assert page.locator("#help").is_visible() and "Anna" in page.locator("#help").inner_text()
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        assert page.locator("#guide").is_hidden()
        for done in range(3):
            page.keyboard.press(("ArrowLeft", "ArrowRight")[good_place(page)])
            seen.count(f"{done + 1} of 6")
        before = page.locator("#main .turn").inner_text()
        page.keyboard.press(("ArrowRight", "ArrowLeft")[good_place(page)])  # a slip
        seen.count("4 of 6")
        page.keyboard.press("u")
        seen.count("3 of 6")
        assert page.locator("#main .turn").inner_text() == before
        page.keyboard.press("n")
        page.locator("#note").fill("a slip, mended")
        page.keyboard.press("Escape")
        page.keyboard.press(("a", "b")[good_place(page)])
        seen.count("4 of 6")
        page.reload()  # who comes again goes on
        seen.count("4 of 6")
        page.get_by_role("button", name="Tie").click()
        seen.count("5 of 6")
        page.keyboard.press("s")
        page.get_by_role("heading", name="Nothing is left for you").wait_for()
        page.keyboard.press("u")
        seen.count("5 of 6")
        page.get_by_role("button", name=("A is better", "B is better")[good_place(page)]).click()
        page.get_by_role("heading", name="Nothing is left for you").wait_for()
        seen.check()
        assert "m-good" not in page.content()
    with closing(Store(out)) as store:
        summary = ballots.export(store, out)
        standing, items = store.standing(), store.items()
    assert (summary["votes"], summary["undone"], summary["skipped"]) == (6, 2, 0)
    choices = [in_answers(said.verdict, said.places)["choice"] for said in standing]
    assert choices.count(0) == 5 and choices.count("tie") == 1 and len(items) == 6
    assert [said.verdict["note"] for said in standing if "note" in said.verdict] == ["a slip, mended"]
    assert all(said.seconds is not None and 0 < said.seconds < 60 for said in standing)


def several(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}", "responses": [f"{word} {i}" for word in ("first", "second", "third")]} for i in range(count)]


def order_of(page: Any) -> list[int]:
    """Places of first, second and third."""
    texts = [page.locator(".answer").nth(i).inner_text() for i in range(3)]
    return [next(i for i, text in enumerate(texts) if word in text) for word in ("first", "second", "third")]


def test_the_other_modes_by_keyboard(tmp_path):
    def rank(page: Any) -> None:
        first, second, third = order_of(page)
        for key in (str(third + 1), "Backspace", str(first + 1), str(second + 1), "=", str(third + 1), "Enter"):
            page.keyboard.press(key)

    def best(page: Any) -> None:
        page.keyboard.press(str(order_of(page)[1] + 1))

    def rate(page: Any) -> None:
        for key in ("4", "0", "3", "x", "ArrowUp", "ArrowUp", "2", "3", "1", "1", "Enter"):
            page.keyboard.press(key)

    def accept(page: Any) -> None:
        page.keyboard.press("a")

    def write(page: Any) -> None:
        page.locator("#text").fill("A line of mine.")
        page.keyboard.press("Control+Enter")

    def strength(page: Any) -> None:
        page.keyboard.press(("2", "6")[good_place(page)])

    one = [{"prompt": f"Question {i}", "completion": f"Answer {i}"} for i in range(2)]
    runs = [
        ("rank", several(2), {}, rank, {"ranks": [1, 2, 2]}),
        ("best", several(2), {}, best, {"best": 1}),
        ("rate", one, {"aspects": ["w", "x", "y", "z"]}, rate, {"ratings": [{"w": 4, "x": 2, "y": 3, "z": 1}]}),
        ("accept", one, {}, accept, {"accept": True}),
        ("write", one, {}, write, {"text": "A line of mine."}),
        ("choose", rows_of(2), {"strength": True}, strength, {"choice": 0, "strength": 2}),
    ]
    with browsing(viewport={"width": 390, "height": 844}) as context:
        for mode, rows, settings, act, said in runs:
            data, out = write_rows(tmp_path / f"{mode}.jsonl", rows), tmp_path / mode
            with served(data=str(data), mode=mode, out=str(out), **settings) as (url, _):
                seen = Watched(context, url)
                seen.enter("Ben")
                seen.count("0 of 2")
                assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390, mode
                assert seen.page.evaluate(UNNAMED) == 0, mode
                act(seen.page)
                seen.count("1 of 2")
                act(seen.page)
                seen.page.locator("#end").wait_for()
                seen.check()
                seen.page.close()
            with closing(Store(out)) as store:
                assert [in_answers(vote.verdict, vote.places) for vote in store.standing()] == [said, said], mode


def test_injections_run_nothing(tmp_path):
    assert len(INJECTIONS) >= 40
    texts = list(INJECTIONS.values())
    rows = [{"prompt": text, "a": text, "b": f"Before.\n\n{text}\n\nAfter."} for text in texts]
    data = write_rows(tmp_path / "two.jsonl", rows)
    guide = tmp_path / "guide.md"
    guide.write_text("\n\n".join(texts), encoding="utf-8")
    settings = {"data": str(data), "mode": "choose", "out": str(tmp_path / "out"), "guidelines": str(guide), "shuffled": False}
    with (
        served(**settings, title="<img src=x onerror=pwned()></title><script>pwned()</script>") as (url, _),
        browsing(viewport={"width": 1280, "height": 800}) as context,
    ):
        seen = Watched(context, url)
        page = seen.page
        seen.enter("<img src=x onerror=pwned()>")
        for number, name in enumerate(INJECTIONS):
            seen.count(f"{number} of {len(rows)}")
            assert page.locator("#main .text, #guide .text").locator(FOREIGN).count() == 0, name
            assert page.evaluate(ODD) == 0, name
            for link in page.locator("#main .link").all():
                link.click(timeout=2000)
            if number % 8 == 0:
                page.keyboard.press("m")
                assert page.locator("#main .text").locator(FOREIGN).count() == 0, name
                page.keyboard.press("m")
            assert page.url == url and page.evaluate("window.hits") == 0, name
            page.keyboard.press("t")
        page.locator("#end").wait_for()
        seen.check()
        assert page.locator("#help b").text_content() == "<img src=x onerror=pwned()>"


def test_injections_into_what_is_written_and_rated(tmp_path):
    text = "\n".join(INJECTIONS.values())
    data = write_rows(tmp_path / "one.jsonl", [{"prompt": "P", "completion": text[:50_000]}])
    with browsing() as context:
        with served(data=str(data), mode="write", out=str(tmp_path / "w")) as (url, _):
            seen = Watched(context, url)
            seen.enter("anna")
            seen.page.locator("#text").fill(text)
            assert seen.page.locator(".preview").locator(FOREIGN).count() == 0
            seen.page.keyboard.press("Control+Enter")
            seen.page.locator("#end").wait_for()
            seen.check()
        names = ["<img src=x onerror=pwned()>", '"><svg onload=pwned()>']
        with served(data=str(data), mode="rate", out=str(tmp_path / "r"), aspects=names) as (url, _):
            seen = Watched(context, url)
            seen.enter("anna")
            assert seen.page.locator("legend").all_inner_texts() == names
            seen.check()


def test_the_policy_stops_what_a_fault_would_let_in(tmp_path):
    """Should a script of ours one day make markup of a text, the browser refuses to run it."""
    data = write_rows(tmp_path / "two.jsonl", rows_of(1))
    with served(data=str(data), mode="choose", out=str(tmp_path / "out")) as (url, _), browsing() as context:
        seen = Watched(context, url)
        refused = seen.page.evaluate("() => { try { document.body.innerHTML = '<img src=x onerror=pwned()>' } catch { return true } }")
        attributes = "x.setAttribute('onerror', 'pwned()'); x.setAttribute('src', 'x')"
        seen.page.evaluate(
            f"() => {{ const x = document.body.appendChild(document.createElement('img')); try {{ {attributes} }} catch {{}} }}"
        )
        seen.page.wait_for_timeout(200)
        assert refused and seen.page.evaluate("window.hits") == 0
        fetched = seen.page.evaluate("fetch('https://evil.example/').then(() => true, () => false)")
        assert fetched is False


def test_the_page_waits_for_a_server_that_is_gone(tmp_path):
    data = write_rows(tmp_path / "two.jsonl", rows_of(2))
    with served(data=str(data), mode="choose", out=str(tmp_path / "out")) as (url, _), browsing() as context:
        seen = Watched(context, url)
        seen.enter("anna")
        context.set_offline(True)
        seen.page.keyboard.press("a")
        seen.page.locator("#warning", has_text="Not saved yet").wait_for()
        seen.count("0 of 2")
        context.set_offline(False)
        seen.count("1 of 2")
        seen.page.locator("#warning").wait_for(state="hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(tmp_path, scheme):
    """Text and buttons stand out from what is behind them: 4.5 to 1, as WCAG asks of text."""
    data = write_rows(tmp_path / "two.jsonl", rows_of(1))
    with served(data=str(data), mode="choose", out=str(tmp_path / "out")) as (url, _), browsing(color_scheme=scheme) as context:
        seen = Watched(context, url)
        seen.enter("anna")
        found = seen.page.evaluate(CONTRAST)
        assert len(found) > 8 and all(ratio >= 4.5 for _, ratio in found), found
