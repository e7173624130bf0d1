"""Chatting with an agent: the session, its lines, the terminal loop, the command, the widget. All models are scripted."""

import asyncio
import contextlib
import io
import shutil
from pathlib import Path

import pytest
import yaml
from scripted_models import FULL, FakeEmbedder, ScriptedStudy, confirmation_json, in_turn, make_task
from stub_endpoint import Reply

from ecpo_utils import cli, preparation, simulation
from ecpo_utils.chat import HUMAN, open_chat
from ecpo_utils.chat_terminal import Terminal
from ecpo_utils.chat_text import render_confirmation, render_end, render_reply, render_steps, render_target
from ecpo_utils.chat_widget import ChatWidget, open_chat_widget
from ecpo_utils.core.artifacts import load_jsonl, write_jsonl
from ecpo_utils.core.errors import ArtifactError, EndpointError, ParamsError
from ecpo_utils.core.schema import Confirmation, Trajectory
from ecpo_utils.data.builtin import load_builtin
from ecpo_utils.dialogue.agents import FRAMEWORKS

ROOT = Path(__file__).parents[1]
DOWN = Reply("the machine is on fire", status=500)
PROFILE = "scripted"


@pytest.fixture
def study(stub_endpoint, tmp_path):
    (tmp_path / "study").mkdir()
    study = ScriptedStudy(stub_endpoint, tmp_path / "study")
    yield study
    study.close()


