"""Whether a text names an item. One rule for leaks, success and figures alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from .quoting import INVISIBLE
from .schema import Turn

_INVISIBLE = re.compile(f"[{INVISIBLE}]")  # a title with such characters within is read as without
_TOKEN = re.compile(rf"[^\W_](?:[{INVISIBLE}]*[^\W_])*(?:[{INVISIBLE}]*['\u2019][{INVISIBLE}]*[^\W_](?:[{INVISIBLE}]*[^\W_])*)*|&")
_EDITION = re.compile(r"\s*[\(\[][^\)\]]*[\)\]]\s*$")
_MARKS = str.maketrans("\u2122\u2120", "  ")  # trade and service marks, of which NFKD makes letters


def normalise(text: str) -> str:
    """Lower-cased words without accents or punctuation, single-spaced."""
    plain = text.replace("&", " and ").replace("'", "").replace("\u2019", "")
    if not plain.isascii():
        plain = _INVISIBLE.sub("", plain.translate(_MARKS))
        plain = "".join(f" {c} " if unicodedata.decomposition(c).startswith("<fraction>") else c for c in plain)  # 13\u00be: 13 3 4
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
    end ("(Kindle Edition)") once something is left without it. If that is a single word, it must have
    the title's capitals: "his dog" does not name "His (Ties That Bind, Book 2)". Unlike the release's
    substring test this does not find "Emma" in "dilemma".
    """
    words = title_words(title)
    if not words or f" {words} " not in f" {normalise(text)} ":
        return False
    return not _lone_word(title) or any(_namings(unicodedata.normalize("NFC", text), title))


def hide_title(text: str, title: str) -> str:
    """The text with "it" in place of the title wherever `mentions_title` would find it."""
    text, position, parts = unicodedata.normalize("NFC", text), 0, []
    for start, end in _namings(text, title):
        parts += [text[position:start], "it"]
        position = end
    return "".join(parts) + text[position:]


def _lone_word(title: str) -> str:
    """The one word, as it is written, to which a note in brackets at the end leaves a title; "" for other titles."""
    words = title_words(title)
    if " " in words or words == normalise(title):
        return ""
    return _TOKEN.search(unicodedata.normalize("NFC", title)).group()


def _namings(text: str, title: str) -> Iterator[tuple[int, int]]:
    """Where an NFC text names the title, without a note in brackets: beginnings and ends."""
    lone = _lone_word(title)
    words = (normalise(title) if lone else title_words(title)).split()
    length = 1 if lone else len(words)
    tokens = [(match, word) for match in _TOKEN.finditer(text) for word in normalise(match.group()).split()]
    index = 0
    while index < len(tokens):
        is_named = bool(words) and [word for _, word in tokens[index : index + len(words)]] == words
        if is_named or lone and _INVISIBLE.sub("", tokens[index][0].group()) == lone:
            yield tokens[index][0].start(), tokens[index + length - 1][0].end()
            index += length
        else:
            index += 1
