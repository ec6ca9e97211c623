"""Is the hub there: a short question, put to the right machine, once."""

import socket
import time
from collections.abc import Iterator

import pytest

from manners.core import network


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy is set, and nothing has been asked yet."""
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    network._answers.cache_clear()
    yield
    network._answers.cache_clear()


def test_the_probe_is_short_and_made_once(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []

    def silent(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        time.sleep(2)
        raise OSError

    monkeypatch.setattr(network.socket, "create_connection", silent)
    monkeypatch.setattr(network, "SECONDS", 0.1)
    monkeypatch.setenv("HF_ENDPOINT", "https://nowhere.invalid")
    start = time.monotonic()
    assert network.silent_hub() == "nowhere.invalid:443"
    assert network.silent_hub() == "nowhere.invalid:443"
    assert time.monotonic() - start < 1.5 and asked == [("nowhere.invalid", 443)]


def test_the_probe_finds_a_listener(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert network.silent_hub() == ""


def test_the_probe_asks_the_endpoint_or_the_proxy(monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(network.socket, "create_connection", refuse)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert network.silent_hub() == "huggingface.co:443"
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/hub")
    assert network.silent_hub() == "mirror.example:8080"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert network.silent_hub() == "mirror.example:443"
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert network.silent_hub() == "proxy.example:3128"
    monkeypatch.setenv("no_proxy", "mirror.example")
    assert network.silent_hub() == "mirror.example:443"
    assert asked == [("huggingface.co", 443), ("mirror.example", 8080), ("mirror.example", 443), ("proxy.example", 3128)]
