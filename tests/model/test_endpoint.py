"""An OpenAI-compatible endpoint as a sampler, on its good and bad days."""

import json
import time
from collections.abc import Callable

import pytest

from manners.core.errors import InputError, MannersError
from manners.core.records import Message, Prompt
from manners.model.draw import Sampling
from manners.model.endpoint import ChatEndpoint, Request
from tests.endpoint import PlayedEndpoint, completion, last

ASKED = [Prompt.user("Say hello."), Prompt.user("Say hello."), Prompt((Message("system", "Be brief."), Message("user", "Name a river.")))]
QUICK = {"wait": 0.01, "tries": 3}


def sentence(do: Callable[[], object], *parts: str, kind: type[MannersError] = MannersError) -> None:
    with pytest.raises(kind) as raised:
        do()
    said = str(raised.value)
    assert all(part in said for part in parts) and said.endswith((".", "?")) and "\n" not in said, said
    assert type(raised.value) is kind


def test_samples_come_in_order_with_rows_and_reasons(played):
    server = played(lambda body: completion(body, last(body).upper(), "length"))
    done: list[int] = []
    endpoint = ChatEndpoint.named(server.name)
    groups = endpoint.sample(ASKED, Sampling(temperature=0.5, top_p=0.9, max_new_tokens=7), samples=2, rows=[4, 5, 9], progress=done.append)
    assert [[r.text for r in g.responses] for g in groups] == [["SAY HELLO."] * 2, ["SAY HELLO."] * 2, ["NAME A RIVER."] * 2]
    assert [g.row for g in groups] == [4, 5, 9] and [g.prompt for g in groups] == ASKED and done == [1, 2, 3, 4, 5, 6]
    assert {r.finish_reason for g in groups for r in g.responses} == {"length"}
    assert {json.dumps(body["messages"]) for body in server.asked} == {
        json.dumps([{"role": "user", "content": "Say hello."}]),
        json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."}]),
    }
    assert all(
        (b["model"], b["temperature"], b["top_p"], b["max_tokens"]) == ("played", 0.5, 0.9, 7) and "top_k" not in b for b in server.asked
    )
    assert len({body["seed"] for body in server.asked}) == 6  # every sample of every row draws on its own
    # a token a word: prompts 2, 2 and 5, answers 2, 2 and 3, two of each
    assert endpoint.spent.as_dict() == {
        "prompt_tokens": 18,
        "completion_tokens": 14,
        "requests": 6,
        "estimated": 0,
        "tokens": 32,
    }


def test_the_same_call_sends_the_same_seeds_and_greedy_none(played):
    server = played(lambda body: "Yes.")
    endpoint = ChatEndpoint(server.url, "m", concurrency=1)
    for _ in range(2):
        endpoint.sample(ASKED[:1], Sampling(seed=3), samples=2)
    seeds = [body["seed"] for body in server.asked]
    assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1] and all(0 <= seed < 2**31 for seed in seeds)
    endpoint.sample(ASKED[:1], Sampling(temperature=0, top_k=5, min_p=0.1))
    assert "seed" not in server.asked[-1] and (server.asked[-1]["top_k"], server.asked[-1]["min_p"]) == (5, 0.1)


def test_samples_together_and_an_endpoint_that_gives_fewer(played):
    server = played(lambda body: completion(body, ["a", "b c"]), lambda body: completion(body, ["d"]))
    endpoint = ChatEndpoint(server.url, "m", together=True)
    (group,) = endpoint.sample(ASKED[:1], Sampling(), samples=3)
    assert [r.text for r in group.responses] == ["a", "b c", "d"]
    assert [body.get("n") for body in server.asked] == [3, None]
    assert (endpoint.spent.prompt_tokens, endpoint.spent.completion_tokens) == (4, 4)


def test_requests_run_at_once_up_to_the_bound(played):
    server = played(lambda body: time.sleep(0.05) or "Yes.")
    ChatEndpoint(server.url, "m", concurrency=3).sample(ASKED * 3, Sampling())
    assert server.busiest == 3


