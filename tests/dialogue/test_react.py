"""ReAct on a scripted backbone: a thought before every action, and after a search again both."""

from functools import partial
from pathlib import Path

import pytest
from scripted_models import ITEMS

from ecpo_utils.data.builtin import load_builtin
from ecpo_utils.dialogue.agents import FRAMEWORKS
from ecpo_utils.dialogue.agents.base import ATTEMPT_HEAT, SYSTEM_ERROR
from ecpo_utils.dialogue.agents.react import ReAct, read_thought
from ecpo_utils.llm import prompts
from ecpo_utils.llm.client import Meter
from ecpo_utils.llm.prompts import load_examples, load_prompt


@pytest.fixture
def make_agent(make_framework):
    return partial(make_framework, ReAct)


def purposes(steps):
    return [step.purpose for step in steps]


def test_thought_search_thought_recommend(make_agent, say):
    agent = make_agent("Search for ports.", "Search[harbour port town ships]", "The first fits.", "Recommend[Harbour of Glass?]")
    text, steps = say(agent, "Something with a port.")
    assert text == "Harbour of Glass?"
    assert purposes(steps) == ["thought", "action", "thought", "action"]
    assert [step.action and step.action.type for step in steps] == [None, "search", None, "recommend"]
    assert [step.retrieval and step.retrieval.query for step in steps] == [None, "harbour port town ships", None, None]
    assert steps[1].retrieval.item_ids[0] == "g1"


def test_calls_are_two_for_every_query_and_every_reply(make_agent, say):
    """Two calls a turn, and two more after each search; Table 1 counts the query's own call as M."""
    meter = Meter()
    agent = make_agent("Ask.", "Ask[Alone?]", "Look.", "Search[moons]", "Good.", "Recommend[Quiet Orbit?]", meter=meter)
    assert [len(say(agent, message)[1]) for message in ("Hm.", "Alone.")] == [2, 4]
    assert meter.by_role["expert"].calls == 6


def test_the_transcript_grows_by_thoughts_actions_and_observations(make_agent, say, received):
    agent = make_agent("Look.", "Search[harbour port town ships]", "Good.", "Ask[Alone?]", "Now what?", "Response[Fine.]")
    steps = say(agent, "Something with a port.")[1] + say(agent, "Alone.")[1]
    assert [step.messages for step in steps] == received()
    assert len({str(messages[:-1]) for messages in received()}) == 1
    seen = [messages[-1]["content"] for messages in received()]
    written = [text[: text.rindex("\n")] for text in seen]  # without the cue
    assert all(later.startswith(earlier) for earlier, later in zip(written, written[1:], strict=False))
    assert [text.splitlines()[-1] for text in seen] == ["Thought:", "Action:"] * 3
    lines = [line for line in seen[-1].splitlines() if not line[0].isdigit()]
    assert lines == [
        "User: Something with a port.", "Thought: Look.", "Action: Search[harbour port town ships]", "Observation:",
        "Thought: Good.", "Action: Ask[Alone?]", "User: Alone.", "Thought: Now what?", "Action:"]  # fmt: skip
    assert "\n1. Harbour of Glass (" in seen[2]


def test_after_the_allowed_searches_a_reply_is_forced(make_agent, say, received):
    script = [text for n in range(3) for text in (f"Thought {n}.", f"Search[word{n}]")]
    agent = make_agent(*script, "Enough.", "Recommend[Quiet Orbit?]")
    text, steps = say(agent, "Hm.")
    assert text == "Quiet Orbit?" and purposes(steps) == ["thought", "action"] * 4
    assert sum(step.retrieval is not None for step in steps) == 3
    notice = load_prompt("react_no_more_search")
    assert [notice in str(messages) for messages in received()] == [False] * 6 + [True] * 2


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_search_too_many_is_a_system_error(make_agent, say, allowed):
    agent = make_agent(*["Look.", "Search[moons]"] * allowed, "Look.", *["Search[moons]"] * 3, max_consecutive_searches=allowed)
    text, steps = say(agent, "Hm.")
    assert (text, steps[-1].action.type, steps[-1].attempts) == (SYSTEM_ERROR, "search", len(ATTEMPT_HEAT))
    assert sum(step.retrieval is not None for step in steps) == allowed
    assert agent.transcript[-1] == f"Action: Response[{SYSTEM_ERROR}]"


