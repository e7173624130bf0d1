"""Tables and figures of the tuned agents from hand-made dialogues, rewrites and verdicts."""

import math

import pandas as pd
import pytest

from ecpo_utils.core.schema import Action, Confirmation, Item, Persona, Rewrite, Step, Trajectory, Turn, Verdict
from ecpo_utils.dialogue.agents.base import SYSTEM_ERROR
from ecpo_utils.evaluate.cases import Case, case_table, clearest_case
from ecpo_utils.evaluate.cra_table import dimension_table
from ecpo_utils.evaluate.metrics import reply_words, valid_share
from ecpo_utils.evaluate.tuning_figures import plot_curves, plot_dimensions, plot_faults, plot_rewrites
from ecpo_utils.evaluate.tuning_tables import (
    curve_table,
    lowest_scored,
    rewrite_table,
    rewrite_verdicts,
    short_tuned_table,
    tuned_table,
)
from ecpo_utils.evaluate.turns import fault_table, faults_of


def scored(flexibility=2, coherence=2, guidance=1):
    return Confirmation(flexibility=flexibility, coherence=coherence, guidance=guidance)


def turn(index, reply="Which one?", confirmation=None, kind="ask", attempts=1):
    step = Step(messages=[], output="x", action=Action(type=kind, argument="x"), attempts=attempts)
    return Turn(
        index=index, policy="ask_recommendation", user_message="Hi.", reply=reply, steps=[step], confirmation=confirmation or scored()
    )


def dialogue(task, *turns, system="actcrs_sgpt", success=False):
    return Trajectory(
        task_id=f"book/u{task}/i", domain="book", system=system, config="c", target=Item(item_id="1", title="Emma"), turns=list(turns),
        persona=Persona(activities="a", language="l"), status="complete", recommended_at=0 if success else None,
    )  # fmt: skip


def verdict(task, first, second, value):
    names = ("flexibility", "coherence", "guidance", "final")
    scores = dict.fromkeys(names, (value > 0.5) - (value < 0.5))
    measures = dict.fromkeys(names, (value, 0.5))
    return Verdict(task_id=f"book/u{task}/i", first=first, second=second, shown_first="apart", scores=scores, measures=measures)


def rewrite(task, original="Ask[One two?]", rewritten="Ask[One three?]", dropped=None, kept_words=0.5, score_after=None):
    texts = {"original": original, "rewritten": rewritten, "reason": "r", "score_after": score_after}
    return Rewrite(task_id=f"book/u{task}/i", turn=0, prompt=[], score=2, dropped=dropped, kept_words=kept_words, **texts)


def test_an_action_counts_as_valid_if_it_was_read_at_the_first_attempt():
    rows = [dialogue(0, turn(0), turn(1, attempts=2)), dialogue(1, turn(0, kind="invalid")), dialogue(2)]
    assert [valid_share(row) for row in rows] == [0.5, 0.0, None]


def test_reply_words_is_a_mean_over_the_replies_that_there_are():
    assert reply_words(dialogue(0, turn(0, "One two."), turn(1, "One two three four."), turn(2, None))) == 3.0
    assert reply_words(dialogue(1)) is None


def test_faults_of_a_reply_by_hand():
    first = turn(0)
    assert faults_of(turn(1, "Another?"), [first]) == []
    assert faults_of(turn(1, "which ONE", scored(guidance=0)), [first]) == ["repeats itself", "no next step"]
    assert faults_of(turn(1, SYSTEM_ERROR, scored(0, 1, 1)), [first]) == ["system error", "misses the message", "out of context"]


def test_fault_table_counts_scored_replies_only():
    rows = [dialogue(0, turn(0), turn(1, "Other?", scored(guidance=0)), turn(2, "More?", Confirmation(error="unscored")))]
    table = fault_table({"book": {"actcrs_sgpt": rows}}, "cpu").set_index("fault")
    assert table.loc["no next step", "share"] == 0.5 and table.loc["no next step", "mean_satisfaction"] == 4.0
    assert table.loc["none", "share"] == 0.5 and table["share_n"].unique().tolist() == [2]
    assert len(plot_faults(table.reset_index(), "cpu").axes) == 1
    none_scored = fault_table({"book": {"actcrs_sgpt": [dialogue(0, turn(0, "A", Confirmation(error="unscored")))]}}, "cpu")
    assert none_scored["share"].isna().all() and len(plot_faults(none_scored, "cpu").axes) == 1