def test_the_key_goes_along_and_proxies_stay_out(played, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("MY_KEY", "s3cret")
    server = played(lambda body: "Yes.")
    ChatEndpoint(server.url, "m", key_env="MY_KEY", extra={"presence_penalty": 2}).sample(ASKED[:1], Sampling())
    assert server.headers[0]["Authorization"] == "Bearer s3cret" and server.asked[0]["presence_penalty"] == 2
    ChatEndpoint(server.url, "m", key_env="NO_SUCH_KEY").sample(ASKED[:1], Sampling())
    assert "Authorization" not in server.headers[1]


def test_bad_days_that_end_well(played):
    server = played(429, 500, "slam", b"<html>", "die", lambda body: {"choices": []}, "sleep", lambda body: "At last.")
    endpoint = ChatEndpoint(server.url, "m", tries=6, wait=0.01, timeout=0.3)
    assert endpoint.sample(ASKED[:1], Sampling())[0].responses[0].text == "At last."
    assert len(server.asked) == 8 and endpoint.spent.requests == 1


def test_retry_after_is_honoured(played):
    server = played(429, lambda body: "Yes.", retry_after="1")
    ChatEndpoint(server.url, "m", wait=0.01).sample(ASKED[:1], Sampling())
    assert 0.95 < server.times[1] - server.times[0] < 3


def test_bad_days_that_stay(played):
    def ask(*script, **options) -> Callable[[], object]:
        server: PlayedEndpoint = played(*script)
        endpoint = ChatEndpoint(server.url, "m", **{**QUICK, **options})
        return lambda: endpoint.sample(ASKED, Sampling())

    sentence(ask(500), "in 3 tries", "500", "not today")
    sentence(ask(429), "in 3 tries", "429")
    sentence(ask("slam"), "in 3 tries", "the connection broke off")
    sentence(ask("sleep", timeout=0.1), "no answer within 0.1 s")
    sentence(ask(b"<html>hello"), "answered 3 times", "no JSON, but '<html>hello'", "/v1?")
    sentence(ask("die"), "the connection broke off within the answer")
    sentence(ask(lambda body: {"error": "x"}), "no choices in")
    sentence(ask(lambda body: {"choices": [{"text": "an old completion"}]}), "no message in")
    sentence(ask(lambda body: {"choices": [{"message": {"content": 7}}]}), "no text in")
    sentence(ask(404), "404", "it has no model 'm'", kind=InputError)
    sentence(ask(422), "refused the request", "422", kind=InputError)
    sentence(ask(401, key_env="NO_SUCH_KEY"), "NO_SUCH_KEY", "is not set", kind=InputError)
    sentence(lambda: ChatEndpoint("http://127.0.0.1:9/v1", "m", **QUICK).sample(ASKED, Sampling()), "refused", "in 3 tries")
    sentence(lambda: ChatEndpoint.named("http://nobody.invalid/v1#m", tries=1).sample(ASKED, Sampling()), "nobody.invalid")


def test_addresses_that_cannot_be_meant():
    sentence(lambda: ChatEndpoint.named("localhost:8000/v1#m"), "names no host", kind=InputError)
    sentence(lambda: ChatEndpoint.named("http://#m"), "names no host", kind=InputError)
    sentence(lambda: ChatEndpoint.named("http://localhost:8000/v1"), "names no model", "http://localhost:8000/v1#my-model", kind=InputError)
    sentence(lambda: ChatEndpoint.named("http://localhost/v1#m").sample([Prompt(())], Sampling()), "no messages", kind=InputError)
    assert ChatEndpoint.named("http://localhost/v1/chat/completions#org/m").url == "http://localhost/v1"


def test_after_an_error_what_is_under_way_is_handed_over_first(played):
    def step(body):
        time.sleep(0.15 if last(body) == "slow" else 0)
        return {"choices": []} if last(body) == "bad" else last(body)

    endpoint = ChatEndpoint(played(step).url, "m", concurrency=2, tries=1)
    found = []
    asked = [Request(Prompt.user(text), i, 0) for i, text in enumerate(["slow", "bad", "never", "asked"])]
    with pytest.raises(MannersError, match="no chat completion"):
        for _, answered in endpoint.each(asked, Sampling()):
            found.append(answered.response.text)
    assert found == ["slow"]


def test_texts_as_endpoints_write_them(played):
    message = lambda **content: lambda body: {"choices": [{"message": {"role": "assistant", **content}}]}
    parts = [{"type": "text", "text": "In "}, {"type": "image"}, {"type": "text", "text": "parts."}]
    server = played(message(content=parts), message(content=None, refusal="I cannot."), message(content=None), message(content=""))
    endpoint = ChatEndpoint(server.url, "m", concurrency=1)
    groups = endpoint.sample(ASKED[:1] * 4, Sampling())
    assert [g.responses[0].text for g in groups] == ["In parts.", "I cannot.", "", ""]
    # without usage: 4 characters a token, rounded up: 4 x 3 for the prompts, 3 + 3 for the answers
    assert endpoint.spent.estimated == endpoint.spent.tokens == 18


def test_log_probabilities(played):
    tokens = [{"token": "Yes", "logprob": -0.2, "top_logprobs": [{"token": "Yes", "logprob": -0.2}, {"token": "No", "logprob": -1.8}]}]
    server = played(lambda body: completion(body, "Yes", **({"logprobs": {"content": tokens}} if body.get("logprobs") else {})))
    endpoint = ChatEndpoint(server.url, "m", logprobs=True)
    assert endpoint.sample(ASKED[:1], Sampling())[0].responses[0].logprobs == [-0.2]
    assert endpoint.first_token_logprobs(ASKED[:2], top=2) == [{"Yes": -0.2, "No": -1.8}] * 2
    assert (server.asked[-1]["max_tokens"], server.asked[-1]["top_logprobs"], server.asked[-1]["temperature"]) == (1, 2, 0)
    without = ChatEndpoint(played(lambda body: "Yes").url, "m", logprobs=True)
    assert without.first_token_logprobs(ASKED[:1]) == [None] and without.sample(ASKED[:1], Sampling())[0].responses[0].logprobs is None


def test_a_model_that_wants_the_length_by_its_new_name(played):
    server = played(lambda body: "Yes.")
    handler = server.server.RequestHandlerClass
    play = handler.play

    def strict(self, step, body):
        if "max_tokens" in body:
            return self.answer(400, b'{"error": {"message": "use max_completion_tokens instead"}}')
        return play(self, step, body)

    handler.play = strict
    endpoint = ChatEndpoint(server.url, "m", concurrency=1)
    assert [g.responses[0].text for g in endpoint.sample(ASKED, Sampling(max_new_tokens=9))] == ["Yes."] * 3
    assert [b.get("max_completion_tokens") for b in server.asked] == [None, 9, 9, 9]
