"""A text embedding model in ONNX form, run on the CPU by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.concurrency import available_cores

if TYPE_CHECKING:
    from tokenizers import Encoding

NETWORK, TOKENIZER = "model.onnx", "tokenizer.json"
BATCH_TOKENS = 512  # a batch's texts times its longest; larger ones leave the processor's cache


class OnnxModel:
    """The exported model: texts to unit vectors. Threads may share it. Library: ONNX Runtime, tokenizers."""

    def __init__(self, folder: Path):
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a batch for each core is faster than all cores on a batch
        self._session = onnxruntime.InferenceSession(str(folder / NETWORK), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._cores = available_cores()
        self.dimension: int = self._session.get_outputs()[0].shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array (len(texts), dimension); texts of like length go together, so that little is padded."""
        whole = [text.encode("utf-8", "replace").decode() for text in texts]  # half of a surrogate pair is no text
        encodings = self._tokenizer.encode_batch_fast(whole)
        vectors = np.empty((len(texts), self.dimension), np.float32)

        def embed_batch(rows: list[int]) -> None:
            ids, mask = _padded([encodings[row] for row in rows])
            vectors[rows] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

        batches = list(_batches([len(encoding) for encoding in encodings]))
        if len(batches) == 1:  # a query: threads would cost more than they save
            embed_batch(batches[0])
            return vectors
        with ThreadPoolExecutor(self._cores) as threads:
            list(threads.map(embed_batch, batches))
        return vectors


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows in batches of at most BATCH_TOKENS with padding, the longest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    while order:
        size = max(1, BATCH_TOKENS // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _padded(encodings: Sequence[Encoding]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, (texts, tokens of the longest); what the mask hides may be any token."""
    ids = np.zeros((len(encodings), max(map(len, encodings))), np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding)] = encoding.ids
        mask[row, : len(encoding)] = 1
    return ids, mask
