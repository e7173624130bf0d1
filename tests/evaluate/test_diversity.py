import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from rouge_score.rouge_scorer import RougeScorer

from ecpo_utils.core.errors import SchemaError
from ecpo_utils.data.release import load_persona_texts
from ecpo_utils.evaluate.diversity import deduplicate, diversity_json, max_rouge_l, summarize_diversity

SHARED = Path(__file__).resolve().parents[3] / "shared"
RELEASE = SHARED / "ecpo_release"
needs_release = pytest.mark.skipif(not RELEASE.is_dir(), reason=f"the published data are not at {RELEASE}")


def test_max_rouge_l_by_hand():
    texts = ["a b c d", "a c d", "x y"]  # LCS "a c d": precision 3/3, recall 3/4, F1 = 6/7; nothing shared with "x y"
    assert max_rouge_l(texts) == pytest.approx([6 / 7, 6 / 7, 0.0])


def test_order_of_words_matters():
    assert max_rouge_l(["a b c", "c b a"]) == pytest.approx([1 / 3, 1 / 3])


def test_words_are_stemmed_and_lower_cased():
    assert max_rouge_l(["Exploring readers", "explores Reader"]) == pytest.approx([1.0, 1.0])


def test_texts_without_words_score_zero():
    assert max_rouge_l(["", "...", "a"]).tolist() == [0.0, 0.0, 0.0]
    assert max_rouge_l(["alone"]).tolist() == [0.0]
    assert max_rouge_l([]).tolist() == []


def test_skipping_pairs_changes_no_score():
    words, rng = [f"word{i}" for i in range(12)], np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 15))) for _ in range(40)]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    plain = [max(scorer.score(a, b)["rougeL"].fmeasure for j, b in enumerate(texts) if j != i) for i, a in enumerate(texts)]
    assert max_rouge_l(texts) == pytest.approx(plain, abs=1e-12)


def test_deduplicate_keeps_the_order_of_first_appearance():
    assert deduplicate(["b", "a", "b", "A"]) == ["b", "a", "A"]


def test_summary_compares_distinct_texts_only():
    summary = summarize_diversity(["a b c d", "a c d", "x y", "a c d"])
    assert diversity_json(summary) == pytest.approx({"n": 4, "n_deduplicated": 3, "mean": 4 / 7, "median": 6 / 7, "q1": 3 / 7, "q3": 6 / 7})
    assert list(diversity_json(summary)) == ["n", "n_deduplicated", "mean", "median", "q1", "q3"]


def test_sample_is_seeded_and_drawn_after_deduplication():
    texts = [f"a b c{i} d{i % 3}" for i in range(20)] * 2
    summary = summarize_diversity(texts, sample=5, seed=3)
    assert (summary.n, summary.n_deduplicated, len(summary.scores)) == (40, 20, 5)
    assert summary == summarize_diversity(texts, sample=5, seed=3)
    assert len(summarize_diversity(texts, sample=100).scores) == 20


@pytest.mark.parametrize(("texts", "sample"), [([], None), (["a"], None), (["a", "a"], None), (["a", "b"], 1), (["a", "b"], 0)])
def test_fewer_than_two_distinct_texts_are_an_error(texts, sample):
    with pytest.raises(SchemaError, match="at least 2 distinct texts"):
        summarize_diversity(texts, sample)


@needs_release
def test_random_personas_give_the_released_scores():
    expected = yaml.safe_load((SHARED / "paper" / "results.yaml").read_text())["figure4"]["released_scores"]["RecAgent"]
    summary = summarize_diversity(load_persona_texts(RELEASE / "persona" / "random_personas.jsonl"))
    scores = np.array(summary.scores)
    found = {
        "n": len(scores),
        "mean": summary.mean,
        "median": summary.median,
        "min": scores.min(),
        "max": scores.max(),
        "std": scores.std(),
    }
    assert {key: round(float(value), 3) for key, value in found.items()} == expected


@needs_release
def test_ailo_personas_come_near_the_released_sample_and_below_random_ones():
    expected = yaml.safe_load((SHARED / "paper" / "results.yaml").read_text())["figure4"]["released_scores"]["AILO"]
    texts = load_persona_texts(RELEASE / "task" / "Book_test.jsonl")
    started = time.monotonic()
    full = summarize_diversity(texts)
    assert time.monotonic() - started < 20
    assert (full.n, full.n_deduplicated, round(full.mean, 3)) == (193, 177, 0.535)
    sampled = summarize_diversity(texts, sample=expected["n"])
    assert sampled.mean == pytest.approx(expected["mean"], abs=0.04)  # their draw of 100 of 177 is not seeded
    assert sampled.median == pytest.approx(expected["median"], abs=0.06)
    assert (max(sampled.scores) < 0.95, sampled.mean < 0.6) == (True, True)
