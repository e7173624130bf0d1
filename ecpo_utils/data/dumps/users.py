"""Sampling users from a spill: those with as many reviews as the paper asks for, in the order of a seeded hash of their ids."""

from __future__ import annotations

from dataclasses import dataclass

from .engine import Engine, quoted
from .reviews import Spill
from .sources import DumpSource


@dataclass(frozen=True)
class UserRule:
    """Which users are sampled. The defaults are those of the release: exactly 30 reviews.

    Attributes:
        num_users: How many; the first in the order of their hashes, which depends on nothing but id and seed.
        min_reviews, max_reviews: Distinct reviews of a user; no maximum if 0.
        min_liked: Distinct items that the user rated at least `min_rating`.
    """

    num_users: int = 100
    min_reviews: int = 30
    max_reviews: int = 30
    min_liked: int = 4
    min_rating: float = 4.0


@dataclass
class Sample:
    """Users that the rule lets in, and all their reviews.

    Attributes:
        users: Ids in the order of their hashes, at most as many as were asked for.
        rows: Their distinct reviews: line, or None if it was not counted, and values by the source's keys.
        copies: Further copies of these: line or None, and the user's id.
        counts: Of the spill: reviews, users, users who qualify, copies among users with enough reviews.
    """

    users: list[str]
    rows: list[tuple[int | None, dict]]
    copies: list[tuple[int | None, str]]
    counts: dict[str, int]


def sample_users(engine: Engine, source: DumpSource, spill: Spill, rule: UserRule, *, limit: int, seed: int) -> Sample:
    """The first `limit` users whom the rule lets in.

    Of several copies of a review the one whose values come first in order counts, wherever it stood in the file.
    """
    user, item, rating = source.user, source.item, source.rating
    if not spill.parts:
        return Sample([], [], [], dict.fromkeys(("reviews", "users", "users_qualified", "copies"), 0))
    parts = ", ".join(quoted(part) for part in spill.parts)
    rest = ", ".join(key for key in source.review_columns if key not in source.review_key)
    engine.rows(f"CREATE OR REPLACE TEMP VIEW spill AS SELECT * EXCLUDE (sound) FROM read_parquet([{parts}])")
    engine.rows(
        f"""CREATE OR REPLACE TEMP TABLE heavy AS
        SELECT *, row_number() OVER (PARTITION BY {", ".join(source.review_key)} ORDER BY {rest}, line) AS copy
        FROM spill WHERE {user} IN (SELECT {user} FROM spill GROUP BY 1 HAVING count(*) >= {rule.min_reviews})"""
    )
    most = f"AND count(*) <= {rule.max_reviews}" if rule.max_reviews else ""
    engine.rows(
        f"""CREATE OR REPLACE TEMP TABLE qualified AS
        SELECT {user} AS id, hash({user}, {seed}) AS place FROM heavy WHERE copy = 1 GROUP BY {user}
        HAVING count(*) >= {rule.min_reviews} {most}
        AND count(DISTINCT {item}) FILTER ({rating} >= {rule.min_rating}) >= {rule.min_liked}"""
    )
    engine.rows(f"CREATE OR REPLACE TEMP TABLE chosen AS SELECT id FROM qualified ORDER BY place, id LIMIT {limit}")
    users = [name for (name,) in engine.rows("SELECT id FROM chosen JOIN qualified USING (id) ORDER BY place, id")]
    columns = ", ".join(source.review_columns)
    rows = engine.rows(f"SELECT line, {columns} FROM heavy WHERE copy = 1 AND {user} IN (SELECT id FROM chosen)")
    copies = engine.rows(f"SELECT line, {user} FROM heavy WHERE copy > 1 AND {user} IN (SELECT id FROM chosen)")
    names = ("reviews", "users", "users_qualified", "copies")
    counts = engine.rows(
        f"""SELECT (SELECT count(*) FROM spill), (SELECT count(DISTINCT {user}) FROM spill),
        (SELECT count(*) FROM qualified), (SELECT count(*) FROM heavy WHERE copy > 1)"""
    )[0]
    named = [(line, dict(zip(source.review_columns, values, strict=True))) for line, *values in rows]
    return Sample(users, named, copies, dict(zip(names, counts, strict=True)))
