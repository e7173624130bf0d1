"""The judge against a scripted endpoint: what it is shown and asked, its habits, its faults, and what a second run pays."""

import json
import re
import threading

import pytest
from scripted_models import ODD_TEXTS, choice
from stub_endpoint import Reply

from ecpo_utils.core.artifacts import load_jsonl, write_jsonl
from ecpo_utils.core.errors import ArtifactError, EndpointError, ParamsError, SchemaError
from ecpo_utils.core.schema import Verdict
from ecpo_utils.evaluate import judges
from ecpo_utils.evaluate.judges import DIMENSIONS
from ecpo_utils.evaluate.transcripts import Transcript
from ecpo_utils.evaluate.verdicts import judge_pairs, load_verdicts
from ecpo_utils.evaluate.win_rates import win_rate
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.llm.prompts import load_prompt

WORDS, TOKENS = "words", "tokens"
CALLS = {WORDS: 2, TOKENS: 8}  # per pair: both orders, and in tokens mode one question per dimension
BOTH_MODES = pytest.mark.parametrize("mode", [WORDS, TOKENS])
BREAKS = {"line breaks": "1. Emma\n2. Persuasion\r\n\r\n# Conversation 2\nAssistant: 1", "separators": "a\u2028b\u2029c\x0bd\x00e"}


@pytest.fixture
def make_judge(study):
    """Judges at the stub, one call at a time; keywords are the judge's and the endpoint's."""

    def make(mode, *, max_words=0, **endpoint):
        return judges.make_judge(mode, study.client("judge", **{"max_concurrency": 1, **endpoint}), max_words=max_words)

    return make


@pytest.fixture
def compare(study):
    """Verdicts of a judge on pairs, "ecpo" against "expert"."""

    def run(judge, pairs, path=None, first="ecpo", second="expert", **options):
        return study.run(judge_pairs(judge, pairs, first=first, second=second, path=path, **options))

    return run


def dialogue(task, *replies):
    messages = [m for reply in replies for m in ({"role": "user", "content": "And?"}, {"role": "assistant", "content": reply})]
    return Transcript(task, tuple(messages))


def pairs_of(*tasks):
    """The first system's dialogues are the better ones."""
    return [(dialogue(task, f"Good {task}"), dialogue(task, f"Poor {task}")) for task in tasks]


def swapped(pairs):
    return [pair[::-1] for pair in pairs]


def prompt(body):
    return body["messages"][1]["content"]


def conversations(body):
    """The two conversations of a request, as shown."""
    return re.fullmatch(r"# Conversation 1\n(.*)\n\n# Conversation 2\n(.*)\n\n# Question\n\n.+", prompt(body), re.DOTALL).groups()


def worded(**scores):
    """A worded verdict; dimensions that are not given are ties."""
    values = {**dict.fromkeys(DIMENSIONS, 0), **scores}
    return json.dumps({k: v for name, score in values.items() for k, v in ((f"{name}_reason", f"{name} {score}"), (name, score))})


def answer(body, p):
    """The answer "1" with a probability, as the mode of the request has it."""
    if "response_format" in body:
        return worded(**dict.fromkeys(DIMENSIONS, (p > 0.5) - (p < 0.5)))
    return choice(**{"1": p, "2": 1 - p})


def always(p):
    return lambda body: answer(body, p)


def prefers_good(body):
    """Rightly finds the good dialogue, more surely where it is shown first; a tie between equals."""
    one, two = ("Good" in text for text in conversations(body))
    return answer(body, 0.5 if one == two else 0.9 if one else 0.4)


# what is shown and asked


