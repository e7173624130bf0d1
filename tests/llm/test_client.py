"""The chat client against a scripted endpoint: what is paid twice, retried, refused, repaired, counted."""

import asyncio
import contextlib
import json
import math
import socket
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field
from stub_endpoint import Reply, StubEndpoint

from ecpo_utils.core.errors import EndpointError, ModelError, ParseError
from ecpo_utils.core.params import Endpoint
from ecpo_utils.llm import transport
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.client import ChatClient, Completion, Meter
from ecpo_utils.llm.endpoints import open_clients
from ecpo_utils.llm.servers import RunningServer

KEY = "sk-MARK-4f1d9c27"
HELLO = [{"role": "user", "content": "hello"}]


class Score(BaseModel):
    model_config = ConfigDict(extra="forbid")

    flexibility: int = Field(ge=0, le=2)
    reason: str = ""


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch):
    """The openai library waits half a second before its first retry; here a fiftieth."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path):
    cache = ResponseCache(tmp_path / "responses.sqlite")
    yield cache
    cache.close()


@pytest.fixture
def run():
    """Runs a coroutine; all of a test's run in one loop, as connections are kept."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture
def make_client(run, stub_endpoint, cache, tmp_path):
    """Clients of the stub; keywords are the endpoint's."""
    made = []

    def make(role="judge", *, key=KEY, identity="stub m", limit=None, seed=0, address=None, **fields):
        fields = {"provider": "openai", "model": "m", "base_url": stub_endpoint.base_url, "max_retries": 2, "timeout_s": 5.0, **fields}
        endpoint = Endpoint(**fields)
        client = ChatClient(role, endpoint, urls=[address] if address else endpoint.urls, api_key=key, identity=identity, cache=cache,
                            calls_log=tmp_path / "calls.jsonl", limit=limit, seed=seed)  # fmt: skip

        made.append(client)
        return client

    yield make
    for client in made:
        run(client.close())


@pytest.fixture
def ask(run):
    """One completion."""
    return lambda client, messages=HELLO, **options: run(client.complete(messages, **{"max_tokens": 5, **options}))


def rows(tmp_path):
    return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]


# what goes out and what comes back


def test_request_carries_the_sampling_fields_and_answer_comes_back(ask, stub_endpoint, make_client):
    stub_endpoint.script(Reply("fine", logprobs=[{"fine": -0.1, "bad": -2.0}]))
    answer = ask(make_client(seed=3), temperature=0.5, stop=["\n"], sample=2, top_logprobs=2, schema={"type": "object"})
    sent = stub_endpoint.chats[0].body
    assert sent["model"] == "m" and sent["messages"] == HELLO and sent["max_tokens"] == 5
    assert sent["temperature"] == 0.5 and sent["stop"] == ["\n"] and sent["seed"] == 5
    assert sent["logprobs"] is True and sent["top_logprobs"] == 2
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert stub_endpoint.chats[0].headers["authorization"] == f"Bearer {KEY}"
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.cached) == ("fine", 10, 5, False)
    assert answer.top_logprobs == [{"fine": -0.1, "bad": -2.0}] and answer.seconds > 0


def test_fields_that_were_not_asked_for_are_not_sent(ask, stub_endpoint, make_client):
    ask(make_client())
    assert not {"stop", "logprobs", "top_logprobs", "response_format"} & set(stub_endpoint.chats[0].body)


@pytest.mark.parametrize(
    ("provider", "sent", "text"), [("openai", ["1", "2", "3", "4"], "a 6 "), ("embedded", ["1", "2", "3", "4", "5", "7"], "a 6 7 b 5 c")]
)
def test_more_stop_strings_than_openai_takes_end_the_answer_all_the_same(ask, stub_endpoint, make_client, provider, sent, text):
    stub_endpoint.max_stops = 4 if provider == "openai" else 6
    stub_endpoint.script("a 6 7 b 5 c")
    assert ask(make_client(provider=provider), stop=["1", "2", "3", "4", "5", "7"]).text == text
    assert stub_endpoint.chats[0].body["stop"] == sent


def test_adapter_is_asked_for_by_its_folder_name(ask, stub_endpoint, make_client):
    ask(make_client(adapter="runs/cpu/adapters/ecpo-book"))
    assert stub_endpoint.chats[0].body["model"] == "ecpo-book"


def test_half_a_surrogate_pair_is_replaced_and_stored(ask, stub_endpoint, make_client):
    stub_endpoint.answer = lambda request: Reply(body='{"choices": [{"message": {"content": "ok \\ud83d"}}]}')
    client = make_client()
    assert ask(client).text == ask(client).text == "ok ?"


