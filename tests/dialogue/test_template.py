"""The template is a whole framework, and a user's own one may live in any file."""

import importlib.util
import sys

import pytest
from scripted_models import FULL, ITEMS, make_task

from ecpo_utils.core.artifacts import load_jsonl
from ecpo_utils.core.errors import ParamsError
from ecpo_utils.core.params import load_profile
from ecpo_utils.core.paths import repository_root
from ecpo_utils.core.schema import Trajectory
from ecpo_utils.dialogue.agents import FRAMEWORKS, Agent, find_framework, template
from ecpo_utils.dialogue.agents.template import TemplateCRS
from ecpo_utils.dialogue.rollout import System, dialogue_config, rollout
from ecpo_utils.evaluate.dialogues import render_dialogue

PARAMS = load_profile(repository_root() / "params" / "quick.yaml").model_copy(update={"max_turns": 2, "simulator_mode": FULL})


@pytest.fixture
def play(study, database, tmp_path):
    def play(framework):
        system = System("own_expert", framework, study.client("expert"), {})
        return study.run(rollout([make_task()], system, study.client("simulator"), database, PARAMS, tmp_path / "own.jsonl"))

    return play


def test_the_template_plays_a_dialogue(monkeypatch, play, study, tmp_path):
    monkeypatch.setitem(FRAMEWORKS, "template", TemplateCRS)
    study.scripts["agent"] = lambda body: f"How about {ITEMS[0].title}? Do you like it?"
    (row,) = play("template")
    assert (row.status, row.recommended_at, row.usage["expert"].calls) == ("complete", 0, 2)
    assert [[step.purpose for step in turn.steps] for turn in row.turns] == [["reply"], ["reply"]]
    assert [turn.steps[0].retrieval.query for turn in row.turns] == [turn.user_message for turn in row.turns]
    assert load_jsonl(tmp_path / "own.jsonl", Trajectory) == [row]
    assert ITEMS[0].title in render_dialogue(row)


def test_the_template_is_no_framework_until_it_is_registered():
    with pytest.raises(ParamsError, match="no framework 'template'; there are: chatrec, react, macrs, actcrs"):
        find_framework("template")


@pytest.fixture
def own_framework(monkeypatch, tmp_path):
    """A framework in a file of the user's own, registered as the guide says."""
    path = tmp_path / "my_crs.py"
    with open(template.__file__) as file:
        text = file.read().replace("from ...", "from ecpo_utils.").replace("from .base", "from ecpo_utils.dialogue.agents.base")
    text = text.replace('self.load_instructions("template_system")', '[{"role": "system", "content": "Recommend something."}]')
    path.write_text(text.replace('name = "template"', 'name = "mycrs"').replace("TemplateCRS", "MyCRS"))
    spec = importlib.util.spec_from_file_location("my_crs", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "my_crs", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(FRAMEWORKS, "mycrs", module.MyCRS)
    return path


def test_a_framework_from_elsewhere_plays_and_its_file_decides_its_rows(own_framework, play, study, database):
    study.scripts["agent"] = lambda body: "Do you play alone?"
    (row,) = play("mycrs")
    assert row.status == "complete" and row.turns[0].reply == "Do you play alone?"
    system = System("own_expert", "mycrs", study.client("expert"), {})
    assert dialogue_config(system, study.client("simulator"), PARAMS, database) == row.config
    own_framework.write_text(own_framework.read_text() + "\n# changed")
    assert dialogue_config(system, study.client("simulator"), PARAMS, database) != row.config


def test_a_framework_that_is_in_no_file_is_refused(monkeypatch, play):
    typed = type("Typed", (TemplateCRS,), {"name": "typed", "__module__": "no_such_module"})
    monkeypatch.setitem(FRAMEWORKS, "typed", typed)
    with pytest.raises(ParamsError, match="Typed is in no file"):
        play("typed")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_what_a_framework_takes_are_parameters_of_a_run(name, make_framework):
    framework = find_framework(name)
    make_framework(framework, **{param: getattr(PARAMS, param) for param in framework.takes_params})
    make_framework(framework)
    assert framework.name == name and issubclass(framework, Agent)
