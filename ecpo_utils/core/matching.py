"""Whether a text names an item. One rule for leaks, success and figures alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from .quoting import INVISIBLE
from .schema import Turn

_INVISIBLE = re.compile(f"[{INVISIBLE}]")  # a title with such characters within is read as without
_TOKEN = re.compile(rf"[^\W_](?:[{INVISIBLE}]*[^\W_])*(?:[{INVISIBLE}]*['\u2019][{INVISIBLE}]*[^\W_](?:[{INVISIBLE}]*[^\W_])*)*|&")
_EDITION = re.compile(r"\s*[\(\[][^\)\]]*[\)\]]\s*$")


def normalise(text: str) -> str:
    """Lower-cased words without accents or punctuation, single-spaced."""
    plain = text.replace("&", " and ").replace("'", "").replace("\u2019", "")
    if not plain.isascii():
        plain = _INVISIBLE.sub("", plain)
        plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", plain.lower()))


def says_again(reply: str, earlier: Iterable[Turn]) -> bool:
    """Whether the agent said the same in an earlier turn."""
    return normalise(reply) in {normalise(turn.reply or "") for turn in earlier}


def title_words(title: str) -> str:
    """The words by which a title is known: without an edition note in brackets at its end, if something is left."""
    return normalise(_EDITION.sub("", title)) or normalise(title)


def mentions_title(text: str, title: str) -> bool:
    """Whether `text` holds the whole title, word for word. Paper: section B.5 (success).

    Case, accents and punctuation do not count, nor does an edition note in brackets at the title's
    end ("(Kindle Edition)") once something is left without it. Unlike the release's substring test
    this does not find "Emma" in "dilemma".
    """
    words = title_words(title)
    return bool(words) and f" {words} " in f" {normalise(text)} "


def hide_title(text: str, title: str) -> str:
    """The text with "it" in place of the title wherever `mentions_title` would find it."""
    words, text = title_words(title).split(), unicodedata.normalize("NFC", text)
    tokens = [(match.span(), normalise(match.group())) for match in _TOKEN.finditer(text)]
    position, parts = 0, []
    index = 0
    while index < len(tokens):
        if words and [word for _, word in tokens[index : index + len(words)]] == words:
            start, end = tokens[index][0][0], tokens[index + len(words) - 1][0][1]
            parts += [text[position:start], "it"]
            position, index = end, index + len(words)
        else:
            index += 1
    return "".join(parts) + text[position:]
