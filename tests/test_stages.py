"""The stages as notebooks call them: parameters of a run, what is missing, and files from stage to stage."""

import ast
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from scripted_models import FULL, FakeEmbedder, choice

from ecpo_utils import preparation, simulation
from ecpo_utils import run as run_module
from ecpo_utils.core.artifacts import load_jsonl
from ecpo_utils.core.errors import ArtifactError, EndpointError, ParamsError
from ecpo_utils.core.matching import normalise
from ecpo_utils.core.params import Endpoint, load_profile
from ecpo_utils.core.paths import RunPaths
from ecpo_utils.core.schema import Task, Trajectory
from ecpo_utils.data.release import load_release_tasks
from ecpo_utils.dialogue.retrieval import build_database
from ecpo_utils.run import Run, open_run

ROOT = Path(__file__).parents[1]
RELEASE = ROOT.parent / "shared" / "ecpo_release"
QUICK = yaml.safe_load((ROOT / "params" / "quick.yaml").read_text())
DECLARED = {"profile": "quick", "seed": 0, "max_turns": QUICK["max_turns"]}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The repository's params in a folder of their own; the working directory is there, and is restored."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def namespace(**given):
    """A notebook's names after its parameters cell: as IPython has them, with modules and functions about."""
    about = {"In": ["", "x"], "Out": {1: 2}, "_": "shown", "_i1": "seed", "exit": print, "json": json, "get_ipython": print, "Path": Path}
    return about | DECLARED | given


# parameters of a run


def test_what_the_notebook_does_not_declare_comes_from_the_profile(checkout):
    run = open_run("03_simulation", namespace())
    assert run.params == load_profile(checkout / "params" / "quick.yaml")
    assert (run.notebook, run.paths.root, run.domains) == ("03_simulation", checkout, ["book", "game", "yelp"])
    assert run.paths.run.is_dir()


def test_injected_values_win_over_declared_ones_and_the_profile(checkout):
    params = open_run("03_simulation", namespace(profile="cpu", max_turns=2, split="by_item")).params
    cpu = load_profile(checkout / "params" / "cpu.yaml")
    assert (params.profile, params.max_turns, params.split) == ("cpu", 2, "by_item")
    assert params.num_personas == cpu.num_personas != QUICK["num_personas"]


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_whole_params_file_can_be_injected(checkout, path):
    if path.stem != "models":
        assert open_run("03_simulation", namespace(**yaml.safe_load(path.read_text()))).params == load_profile(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_turn": 3}, "notebook 03_simulation, profile quick: unknown parameter 'max_turn'; did you mean 'max_turns'?"),
        ({"zzz": None}, "unknown parameter 'zzz'"),
        ({"max_turns": "many"}, "parameter 'max_turns' is 'many'"),
        ({"max_turns": 2.5}, "parameter 'max_turns' is 2.5"),
        ({"max_turns": 0}, "parameter 'max_turns' is 0"),
        ({"max_turns": None}, "parameter 'max_turns' is None"),
        ({"seed": [1]}, r"parameter 'seed' is \[1\]"),
        ({"domains": []}, r"parameter 'domains' is \[\]"),
        ({"domains": ["music"]}, "parameter 'domains.0' is 'music'"),
        ({"domains": "book"}, "parameter 'domains' is 'book'"),
        ({"simulator": {"provider": "openai"}}, "parameter 'simulator.model' is missing"),
        ({"simulator": {"provider": "openai", "model": "m", "api_key": "k"}}, "'simulator.api_key'; did you mean 'api_key_env'?"),
        ({"profile": "laptop"}, "no profile 'laptop'.*there are: .*cpu, gpu, paper, quick"),
    ],
)
def test_an_unknown_or_mistyped_value_is_named_before_any_work(checkout, given, message):
    with pytest.raises(ParamsError, match=message):
        open_run("03_simulation", namespace(**given))
    assert not (checkout / "runs").exists()


def test_a_run_opened_from_the_notebooks_folder_works_in_the_root(checkout, monkeypatch):
    (checkout / "notebooks").mkdir()
    monkeypatch.chdir(checkout / "notebooks")
    assert open_run("01_environment", namespace()).paths.root == checkout
    assert Path(os.getcwd()) == checkout


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_setup_cell_can_be_run_again_in_the_same_kernel(checkout, path):
    """In JupyterLab: change a parameter, run all again. What other cells assigned is no parameter."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names = {"__builtins__": __builtins__}
    exec(cells[0], names)
    names["run"] = open_run(path.stem, names)
    for node in (node for cell in cells[1:] for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Name)):
        if isinstance(node.ctx, ast.Store):
            names.setdefault(node.id, {})
    exec(cells[0].replace("seed: int = 0", "seed: int = 7"), names)
    assert open_run(path.stem, names).params.seed == 7
    exec("max_turn: int = 3", names)
    with pytest.raises(ParamsError, match="unknown parameter 'max_turn'"):
        open_run(path.stem, names)


# what is missing


@pytest.fixture
def variant(tmp_path):
    """A run whose parameters differ from its profile's file."""
    return Run("03_simulation", SimpleNamespace(profile="quick"), RunPaths(tmp_path, "quick", "abcd1234"))


