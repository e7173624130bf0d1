"""Table 1 from hand-made dialogues and verdicts, its comparisons and its figure."""

import math

import pandas as pd
import pytest

from ecpo_utils.core.schema import Action, Confirmation, Item, Persona, Step, Trajectory, Turn, Usage, Verdict
from ecpo_utils.evaluate.comparison import holm
from ecpo_utils.evaluate.cra_table import (
    agent_calls,
    backbone_win_rates,
    cra_table,
    num_queries,
    num_replies,
    system_comparisons,
)
from ecpo_utils.evaluate.figures import plot_cras
from ecpo_utils.evaluate.tables import short_cra_table
from ecpo_utils.judging import framework_comparisons


def step(purpose="action", kind=None):
    return Step(purpose=purpose, messages=[], output="x", action=Action(type=kind, argument="x") if kind else None)


def dialogue(task, system, *, success=False, replies=2, calls=5, status="complete", steps=()):
    turns = [Turn(index=i, policy="ask_recommendation", user_message="Hi.", reply="Read it.", steps=list(steps)) for i in range(replies)]
    role = "expert" if system.endswith("expert") else "cra"
    usage = {role: Usage(calls=calls, seconds=4.0), "simulator": Usage(calls=7, seconds=6.0)}
    return Trajectory(
        task_id=f"book/u{task}/i", domain="book", system=system, config="c", target=Item(item_id="1", title="Emma"), turns=turns,
        persona=Persona(activities="a", language="l"), status=status, usage=usage, recommended_at=0 if success else None,
    )  # fmt: skip


def verdict(task, first, second, value):
    names = ("flexibility", "coherence", "guidance", "final")
    scores = dict.fromkeys(names, (value > 0.5) - (value < 0.5))
    return Verdict(task_id=f"book/u{task}/i", first=first, second=second, shown_first="apart", scores=scores,
                   measures=dict.fromkeys(names, (value, 0.5)))  # fmt: skip


@pytest.fixture
def played():
    names = ("chatrec_expert", "actcrs_expert", "chatrec_base", "actcrs_base")
    return {"book": {name: [dialogue(t, name, success=t < 3 and name.endswith("expert")) for t in range(4)] for name in names}}


@pytest.fixture
def judged():
    rows = {pair: [verdict(t, *pair, 0.9 if t == 0 else 0.2) for t in range(4)] for pair in framework_comparisons(["chatrec", "actcrs"])}
    return {"book": rows}


def test_who_is_held_against_whom():
    assert framework_comparisons(["chatrec", "actcrs"]) == [
        ("chatrec_expert", "actcrs_expert"), ("chatrec_base", "actcrs_expert"), ("actcrs_base", "actcrs_expert"),
        ("chatrec_base", "chatrec_expert")]  # fmt: skip
    assert framework_comparisons(["react"]) == [("react_base", "react_expert")]


def test_effort_of_a_dialogue_by_hand():
    row = dialogue(0, "actcrs_expert", steps=[step("thought"), step(kind="search"), step("query"), step(kind="recommend")])
    assert (agent_calls(row), num_replies(row), num_queries(row)) == (5, 2, 4)


def test_table_by_hand_with_the_papers_values_beside(played, judged):
    table = cra_table(played, judged, "cpu").set_index("system")
    chatrec, yardstick = table.loc["chatrec_expert"], table.loc["actcrs_expert"]
    assert chatrec[["n", "success_rate", "win_rate", "calls_per_dialogue", "calls_per_turn"]].tolist() == [4, 0.75, 0.25, 5.0, 2.5]
    assert chatrec[["paper_SR", "paper_R", "paper_WR", "paper_calls"]].tolist() == [0.46, 0.47, 0.13, "O(N)"]
    assert chatrec["seconds_per_dialogue"] == 10.0 and chatrec["win_rate_n"] == 4
    assert math.isnan(yardstick["win_rate"]) and yardstick["win_rate_n"] == 0
    assert table.loc["chatrec_base", "success_rate"] == 0.0


