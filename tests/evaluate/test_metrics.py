from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from ecpo_utils.core.schema import Action, Confirmation, Item, Persona, Step, Trajectory, Turn, Usage
from ecpo_utils.data.release import LogDialogue, load_release_log
from ecpo_utils.dialogue.agents.base import SYSTEM_ERROR
from ecpo_utils.evaluate.metrics import metrics_json, summarize, summarize_log

SHARED = Path(__file__).resolve().parents[3] / "shared"
LOG_FOLDER = SHARED / "ecpo_release" / "test_log" / "book"
KEYS = ["n", "n_failed", "success_rate", "recall", "mean_turns", "mean_confirmation"]
FULL, NONE = (2, 2, 1), (None, None, None)


def turn(index, scores=FULL, reply="Read Emma.", action="response"):
    """A turn with flexibility, coherence, guidance; `reply` None for a closing message."""
    confirmation = None if reply is None else Confirmation(**dict(zip(("flexibility", "coherence", "guidance"), scores, strict=True)))
    steps = [] if reply is None else [Step(messages=[], output="", action=Action(type=action, argument="x"))]
    return Turn(index=index, policy="ask_recommendation", user_message="Hi.", reply=reply, steps=steps, confirmation=confirmation)


def trajectory(status="complete", turns=(), **fields):
    return Trajectory(
        task_id="t", domain="book", system="s", config="c", target=Item(item_id="1", title="Emma"),
        persona=Persona(activities="a", language="l"), status=status, turns=list(turns), **fields,
    )  # fmt: skip


def log_dialogue(**fields):
    base = {"row": 0, "item": 0, "correct": True, "user_tokens": 10, "system_tokens": 20, "rounds": 2}
    talk = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    return LogDialogue(**{**base, "messages": talk, **fields})


def test_failed_dialogue_counts_as_not_successful():
    done = trajectory(turns=[turn(0)], recommended_at=0, retrieved_at=0)
    failed = trajectory("failed", [turn(0)], error="timeout", recommended_at=0, retrieved_at=0)
    metrics = summarize([done, failed])
    assert (metrics.n, metrics.n_failed) == (2, 1)
    assert (metrics.success_rate.value, metrics.success_rate.n, metrics.recall.value) == (0.5, 2, 0.5)


def test_leaked_dialogue_is_not_successful():
    metrics = summarize([trajectory("leak", [turn(0)], recommended_at=0, retrieved_at=0), trajectory(turns=[turn(0)])])
    assert (metrics.success_rate.value, metrics.recall.value, metrics.n_failed) == (0.0, 0.0, 0)


def test_success_and_recall_at_the_first_turn_count():
    metrics = summarize([trajectory(turns=[turn(0)], recommended_at=0), trajectory("ended_by_user", [turn(0)], retrieved_at=0)])
    assert (metrics.success_rate.value, metrics.recall.value) == (0.5, 0.5)


def test_mean_turns_leaves_failed_dialogues_out_and_counts_the_closing_message():
    dialogues = [trajectory(turns=[turn(0), turn(1), turn(2, reply=None)]), trajectory(turns=[turn(0)]), trajectory("failed")]
    metrics = summarize(dialogues)
    assert (metrics.mean_turns.value, metrics.mean_turns.n) == (2.0, 2)


def test_mean_confirmation_is_a_mean_over_dialogues_not_over_turns():
    long = trajectory(turns=[turn(0, (0, 1, 0)), turn(1, (0, 1, 0)), turn(2, (0, 1, 0))])
    assert summarize([long, trajectory(turns=[turn(0)])]).mean_confirmation.value == 3.0  # (1 + 5) / 2


def test_mean_confirmation_skips_unscored_turns():
    half_scored = trajectory(turns=[turn(0, (2, 1, 1)), turn(1, (2, None, 1)), turn(2, reply=None)])
    metrics = summarize([half_scored, trajectory(turns=[turn(0, (2, 0, 0))]), trajectory(turns=[turn(0, NONE)])])
    assert (metrics.mean_confirmation.value, metrics.mean_confirmation.n, metrics.mean_confirmation.num_unscored) == (3.0, 2, 1)
    assert (metrics.num_replies, metrics.num_unscored_replies) == (4, 2)


def test_sub_scores_are_averaged_where_they_exist():
    sub = summarize([trajectory(turns=[turn(0, (2, 1, 1)), turn(1, (1, None, 1))]), trajectory(turns=[turn(0, (0, 2, 0))])]).sub_scores
    assert {name: rate.value for name, rate in sub.items()} == {"flexibility": 0.75, "coherence": 1.5, "guidance": 0.5}


