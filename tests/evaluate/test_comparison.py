"""Paired comparisons, planning and rank correlation against numbers worked out by hand, and simulated power."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import spearmanr
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import normal_sample_size_one_tail

from ecpo_utils.core.errors import SchemaError
from ecpo_utils.evaluate.comparison import (
    compare_all,
    expected_discordance,
    holm,
    mcnemar_power,
    paired_difference,
    pairs_needed_for_win_rate,
    rank_correlation,
    sign_flip_p,
    tasks_needed,
)
from ecpo_utils.evaluate.statistics import Rate, mean
from ecpo_utils.evaluate.tables import comparison_table


def tasks(values):
    return {f"book/{number:03d}": value for number, value in enumerate(values)}


def outcomes(higher, lower, equal=0):
    """Success of two systems: tasks that only the first, only the second, and both succeed on."""
    return tasks([1] * higher + [0] * lower + [1] * equal), tasks([0] * higher + [1] * lower + [1] * equal)


def test_paired_difference_by_hand():
    got = paired_difference(tasks([1, 1, 0, 1]), tasks([0, 1, 0, 0]))
    assert (got.first.value, got.second.value, got.difference.value) == (0.75, 0.25, 0.5)
    assert (got.num_higher, got.num_lower, got.num_groups, got.num_not_shared) == (2, 0, 4, 0)
    assert (got.p_value, got.exact) == (0.5, True)  # two heads of two, or two tails: 2 / 4
    assert (got.difference.low, got.difference.high) == (0.0, 1.0)


@pytest.mark.parametrize(("higher", "lower", "p"), [
    (8, 2, 2 * (1 + 10 + 45) / 1024), (5, 0, 2 / 32), (6, 0, 2 / 64), (10, 10, 1.0), (1, 0, 1.0), (3, 7, 2 * (1 + 10 + 45 + 120) / 1024),
])  # fmt: skip
def test_success_has_the_exact_mcnemar_p_value_at_any_n(higher, lower, p):
    got = paired_difference(*outcomes(higher, lower, equal=40))
    assert got.p_value == pytest.approx(p) and got.exact
    assert got.p_value == pytest.approx(mcnemar([[40, higher], [lower, 0]], exact=True).pvalue)


@pytest.mark.parametrize(("differences", "p"), [
    ([1, 2, 3], 2 / 8),  # the sum 6 is the highest of the 8 that flips bring
    ([3, -1, 2], 4 / 8),  # 6 and 4 are as high as 4, -6 and -4 as low
    ([1, 2, 3] + [0] * 30, 2 / 8),
    ([], 1.0), ([0, 0], 1.0), ([2.5], 1.0), ([0.3 - 0.2, 0.2 - 0.1], 2 / 4),
])  # fmt: skip
def test_sign_flips_by_hand(differences, p):
    assert sign_flip_p(differences) == (pytest.approx(p), True)


def test_sign_flips_are_enumerated_up_to_13_differences_and_drawn_above():
    assert sign_flip_p(range(1, 14)) == (pytest.approx(2 / 2**13), True)
    p, exact = sign_flip_p(range(1, 15))
    assert p <= 0.002 and not exact


def test_equal_systems_have_p_one_and_an_interval_of_width_zero():
    got = paired_difference(tasks([1, 0, 1]), tasks([1, 0, 1]))
    assert (got.difference, got.p_value, got.exact) == (Rate(0.0, 0.0, 0.0, 3), 1.0, True)


def test_differences_that_are_equal_but_for_rounding_have_an_interval_of_width_zero():
    got = paired_difference(tasks([0.3, 0.2, 0.9]), tasks([0.2, 0.1, 0.8]))
    assert got.difference.low == got.difference.value == got.difference.high == pytest.approx(0.1)


def test_interval_agrees_with_the_normal_one_on_a_large_sample():
    got = paired_difference(tasks([0, 1, 1] * 100), tasks([1, 1, 0] * 100)).difference  # sd sqrt(2/3), so 1.96 * 0.8165 / sqrt(300)
    assert (got.low, got.high) == pytest.approx((-0.0924, 0.0924), abs=0.006)


def test_without_groups_the_interval_is_that_of_a_mean():
    values = [0.3, 1.7, 2.9, 4.1, 4.8, 0.2, 3.3]
    got = paired_difference(tasks(values), tasks([0] * 7), seed=3).difference
    assert astuple(got) == pytest.approx(astuple(mean(values, seed=3)))


def test_repeated_tasks_of_a_user_narrow_nothing():
    first, second = outcomes(7, 3, equal=5)
    alone = paired_difference(first, second)
    repeated = [{f"{task}/{copy}": value for task, value in values.items() for copy in range(4)} for values in (first, second)]
    grouped = paired_difference(*repeated, groups={task: task.rpartition("/")[0] for task in repeated[0]})
    assert (grouped.difference.n, grouped.num_groups, grouped.num_higher) == (60, 15, 28)
    assert astuple(grouped.difference)[:3] == pytest.approx(astuple(alone.difference)[:3]) and grouped.p_value == alone.p_value
    ungrouped = paired_difference(*repeated)
    assert ungrouped.difference.high - ungrouped.difference.low < 0.6 * (alone.difference.high - alone.difference.low)
    assert ungrouped.p_value < alone.p_value


def test_one_group_has_no_interval_and_two_agreeing_ones_have_p_one_half():
    first, second = outcomes(6, 0)
    assert paired_difference(first, second).p_value == 2 / 64
    one = paired_difference(first, second, groups=dict.fromkeys(first, "u"))
    assert (one.difference.low, one.p_value, one.num_groups) == (None, 1.0, 1)
    assert paired_difference(first, second, groups={task: str(int(task[-1]) // 3) for task in first}).p_value == 2 / 4


def test_groups_of_unequal_size_weigh_their_tasks_equally():
    first = tasks([1, 1, 1, 0] * 50)
    groups = {task: f"{number // 4}{'aaab'[number % 4]}" for number, task in enumerate(first)}
    got = paired_difference(first, tasks([0] * 200), groups=groups)
    assert (got.difference.value, got.num_groups) == (0.75, 100)
    assert 0.65 < got.difference.low < 0.75 < got.difference.high < 0.85  # a mean of the groups' means would lie around 0.5


def test_unscored_and_unshared_tasks_are_left_out_and_counted():
    first = {"a": 1.0, "b": None, "c": 0.0, "d": float("nan"), "e": 1.0, "only": 1.0}
    second = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0, "e": None, "x": 0.0, "y": None}
    got = paired_difference(first, second)
    assert (got.difference.value, got.difference.n, got.difference.num_unscored, got.num_not_shared) == (0.5, 2, 3, 3)
    assert got.first.num_unscored == got.second.num_unscored == 3


def test_nothing_scored_has_no_value_and_no_p():
    got = paired_difference({"a": None, "b": 1.0}, {"a": 1.0, "b": float("nan")})
    assert got.difference == got.first == Rate(None, None, None, 0, 2) and got.p_value is None


def test_one_task_has_a_value_no_interval_and_p_one():
    got = paired_difference({"a": 1}, {"a": 0})
    assert (got.difference, got.p_value) == (Rate(1.0, None, None, 1), 1.0)


def test_without_shared_tasks_the_error_names_both_systems_and_a_task_of_each():
    with pytest.raises(SchemaError, match=r"'ailo' \(2 tasks, as book/1\) and 'gpt' \(1 tasks, as game/1\) share no task"):
        paired_difference({"book/1": 1, "book/2": 1}, {"game/1": 1}, names=("ailo", "gpt"))
    with pytest.raises(SchemaError, match=r"'first' \(0 tasks\) and 'second' \(0 tasks\) share no task"):
        paired_difference({}, {})


def test_a_task_without_a_group_is_an_error_that_names_it():
    with pytest.raises(SchemaError, match="1 of 2 tasks have no group, the first is 'book/001'"):
        paired_difference(tasks([1, 0]), tasks([0, 0]), groups={"book/000": "u"})


def test_results_depend_on_the_seed_and_on_no_order():
    rng = np.random.default_rng(5)
    first, second = tasks(rng.random(30).tolist()), tasks(rng.random(30).tolist())
    got = paired_difference(first, second, 1)
    assert got == paired_difference(dict(reversed(first.items())), second, 1) and not got.exact
    other = paired_difference(first, second, 2)
    assert (other.difference.low, other.p_value) != (got.difference.low, got.p_value)
    assert other.p_value == pytest.approx(got.p_value, abs=0.03)


def test_swapping_the_systems_flips_the_difference():
    there, back = (paired_difference(*pair) for pair in (outcomes(8, 2, 5), outcomes(2, 8, 5)))
    assert back.difference.value == -there.difference.value and back.p_value == there.p_value


@pytest.mark.parametrize(("p_values", "adjusted"), [
    ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 * 0.01, then 2 * 0.03, then 0.04 raised to the one before
    ([0.5, 0.9], [1.0, 1.0]), ([0.2], [0.2]), ([0.02, None, 0.04], [0.04, None, 0.04]), ([None], [None]), ([], []),
])  # fmt: skip
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


@pytest.fixture
def rows():
    """Three systems that beat the baseline on 6, 5 and 8 tasks, and lose on 0, 0 and 2; one that nothing was scored of."""
    baseline = [0] * 8 + [1, 1]
    systems = {"six": [1] * 6 + [0, 0, 1, 1], "base": baseline, "five": [1] * 5 + [0, 0, 0, 1, 1], "eight": [1] * 8 + [0, 0]}
    return compare_all({**{name: tasks(values) for name, values in systems.items()}, "mute": tasks([None] * 9)}, "base")


def test_every_system_is_compared_with_the_baseline_in_the_order_given(rows):
    assert [(row.system, row.baseline) for row in rows] == [(name, "base") for name in ("six", "five", "eight", "mute")]
    assert [row.paired.p_value for row in rows] == [2 / 64, 2 / 32, pytest.approx(112 / 1024), None]
    assert [row.p_holm for row in rows] == [pytest.approx(6 / 64), 4 / 32, 4 / 32, None]  # 112 / 1024 is raised to the one before


def test_a_baseline_without_values_is_an_error():
    with pytest.raises(SchemaError, match="no values of the baseline 'gpt'; expected one of a, b"):
        compare_all({"a": {}, "b": {}}, "gpt")
    with pytest.raises(SchemaError, match="'b' .* and 'a' .* share no task"):
        compare_all({"a": {"t": 1}, "b": {"u": 1}}, "a")
    assert compare_all({"a": {"t": 1}}, "a") == []


def test_comparison_table_has_n_and_interval_beside_each_mean(rows):
    table = comparison_table(rows)
    assert table["system"].tolist() == ["six", "five", "eight", "mute"]
    for name in ("system_mean", "baseline_mean", "difference"):
        scored = table[table[f"{name}_n"] > 0]
        assert scored[f"{name}_n"].tolist() == [10, 10, 10]
        assert (scored[f"{name}_low"] <= scored[name]).all() and (scored[name] <= scored[f"{name}_high"]).all()
    assert table.iloc[2][["system_mean", "baseline_mean", "higher", "lower"]].tolist() == [0.8, 0.2, 8, 2]
    assert table.iloc[3][["difference_n", "unscored", "not_shared"]].tolist() == [0, 9, 1]
    assert table.iloc[3][["difference", "p_value", "p_holm"]].isna().all()
    assert table["p_holm"].tolist()[:2] == pytest.approx([6 / 64, 4 / 32])


def test_comparison_table_of_no_rows_is_empty():
    assert comparison_table([]).empty


def test_expected_discordance_by_hand():
    assert expected_discordance(0.5, 0.4) == pytest.approx(0.5)
    assert expected_discordance(1.0, 0.0) == 1.0 and expected_discordance(0.0, 0.0) == 0.0


def test_mcnemar_power_by_hand():
    tails = 0.75**6 + 0.25**6  # of six discordant tasks only 6:0 and 0:6 have p = 2 / 64 below 0.05, of five none
    assert mcnemar_power(6, 0.5, 1.0) == pytest.approx(tails)
    assert mcnemar_power(6, 0.25, 0.5) == pytest.approx(0.5**6 * tails)
    assert mcnemar_power(5, 1.0, 1.0) == mcnemar_power(0, 0.1, 0.3) == 0.0
    assert mcnemar_power(100, -0.1, 0.3) == pytest.approx(mcnemar_power(100, 0.1, 0.3))


@pytest.mark.parametrize(("difference", "discordance", "published"), [
    (0.4, 0.5, 23),  # Connor 1987, p01 = 0.45, p10 = 0.05, as zarathucorp.github.io/open-powersamplesize has it (mcnemar-2-sided)
    (0.15, 0.45, 155),  # p10 = 0.30, p01 = 0.15 at clinicaltrials-tools.vercel.app
])  # fmt: skip
def test_exact_test_needs_more_tasks_than_the_asymptotic_formula_says(difference, discordance, published):
    asymptotic = normal_sample_size_one_tail(difference, 0.8, 0.025, math.sqrt(discordance), math.sqrt(discordance - difference**2))
    assert math.ceil(asymptotic) == published
    n = tasks_needed(difference, discordance)
    assert mcnemar_power(published, difference, discordance) < mcnemar_power(n - 1, difference, discordance) < 0.8
    assert published < n < 1.1 * published and mcnemar_power(n, difference, discordance) >= 0.8


def test_six_tasks_are_the_fewest_that_can_show_anything():
    assert tasks_needed(1.0, 1.0) == pairs_needed_for_win_rate(0.0) == 6


def test_number_of_tasks_follows_difference_discordance_power_and_alpha():
    n = tasks_needed(0.1, 0.3)
    assert n == tasks_needed(-0.1, 0.3)
    assert tasks_needed(0.2, 0.3) < tasks_needed(0.1, 0.2) < n < tasks_needed(0.1, 0.3, power=0.9)
    assert n < tasks_needed(0.1, 0.3, alpha=0.01)
    assert tasks_needed(0.9 - 0.6, 0.3) == tasks_needed(0.3, 0.3)


def rejected(values, shares, n, num_studies=2000):
    """Share of simulated studies of n tasks whose sign-flip test has p <= 0.05."""
    rng = np.random.default_rng(0)
    return np.mean([sign_flip_p(rng.choice(values, size=n, p=shares))[0] <= 0.05 for _ in range(num_studies)])


@pytest.mark.parametrize(("difference", "discordance"), [(0.1, 0.3), (0.2, 0.4), (0.3, 0.3)])
def test_tasks_needed_has_its_power_in_simulated_studies(difference, discordance):
    n = tasks_needed(difference, discordance)
    shares = [(discordance - difference) / 2, 1 - discordance, (discordance + difference) / 2]
    power = rejected([-1, 0, 1], shares, n)
    assert power == pytest.approx(mcnemar_power(n, difference, discordance), abs=0.03)  # three standard errors of 2000 studies
    assert power == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(("win_rate", "tie_rate"), [(0.6, 0.0), (0.7, 0.2)])
def test_pairs_needed_for_win_rate_has_its_power_in_simulated_studies(win_rate, tie_rate):
    n = pairs_needed_for_win_rate(win_rate, tie_rate=tie_rate)
    wins = win_rate - tie_rate / 2
    assert rejected([-0.5, 0, 0.5], [1 - wins - tie_rate, tie_rate, wins], n) == pytest.approx(0.8, abs=0.04)


def test_the_test_rejects_equal_systems_in_at_most_five_of_a_hundred_simulated_studies():
    assert rejected([-1, 0, 1], [0.2, 0.6, 0.2], 100) <= 0.05 + 0.015


def test_ties_counted_half_leave_fewer_pairs_to_ask_for_at_the_same_win_rate():
    assert pairs_needed_for_win_rate(0.6, tie_rate=0.3) < pairs_needed_for_win_rate(0.6) == pairs_needed_for_win_rate(0.4)
    assert pairs_needed_for_win_rate(0.9, tie_rate=0.2) == tasks_needed(0.8, 0.8)


@pytest.mark.parametrize(("difference", "discordance"), [(0, 0.3), (0.4, 0.3), (0.1, 1.1), (0.1, 0), (math.nan, 0.3), (0.1, math.nan)])
def test_impossible_differences_are_refused(difference, discordance):
    for call in (lambda: tasks_needed(difference, discordance), lambda: mcnemar_power(10, difference, discordance)):
        with pytest.raises(ValueError, match=r"expected 0 < \|difference\| <= discordance <= 1"):
            call()


@pytest.mark.parametrize(("power", "alpha"), [(1.0, 0.05), (0.05, 0.05), (0.8, 0.0), (0.8, 1.0)])
def test_impossible_power_is_refused(power, alpha):
    with pytest.raises(ValueError, match="expected 0 < alpha < power < 1"):
        tasks_needed(0.1, 0.3, power=power, alpha=alpha)


@pytest.mark.parametrize(("win_rate", "tie_rate"), [(0.5, 0.0), (0.95, 0.2), (1.1, 0.0), (0.6, -0.1), (math.nan, 0.0)])
def test_impossible_win_rates_are_refused(win_rate, tie_rate):
    with pytest.raises(ValueError, match="expected a win rate other than 0.5"):
        pairs_needed_for_win_rate(win_rate, tie_rate=tie_rate)


def systems(means):
    """Systems a, b, c ... with the same value on each of two tasks."""
    return {name: tasks([value, value]) for name, value in zip("abcdefgh", means, strict=False)}


def numbers(values):
    return dict(zip("abcdefgh", values, strict=False))


@pytest.mark.parametrize(("order", "rho", "p"), [
    ([1, 2, 3], 1.0, 2 / 6), ([1, 2, 3, 4], 1.0, 2 / 24), ([5, 4, 3, 2, 1], -1.0, 2 / 120),
    ([1, 2, 4, 3], 0.8, 8 / 24),  # 1 - 6 * 2 / (4 * 15); the order itself and three swaps of neighbours reach 0.8, on either side
])  # fmt: skip
def test_rank_correlation_by_hand(order, rho, p):
    got = rank_correlation(systems(order), numbers(range(len(order))))
    assert (got.rho.value, got.p_value) == (pytest.approx(rho), pytest.approx(p))
    assert (got.rho.n, got.num_tasks) == (len(order), 2)


def test_rank_correlation_averages_ties_as_scipy_does():
    ours, published = [0.2, 0.2, 0.5, 0.7, 0.1, 0.7], [0.3, 0.1, 0.3, 0.9, 0.2, 0.4]
    got = rank_correlation(systems(ours), numbers(published))
    assert got.rho.value == pytest.approx(spearmanr(ours, published).statistic)


def test_eight_systems_have_a_monte_carlo_p_value():
    assert 0 < rank_correlation(systems(range(8)), numbers(range(8))).p_value <= 0.001


def test_rank_interval_resamples_tasks_by_hand():
    ours = {"a": tasks([0, 2]), "b": tasks([2, 1]), "c": tasks([5, 0])}  # the first task alone ranks a b c, the second c b a
    got = rank_correlation(ours, numbers([1, 2, 3])).rho
    assert (got.value, got.low, got.high) == (1.0, -1.0, 1.0)  # each task is drawn twice in a quarter of the draws


def test_rank_interval_has_no_width_where_every_task_agrees_and_is_none_for_one_task():
    assert astuple(rank_correlation(systems([1, 2, 3]), numbers([1, 2, 3])).rho)[1:3] == pytest.approx((1.0, 1.0))
    assert rank_correlation({name: {"t": value} for name, value in numbers([1, 2, 3]).items()}, numbers([1, 2, 3])).rho.low is None


def test_repeated_tasks_of_a_user_do_not_narrow_the_rank_interval():
    rng = np.random.default_rng(1)
    ours = {name: tasks(rng.normal(place, 3, 12).tolist()) for place, name in enumerate("abcde")}
    alone = rank_correlation(ours, numbers(range(5)), 4)
    repeated = {name: {f"{task}/{copy}": value for task, value in values.items() for copy in range(3)} for name, values in ours.items()}
    grouped = rank_correlation(repeated, numbers(range(5)), 4, groups={task: task.rpartition("/")[0] for task in repeated["a"]})
    assert grouped.rho == alone.rho and (grouped.num_tasks, alone.num_tasks) == (36, 12)
    assert rank_correlation(ours, numbers(range(5)), 4) == alone
    assert alone.rho.low < alone.rho.value


def test_rank_correlation_leaves_out_and_counts_what_one_side_lacks():
    ours = {**systems([1, 2, 3, 4]), "mute": tasks([None, float("nan")]), "lone": tasks([1])}
    got = rank_correlation(ours, {**numbers([1, 2, 3, None]), "mute": 3, "other": 5, "third": 1})
    assert (got.rho.value, got.rho.n, got.rho.num_unscored) == (1.0, 3, 2)


@pytest.mark.parametrize(("ours", "published"), [([1, 2], [1, 2]), ([1], [1]), ([None, None, None], [1, 2, 3]),
                                                 ([1, 2, 3], [math.nan] * 3), ([2, 2, 2], [1, 2, 3]), ([1, 2, 3], [4, 4, 4])])  # fmt: skip
def test_fewer_than_three_systems_or_equal_ones_have_no_rank_correlation(ours, published):
    got = rank_correlation(systems(ours), numbers(published))
    assert (got.rho.value, got.rho.low, got.p_value) == (None, None, None)


def test_means_are_over_a_systems_own_scored_tasks():
    ours = {"a": {"t": 1, "u": None}, "b": {"u": 2, "w": 2}, "c": {"t": 3, "w": float("nan"), "v": 3}}
    got = rank_correlation(ours, numbers([1, 2, 3]))
    assert (got.rho.value, got.num_tasks) == (1.0, 4)


def test_no_system_in_common_is_an_error_that_names_both_sides():
    with pytest.raises(SchemaError, match=r"our systems \(a, b\) and the published ones \(none\) have none in common"):
        rank_correlation(systems([1, 2]), {})
