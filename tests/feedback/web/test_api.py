"""Every mode through HTTP, from the first name to the file that other commands read; and what is refused."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from manners.core.errors import InputError
from manners.core.files import read_json, read_jsonl
from manners.data.people import fault
from manners.feedback import ballots
from manners.feedback.store import Store
from manners.feedback.web import serving
from manners.feedback.web.annotate import AnnotateSettings, Page, annotate, opened
from manners.feedback.web.app import HERE, assembled
from tests.conftest import write_rows
from tests.markdown import table
from tests.test_docs import is_default, page

BASE = "http://127.0.0.1:8765"
PROMPT = "Name a river in Europe."
TWO = [
    {"prompt": f"{PROMPT} ({i})", "a": f"The Rhine {i}.", "b": f"Paris {i}.", "model_a": "good-model", "model_b": "bad-model"}
    for i in range(6)
]
FOUR = [
    {
        "prompt": f"{PROMPT} ({i})",
        "responses": [{"text": f"{word} {i}", "model": f"model-{word}"} for word in ("Rhine", "Seine", "Paris", "no")],
    }
    for i in range(4)
]
ONE = [{"prompt": f"{PROMPT} ({i // 2})", "completion": f"Answer {i}"} for i in range(4)]


class Browser:
    """What the page's script does, without a page."""

    def __init__(self, client: TestClient, name: str | None = "anna", secret: str | None = None):
        self.client, self.sent, self.said = client, 0, []
        if name is not None:
            entered = client.post("/api/enter", json={"name": name, "secret": secret})
            assert entered.status_code == 200, entered.text
            secret = entered.json()["session"]
        self.headers = {"authorization": f"Bearer {secret}"}
        self.now = self.get("/api/next")

    def get(self, path: str) -> dict[str, Any]:
        return self._told(self.client.get(path, headers=self.headers))

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        self.sent += 1
        return self._told(self.client.post(path, json={"key": f"request-{self.sent:04}", **body}, headers=self.headers))

    def _told(self, answer: Any) -> dict[str, Any]:
        assert answer.status_code == 200, answer.text
        self.said.append(answer.text)
        return answer.json()

    def vote(self, verdict: dict[str, Any]) -> None:
        self.now = self.post("/api/vote", item=self.now["item"]["item"], verdict=verdict, seconds=2.5)

    def undo(self) -> None:
        self.now = self.post("/api/undo")

    def all(self, rule) -> "Browser":
        while self.now["item"] is not None:
            self.vote(rule(self.now["item"]["answers"]))
        return self


@contextmanager
def page_of(folder: Path, mode: str, rows: list[dict[str, Any]], **settings: Any) -> Iterator[tuple[TestClient, Page]]:
    folder.mkdir(exist_ok=True)
    data = write_rows(folder / f"{mode}.jsonl", rows)
    with opened(AnnotateSettings(data=str(data), mode=mode, out=str(folder / "out"), port=0, **settings)) as page:
        yield TestClient(page.app, base_url=BASE, raise_server_exceptions=False), page


