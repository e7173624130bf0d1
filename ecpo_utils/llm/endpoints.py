"""From the endpoints of the params to clients that are ready: keys, servers, identities, shared limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import urllib.parse
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from ..core.errors import EndpointError
from ..core.params import Endpoint
from .budget import Budget
from .cache import ResponseCache
from .client import ChatClient
from .models import weights_hashes
from .servers import adapter_hash, server_spec, serving
from .transport import OPENAI_URL, endpoint_urls


def _credentials(endpoint: Endpoint) -> tuple[list[str], str]:
    urls = endpoint_urls(endpoint)
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if any("@" in urllib.parse.urlsplit(url).netloc for url in urls):  # would stand beside the key in the same header
        advice = f"give a key in ${endpoint.api_key_env}"
        raise EndpointError(f"the address in ${endpoint.base_url_env} holds a user or password; {advice}", fatal=True)
    if not key and not urls:
        raise EndpointError(f"model {endpoint.model} needs a key: set the environment variable {endpoint.api_key_env}", fatal=True)
    if not key.isascii():
        raise EndpointError(f"the key in ${endpoint.api_key_env} holds a character that no key has; paste it again", fatal=True)
    return urls, key or "no-key"


def _weights_identity(endpoint: Endpoint) -> str:
    """Cache identity of a server of our own: the hashes of its weights, wherever they lie."""
    files = weights_hashes(endpoint.model)
    if endpoint.adapter:
        files["adapter"] = adapter_hash(Path(endpoint.adapter))
    served = ["generation-config vllm"] if endpoint.provider == "vllm" else []  # what else decides its answers
    return json.dumps([endpoint.provider, endpoint.model, sorted(files.items()), *served])


def _place(endpoint: Endpoint) -> tuple:
    """What roles on one endpoint have in common."""
    return endpoint.provider, endpoint.model, endpoint.adapter, *endpoint_urls(endpoint)


def _most_calls(endpoints: Iterable[Endpoint]) -> dict[tuple, int]:
    """The highest `max_concurrency` at each place."""
    found: dict[tuple, int] = {}
    for endpoint in endpoints:
        found[_place(endpoint)] = max(found.get(_place(endpoint), 0), endpoint.max_concurrency)
    return found


@contextlib.asynccontextmanager
async def open_clients(
    endpoints: dict[str, Endpoint],
    *,
    cache: ResponseCache,
    calls_log: Path,
    sharing: Sequence[Endpoint] = (),
    seed: int = 0,
    budget: Budget | None = None,
) -> AsyncIterator[dict[str, ChatClient]]:
    """A client for each role, with the servers they need.

    Each role keeps its own limit of calls in flight. Roles on the same endpoint share its server, and together
    have as many calls in flight as the one of them that may have most.

    Args:
        endpoints: By role.
        cache: Of answers.
        calls_log: A line for each call.
        sharing: Endpoints of the run's roles, which may come to the same servers while these are up.
        seed: Of sampling.
        budget: What may be spent.

    Raises:
        EndpointError: If an endpoint refuses or does not answer.
        ModelError: If weights or a server for them cannot be had.
    """
    slots = _most_calls([*endpoints.values(), *sharing])
    limits = {place: asyncio.Semaphore(number) for place, number in _most_calls(endpoints.values()).items()}
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for role, endpoint in endpoints.items():
            if endpoint.provider == "openai":
                urls, key = _credentials(endpoint)
                identity = f"{urls[0] if urls else 'openai'} {endpoint.model}"  # the first address stands for all: more may join
                if endpoint.adapter:  # an endpoint of the user's own, which serves it under its folder's name
                    identity += f" {adapter_hash(Path(endpoint.adapter))}"
            else:
                spec = server_spec(endpoint.provider, endpoint.model, slots[_place(endpoint)], endpoint.adapter, endpoint.replicas)
                server = await asyncio.to_thread(stack.enter_context, serving(spec))
                urls, key, identity = [server.base_url], server.api_key, _weights_identity(endpoint)
            clients[role] = ChatClient(
                role, endpoint, urls=urls or [OPENAI_URL], api_key=key, identity=identity, cache=cache, calls_log=calls_log,
                limit=limits[_place(endpoint)], seed=seed, budget=budget,
            )  # fmt: skip
            stack.push_async_callback(clients[role].close)
            if endpoint.provider == "openai":
                await clients[role].check()
        yield clients
