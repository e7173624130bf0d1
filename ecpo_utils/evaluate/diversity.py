"""Persona diversity: how alike each persona is to the one most like it. Paper: section 2.3, Figure 4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import SchemaError


@dataclass(frozen=True)
class DiversitySummary:
    """Distribution of each text's maximum ROUGE-L F1, in [0, 1], against the others; lower is more diverse.

    Attributes:
        n: Texts given.
        n_deduplicated: Distinct texts among them, before any sampling.
        scores: One per text that was compared, at most `sample`, in the order given.
    """

    n: int
    n_deduplicated: int
    mean: float
    median: float
    q1: float
    q3: float
    scores: list[float]


class _CachingTokenizer:
    """rouge_score's own stemming tokenizer, run once per text."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._tokenizer = DefaultTokenizer(use_stemmer=True)
        self._tokens: dict[str, list[str]] = {}

    def tokenize(self, text: str) -> list[str]:
        if text not in self._tokens:
            self._tokens[text] = self._tokenizer.tokenize(text)
        return self._tokens[text]


def deduplicate(texts: Sequence[str]) -> list[str]:
    """Distinct texts, exactly compared, in order of first appearance."""
    return list(dict.fromkeys(texts))


def max_rouge_l(texts: Sequence[str]) -> np.ndarray:
    """Per text the maximum ROUGE-L F1 (stemmed) against the other texts. Library: rouge_score.

    Pairs are scored once, those that share most words first. A pair is skipped where its shared words,
    which bound its longest common subsequence, cannot raise the maximum of either text.

    Returns:
        float array (len(texts),) in [0, 1]; 0 for a text without others.
    """
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = _CachingTokenizer()
    scorer = RougeScorer(["rougeL"], tokenizer=tokenizer)
    bounds = _upper_bounds([tokenizer.tokenize(text) for text in texts])
    first, second = np.triu_indices(len(texts), k=1)
    best = np.zeros(len(texts))
    for pair in np.argsort(-bounds[first, second], kind="stable"):
        i, j = first[pair], second[pair]
        if bounds[i, j] > min(best[i], best[j]):
            score = scorer.score(texts[i], texts[j])["rougeL"].fmeasure
            best[i], best[j] = max(best[i], score), max(best[j], score)
    return best


def _upper_bounds(tokens: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L F1 = 2 LCS / (m + n) for every pair, were all shared words in the same order."""
    column = {word: index for index, word in enumerate(dict.fromkeys(word for text in tokens for word in text))}
    counts = np.zeros((len(tokens), len(column)), dtype=np.int32)
    for row, text in enumerate(tokens):
        for word, count in Counter(text).items():
            counts[row, column[word]] = count
    shared = np.array([np.minimum(counts, row).sum(axis=1) for row in counts]).reshape(len(tokens), len(tokens))
    lengths = counts.sum(axis=1)
    rounding = 1e-9  # rouge_score goes through precision and recall
    return 2 * shared / np.maximum(lengths[:, None] + lengths, 1) + rounding * (shared > 0)


def summarize_diversity(texts: Sequence[str], sample: int | None = None, seed: int = 0) -> DiversitySummary:
    """Summary over the distinct texts, or over a random sample of them. Paper: Figure 4 (sample of 100).

    Args:
        texts: Persona texts, see `data.release.load_persona_texts`.
        sample: Distinct texts to draw without replacement; None, or as many as there are, takes all.
        seed: Of the draw.

    Raises:
        SchemaError: If fewer than two distinct texts would be compared.
    """
    distinct = deduplicate(texts)
    if min(len(distinct), len(distinct) if sample is None else sample) < 2:
        raise SchemaError(f"{len(distinct)} distinct of {len(texts)} texts, sample {sample}: diversity compares at least 2 distinct texts")
    chosen = distinct
    if sample is not None and sample < len(distinct):
        drawn = np.random.default_rng(seed).choice(len(distinct), size=sample, replace=False)
        chosen = [distinct[index] for index in sorted(drawn)]
    scores = max_rouge_l(chosen)
    q1, median, q3 = np.quantile(scores, [0.25, 0.5, 0.75]).tolist()
    return DiversitySummary(len(texts), len(distinct), float(scores.mean()), median, q1, q3, scores.tolist())


def diversity_json(summary: DiversitySummary) -> dict[str, int | float]:
    """The six plain numbers that the command line prints."""
    return {name: getattr(summary, name) for name in ("n", "n_deduplicated", "mean", "median", "q1", "q3")}
