"""Every kind of dirt in a line: what is kept, what is repaired, what is listed with its line. Read with care and as a large file."""

import json

import pytest
from data_dumps import MS, business, item, review, to_bytes, yelp_review

WINDOWS = "not UTF-8, read as Windows-1252"
LONG = "word " * 100 + "end"
GOOD = [review(1), review(2), review(3)]
META = [item(number) for number in range(1, 6)]


def spoilt(**changes):
    return review(4, **changes)


def raw(text):
    return text if isinstance(text, bytes) else text.encode()


# (name, the faulty fourth line, reason)
DROPPED = [
    ("half a line", raw('{"rating": 5.0, "user_id": "U1", "par'), "not valid JSON"),
    ("only a brace", raw("{"), "not valid JSON"),
    ("closing brace", raw("}"), "not valid JSON"),
    ("words", raw("hello world"), "not valid JSON"),
    ("single quotes", raw("{'user_id': 'U1', 'rating': 5}"), "not valid JSON"),
    ("a comma behind", raw(json.dumps(spoilt()) + ","), "not valid JSON"),
    ("no colon", raw('{"user_id" "U1"}'), "not valid JSON"),
    ("two objects in a line", raw(json.dumps(spoilt()) * 2), "not valid JSON"),
    ("csv", raw("U1,B4,5.0,Title"), "not valid JSON"),
    ("html", raw("<html><body>503 Service Unavailable</body></html>"), "not valid JSON"),
    ("a raw tab in a text", raw(json.dumps(spoilt()).replace("Text 4", "Text\t4")), "not valid JSON"),
    ("a list", raw('["U1", "B4", 5.0]'), "expected a JSON object, got list"),
    ("an object in a list", raw(json.dumps([spoilt()])), "expected a JSON object, got list"),
    ("null", raw("null"), "expected a JSON object, got NoneType"),
    ("a number", raw("5"), "expected a JSON object, got int"),
    ("a text", raw('"U1"'), "expected a JSON object, got str"),
    ("nested too deeply", raw('{"a":' * 6000 + "1" + "}" * 6000), "not valid JSON"),
    ("an endless number", raw('{"rating": ' + "9" * 5000 + "}"), "not valid JSON"),
    ("NUL bytes alone", b"\0" * 300, "nothing but NUL bytes"),
    ("an empty object", raw("{}"), "no 'user_id'"),
    ("no user", spoilt(user_id=...), "no 'user_id'"),
    ("user null", spoilt(user_id=None), "no 'user_id'"),
    ("user empty", spoilt(user_id=""), "no 'user_id'"),
    ("user a list", spoilt(user_id=["U1"]), "user_id is no text"),
    ("user an object", spoilt(user_id={"id": "U1"}), "user_id is no text"),
    ("no item", spoilt(parent_asin=...), "no 'parent_asin'"),
    ("item null", spoilt(parent_asin=None), "no 'parent_asin'"),
    ("item empty", spoilt(parent_asin=""), "no 'parent_asin'"),
    ("item a list", spoilt(parent_asin=["B4"]), "parent_asin is no text"),
    ("no rating", spoilt(rating=...), "no 'rating'"),
    ("rating null", spoilt(rating=None), "no 'rating'"),
    ("rating empty", spoilt(rating=""), "no 'rating'"),
    ("rating in words", spoilt(rating="five"), "rating is no number from 1 to 5"),
    ("rating 0", spoilt(rating=0), "rating is no number from 1 to 5"),
    ("rating 6", spoilt(rating=6.0), "rating is no number from 1 to 5"),
    ("rating 50", spoilt(rating=50), "rating is no number from 1 to 5"),
    ("rating negative", spoilt(rating=-1), "rating is no number from 1 to 5"),
    ("rating endless", raw(json.dumps(spoilt()).replace("5.0", "1e999")), "rating is no number from 1 to 5"),
    ("rating NaN", spoilt(rating=float("nan")), "rating is no number from 1 to 5"),
    ("rating a list", spoilt(rating=[5]), "rating is no number from 1 to 5"),
    ("rating an object", spoilt(rating={"stars": 5}), "rating is no number from 1 to 5"),
    ("rating true", spoilt(rating="true"), "rating is no number from 1 to 5"),
    ("time in words", spoilt(timestamp="yesterday"), "timestamp is no time in seconds or milliseconds"),
    ("time in microseconds", spoilt(timestamp=MS * 1000), "timestamp is no time in seconds or milliseconds"),
    ("time negative", spoilt(timestamp=-5), "timestamp is no time in seconds or milliseconds"),
    ("time a list", spoilt(timestamp=[MS]), "timestamp is no time in seconds or milliseconds"),
    ("time beyond all numbers", spoilt(timestamp=10**30), "timestamp is no time in seconds or milliseconds"),
    ("text a list", spoilt(text=["a", "b"]), "text is no text"),
    ("text an object", spoilt(text={"body": "a"}), "text is no text"),
    ("title a list", spoilt(title=["a"]), "title is no text"),
    ("title an object", spoilt(title={"en": "a"}), "title is no text"),
]

