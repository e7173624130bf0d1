"""ActCRS on a scripted backbone: what it is shown, what it may do, what becomes of answers that are no actions."""

from functools import partial

import pytest
from scripted_models import ITEMS
from stub_endpoint import Reply

from ecpo_utils.core.errors import EndpointError
from ecpo_utils.core.schema import Item
from ecpo_utils.dialogue.agents.actcrs import ActCRS
from ecpo_utils.dialogue.agents.acting import render_observation
from ecpo_utils.dialogue.agents.base import ATTEMPT_HEAT, DESCRIPTION_WORDS, SYSTEM_ERROR
from ecpo_utils.llm.client import Meter
from ecpo_utils.llm.prompts import load_prompt


@pytest.fixture
def make_agent(make_framework):
    return partial(make_framework, ActCRS)


def test_search_then_recommend(make_agent, say):
    agent = make_agent("Search[harbour port town ships]", 'Recommend["Harbour of Glass" suits you. Shall I go on?]')
    text, steps = say(agent, "Something with a port.")
    search, recommend = steps
    assert text == '"Harbour of Glass" suits you. Shall I go on?'
    assert (search.action.type, search.retrieval.query) == ("search", "harbour port town ships")
    assert search.retrieval.item_ids[0] == "g1" and len(search.retrieval.item_ids) == 2
    assert (recommend.action.type, recommend.retrieval) == ("recommend", None)
    assert [step.attempts for step in steps] == [1, 1]


def test_the_agent_sees_the_user_then_its_own_search_then_the_items(make_agent, say, received):
    agent = make_agent("Search[harbour port town ships]", "Ask[Alone?]")
    say(agent, "Something with a port.")
    first, second = received()
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    assert second[:2] == first and "Something with a port." in first[1]["content"]
    assert second[2]["content"] == "Search[harbour port town ships]"
    assert "Harbour of Glass" in second[3]["content"] and "Lay out a foggy port town" in second[3]["content"]


def test_each_step_stores_the_exact_messages_of_its_call(make_agent, say, received):
    agent = make_agent("Search[harbour]", "Ask[Alone?]", "not an action", "Recommend[Quiet Orbit?]")
    steps = say(agent, "First.")[1] + say(agent, "Second.")[1]
    assert [step.attempts for step in steps] == [1, 1, 2]
    first, second, third, again = received()
    assert [step.messages for step in steps] == [first, second, third]
    assert again == third  # the second attempt sees the same
    assert third[: len(second)] == second  # a prefix that the server has read already


def test_state_goes_on_from_turn_to_turn(make_agent, say, received):
    agent = make_agent("Ask[Alone?]", "Recommend[Quiet Orbit?]")
    say(agent, "First.")
    say(agent, "Second.")
    contents = [message["content"] for message in received()[1]]
    assert "First." in contents[1] and contents[2] == "Ask[Alone?]" and "Second." in contents[3]


def test_observation_is_a_numbered_list_with_short_descriptions():
    long = Item(item_id="x", title="Long One", categories=["A", "B", "C", "D"], description=" ".join(f"w{n}" for n in range(99)))
    label, first, second = render_observation([ITEMS[2], long]).split("\n")
    assert label == "Observation:"
    assert first == f"1. Quiet Orbit (Video Games, Puzzle): {ITEMS[2].description}"
    assert second.startswith("2. Long One (A, B, C): w0 w1 ")
    assert second.endswith(f"w{DESCRIPTION_WORDS - 1} ...")


def test_after_three_searches_a_reply_is_forced_and_nothing_more_is_retrieved(make_agent, say, received):
    agent = make_agent("Search[harbour town]", "Search[racing bikes]", "Search[puzzle moons]", "Recommend[Quiet Orbit?]")
    text, steps = say(agent, "Hm.")
    assert [step.action.type for step in steps] == ["search", "search", "search", "recommend"]
    assert [bool(step.retrieval) for step in steps] == [True, True, True, False]
    assert text == "Quiet Orbit?"
    notice = load_prompt("actcrs_no_more_search")
    assert [notice in messages[-1]["content"] for messages in received()] == [False, False, False, True]