def exported(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    with closing(Store(folder / "out")) as store:
        summary = ballots.export(store, folder / "out")
    return read_jsonl(folder / "out" / summary["file"]), summary


def best_first(answers: list[str]) -> list[int]:
    """Places, the best answer's first: Rhine, Seine, Paris, no."""
    order = ["Rhine", "Seine", "Paris", "no"]
    return sorted(range(len(answers)), key=lambda place: next(i for i, word in enumerate(order) if word in answers[place]))


# --- the modes --------------------------------------------------------------------------------------------------------------------


def test_choose_and_what_comes_of_it(tmp_path, manners):
    with page_of(tmp_path, "choose", TWO, strength=True, overlap=1) as (client, _):
        river = lambda answers: {"choice": 0 if "Rhine" in answers[0] else 1, "strength": 2}
        anna, ben = Browser(client).all(river), Browser(client, "ben").all(river)
        cleo = Browser(client, "cleo").all(lambda answers: {"choice": "tie"})
        assert not any("model" in text for browser in (anna, ben, cleo) for text in browser.said)
        assert anna.now["progress"] == {"done": 6, "left": 0, "can_undo": 1}
    rows, summary = exported(tmp_path)
    assert len(rows) == 18 and summary["votes"] == 18 and summary["judged_by_several"] == 6
    chosen = [row for row in rows if row["label"] != "tie"]
    assert all(row[row["label"]].startswith("The Rhine") and row["margin"] == 2 for row in chosen)
    assert {row["label"] for row in chosen} == {"a", "b"}  # the places are drawn
    assert all(row[f"model_{row['label']}"] == "good-model" and row["winner"] == f"model_{row['label']}" for row in chosen)
    votes = tmp_path / "out" / "votes.jsonl"
    made = manners("pairs", f"data={votes}", "policy=majority", f"out={tmp_path / 'pairs.jsonl'}", "--json")
    assert made.code == 0, made.stderr
    pairs = read_jsonl(tmp_path / "pairs.jsonl")
    assert len(pairs) == 6 and all(pair["chosen"].startswith("The Rhine") for pair in pairs)
    assert all(sorted(pair["origin"]["annotators"]) == ["anna", "ben", "cleo"] for pair in pairs)
    direct = manners("pairs", f"data={votes}", "policy=direct", f"out={tmp_path / 'direct.jsonl'}", "--json")
    told = json.loads(direct.stdout[-1])
    assert told["pairs"] == 12 and told["ties"] == 6
    rates = json.loads(manners("eval", "winrate", f"votes={votes}", "--json").stdout[-1])
    assert rates["ratings"][0]["model"] == "good-model"
    report = json.loads(manners("eval", "agreement", votes, "--json").stdout[-1])
    assert report["annotators"] == ["anna", "ben", "cleo"] and report["rows"] == 6
    assert [row["value"] for row in report["cohen_kappa"] if {row["a"], row["b"]} == {"anna", "ben"}] == [None]  # always the same answer
    assert report["by_annotator"]["anna"]["seconds"]["median"] == 2.5


def test_who_always_picks_the_left_is_flagged_everywhere(tmp_path, manners):
    rows = [{**row, "prompt": f"{row['prompt']} {n}"} for n in range(6) for row in TWO]
    with page_of(tmp_path, "choose", rows, overlap=1) as (client, _):
        Browser(client, "lefty").all(lambda answers: {"choice": 0})
        Browser(client, "fair").all(lambda answers: {"choice": 0 if "Rhine" in answers[0] else 1})
    _, summary = exported(tmp_path)
    assert summary["flags"] == ["lefty chose the answer at place 1 in 36 of 36 choices"]
    votes = tmp_path / "out" / "votes.jsonl"
    report = json.loads(manners("eval", "agreement", votes, "--json").stdout[-1])
    assert [flag for flag in report["flags"] if "first-shown" in flag] == ["lefty chose the first-shown answer in 100.0 % of 36 choices"]
    fair = report["by_annotator"]["fair"]["position"]
    assert fair["n"] == 36 and 20 < fair["value"] < 80
    manners("pairs", f"data={votes}", "policy=majority", f"out={tmp_path / 'pairs.jsonl'}")
    flags = read_json(tmp_path / "pairs.counts.json")["flags"]
    assert flags == ["annotator 'lefty' chose the first answer in 36 of 36 decided votes"]


def test_rank(tmp_path, manners):
    def rule(answers):
        order = best_first(answers)
        return {"ranks": [order.index(place) + 1 for place in range(4)]}

    with page_of(tmp_path, "rank", FOUR) as (client, _):
        Browser(client).all(rule)
    rows, _ = exported(tmp_path)
    assert [row["ranks"] for row in rows] == [[1, 2, 3, 4]] * 4 and len({tuple(row["shown"]) for row in rows}) > 1
    made = manners("pairs", f"data={tmp_path / 'out' / 'votes.jsonl'}", "policy=ranking", f"out={tmp_path / 'pairs.jsonl'}", "--json")
    assert json.loads(made.stdout[-1])["pairs"] == 24
    pair = read_jsonl(tmp_path / "pairs.jsonl")[0]
    assert pair["chosen"].startswith("Rhine") and pair["origin"]["models"] == ["model-Rhine", "model-Seine"]


def test_best(tmp_path, manners):
    with page_of(tmp_path, "best", FOUR) as (client, _):
        Browser(client).all(lambda answers: {"best": best_first(answers)[0]})
    rows, _ = exported(tmp_path)
    assert [row["best"] for row in rows] == [0] * 4
    made = manners("pairs", f"data={tmp_path / 'out' / 'votes.jsonl'}", "policy=pick", f"out={tmp_path / 'pairs.jsonl'}", "--json")
    assert json.loads(made.stdout[-1])["pairs"] == 12


@pytest.mark.parametrize("policy, pairs", [("ratings", 24), ("zephyr", 4)])
def test_rate_several(tmp_path, manners, policy, pairs):
    def rule(answers):
        order = best_first(answers)
        return {"ratings": [{"style": 4 - order.index(place), "truth": None} for place in range(4)]}

    with page_of(tmp_path, "rate", FOUR, aspects=["style", "truth"]) as (client, _):
        assert Browser(client).all(rule).get("/api/next")["about"]["aspects"] == ["style", "truth"]
    rows, _ = exported(tmp_path)
    assert rows[0]["ratings"] == [{"style": 4 - i, "truth": None} for i in range(4)]
    made = manners("pairs", f"data={tmp_path / 'out' / 'votes.jsonl'}", f"policy={policy}", f"out={tmp_path / 'pairs.jsonl'}", "--json")
    assert json.loads(made.stdout[-1])["pairs"] == pairs


def test_rate_one_by_one(tmp_path, manners):
    """Two answers to each prompt in rows of their own: what one person said of both makes a pair, what two said of one does not."""
    with page_of(tmp_path, "rate", ONE, overlap=1, aspects=["style"]) as (client, _):
        rule = lambda answers: {"ratings": [{"style": 1 + int(answers[0][-1]) % 2}]}
        Browser(client).all(rule)
        Browser(client, "ben").all(rule)
    rows, _ = exported(tmp_path)
    assert len(rows) == 4 and all(len(row["responses"]) == 2 and len(row["ratings"]) == 2 for row in rows)
    votes = tmp_path / "out" / "votes.jsonl"
    made = manners("pairs", f"data={votes}", "policy=ratings", f"out={tmp_path / 'pairs.jsonl'}", "--json")
    assert json.loads(made.stdout[-1])["pairs"] == 4
    report = json.loads(manners("eval", "agreement", votes, "measure=ordinal", "--json").stdout[-1])
    assert report["rows"] == 4 and report["percent_agreement"]["value"] == 100


def test_accept(tmp_path, manners):
    with page_of(tmp_path, "accept", ONE) as (client, _):
        Browser(client).all(lambda answers: {"accept": answers[0] == "Answer 1"})
    rows, _ = exported(tmp_path)
    assert [row["label"] for row in rows] == [False, True, False, False]
    made = manners("pairs", f"data={tmp_path / 'out' / 'votes.jsonl'}", "policy=unpaired", f"out={tmp_path / 'labels.jsonl'}", "--json")
    assert json.loads(made.stdout[-1])["accepted"] == 1


def test_write(tmp_path, manners):
    rows = [{"prompt": "Say hello.", "completion": "Hi", "system": "Be brief."}, {"prompt": "Name a colour."}]
    with page_of(tmp_path, "write", rows) as (client, _):
        Browser(client).all(lambda answers: {"text": "Hello, my friend." if answers else "Blue."})
    rows, summary = exported(tmp_path)
    assert summary["file"] == "demonstrations.jsonl" and {row["made_by"]["kind"] for row in rows} == {"person"}
    assert not any(map(fault, rows))
    first, second = rows
    assert [turn["role"] for turn in first["messages"]] == ["system", "user", "assistant"] and first["edited"] is True
    assert second["messages"][-1] == {"role": "assistant", "content": "Blue."} and "edited" not in second
    seen = manners("data", "inspect", tmp_path / "out" / "demonstrations.jsonl", "--json")
    assert seen.code == 0 and json.loads(seen.stdout[-1])["rows"] == 2


# --- undo, resume, gold -----------------------------------------------------------------------------------------------------------


def test_undo_skip_note_and_resume(tmp_path):
    with page_of(tmp_path, "choose", TWO) as (client, _):
        anna = Browser(client)
        first = anna.now["item"]
        anna.vote({"choice": 0})
        anna.undo()
        assert anna.now["item"] == first
        anna.vote({"choice": 1, "note": "B names a river"})
        anna.vote({"skip": True})
        third = anna.now
        session = anna.headers
    with page_of(tmp_path, "choose", TWO) as (client, _):  # another process, as far as the store knows
        again = client.get("/api/next", headers=session).json()
        assert again["item"] == third["item"] and again["progress"] == third["progress"] and again["name"] == "anna"
        assert Browser(client).now["item"] == third["item"]  # by name, from another browser
    rows, summary = exported(tmp_path)
    assert [row["note"] for row in rows] == ["B names a river"]
    assert (summary["votes"], summary["skipped"], summary["undone"]) == (1, 1, 1)


def test_gold_questions_are_asked_of_all_told_to_none_and_scored(tmp_path):
    gold = write_rows(tmp_path / "gold.jsonl", [{"prompt": f"G{i}", "a": f"right {i}", "b": f"wrong {i}", "gold": "a"} for i in range(6)])
    with page_of(tmp_path, "choose", TWO, gold=str(gold), overlap=0) as (client, _):
        rule = lambda wanted: lambda answers: {"choice": next((i for i, text in enumerate(answers) if wanted in text), 0)}
        anna, ben = Browser(client).all(rule("right")), Browser(client, "ben").all(rule("wrong"))
        assert not any("gold" in text for browser in (anna, ben) for text in browser.said)
    rows, summary = exported(tmp_path)
    assert len(rows) == 6 and all("right" not in row["a"] + row["b"] for row in rows)
    assert summary["annotators"]["anna"]["gold"] == {"accuracy": 1.0, "n": 6}
    assert "ben was right in 0 % of 6 gold questions" in summary["flags"]


# --- what is refused --------------------------------------------------------------------------------------------------------------


def test_bad_requests(tmp_path):
    with page_of(tmp_path, "choose", TWO) as (client, _):
        anna = Browser(client)
        item = anna.now["item"]["item"]
        good = {"item": item, "key": "a-key-of-mine", "verdict": {"choice": 0}, "seconds": 1.0}
        bad = [
            ({**good, "verdict": {"choice": 5}}, 422),
            ({**good, "verdict": []}, 422),
            ({**good, "item": "1"}, 422),
            ({**good, "item": 99}, 409),
            ({**good, "seconds": -1}, 422),
            ({**good, "seconds": 1e9}, 422),
            ({**good, "key": "k"}, 422),
            ({**good, "more": 1}, 422),
            ({"item": item}, 422),
        ]
        for body, status in bad:
            answer = client.post("/api/vote", json=body, headers=anna.headers)
            assert answer.status_code == status and answer.json().keys() == {"error"}, answer.text
        for raw in (b"", b"{", b"nul", b'{"item":' + b"[" * 50_000, b'{"seconds": NaN}', b"\xff\xfe"):
            answer = client.post("/api/vote", content=raw, headers={**anna.headers, "content-type": "application/json"})
            assert answer.status_code in (400, 422), (raw[:20], answer.text)
        for headers in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer wrong"}, {"authorization": "Basic YTpi"}):
            for method, path in (("GET", "/api/next"), ("POST", "/api/vote"), ("POST", "/api/undo")):
                body = good if path == "/api/vote" else {"key": "a-key-of-mine"}
                answer = client.request(method, path, json=None if method == "GET" else body, headers=headers)
                assert answer.status_code == 401
    assert exported(tmp_path)[1]["votes"] == 0


def test_other_hosts_and_other_origins(tmp_path):
    with page_of(tmp_path, "choose", TWO, names=["labels.example"]) as (client, _):
        ask = lambda **headers: client.get("/api/hello", headers={k.replace("_", "-"): v for k, v in headers.items()}).status_code
        for host in ("127.0.0.1:8765", "localhost:8765", "LOCALHOST", "[::1]:80", "labels.example"):
            assert ask(host=host) == 200, host
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8765",
            "evil.example@127.0.0.1",
            "192.168.0.7",
            "",
            "127.0.0.1:x",
        ):
            assert ask(host=host) == 421, host
        assert ask(origin=BASE) == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8765", "file://"):
            assert ask(origin=origin) == 403, origin
        assert (
            ask(sec_fetch_site="cross-site") == 403 and ask(sec_fetch_site="same-site") == 403 and ask(sec_fetch_site="same-origin") == 200
        )
        led = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert client.get("/", headers={**led, "sec-fetch-dest": "document"}).status_code == 200
        assert client.get("/", headers={**led, "sec-fetch-dest": "iframe"}).status_code == 403


