"""The exported model gives sentence-transformers' vectors, is made once, and is made again when it is damaged."""

import json
import string
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from scripted_models import ODD_TEXTS

from ecpo_utils.core.artifacts import sha256_file
from ecpo_utils.core.errors import ModelError
from ecpo_utils.llm import embedding, onnx_export
from ecpo_utils.llm.embedding import Embedder
from ecpo_utils.llm.onnx_model import OnnxModel

NAME, MAX_TOKENS = "tiny-embedder", 48
TEXTS = ["", " ", "\0", "a\0b", "a quiet harbour town", "[SEP] [PAD]", "x, y; z.\n\ttab", *ODD_TEXTS.values()]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A BERT of one layer with random weights and a vocabulary of characters, as sentence-transformers saves one."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("weights") / NAME
    signs = [*string.ascii_lowercase, *string.digits, *".,;:!?'\"()[]<>{}/%$\\_-"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=BertWordPieceTokenizer(vocabulary)._tokenizer, **special).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=64, initializer_range=0.5)  # fmt: skip
    BertModel(config).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=MAX_TOKENS)
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def registry(weights, cache, tmp_path, monkeypatch):
    (tmp_path / "params").mkdir()
    files = {"model.safetensors": sha256_file(weights / "model.safetensors")}
    entry = {"licence": "MIT", "size_mb": 1, "context_tokens": MAX_TOKENS, "path": str(weights), "files": files}
    entries = {NAME: {"kind": "transformers", **entry}, "chat": {"kind": "gguf", **entry}}
    (tmp_path / "params" / "models.yaml").write_text(yaml.safe_dump({"models": entries}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECPO_CACHE", str(cache))
    monkeypatch.delenv("ECPO_MODELS", raising=False)


@pytest.fixture(scope="session")
def expected(weights):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(weights), device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)


def test_few_and_many_texts_have_the_vectors_of_sentence_transformers(expected):
    embedder, many = Embedder(NAME), TEXTS * 3
    assert np.allclose(embedder.encode(TEXTS[:5]), expected(TEXTS[:5]), atol=1e-5)
    assert np.allclose(embedder.encode(many), expected(many), atol=1e-5)
    assert embedder.encode(many).dtype == np.float32 and np.allclose(np.linalg.norm(embedder.encode(many), axis=1), 1, atol=1e-5)


def test_no_texts_have_no_vectors():
    assert Embedder(NAME).encode([]).shape == (0, 32)


def test_half_a_character_counts_as_a_question_mark():
    assert (Embedder(NAME).encode(["a \ud83d"]) == Embedder(NAME).encode(["a ?"])).all()


def test_among_few_a_text_has_the_same_vector_whatever_stands_beside_it():
    alone, beside = Embedder(NAME).encode([TEXTS[4]])[0], Embedder(NAME).encode(TEXTS[:10])[4]
    assert (alone == beside).all()


def test_a_text_that_is_asked_for_again_is_not_embedded_again(monkeypatch):
    embedder, seen, embed = Embedder(NAME), [], OnnxModel.embed
    monkeypatch.setattr(OnnxModel, "embed", lambda self, texts: seen.extend(texts) or embed(self, texts))
    first = embedder.encode(["one", "two"])
    first[:] = 0  # the caller's own copy
    assert np.linalg.norm(embedder.encode(["two", "one", "two"]), axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert seen == ["one", "two"]


def test_threads_may_share_an_embedder():
    embedder, single = Embedder(NAME), Embedder(NAME)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda text: embedder.encode([text])[0], TEXTS * 10))
    assert (np.stack(found) == np.stack([single.encode([text])[0] for text in TEXTS * 10])).all()


def test_many_texts_go_to_an_accelerator_where_there_is_one(monkeypatch, expected):
    import torch

    monkeypatch.setattr(embedding, "MANY", 20)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    embedder = Embedder(NAME)
    monkeypatch.setattr(OnnxModel, "embed", lambda self, texts: pytest.fail("on the CPU"))
    assert np.allclose(embedder.encode(TEXTS * 2), expected(TEXTS * 2), atol=1e-5)


@pytest.fixture
def exports(monkeypatch):
    made, export = [], onnx_export._export
    monkeypatch.setattr(onnx_export, "_export", lambda weights, folder: made.append(folder) or export(weights, folder))
    return made


def test_an_export_is_made_once_and_holds_three_files(exports, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "fresh"))
    Embedder(NAME)
    Embedder(NAME)
    models = tmp_path / "fresh" / "models"
    assert len(exports) == 1 and sorted(path.name for path in models.iterdir()) == [f"{NAME}.lock", f"{NAME}.onnx"]
    assert sorted(path.name for path in (models / f"{NAME}.onnx").iterdir()) == ["export.json", "model.onnx", "tokenizer.json"]


@pytest.mark.parametrize("damage", ["model.onnx", "tokenizer.json", "export.json", "weights"])
def test_a_damaged_export_or_one_of_other_weights_is_made_again(exports, cache, damage):
    Embedder(NAME)
    made, folder = len(exports), cache / "models" / f"{NAME}.onnx"
    if damage == "weights":
        facts = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps({**facts, "made_from": "other"}))
    else:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:-9])
    assert Embedder(NAME).encode(["x"]).shape == (1, 32)
    assert len(exports) == made + 1


def test_an_export_with_other_vectors_is_refused_and_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "fresh"))
    monkeypatch.setattr(OnnxModel, "embed", lambda self, texts: np.eye(len(texts), 32, dtype=np.float32))
    with pytest.raises(ModelError, match=r"cosine .* to sentence-transformers' own, not 1"):
        Embedder(NAME)
    assert not (tmp_path / "fresh" / "models" / f"{NAME}.onnx").exists()


def test_a_chat_model_is_no_embedder():
    with pytest.raises(ModelError, match="chat is a gguf model and embeds no texts; set embedder"):
        Embedder("chat")


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set ECPO_CACHE to a folder you may write to"):
        Embedder(NAME)