@pytest.mark.parametrize("choice", ['{"message": {"content": null}}', '{"message": {"content": "x"}}'])
def test_answer_without_text_or_usage_counts_no_tokens(ask, stub_endpoint, make_client, choice):
    stub_endpoint.script(Reply(body=f'{{"choices": [{choice}], "usage": {{}}}}'))
    client = make_client()
    assert ask(client).completion_tokens == 0 and client.meter.by_role["judge"].prompt_tokens == 0


# cache


def test_rerun_sends_no_request(ask, stub_endpoint, make_client):
    stub_endpoint.script(Reply("fine", logprobs=[{"fine": -0.1}]))
    first = ask(make_client(), top_logprobs=1)
    again = ask(make_client(), top_logprobs=1)
    assert len(stub_endpoint.requests) == 1
    assert again == Completion(**{**first.__dict__, "cached": True})


def test_role_limits_and_prices_do_not_change_the_entry(ask, stub_endpoint, make_client):
    ask(make_client("judge"))
    ask(make_client("cra", max_concurrency=9, timeout_s=1.0, max_retries=0, usd_per_million_prompt_tokens=3.0))
    assert len(stub_endpoint.requests) == 1


def test_every_sampling_field_has_its_own_entry(ask, stub_endpoint, make_client):
    client = make_client()
    variants = [
        {}, {"max_tokens": 6}, {"temperature": 0.1}, {"sample": 1}, {"sample": 2}, {"stop": ["a"]}, {"stop": ["b"]},
        {"top_logprobs": 1}, {"schema": {"type": "object"}}, {"schema": {"type": "array"}}, {"messages": [*HELLO, *HELLO]},
        {"messages": [{"role": "system", "content": "hello"}]},
    ]  # fmt: skip
    for options in variants:
        assert not ask(client, **options).cached
    assert not ask(make_client(identity="another"), **variants[0]).cached
    assert not ask(make_client(seed=1), **variants[0]).cached
    assert len(stub_endpoint.chats) == len(variants) + 2
    assert all(ask(client, **options).cached for options in variants)


def test_refused_call_is_not_stored(ask, stub_endpoint, make_client):
    client = make_client()
    stub_endpoint.script(Reply("no", status=400), "fine")
    with pytest.raises(EndpointError):
        ask(client)
    assert ask(client).text == "fine"


# faults


def test_429_and_5xx_are_retried(ask, stub_endpoint, make_client):
    stub_endpoint.script(Reply("slow down", status=429), Reply("oops", status=500), Reply("busy", status=503), "fine")
    assert ask(make_client(max_retries=3)).text == "fine"
    assert len(stub_endpoint.chats) == 4


def test_retry_after_is_honoured(ask, stub_endpoint, make_client):
    stub_endpoint.script(Reply("slow down", status=429, headers={"Retry-After": "1"}), "fine")
    assert ask(make_client()).text == "fine"
    first, second = stub_endpoint.chats
    assert 1.0 <= second.time - first.time < 5.0


def test_an_endpoint_that_goes_on_limiting_the_rate_is_waited_for(ask, stub_endpoint, make_client, monkeypatch):
    monkeypatch.setattr(transport, "REST_S", 0.1)
    stub_endpoint.script(*[Reply("slow down", status=429)] * 5, "fine")
    assert ask(make_client(max_retries=1)).text == "fine"


def test_patience_with_a_limited_rate_ends(ask, stub_endpoint, make_client, monkeypatch):
    monkeypatch.setattr(transport, "REST_S", 0.1)
    monkeypatch.setattr(transport, "PATIENCE_S", 0.5)
    stub_endpoint.answer = lambda request: Reply("slow down", status=429)
    with pytest.raises(EndpointError, match="slow down"):
        ask(make_client(max_retries=1))


def test_the_address_that_limits_the_rate_is_asked_again_where_the_other_is_down(
    ask, stub_endpoint, second_endpoint, make_client, monkeypatch
):
    monkeypatch.setattr(transport, "REST_S", 0.1)
    stub_endpoint.script(*[Reply("slow down", status=429)] * 6, "fine")
    second_endpoint.close()
    assert ask(make_client(base_url=[stub_endpoint.base_url, second_endpoint.base_url], max_retries=1)).text == "fine"


