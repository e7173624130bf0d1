"""Planted flaws: the pairs themselves, how they are judged, and the table by hand."""

from collections import Counter

import pytest
from scripted_models import FULL, NARROW, FakeEmbedder, confirmation_json, in_turn
from stub_endpoint import Reply

from ecpo_utils.core.errors import EndpointError
from ecpo_utils.core.matching import mentions_title
from ecpo_utils.core.schema import Confirmation
from ecpo_utils.dialogue.confirmation import MAXIMA, Confirmer
from ecpo_utils.evaluate.calibration import FAULTS, fit_weights
from ecpo_utils.evaluate.separation import (
    FlawPair,
    JudgedPair,
    gather_flaw_evidence,
    graded,
    judge_flaw_pairs,
    load_flaw_pairs,
    separation_table,
)

EVERYTHING = [*load_flaw_pairs("dev"), *load_flaw_pairs("test")]


def pair(flaw="no_guidance", number=1):
    return FlawPair(pair_id=f"game-test-{number}", split="test", domain="game", flaw=flaw, target={"title": "Iron Orchard"},
                    history=[{"role": "user", "content": f"Request {number}"}], good="Gladly!", flawed="No.")  # fmt: skip


def confirmation(total, **fields):
    """A confirmation whose r_t is `total`, 0-5."""
    flexibility, coherence = min(2, total), min(2, max(0, total - 2))
    return Confirmation(flexibility=flexibility, coherence=coherence, guidance=total - flexibility - coherence, **fields)


def judged(good, flawed, flaw="no_guidance"):
    values = [Confirmation(error="unreadable") if score is None else confirmation(score) for score in (good, flawed)]
    return JudgedPair(pair=pair(flaw), good=values[0], flawed=values[1])


def test_eighty_pairs_in_two_halves_of_forty():
    assert Counter(entry.split for entry in EVERYTHING) == {"dev": 40, "test": 40}
    assert len({entry.pair_id for entry in EVERYTHING}) == 80


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_flaw_is_in_both_halves_alike(split):
    assert set(Counter(entry.flaw for entry in load_flaw_pairs(split)).values()) == {8}


def test_the_halves_share_no_reply():
    replies = [{text for entry in load_flaw_pairs(split) for text in (entry.good, entry.flawed)} for split in ("dev", "test")]
    assert not {text for text in replies[0] & replies[1] if len(text.split()) > 20}


@pytest.mark.parametrize("entry", EVERYTHING, ids=lambda entry: entry.pair_id)
def test_a_pair_is_a_dialogue_that_waits_for_a_reply_and_two_of_those(entry):
    roles = [message["role"] for message in entry.history]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert entry.good != entry.flawed and entry.good.strip() and entry.flawed.strip()
    assert {"title", "description"} <= set(entry.target)
    assert not any(mentions_title(message["content"], entry.target["title"]) for message in entry.history if message["role"] == "user")


@pytest.mark.parametrize(("limit", "least", "most"), [(5, 1, 1), (7, 1, 2), (12, 2, 3), (40, 8, 8), (1000, 8, 8)])
def test_a_limit_spreads_pairs_over_the_flaws(limit, least, most):
    counts = Counter(entry.flaw for entry in load_flaw_pairs("test", limit))
    assert sum(counts.values()) == min(limit, 40)
    assert len(counts) == 5 and min(counts.values()) >= least and max(counts.values()) <= most
    assert load_flaw_pairs("test", limit) == load_flaw_pairs("test")[:limit]


def test_a_limit_of_zero_is_no_pair():
    assert load_flaw_pairs("test", 0) == []


def test_table_by_hand():
    table = separation_table([
        judged(5, 3), judged(4, 4), judged(2, 3), judged(5, None),
        judged(5, 0, "system_error"), judged(4, 1, "system_error"),
    ]).set_index("flaw")  # fmt: skip
    assert list(table.index) == ["no_guidance", "system_error", "all"]
    assert table.loc["no_guidance", ["n", "scored", "r_t_higher", "r_t_equal", "r_t_lower"]].tolist() == [4, 3, 1, 1, 1]
    assert table.loc["no_guidance", "good_higher"] == pytest.approx(1 / 3)
    assert table.loc["no_guidance", "mean_good"] == pytest.approx(11 / 3)  # 5, 4, 2; the unscored pair is left out
    assert table.loc["no_guidance", "mean_flawed"] == pytest.approx(10 / 3)
    assert table.loc["system_error", ["n", "scored", "good_higher", "mean_good", "mean_flawed"]].tolist() == [2, 2, 1.0, 4.5, 0.5]
    assert table.loc["all", ["n", "scored", "good_higher", "r_t_higher", "r_t_equal", "r_t_lower"]].tolist() == [6, 5, 0.6, 3, 1, 1]
    assert (table["low"] <= table["good_higher"]).all() and (table["good_higher"] <= table["high"]).all()


