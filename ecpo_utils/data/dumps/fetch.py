"""`ecpo data fetch`: the public files of Amazon Reviews 2023, from the Hugging Face hub or the data set's own site."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ...core.artifacts import sha256_file, writing
from ...core.errors import ArtifactError, ParamsError
from ...core.schema import Domain

REPOSITORY = "McAuley-Lab/Amazon-Reviews-2023"
SITE = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023"
CATEGORIES: dict[Domain, str] = {"book": "Books", "game": "Video_Games"}
TIMEOUT_S = 30.0
ATTEMPTS = 5
BLOCK_BYTES = 1 << 20
YELP_STEPS = (
    "Yelp's data may be had after accepting its licence, which no program can do for you:\n"
    "  1. open https://business.yelp.com/data/resources/open-dataset/ , accept, and download the JSON archive (about 4 GB)\n"
    "  2. if it came as a .zip, unpack that; the .tar or .tgz inside may stay as it is\n"
    "  3. ecpo data build --domain yelp --source yelp --reviews yelp_dataset.tar --meta yelp_dataset.tar --out data"
)


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch. `sha256` is "" where the server states none."""

    name: str
    size: int
    sha256: str = ""


def list_files(domain: Domain, origin: str, site: str = SITE) -> list[RemoteFile]:
    """The review and the meta file of a domain, with their sizes as the server states them.

    Args:
        domain: "book" or "game".
        origin: "hub" or "site".
        site: Address of the site, or of a mirror laid out like it.

    Raises:
        ParamsError: If it is yelp's; says how to get these.
        ArtifactError: If the server does not answer or lacks a file.
    """
    if domain not in CATEGORIES:
        raise ParamsError(YELP_STEPS)
    names = [f"raw/review_categories/{CATEGORIES[domain]}.jsonl", f"raw/meta_categories/meta_{CATEGORIES[domain]}.jsonl"]
    if origin == "hub":
        return _hub_files(names)
    return [RemoteFile(f"{name}.gz", _content_length(f"{site.rstrip('/')}/{name}.gz")) for name in names]


def partial_path(file: RemoteFile, folder: Path) -> Path:
    """Where the part of a file lies that came before a download from the site broke off; of another length, nothing is taken over."""
    return folder / f"{Path(file.name).name}.{file.size}.partial"


def fetch_file(file: RemoteFile, origin: str, folder: Path, site: str = SITE) -> Path:
    """Download one file to `folder`; what is there whole is not fetched again, and what is there in part goes on from its end.

    Raises:
        ArtifactError: If the server does not answer, what came is not what it stated, or the disk is full.
    """
    target = folder / Path(file.name).name
    if target.is_file() and target.stat().st_size == file.size:
        return target
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        partial = _from_hub(file, folder) if origin == "hub" else _from_site(file, f"{site.rstrip('/')}/{file.name}", target)
        size = partial.stat().st_size
        if size != file.size or file.sha256 and sha256_file(partial) != file.sha256:
            partial.unlink()
            raise ArtifactError(f"{file.name}: {size} bytes came, {file.size} with another hash or length were stated; removed, try again")
        partial.replace(target)
    return target


def _hub_errors() -> tuple[type[Exception], ...]:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError


def _hub_files(names: Sequence[str]) -> list[RemoteFile]:
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(REPOSITORY, files_metadata=True, timeout=TIMEOUT_S)
    except _hub_errors() as error:
        raise ArtifactError(f"the hub does not answer for {REPOSITORY} ({type(error).__name__}); try --from site") from None
    found = {sibling.rfilename: sibling for sibling in info.siblings}
    if missing := [name for name in names if name not in found]:
        raise ArtifactError(f"{REPOSITORY} on the hub has no {missing[0]}; try --from site")
    return [RemoteFile(name, found[name].size, found[name].lfs.sha256 if found[name].lfs else "") for name in names]


def _from_hub(file: RemoteFile, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, file.name, repo_type="dataset", local_dir=folder / ".hub", etag_timeout=TIMEOUT_S))
    except _hub_errors() as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ArtifactError(f"{file.name}: the download broke off ({type(error).__name__}); the same command goes on from there") from None


def _open(url: str, start: int = 0, method: str = "GET") -> http.client.HTTPResponse:
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "ecpo", **({"Range": f"bytes={start}-"} if start else {})})
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def _content_length(url: str) -> int:
    try:
        with _open(url, method="HEAD") as answer:
            length = answer.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        raise ArtifactError(f"{url}: the server says {error.code} {error.reason}; see https://amazon-reviews-2023.github.io") from None
    except (OSError, http.client.HTTPException) as error:
        raise ArtifactError(f"{url}: no answer ({getattr(error, 'reason', None) or error})") from None
    if not length.isdecimal():
        raise ArtifactError(f"{url}: the server states no length, so what comes could not be checked; download it by hand")
    return int(length)


def _from_site(file: RemoteFile, url: str, target: Path) -> Path:
    """Append to the part that is there until the stated length is reached; a broken connection is opened again a few times."""
    partial = partial_path(file, target.parent)
    fault = ""
    with tqdm(total=file.size, desc=target.name, unit="B", unit_scale=True, mininterval=0.5) as progress:
        for _ in range(ATTEMPTS):
            have = partial.stat().st_size if partial.is_file() else 0
            progress.update(have - progress.n)
            if have >= file.size:
                return partial
            try:
                with _open(url, have) as answer:
                    _append(answer, partial, have if answer.status == 206 else 0, progress.update)
            except urllib.error.HTTPError as error:
                raise ArtifactError(f"{url}: the server says {error.code} {error.reason}") from None
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                fault = str(getattr(error, "reason", None) or error or type(error).__name__)
    if partial.is_file() and partial.stat().st_size >= file.size:
        return partial
    raise ArtifactError(f"{url}: broke off {ATTEMPTS} times{f' ({fault})' if fault else ''}; the same command goes on from there")


def _append(answer: http.client.HTTPResponse, partial: Path, start: int, advance: Callable[[int], object]) -> None:
    with open(partial, "ab") as out:
        out.truncate(start)  # a server that ignores the range sends all of it again
        while block := answer.read(BLOCK_BYTES):
            out.write(block)
            advance(len(block))