def test_seconds_of_cached_calls_are_those_they_took_at_first(judged):
    rows = [dialogue(task, "actcrs_expert") for task in range(4)]
    rows[0].usage["expert"] = Usage(calls=5, cached=3, seconds=1.0, cached_seconds=9.0)
    rows[1].usage = {}  # failed before its first call
    rows[3].usage["expert"] = Usage(calls=5, cached=3, seconds=1.0)  # of an earlier version, which kept no time of cached calls
    table = cra_table({"book": {"actcrs_expert": rows}}, judged, "cpu")
    assert table.loc[0, "seconds_per_dialogue"] == 13.0 and table.loc[0, "seconds_per_dialogue_n"] == 2  # 16 and 10


def test_a_failed_dialogue_is_no_success_and_counts(judged):
    rows = [dialogue(0, "actcrs_expert", success=True), dialogue(1, "actcrs_expert", success=True, status="failed", replies=0)]
    table = cra_table({"book": {"actcrs_expert": rows}}, judged, "cpu")
    assert table.loc[0, ["n", "failed", "success_rate"]].tolist() == [2, 1, 0.5]


def test_success_is_compared_on_the_same_tasks(played):
    rows = system_comparisons(played, {}, "actcrs_expert", "cpu", seed=0).set_index(["measure", "system"]).loc["success"]
    assert rows.loc["chatrec_expert", "difference"] == 0 and rows.loc["chatrec_base", "difference"] == -0.75
    assert rows.loc["chatrec_base", "p_value"] == pytest.approx(0.25)  # three tasks lost, none won: 2 / 2^3
    assert set(rows["domain"]) == {"book"}


def test_wins_and_recall_are_compared_like_success_the_yardstick_wins_half(played, judged):
    rows = system_comparisons(played, judged, "actcrs_expert", "cpu", seed=0).set_index(["measure", "system"])
    win = rows.loc[("win", "chatrec_base")]
    assert (win["system_mean"], win["baseline_mean"], win["difference"]) == (0.25, 0.5, -0.25)
    assert (win["higher"], win["lower"], win["unscored"]) == (1, 3, 0)
    assert win["p_value"] == pytest.approx(0.625)  # of four users three lose: 2 (1 + 4) / 2^4
    assert rows.loc[("recall", "chatrec_base"), "difference"] == 0
    assert set(rows.index.get_level_values("measure")) == {"success", "recall", "confirmation", "valid_actions", "reply_words", "win"}


def test_wins_over_the_baseline_itself_where_another_one_than_the_expert_was_judged_against(played, judged):
    book = {**judged["book"], ("chatrec_expert", "chatrec_base"): judged["book"]["chatrec_base", "actcrs_expert"]}
    rows = system_comparisons(played, {"book": book}, "chatrec_base", "cpu", seed=0).set_index(["measure", "system"])
    direct = rows.loc["direct_win"]
    assert list(direct.index) == ["chatrec_expert"]  # nobody else was held against that baseline
    assert direct.loc["chatrec_expert", ["system_mean", "baseline_mean", "higher", "lower"]].tolist() == [0.25, 0.5, 1, 3]
    assert rows.loc[("win", "chatrec_expert"), "baseline_mean"] == 0.25