def test_bodies_are_bounded(tmp_path):
    with page_of(tmp_path, "choose", TWO) as (client, _):
        long = b'{"name": "' + b"x" * 400_000 + b'"}'
        headers = {"content-type": "application/json"}
        assert client.post("/api/enter", content=long, headers=headers).status_code == 413

        def pieces() -> Iterator[bytes]:
            yield from (long[i : i + 10_000] for i in range(0, len(long), 10_000))

        assert client.post("/api/enter", content=pieces(), headers=headers).status_code == 413  # no length is told
        assert client.post("/api/enter", content=b"{}", headers={**headers, "content-length": "9" * 30}).status_code == 413


def test_no_path_leads_outside(tmp_path):
    with page_of(tmp_path, "choose", TWO) as (client, page):
        paths = [
            "/../votes.sqlite",
            "/..%2f..%2fetc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/votes.sqlite",
            "/links.json",
            "/page.css",
        ]
        paths += [
            "/docs",
            "/openapi.json",
            "/redoc",
            "/api",
            "/api/",
            "/api/../votes.sqlite",
            "/static/../../x",
            "/\\..\\x",
            "/%00",
            "/favicon.ico",
        ]
        for path in paths:
            answer = client.get(path)
            assert answer.status_code == 404 and "sqlite" not in answer.text.lower(), path
        assert {route.path for route in page.app.app.routes} == {"/", "/api/hello", "/api/enter", "/api/next", "/api/vote", "/api/undo"}