def test_a_client_that_is_closed_waits_no_longer_for_a_limited_rate(run, stub_endpoint, make_client, monkeypatch):
    monkeypatch.setattr(transport, "REST_S", 0.4)
    stub_endpoint.answer = lambda request: Reply("slow down", status=429)
    client = make_client(max_retries=1)

    async def closed():
        asked = asyncio.create_task(client.complete([{"role": "user", "content": "a"}], max_tokens=5))
        await asyncio.sleep(0.1)
        await client.close()
        return await asyncio.gather(asked, return_exceptions=True)

    (error,) = run(closed())
    assert isinstance(error, EndpointError) and len(stub_endpoint.chats) == 2  # the request and its one retry by the library


def test_retries_end_and_the_error_is_not_fatal(ask, stub_endpoint, make_client):
    stub_endpoint.answer = lambda request: Reply("overloaded", status=503)
    with pytest.raises(EndpointError, match="503 - overloaded") as caught:
        ask(make_client())
    assert len(stub_endpoint.chats) == 3 and not caught.value.fatal


def test_cut_connection_is_retried(ask, stub_endpoint, make_client):
    stub_endpoint.script(Reply("x" * 500, cut=True), "fine")
    assert ask(make_client()).text == "fine"


def test_body_in_another_encoding_is_retried_and_then_an_error(ask, stub_endpoint, make_client):
    garbled = Reply(body='{"choices": [{"message": {"content": "caf\u00e9"}}]}'.encode("latin-1"))
    stub_endpoint.script(garbled, "fine")
    assert ask(make_client()).text == "fine"
    stub_endpoint.script(garbled, garbled)
    with pytest.raises(EndpointError, match="can't decode byte 0xe9") as caught:
        ask(make_client(max_retries=1), [{"role": "user", "content": "again"}])
    assert not caught.value.fatal


def test_no_retry_is_hotter_than_openai_allows(run, stub_endpoint, make_client):
    run(make_client().complete(HELLO, max_tokens=5, temperature=1.9 + 0.6))
    assert stub_endpoint.chats[0].body["temperature"] == 2.0


@pytest.mark.parametrize(("status", "hint"), [(401, r"key in \$JUDGE_KEY"), (403, "no access"), (404, "model's name")])
def test_refusal_that_concerns_every_call_is_fatal_and_not_retried(ask, stub_endpoint, make_client, status, hint):
    stub_endpoint.answer = lambda request: Reply("no access", status=status)
    with pytest.raises(EndpointError, match=hint) as caught:
        ask(make_client(api_key_env="JUDGE_KEY"))
    assert caught.value.fatal and len(stub_endpoint.chats) == 1
    assert "judge endpoint" in str(caught.value) and "(model m)" in str(caught.value)


def test_key_reaches_no_message_log_or_file(ask, stub_endpoint, make_client, cache, tmp_path, caplog):
    caplog.set_level("DEBUG")
    client = make_client()
    stub_endpoint.script("fine", Reply(f"wrong key {KEY}", status=401), Reply(body=f"<p>{'x' * 190}{KEY}</p>", content_type="text/html"))
    ask(client)
    messages = []
    for sample in (1, 2):
        with pytest.raises(EndpointError) as caught:
            ask(client, sample=sample)
        messages += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
    assert stub_endpoint.chats[0].headers["authorization"].endswith(KEY)
    assert "***" in messages[0] and KEY[:12] not in "".join(messages) + repr(client) + caplog.text
    cache.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"calls.jsonl", "responses.sqlite"} <= {path.name for path in files}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_timeout_says_how_long_was_waited(ask, stub_endpoint, make_client):
    stub_endpoint.answer = lambda request: Reply(hang=True)
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"no answer within 0\.2 s, 1 retries") as caught:
        ask(make_client(timeout_s=0.2, max_retries=1))
    assert not caught.value.fatal and len(stub_endpoint.chats) == 2 and time.monotonic() - started < 3


def test_refused_connection_names_the_address_and_is_fatal(ask, make_client):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    with pytest.raises(EndpointError, match=rf"judge endpoint {url}/ .*Cannot connect .*; is it running\? 1 retries") as caught:
        ask(make_client(base_url=url, max_retries=1))
    assert caught.value.fatal


