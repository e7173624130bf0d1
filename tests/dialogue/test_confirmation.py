"""Expectation confirmation in both modes: scores, reasons, and what is done with what cannot be scored."""

import json
import math

import pytest
from scripted_models import FULL, ITEMS, NARROW, FakeEmbedder, choice, confirmation_json, in_turn
from stub_endpoint import Reply

from ecpo_utils.core.errors import EndpointError
from ecpo_utils.core.schema import Confirmation
from ecpo_utils.dialogue import confirmation as module
from ecpo_utils.dialogue.confirmation import MAXIMA, Confirmer, faultless_probability, load_weights, reply_similarities, score_probability
from ecpo_utils.llm.client import Meter

HISTORY = [{"role": "user", "content": "A port town, please."}, {"role": "assistant", "content": "Do you play alone?"}]


@pytest.fixture
def confirm(study):
    """Confirms the last reply of a history in a mode."""

    def confirm(mode=FULL, meter=None):
        return study.run(Confirmer(study.client("simulator"), FakeEmbedder(), mode).confirm(ITEMS[0], "game", HISTORY, meter=meter))

    return confirm


@pytest.fixture
def even_weights(monkeypatch):
    """Per dimension the log-odds of its own question alone."""
    weights = {name: {"intercept": 0.0, f"asked_{name}": 1.0} for name in MAXIMA}
    monkeypatch.setattr(module, "load_weights", lambda: {name: _Zeros(values) for name, values in weights.items()})


class _Zeros(dict):
    def __missing__(self, key):
        return 0.0


# full: one JSON answer


@pytest.mark.parametrize(("scores", "total"), [((2, 2, 1), 5), ((0, 0, 0), 0), ((1, 2, 0), 3), ((2, 1, 1), 4)])
def test_scores_are_kept_and_sum_to_the_satisfaction(study, confirm, scores, total):
    study.scripts["confirmation"] = in_turn(confirmation_json(*scores))
    result = confirm()
    assert (result.flexibility, result.coherence, result.guidance) == scores
    assert (result.satisfaction, result.error, result.probabilities) == (total, None, None)


def test_reasons_stand_where_points_were_deducted(study, confirm):
    study.scripts["confirmation"] = in_turn(confirmation_json(1, 2, 0, reason="fell short."))
    result = confirm()
    assert result.reasons == {"flexibility": "flexibility fell short.", "coherence": "", "guidance": "guidance fell short."}
    assert result.reason == "Flexibility: flexibility fell short. Guidance: guidance fell short."


def test_one_call_sees_wishes_and_the_whole_dialogue(study, confirm):
    meter = Meter()
    confirm(meter=meter)
    (body,) = study.requests("confirmation")
    prompt = body["messages"][-1]["content"]
    parts = "Lay out a foggy port town, brick by brick.", "video game", "A port town, please.", "Do you play alone?"
    assert all(part in prompt for part in parts) and ITEMS[0].title not in prompt
    assert meter.by_role["simulator"].calls == 1
    schema = body["response_format"]["json_schema"]["schema"]["properties"]
    assert list(schema) == [key for name in MAXIMA for key in (f"{name}_reason", name)]  # the reason before its score


@pytest.mark.parametrize("answer", ["Great reply, 5 of 5!", "", "{}", confirmation_json(3, 2, 1), confirmation_json(2, 2, -1),
                                    confirmation_json().replace("2", '"two"'), '{"flexibility": 2}', "[2, 2, 1]"])  # fmt: skip
def test_an_unreadable_answer_is_unscored_with_its_error_and_never_zero(study, confirm, answer):
    study.scripts["confirmation"] = in_turn(answer)
    result = confirm()
    assert (result.flexibility, result.coherence, result.guidance, result.satisfaction) == (None, None, None, None)
    assert result.error and (answer[:20] in result.error) and "calls.jsonl" in result.error
    assert len(study.requests("confirmation")) == 3  # sent back twice


def test_an_answer_that_is_mended_is_scored(study, confirm):
    study.scripts["confirmation"] = in_turn("Five!", "```json\n" + confirmation_json(2, 1, 1) + "\n```")
    assert (confirm().satisfaction, confirm().error) == (4, None)


@pytest.mark.parametrize("mode", [FULL, NARROW])
def test_an_endpoint_that_refuses_is_an_error_of_the_dialogue_not_a_score(study, confirm, mode):
    for kind in ("confirmation", *(f"asked_{name}" for name in MAXIMA)):
        study.scripts[kind] = lambda body: Reply("no", status=400)
    with pytest.raises(EndpointError):
        confirm(mode)


# narrow: probabilities


@pytest.mark.parametrize(
    ("probability", "two_points", "one_point"),
    [(0.0, 0, 0), (0.3333, 0, 0), (1 / 3, 1, 0), (0.4999, 1, 0), (0.5, 1, 1), (0.6666, 1, 1), (2 / 3, 2, 1), (1.0, 2, 1)],
)
def test_thresholds(probability, two_points, one_point):
    assert score_probability("flexibility", probability) == score_probability("coherence", probability) == two_points
    assert score_probability("guidance", probability) == one_point


