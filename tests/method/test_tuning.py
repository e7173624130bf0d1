"""The stages of notebooks 06 to 10 on scripted models, with real training steps on a tiny one: each reads what the one before wrote."""

import asyncio
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from scripted_models import FULL, FakeEmbedder, choice, confirmation_json

from ecpo_utils import cli, exhibits, judging, preparation, simulation, tuning
from ecpo_utils.core.artifacts import load_jsonl, write_jsonl
from ecpo_utils.core.errors import ArtifactError, ParamsError
from ecpo_utils.core.schema import Item, Persona, PreferencePair, Rewrite, Task, Trajectory, Turn, Verdict
from ecpo_utils.evaluate.judges.base import dialogues_digest
from ecpo_utils.evaluate.transcripts import trajectory_transcript
from ecpo_utils.run import open_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, study, tiny, monkeypatch):
    """A quick run of one domain whose roles are scripted; the agents that are tuned are scripted too, their adapters are not."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)
    for module in (preparation, simulation):
        monkeypatch.setattr(module, "Embedder", lambda name: FakeEmbedder())
    role = {"provider": "openai", "base_url": study.endpoint.base_url, "max_retries": 0}
    roles = {name: {**role, "model": name} for name in ("persona", "simulator", "expert", "rewriter")}
    return open_run("06_sgpt", {
        "profile": "quick", "domains": ["game"], "tuning_domains": ["game"], "simulator_mode": FULL, "rewriter_mode": FULL,
        "num_personas": 3, "max_turns": 2,
        "cra": {**role, "model": tiny}, "preference_methods": ["dpo", "simpo"], "lora_r": 2, **roles})  # fmt: skip


@pytest.fixture
def scripts(study, run):
    """The expert names every target; the tuned agent asks the same again, and the rewriter asks something else."""
    asked = iter(range(1000))

    def agent(body):
        if body["model"] == "persona":
            return choice(careful=0.9) if body.get("logprobs") else "Loves all."
        if body["model"] == "expert":
            titles = [task.target.title for task in load_jsonl(run.paths.tasks("game", "sgpt"), Task)]
            return f"Recommend[How about {' or '.join(titles)}?]"
        if body["model"] == "rewriter":
            return f"Change: ask for more.\nAction: Ask[Alone or together, and for how long, number {next(asked)}?]"
        return "Ask[Alone or together?]"

    study.scripts["agent"] = agent
    study.scripts["confirmation"] = lambda body: confirmation_json(guidance=0)


async def everything(run):
    preparation.prepare_items(run)
    await preparation.prepare_personas(run)
    preparation.prepare_tasks(run)
    sets = tuning.build_sgpt_sets(run, await tuning.play_expert(run))
    sgpt = tuning.train_sgpt(run, sets)
    played = await tuning.play_tuned(run, ["actcrs_sgpt"], split="ecpo")
    rewrites = await tuning.rewrite_replies(run, played)
    pairs = tuning.load_preference_sets(run)
    adapters = tuning.train_preferences(run, pairs)
    main = await tuning.play_main(run)
    return sets, sgpt, played, rewrites, pairs, adapters, main


def test_all_stages_in_order(run, scripts, study):
    sets, sgpt, played, rewrites, pairs, adapters, main = asyncio.run(everything(run))
    tasks = {split: load_jsonl(run.paths.tasks("game", split), Task) for split in ("sgpt", "ecpo", "test")}
    assert len(sets["game"].train) == 2 * len(tasks["sgpt"])  # two turns, one action each
    assert not any("An example of a conversation" in row.prompt[0]["content"] for row in sets["game"].train)
    assert sgpt["game"] == run.paths.adapter("game", "sgpt") and (sgpt["game"] / "adapter_model.safetensors").is_file()
    rows = played["game"]["actcrs_sgpt.ecpo"]
    assert [row.task_id for row in rows] == [task.task_id for task in tasks["ecpo"]]
    assert len(rewrites["game"]) == len(pairs["game"].train) == 2 * len(rows)
    assert load_jsonl(run.paths.pairs("game", "sgpt"), PreferencePair) == list(pairs["game"].train)
    assert set(adapters["game"]) == {"dpo", "simpo"}
    assert list(main["game"]) == ["actcrs_expert", "actcrs_base", "actcrs_sgpt", "actcrs_ecpo", "actcrs_simpo"]
    asked = {body["model"]: body["messages"][0]["content"] for body in (chat.body for chat in study.endpoint.chats)}
    assert {"sgpt", "dpo", "simpo"} <= set(asked)
    assert "An example of a conversation" not in asked["dpo"] and "An example of a conversation" in asked["expert"]


def test_a_second_time_nothing_is_asked_and_nothing_trained(run, scripts, study, monkeypatch):
    first = asyncio.run(everything(run))
    study.endpoint.requests.clear()
    monkeypatch.setattr("ecpo_utils.method.training.load_backbone", lambda name: pytest.fail("loaded"))
    again = asyncio.run(everything(run))
    assert study.endpoint.chats == [] and again == first


def test_a_training_by_itself_is_the_notebooks_own(run, scripts, capsys, monkeypatch):
    preparation.prepare_items(run)
    asyncio.run(preparation.prepare_personas(run))
    preparation.prepare_tasks(run)
    monkeypatch.setattr(cli, "_tuning_run", lambda options: run)
    assert cli.main(["train", "sgpt"]) == 1 and "examples/sgpt.jsonl is missing" in capsys.readouterr().err
    assert cli.main(["examples"]) == 0
    assert capsys.readouterr().out == f"{run.paths.examples('game', 'sgpt')}: 6 examples to train on, 0 to watch with\n"
    assert not run.paths.adapter("game", "sgpt").exists() and cli.main(["train", "sgpt"]) == 0
    monkeypatch.setattr("ecpo_utils.method.training.load_backbone", lambda name: pytest.fail("loaded"))
    tuning.train_sgpt(run, tuning.build_sgpt_sets(run, asyncio.run(tuning.play_expert(run))))


def test_costs_and_cases_come_from_the_files(run, scripts):
    asyncio.run(everything(run))
    costs = tuning.cost_table(run).set_index("stage")
    num_pairs = costs.loc["training dpo", "units"]
    assert costs.loc["rewrites", "calls_per_pair"] == 1.0 and costs.loc["SGPT dialogues", "calls_per_pair"] > 1
    assert num_pairs == costs.loc["rewrites", "units"] and costs.loc["training sgpt", "seconds"] > 0
    card = run.paths.adapter("game", "dpo") / "training.json"
    kept = card.read_text()
    card.write_text(json.dumps(json.loads(kept) | {"start": "another"}))
    with pytest.raises(ArtifactError, match="adapters/dpo was trained from another adapter than .*sgpt; run notebooks 07 to 09 again"):
        tuning.cost_table(run)
    card.write_text(kept)
    with pytest.raises(ArtifactError, match="actcrs_ecpo_vs_actcrs_sgpt.jsonl is missing"):
        tuning.load_cases(run)
    after, before = [load_jsonl(run.paths.trajectories("game", name), Trajectory) for name in ("actcrs_ecpo", "actcrs_sgpt")]
    pairs = [(trajectory_transcript(new), trajectory_transcript(old)) for new, old in zip(after, before, strict=True)]
    verdicts = [
        Verdict(task_id=pair[0].task_id, first="actcrs_ecpo", second="actcrs_sgpt", shown_first="apart", error="x",
                config=f"{dialogues_digest(pair)} judge") for pair in pairs]  # fmt: skip
    path = run.paths.verdicts("game", "actcrs_ecpo", "actcrs_sgpt")
    write_jsonl(path, verdicts)
    cases = tuning.load_cases(run)
    assert [(case.before, case.after) for case in cases] == list(zip(before, after, strict=True))
    assert cases[0].judgement is None and cases[0].first_difference is None
    (exhibit,) = [each for each in exhibits.EXHIBITS if each.name == "11_case_studies"]
    with pytest.raises(ArtifactError, match="judge_reliability.json is missing; run notebooks/05_judge_validation.ipynb"):
        exhibit.draw(run)
    judging.save_reliability(run, "It tells every planted flaw.", {"cases": verdicts})
    drawing = exhibit.draw(run)
    assert len(drawing.table) == len(cases) and drawing.figure is None and drawing.page.startswith("# Case studies")
    assert "It tells every planted flaw." in drawing.page
    after[0].turns[0].reply = "Another reply, of an adapter that was trained anew."
    write_jsonl(run.paths.trajectories("game", "actcrs_ecpo"), after)
    with pytest.raises(ArtifactError, match=f"lacks verdicts on 1 of {len(after)} pairs .* run notebooks/10_main_results.ipynb to its end"):
        tuning.load_cases(run)


def test_verdicts_on_rewrites_of_other_dialogues_are_not_shown(run):
    row = Trajectory(
        task_id="game/u/i", domain="game", system="actcrs_sgpt.ecpo", config="c", status="complete",
        target=Item(item_id="1", title="Chess"), persona=Persona(activities="a", language="l"),
        turns=[Turn(index=0, policy="ask_recommendation", user_message="Hi.", reply="Bye.")],
    )  # fmt: skip
    played = {"game": {row.system: [row]}}
    record = Rewrite(task_id=row.task_id, turn=0, prompt=[], original="Response[Bye.]", rewritten="Ask[Alone?]", score=2, reason="r")
    ((_, (pair,)),) = tuning._rewritten_pairs(run, played, {"game": [record]}).items()
    verdict = Verdict(task_id=pair[0].task_id, first="rewritten", second="original", shown_first="apart",
                      config=f"{dialogues_digest(pair)} judge")  # fmt: skip
    write_jsonl(run.paths.verdicts("game", "rewritten", "original"), [verdict])
    assert tuning.load_judged_rewrites(run, played, {"game": [record]}) == {"game": [verdict]}
    with pytest.raises(ArtifactError, match="lacks verdicts on 1 of 1 pairs .* run notebooks/08_rewriting.ipynb"):
        tuning.load_judged_rewrites(run, played, {"game": [record.model_copy(update={"rewritten": "Ask[Together?]"})]})
    with pytest.raises(ArtifactError, match="the dialogue on game/u/i was played anew; run notebooks/08_rewriting.ipynb again"):
        tuning.load_judged_rewrites(run, played, {"game": [record.model_copy(update={"turn": 1})]})


def test_divergence_is_measured_against_sgpt(run, scripts):
    asyncio.run(everything(run))
    sets = tuning.load_preference_sets(run)
    table = tuning.measure_divergence(run, sets, tuning.train_preferences(run, sets))
    assert list(table["method"]) == ["dpo", "simpo"] and (table["kl_per_token"] >= 0).all()
    assert (table["chosen_logp"] < 0).all() and table["chosen_likelier"].between(0, 1).all()
    assert table["n"].tolist() == [min(len(sets["game"].train), tuning.MAX_COMPARED)] * 2 and set(table["pairs"]) == {"train"}
    pd.testing.assert_frame_equal(tuning.load_divergence(run), table, check_exact=True)


def test_searches_against_the_reply_that_followed_are_compared_too(run, scripts, study):
    answer = study.scripts["agent"]

    def searching(body):
        seeks = body["model"] == "sgpt" and not body["messages"][-1]["content"].startswith("Observation")
        return "Search[a game]" if seeks else answer(body)

    study.scripts["agent"] = searching
    run.params.preference_methods = ["dpo"]
    *_, sets, adapters, _ = asyncio.run(everything(run))
    table = tuning.measure_divergence(run, sets, adapters)
    assert table["pairs"].tolist() == ["train", "searches"]
    costs = tuning.cost_table(run).set_index("stage")
    assert costs.loc["training dpo", "units"] == len(sets["game"].train)


def test_what_is_missing_names_its_notebook(run, scripts):
    preparation.prepare_items(run)
    for stage, notebook in (
        (tuning.load_sgpt_sets, "06_sgpt"),
        (tuning.load_preference_sets, "08_rewriting"),
        (tuning.cost_table, "06_sgpt"),
    ):
        with pytest.raises(ArtifactError, match=f"is missing; run notebooks/{notebook}"):
            stage(run)
    with pytest.raises(ArtifactError, match="adapter_model.safetensors is missing; run notebooks/09_preference_optimization"):
        simulation.find_adapter(run, "game", "dpo")
    asyncio.run(preparation.prepare_personas(run))
    preparation.prepare_tasks(run)
    with pytest.raises(ArtifactError, match="adapter_model.safetensors is missing; run notebooks/06_sgpt"):
        asyncio.run(tuning.play_main(run))
    assert not run.paths.trajectories("game", "actcrs_expert").exists()  # known before the first dialogue
    run.params.tuning_domains = run.params.cra_domains = ["book"]
    with pytest.raises(ParamsError, match=r"none of the domains \['game'\] is among tuning_domains \['book'\]"):
        tuning.domains_to_tune(run)
    with pytest.raises(ParamsError, match=r"none of the domains \['game'\] is among cra_domains \['book'\]"):
        asyncio.run(simulation.simulate_frameworks(run))


def test_exports_of_a_run(run, scripts, tmp_path):
    asyncio.run(everything(run))
    assert {path.name for path in tuning.export_data(run, "game", "trl", tmp_path / "trl")} == {"sft.jsonl", "preference.jsonl"}
    assert (tuning.export_merged(run, "game", "dpo", tmp_path / "merged") / "model.safetensors").is_file()
