"""`ecpo plan` against figures worked by hand."""

import json
from pathlib import Path

import pytest

from ecpo_utils.cli import main
from ecpo_utils.core.errors import ParamsError
from ecpo_utils.core.params import load_profile
from ecpo_utils.planning import Plan

ROOT = Path(__file__).parents[1]
PROFILES = ("quick", "cpu", "gpu", "paper")


@pytest.fixture
def paper():
    return load_profile(ROOT / "params" / "paper.yaml")


def find(plan, stage, role):
    (found,) = (estimate for estimate in plan.estimates if (estimate.stage, estimate.role) == (stage, role))
    return found


def test_personas_cost_five_calls_each_and_longer_ones_with_more_reviews(paper):
    found = find(Plan(paper), "02 personas", "persona")
    prompt = 250 + 30 * 65
    assert (found.units, found.calls) == (300, 1500)
    assert (found.prompt_tokens, found.completion_tokens) == (1500 * prompt, 1500 * 27)
    assert found.usd == pytest.approx((1500 * prompt * 2.5 + 1500 * 27 * 10) / 1e6)
    assert found.hours == pytest.approx((1500 * 0.7 + 1500 * 27 * 0.015) / 32 / 3600)


def test_dialogues_cost_two_roles_their_calls_per_turn(paper):
    plan = Plan(paper)
    agent, user = (find(plan, "06 SGPT: expert", role) for role in ("expert", "simulator"))
    assert agent.units == user.units == 3000
    assert (agent.calls, user.calls) == (3000 * 5 * 2, 3000 * 5 * 2)


def test_dialogues_that_notebook_03_played_are_not_counted_again(paper):
    few, many = (Plan(paper.model_copy(update={"num_simulation_tasks": number})) for number in (10, 100))
    assert find(few, "04 frameworks", "expert").units - find(many, "04 frameworks", "expert").units == 3 * 90


def test_notebook_08_judges_as_many_rewrites_of_each_domain_as_it_is_told_to(paper):
    assert find(Plan(paper), "08 rewriting", "judge").units == 3 * 100
    whole = Plan(paper.model_copy(update={"num_judge_pairs": 0}))
    assert find(whole, "08 rewriting", "judge").units == pytest.approx(3 * 500 * 5 * 0.6)
    more = Plan(paper.model_copy(update={"num_judge_pairs": 99_999}))
    assert find(more, "08 rewriting", "judge") == find(whole, "08 rewriting", "judge")


def test_no_more_calls_are_in_flight_than_dialogues(paper):
    hours = [find(Plan(paper.model_copy(update={"dialogues_in_flight": n})), "07 confirmation", "cra").hours for n in (64, 16, 999)]
    assert hours[1] == pytest.approx(4 * hours[0]) and hours[2] == hours[0]


def test_sum_is_held_against_the_spending_limit(paper):
    assert "would stop before its end" in "\n".join(Plan(paper.model_copy(update={"max_spend_usd": 1.0})).lines())
    assert "within max_spend_usd 500" in "\n".join(Plan(paper).lines())


def test_released_tasks_need_no_personas_and_folders_need_summaries(paper):
    assert not [e for e in Plan(paper.model_copy(update={"data_source": "release"})).estimates if e.role == "persona"]
    changed = Plan(paper.model_copy(update={"data_source": "folder", "item_summaries": True}))
    assert find(changed, "01 item summaries", "simulator").units == 300 * 25


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_can_be_planned_and_its_rows_add_up(profile, capsys):
    assert main(["plan", "--profile", profile, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["plan", "--profile", profile]) == 0
    text = capsys.readouterr().out
    assert f"{sum(row['prompt_tokens'] for row in rows):,.0f}" in text and len({(r["stage"], r["role"]) for r in rows}) == len(rows)


def test_a_framework_of_which_no_cost_is_known_names_the_file(paper):
    with pytest.raises(ParamsError, match=r"plan_units\.yaml does not say what mycrs costs; add it under 'agents'"):
        Plan(paper.model_copy(update={"frameworks": ["actcrs", "mycrs"]}))


def test_the_judges_validation_and_the_experts_dialogues_are_planned(paper):
    assert find(Plan(paper), "05 judge", "judge").units == 3 * 100 * 13
    more = Plan(paper.model_copy(update={"num_test_tasks": 150, "cra_domains": ["game"]}))  # notebook 04 plays all of game
    assert find(more, "10 main results", "expert").units == 2 * 50


def test_unknown_profile_is_one_line(capsys):
    assert main(["plan", "--profile", "nosuch"]) == 1
    assert "no profile 'nosuch'" in capsys.readouterr().err
