"""The reader of Amazon Reviews 2023 files."""

import json

import pytest

from ecpo_utils.core.errors import ArtifactError, SchemaError
from ecpo_utils.data.amazon import load_amazon
from ecpo_utils.data.fields import parse_price

META = {"parent_asin": "B1", "title": "Emma", "categories": ["Books", "Classics"], "description": ["A matchmaker errs."],
        "author": {"name": "Jane Austen"}, "details": {"Publication Date": "December 23, 1815"}, "price": "$4.50"}  # fmt: skip
REVIEW = {"parent_asin": "B1", "user_id": "U1", "rating": 5.0, "title": "Lovely", "text": "Funny.", "timestamp": 1331717485945}


@pytest.fixture
def read(tmp_path):
    """Items and reviews of rows written as the dumps are."""

    def read(meta=(META,), reviews=(REVIEW,)):
        for name, rows in (("meta", meta), ("reviews", reviews)):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return load_amazon(tmp_path / "reviews.jsonl", tmp_path / "meta.jsonl")

    return read


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


def test_item_and_review_are_joined_on_parent_asin(read):
    items, reviews = read(reviews=[REVIEW, {**REVIEW, "parent_asin": "unknown"}])
    item = items["B1"]
    assert (item.title, item.categories, item.price) == ("Emma", ["Books", "Classics"], 4.5)
    assert [(r.user_id, r.item_id, r.rating, r.title, r.text) for r in reviews] == [("U1", "B1", 5.0, "Lovely", "Funny.")]
    assert reviews[0].timestamp_ms == 1331717485945


def test_byline_with_author_and_year_opens_the_description(read):
    assert read()[0]["B1"].description == "By Jane Austen (1815). A matchmaker errs."


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"author": None, "store": "Jane Austen (Author)  Format: Kindle Edition"}, "By Jane Austen (1815). A matchmaker errs."),
        ({"author": None, "store": "Wube Software"}, "By Wube Software (1815). A matchmaker errs."),
        ({"author": None}, "(1815). A matchmaker errs."),
        ({"details": {}}, "By Jane Austen. A matchmaker errs."),
        ({"details": {"Release Date": "no date", "Publication Date": "2003"}}, "By Jane Austen (2003). A matchmaker errs."),
        ({"details": {"Publication Date": "19999"}}, "By Jane Austen. A matchmaker errs."),
        ({"author": None, "details": "{}"}, "A matchmaker errs."),
        ({"description": [], "features": ["Hardcover", "Illustrated"]}, "By Jane Austen (1815). Hardcover Illustrated"),
        ({"description": "One text, no list."}, "By Jane Austen (1815). One text, no list."),
    ],
)
def test_description_where_parts_are_missing_or_of_another_form(read, changes, expected):
    assert read(meta=[{**META, **changes}])[0]["B1"].description == expected


def test_markup_entities_and_line_breaks_are_cleaned(read):
    items, reviews = read(meta=[{**META, "title": "Pride &amp;\n Prejudice", "description": ["<b>Bold</b><br />words"]}],
                          reviews=[{**REVIEW, "text": "So&#34;so&#34;<br />end"}])  # fmt: skip
    assert items["B1"].title == "Pride & Prejudice"
    assert items["B1"].description.endswith(". Bold words")
    assert reviews[0].text == 'So"so" end'


@pytest.mark.parametrize(
    ("value", "expected"),
    [(12.99, 12.99), (7, 7.0), ("$12.99", 12.99), ("from 4.50", 4.5), ("$1,299.00", 1299.0), (None, None), ("", None), ("—", None)],
)
def test_price_is_dollars_or_none(value, expected):
    assert parse_price(value) == expected


@pytest.mark.parametrize("key", ["parent_asin", "title"])
def test_item_without_a_needed_key_names_file_line_and_key(read, tmp_path, key):
    with pytest.raises(SchemaError, match=f"meta.jsonl:2: no '{key}'"):
        read(meta=[META, without(META, key)])


@pytest.mark.parametrize("key", ["parent_asin", "user_id", "rating"])
def test_review_without_a_needed_key_names_file_line_and_key(read, key):
    with pytest.raises(SchemaError, match=f"reviews.jsonl:1: no '{key}'"):
        read(reviews=[without(REVIEW, key)])


@pytest.mark.parametrize("changes", [{"rating": "five"}, {"rating": [5]}, {"text": ["a", "b"]}, {"timestamp": "yesterday"}])
def test_review_of_the_wrong_type_names_file_and_line(read, changes):
    with pytest.raises(SchemaError, match=r"reviews.jsonl:2: .+") as error:
        read(reviews=[REVIEW, {**REVIEW, **changes}])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"description": [None]}, {"categories": [1]}, {"store": 5, "author": None}])
def test_item_of_the_wrong_type_names_file_and_line(read, changes):
    with pytest.raises(SchemaError, match=r"meta.jsonl:1: .+"):
        read(meta=[{**META, **changes}])


def test_broken_line_and_missing_file_are_named(read, tmp_path):
    with pytest.raises(SchemaError, match="reviews.jsonl:2: not valid JSON"):
        read(reviews=[REVIEW, '{"rating": '])
    with pytest.raises(ArtifactError, match="gone.jsonl"):
        load_amazon(tmp_path / "reviews.jsonl", tmp_path / "gone.jsonl")