def test_address_without_http_is_fatal_and_told(ask, make_client):
    with pytest.raises(EndpointError, match=r"judge endpoint localhost:8000/v1/ .*an address begins with http:// or https://") as caught:
        ask(make_client(address="localhost:8000/v1", max_retries=0))  # of an environment variable
    assert caught.value.fatal


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body='{"id": "x", "cho'),
        Reply(body="<html>Please log in</html>", content_type="text/html"),
        Reply(body="[1, 2]"),
        Reply(body='"text"'),
        Reply(body="{}"),
        Reply(body='{"choices": []}'),
        Reply(body='{"choices": ["text"]}'),
        Reply(body='{"choices": [{"index": 0}]}'),
    ],
    ids=lambda reply: reply.body[:20],
)
def test_answer_that_is_no_completion_is_an_endpoint_error(ask, stub_endpoint, make_client, reply):
    stub_endpoint.answer = lambda request: reply
    with pytest.raises(EndpointError, match="judge endpoint .* no chat completion") as caught:
        ask(make_client())
    assert not caught.value.fatal and "\n" not in str(caught.value)


def test_error_that_comes_with_status_200_is_shown(ask, stub_endpoint, make_client):
    stub_endpoint.script(Reply(body='{"error": {"message": "model overloaded"}}'))
    with pytest.raises(EndpointError, match="model overloaded"):
        ask(make_client())


def test_servers_on_loopback_are_reached_past_a_proxy(ask, monkeypatch, make_client):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert ask(make_client()).text == "OK"


# validated answers


def test_json_in_a_code_fence_is_read(run, stub_endpoint, make_client):
    stub_endpoint.script('Sure!\n```json\n{"flexibility": 2, "reason": "a {b}"}\n```\n')
    answer = run(make_client().parse(HELLO, Score, max_tokens=50))
    assert answer.parsed == Score(flexibility=2, reason="a {b}") and len(stub_endpoint.chats) == 1
    assert "flexibility" in stub_endpoint.chats[0].body["response_format"]["json_schema"]["schema"]["properties"]


def test_repair_shows_the_fault_and_its_answer_counts(run, stub_endpoint, make_client):
    stub_endpoint.script('{"score": 4}', '{"flexibility": 1}')
    client = make_client()
    assert run(client.parse(HELLO, Score, max_tokens=50)).parsed == Score(flexibility=1)
    repair = stub_endpoint.chats[1].body["messages"]
    assert repair[: len(HELLO)] == HELLO and repair[-2] == {"role": "assistant", "content": '{"score": 4}'}
    assert "flexibility: Field required" in repair[-1]["content"] and HELLO == [{"role": "user", "content": "hello"}]
    assert client.meter.by_role["judge"].calls == 2


@pytest.mark.parametrize("text", ['{"flexibility": 7}', '{"flexibility": "high"}', "{}", "I cannot say.", "", '{"flexibility": 1', "}{"])
def test_third_unreadable_answer_is_a_parse_error_and_there_is_no_fourth(run, stub_endpoint, make_client, text):
    stub_endpoint.answer = lambda request: text
    with pytest.raises(ParseError, match=r"judge: .*expected Score; see .*calls\.jsonl") as caught:
        run(make_client().parse(HELLO, Score, max_tokens=50))
    assert len(stub_endpoint.chats) == 3 and repr(text) in str(caught.value)
    if text.startswith("{") and text.endswith("}"):
        assert "flexibility: " in str(caught.value)


def test_what_could_not_be_read_is_asked_anew_the_next_time(run, stub_endpoint, make_client):
    stub_endpoint.script("no", "no again", "never", '{"flexibility": 1}')
    with pytest.raises(ParseError):
        run(make_client().parse(HELLO, Score, max_tokens=50))
    assert run(make_client().parse(HELLO, Score, max_tokens=50)).parsed.flexibility == 1


def test_body_that_was_cut_short_is_asked_for_again(ask, stub_endpoint, make_client, monkeypatch):
    monkeypatch.setattr("ecpo_utils.llm.transport.BROKEN_BODY_WAIT_S", 0.01)
    stub_endpoint.script(Reply(body='{"id": "x", "cho'), "fine")
    assert ask(make_client()).text == "fine"


# several addresses, and stopping


@pytest.fixture
def second_endpoint():
    endpoint = StubEndpoint()
    yield endpoint
    endpoint.close()


def ask_many(run, client, number):
    async def all_at_once():
        return await asyncio.gather(*[client.complete([{"role": "user", "content": f"{i}"}], max_tokens=5) for i in range(number)])

    return run(all_at_once())


def test_calls_are_shared_out_among_the_addresses_of_a_role(run, stub_endpoint, second_endpoint, make_client):
    for endpoint in (stub_endpoint, second_endpoint):
        endpoint.answer = lambda request: Reply("fine", delay_s=0.05)
    ask_many(run, make_client(base_url=[stub_endpoint.base_url, second_endpoint.base_url], max_concurrency=8), 24)
    assert len(stub_endpoint.chats) + len(second_endpoint.chats) == 24
    assert 8 <= len(stub_endpoint.chats) <= 16


