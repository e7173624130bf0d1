"""A scripted OpenAI-compatible endpoint on loopback, so that no test needs a model or a network."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """What the endpoint does with one chat request. A plain string stands for `Reply(text)`.

    Attributes:
        logprobs: Per answer token its alternatives and their log-probabilities; None sends none.
        status: HTTP status; from 400 on the body is an OpenAI error that holds `text`.
        body: Sent as it stands instead of a completion, e.g. broken JSON or an HTML page.
        delay_s: Waited before answering, seconds.
        hang: Never answers.
        cut: Closes the connection in the middle of the body.
    """

    text: str = ""
    logprobs: list[dict[str, float]] | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | bytes | None = None
    content_type: str = "application/json"
    delay_s: float = 0.0
    hang: bool = False
    cut: bool = False
    prompt_tokens: int = 10
    completion_tokens: int = 5


@dataclass(frozen=True)
class Received:
    """A request as it arrived; `time` is monotonic seconds, header names are lower-cased."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict
    time: float


class StubEndpoint:
    """An endpoint whose chat answers are given by a script or a function.

    Args:
        answer: Called with each chat request's body (`messages`, `max_tokens`, ...); returns text or a Reply.

    Attributes:
        base_url: For `Endpoint(provider="openai", base_url=...)`.
        requests: All requests in order of arrival; `chats` holds those for completions only.
        models_reply: Sent for `GET /v1/models`; None sends an ordinary list.
        max_stops: Strings in `stop`, more of which are refused, as OpenAI's API does.
        max_in_flight: The most chat requests that were open at the same time.
    """

    def __init__(self, answer: Callable[[dict], str | Reply] = lambda request: "OK"):
        self.answer = answer
        self.requests: list[Received] = []
        self.models_reply: Reply | None = None
        self.max_stops = 4
        self.max_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(self)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def chats(self) -> list[Received]:
        return [request for request in self.requests if request.path.endswith("/chat/completions")]

    def script(self, *replies: str | Reply) -> None:
        """Answer the next requests with these, in this order; one more is refused with status 400."""
        waiting = list(replies)

        def answer(request: dict) -> str | Reply:
            with self._lock:
                return waiting.pop(0) if waiting else Reply("the script has no more replies", status=400)

        self.answer = answer

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def receive(self, request: Received) -> Reply:
        """Record a request and decide the reply. Called in the request's own thread."""
        with self._lock:
            self.requests.append(request)
        if not request.path.endswith("/chat/completions"):
            return self._wait(self.models_reply or Reply(body=json.dumps({"object": "list", "data": []})))
        with self._lock:
            self._in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._in_flight)
        try:
            reply = self.answer(request.body)
            if len(request.body.get("stop", [])) > self.max_stops:
                reply = Reply("Invalid 'stop': array too long.", status=400)
            return self._wait(Reply(reply) if isinstance(reply, str) else reply)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _wait(self, reply: Reply) -> Reply:
        self._closing.wait(None if reply.hang else reply.delay_s)
        return reply


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, endpoint: StubEndpoint):
        self.endpoint = endpoint
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; each answer would wait 40 ms for the client's ACK

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def _handle(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        received = Received(self.command, self.path, headers, json.loads(raw) if raw else {}, time.monotonic())
        reply = self.server.endpoint.receive(received)
        if reply.hang:
            return
        body = reply.body if reply.body is not None else _body(reply, received.body)
        data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
        self.send_response(reply.status)
        for name, value in {"Content-Type": reply.content_type, "Content-Length": str(len(data)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if reply.cut else data)
        if reply.cut:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


def _body(reply: Reply, request: dict) -> str:
    if reply.status >= 400:
        return json.dumps({"error": {"message": reply.text, "type": "stub", "param": None, "code": None}})
    logprobs = None
    if reply.logprobs is not None:
        logprobs = {"refusal": None, "content": [_alternatives(each) for each in reply.logprobs]}
    message = {"role": "assistant", "content": reply.text}
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    return json.dumps({
        "id": "stub", "object": "chat.completion", "created": 0, "model": request.get("model", "stub"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    })  # fmt: skip


def _alternatives(logprobs: dict[str, float]) -> dict:
    best = max(logprobs, key=lambda token: logprobs[token] or -math.inf)
    return {**_token(best, logprobs[best]), "top_logprobs": [_token(*pair) for pair in logprobs.items()]}


def _token(token: str, logprob: float) -> dict:
    return {"token": token, "logprob": logprob, "bytes": None}
