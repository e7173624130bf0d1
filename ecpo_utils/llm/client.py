"""The one client that talks to chat endpoints: cached, counted, validated. Everything else builds on `ChatClient`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ..core.artifacts import append_jsonl
from ..core.errors import EndpointError, ParseError
from ..core.params import Endpoint
from ..core.quoting import defuse
from ..core.schema import Message, Usage
from .budget import Budget, call_cost
from .cache import ResponseCache
from .transport import Transport

logger = logging.getLogger(__name__)
T = TypeVar("T", bound=BaseModel)

MIN_CHOICE_MASS = 0.01  # probability that must lie on the words of a choice
MAX_TEMPERATURE = 2.0  # that OpenAI takes; retries with more heat stay below
REPAIRS = 2  # a share of 2.5% of unreadable answers then leaves one in 64,000


@dataclass(frozen=True)
class Completion(Generic[T]):
    """An answer. `top_logprobs` holds, per token asked for, the alternatives and their log-probabilities."""

    text: str
    parsed: T | None = None
    top_logprobs: list[dict[str, float]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cached: bool = False


@dataclass
class Meter:
    """Adds up what calls cost: one per dialogue and one per stage are usual."""

    by_role: dict[str, Usage] = field(default_factory=dict)

    def add(self, role: str, endpoint: Endpoint, answer: Completion) -> None:
        """Count one answer; cached ones count as calls with their tokens, but cost no money, and their time is kept apart."""
        usage = self.by_role.setdefault(role, Usage())
        usage.calls += 1
        usage.prompt_tokens += answer.prompt_tokens
        usage.completion_tokens += answer.completion_tokens
        if answer.cached:
            usage.cached += 1
            usage.cached_seconds += answer.seconds
            return
        usage.seconds += answer.seconds
        usage.cost_usd += call_cost(endpoint, answer.prompt_tokens, answer.completion_tokens)


class ChatClient:
    """Chat calls of one role to one endpoint.

    Args:
        role: Name under which calls are counted and logged.
        endpoint: Provider, model, limits and prices.
        urls: Where it answers: one address, or several that serve the same model.
        api_key: Its key; kept in the `openai` client only.
        identity: What stands for the endpoint in cache keys (model hash or URL).
        cache: Shared answers.
        calls_log: `calls.jsonl`, one line per call.
        limit: Calls in flight of all clients of the same endpoint; the client's own is its endpoint's `max_concurrency`.
        seed: Of every request; the sample's index is added.
        budget: Is asked before a call is sent, and told what it cost.
    """

    def __init__(
        self,
        role: str,
        endpoint: Endpoint,
        *,
        urls: Sequence[str],
        api_key: str,
        identity: str,
        cache: ResponseCache,
        calls_log: Path,
        limit: asyncio.Semaphore | None = None,
        seed: int = 0,
        budget: Budget | None = None,
    ):
        self._budget = budget
        self.role = role
        self._seed = seed
        self.endpoint = endpoint
        self.identity = identity
        self._model = Path(endpoint.adapter).name if endpoint.adapter else endpoint.model
        self.meter = Meter()
        self._cache = cache
        self._calls_log = calls_log
        self._limits = [asyncio.Semaphore(endpoint.max_concurrency), *([limit] if limit else [])]
        self._in_flight: dict[str, asyncio.Task[Completion]] = {}
        self._closing = False
        self._transport = Transport(role, endpoint, urls, api_key)

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        sample: int = 0,
        top_logprobs: int = 0,
        schema: dict | None = None,
        meter: Meter | None = None,
    ) -> Completion:
        """One chat completion, from the cache if it was paid for before; the same request is sent once at a time.

        Args:
            messages: Constant parts first, so that servers can reuse their prefix.
            max_tokens: Of the answer.
            stop: Strings that end the answer and are not part of it.
            sample: Index of this draw among several of the same request.
            top_logprobs: Alternatives per answer token to return, 0 for none.
            schema: JSON schema that the answer must follow (`response_format`).
            meter: Counts this call as well, e.g. for one dialogue.

        Raises:
            EndpointError: If the endpoint refuses or stays away after all retries.
        """
        key, body = self._request(
            messages, max_tokens=max_tokens, temperature=temperature, stop=stop, sample=sample, top_logprobs=top_logprobs, schema=schema
        )
        answer = await self._answer(key, body)
        self._count(key, answer, meter)
        return answer

    async def parse(self, messages: Sequence[Message], kind: type[T], *, repairs: int = REPAIRS, **options: object) -> Completion[T]:
        """A completion that is validated into a record; one that cannot be read is sent back for repair.

        Args:
            messages: See `complete`.
            kind: A pydantic model; its JSON schema goes with the request.
            repairs: Times that an answer is sent back.
            **options: See `complete`.

        Raises:
            EndpointError: See `complete`.
            ParseError: If the repaired answers cannot be read either; shows the last. They leave the cache, so that
                a later run asks anew.
        """
        schema = _schema(kind)
        messages, unreadable = list(messages), []
        for _ in range(1 + repairs):
            answer = await self.complete(messages, schema=schema, **options)
            try:
                parsed = kind.model_validate_json(_json_part(answer.text))
                return dataclasses.replace(answer, parsed=parsed)
            except ValidationError as error:
                fault = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors()[:3])
            unreadable.append(self._request(messages, schema=schema, **options)[0])
            messages += [
                {"role": "assistant", "content": answer.text},
                {"role": "user", "content": f"That cannot be read ({fault}). Answer again with the JSON object only."},
            ]
        self._cache.forget(unreadable)
        raise ParseError(f"{self.role}: {fault} in the reply {answer.text[:200]!r}; expected {kind.__name__}; see {self._calls_log}")

    async def choose(self, messages: Sequence[Message], options: Sequence[str], *, meter: Meter | None = None) -> dict[str, float]:
        """Probability of each answer word, normalised over the words, read from the first token.

        Args:
            messages: Should end by asking for exactly one of the words.
            options: Words that differ in their first letters.

        Raises:
            EndpointError: See `complete`; fatal if the endpoint refuses or returns no log-probabilities.
            ParseError: If next to no probability lies on the words, so that theirs would mean nothing.
        """
        hint = f"set {self.role}_mode to one that asks for JSON instead of log-probabilities"
        try:
            answer = await self.complete(messages, max_tokens=1, top_logprobs=20, meter=meter)
        except EndpointError as error:
            if "logprobs" in str(error):  # an endpoint that knows the argument and refuses it
                raise EndpointError(f"{error}; {hint}", fatal=True) from None
            raise
        if not any(answer.top_logprobs[:1]):
            self._cache.forget([self._request(messages, max_tokens=1, top_logprobs=20)[0]])  # the server may be mended
            raise EndpointError(f"{self._transport.name()} returns no log-probabilities; {hint}", fatal=True)
        mass = dict.fromkeys(options, 1e-9)
        for token, logprob in answer.top_logprobs[0].items():
            word = token.strip().strip("\"'*:.").lower()
            matches = [option for option in options if word and option.lower().startswith(word)]
            if len(matches) == 1:
                mass[matches[0]] += math.exp(logprob)
        total = sum(mass.values())
        if total < MIN_CHOICE_MASS:
            raise ParseError(f"{self.role}: the answer is none of {', '.join(options)} but {answer.text[:60]!r}; see {self._calls_log}")
        return {option: value / total for option, value in mass.items()}

    async def check(self) -> None:
        """Whether the endpoint answers at all; see `Transport.check`."""
        await self._transport.check()

    async def close(self) -> None:
        """Wait for the answers in flight, which are paid for and kept, send nothing more, and close connections."""
        self._closing = self._transport.is_closing = True
        if self._in_flight:
            logger.warning("%s: waiting for %d answers in flight, to keep them", self.role, len(self._in_flight))
            await asyncio.wait(self._in_flight.values())
        await self._transport.close()

    def _request(
        self, messages: Sequence[Message], *, max_tokens: int, temperature: float = 0.0, stop: Sequence[str] = (), sample: int = 0,
        top_logprobs: int = 0, schema: dict | None = None, meter: Meter | None = None,
    ) -> tuple[str, dict]:  # fmt: skip
        """A request's key in the cache, and its body."""
        fields = {
            "messages": [{**message, "content": defuse(message["content"])} for message in messages],
            "max_tokens": max_tokens, "temperature": min(temperature, MAX_TEMPERATURE), "seed": self._seed, "stop": list(stop),
            "top_logprobs": top_logprobs, "schema": schema,
        }  # fmt: skip
        key = self._cache.key({**fields, "endpoint": self.identity, "sample": sample})
        body = {name: fields[name] for name in ("messages", "max_tokens", "temperature")}
        body |= {"model": self._model, "seed": self._seed + sample}
        if stop:
            body["stop"] = fields["stop"]
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if schema:
            answer = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": answer}
        return key, body

    async def _answer(self, key: str, body: dict) -> Completion:
        """From the cache, from the same request that is in flight (its error as well), or paid for.

        Whoever waits may be cancelled; the request goes on, so that its answer is kept.
        """
        if stored := self._cache.get(key):
            return Completion(**stored, cached=True)
        is_first = key not in self._in_flight
        if is_first:
            task = self._in_flight[key] = asyncio.create_task(self._paid(key, body))
            task.add_done_callback(lambda task: self._forget_task(key, task))
        answer = await asyncio.shield(self._in_flight[key])
        return answer if is_first else dataclasses.replace(answer, cached=True)

    def _forget_task(self, key: str, task: asyncio.Task) -> None:
        del self._in_flight[key]
        if not task.cancelled():
            task.exception()  # no warning if nobody waits for it any more

    async def _paid(self, key: str, body: dict) -> Completion:
        async with contextlib.AsyncExitStack() as held:
            for limit in self._limits:
                await held.enter_async_context(limit)
            if self._closing:
                raise asyncio.CancelledError
            if self._budget:
                self._budget.check()
            started = time.monotonic()
            answer = _completion(await self._transport.send(body), round(time.monotonic() - started, 3))
        self._cache.put(
            key, {name: getattr(answer, name) for name in ("text", "top_logprobs", "prompt_tokens", "completion_tokens", "seconds")}
        )
        usd = call_cost(self.endpoint, answer.prompt_tokens, answer.completion_tokens)
        if self._budget:
            self._budget.spend(usd)
        self._log(key, answer, usd)
        return answer

    def _count(self, key: str, answer: Completion, meter: Meter | None) -> None:
        for each in (self.meter, meter):
            if each is not None:
                each.add(self.role, self.endpoint, answer)
        if answer.cached:
            self._log(key, answer, 0.0)

    def _log(self, key: str, answer: Completion, usd: float) -> None:
        row = {
            "time": round(time.time(), 3),
            "role": self.role,
            "model": self.endpoint.model,
            "request": key[:16],
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "seconds": 0.0 if answer.cached else answer.seconds,
            "usd": usd,
            "cached": answer.cached,
        }
        append_jsonl(self._calls_log, row)


def _completion(answer: dict, seconds: float) -> Completion:
    """Library: openai, type ChatCompletion, of which this much is needed."""
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    logprobs = (choice.get("logprobs") or {}).get("content") or []
    return Completion(
        text=defuse(choice["message"].get("content") or ""),  # it will stand in further prompts, and in what is trained on
        top_logprobs=[_top_logprobs(token) for token in logprobs],
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        seconds=seconds,
    )


def _top_logprobs(token: dict) -> dict[str, float]:
    """Tokens and their log-probabilities; entries without either, as some servers send them, are left out."""
    entries = [(each.get("token"), each.get("logprob")) for each in token.get("top_logprobs") or []]
    return {word: value for word, value in entries if isinstance(word, str) and isinstance(value, (int, float)) and math.isfinite(value)}


@functools.cache
def _schema(kind: type[BaseModel]) -> dict:
    return kind.model_json_schema()


def _json_part(text: str) -> str:
    """From the first brace to the last: models like to wrap JSON in a code fence."""
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text