@pytest.mark.parametrize("fault", [Reply("busy", status=500), Reply("slow down", status=429), Reply(cut=True), None])
def test_other_address_takes_over_when_one_fails(run, stub_endpoint, second_endpoint, make_client, fault):
    urls = [stub_endpoint.base_url, second_endpoint.base_url]
    if fault is None:
        stub_endpoint.close()
    else:
        stub_endpoint.answer = lambda request: fault
    client = make_client(base_url=urls, max_concurrency=4)
    assert [answer.text for answer in ask_many(run, client, 12)] == ["OK"] * 12
    tried = len(stub_endpoint.chats)
    ask_many(run, client, 30)
    assert len(second_endpoint.chats) == 30 and len(stub_endpoint.chats) == tried  # it rests


def test_error_names_the_address_when_all_fail(ask, stub_endpoint, second_endpoint, make_client):
    stub_endpoint.answer = second_endpoint.answer = lambda request: Reply("broken", status=500)
    with pytest.raises(EndpointError, match=r"judge endpoint http://.* 500 - broken"):
        ask(make_client(base_url=[stub_endpoint.base_url, second_endpoint.base_url]))


def test_refusal_that_every_address_would_give_is_told_at_once(ask, stub_endpoint, second_endpoint, make_client):
    stub_endpoint.answer = second_endpoint.answer = lambda request: Reply("bad key", status=401)
    with pytest.raises(EndpointError, match=r"is the key in \$OPENAI_API_KEY right"):
        ask(make_client(base_url=[stub_endpoint.base_url, second_endpoint.base_url]))
    assert len(stub_endpoint.chats) + len(second_endpoint.chats) == 1


def test_answer_in_flight_is_kept_when_the_work_is_stopped_and_what_waits_is_not_sent(run, stub_endpoint, make_client):
    stub_endpoint.answer = lambda request: Reply("kept", delay_s=0.3)
    client = make_client(max_concurrency=1)

    async def stopped():
        asks = [asyncio.create_task(client.complete([{"role": "user", "content": text}], max_tokens=5)) for text in "ab"]
        await asyncio.sleep(0.1)
        for task in asks:
            task.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        await client.close()

    run(stopped())
    assert len(stub_endpoint.chats) == 1
    again = run(make_client().complete([{"role": "user", "content": "a"}], max_tokens=5))
    assert again.cached and again.text == "kept" and len(stub_endpoint.chats) == 1


# probabilities of answer words


def test_choice_is_normalised_over_the_words(run, stub_endpoint, make_client):
    logs = {" yes": math.log(0.5), "Yes.": math.log(0.1), "**no": math.log(0.2), "maybe": math.log(0.15), " ": -3.0, "": -9.0}
    stub_endpoint.script(Reply("yes", logprobs=[logs]))
    chances = run(make_client().choose(HELLO, ["yes", "no"]))
    assert chances["yes"] == pytest.approx(0.75) and sum(chances.values()) == pytest.approx(1)
    assert stub_endpoint.chats[0].body["max_tokens"] == 1 and stub_endpoint.chats[0].body["top_logprobs"] == 20


def test_beginning_of_one_word_counts_and_of_several_does_not(run, stub_endpoint, make_client):
    logs = {"se": math.log(0.3), "fir": math.log(0.1), "f": math.log(0.5), "secondly": math.log(0.1)}
    stub_endpoint.script(Reply("f", logprobs=[logs]))
    chances = run(make_client().choose(HELLO, ["first", "fifth", "second"]))
    assert chances["second"] == pytest.approx(0.75) and chances["first"] == pytest.approx(0.25)
    assert chances["fifth"] == pytest.approx(0, abs=1e-6)


def test_tokens_without_a_log_probability_are_left_out(run, stub_endpoint, make_client):
    stub_endpoint.script(Reply("yes", logprobs=[{"yes": math.log(0.6), "no": None}]))
    assert run(make_client().choose(HELLO, ["yes", "no"]))["yes"] == pytest.approx(1)


def test_no_word_among_the_tokens_is_no_answer(run, stub_endpoint, make_client):
    stub_endpoint.script(Reply("x", logprobs=[{"x": -0.1, "yes": -7.0}]))
    with pytest.raises(ParseError, match="none of yes, no but 'x'"):
        run(make_client().choose(HELLO, ["yes", "no"]))


