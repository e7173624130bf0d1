"""Rollouts with scripted models: rows, failures, and how a run goes on after it was stopped."""

import inspect
import itertools
import json
import re
import threading
from pathlib import Path

import pytest
from scripted_models import FULL, ITEMS, NARROW, PERSONA, ScriptedStudy, choice, confirmation_json, in_turn, make_task, policy_json
from stub_endpoint import Reply

from ecpo_utils.core.artifacts import load_jsonl
from ecpo_utils.core.concurrency import MAX_FAILED_IN_A_ROW
from ecpo_utils.core.errors import EndpointError, SchemaError
from ecpo_utils.core.params import load_profile
from ecpo_utils.core.paths import repository_root
from ecpo_utils.core.schema import Step, Trajectory
from ecpo_utils.dialogue import agents
from ecpo_utils.dialogue.agents import FRAMEWORKS, ReAct
from ecpo_utils.dialogue.rollout import SHARED, SHARED_PROMPTS, System, dialogue_config, rollout

PROMPTS = repository_root() / "ecpo_utils" / "llm" / "prompts"
TASKS = [make_task(item, f"u{number}") for number, item in enumerate(ITEMS[:3])]
PARAMS = load_profile(repository_root() / "params" / "quick.yaml").model_copy(update={"max_turns": 3, "simulator_mode": FULL})


@pytest.fixture
def play(study, database, tmp_path):
    """Plays tasks with the study's clients; options are parameters of the run."""

    def play(tasks=TASKS, *, by=study, few_shot=True, **params):
        system = System("actcrs_expert", "actcrs", by.client("expert"), {"few_shot": few_shot})
        path = tmp_path / "trajectories" / "actcrs_expert.jsonl"
        run = rollout(tasks, system, by.client("simulator"), database, PARAMS.model_copy(update=params), path)
        return by.run(run)

    return play


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trajectories" / "actcrs_expert.jsonl"


@pytest.fixture
def fresh(study, tmp_path):
    """The same endpoint and scripts with an empty response cache, so that every call that is made is seen."""
    (tmp_path / "fresh").mkdir()
    fresh = ScriptedStudy(study.endpoint, tmp_path / "fresh")
    fresh.scripts = study.scripts
    yield fresh
    fresh.close()


def saved(path):
    return load_jsonl(path, Trajectory)


def ids(rows):
    return [row.task_id for row in rows]


SIGNED = [make_task(ITEMS[n % len(ITEMS)], f"user{n:02d}", persona=PERSONA.model_copy(update={"language": f"Signs as user{n:02d}."}))
          for n in range(12)]  # fmt: skip


@pytest.fixture
def signed(study):
    """The users of SIGNED sign their messages, so that `of_task` can tell whose dialogue a request belongs to."""
    spoken = []

    def message(body):
        user = next(task.user_id for task in SIGNED if task.persona.language in str(body["messages"]))
        spoken.append(user)
        return f"Wish {len(spoken)} from {user}."

    study.scripts["message"] = message


def of_task(task, body):
    return f"from {task.user_id}" in str(body["messages"])


def test_there_is_a_row_per_task_in_task_order_in_memory_and_on_disk(play, path):
    rows = play()
    assert ids(rows) == ids(TASKS) and saved(path) == rows
    for row, task in zip(rows, TASKS, strict=True):
        assert (row.target, row.persona, row.domain, row.system) == (task.target, task.persona, "game", "actcrs_expert")
        assert (row.status, row.error, len(row.turns)) == ("complete", None, 3)
        assert [turn.index for turn in row.turns] == [0, 1, 2]
        assert all(turn.reply and turn.confirmation.satisfaction == 5 and turn.steps for turn in row.turns)
        assert row.turns[0].policy == "ask_recommendation"