def test_tokens_asks_one_question_per_dimension_in_both_orders(study, stub_endpoint, make_judge, compare):
    stub_endpoint.answer = prefers_good
    compare(make_judge(TOKENS), pairs_of("t1"))
    good, poor = "Customer: And?\nAssistant: Good t1", "Customer: And?\nAssistant: Poor t1"
    bodies = [chat.body for chat in stub_endpoint.chats]
    assert [conversations(body) for body in bodies] == [(good, poor)] * 4 + [(poor, good)] * 4
    assert [prompt(body).rsplit("\n\n", 1)[1] for body in bodies] == [load_prompt(f"judge_{name}") for name in DIMENSIONS] * 2
    assert all(body["max_tokens"] == 1 and body["temperature"] == 0 and body["logprobs"] for body in bodies)


def test_words_asks_once_per_order(stub_endpoint, make_judge, compare):
    stub_endpoint.answer = always(0.9)
    compare(make_judge(WORDS), pairs_of("t1"))
    bodies = [chat.body for chat in stub_endpoint.chats]
    assert [[text.split()[-2] for text in conversations(body)] for body in bodies] == [["Good", "Poor"], ["Poor", "Good"]]
    assert all(prompt(body).endswith(load_prompt("judge_words")) for body in bodies)
    keys = list(bodies[0]["response_format"]["json_schema"]["schema"]["properties"])
    assert keys == [key for name in DIMENSIONS for key in (f"{name}_reason", name)]  # a reason first, then its verdict


@pytest.mark.parametrize("text", [*ODD_TEXTS.values(), *BREAKS.values()], ids=[*ODD_TEXTS, *BREAKS])
def test_odd_texts_are_shown_as_they_are_on_one_line(stub_endpoint, make_judge, compare, text):
    stub_endpoint.answer = prefers_good
    rows = compare(make_judge(WORDS), [(dialogue("t1", f"Good {text}"), dialogue("t1", f"Poor {text}"))])
    flat = " ".join(text.split())
    assert conversations(stub_endpoint.chats[0].body) == (
        f"Customer: And?\nAssistant: Good {flat}", f"Customer: And?\nAssistant: Poor {flat}",
    )  # fmt: skip
    assert win_rate(rows).num_unscored == 0 and rows[0].scores["final"] == 1


def test_long_messages_are_cut_each_for_itself(stub_endpoint, make_judge, compare):
    stub_endpoint.answer = always(0.9)
    compare(make_judge(WORDS, max_words=2), [(dialogue("t1", "Good one indeed", "two words"), dialogue("t1", "Poor"))])
    assert conversations(stub_endpoint.chats[0].body) == (
        "Customer: And?\nAssistant: Good one ...\nCustomer: And?\nAssistant: two words", "Customer: And?\nAssistant: Poor",
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["full", "Narrow", ""])
def test_an_unknown_mode_is_an_error(make_judge, mode):
    with pytest.raises(ParamsError, match=f"no judge mode '{mode}'; there are: words, tokens, narrow; see docs/judge.md"):
        make_judge(mode)


# verdicts by hand


def test_probabilities_are_of_the_first_system_in_both_orders(stub_endpoint, make_judge, compare):
    stub_endpoint.answer = lambda body: answer(body, 0.9 if "Good" in conversations(body)[0] else 0.6)
    rows = compare(make_judge(TOKENS), pairs_of("t1"))
    assert [(row.task_id, row.first, row.second, row.shown_first) for row in rows] == [
        ("t1", "ecpo", "expert", "first"), ("t1", "ecpo", "expert", "second"),
    ]  # fmt: skip
    for name in DIMENSIONS:
        assert [row.probabilities[name] for row in rows] == pytest.approx([0.9, 0.4])
    assert [row.scores for row in rows] == [dict.fromkeys(DIMENSIONS, 1), dict.fromkeys(DIMENSIONS, -1)]
    found = win_rate(rows)
    assert (found.rate.value, found.flips.value, found.first_shown.value) == (1.0, 1.0, 1.0)  # 2.197 - 0.405 > 0


