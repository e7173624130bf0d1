"""The release's files: small ones written here, and the published ones where they lie beside the repository."""

import gzip
import json
import logging
import os
from pathlib import Path
from statistics import mean

import pytest
import yaml

from ecpo_utils.core.artifacts import write_jsonl
from ecpo_utils.core.errors import ArtifactError, SchemaError
from ecpo_utils.core.schema import Persona, PersonaRecord
from ecpo_utils.data.release import detect_format, load_persona_texts, load_release_log, load_release_personas, load_release_tasks

SHARED = Path(__file__).resolve().parents[3] / "shared"
RELEASE = SHARED / "ecpo_release"
LOGS = ("actcrs_ecpo", "actcrs_gpt", "actcrs_llama", "chatrec_gpt", "macrs_llama", "react_gpt")
needs_release = pytest.mark.skipif(not RELEASE.is_dir(), reason=f"the published data are not at {RELEASE}")

RULE = "=" * 118
FIELDS = """rec_rewards: [0, 5]
avg_rec_reward: 5.0
action_rewards: [4, 3]
avg_action_reward: 3.5
expression_rewards: [0, 0]
avg_expression_reward: 0
Correct recommendation: True
Recall: False
Total user tokens: 77
Total system tokens: 138
Total rounds: {rounds}
"""
TALK = "user: Something about cats.\nassistant: Which cats?\n\n1. Big\n2. Small\nuser: Small ones.\nassistant: Read Emma.\nuser: Thanks.\n"
FOOTER = (
    "Average user tokens across users: 77.00\nTotal correct recommendations: {correct}/{n}\nTotal recall recommendations: 0/2\n\n"
    + "=" * 80
)
TASK = {
    "UserID": "u1",
    "Persona": {"Activities": "Explores.", "Linguistics": {"Information Density": "Low.", "Expression Style": "Dry.", "Tone": "Kind."}},
    "Items": [{"ItemID": "B1", "ItemName": "Emma", "Price": "from 8.48", "Categories": ["Books"], "Description": "A novel."}],
}


def block(row: int, talk: str = TALK, rounds: int = 3, fields: str = FIELDS) -> str:
    return f"User {row}  Item 0:\n{talk}{fields.format(rounds=rounds)}\n{RULE}\n\n\n"


