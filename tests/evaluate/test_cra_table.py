"""Table 1 from hand-made dialogues and verdicts, its comparisons and its figure."""

import math

import pandas as pd
import pytest

from ecpo_utils.core.schema import Action, Item, Persona, Step, Trajectory, Turn, Usage, Verdict
from ecpo_utils.evaluate.cra_table import agent_calls, backbone_win_rates, cra_table, num_queries, num_replies, success_comparisons
from ecpo_utils.evaluate.figures import plot_cras
from ecpo_utils.evaluate.tables import short_cra_table
from ecpo_utils.judging import framework_comparisons


def step(purpose="action", kind=None):
    return Step(purpose=purpose, messages=[], output="x", action=Action(type=kind, argument="x") if kind else None)


def dialogue(task, system, *, success=False, replies=2, calls=5, cached=0, status="complete", steps=()):
    turns = [Turn(index=i, policy="ask_recommendation", user_message="Hi.", reply="Read it.", steps=list(steps)) for i in range(replies)]
    role = "expert" if system.endswith("expert") else "cra"
    usage = {role: Usage(calls=calls, cached=cached, seconds=4.0), "simulator": Usage(calls=7, seconds=6.0)}
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


def test_seconds_leave_out_dialogues_with_cached_calls(judged):
    rows = [dialogue(0, "actcrs_expert", cached=1), dialogue(1, "actcrs_expert")]
    table = cra_table({"book": {"actcrs_expert": rows}}, judged, "cpu")
    assert table.loc[0, "seconds_per_dialogue"] == 10.0 and table.loc[0, "seconds_per_dialogue_n"] == 1


def test_a_failed_dialogue_is_no_success_and_counts(judged):
    rows = [dialogue(0, "actcrs_expert", success=True), dialogue(1, "actcrs_expert", success=True, status="failed", replies=0)]
    table = cra_table({"book": {"actcrs_expert": rows}}, judged, "cpu")
    assert table.loc[0, ["n", "failed", "success_rate"]].tolist() == [2, 1, 0.5]


def test_success_is_compared_on_the_same_tasks(played):
    rows = success_comparisons(played, "actcrs_expert", seed=0).set_index("system")
    assert rows.loc["chatrec_expert", "difference"] == 0 and rows.loc["chatrec_base", "difference"] == -0.75
    assert rows.loc["chatrec_base", "p_value"] == pytest.approx(0.25)  # three tasks lost, none won: 2 / 2^3
    assert set(rows["domain"]) == {"book"}


def test_backbones_are_held_against_their_own_framework(judged):
    rows = backbone_win_rates(judged)
    assert sorted(zip(rows["system"], rows["against"], rows["win_rate"], rows["paper_WR"], strict=True)) == [
        ("actcrs_base", "actcrs_expert", 0.25, 0.28), ("chatrec_base", "chatrec_expert", 0.25, 0.11)]  # fmt: skip


def test_table_for_reading_and_figure(played, judged, tmp_path):
    table = cra_table(played, judged, "quick")
    short = short_cra_table(table)
    assert short.loc[0, "WR"].startswith("0.25 [") and short.loc[short["system"] == "actcrs_expert", "WR"].item() == ""
    figure = plot_cras(table, "the judge was not checked")
    figure.savefig(tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 5000
    assert isinstance(short, pd.DataFrame)
