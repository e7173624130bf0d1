"""One chat request on its way: the addresses of an endpoint, retries, and faults in one line without the key.

Library: openai. Its low-level `post` is used, for its typed `create` costs three times the CPU, and aiohttp beneath it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import httpx2
import openai

from ..core.errors import EndpointError
from ..core.params import Endpoint
from ..core.redaction import hide_key, hide_userinfo

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
REST_S = 20.0  # of an address that failed, while others of the same endpoint do the work
PATIENCE_S = 600.0  # with an endpoint that limits the rate, beyond the library's own retries
MAX_STOPS = 4  # strings that OpenAI's API takes in `stop`; the servers that are started here take any number
BROKEN_BODY_WAIT_S = 0.2  # doubled with every retry
_FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
_ELSEWHERE = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError)  # faults that another address may not have


def on_loopback(url: str) -> bool:
    """Whether a URL leads to this machine, which no proxy reaches."""
    return urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def endpoint_urls(endpoint: Endpoint) -> list[str]:
    """Addresses of an "openai" endpoint: those given, or that in its environment variable; none for OpenAI itself."""
    return endpoint.urls or list(filter(None, [os.environ.get(endpoint.base_url_env)]))


@dataclass(eq=False)
class Address:
    """One of the URLs behind a role, its connections, and how busy it is."""

    client: openai.AsyncOpenAI
    in_flight: int = 0
    rests_until: float = 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Counts a request while it lasts."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


class Transport:
    """Sends chat requests of one role to its endpoint, each to the least busy of its addresses.

    Args:
        role: For messages.
        endpoint: Limits of time and retries.
        urls: Where it answers: one address, or several that serve the same model.
        api_key: Kept in the `openai` clients only.
    """

    def __init__(self, role: str, endpoint: Endpoint, urls: Sequence[str], api_key: str):
        self.role = role
        self.endpoint = endpoint
        self.is_closing = False  # then nobody waits for an endpoint that limits the rate
        self._key = api_key
        retries = endpoint.max_retries if len(urls) == 1 else min(1, endpoint.max_retries)  # then the next address is tried
        connections = httpx2.Limits(max_connections=endpoint.max_concurrency + 2, keepalive_expiry=60.0)
        self._addresses = [
            Address(
                openai.AsyncOpenAI(
                    base_url=url, api_key=api_key, timeout=endpoint.timeout_s, max_retries=retries,
                    http_client=openai.DefaultAioHttpClient(limits=connections, trust_env=not on_loopback(url)),  # no proxy to ourselves
                )
            )
            for url in urls
        ]  # fmt: skip

    async def send(self, body: dict) -> dict:
        """The chat completion as the endpoint wrote it.

        Raises:
            EndpointError: If the endpoint refuses or stays away after all retries.
        """
        stops = body.get("stop", [])
        if self.endpoint.provider == "openai" and len(stops) > MAX_STOPS:
            return _cut(await self.send({**body, "stop": stops[:MAX_STOPS]}), stops[MAX_STOPS:])
        attempts = max(self.endpoint.max_retries, len(self._addresses) - 1)
        patient_until = time.monotonic() + (PATIENCE_S if self.endpoint.max_retries else 0.0)
        tried, was_limited = 0, False
        while True:
            address = min(self._addresses, key=lambda each: (each.rests_until > time.monotonic(), each.in_flight))
            try:
                with address.busy():
                    answer = await address.client.post("/chat/completions", cast_to=object, body=body)
                return self._checked(answer, address)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:  # cut short or garbled; no JSON at all is told by its type
                if tried == attempts:
                    raise self._no_completion(address, f"({error})") from None
                await asyncio.sleep(BROKEN_BODY_WAIT_S * 2**tried)
                tried += 1
            except openai.OpenAIError as error:
                explained = self.explain(error, address.client)
                has_others = len(self._addresses) > 1 and isinstance(error, _ELSEWHERE)
                is_limited = isinstance(error, openai.RateLimitError) and not explained.fatal
                was_limited |= is_limited
                address.rests_until = time.monotonic() + REST_S
                if (is_limited or was_limited and has_others) and time.monotonic() < patient_until:
                    await self._rest(explained)
                elif has_others and tried < attempts:
                    tried += 1
                else:
                    raise explained from None

    async def _rest(self, limited: EndpointError) -> None:
        """Wait until an address may be asked again, if all of them rest; a client that is closing does not wait.

        Raises:
            EndpointError: `limited`, if the client is closing.
        """
        if all(each.rests_until > time.monotonic() for each in self._addresses) and not self.is_closing:
            logger.warning("%s; waiting", limited)
            await asyncio.sleep(REST_S * random.uniform(0.5, 1.0))  # not all at once
        if self.is_closing:
            raise limited

    def _checked(self, answer: object, address: Address) -> dict:
        """The answer, if it has the shape of a chat completion."""
        try:
            message = answer["choices"][0]["message"]
            content = message.get("content")
            if isinstance(content, str):
                message["content"] = hide_key(content, self._key)  # what an endpoint says goes into files
            if content is None or isinstance(content, str):
                return answer
            fault = f"content is {type(content).__name__}"
        except (AttributeError, TypeError, LookupError) as error:
            fault = f"{type(error).__name__}: {error}"
        shown = answer if isinstance(answer, str) else json.dumps(answer, default=str)
        raise self._no_completion(address, f"{self._plain(shown)[:200]} ({fault})")

    async def check(self) -> None:
        """Ask every address for its models, so that a wrong key or address is known before any work.

        Raises:
            EndpointError: If one does not answer or refuses.
        """
        for address in self._addresses:
            client = address.client.with_options(max_retries=1, timeout=min(20.0, self.endpoint.timeout_s))
            try:
                await client.models.list()
            except (openai.NotFoundError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
                continue  # endpoints without a model list are fine
            except openai.OpenAIError as error:
                raise self.explain(error, client, fatal=True) from None

    async def close(self) -> None:
        """Close connections."""
        for address in self._addresses:
            await address.client.close()

    def name(self) -> str:
        """The endpoint in messages."""
        return self._name(self._addresses[0].client)

    def _name(self, client: openai.AsyncOpenAI) -> str:
        return f"{self.role} endpoint {hide_userinfo(str(client.base_url))} (model {self.endpoint.model})"

    def _no_completion(self, address: Address, shown: str) -> EndpointError:
        said = f"answered with something that is no chat completion: {' '.join(shown.split())}"
        return EndpointError(f"{self._name(address.client)} {said}; is the address right?")

    def _plain(self, text: str) -> str:
        return hide_userinfo(hide_key(text, self._key))

    def explain(self, error: openai.OpenAIError, client: openai.AsyncOpenAI, fatal: bool = False) -> EndpointError:
        """A one-line error without the key, and whether further calls are useless."""
        hint = ""
        if isinstance(error, openai.AuthenticationError):
            hint = f"; is the key in ${self.endpoint.api_key_env} right?"
        elif isinstance(error, openai.NotFoundError):
            hint = "; are the address and the model's name right?"
        elif isinstance(error, openai.RateLimitError | openai.InternalServerError):
            hint = f"; {client.max_retries} retries"
        elif refusal := _refusal(error):
            fatal, hint = True, f" {refusal}; is it running? {client.max_retries} retries"
        elif isinstance(error, openai.APITimeoutError):
            hint = f"; no answer within {client.timeout:g} s, {client.max_retries} retries"
        elif isinstance(error, openai.APIConnectionError):
            is_no_address = type(error.__cause__).__name__ == "UnsupportedProtocol"
            hint = "; an address begins with http:// or https://" if is_no_address else f" {error.__cause__}; {client.max_retries} retries"
            fatal = fatal or is_no_address
        text = self._plain(" ".join(str(error).split()))[:300]
        spent = getattr(error, "code", None) == "insufficient_quota"
        return EndpointError(f"{self._name(client)}: {text}{self._plain(hint)}", fatal=fatal or spent or isinstance(error, _FATAL))


def _cut(answer: dict, stops: Sequence[str]) -> dict:
    """A chat completion that ends before the first of some strings, as if the endpoint had known them."""
    message = answer["choices"][0]["message"]
    for stop in stops:
        message["content"] = (message["content"] or "").partition(stop)[0]
    return answer


def _refusal(error: BaseException | None) -> OSError | None:
    """Why no connection came about, so that nothing listens there: refused, unreachable, a name that nobody knows."""
    while error is not None and not isinstance(error, aiohttp.ClientConnectorError):
        error = error.__cause__ or error.__context__
    return error
