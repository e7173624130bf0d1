"""Planted flaws of graded severity, and what the judge's verdicts on known orders come to."""

import pandas as pd
import pytest

from ecpo_utils.core.schema import Verdict
from ecpo_utils.dialogue.agents.base import SYSTEM_ERROR
from ecpo_utils.evaluate.comparison import paired_difference, rank_correlation
from ecpo_utils.evaluate.damage import FLAWS, SEVERITIES, damage
from ecpo_utils.evaluate.figures import plot_damage
from ecpo_utils.evaluate.paper import paper_results
from ecpo_utils.evaluate.reliability import (
    cannot_tell,
    correlation_table,
    damage_table,
    released_correlations,
    released_table,
    released_user,
    reliability_note,
)
from ecpo_utils.evaluate.statistics import proportion
from ecpo_utils.evaluate.transcripts import Transcript
from ecpo_utils.evaluate.verdicts import question_share, rule_verdicts
from ecpo_utils.evaluate.win_rates import outcomes, win_rate

DIMENSIONS = ("flexibility", "coherence", "guidance", "final")


def talk(task, *replies):
    return Transcript(task, tuple(m for r in replies for m in ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": r})))


ORIGINAL = talk("t", "Calm or fast?", "Try Emma. Do you like it?", "It is long. Anything else?", "Goodbye.")
OTHERS = [talk("u", "A puzzle?", "A quiet one."), talk("v", "Any age?", "a puzzle!", "For four.", "Enjoy it.")]


def replies(transcript):
    return [m["content"] for m in transcript.messages if m["role"] == "assistant"]


@pytest.mark.parametrize(
    ("flaw", "expected"),
    [
        ("system_error", [SYSTEM_ERROR] * 4),
        ("repetition", ["Calm or fast?"] * 4),
        ("irrelevant", ["A puzzle?", "A quiet one.", "For four.", "Enjoy it."]),
        ("no_guidance", ["I see.", "Try Emma.", "It is long.", "Goodbye."]),
    ],
)
def test_all_replies_damaged_by_hand(flaw, expected):
    assert replies(damage(ORIGINAL, flaw, "all", others=OTHERS)) == expected


@pytest.mark.parametrize("flaw", FLAWS)
def test_severity_grows_and_the_lighter_damage_is_part_of_the_heavier(flaw):
    hit = []
    for severity in SEVERITIES:
        found = replies(damage(ORIGINAL, flaw, severity, others=OTHERS, seed=3))
        hit.append({i for i, (old, new) in enumerate(zip(replies(ORIGINAL), found, strict=True)) if old != new})
    assert hit[0] < hit[1] < hit[2]
    assert len(hit[0]) == 1


@pytest.mark.parametrize(
    ("replies", "severities"), [(1, ["one"]), (2, ["one", "all"]), (3, ["one", "half", "all"]), (4, ["one", "half", "all"])]
)
def test_a_severity_that_damages_no_more_replies_than_a_lighter_one_is_left_out(replies, severities):
    original = talk("t", *(f"Book {i}?" for i in range(replies)))
    found = {each: damage(original, "system_error", each, others=OTHERS) for each in SEVERITIES}
    assert [each for each, changed in found.items() if changed] == severities


def test_a_reply_that_differs_in_blanks_alone_is_not_damaged():
    changed = damage(talk("t", "Try Emma.\n\nIt is calm.", "Do you like it?"), "no_guidance", "one", others=OTHERS)
    assert replies(changed) == ["Try Emma.\n\nIt is calm.", "All right."]


def test_user_messages_stay_and_what_cannot_be_damaged_is_left_out():
    changed = damage(ORIGINAL, "irrelevant", "all", others=OTHERS)
    assert [m for m in changed.messages if m["role"] == "user"] == [m for m in ORIGINAL.messages if m["role"] == "user"]
    assert damage(talk("t", "Calm or fast?"), "repetition", "one", others=OTHERS) is None
    assert damage(talk("t", "Goodbye."), "no_guidance", "all", others=OTHERS) is None


def test_replies_to_others_bring_no_repetition_and_take_none_away():
    once_more = talk("t", "Calm or fast?", "Try Emma.", "try Emma")
    assert damage(once_more, "irrelevant", "one", others=OTHERS) is None and damage(once_more, "repetition", "all", others=OTHERS)
    assert damage(ORIGINAL, "irrelevant", "one", others=[OTHERS[0]]) is None  # two strangers for four replies
    three = talk("t", "A puzzle", "Try Emma.", "It is long.")
    assert replies(damage(three, "irrelevant", "all", others=OTHERS)) == ["Any age?", "A quiet one.", "For four."]


def test_two_questions_are_not_emptied_into_the_same_words():
    found = replies(damage(talk("t", "Calm or fast?", "Long or short?"), "no_guidance", "all", others=[]))
    assert len(set(found)) == 2 and not any("?" in reply for reply in found)


def test_a_dialogue_without_a_reply_cannot_be_damaged():
    assert [damage(talk("t"), flaw, "all", others=OTHERS) for flaw in FLAWS] == [None] * len(FLAWS)


def verdict(task, value, first="x"):
    scores = dict.fromkeys(DIMENSIONS, (value > 0.5) - (value < 0.5))
    return Verdict(task_id=task, first=first, second="expert", shown_first="apart", scores=scores,
                   measures=dict.fromkeys(DIMENSIONS, (value, 0.5)))  # fmt: skip


def test_planted_flaws_by_hand():
    judged = {("none", "none"): [verdict("t", 0.5)], ("repetition", "all"): [verdict("t", 0.9), verdict("u", 0.4)]}
    table = damage_table(judged, "quick")
    assert table[["flaw", "original_preferred", "original_preferred_n", "ties"]].values.tolist() == [
        ["none", 0.5, 1, 1],
        ["repetition", 0.5, 2, 0],
    ]
    assert "1 of 2 pairs" in reliability_note(table, {})
    assert plot_damage(table, "quick") is not None


def test_released_systems_stand_beside_the_published_order():
    shares = {"actcrs_ecpo": 4, "react_gpt": 3, "actcrs_llama": 2, "chatrec_gpt": 1, "macrs_llama": 0}
    logs = {name: [verdict(f"t{i}", 0.9 if i < wins else 0.1, name) for i in range(4)] for name, wins in shares.items()}
    table = released_table({"whole": logs}, "quick").set_index("system")
    assert table["win_rate"].to_dict() == {name: wins / 4 for name, wins in shares.items()}
    assert table["paper_WR"].to_dict() == {name: paper_results()["released_book_win_rates"][name] for name in shares}
    found = released_correlations({"whole": logs})
    assert found["whole"].rho.value == pytest.approx(1.0)
    assert correlation_table(found, "quick").loc[0, "rho"] == pytest.approx(1.0)
    note = reliability_note(damage_table({}, "quick"), found)
    assert note.startswith("rho 1.00 [0.") and note.endswith("p 0.017, 5 released systems, 4 tasks (whole dialogues)")


def test_two_personas_of_one_released_user_are_one_group():
    assert [released_user(f"user {row} item 0") for row in (0, 1, 2, 99)] == ["0", "0", "1", "49"]
    wins = {"actcrs_ecpo": (0, 1, 2, 3, 4, 5, 6, 7), "actcrs_sgpt": (0, 1, 2, 3, 4, 5), "react_gpt": (2, 3, 6, 7), "chatrec_gpt": (4, 5)}
    logs = {name: [verdict(f"user {i} item 0", 0.9 if i in won else 0.1, name) for i in range(10)] for name, won in wins.items()}
    values = {name: {f"user {i} item 0": float(i in won) for i in range(10)} for name, won in wins.items()}
    users, published = {f"user {i} item 0": str(i // 2) for i in range(10)}, paper_results()["released_book_win_rates"]
    found = released_correlations({"whole": logs})["whole"]
    assert found == rank_correlation(values, published, groups=users)
    assert found.rho != rank_correlation(values, published).rho


def test_logs_without_a_published_win_rate_have_no_correlation():
    logs = {"mine": [verdict("user 1 item 0", 0.9, "mine")]}
    assert released_correlations({"whole": logs}) == {} and len(released_table({"whole": logs}, "cpu")) == 1


def judged_rows(wins, ties, losses):
    return [verdict(f"t{i}", value) for i, value in enumerate([0.9] * wins + [0.5] * ties + [0.1] * losses)]


@pytest.fixture
def damaged():
    """What the judge sees, half sees, finds all alike, gets wrong, and was not asked."""
    cases = {("none", "none"): (0, 9, 0), ("repetition", "all"): (20, 0, 0), ("repetition", "one"): (6, 8, 6),
             ("irrelevant", "one"): (0, 20, 0), ("no_guidance", "one"): (1, 0, 19), ("no_guidance", "half"): (0, 0, 0)}  # fmt: skip
    return damage_table({case: judged_rows(*counts) for case, counts in cases.items()}, "cpu")


def test_note_counts_wins_not_ties_and_names_what_the_judge_cannot_tell(damaged):
    note = reliability_note(damaged, {})
    one, everything = proportion(7, 60), proportion(20, 20)
    assert f"7 of 60 pairs with one reply damaged [{one.low:.2f}, {one.high:.2f}]" in note
    assert f"20 of 20 pairs with all of them [{everything.low:.2f}, 1.00]" in note and "half" not in note
    assert "cannot tell: repetition (one), irrelevant (one)" in note and "prefers the damaged one: no_guidance (one)" in note


def test_a_few_pairs_that_were_all_won_are_called_too_few():
    cases = {("system_error", "one"): (3, 0, 0), ("system_error", "half"): (2, 1, 0), ("system_error", "all"): (4, 0, 0)}
    few = damage_table({case: judged_rows(*counts) for case, counts in cases.items()}, "quick")
    assert "cannot tell: system_error (half); too few pairs to tell, all won: system_error (one)" in reliability_note(few, {})
    assert cannot_tell(few, {})["why"].tolist() == ["too few pairs to tell", "interval holds 0.5"]


def test_undecided_is_marked_but_for_a_dialogue_against_itself(damaged):
    rows = damaged.set_index(["flaw", "severity"])
    assert rows["undecided"].tolist() == [False, False, False, True, False, False]
    assert rows["ties"].tolist() == [9, 0, 8, 20, 0, 0] and rows["wins"].tolist() == [0, 20, 6, 0, 1, 0]


def test_table_of_what_cannot_be_told_apart(damaged):
    shares = {"actcrs_ecpo": 38, "react_gpt": 20, "actcrs_llama": 18, "chatrec_gpt": 1}
    logs = {name: [verdict(f"t{i}", 0.9 if i < wins else 0.1, name) for i in range(40)] for name, wins in shares.items()}
    found = cannot_tell(damaged, {"whole": logs})
    near = paired_difference(outcomes(logs["react_gpt"]), outcomes(logs["actcrs_llama"]))
    assert found[["one", "other", "why"]].values.tolist() == [
        ["original", "repetition (one)", "interval holds 0.5"],
        ["original", "irrelevant (one)", "interval holds 0.5"],
        ["original", "no_guidance (one)", "prefers the damaged one"],
    ] + [["react_gpt", "actcrs_llama", f"difference {near.difference.text()} over users, p {near.p_value:.2g}"]]
    assert near.difference.low <= 0 < near.difference.value
    assert len(cannot_tell(damaged, {})) == 3 and cannot_tell(pd.DataFrame([]), {}).empty


def test_systems_that_differ_a_little_but_on_the_same_tasks_are_told_apart():
    """Their own intervals overlap; what counts is that the one never loses a task that the other wins."""
    logs = {name: [verdict(f"t{i}", 0.9 if i < wins else 0.1, name) for i in range(60)] for name, wins in (("mine", 36), ("other", 26))}
    rates = [win_rate(logs[name]).rate for name in ("mine", "other")]
    assert rates[1].high > rates[0].low and cannot_tell(pd.DataFrame([]), {"whole": logs}).empty


def test_rule_counts_replies_that_end_in_a_question_mark():
    assert question_share(talk("t", "Calm or fast? ", "Try Emma. Why not?", "Is it? Yes.", "Bye.")) == 0.5
    pairs = [(talk("t", "Calm?"), talk("t", "Calm.")), (talk("u", "A?", "B."), talk("u", "C.", "D?")), (talk("v", "A?"), talk("v", " "))]
    rows = rule_verdicts(pairs, first="x", second="expert")
    found = win_rate(rows)
    assert (found.wins, found.ties, found.num_unscored, found.flips.value) == (1, 1, 1, None)
    assert rows[0].measures == dict.fromkeys(DIMENSIONS, (1.0, 0.0)) and rows[2].error == "a dialogue holds no reply of the agent"


def test_the_rule_is_a_form_beside_whole_and_cut():
    logs = {name: judged_rows(wins, 0, 4 - wins) for name, wins in (("actcrs_ecpo", 3), ("react_gpt", 2), ("chatrec_gpt", 1))}
    forms = dict.fromkeys(("whole", "cut", "rule"), logs)
    assert released_table(forms, "cpu")["dialogues"].unique().tolist() == ["whole", "cut", "rule"]
    found = released_correlations(forms)
    assert correlation_table(found, "cpu")["dialogues"].tolist() == ["whole", "cut", "rule"]
    assert "(a rule without a model)" in reliability_note(pd.DataFrame([]), found)


def test_damage_table_shows_what_the_rule_prefers():
    case = ("no_guidance", "all")
    table = damage_table({case: judged_rows(1, 0, 3)}, "cpu", {case: judged_rows(4, 0, 0)})
    assert table.loc[0, ["original_preferred", "rule_preferred", "rule_preferred_n"]].tolist() == [0.25, 1.0, 4]


def test_nothing_checked_is_said():
    assert reliability_note(damage_table({}, "quick"), {}) == "the judge was not checked"
