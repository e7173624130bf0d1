"""What a simulated user may say about the target: its description without its title, from vague to telling."""

from __future__ import annotations

import re

from ..core.matching import hide_title
from ..core.quoting import quote_for_users
from ..core.schema import Item
from ..data.fields import split_byline

_GENERAL_CATEGORIES = {"books", "video games", "restaurants", "shopping"}


def target_wishes(item: Item) -> list[str]:
    """What can be told about the target without its name, from vague to telling.

    Categories come first, then the sentences of the description, and last the byline ("By ...") that
    would give a book away at once. The title is blanked out wherever it stands.
    """
    general = [category for category in item.categories if category.lower() not in _GENERAL_CATEGORIES]
    byline, body = split_byline(item.description)
    rest = [s.strip() for s in re.split(r"(?<=[.!?])\s+", body) if s.strip()]
    told = [" / ".join(general[:2]) or "anything good", *rest, *filter(None, [byline.strip()])]
    return [quote_for_users(hide_title(text, item.title)) for text in told]