def test_worded_scores_are_turned_in_the_second_order_and_keep_their_reasons(stub_endpoint, make_judge, compare):
    stub_endpoint.script(worded(flexibility=1, guidance=-1, final=1), worded(flexibility=-1, guidance=-1))
    rows = compare(make_judge(WORDS), pairs_of("t1"))
    assert [row.scores for row in rows] == [
        {"flexibility": 1, "coherence": 0, "guidance": -1, "final": 1}, {"flexibility": 1, "coherence": 0, "guidance": 1, "final": 0},
    ]  # fmt: skip
    assert rows[1].reasons["flexibility"] == "flexibility -1" and rows[0].probabilities is None
    assert [win_rate(rows, dimension=name).rate.value for name in DIMENSIONS] == [1.0, 0.5, 0.5, 0.75]


def test_faint_preferences_under_a_strong_liking_for_a_position_are_kept(stub_endpoint, make_judge, compare):
    def nearly_always_first(body):
        second = 1.2e-6 if "Good" in conversations(body)[0] else 1.4e-6
        return choice(**{"1": 1 - second, "2": second})

    stub_endpoint.answer = nearly_always_first
    found = win_rate(compare(make_judge(TOKENS), pairs_of("t1", "t2")))
    assert (found.rate.value, found.flips.value) == (1.0, 1.0)


# the judge's habits


@BOTH_MODES
def test_a_judge_that_always_says_1_has_a_win_rate_of_half_and_flips_every_pair(stub_endpoint, make_judge, compare, mode):
    stub_endpoint.answer = always(0.99)
    found = win_rate(compare(make_judge(mode), pairs_of(*"abcde")))
    assert (found.rate.value, found.rate.n, found.ties, found.num_unscored) == (0.5, 5, 5, 0)
    assert (found.flips.value, found.first_shown.value) == (1.0, 1.0)


@BOTH_MODES
def test_a_judge_that_finds_the_better_dialogue_wins_in_spite_of_its_liking(stub_endpoint, make_judge, compare, mode):
    stub_endpoint.answer = prefers_good
    found = win_rate(compare(make_judge(mode), pairs_of(*"abc")))
    assert (found.rate.value, found.wins, found.flips.value) == (1.0, 3, 0.0)


@BOTH_MODES
@pytest.mark.parametrize("p", [0.03, 0.5, 0.8, 0.999999])
def test_a_dialogue_against_itself_is_a_tie_and_costs_one_order(stub_endpoint, make_judge, compare, mode, p):
    stub_endpoint.answer = always(p)
    same = dialogue("t1", "Good")
    found = win_rate(compare(make_judge(mode), [(same, same)]))
    assert (found.rate.value, found.ties, found.num_unscored) == (0.5, 1, 0)
    assert len(stub_endpoint.chats) == CALLS[mode] // 2


@BOTH_MODES
def test_swapping_the_systems_gives_one_minus_the_win_rate_for_free(stub_endpoint, make_judge, compare, mode):
    likings = {"a": 0.9, "b": 0.7, "c": 0.2}
    stub_endpoint.answer = lambda body: answer(body, likings[conversations(body)[0][-1]] if "Good" in conversations(body)[0] else 0.4)
    pairs = pairs_of(*likings)
    there = win_rate(compare(make_judge(mode), pairs))
    paid = len(stub_endpoint.chats)
    back = win_rate(compare(make_judge(mode), swapped(pairs), first="expert", second="ecpo"))
    assert there.rate.value == pytest.approx(5 / 6 if mode == WORDS else 2 / 3)  # 1, 1, tie; 0.9 + 0.6, 0.7 + 0.6 and 0.2 + 0.6 against 1
    assert back.rate.value == pytest.approx(1 - there.rate.value)
    assert (back.flips, back.first_shown) == (there.flips, there.first_shown)
    assert len(stub_endpoint.chats) == paid == CALLS[mode] * 3


