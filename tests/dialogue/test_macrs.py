"""MACRS on a scripted backbone: who is called when, what they are told, and what becomes of answers that cannot be read."""

import json
from functools import partial

import pytest
from scripted_models import in_turn
from stub_endpoint import Reply

from ecpo_utils.core.errors import EndpointError
from ecpo_utils.dialogue.agents.base import SYSTEM_ERROR
from ecpo_utils.dialogue.agents.macrs import FALLBACK, MACRS, Suggestions, read_label, read_line
from ecpo_utils.llm.client import Meter
from ecpo_utils.llm.prompts import load_examples, render

PORTS = ["Likes ports.", "<recommend>", "foggy port town ships", "Harbour of Glass has ships. Good?"]


@pytest.fixture
def make_agent(make_framework):
    return partial(make_framework, MACRS)


def suggestions(**given):
    texts = {name: f"{name} text" for name in Suggestions.model_fields}
    return json.dumps({**texts, **given})


def purposes(steps):
    return [step.purpose for step in steps]


def test_the_first_turn_asks_without_reflecting_on_a_strategy(make_agent, say, received):
    agent = make_agent("Wants a game.", "<ask>", "Calm or fast?")
    text, steps = say(agent, "A game.")
    assert text == "Calm or fast?" and purposes(steps) == ["profile", "plan", "reply"]
    assert [step.messages for step in steps] == received()
    assert {(step.action, step.retrieval, step.attempts) for step in steps} == {(None, None, 1)}


def test_the_recommending_agent_writes_a_query_and_replies_on_the_items(make_agent, say):
    text, steps = say(make_agent(*PORTS, top_k=2), "Something with a port.")
    assert text == PORTS[-1] and purposes(steps) == ["profile", "plan", "query", "reply"]
    assert steps[2].retrieval.query == "foggy port town ships" and steps[2].retrieval.item_ids[0] == "g1"
    assert "1. Harbour of Glass (" in steps[3].messages[-1]["content"] and steps[3].retrieval is None
    assert "Harbour of Glass" not in str(steps[2].messages)


def test_calls_are_m_plus_four_n_less_one(make_agent, say):
    """Profile, plan and reply in every turn, a strategy from the second on, and M queries."""
    meter = Meter()
    script = ["Wants a game.", "<ask>", "Calm?", "Calm.", suggestions(), "<smalltalk>", "I see.", "Ports.", suggestions(), *PORTS[1:]]
    agent = make_agent(*script, meter=meter)
    turns = [say(agent, message)[1] for message in ("A game.", "Calm.", "With ports.")]
    assert [purposes(steps) for steps in turns] == [
        ["profile", "plan", "reply"],
        ["profile", "strategy", "plan", "reply"],
        ["profile", "strategy", "plan", "query", "reply"],
    ]
    assert meter.by_role["expert"].calls == 3 + 4 + 5 == sum(step.attempts for steps in turns for step in steps)


def test_each_agent_gets_its_own_advice_and_all_get_profile_and_dialogue(make_agent, say):
    agent = make_agent(*PORTS, "Likes foggy ports.", suggestions(), "<recommend>", "fog", "Iron Orchard?")
    say(agent, "Something with a port.")
    _, (profile, strategy, plan, query, reply) = say(agent, "With fog.")
    told = {step.purpose: step.messages[-1]["content"] for step in (profile, strategy, plan, query, reply)}
    assert "plan_suggestion text" in told["plan"] and "recommend_suggestion text" not in told["plan"]
    assert "recommend_suggestion text" in told["query"] and "recommend_suggestion text" in told["reply"]
    assert "Likes ports." in told["profile"]  # the old profile goes in, the new one out
    assert all("Likes foggy ports." in told[name] for name in ("strategy", "plan", "query", "reply"))
    spoken = "User: Something with a port.\nAssistant: Harbour of Glass has ships. Good?\nUser: With fog."
    assert all(spoken in text for text in told.values())


@pytest.mark.parametrize(("label", "advice"), [("ask", "ask_suggestion text"), ("smalltalk", "chit_suggestion text")])
def test_asking_and_chatting_agents_get_their_advice(make_agent, say, label, advice):
    agent = make_agent("P.", "<ask>", "Calm?", "P.", suggestions(), f"<{label}>", "I see.")
    say(agent, "A game.")
    text, steps = say(agent, "Calm.")
    task = steps[-1].messages[-1]["content"]
    assert text == "I see." and advice in task
    assert steps[-1].messages[0]["content"] == render(f"macrs_{label}", noun="video game")


def test_each_agent_has_its_own_constant_beginning(make_agent, say):
    agent = make_agent(*PORTS, "P.", suggestions(), *PORTS[1:])
    first, second = ({step.purpose: step.messages[:-1] for step in say(agent, text)[1]} for text in ("Ports.", "No."))
    assert all(second[name] == messages for name, messages in first.items())
    assert len({messages[0]["content"] for messages in second.values()}) == 5


def test_suggestions_are_asked_for_under_a_schema_that_strict_endpoints_take(study, make_agent, say):
    agent = make_agent("P.", "<ask>", "Calm?", "P.", suggestions(), "<ask>", "Fast?")
    say(agent, "A game.")
    say(agent, "Calm.")
    (asked,) = [body for body in study.requests("agent") if "response_format" in body]
    schema = asked["response_format"]["json_schema"]["schema"]
    assert set(schema["required"]) == set(schema["properties"]) and schema["additionalProperties"] is False


