"""Whether systems differ on the same tasks, how many tasks it takes to see it, and whether their order is the published one.

Values are per task: success 0 or 1, recall, satisfaction, a win counted 1, 1/2 or 0. None or NaN is unscored, left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import SchemaError
from .statistics import CONFIDENCE, NUM_RESAMPLES, Rate

Values = Mapping[str, float | None]  # task_id -> value
BATCH = 1000  # resamples held in memory at a time
DECIMALS = 12  # so that 0.3 - 0.2 and 0.2 - 0.1 are the same difference


@dataclass(frozen=True)
class PairedDifference:
    """First minus second on the tasks that both have a value of.

    Attributes:
        first: Mean over these tasks, likewise `second`; not over all that a system played.
        difference: Mean difference; `n` tasks, `num_unscored` shared tasks that either lacks a value of.
        p_value: Two-sided sign-flip test, None where nothing was scored.
        exact: False where `p_value` was drawn by Monte Carlo.
        num_higher: Tasks that the first has the higher value on; `num_lower` likewise.
        num_groups: Independent units that interval and test rest on.
        num_not_shared: Tasks that one of the two has not.
    """

    first: Rate
    second: Rate
    difference: Rate
    p_value: float | None
    exact: bool
    num_higher: int
    num_lower: int
    num_groups: int
    num_not_shared: int


@dataclass(frozen=True)
class Comparison:
    """A system against the baseline; `p_holm` is adjusted for the other comparisons of the same call."""

    system: str
    baseline: str
    paired: PairedDifference
    p_holm: float | None


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two orders of systems.

    Attributes:
        rho: Spearman's, in [-1, 1]; `n` systems, `num_unscored` shared systems that either side lacks a value of.
        p_value: Two-sided permutation test over systems, None where there is no rho.
        num_tasks: Tasks that the interval resamples.
    """

    rho: Rate
    p_value: float | None
    num_tasks: int