def test_confirmation_and_valid_actions_are_compared_too_and_left_out_where_a_dialogue_has_none(played):
    base = played["book"]["chatrec_base"]
    scores = (3, 1, 1, None)  # satisfaction of every reply of a task's dialogue: 3 of 4 are scored
    for row, score in zip(base, scores, strict=True):
        for turn in row.turns:
            turn.confirmation = Confirmation() if score is None else Confirmation(flexibility=score // 3, coherence=1, guidance=score // 3)
            turn.steps = [step(kind="ask")]
        row.turns[0].steps[0].attempts = 1 + (score == 3)  # one action of four dialogues was read at the second attempt
    for row in played["book"]["actcrs_expert"]:
        for turn in row.turns:
            turn.confirmation, turn.steps = Confirmation(flexibility=2, coherence=0, guidance=0), [step(kind="ask")]
    rows = system_comparisons(played, {}, "actcrs_expert", "cpu", seed=0).set_index(["measure", "system"])
    score, valid = rows.loc[("confirmation", "chatrec_base")], rows.loc[("valid_actions", "chatrec_base")]
    assert score[["higher", "lower", "unscored"]].tolist() == [1, 2, 1] and score["difference"] == pytest.approx((1 - 1 - 1) / 3)
    assert valid[["higher", "lower", "unscored"]].tolist() == [0, 1, 0] and valid["difference"] == -0.125
    assert rows.loc[("valid_actions", "chatrec_expert"), "unscored"] == 4  # no actions: nothing to be valid


def test_lengths_of_replies_are_compared_and_change_no_p_value_of_another_measure(played, judged):
    before = system_comparisons(played, judged, "actcrs_expert", "cpu", seed=0)
    base = played["book"]["chatrec_base"]
    for row in base[:3]:
        row.turns[0].reply = "Read it, if you please."  # 5 words and 2: 3.5 a reply, against 2
    base[3].turns = []  # failed before its first reply
    rows = system_comparisons(played, judged, "actcrs_expert", "cpu", seed=0)
    words = rows.set_index(["measure", "system"]).loc[("reply_words", "chatrec_base")]
    assert words[["difference", "difference_n", "higher", "lower", "unscored", "p_value"]].tolist() == [1.5, 3, 3, 0, 1, 0.25]
    pd.testing.assert_frame_equal(rows[rows["measure"] != "reply_words"], before[before["measure"] != "reply_words"])


def test_tasks_needed_by_the_measured_split(played, judged):
    rows = system_comparisons(played, judged, "actcrs_expert", "cpu", seed=0).set_index(["measure", "system"])
    assert rows.loc[("success", "chatrec_base"), "tasks_needed"] == 9  # 3 of 4 tasks lost, none won
    assert math.isnan(rows.loc[("success", "chatrec_expert"), "tasks_needed"])  # no difference to see


def test_one_family_of_comparisons_per_measure_over_all_domains(played, judged):
    both = system_comparisons({**played, "game": played["book"]}, {**judged, "game": judged["book"]}, "actcrs_expert", "cpu", seed=0)
    assert list(dict.fromkeys(both["domain"])) == ["book", "game"]
    for measure, family in both.groupby("measure"):
        assert len(family) == 6
        if measure in ("success", "recall", "win"):  # these dialogues have neither scores nor actions
            assert family["p_holm"].tolist() == holm(family["p_value"].tolist())


def test_tasks_of_one_user_are_one_group_and_so_are_released_tasks_with_one_target(played, judged):
    def renamed(name, item_id):
        def changed(row, i):
            return row.model_copy(update={"task_id": name(i), "target": row.target.model_copy(update={"item_id": item_id(i)})})

        return {"book": {s: [changed(row, i) for i, row in enumerate(rows)] for s, rows in played["book"].items()}}

    def groups(name, item_id=str):
        rows = system_comparisons(renamed(name, item_id), {}, "actcrs_expert", "cpu", seed=0)
        return set(rows[rows["measure"] == "success"]["groups"])

    assert groups(lambda i: f"book/u{i // 2}/{i}") == {2} and groups(lambda i: f"book/u{i}/{i}", lambda i: "1") == {4}
    assert groups(lambda i: f"book/{i}") == {4} and groups(lambda i: f"book/{i}", lambda i: str(i // 2)) == {2}


def test_unjudged_pairs_are_unscored_and_without_the_baseline_there_is_nothing_to_compare(played):
    rows = system_comparisons(played, {}, "actcrs_expert", "cpu", seed=0)
    win = rows[rows["measure"] == "win"]
    assert set(win["unscored"]) == {4} and win["p_holm"].isna().all()
    del played["book"]["actcrs_expert"]
    empty = system_comparisons(played, {}, "actcrs_expert", "cpu", seed=0)
    assert len(empty) == 0 and list(empty.columns) == list(win.columns)


def test_backbones_are_held_against_their_own_framework(judged):
    rows = backbone_win_rates(judged, "cpu")
    assert rows["profile"].unique().tolist() == ["cpu"]
    assert sorted(zip(rows["system"], rows["against"], rows["win_rate"], rows["paper_WR"], strict=True)) == [
        ("actcrs_base", "actcrs_expert", 0.25, 0.28), ("chatrec_base", "chatrec_expert", 0.25, 0.11)]  # fmt: skip


@pytest.fixture
def table(played, judged):
    """Four tasks: of the small ActCRS all pairs are ties, of the small ChatRec none is scored, of ChatRec one is not."""
    rows = judged["book"]
    rows["actcrs_base", "actcrs_expert"] = [verdict(t, "actcrs_base", "actcrs_expert", 0.5) for t in range(4)]
    for row in [*rows["chatrec_base", "actcrs_expert"], rows["chatrec_expert", "actcrs_expert"][3]]:
        row.scores, row.measures, row.error = {}, None, "ParseError: rubbish"
    return cra_table(played, judged, "cpu")


def test_ties_undecided_and_unscored_pairs_stand_beside_the_win_rate(table):
    rows = table.set_index("system")
    assert rows.loc["actcrs_base", ["win_rate", "ties", "undecided", "unscored_pairs"]].tolist() == [0.5, 4, True, 0]
    assert rows.loc["chatrec_expert", ["ties", "undecided", "unscored_pairs"]].tolist() == [0, False, 1]
    short = short_cra_table(table).set_index("system")
    assert short.loc["chatrec_expert", "WR"].endswith("n=3") and short.loc["chatrec_base", "WR"] == "unscored"
    assert short["unscored"].tolist() == [1, 0, 4, 0] and short["leaks"].tolist() == [0] * 4 and short["s/dialogue"].tolist() == [10] * 4
    assert short.loc["actcrs_base", ["ties", "undecided"]].tolist() == [4, True]


def test_only_the_yardstick_is_drawn_without_a_win_rate(table):
    figure = plot_cras(table, "reliable " * 60)
    drawn = [tuple(offset) for dots in figure.axes[0].collections for offset in getattr(dots, "get_offsets", list)() if len(offset) == 2]
    assert (0.0, 0.5) in drawn and (0.75, 0.5) in drawn  # the small ActCRS, all ties, and the yardstick
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels[:-3]) == ["ActCRS, expert", "ActCRS, small backbone", "ChatRec, expert"]
    assert labels[-3:] == ["5 calls a dialogue", "20 calls a dialogue", "paper"]
    sizes = [handle.get_markersize() for handle in figure.legends[0].legend_handles[-3:]]
    assert sizes[1] ** 2 == pytest.approx(4 * sizes[0] ** 2)  # areas stand for calls
    note = figure.texts[-1].get_text()
    assert "unscored, not drawn: chatrec_base (book)" in note and "no side preferred in any pair: actcrs_base (book)" in note
    assert max(map(len, note.split("\n"))) <= 19 * figure.get_figwidth()


@pytest.mark.parametrize("n", range(1, 12))
def test_intervals_that_end_at_0_or_1_but_for_rounding_are_drawn(judged, n):
    names = ("actcrs_expert", "actcrs_base")
    played = {"book": {name: [dialogue(t, name, success=name == "actcrs_expert") for t in range(n)] for name in names}}
    assert plot_cras(cra_table(played, judged, "cpu"), "") is not None


def test_table_for_reading_and_figure(played, judged, tmp_path):
    table = cra_table(played, judged, "quick")
    short = short_cra_table(table)
    assert short.loc[0, "WR"].startswith("0.25 [") and short.loc[short["system"] == "actcrs_expert", "WR"].item() == ""
    figure = plot_cras(table, "the judge was not checked")
    figure.savefig(tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 5000
    assert isinstance(short, pd.DataFrame)