@pytest.fixture
def checkout(study, tmp_path, monkeypatch):
    """A checkout with a profile whose roles are scripted; the embedder counts words."""
    for module in (preparation, simulation):
        monkeypatch.setattr(module, "Embedder", lambda name: FakeEmbedder())
    shutil.copytree(ROOT / "params", tmp_path / "params")
    values = yaml.safe_load((tmp_path / "params" / "quick.yaml").read_text())
    role = {"provider": "openai", "base_url": study.endpoint.base_url, "max_retries": 0, "timeout_s": 10.0}
    values |= {name: {**role, "model": name} for name in ("simulator", "expert", "cra")}
    values |= {"profile": PROFILE, "simulator_mode": FULL, "domains": ["game", "book"]}
    (tmp_path / "params" / f"{PROFILE}.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def chat(study, checkout):
    """An open session with ActCRS on the expert, or with what is asked for."""
    stack = contextlib.AsyncExitStack()

    def open_session(agent="actcrs", **options):
        return study.run(stack.enter_async_context(open_chat(agent, profile=PROFILE, **options)))

    yield open_session
    study.run(stack.aclose())


def tasks_of_notebook_02(checkout, domain="game"):
    """Two tasks on disk, and nothing else of a run."""
    items = list(load_builtin(domain)[0].values())[:2]
    tasks = [make_task(item, f"u{number}", domain=domain) for number, item in enumerate(items)]
    write_jsonl(checkout / "runs" / PROFILE / domain / "tasks.test.jsonl", tasks)
    return tasks


def saved(session):
    return load_jsonl(session.path, Trajectory)


def agent_messages(study):
    return [body["messages"] for body in study.requests("agent")]


# the session


def test_a_turn_has_steps_titles_reply_and_the_confirmation_of_the_hidden_target(study, chat):
    study.scripts["agent"] = in_turn("Search[foggy port town]", "Recommend[How about this one?]")
    study.scripts["confirmation"] = lambda body: confirmation_json(1, 2, 0)
    session = chat()
    said = study.run(session.say("A port town, please."))
    assert [step.action.type for step in said.turn.steps] == ["search", "recommend"]
    assert (said.turn.user_message, said.turn.reply) == ("A port town, please.", "How about this one?")
    titles = {item.title for item in load_builtin("game")[0].values()}
    assert len(said.retrieved[0]) == 5 and set(said.retrieved[0]) <= titles and said.retrieved[1] == []
    assert said.turn.confirmation.satisfaction == 3
    (asked,) = study.requests("confirmation")
    shown = str(asked["messages"])
    assert "A port town, please." in shown and "How about this one?" in shown
    assert session.task.target.title not in shown


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("role", ["expert", "cra"])
def test_every_framework_can_be_talked_to_on_either_backbone(study, chat, name, role):
    session = chat(name, role=role)
    for text in ("A port town, please.", "With ships."):
        said = study.run(session.say(text))
        assert said.turn.reply and said.turn.steps and said.turn.confirmation.satisfaction == 5
        assert len(said.retrieved) == len(said.turn.steps)
        assert render_steps(said) and render_reply(said)
    assert {body["model"] for body in study.requests("agent")} == {role}
    assert session.row.system == f"{name}_{role}"


def test_the_reply_is_shown_before_it_is_confirmed(study, chat):
    seen = []
    said = study.run(chat().say("Hello.", lambda turn: seen.append((turn.turn.reply, len(study.requests("confirmation"))))))
    assert seen == [(said.turn.reply, 0)] and len(study.requests("confirmation")) == 1


def test_a_failed_call_leaves_the_dialogue_as_it_was(study, chat):
    study.scripts["agent"] = in_turn("Ask[Alone?]", "Search[ships]", DOWN, "Search[ships]", "Ask[Together?]")
    session = chat()
    study.run(session.say("A port town, please."))
    with pytest.raises(EndpointError, match="the machine is on fire"):
        study.run(session.say("With ships."))
    assert len(session.row.turns) == len(saved(session)[0].turns) == 1
    said = study.run(session.say("With ships!"))
    assert (said.turn.index, said.turn.reply) == (1, "Together?")
    shown = str(agent_messages(study)[-1])
    assert "With ships!" in shown and "With ships." not in shown


def test_an_agent_that_cannot_be_copied_is_used_as_it_is(study, chat):
    session = chat()
    session._agent.stream = (each for each in ())
    assert study.run(session.say("Hello.")).turn.reply


def test_a_failed_confirmation_is_unscored_with_its_reason_and_the_reply_stands(study, chat):
    study.scripts["confirmation"] = lambda body: DOWN
    session = chat()
    said = study.run(session.say("Hello."))
    assert said.turn.reply and said.turn.confirmation.satisfaction is None and "on fire" in said.turn.confirmation.error
    assert saved(session)[0].turns == [said.turn]


def test_two_messages_at_once_are_answered_one_after_the_other(study, chat):
    session = chat()

    async def both():
        return await asyncio.gather(session.say("One."), session.say("Two."))

    assert [said.turn.index for said in study.run(both())] == [0, 1]
    assert [turn.user_message for turn in session.row.turns] == ["One.", "Two."]


def test_half_a_surrogate_pair_and_blanks_do_no_harm(study, chat):
    said = study.run(chat().say("  a \udce4 b  "))
    assert said.turn.user_message == "a ? b"


# what is kept


def test_dialogues_are_kept_apart_from_results(study, chat, checkout):
    session = chat()
    study.run(session.say("Hello."))
    study.run(session.say("Ships."))
    assert saved(session) == [session.row]
    row = session.row
    assert (row.status, row.persona, row.error, len(row.turns)) == ("ended_by_user", HUMAN, None, 2)
    assert [turn.index for turn in row.turns] == [0, 1] and row.usage["expert"].calls == 2
    files = {str(path.relative_to(checkout / "runs")) for path in (checkout / "runs").rglob("*") if path.is_file()}
    expected = {f"{PROFILE}/game/items.jsonl", f"{PROFILE}/game/items.faiss", f"{PROFILE}/game/items.faiss.json",
                f"{PROFILE}/chats/calls.jsonl", f"{PROFILE}/chats/{session.path.name}"}  # fmt: skip
    assert {name for name in files if not name.startswith("responses.sqlite")} == expected


def test_policies_of_a_human_follow_what_the_agent_did(study, chat):
    study.scripts["agent"] = in_turn("Ask[Alone?]", "Recommend[This?]", "Response[Well.]")
    session = chat()
    for text in ("Hello.", "Alone.", "No."):
        study.run(session.say(text))
    expected = ["ask_recommendation", "respond_to_clarification", "provide_feedback_on_recommendation"]
    assert [turn.policy for turn in session.row.turns] == expected


def test_naming_and_finding_the_target_are_recorded(study, chat, checkout):
    task = tasks_of_notebook_02(checkout)[0]
    title = task.target.title
    study.scripts["agent"] = in_turn("Ask[Alone?]", f"Search[{title} {task.target.description}]", f"Recommend[{title}?]")
    session = chat(task_id=task.task_id)
    study.run(session.say("Hello."))
    assert "not named by the agent" in " ".join(render_target(session))
    study.run(session.say("Factories."))
    assert (session.row.recommended_at, session.row.retrieved_at, session.row.status) == (1, 1, "ended_by_user")
    assert "named by the agent in turn 2" in " ".join(render_target(session))
    study.run(session.say(f"Yes, {task.target.title}."))
    assert session.row.status == "ended_by_user"


def test_a_human_who_gives_the_title_away_is_no_success(study, chat, checkout):
    task = tasks_of_notebook_02(checkout)[0]
    session = chat(task_id=task.task_id)
    study.run(session.say(f"Do you have {task.target.title}?"))
    assert (session.row.status, session.row.turns[0].user_faults) == ("leak", ["leak"])


def test_a_new_dialogue_has_another_target_and_an_agent_that_remembers_nothing(study, chat):
    session = chat()
    first = session.task
    study.run(session.say("A port town, please."))
    session.new()
    assert session.task.target != first.target and session.row.turns == []
    study.run(session.say("A racing game."))
    assert "port town" not in str(agent_messages(study)[-1])
    assert [row.task_id for row in saved(session)] == [first.task_id, session.task.task_id]
    session.new()
    session.new()
    study.run(session.say("A quiz."))
    assert len(saved(session)) == 3


def test_a_disk_that_is_full_is_an_error_and_the_session_goes_on(study, chat, checkout):
    session = chat()
    session.path.parent.mkdir(parents=True, exist_ok=True)
    session.path.mkdir()
    with pytest.raises(ArtifactError, match="cannot write"):
        study.run(session.say("Hello."))
    session.path.rmdir()
    study.run(session.say("Ships."))
    assert len(saved(session)[0].turns) == 2


# targets


def test_without_tasks_an_item_is_the_target(chat):
    session = chat()
    assert session.task.target in load_builtin("game")[0].values()
    assert session.task.task_id == f"game/chat/{session.task.target.item_id}"


def test_targets_are_those_of_the_tasks_where_there_are_any(chat, checkout):
    tasks = tasks_of_notebook_02(checkout)
    session = chat()
    assert session.task in tasks
    session.new()
    assert session.task in tasks


def test_items_that_a_notebook_prepared_are_used(chat, checkout):
    chat()
    path = checkout / "runs" / PROFILE / "game" / "items.faiss"
    before = path.stat().st_mtime_ns
    chat()
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent": "nobody"}, "no framework 'nobody'; there are: .*actcrs"),
        ({"role": "judge"}, "no backbone 'judge'; there are: expert, cra"),
        ({"domain": "yelp"}, "profile scripted has no domain 'yelp'; it has: game, book"),
        ({"profile": "laptop"}, "no profile 'laptop'"),
    ],
)
def test_an_unknown_name_lists_the_known_ones_before_any_work(study, checkout, options, message):
    options = {"agent": "actcrs", "profile": PROFILE, **options}
    with pytest.raises(ParamsError, match=message):
        study.run(contextlib.AsyncExitStack().enter_async_context(open_chat(**options)))
    assert study.endpoint.requests == [] and not list(checkout.glob("runs/*/*/items.*"))