def test_the_lowest_scored_dialogue_is_shown():
    low, high, none = dialogue(0, turn(0, confirmation=scored(0, 0, 0))), dialogue(1, turn(0)), dialogue(2)
    assert lowest_scored([none, high, low]) is low


def test_rewrite_table_counts_pairs_and_drops_by_reason():
    records = [rewrite(0), rewrite(1, rewritten="Response[One.]"), rewrite(2, dropped="unchanged"), rewrite(3, dropped="unchanged")]
    row = rewrite_table({"book": records}, "cpu").iloc[0]
    assert (row["replies"], row["pairs"], row["dropped: unchanged"], row["kept_words"], row["same_action"]) == (4, 2, 2, 0.5, 0.5)
    assert row["words_before"] == 2.0 and row["words_after"] == 1.5


def test_table5_has_our_shares_above_the_papers():
    verdicts = [verdict(task, "rewritten", "original", value) for task, value in enumerate((0.9, 0.9, 0.5, 0.1))]
    table = rewrite_verdicts({"book": verdicts}, {"book": [rewrite(task) for task in range(4)]}, "cpu")
    ours = table.iloc[0]
    assert ours["evaluator"] == "judge of this run"
    verified = {"book": [rewrite(0, score_after=5), rewrite(1, score_after=1, dropped="no better score")]}
    chosen = rewrite_verdicts({"book": verdicts[:1]}, verified, "cpu").iloc[0]["evaluator"]
    assert chosen == "judge of this run, of the 1 verified among 2 rewrites"
    assert (ours["win"], ours["tie"], ours["lose"], ours["n"]) == (0.5, 0.25, 0.25, 4)
    assert table[table["evaluator"] == "gpt4o"]["win"].item() == 0.64
    assert len(plot_rewrites(table).axes) == 1


def test_long_labels_of_judged_rewrites_leave_the_bars_most_of_the_width():
    records = [rewrite(task, score_after=5) for task in range(120)]
    verdicts = [verdict(task, "rewritten", "original", 0.9) for task in range(30)]
    figure = plot_rewrites(rewrite_verdicts({"book": verdicts}, {"book": records}, "cpu"))
    figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 0.6


def test_curves_keep_step_quantity_and_value():
    history = [{"step": 0, "eval_loss": 2.0}, {"step": 1, "loss": 1.5, "learning_rate": 0.1}, {"step": 2, "loss": 1.0},
               {"step": 2, "epoch": 0.4, "eval_loss": 1.7}]  # fmt: skip (a training that was resumed is evaluated at once)
    table = curve_table({"sgpt book": history})
    assert table.to_dict("list") == {
        "adapter": ["sgpt book"] * 3, "step": [0, 1, 2], "quantity": ["eval_loss", "loss", "loss"], "value": [2.0, 1.5, 1.0]}  # fmt: skip
    assert len(plot_curves(table, "cpu").axes) == 1 and curve_table({}).empty


def test_win_rates_per_dimension_stand_beside_figure_5():
    judged = {"book": {("actcrs_ecpo", "actcrs_expert"): [verdict(t, "actcrs_ecpo", "actcrs_expert", v) for t, v in enumerate((0.9, 0.1))],
                       ("actcrs_ecpo", "actcrs_sgpt"): [verdict(0, "actcrs_ecpo", "actcrs_sgpt", 0.9)]}}  # fmt: skip
    table = dimension_table(judged, "cpu")
    row = table[(table["against"] == "actcrs_expert") & (table["dimension"] == "flexibility")].iloc[0]
    assert (row["win_rate"], row["wins"], row["losses"], row["paper_WR"]) == (0.5, 1, 1, 0.69)
    assert math.isnan(table[table["against"] == "actcrs_sgpt"]["paper_WR"].astype(float).iloc[0])
    assert len(plot_dimensions(table, "note").axes) == 1


def always_first(task, first, second):
    """The verdicts of a judge in words that prefers the dialogue that it reads first, in both orders."""
    names = ("flexibility", "coherence", "guidance", "final")
    return [
        Verdict(task_id=f"book/u{task}/i", first=first, second=second, shown_first=shown, scores=dict.fromkeys(names, sign))
        for shown, sign in (("first", 1), ("second", -1))
    ]