def test_wilson_interval_by_hand():
    row = separation_table([judged(5, 0)] * 10).set_index("flaw").loc["all"]
    assert (row["low"], row["high"]) == (pytest.approx(10 / (10 + 1.959964**2)), pytest.approx(1.0))


def test_pairs_that_cannot_be_scored_have_no_rate():
    row = separation_table([judged(None, 2), judged(3, None)]).iloc[-1]
    assert (row["n"], row["scored"]) == (2, 0)
    assert row[["good_higher", "low", "high", "mean_good", "mean_flawed"]].isna().all()


def test_graded_score_weighs_probabilities_by_the_maxima():
    assert graded(confirmation(3)) == 3
    assert graded(Confirmation(error="x")) is None
    probabilities = {"flexibility": 0.5, "coherence": 0.25, "guidance": 1.0}
    assert graded(confirmation(3, probabilities=probabilities)) == pytest.approx(2.5)


def test_graded_score_parts_twins_of_equal_r_t():
    values = [confirmation(5, probabilities={"flexibility": p, "coherence": 0.9, "guidance": 0.9}) for p in (0.9, 0.8)]
    row = separation_table([JudgedPair(pair=pair(), good=values[0], flawed=values[1])]).iloc[-1]
    assert (row["good_higher"], row["r_t_equal"]) == (1.0, 1)


def test_both_twins_are_confirmed_with_their_own_reply(study):
    study.scripts["confirmation"] = lambda body: confirmation_json(*(2, 2, 1) if "Gladly!" in str(body["messages"]) else (0, 1, 0))
    pairs = [pair(number=number) for number in range(6)]
    result = study.run(judge_flaw_pairs(Confirmer(study.client("simulator"), FakeEmbedder(), FULL), pairs))
    assert [entry.pair for entry in result] == pairs
    assert {(entry.good.satisfaction, entry.flawed.satisfaction) for entry in result} == {(5, 1)}
    assert study.endpoint.max_in_flight <= study.client("simulator").endpoint.max_concurrency
    prompts = [body["messages"][-1]["content"] for body in study.requests("confirmation")]
    assert len(prompts) == 12 and not any("Iron Orchard" in prompt for prompt in prompts)


def test_an_unreadable_confirmation_leaves_its_pair_unscored(study):
    study.scripts["confirmation"] = in_turn("no json", "none again", "never", confirmation_json())
    result = study.run(judge_flaw_pairs(Confirmer(study.client("simulator"), FakeEmbedder(), FULL), [pair()]))
    assert result[0].good.satisfaction is None and result[0].good.error
    assert separation_table(result).iloc[-1]["scored"] == 0


def test_an_endpoint_that_refuses_stops_the_check(study):
    study.scripts["confirmation"] = lambda body: Reply("no", status=401)
    with pytest.raises(EndpointError):
        study.run(judge_flaw_pairs(Confirmer(study.client("simulator"), FakeEmbedder(), FULL), [pair(number=n) for n in range(4)]))


def test_evidence_is_gathered_without_weights(study):
    confirmer = Confirmer(study.client("simulator"), FakeEmbedder(), NARROW)
    ((entry, good, flawed),) = study.run(gather_flaw_evidence(confirmer, [pair()]))
    assert entry == pair() and set(good) == set(flawed)
    assert {f"asked_{name}" for name in MAXIMA} <= set(good)


def test_fitted_weights_find_the_evidence_that_tells_the_flaws():
    """Evidence `asked_DIMENSION` is high but for flaws of that dimension, `noise` says nothing."""
    gathered = []
    for number, entry in enumerate(load_flaw_pairs("dev")):
        noise = {"noise": number % 3 - 1.0}
        good = {f"asked_{name}": 2.0 + 0.1 * (number % 2) for name in FAULTS} | noise
        flawed = {f"asked_{name}": (-2.0 if entry.flaw in flaws else 2.0) + 0.1 * (number % 2) for name, flaws in FAULTS.items()} | noise
        gathered.append((entry, good, flawed))
    weights = fit_weights(gathered)
    assert set(weights) == set(MAXIMA) == set(FAULTS)
    for name in FAULTS:
        assert set(weights[name]) == {"intercept", "noise", *(f"asked_{each}" for each in FAULTS)}
        assert max(weights[name], key=weights[name].get) == f"asked_{name}"
        assert abs(weights[name]["noise"]) < 0.2
    assert fit_weights(gathered) == weights


def test_faults_name_flaws_of_the_pairs_and_every_flaw_is_a_fault_of_something():
    assert {flaw for flaws in FAULTS.values() for flaw in flaws} == {entry.flaw for entry in EVERYTHING}