def test_calls_and_tokens_are_per_dialogue_and_an_absent_role_is_zero():
    first = trajectory(turns=[turn(0)], usage={"cra": Usage(calls=3, cached=1, prompt_tokens=90, completion_tokens=10)})
    metrics = summarize([first, trajectory(turns=[turn(0)], usage={"simulator": Usage(calls=2, prompt_tokens=8)})])
    assert {role: rate.value for role, rate in metrics.calls.items()} == {"cra": 1.5, "simulator": 1.0}
    assert {role: rate.value for role, rate in metrics.tokens.items()} == {"cra": 50.0, "simulator": 4.0}
    total = metrics.total_tokens
    assert (total.value, total.low, total.high, total.n) == (54.0, 8.0, 100.0, 2)


def test_system_error_share_counts_replies_of_unusable_actions():
    broken = trajectory(turns=[turn(0), turn(1, action="invalid"), turn(2, reply=SYSTEM_ERROR, action="search"), turn(3)])
    assert summarize([broken, trajectory(turns=[turn(0)])]).system_error_share.value == 0.25


def test_failed_and_leaked_dialogues_are_shares_too():
    metrics = summarize([trajectory("leak"), trajectory("failed"), trajectory("failed"), trajectory("complete", [turn(0)])])
    assert (metrics.failed_share.value, metrics.leak_share.value, metrics.leak_share.n) == (0.5, 0.25, 4)
    assert metrics.leak_share.low < 0.25 < metrics.leak_share.high
    log = summarize_log([log_dialogue()])
    assert (log.failed_share, log.leak_share, log.total_tokens.value) == (None, None, 30.0)


def test_every_status_is_counted():
    metrics = summarize([trajectory("leak"), trajectory("failed"), trajectory("failed"), trajectory("complete", [turn(0)])])
    assert metrics.statuses == {"complete": 1, "ended_by_user": 0, "leak": 1, "failed": 2}


def test_no_dialogues_give_nulls():
    assert metrics_json(summarize([])) == dict(zip(KEYS, [0, 0, None, None, None, None], strict=True))
    assert metrics_json(summarize_log([])) == dict(zip(KEYS, [0, 0, None, None, None, None], strict=True))


def test_json_has_six_plain_numbers():
    dialogues = [trajectory(turns=[turn(0), turn(1, (1, 1, 1))], recommended_at=1, retrieved_at=0), trajectory("failed", error="x")]
    result = metrics_json(summarize(dialogues))
    assert list(result.items()) == [
        ("n", 2), ("n_failed", 1), ("success_rate", 0.5), ("recall", 0.5), ("mean_turns", 2.0), ("mean_confirmation", 4.0),
    ]  # fmt: skip
    assert all(type(value) in (int, float) for value in result.values())


def test_log_confirmation_counts_a_dialogue_of_zeros_and_skips_unlogged_ones():
    rated = log_dialogue(expression_rewards=[4, 0], avg_expression_reward=4.0, recall=True)
    zeros = log_dialogue(expression_rewards=[0], avg_expression_reward=0.0, recall=False, correct=False)
    metrics = summarize_log([rated, zeros, log_dialogue()])
    assert (metrics.mean_confirmation.value, metrics.mean_confirmation.n, metrics.mean_confirmation.num_unscored) == (2.0, 2, 1)
    assert (metrics.recall.value, metrics.recall.n, metrics.recall.num_unscored) == (0.5, 2, 1)
    assert metrics.success_rate.value == pytest.approx(2 / 3)


def test_log_without_recall_or_expression_gives_none():
    metrics = summarize_log([log_dialogue()])
    assert metrics.recall is None
    assert metrics_json(metrics) == dict(zip(KEYS, [1, 0, 1.0, None, 2.0, None], strict=True))


def test_metrics_convert_to_a_plain_dict():
    assert asdict(summarize_log([log_dialogue()]))["tokens"]["cra"]["value"] == 20.0


@pytest.mark.skipif(not LOG_FOLDER.is_dir(), reason=f"the published logs are not at {LOG_FOLDER}")
@pytest.mark.parametrize("name", ["actcrs_ecpo", "actcrs_gpt", "actcrs_llama", "chatrec_gpt", "macrs_llama", "react_gpt"])
def test_released_logs_give_the_published_metrics(name):
    expected = yaml.safe_load((SHARED / "paper" / "results.yaml").read_text())["released_logs"][name]
    n, metrics = expected["n"], summarize_log(load_release_log(LOG_FOLDER / f"{name}.log"))
    result = metrics_json(metrics)
    assert (result["n"], result["n_failed"], result["success_rate"]) == (n, 0, expected["correct"] / n)
    assert result["recall"] == (None if expected["recall"] is None else expected["recall"] / n)
    assert result["mean_turns"] == pytest.approx(expected["rounds"], abs=0.00501)
    confirmation = expected["expression"]
    assert result["mean_confirmation"] == (None if confirmation is None else pytest.approx(confirmation, abs=0.00501))
    assert metrics.statuses["ended_by_user"] == expected["ended_by_user"]
    assert metrics.tokens["simulator"].value == pytest.approx(expected["user_tokens"], abs=0.00501)
    assert metrics.num_replies == expected["agent_messages"]