@BOTH_MODES
def test_the_order_of_the_pairs_does_not_matter(stub_endpoint, make_judge, compare, mode):
    stub_endpoint.answer = prefers_good
    pairs = [*pairs_of(*"ab"), *swapped(pairs_of("c"))]
    there, back = compare(make_judge(mode), pairs), compare(make_judge(mode), pairs[::-1])
    assert [row.task_id for row in there] == list("aabbcc") and [row.task_id for row in back] == list("ccbbaa")
    assert win_rate(there) == win_rate(back) and win_rate(there).rate.value == pytest.approx(2 / 3)


@BOTH_MODES
def test_no_pairs_are_no_calls_and_no_rate(stub_endpoint, make_judge, compare, tmp_path, mode):
    rows = compare(make_judge(mode), [], tmp_path / "none.jsonl")
    assert rows == [] and stub_endpoint.chats == [] and (tmp_path / "none.jsonl").read_text() == ""
    assert win_rate(rows).rate.value is None


# unscored


@BOTH_MODES
@pytest.mark.parametrize("empty", [[], [""], [" \n\t "]])
def test_a_dialogue_without_a_reply_is_unscored_and_not_asked_about(stub_endpoint, make_judge, compare, mode, empty):
    stub_endpoint.answer = prefers_good
    pairs = [*pairs_of("a"), (dialogue("b", "Good"), dialogue("b", *empty)), (dialogue("c", *empty), dialogue("c", *empty))]
    rows = compare(make_judge(mode), pairs)
    assert [row.error for row in rows] == [None, None, *["the dialogue of expert holds no reply of the agent"] * 2,
                                           *["the dialogue of ecpo holds no reply of the agent"] * 2]  # fmt: skip
    assert not any(row.scores for row in rows[2:]) and len(stub_endpoint.chats) == CALLS[mode]
    found = win_rate(rows)
    assert (found.rate.value, found.rate.n, found.num_unscored) == (1.0, 1, 2)


RUBBISH = {
    "no JSON": "Conversation 1, I should say.", "nothing": "", "half": worded(final=1)[:-9], "one key": '{"final": 1}', "list": "[1]",
    "out of range": worded(final=2), "fraction": worded(final=0.5), "text": worded(final="1"), "none": worded(final=None),
    "unknown key": worded(clarity=1), "no reason": worded(final_reason=None),
}  # fmt: skip


@pytest.mark.parametrize("text", RUBBISH.values(), ids=RUBBISH)
def test_unreadable_words_are_unscored_with_their_reason(stub_endpoint, make_judge, compare, text):
    stub_endpoint.answer = lambda body: text
    rows = compare(make_judge(WORDS), pairs_of("a", "b"))
    assert all(re.match(r"ParseError: judge: .*expected WordedVerdict; see .*calls\.jsonl", row.error) for row in rows)
    assert not any(row.scores or row.reasons for row in rows)
    found = win_rate(rows)
    assert (found.rate.value, found.rate.n, found.num_unscored) == (None, 0, 2)


@pytest.mark.parametrize("token", ["Neither", "Conversation", "", "\u0661", "12", "{"])
def test_a_token_that_names_neither_dialogue_is_unscored_with_its_reason(stub_endpoint, make_judge, compare, token):
    stub_endpoint.answer = lambda body: Reply(token, logprobs=[{token: -0.001, "1": -9.0}])
    rows = compare(make_judge(TOKENS), pairs_of("a", "b"))
    assert all(row.error.startswith(f"ParseError: judge: the answer is none of 1, 2 but {token!r}") for row in rows)
    assert not any(row.scores or row.probabilities for row in rows)
    found = win_rate(rows)
    assert (found.rate.value, found.num_unscored) == (None, 2)


