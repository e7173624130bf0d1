"""Win rates by hand: debiasing, ties, what stays unscored, intervals, and what is no pair of verdicts."""

import json
import math
import random

import pytest

from ecpo_utils.core.errors import SchemaError
from ecpo_utils.core.schema import Verdict
from ecpo_utils.evaluate.statistics import Rate, proportion
from ecpo_utils.evaluate.win_rates import DIMENSIONS, group_pairs, outcome, preference, win_rate, win_rate_json, win_shares

Z = 1.959963984540054  # 97.5% quantile of the normal distribution


def verdict(value, shown_first="first", task="t1", **fields):
    """In every dimension a worded score (int), a probability that the first system is better (float), or unscored (None)."""
    row = Verdict(task_id=task, first="ecpo", second="expert", shown_first=shown_first, **fields)
    if value is None:
        return row.model_copy(update={"error": "ParseError: judge: none of 1, 2"})
    if isinstance(value, float):
        row.probabilities = dict.fromkeys(DIMENSIONS, value)
        value = (value > 0.5) - (value < 0.5)
    row.scores = dict.fromkeys(DIMENSIONS, value)
    return row


def pair(one, two, task="t1", **fields):
    """Verdicts with the first system's dialogue shown first and second."""
    return verdict(one, "first", task, **fields), verdict(two, "second", task, **fields)


def verdicts(*values):
    """Pairs of values, one pair a task."""
    return [row for number, (one, two) in enumerate(values) for row in pair(one, two, f"t{number}")]


def wilson(p, n):
    middle, spread = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (middle - spread) / (1 + Z * Z / n), (middle + spread) / (1 + Z * Z / n)


# probabilities, debiased


@pytest.mark.parametrize(
    ("one", "two", "log_odds", "expected"),
    [
        (0.9, 0.4, math.log(9) + math.log(2 / 3), 1.0),  # 2.197 - 0.405: the first one, in spite of a flip
        (0.6, 0.1, math.log(1.5) - math.log(9), 0.0),  # 0.405 - 2.197: the second one
        (0.9, 0.8, math.log(9) + math.log(4), 1.0),
        (0.2, 0.4, -math.log(4) + math.log(2 / 3), 0.0),
        (0.99, 0.02, math.log(99) - math.log(49), 1.0),
        (0.98, 0.01, math.log(49) - math.log(99), 0.0),
        (0.8, 0.2, 0.0, 0.5),  # nothing but a liking for a position
        (0.5, 0.5, 0.0, 0.5),
    ],
)
def test_a_liking_for_a_position_cancels(one, two, log_odds, expected):
    orders = pair(one, two)
    assert outcome(orders, "final") == expected == (0.5 if log_odds == 0 else float(log_odds > 0))
    assert preference(orders, "final") == pytest.approx(one + two - 1)
    assert outcome(pair(two, one), "final") == expected  # which order was asked first says nothing


@pytest.mark.parametrize("liking", [-5.0, -1.0, 0.0, 0.5, 12.0])
@pytest.mark.parametrize("better", [-2.0, -0.01, 0.0, 0.01, 2.0])
def test_the_better_dialogue_wins_whatever_the_liking_for_a_position(better, liking):
    """Log-odds of the first system: how much better it is, plus or minus the liking for the place where it is shown."""
    one, two = (1 / (1 + math.exp(-(better + sign * liking))) for sign in (1, -1))
    assert outcome(pair(one, two), "final") == (0.5 if better == 0 else float(better > 0))


def test_probabilities_near_one_still_tell_the_better_dialogue():
    """A small judge names the dialogue that it read first with 0.9999988, or with 0.9999986 if that is the worse one."""
    assert outcome(pair(1 - 1.2e-6, 1.4e-6), "final") == 1.0
    assert outcome(pair(1 - 1.4e-6, 1.2e-6), "final") == 0.0