def save(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def save_rows(path: Path, *rows: dict) -> Path:
    return save(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return save(tmp_path / "a.log", block(5) + block(2) + FOOTER.format(correct=2, n=2))


def test_a_message_keeps_all_its_lines(log):
    first, second = load_release_log(log)
    assert (first.row, second.row, first.item) == (5, 2, 0)
    assert [m["role"] for m in first.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert first.replies == ["Which cats?\n\n1. Big\n2. Small", "Read Emma."]
    assert first.ended_by_user


def test_fields_of_a_dialogue_are_read_with_a_bare_zero_as_a_mean(log):
    dialogue = load_release_log(log)[0]
    assert (dialogue.rec_rewards, dialogue.avg_rec_reward, dialogue.avg_action_reward) == ([0, 5], 5.0, 3.5)
    assert (dialogue.expression_rewards, dialogue.avg_expression_reward) == ([0, 0], 0.0)
    assert (dialogue.correct, dialogue.recall) == (True, False)
    assert (dialogue.user_tokens, dialogue.system_tokens, dialogue.rounds) == (77, 138, 3)


def test_fields_that_a_log_has_not_are_none(tmp_path):
    fields = "".join(line + "\n" for line in FIELDS.splitlines() if "expression" not in line and "Recall" not in line)
    dialogue = load_release_log(save(tmp_path / "a.log", block(0, fields=fields)))[0]
    assert (dialogue.recall, dialogue.expression_rewards, dialogue.avg_expression_reward) == (None, None, None)


@pytest.mark.parametrize("ending", ["", "\n", f"\n{RULE}", f"\n{RULE}\n\n\n"])
def test_a_log_without_footer_or_last_rule_is_whole(tmp_path, ending):
    text = (block(5) + block(2)).removesuffix(f"\n{RULE}\n\n\n") + ending
    assert [d.row for d in load_release_log(save(tmp_path / "a.log", text))] == [5, 2]


@pytest.mark.parametrize("line", [
    RULE, "=" * 80, "User 9  Item 0:", "Total rounds: 1", "Correct recommendation: False", "rec_rewards: [1]", "Recall: True",
    "assistant: I am still speaking.", "User: a capital is no role", "user:", "Average user tokens across users: 1.00",
    f"{RULE}\n\n\nUser 9  Item 0:\nis what the log says", f"{FIELDS.format(rounds=1)}\n{RULE}\n", "Total correct recommendations: 0/7",
    "\u2028user: x",
])  # fmt: skip
@pytest.mark.parametrize("place", ["2. Small\n", "Read Emma.\n"])
def test_text_that_looks_like_a_rule_or_a_field_stays_text(tmp_path, line, place):
    talk = TALK.replace(place, f"{place}{line}\n")
    dialogues = load_release_log(save(tmp_path / "a.log", block(5, talk) + block(2, talk) + FOOTER.format(correct=2, n=2)))
    assert [len(d.messages) for d in dialogues] == [5, 5]
    assert any(line.rstrip() in reply for reply in dialogues[0].replies)
    assert all(d.correct and d.rounds == 3 and d.rec_rewards == [0, 5] for d in dialogues)


def test_field_like_text_at_the_very_end_of_the_last_message_stays_text(tmp_path):
    talk = TALK + "Total rounds: 9\nrec_rewards: [1]\n"
    dialogue = load_release_log(save(tmp_path / "a.log", block(5, talk)))[0]
    assert dialogue.messages[-1]["content"] == "Thanks.\nTotal rounds: 9\nrec_rewards: [1]"
    assert (dialogue.rounds, dialogue.rec_rewards) == (3, [0, 5])


def test_a_dialogue_quoted_after_an_empty_line_is_no_dialogue(tmp_path):
    talk = TALK.replace("Read Emma.", "For example:\n\nuser: hello\nassistant: hi\n\nuser: bye\nassistant: bye")
    dialogue = load_release_log(save(tmp_path / "a.log", block(5, talk.replace("hello\nassistant", "hello\n\nassistant"))))[0]
    assert len(dialogue.messages) == 5
    assert "user: hello" in dialogue.replies[1]


def test_crlf_and_byte_order_mark_change_nothing(tmp_path, log):
    other = save(tmp_path / "b.log", b"\xef\xbb\xbf" + log.read_bytes().replace(b"\n", b"\r\n"))
    assert load_release_log(other) == load_release_log(log)
    assert detect_format(other) == "log"


def test_a_log_cut_anywhere_is_an_error_or_leaves_whole_dialogues(tmp_path, log):
    text, whole = log.read_text(), load_release_log(log)
    for end in range(len(text)):
        path = save(tmp_path / "cut.log", text[:end])
        try:
            read = load_release_log(path)
        except SchemaError as error:
            assert str(error).startswith(f"{path}:")
        else:
            assert read == whole[: len(read)] and len(read) >= 1


def test_a_log_cut_in_a_dialogue_names_the_line(tmp_path):
    path = save(tmp_path / "cut.log", block(5) + block(2)[: len("User 2  Item 0:\nuser: Something about cats.\n")])
    last = len(path.read_text().splitlines())
    with pytest.raises(SchemaError, match=rf"cut\.log:{last}: the dialogue of user 2 .*is the log cut"):
        load_release_log(path)


@pytest.mark.parametrize("gap", ["", f"\n{RULE}\n\n\n"])
def test_a_dialogue_cut_before_another_one_is_an_error(tmp_path, gap):
    cut = "User 1  Item 0:\nuser: Hi.\nassistant: Yes?\nuser: A book.\n"
    path = save(tmp_path / "cut.log", block(5) + cut + gap + block(2))
    with pytest.raises(SchemaError, match=r"cut\.log:\d+: .*is the log cut"):
        load_release_log(path)


def test_a_log_that_begins_inside_a_dialogue_is_an_error(tmp_path):
    path = save(tmp_path / "head.log", block(5)[40:] + block(2))
    with pytest.raises(SchemaError, match=r"head\.log:1: expected 'User N  Item M:'"):
        load_release_log(path)


def test_an_unreadable_field_is_named_with_the_line_where_fields_begin(tmp_path):
    path = save(tmp_path / "a.log", block(5, fields=FIELDS.replace("[4, 3]", "[4, x]")))
    with pytest.raises(SchemaError, match=r"a\.log:10: action_rewards"):
        load_release_log(path)


def test_a_footer_that_counts_otherwise_is_warned_of(tmp_path, caplog):
    path = save(tmp_path / "a.log", block(5) + block(2) + FOOTER.format(correct=2, n=3))
    with caplog.at_level(logging.WARNING):
        assert len(load_release_log(path)) == 2
    assert "footer counts 2/3 correct, the dialogues 2/2" in caplog.text


def test_task_row_is_the_line_and_price_text_a_number(tmp_path):
    yelp = {**TASK, "Items": [{"ItemName": "Pub", "Categories": ["Bars"], "Description": "Loud."}]}
    first, second = load_release_tasks(save_rows(tmp_path / "t.jsonl", TASK, yelp), "yelp")
    assert (first.task_id, second.task_id) == ("yelp/0", "yelp/1")
    assert (first.target.item_id, first.target.price) == ("B1", 8.48)
    assert (second.target.item_id, second.target.title, second.target.price) == ("Pub", "Pub", None)
    assert first.persona == Persona(activities="Explores.", language="Low. Dry. Kind.")


@pytest.mark.parametrize(("price", "expected"), [(0.0, 0.0), (12, 12.0), (None, None), ("\u2014", None), ("$1,299.50", 1299.5)])
def test_price_is_number_null_or_text(tmp_path, price, expected):
    row = {**TASK, "Items": [{**TASK["Items"][0], "Price": price}]}
    assert load_release_tasks(save_rows(tmp_path / "t.jsonl", row), "book")[0].target.price == expected


@pytest.mark.parametrize(("row", "message"), [
    ({**TASK, "Items": []}, "Items: expected a list of one item"),
    ({**TASK, "Items": [{"ItemID": "B1"}]}, "Items.0: no 'ItemName'"),
    ({**TASK, "Persona": {"Activities": "a"}}, "Persona: no 'Linguistics'"),
    ({**TASK, "Persona": {"Activities": "a", "Linguistics": {"Tone": "t"}}}, "no 'Information Density'"),
    ({**TASK, "Items": [{"ItemName": "Emma", "Categories": "Books"}]}, "target.categories"),
    ({"UserID": "u", "Items": TASK["Items"]}, "no 'Persona'"),
])  # fmt: skip
def test_a_broken_task_names_file_line_and_key(tmp_path, row, message):
    path = save_rows(tmp_path / "t.jsonl", TASK, row)
    with pytest.raises(SchemaError) as error:
        load_release_tasks(path, "book")
    assert f"{path}:2: " in str(error.value) and message in str(error.value)


def test_tasks_with_crlf_read_the_same(tmp_path):
    unix = save_rows(tmp_path / "a.jsonl", TASK, TASK)
    dos = save(tmp_path / "b.jsonl", unix.read_bytes().replace(b"\n", b"\r\n"))
    assert load_release_tasks(dos, "book") == load_release_tasks(unix, "book")


def test_a_broken_json_line_names_file_and_line(tmp_path):
    path = save(tmp_path / "t.jsonl", json.dumps(TASK) + "\n" + json.dumps(TASK)[:50])
    for load in (load_persona_texts, load_release_personas, lambda p: load_release_tasks(p, "book")):
        with pytest.raises(SchemaError, match=r"t\.jsonl:2: not valid JSON"):
            load(path)


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"[]", b"hello", b'{"a": 1}\n', b"\x00\x01", b"\xff\xfe\x80", b"{}", b"12", RULE.encode()]
)
def test_an_unknown_format_is_a_schema_error_that_names_the_file(tmp_path, content):
    path = save(tmp_path / "what.bin", content)
    loaders = (detect_format, load_persona_texts, load_release_personas, load_release_log, lambda p: load_release_tasks(p, "book"))
    for load in loaders:
        with pytest.raises(SchemaError, match=r"what\.bin"):
            load(path)


def test_a_directory_or_missing_file_is_an_artifact_error(tmp_path):
    for path in (tmp_path, tmp_path / "none.jsonl"):
        for load in (detect_format, load_persona_texts, load_release_personas, load_release_log, lambda p: load_release_tasks(p, "book")):
            with pytest.raises(ArtifactError, match="cannot read"):
                load(path)


def test_a_log_is_refused_where_tasks_or_personas_are_wanted(log):
    with pytest.raises(SchemaError, match=r"a\.log:1: unknown format, begins 'User 5  Item 0:'; expected .* the release's tasks"):
        load_release_tasks(log, "book")
    with pytest.raises(SchemaError, match=r"expected JSON lines of our personas \(keys .*\), or JSON lines of the release's "):
        load_persona_texts(log)


def test_the_format_is_told_by_the_first_line_and_not_by_the_name(tmp_path, log):
    assert detect_format(log.rename(tmp_path / "log.jsonl"), "trajectories", "log") == "log"
    assert detect_format(save(tmp_path / "rule.txt", f"\n{RULE}\n\n{block(5)}"), "trajectories", "log") == "log"
    rows = save_rows(tmp_path / "rows.log", {"task_id": "t", "turns": []})
    assert detect_format(rows) == detect_format(rows, "trajectories", "log") == "trajectories"
    with pytest.raises(SchemaError, match=r"t\.log:1: unknown format, an object .*; expected .* our trajectories .*, or a dialogue log"):
        detect_format(save_rows(tmp_path / "t.log", TASK), "trajectories", "log")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="a pipe can be read only once"):
        detect_format(tmp_path / "pipe")


