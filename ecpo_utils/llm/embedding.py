"""Sentence embeddings: ONNX Runtime on the CPU, sentence-transformers on an accelerator for many texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .models import fetch_model
from .onnx_export import exported_model
from .onnx_model import OnnxModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FEW = 16  # so many texts are embedded one by one, each kept: what dialogues ask for again and again
KEPT_TEXTS = 10_000  # 15 MB of vectors
MANY = 1000  # from so many texts on it pays to load torch and look for an accelerator
ACCELERATOR_BATCH = 256


class Embedder:
    """Unit-length sentence embeddings. Threads may share it.

    Args:
        name: An embedding model of `params/models.yaml`.

    Raises:
        ModelError: If the weights cannot be had or are none that embeds texts.
    """

    def __init__(self, name: str):
        self.name = name
        self._model = OnnxModel(exported_model(name))
        self._vector = lru_cache(KEPT_TEXTS)(lambda text: self._model.embed([text])[0])

    @property
    def dimension(self) -> int:
        return self._model.dimension

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array (len(texts), dimension), rows of length 1.

        A text among few has the same vector to the last bit whatever stands beside it; among many, padding rounds otherwise
        (seen: 2e-7).
        """
        if not len(texts):
            return np.empty((0, self.dimension), np.float32)
        if len(texts) <= FEW:
            return np.stack([self._vector(text) for text in texts])
        if len(texts) >= MANY and (model := self._accelerated):
            found = model.encode(list(texts), batch_size=ACCELERATOR_BATCH, normalize_embeddings=True, show_progress_bar=False)
            return found.astype(np.float32)
        return self._model.embed(texts)

    @cached_property
    def _accelerated(self) -> SentenceTransformer | None:
        """The model on this machine's accelerator, if there is one."""
        import torch
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(fetch_model(self.name))) if torch.accelerator.is_available() else None