@BOTH_MODES
def test_one_unreadable_order_leaves_its_pair_unscored_and_no_other(stub_endpoint, make_judge, compare, mode):
    def unreadable_once(body):
        question = "judge_words" if "response_format" in body else "judge_guidance"
        refused = "Poor b" in conversations(body)[0] and prompt(body).endswith(load_prompt(question))
        return Reply("Hm.", logprobs=[{"Hm": -0.001}]) if refused else prefers_good(body)

    stub_endpoint.answer = unreadable_once
    rows = compare(make_judge(mode), pairs_of(*"abc"))
    assert [bool(row.error) for row in rows] == [False, False, False, True, False, False]
    assert not rows[3].scores and not rows[3].probabilities
    found = win_rate(rows)
    assert (found.rate.value, found.rate.n, found.num_unscored) == (1.0, 2, 1)


def test_a_repaired_answer_counts(stub_endpoint, make_judge, compare):
    stub_endpoint.script("Number 1 is better.", worded(final=1), worded(final=-1))
    assert win_rate(compare(make_judge(WORDS), pairs_of("a"))).rate.value == 1.0
    assert stub_endpoint.chats[1].body["messages"][-2]["content"] == "Number 1 is better."


@BOTH_MODES
def test_an_endpoint_that_fails_on_one_pair_leaves_the_others_scored(stub_endpoint, make_judge, compare, tmp_path, mode):
    stub_endpoint.answer = lambda body: Reply("out of memory", status=500) if "b" in conversations(body)[0][-1] else prefers_good(body)
    rows = compare(make_judge(mode), pairs_of(*"abc"), tmp_path / "v.jsonl")
    assert [row.task_id for row in rows if row.error] == ["b", "b"]
    assert all("EndpointError: judge endpoint" in row.error and "out of memory" in row.error for row in rows[2:4])
    assert load_jsonl(tmp_path / "v.jsonl", Verdict) == rows
    found = win_rate(rows)
    assert (found.rate.value, found.rate.n, found.num_unscored) == (1.0, 2, 1)


# faults that stop the stage


def test_five_failing_pairs_in_a_row_stop_the_stage_but_not_with_the_faults_that_they_had(stub_endpoint, make_judge, compare, tmp_path):
    pairs, path = pairs_of("z", *"abcdefg"), tmp_path / "v.jsonl"
    stub_endpoint.answer = lambda body: prefers_good(body) if conversations(body)[0].endswith("z") else Reply("too long", status=400)
    with pytest.raises(EndpointError, match=r"5 pairs to judge in a row failed, stopped; finished ones are kept in .*v\.jsonl"):
        compare(make_judge(WORDS), pairs, path)
    rows = compare(make_judge(WORDS), pairs, path)  # five faults come again, two are new
    assert [bool(row.error) for row in rows[::2]] == [False] + [True] * 7


@pytest.mark.parametrize("reply", [Reply("1"), Reply("1", logprobs=[]), Reply("logprobs are not supported by this model", status=400)])
def test_a_judge_without_log_probabilities_stops_tokens_mode_and_names_the_parameter(stub_endpoint, make_judge, compare, tmp_path, reply):
    stub_endpoint.answer = lambda body: reply
    with pytest.raises(EndpointError, match="judge endpoint .*log-?prob.*set judge_mode to") as caught:
        compare(make_judge(TOKENS), pairs_of("a", "b"), tmp_path / "v.jsonl")
    assert caught.value.fatal and load_jsonl(tmp_path / "v.jsonl", Verdict) == []
    assert len(stub_endpoint.chats) <= 2  # a pair that begins in this moment is cancelled


def test_words_mode_needs_no_log_probabilities(stub_endpoint, make_judge, compare):
    stub_endpoint.answer = always(0.9)
    rows = compare(make_judge(WORDS), pairs_of("a"))
    assert not any(row.error for row in rows) and "logprobs" not in stub_endpoint.chats[0].body