def test_rows_are_in_task_order_though_dialogues_end_in_another(play, path, signed, study):
    first = SIGNED[0]
    study.scripts["confirmation"] = lambda body: Reply(confirmation_json(), delay_s=0.3 if of_task(first, body) else 0.0)
    rows = play(SIGNED[:4], max_turns=1, dialogues_in_flight=4)
    assert ids(rows) == ids(saved(path)) == ids(SIGNED[:4])


def test_no_more_dialogues_are_in_flight_than_allowed(play, study):
    study.scripts["confirmation"] = lambda body: Reply(confirmation_json(), delay_s=0.02)
    play(SIGNED[:6], max_turns=1, dialogues_in_flight=2)
    assert study.endpoint.max_in_flight <= 2


def test_success_and_recall_are_the_first_turns_that_name_and_find_the_target(play, study):
    study.scripts["agent"] = in_turn(
        "Search[folded nobleman crimes drawer]", "Ask[Alone?]", "Search[foggy port town ships salt]", "Recommend[Iron Orchard?]",
        f"Recommend[How about {ITEMS[0].title}?]")  # fmt: skip
    (row,) = play(TASKS[:1], retriever_top_k=1)
    assert (row.retrieved_at, row.recommended_at) == (1, 2)
    assert [step.retrieval.item_ids for turn in row.turns for step in turn.steps if step.retrieval] == [["g5"], ["g1"]]
    assert row.turns[0].reply == "Alone?"


def test_a_title_found_but_never_named_is_recall_without_success(play, study):
    study.scripts["agent"] = in_turn("Search[foggy port town ships salt]", "Ask[Alone?]")
    (row,) = play(TASKS[:1], retriever_top_k=1)
    assert (row.retrieved_at, row.recommended_at) == (0, None)


def test_an_edition_in_the_title_does_not_hide_a_success(play, study):
    target = ITEMS[0].model_copy(update={"title": f"{ITEMS[0].title} [Deluxe]"})
    study.scripts["agent"] = in_turn(f"Recommend[{ITEMS[0].title}?]")
    (row,) = play([make_task(target)])
    assert row.recommended_at == 0


def test_a_user_who_ends_the_conversation_has_the_last_word(play, study):
    study.scripts["policy"] = in_turn(policy_json("respond_to_clarification"), policy_json("end_conversation", "has it"))
    (row,) = play(TASKS[:1])
    last = row.turns[-1]
    assert (row.status, len(row.turns)) == ("ended_by_user", 3)
    assert (last.policy, last.policy_reason, last.reply, last.steps, last.confirmation) == ("end_conversation", "has it", None, [], None)
    assert last.user_message


def test_a_leak_ends_the_dialogue_and_is_recorded(play, study):
    study.scripts["message"] = in_turn("A port town.", f"I want {ITEMS[0].title}.")
    (row,) = play(TASKS[:1])
    assert (row.status, len(row.turns)) == ("leak", 2)
    assert (row.turns[1].user_faults, row.turns[1].reply, row.turns[1].user_retries) == (["leak"], None, 2)
    assert len(study.requests("agent")) == 1  # the agent never reads the leak
    assert row.recommended_at is None


def test_other_faults_are_recorded_and_the_dialogue_goes_on(play, study):
    study.scripts["message"] = in_turn("A port town.")
    (row,) = play(TASKS[:1])
    assert row.status == "complete" and [turn.user_faults for turn in row.turns] == [[], ["parrot"], ["parrot"]]


def test_an_unreadable_confirmation_is_unscored_and_the_dialogue_goes_on(play, study):
    study.scripts["confirmation"] = in_turn("five!")
    (row,) = play(TASKS[:1])
    assert row.status == "complete"
    assert all(turn.confirmation.error and turn.confirmation.satisfaction is None for turn in row.turns)


def test_small_models_play_a_whole_dialogue(play, study):
    study.scripts["choice"] = lambda body: choice(suggest=0.8)
    (row,) = play(TASKS[:1], simulator_mode=NARROW)
    assert row.status == "complete" and study.requests("policy") == study.requests("confirmation") == []
    assert all(turn.confirmation.probabilities and turn.confirmation.satisfaction is not None for turn in row.turns)