def test_every_answer_carries_the_policy(tmp_path):
    with page_of(tmp_path, "choose", TWO) as (client, _):
        for answer in (client.get("/"), client.get("/api/hello"), client.get("/none"), client.get("/", headers={"host": "evil.example"})):
            rules = answer.headers["content-security-policy"]
            for rule in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "trusted-types 'none'"):
                assert rule in rules
            assert "unsafe" not in rules and "http" not in rules and "*" not in rules
            assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        html = client.get("/").text
        assert html.count("<script>") == 1 and "/*SCRIPT*/" not in html and "http://" not in html and "https://" not in html


@pytest.mark.parametrize("name", ["annotate", "arena"])
def test_the_pages_use_no_door_for_markup(name):
    html, _ = assembled(f"{name}.html", ("text.js", "common.js", f"{name}.js"))
    assert html.lower().count("</script") == 1 and html.lower().count("</style") == 1
    script = "".join((HERE / file).read_text() for file in ("text.js", "common.js", f"{name}.js"))
    for door in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
        "srcdoc",
        ".href",
        ".src",
    ):
        assert door not in script, door


def test_links_with_secrets(tmp_path):
    settings = {"annotators": ["anna", "ben"], "tokens": True}
    with page_of(tmp_path, "choose", TWO, **settings) as (client, page):
        assert client.get("/api/hello").json()["personal"] is True
        assert client.post("/api/enter", json={"name": "anna"}).status_code == 403
        anna = Browser(client, None, page.links["anna"])
        assert anna.now["name"] == "anna"
        kept = dict(page.links)
    assert (tmp_path / "out" / serving.LINKS).stat().st_mode & 0o077 == 0
    with page_of(tmp_path, "choose", TWO, **settings) as (client, page):
        assert page.links == kept and Browser(client, None, kept["ben"]).now["name"] == "ben"
    with page_of(tmp_path / "b", "choose", TWO, tokens=True) as (client, page):
        assert client.post("/api/enter", json={"name": "anna"}).status_code == 401
        assert client.post("/api/enter", json={"name": "anna", "secret": "é"}).status_code == 401
        assert Browser(client, "anna", page.links[""]).now["name"] == "anna"


