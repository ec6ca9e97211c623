"""`manners watch`: the page over HTTP, made anew when files change, refused under a foreign name, with the progress of running stages."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

from manners.core.errors import InputError
from manners.core.files import append_json, write_json
from manners.feedback.web import serving
from manners.report import live
from tests.feedback.web.serving import running as served
from tests.report import fabricate


@pytest.fixture
def run(tmp_path):
    """A run in which dpo is still going."""
    folder = fabricate.run(tmp_path / "run", tests=6, held_out=2)
    (folder / "dpo" / "manifest.json").unlink()
    settings = {"settings": {"epochs": 2, "model": "m"}}
    write_json(folder / "dpo" / "settings.json", settings)
    append_json(folder / "dpo" / "metrics.jsonl", {"step": 61, "loss": 0.5, "epoch": 1.0})
    return folder


def ask(port: int, path: str, host: str | None = None) -> tuple[int, dict[str, str], str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as line:
        line.putrequest("GET", path, skip_host=True)
        line.putheader("Host", host or f"127.0.0.1:{port}")
        line.endheaders()
        answer = line.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()


def test_the_page_is_served_and_strangers_are_not(run):
    watched = live.Watched([str(run)], every=0.5)
    with closing(serving.bound("127.0.0.1", 0)) as sock, served(live.make_app(watched, "127.0.0.1"), sock):
        port = sock.getsockname()[1]
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
            for path in ("/", "/state"):
                status, _, text = ask(port, path, host)
                assert status == 421 and "dpo" not in text
        status, headers, text = ask(port, "/")
        assert status == 200 and 'data-live="1"' in text and "The alignment ledger" in text
        assert "connect-src 'self'" in headers["content-security-policy"] and "frame-ancestors 'none'" in headers["content-security-policy"]
        state = json.loads(ask(port, "/state")[2])
        assert state["stages"] == [{"name": "dpo", "share": 0.5, "said": "step 61, loss 0.500"}]
        assert ask(port, "/../settings.json")[0] == 404
        time.sleep(0.6)
        write_json(run / "dpo" / "manifest.json", {"stage": "dpo", "settings": {"planted": "freshly"}, "seconds": 3})
        later = json.loads(ask(port, "/state")[2])
        assert later["version"] != state["version"] and later["stages"] == []
        assert "freshly" in ask(port, "/")[2]


def test_what_cannot_be_read_yet_is_waited_for(tmp_path):
    (tmp_path / "<b>run").mkdir()
    watched = live.Watched([str(tmp_path / "<b>run")], every=0.5)
    assert "Nothing to show yet" in watched.page() and "<b>" not in watched.page()


def test_half_a_line_is_not_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st', encoding="utf-8")
    assert live.last_record(path) == {"step": 2} and live.last_record(tmp_path / "none") == {}


def test_addresses_of_others_and_missing_folders_are_refused(run):
    with pytest.raises(InputError, match="would show the run to others"):
        live.watch(live.WatchSettings(runs=[str(run)], host="0.0.0.0", port=0))
    with pytest.raises(InputError, match="there is no folder"):
        live.watch(live.WatchSettings(runs=["nowhere"]))


def test_ctrl_c_ends_it_cleanly(run):
    command = [sys.executable, "-m", "manners", "watch", str(run), "port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "COLUMNS": "300"})
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert "watching" in line, line
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in rest
    finally:
        process.kill()
