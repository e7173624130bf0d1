"""What must not be shown: a key in a message, a password in an address."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse

_USERINFO = re.compile(r"(?<=://)[^/\s\"'<>]*@")
_SHORTEST_KEY = 8  # shorter ones, as "none" for a server that asks for no key, are words


def hide_userinfo(text: str) -> str:
    """The text with "***" in place of user and password in each address."""
    return _USERINFO.sub("***@", text)


def hide_key(text: str, key: str) -> str:
    """The text with "***" in place of a key, as it is, escaped for JSON or an address, or in base64."""
    if len(key) < _SHORTEST_KEY:
        return text
    for form in _forms(key):
        text = text.replace(form, "***")
    return text


def _forms(key: str) -> list[str]:
    packed = [base64.b64encode(text.encode()).decode().rstrip("=") for text in (key, f":{key}", f"Bearer {key}")]
    escaped = [json.dumps(key)[1:-1], key.replace("/", "\\/"), urllib.parse.quote(key, safe=""), urllib.parse.quote_plus(key)]
    return list(dict.fromkeys([key, *escaped, *packed]))