# (name, the fourth line, reason or None, what must come out)
KEPT = [
    ("rating as text", spoilt(rating="4.0"), None, {"rating": 4.0}),
    ("rating a whole number", spoilt(rating=4), None, {"rating": 4.0}),
    ("time in seconds", spoilt(timestamp=1_600_000_000), "timestamp in seconds", {"timestamp_ms": MS}),
    ("time as text", spoilt(timestamp=str(MS)), None, {"timestamp_ms": MS}),
    ("time with a fraction", spoilt(timestamp=1.6e12), None, {"timestamp_ms": MS}),
    ("no time", spoilt(timestamp=...), "no 'timestamp'", {"timestamp_ms": 0}),
    ("no text", spoilt(text=...), "no 'text'", {"text": ""}),
    ("text null", spoilt(text=None), "no 'text'", {"text": ""}),
    ("text empty", spoilt(text=""), None, {"text": ""}),
    ("text a number", spoilt(text=7), None, {"text": "7"}),
    ("no title", spoilt(title=...), "no 'title'", {"title": ""}),
    ("text in brackets", spoilt(text="[[VIDEOID:1]] Good."), None, {"text": "[[VIDEOID:1]] Good."}),
    ("text in braces", spoilt(text="{sic}"), None, {"text": "{sic}"}),
    ("HTML in texts", spoilt(text="So&#34;so&#34;<br />end <b>bold</b>"), None, {"text": 'So"so" end bold'}),
    ("line breaks in a text", spoilt(text="one\r\ntwo\n\nthree"), None, {"text": "one two three"}),
    ("a title of 500 characters", spoilt(title=LONG), None, {"title": LONG}),
    ("a text of 100,000 words", spoilt(text="word " * 100_000), None, {"text": ("word " * 100_000).strip()}),
    ("NUL as an escape", raw(json.dumps(spoilt(text="a\0b"))), None, {"text": "ab"}),
    ("NUL bytes in the line", raw(json.dumps(spoilt())).replace(b"Text 4", b"Te\0xt 4"), "NUL bytes taken out", {"text": "Text 4."}),
    ("NUL bytes behind the line", raw(json.dumps(spoilt())) + b"\0\0", "NUL bytes taken out", {"text": "Text 4."}),
    ("half a character", raw(json.dumps(spoilt()).replace("Text 4.", "Text \\ud83d4.")), None, {"text": "Text 4."}),
    ("Latin-1", raw(json.dumps(spoilt(text="Caf#")).replace("#", "\u00e9").encode("latin-1")), WINDOWS, {"text": "Café"}),
    ("Windows-1252", raw(json.dumps(spoilt(text="10 #")).replace("#", "€").encode("cp1252")), WINDOWS, {"text": "10 €"}),
    ("CRLF", raw(json.dumps(spoilt()) + "\r"), None, {"text": "Text 4."}),
    ("a comma too many", raw(json.dumps(spoilt())[:-1] + ",}"), None, {"text": "Text 4."}),
    ("blanks around", raw("  " + json.dumps(spoilt()) + " \t"), None, {"text": "Text 4."}),
    ("a byte order mark inside the file", b"\xef\xbb\xbf" + raw(json.dumps(spoilt())), None, {"text": "Text 4."}),
    ("keys we do not know", spoilt(new_key={"a": [1, 2]}), None, {"text": "Text 4."}),
    ("emoji", spoilt(text="\U0001f600 fine"), None, {"text": "\U0001f600 fine"}),
    ("another script", spoilt(text="素晴らしい本"), None, {"text": "素晴らしい本"}),
]  # fmt: skip

either = pytest.mark.parametrize("direct", [False, True], ids=["careful", "as large"])
by_name = {"ids": lambda value: value if isinstance(value, str) and len(value) < 50 else ""}


@either
@pytest.mark.parametrize(("name", "line", "reason"), DROPPED, **by_name)
def test_faulty_line_is_dropped_counted_and_listed(build, name, line, reason, direct):
    facts, _, reviews, rejects = build([*GOOD, line, review(5)], META, direct=direct)
    assert [each["item_id"] for each in reviews] == ["B1", "B2", "B3", "B5"]
    assert [(row["line"], row["reason"], row["kept"]) for row in rejects] == [(4, reason, False)]
    assert rejects[0]["file"].endswith("reviews.jsonl") and facts["dropped"] == {reason: 1} and not facts["repaired"]
    assert facts["counts"]["review_lines"] == 5


