"""The reader of Yelp academic dataset files."""

import json
from datetime import UTC, datetime

import pytest

from ecpo_utils.core.errors import ArtifactError, SchemaError
from ecpo_utils.data.yelp import load_yelp

PLACE = {"business_id": "P1", "name": "Lantern Court", "city": "Harlow Creek", "state": "PA", "categories": "Italian, Restaurants",
         "attributes": {"NoiseLevel": "u'quiet'", "WiFi": "u'no'", "OutdoorSeating": "True", "HasTV": "False",
                        "Ambience": "{'casual': True, 'touristy': False}", "Alcohol": "'none'"}}  # fmt: skip
REVIEW = {"review_id": "R1", "user_id": "U1", "business_id": "P1", "stars": 4.0, "text": "Fine.", "date": "2019-03-12 16:38:29"}


@pytest.fixture
def read(tmp_path):
    def read(places=(PLACE,), reviews=(REVIEW,), summaries=None):
        for name, rows in (("business", places), ("review", reviews), ("summaries", summaries or ())):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (tmp_path / f"{name}.json").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return load_yelp(tmp_path / "review.json", tmp_path / "business.json", tmp_path / "summaries.json" if summaries else None)

    return read


def test_business_and_review_are_joined_on_business_id(read):
    items, reviews = read(reviews=[REVIEW, {**REVIEW, "business_id": "elsewhere"}])
    assert (items["P1"].title, items["P1"].categories, items["P1"].price) == ("Lantern Court", ["Italian", "Restaurants"], None)
    assert [(r.review_id, r.user_id, r.item_id, r.rating, r.text) for r in reviews] == [("R1", "U1", "P1", 4.0, "Fine.")]


def test_dates_are_utc_milliseconds(read):
    when = datetime(2019, 3, 12, 16, 38, 29, tzinfo=UTC)
    assert read()[1][0].timestamp_ms == int(when.timestamp() * 1000)
    assert read(reviews=[{**REVIEW, "date": None}])[1][0].timestamp_ms == 0


def test_description_is_the_place_and_the_summary(read):
    items, _ = read(summaries=[{"business_id": "P1", "summary": "Handmade pasta."}])
    assert items["P1"].description == "In Harlow Creek, PA. Handmade pasta."


def test_attributes_describe_a_business_without_a_summary(read):
    description = read()[0]["P1"].description
    assert description == "In Harlow Creek, PA. NoiseLevel: quiet; OutdoorSeating; Ambience: casual"
    items, _ = read(summaries=[{"business_id": "another", "summary": "x"}])
    assert items["P1"].description == description


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"city": None, "state": None, "attributes": None}, ""),
        ({"state": "", "attributes": {"DogsAllowed": True}}, "In Harlow Creek. DogsAllowed"),
        ({"attributes": {"Ambience": "{'casual': False}", "Price": "2", "Odd": "{broken"}}, "In Harlow Creek, PA. Price: 2; Odd: {broken"),
    ],
)
def test_description_where_parts_are_missing_or_odd(read, changes, expected):
    assert read(places=[{**PLACE, **changes}])[0]["P1"].description == expected


def test_business_without_categories_has_none(read):
    assert read(places=[{**PLACE, "categories": None}])[0]["P1"].categories == []


@pytest.mark.parametrize("key", ["business_id", "name"])
def test_business_without_a_needed_key_names_file_line_and_key(read, key):
    with pytest.raises(SchemaError, match=f"business.json:2: no '{key}'"):
        read(places=[PLACE, {**PLACE, key: None}])


@pytest.mark.parametrize("key", ["review_id", "user_id", "business_id", "stars"])
def test_review_without_a_needed_key_names_file_line_and_key(read, key):
    with pytest.raises(SchemaError, match=f"review.json:1: no '{key}'"):
        read(reviews=[{**REVIEW, key: ""}])


@pytest.mark.parametrize("key", ["business_id", "summary"])
def test_summary_without_a_needed_key_names_file_line_and_key(read, key):
    with pytest.raises(SchemaError, match=f"summaries.json:1: no '{key}'"):
        read(summaries=[{"business_id": "P1", "summary": "x", key: None}])


@pytest.mark.parametrize("changes", [{"stars": "many"}, {"date": "last spring"}])
def test_review_of_the_wrong_type_names_file_and_line(read, changes):
    with pytest.raises(SchemaError, match=r"review.json:1: .+"):
        read(reviews=[{**REVIEW, **changes}])


@pytest.mark.parametrize("changes", [{"categories": ["Bars"]}, {"city": 3}, {"attributes": "none"}])
def test_business_of_the_wrong_type_names_file_and_line(read, changes):
    with pytest.raises(SchemaError, match=r"business.json:1: .+"):
        read(places=[{**PLACE, **changes}])


def test_broken_line_and_missing_file_are_named(read, tmp_path):
    read()
    with pytest.raises(ArtifactError, match="gone.json"):
        load_yelp(tmp_path / "gone.json", tmp_path / "business.json")
    with pytest.raises(SchemaError, match="business.json:1: not valid JSON"):
        read(places=["{"])
