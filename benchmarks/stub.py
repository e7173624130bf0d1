"""An OpenAI-compatible endpoint of fixed latency and settable faults, in a process of its own, cheap enough not to be the bottleneck.

What it answers depends on the request alone, so that a run with faults and one without must end with the same dialogues.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

FAULTS = ("http_500", "http_429", "hang", "cut", "malformed_body", "wrong_schema")
RETRY_AFTER_S = 0.3
REPAIR = "That cannot be read"  # begins the harness's request for another answer
CHARACTERS = 4  # of English a token, about
WORDS = (  # noqa: SIM905 (as a list they would fill a page)
    "quiet harbour storm garden letter winter sister engine forest comic murder castle island border teacher ghost river market "
    "secret planet kitchen soldier music desert king train village doctor window bridge ocean clever gentle brutal ancient modern "
    "funny tragic short endless magic robot family friend enemy journey mystery puzzle romance history science poetry cooking "
    "travel horse dragon pirate lawyer painter farmer singer orphan hunter miner"
).split()
CONFIRMATION = {
    "flexibility_reason": "it took up what I said", "flexibility": 2, "coherence_reason": "it fits", "coherence": 2,
    "guidance_reason": "it asked nothing", "guidance": 0,
}  # fmt: skip


@dataclass
class Behaviour:
    """What the endpoint does.

    Attributes:
        latency_s: Between a request and its answer, seconds.
        faults: Share of the requests that get each kind of `FAULTS`, drawn by `seed` in order of arrival.
        hang_s: After so long a hanging connection is closed without an answer.
    """

    latency_s: float = 0.2
    faults: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    hang_s: float = 60.0


class Stub:
    """Answers requests and counts them by what became of them, and how often the same request was answered."""

    def __init__(self, behaviour: Behaviour):
        self.behaviour = behaviour
        self.outcomes: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0
        self._random = random.Random(behaviour.seed)

    def draw(self) -> str:
        """Kind of fault of the next request, "" for none."""
        kinds = list(self.behaviour.faults)
        weights = [self.behaviour.faults[kind] for kind in kinds]
        return self._random.choices([*kinds, ""], [*weights, 1 - sum(weights)])[0]

    def facts(self) -> dict:
        """What was counted since the last reset."""
        return {
            "outcomes": dict(self.outcomes), "different": len(self.answered), "repeated": sum(self.answered.values()) - len(self.answered),
            "most_in_flight": self.most_in_flight,
        }  # fmt: skip


class Connection(asyncio.Protocol):
    """HTTP/1.1 as far as an API client needs it: one request after the other on a kept connection."""

    def __init__(self, stub: Stub):
        self._stub = stub
        self._buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1]) if lengths else 0
        if len(rest) >= length:
            self._buffer = rest[length:]
            self._handle(head.split(b" ", 2)[1].decode(), rest[:length])

    def _handle(self, path: str, body: bytes) -> None:
        stub = self._stub
        if path == "/stub":  # a new behaviour, or, with an empty body, the counts
            if body:
                stub.__init__(Behaviour(**json.loads(body)))
            return self._send(200, json.dumps(stub.facts()).encode())
        if not path.endswith("/chat/completions"):
            return self._send(200, b'{"object": "list", "data": []}')
        fault = stub.draw()
        stub.in_flight += 1
        stub.most_in_flight = max(stub.most_in_flight, stub.in_flight)
        loop = asyncio.get_running_loop()
        loop.call_later(stub.behaviour.hang_s if fault == "hang" else stub.behaviour.latency_s, self._answer, stub, body, fault)
        return None

    def _answer(self, stub: Stub, body: bytes, fault: str) -> None:
        stub.in_flight -= 1
        stub.outcomes[fault or "answered"] += 1
        if fault == "hang" or self._transport.is_closing():
            return self._transport.close()
        if fault in ("http_500", "http_429"):
            retry_after = f"Retry-After: {RETRY_AFTER_S}\r\n" if fault == "http_429" else ""
            return self._send(int(fault[5:]), b'{"error": {"message": "stub fault"}}', retry_after)
        if fault == "malformed_body":
            return self._send(200, b'{"id": "stub", "choices": [{"mess')
        request = json.loads(body)
        is_wrong = fault == "wrong_schema" and has_schema(request)
        data = completion("I would rather not say." if is_wrong else answer(request), len(body) // CHARACTERS)
        if fault == "cut":
            self._send(200, data, cut=True)
            return self._transport.close()
        if not fault:
            stub.answered[hashlib.sha256(body).hexdigest()] += 1
        return self._send(200, data)

    def _send(self, status: int, data: bytes, headers: str = "", *, cut: bool = False) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
        self._transport.write(head.encode() + (data[: len(data) // 2] if cut else data))


def completion(text: str, prompt_tokens: int) -> bytes:
    """A chat completion with a guess of its tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    tokens = prompt_tokens, 1 + len(text) // CHARACTERS
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return json.dumps(
        {"id": "stub", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice], "usage": usage}
    ).encode()


def has_schema(request: dict) -> bool:
    """Whether an answer has a form that it can miss: JSON, or an agent's action; a user's free words have none."""
    return "response_format" in request or request["messages"][-1]["content"].startswith(("User:", "Observation:"))


def answer(request: dict) -> str:
    """What agent, user and confirmation say: one search a round and a recommendation, until the rounds are over.

    Asked to repair an answer it says what it would have said at first.
    """
    asked, messages = request.get("response_format"), request["messages"]
    while messages[-1]["content"].startswith(REPAIR):
        messages = messages[:-2]
    last = messages[-1]["content"]
    if asked and "flexibility" in asked["json_schema"]["schema"]["properties"]:
        return json.dumps(CONFIRMATION)
    words = make_words(last)
    if asked:
        return json.dumps({"reason": "it suggested something", "policy": "provide_feedback_on_recommendation", "message": f"No, {words}."})
    if last.startswith("Observation:"):
        return f"Recommend[You could try the first of these, {words}, which many people have liked.]"
    return f"Search[{words}]" if last.startswith("User:") else f"I look for {words}."


def make_words(text: str) -> str:
    """Ten words that hardly any other text gives."""
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return " ".join(WORDS[digest // len(WORDS) ** place % len(WORDS)] for place in range(10))


@contextlib.contextmanager
def serving(**behaviour: object) -> Iterator[str]:
    """The stub in a process of its own; gives its address."""
    command = [sys.executable, __file__, json.dumps(behaviour)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


async def _serve(stub: Stub) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(stub), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("behaviour", nargs="?", default="{}", help='JSON, e.g. {"latency_s": 0.2, "faults": {"http_500": 0.05}}')
    asyncio.run(_serve(Stub(Behaviour(**json.loads(parser.parse_args().behaviour)))))
