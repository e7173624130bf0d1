"""Every profile and every notebook: that they load, keep the house anatomy, and agree with each other."""

import ast
import re
import shutil
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill.inspection import inspect_notebook

from ecpo_utils import workflow
from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.core.params import Params, load_profile
from ecpo_utils.core.paths import RunPaths
from ecpo_utils.workflow import DATA, NEEDS, declared_parameters, notebook_parameters, notebook_sources, papermill_command

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path for path in (ROOT / "params").glob("*.yaml") if path.stem != "models")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHIPPED = ("quick", "cpu", "gpu", "paper")
LAST_SECTIONS = ["Checks", "Saved", "Beside the paper"]

each_profile = pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind=None):
    return [cell for cell in nbformat.read(path, as_version=4).cells if kind in (None, cell.cell_type)]


def code(path):
    """Syntax trees of the code cells."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    return [compile(cell.source, str(path), "exec", flags=flags) for cell in cells(path, "code")]


def sections(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    return [re.sub(r"^\d+\. ", "", title) for title in re.findall(r"^## (.+)$", text, re.MULTILINE)]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of params and notebooks, with the package beside them; the working directory is there."""
    for name in ("params", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("ecpo_utils", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for cached in (workflow._profile, workflow._file_of):
        cached.cache_clear()
    yield tmp_path
    for cached in (workflow._profile, workflow._file_of):
        cached.cache_clear()


# profiles


def test_the_four_profiles_of_the_design_are_there():
    assert {path.stem for path in PROFILES} >= set(SHIPPED)


@each_profile
def test_profile_loads_and_gives_every_parameter_once(path):
    assert load_profile(path).profile == path.stem
    keys = [line.partition(":")[0] for line in path.read_text().splitlines() if re.match(r"\w+:", line)]
    assert sorted(keys) == sorted(set(keys)) == sorted(Params.model_fields)


@each_profile
def test_profile_is_flat_and_its_floats_carry_a_dot(path):
    values = yaml.safe_load(path.read_text())
    for name, value in values.items():
        annotation = Params.model_fields[name].annotation
        if annotation in (int, float, str):
            assert type(value) is annotation, f"{name}: {value!r}"


@pytest.mark.parametrize("path", [path for path in PROFILES if path.stem in SHIPPED], ids=lambda path: path.stem)
def test_profile_opens_with_its_name_and_command(path):
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith(f"# {path.stem}: ") and "make reproduce" in first + second


@each_profile
def test_profile_holds_no_key(path):
    assert not re.search(r"sk-\w|hf_\w|api_key:", path.read_text())


def test_paper_profile_has_the_papers_settings():
    params = load_profile(ROOT / "params" / "paper.yaml")
    assert (params.num_personas, params.num_sgpt_tasks, params.num_ecpo_tasks, params.num_test_tasks) == (100, 1000, 500, 100)
    assert (params.max_turns, params.retriever_top_k, params.max_consecutive_searches, params.min_target_rating) == (5, 5, 3, 4.0)
    assert params.split == "by_item" and params.cra.model == "llama-3.1-8b-instruct" and "gpt-4o-mini" in params.simulator.model


# notebooks


def test_notebooks_and_workflow_name_each_other():
    assert [path.stem for path in NOTEBOOKS] == sorted(NEEDS)


def test_a_notebook_needs_only_earlier_ones():
    names = list(NEEDS)
    for name, needs in NEEDS.items():
        assert all(names.index(need) < names.index(name) for need in needs)


@each_notebook
def test_header_has_number_paper_reads_writes_and_cost(path):
    first = cells(path)[0]
    assert first.cell_type == "markdown" and first.source.startswith(f"# {path.stem[:2]} ")
    assert re.findall(r"^\| \*\*(\w+)\*\* \|", first.source, re.MULTILINE) == ["Paper", "Reads", "Writes", "Cost"]
    cost = re.search(r"\*\*Cost\*\* \| (.+) \|", first.source).group(1)
    assert "quick" in cost and "paper" in cost


@each_notebook
def test_the_second_cell_alone_holds_the_parameters(path):
    tagged = [number for number, cell in enumerate(cells(path)) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [1]


@each_notebook
def test_parameters_are_typed_literals_that_papermill_understands(path):
    source = cells(path)[1].source
    for node in ast.parse(source).body:
        assert isinstance(node, ast.AnnAssign) and node.simple, ast.unparse(node)
        ast.literal_eval(node.value)
        assert re.fullmatch(r"(int|float|str|bool|list|dict|Optional\[\w+\])", ast.unparse(node.annotation))
    for line in source.splitlines():
        assert "=" not in line.partition("#")[2], f"papermill skips a line whose comment holds '=': {line}"


@each_notebook
def test_every_parameter_is_known_and_defaults_to_the_quick_profile(path):
    quick = yaml.safe_load((ROOT / "params" / "quick.yaml").read_text())
    defaults = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(cells(path)[1].source).body}
    assert list(defaults) == declared_parameters(path.stem)
    assert set(defaults) <= set(Params.model_fields)
    assert defaults == {name: quick[name] for name in defaults}
    assert {name: type(value) for name, value in defaults.items()} == {name: type(quick[name]) for name in defaults}


@each_notebook
def test_papermill_infers_every_parameter(path):
    assert list(inspect_notebook(str(path))) == declared_parameters(path.stem)


@each_notebook
def test_setup_opens_the_run_under_the_notebooks_name(path):
    assert f'run = open_run("{path.stem}", globals())' in cells(path)[2].source


@each_notebook
def test_what_the_notebook_reads_of_params_is_declared(path):
    reads = r"run\.params\.(?:number\(['\"])?(\w+)"  # params.NAME, or params.number("NAME", domain)
    used = {name for cell in cells(path, "code") for name in re.findall(reads, cell.source)}
    assert used <= set(declared_parameters(path.stem))


@each_notebook
def test_no_cell_assigns_a_parameter_anew(path):
    """`open_run` reads the notebook's names again when the setup cell is run again."""
    names = [node for tree in code(path)[1:] for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert not assigned & set(Params.model_fields)


@each_notebook
def test_git_holds_no_outputs(path):
    for cell in cells(path, "code"):
        assert cell.outputs == [] and cell.execution_count is None
        assert not set(cell.metadata) - {"tags"}


@each_notebook
def test_code_is_short_and_defines_nothing(path):
    for cell in cells(path, "code"):
        assert len(cell.source.splitlines()) <= 25, cell.id
        assert max(map(len, cell.source.splitlines()), default=0) <= 150, cell.id
        assert "%pip" not in cell.source and "sys.path" not in cell.source
    for node in (node for tree in code(path) for node in ast.walk(tree)):
        assert not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)), ast.unparse(node)[:60]
        if isinstance(node, (ast.For, ast.While)):
            assert not any(isinstance(inner, (ast.For, ast.While)) for part in node.body for inner in ast.walk(part)), "nested loop"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.match(r"[/~]\w", node.value), f"absolute path {node.value}"


@each_notebook
def test_every_section_says_why_in_few_words_before_its_code(path):
    numbered = [cell for cell in cells(path, "markdown") if re.match(r"## \d+\. ", cell.source)]
    assert numbered
    for cell in numbered:
        words = re.sub(r"\$\$.*?\$\$", "", cell.source.partition("\n")[2], flags=re.DOTALL).split()
        assert 0 < len(words) <= 60, f"{cell.id}: {len(words)} words"


@each_notebook
def test_sections_are_numbered_and_end_with_checks_saved_beside_the_paper(path):
    assert sections(path)[-3:] == LAST_SECTIONS
    numbers = [int(n) for cell in cells(path, "markdown") for n in re.findall(r"^## (\d+)\. ", cell.source, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


@each_notebook
def test_checks_assert_and_saved_finishes_the_run(path):
    notebook = cells(path)
    heads = [number for number, cell in enumerate(notebook[:-1]) if cell.source.startswith("## ")]
    after = {notebook[number].source.partition("\n")[0][3:]: notebook[number + 1] for number in heads}
    assert "assert " in after["Checks"].source
    assert "run.finish(" in after["Saved"].source and "save_exhibit(" in after["Saved"].source
    assert notebook[-1].source.startswith("## Beside the paper")


@each_notebook
def test_cell_ids_are_stable(path):
    ids = [cell.id for cell in cells(path)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(rf"{path.stem[:2]}-[a-z0-9-]+", cell_id) for cell_id in ids)


@each_notebook
def test_notebook_is_valid_and_for_any_python_3_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.read_text().endswith("\n")


# the workflow


@each_notebook
def test_sources_are_files_with_prompts_and_data(path):
    sources = notebook_sources(path.stem)
    assert sources == sorted(set(sources)) and all((ROOT / source).is_file() for source in sources)
    assert {"ecpo_utils/run.py", "ecpo_utils/core/params.py", "params/models.yaml"} <= set(sources)
    prompts = {str(prompt.relative_to(ROOT)) for prompt in (ROOT / "ecpo_utils" / "llm" / "prompts").glob("*.txt")}
    assert prompts <= set(sources)
    if "ecpo_utils/data/builtin.py" in sources:
        assert {"ecpo_utils/data/files/book/meta.jsonl", "ecpo_utils/data/files/planted_flaws.jsonl"} <= set(sources)
    assert not {"ecpo_utils/cli.py", "ecpo_utils/pipeline.py", "ecpo_utils/workflow.py"} & set(sources)


def test_a_change_of_the_dialogue_engine_concerns_only_the_notebooks_that_play():
    engines = {"ecpo_utils/dialogue/rollout.py", "ecpo_utils/dialogue/simulator.py", "ecpo_utils/dialogue/agents/actcrs.py"}
    assert engines <= set(notebook_sources("03_simulation")) and engines <= set(notebook_sources("04_prompt_based_cras"))
    assert not engines & set(notebook_sources("01_environment")) and not engines & set(notebook_sources("02_persona_diversity"))


def test_every_data_file_of_the_package_is_a_source_of_the_notebook_that_uses_it():
    files = [path for path in (ROOT / "ecpo_utils").rglob("*") if path.is_file() and path.suffix in (".txt", ".json", ".jsonl", ".yaml")]
    of_no_notebook = {"ecpo_utils/plan_units.yaml"}  # `ecpo plan` reads it
    assert {str(path.relative_to(ROOT)) for path in files} - set(notebook_sources("03_simulation")) == of_no_notebook


def test_every_entry_of_the_data_table_is_a_module_that_has_such_files():
    for module, pattern in DATA.items():
        base = ROOT / module.replace(".", "/")
        assert base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()
        assert list(ROOT.glob(pattern)), pattern


def test_an_installed_package_holds_every_data_file():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["ecpo_utils"]
    packed = {path for pattern in patterns for path in (ROOT / "ecpo_utils").glob(pattern)}
    files = {path for path in (ROOT / "ecpo_utils").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert not {str(path.relative_to(ROOT)) for path in files - packed}


@each_notebook
def test_imports_of_the_notebooks_exist(path):
    for tree in code(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("ecpo_utils"):
                module = __import__(node.module, fromlist=["x"])
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_a_changed_parameter_changes_what_a_notebook_depends_on(checkout):
    before = notebook_parameters("03_simulation", "quick"), notebook_parameters("01_environment", "quick")
    path = checkout / "params" / "quick.yaml"
    turns = before[0]["max_turns"]
    path.write_text(path.read_text().replace(f"max_turns: {turns}", f"max_turns: {turns + 1}"))
    workflow._profile.cache_clear()
    assert notebook_parameters("03_simulation", "quick") == before[0] | {"max_turns": turns + 1}
    assert notebook_parameters("01_environment", "quick") == before[1]


def test_parameters_that_a_notebook_depends_on_are_plain_values():
    values = notebook_parameters("03_simulation", "paper")
    assert list(values) == declared_parameters("03_simulation")
    assert values["simulator"]["model"] == "gpt-4o-mini-2024-07-18" and type(values["domains"]) is list


def test_a_missing_notebook_and_a_second_parameters_cell_are_errors(checkout):
    path = checkout / "notebooks" / "01_environment.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)
    with pytest.raises(ArtifactError, match="has 2 cells tagged 'parameters'"):
        declared_parameters("01_environment")
    path.unlink()
    with pytest.raises(ArtifactError, match="01_environment.ipynb is missing"):
        notebook_sources("01_environment")


@pytest.mark.parametrize("scope", ["all", "game"])
def test_papermill_command_writes_aside_and_moves_when_done(scope):
    command, paths = papermill_command("03_simulation", "cpu", scope), RunPaths(Path(), "cpu")
    assert "-f params/cpu.yaml" in command and "notebooks/03_simulation.ipynb" in command
    assert command.endswith(f"mv {paths.running('03_simulation', scope)} {paths.executed('03_simulation', scope)}")
    assert ("-y 'domains: [game]'" in command) == (scope == "game")