def test_an_unreadable_label_is_asked_for_again_then_falls_back_and_says_so(make_agent, say):
    agent = make_agent("P.", "hm", "<maybe>", "ask or recommend", "ports", "Quiet Orbit?")
    text, steps = say(agent, "A game.")
    plan = steps[1]
    assert FALLBACK == "recommend" and purposes(steps) == ["profile", "plan", "query", "reply"] and text == "Quiet Orbit?"
    assert (plan.output, plan.attempts, plan.is_unusable, plan.action.argument) == ("ask or recommend", 3, True, "ask or recommend")


def test_a_label_that_is_mended_is_no_fallback(make_agent, say):
    _, steps = say(make_agent("P.", "hm", "<ask>", "Calm?"), "A game.")
    assert (steps[1].attempts, steps[1].action, steps[2].output) == (2, None, "Calm?")


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ("<ask>", "ask"), (" < Recommend >", "recommend"), ("<smalltalk> for now", "smalltalk"), ("<recommending>", "recommend"),
        ("**recommend**", "recommend"), ("The asking agent", "ask"), ("<ask> and then <recommend>", "ask"), ("recommend, not ask", None),
        ("<chat>", None), ("", None), ("<plan>", None),
    ],
)  # fmt: skip
def test_labels_are_read(output, label):
    assert read_label(output) == label


def test_unreadable_suggestions_leave_the_old_ones_and_say_so(make_agent, say):
    agent = make_agent("P.", "<ask>", "Calm?", "P.", suggestions(), "<ask>", "Fast?", "P.", "no JSON", "[]", "<ask>", "Long?")
    for message in ("A game.", "Calm.", "No."):
        text, steps = say(agent, message)
    strategy = steps[1]
    assert text == "Long?" and "ask_suggestion text" in steps[-1].messages[-1]["content"]
    assert (strategy.purpose, strategy.is_unusable, strategy.attempts) == ("strategy", True, 2)
    assert "ParseError" not in text and "'[]'" in strategy.output


def test_suggestions_that_are_mended_count_two_attempts(make_agent, say):
    agent = make_agent("P.", "<ask>", "Calm?", "P.", '{"ask_suggestion": 1}', suggestions(ask_suggestion="Mended."), "<ask>", "Fast?")
    say(agent, "A game.")
    _, steps = say(agent, "Calm.")
    assert (steps[1].attempts, steps[1].action, json.loads(steps[1].output)["ask_suggestion"]) == (2, None, "Mended.")
    assert "Mended." in steps[-1].messages[-1]["content"]


def test_an_empty_profile_leaves_the_old_one(make_agent, say):
    agent = make_agent("Likes ports.", "<ask>", "Calm?", "", "", "", suggestions(), "<ask>", "Fast?")
    say(agent, "Ports.")
    _, steps = say(agent, "Calm.")
    assert steps[0].is_unusable and "Likes ports." in steps[-1].messages[-1]["content"]


def test_without_a_query_the_last_message_is_searched_for(make_agent, say):
    _, steps = say(make_agent("P.", "<recommend>", "", '""', "Query:", "Quiet Orbit?"), "Nudge moons into place.")
    assert (steps[2].retrieval.query, steps[2].is_unusable, steps[2].attempts) == ("Nudge moons into place.", True, 3)


@pytest.mark.parametrize(
    ("output", "query"),
    [('"sea novel"', "sea novel"), ("Query: sea novel\nor so", "sea novel"), ("\n Search query: x [2nd]", "x [2nd]"), (" ", "")],
)
def test_a_query_is_one_line(output, query):
    assert read_line(output) == query


def test_a_reply_that_stays_empty_is_a_system_error_which_the_agents_remember(make_agent, say):
    agent = make_agent("P.", "<ask>", "", " ", "Assistant:", "P.", suggestions(), "<ask>", "Calm?")
    text, steps = say(agent, "A game.")
    assert (text, steps[-1].is_unusable, steps[-1].attempts) == (SYSTEM_ERROR, True, 3)
    _, steps = say(agent, "Again.")
    assert f"Assistant: {SYSTEM_ERROR}" in steps[0].messages[-1]["content"]


def test_titles_with_brackets_and_braces_reach_the_user(make_agent, say):
    reply = "How about Emma [Kindle [2nd] {x}]?"
    text, _ = say(make_agent("P {0}.", "<recommend>", "Emma [2nd]", reply), "Emma {x} [2nd]")
    assert text == reply


def test_what_was_done_before_an_error_is_kept(study, make_agent):
    agent, steps = make_agent(), []
    study.scripts["agent"] = in_turn("P.", "<recommend>", Reply("no", status=400))
    with pytest.raises(EndpointError):
        study.run(agent.reply("Ports.", steps))
    assert purposes(steps) == ["profile", "plan"]


def test_without_few_shot_the_examples_are_dropped(make_agent, say):
    with_examples, without = (say(make_agent("P.", few_shot=few_shot), "Ports.")[1][0].messages for few_shot in (True, False))
    assert without == [with_examples[0], with_examples[-1]]
    assert with_examples[1:-1] == load_examples("macrs_profile_examples")


def test_it_takes_no_options_of_acting_agents(make_agent):
    assert MACRS.takes_params == ()
    with pytest.raises(TypeError, match="max_consecutive_searches"):
        make_agent(max_consecutive_searches=3)
