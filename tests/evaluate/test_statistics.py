import math

import pytest

from ecpo_utils.evaluate.statistics import Rate, average, mean, proportion


def test_proportion_has_the_wilson_interval():
    half = proportion(5, 10)
    assert (half.value, half.n, half.num_unscored) == (0.5, 10, 0)
    assert (half.low, half.high) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    none, all_of_them = proportion(0, 100), proportion(100, 100)
    assert proportion(0, 10).high == pytest.approx(0.27753, abs=1e-5)
    assert none.low == 0.0 and all_of_them.high == 1.0 and none.high == pytest.approx(1 - all_of_them.low)


def test_proportion_of_nothing_has_no_value():
    assert proportion(0, 0) == Rate(None, None, None, 0)
    assert proportion(0, 0, num_unscored=3) == Rate(None, None, None, 0, 3)


@pytest.mark.parametrize(("total", "n"), [(3, 2), (-1, 2), (1, 0), (-0.5, 1), (1.5, 1), (math.nan, 2)])
def test_proportion_refuses_impossible_totals(total, n):
    with pytest.raises(ValueError, match="expected 0 <= total <= n"):
        proportion(total, n)


def test_average_skips_unscored_values():
    assert average([1, None, 2]) == 1.5 and average([None]) is average([]) is None


def test_mean_skips_and_counts_unscored_values():
    rate = mean([1.0, None, 3.0, float("nan"), 5.0])
    assert (rate.value, rate.n, rate.num_unscored) == (3.0, 3, 2)
    assert 1.0 <= rate.low < 3.0 < rate.high <= 5.0


def test_mean_keeps_zeros():
    assert mean([0, 0, 3]).value == 1.0


def test_mean_of_fewer_than_two_values_has_no_interval():
    assert mean([4.0, None]) == Rate(4.0, None, None, 1, 1)
    assert mean([None, None]) == Rate(None, None, None, 0, 2)
    assert mean([]) == Rate(None, None, None, 0, 0)


def test_mean_of_equal_values_has_an_interval_of_width_zero():
    assert mean([2, 2, 2]) == Rate(2.0, 2.0, 2.0, 3, 0)


def test_mean_of_two_values_reaches_from_one_to_the_other():
    rate = mean([1.0, 2.0])
    assert (rate.value, rate.low, rate.high) == (1.5, 1.0, 2.0)


def test_interval_depends_on_the_seed_alone():
    values = [0.3, 1.7, 2.9, 4.1, 4.8, 0.2, 3.3]
    assert mean(values, seed=1) == mean(values, seed=1)
    assert mean(values, seed=1) != mean(values, seed=2)


def test_interval_agrees_with_the_normal_one_on_a_large_sample():
    rate = mean([float(i % 10) for i in range(1000)])  # sd 2.8723, so 4.5 +- 1.96 * 2.8723 / sqrt(1000)
    assert (rate.low, rate.high) == pytest.approx((4.322, 4.678), abs=0.01)