def test_a_packed_log_reads_the_same(tmp_path, log):
    packed = save(tmp_path / "b.log.gz", gzip.compress(log.read_bytes()))
    assert detect_format(packed) == "log" and load_release_log(packed) == load_release_log(log)


@pytest.mark.parametrize("content", ["", "\n \n", f"{RULE}\n\n"])
def test_an_empty_log_is_said_to_hold_no_dialogue(tmp_path, content):
    with pytest.raises(SchemaError, match=r"a\.log: the log holds no dialogue"):
        load_release_log(save(tmp_path / "a.log", content))


def test_a_line_of_a_log_that_is_no_text_is_named(tmp_path, log):
    lines = log.read_bytes().split(b"\n")
    lines[2] = b"assistant: Mis\xe9rables"
    with pytest.raises(SchemaError, match=r"b\.log:3: not UTF-8 text"):
        load_release_log(save(tmp_path / "b.log", b"\n".join(lines)))


@pytest.mark.parametrize(("old", "new"), [("[4, 3]", "[" * 50_000), ("rounds: {rounds}", "rounds: " + "3" * 5000)])
def test_fields_no_reader_can_hold_are_named(tmp_path, old, new):
    with pytest.raises(SchemaError, match=r"a\.log:10: "):
        load_release_log(save(tmp_path / "a.log", block(5, fields=FIELDS.replace(old, new))))


