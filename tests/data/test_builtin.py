"""What the built-in data promise: counts, unique ids, joins, and titles that nothing gives away."""

import json
import re
from functools import cache

import pytest

from ecpo_utils.core.matching import mentions_title, normalise
from ecpo_utils.data.builtin import FILES, load_builtin
from ecpo_utils.data.personas import sample_users

DOMAINS = ("book", "game", "yelp")
NAMES = {"book": ("meta.jsonl", "parent_asin"), "game": ("meta.jsonl", "parent_asin"), "yelp": ("business.json", "business_id")}

load = cache(load_builtin)


def liked_pairs(domain):
    return {(review.user_id, review.item_id) for review in load(domain)[1] if review.rating >= 4}


@pytest.mark.parametrize(("domain", "num_items", "num_users"), [("book", 400, 60), ("game", 200, 30), ("yelp", 200, 30)])
def test_there_are_enough_items_and_users(domain, num_items, num_users):
    items, reviews = load(domain)
    assert len(items) >= num_items
    assert len({review.user_id for review in reviews}) >= num_users


def test_there_are_enough_liked_books():
    assert len(liked_pairs("book")) >= 360


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_user_likes_enough_to_be_sampled(domain):
    users = {review.user_id for review in load(domain)[1]}
    assert len(sample_users(load(domain)[1], num_users=1000, min_liked=4, min_rating=4.0, seed=0)) == len(users)


def test_every_book_states_author_and_year():
    descriptions = [item.description for item in load("book")[0].values()]
    assert [text[:60] for text in descriptions if not re.match(r"By \S.+ \(\d{3,4}\)\. \S", text)] == []


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_item_has_categories_and_a_description_of_some_length(domain):
    assert [item.title for item in load(domain)[0].values() if not item.categories or len(item.description.split()) < 15] == []


@pytest.mark.parametrize("domain", DOMAINS)
def test_ids_are_unique(domain):
    file, key = NAMES[domain]
    ids = [json.loads(line)[key] for line in (FILES / domain / file).read_text(encoding="utf-8").splitlines()]
    assert len(ids) == len(set(ids)) == len(load(domain)[0])
    review_ids = [review.review_id for review in load(domain)[1]]
    assert len(review_ids) == len(set(review_ids))


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_review_is_of_an_item_that_exists(domain):
    file = FILES / domain / ("review.json" if domain == "yelp" else "reviews.jsonl")
    assert len(load(domain)[1]) == len(file.read_text(encoding="utf-8").splitlines())  # the reader drops the others


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_user_reviews_an_item_twice_and_ratings_are_one_to_five(domain):
    reviews = load(domain)[1]
    pairs = [(review.user_id, review.item_id) for review in reviews]
    assert len(pairs) == len(set(pairs))
    assert {review.rating for review in reviews} <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert all(len(review.text.split()) >= 5 for review in reviews)


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_title_stands_in_another_title(domain):
    titles = [item.title for item in load(domain)[0].values()]
    assert len({normalise(title) for title in titles}) == len(titles)
    padded = {title: f" {normalise(title)} " for title in titles}
    assert [(a, b) for a in titles for b in titles if a != b and padded[a] in padded[b]] == []


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_description_holds_its_own_title(domain):
    assert [item.title for item in load(domain)[0].values() if mentions_title(item.description, item.title)] == []


def test_every_business_has_a_summary():
    ids = {json.loads(line)["business_id"] for line in (FILES / "yelp" / "summaries.jsonl").read_text(encoding="utf-8").splitlines()}
    assert ids == set(load("yelp")[0])


@pytest.mark.parametrize("domain", DOMAINS)
def test_data_card_states_the_counts(domain):
    items, reviews = load(domain)
    users = {review.user_id for review in reviews}
    liked = liked_pairs(domain)
    row = [len(items), len(users), len(reviews), len(liked), len({item for _, item in liked})]
    card = (FILES / "DATA_CARD.md").read_text(encoding="utf-8")
    assert f"| {domain.capitalize()} | {' | '.join(map(str, row))} |" in card