@BOTH_MODES
def test_a_key_that_is_refused_stops_the_stage_and_finished_verdicts_stay(stub_endpoint, make_judge, compare, tmp_path, mode):
    answered = []

    def refuse_after(num_answers):
        def reply(body):
            if len(answered) >= num_answers:
                return Reply("invalid key", status=401)
            answered.append(prompt(body))
            return prefers_good(body)

        return reply

    stub_endpoint.answer = refuse_after(2 * CALLS[mode] + 1)
    path, pairs = tmp_path / "verdicts" / "v.jsonl", pairs_of(*"abcd")
    with pytest.raises(EndpointError, match=r"is the key in \$OPENAI_API_KEY right\?") as caught:
        compare(make_judge(mode), pairs, path)
    assert caught.value.fatal and [row.task_id for row in load_jsonl(path, Verdict)] == list("aabb")
    stub_endpoint.answer = refuse_after(4 * CALLS[mode])
    assert win_rate(compare(make_judge(mode), pairs, path)).rate.n == 4
    assert len(set(answered)) == len(answered) == 4 * CALLS[mode]  # nothing that was answered is asked again


def test_a_file_that_cannot_be_written_is_named_before_any_call(stub_endpoint, make_judge, compare, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .*v\.jsonl"):
        compare(make_judge(WORDS), pairs_of("a"), tmp_path / "file" / "v.jsonl")
    assert stub_endpoint.chats == []


# a second run


@pytest.fixture
def forget(study, tmp_path):
    """Empties the response cache, so that only the verdicts' file can spare calls."""

    def empty():
        study.cache.close()
        study.cache = ResponseCache(tmp_path / f"empty-{len(list(tmp_path.iterdir()))}.sqlite")

    return empty


@BOTH_MODES
def test_a_second_run_asks_nothing(stub_endpoint, make_judge, compare, forget, tmp_path, mode):
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", pairs_of("a", "b")
    rows = compare(make_judge(mode), pairs, path)
    text = path.read_text()
    forget()
    assert compare(make_judge(mode), pairs, path) == rows and path.read_text() == text
    assert len(stub_endpoint.chats) == 2 * CALLS[mode]


@BOTH_MODES
def test_a_killed_run_is_taken_up_where_it_stood(stub_endpoint, make_judge, compare, forget, tmp_path, mode):
    """The file ends within the third pair's second line: that pair is judged anew in both orders."""
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", pairs_of(*"abcd")
    rows = compare(make_judge(mode), pairs, path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    assert compare(make_judge(mode), pairs, path) == rows
    assert len(stub_endpoint.chats) == 4 * CALLS[mode]  # all of it lay in the response cache
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    forget()
    assert compare(make_judge(mode), pairs, path) == rows
    assert len(stub_endpoint.chats) == (4 + 2) * CALLS[mode]  # pairs c and d
    assert load_jsonl(path, Verdict) == rows


def test_verdicts_on_other_tasks_stay_in_the_file_only_where_asked(stub_endpoint, make_judge, compare, tmp_path):
    stub_endpoint.answer = prefers_good
    path = tmp_path / "v.jsonl"
    rows = compare(make_judge(TOKENS), pairs_of(*"abc"), path)
    assert compare(make_judge(TOKENS), pairs_of("b"), path, keep_others=True) == rows[2:4]
    assert load_jsonl(path, Verdict) == [*rows[2:4], *rows[:2], *rows[4:]]
    assert compare(make_judge(TOKENS), pairs_of(*"abc"), path) == rows == load_jsonl(path, Verdict)
    compare(make_judge(TOKENS), pairs_of("b"), path)
    assert load_jsonl(path, Verdict) == rows[2:4]
    other = compare(make_judge(WORDS), pairs_of("c"), path, keep_others=True)  # two judges in one file would be a mixture
    assert load_jsonl(path, Verdict) == other
    clipped = compare(make_judge(WORDS, max_words=9), pairs_of("d"), path, keep_others=True)  # another judge, though it cuts nothing here
    assert load_jsonl(path, Verdict) == clipped


def test_verdicts_of_two_judges_are_not_mixed_by_a_stop(stub_endpoint, make_judge, compare, tmp_path):
    stub_endpoint.answer = prefers_good
    path = tmp_path / "v.jsonl"
    rows = compare(make_judge(WORDS), pairs_of(*"abc"), path)
    stub_endpoint.answer = lambda body: Reply("no", status=401)
    with pytest.raises(EndpointError):
        compare(make_judge(WORDS, max_words=9), pairs_of("d"), path, keep_others=True)
    assert load_jsonl(path, Verdict) == []
    write_jsonl(path, [*rows[:2], *(row.model_copy(update={"judge": "another"}) for row in rows[2:4])])
    with pytest.raises(ArtifactError, match="holds verdicts of more than one judge; run notebooks/04"):
        load_verdicts(path, pairs_of(*"ab"), "04")


def test_a_judge_that_is_in_no_file_is_refused(make_judge):
    judge = make_judge(WORDS)
    judge.__class__ = type("Mine", (type(judge),), {"__module__": "builtins"})
    with pytest.raises(ParamsError, match="the judge Mine is in no file; put it into one"):
        judge.config(pairs_of("a")[0])


def test_one_pair_that_goes_by_the_order_is_undecided(stub_endpoint, make_judge, compare):
    stub_endpoint.answer = lambda body: choice(**{"1": 0.9, "2": 0.1})
    found = win_rate(compare(make_judge(TOKENS), pairs_of("a")))
    assert (found.rate.value, found.flips.value, found.is_undecided) == (0.5, 1.0, True)


def test_a_broken_line_in_the_middle_is_named(make_judge, compare, tmp_path):
    (tmp_path / "v.jsonl").write_text('{"task_id": "a"\n{}\n')
    with pytest.raises(SchemaError, match=r"v\.jsonl:1: not valid JSON"):
        compare(make_judge(WORDS), pairs_of("a"), tmp_path / "v.jsonl")


def test_pairs_with_errors_are_judged_again_and_their_good_order_is_not_paid_twice(stub_endpoint, make_judge, compare, tmp_path):
    stub_endpoint.answer = lambda body: Reply("busy", status=503) if "Poor b" in conversations(body)[0] else prefers_good(body)
    path, pairs = tmp_path / "v.jsonl", pairs_of("a", "b")
    assert win_rate(compare(make_judge(WORDS), pairs, path)).num_unscored == 1
    assert len(stub_endpoint.chats) == 4
    stub_endpoint.answer = prefers_good
    rows = compare(make_judge(WORDS), pairs, path)
    assert len(stub_endpoint.chats) == 5 and win_rate(rows).rate.n == 2 and load_jsonl(path, Verdict) == rows


ANOTHER = {
    "judge": lambda judge: setattr(judge.client, "identity", "another model"),
    "mode": lambda judge: setattr(judge, "__class__", judges.WordedJudge),
    "clipping": lambda judge: setattr(judge, "max_words", 2),
}


@pytest.mark.parametrize("change", ANOTHER.values(), ids=ANOTHER)
def test_verdicts_of_another_judge_are_not_reused(stub_endpoint, make_judge, compare, tmp_path, change):
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", [(dialogue(task, f"{task}: Good indeed"), dialogue(task, f"{task}: Poor indeed")) for task in "ab"]
    old = compare(make_judge(TOKENS), pairs, path)
    other = make_judge(TOKENS)
    change(other)
    rows = compare(other, pairs, path)
    assert len(stub_endpoint.chats) == 2 * (CALLS[TOKENS] + CALLS[other.name])
    assert {row.config for row in rows}.isdisjoint(row.config for row in old) and load_jsonl(path, Verdict) == rows


def test_clipping_that_cuts_nothing_changes_no_verdict(stub_endpoint, make_judge, compare, forget, tmp_path):
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", pairs_of("a")
    rows = compare(make_judge(WORDS), pairs, path)
    forget()
    assert compare(make_judge(WORDS, max_words=60), pairs, path) == rows and len(stub_endpoint.chats) == CALLS[WORDS]


def test_a_changed_question_is_asked_anew(stub_endpoint, make_judge, compare, tmp_path, monkeypatch):
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", pairs_of("a")
    compare(make_judge(WORDS), pairs, path)
    monkeypatch.setattr("ecpo_utils.evaluate.judges.base.load_prompt", lambda name: f"{load_prompt(name)} Please.")
    compare(make_judge(WORDS), pairs, path)
    assert len(stub_endpoint.chats) == 2 * CALLS[WORDS]


def test_a_judge_that_reads_answers_otherwise_is_asked_anew(stub_endpoint, make_judge, compare, tmp_path, monkeypatch):
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", pairs_of("a")
    (old, *_) = compare(make_judge(WORDS), pairs, path)
    monkeypatch.setattr("ecpo_utils.evaluate.judges.base.inspect.getsource", lambda module: f"changed {module.__name__}")
    (new, *_) = compare(make_judge(WORDS), pairs, path)
    assert new.config != old.config


@pytest.mark.parametrize("side", [0, 1])
def test_verdicts_on_other_dialogues_are_not_reused(stub_endpoint, make_judge, compare, forget, tmp_path, side):
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", pairs_of("a", "b")
    old = compare(make_judge(WORDS), pairs, path)
    changed = list(pairs[1])
    changed[side] = dialogue("b", "Another reply")
    forget()
    rows = compare(make_judge(WORDS), [pairs[0], tuple(changed)], path)
    assert rows[:2] == old[:2] and rows[2].config != old[2].config
    assert len(stub_endpoint.chats) == 3 * CALLS[WORDS] and load_jsonl(path, Verdict) == rows


def test_swapped_systems_are_other_verdicts_in_the_same_file(stub_endpoint, make_judge, compare, tmp_path):
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", pairs_of("a")
    assert win_rate(compare(make_judge(TOKENS), pairs, path)).rate.value == 1.0
    assert win_rate(compare(make_judge(TOKENS), swapped(pairs), path)).rate.value == 0.0


def test_reused_verdicts_bear_the_names_of_today(stub_endpoint, make_judge, compare, forget, tmp_path):
    stub_endpoint.answer = prefers_good
    path, pairs = tmp_path / "v.jsonl", pairs_of("a")
    compare(make_judge(WORDS), pairs, path)
    forget()
    rows = compare(make_judge(WORDS), [*pairs, *pairs_of("b")], path, first="ecpo-2", second="gpt")
    assert {(row.first, row.second) for row in rows} == {("ecpo-2", "gpt")} and win_rate(rows).rate.n == 2
    assert len(stub_endpoint.chats) == 2 * CALLS[WORDS]


def test_the_file_holds_the_pairs_of_the_last_run_only(stub_endpoint, make_judge, compare, tmp_path):
    stub_endpoint.answer = prefers_good
    path = tmp_path / "v.jsonl"
    compare(make_judge(WORDS), pairs_of(*"abc"), path)
    rows = compare(make_judge(WORDS), pairs_of(*"cb"), path)
    assert load_jsonl(path, Verdict) == rows and [row.task_id for row in rows] == list("ccbb")


# load and cost


def test_as_many_pairs_are_judged_at_once_as_the_endpoint_allows(stub_endpoint, make_judge, compare, tmp_path):
    three = threading.Barrier(3, timeout=60)

    def answer_three_at_once(body):
        three.wait()
        return prefers_good(body)

    stub_endpoint.answer = answer_three_at_once
    rows = compare(make_judge(WORDS, max_concurrency=3, timeout_s=60.0), pairs_of(*"abcdef"), tmp_path / "v.jsonl")
    assert stub_endpoint.max_in_flight == 3 and not any(row.error for row in rows)
    assert [row.task_id for row in rows] == list("aabbccddeeff") and load_jsonl(tmp_path / "v.jsonl", Verdict) == rows