def paired_difference(
    first: Values,
    second: Values,
    seed: int = 0,
    *,
    groups: Mapping[str, str] | None = None,
    names: tuple[str, str] = ("first", "second"),
) -> PairedDifference:
    """Mean difference of two systems over shared tasks, with a paired bootstrap interval and a sign-flip p value.

    Args:
        first: Values of the one system by task; `second` those of the other.
        seed: Of resampling and Monte Carlo; the order of the tasks does not matter.
        groups: Task to user or target. Tasks of one group are not independent, so it is resampled, and its sign
            flipped, as a whole. Without it every task stands alone. Few groups make the interval too narrow.
        names: Of the systems, for the error.

    Returns:
        No interval for fewer than two groups, one of width 0 for equal differences; p = 1 if all are 0.

    Raises:
        SchemaError: If the two share no task, or a shared task has no group.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise SchemaError(f"{_some(names[0], first)} and {_some(names[1], second)} share no task; compare systems on the same tasks")
    tasks = [task for task in shared if _is_scored(first[task]) and _is_scored(second[task])]
    unscored, not_shared = len(shared) - len(tasks), len(first.keys() ^ second.keys())
    if not tasks:
        nothing = Rate(None, None, None, 0, unscored)
        return PairedDifference(nothing, nothing, nothing, None, True, 0, 0, 0, not_shared)
    membership = _membership(tasks, groups)
    values = np.array([[first[task], second[task]] for task in tasks], dtype=float)
    differences = np.round(values[:, 0] - values[:, 1], DECIMALS)
    rates = [_mean(column, membership, unscored, seed) for column in (*values.T, differences)]
    p_value, exact = sign_flip_p(np.bincount(membership, differences), seed)
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    return PairedDifference(*rates, p_value, exact, higher, lower, int(membership.max()) + 1, not_shared)


def _some(name: str, values: Collection[str]) -> str:
    """A system with an example of its tasks, for an error."""
    return f"'{name}' ({len(values)} tasks" + (f", as {min(values)})" if values else ")")


def _is_scored(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _membership(tasks: Sequence[str], groups: Mapping[str, str] | None) -> np.ndarray:
    """int array (len(tasks),): which group each task is of, counted from 0."""
    if groups is None:
        return np.arange(len(tasks))
    lacking = [task for task in tasks if task not in groups]
    if lacking:
        raise SchemaError(f"{len(lacking)} of {len(tasks)} tasks have no group, the first is '{lacking[0]}'; expected one for every task")
    return np.unique([groups[task] for task in tasks], return_inverse=True)[1]


def _mean(values: np.ndarray, membership: np.ndarray, num_unscored: int, seed: int) -> Rate:
    """Mean over tasks with a percentile interval over groups. Library: scipy.stats.bootstrap, as in `statistics.mean`."""
    from scipy.stats import bootstrap

    mean, sums, sizes = float(values.mean()), np.bincount(membership, values), np.bincount(membership)
    if len(sums) < 2:
        return Rate(mean, None, None, len(values), num_unscored)
    if np.ptp(values) == 0:
        return Rate(mean, mean, mean, len(values), num_unscored)

    def ratio(sums: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
        return sums.sum(axis) / sizes.sum(axis)

    rng, samples = np.random.default_rng(seed), {"n_resamples": NUM_RESAMPLES, "batch": BATCH, "confidence_level": CONFIDENCE}
    interval = bootstrap((sums, sizes), ratio, paired=True, method="percentile", rng=rng, **samples).confidence_interval
    return Rate(mean, float(interval.low), float(interval.high), len(values), num_unscored)


def sign_flip_p(differences: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p value that independent differences are as likely of one sign as of the other, and whether it is exact.

    Zeros carry no sign and are left out. Differences of one size, as of success 0 or 1, make it the exact McNemar test
    (the sign test), a binomial one at any n. Otherwise all 2^n flips up to n = 13 and a Monte Carlo sample above.
    Library: scipy.stats.binomtest, scipy.stats.permutation_test with permutation_type="samples".
    """
    from scipy.stats import binomtest, permutation_test

    nonzero = np.round(np.asarray(differences, dtype=float), DECIMALS)
    nonzero = nonzero[nonzero != 0]
    if not len(nonzero):
        return 1.0, True
    if np.ptp(np.abs(nonzero)) == 0:
        return float(binomtest(int((nonzero > 0).sum()), len(nonzero)).pvalue), True
    samples = {"n_resamples": NUM_RESAMPLES, "batch": BATCH, "rng": np.random.default_rng(seed)}
    result = permutation_test((nonzero,), np.mean, permutation_type="samples", **samples)
    return float(result.pvalue), 2 ** len(nonzero) <= NUM_RESAMPLES


def compare_all(
    values_by_system: Mapping[str, Values], baseline: str, seed: int = 0, *, groups: Mapping[str, str] | None = None
) -> list[Comparison]:
    """Every other system minus the baseline, in the order given, p values adjusted over all of them.

    Raises:
        SchemaError: If the baseline has no values or shares no task with a system.
    """
    if baseline not in values_by_system:
        raise SchemaError(f"no values of the baseline '{baseline}'; expected one of {', '.join(values_by_system) or 'no systems at all'}")
    pairs = {
        name: paired_difference(values, values_by_system[baseline], seed, groups=groups, names=(name, baseline))
        for name, values in values_by_system.items()
        if name != baseline
    }
    adjusted = holm([paired.p_value for paired in pairs.values()])
    return [Comparison(name, baseline, paired, p) for (name, paired), p in zip(pairs.items(), adjusted, strict=True)]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values, in the order given; None stays None and is no comparison.

    Library: statsmodels.stats.multitest.multipletests. Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1].tolist() if known else [])
    return [None if p is None else next(adjusted) for p in p_values]


def expected_discordance(first_rate: float, second_rate: float) -> float:
    """Share of tasks that exactly one system succeeds on if they succeed independently: a (1 - b) + b (1 - a).

    Systems that find the same tasks easy disagree on fewer, so this asks for more tasks rather than too few.
    """
    return first_rate * (1 - second_rate) + second_rate * (1 - first_rate)


