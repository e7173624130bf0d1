"""An embedding model in ONNX form, made once from its weights and kept beside them.

ONNX Runtime and the tokenizer alone start in a fraction of the seconds that torch and sentence-transformers need, and embed
faster on a CPU. What was exported is compared with sentence-transformers before it is used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..core.artifacts import digest, sha256_file, write_json, writing
from ..core.errors import ModelError
from .models import fetch_model, find_model, locked, weights_hashes
from .onnx_model import NETWORK, TOKENIZER, OnnxModel

logger = logging.getLogger(__name__)

FACTS = "export.json"
MIN_COSINE = 0.99999  # to sentence-transformers, on the probes
PROBES = ("", "sea", "A quiet place for coffee, with a dog.", "\u6211\u60f3\u627e\u597d\u4e66\u3002 \U0001f4da\0", "word " * 2000)


def exported_model(name: str) -> Path:
    """Folder of `model.onnx`, which gives unit vectors of token ids, and of the `tokenizer.json` that cuts texts as the model does.

    Raises:
        ModelError: If the weights cannot be had or embed no texts, or the export does not give the same vectors.
    """
    model = find_model(name)
    if model.kind != "transformers":
        raise ModelError(f"{name} is a {model.kind} model and embeds no texts; set embedder to one such as all-minilm-l6-v2")
    weights = fetch_model(name)
    folder, made_from = model.beside(".onnx"), digest(weights_hashes(name))
    if not _is_intact(folder, made_from):
        with locked(model):
            if not _is_intact(folder, made_from):
                partial = model.beside(".exporting")
                shutil.rmtree(partial, ignore_errors=True)
                with writing(partial):
                    partial.mkdir(parents=True)
                    _export(weights, partial)
                    files = {file: sha256_file(partial / file) for file in (NETWORK, TOKENIZER)}
                    write_json(partial / FACTS, {"made_from": made_from, "files": files})
                    shutil.rmtree(folder, ignore_errors=True)
                    partial.rename(folder)
    return folder


def _is_intact(folder: Path, made_from: str) -> bool:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return facts["made_from"] == made_from and all(sha256_file(folder / file) == known for file, known in facts["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _export(weights: Path, folder: Path) -> None:
    """Library: torch.onnx, sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logger.info("%s: making its ONNX form, once", weights.name)
    source = SentenceTransformer(str(weights), device="cpu", model_kwargs={"attn_implementation": "eager"}).eval()
    tokenizer = source.tokenizer.backend_tokenizer
    tokenizer.enable_truncation(source.max_seq_length)
    tokenizer.no_padding()
    tokenizer.save(str(folder / TOKENIZER))

    class Vectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source = source

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": torch.zeros_like(input_ids)}
            found = self.source(features)
            return torch.nn.functional.normalize(found["sentence_embedding"], dim=1)

    ids, mask = torch.ones((2, 16), dtype=torch.long), torch.ones((2, 16), dtype=torch.long)  # one tensor would become one input
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=source.max_seq_length)}
    with _quiet():
        program = torch.onnx.export(
            Vectors(), (ids, mask), dynamo=True, verbose=False, dynamic_shapes=(axes, axes),
            input_names=["input_ids", "attention_mask"], output_names=["unit_vectors"],
        )  # fmt: skip
    program.save(str(folder / NETWORK))
    _compare(folder, source.encode(list(PROBES), normalize_embeddings=True, show_progress_bar=False))


def _compare(folder: Path, expected: np.ndarray) -> None:
    cosine = float((OnnxModel(folder).embed(PROBES) * expected).sum(1).min())
    if not cosine >= MIN_COSINE:
        raise ModelError(f"{folder}: a vector of the exported model has cosine {cosine:.6f} to sentence-transformers' own, not 1")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of operators that are not needed here."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
