"""Names of folders and files; nothing is made by asking for one."""

from pathlib import Path

import pytest

from ecpo_utils.core.paths import RunPaths, cache_root, repository_root

ROOT = Path(__file__).resolve().parents[2]


def test_root_is_found_from_a_folder_below(monkeypatch):
    monkeypatch.chdir(ROOT / "tests" / "core")
    assert repository_root() == ROOT


def test_root_is_found_from_elsewhere_through_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert repository_root() == ROOT


def test_another_checkout_is_preferred_where_one_stands_in_it(monkeypatch, tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "models.yaml").write_text("models: {}\n")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert repository_root() == tmp_path


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ECPO_CACHE": "/a"}, "/a"),
        ({"ECPO_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/ecpo"),
        ({"ECPO_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/someone/.cache/ecpo"),
        ({}, "/home/someone/.cache/ecpo"),
        ({"ECPO_CACHE": "~/c"}, "/home/someone/c"),
    ],
)
def test_cache_root_follows_the_environment(monkeypatch, variables, expected):
    for name in ("ECPO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


def test_runs_lie_apart_but_share_their_responses(tmp_path):
    quick, cpu = RunPaths(tmp_path, "quick"), RunPaths(tmp_path, "cpu")
    assert quick.responses == cpu.responses == tmp_path / "runs" / "responses.sqlite"
    assert quick.run == tmp_path / "runs" / "quick" and quick.calls != cpu.calls


def test_files_of_a_domain_do_not_collide(tmp_path):
    paths = RunPaths(tmp_path, "quick")
    files = [
        path
        for domain in ("book", "game")
        for path in (
            paths.items(domain), paths.index(domain), paths.personas(domain), paths.personas(domain, "random"),
            paths.tasks(domain, "sgpt"), paths.tasks(domain, "test"), paths.trajectories(domain, "expert"),
        )
    ]  # fmt: skip
    assert len(set(files)) == len(files)
    assert all(path.is_relative_to(paths.run) for path in files)


def test_executed_notebook_of_one_domain_has_its_own_name(tmp_path):
    paths = RunPaths(tmp_path, "quick")
    assert paths.executed("05_x").name == "05_x.ipynb" and paths.executed("05_x", "book").name == "05_x.book.ipynb"


def test_asking_for_names_makes_no_folder(tmp_path):
    paths = RunPaths(tmp_path, "quick")
    assert paths.figure("a") and paths.manifest("a") and paths.items("book") and not list(tmp_path.iterdir())