@pytest.mark.parametrize("role", ["simulator", "judge"])
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("yes", "returns no log-probabilities"),
        (Reply("yes", logprobs=[]), "returns no log-probabilities"),
        (Reply(body='{"choices": [{"message": {"content": "y"}, "logprobs": {"content": [{"token": "y", "logprob": 0}]}}]}'), "returns no"),
        (Reply("logprobs is not supported", status=400), "logprobs is not supported"),
    ],
    ids=["left out", "empty", "chosen token only", "refused"],
)
def test_endpoint_without_probabilities_names_the_parameter_of_its_role(run, stub_endpoint, make_client, role, reply, expected):
    stub_endpoint.script(reply)
    with pytest.raises(EndpointError, match=f"{role} endpoint .*{expected}.*; set {role}_mode to") as caught:
        run(make_client(role).choose(HELLO, ["yes", "no"]))
    assert caught.value.fatal
    stub_endpoint.script(Reply("yes", logprobs=[{"yes": -0.1}]))  # the same server, mended
    assert run(make_client(role).choose(HELLO, ["yes", "no"]))["yes"] > 0.99


def test_other_refusals_of_a_choice_stay_what_they_are(run, stub_endpoint, make_client):
    stub_endpoint.script(Reply("prompt too long", status=400))
    with pytest.raises(EndpointError, match="prompt too long$") as caught:
        run(make_client().choose(HELLO, ["yes", "no"]))
    assert not caught.value.fatal


# concurrency and cost


async def ask_at_once(*clients, calls=6):
    waiting = [client.complete(HELLO, max_tokens=5, sample=10 * i + n) for i, client in enumerate(clients) for n in range(calls)]
    return await asyncio.gather(*waiting, return_exceptions=True)


def test_no_more_calls_in_flight_than_allowed(run, stub_endpoint, make_client):
    stub_endpoint.answer = lambda request: Reply("OK", delay_s=0.05)
    run(ask_at_once(make_client(max_concurrency=2)))
    assert stub_endpoint.max_in_flight == 2 and len(stub_endpoint.chats) == 6


def test_failed_call_gives_its_place_free(run, stub_endpoint, make_client):
    stub_endpoint.script(Reply("no", status=400), Reply("no", status=400), "fine")
    results = run(ask_at_once(make_client(max_concurrency=1), calls=3))
    assert [getattr(result, "text", None) for result in results] == [None, None, "fine"]


def test_same_request_in_flight_is_sent_once_and_all_get_the_answer(run, stub_endpoint, make_client, tmp_path):
    stub_endpoint.answer = lambda request: Reply("OK", delay_s=0.2)
    client = make_client(max_concurrency=4, usd_per_million_prompt_tokens=1e5)

    async def ask_the_same():
        same = [client.complete(HELLO, max_tokens=5) for _ in range(5)]
        return await asyncio.gather(*same, client.complete(HELLO, max_tokens=5, sample=1))

    answers = run(ask_the_same())
    assert {answer.text for answer in answers} == {"OK"} and len(stub_endpoint.chats) == 2
    usage = client.meter.by_role["judge"]
    assert (usage.calls, usage.cached, usage.cost_usd) == (6, 4, pytest.approx(2 * 10 * 1e5 / 1e6))
    assert sum(row["cached"] for row in rows(tmp_path)) == 4


def test_same_request_in_flight_shares_its_error_and_is_sent_again_later(run, stub_endpoint, make_client):
    stub_endpoint.script(Reply("no", status=400, delay_s=0.2), "fine")
    client = make_client()

    async def ask_the_same():
        return await asyncio.gather(*(client.complete(HELLO, max_tokens=5) for _ in range(3)), return_exceptions=True)

    assert [type(each) for each in run(ask_the_same())] == [EndpointError] * 3 and len(stub_endpoint.chats) == 1
    assert [each.text for each in run(ask_the_same())] == ["fine"] * 3 and len(stub_endpoint.chats) == 2


def test_same_request_goes_on_when_the_one_that_sent_it_is_cancelled(run, stub_endpoint, make_client):
    stub_endpoint.script(Reply(hang=True), "fine")
    client = make_client(timeout_s=2.0)

    async def cancel_the_first():
        first, *others = [asyncio.create_task(client.complete(HELLO, max_tokens=5)) for _ in range(3)]
        while not stub_endpoint.chats:
            await asyncio.sleep(0.01)
        first.cancel()
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, *others = run(cancel_the_first())
    assert isinstance(first, asyncio.CancelledError) and [each.text for each in others] == ["fine"] * 2
    assert len(stub_endpoint.chats) == 2