def test_usage_is_counted_by_role(play, study):
    (row,) = play(TASKS[:1])
    messages, policies, confirmations = 3, 2, 3
    assert {role: usage.calls for role, usage in row.usage.items()} == {"expert": 3, "simulator": messages + policies + confirmations}
    assert row.usage["expert"].prompt_tokens == 30 and row.usage["expert"].cached == 0


def test_scores_are_asked_for_beside_the_next_steps_where_the_user_does_not_need_them(play, study):
    """One call to open, then four a round but for the next policy in the last: 20 in all, of which 16 one after the other."""
    rounds = 5
    spoken = iter(range(100))
    both_in_flight = threading.Barrier(2)
    scored = itertools.count(1)

    def beside_the_other(text):
        both_in_flight.wait(timeout=10)
        return text

    study.scripts["policy"] = lambda body: beside_the_other(policy_json("respond_to_clarification", message=f"Of kind {next(spoken)}."))
    study.scripts["confirmation"] = lambda body: beside_the_other(confirmation_json()) if next(scored) < rounds else confirmation_json()
    study.scripts["agent"] = lambda body: "Ask[Alone?]" if "Observation:" in body["messages"][-1]["content"] else "Search[a port]"
    (row,) = play(TASKS[:1], max_turns=rounds)
    assert sum(usage.calls for usage in row.usage.values()) == len(study.endpoint.chats) == 20
    assert all(turn.confirmation.satisfaction == 5 for turn in row.turns)
    assert study.endpoint.max_in_flight == 2 and not both_in_flight.broken
    assert len(study.requests("policy")) == rounds - 1  # each beside the scores of the turn before


def test_small_models_wait_for_the_scores_that_decide_their_patience(play, study):
    study.scripts["asked_coherence"] = study.scripts["asked_flexibility"] = lambda body: choice(yes=0.01, no=0.99)
    study.scripts["asked_guidance"] = lambda body: Reply(**{**choice(yes=0.01, no=0.99).__dict__, "delay_s": 0.1})
    (row,) = play(TASKS[:1], simulator_mode=NARROW, max_turns=5)
    assert all(turn.confirmation for turn in row.turns if turn.reply)


# failures


def test_a_failed_dialogue_is_a_row_with_its_error_and_its_turns_so_far(play, path, study):
    study.scripts["agent"] = in_turn("Ask[Alone?]", Reply("the model is full", status=400))
    (row,) = play(TASKS[:1])
    assert (row.status, row.error.partition(":")[0], len(row.turns)) == ("failed", "EndpointError", 2)
    assert "the model is full" in row.error
    assert row.turns[0].reply == "Alone?" and row.turns[0].confirmation.satisfaction == 5
    assert (row.turns[1].reply, bool(row.turns[1].user_message)) == (None, True)
    assert row.usage["expert"].calls == 1 and saved(path) == [row]


def test_a_turn_whose_second_call_fails_keeps_its_first_step(play, path, study):
    study.scripts["agent"] = in_turn("Search[foggy port town ships salt]", Reply("the model is full", status=400))
    (row,) = play(TASKS[:1], retriever_top_k=1)
    (turn,) = row.turns
    assert (row.status, turn.reply, turn.confirmation) == ("failed", None, None)
    assert [(step.output, step.retrieval.item_ids) for step in turn.steps] == [("Search[foggy port town ships salt]", ["g1"])]
    assert saved(path) == [row]


def test_a_confirmation_that_fails_keeps_the_reply(play, study):
    study.scripts["confirmation"] = in_turn(Reply("no", status=400))
    (row,) = play(TASKS[:1])
    assert row.status == "failed" and row.turns[0].reply and row.turns[0].steps and row.turns[0].confirmation is None