@either
@pytest.mark.parametrize(("name", "line", "reason", "expected"), KEPT, **by_name)
def test_odd_line_is_kept_and_a_repair_is_told(build, name, line, reason, expected, direct):
    facts, _, reviews, rejects = build([*GOOD, line, review(5)], META, direct=direct)
    found = {each["item_id"]: each for each in reviews}
    assert sorted(found) == ["B1", "B2", "B3", "B4", "B5"]
    assert {key: found["B4"][key] for key in expected} == expected
    assert [(row["line"], row["reason"], row["kept"]) for row in rejects] == ([(4, reason, True)] if reason else [])
    assert facts["repaired"] == ({reason: 1} if reason else {}) and not facts["dropped"]


@either
def test_blank_lines_count_as_lines_and_are_no_fault(build, direct):
    rows = to_bytes([review(1)]) + b"\n  \r\n\t\n" + to_bytes([review(2), b"broken", review(3)]) + b"\n"
    _, _, reviews, rejects = build(rows, META, direct=direct)
    assert len(reviews) == 3 and [row["line"] for row in rejects] == [6]


@either
def test_file_without_a_last_line_break_is_read_whole(build, direct):
    facts, _, reviews, rejects = build(to_bytes([review(1), review(2)])[:-1], META, direct=direct)
    assert len(reviews) == 2 and not rejects and facts["counts"]["review_lines"] == 2


@either
def test_copies_of_a_review_count_once_and_are_listed(build, direct):
    rows = [review(1), review(2), review(1), review(3), review(1)]
    facts, _, reviews, rejects = build(rows, META, direct=direct)
    assert [each["item_id"] for each in reviews] == ["B1", "B2", "B3"]
    assert [(row["line"], row["reason"]) for row in rejects] == [(3, "a copy of a review"), (5, "a copy of a review")]
    assert facts["dropped"] == {"a copy of a review": 2}


def test_second_opinion_on_the_same_item_is_no_copy(build):
    _, _, reviews, rejects = build([review(1), review(1, timestamp=MS + 99, rating=2.0)], META)
    assert [each["rating"] for each in reviews] == [5.0, 2.0] and not rejects


@either
def test_review_of_an_unknown_item_is_listed(build, direct):
    facts, _, reviews, rejects = build([review(1), review(77), review(2)], META, direct=direct)
    assert [each["item_id"] for each in reviews] == ["B1", "B2"]
    assert [row["reason"] for row in rejects] == ["its item is not in the meta file"] and "B77 of user U1" in rejects[0]["detail"]
    assert rejects[0]["line"] == (None if direct else 2)


def test_a_reason_is_listed_a_thousand_times_and_counted_always(build):
    facts, _, _, rejects = build([review(1), *[b"broken"] * 1500], META)
    assert facts["dropped"] == {"not valid JSON": 1500} and len(rejects) == 1000


# items

ITEM_DROPPED = [
    ("half a line", raw('{"parent_asin": "B2", "ti'), "not valid JSON"),
    ("a list", raw("[1]"), "expected a JSON object, got list"),
    ("NUL bytes", b"\0" * 10, "nothing but NUL bytes"),
    ("no id", item(2, parent_asin=...), "no 'parent_asin'"),
    ("id null", item(2, parent_asin=None), "no 'parent_asin'"),
    ("id a list", item(2, parent_asin=["B2"]), "parent_asin is no text"),
    ("no title", item(2, title=...), "no 'title'"),
    ("title empty", item(2, title=""), "no 'title'"),
    ("title only markup", item(2, title="<br/>"), "no 'title'"),
    ("title a list", item(2, title=["Book"]), "title is no text"),
    ("description of lists", item(2, description=[["a"]]), "an item of another form"),
    ("description of nothing", item(2, description=[None]), "an item of another form"),
    ("categories of numbers", item(2, categories=[1]), "an item of another form"),
    ("store a number", item(2, store=5), "an item of another form"),
]

ITEM_KEPT = [
    ("price as text", item(2, price="$12.99"), {"price": 12.99}),
    ("price from", item(2, price="from 4.50"), {"price": 4.5}),
    ("price in thousands", item(2, price="$1,299.00"), {"price": 1299.0}),
    ("price a dash", item(2, price="—"), {"price": None}),
    ("price null", item(2, price=None), {"price": None}),
    ("price NaN", item(2, price=float("nan")), {"price": None}),
    ("price missing", item(2, price=...), {"price": None}),
    ("categories a text", item(2, categories="Books"), {"categories": ["Books"]}),
    ("categories null", item(2, categories=None), {"categories": []}),
    ("description a text", item(2, description="One <b>text</b>"), {"description": "By A. Writer. One text"}),
    ("details a text", item(2, details="{}"), {"title": "Book 2"}),
    ("markup in the title", item(2, title="Pride &amp;<br/> Prejudice"), {"title": "Pride & Prejudice"}),
    ("Latin-1", raw(json.dumps(item(2, title="Caf#")).replace("#", "\u00e9").encode("latin-1")), {"title": "Café"}),
    ("a byte order mark", b"\xef\xbb\xbf" + raw(json.dumps(item(2))), {"title": "Book 2"}),
    ("CRLF", raw(json.dumps(item(2)) + "\r"), {"title": "Book 2"}),
]


