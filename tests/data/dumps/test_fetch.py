"""Downloads from a hub and a site on this machine: lengths are checked, broken ones go on, nobody is surprised by sizes."""

import hashlib
import random
import re

import pytest
from stub_hub import StubHub

from ecpo_utils import cli
from ecpo_utils.core.errors import ArtifactError, ParamsError
from ecpo_utils.data.dumps import fetch
from ecpo_utils.data.dumps.fetch import RemoteFile, fetch_file, list_files

NAMES = ["raw/review_categories/Video_Games.jsonl", "raw/meta_categories/meta_Video_Games.jsonl"]
DATA = [random.Random(n).randbytes(300_000) for n in (0, 1)]


@pytest.fixture
def hub(monkeypatch):
    hub = StubHub(fetch.REPOSITORY, dict(zip(NAMES, DATA, strict=True)))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(fetch, "TIMEOUT_S", 2.0)
    yield hub
    hub.close()


@pytest.fixture
def site():
    """The stub's plain file serving, laid out as the site is."""
    hub = StubHub("mirror/data", {f"{name}.gz": data for name, data in zip(NAMES, DATA, strict=True)})
    yield hub, f"{hub.url}/mirror/data/resolve/main"
    hub.close()


def test_hub_states_sizes_and_delivers(hub, tmp_path):
    files = list_files("game", "hub")
    assert [(file.name, file.size) for file in files] == [(name, len(data)) for name, data in zip(NAMES, DATA, strict=True)]
    assert files[0].sha256 == hashlib.sha256(DATA[0]).hexdigest()
    assert [fetch_file(file, "hub", tmp_path).read_bytes() for file in files] == DATA
    hub.requests.clear()
    assert fetch_file(files[0], "hub", tmp_path).name == "Video_Games.jsonl" and not hub.requests


def test_hub_with_other_bytes_is_told_and_removed(hub, tmp_path):
    hub.served[NAMES[0]] = DATA[0][:-1] + b"x"
    with pytest.raises(ArtifactError, match="another hash or length|broke off"):
        fetch_file(list_files("game", "hub")[0], "hub", tmp_path)
    assert not (tmp_path / "Video_Games.jsonl").exists()


def test_hub_that_refuses_names_the_other_way(hub):
    hub.refuse = (404, "RepoNotFound")
    with pytest.raises(ArtifactError, match="try --from site"):
        list_files("game", "hub")


def test_site_states_sizes_and_delivers(site, tmp_path):
    files = list_files("game", "site", site[1])
    assert [file.size for file in files] == [len(data) for data in DATA]
    assert [fetch_file(file, "site", tmp_path, site[1]).read_bytes() for file in files] == DATA
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Video_Games.jsonl.gz", "meta_Video_Games.jsonl.gz"]


def test_site_download_that_was_cut_goes_on_where_it_stopped(site, tmp_path):
    hub, url = site
    file = list_files("game", "site", url)[0]
    hub.cut_after[file.name] = 200_000
    assert fetch_file(file, "site", tmp_path, url).read_bytes() == DATA[0]
    first, second = hub.downloads(file.name)
    assert first == "" and int(re.fullmatch(r"bytes=(\d+)-", second)[1]) == 200_000


def test_site_that_keeps_breaking_off_leaves_the_part_for_the_next_time(site, tmp_path, monkeypatch):
    hub, url = site
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    file = list_files("game", "site", url)[0]
    hub.cut_after[file.name] = 100_000
    with pytest.raises(ArtifactError, match="the same command goes on from there"):
        fetch_file(file, "site", tmp_path, url)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    assert fetch_file(file, "site", tmp_path, url).read_bytes() == DATA[0] and hub.downloads(file.name)[-1] == "bytes=100000-"


def test_site_without_the_file_or_without_an_answer_is_told(site, tmp_path):
    with pytest.raises(ArtifactError, match="the server says 404"):
        list_files("game", "site", site[0].url + "/elsewhere")
    with pytest.raises(ArtifactError, match="no answer"):
        list_files("game", "site", "http://127.0.0.1:9")


def test_more_than_was_stated_is_removed(site, tmp_path):
    name = f"{NAMES[0]}.gz"
    with pytest.raises(ArtifactError, match="removed, try again"):
        fetch_file(RemoteFile(name, 1000), "site", tmp_path, site[1])
    assert not list(tmp_path.iterdir())


def test_yelp_says_what_to_download_and_where():
    with pytest.raises(ParamsError, match=r"(?s)accepting its licence.*business.yelp.com.*ecpo data build"):
        list_files("yelp", "hub")


def run(*words):
    return cli.main(["data", "fetch", "--source", "amazon", "--domain", "game", *words])


def test_command_shows_sizes_and_asks_first(site, tmp_path, capsys, monkeypatch):
    to = tmp_path / "dumps"
    words = ["--to", str(to), "--from", "site", "--site", site[1]]
    assert run(*words) == 1  # nobody there
    assert "add --yes" in capsys.readouterr().err and not to.exists()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert run(*words) == 1 and not to.exists()
    assert run(*words, "--yes") == 0
    out = capsys.readouterr().out
    assert "GB  Video_Games.jsonl.gz" in out and "ecpo data build --domain game --source amazon --reviews" in out
    assert run(*words) == 0 and "(is there)" in capsys.readouterr().out
