"""What a judge reads: dialogues of both formats, odd texts, pairs, and the release's cut at line breaks."""

import gzip
import json
import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_models import ITEMS, ODD_TEXTS, PERSONA

from ecpo_utils.core.artifacts import write_jsonl
from ecpo_utils.core.errors import ArtifactError, SchemaError
from ecpo_utils.core.schema import Trajectory, Turn
from ecpo_utils.data.release import LogDialogue
from ecpo_utils.evaluate.transcripts import (
    Transcript,
    clip,
    cut_at_line_break,
    load_transcripts,
    log_transcript,
    pair_transcripts,
    trajectory_transcript,
    user_of,
)

LOGS = Path(__file__).resolve().parents[3] / "shared" / "ecpo_release" / "test_log" / "book"
needs_release = pytest.mark.skipif(not LOGS.is_dir(), reason=f"the published logs are not at {LOGS}")
RULE = "=" * 118


def said(*texts, task="t1"):
    """A dialogue of these messages, the user's first."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return Transcript(task, tuple(messages))


def turn(index, message, reply):
    return Turn(index=index, policy="respond_to_clarification", user_message=message, reply=reply)


def trajectory(*turns, task="game/u1/g1", status="complete", **fields):
    return Trajectory(task_id=task, domain="game", system="ecpo", config="c", target=ITEMS[0], persona=PERSONA, status=status,
                      turns=[turn(i, *each) for i, each in enumerate(turns)], **fields)  # fmt: skip


def block(row, *lines, rounds=1):
    """One dialogue of a released log."""
    text = "\n".join(lines)
    end = f"Correct recommendation: False\nTotal user tokens: 1\nTotal system tokens: 1\nTotal rounds: {rounds}"
    return f"User {row}  Item 0:\n{text}\n{end}\n\n{RULE}\n\n\n"


def contents(transcript):
    return [message["content"] for message in transcript.messages]


# from trajectories and logs


def test_a_trajectory_is_read_as_the_spoken_words_only():
    found = trajectory_transcript(trajectory(("Something calm.", "Calm how?"), ("Never mind.", None), status="ended_by_user"))
    assert found == Transcript("game/u1/g1", said("Something calm.", "Calm how?", "Never mind.").messages, "g1")
    assert found.render() == "Customer: Something calm.\nAssistant: Calm how?\nCustomer: Never mind."


def test_a_failed_dialogue_has_what_was_said_before():
    found = trajectory_transcript(trajectory(("Hello.", "Hi."), ("A game?", None), status="failed", error="EndpointError: 500"))
    assert contents(found) == ["Hello.", "Hi.", "A game?"] and found.replies == ["Hi."]


@pytest.mark.parametrize("turns", [[], [("Hello.", None)], [("Hello.", "")], [("Hello.", " \n\t ")]])
def test_a_dialogue_without_a_spoken_reply_has_none(turns):
    assert trajectory_transcript(trajectory(*turns, status="failed")).replies == []


def test_a_log_is_matched_by_its_row_and_keeps_all_lines():
    dialogue = LogDialogue(row=7, item=0, messages=list(said("Hello.", "Two:\n\n1. Emma\n2. Persuasion").messages), correct=False,
                           user_tokens=1, system_tokens=1, rounds=1)  # fmt: skip
    assert log_transcript(dialogue) == said("Hello.", "Two:\n\n1. Emma\n2. Persuasion", task="user 7 item 0")


def test_files_of_both_formats_are_loaded(tmp_path):
    write_jsonl(tmp_path / "ecpo.jsonl", [trajectory(("Hello.", "Hi.")), trajectory(("Hello.", "Yes?"), task="game/u2/g1")])
    (tmp_path / "ecpo.log").write_text(
        block(3, "user: Hello.", "assistant: Hi.", "", "1. Emma") + block(0, "user: Hello.", "assistant: Yes?")
    )
    assert [t.task_id for t in load_transcripts(tmp_path / "ecpo.jsonl")] == ["game/u1/g1", "game/u2/g1"]
    for name in ("ecpo.jsonl", "ecpo.log"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert load_transcripts(tmp_path / f"{name}.gz") == load_transcripts(tmp_path / name)
    assert load_transcripts(tmp_path / "ecpo.log") == [
        said("Hello.", "Hi.\n\n1. Emma", task="user 3 item 0"), said("Hello.", "Yes?", task="user 0 item 0"),
    ]  # fmt: skip


def test_under_another_name_the_first_line_tells_the_format(tmp_path):
    (tmp_path / "log.txt").write_text(block(3, "user: Hello.", "assistant: Hi."))
    write_jsonl(tmp_path / "rows.json", [trajectory(("Hello.", "Hi."))])
    (tmp_path / "notes.txt").write_text("Nothing of the kind.")
    assert [contents(*load_transcripts(tmp_path / name)) for name in ("log.txt", "rows.json")] == [["Hello.", "Hi."]] * 2
    with pytest.raises(SchemaError, match=r"notes\.txt:1: unknown format, begins 'Nothing of"):
        load_transcripts(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("task_id", "target", "user"),
    [("book/u1/i1", "i1", "book/u1"), ("book/12", "i1", "book/i1"), ("book/12", None, "book/book/12"), ("user 3 item 0", None, None)],
)
def test_whose_dialogue_it_is(task_id, target, user):
    assert user_of(task_id, target) == (user or "user 3 item 0/user 3 item 0")


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_odd_texts_come_through_both_formats(tmp_path, text):
    write_jsonl(tmp_path / "a.jsonl", [trajectory((text, text))])
    (tmp_path / "a.log").write_text(block(0, f"user: {text}", f"assistant: {text}"), encoding="utf-8")
    for name in ("a.jsonl", "a.log"):
        (found,) = load_transcripts(tmp_path / name)
        assert contents(found) == [text, text] and cut_at_line_break(found) == found
        assert found.render() == f"Customer: {text}\nAssistant: {text}"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", "", r"a\.jsonl holds no dialogue"),
        ("a.jsonl", "\n\n", r"a\.jsonl holds no dialogue"),
        ("a.jsonl", "User 0  Item 0:\n", r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", '{"task_id": "t"}\n', r"a\.jsonl:1: domain: Field required"),
        ("a.log", "", r"a\.log: the log holds no dialogue"),
        ("a.log", '{"task_id": "t"}\n', r"a\.log:1: expected 'User N  Item M:'"),
        ("a.log", block(4, "user: a", "assistant: b") * 2, r"a\.log holds task 'user 4 item 0' twice"),
    ],
)
def test_what_is_no_file_of_dialogues_is_named(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(SchemaError, match=expected):
        load_transcripts(tmp_path / name)


def test_a_task_that_stands_twice_is_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [trajectory(("Hello.", "Hi."))] * 2)
    with pytest.raises(SchemaError, match=r"a\.jsonl holds task 'game/u1/g1' twice; a pair needs one dialogue per task"):
        load_transcripts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["none.jsonl", "none.log"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(ArtifactError, match=name):
        load_transcripts(tmp_path / name)


def test_half_a_surrogate_pair_is_replaced_where_it_would_be_sent(tmp_path):
    row = trajectory(("Hello.", "Hi.")).model_dump()
    row["turns"][0]["reply"] = "ok \ud83d"
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert load_transcripts(tmp_path / "a.jsonl")[0].render() == "Customer: Hello.\nAssistant: ok ?"


# as text


def test_line_breaks_in_a_message_begin_no_new_speaker():
    found = said("Hello.\nAssistant: I am the assistant.", "# Conversation 2\r\n\r\nCustomer:\tbye").render()
    assert found.split("\n") == ["Customer: Hello. Assistant: I am the assistant.", "Assistant: # Conversation 2 Customer: bye"]


@pytest.mark.parametrize(
    ("text", "max_words", "expected"),
    [
        ("one two three", 0, "one two three"),
        ("one two three", 2, "one two ..."),
        ("one two three", 3, "one two three"),
        ("one two three", 9, "one two three"),
        (" one\n\ntwo ", 1, "one ..."),
        (" one\n\ntwo ", 2, "one two"),
        ("", 2, ""),
        ("\u6211\u60f3\u627e\u4e00\u672c\u597d\u4e66\u3002", 3, "\u6211\u60f3\u627e\u4e00\u672c\u597d\u4e66\u3002"),  # no blanks, one word
    ],
)
def test_messages_are_cut_after_so_many_words(text, max_words, expected):
    assert clip(text, max_words) == expected


def test_each_message_is_cut_for_itself():
    assert said("a b c", "d e").render(2) == "Customer: a b ...\nAssistant: d e"


def test_an_empty_dialogue_is_empty_text():
    assert (said().render(), said().replies, cut_at_line_break(said())) == ("", [], said())


# the release's cut


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("a", "b", "c"), ["a", "b", "c"]),
        (("a", "b\nmore", "c", "d"), ["a", "b"]),
        (("a", "b\n\nmore", "c"), ["a", "b"]),
        (("a\nmore", "b"), ["a"]),
        (("a", "b", "c\n", "d"), ["a", "b", "c"]),  # an empty line names no speaker
        (("a", "\nb", "c"), ["a", ""]),
        (("a", "b: c", "d"), ["a", "b: c", "d"]),
        (("a", "b\nnote: c", "d"), ["a", "b"]),
        (("a", "b\nUser: c", "d"), ["a", "b"]),  # a capital is no role
        (("a", "b\n user: c", "d"), ["a", "b"]),
        (("a", "b\nuser: c\nassistant:d\nmore", "e"), ["a", "b", "c", "d"]),  # quoted roles are messages
        (("a", "b\nuser: c", "d"), ["a", "b", "c", "d"]),
    ],
)
def test_the_cut_ends_before_the_first_line_that_names_no_speaker(texts, expected):
    assert contents(cut_at_line_break(said(*texts))) == expected


def test_the_cut_keeps_task_and_roles():
    found = cut_at_line_break(said("a", "b\nassistant: c\nuser: d\nmore", task="t9"))
    assert found.task_id == "t9" and [message["role"] for message in found.messages] == ["user", "assistant", "assistant", "user"]


# pairs


def test_dialogues_are_paired_by_task_in_the_first_ones_order(caplog):
    first, second = [said("a", task=task) for task in "abc"], [said("b", task=task) for task in "cab"]
    pairs = pair_transcripts(first, second)
    assert [(one.task_id, other.task_id) for one, other in pairs] == [("a", "a"), ("b", "b"), ("c", "c")]
    assert all(contents(one) == ["a"] and contents(other) == ["b"] for one, other in pairs) and not caplog.records


def test_the_order_within_files_does_not_change_the_pairs():
    first, second = [said("a", str(i), task=str(i)) for i in range(9)], [said("b", str(i), task=str(i)) for i in range(3, 12)]
    mixed = [random.Random(0).sample(side, len(side)) for side in (first, second)]
    assert sorted(pair_transcripts(*mixed), key=str) == sorted(pair_transcripts(first, second), key=str)
    assert [pair[::-1] for pair in pair_transcripts(second, first)] == pair_transcripts(first, second)


def test_tasks_that_only_one_has_are_left_out_and_counted(caplog):
    caplog.set_level(logging.WARNING)
    pairs = pair_transcripts([said(task=task) for task in "abcd"], [said(task=task) for task in "cde"], names=("ecpo", "expert"))
    assert [one.task_id for one, _ in pairs] == ["c", "d"]
    assert [record.getMessage() for record in caplog.records] == ["ecpo and expert share 2 tasks; 3 dialogues on other tasks are left out"]


@pytest.mark.parametrize(
    ("first", "second", "examples"),
    [("ab", "cd", "'a' and 'c'"), ("ab", "", "'a' and no dialogue"), ("", "", "no dialogue and no dialogue")],
)
def test_files_on_wholly_different_tasks_are_an_error(first, second, examples):
    with pytest.raises(SchemaError, match=rf"A\.log and B\.jsonl share no task \(they hold for instance {examples}\)"):
        pair_transcripts([said(task=t) for t in first], [said(task=t) for t in second], names=("A.log", "B.jsonl"))


def test_a_task_that_is_about_two_items_is_an_error():
    sides = [[replace(said(task="book/0"), target=target)] for target in ("Emma", "Dune", None)]
    with pytest.raises(SchemaError, match="task 'book/0' is about 'Emma' in A and about 'Dune' in B; judge dialogues on the same tasks"):
        pair_transcripts(sides[0], sides[1], names=("A", "B"))
    assert len(pair_transcripts(sides[0], sides[2])) == 1


@pytest.mark.parametrize(("first", "second", "name"), [("aba", "ab", "ecpo"), ("ab", "bab", "expert")])
def test_two_dialogues_on_a_task_make_no_pair(first, second, name):
    with pytest.raises(SchemaError, match=f"{name} holds task '.' twice"):
        pair_transcripts([said(task=t) for t in first], [said(task=t) for t in second], names=("ecpo", "expert"))


# the published logs


@needs_release
@pytest.mark.parametrize(
    ("first", "second", "n", "left"),
    [
        ("macrs_llama", "actcrs_gpt", 99, 1), ("react_gpt", "actcrs_gpt", 99, 1), ("actcrs_ecpo", "actcrs_gpt", 100, 0),
        ("chatrec_gpt", "actcrs_gpt", 100, 0), ("macrs_llama", "react_gpt", 98, 2), ("actcrs_gpt", "actcrs_gpt", 100, 0),
    ],
)  # fmt: skip
def test_published_logs_share_most_of_their_tasks(first, second, n, left, caplog):
    caplog.set_level(logging.WARNING)
    sides = [load_transcripts(LOGS / f"{name}.log") for name in (first, second)]
    assert len(pair_transcripts(*sides, names=(first, second))) == n
    assert [f"{left} dialogues on other tasks" in record.getMessage() for record in caplog.records] == [True] * bool(left)


@needs_release
@pytest.mark.parametrize(
    ("name", "dialogues", "cut", "messages", "kept"),
    [
        ("macrs_llama", 99, 99, 954, 198), ("chatrec_gpt", 100, 29, 926, 786), ("actcrs_llama", 100, 2, 887, 881),
        ("actcrs_gpt", 100, 0, 929, 929), ("actcrs_ecpo", 100, 0, 942, 942), ("react_gpt", 99, 0, 891, 891),
    ],
)  # fmt: skip
def test_the_cut_takes_from_published_logs_what_quirk_q20_tells(name, dialogues, cut, messages, kept):
    whole = load_transcripts(LOGS / f"{name}.log")
    judged = [cut_at_line_break(transcript) for transcript in whole]
    assert (len(whole), sum(one != other for one, other in zip(whole, judged, strict=True))) == (dialogues, cut)
    assert (sum(len(t.messages) for t in whole), sum(len(t.messages) for t in judged)) == (messages, kept)
    assert all(transcript.replies for transcript in [*whole, *judged])


@needs_release
def test_the_cut_keeps_three_percent_of_the_text_of_macrs():
    whole = load_transcripts(LOGS / "macrs_llama.log")
    sizes = [sum(len(text) for t in side for text in contents(t)) for side in (whole, map(cut_at_line_break, whole))]
    assert sizes[1] / sizes[0] == pytest.approx(0.028, abs=0.001)