def mcnemar_power(num_tasks: int, difference: float, discordance: float, *, alpha: float = 0.05) -> float:
    """Power of the exact two-sided McNemar test, the test that `sign_flip_p` makes of success 0 or 1.

    sum over m of Binomial(m; num_tasks, discordance) P(test on m discordant tasks rejects). Source: SAS/STAT, POWER procedure,
    PAIREDFREQ with DIST=EXACT_COND; R's exact2x2::powerPaired2x2. statsmodels has none. Library: scipy.stats.binom.

    Raises:
        ValueError: If not 0 < |difference| <= discordance <= 1.
    """
    from scipy.stats import binom

    difference, discordance = _possible(difference, discordance)
    fewest, most = binom.interval(1 - 1e-12, num_tasks, discordance)
    discordant = np.arange(fewest, most + 1)
    critical = binom.ppf(alpha / 2, discordant, 0.5)
    critical -= binom.cdf(critical, discordant, 0.5) > alpha / 2  # the largest count whose tail is at most alpha / 2
    share = (1 + difference / discordance) / 2
    rejected = binom.cdf(critical, discordant, share) + binom.sf(discordant - critical - 1, discordant, share)
    return float(binom.pmf(discordant, num_tasks, discordance) @ rejected)


def _possible(difference: float, discordance: float) -> tuple[float, float]:
    """Both without rounding errors, so that 0.9 - 0.6 is at most 0.3."""
    rounded = round(difference, DECIMALS), round(discordance, DECIMALS)
    if not 0 < abs(rounded[0]) <= rounded[1] <= 1:
        raise ValueError(f"difference {difference:g}, discordance {discordance:g}; expected 0 < |difference| <= discordance <= 1")
    return rounded


