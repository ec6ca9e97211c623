"""Rewards of every kind, and every way in which one can be wrong: one sentence each."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from manners.core.errors import MannersError
from manners.core.records import Group, Message, Prompt, Response
from manners.feedback import rewards
from manners.feedback.annotator import annotate
from manners.feedback.rewards import CheckedReward, Endpoint, Mixture, RewardPart, identifying_reward, kind_of, parts_of, reward_of


def group(prompt: str, *answers: str, row: int = 0) -> Group:
    return Group(Prompt.user(prompt), [Response.answer(a, finish_reason="stop") for a in answers], row=row)


GROUPS = [group("Say hello.", "Hello.", "Hello, my good old friend.", row=0), group("Name a colour.", "Blue", row=1)]
FUNCTIONS = """
import math

def words(responses):
    return [len(r.split()) for r in responses]

def of_trl(completions, prompts, **kwargs):
    assert sorted(kwargs) == ["conversations", "finish_reasons", "responses", "rows"]
    return [len(c) + len(p) for c, p in zip(completions, prompts)]

def everything(prompts, responses, conversations, finish_reasons, rows):
    assert conversations[0] == [{"role": "user", "content": "Say hello."}] and finish_reasons[0] == "stop" and rows == [0, 0, 1]
    return [float(row) for row in rows]

def nan(responses):
    return [0.0, math.nan, 1.0]

def text(responses):
    return ["good", 1.0, 2.0]

def few(responses):
    return [1.0]

def none(responses):
    return None

def fails(responses):
    return [1 / 0 for _ in responses]

def strange(respones):
    return []

def blind(prompts):
    return [0.0 for _ in prompts]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_rewards_for_a_test.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_rewards_for_a_test"


def sentence(call: Callable[[], object], *words: str) -> str:
    """The one sentence that a call is refused with; it holds all of `words`."""
    with pytest.raises(MannersError) as refused:
        call()
    said = str(refused.value)
    assert said.endswith((".", "?")) and "\n" not in said and all(word in said for word in words), said
    return said


# --- the kinds --------------------------------------------------------------------------------------------------------------------


def test_length_counts_words():
    assert reward_of("length")(GROUPS) == [[1.0, 5.0], [1.0]]
    assert reward_of("length")([]) == []
    assert reward_of("length")([group("Nothing?")]) == [[]]


def test_annotator_alone_and_with_references(tmp_path: Path):
    bare = reward_of("annotator")(GROUPS)
    assert bare[1] == [annotate("Name a colour.", "Blue", finish_reason="stop").score]
    file = tmp_path / "prompts.jsonl"
    known = [{"prompt": "Say hello.", "reference": "Hello, my good old friend."}, {"prompt": "Name a colour.", "wants": {"words": [1, 1]}}]
    file.write_text("".join(json.dumps(row) + "\n" for row in known))
    told = reward_of(f"annotator:{file}")(GROUPS)
    assert told[0][1] == pytest.approx(10.0) and told[0][1] > told[0][0]
    said = sentence(lambda: reward_of(f"annotator:{file}")([group("Say hallo.", "Hi", row=6)]), "row 7", str(file))
    assert said.endswith("did you mean 'Say hello.'?")
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "Say hallo.", "reference": "Hi"}\n')
    assert reward_of(f"annotator:{file},{more}")([*GROUPS[:1], group("Say hallo.", "Hi")]) == [told[0], [pytest.approx(10.0)]]
    cut = Group(Prompt.user("Say hello."), [Response.answer("Hello, my good old friend.", finish_reason="length")])
    assert reward_of(f"annotator:{file}")([cut])[0][0] < told[0][1]


def test_the_last_user_turn_is_what_is_asked():
    turns = (Message("system", "Be kind."), Message("user", "One?"), Message("assistant", "1"), Message("user", "Two?"))
    assert rewards.asked(Group(Prompt(turns), [])) == "Two?"


def test_functions(module: str):
    assert reward_of(f"{module}:words")(GROUPS) == [[1.0, 5.0], [1.0]]
    assert reward_of(f"{module}:of_trl")(GROUPS) == [[16.0, 36.0], [18.0]]
    assert reward_of(f"{module}:everything")(GROUPS) == [[0.0, 0.0], [1.0]]


