"""The judge's stages on a run's files, on a small release and on damaged dialogues, and `ecpo judge`, with a scripted judge."""

import asyncio
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from scripted_models import choice, tasks_of
from stub_endpoint import Reply

from ecpo_utils import cli, exhibits
from ecpo_utils.core.artifacts import load_jsonl, write_jsonl
from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.core.schema import Item, Persona, Trajectory, Turn, Verdict
from ecpo_utils.evaluate.damage import FLAWS, SEVERITIES
from ecpo_utils.evaluate.judges import narrow
from ecpo_utils.evaluate.judges.narrow import KINDS
from ecpo_utils.evaluate.reliability import correlation_table, damage_table, released_correlations, released_table
from ecpo_utils.evaluate.win_rates import win_rate
from ecpo_utils.judging import (
    EXPERT_LOG,
    find_reliability,
    judge_damaged,
    judge_files,
    judge_released,
    judge_systems,
    load_judged,
    load_originals,
    load_reliability,
    rule_damaged,
    sample_tasks,
    save_reliability,
)
from ecpo_utils.llm.prompts import load_prompt
from ecpo_utils.publishing import publish_run
from ecpo_utils.run import open_run

ROOT = Path(__file__).parents[1]
GOOD, POOR = ("An offer?", "A question?"), ("A statement.", "An error.")


def by_words(body):
    """A reader that goes by the kind that a reply names, and finds that every reply takes up what was said."""
    text = body["messages"][-1]["content"]
    if text.startswith("Customer:"):
        return choice(takes=0.9, ignores=0.1)
    return choice(**{next((kind for kind in KINDS if kind in text.lower()), "statement"): 1.0})


def constant(body):
    return choice(takes=1.0) if body["messages"][-1]["content"].startswith("Customer:") else choice(offer=1.0)