def test_an_unreadable_policy_is_a_failed_row(play, study):
    study.scripts["policy"] = in_turn("I shall answer.")
    (row,) = play(TASKS[:1])
    assert row.status == "failed" and row.error.startswith("ParseError: ") and len(row.turns) == 1


def test_one_failure_among_others_leaves_them_alone(play, study, signed):
    broken = SIGNED[1]
    study.scripts["agent"] = lambda body: Reply("no", status=400) if of_task(broken, body) else "Ask[Alone?]"
    rows = play(SIGNED[:4], max_turns=2)
    assert [row.status for row in rows] == ["complete", "failed", "complete", "complete"]


def test_a_fatal_error_stops_the_stage_and_keeps_finished_rows(play, path, study, signed):
    study.scripts["agent"] = lambda body: Reply("wrong key", status=401) if of_task(SIGNED[2], body) else "Ask[Alone?]"
    with pytest.raises(EndpointError, match="wrong key") as error:
        play(SIGNED, max_turns=1, dialogues_in_flight=1)
    assert error.value.fatal
    assert ids(saved(path)) == ids(SIGNED[:2]) and {row.status for row in saved(path)} == {"complete"}


def test_after_a_fatal_error_the_rest_is_played_and_finished_rows_are_not(play, fresh, path, study, signed):
    agent = study.scripts["agent"]
    study.scripts["agent"] = lambda body: Reply("wrong key", status=401) if of_task(SIGNED[2], body) else "Ask[Alone?]"
    with pytest.raises(EndpointError):
        play(SIGNED[:4], max_turns=1, dialogues_in_flight=1)
    before = saved(path)
    study.endpoint.requests.clear()
    study.scripts["agent"] = agent
    rows = play(SIGNED[:4], by=fresh, max_turns=1, dialogues_in_flight=1)
    assert rows[:2] == before and {row.status for row in rows} == {"complete"}
    assert not any(of_task(task, body) for task in SIGNED[:2] for body in study.requests("agent"))
    assert len(study.requests("agent")) == 2


def test_five_failures_in_a_row_stop_the_stage_with_the_last_error(play, path, study, signed):
    study.scripts["agent"] = lambda body: "Ask[Alone?]" if of_task(SIGNED[0], body) else Reply("overloaded", status=400)
    with pytest.raises(EndpointError, match=rf"{MAX_FAILED_IN_A_ROW} dialogues in a row failed.*{path.name}.*overloaded"):
        play(SIGNED, max_turns=1, dialogues_in_flight=1)
    assert [row.status for row in saved(path)] == ["complete"] + ["failed"] * MAX_FAILED_IN_A_ROW


def test_failures_that_are_not_in_a_row_do_not_stop_the_stage(play, study, signed):
    good = SIGNED[::3]
    study.scripts["agent"] = lambda body: "Ask[Alone?]" if any(of_task(t, body) for t in good) else Reply("no", status=400)
    rows = play(SIGNED, max_turns=1, dialogues_in_flight=1)
    assert [row.status for row in rows].count("failed") == 8 and len(rows) == 12
    again = play(SIGNED, max_turns=1, dialogues_in_flight=1)  # only the eight are played, each with the fault it had
    assert [row.status for row in again] == [row.status for row in rows]


# going on


def test_playing_again_makes_no_request_and_changes_no_byte(play, fresh, path, study):
    rows = play()
    text = path.read_bytes()
    study.endpoint.requests.clear()
    assert play(by=fresh) == rows
    assert study.endpoint.chats == [] and path.read_bytes() == text