@pytest.mark.parametrize("p", [0.0, 1e-9, 1e-6, 0.1234565, 1 / 3, 0.5, 0.99, 1 - 1e-9, 1.0])
def test_a_dialogue_against_itself_is_a_tie_however_strong_the_liking_for_a_position(p):
    assert outcome(pair(p, 1.0 - p), "final") == 0.5


def test_every_dimension_has_its_own_outcome():
    orders = pair(0.9, 0.9)
    for row in orders:
        row.probabilities["guidance"], row.scores["guidance"] = 0.2, -1
    assert [outcome(orders, name) for name in DIMENSIONS] == [1.0, 1.0, 0.0, 1.0]
    assert win_rate(orders, dimension="guidance").rate.value == 0.0


# words, as the paper counts


@pytest.mark.parametrize(("one", "two", "expected"), [(1, 1, 1.0), (1, 0, 0.75), (1, -1, 0.5), (0, 0, 0.5), (0, -1, 0.25), (-1, -1, 0.0)])
def test_in_words_both_orders_count_and_ties_count_half(one, two, expected):
    assert outcome(pair(one, two), "final") == outcome(pair(two, one), "final") == expected


def test_words_are_counted_as_the_release_pools_both_orders():
    found = win_rate(verdicts((1, 1), (1, 0), (1, -1), (0, 0), (-1, 0)))
    wins, ties, losses = 4, 4, 2  # of the ten presentations
    assert found.rate.value == (wins + 0.5 * ties) / (wins + ties + losses) == 0.6
    assert (found.wins, found.ties, found.losses, found.rate.n) == (2, 2, 1, 5)  # pairs: two halves make no win
    assert win_shares(verdicts((1, 1), (1, 0), (1, -1), (0, 0), (-1, 0))) == {"win": 0.4, "tie": 0.4, "lose": 0.2}


@pytest.mark.parametrize("values", [[(1, 0), (0, 0), (None, 1), (-1, 1)], [(0.9, 0.9), (0.5, 0.5), (None, 0.2), (0.1, 0.4)]])
def test_shares_of_wins_and_ties_add_up_to_the_win_rate(values):
    rows = verdicts(*values)
    shares = win_shares(rows)
    assert shares["win"] + shares["tie"] / 2 == pytest.approx(win_rate(rows).rate.value) and sum(shares.values()) == pytest.approx(1)
    assert win_shares(verdicts((None, 1))) == {"win": None, "tie": None, "lose": None}


# the judge's habits


@pytest.mark.parametrize(("one", "two"), [(1, -1), (0.97, 0.03)])
def test_a_judge_that_always_names_the_dialogue_shown_first_is_no_silent_half(one, two):
    found = win_rate(verdicts(*[(one, two)] * 10))
    assert (found.rate.value, found.wins, found.ties, found.losses) == (0.5, 0, 10, 0)
    assert (found.flips.value, found.first_shown.value) == (1.0, 1.0)


@pytest.mark.parametrize(("one", "two"), [(-1, 1), (0.03, 0.97)])
def test_a_judge_that_always_names_the_dialogue_shown_last_is_seen_too(one, two):
    found = win_rate(verdicts(*[(one, two)] * 10))
    assert (found.rate.value, found.flips.value, found.first_shown.value) == (0.5, 1.0, 0.0)


def test_a_judge_that_always_finds_a_tie_has_no_flips_and_no_liking_for_a_position():
    found = win_rate(verdicts(*[(0, 0)] * 4))
    assert (found.rate.value, found.ties, found.flips.value) == (0.5, 4, 0.0)
    assert (found.first_shown.value, found.first_shown.n) == (None, 0)


def test_flips_and_the_dialogue_shown_first_by_hand():
    """First shown preferred: both of 0.9/0.4, the first of 0.8/0.7, neither of 0.3/0.6, the second of 0.2/0.1; ties take no part."""
    found = win_rate(verdicts((0.9, 0.4), (0.8, 0.7), (0.3, 0.6), (0.2, 0.1), (0.5, 0.5)))
    assert (found.flips.value, found.flips.n) == (2 / 5, 5)
    assert (found.first_shown.value, found.first_shown.n) == (4 / 8, 8)
    # preferences 0.3, 0.5, -0.1, -0.7, 0
    assert (found.wins, found.ties, found.losses, found.rate.value) == (2, 1, 2, 0.5)


