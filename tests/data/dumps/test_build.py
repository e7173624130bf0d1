"""What a build takes: users, reviews, items; and that order, size of pieces and interruptions change nothing."""

import gzip
import json
import random

import duckdb
import pytest
from data_dumps import EVERYONE, item, review, to_bytes

from ecpo_utils.core.errors import ArtifactError, SchemaError
from ecpo_utils.data.builtin import FILES, load_builtin
from ecpo_utils.data.dumps import reviews as reviews_module
from ecpo_utils.data.dumps import selection, unpack
from ecpo_utils.data.dumps.users import UserRule
from ecpo_utils.data.folder import load_folder

RULE = UserRule(num_users=5, min_reviews=4, max_reviews=6, min_liked=2)
META = [item(number) for number in range(60)]


def crowd(number=60):
    """Reviews of many users, of whom some have too few, too many, or like too little."""
    draw, rows = random.Random(1), []
    for user in range(number):
        for each in draw.sample(range(60), draw.choice([1, 3, 4, 5, 6, 7])):
            rows.append(review(each, f"U{user}", rating=float(draw.choice([1, 3, 4, 5]))))
    draw.shuffle(rows)
    return rows


def test_sampled_users_obey_the_rule_and_bring_all_their_reviews(build):
    rows = crowd()
    facts, items, reviews, _ = build(rows, META, rule=RULE)
    users = {each["user_id"] for each in reviews}
    assert len(users) == 5 == facts["counts"]["users"]
    for user in users:
        own = [row for row in rows if row["user_id"] == user]
        assert 4 <= len(own) <= 6 and sum(row["rating"] >= 4 for row in own) >= 2
        assert len([each for each in reviews if each["user_id"] == user]) == len(own)
    assert set(items) == {each["item_id"] for each in reviews}


def test_sample_depends_on_ids_and_seed_alone(build, monkeypatch):
    rows = crowd()
    expected = build(rows, META, rule=RULE)[1:3]
    monkeypatch.setattr(unpack, "PIECE_BYTES", 2000)
    monkeypatch.setattr(unpack, "CHUNK_BYTES", 500)
    assert build(gzip.compress(to_bytes(rows[::-1])), META[::-1], rule=RULE, out="b")[1:3] == expected
    assert build(rows[::-1], META, rule=RULE, out="c", direct=True)[1:3] == expected
    assert build(rows, META, rule=RULE, out="d", seed=1)[2] != expected[1]


def test_first_pass_keeps_a_share_and_a_larger_one_only_if_too_few_qualify(build, monkeypatch):
    rows, shares = crowd(400), []
    expected = build(rows, META, rule=RULE)[1:3]
    run = reviews_module.ReviewPass.run
    monkeypatch.setattr(reviews_module.ReviewPass, "run", lambda self, share, **o: (shares.append(share), run(self, share, **o))[1])
    monkeypatch.setattr(selection, "SPILL_BYTES", len(to_bytes(rows)) * 0.4)
    facts, items, reviews, _ = build(rows, META, rule=RULE, out="b")
    assert (items, reviews) == expected and len(shares) == 1 and facts["counts"]["users_in_share"] < 300
    monkeypatch.setattr(selection, "SPILL_BYTES", 1)
    facts, items, reviews, _ = build(rows, META, rule=RULE, out="c")
    assert (items, reviews) == expected and len(shares) > 2 and shares[1] == selection.MIN_SHARE < shares[2]


def test_hash_of_users_is_the_engines_and_has_not_changed():
    assert duckdb.sql("SELECT hash('AEABCDEF', 0), hash('AEABCDEF', 1)").fetchall() == [(3031900802067872289, 7740220834269813489)]


def test_sampled_users_are_spread_over_all(build):
    reviews = build([review(n, f"U{user}") for user in range(300) for n in (1, 2)], META, rule=UserRule(50, 2, 2, 1))[2]
    numbers = sorted({int(each["user_id"][1:]) for each in reviews})
    assert len(numbers) == 50 and numbers[10] > 20 and numbers[-10] < 280 and numbers[-1] > 200


def test_users_whose_items_are_unknown_are_replaced(build):
    rows = crowd()
    first = build(rows, META, rule=RULE)[2][0]["user_id"]
    lost = {row["parent_asin"] for row in rows if row["user_id"] == first}
    reviews = build(rows, [row for row in META if row["parent_asin"] not in lost], rule=RULE, out="b")[2]
    assert first not in {each["user_id"] for each in reviews} and len({each["user_id"] for each in reviews}) == 5


def test_items_of_one_title_are_one_item(build):
    facts, items, reviews, _ = build([review(1), review(2), review(3)], [item(1), item(2, title="BOOK 3!"), item(3)])
    assert sorted(items) == ["B1", "B2"] and [each["item_id"] for each in reviews] == ["B1", "B2", "B2"]
    assert facts["counts"]["items_merged_by_title"] == 1