def test_a_fourth_search_is_asked_for_again_and_then_a_system_error(make_agent, say):
    agent = make_agent("Search[harbour town]", "Search[racing bikes]", "Search[puzzle moons]", "Search[horror cellar]")
    text, steps = say(agent, "Hm.")
    last = steps[-1]
    assert text == SYSTEM_ERROR
    assert (last.action.type, last.retrieval, last.attempts, last.output) == ("search", None, len(ATTEMPT_HEAT), "Search[horror cellar]")
    assert sum(step.retrieval is not None for step in steps) == 3


def test_a_fourth_search_can_be_mended(make_agent, say):
    agent = make_agent("Search[a]", "Search[b]", "Search[c]", "Search[d]", "Ask[Which?]")
    text, steps = say(agent, "Hm.")
    assert (text, steps[-1].attempts) == ("Which?", 2)


@pytest.mark.parametrize("allowed", [0, 1])
def test_the_number_of_searches_is_an_option(make_agent, allowed, say):
    agent = make_agent("Search[harbour]", max_consecutive_searches=allowed)
    text, steps = say(agent, "Hm.")
    assert sum(step.retrieval is not None for step in steps) == allowed
    assert text == SYSTEM_ERROR


def test_a_malformed_action_is_retried_with_more_heat(study, make_agent, say):
    agent = make_agent("I think so", "Ask[unfinished", "Ask[Alone?]", temperature=0.2)
    text, steps = say(agent, "Hm.")
    heats = [body["temperature"] for body in study.requests("agent")]
    assert heats == pytest.approx([0.2 + heat for heat in ATTEMPT_HEAT]) and heats == sorted(set(heats))
    assert (text, steps[0].attempts, steps[0].output) == ("Alone?", 3, "Ask[Alone?]")


def test_an_action_that_stays_malformed_is_a_system_error_and_the_raw_output_is_kept(make_agent, say):
    agent = make_agent("first try", "second try", "I cannot [do this", "Ask[Alone?]")
    text, steps = say(agent, "Hm.")
    (step,) = steps
    assert text == SYSTEM_ERROR
    assert (step.output, step.action.type, step.action.argument) == ("I cannot [do this", "invalid", "I cannot [do this")
    assert step.attempts == len(ATTEMPT_HEAT)


def test_after_a_system_error_the_agent_sees_what_the_user_saw(make_agent, say, received):
    agent = make_agent("first try", "second try", "third try", "Ask[Alone?]")
    say(agent, "Hm.")
    say(agent, "Again.")
    assert received()[-1][-2] == {"role": "assistant", "content": f"Response[{SYSTEM_ERROR}]"}


def test_after_a_search_too_many_the_agent_sees_what_the_user_saw(make_agent, say, received):
    agent = make_agent(*["Search[harbour]"] * 3, "Ask[Alone?]", max_consecutive_searches=0)
    say(agent, "Hm.")
    say(agent, "Again.")
    assert received()[-1][-2] == {"role": "assistant", "content": f"Response[{SYSTEM_ERROR}]"}


def test_without_few_shot_the_example_is_dropped(make_agent):
    with_example, without = (make_agent(few_shot=few_shot).messages[0]["content"] for few_shot in (True, False))
    example = load_prompt("actcrs_example_game")
    assert example in with_example and example not in without
    assert without and with_example.startswith(without)


def test_a_domain_has_its_own_noun_and_example(study, database):
    options = {"top_k": 2, "temperature": 0.0, "meter": Meter()}
    systems = [ActCRS(study.client("expert"), database, domain, **options).messages[0]["content"] for domain in ("book", "game", "yelp")]
    assert len(set(systems)) == 3
    for domain, system in zip(("book", "game", "yelp"), systems, strict=True):
        assert load_prompt(f"actcrs_example_{domain}") in system and "{noun}" not in system


def test_calls_are_counted_in_the_dialogues_meter(make_agent, say):
    meter = Meter()
    agent = make_agent("oops", "Ask[Alone?]", meter=meter)
    say(agent, "Hm.")
    assert meter.by_role["expert"].calls == 2


def test_an_endpoint_that_refuses_is_an_endpoint_error(make_agent, say):
    agent = make_agent(Reply("no", status=400))
    with pytest.raises(EndpointError):
        say(agent, "Hm.")
