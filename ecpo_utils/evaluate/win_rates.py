"""Win rates from verdicts, and what the judge's own habits do to them. Paper: section B.5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import SchemaError
from ..core.schema import Verdict
from .judges import DIMENSIONS
from .statistics import Rate, average, proportion

EVEN = 1e-8  # preferences nearer to 0 are ties: rounding in a dialogue against itself, the least mass `ChatClient.choose` gives a word


@dataclass(frozen=True)
class WinRate:
    """How often the first system wins in one dimension.

    Attributes:
        rate: Share of judged pairs that it wins, ties counted half, with its n and 95% interval.
        wins: Pairs won; `ties` and `losses` likewise. In words the two orders of a pair may disagree: then it is a tie. One that
            is won in one order and tied in the other is won here, but three quarters in `rate`; `win_shares` adds up to that.
        num_unscored: Pairs without a verdict in both orders.
        flips: Share of scored pairs whose verdict turns round with the order of presentation; no value for dialogues read apart.
        first_shown: Share of decided single verdicts for the dialogue that was read first, 0.5 without a position bias; likewise.
        is_undecided: Whether what the judge was asked told no side from the other in two pairs or more, or went by the order in
            all: then the rate says nothing.
    """

    rate: Rate
    wins: int
    ties: int
    losses: int
    num_unscored: int
    flips: Rate
    first_shown: Rate
    is_undecided: bool


def group_pairs(verdicts: Sequence[Verdict]) -> list[tuple[Verdict, ...]]:
    """The two presentations of each pair, or the one verdict on dialogues read apart, in the order of the verdicts.

    Raises:
        SchemaError: If a pair was judged in one order only, an order twice, or the orders by two judges.
    """
    found: dict[tuple[str, str, str], dict[str, Verdict]] = {}
    for row in verdicts:
        orders = found.setdefault((row.first, row.second, row.task_id), {})
        if row.shown_first in orders:
            raise SchemaError(f"task {row.task_id}: two verdicts on {row.first} vs {row.second} with the {row.shown_first} shown first")
        orders[row.shown_first] = row
    for (first, second, task), orders in found.items():
        if set(orders) == {"apart"}:
            continue
        if set(orders) != {"first", "second"}:
            raise SchemaError(f"task {task}: {first} vs {second} was judged in one order only; judge it in both")
        if orders["first"].config != orders["second"].config:
            raise SchemaError(f"task {task}: the two orders of {first} vs {second} are of different judges or dialogues; judge it anew")
    return [tuple(orders[name] for name in ("first", "second", "apart") if name in orders) for orders in found.values()]


def preference(pair: tuple[Verdict, ...], dimension: str) -> float | None:
    """Who wins a pair, from 1 for the first system to -1 for the second; None where a presentation is unscored.

    Of dialogues read apart it is the difference of their measures; in words it is the mean of the two scores. With the
    probabilities p and q of the two orders it is p + q - 1, which has the sign of their mean log-odds: a liking for a
    position adds to those of one order and cancels.
    """
    if any(verdict.error is not None or dimension not in verdict.scores for verdict in pair):
        return None
    if pair[0].measures:
        first, second = pair[0].measures[dimension]
        return first - second
    if all(verdict.probabilities for verdict in pair):
        return sum(verdict.probabilities[dimension] for verdict in pair) - 1
    return sum(verdict.scores[dimension] for verdict in pair) / 2


def results(pair: tuple[Verdict, ...], dimension: str) -> list[float]:
    """1 for a win of the first system, 0.5 for a tie, 0 for a loss; nothing where unscored.

    In words the paper counts both orders, so there are two; otherwise the pair has one.
    """
    value = preference(pair, dimension)
    if value is None:
        return []
    if pair[0].measures or all(verdict.probabilities for verdict in pair):
        return [0.5 if abs(value) < EVEN else float(value > 0)]
    return [(verdict.scores[dimension] + 1) / 2 for verdict in pair]


def outcome(pair: tuple[Verdict, ...], dimension: str) -> float | None:
    """Mean of the `results`, None where unscored: in words a win in one order and a tie in the other is 0.75."""
    return average(results(pair, dimension))


def win_rate(verdicts: Sequence[Verdict], *, dimension: str = "final") -> WinRate:
    """Share of judged pairs that the first system wins, ties counted half. Paper: App. B.5.

    Args:
        verdicts: Both presentation orders of every pair; a pair with an unscored order is skipped and counted.
        dimension: "flexibility", "coherence", "guidance" or "final".

    Returns:
        The rate with a Wilson interval over pairs, taken as independent: on the safe side where there are ties, too narrow
        where several pairs are of one user (`comparison.paired_difference` resamples users).

    Raises:
        SchemaError: If a pair was judged in one order only, an order twice, or the orders by two judges.
        ValueError: If there is no such dimension.
    """
    if dimension not in DIMENSIONS:
        raise ValueError(f"no dimension '{dimension}'; there are: {', '.join(DIMENSIONS)}")
    pairs = group_pairs(verdicts)
    scored = [(pair, value) for pair in pairs if (value := outcome(pair, dimension)) is not None]
    values = [value for _, value in scored]
    ordered = [pair for pair, _ in scored if len(pair) == 2]
    decided = [v for pair in ordered for v in pair if v.scores[dimension] != 0]
    unscored = len(pairs) - len(scored)
    flips = proportion(sum(a.scores[dimension] * b.scores[dimension] < 0 for a, b in ordered), len(ordered))
    return WinRate(
        rate=proportion(sum(values), len(values), num_unscored=unscored),
        wins=sum(value > 0.5 for value in values),
        ties=sum(value == 0.5 for value in values),
        losses=sum(value < 0.5 for value in values),
        num_unscored=unscored,
        flips=flips,
        first_shown=proportion(sum((v.scores[dimension] > 0) == (v.shown_first == "first") for v in decided), len(decided)),
        is_undecided=_told_nothing([pair for pair, _ in scored], dimension) and (len(scored) > 1 or flips.value == 1),
    )


def _told_nothing(scored: Sequence[tuple[Verdict, ...]], dimension: str) -> bool:
    """Whether no pair has a winner by what the judge was asked.

    Where dialogues are read apart, a repeated reply is found without the judge and costs flexibility and coherence, hence
    "final" too; guidance is the judge's alone.
    """
    read_apart = all(pair[0].measures for pair in scored)
    names = [dimension, "guidance"] if read_apart and dimension == "final" else [dimension]
    return any(all(outcome(pair, name) == 0.5 for pair in scored) for name in names)


def win_shares(verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """Shares of wins, ties and losses among the final `results`; "win" and half of "tie" are the win rate. Paper: Table 5."""
    found = [value for pair in group_pairs(verdicts) for value in results(pair, "final")]
    return {name: found.count(value) / len(found) if found else None for name, value in (("win", 1.0), ("tie", 0.5), ("lose", 0.0))}


def outcomes(verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """The final `outcome` of every pair by task, for comparisons on the same tasks."""
    return {pair[0].task_id: outcome(pair, "final") for pair in group_pairs(verdicts)}


def win_rate_json(verdicts: Sequence[Verdict]) -> dict:
    """What `ecpo judge --json` prints: n pairs, unscored ones, and per dimension the first system's win rate."""
    rows = {name: win_rate(verdicts, dimension=name) for name in DIMENSIONS}
    final = rows["final"]
    return {
        "n": final.rate.n + final.num_unscored,
        "n_unscored": final.num_unscored,
        **{
            name: {
                "win_rate": row.rate.value,
                "low": row.rate.low,
                "high": row.rate.high,
                "wins": row.wins,
                "ties": row.ties,
                "losses": row.losses,
                "flips": row.flips.value,
                "first_shown": row.first_shown.value,
                "undecided": row.is_undecided,
            }
            for name, row in rows.items()
        },
    }