def test_a_judge_that_goes_by_the_order_is_told_from_an_even_one():
    judged = [row for task in range(3) for row in always_first(task, "actcrs_ecpo", "actcrs_expert")]
    table = dimension_table({"book": {("actcrs_ecpo", "actcrs_expert"): judged}}, "cpu")
    assert table["win_rate"].tolist() == [0.5] * 4 and table["undecided"].all()
    assert table["flips"].tolist() == [1.0] * 4 and table["first_shown"].tolist() == [1.0] * 4
    assert "no side preferred in any pair: actcrs_ecpo (book)" in plot_dimensions(table, "note").texts[-1].get_text()
    rewritten = rewrite_verdicts({"book": judged}, {"book": [rewrite(task) for task in range(3)]}, "cpu")
    assert rewritten.iloc[0][["win_rate", "undecided", "flips", "first_shown"]].tolist() == [0.5, True, 1.0, 1.0]
    assert "no side preferred in any pair: book" in plot_rewrites(rewritten).texts[-1].get_text()


def test_main_table_has_valid_actions_and_the_papers_lower_half():
    played = {"book": {"actcrs_sgpt": [dialogue(t, turn(0), success=t == 0) for t in range(4)]}}
    judged = {"book": {("actcrs_sgpt", "actcrs_expert"): [verdict(t, "actcrs_sgpt", "actcrs_expert", 0.9) for t in range(4)]}}
    table = tuned_table(played, judged, "cpu")
    row = table.iloc[0]
    assert (row["success_rate"], row["paper_SR"], row["win_rate"], row["valid_actions"], row["reply_words"]) == (0.25, 0.54, 1.0, 1.0, 2.0)
    short = short_tuned_table(table).iloc[0]
    assert "0.25 [" in short["SR"] and short["WR"].startswith("1.00 [") and short["unscored"] == 0
    judged["book"]["actcrs_sgpt", "actcrs_expert"][0].error = "no answer"
    judged["book"]["actcrs_sgpt", "actcrs_expert"][0].scores = {}
    short = short_tuned_table(tuned_table(played, judged, "cpu")).iloc[0]
    assert short["WR"].endswith("n=3") and short["unscored"] == 1


def test_cases_show_where_dialogues_part_and_who_wins():
    before = dialogue(0, turn(0), turn(1, "Same?"))
    after = dialogue(0, turn(0), turn(1, "New?", scored(guidance=0)), system="actcrs_ecpo", success=True)
    cases = [Case(before, after, [verdict(0, "actcrs_ecpo", "actcrs_sgpt", 0.8)]), Case(before, before)]
    table = case_table(cases)
    assert table["first_difference"].tolist()[0] == 2 and table["judge"].tolist()[0] == pytest.approx(0.3)
    assert table["confirmation_gain"].tolist() == [-0.5, 0.0] and table["success_after"].tolist() == [True, False]
    leaked = case_table([Case(before, after.model_copy(update={"status": "leak"}))])
    assert leaked["success_after"].tolist() == [False]
    assert math.isnan(table["judge"].tolist()[1])


def test_dialogues_part_where_one_of_them_goes_on():
    short, long = dialogue(0, turn(0)), dialogue(0, turn(0), turn(1, "More?"))
    assert Case(short, long).first_difference == Case(long, short).first_difference == 2
    assert Case(short, dialogue(0, turn(0), turn(1, None))).first_difference is None  # a closing message has no reply


def test_the_clearest_gain_is_a_gain_and_the_clearest_loss_a_loss():
    def table(*rows):
        return pd.DataFrame(rows, columns=["judge", "confirmation_gain"], dtype=float)

    found = table((0.2, 1), (0.5, None), (0.5, 2), (-0.1, None), (-0.1, 1), (-0.1, -1), (None, 3), (0, 0))
    assert (clearest_case(found, gain=True), clearest_case(found, gain=False)) == (2, 5)
    assert (clearest_case(found[:3], gain=True), clearest_case(found[:3], gain=False)) == (2, None)
    assert clearest_case(table((0, 5), (None, 1)), gain=True) is None
    even = Case(dialogue(0), dialogue(0), [verdict(0, "actcrs_ecpo", "actcrs_sgpt", 0.5 + 1e-12)])
    assert even.judgement == 0
