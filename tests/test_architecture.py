"""The tree is read from top to bottom: imports go one way, heavy libraries wait until they are needed."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ecpo_utils"
LEVEL = {"core": 0, "llm": 1, "data": 2, "dialogue": 3, "method": 4, "evaluate": 4}  # modules right under ecpo_utils stand above
TOP = 5
HEAVY = {"torch", "transformers", "trl", "peft", "vllm", "sentence_transformers", "datasets", "accelerate"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> str:
    """Folder right under the package, "" for the modules above all folders."""
    part = (module.split(".") + [""])[1]
    return part if (PACKAGE / part).is_dir() else ""


def imports(source: str, name: str, is_package: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Imported module, line, and whether the import waits inside a function or is for types only."""

    def walk(node: ast.AST, waits: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, child.lineno, waits) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parts = name.split(".")
                base = parts[: len(parts) - child.level + is_package] if child.level else []
                base += child.module.split(".") if child.module else []
                yield from ((".".join([*base, alias.name]), child.lineno, waits) for alias in child.names)
            for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            yield from walk(child, waits or for_types or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(ast.parse(source), False)


def faults(source: str, name: str, is_package: bool = False) -> list[str]:
    """Imports of a module that go upwards, or load what should wait or is another layer's."""
    own = layer(name)
    level = LEVEL.get(own, TOP)
    found = []
    for imported, line, waits in imports(source, name, is_package):
        library = imported.split(".")[0]
        where = f"{name}:{line} imports {imported}"
        if library == "ecpo_utils":
            other = layer(imported)
            if LEVEL.get(other, TOP) > level and imported != "ecpo_utils.__version__":
                found.append(f"{where}: upwards")
            elif {own, other} == {"method", "evaluate"}:
                found.append(f"{where}: method and evaluate know nothing of each other")
            if imported.startswith("ecpo_utils.llm.supervisor"):
                found.append(f"{where}: it is a process of its own")
        if library in HEAVY and not waits:
            found.append(f"{where}: outside a function")
        if library in {"trl", "peft"} and own != "method":
            found.append(f"{where}: only method trains")
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_downwards_and_heavy_ones_wait(path):
    assert faults(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("name", "source", "is_fault"),
    [
        ("ecpo_utils.core.paths", "from ..llm import models", True),
        ("ecpo_utils.core.paths", "def f():\n    from ..llm.models import fetch_model", True),
        ("ecpo_utils.llm.client", "from .. import data", True),
        ("ecpo_utils.llm.client", "from .servers import serving\nfrom ..core.errors import ModelError", False),
        ("ecpo_utils.data.tasks", "import ecpo_utils.dialogue.rollout", True),
        ("ecpo_utils.dialogue.agents.base", "from ..retrieval import ItemDatabase\nfrom ...llm.client import Meter", False),
        ("ecpo_utils.dialogue.agents.base", "from ...cli import main", True),
        ("ecpo_utils.method.sgpt", "from ..evaluate.metrics import summarize", True),
        ("ecpo_utils.evaluate.verdicts", "from ..method import sgpt", True),
        ("ecpo_utils.method.sgpt", "def f():\n    from trl import SFTTrainer", False),
        ("ecpo_utils.method.sgpt", "from trl import SFTTrainer", True),
        ("ecpo_utils.evaluate.verdicts", "def f():\n    import peft", True),
        ("ecpo_utils.dialogue.retrieval", "class A:\n    import torch", True),
        ("ecpo_utils.dialogue.retrieval", "if TYPE_CHECKING:\n    import torch", False),
        ("ecpo_utils.cli", "from .pipeline import run\nfrom .evaluate.metrics import summarize", False),
        ("ecpo_utils.llm.servers", "from .supervisor import main", True),
    ],
)  # fmt: skip
def test_rules_find_what_they_should(name, source, is_fault):
    assert bool(faults(source, name)) == is_fault


@pytest.mark.parametrize("path", [path for path in FILES if path != PACKAGE / "cli.py"], ids=module_name)
def test_nothing_is_printed_outside_the_command_line(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"] == []


def test_importing_everything_loads_no_heavy_library_and_changes_nothing(tmp_path):
    code = """
import importlib, json, logging, os, random, sys
before = dict(os.environ), random.getstate()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
state = {"heavy": sorted(set(sys.modules) & set(json.loads(sys.argv[2]))), "environment": dict(os.environ) == before[0],
         "seed": random.getstate() == before[1], "log": not logging.getLogger().handlers}
sys.stdout.write(json.dumps(state))
"""
    names = [module_name(path) for path in FILES]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, json.dumps(names), json.dumps(sorted(HEAVY))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"heavy": [], "environment": True, "seed": True, "log": True}
    assert list(tmp_path.iterdir()) == []