def test_what_the_command_refuses(tmp_path, manners):
    data = write_rows(tmp_path / "two.jsonl", TWO)
    out = tmp_path / "out"
    refused = lambda *words: manners("annotate", *words).error
    assert "needs data=FILE and mode=" in refused(f"out={out}")
    assert "lets others reach the page" in refused(f"data={data}", "mode=choose", f"out={out}", "host=0.0.0.0", "tokens=false")
    assert "mode=rank takes 2 to 9" not in refused(f"data={data}", "mode=accept", f"out={out}")
    assert "there is no such file" in refused(f"data={tmp_path / 'none.jsonl'}", "mode=choose", f"out={out}")
    assert "cannot be read" in refused(f"data={data}", "mode=choose", f"out={out}", f"guidelines={tmp_path / 'none.md'}")
    assert "holds no votes" in refused(f"out={tmp_path / 'nothing'}", "serve=false")
    with opened(AnnotateSettings(data=str(data), mode="choose", out=str(out), port=0)) as page:
        assert "is in use" in refused(f"data={data}", "mode=choose", f"out={out}")
        port = page.sock.getsockname()[1]
        page.sock.listen()
        assert "cannot be served" in refused(f"data={data}", "mode=choose", f"out={tmp_path / 'other'}", f"port={port}")
    assert "mode=choose, not best" in refused(f"data={data}", "mode=best", f"out={out}")
    rated = tmp_path / "rated"
    with opened(AnnotateSettings(data=str(data), mode="rate", out=str(rated), port=0, aspects=["style"])):
        pass
    with (
        pytest.raises(InputError, match="holds ratings of style, not of truth"),
        opened(AnnotateSettings(data=str(data), mode="rate", out=str(rated), port=0, aspects=["truth"])),
    ):
        pass
    assert annotate(AnnotateSettings(out=str(out), serve=False))["votes"] == 0


def test_the_settings_table_of_the_docs():
    rows = table(page("annotation"), "Setting")
    assert rows.keys() == AnnotateSettings.model_fields.keys()
    for key, field in AnnotateSettings.model_fields.items():
        assert rows[key][0] == "needed" if field.is_required() else is_default(rows[key][0].strip("`"), field.default), key