# unscored


@pytest.mark.parametrize("missing", [(None, 0.9), (0.9, None), (None, None), (None, 1), (1, None)])
def test_a_pair_with_an_unscored_order_is_counted_and_is_no_half(missing):
    found = win_rate(verdicts((0.9, 0.8), missing, (0.7, 0.9), missing))
    assert (found.rate.value, found.rate.n, found.num_unscored, found.rate.num_unscored) == (1.0, 2, 2, 2)
    assert (found.wins, found.ties, found.losses) == (2, 0, 0)
    assert found.flips.n == 2 and found.first_shown.n == 4


@pytest.mark.parametrize("values", [[], [(None, None)] * 3])
def test_no_scored_pair_is_no_rate(values):
    found = win_rate(verdicts(*values))
    assert found.rate == Rate(None, None, None, 0, len(values)) and found.rate.text() == "unscored (n=0)"
    assert (found.wins, found.ties, found.losses, found.num_unscored) == (0, 0, 0, len(values))
    assert found.flips.value is None and found.first_shown.value is None


def test_a_verdict_with_an_error_is_unscored_whatever_else_it_holds():
    assert win_rate([verdict(1), verdict(1, "second", error="EndpointError: 500")]).num_unscored == 1


def test_a_dimension_that_was_not_scored_leaves_the_others_as_they_are():
    orders = pair(1, 1)
    del orders[1].scores["guidance"]
    assert win_rate(orders, dimension="guidance").num_unscored == 1
    assert win_rate(orders, dimension="final").rate.value == 1.0


# what is no pair


def test_one_order_only_is_an_error():
    rows = verdicts((1, 1), (0.9, 0.8))
    with pytest.raises(SchemaError, match=r"task t1: ecpo vs expert was judged in one order only"):
        win_rate(rows[:-1])


def test_a_verdict_that_stands_twice_is_an_error():
    rows = verdicts((1, 1))
    with pytest.raises(SchemaError, match=r"task t0: two verdicts on ecpo vs expert with the second shown first"):
        win_rate([*rows, rows[1]])


def test_orders_by_two_judges_are_an_error():
    rows = [verdict(1, "first", config="gpt"), verdict(0.9, "second", config="qwen")]
    with pytest.raises(SchemaError, match=r"task t1: the two orders of ecpo vs expert are of different judges"):
        win_rate(rows)


def test_an_unknown_dimension_is_an_error():
    with pytest.raises(ValueError, match=r"no dimension 'clarity'; there are: flexibility, coherence, guidance, final"):
        win_rate(verdicts((1, 1)), dimension="clarity")


def test_pairs_are_told_apart_by_task_and_by_both_systems():
    rows = [*pair(1, 1), *pair(1, 1, "t2"), *(row.model_copy(update={"first": "sgpt"}) for row in pair(-1, -1))]
    assert [(one.first, one.task_id) for one, _ in group_pairs(rows)] == [("ecpo", "t1"), ("ecpo", "t2"), ("sgpt", "t1")]
    assert all((one.shown_first, two.shown_first) == ("first", "second") for one, two in group_pairs(rows[::-1]))


# symmetry


VALUES = [(0.9, 0.4), (0.6, 0.1), (0.8, 0.2), (0.9, 0.9), (None, 0.3), (0.2, 0.4)]
WORDS = [(1, 1), (1, 0), (1, -1), (0, 0), (-1, 0), (None, 1)]


def swapped(row):
    """The same judgement, told of the two systems the other way round."""
    return Verdict(
        task_id=row.task_id, first=row.second, second=row.first, shown_first="second" if row.shown_first == "first" else "first",
        scores={name: -score for name, score in row.scores.items()}, error=row.error,
        probabilities=row.probabilities and {name: 1 - p for name, p in row.probabilities.items()},
    )  # fmt: skip


