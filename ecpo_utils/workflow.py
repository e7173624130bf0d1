"""What `workflow/Snakefile` asks for: which notebook needs which, the files and parameters each depends on."""

from __future__ import annotations

import ast
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from .core.errors import ArtifactError
from .core.params import Params, load_profile
from .core.paths import RunPaths, repository_root
from .core.schema import Role
from .data.folder import ITEMS, REVIEWS

# in run order; a new notebook is one line here
NEEDS: dict[str, list[str]] = {
    "01_environment": [],
    "02_persona_diversity": ["01_environment"],
    "03_simulation": ["02_persona_diversity"],
    "05_judge_validation": ["03_simulation"],
    "04_prompt_based_cras": ["03_simulation", "05_judge_validation"],  # whose win rates quote how reliable the judge is
    "06_sgpt": ["03_simulation"],
    "07_expectation_confirmation": ["06_sgpt"],
    "08_rewriting": ["07_expectation_confirmation", "05_judge_validation"],
    "09_preference_optimization": ["08_rewriting"],
    "10_main_results": ["09_preference_optimization"],
    "11_case_studies": ["10_main_results"],
}

# files that a module reads from the repository, which therefore count among the sources of a notebook
DATA = {
    "ecpo_utils.llm.prompts": "ecpo_utils/llm/prompts/*.txt",
    "ecpo_utils.llm.models": "params/models.yaml",
    "ecpo_utils.data.builtin": "ecpo_utils/data/files/**/*",
    "ecpo_utils.dialogue.confirmation": "ecpo_utils/dialogue/*.json",
    "ecpo_utils.evaluate.paper": "ecpo_utils/evaluate/*.yaml",
}


def domains_parameter(name: str) -> str | None:
    """Which parameter names the domains that a notebook plays in, where these are not all of the run's."""
    return "cra_domains" if name.startswith("04") else "tuning_domains" if name >= "06" else None


def _notebook_code(name: str) -> list[str]:
    path = repository_root() / "notebooks" / f"{name}.ipynb"
    try:
        return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None


def _imported(source: str, module: str) -> set[str]:
    """Dotted names that a source imports from this package; `module` resolves relative imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("ecpo_utils")}


@functools.cache
def _file_of(module: str) -> Path | None:
    base = repository_root() / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def notebook_sources(name: str) -> list[str]:
    """Files of this package that a notebook depends on through imports, with their prompts and data."""
    root = repository_root()
    code = "\n".join(
        "\n".join(line for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))) for cell in _notebook_code(name)
    )
    code = code.replace("await ", "")  # top-level await is no plain Python
    waiting, seen = _imported(code, "notebook"), set()
    while waiting:
        module = waiting.pop()
        path = _file_of(module)
        if path is None or module in seen:
            continue
        seen.add(module)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        waiting |= _imported(path.read_text(encoding="utf-8"), f"{package}.{path.stem}") - seen
    files = {path for path in map(_file_of, seen) if path}
    for module in seen & set(DATA):
        files |= {path for path in root.glob(DATA[module]) if path.is_file()}
    return sorted(str(path.relative_to(root)) for path in files)


def declared_parameters(name: str) -> list[str]:
    """Names that a notebook's `parameters` cell assigns."""
    path = repository_root() / "notebooks" / f"{name}.ipynb"
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ArtifactError(f"{path} has {len(cells)} cells tagged 'parameters', expected one")
    return [node.target.id for node in ast.parse(cells[0].source).body if isinstance(node, ast.AnnAssign)]


def notebook_parameters(name: str, profile: str) -> dict:
    """Values of a profile for the parameters that a notebook declares; a change of one reruns it."""
    values = _profile(profile).model_dump(mode="json")
    return {key: values[key] for key in declared_parameters(name)}


# roles whose servers are up at the same time, in one stage of a notebook or another
TOGETHER: list[tuple[Role, ...]] = [("simulator", "expert"), ("simulator", "cra"), ("simulator", "rewriter"), ("judge",)]


def num_gpus(name: str, params: Params) -> int:
    """How many GPUs of its machine the models that a notebook serves or trains need at once: vLLM takes whole ones."""
    summarised = [("simulator",)] if params.data_source == "folder" and params.item_summaries else []
    stages = {"01_environment": summarised, "02_persona_diversity": [("persona",)], "11_case_studies": []}.get(name, TOGETHER)
    return max((_stage_gpus(name, params, roles) for roles in stages), default=0)


def _stage_gpus(name: str, params: Params, roles: Sequence[Role]) -> int:
    """Those of a set of roles, of which all with the same model share a server; a tuned `cra` has its own."""
    endpoints = {role: getattr(params, role) for role in roles}
    adapters = {role: "tuned" if role == "cra" and name >= "06" else endpoint.adapter for role, endpoint in endpoints.items()}
    servers = {(e.model, adapters[role], e.replicas) for role, e in endpoints.items() if e.provider == "vllm"}
    return sum(replicas for _, _, replicas in servers)


def folder_files(name: str, profile: str) -> list[str]:
    """Files of the user's own data folder that a notebook reads; a folder that was built anew reruns it."""
    params = _profile(profile)
    if params.data_source != "folder" or "data_dir" not in declared_parameters(name):
        return []
    paths = [Path(params.data_dir).expanduser() / domain / file for domain in params.domains for file in (ITEMS, REVIEWS)]
    return [str(path) for path in paths if path.is_file()]


@functools.cache
def _profile(profile: str) -> Params:
    return load_profile(repository_root() / "params" / f"{profile}.yaml")


def notebook_gpus(name: str, profile: str) -> int:
    """`num_gpus` by the profile's name, as the Snakefile asks."""
    return num_gpus(name, _profile(profile))


def papermill_command(name: str, profile: str, scope: str) -> str:
    """Shell command that runs a notebook into `runs/PROFILE/notebooks`; a failed copy stays beside it for reading."""
    paths = RunPaths(Path(), profile)
    done, running = paths.executed(name, scope), paths.running(name, scope)
    words = [
        sys.executable,
        "-m",
        "papermill",
        f"notebooks/{name}.ipynb",
        str(running),
        "-f",
        f"params/{profile}.yaml",
        "--kernel",
        "python3",
        "--cwd",
        ".",
        "--log-output",
        "--no-progress-bar",
    ]
    if scope != "all":
        words += ["-y", f"domains: [{scope}]"]
    folder, copy, target, log = (shlex.quote(str(p)) for p in (running.parent, running, done, paths.log(name, scope)))
    return f"mkdir -p {folder} && {shlex.join(words)} > {log} 2>&1 && mv {copy} {target}"
