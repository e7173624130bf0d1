"""The reader of bracketed actions."""

import pytest

from ecpo_utils.core.schema import Action
from ecpo_utils.dialogue.agents.actions import parse_action, render_action


@pytest.mark.parametrize(
    ("output", "kind", "argument"),
    [
        ("Search[slow sea novel]", "search", "slow sea novel"),
        ("Ask[Which era?]", "ask", "Which era?"),
        ("Recommend[Emma.]", "recommend", "Emma."),
        ("Response[Gladly.]", "response", "Gladly."),
        ("search[x]", "search", "x"),
        ("RECOMMEND[x]", "recommend", "x"),
        ("  \n\t Search[ x ]", "search", "x"),
        ("Search [x]", "search", "x"),
        ("Recommend[How about\n\n1. Emma\n2. Dune?]", "recommend", "How about\n\n1. Emma\n2. Dune?"),
        ("Recommend[Emma [Kindle [2nd] Edition] and more]", "recommend", "Emma [Kindle [2nd] Edition] and more"),
        ("Recommend[[Emma]]", "recommend", "[Emma]"),
        ("Search[x] because the user said so.", "search", "x"),
        ("Search[x]\nObservation:\n1. invented", "search", "x"),
        ("Ask[Which?] Recommend[Emma]", "ask", "Which?"),
        ("Action: Search[x]", "search", "x"),
        ("Action 2: Ask[x]", "ask", "x"),
        ("action:\nAsk[x]", "ask", "x"),
        ("**Search[x]**", "search", "x"),
        ("- `Search[x]`", "search", "x"),
        ("Ask[Wie wär's mit \u201eÄöü\u201c?]", "ask", "Wie wär's mit \u201eÄöü\u201c?"),
    ],
)
def test_an_action_is_read(output, kind, argument):
    assert parse_action(output) == Action(type=kind, argument=argument)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "   ",
        "I would search for sea novels.",
        "Let me see. Search[x]",
        "Search x",
        "Search(x)",
        "Search[]",
        "Recommend[  \n ]",
        "Recommend[Emma [Kindle]",
        "Recommend[cut by its token limit",
        "Research[x]",
        "Lookup[x]",
        "[Search]",
        "]Search[x]",
    ],
)
def test_anything_else_is_invalid_and_keeps_its_raw_text(output):
    assert parse_action(output) == Action(type="invalid", argument=output)


@pytest.mark.parametrize("kind", ["search", "ask", "recommend", "response"])
def test_a_rendered_action_is_read_back(kind):
    action = Action(type=kind, argument="How about Emma [2nd]?\nOr Dune?")
    assert render_action(action).startswith(kind.capitalize() + "[")
    assert parse_action(render_action(action)) == action


def test_an_invalid_action_is_rendered_as_it_was():
    assert render_action(parse_action("No idea.")) == "No idea."


def test_ten_thousand_brackets_are_read():
    text = "[" * 10_000 + "x" + "]" * 10_000
    assert parse_action(f"Ask[{text}]").argument == text
