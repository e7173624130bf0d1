"""Dialogues read apart: what a reply is worth, what is asked about it, and verdicts without an order."""

import asyncio

import pytest
from scripted_models import choice
from stub_endpoint import Reply

from ecpo_utils.core.params import Endpoint
from ecpo_utils.evaluate.judges import make_judge, narrow
from ecpo_utils.evaluate.judges.narrow import KINDS, both_ends, mean_scores, reply_scores, share_seen
from ecpo_utils.evaluate.transcripts import Transcript
from ecpo_utils.evaluate.verdicts import judge_pairs, question_share
from ecpo_utils.evaluate.win_rates import win_rate, win_rate_json
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.client import ChatClient

SURE = dict.fromkeys(KINDS, 0.0)


def talk(task, *replies):
    messages = [m for text in replies for m in ({"role": "user", "content": f"wish before {text}"}, {"role": "assistant", "content": text})]
    return Transcript(task, tuple(messages))


def by_words(body):
    """A reader that goes by single words of the reply."""
    text = body["messages"][-1]["content"]
    if text.startswith("Customer:"):
        return choice(takes=0.2, ignores=0.8) if "deaf" in text.split("Assistant:")[1] else choice(takes=0.9, ignores=0.1)
    kind = next((kind for kind in KINDS if kind in text), "statement")
    return choice(**{kind: 0.8, "statement" if kind != "statement" else "offer": 0.2})


@pytest.fixture
def judge(stub_endpoint, tmp_path):
    stub_endpoint.answer = by_words
    cache = ResponseCache(tmp_path / "r.sqlite")
    client = ChatClient("judge", Endpoint(provider="openai", model="m", max_retries=0), urls=[stub_endpoint.base_url], api_key="k",
                        identity="stub", cache=cache, calls_log=tmp_path / "calls.jsonl")  # fmt: skip
    yield make_judge("narrow", client)
    cache.close()


@pytest.fixture
def compare(judge):
    loop = asyncio.new_event_loop()

    def compare(*pairs, path=None):
        return loop.run_until_complete(judge_pairs(judge, pairs, first="a", second="b", path=path))

    yield compare
    loop.run_until_complete(judge.client.close())
    loop.close()


def test_scores_of_a_reply_by_hand():
    kinds = SURE | {"question": 0.1, "offer": 0.5, "statement": 0.2, "notes": 0.15, "error": 0.05}
    assert reply_scores(kinds, 0.7, repeated=False) == pytest.approx({"flexibility": 0.7, "coherence": 0.8, "guidance": 0.6})
    assert reply_scores(kinds, 0.7, repeated=True) == pytest.approx({"flexibility": 0.0, "coherence": 0.0, "guidance": 0.6})


def test_a_dialogue_is_worth_the_mean_of_its_replies():
    rows = [{"flexibility": 1.0, "coherence": 0.5, "guidance": 0.0}, {"flexibility": 0.0, "coherence": 0.5, "guidance": 1.0}]
    assert mean_scores(rows) == {"flexibility": 0.5, "coherence": 0.5, "guidance": 0.5, "final": 0.5}


def test_long_messages_show_their_beginning_and_their_end():
    assert both_ends("one two three four five", 2) == "one two ... four five"
    assert both_ends("one two\nthree four", 2) == "one two three four"


def test_text_without_blanks_is_cut_as_well():
    assert len(both_ends("x" * 10_000)) < 300
    assert share_seen([talk("t", "one two"), talk("u", " ".join(["word"] * 100))]) == pytest.approx((6 + 200 + 3) / (6 + 400))


def test_the_end_of_a_reply_without_blanks_is_shown_too():
    reply = "我们有很多书" * 2_000 + "你还想要吗？"
    assert both_ends(reply).endswith("你还想要吗？") and share_seen([talk("t", reply)]) < 0.1
    assert question_share(talk("t", reply, "Anything else")) == 0.5


def test_what_is_shown_decides_the_digest(judge, monkeypatch):
    pair = (talk("t", " ".join(["word"] * 100)), talk("t", "a question"))
    before = judge.config(pair)
    monkeypatch.setattr(narrow, "both_ends", lambda text: text)
    assert judge.config(pair) != before


def test_each_dialogue_is_read_by_itself_and_its_flaws_count(compare, stub_endpoint):
    (row,) = compare((talk("t", "an offer", "a question"), talk("t", "an error", "deaf statement")))
    assert (row.shown_first, row.scores) == ("apart", {"flexibility": 1, "coherence": 1, "guidance": 1, "final": 1})
    assert row.measures["flexibility"] == pytest.approx((0.9, 0.55)) and row.measures["coherence"] == pytest.approx((1.0, 0.6))
    assert row.measures["guidance"] == pytest.approx((0.8, 0.1))
    assert len(stub_endpoint.chats) == 8


def test_a_dialogue_that_stands_in_two_comparisons_is_read_once(compare, stub_endpoint):
    yardstick = talk("t", "an offer")
    compare((talk("t", "a question"), yardstick))
    compare((talk("t", "an error"), yardstick))
    assert len(stub_endpoint.chats) == 6


def test_saying_the_same_again_counts_against_a_dialogue(compare):
    (row,) = compare((talk("t", "an offer", "An offer!"), talk("t", "an offer", "another offer")))
    assert row.scores == {"flexibility": -1, "coherence": -1, "guidance": 0, "final": -1}


def test_without_an_order_there_are_no_flips_and_no_position(compare):
    rows = compare((talk("t", "an offer"), talk("t", "an error")), (talk("u", "an offer"), talk("u", "an offer")))
    found = win_rate(rows)
    assert (found.rate.value, found.wins, found.ties, found.flips.value, found.first_shown.value) == (0.75, 1, 1, None, None)
    assert win_rate_json(rows)["final"]["flips"] is None


def test_a_finished_file_is_not_judged_again(compare, stub_endpoint, tmp_path):
    pairs = [(talk("t", "an offer"), talk("t", "an error"))]
    rows = compare(*pairs, path=tmp_path / "v.jsonl")
    asked = len(stub_endpoint.chats)
    (tmp_path / "r.sqlite").unlink()
    assert compare(*pairs, path=tmp_path / "v.jsonl") == rows and len(stub_endpoint.chats) == asked


def test_a_reader_that_answers_rubbish_leaves_the_pair_unscored(compare, stub_endpoint):
    stub_endpoint.answer = lambda body: Reply("banana", logprobs=[{"banana": -0.01}])
    rows = compare((talk("t", "an offer"), talk("t", "an error")))
    assert "none of question, offer" in rows[0].error
    assert (win_rate(rows).rate.value, win_rate(rows).num_unscored) == (None, 1)


def test_a_reader_that_finds_everything_alike_decides_nothing_and_says_so(compare, stub_endpoint):
    alike = {True: choice(takes=0.9, ignores=0.1), False: choice(offer=1.0)}
    stub_endpoint.answer = lambda body: alike["Customer:" in body["messages"][-1]["content"]]
    found = win_rate_json(compare((talk("1", "an offer"), talk("1", "notes")), (talk("2", "an error"), talk("2", "a question"))))
    assert found["final"]["win_rate"] == 0.5 and found["final"]["ties"] == 2 and found["final"]["undecided"] is True
