"""Summaries of raw item descriptions, which take their place in item database and tasks. Paper: section B.2."""

from __future__ import annotations

import re

from ..core.errors import EndpointError
from ..core.quoting import one_line
from ..core.schema import Item, ItemSummary
from ..llm.client import ChatClient
from ..llm.prompts import render
from .fields import split_byline
from .personas import tidy_sentence

DESCRIPTION_WORDS = 500
SUMMARY_TOKENS = 160
_TAG = re.compile(r"</?\s*description\s*>", re.IGNORECASE)  # what delimits the text in the prompt


async def request_summary(client: ChatClient, item: Item, *, noun: str) -> ItemSummary:
    """A few sentences in place of the item's description. An item that cannot be summarised keeps its own, with the reason.

    Raises:
        EndpointError: If every further call must fail as well.
    """
    words = _TAG.sub(" ", split_byline(item.description)[1]).split()
    if not words:
        return ItemSummary(item_id=item.item_id, error="no description")
    named = {"title": item.title, "categories": ", ".join(item.categories)}
    named = {name: one_line(_TAG.sub(" ", text)) for name, text in named.items()}
    try:
        content = render("item_summary", noun=noun, **named, description=" ".join(words[:DESCRIPTION_WORDS]))
        answer = await client.complete([{"role": "user", "content": content}], max_tokens=SUMMARY_TOKENS)
    except EndpointError as error:
        if error.fatal:
            raise
        return ItemSummary(item_id=item.item_id, error=f"EndpointError: {error}")
    summary = tidy_sentence(answer.text)
    return ItemSummary(item_id=item.item_id, summary=summary, error=None if summary else "the answer is empty")


def with_summary(item: Item, summary: str) -> Item:
    """The item described by a summary, behind author and year or town, which stay; unchanged where there is none."""
    return item.model_copy(update={"description": split_byline(item.description)[0] + summary}) if summary else item