@pytest.mark.parametrize("values", [VALUES, WORDS])
def test_swapping_the_systems_gives_one_minus_the_win_rate(values):
    rows = verdicts(*values)
    there, back = win_rate(rows), win_rate([swapped(row) for row in rows])
    assert back.rate.value == pytest.approx(1 - there.rate.value)
    assert (back.rate.low, back.rate.high) == (pytest.approx(1 - there.rate.high), pytest.approx(1 - there.rate.low))
    assert (back.wins, back.ties, back.losses) == (there.losses, there.ties, there.wins)
    assert (back.flips, back.first_shown, back.num_unscored) == (there.flips, there.first_shown, there.num_unscored)


@pytest.mark.parametrize("values", [VALUES, WORDS])
def test_the_order_of_verdicts_does_not_matter(values):
    rows = verdicts(*values)
    mixed = random.Random(0).sample(rows, len(rows))
    assert mixed != rows and win_rate_json(mixed) == win_rate_json(rows)


# intervals


@pytest.mark.parametrize(
    ("total", "n", "low", "high"),
    [
        (7.5, 10, 0.4422, 0.9191),  # (0.75 + 0.1921 -+ 0.3300) / 1.3841
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),  # 1 / 1.3841
        (0, 10, 0.0, 0.2775),
        (0.5, 1, 0.0546, 0.9454),
    ],
)
def test_wilson_interval_by_hand(total, n, low, high):
    found = proportion(total, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert (found.low, found.high) == (pytest.approx(wilson(total / n, n)[0]), pytest.approx(wilson(total / n, n)[1]))
    assert (found.value, found.n) == (total / n, n)


def test_the_interval_of_a_win_rate_is_over_scored_pairs():
    found = win_rate(verdicts((1, 1), (1, 0), (1, -1), (None, 1)))
    assert (found.rate.low, found.rate.high) == (pytest.approx(wilson(0.75, 3)[0]), pytest.approx(wilson(0.75, 3)[1]))


# JSON


def test_json_by_hand():
    rows = verdicts((0.9, 0.4), (0.8, 0.2), (None, 0.9), (0.9, 0.9))
    for row in rows:
        if row.scores:
            row.scores["guidance"], row.probabilities["guidance"] = -1, 0.1
    found = json.loads(json.dumps(win_rate_json(rows), allow_nan=False))
    assert (found["n"], found["n_unscored"]) == (4, 1)
    assert set(found) == {"n", "n_unscored", *DIMENSIONS}
    low, high = wilson(2.5 / 3, 3)
    assert found["final"] == {
        "win_rate": pytest.approx(2.5 / 3), "low": pytest.approx(low), "high": pytest.approx(high), "wins": 2, "ties": 1, "losses": 0,
        "flips": pytest.approx(2 / 3), "first_shown": pytest.approx(5 / 6), "undecided": False,
    }  # fmt: skip
    assert (found["guidance"]["win_rate"], found["guidance"]["losses"], found["guidance"]["first_shown"]) == (0.0, 3, 0.5)


@pytest.mark.parametrize("values", [[], [(None, None)]])
def test_json_of_nothing_scored_has_nulls_and_no_halves(values):
    found = json.loads(json.dumps(win_rate_json(verdicts(*values)), allow_nan=False))
    assert (found["n"], found["n_unscored"]) == (len(values), len(values))
    for name in DIMENSIONS:
        assert [found[name][key] for key in ("win_rate", "low", "high", "flips", "first_shown")] == [None] * 5
        assert [found[name][key] for key in ("wins", "ties", "losses")] == [0, 0, 0]


def test_verdicts_survive_a_file(tmp_path):
    rows = verdicts(*VALUES)
    path = tmp_path / "ecpo_vs_expert.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    read = [Verdict.model_validate_json(line) for line in path.read_text().splitlines()]
    assert read == rows and win_rate_json(read) == win_rate_json(rows)
