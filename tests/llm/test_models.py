"""Where weights come from, and that nothing but the right ones is ever used. All sources are on this machine."""

import hashlib
import io
import logging
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from stub_hub import StubHub

from ecpo_utils.core.errors import ModelError
from ecpo_utils.llm import models
from ecpo_utils.llm.models import fetch_model, find_model, load_registry, locate_model, weights_hashes

ROOT = Path(__file__).resolve().parents[2]
NAME = "qwen2.5-tiny-q4"
WEIGHTS = random.Random(0).randbytes(300_000)
FILE = "tiny.gguf"
REPO = "owner/tiny"


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A checkout with a registry of its own, empty caches, no network."""
    for name in ("ECPO_MODELS", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "params").mkdir()
    (tmp_path / "links").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ECPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(models, "HUB_TIMEOUT_S", 1.0)
    return tmp_path


def register(**changes):
    """Write the registry: one model of one file, with `changes`; by default without any source."""
    entry = {"kind": "gguf", "licence": "MIT", "size_mb": 1, "context_tokens": 128, "files": {FILE: sha(WEIGHTS)}, **changes}
    Path("params/models.yaml").write_text(yaml.safe_dump({"models": {NAME: entry}}))


def leftovers(here):
    """Files in the cache that are not locks."""
    files = [path for path in (here / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    return sorted(str(path.relative_to(here / "cache")) for path in files)


# the registry


def test_registry_of_the_study_loads_with_licence_context_and_hashes_or_hub():
    registry = load_registry(ROOT / "params" / "models.yaml")
    for name, model in registry.items():
        assert model.name == name and model.licence and model.size_mb > 0 and model.context_tokens >= 256
        assert model.files or model.hub
        assert model.files or model.kind == "transformers"


def test_models_of_the_profiles_are_registered():
    registry = load_registry(ROOT / "params" / "models.yaml")
    for path in (ROOT / "params").glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        wanted = {v["model"]: v["provider"] for v in values.values() if isinstance(v, dict) and v.get("provider") in ("embedded", "vllm")}
        assert set(wanted) <= set(registry)
        assert all(registry[name].kind == "gguf" for name, provider in wanted.items() if provider == "embedded")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"licens": "MIT"}, "licens: Extra inputs"),
        ({"licence": None}, "licence: "),
        ({"kind": "onnx"}, "kind: "),
        ({"size_mb": "big"}, "size_mb: "),
        ({"files": {FILE: "cc324af"}}, rf"files\.{FILE}: "),
        ({"files": None}, "needs 'files'"),
        ({"files": None, "kind": "transformers", "packages": [{"requirement": "a==1", "member": "a/"}]}, "needs 'files'"),
        ({"packages": [{"requirement": "a", "member": "m"}]}, r"packages\.0\.requirement: "),
        ({"packages": [{"requirement": "--index-url=x==1", "member": "m"}]}, r"packages\.0\.requirement: "),
        ({"packages": [{"requirement": "a==1"}]}, r"packages\.0\.member: Field required"),
        ({"packages": [{"requirement": "a{m}==1", "member": "m", "numbers": [1, 2]}]}, r"packages\.0: .*only {n} may"),
        ({"packages": [{"requirement": "a==1", "member": "m", "numbers": 3}]}, r"packages\.0\.numbers: "),
    ],
)
def test_typo_in_an_entry_names_model_and_key(changes, expected):
    register(**changes)
    with pytest.raises(ModelError, match=rf"models\.yaml: model '{re.escape(NAME)}': .*{expected}"):
        find_model(NAME)


@pytest.mark.parametrize("text", ["models: [a, b]", "models:", "modells: {}", "- a", "models: {a: [", "\xff"])
def test_registry_that_is_none_is_named(text):
    Path("params/models.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"cannot read the model registry .*models\.yaml"):
        load_registry()


def test_entry_without_keys_is_named():
    Path("params/models.yaml").write_text("models:\n  tiny:\n  other: text\n")
    with pytest.raises(ModelError, match="model 'tiny': expected 'key: value'"):
        load_registry()


def test_unknown_model_lists_the_known_ones():
    register()
    with pytest.raises(ModelError, match=rf"no model 'qwen2\.5'.*known: {re.escape(NAME)}"):
        find_model("qwen2.5")


def test_names_with_dots_keep_their_folders_apart():
    fields = {"kind": "transformers", "licence": "MIT", "size_mb": 1, "context_tokens": 1}
    a, b = (models.Model(name=f"qwen2.5-{size}", **fields) for size in ("1.5b", "1.7b"))
    paths = [model.folder for model in (a, b)] + [model.beside(suffix) for model in (a, b) for suffix in (".lock", ".partial", ".wheels")]
    assert len(set(paths)) == 8 and a.beside(".lock").name == "qwen2.5-1.5b.lock"


# a folder of the user's own


def put_local(here, data=WEIGHTS, name=NAME):
    path = here / "mine" / name / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def test_weights_of_the_users_own_are_used_and_checked_once(here, monkeypatch):
    register()
    path = put_local(here)
    monkeypatch.setenv("ECPO_MODELS", str(here / "mine"))
    assert fetch_model(NAME) == path
    monkeypatch.setattr(models, "sha256_file", lambda path: pytest.fail("hashed again"))
    assert fetch_model(NAME) == locate_model(NAME) == path
    assert leftovers(here) and all(name.startswith("verified/") for name in leftovers(here))


def test_wrong_file_of_the_users_own_is_refused_and_not_deleted(here, monkeypatch):
    register()
    path = put_local(here, b"other weights")
    monkeypatch.setenv("ECPO_MODELS", str(here / "mine"))
    for find in (locate_model, fetch_model):
        with pytest.raises(ModelError, match=rf"{path} has SHA-256 .*expected .*{re.escape(NAME)}; replace the file or take it away"):
            find(NAME)
    assert path.read_bytes() == b"other weights"


def test_file_that_changed_after_its_check_is_checked_again(here, monkeypatch):
    register()
    path = put_local(here)
    monkeypatch.setenv("ECPO_MODELS", str(here / "mine"))
    fetch_model(NAME)
    path.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(ModelError, match="replace the file"):
        fetch_model(NAME)
    assert path.exists()


def test_check_that_cannot_be_remembered_still_holds(here, monkeypatch):
    register()
    path = put_local(here)
    monkeypatch.setenv("ECPO_MODELS", str(here / "mine"))
    (here / "cache").write_text("no folder can be made here")
    assert fetch_model(NAME) == path
    path.write_bytes(b"other weights")
    with pytest.raises(ModelError, match="replace the file"):
        fetch_model(NAME)


def test_hash_that_changed_in_the_registry_is_noticed(here, monkeypatch):
    register()
    put_local(here)
    monkeypatch.setenv("ECPO_MODELS", str(here / "mine"))
    fetch_model(NAME)
    register(files={FILE: sha(b"new")})
    with pytest.raises(ModelError, match="replace the file"):
        fetch_model(NAME)


def test_path_of_the_registry_is_used(here):
    path = put_local(here)
    register(path=str(path.parent))
    assert fetch_model(NAME) == path


def test_folder_with_a_long_path_is_no_hindrance(here, monkeypatch):
    register()
    deep = here / "/".join(["x" * 60] * 5)
    put_local(deep)
    monkeypatch.setenv("ECPO_MODELS", str(deep / "mine"))
    assert fetch_model(NAME).is_file()


def test_linked_folder_in_the_cache_is_refused_and_not_deleted(here):
    register()
    path = put_local(here, b"other weights")
    (here / "cache" / "models").mkdir(parents=True)
    (here / "cache" / "models" / NAME).symlink_to(path.parent)
    with pytest.raises(ModelError, match="replace the file"):
        fetch_model(NAME)
    assert path.exists()


def test_locating_downloads_and_makes_nothing(here):
    register(packages=[{"requirement": "tiny-weights==1.0", "member": "tiny_weights/w.bin", "file": FILE}])
    assert locate_model(NAME) is None and not (here / "cache").exists()


def test_model_without_any_source_says_how_to_give_one():
    register()
    with pytest.raises(ModelError, match=rf"no source has {re.escape(NAME)} .*NAME={re.escape(NAME)} and set ECPO_MODELS"):
        fetch_model(NAME)


def test_cache_that_cannot_be_written_says_which_variable_to_set(here, monkeypatch):
    register()
    (here / "file").write_text("")
    monkeypatch.setenv("ECPO_CACHE", str(here / "file" / "cache"))
    with pytest.raises(ModelError, match="set ECPO_CACHE"):
        fetch_model(NAME)


# hashes of what is loaded


def test_hashes_of_registered_files_are_those_of_the_registry_whether_here_or_not():
    register()
    assert weights_hashes(NAME) == {FILE: sha(WEIGHTS)}


def test_hashes_of_weights_that_the_registry_knows_none_of_are_read_once_per_change(here, monkeypatch):
    register(kind="transformers", files=None, hub=REPO)
    with pytest.raises(ModelError, match=f"get it with: ecpo models fetch {NAME}"):
        weights_hashes(NAME)
    folder = put_local(here).parent
    contents = {"model-1.safetensors": WEIGHTS, "config.json": b"{}", "tokenizer.model": b"t"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    monkeypatch.setenv("ECPO_MODELS", str(here / "mine"))
    first = weights_hashes(NAME)
    assert first == {name: sha(data) for name, data in contents.items()}
    with monkeypatch.context() as patch:
        patch.setattr(models, "sha256_file", lambda path: pytest.fail("hashed again"))
        assert weights_hashes(NAME) == first
    (folder / "model-1.safetensors").write_bytes(WEIGHTS[:-1] + b"x")
    assert weights_hashes(NAME) == first | {"model-1.safetensors": sha(WEIGHTS[:-1] + b"x")}


# the hub


def point_to(monkeypatch, url):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(monkeypatch):
    """A hub with the right weights, to be spoilt."""
    hub = StubHub(REPO, {FILE: WEIGHTS, "README.md": b"hello"})
    point_to(monkeypatch, hub.url)
    yield hub
    hub.close()


def test_hub_delivers_only_the_files_that_are_wanted(here, hub):
    register(hub=REPO)
    path = fetch_model(NAME)
    assert path == here / "cache" / "models" / NAME / FILE and path.read_bytes() == WEIGHTS
    assert hub.downloads(FILE) == [""] and not hub.downloads("README.md")
    assert [path.name for path in path.parent.iterdir()] == [FILE]
    hub.requests.clear()
    assert fetch_model(NAME) == path and not hub.requests


def test_download_that_was_cut_goes_on_where_it_stopped(monkeypatch, hub):
    register(hub=REPO)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut_after[FILE] = 200_000
    assert fetch_model(NAME).read_bytes() == WEIGHTS
    first, second = hub.downloads(FILE)
    assert first == "" and 100_000 < int(re.fullmatch(r"bytes=(\d+)-", second)[1]) <= 200_000


def test_finished_files_of_a_failed_download_are_not_fetched_again(here, hub):
    hub.files["1_Pooling/config.json"] = b"[]"
    hashes = {"1_Pooling/config.json": sha(b"[]"), FILE: sha(WEIGHTS)}
    register(kind="transformers", files=hashes, hub=REPO, packages=[package(requirement="nowhere==1.0")])
    hub.broken.add(FILE)
    with pytest.raises(ModelError, match="hub: not reachable .*nowhere==1.0 not to be had"):
        fetch_model(NAME)
    hub.broken.clear()
    folder = fetch_model(NAME)
    assert (folder / "1_Pooling" / "config.json").read_bytes() == b"[]" and (folder / FILE).read_bytes() == WEIGHTS
    assert len(hub.downloads("1_Pooling/config.json")) == 1 and not (here / "cache" / "models" / f"{NAME}.partial").exists()


def test_hub_that_lacks_a_file_is_told_and_leaves_nothing(here, hub):
    register(kind="transformers", files={"config.json": sha(b"{}"), FILE: sha(WEIGHTS)}, hub=REPO)
    with pytest.raises(ModelError, match="hub: config.json arrived with SHA-256 missing"):
        fetch_model(NAME)
    assert leftovers(here) == []


def test_wrong_file_from_the_hub_is_removed(here, hub):
    register(hub=REPO)
    hub.served[FILE] = WEIGHTS[:-1] + b"x"
    with pytest.raises(ModelError, match=f"hub: {FILE} arrived with SHA-256 .*removed"):
        fetch_model(NAME)
    assert leftovers(here) == []
    hub.served.clear()
    assert fetch_model(NAME).read_bytes() == WEIGHTS


def test_hashes_of_a_hub_only_model_are_those_that_the_hub_states(hub):
    hub.files |= {"model.safetensors": WEIGHTS, "config.json": b"{}", "onnx/model.onnx": b"big", "tokenizer.json": b"[]"}
    hub.small |= {"config.json", "tokenizer.json", "README.md"}
    register(kind="transformers", files=None, hub=REPO)
    folder = fetch_model(NAME)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json", "hub_files.json"}
    assert hub.downloads("config.json") and not hub.downloads("onnx/model.onnx")
    hub.requests.clear()
    assert fetch_model(NAME) == folder and not hub.requests
    (folder / "model.safetensors").write_bytes(b"spoilt")
    assert locate_model(NAME) is None and not folder.exists()


def test_wrong_file_of_a_hub_only_model_is_removed(here, hub):
    hub.files |= {"model.safetensors": WEIGHTS}
    hub.served["model.safetensors"] = b"x" * len(WEIGHTS)
    register(kind="transformers", files=None, hub=REPO)
    with pytest.raises(ModelError, match="model.safetensors arrived with"):
        fetch_model(NAME)
    assert leftovers(here) == []


@pytest.fixture
def hub_only(hub):
    """A hub-only model with small files and a chat template."""
    hub.files |= {"model.safetensors": WEIGHTS, "config.json": b"{}", "chat_template.jinja": b"{{ m }}", "1_Pooling/config.json": b"[]"}
    hub.small |= {"config.json", "chat_template.jinja", "1_Pooling/config.json", "README.md"}
    register(kind="transformers", files=None, hub=REPO)
    return hub


@pytest.mark.parametrize("file", ["config.json", "chat_template.jinja", "1_Pooling/config.json"])
def test_small_files_of_a_hub_only_model_are_checked_too(here, hub_only, file):
    hub_only.served[file] = hub_only.files[file][::-1]
    with pytest.raises(ModelError, match=f"hub: {file} arrived with git SHA-1 .*removed"):
        fetch_model(NAME)
    assert leftovers(here) == []
    hub_only.served.clear()
    folder = fetch_model(NAME)
    assert (folder / file).read_bytes() == hub_only.files[file] and locate_model(NAME) == folder
    assert {"config.json", "chat_template.jinja"} < set(weights_hashes(NAME))
    (folder / file).write_bytes(b"spoilt")
    assert locate_model(NAME) is None and not folder.exists()


def test_small_files_that_the_hub_states_no_hash_of_are_remembered_as_they_came(hub_only):
    hub_only.states_blobs = False
    folder = fetch_model(NAME)
    assert locate_model(NAME) == folder
    (folder / "config.json").write_bytes(b"spoilt")
    assert locate_model(NAME) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"config.json": 5}', b"[" * 100_000])
def test_notes_that_a_crash_spoilt_count_as_none(here, hub_only, content):
    folder = fetch_model(NAME)
    hashes = weights_hashes(NAME)
    for stamp in (here / "cache" / "verified").iterdir():
        stamp.write_bytes(content)
    assert locate_model(NAME) == folder and weights_hashes(NAME) == hashes
    (folder / "hub_files.json").write_bytes(content)
    assert locate_model(NAME) is None
    assert fetch_model(NAME) == folder and weights_hashes(NAME) == hashes


def test_hub_only_model_without_weights_is_refused(hub):
    register(kind="transformers", files=None, hub=REPO)
    with pytest.raises(ModelError, match="has no safetensors file"):
        fetch_model(NAME)


@pytest.mark.parametrize(
    ("refuse", "expected"),
    [((401, "GatedRepo"), "is gated; accept its licence there and set HF_TOKEN"), ((404, "RepoNotFound"), f"there is no {REPO}"),
     ((503, ""), "not reachable")],
)  # fmt: skip
def test_hub_that_refuses_is_told_apart(hub, refuse, expected):
    register(hub=REPO)
    hub.refuse = refuse
    with pytest.raises(ModelError, match=f"hub: .*{expected}"):
        fetch_model(NAME)


@pytest.mark.parametrize("fault", ["unreachable", "hanging"])
def test_hub_that_does_not_answer_is_skipped_within_seconds(monkeypatch, here, hub, fault):
    register(hub=REPO, packages=[package()])
    add_wheel(here, "tiny-weights", {"tiny_weights/w.bin": WEIGHTS})
    if fault == "unreachable":
        point_to(monkeypatch, "http://127.0.0.1:9")
    hub.hang_at = "info"
    started = time.monotonic()
    assert fetch_model(NAME).read_bytes() == WEIGHTS
    assert time.monotonic() - started < 8
    assert len(hub.requests) == (fault == "hanging")


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_full_disk_during_a_download_is_not_called_an_unreachable_hub(monkeypatch, small_disk, hub):
    register(hub=REPO)
    monkeypatch.setenv("ECPO_CACHE", str(small_disk("128k")))
    with pytest.raises(ModelError, match="cannot store .*No space left.*needs 3 MB free"):
        fetch_model(NAME)


def put_into_hub_cache(here, data):
    snapshots = here / "hub" / "models--owner--tiny"
    path = snapshots / "snapshots" / "abc" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text("abc")
    return path


def test_hub_cache_is_used_where_it_holds_the_right_file(here, hub):
    register(hub=REPO)
    path = put_into_hub_cache(here, WEIGHTS)
    assert fetch_model(NAME) == path and not hub.requests


def test_another_revision_in_the_hub_cache_is_left_alone_and_passed_over(here, hub):
    register(hub=REPO)
    path = put_into_hub_cache(here, b"another revision")
    assert locate_model(NAME) is None
    assert fetch_model(NAME) == here / "cache" / "models" / NAME / FILE
    assert path.read_bytes() == b"another revision"


def test_spoilt_file_in_our_own_cache_is_fetched_again(here, hub, caplog):
    register(hub=REPO)
    path = fetch_model(NAME)
    path.write_bytes(b"spoilt")
    with caplog.at_level(logging.WARNING):
        assert fetch_model(NAME).read_bytes() == WEIGHTS
    assert "removed" in caplog.text and len(hub.downloads(FILE)) == 2


def test_incomplete_folder_in_our_own_cache_is_replaced(here, hub):
    register(hub=REPO)
    folder = here / "cache" / "models" / NAME
    folder.mkdir(parents=True)
    (folder / "something.txt").write_text("left over")
    assert fetch_model(NAME).read_bytes() == WEIGHTS


def test_two_that_want_a_model_at_once_download_it_once(hub):
    register(hub=REPO)
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch_model(NAME))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1 and len(hub.downloads(FILE)) == 1


# packages


def package(**changes):
    return {"requirement": "tiny-weights==1.0", "member": "tiny_weights/w.bin", "file": FILE, **changes}


def add_wheel(here, name, members, version="1.0"):
    """A wheel that leaves a mark if it is ever imported."""
    stem = f"{name.replace('-', '_')}-{version}"
    marker = f"open({str(here / 'imported')!r}, 'w')\n".encode()
    path = here / "links" / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, data in {f"{name.replace('-', '_')}/__init__.py": marker, **members}.items():
            wheel.writestr(member, data)
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nowhere\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


PARTS = {n: WEIGHTS[start : start + 120_000] for n, start in ((9, 0), (10, 120_000), (11, 240_000))}


def add_part(here, n):
    return add_wheel(here, f"tiny-part{n}", {f"tiny_part{n}/data/part{n:02d}.bin": PARTS[n]})


def register_parts():
    register(packages=[package(requirement="tiny-part{n}==1.0", member="tiny_part{n}/data/part{n:02d}.bin", numbers=[9, 11])])


def test_parts_are_joined_in_order_and_no_package_is_imported(here):
    register_parts()
    for n in PARTS:
        add_part(here, n)
    path = fetch_model(NAME)
    assert path.read_bytes() == WEIGHTS and path.parent == here / "cache" / "models" / NAME
    assert not (here / "imported").exists() and "tiny_part9" not in sys.modules
    assert leftovers(here) == sorted([f"models/{NAME}/{FILE}", *[name for name in leftovers(here) if name.startswith("verified/")]])


def test_missing_part_is_named_and_the_others_are_not_fetched_again(here):
    register_parts()
    wheels = [add_part(here, n) for n in (9, 10)]
    with pytest.raises(ModelError, match="packages: tiny-part11==1.0 not to be had"):
        fetch_model(NAME)
    assert locate_model(NAME) is None and not (here / "cache" / "models" / NAME).exists()
    for wheel in wheels:
        wheel.unlink()
    add_part(here, 11)
    assert fetch_model(NAME).read_bytes() == WEIGHTS


def test_wrong_hash_leaves_nothing_behind(here):
    register(packages=[package()])
    wheel = add_wheel(here, "tiny-weights", {"tiny_weights/w.bin": b"other weights"})
    with pytest.raises(ModelError, match=f"packages: {FILE} arrived with SHA-256 .*expected .*removed"):
        fetch_model(NAME)
    assert leftovers(here) == [] and locate_model(NAME) is None
    wheel.unlink()
    add_wheel(here, "tiny-weights", {"tiny_weights/w.bin": WEIGHTS})
    assert fetch_model(NAME).read_bytes() == WEIGHTS


def spoil_middle(path):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = os.urandom(1000)
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def lack_member(path):
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_weights/other.bin", WEIGHTS)


@pytest.mark.parametrize("spoil", [spoil_middle, truncate, lack_member])
def test_wheel_that_is_broken_is_removed_and_fetched_again(here, spoil):
    register(packages=[package()])
    right = add_wheel(here, "tiny-weights", {"tiny_weights/w.bin": WEIGHTS})
    arrived = here / "cache" / "models" / f"{NAME}.wheels" / right.name
    arrived.parent.mkdir(parents=True)
    arrived.write_bytes(right.read_bytes())
    spoil(arrived)
    with pytest.raises(ModelError, match=r"packages: tiny-weights==1\.0 does not hold tiny_weights/w\.bin intact .*removed"):
        fetch_model(NAME)
    assert not arrived.exists()
    assert fetch_model(NAME).read_bytes() == WEIGHTS


def test_corrupt_deflate_stream_is_a_model_error_too(here):
    register(packages=[package()])
    path = add_wheel(here, "tiny-weights", {"tiny_weights/w.bin": b"a" * 10**6})
    start = path.read_bytes().index(b"tiny_weights/w.bin") + len("tiny_weights/w.bin")
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    arrived = here / "cache" / "models" / f"{NAME}.wheels" / path.name
    arrived.parent.mkdir(parents=True)
    arrived.write_bytes(data)
    with pytest.raises(ModelError, match="does not hold"):
        fetch_model(NAME)


def test_folder_of_a_package_is_copied_and_nothing_gets_out_of_it(here):
    outside = here / "outside.txt"
    files = {"config.json": b"{}", "1_Pooling/config.json": b"[]"}
    hashes = {name: sha(data) for name, data in files.items()}
    register(kind="transformers", files=hashes, packages=[package(member="tiny_weights/model/", file=None)])
    members = {f"tiny_weights/model/{name}": data for name, data in files.items()}
    add_wheel(here, "tiny-weights", {**members, f"tiny_weights/model/{outside}": b"x", "tiny_weights/model/../../../outside.txt": b"x"})
    folder = fetch_model(NAME)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(files)
    assert not [path for path in here.rglob("outside.txt")] and not (here / "imported").exists()


def test_source_archive_is_not_built(here):
    register(packages=[package()])
    files = {
        "backend.py": f"open({str(here / 'imported')!r}, 'w')\n".encode(),
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
    }
    with tarfile.open(here / "links" / "tiny-weights-1.0.tar.gz", "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"tiny-weights-1.0/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    with pytest.raises(ModelError, match="tiny-weights==1.0 not to be had"):
        fetch_model(NAME)
    assert not (here / "imported").exists()


def test_index_that_cannot_be_reached_is_not_called_a_missing_package(here, monkeypatch):
    register(packages=[package()])
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ModelError, match="not to be had .the package index cannot be reached; "):
        fetch_model(NAME)


def test_interpreter_without_pip_is_told(here, monkeypatch):
    register(packages=[package()])
    done = subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip\n")
    monkeypatch.setattr(models.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ModelError, match="not to be had .*No module named pip"):
        fetch_model(NAME)


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (1, "ERROR: Exception:\nOSError: [Errno 28] No space left on device\n", "cannot store .*No space left.*needs 3 MB free"),
        (-9, "", "not to be had .pip exit -9"),
    ],
)
def test_half_a_wheel_that_pip_left_behind_is_never_used(here, monkeypatch, code, stderr, expected):
    register(packages=[package()])
    whole = add_wheel(here, "tiny-weights", {"tiny_weights/w.bin": WEIGHTS})

    def half_a_download(command, **_):
        half = Path(command[command.index("--dest") + 1]) / whole.name
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(whole.read_bytes()[:1000])
        return subprocess.CompletedProcess(command, code, "", stderr)

    with monkeypatch.context() as patch:
        patch.setattr(models.subprocess, "run", half_a_download)
        with pytest.raises(ModelError, match=expected):
            fetch_model(NAME)
    assert fetch_model(NAME).read_bytes() == WEIGHTS


def test_full_disk_while_unpacking_says_what_is_needed(here, monkeypatch, small_disk):
    register(packages=[package()])
    wheel = add_wheel(here, "tiny-weights", {"tiny_weights/w.bin": b"\0" * 10**6})
    disk = small_disk("256k")
    (disk / "models" / f"{NAME}.wheels").mkdir(parents=True)
    (disk / "models" / f"{NAME}.wheels" / wheel.name).write_bytes(wheel.read_bytes())
    monkeypatch.setenv("ECPO_CACHE", str(disk))
    with pytest.raises(ModelError, match="cannot store .*No space left.*needs 3 MB free"):
        fetch_model(NAME)
