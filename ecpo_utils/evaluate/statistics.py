"""Rates and means that carry their n and a 95% interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999


@dataclass(frozen=True)
class Rate:
    """A rate in [0, 1] or a mean, with its interval.

    Attributes:
        value: None if nothing was scored.
        low: Lower end of the 95% interval, None where n is too small to have one; `high` likewise.
        n: Values that `value` rests on.
        num_unscored: Values that were left out because they have no score.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    num_unscored: int = 0

    def text(self, digits: int = 2) -> str:
        """As tables show it: "0.53 [0.43, 0.63] n=100"."""
        if self.value is None:
            return f"unscored (n={self.n})"
        interval = "" if self.low is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.value:.{digits}f}{interval} n={self.n}"


def proportion(total: float, n: int, *, num_unscored: int = 0) -> Rate:
    """Mean of n values in [0, 1] that sum to `total`, successes or wins with ties counted half, with a Wilson interval.

    Values between 0 and 1 vary less than a coin of the same mean, so the interval is on the safe side.
    Library: statsmodels.stats.proportion.proportion_confint.

    Raises:
        ValueError: If not 0 <= total <= n.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= total <= n:
        raise ValueError(f"a total of {total} over {n} values; expected 0 <= total <= n")
    if n == 0:
        return Rate(None, None, None, 0, num_unscored)
    low, high = proportion_confint(total, n, alpha=1 - CONFIDENCE, method="wilson")
    # at its ends the interval touches 0 and 1, which floats miss by a little
    return Rate(total / n, float(low) if total else 0.0, float(high) if total < n else 1.0, n, num_unscored)


def average(values: Iterable[float | None]) -> float | None:
    """Mean without an interval; None is unscored and left out, and the mean of nothing."""
    scored = [value for value in values if value is not None]
    return float(np.mean(scored)) if scored else None


def mean(values: Iterable[float | None], *, seed: int = 0) -> Rate:
    """Mean with a percentile bootstrap interval. Library: scipy.stats.bootstrap.

    Args:
        values: One value per independent unit (a dialogue, say); None or NaN is unscored, left out and counted.
        seed: Of the resampling, so that the same values have the same interval.

    Returns:
        Rate without an interval for fewer than two values; equal values have an interval of width 0.
    """
    everything = list(values)
    scored = np.array([value for value in everything if value is not None and not math.isnan(value)], dtype=float)
    num_unscored = len(everything) - len(scored)
    if not len(scored):
        return Rate(None, None, None, 0, num_unscored)
    low, high = _bootstrap(scored, seed)
    return Rate(float(scored.mean()), low, high, len(scored), num_unscored)


def _bootstrap(scored: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """Percentile interval; BCa is undefined for small samples with equal values, so it is not used."""
    from scipy.stats import bootstrap

    if len(scored) < 2:
        return None, None
    if np.ptp(scored) == 0:
        return float(scored[0]), float(scored[0])
    rng = np.random.default_rng(seed)
    result = bootstrap((scored,), np.mean, confidence_level=CONFIDENCE, n_resamples=NUM_RESAMPLES, method="percentile", rng=rng)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
