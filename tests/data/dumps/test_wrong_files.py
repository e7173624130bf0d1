"""A wrong kind of file is told at once in one line; a damaged or packed one gives what it holds."""

import gzip
import io
import json
import os
import random
import tarfile
import time
import zipfile

import pytest
from data_dumps import business, item, review, to_bytes, yelp_review

from ecpo_utils.core.errors import ArtifactError, EcpoError, ParamsError
from ecpo_utils.data.dumps import unpack
from ecpo_utils.data.dumps.build import BuildOptions, build_folder

REVIEWS, META = to_bytes([review(number) for number in range(1, 6)]), to_bytes([item(number) for number in range(1, 6)])
YELP, PLACES = to_bytes([yelp_review(number) for number in range(1, 6)]), to_bytes([business(number) for number in range(1, 6)])


def zipped(data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("Books.jsonl", data)
    return out.getvalue()


def tarred(**members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(f"yelp_dataset/yelp_academic_dataset_{name}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


OLD = to_bytes([{"reviewerID": "A1", "asin": "B1", "overall": 5.0, "reviewText": "x", "unixReviewTime": 1}])
TASKS = to_bytes([{"UserID": "U", "Persona": {}, "Items": []}])

WRONG = [
    ("meta for reviews", META, "amazon", "is the meta file of Amazon Reviews 2023; expected the reviews file of Amazon Reviews 2023"),
    ("yelp for amazon", YELP, "amazon", "is the reviews file of Yelp academic dataset; expected the reviews file of Amazon"),
    ("businesses for amazon", PLACES, "amazon", "is the meta file of Yelp academic dataset"),
    ("amazon for yelp", REVIEWS, "yelp", "is the reviews file of Amazon Reviews 2023; expected the reviews file of Yelp"),
    ("businesses for yelp", PLACES, "yelp", "is the meta file of Yelp academic dataset; expected the reviews"),
    ("Amazon of 2018", OLD, "amazon", "older Amazon release"),
    ("users of yelp", to_bytes([{"user_id": "U", "name": "x", "yelping_since": "2010"}]), "yelp", "is the user file of the Yelp"),
    ("tips of yelp", to_bytes([{"user_id": "U", "business_id": "x", "text": "", "compliment_count": 0}]), "yelp", "is the tip file"),
    ("check-ins of yelp", to_bytes([{"business_id": "x", "date": "2010"}]), "yelp", "is the check-in file"),
    ("released tasks", TASKS, "amazon", "use: --source release"),
    ("other objects", to_bytes([{"a": 1, "b": 2}]), "amazon", "is unknown, objects with the keys a, b"),
    ("empty", b"", "amazon", "is empty; expected the reviews file"),
    ("blank", b"\n  \n\r\n", "amazon", "nothing but blanks"),
    ("NUL bytes", b"\0" * 5000, "amazon", "nothing but blanks"),
    ("packed nothing", gzip.compress(b""), "amazon", "is empty"),
    ("zip", zipped(REVIEWS), "amazon", "is a zip archive; unpack it"),
    ("parquet", b"PAR1" + b"\x15\x04" * 99, "amazon", "is a parquet file"),
    ("bzip2", b"BZh91AY&SY" + b"x" * 99, "amazon", "is packed by bzip2"),
    ("xz", b"\xfd7zXZ\0" + b"x" * 99, "amazon", "is packed by xz"),
    ("zstd", b"\x28\xb5\x2f\xfd" + b"x" * 99, "amazon", "is packed by zstd"),
    ("PDF", b"%PDF-1.7 ...", "amazon", "is a PDF"),
    ("a JSON list", b"[" + REVIEWS.replace(b"\n", b","), "amazon", "is one JSON list"),
    ("csv", b"user_id,parent_asin,rating\nU1,B1,5\n", "amazon", "is no JSON lines, it begins"),
    ("a web page", b"<!DOCTYPE html><html>Not found</html>", "amazon", "is no JSON lines, it begins"),
    ("a pointer of git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "amazon", "is no JSON lines"),
    ("random bytes", os.urandom(3000).replace(b"\n", b" "), "amazon", "is no JSON lines"),
    ("gzip with a broken head", b"\x1f\x8b\x08\x00" + b"\xff" * 500, "amazon", "is a damaged gzip file|is empty"),
    ("tar without reviews", tarred(business=PLACES, tip=b"{}\n"), "yelp", "holds no file that ends in '_review.json', but: .*business"),
    ("tar with other reviews", tarred(review=REVIEWS), "yelp", "yelp_academic_dataset_review.json is the reviews file of Amazon"),
]


@pytest.mark.parametrize(("name", "data", "source", "message"), WRONG, ids=[case[0] for case in WRONG])
def test_wrong_kind_of_file_is_one_line_at_once(build, name, data, source, message):
    began = time.perf_counter()
    with pytest.raises(EcpoError, match=message) as error:
        build(data, PLACES if source == "yelp" else META, source=source)
    assert "\n" not in str(error.value) and "reviews.jsonl" in str(error.value) and time.perf_counter() - began < 5


def test_reviews_given_as_meta_are_told(build):
    with pytest.raises(EcpoError, match=r"meta.jsonl is the reviews file of Amazon Reviews 2023; expected the meta file"):
        build(REVIEWS, REVIEWS)


def test_missing_file_folder_and_pipe_are_told(build, tmp_path):
    with pytest.raises(ArtifactError, match=r"reviews.jsonl is missing"):
        build(None, META)
    (tmp_path / "reviews.jsonl").mkdir()
    with pytest.raises(ArtifactError, match="is a folder; give the file in it"):
        build(None, META)
    (tmp_path / "reviews.jsonl").rmdir()
    os.mkfifo(tmp_path / "reviews.jsonl")
    with pytest.raises(ArtifactError, match="is no regular file"):
        build(None, META)


def test_source_of_another_domain_is_told(tmp_path):
    with pytest.raises(ParamsError, match="domain yelp is not of source amazon"):
        build_folder(BuildOptions("yelp", "amazon", tmp_path, tmp_path, tmp_path))


def test_dirt_at_the_beginning_does_not_hide_the_kind(build):
    _, _, reviews, rejects = build(b"broken\n{}\n" + REVIEWS, META)
    assert len(reviews) == 5 and [row["line"] for row in rejects] == [1, 2]


# packed, recoded, damaged


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("gzip", gzip.compress),
        ("gzip in members", lambda data: gzip.compress(data[:300]) + gzip.compress(data[300:])),
        ("gzip with padding", lambda data: gzip.compress(data) + b"\0" * 100),
        ("UTF-8 with a mark", lambda data: b"\xef\xbb\xbf" + data),
        ("UTF-16", lambda data: data.decode().encode("utf-16")),
        ("UTF-16 big-endian", lambda data: b"\xfe\xff" + data.decode().encode("utf-16-be")),
        ("UTF-16 without a mark", lambda data: data.decode().encode("utf-16-le")),
        ("UTF-16 in gzip", lambda data: gzip.compress(data.decode().encode("utf-16"))),
        ("CRLF", lambda data: data.replace(b"\n", b"\r\n")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_packed_and_recoded_files_give_the_same(build, name, pack):
    rows = to_bytes([review(1, text="Café \U0001f600"), *[review(number) for number in range(2, 6)]])
    expected = build(rows, META, out="plain")
    facts, items, reviews, rejects = build(pack(rows), pack(META), out="packed")
    assert (items, reviews, rejects) == (expected[1], expected[2], []) and facts["counts"] == expected[0]["counts"]


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["tar", "tgz"])
def test_yelp_is_read_out_of_its_archive(build, pack):
    data = pack(tarred(business=PLACES, checkin=b"{}\n" * 999, review=YELP, user=b"{}\n"))
    _, items, reviews, rejects = build(data, data, source="yelp", names=("a.tar", "b.tar"))
    assert len(items) == len(reviews) == 5 and not rejects


def many(number):
    draw = random.Random(0)
    return to_bytes([review(i, text=draw.randbytes(40).hex()) for i in range(number)])


def test_truncated_gzip_keeps_what_came_before_and_says_so(build):
    rows = many(5000)
    facts, _, reviews, rejects = build(gzip.compress(rows)[:-20000], to_bytes([item(i) for i in range(5000)]))
    last = rejects[-1]
    assert 3000 < len(reviews) < 5000 and last["reason"] == "truncated gzip" and last["line"] == facts["counts"]["review_lines"] + 1
    assert "lost" in last["detail"] and facts["dropped"]["truncated gzip"] == 1
    assert rejects[0]["reason"] == "not valid JSON" and rejects[0]["line"] == last["line"] - 1  # the line that was cut


def test_damaged_gzip_keeps_what_came_before_and_says_so(build):
    data = bytearray(gzip.compress(many(5000)))
    data[len(data) // 2 : len(data) // 2 + 300] = b"\xff" * 300
    _, _, reviews, rejects = build(bytes(data), to_bytes([item(i) for i in range(5000)]))
    assert rejects[-1]["reason"] == "damaged gzip" and len(reviews) > 1000


def test_truncated_archive_keeps_what_came_before_and_says_so(build):
    rows = to_bytes([yelp_review(i) for i in range(3000)])
    data = tarred(business=to_bytes([business(i) for i in range(3000)]), review=rows)
    _, _, reviews, rejects = build(data[:-200_000], data, source="yelp", names=("a.tar", "b.tar"))
    assert 100 < len(reviews) < 3000 and rejects[-1]["reason"] == "damaged tar"


def test_lines_are_counted_across_pieces(build, monkeypatch):
    monkeypatch.setattr(unpack, "PIECE_BYTES", 3000)
    monkeypatch.setattr(unpack, "CHUNK_BYTES", 1000)
    rows = [review(number) for number in range(100)]
    rows[55:55] = [b"broken"]
    rows[80:80] = [b"", b"also broken", json.dumps(review(3)).encode()]
    meta = to_bytes([item(number) for number in range(100)])
    facts, _, reviews, rejects = build(rows, meta)
    assert len(reviews) == 100 and facts["counts"]["review_lines"] == 104
    assert [(row["line"], row["reason"]) for row in rejects] == [
        (56, "not valid JSON"), (82, "not valid JSON"), (83, "a copy of a review")]  # fmt: skip
    assert build(gzip.compress(to_bytes(rows)), gzip.compress(meta), out="gz")[2:] == (reviews, rejects)


def test_a_line_beyond_measure_is_dropped(build):
    rows = [review(1), b'{"user_id": "' + b"x" * (9 << 20) + b'"}', review(2)]
    _, _, reviews, rejects = build(rows, META)
    assert len(reviews) == 2 and [(row["line"], row["reason"]) for row in rejects] == [(2, "line too long")]
