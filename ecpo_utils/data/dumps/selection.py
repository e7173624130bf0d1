"""Which users and reviews a build takes: a sample large enough, then only what the meta file knows."""

from __future__ import annotations

import logging

from ...core.errors import SchemaError
from ...core.schema import Item, Review
from .engine import Engine
from .rejects import Rejects
from .reviews import ReviewPass, Spill
from .users import Sample, UserRule, sample_users

logger = logging.getLogger(__name__)

SPILL_BYTES = 1 << 27  # of review text that the first pass keeps; writing it is what a pass costs beyond the scan
MIN_SHARE = 0.01
PACKED_RATIO = 4  # text to its gzip file, about


def find_users(engine: Engine, review_pass: ReviewPass, rule: UserRule) -> tuple[Spill, Sample]:
    """The first users whom the rule lets in, with some in reserve for those whose items the meta file lacks.

    One pass over the file will do unless too few of the users that it keeps qualify, or a copy of a sampled review is to be told
    with its line.

    Raises:
        SchemaError: If nobody qualifies; says which options decide it.
    """
    source, seed = review_pass.source, review_pass.seed
    size = review_pass.path.stat().st_size * (PACKED_RATIO if review_pass.kind.gzip else 1)
    share, limit = min(1.0, max(MIN_SHARE, SPILL_BYTES / size)), rule.num_users + max(10, rule.num_users // 5)
    while True:
        spill = review_pass.run(share)
        sample = sample_users(engine, source, spill, rule, limit=limit, seed=seed)
        if len(sample.users) >= limit or share >= 1:
            break
        share = min(1.0, share * max(4.0, 1.5 * limit / max(len(sample.users), 1)))
        logger.warning("%d of %d users found among the first; reading again with more users", len(sample.users), limit)
    if sample.copies and not spill.careful:
        spill = review_pass.run(share, careful=True)
        sample = sample_users(engine, source, spill, rule, limit=limit, seed=seed)
    if not sample.users:
        most = f" to {rule.max_reviews}" if rule.max_reviews else " or more"
        asked = f"{rule.min_reviews}{most} reviews, {rule.min_liked} liked items ({rule.min_rating:g} stars or more)"
        lost = "".join(f"; {count} lines: {reason}" for reason, count in spill.rejects.dropped.most_common(3))
        raise SchemaError(
            f"{review_pass.path}: none of {sample.counts['users']} users qualifies ({asked}); see --min-reviews, --max-reviews, "
            f"--min-liked{lost}"
        )
    return spill, sample


class Selection:
    """The sampled users' reviews, by user in order of the sample, then by time."""

    def __init__(self, review_pass: ReviewPass, sample: Sample, rule: UserRule):
        self._path, self._rule, self._users = review_pass.path, rule, sample.users
        place = {user: number for number, user in enumerate(sample.users)}
        parsed = [(review_pass.source.parse_review(row, str(self._path)), line) for line, row in sample.rows]
        self._lines = {review.review_id: line for review, line in parsed}
        self.reviews = sorted((r for r, _ in parsed), key=lambda r: (place[r.user_id], r.timestamp_ms, r.review_id))
        self._copies = sample.copies

    def join(self, items: dict[str, Item], rejects: Rejects) -> list[Review]:
        """Reviews of known items, of the first users who like enough of them; what is left out of these users goes to `rejects`.

        Raises:
            SchemaError: If no user is left.
        """
        liked: dict[str, set[str]] = {user: set() for user in self._users}
        for review in self.reviews:
            if review.item_id in items and review.rating >= self._rule.min_rating:
                liked[review.user_id].add(review.item_id)
        chosen = set([user for user in self._users if len(liked[user]) >= self._rule.min_liked][: self._rule.num_users])
        if not chosen:
            number = len({review.item_id for review in self.reviews})
            raise SchemaError(
                f"of the {number} items that the sampled users of {self._path} reviewed, the meta file holds {len(items)}, too few for "
                f"any user; is it of the same category?"
            )
        for line, user in self._copies:
            if user in chosen:
                rejects.add(self._path, line, f"a copy of a review: of user {user}")
        for review in self.reviews:
            if review.user_id in chosen and review.item_id not in items:
                detail = f"its item is not in the meta file: {review.item_id} of user {review.user_id}"
                rejects.add(self._path, self._lines[review.review_id], detail)
        if len(chosen) < self._rule.num_users:
            logger.warning("%d users qualify, %d were asked for; all are taken", len(chosen), self._rule.num_users)
        return [review for review in self.reviews if review.user_id in chosen and review.item_id in items]
