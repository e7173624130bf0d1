"""The spending limit: what counts, when it stops, and that a later run goes on counting."""

import asyncio
import json

import pytest
from stub_endpoint import Reply

from ecpo_utils.core.errors import EndpointError
from ecpo_utils.core.params import Endpoint
from ecpo_utils.llm.budget import Budget, call_cost
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.client import ChatClient

PRICED = {"usd_per_million_prompt_tokens": 1e5, "usd_per_million_completion_tokens": 2e5}  # 0.1 and 0.2 dollars a token


def test_cost_is_tokens_by_prices():
    assert call_cost(Endpoint(provider="openai", model="m", **PRICED), 10, 5) == pytest.approx(2.0)


@pytest.fixture
def ask(stub_endpoint, tmp_path):
    """Asks the texts one after the other under a limit; returns how many were answered and the budget."""

    def ask(limit, *texts):
        endpoint = Endpoint(provider="openai", model="m", base_url=stub_endpoint.base_url, max_retries=0, **PRICED)
        budget = Budget(limit, tmp_path / "calls.jsonl")
        cache = ResponseCache(tmp_path / "responses.sqlite")
        client = ChatClient("judge", endpoint, urls=endpoint.urls, api_key="k", identity="m", cache=cache,
                            calls_log=tmp_path / "calls.jsonl", budget=budget)  # fmt: skip

        async def everything():
            try:
                for text in texts:
                    await client.complete([{"role": "user", "content": text}], max_tokens=5)
            finally:
                await client.close()
                cache.close()

        asyncio.run(everything())
        return budget

    return ask


def test_no_call_is_sent_once_the_limit_is_reached(ask, stub_endpoint):
    stub_endpoint.answer = lambda request: Reply("x", prompt_tokens=10, completion_tokens=5)
    with pytest.raises(EndpointError, match=r"spending limit is reached: 4\.00 of max_spend_usd 3 .*calls\.jsonl") as caught:
        ask(3.0, "a", "b", "c")
    assert caught.value.fatal and len(stub_endpoint.chats) == 2


def test_half_a_line_in_the_log_of_calls_is_cut_off(ask, stub_endpoint, tmp_path):
    stub_endpoint.answer = lambda request: Reply("x", prompt_tokens=10, completion_tokens=5)
    ask(100.0, "a")
    with open(tmp_path / "calls.jsonl", "a") as log:
        log.write('{"time": 1')
    assert ask(100.0, "b").spent_usd == pytest.approx(4.0)
    assert len([json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]) == 2


def test_what_an_earlier_run_spent_counts_and_cached_answers_do_not(ask, stub_endpoint, tmp_path):
    stub_endpoint.answer = lambda request: Reply("x", prompt_tokens=10, completion_tokens=5)
    ask(100.0, "a", "a", "b")
    assert ask(100.0, "a").spent_usd == pytest.approx(4.0)
    with pytest.raises(EndpointError, match="limit is reached"):
        ask(4.0, "a", "c")
    lines = (tmp_path / "calls.jsonl").read_text().splitlines()
    assert [json.loads(line)["usd"] for line in lines] == [2.0, 0.0, 2.0, 0.0, 0.0]


def test_zero_is_no_limit(ask, stub_endpoint):
    stub_endpoint.answer = lambda request: Reply("x", prompt_tokens=10**9, completion_tokens=5)
    ask(0.0, "a", "b")
    assert len(stub_endpoint.chats) == 2