def test_a_footer_of_too_many_digits_is_passed_over(tmp_path):
    assert len(load_release_log(save(tmp_path / "a.log", block(5) + FOOTER.format(correct="9" * 5000, n=1)))) == 1


def test_a_persona_may_nest_deeply(tmp_path):
    text = '{"UserID": "u", "Persona": {"a": ' + '{"b": ' * 400 + '"deep"' + "}" * 400 + ', "c": ["x", "y"]}}\n'
    assert load_persona_texts(save(tmp_path / "r.jsonl", text)) == ["deep x y"]


def test_our_own_tasks_are_not_taken_for_personas(tmp_path):
    row = {"task_id": "t", "domain": "book", "user_id": "u", "persona": {"activities": "a", "language": "b"}, "target": {}}
    with pytest.raises(SchemaError, match="unknown format"):
        load_persona_texts(save_rows(tmp_path / "tasks.jsonl", row))


def test_persona_text_is_all_values_with_duplicates_kept(tmp_path):
    assert load_persona_texts(save_rows(tmp_path / "t.jsonl", TASK, TASK)) == ["Explores. Low. Dry. Kind."] * 2
    groups = {"Behavioral Traits": {"Style": "Fast"}, "Linguistic Traits": {"Tone": "Dry", "Extra": "Short"}}
    assert load_persona_texts(save_rows(tmp_path / "r.jsonl", {"UserID": "u", "Persona": groups})) == ["Fast Dry Short"]


def test_our_personas_have_the_text_of_the_record(tmp_path):
    persona = Persona(activities="a", interests="b", language="c", orientations="d")
    path = write_jsonl(tmp_path / "personas.jsonl", [PersonaRecord(user_id="u", persona=persona)])
    assert detect_format(path) == "personas"
    assert load_persona_texts(path) == ["a b c d"]


def test_first_stage_groups_become_four_dimensions(tmp_path):
    groups = {
        "Basic Information": {"Age Range": "36"}, "Behavioral Traits": {"x": "acts"}, "Linguistic Traits": {"x": "talks"},
        "Content Preferences": {"x": "likes", "y": "more"}, "Experience Feedback": {"x": "felt"},
    }  # fmt: skip
    record = load_release_personas(save_rows(tmp_path / "v0.jsonl", {"UserID": "u", "FilledValues": groups}))[0]
    assert record.source == "release"
    assert record.persona == Persona(activities="acts", interests="likes more", language="talks", orientations="36 felt")


