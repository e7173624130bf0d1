"""Case studies as a page: turns in the same state and in another one, and texts that stay texts."""

import re

import pytest

from ecpo_utils.core.schema import Action, Confirmation, Item, Persona, Retrieval, Step, Trajectory, Turn, Verdict
from ecpo_utils.evaluate.case_page import case_page, render_case
from ecpo_utils.evaluate.cases import Case, case_table, clearest_reply, describe_changes


def turn(index, reply="Which one?", said="Hi.", guidance=1, found=()):
    search = [Step(messages=[], output="x", retrieval=Retrieval(query="a novel", item_ids=list(found)))] if found else []
    ec = Confirmation(flexibility=2, coherence=2, guidance=guidance, reasons={"guidance": "" if guidance else "Ask me."}) if reply else None
    return Turn(index=index, policy="provide_feedback_on_recommendation", user_message=said, reply=reply, confirmation=ec,
                steps=[*search, Step(messages=[], output="x", action=Action(type="recommend", argument="x"))] if reply else [])  # fmt: skip


def dialogue(system, *turns, task="book/u/i"):
    return Trajectory(task_id=task, domain="book", system=system, config="c", target=Item(item_id="1", title="Emma"),
                      persona=Persona(activities="a", language="l"), status="complete", turns=list(turns))  # fmt: skip


def case(before, after, task="book/u/i", value=None):
    names = ("flexibility", "coherence", "guidance", "final")
    verdict = Verdict(task_id=task, first="new", second="old", shown_first="apart", scores=dict.fromkeys(names, 1),
                      measures=dict.fromkeys(names, (value or 0.5, 0.5)))  # fmt: skip
    return Case(dialogue("old", *before, task=task), dialogue("new", *after, task=task), [verdict] if value else [])


def heads(text):
    return re.findall(r"^### Turn \d+: (.+)$", text, re.MULTILINE)


PARTED = case(
    [turn(0), turn(1, "Emma?", guidance=0, found=["2", "1"]), turn(2, "Yes?", "Bye.")],
    [turn(0), turn(1, "Persuasion?", found=["2"]), turn(2, "Yes?", "No."), turn(3, "More?", "Hm.")],
)


def test_a_state_is_all_that_was_said_before():
    assert [PARTED.in_same_state(number) for number in range(1, 6)] == [True, True, False, False, False]
    assert not case([turn(0, said="Hi.")], [turn(0, said="Hello.")]).in_same_state(1)


def test_each_turn_is_marked_by_its_reply_and_its_state():
    assert heads(render_case(PARTED, {})) == [
        "the same reply, in the same state", "**the first reply that differs, in the same state**", "the same reply, in another state",
        "only new replies"]  # fmt: skip
    other = case([turn(0, "A?"), turn(1, "C?")], [turn(0, "B?", "Hello."), turn(1, "D?")])
    assert heads(render_case(other, {})) == ["**the first reply that differs, in another state**", "**another reply, in another state**"]
    assert heads(render_case(case([turn(0), turn(1, None, "Bye.")], [turn(0), turn(1, None, "Bye.")]), {}))[1] == "no reply"


def test_a_turn_shows_search_titles_reply_and_confirmation_of_both():
    second = render_case(PARTED, {"1": "Emma", "2": "Persuasion"}).split("### ")[2]
    assert second.splitlines()[2:] == [
        "- USER (provide_feedback_on_recommendation) Hi.",
        "- **old**",
        "  - Search[a novel] -> target found: Persuasion; Emma",
        "  - Recommend[...]",
        "  - AGENT Emma?",
        "  - EC 4/5 (flexibility 2/2, coherence 2/2, guidance 0/1) Guidance: Ask me.",
        "- **new**",
        "  - Search[a novel] -> target not found: Persuasion",
        "  - Recommend[...]",
        "  - AGENT Persuasion?",
        "  - EC 5/5 (flexibility 2/2, coherence 2/2, guidance 1/1)",
        "",
    ]


def test_what_is_the_same_stands_once_and_a_message_that_differs_stands_under_its_agent():
    first, _, third, fourth = render_case(PARTED, {}).split("### ")[1:]
    assert first.count("AGENT") == 1 and "- **both**" in first
    assert third.count("AGENT") == 2 and "- **old**\n  - USER (provide_feedback_on_recommendation) Bye." in third
    assert "**old**" not in fourth and "AGENT More?" in fourth


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("![x](http://a.b/c.png) and\n# so", r"![x]\(http://a.b/c.png) and # so"),
        ("<img src=x> *loud* `code` _it_ snake_case", r"\<img src=x> \*loud\* \`code\` \_it\_ snake_case"),
    ],
)
def test_what_a_model_wrote_is_text_and_no_markup(reply, shown):
    assert f"AGENT {shown}\n" in render_case(case([turn(0, reply)], [turn(0)]), {})


def test_replies_that_were_changed_in_the_same_state_are_scored_beside_each_other():
    better = case([turn(0, "A.", guidance=0)], [turn(0, "B?")], "book/u/1", 0.6)
    worse = case([turn(0, "A?")], [turn(0, "B.", guidance=0)], "book/v/2", 0.4)
    elsewhere = case([turn(0, "A.", guidance=0)], [turn(0, "B?", "Hello.")], "book/w/3")
    same = case([turn(0)], [turn(0)], "book/x/4")
    cases = [worse, elsewhere, same, better, PARTED]
    table = case_table(cases)
    assert table["same_state"].tolist()[:2] == [True, False] and table["same_state"].isna().tolist() == [False, False, True, False, False]
    assert table["score_before"].dropna().tolist() == [5, 4, 4] and table["score_after"].dropna().tolist() == [4, 5, 5]
    assert clearest_reply(table) == 3 and clearest_reply(table[:3]) is None  # of equal gains the one that the judge prefers
    sentence = describe_changes(cases)
    assert sentence.startswith("In 3 of 5 tasks ") and "gave 4.33 of 5 to those before and 4.67 to those after" in sentence
    assert sentence.endswith("n=3, more in 2 and less in 1.")
    assert describe_changes([same, elsewhere]).startswith("In 0 of 2 tasks") and "of none are both" in describe_changes([same])
    page = case_page(cases, table, {}, "the judge was checked")
    assert re.findall("^## (.+)$", page, re.MULTILINE) == ["The clearest gain", "The clearest loss", "The reply that gained most"]
    assert sentence in page and case_page([same], case_table([same]), {}, "").count("##") == 0