@pytest.mark.parametrize(("name", "line", "reason"), ITEM_DROPPED, **by_name)
def test_faulty_item_is_dropped_and_listed_with_its_reviews(build, name, line, reason):
    _, items, reviews, rejects = build([review(1), review(2), review(3)], [item(1), line, item(3)])
    assert sorted(items) == ["B1", "B3"] and [each["item_id"] for each in reviews] == ["B1", "B3"]
    assert ("meta.jsonl", 2, reason) in [(row["file"].split("/")[-1], row["line"], row["reason"]) for row in rejects]
    assert ("reviews.jsonl", 2) in [(row["file"].split("/")[-1], row["line"]) for row in rejects]


@pytest.mark.parametrize(("name", "line", "expected"), ITEM_KEPT, **by_name)
def test_odd_item_is_kept(build, name, line, expected):
    _, items, _, rejects = build([review(1), review(2)], [item(1), line])
    assert {key: items["B2"][key] for key in expected} == expected
    assert all(row["kept"] for row in rejects)


def test_title_of_500_characters_is_cut_at_a_word_and_told(build):
    facts, items, _, rejects = build([review(2)], [item(2, title=LONG)])
    title = items["B2"]["title"]
    assert 190 <= len(title) <= 200 and LONG.startswith(title + " ")
    assert [(row["line"], row["kept"]) for row in rejects] == [(1, True)] and facts["repaired"] == {"title cut to 200 characters": 1}


def test_of_two_items_with_the_same_id_the_first_counts(build):
    _, items, _, rejects = build([review(1), review(2)], [item(1), item(2), item(1, title="Another")])
    assert items["B1"]["title"] == "Book 1" and [(row["line"], row["reason"]) for row in rejects] == [(3, "a second item of the same id")]


# Yelp

YELP_DROPPED = [
    ("no review id", yelp_review(4, review_id=...), "no 'review_id'"),
    ("no business", yelp_review(4, business_id=None), "no 'business_id'"),
    ("stars missing", yelp_review(4, stars=...), "no 'stars'"),
    ("stars absurd", yelp_review(4, stars=11), "rating is no number from 1 to 5"),
    ("date in words", yelp_review(4, date="last spring"), "date is no date"),
    ("a day that is none", yelp_review(4, date="2019-02-30 10:00:00"), "date is no date"),
    ("date a number", yelp_review(4, date=1552408709), "date is no date"),
    ("text a list", yelp_review(4, text=["a"]), "text is no text"),
    ("broken", b'{"review_id": "R4", "user', "not valid JSON"),
]
PLACES = [business(number) for number in range(1, 6)]


@either
@pytest.mark.parametrize(("name", "line", "reason"), YELP_DROPPED, **by_name)
def test_faulty_line_of_yelp_is_dropped_counted_and_listed(build, name, line, reason, direct):
    _, _, reviews, rejects = build([yelp_review(1), yelp_review(2), line, yelp_review(3)], PLACES, source="yelp", direct=direct)
    assert [each["item_id"] for each in reviews] == ["P1", "P2", "P3"]
    assert [(row["line"], row["reason"]) for row in rejects] == [(3, reason)]


@pytest.mark.parametrize(("changes", "expected"), [({"date": "2019-03-12"}, 1552348800000), ({"date": ...}, 0), ({"date": None}, 0)])
def test_odd_dates_of_yelp(build, changes, expected):
    _, _, reviews, rejects = build([yelp_review(1, **changes)], PLACES, source="yelp")
    assert reviews[0]["timestamp_ms"] == expected and not [row for row in rejects if not row["kept"]]


@pytest.mark.parametrize(
    "changes", [{"categories": ["Bars"]}, {"city": 3}, {"attributes": "none"}, {"name": ["x"]}, {"business_id": {"a": 1}}]
)
def test_business_of_another_form_is_listed(build, changes):
    _, items, _, rejects = build([yelp_review(1), yelp_review(2)], [business(1), business(2, **changes)], source="yelp")
    assert sorted(items) == ["P1"] and 2 in [row["line"] for row in rejects if row["file"].endswith("meta.jsonl")]