def test_a_persona_without_text_is_an_error(tmp_path):
    with pytest.raises(SchemaError, match=r"r\.jsonl:1: Persona: no text"):
        load_persona_texts(save_rows(tmp_path / "r.jsonl", {"UserID": "u", "Persona": {"Behavioral Traits": {}}}))


@needs_release
@pytest.mark.parametrize(("name", "domain", "rows", "users", "items"), [
    ("Book_test", "book", 193, 95, None), ("Book_train", "book", 3739, 95, 1786), ("Yelp_test", "yelp", 207, 98, None),
])  # fmt: skip
def test_released_tasks_have_the_published_counts(name, domain, rows, users, items):
    tasks = load_release_tasks(RELEASE / "task" / f"{name}.jsonl", domain)
    assert len(tasks) == rows == len({task.task_id for task in tasks})
    assert len({task.user_id for task in tasks}) == users
    assert items is None or len({task.target.item_id for task in tasks}) == items
    assert tasks[rows - 1].task_id == f"{domain}/{rows - 1}"


@needs_release
@pytest.mark.parametrize(("file", "layout", "rows", "distinct"), [
    ("task/Book_test.jsonl", "tasks", 193, 177), ("task/Yelp_test.jsonl", "tasks", 207, 202),
    ("persona/personas_v0.jsonl", "personas_v0", 100, 100), ("persona/random_personas.jsonl", "random_personas", 100, 90),
])  # fmt: skip
def test_released_personas_have_the_published_counts(file, layout, rows, distinct):
    path = RELEASE / file
    assert detect_format(path) == layout
    texts = load_persona_texts(path)
    assert (len(texts), len(set(texts))) == (rows, distinct)
    records = load_release_personas(path)
    assert len(records) == rows and all(record.persona.activities and record.persona.language for record in records)
    if layout != "personas_v0":
        assert [record.persona.text() for record in records] == texts


@needs_release
@pytest.mark.parametrize("name", LOGS)
def test_released_log_gives_every_published_count(name):
    expected = yaml.safe_load((SHARED / "paper" / "results.yaml").read_text())["released_logs"][name]
    log = load_release_log(RELEASE / "test_log" / "book" / f"{name}.log")
    messages = [message for dialogue in log for message in dialogue.messages]
    replies = [text for dialogue in log for text in dialogue.replies]
    recalls = [d.recall for d in log if d.recall is not None]
    found = {
        "n": len(log),
        "missing_rows": sorted(set(range(100)) - {d.row for d in log}),
        "correct": sum(d.correct for d in log),
        "recall": sum(recalls) if recalls else None,
        "rec_dialogues": sum(bool(d.avg_rec_reward) for d in log),
        "user_messages": sum(m["role"] == "user" for m in messages),
        "agent_messages": len(replies),
        "ended_by_user": sum(d.ended_by_user for d in log),
        "system_error_replies": sum(text == "Sorry, System Error" for text in replies),
    }
    assert found == {key: expected[key] for key in found}
    means = {
        "rec": mean(d.avg_rec_reward for d in log if d.avg_rec_reward),
        "action": mean(d.avg_action_reward for d in log),
        "user_tokens": mean(d.user_tokens for d in log),
        "system_tokens": mean(d.system_tokens for d in log),
        "rounds": mean(d.rounds for d in log),
    }
    if expected["expression"] is not None:
        means["expression"] = mean(d.avg_expression_reward for d in log)
    assert means == pytest.approx({key: expected[key] for key in means}, abs=0.00501)


@needs_release
@pytest.mark.parametrize("name", LOGS)
def test_released_log_keeps_its_invariants(name, caplog):
    for dialogue in load_release_log(RELEASE / "test_log" / "book" / f"{name}.log"):
        assert dialogue.rounds == sum(m["role"] == "user" for m in dialogue.messages)
        num_rated = len(dialogue.replies) - (not dialogue.ended_by_user)
        for kind in ("rec", "action", "expression"):
            ratings, average = getattr(dialogue, f"{kind}_rewards"), getattr(dialogue, f"avg_{kind}_reward")
            if ratings is not None:
                assert len(ratings) == num_rated
                assert average == pytest.approx(mean([r for r in ratings if r] or [0]))
    assert not caplog.records


@needs_release
def test_every_logged_success_is_a_title_in_a_reply():
    tasks = load_release_tasks(RELEASE / "task" / "Book_test.jsonl", "book")
    for name in LOGS:
        for dialogue in load_release_log(RELEASE / "test_log" / "book" / f"{name}.log"):
            title = tasks[dialogue.row].target.title.lower()
            assert any(title in text.lower() for text in dialogue.replies) == dialogue.correct