def test_a_malformed_action_is_asked_for_again_but_not_its_thought(make_agent, say):
    agent = make_agent("Ask.", "I would ask", "Ask[unfinished", "Ask[Alone?]")
    text, steps = say(agent, "Hm.")
    assert (text, [step.attempts for step in steps]) == ("Alone?", [1, 3])


def test_an_action_that_stays_malformed_is_a_system_error_and_kept(make_agent, say):
    agent = make_agent("Ask.", *["I would [ask"] * 3)
    text, steps = say(agent, "Hm.")
    assert (text, steps[-1].output, steps[-1].is_unusable) == (SYSTEM_ERROR, "I would [ask", True)


def test_an_action_in_place_of_a_thought_is_asked_for_again(make_agent, say):
    agent = make_agent("Search[moons]", "The user likes moons.", "Ask[Alone?]")
    text, steps = say(agent, "Hm.")
    assert (text, steps[0].attempts, steps[0].output) == ("Alone?", 2, "The user likes moons.")


def test_without_a_thought_the_turn_goes_on(make_agent, say, received):
    agent = make_agent("", "Search[moons]", "Action: Ask[x]", "Ask[Alone?]")
    text, steps = say(agent, "Hm.")
    assert text == "Alone?" and [step.is_unusable for step in steps] == [True, False]
    assert received()[-1][-1]["content"] == "User: Hm.\nAction:"


@pytest.mark.parametrize(
    ("output", "thought"),
    [
        (" The user likes sea novels. ", "The user likes sea novels."),
        ("Thought: ask first", "ask first"),
        ("Thought 2:\n\nask first\nand then search", "ask first"),
        ("Ask first. Action: Ask[Which?]", "Ask first."),
        ("Emma [Kindle] fits", "Emma [Kindle] fits"),
        ("Search[x]", ""),
        ("Action: Search[x]", ""),
        (" \n ", ""),
    ],
)
def test_a_thought_is_one_line(output, thought):
    assert read_thought(output) == thought


def test_titles_with_brackets_reach_the_user(make_agent, say):
    agent = make_agent("Good.", "Recommend[How about Emma [Kindle [2nd] Edition]?]")
    assert say(agent, "Hm.")[0] == "How about Emma [Kindle [2nd] Edition]?"


def test_without_few_shot_the_examples_are_dropped(make_agent):
    with_examples, without = (make_agent(few_shot=few_shot).instructions for few_shot in (True, False))
    assert with_examples == without + load_examples("react_examples") and len(without) == 1
    assert "video game" in without[0]["content"] and "the 2 best" in without[0]["content"]


@pytest.mark.parametrize("domain", ["book", "game", "yelp"])
def test_titles_of_the_worked_examples_are_in_no_database(domain):
    names = [path.stem for path in Path(prompts.__file__).parent.glob("*_example*.txt") if path.name.startswith(tuple(FRAMEWORKS))]
    assert len(names) > 10
    for item in load_builtin(domain)[0].values():
        assert [name for name in names if f'"{item.title}"' in load_prompt(name) or f". {item.title} (" in load_prompt(name)] == []


def test_consecutive_turns_may_search_again(make_agent, say):
    script = [text for n in range(2) for text in (f"Look {n}.", "Search[moons]", f"Good {n}.", "Recommend[Quiet Orbit?]")]
    agent = make_agent(*script, max_consecutive_searches=1)
    turns = [say(agent, message)[1] for message in ("Hm.", "More.")]
    assert [sum(step.retrieval is not None for step in steps) for steps in turns] == [1, 1]
    assert ITEMS[2].item_id in turns[1][1].retrieval.item_ids
