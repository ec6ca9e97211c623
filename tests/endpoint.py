"""A server that plays an OpenAI-compatible endpoint, in its good and bad days."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Step = Callable[[Body], Any] | int | str | bytes
"""What a request is answered by: a function of its body (giving the text of the answer, or all of it as a dictionary), a status, raw
bytes, or a word: "sleep" (too long), "die" (breaks off within the answer), "slam" (closes without a word)."""


def completion(body: Body, text: str | list[str] = "Yes.", finish_reason: str = "stop", usage: bool = True, **choice: Any) -> Body:
    """A chat completion. Usage: a token a word."""
    texts = [text] * body.get("n", 1) if isinstance(text, str) else text
    choices = [
        {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": finish_reason, **choice} for i, t in enumerate(texts)
    ]
    asked = sum(len(m["content"].split()) for m in body["messages"])
    given = sum(len(t.split()) for t in texts)
    counts = {"prompt_tokens": asked, "completion_tokens": given, "total_tokens": asked + given}
    return {"id": "1", "object": "chat.completion", "model": body["model"], "choices": choices, **({"usage": counts} if usage else {})}


class PlayedEndpoint:
    """Answers each request by the next step of `script`; then always by the last. `asked` holds the bodies, `headers` their headers,
    `busiest` the most requests that were under way at once."""

    def __init__(self, *script: Step, retry_after: str | None = None):
        self.script, self.asked, self.headers, self.times = list(script), [], [], []
        self.retry_after, self.lock, self.busy, self.busiest = retry_after, threading.Lock(), 0, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.asked.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.times.append(time.monotonic())
                    step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                    outer.busy += 1
                    outer.busiest = max(outer.busiest, outer.busy)
                try:
                    self.play(step, body)
                finally:
                    with outer.lock:
                        outer.busy -= 1

            def play(self, step: Step, body: Body) -> None:
                if self.path != "/v1/chat/completions":
                    return self.answer(404, b'{"error": {"message": "no such path"}}')
                if step == "sleep":
                    time.sleep(0.6)
                    self.close_connection = True
                elif step == "slam":
                    self.close_connection = True
                elif step == "die":
                    self.close_connection = True
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                elif isinstance(step, int):
                    self.answer(step, b'{"error": {"message": "not today"}}')
                elif isinstance(step, bytes):
                    self.answer(200, step)
                else:
                    assert callable(step)
                    said = step(body)
                    self.answer(200, json.dumps(said if isinstance(said, dict) else completion(body, said)).encode())

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if outer.retry_after is not None and status in (429, 503):
                    self.send_header("Retry-After", outer.retry_after)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.name = f"{self.url}#played"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def last(body: Body) -> str:
    """The text of a request's last message."""
    return body["messages"][-1]["content"]