def test_calls_tokens_and_cost_are_counted_per_role(ask, stub_endpoint, make_client, tmp_path):
    stub_endpoint.answer = lambda request: Reply("OK", prompt_tokens=1000, completion_tokens=100)
    judge = make_client("judge", usd_per_million_prompt_tokens=2.5, usd_per_million_completion_tokens=10.0)
    cra = make_client("cra", identity="own")
    meter = Meter()
    ask(judge, meter=meter)
    ask(judge, sample=1, meter=meter)
    ask(cra, meter=meter)
    assert meter.by_role["judge"] == judge.meter.by_role["judge"] and set(meter.by_role) == {"judge", "cra"}
    usage = meter.by_role["judge"]
    assert (usage.calls, usage.cached, usage.prompt_tokens, usage.completion_tokens) == (2, 0, 2000, 200)
    assert usage.cost_usd == pytest.approx(2 * (1000 * 2.5 + 100 * 10) / 1e6) and usage.seconds > 0
    assert meter.by_role["cra"].cost_usd == 0
    assert [(row["role"], row["cached"]) for row in rows(tmp_path)] == [("judge", False)] * 2 + [("cra", False)]


def test_cached_call_is_counted_but_costs_no_money_or_time(ask, make_client, tmp_path):
    prices = {"usd_per_million_prompt_tokens": 2.5, "usd_per_million_completion_tokens": 10.0}
    ask(make_client(**prices))
    client = make_client(**prices)
    ask(client)
    usage = client.meter.by_role["judge"]
    assert (usage.calls, usage.cached, usage.prompt_tokens, usage.cost_usd, usage.seconds) == (1, 1, 10, 0.0, 0.0)
    paid, free = rows(tmp_path)
    assert usage.cached_seconds == paid["seconds"] > 0
    assert (paid["cached"], free["cached"], free["seconds"]) == (False, True, 0.0)
    assert paid["request"] == free["request"] and paid["prompt_tokens"] == 10


# opening


@pytest.fixture
def opened(run, cache, tmp_path):
    """Opens clients, hands them to `use` and closes them."""

    async def open_and_use(endpoints, use):
        async with open_clients(endpoints, cache=cache, calls_log=tmp_path / "calls.jsonl") as clients:
            return await use(clients) if use else None

    return lambda endpoints, use=None: run(open_and_use(endpoints, use))


def test_openai_without_a_key_names_the_variable(opened):
    endpoint = Endpoint(provider="openai", model="gpt-4o", api_key_env="JUDGE_KEY")
    with pytest.raises(EndpointError, match="gpt-4o needs a key: set the environment variable JUDGE_KEY") as caught:
        opened({"judge": endpoint})
    assert caught.value.fatal


def test_empty_variables_are_as_good_as_none(opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " \n")
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        opened({"judge": Endpoint(provider="openai", model="gpt-4o")})


def test_key_with_a_character_no_header_can_hold_is_refused_unshown(opened, monkeypatch, stub_endpoint):
    monkeypatch.setenv("OPENAI_API_KEY", "\u201csk-MARK\u201d")
    with pytest.raises(EndpointError, match="OPENAI_API_KEY") as caught:
        opened({"judge": Endpoint(provider="openai", model="m", base_url=stub_endpoint.base_url)})
    assert "MARK" not in str(caught.value)


def test_address_and_key_come_from_the_named_variables(opened, monkeypatch, stub_endpoint):
    monkeypatch.setenv("MY_URL", stub_endpoint.base_url)
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    endpoint = Endpoint(provider="openai", model="m", base_url_env="MY_URL", api_key_env="MY_KEY")
    opened({"judge": endpoint}, lambda clients: clients["judge"].complete(HELLO, max_tokens=5))
    assert [request.headers["authorization"] for request in stub_endpoint.requests] == [f"Bearer {KEY}"] * 2


def test_openai_itself_is_meant_where_no_address_is_given(opened, monkeypatch, stub_endpoint):
    monkeypatch.setattr("ecpo_utils.llm.endpoints.OPENAI_URL", stub_endpoint.base_url)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint = Endpoint(provider="openai", model="m", base_url_env="MY_URL")
    assert opened({"judge": endpoint}, lambda clients: clients["judge"].complete(HELLO, max_tokens=5)).text == "OK"