@pytest.fixture
def checkout(tmp_path, monkeypatch, stub_endpoint):
    """Params whose judge is the scripted endpoint; the working directory is there."""
    stub_endpoint.answer = by_words
    shutil.copytree(ROOT / "params", tmp_path / "params")
    path = tmp_path / "params" / "quick.yaml"
    judge = f'judge: {{provider: openai, model: judge, base_url: "{stub_endpoint.base_url}", max_retries: 0, max_concurrency: 1}}'
    path.write_text(re.sub(r"^judge: .*$", judge, path.read_text(), flags=re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(checkout):
    run = open_run("05_judge_validation", {"profile": "quick", "domains": ["book"]})
    run.params.num_judge_pairs = run.params.num_simulation_tasks = 0
    return run


def dialogue(task, *replies, system="actcrs_expert"):
    turns = [Turn(index=i, policy="ask_recommendation", user_message=f"Wish {i}.", reply=text) for i, text in enumerate(replies)]
    return Trajectory(task_id=f"book/u{task}/i", domain="book", system=system, config="c", target=Item(item_id="1", title="Emma"),
                      persona=Persona(activities="a", language="l"), status="complete", turns=turns)  # fmt: skip


# which pairs


def test_tasks_are_drawn_by_the_seed_and_stay_in_order():
    values = list("abcdefghij")
    drawn = sample_tasks(values, 4, seed=1)
    assert len(drawn) == 4 and drawn == sorted(drawn) == sample_tasks(values, 4, seed=1) != sample_tasks(values, 4, seed=2)
    assert sample_tasks(values, 0, 1) == sample_tasks(values, 10, 1) == sample_tasks(values, 99, 1) == values


def test_originals_have_two_replies_or_more_and_come_from_notebook_03(run):
    with pytest.raises(ArtifactError, match="run notebooks/03_simulation.ipynb"):
        load_originals(run)
    rows = [dialogue(0, *GOOD), dialogue(1, "One."), dialogue(2, *POOR)]
    write_jsonl(run.paths.tasks("book", "test"), tasks_of(rows))
    write_jsonl(run.paths.trajectories("book", "actcrs_expert"), rows[:2])
    with pytest.raises(ArtifactError, match=r"lacks 1 of 3 dialogues, book/u2/i first; run notebooks/03_simulation.ipynb to its end"):
        load_originals(run)
    write_jsonl(run.paths.trajectories("book", "actcrs_expert"), [dialogue(7, *GOOD), *rows[::-1]])  # another split's, and any order
    assert [each.task_id for each in load_originals(run)] == ["book/u0/i", "book/u2/i"]
    run.params.num_simulation_tasks = 2  # what other notebooks played further is none of notebook 03's
    assert [each.task_id for each in load_originals(run)] == ["book/u0/i"]
    run.params.num_judge_pairs, run.params.num_simulation_tasks = 1, 0
    assert [each.task_id for each in load_originals(run)] == ["book/u0/i"]


def test_without_two_replies_in_any_dialogue_no_flaw_can_be_planted(run):
    rows = [dialogue(0, "One."), dialogue(1)]
    write_jsonl(run.paths.tasks("book", "test"), tasks_of(rows))
    write_jsonl(run.paths.trajectories("book", "actcrs_expert"), rows)
    with pytest.raises(ArtifactError, match=r"no dialogue of .*book/trajectories/actcrs_expert.jsonl holds two replies.*max_turns of 2 or"):
        load_originals(run)


@pytest.mark.parametrize("name", ["book/{}", "book/u{}/i"])
def test_irrelevant_replies_are_other_users_also_of_released_tasks(run, name):
    rows = [dialogue(t, f"Offer {t}?", f"Question {t}?") for t in range(4)]
    for number, row in enumerate(rows):
        row.task_id = name.format(number)
        row.target = row.target.model_copy(update={"item_id": f"item {number // 2}"})  # released: two tasks of one user
    write_jsonl(run.paths.tasks("book", "test"), tasks_of(rows))
    write_jsonl(run.paths.trajectories("book", "actcrs_expert"), rows)
    judged = asyncio.run(judge_damaged(run, load_originals(run)))
    assert len(judged["irrelevant", "one"]) == 4


def judged_by(run):
    """Verdicts of the run's judge, as notebooks hold them."""
    played = {"book": {name: [dialogue(t, *GOOD) for t in range(2)] for name in ("actcrs_expert", "react_expert")}}
    return asyncio.run(judge_systems(run, played, [("react_expert", "actcrs_expert")]))


def test_a_run_of_one_domain_quotes_its_own_judge_and_else_that_of_all(run):
    whole, judged = replace(run, paths=replace(run.paths, scope="all")), judged_by(run)
    for ask in (lambda: load_reliability(run, judged), lambda: find_reliability(run)):
        with pytest.raises(ArtifactError, match="run notebooks/05_judge_validation.ipynb"):
            ask()
    save_reliability(whole, "over all domains", judged)
    assert load_reliability(run, judged) == load_reliability(whole, judged) == "over all domains"
    save_reliability(run, "book alone", judged)
    assert (load_reliability(run, judged), load_reliability(whole, judged)) == ("book alone", "over all domains")


@pytest.mark.parametrize("change", [{"judge_mode": "tokens"}, {"judge_max_words": 9}, {"judge": {"model": "another"}}, "prompt"])
def test_a_note_on_another_judge_is_not_quoted(run, stub_endpoint, change, monkeypatch):
    save_reliability(replace(run, paths=replace(run.paths, scope="all")), "the profile's judge", judged_by(run))
    endpoint = run.params.judge.model_dump()
    faster = open_run("04_prompt_based_cras", {"profile": "quick", "judge": endpoint | {"max_concurrency": 9}})
    assert faster.changed == ("judge",) and load_reliability(faster, judged_by(faster)) == "the profile's judge"
    if change == "prompt":  # edited since, and notebook 05 not run again
        monkeypatch.setattr(narrow, "load_prompt", lambda name: f"{load_prompt(name)} Be strict.")
        other = run
    else:
        other = open_run("04_prompt_based_cras", {"profile": "quick", **change, "judge": endpoint | change.get("judge", {})})
    stub_endpoint.answer = lambda body: choice(**{"1": 0.7, "2": 0.3}) if change == {"judge_mode": "tokens"} else by_words(body)
    assert load_reliability(other, judged_by(other)).startswith("this judge was not checked; run notebooks/05_judge_validation.ipynb")


# systems of a run


def test_systems_are_judged_once_and_verdicts_on_further_tasks_stay(run, stub_endpoint):
    played = {"book": {"actcrs_expert": [dialogue(t, *GOOD) for t in range(3)], "react_expert": [dialogue(t, *POOR) for t in range(3)]}}
    comparison = ("react_expert", "actcrs_expert")
    found = asyncio.run(judge_systems(run, played, [comparison]))["book"][comparison]
    path = run.paths.verdicts("book", *comparison)
    assert win_rate(found).losses == 3 and load_jsonl(path, Verdict) == found
    asked = len(stub_endpoint.chats)
    fewer = {"book": {name: rows[1:] for name, rows in played["book"].items()}}
    assert asyncio.run(judge_systems(run, fewer, [comparison]))["book"][comparison] == found[1:]
    assert len(stub_endpoint.chats) == asked and len(load_jsonl(path, Verdict)) == 3
    assert load_judged(run, fewer, [comparison], "04_prompt_based_cras")["book"][comparison] == found[1:]


def test_verdicts_that_are_missing_or_on_other_dialogues_are_not_shown(run):
    played = {"book": {"actcrs_expert": [dialogue(t, *GOOD) for t in range(3)], "react_expert": [dialogue(t, *POOR) for t in range(3)]}}
    comparison, notebook = ("react_expert", "actcrs_expert"), "04_prompt_based_cras"
    with pytest.raises(ArtifactError, match="react_expert_vs_actcrs_expert.jsonl is missing; run notebooks/04_prompt_based_cras"):
        load_judged(run, played, [comparison], notebook)
    found = asyncio.run(judge_systems(run, played, [comparison]))
    assert load_judged(run, played, [comparison], notebook) == found
    played["book"]["actcrs_expert"][1].turns[0].reply = "Another offer?"  # played anew
    with pytest.raises(
        ArtifactError, match=r"lacks verdicts on 1 of 3 pairs of dialogues as they now are, book/u1/i first; run notebooks/04_"
    ):
        load_judged(run, played, [comparison], notebook)
    rows = found["book"][comparison]
    write_jsonl(run.paths.verdicts("book", *comparison), rows[:1])  # a run that was killed while judging
    with pytest.raises(ArtifactError, match="lacks verdicts on 2 of 3 pairs"):
        load_judged(run, played, [comparison], notebook)
    write_jsonl(run.paths.verdicts("book", *comparison), [row.model_copy(update={"shown_first": "first"}) for row in rows])
    with pytest.raises(ArtifactError, match="lacks verdicts on 3 of 3 pairs"):
        load_judged(run, played, [comparison], notebook)


# released logs


def write_log(folder, name, dialogues):
    """A log in the release's layout; `dialogues` are replies by row of the task file."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = []
    for row, replies in dialogues.items():
        lines = [line for text in replies for line in (f"user: Wish {row}.", f"assistant: {text}")]
        fields = ["Correct recommendation: True", "Total user tokens: 1", "Total system tokens: 1", f"Total rounds: {len(replies)}"]
        blocks.append("\n".join([f"User {row}  Item 0:", *lines, *fields, "", "=" * 118, ""]))
    (folder / f"{name}.log").write_text("\n".join(blocks), encoding="utf-8")


@pytest.fixture
def release(run, tmp_path):
    """Logs of the expert, two published systems and one of nobody's on four tasks; one of them lacks the last."""
    folder = tmp_path / "release" / "test_log" / "book"
    write_log(folder, EXPERT_LOG, {row: ("An offer?", "Some more.\nA question?") for row in range(4)})
    write_log(folder, "react_gpt", {row: ("An offer?", "A statement.") for row in range(4)})
    write_log(folder, "chatrec_gpt", {row: POOR for row in range(4)})
    write_log(folder, "mine", {row: GOOD for row in range(3)})
    run.params.release_dir = str(tmp_path / "release")
    return folder


def test_released_logs_are_judged_whole_cut_and_by_the_rule_on_the_tasks_that_all_share(run, release, stub_endpoint):
    found = asyncio.run(judge_released(run))
    assert {form: sorted(logs) for form, logs in found.items()} == dict.fromkeys(
        ("whole", "cut", "rule"), ["chatrec_gpt", "mine", "react_gpt"])  # fmt: skip
    assert {row.task_id for row in found["whole"]["react_gpt"]} == {f"user {row} item 0" for row in range(3)}
    assert win_rate(found["whole"]["chatrec_gpt"]).losses == 3
    assert win_rate(found["rule"]["react_gpt"]).losses == 3  # half of its replies are questions, all of the expert's
    assert win_rate(found["rule"]["mine"]).ties == 3
    assert found["rule"]["react_gpt"][0].measures["final"] == (0.5, 1.0)
    asked = len(stub_endpoint.chats)
    assert asyncio.run(judge_released(run)) == found and len(stub_endpoint.chats) == asked
    run.params.num_judge_pairs = 2
    fewer = asyncio.run(judge_released(run))
    assert {form: {len(rows) for rows in logs.values()} for form, logs in fewer.items()} == {"whole": {2}, "cut": {2}, "rule": {3}}


def test_cut_dialogues_end_at_their_first_line_break(run, release):
    found = asyncio.run(judge_released(run))
    whole, cut = found["whole"]["react_gpt"][0].measures["guidance"], found["cut"]["react_gpt"][0].measures["guidance"]
    assert whole == pytest.approx((0.5, 1.0)) and cut == pytest.approx((0.5, 0.5))  # of the expert's second reply "Some more." is left


def test_exhibits_take_every_released_log_from_its_file(run, release):
    found = asyncio.run(judge_released(run))
    drawn, missing = exhibits.draw_exhibits(run)
    pd.testing.assert_frame_equal(drawn["05_released_logs"][0], released_table(found, run.label))
    ranks = correlation_table(released_correlations(found), run.label)
    pd.testing.assert_frame_equal(drawn["05_rank_correlation"][0], ranks)
    assert "mine" in set(drawn["05_released_logs"][0]["system"]) and "05_planted_flaws" in missing


def test_without_a_release_nothing_is_judged_and_one_without_the_experts_log_is_refused(run, release, stub_endpoint):
    (release / f"{EXPERT_LOG}.log").unlink()
    with pytest.raises(ArtifactError, match=f"holds no {EXPERT_LOG}.log; set release_dir"):
        asyncio.run(judge_released(run))
    run.params.release_dir = ""
    assert asyncio.run(judge_released(run)) == {} and stub_endpoint.chats == []
    assert "set release_dir" in exhibits.draw_exhibits(run)[1]["05_released_logs"]


def test_exhibits_of_domains_that_are_not_tuned_are_missing_and_the_others_are_drawn(run, release):
    asyncio.run(judge_released(run))
    run.params.tuning_domains = ["game"]
    drawn, missing = exhibits.draw_exhibits(run)
    assert "05_released_logs" in drawn and "none of the domains ['book'] is among tuning_domains ['game']" in missing["06_sgpt"]


# planted flaws


def test_damaged_dialogues_are_judged_beside_the_rule_and_drawn_again_from_their_files(run):
    rows = [dialogue(0, *GOOD, "Two offers?"), dialogue(1, *GOOD)]
    write_jsonl(run.paths.trajectories("book", "actcrs_expert"), rows)
    write_jsonl(run.paths.tasks("book", "test"), tasks_of(rows))
    originals = load_originals(run)
    judged = asyncio.run(judge_damaged(run, originals))
    assert list(judged) == [("none", "none"), *((flaw, severity) for flaw in FLAWS for severity in SEVERITIES)]
    assert win_rate(judged["none", "none"]).ties == 2 and win_rate(judged["system_error", "all"]).wins == 2
    table = damage_table(judged, run.label, rule_damaged(run, originals))
    rows = table.set_index(["flaw", "severity"])
    assert rows.loc[("no_guidance", "all"), "rule_preferred"] == 1.0 and rows.loc[("repetition", "all"), "rule_preferred"] == 0.5
    pd.testing.assert_frame_equal(exhibits.draw_exhibits(run)[0]["05_planted_flaws"][0], table)
    path = run.paths.planted("system_error", "all")
    path.write_text(path.read_text().splitlines(keepends=True)[0])  # a run that was killed while judging
    missing = exhibits.draw_exhibits(run)[1]["05_planted_flaws"]
    assert "system_error_all.book.jsonl lacks verdicts on 1 of 2 pairs" in missing and "run notebooks/05_judge_validation.ipynb" in missing


def test_a_flaw_that_can_no_longer_be_planted_leaves_no_verdicts_of_an_earlier_run(run):
    write_jsonl(run.paths.tasks("book", "test"), tasks_of([dialogue(0, *GOOD)]))
    for replies, rows in (((*GOOD, "Two offers?"), 1), (GOOD, 0)):  # of two replies one can be repeated: half of one is left out
        write_jsonl(run.paths.trajectories("book", "actcrs_expert"), [dialogue(0, *replies)])
        assert len(asyncio.run(judge_damaged(run, load_originals(run)))["repetition", "all"]) == rows
        assert len(load_jsonl(run.paths.planted("repetition", "all"), Verdict)) == rows


# two files


@pytest.fixture
def files(checkout):
    """Three shared tasks, one that only A has, in a folder of the caller's."""
    folder = checkout / "here"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [dialogue(t, *(GOOD if t else POOR), system="a") for t in range(4)])
    write_jsonl(folder / "b.jsonl", [dialogue(0, *POOR), dialogue(1, *POOR), dialogue(2, "An offer?\nAn error.", "A question?")])
    return folder


@pytest.fixture
def judge(files, capsys, monkeypatch):
    """Runs `ecpo judge a.jsonl b.jsonl ...` in the caller's folder; returns exit code, stdout and stderr."""

    def judge(*words, first="a.jsonl"):
        monkeypatch.chdir(files)
        code = cli.main(["judge", first, "b.jsonl", *map(str, words)])
        return code, *capsys.readouterr()

    return judge


def test_files_are_judged_on_the_tasks_that_both_have(run, files):
    verdicts, not_shared = asyncio.run(judge_files(run, files / "a.jsonl", files / "b.jsonl"))
    assert (len(verdicts), not_shared) == (3, 1) and {(row.first, row.second) for row in verdicts} == {("a", "b")}
    assert len(asyncio.run(judge_files(run, files / "a.jsonl", files / "b.jsonl", num_pairs=2))[0]) == 2


def test_answers_about_files_of_ones_own_are_logged_apart_and_not_published(run, files, checkout):
    asyncio.run(judge_files(run, files / "a.jsonl", files / "b.jsonl"))
    assert run.paths.private_calls.is_file() and not run.paths.calls.exists()
    write_jsonl(run.paths.trajectories("book", "actcrs_expert"), [dialogue(0, *GOOD)])
    publish_run("quick")
    published = {path.name for path in (checkout / "results" / "quick").rglob("*") if path.is_file()}
    assert published == {"actcrs_expert.jsonl.gz", "contents.json"}


def test_json_of_two_files(judge):
    code, out, err = judge("--json")
    found = json.loads(out)
    assert (code, found["n"], found["n_unscored"], found["n_not_shared"]) == (0, 3, 0, 1)
    assert [found["final"][key] for key in ("wins", "ties", "losses", "undecided")] == [1, 2, 0, False]
    assert found["flexibility"]["undecided"] and err.endswith("so these win rates say nothing: flexibility\n")


def test_two_files_for_reading(judge):
    code, out, _ = judge()
    assert code == 0 and out.startswith("a.jsonl against b.jsonl: n 3, unscored 0, tasks that only one has 1\n")
    assert re.search(r"final +win rate 0\.67 \[0\.21, 0\.94\], ties 2\n", out)


def test_cut_files_end_at_their_first_line_break(judge, stub_endpoint):
    judge("--cut", "--json")
    assert not any("An offer? An error." in chat.body["messages"][-1]["content"] for chat in stub_endpoint.chats)
    judge("--json")
    assert any("An offer? An error." in chat.body["messages"][-1]["content"] for chat in stub_endpoint.chats)


def test_verdicts_are_kept_in_the_callers_folder_and_not_asked_for_again(judge, files, stub_endpoint, checkout):
    assert judge("--out", "kept/v.jsonl", "--json")[0] == 0
    assert len(load_jsonl(files / "kept" / "v.jsonl", Verdict)) == 3
    asked = len(stub_endpoint.chats)
    (checkout / "runs" / "responses.sqlite").unlink()
    assert judge("--out", "kept/v.jsonl", "--json")[0] == 0 and len(stub_endpoint.chats) == asked


@pytest.mark.parametrize("out", ["folder", "a.jsonl", "a.jsonl/v.jsonl"])
def test_an_out_file_that_cannot_be_written_is_told_before_any_call(judge, files, stub_endpoint, out):
    (files / "folder").mkdir()
    before = (files / "a.jsonl").read_bytes()
    code, printed, err = judge("--out", out, "--json")
    assert (code, printed) == (1, "") and out.split("/")[0] in err and stub_endpoint.chats == []
    assert (files / "a.jsonl").read_bytes() == before


def test_an_out_file_of_another_comparison_is_refused_and_stays(judge, files, stub_endpoint):
    assert judge("--out", "v.jsonl")[0] == 0
    before, asked = (files / "v.jsonl").read_bytes(), len(stub_endpoint.chats)
    code, _, err = judge("--cut", "--out", "v.jsonl")
    assert code == 1 and "v.jsonl holds verdicts of another judge or on other dialogues" in err
    assert (files / "v.jsonl").read_bytes() == before and len(stub_endpoint.chats) == asked


def test_an_out_file_in_packed_form_is_refused(judge, stub_endpoint):
    code, _, err = judge("--out", "v.jsonl.gz")
    assert code == 1 and "v.jsonl.gz cannot hold the verdicts" in err and stub_endpoint.chats == []


def test_a_judge_that_prefers_nobody_is_named(judge, stub_endpoint):
    stub_endpoint.answer = constant
    code, out, err = judge()
    assert code == 0 and "ties 3" in out
    assert "told no pair apart, so these win rates say nothing: flexibility, coherence, guidance, final" in err


def test_a_judge_that_always_answers_the_same_is_named_though_repetitions_decide(judge, files, stub_endpoint):
    stub_endpoint.answer = constant
    write_jsonl(files / "a.jsonl", [dialogue(t, "An offer?", "An offer?" if t else "Another?") for t in range(3)])
    code, out, err = judge("--json")
    found = json.loads(out)
    assert (code, found["final"]["losses"], found["final"]["undecided"]) == (0, 2, True)
    assert err.endswith("so these win rates say nothing: guidance, final\n")


def test_unscored_pairs_come_with_their_first_error_and_none_scored_is_code_1(judge, stub_endpoint):
    rubbish = Reply("banana", logprobs=[{"banana": -0.01}])
    stub_endpoint.answer = lambda body: rubbish if "A statement" in body["messages"][-1]["content"] else by_words(body)
    code, out, err = judge("--json")
    assert code == 0 and json.loads(out)["n_unscored"] == 2
    assert "ecpo: 2 of 3 pairs are unscored; the first error: " in err
    stub_endpoint.answer = lambda body: rubbish
    (Path("runs") / "responses.sqlite").unlink()
    code, out, err = judge()
    assert code == 1 and "final        unscored" in out and "3 of 3 pairs are unscored; the first error: ParseError: " in err


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no dialogue"), ("{", "bad.jsonl:1: not valid JSON"), ('{"x": 1}', "bad.jsonl:1: "), (None, "cannot read ")],
)
def test_a_bad_file_is_one_line_before_any_call(judge, files, stub_endpoint, text, message):
    if text is not None:
        (files / "bad.jsonl").write_text(text)
    code, out, err = judge("--json", first="bad.jsonl")
    assert (code, out, err.count("\n")) == (1, "", 1) and message in err and stub_endpoint.chats == []


def test_files_of_other_tasks_are_refused(judge, files, stub_endpoint):
    write_jsonl(files / "other.jsonl", [dialogue(9, *GOOD)])
    code, out, err = judge("--json", first="other.jsonl")
    assert (code, out) == (1, "") and "share no task" in err and stub_endpoint.chats == []


@pytest.mark.parametrize("number", ["-1", "many", "1.5"])
def test_a_number_of_pairs_below_0_is_wrong_usage(judge, capsys, number):
    with pytest.raises(SystemExit) as ended:
        judge(f"--pairs={number}")
    assert ended.value.code == 2 and f"'{number}' is no whole number" in capsys.readouterr().err


# the run


def test_a_release_to_check_the_judge_on_is_no_other_run_but_a_release_as_data_is(checkout):
    assert open_run("05_judge_validation", {"profile": "quick", "release_dir": "/x"}).paths.run.name == "quick"
    assert open_run("02_persona_diversity", {"profile": "quick", "release_dir": "/x", "data_source": "release"}).changed == (
        "data_source", "release_dir")  # fmt: skip


def test_provenance_names_the_judges_and_the_rewriters_model(checkout):
    path = checkout / "params" / "quick.yaml"
    path.write_text(re.sub(r"(?m)^rewriter: .*$", "rewriter: {provider: embedded, model: smollm2-135m-instruct-q4}", path.read_text()))
    path.write_text(re.sub(r"(?m)^(judge|cra): .*$", r"\1: {provider: embedded, model: qwen2.5-coder-1.5b-instruct-q4}", path.read_text()))
    models = open_run("05_judge_validation", {"profile": "quick"}).provenance()["models"]
    assert {"smollm2-135m-instruct-q4", "qwen2.5-coder-1.5b-instruct-q4"} <= set(models)
    path.write_text(re.sub(r"(?m)^(persona|simulator|expert|cra): .*$", r"\1: {provider: openai, model: m}", path.read_text()))
    assert set(open_run("05_judge_validation", {"profile": "quick"}).provenance()["models"]) == {*models}
