"""The one client that talks to chat endpoints: cached, counted, validated. Everything else builds on `ChatClient`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
import os
import time
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import openai
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ValidationError

from ..core.artifacts import append_jsonl
from ..core.errors import EcpoError, EndpointError, ParseError
from ..core.params import Endpoint
from ..core.schema import Message, Usage
from .cache import ResponseCache
from .models import weights_hashes
from .servers import adapter_hash, server_spec, serving

logger = logging.getLogger(__name__)
T = TypeVar("T", bound=BaseModel)

OPENAI_URL = "https://api.openai.com/v1"
MIN_CHOICE_MASS = 0.01  # probability that must lie on the words of a choice
_FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


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
        """Count one answer; cached ones count as calls with their tokens, but cost no time or money."""
        usage = self.by_role.setdefault(role, Usage())
        usage.calls += 1
        usage.prompt_tokens += answer.prompt_tokens
        usage.completion_tokens += answer.completion_tokens
        if answer.cached:
            usage.cached += 1
            return
        usage.seconds += answer.seconds
        usage.cost_usd += (
            answer.prompt_tokens * endpoint.usd_per_million_prompt_tokens
            + answer.completion_tokens * endpoint.usd_per_million_completion_tokens
        ) / 1e6


def on_loopback(url: str) -> bool:
    """Whether a URL leads to this machine, which no proxy reaches."""
    return urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


class ChatClient:
    """Chat calls of one role to one endpoint.

    Args:
        role: Name under which calls are counted and logged.
        endpoint: Provider, model, limits and prices.
        base_url: Where it answers.
        api_key: Its key; kept in the `openai` client only.
        identity: What stands for the endpoint in cache keys (model hash or URL).
        cache: Shared answers.
        calls_log: `calls.jsonl`, one line per call.
        limit: Calls in flight of all clients of the same endpoint; the client's own is its endpoint's `max_concurrency`.
        seed: Of every request; the sample's index is added.
    """

    def __init__(
        self,
        role: str,
        endpoint: Endpoint,
        *,
        base_url: str | None,
        api_key: str,
        identity: str,
        cache: ResponseCache,
        calls_log: Path,
        limit: asyncio.Semaphore | None = None,
        seed: int = 0,
    ):
        self.role = role
        self._seed = seed
        self.endpoint = endpoint
        self.identity = identity
        self._model = Path(endpoint.adapter).name if endpoint.adapter else endpoint.model
        self.meter = Meter()
        self._key = api_key
        self._cache = cache
        self._calls_log = calls_log
        self._limits = [asyncio.Semaphore(endpoint.max_concurrency), *([limit] if limit else [])]
        self._in_flight: dict[str, asyncio.Future[Completion]] = {}
        base_url = base_url or OPENAI_URL  # else the library would look into the environment itself
        self._openai = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            timeout=endpoint.timeout_s,
            max_retries=endpoint.max_retries,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if on_loopback(base_url) else None,  # no proxy to ourselves
        )

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
        request = {
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": self._seed,
            "stop": list(stop),
            "top_logprobs": top_logprobs,
            "schema": schema,
        }
        key = self._cache.key({**request, "endpoint": self.identity, "sample": sample})
        answer = await self._answer(key, request, sample)
        self._count(key, answer, meter)
        return answer

    async def parse(self, messages: Sequence[Message], kind: type[T], **options: object) -> Completion[T]:
        """A completion that is validated into a record; an unparsable one is sent back for repair once.

        Args:
            messages: See `complete`.
            kind: A pydantic model; its JSON schema goes with the request.
            **options: See `complete`.

        Raises:
            EndpointError: See `complete`.
            ParseError: If the repaired answer cannot be read either; shows it.
        """
        schema = kind.model_json_schema()
        messages = list(messages)
        for attempt in (0, 1):
            answer = await self.complete(messages, schema=schema, **options)
            try:
                parsed = kind.model_validate_json(_json_part(answer.text))
                return Completion(**{**answer.__dict__, "parsed": parsed})
            except ValidationError as error:
                fault = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors()[:3])
            if attempt == 0:
                messages += [
                    {"role": "assistant", "content": answer.text},
                    {"role": "user", "content": f"That cannot be read ({fault}). Answer again with the JSON object only."},
                ]
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
            raise EndpointError(f"{self._name()} returns no log-probabilities; {hint}", fatal=True)
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
        """Ask the endpoint for its models, so that a wrong key or address is known before any work.

        Raises:
            EndpointError: If it does not answer or refuses.
        """
        client = self._openai.with_options(max_retries=1, timeout=min(20.0, self.endpoint.timeout_s))
        try:
            await client.models.list()
        except (openai.NotFoundError, AttributeError, json.JSONDecodeError):
            return  # endpoints without a model list are fine
        except openai.OpenAIError as error:
            raise self._explain(error, client, fatal=True) from None

    async def close(self) -> None:
        """Close connections."""
        await self._openai.close()

    async def _answer(self, key: str, request: dict, sample: int) -> Completion:
        """From the cache, from the same request that is in flight (its error as well), or paid for."""
        while True:
            if stored := self._cache.get(key):
                return Completion(**stored, cached=True)
            if not (first := self._in_flight.get(key)):
                break
            await asyncio.wait([first])
            if not first.cancelled():  # else somebody must ask again
                return dataclasses.replace(first.result(), cached=True)
        first = self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            answer = await self._paid(key, request, sample)
            first.set_result(answer)
            return answer
        except EcpoError as error:
            first.set_exception(error)
            first.exception()  # no warning if nobody waits for it
            raise
        finally:
            del self._in_flight[key]
            first.cancel()

    async def _paid(self, key: str, request: dict, sample: int) -> Completion:
        async with contextlib.AsyncExitStack() as held:
            for limit in self._limits:
                await held.enter_async_context(limit)
            answer = await self._request(request, sample)
        self._cache.put(
            key, {name: getattr(answer, name) for name in ("text", "top_logprobs", "prompt_tokens", "completion_tokens", "seconds")}
        )
        return answer

    async def _request(self, request: dict, sample: int) -> Completion:
        options: dict = {"stop": request["stop"]} if request["stop"] else {}
        if request["top_logprobs"]:
            options |= {"logprobs": True, "top_logprobs": request["top_logprobs"]}
        if request["schema"]:
            schema = {"name": "answer", "schema": request["schema"], "strict": True}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        started = time.monotonic()
        try:
            answer = await self._openai.chat.completions.create(
                model=self._model,
                messages=request["messages"],
                max_tokens=request["max_tokens"],
                temperature=request["temperature"],
                seed=request["seed"] + sample,
                **options,
            )
        except openai.OpenAIError as error:
            raise self._explain(error, self._openai) from None
        except json.JSONDecodeError as error:
            raise self._no_completion(error) from None
        try:
            return _completion(answer, round(time.monotonic() - started, 3))
        except (AttributeError, TypeError, IndexError) as error:  # the openai client checks no types
            shown = answer.model_dump_json(exclude_none=True, warnings=False) if isinstance(answer, BaseModel) else str(answer)
            raise self._no_completion(error, shown) from None

    def _count(self, key: str, answer: Completion, meter: Meter | None) -> None:
        for each in (self.meter, meter):
            if each is not None:
                each.add(self.role, self.endpoint, answer)
        append_jsonl(
            self._calls_log,
            {
                "time": round(time.time(), 3),
                "role": self.role,
                "model": self.endpoint.model,
                "request": key[:16],
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "seconds": 0.0 if answer.cached else answer.seconds,
                "cached": answer.cached,
            },
        )

    def _name(self) -> str:
        return f"{self.role} endpoint {self._openai.base_url} (model {self.endpoint.model})"

    def _no_completion(self, error: Exception, shown: str = "") -> EndpointError:
        text = " ".join(f"{shown.replace(self._key, '***')[:200]} ({error})".split())
        return EndpointError(f"{self._name()} answered with something that is no chat completion: {text}; is the address right?")

    def _explain(self, error: openai.OpenAIError, client: openai.AsyncOpenAI, fatal: bool = False) -> EndpointError:
        """A one-line error without the key, and whether further calls are useless."""
        hint = ""
        if isinstance(error, openai.AuthenticationError):
            hint = f"; is the key in ${self.endpoint.api_key_env} right?"
        elif isinstance(error, openai.NotFoundError):
            hint = "; are the address and the model's name right?"
        elif isinstance(error, openai.RateLimitError | openai.InternalServerError):
            hint = f"; {client.max_retries} retries"
        elif isinstance(error, openai.APITimeoutError):
            hint = f"; no answer within {client.timeout:g} s, {client.max_retries} retries"
        elif isinstance(error, openai.APIConnectionError):
            cause = type(error.__cause__).__name__
            hint = f" {error.__cause__}; is it running? {client.max_retries} retries"
            if cause == "UnsupportedProtocol":
                hint = "; an address begins with http:// or https://"
            fatal = fatal or cause in ("ConnectError", "UnsupportedProtocol")  # nothing listens
        text = " ".join(str(error).split()).replace(self._key, "***")[:300]
        spent = getattr(error, "code", None) == "insufficient_quota"
        return EndpointError(f"{self._name()}: {text}{hint}", fatal=fatal or spent or isinstance(error, _FATAL))


def _completion(answer: ChatCompletion, seconds: float) -> Completion:
    choice, usage = answer.choices[0], answer.usage
    logprobs = (choice.logprobs and choice.logprobs.content) or []
    return Completion(
        text=(choice.message.content or "").encode("utf-8", "replace").decode(),  # half a surrogate pair could not be stored
        top_logprobs=[{each.token: each.logprob for each in token.top_logprobs or []} for token in logprobs],
        prompt_tokens=(usage and usage.prompt_tokens) or 0,
        completion_tokens=(usage and usage.completion_tokens) or 0,
        seconds=seconds,
    )


def _json_part(text: str) -> str:
    """From the first brace to the last: models like to wrap JSON in a code fence."""
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def _credentials(endpoint: Endpoint) -> tuple[str | None, str]:
    base_url = endpoint.base_url or os.environ.get(endpoint.base_url_env) or None
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not key and base_url is None:
        raise EndpointError(f"model {endpoint.model} needs a key: set the environment variable {endpoint.api_key_env}", fatal=True)
    if not key.isascii():
        raise EndpointError(f"the key in ${endpoint.api_key_env} holds a character that no key has; paste it again", fatal=True)
    return base_url, key or "no-key"


def _weights_identity(endpoint: Endpoint) -> str:
    """Cache identity of a server of our own: the hashes of its weights, wherever they lie."""
    files = weights_hashes(endpoint.model)
    if endpoint.adapter:
        files["adapter"] = adapter_hash(Path(endpoint.adapter))
    return json.dumps([endpoint.provider, endpoint.model, sorted(files.items())])


def _place(endpoint: Endpoint) -> tuple:
    """What roles on one endpoint have in common."""
    return endpoint.provider, endpoint.model, endpoint.adapter, endpoint.base_url or os.environ.get(endpoint.base_url_env)


@contextlib.asynccontextmanager
async def open_clients(
    endpoints: dict[str, Endpoint], *, cache: ResponseCache, calls_log: Path, seed: int = 0
) -> AsyncIterator[dict[str, ChatClient]]:
    """A client for each role, with the servers they need.

    Each role keeps its own limit of calls in flight. Roles on the same endpoint share its server, and together
    have as many calls in flight as the one of them that may have most.

    Raises:
        EndpointError: If an endpoint refuses or does not answer.
        ModelError: If weights or a server for them cannot be had.
    """
    slots: dict[tuple, int] = {}
    for endpoint in endpoints.values():
        slots[_place(endpoint)] = max(slots.get(_place(endpoint), 0), endpoint.max_concurrency)
    limits = {place: asyncio.Semaphore(number) for place, number in slots.items()}
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for role, endpoint in endpoints.items():
            if endpoint.provider == "openai":
                base_url, key = _credentials(endpoint)
                identity = f"{base_url or 'openai'} {endpoint.model}"
                if endpoint.adapter:  # an endpoint of the user's own, which serves it under its folder's name
                    identity += f" {adapter_hash(Path(endpoint.adapter))}"
            else:
                spec = server_spec(endpoint.provider, endpoint.model, slots[_place(endpoint)], endpoint.adapter)
                server = await asyncio.to_thread(stack.enter_context, serving(spec))
                base_url, key, identity = server.base_url, server.api_key, _weights_identity(endpoint)
            clients[role] = ChatClient(
                role, endpoint, base_url=base_url, api_key=key, identity=identity, cache=cache, calls_log=calls_log,
                limit=limits[_place(endpoint)], seed=seed,
            )  # fmt: skip
            stack.push_async_callback(clients[role].close)
            if endpoint.provider == "openai":
                await clients[role].check()
        yield clients
