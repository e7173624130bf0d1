"""Rows of small dumps in the sources' own formats, to be spoilt."""

from __future__ import annotations

import json

from ecpo_utils.data.dumps.users import UserRule

MS = 1_600_000_000_000
EVERYONE = UserRule(num_users=10, min_reviews=1, max_reviews=0, min_liked=1)


def review(number: int, user: str = "U1", **changes: object) -> dict:
    """An Amazon review of item B{number}; a key that is changed to ... is left out."""
    row = {
        "rating": 5.0, "title": f"Title {number}", "text": f"Text {number}.", "images": [], "asin": f"B{number}",
        "parent_asin": f"B{number}", "user_id": user, "timestamp": MS + number, "helpful_vote": 0, "verified_purchase": True,
    }  # fmt: skip
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def item(number: int, **changes: object) -> dict:
    """An Amazon item."""
    row = {
        "main_category": "Books", "title": f"Book {number}", "average_rating": 4.0, "rating_number": 3, "features": [],
        "description": [f"About {number}."], "price": 9.5, "images": [], "videos": [], "store": "A. Writer",
        "categories": ["Books", "Novels"], "details": {}, "parent_asin": f"B{number}", "bought_together": None,
    }  # fmt: skip
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def yelp_review(number: int, user: str = "U1", **changes: object) -> dict:
    row = {"review_id": f"R{user}{number}", "user_id": user, "business_id": f"P{number}", "stars": 4.0, "useful": 0, "funny": 0, "cool": 0,
           "text": f"Text {number}.", "date": "2019-03-12 16:38:29"}  # fmt: skip
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def business(number: int, **changes: object) -> dict:
    row = {"business_id": f"P{number}", "name": f"Place {number}", "address": "", "city": "Harlow", "state": "PA", "postal_code": "",
           "latitude": 1.0, "longitude": 1.0, "stars": 4.0, "review_count": 3, "is_open": 1, "attributes": {"WiFi": "u'free'"},
           "categories": "Bars, Food", "hours": None}  # fmt: skip
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def to_bytes(rows: list) -> bytes:
    """Rows as the lines of a file; a row that is bytes already is a line as it is."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()) + b"\n" for row in rows)