def test_catalogue_brings_all_items(build):
    again = [item(3, title="BOOK 1"), item(5, title="Book: 4")]
    _, items, _, _ = build([review(1)], [item(1), item(2), again[0], item(4), again[1]], catalogue=True)
    assert sorted(items) == ["B1", "B2", "B4"]


def test_nobody_qualifies_says_which_options_decide(build):
    with pytest.raises(SchemaError, match=r"none of 1 users qualifies \(30 to 30 reviews, 4 liked items .*--min-reviews"):
        build([review(1)], META, rule=UserRule())


def test_meta_of_another_category_is_told(build):
    with pytest.raises(SchemaError, match="the meta file holds 0, too few for any user; is it of the same category?"):
        build([review(1), review(2)], [item(90)])


def test_same_build_again_is_no_work_and_another_is(build, monkeypatch):
    facts = build(crowd(), META, rule=RULE)[0]
    monkeypatch.setattr(reviews_module.ReviewPass, "run", lambda *a, **b: pytest.fail("read again"))
    assert build(None, None, rule=RULE)[0] == facts
    with pytest.raises(BaseException, match="read again"):
        build(None, None, rule=RULE, seed=3)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_build_that_was_stopped_goes_on_where_it_was(build, monkeypatch, stop_at):
    monkeypatch.setattr(unpack, "PIECE_BYTES", 8000)
    monkeypatch.setattr(unpack, "CHUNK_BYTES", 2000)
    rows = [*crowd()[:100], b"broken", *crowd()[100:]]
    expected = build(rows, META, rule=RULE, out="whole")[1:]
    read, number = reviews_module.ReviewPass._read_piece, []

    def stopped(self, spill, piece):
        number.append(piece.end)
        if len(number) == stop_at + 1:
            raise KeyboardInterrupt
        read(self, spill, piece)

    monkeypatch.setattr(reviews_module.ReviewPass, "_read_piece", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(rows, META, rule=RULE)
    monkeypatch.setattr(reviews_module.ReviewPass, "_read_piece", lambda *a: (number.append(a[2].end), read(*a))[1])
    assert build(None, None, rule=RULE)[1:] == expected
    assert number == sorted(number) and len(set(number)) == len(number) - 1  # only the piece in hand was read twice


def test_full_disk_is_one_line(build, small_disk, tmp_path):
    disk = small_disk("64k")
    with pytest.raises(ArtifactError, match="cannot write|DuckDB"):
        build([review(number % 60, f"U{number}") for number in range(2000)], META, out=disk, rule=EVERYONE)


@pytest.mark.parametrize("domain", ["book", "game", "yelp"])
def test_builtin_files_read_as_a_dump_are_the_builtin_data(build, domain):
    """But for Yelp's summaries, which a dump has not."""
    folder = FILES / domain
    names = ("review.json", "business.json") if domain == "yelp" else ("reviews.jsonl", "meta.jsonl")
    source = "yelp" if domain == "yelp" else "amazon"
    _, items, reviews, rejects = build(*[(folder / name).read_bytes() for name in names], source=source, rule=UserRule(100, 1, 0, 4))
    known, expected = load_builtin(domain)
    by_id = lambda rows: sorted(rows, key=lambda row: row["review_id"])  # noqa: E731
    assert by_id(reviews) == by_id([each.model_dump() for each in expected]) and not rejects
    same = {"description"} if domain == "yelp" else set()
    assert [{k: v for k, v in items[i].items() if k not in same} for i in sorted(known)] == [
        known[i].model_dump(exclude=same) for i in sorted(known)]  # fmt: skip


def test_folder_is_loaded_as_the_builtin_data_are(build, tmp_path):
    _, items, reviews, _ = build(crowd(), META, rule=RULE)
    loaded, found = load_folder(str(tmp_path / "out"), "book")
    assert [each.model_dump() for each in found] == reviews and {key: each.model_dump() for key, each in loaded.items()} == items
    with pytest.raises(ArtifactError, match=r"game/items.jsonl is missing; make it with: ecpo data build --domain game"):
        load_folder(str(tmp_path / "out"), "game")


def test_facts_name_files_rule_seed_and_engine(build, tmp_path):
    facts = build(crowd(), META, rule=RULE)[0]
    assert facts["files"]["reviews"]["bytes"] == (tmp_path / "reviews.jsonl").stat().st_size
    assert (facts["seed"], facts["rule"]["num_users"], facts["engine"]) == (0, 5, f"duckdb {duckdb.__version__}")
    assert facts == json.loads((tmp_path / "out" / "book" / "data.json").read_text())