def test_half_a_line_of_a_killed_run_is_cut_and_finished_rows_are_kept(play, fresh, path, study):
    rows = play()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][: len(lines[1]) // 2])
    study.endpoint.requests.clear()
    again = play(by=fresh)
    assert again[0] == rows[0] and ids(again) == ids(TASKS) and saved(path) == again
    assert {row.status for row in again} == {"complete"}
    assert len(study.requests("agent")) == 6  # two dialogues of three turns


def test_a_killed_run_pays_for_no_call_twice(play, path, study):
    rows = play()
    path.unlink()
    study.endpoint.requests.clear()
    again = play()
    assert study.endpoint.chats == []
    assert [row.turns for row in again] == [row.turns for row in rows]
    assert all(usage.cached == usage.calls for row in again for usage in row.usage.values())


def test_rows_of_a_killed_run_stand_in_any_order_and_end_in_task_order(play, fresh, path, study):
    rows = play()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[2] + lines[0])
    assert ids(play(by=fresh)) == ids(rows) == ids(saved(path))


def test_tasks_that_others_played_stay_in_the_file(play, fresh, path, study):
    rows = play()
    study.endpoint.requests.clear()
    assert play(TASKS[1:2], by=fresh) == rows[1:2] and study.endpoint.chats == []
    assert ids(saved(path)) == [TASKS[1].task_id, *(task.task_id for task in (TASKS[0], *TASKS[2:]))]
    assert play(by=fresh) == rows == saved(path)


def test_a_task_whose_persona_was_inferred_anew_is_played_anew(play, fresh, path):
    rows = play()
    changed = TASKS[1].model_copy(update={"persona": PERSONA.model_copy(update={"language": "Signs as another."})})
    again = play([TASKS[0], changed, TASKS[2]], by=fresh)
    assert again[::2] == rows[::2] and again[1].persona == changed.persona != rows[1].persona and saved(path) == again


def test_failed_rows_are_played_again(play, path, study, signed):
    broken = SIGNED[1]
    agent = study.scripts["agent"]
    study.scripts["agent"] = lambda body: Reply("no", status=400) if of_task(broken, body) else agent(body)
    first = play(SIGNED[:3], max_turns=1)
    study.scripts["agent"] = agent
    study.endpoint.requests.clear()
    again = play(SIGNED[:3], max_turns=1)
    assert [row.status for row in again] == ["complete"] * 3
    assert [again[0], again[2]] == [first[0], first[2]]
    assert len(study.requests("agent")) == 1


def test_failed_rows_of_further_tasks_stay(play, path, study, signed):
    broken = SIGNED[1]
    agent = study.scripts["agent"]
    study.scripts["agent"] = lambda body: Reply("no", status=400) if of_task(broken, body) else agent(body)
    rows = play(SIGNED[:3], max_turns=1)
    play(SIGNED[:1], max_turns=1)
    assert saved(path) == rows and rows[1].status == "failed"