@pytest.mark.parametrize(
    ("reply", "expected"), [(Reply("bad", status=401), r"\$OPENAI_API_KEY"), (Reply(hang=True), r"no answer within 0\.2 s, 1 retries")]
)
def test_endpoint_that_refuses_is_known_before_any_work(opened, monkeypatch, stub_endpoint, reply, expected):
    stub_endpoint.models_reply = reply
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint = Endpoint(provider="openai", model="m", base_url=stub_endpoint.base_url, timeout_s=0.2)
    with pytest.raises(EndpointError, match=expected) as caught:
        opened({"judge": endpoint})
    assert caught.value.fatal and {request.path for request in stub_endpoint.requests} == {"/v1/models"}


@pytest.mark.parametrize("reply", [Reply(status=404), Reply(body="<html>", content_type="text/html"), Reply(body="{")])
def test_endpoint_without_a_model_list_is_fine(opened, stub_endpoint, reply):
    stub_endpoint.models_reply = reply
    endpoint = Endpoint(provider="openai", model="m", base_url=stub_endpoint.base_url)
    answer = opened({"judge": endpoint}, lambda clients: clients["judge"].complete(HELLO, max_tokens=5))
    assert answer.text == "OK"


def test_roles_at_one_endpoint_share_its_limit_and_others_do_not(opened, stub_endpoint):
    stub_endpoint.answer = lambda request: Reply("OK", delay_s=0.05)
    other = StubEndpoint(lambda request: Reply("OK", delay_s=0.05))
    one = {"provider": "openai", "model": "m", "base_url": stub_endpoint.base_url, "max_concurrency": 2}
    endpoints = {"judge": Endpoint(**one), "simulator": Endpoint(**one), "cra": Endpoint(**{**one, "base_url": other.base_url})}

    opened(endpoints, lambda clients: ask_at_once(*clients.values()))
    other.close()
    assert (stub_endpoint.max_in_flight, other.max_in_flight) == (2, 2)
    assert (len(stub_endpoint.chats), len(other.chats)) == (12, 6)


def test_each_role_keeps_its_own_limit_at_a_shared_endpoint(opened, stub_endpoint):
    stub_endpoint.answer = lambda request: Reply("OK", delay_s=0.05)
    one = {"provider": "openai", "model": "m", "base_url": stub_endpoint.base_url}
    endpoints = {"cra": Endpoint(**one, max_concurrency=1), "simulator": Endpoint(**one, max_concurrency=3)}
    opened(endpoints, lambda clients: ask_at_once(clients["cra"]))
    assert stub_endpoint.max_in_flight == 1
    opened(endpoints, lambda clients: ask_at_once(*clients.values(), calls=9))
    assert stub_endpoint.max_in_flight == 3


@pytest.fixture
def started(monkeypatch):
    """Specs of the servers that are asked for; none starts."""
    specs = []

    @contextlib.contextmanager
    def serving(spec):
        specs.append(spec)
        yield RunningServer("http://127.0.0.1:9/v1", "key", 0, Path("server.log"))

    monkeypatch.setattr("ecpo_utils.llm.endpoints.serving", serving)
    return specs


def test_roles_on_the_same_weights_share_a_server_with_slots_for_the_largest(opened, started):
    model = {"provider": "embedded", "model": "smollm2-135m-instruct-q4"}
    endpoints = {"cra": Endpoint(**model, max_concurrency=2), "simulator": Endpoint(**model, max_concurrency=5)}

    async def identities(clients):
        return {client.identity for client in clients.values()}

    assert len(opened(endpoints, identities)) == 1
    assert len(set(started)) == 1 and (started[0].slots, started[0].context_tokens) == (5, 8192)


def test_identity_of_embedded_weights_is_their_registered_hash_and_nothing_else(opened, started):
    """Answers that were paid for are found by it: it must never change."""
    endpoint = Endpoint(provider="embedded", model="smollm2-135m-instruct-q4", max_concurrency=3)

    async def identity(clients):
        return clients["cra"].identity

    digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    expected = f'["embedded", "smollm2-135m-instruct-q4", [["SmolLM2-135M-Instruct.Q4_1.gguf", "{digest}"]]]'
    assert opened({"cra": endpoint}, identity) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "no-such-model"}, "no model 'no-such-model'"),
        ({"model": "qwen2.5-7b-instruct", "adapter": "nowhere/ecpo"}, "no adapter at nowhere/ecpo/adapter_model.safetensors"),
    ],
)
def test_unknown_model_and_missing_adapter_are_named_before_anything_is_fetched(opened, fields, expected):
    with pytest.raises(ModelError, match=expected):
        opened({"cra": Endpoint(provider="vllm", **fields)})