def test_a_trained_adapter_is_carried_by_the_small_backbone_and_works_without_examples(study, chat, checkout):
    tasks_of_notebook_02(checkout)
    with pytest.raises(ArtifactError, match="adapters/sgpt/adapter_model.safetensors is missing; run notebooks/06_sgpt.ipynb"):
        chat(adapter="sgpt")
    with pytest.raises(ParamsError, match="adapter 'sgpt' is for the backbone cra, not for expert; leave the role out"):
        chat(adapter="sgpt", role="expert")
    folder = checkout / "runs" / PROFILE / "game" / "adapters" / "sgpt"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    session = chat(adapter="sgpt")
    assert session.system.name == "actcrs_sgpt" and session.system.options["few_shot"] is False
    assert session.system.client.role == "cra" and session.system.client.endpoint.adapter == str(folder)
    assert "few_shot" not in chat(role="cra").system.options


def test_a_task_that_is_not_there_says_what_is(study, chat, checkout):
    with pytest.raises(ArtifactError, match="tasks.test.jsonl is missing; run notebooks/02_persona_diversity.ipynb"):
        chat(task_id="game/u0/x")
    tasks = tasks_of_notebook_02(checkout)
    with pytest.raises(ArtifactError, match=f"no task 'game/u0/x' among the 2 of .*; there is, for example: {tasks[0].task_id}"):
        chat(task_id="game/u0/x")
    assert study.endpoint.requests == []


# the lines