@pytest.mark.parametrize(
    "changes",
    [
        {"max_turns": 2},
        {"retriever_top_k": 2},
        {"seed": 5},
        {"agent_temperature": 0.5},
        {"simulator_temperature": 1.0},
        {"few_shot": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_setting_plays_everything_anew(play, path, changes):
    before = play()
    after = play(**changes)
    assert not {row.config for row in before} & {row.config for row in after}
    assert saved(path) == after and {len(row.turns) for row in after} == {changes.get("max_turns", 3)}


@pytest.fixture
def config_after(study, database, monkeypatch):
    """The digest of a framework's dialogues, as it were with another text in some files."""

    def config(framework, *edited):
        read = Path.read_text
        monkeypatch.setattr(Path, "read_text", lambda path, **options: read(path, **options) + ("edited" if path.name in edited else ""))
        found = dialogue_config(System("x", framework, study.client("expert"), {}), study.client("simulator"), PARAMS, database)
        monkeypatch.setattr(Path, "read_text", read)
        return found

    return config


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_another_frameworks_code_and_prompts_do_not_decide_a_dialogue(config_after, framework):
    others = set(FRAMEWORKS) - {framework} | {"template"}
    prompts = [path.name for path in PROMPTS.glob("*.txt") if path.name.split("_")[0] in {*others, "persona"}]
    assert len(prompts) > 10
    assert config_after(framework, *prompts, *(f"{name}.py" for name in others)) == config_after(framework)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_frameworks_own_code_and_prompts_decide_its_dialogues(config_after, framework):
    prompt = next(path.name for path in PROMPTS.glob(f"{framework}_*.txt"))
    own = [f"{framework}.py", prompt, "base.py", "actions.py", "acting.py", "simulator.py", "retrieval.py", "rollout.py",
           "voices.py", "confirmation.py", "confirmation_weights.json", "matching.py", "schema.py", "simulator_system.txt",
           "narrow_message.txt", "confirm_system.txt"]  # fmt: skip
    found = {config_after(framework, name) for name in own} | {config_after(framework)}
    assert len(found) == len(own) + 1


def test_a_derived_framework_rests_on_the_one_it_derives_from(config_after, monkeypatch):
    monkeypatch.setitem(FRAMEWORKS, "derived", type("Derived", (ReAct,), {"name": "derived", "__module__": __name__}))
    for name in ("react.py", "react_system.txt", "test_rollout.py"):
        assert config_after("derived", name) != config_after("derived")
    assert config_after("derived", "macrs.py") == config_after("derived")


def test_every_module_of_an_agent_is_shared_or_a_framework_of_its_own():
    """What two frameworks share must be in their digests; none imports another save the one that it derives from."""
    folder = Path(agents.__file__).parent
    own = {Path(inspect.getsourcefile(framework)).name for framework in FRAMEWORKS.values()} | {"template.py"}
    shared = {Path(module.__file__).name for module in SHARED if Path(module.__file__).parent == folder}
    assert {path.name for path in folder.glob("*.py")} == own | shared | {"__init__.py"}
    for name in own | shared:
        taken = set(re.findall(r"^from \.(\w+) import", (folder / name).read_text(), re.MULTILINE))
        assert {f"{module}.py" for module in taken} <= shared, name


def test_agents_and_the_simulator_read_only_prompts_that_are_in_their_digests():
    folder = Path(agents.__file__).parent
    for path in [*folder.parent.glob("*.py"), *folder.glob("*.py")]:
        names = re.findall(r"\b(?:load_prompt|load_examples|load_instructions|render)\(\s*f?\"([^\"]+)\"", path.read_text())
        known = (*(f"{name}_" for name in SHARED_PROMPTS), *([f"{path.stem}_", "{self.name}_"] if path.parent == folder else []))
        assert all(name.startswith(known) for name in names), (path.name, names)


def test_settings_of_other_stages_keep_the_rows(play, fresh, study):
    before = play()
    study.endpoint.requests.clear()
    assert play(by=fresh, num_personas=99, dialogues_in_flight=1, test_share=0.9, num_separation_pairs=1) == before
    assert study.endpoint.chats == []


def test_more_tasks_add_rows(play, fresh, path, study):
    few = play(TASKS[:2])
    study.endpoint.requests.clear()
    many = play(TASKS, by=fresh)
    assert many[:2] == few and len(study.requests("agent")) == 3 and ids(saved(path)) == ids(TASKS)


def test_a_broken_line_within_the_file_is_an_error_that_names_it(play, path):
    play()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:40] + "\n" + lines[2])
    with pytest.raises(SchemaError, match="actcrs_expert.jsonl:2"):
        play()


def test_no_tasks_are_no_rows(play, path):
    assert play([]) == [] and path.read_text() == ""


def test_rows_hold_no_key_and_are_plain_json(play, path):
    play()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        assert set(row) == set(Trajectory.model_fields)


def test_steps_of_rows_from_before_they_had_a_purpose_are_read():
    old = {"messages": [], "output": "Ask[x]", "action": {"type": "ask", "argument": "x"}, "retrieval": None, "attempts": 2}
    assert (Step(**old).purpose, Step(**old).action.type, Step(**old).is_unusable) == ("action", "ask", False)