def ask(study, **yes):
    """The probability of "yes" per question."""
    for name, value in yes.items():
        study.scripts[f"asked_{name}"] = lambda body, value=value: choice(yes=value, no=1 - value)


def test_probabilities_scores_and_reasons_by_hand(study, confirm, even_weights):
    ask(study, flexibility=0.5, coherence=0.9, guidance=0.2)
    result = confirm(NARROW)
    assert result.probabilities == pytest.approx({"flexibility": 0.5, "coherence": 0.9, "guidance": 0.2}, abs=1e-4)
    assert (result.flexibility, result.coherence, result.guidance, result.satisfaction) == (1, 2, 0, 3)
    assert result.evidence["asked_coherence"] == pytest.approx(math.log(9), abs=1e-3)
    assert result.evidence["asked_flexibility"] == pytest.approx(0, abs=1e-3)
    assert [name for name in MAXIMA if result.reasons[name]] == ["flexibility", "guidance"]
    assert HISTORY[0]["content"] in result.reasons["flexibility"] and result.error is None
    assert study.requests("reason_flexibility") == [] and len(study.requests("reason_guidance")) == 1
    assert study.requests("reason_coherence") == []


def test_a_faultless_reply_asks_for_no_reason(study, confirm, even_weights):
    ask(study, flexibility=0.95, coherence=0.95, guidance=0.95)
    result = confirm(NARROW)
    assert result.satisfaction == 5 and result.reason == "" and len(study.endpoint.chats) == 3


def test_an_answer_that_is_neither_yes_nor_no_leaves_the_reply_unscored(study, confirm, even_weights):
    for name in MAXIMA:
        study.scripts[f"asked_{name}"] = lambda body: choice(maybe=1.0)
    result = confirm(NARROW)
    assert (result.satisfaction, result.probabilities) == (None, None)
    assert "none of yes, no" in result.error


def test_certain_answers_do_not_overflow(study, confirm):
    for value in (1.0, 0.0):
        ask(study, **dict.fromkeys(MAXIMA, max(value, 1e-30)))
        study.cache._db.execute("DELETE FROM responses")
        result = confirm(NARROW)
        assert all(0 <= probability <= 1 for probability in result.probabilities.values())
        assert result.satisfaction is not None


def test_without_log_probabilities_the_endpoint_is_refused(study, confirm):
    for name in MAXIMA:
        study.scripts[f"asked_{name}"] = lambda body: "yes"
    with pytest.raises(EndpointError, match="returns no log-probabilities; set simulator_mode to") as error:
        confirm(NARROW)
    assert error.value.fatal


def test_a_repeated_reply_lies_near_an_earlier_one():
    history = [*HISTORY, {"role": "user", "content": "Alone."}, {"role": "assistant", "content": "Do you play alone?"}]
    cosines = reply_similarities(FakeEmbedder(), "Lay out a foggy port town.", history)
    assert cosines["near_earlier_reply"] == pytest.approx(1.0, abs=1e-5)
    first = reply_similarities(FakeEmbedder(), "Lay out a foggy port town.", HISTORY)
    assert first["near_earlier_reply"] == 0.0
    assert all(-1 <= value <= 1.0001 for value in (*cosines.values(), *first.values()))


def test_similarities_compare_with_wishes_and_with_the_last_request():
    history = [{"role": "user", "content": "red apples"}, {"role": "assistant", "content": "red apples"}]
    assert reply_similarities(FakeEmbedder(), "red apples", history)["near_wishes"] == pytest.approx(1.0, abs=1e-5)
    other = reply_similarities(FakeEmbedder(), "foggy towns", history)
    assert other["near_request"] == pytest.approx(1.0, abs=1e-5) and other["near_wishes"] < 0.1


# the weights


def test_weights_file_has_every_evidence_name_for_every_dimension(study):
    evidence = study.run(Confirmer(study.client("simulator"), FakeEmbedder(), NARROW).gather(ITEMS[0], "game", HISTORY))
    assert set(load_weights()) == set(MAXIMA)
    for name in MAXIMA:
        assert set(load_weights()[name]) == {"intercept", *evidence}
        assert all(math.isfinite(value) for value in load_weights()[name].values())


def test_weights_file_tells_what_it_was_fitted_on():
    saved = json.loads(module.WEIGHTS.read_text())
    assert saved["simulator"] and saved["embedder"] and "dev" in saved["fitted_on"]


@pytest.mark.parametrize("name", MAXIMA)
def test_more_yes_to_its_own_question_never_lowers_a_dimension(name):
    evidence = dict.fromkeys(load_weights()[name], 0.0)
    del evidence["intercept"]
    low, high = (faultless_probability(name, {**evidence, f"asked_{name}": value}) for value in (-3.0, 3.0))
    assert low < high


# the record


def test_a_confirmation_with_a_missing_sub_score_has_no_satisfaction():
    assert Confirmation(flexibility=2, coherence=2).satisfaction is None
    assert Confirmation(flexibility=0, coherence=0, guidance=0).satisfaction == 0