def test_a_variant_reads_what_the_profile_made_until_it_has_its_own(variant):
    own = variant.paths.items("book")
    shared = variant.paths.fallback(own)
    assert (own.parts[-3], shared.parts[-3]) == ("quick.abcd1234", "quick")
    shared.parent.mkdir(parents=True)
    shared.write_text("{}")
    assert variant.need(own, "01_environment") == shared
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert variant.need(own, "01_environment") == own


def test_a_missing_input_names_the_notebook_that_makes_it(variant):
    with pytest.raises(ArtifactError, match=r"items.jsonl is missing; run notebooks/01_environment.ipynb .*--profile quick --only 01\)"):
        variant.need(variant.paths.items("book"), "01_environment")


def test_a_changed_parameter_has_a_folder_of_its_own_and_a_restricted_domain_its_own_figures(checkout):
    plain, changed = open_run("03_simulation", {"profile": "quick"}), open_run("03_simulation", {"profile": "quick", "max_turns": 4})
    assert plain.paths.run.name == "quick" and changed.paths.run.name.startswith("quick.") and changed.label == "quick, changed: max_turns"
    one = open_run("03_simulation", {"profile": "quick", "domains": ["game"]})
    assert one.paths.run == plain.paths.run and one.paths.figure("x") != plain.paths.figure("x")


@pytest.fixture
def run(checkout, study, monkeypatch):
    """A small run whose roles are scripted and whose embedder counts words."""
    for module in (preparation, simulation):
        monkeypatch.setattr(module, "Embedder", lambda name: FakeEmbedder())
    role = {"provider": "openai", "base_url": study.endpoint.base_url, "max_retries": 0}
    roles = {name: {**role, "model": name} for name in ("persona", "simulator", "expert", "cra", "rewriter", "judge")}
    return open_run("03_simulation", namespace(domains=["game"], simulator_mode=FULL, num_personas=3, **roles))


def test_stages_name_the_notebook_that_must_run_first(run):
    with pytest.raises(ArtifactError, match="items.jsonl is missing; run notebooks/01_environment.ipynb"):
        preparation.open_databases(run)
    with pytest.raises(ArtifactError, match="personas.random.jsonl is missing; run notebooks/02_persona_diversity.ipynb"):
        preparation.load_persona_records(run, "random")
    with pytest.raises(ArtifactError, match="personas.jsonl is missing; run notebooks/02_persona_diversity.ipynb"):
        preparation.prepare_tasks(run)
    preparation.prepare_items(run)
    run.paths.index("game").unlink()
    with pytest.raises(ArtifactError, match="items.faiss.*run notebooks/01"):
        preparation.open_databases(run)


def test_all_stages_in_order(run, study):
    """Items, personas, tasks, dialogues: each reads what the one before wrote; a second time nothing is asked."""

    def persona_or_agent(body):
        if body["model"] != "persona":
            return "Ask[Alone or together?]"
        return choice(careful=0.9) if body.get("logprobs") else "Loves all."

    study.scripts["agent"] = persona_or_agent

    async def everything():
        databases = preparation.prepare_items(run)
        with pytest.raises(ArtifactError, match="tasks.test.jsonl is missing; run notebooks/02_persona_diversity.ipynb"):
            await simulation.simulate(run, {"actcrs_expert": "expert"})
        personas = await preparation.prepare_personas(run)
        tasks = preparation.prepare_tasks(run)
        return databases, personas, tasks, await simulation.simulate(run, {"actcrs_expert": "expert", "actcrs_base": "cra"})

    databases, personas, tasks, played = study.run(everything())
    assert len(personas["game"]) == 3 and len(databases["game"].items) >= 200
    assert {name: len(rows) for name, rows in tasks["game"].items()} == {
        "sgpt": QUICK["num_sgpt_tasks"], "ecpo": QUICK["num_ecpo_tasks"], "test": QUICK["num_test_tasks"]["game"]}  # fmt: skip
    assert load_jsonl(run.paths.tasks("game", "test"), Task) == tasks["game"]["test"]
    for name, rows in played["game"].items():
        assert [row.task_id for row in rows] == [task.task_id for task in tasks["game"]["test"]]
        assert {row.status for row in rows} == {"complete"} and {row.system for row in rows} == {name}
        assert load_jsonl(run.paths.trajectories("game", name), Trajectory) == rows
    assert "Loves all." in personas["game"][0].persona.activities
    assert len(load_jsonl(run.paths.personas("game", "random"), type(personas["game"][0]))) == 3

    asked = len(study.endpoint.chats)
    again = study.run(everything_again(run))
    assert again == (personas, played) and len(study.endpoint.chats) == asked