def test_lines_of_a_turn(study, chat):
    study.scripts["agent"] = in_turn("Search[ships and salt]", "nonsense", "nonsense", "nonsense")
    said = study.run(chat().say("Hello."))
    lines = render_steps(said)
    assert lines[0] == "  Search[ships and salt]" and lines[1] == f"      1. {said.retrieved[0][0]}" and len(lines) == 7
    assert lines[-1] == "  action that cannot be read, after 3 attempts: 'nonsense'"


def test_lines_of_a_confirmation():
    scored = Confirmation(flexibility=1, coherence=2, guidance=0, reasons={"flexibility": "I had said ships.", "guidance": "Ask me."})
    first, *rest = render_confirmation(scored)
    assert first == "  EC 3/5, hidden from the agent"
    assert [line.strip() for line in rest] == ["flexibility 1/2: I had said ships.", "coherence 2/2", "guidance 0/1: Ask me."]
    assert render_confirmation(Confirmation(error="no answer")) == ["  EC unscored: no answer"]


# the terminal


@pytest.fixture
def terminal(study, chat):
    """Feeds lines to a terminal; exceptions among them are raised at the prompt. Returns exit code and output."""

    def run(*lines, session=None):
        session, waiting, written = session or chat(), list(lines), []

        def read():
            line = waiting.pop(0) if waiting else EOFError()
            if isinstance(line, BaseException):
                raise line
            return line

        code = Terminal(session, study.run, read=read, write=written.append, status=lambda text: None).run()
        return code, "\n".join(written), session

    return run


def test_a_talk_shows_actions_titles_reply_and_scores_and_the_target_only_at_the_end(study, terminal):
    study.scripts["agent"] = in_turn("Search[ships]", "Ask[Alone or together?]")
    code, text, session = terminal("", "Something with ships.", "/quit", "never read")
    order = ["actcrs_expert, domain game", "/target", "Search[ships]", "1. ", "Ask[...]", "AGENT  Alone or together?", "EC 5/5",
             f"TARGET {session.task.target.title[:20]}", "saved in"]  # fmt: skip
    assert code == 0 and [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert len(session.row.turns) == 1


@pytest.mark.parametrize(("end", "code"), [(EOFError(), 0), (KeyboardInterrupt(), 130)])
def test_the_end_of_input_and_ctrl_c_end_like_quit(terminal, end, code):
    assert terminal(end)[0] == code
    ended, text, session = terminal("Hello.", end)
    assert ended == code and text.endswith("\n".join(render_end(session)))


def test_nothing_said_is_nothing_saved(terminal):
    _, text, session = terminal("/quit")
    assert text.endswith("nothing was said, nothing is saved") and not session.path.exists()


def test_commands(terminal):
    _, text, session = terminal("/target", "/sing a song", "Hello.", "/new", "Again.", "/quit")
    assert text.count("TARGET ") == 3 and "no command /sing; /target shows" in text
    assert len(saved(session)) == 2


def test_an_error_is_a_line_and_the_talk_goes_on(study, terminal):
    study.scripts["agent"] = in_turn(DOWN, "Ask[Alone?]")
    code, text, session = terminal("Hello.", "Hello?", "/quit")
    (line,) = [line for line in text.splitlines() if line.startswith("ERROR")]
    assert "the machine is on fire" in line and line.endswith("the dialogue stands as before, say it again")
    assert code == 0 and [turn.user_message for turn in session.row.turns] == ["Hello?"]


# the command


@pytest.fixture
def ecpo(checkout, monkeypatch, capsys):
    """Runs `ecpo chat` in this process on lines of input."""

    def run(*words, lines=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = cli.main(["chat", "--profile", PROFILE, *words])
        return code, *capsys.readouterr()

    return run


def test_the_command_reads_stdin_and_writes_stdout(ecpo, checkout):
    task = tasks_of_notebook_02(checkout, "book")[1]
    words = ("--agent", "actcrs", "--domain", "book", "--role", "cra", "--task", task.task_id)
    code, out, err = ecpo(*words, lines=["Hello.", "/target"])
    assert (code, err) == (0, "") and out.startswith("actcrs_cra, domain book") and "AGENT  Do you build alone or together?" in out
    assert out.count(f"TARGET {task.target.title}") == 2 and "you> " not in out
    (path,) = (checkout / "runs" / PROFILE / "chats").glob("2*.jsonl")
    assert load_jsonl(path, Trajectory)[0].task_id == task.task_id


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--agent", "nobody"], "no framework 'nobody'; there are: chatrec, react, macrs, actcrs"),
        (["--agent", "actcrs", "--role", "judge"], "no backbone 'judge'; there are: expert, cra"),
        (["--agent", "actcrs", "--domain", "music"], "has no domain 'music'; it has: game, book"),
        (["--agent", "actcrs", "--task", "x"], "run notebooks/02_persona_diversity.ipynb"),
    ],
)
def test_a_bad_name_is_one_line(ecpo, words, message):
    code, out, err = ecpo(*words)
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith("ecpo: ") and message in err


