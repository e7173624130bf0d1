"""ChatRec on a scripted backbone: one retrieval on the whole dialogue and one call in every turn."""

from functools import partial

import pytest
from scripted_models import ITEMS, make_database
from stub_endpoint import Reply

from ecpo_utils.core.errors import EndpointError
from ecpo_utils.core.schema import Item
from ecpo_utils.dialogue.agents.base import ATTEMPT_HEAT, SYSTEM_ERROR, tidy_reply
from ecpo_utils.dialogue.agents.chatrec import ChatRec, history_query
from ecpo_utils.llm.client import Meter
from ecpo_utils.llm.prompts import load_examples


@pytest.fixture
def make_agent(make_framework):
    return partial(make_framework, ChatRec)


def test_a_turn_is_one_call_on_the_items_found(make_agent, say, received):
    agent = make_agent('"Harbour of Glass" has ships. Do you like it?', top_k=2)
    text, (step,) = say(agent, "A foggy port town with ships.")
    assert text == '"Harbour of Glass" has ships. Do you like it?'
    assert (step.purpose, step.action, step.attempts, step.output) == ("reply", None, 1, text)
    assert step.retrieval.query == "A foggy port town with ships."
    assert step.retrieval.item_ids[0] == "g1" and len(step.retrieval.item_ids) == 2
    assert received() == [step.messages]
    assert "1. Harbour of Glass (Video Games" in step.messages[-1]["content"] and "A foggy port town" in step.messages[-1]["content"]


def test_the_query_is_the_whole_dialogue_newest_message_first(make_agent, say):
    agent = make_agent("Calm or fast?", "Quiet Orbit is calm. Good?")
    say(agent, "A puzzle, please.")
    _, (step,) = say(agent, "Calm, with moons.")
    assert step.retrieval.query == "Calm, with moons.\nCalm or fast?\nA puzzle, please."
    assert history_query([]) == ""


def test_the_next_turn_sees_what_was_said_but_no_old_items(make_agent, say, received):
    agent = make_agent("Calm or fast?", "Good?")
    say(agent, "Foggy port town.")
    say(agent, "Folded nobleman, crimes in a drawer.")
    first, second = received()
    spoken = "User: Foggy port town.\nAssistant: Calm or fast?\nUser: Folded nobleman, crimes in a drawer.\nEntries:\n1. The Paper Duke"
    assert spoken in second[-1]["content"] and ITEMS[0].title in first[-1]["content"]
    assert first[:-1] == second[:-1]  # a prefix that the server has read already


def test_n_turns_are_n_calls(make_agent, say):
    meter = Meter()
    agent = make_agent(*(f"Question {n}?" for n in range(4)), meter=meter)
    assert [len(say(agent, f"Wish {n}.")[1]) for n in range(4)] == [1, 1, 1, 1]
    assert meter.by_role["expert"].calls == 4


def test_an_empty_answer_is_asked_for_again_with_more_heat(study, make_agent, say):
    agent = make_agent("  ", "Assistant:", "Calm or fast?", temperature=0.1)
    text, (step,) = say(agent, "Hm.")
    assert (text, step.attempts, step.action) == ("Calm or fast?", 3, None)
    assert [body["temperature"] for body in study.requests("agent")] == pytest.approx([0.1 + heat for heat in ATTEMPT_HEAT])


def test_a_reply_that_repeats_an_earlier_one_is_asked_for_again_but_may_stand(make_agent, say):
    agent = make_agent("Calm or fast?", "Calm or fast?", "Alone?", *["Assistant: Alone?"] * 3)
    turns = [say(agent, message) for message in ("Hm.", "Well.", "No.")]
    assert [text for text, _ in turns] == ["Calm or fast?", "Alone?", "Alone?"]
    assert [(step.attempts, step.is_unusable) for _, (step,) in turns] == [(1, False), (2, False), (3, False)]


def test_an_answer_that_stays_empty_is_a_system_error_which_the_agent_remembers(make_agent, say, received):
    agent = make_agent("", "", "\n", "Calm or fast?")
    text, (step,) = say(agent, "Hm.")
    assert (text, step.action.type, step.attempts, step.retrieval is not None) == (SYSTEM_ERROR, "invalid", 3, True)
    say(agent, "Again.")
    assert f"Assistant: {SYSTEM_ERROR}\nUser: Again." in received()[-1][-1]["content"]


def test_titles_and_messages_with_brackets_and_braces_are_kept(make_framework, say, study, tmp_path):
    agent = make_framework(ChatRec, "Emma [Kindle [2nd] {x}] is it. Good?")
    agent.database = make_database(tmp_path / "one", [Item(item_id="x", title="Emma [Kindle [2nd] {x}]")])
    text, (step,) = say(agent, "Emma [2nd] {0}")
    assert text == "Emma [Kindle [2nd] {x}] is it. Good?" and step.retrieval.query == "Emma [2nd] {0}"
    assert "Emma [Kindle [2nd] {x}]" in step.messages[-1]["content"] and "Emma [2nd] {0}" in step.messages[-1]["content"]


@pytest.mark.parametrize(
    ("output", "spoken"),
    [
        (" Assistant: Try Emma. ", "Try Emma."),
        ('"Try Emma."', "Try Emma."),
        ('"Emma" or "Dune"', '"Emma" or "Dune"'),
        ("You might like Emma very much. It is a no", "You might like Emma very much."),
        ("Emma\n\nor Dune?", "Emma\n\nor Dune?"),
        ("Emma", "Emma"),
        ("", ""),
    ],
)
def test_a_reply_is_tidied(output, spoken):
    assert tidy_reply(output) == spoken


def test_it_takes_no_options_of_acting_agents(make_agent):
    assert ChatRec.takes_params == ()
    with pytest.raises(TypeError, match="max_consecutive_searches"):
        make_agent(max_consecutive_searches=3)


def test_without_few_shot_the_examples_are_dropped(make_agent):
    with_examples, without = (make_agent(few_shot=few_shot).instructions for few_shot in (True, False))
    assert with_examples == without + load_examples("chatrec_examples") and len(without) == 1


def test_an_endpoint_that_refuses_is_an_endpoint_error(make_agent, say):
    with pytest.raises(EndpointError):
        say(make_agent(Reply("no", status=400)), ITEMS[0].title)