def test_mixtures(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mixed = reward_of(f"0.5*length + {module}:words + -2*length")
    assert isinstance(mixed.inner, Mixture) and mixed.name == f"0.5*length + 1*{module}:words + -2*length"
    assert mixed(GROUPS) == [[-0.5, -2.5], [-0.5]]
    assert mixed.inner.by_part(GROUPS)[1] == [[1.0, 5.0], [1.0]]
    for listed in ([{"reward": "length", "weight": 3}], [RewardPart(reward="length", weight=3.0)], "3 * length"):
        assert reward_of(listed)(GROUPS) == [[3.0, 15.0], [3.0]]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2*a + b").mkdir()
    assert parts_of("2*a + b") == [(1.0, "2*a + b")]
    assert parts_of("1e-1*runs/rm + annotator:a+b.jsonl") == [(0.1, "runs/rm"), (1.0, "annotator:a+b.jsonl")]


def test_which_kind_a_name_is(tmp_path: Path):
    kinds = {"annotator": "annotator", "annotator:a.jsonl": "annotator", "length": "length", "a.b:c": "function", "http://x/y": "endpoint"}
    assert {name: kind_of(name)[0] for name in kinds} == kinds
    assert kind_of(str(tmp_path)) == ("model", "") and kind_of("owner/name") == ("model", "")


# --- what is wrong ----------------------------------------------------------------------------------------------------------------


def test_names_that_are_no_reward(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "reward").mkdir(parents=True)
    assert sentence(lambda: reward_of("anotator")).endswith("did you mean 'annotator'?")
    assert sentence(lambda: reward_of("runs/rewrd")).endswith("did you mean 'runs/reward'?")
    sentence(lambda: reward_of("quality"), "there is no reward 'quality'", "module:function")
    sentence(lambda: reward_of(" "), "empty")
    sentence(lambda: reward_of([]), "empty")
    sentence(lambda: reward_of("0.5*length + "), "empty")
    sentence(lambda: reward_of("0.5*length + lenght"), "did you mean 'length'?")
    sentence(lambda: reward_of([{"reward": "length", "wieght": 1}]), "did you mean 'weight'?")
    sentence(lambda: reward_of([{"reward": "length", "weight": "much"}]), "must be a number")
    sentence(lambda: reward_of([{"reward": "length", "weight": math.inf}]), "finite")
    sentence(lambda: reward_of([{"weight": 1}]), "{reward: runs/rm, weight: 0.7}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    sentence(lambda: reward_of("rows.jsonl"), "annotator:rows.jsonl")
    sentence(lambda: reward_of("annotator:rows.jsonl"), "rows.jsonl, line 1")
    assert sentence(lambda: reward_of("annotator:row.jsonl")).endswith("did you mean 'rows.jsonl'?")
    sentence(lambda: reward_of("http:///rewards"), "names no host")


def test_a_folder_that_is_no_reward_model(tmp_path: Path, tiny_model: Path):
    sentence(lambda: reward_of(str(tmp_path)), str(tmp_path))
    sentence(lambda: reward_of(str(tiny_model)), str(tiny_model))


def test_functions_that_cannot_be_used(module: str):
    assert sentence(lambda: reward_of(f"{module}:word")).endswith("did you mean 'words'?")
    sentence(lambda: reward_of("no_such_module:f"), "cannot be imported")
    assert sentence(lambda: reward_of(f"{module}:strange")).endswith("did you mean 'responses'?")
    sentence(lambda: reward_of(f"{module}:blind"), "does not take 'responses'")
    sentence(lambda: reward_of(f"{module}:fails")(GROUPS), "ZeroDivisionError", "my_rewards_for_a_test.py line")


def test_scores_that_cannot_be_used(module: str):
    sentence(lambda: reward_of(f"{module}:nan")(GROUPS), f"'{module}:nan'", "nan for answer 2 to row 1")
    sentence(lambda: reward_of(f"{module}:text")(GROUPS), "'good' for answer 1 to row 1")
    sentence(lambda: reward_of(f"{module}:few")(GROUPS), "1 scores for 3 answers")
    sentence(lambda: reward_of(f"{module}:none")(GROUPS), "NoneType")
    sentence(lambda: reward_of(f"2*length + {module}:nan")(GROUPS), f"'{module}:nan'", "row 1")
    wrong = {
        "2 lists": lambda groups: [[1.0, 2.0], [1.0]][: len(groups) - 1],
        "for the 2 answers to row 1": lambda groups: [[1.0], [1.0]],
        "float instead of a list for the 1 answers to row 2": lambda groups: [[1.0, 2.0], 1.0],
        "inf for answer 1 to row 2": lambda groups: [[1.0, 2.0], [math.inf]],
        "None for answer 2 to row 1": lambda groups: [[1.0, None], [1.0]],
    }
    wrong["1 lists"] = wrong.pop("2 lists")
    for said, function in wrong.items():
        sentence(lambda function=function: CheckedReward("mine", function)(GROUPS), "'mine'", said)


def test_numbers_of_other_libraries_become_floats():
    torch = pytest.importorskip("torch")
    given = CheckedReward("mine", lambda groups: [torch.tensor([1.0, 2.0]), [np.float32(0.5)]])(GROUPS)  # type: ignore[arg-type]
    assert given == [[1.0, 2.0], [0.5]] and all(type(x) is float for part in given for x in part)


# --- an endpoint ------------------------------------------------------------------------------------------------------------------


class Server:
    """Answers each request by the next of `script`: a function of the request's body, a status, or "sleep"; then as the last."""

    def __init__(self, *script):
        self.script, self.asked = list(script), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                if step == "sleep":
                    time.sleep(0.6)
                    return
                answer = json.dumps(step(body)) if callable(step) else ""
                self.send_response(200 if callable(step) else step)
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/rewards"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*script) -> Server:
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def right(body: dict) -> dict:
    return {"rewards": [len(r) for r in body["responses"]]}


def test_endpoint(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which knows nothing of this machine's own servers
    server = serve(right)
    assert reward_of(server.url)(GROUPS) == [[6.0, 26.0], [4.0]]
    assert server.asked == [
        {"prompts": ["Say hello.", "Say hello.", "Name a colour."], "responses": ["Hello.", "Hello, my good old friend.", "Blue"]}
    ]
    small = CheckedReward("small", Endpoint(server.url, batch=2))
    assert small(GROUPS) == [[6.0, 26.0], [4.0]] and len(server.asked) == 3


def test_endpoint_that_times_out_and_recovers(serve):
    server = serve("sleep", 503, 429, right)
    assert CheckedReward("slow", Endpoint(server.url, timeout=0.2, wait=0.01))(GROUPS) == [[6.0, 26.0], [4.0]]
    assert len(server.asked) == 4 and all(body == server.asked[0] for body in server.asked)


def test_endpoint_that_stays_away(serve):
    slow = Endpoint(serve("sleep").url, timeout=0.1, tries=2, wait=0.01)
    sentence(lambda: slow(GROUPS), "could not be asked in 2 tries", "no answer within 0.1 s")
    broken = Endpoint(serve(500).url, tries=2, wait=0.01)
    sentence(lambda: broken(GROUPS), "it answered 500")
    gone = Endpoint("http://127.0.0.1:9/rewards", tries=2, wait=0.01)
    sentence(lambda: gone(GROUPS), "http://127.0.0.1:9/rewards", "refused")
    with pytest.raises(MannersError) as refused:
        gone(GROUPS)
    assert refused.value.exit_code == 1


def test_endpoint_that_answers_nonsense(serve):
    ask = lambda step: lambda: reward_of(serve(step).url)(GROUPS)
    sentence(ask(404), "refused the request", "404")
    sentence(ask(lambda body: {"scores": [1, 2, 3]}), '{"rewards": [...]}')
    sentence(ask(lambda body: [1, 2, 3]), "it answered '[1, 2, 3]'")
    sentence(ask(lambda body: {"rewards": [1.0]}), "1 rewards for 3 responses")
    sentence(ask(lambda body: {"rewards": [1.0, math.nan, 2.0]}), "nan for answer 2 to row 1")


# --- identity ---------------------------------------------------------------------------------------------------------------------


def test_identity_follows_what_can_change_a_score(tmp_path: Path, module: str):
    folder, prompts = tmp_path / "rm" / "model", tmp_path / "prompts.jsonl"
    folder.mkdir(parents=True)
    (folder / "head.safetensors").write_bytes(b"1")
    prompts.write_text('{"prompt": "Say hello."}\n')
    specs = ["length", "annotator", f"annotator:{prompts}", f"{module}:words", "http://a/b", str(folder.parent), f"2*{folder.parent}"]
    first = [identifying_reward(spec) for spec in specs]
    assert all(list(content) == ["reward_sha256"] for content in first) and len({c["reward_sha256"] for c in first}) == len(specs)
    assert [identifying_reward(spec) for spec in specs] == first
    (folder / "head.safetensors").write_bytes(b"2")
    prompts.write_text('{"prompt": "Say hello!"}\n')
    changed = [spec for spec, before in zip(specs, first, strict=True) if identifying_reward(spec) != before]
    assert changed == [specs[2], specs[5], specs[6]]
    assert list(identifying_reward("length", "gold")) == ["gold_sha256"]