def test_an_endpoint_that_is_down_is_one_line(ecpo, study):
    study.endpoint.close()
    code, out, err = ecpo("--agent", "actcrs")
    assert (code, out, err.count("\n")) == (1, "", 1) and "is it running?" in err


# the widget


@pytest.fixture
def widget(study, chat):
    return ChatWidget(chat())


def type_in(study, widget, *texts):
    """Each text typed and sent, and waited for."""

    async def everything():
        for text in texts:
            widget.field.value = text
            assert widget.field.disabled is False  # the task has not begun yet
            await widget.busy

    study.run(everything())


def test_the_widget_shows_what_the_terminal_shows(study, widget):
    study.scripts["agent"] = in_turn("Search[ships]", "Ask[Alone or together?]")
    type_in(study, widget, "Something with ships.")
    shown = widget.log.value
    order = ["actcrs_expert", "YOU    Something with ships.", "Search[ships]", "AGENT  Alone or together?", "EC 5/5"]
    assert [shown.index(part) for part in order] == sorted(shown.index(part) for part in order)
    assert widget.field.value == "" and not widget.field.disabled and "TARGET" not in shown


def test_controls_are_off_while_a_message_is_answered(study, widget):
    seen = []
    study.scripts["agent"] = lambda body: seen.append([control.disabled for control in widget.controls]) or "Ask[Alone?]"
    type_in(study, widget, "Hello.")
    assert seen == [[True] * 4] and not any(control.disabled for control in widget.controls)


def test_the_widgets_buttons(study, widget):
    type_in(study, widget, "Hello.")
    first = widget.session.task
    widget.target_button.click()
    widget.new_button.click()
    assert widget.log.value.count("TARGET ") == 2 and widget.session.task != first and widget.session.row.turns == []


def test_blanks_are_not_sent_and_markup_is_text(study, widget):
    widget.field.value = "   "
    assert widget.busy is None and widget.field.value == ""
    type_in(study, widget, "<b>ships</b> & salt")
    assert "&lt;b&gt;ships&lt;/b&gt; &amp; salt" in widget.log.value


def test_an_error_is_a_line_in_the_widget_and_it_goes_on(study, widget):
    study.scripts["agent"] = in_turn(DOWN, "Ask[Alone?]")
    type_in(study, widget, "Hello.", "Hello?")
    assert widget.log.value.count("ERROR  ") == 1 and "AGENT  Alone?" in widget.log.value
    assert not widget.field.disabled


def test_a_fault_in_an_agents_own_code_is_shown_too(study, widget, monkeypatch):
    async def broken(self, *args):
        return {}["query"]

    monkeypatch.setattr(FRAMEWORKS["actcrs"], "reply", broken)
    with pytest.raises(KeyError):
        type_in(study, widget, "Hello.")
    assert "ERROR  KeyError: &#x27;query&#x27;" in widget.log.value and "await widget.busy" in widget.log.value
    assert not widget.field.disabled and widget.session.row.turns == []


def test_the_end_button_closes_the_session(study, checkout):
    async def open_and_end():
        widget = await open_chat_widget("actcrs", profile=PROFILE)
        widget.end_button.click()
        await widget.busy
        return widget

    widget = study.run(open_and_end())
    assert "TARGET " in widget.log.value and all(control.disabled for control in widget.controls)
    assert all(address.client.is_closed() for address in widget.session.system.client._transport._addresses)


def test_a_widget_can_be_displayed_by_naming_it(widget):
    assert "application/vnd.jupyter.widget-view+json" in widget._repr_mimebundle_()


def test_the_hidden_target_is_the_one_that_confirms(study, chat, checkout):
    """The item's description is in the prompt of the confirmation, its title is not."""
    task = tasks_of_notebook_02(checkout)[1]
    session = chat(task_id=task.task_id)
    assert session.task == task
    study.run(session.say("Hello."))
    shown = str(study.requests("confirmation")[0]["messages"])
    assert task.target.description.split(". ")[0][:40] in shown