async def everything_again(run):
    preparation.prepare_items(run)
    personas = await preparation.prepare_personas(run)
    preparation.prepare_tasks(run)
    return personas, await simulation.simulate(run, {"actcrs_expert": "expert", "actcrs_base": "cra"})


def test_items_are_embedded_anew_only_if_they_changed(run, monkeypatch):
    built = []
    monkeypatch.setattr(preparation, "build_database", lambda items, *rest: built.append(len(items)) or build_database(items, *rest))
    preparation.prepare_items(run)
    preparation.prepare_items(run)
    assert len(built) == 1
    path = run.paths.items("game")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    preparation.prepare_items(run)
    assert len(built) == 2


def test_items_are_embedded_anew_by_another_embedder(run, monkeypatch):
    preparation.prepare_items(run)
    before = run.paths.index("game").read_bytes()
    run.params.embedder = "another"
    monkeypatch.setattr(FakeEmbedder, "name", "another")
    monkeypatch.setattr(FakeEmbedder, "encode", lambda self, texts, progress=False, old=FakeEmbedder.encode: -old(self, texts))
    preparation.prepare_items(run)
    assert run.paths.index("game").read_bytes() != before


def test_separation_asks_for_both_twins(run, study):
    run.params.num_separation_pairs = 2
    judged = study.run(simulation.check_separation(run))
    assert len(judged) == 2 and len(study.requests("confirmation")) == 4
    assert {entry.pair.split for entry in judged} == {"test"}


def test_a_role_without_a_key_is_told_before_any_work(run, study, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    run.params.persona = Endpoint(provider="openai", model="gpt-4o")
    with pytest.raises(EndpointError, match="set the environment variable OPENAI_API_KEY"):
        study.run(preparation.prepare_personas(run))


# the release as data source


def test_release_without_a_folder_says_what_to_set(run):
    run.params.data_source, run.params.release_dir = "release", ""
    with pytest.raises(ArtifactError, match="release_dir is empty; set it"):
        preparation.load_items(run, "game")


def test_release_without_a_domain_names_the_file(run, tmp_path):
    run.params.data_source, run.params.release_dir = "release", str(tmp_path)
    with pytest.raises(ArtifactError, match="task/Game_train.jsonl"):
        preparation.prepare_tasks(run)


@pytest.mark.skipif(not RELEASE.is_dir(), reason="needs the public release in ../shared")
def test_released_tasks_are_split_without_common_targets(run):
    run.params.data_source, run.params.release_dir, run.params.domains = "release", str(RELEASE), ["book"]
    run.params.num_sgpt_tasks, run.params.num_ecpo_tasks, run.params.num_test_tasks = 50, 30, 1000
    tasks = preparation.prepare_tasks(run)["book"]
    released = load_release_tasks(RELEASE / "task" / "Book_test.jsonl", "book")
    assert {name: len(rows) for name, rows in tasks.items()} == {"sgpt": 50, "ecpo": 30, "test": len(released)}
    targets = {name: {task.target.item_id for task in rows} for name, rows in tasks.items()}
    assert not targets["test"] & (targets["sgpt"] | targets["ecpo"])
    assert sorted(task.task_id for task in tasks["test"]) == sorted(task.task_id for task in released)
    items = preparation.load_items(run, "book")
    assert len(items) >= 100 and len({normalise(item.title) for item in items.values()}) == len(items)
    assert {task.target.item_id for rows in tasks.values() for task in rows} <= items.keys()


# what a run tells about itself


def test_manifest_tells_what_was_made_and_for_how_long(run):
    path = run.finish(items={"game": 216})
    saved = json.loads(path.read_text())
    assert path == run.paths.manifest("03_simulation")
    assert saved["items"] == {"game": 216} and saved["seconds"] >= 0 and saved["params"]["num_personas"] == 3
    assert list(saved["models"]) == ["all-minilm-l6-v2"] and saved["commit"] == "unknown"  # all roles are elsewhere


def test_manifest_holds_no_key(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-MARK-77")
    assert "sk-MARK-77" not in run.finish().read_text()


def test_git_state_of_this_checkout_and_outside_of_one(tmp_path):
    state = run_module.git_state(ROOT)
    assert (len(state["commit"]) == 40 and isinstance(state["dirty"], bool)) or state == {"commit": "unknown", "dirty": False}
    assert run_module.git_state(tmp_path) == {"commit": "unknown", "dirty": False}


def test_a_run_that_cannot_be_written_is_told(checkout):
    (checkout / "runs").write_text("a file where the folder should be")
    with pytest.raises(ArtifactError, match="cannot write .*runs/quick"):
        open_run("01_environment", namespace())
