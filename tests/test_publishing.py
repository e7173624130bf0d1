"""A run is packed, unpacked and drawn again from its files alone, to the same numbers."""

import ast
import contextlib
import gzip
import json
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from scripted_models import tasks_of

from ecpo_utils import exhibits, publishing
from ecpo_utils.core.artifacts import append_jsonl, load_jsonl, write_jsonl
from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.core.params import load_profile
from ecpo_utils.core.paths import RunPaths
from ecpo_utils.core.schema import Confirmation, Item, Persona, PersonaRecord, Trajectory, Turn
from ecpo_utils.evaluate.figures import plot_simulation, save_exhibit
from ecpo_utils.evaluate.tables import simulation_table
from ecpo_utils.exhibits import EXHIBITS, Drawing, Exhibit
from ecpo_utils.llm.cache import ResponseCache
from ecpo_utils.publishing import draw_published, publish_run, restore_run
from ecpo_utils.run import Run

ROOT = Path(__file__).parents[1]
PERSONA = Persona(activities="Compares.", language="Plain.")


def dialogue(domain, system, number):
    turn = Turn(index=0, policy="ask_recommendation", user_message="Hi.", reply="Read it.",
                confirmation=Confirmation(flexibility=2, coherence=1, guidance=number % 2))  # fmt: skip
    return Trajectory(task_id=f"{domain}/u{number}/i", domain=domain, system=system, config="c", target=Item(item_id="1", title="Emma"),
                      persona=PERSONA, status="complete", turns=[turn], recommended_at=0 if number else None)  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A checkout in which notebooks 02 and 03 of the quick profile have left their rows and figures."""
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    run = Run("03_simulation", load_profile(ROOT / "params" / "quick.yaml"), RunPaths(tmp_path, "quick"))
    played = {}
    for domain in run.domains:
        played[domain] = {name: [dialogue(domain, name, i) for i in range(2)] for name in ("actcrs_expert", "actcrs_base")}
        for name, rows in played[domain].items():
            write_jsonl(run.paths.trajectories(domain, name), [*rows, dialogue(domain, name, 7)])  # one more than the notebook showed
        write_jsonl(run.paths.tasks(domain, "test"), tasks_of(rows))
        for source in ("ailo", "random"):
            records = [PersonaRecord(user_id=f"u{i}", persona=Persona(activities=f"Likes {i}.", language="Plain.")) for i in range(3)]
            write_jsonl(run.paths.personas(domain, source), records)
    table = simulation_table(played, run.label)
    save_exhibit(run.paths.figure("03_simulation"), table, run.provenance(), title="ActCRS against AILO", figure=plot_simulation(table))
    return run


def test_published_figures_are_drawn_again_to_the_same_numbers(run, tmp_path):
    replace(run, notebook="02_persona_diversity").finish()
    assert publish_run("quick")[0].startswith("results/quick: ")
    before = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    for path in (tmp_path / "runs").rglob("*.jsonl"):
        path.unlink()
    lines = draw_published("quick")
    assert "03_simulation: the same numbers" in lines and "02_persona_diversity: new" in lines
    (missing,) = [line for line in lines if line.startswith("10_main_results: not drawn, ")]
    assert "is missing; run notebooks/10_main_results.ipynb" in missing and str(tmp_path.parent) not in missing
    assert json.loads((tmp_path / "figures" / "02_persona_diversity.json").read_text())["notebook"] == "02_persona_diversity"
    after = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert {name: after[name] for name in before} == before and not list((tmp_path / "runs").rglob("*.jsonl"))


def test_a_page_is_drawn_again_beside_its_table(run, tmp_path, monkeypatch):
    replace(run, notebook="11_case_studies").finish()
    publish_run("quick")
    drawn = Exhibit("11_case_studies", lambda run: Drawing(simulation_table({}, run.label), page="# Cases\n"))
    monkeypatch.setattr(exhibits, "EXHIBITS", (drawn,))
    assert draw_published("quick") == ["11_case_studies: new"]
    assert (tmp_path / "figures" / "11_case_studies.md").read_text() == "# Cases\n"
    assert sorted(path.suffix for path in (tmp_path / "figures").glob("11_*")) == [".csv", ".json", ".md"]


def test_exhibits_of_a_notebook_that_did_not_come_to_its_end_are_not_drawn(run, tmp_path):
    publish_run("quick")
    reason = "02_persona_diversity: not drawn, notebook 02 had not come to its end when this was published"
    assert reason in draw_published("quick") and not (tmp_path / "figures" / "02_persona_diversity.png").exists()


def test_numbers_that_changed_are_said_to_have(run, tmp_path):
    publish_run("quick")
    (tmp_path / "figures" / "03_simulation.csv").write_text("domain\nbook\n")
    assert "03_simulation: other numbers than before" in draw_published("quick")


def test_a_run_is_restored_where_files_are_missing(run, tmp_path):
    publish_run("quick")
    path = run.paths.trajectories("book", "actcrs_expert")
    rows = load_jsonl(path, Trajectory)
    path.unlink()
    other = run.paths.trajectories("book", "actcrs_base")
    other.write_text("")
    assert restore_run("quick") == (1, 0) and load_jsonl(path, Trajectory) == rows and other.read_text() == ""


def test_a_restoring_that_breaks_off_leaves_no_file_that_is_not_whole(run, monkeypatch):
    publish_run("quick")
    path = run.paths.trajectories("book", "actcrs_expert")
    before = path.read_bytes()
    path.unlink()

    def break_off(file, data):
        with open(file, "wb") as half:
            half.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", break_off)
        restore_run("quick")
    assert not path.exists() and restore_run("quick") == (1, 0) and path.read_bytes() == before


def test_a_publishing_that_breaks_off_between_old_and_new_goes_on(run, tmp_path, monkeypatch):
    publish_run("quick")
    target = tmp_path / "results" / "quick"
    before = {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    rename = Path.rename

    def only_the_old(path, other):
        if path.name == ".quick.new":
            raise KeyboardInterrupt
        return rename(path, other)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", only_the_old)
        publish_run("quick")
    run.paths.trajectories("book", "actcrs_expert").unlink()
    with pytest.raises(ArtifactError, match="lacks 1 files that are published"):
        publish_run("quick")
    assert {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    restore_run("quick")
    publish_run("quick")
    assert [path.name for path in target.parent.iterdir()] == ["quick"]


def test_a_run_that_lacks_published_files_drops_them_only_if_told_to(run, tmp_path):
    publish_run("quick")
    contents = tmp_path / "results" / "quick" / publishing.CONTENTS
    before = contents.read_bytes()
    run.paths.trajectories("book", "actcrs_base").unlink()
    lost = "book/trajectories/actcrs_base.jsonl.gz"
    with pytest.raises(ArtifactError, match=f"lacks 1 files that are published, {lost} first; run: ecpo restore --profile quick"):
        publish_run("quick")
    assert contents.read_bytes() == before and [path.name for path in (tmp_path / "results").iterdir()] == ["quick"]
    assert restore_run("quick") == (1, 0)
    publish_run("quick")
    run.paths.trajectories("book", "actcrs_base").unlink()
    publish_run("quick", replace=True)
    assert lost not in json.loads(contents.read_text())


def test_packing_twice_gives_the_same_bytes(run, tmp_path):
    publish_run("quick")
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    publish_run("quick")
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()} == before


def test_a_file_that_was_changed_is_refused(run, tmp_path):
    publish_run("quick")
    packed = tmp_path / "results" / "quick" / "book" / "trajectories" / "actcrs_expert.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}"))
    run.paths.trajectories("book", "actcrs_expert").unlink()
    with pytest.raises(ArtifactError, match=r"actcrs_expert.jsonl.gz is not the file that was published; .*ecpo publish --profile quick"):
        restore_run("quick")


def test_a_broken_list_of_what_was_published_is_named(run, tmp_path):
    publish_run("quick")
    (tmp_path / "results" / "quick" / publishing.CONTENTS).write_text("")
    with pytest.raises(ArtifactError, match="contents.json is broken .*; get it anew, or remove it and run: ecpo publish --profile quick"):
        restore_run("quick")


def test_nothing_to_publish_or_to_restore_says_so(run):
    with pytest.raises(ArtifactError, match="nothing is published under .*results/cpu; there are: none"):
        restore_run("cpu")
    with pytest.raises(ArtifactError, match="runs/cpu holds no rows; run: ecpo run --profile cpu"):
        publish_run("cpu")


def test_adapters_are_packed_without_checkpoints(run, tmp_path):
    adapter = run.paths.adapter("book", "sgpt")
    for file in (adapter / "adapter_model.safetensors", adapter.with_name(".sgpt.abcd") / "checkpoint-2" / "optimizer.pt"):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
    publish_run("quick")
    contents = json.loads((tmp_path / "results" / "quick" / publishing.CONTENTS).read_text())
    assert [name for name in contents if "adapters" in name] == ["book/adapters/sgpt/adapter_model.safetensors"]


def test_chats_with_a_person_stay_private_and_a_broken_off_publication_leaves_the_earlier_one(run, tmp_path, monkeypatch):
    write_jsonl(run.paths.chats / "20260101-120000-1.jsonl", [dialogue("book", "actcrs_expert", 1)])
    publish_run("quick")
    contents = tmp_path / "results" / "quick" / publishing.CONTENTS
    before = contents.read_bytes()
    assert b"trajectories" in before and b"chats" not in before
    write_jsonl(run.paths.trajectories("book", "actcrs_sgpt"), [dialogue("book", "actcrs_sgpt", 1)])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publishing, "sha256_file", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        publish_run("quick")
    assert contents.read_bytes() == before and restore_run("quick") == (0, 0)
    publish_run("quick")
    assert b"actcrs_sgpt" in contents.read_bytes()


def test_answers_that_the_run_used_are_published_in_shards_and_restored(run, tmp_path):
    texts = "one", "zwei \u2028", "a chat"
    first, second, other = ({"text": text, "top_logprobs": [{"Yes": -0.1}], "prompt_tokens": 3} for text in texts)
    keys = [ResponseCache.key({"n": n}) for n in range(3)]
    with contextlib.closing(ResponseCache(run.paths.responses)) as cache:
        cache.put(keys[0], first)
        cache.put(keys[2], other)
        append_jsonl(run.paths.calls, {"request": keys[0][:16]})
        publish_run("quick")
        shards = tmp_path / "results" / "quick" / publishing.ANSWERS
        before = (shards / "001.jsonl.gz").read_bytes()
        cache.put(keys[1], second)
        append_jsonl(run.paths.calls, {"request": keys[1][:16]})
        publish_run("quick")
        assert (shards / "001.jsonl.gz").read_bytes() == before and len(list(shards.iterdir())) == 2
        cache.forget(keys)
        cache.put(keys[0], other)
    run.paths.calls.unlink()
    assert restore_run("quick") == (0, 1)
    with contextlib.closing(ResponseCache(run.paths.responses)) as cache:
        assert [cache.get(key) for key in keys] == [other, second, None]
    publish_run("quick")  # goes on from what was published, without the log of the calls
    assert len(list(shards.iterdir())) == 2 and not list(run.paths.run.glob("answers*"))


def test_every_exhibit_is_one_that_a_notebook_saves():
    """And the other way round."""
    saved = set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code":
                continue
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "figure":
                    saved.add(node.args[0].value)
    assert {exhibit.name for exhibit in EXHIBITS} == saved