def tasks_needed(difference: float, discordance: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Tasks that the exact McNemar test needs to see a difference in success rate, two-sided.

    n = ((z_{1-alpha/2} sqrt(D) + z_power sqrt(D - d^2)) / d)^2 for the asymptotic test, Connor, Biometrics 43 (1987), p. 209,
    which is statsmodels.stats.power.normal_sample_size_one_tail; from there up to the first n whose `mcnemar_power`
    suffices, for the exact test has less power. Holds for independent tasks: with groups more are needed.

    Args:
        difference: d, success rate of the one system minus that of the other.
        discordance: D, share of tasks that exactly one of them succeeds on; see `expected_discordance`.
        power: Probability of p <= alpha if d and D are so, between alpha and 1.

    Raises:
        ValueError: If not 0 < |difference| <= discordance <= 1, or not alpha < power < 1.
    """
    from statsmodels.stats.power import normal_sample_size_one_tail

    d, share = _possible(difference, discordance)
    if not 0 < alpha < power < 1:
        raise ValueError(f"power {power:g}, alpha {alpha:g}; expected 0 < alpha < power < 1")
    n = math.ceil(normal_sample_size_one_tail(abs(d), power, alpha / 2, math.sqrt(share), math.sqrt(share - d**2)))
    while mcnemar_power(n, d, share, alpha=alpha) < power:
        n += 1
    return n


def pairs_needed_for_win_rate(win_rate: float, *, tie_rate: float = 0.0) -> int:
    """Judged pairs that the exact sign test needs to tell a win rate from 1/2, two-sided, with power 0.8 at alpha 0.05.

    Wins and losses are the two kinds of discordant task, so it is `tasks_needed(2 win_rate - 1, 1 - tie_rate)`.

    Args:
        win_rate: Wins plus half the ties, as a share of all pairs.
        tie_rate: Share of pairs that are ties, or have no winner in both orders.

    Raises:
        ValueError: If the win rate is 1/2, or cannot be with so many ties.
    """
    if not 0 < round(abs(2 * win_rate - 1), DECIMALS) <= round(1 - tie_rate, DECIMALS) <= 1:
        raise ValueError(f"win rate {win_rate:g} with ties {tie_rate:g}; expected a win rate other than 0.5, from ties / 2 to 1 - ties / 2")
    return tasks_needed(2 * win_rate - 1, 1 - tie_rate)


def rank_correlation(
    ours: Mapping[str, Values], published: Values, seed: int = 0, *, groups: Mapping[str, str] | None = None
) -> RankCorrelation:
    """Spearman's rho between our systems' means and the published numbers.

    p value and interval answer different questions. The p value shuffles systems: could an order like the published one be
    chance? All n! orders up to n = 7, Monte Carlo above. The interval keeps the systems, which are few and chosen rather than
    drawn, and resamples tasks, the same for all: could other tasks have brought another order? It takes the published
    numbers as they are, and leans towards 0 where our means are close. Library: scipy.stats.permutation_test, rankdata.

    Args:
        ours: Values by task of each system; a mean is over the system's own scored tasks.
        published: Number by system.
        groups: As in `paired_difference`.

    Returns:
        No rho for fewer than three systems or where all on one side are equal; equal ranks are averaged.

    Raises:
        SchemaError: If no system is on both sides, or a task has no group.
    """
    shared = sorted(ours.keys() & published.keys())
    if not shared:
        sides = [", ".join(sorted(side)) or "none" for side in (ours, published)]
        raise SchemaError(f"our systems ({sides[0]}) and the published ones ({sides[1]}) have none in common; compare the same systems")
    systems = [name for name in shared if _is_scored(published[name]) and any(map(_is_scored, ours[name].values()))]
    tasks = sorted({task for name in systems for task, value in ours[name].items() if _is_scored(value)})
    counts = len(systems), len(shared) - len(systems)
    sums, sizes = _group_totals([ours[name] for name in systems], tasks, _membership(tasks, groups))
    means, numbers = sums.sum(0) / sizes.sum(0), np.array([published[name] for name in systems], dtype=float)
    value = float(_spearman(means, numbers))
    if len(systems) < 3 or math.isnan(value):
        return RankCorrelation(Rate(None, None, None, *counts), None, len(tasks))
    rho = Rate(value, *_rho_interval(sums, sizes, numbers, seed), *counts)
    return RankCorrelation(rho, _pairing_p(means, numbers, seed), len(tasks))


def _group_totals(values: Sequence[Values], tasks: Sequence[str], membership: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the scored values, two arrays (groups, systems)."""
    sums, sizes = np.zeros((2, int(membership.max(initial=-1)) + 1, len(values)))
    for group, task in zip(membership, tasks, strict=True):
        for column, system in enumerate(values):
            if _is_scored(system.get(task)):
                sums[group, column] += system[task]
                sizes[group, column] += 1
    return sums, sizes


def _spearman(means: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the averaged ranks along the last axis; NaN where one side is constant or unknown."""
    from scipy.stats import rankdata

    centre = (numbers.shape[-1] + 1) / 2
    x, y = rankdata(np.round(means, DECIMALS), axis=-1) - centre, rankdata(numbers, axis=-1) - centre
    with np.errstate(invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def _rho_interval(sums: np.ndarray, sizes: np.ndarray, numbers: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """Percentile interval over resampled groups; a draw without a task of some system, or with equal means, has no rho."""
    num_groups = len(sums)
    counts = np.random.default_rng(seed).multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=NUM_RESAMPLES)
    with np.errstate(invalid="ignore"):
        drawn = _spearman(counts @ sums / (counts @ sizes), numbers)
    drawn = drawn[~np.isnan(drawn)]
    if num_groups < 2 or not len(drawn):
        return None, None
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _pairing_p(means: np.ndarray, numbers: np.ndarray, seed: int) -> float:
    from scipy.stats import permutation_test

    samples = {"n_resamples": NUM_RESAMPLES, "batch": BATCH, "rng": np.random.default_rng(seed)}
    result = permutation_test((numbers,), lambda shuffled, axis: _spearman(means, shuffled), permutation_type="pairings", **samples)
    return float(result.pvalue)
