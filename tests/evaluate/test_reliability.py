"""Planted flaws of graded severity, and what the judge's verdicts on known orders come to."""

import pytest

from ecpo_utils.core.schema import Verdict
from ecpo_utils.dialogue.agents.base import SYSTEM_ERROR
from ecpo_utils.evaluate.damage import FLAWS, SEVERITIES, damage
from ecpo_utils.evaluate.figures import plot_damage
from ecpo_utils.evaluate.paper import paper_results
from ecpo_utils.evaluate.reliability import correlation_table, damage_table, released_correlations, released_table, reliability_note
from ecpo_utils.evaluate.transcripts import Transcript

DIMENSIONS = ("flexibility", "coherence", "guidance", "final")


def talk(task, *replies):
    return Transcript(task, tuple(m for r in replies for m in ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": r})))


ORIGINAL = talk("t", "Calm or fast?", "Try Emma. Do you like it?", "It is long. Anything else?", "Goodbye.")
STRANGER = talk("u", "A puzzle?", "A quiet one.")


def replies(transcript):
    return [m["content"] for m in transcript.messages if m["role"] == "assistant"]


@pytest.mark.parametrize(
    ("flaw", "expected"),
    [
        ("system_error", [SYSTEM_ERROR] * 4),
        ("repetition", ["Calm or fast?"] * 4),
        ("irrelevant", ["A puzzle?", "A quiet one.", "A puzzle?", "A quiet one."]),
        ("no_guidance", ["I see.", "Try Emma.", "It is long.", "Goodbye."]),
    ],
)
def test_all_replies_damaged_by_hand(flaw, expected):
    assert replies(damage(ORIGINAL, flaw, "all", stranger=STRANGER)) == expected


@pytest.mark.parametrize("flaw", FLAWS)
def test_severity_grows_and_the_lighter_damage_is_part_of_the_heavier(flaw):
    hit = []
    for severity in SEVERITIES:
        found = replies(damage(ORIGINAL, flaw, severity, stranger=STRANGER, seed=3))
        hit.append({i for i, (old, new) in enumerate(zip(replies(ORIGINAL), found, strict=True)) if old != new})
    assert hit[0] < hit[1] <= hit[2] or hit[0] == hit[1] < hit[2]
    assert len(hit[0]) == 1


def test_user_messages_stay_and_what_cannot_be_damaged_is_left_out():
    changed = damage(ORIGINAL, "irrelevant", "all", stranger=STRANGER)
    assert [m for m in changed.messages if m["role"] == "user"] == [m for m in ORIGINAL.messages if m["role"] == "user"]
    assert damage(talk("t", "Calm or fast?"), "repetition", "one", stranger=STRANGER) is None
    assert damage(talk("t", "Goodbye."), "no_guidance", "all", stranger=STRANGER) is None


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
    assert "rho 1.00 (whole dialogues)" in reliability_note(damage_table({}, "quick"), found)


def test_nothing_checked_is_said():
    assert reliability_note(damage_table({}, "quick"), {}) == "the judge was not checked"
