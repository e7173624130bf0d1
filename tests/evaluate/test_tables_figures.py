"""Tables from hand-made trajectories, figures from tables, and what saving and the report make of them."""

import dataclasses
import json
import subprocess
import sys

import pandas as pd
import pytest

from ecpo_utils.core.artifacts import digest
from ecpo_utils.core.errors import ArtifactError
from ecpo_utils.core.params import load_profile
from ecpo_utils.core.paths import RunPaths, repository_root
from ecpo_utils.core.schema import Action, Confirmation, Item, Persona, Retrieval, Step, Trajectory, Turn, Usage
from ecpo_utils.evaluate.diversity import summarize_diversity
from ecpo_utils.evaluate.figures import plot_diversity, plot_scores, plot_separation, plot_simulation, save_exhibit
from ecpo_utils.evaluate.paper import paper_results
from ecpo_utils.evaluate.tables import diversity_table, score_table, short_simulation_table, simulation_table
from ecpo_utils.report import write_report
from ecpo_utils.run import Run

FULL, UNSCORED = (2, 2, 1), None


def turn(index, scores=FULL, reply="Read it.", found=()):
    """A turn with its sub-scores; `reply` None for a closing message, `scores` None for an unscored reply."""
    confirmation = None
    if reply is not None:
        names = ("flexibility", "coherence", "guidance")
        confirmation = Confirmation(error="unreadable") if scores is None else Confirmation(**dict(zip(names, scores, strict=True)))
    step = Step(messages=[], output="", action=Action(type="search", argument="q"), retrieval=Retrieval(query="q", item_ids=list(found)))
    return Turn(index=index, policy="ask_recommendation", user_message="Hi.", steps=[step], reply=reply, confirmation=confirmation)


def dialogue(turns=(), status="complete", calls=3, **fields):
    usage = {"expert": Usage(calls=calls, prompt_tokens=100), "simulator": Usage(calls=2 * calls, prompt_tokens=10, completion_tokens=10)}
    values = {"task_id": "t", "domain": "book", "system": "actcrs_expert", "config": "c", "target": Item(item_id="1", title="Emma"),
              "persona": Persona(activities="a", language="l"), "usage": usage}  # fmt: skip
    return Trajectory(**{**values, "turns": list(turns), "status": status, **fields})


def failed():
    return dialogue(status="failed", error="EndpointError: gone", usage={})


@pytest.fixture(scope="module")
def played():
    good = [dialogue([turn(0), turn(1, (2, 1, 0))], recommended_at=1, retrieved_at=0), dialogue([turn(0, (0, 1, 0))], retrieved_at=0),
            dialogue([turn(0), turn(1, reply=None)], "ended_by_user", recommended_at=0, retrieved_at=0), failed()]  # fmt: skip
    poor = [dialogue([turn(0, UNSCORED)], "leak", calls=1), dialogue([turn(0, (0, 0, 0)), turn(1, (0, 0, 0))], calls=5)]
    return {"book": {"actcrs_expert": good, "actcrs_base": poor}, "yelp": {"actcrs_expert": poor, "actcrs_base": good}}


@pytest.fixture(scope="module")
def table(played):
    return simulation_table(played, "quick")


def row(table, domain="book", system="actcrs_expert"):
    return table[(table["domain"] == domain) & (table["system"] == system)].iloc[0]


def test_simulation_table_by_hand(table):
    got = row(table)
    assert list(table[["domain", "system"]].itertuples(index=False, name=None)) == [
        ("book", "actcrs_expert"), ("book", "actcrs_base"), ("yelp", "actcrs_expert"), ("yelp", "actcrs_base")]  # fmt: skip
    assert got[["n", "failed", "leaks", "success_rate", "recall"]].tolist() == [4, 1, 0, 0.5, 0.75]
    assert got["mean_turns"] == pytest.approx(5 / 3)  # 2, 1 and 2 of the three that did not fail
    assert got["mean_confirmation"] == pytest.approx((4 + 1 + 5) / 3)
    assert got["agent_calls"] == pytest.approx(9 / 4) and got["simulator_calls"] == pytest.approx(18 / 4)
    assert got[["tokens", "tokens_n"]].tolist() == [pytest.approx(3 * 120 / 4), 4] and got["tokens_low"] < 90 < got["tokens_high"]
    assert got[["flexibility", "coherence", "guidance"]].tolist() == pytest.approx([4 / 3, (1.5 + 1 + 2) / 3, (0.5 + 0 + 1) / 3])
    assert got[["failed_share", "failed_share_n", "leak_share", "leak_share_low"]].tolist() == [0.25, 4, 0.0, 0.0]
    assert got["failed_share_low"] < 0.25 < got["failed_share_high"] and got["leak_share_high"] > 0.3
    poor = row(table, system="actcrs_base")
    assert poor[["n", "failed", "leaks", "success_rate", "mean_confirmation"]].tolist() == [2, 0, 1, 0.0, 0.0]


def test_intervals_hold_their_values_and_rates_lie_in_zero_to_one(table):
    for name in ("success_rate", "recall", "mean_turns"):
        assert (table[f"{name}_low"] <= table[name]).all() and (table[name] <= table[f"{name}_high"]).all()
    for name in ("success_rate", "recall", "success_rate_low", "success_rate_high", "recall_low", "recall_high"):
        assert table[name].between(0, 1).all()


def test_the_papers_values_stand_beside_ours(table):
    published = paper_results()["table1"]
    for entry in table.itertuples():
        assert (entry.paper_SR, entry.paper_R) == tuple(published[entry.system][entry.domain].values())[:2]


def test_a_system_that_the_paper_has_not_has_no_paper_value():
    table = simulation_table({"book": {"mine": [dialogue([turn(0)])]}}, "cpu")
    assert table[["paper_SR", "paper_R"]].isna().all(axis=None) and table["profile"].tolist() == ["cpu"]
    plot_simulation(table).savefig("/dev/null", format="png")


def test_short_table_has_intervals_in_its_cells(table):
    short = short_simulation_table(table)
    assert len(short) == len(table)
    assert short.iloc[0]["SR"].startswith("0.50 [0.") and short.iloc[0]["SR paper"] == 0.53
    assert short.iloc[0]["agent calls"].startswith("2.2 [0.") and short.iloc[0]["tokens"].startswith("90 [")
    assert short.iloc[0]["turns"].startswith("1.67 [") and short.iloc[0]["turns"].endswith("] n=3")  # of four, one failed
    assert short.iloc[0]["flexibility (0-2)"].startswith("1.33 [")


def test_short_table_says_unscored_where_nothing_was_scored():
    played = {"book": {"actcrs_expert": [dialogue([turn(0, UNSCORED)])]}, "game": {"actcrs_expert": [failed()]}}
    short = short_simulation_table(simulation_table(played, "quick"))
    assert short["EC (0-5)"].tolist() == ["unscored", "unscored"]
    assert short["turns"].tolist() == ["1.00", "unscored"]
    assert short["flexibility (0-2)"].tolist() == ["unscored", "unscored"]
    assert short["agent calls"].tolist() == ["3.0", ""]


def test_short_table_of_failed_dialogues_only():
    short = short_simulation_table(simulation_table({"book": {"actcrs_expert": [failed()] * 5}}, "quick"))
    assert short.iloc[0][["n", "failed", "turns"]].tolist() == [5, 5, "unscored"]
    assert short.iloc[0]["SR"].startswith("0.00 [0.00, ")


def test_score_table_counts_every_reply_once(played):
    table = score_table(played)
    counts = table.set_index(["domain", "system", "satisfaction"])["replies"].sort_index()
    assert counts["book", "actcrs_expert"].to_dict() == {"0": 0, "1": 1, "2": 0, "3": 1, "4": 0, "5": 2, "unscored": 0}
    assert counts["book", "actcrs_base"].to_dict() == {"0": 2, "1": 0, "2": 0, "3": 0, "4": 0, "5": 0, "unscored": 1}


def test_score_table_counts_a_reply_that_failed_before_its_confirmation_as_unscored():
    lone = turn(0)
    lone.confirmation = None
    table = score_table({"book": {"actcrs_expert": [dialogue([lone], "failed", error="x")]}})
    assert table[table["satisfaction"] == "unscored"]["replies"].tolist() == [1]


@pytest.fixture(scope="module")
def diversity():
    texts = {"ailo": ["Loves maps and fog.", "Decides at once.", "Maps, again maps."], "random": ["Concise Witty", "Concise Formal"]}
    summaries = {(domain, source): summarize_diversity(texts[source]) for domain in ("book", "game") for source in texts}
    return summaries, diversity_table(summaries, "cpu")


def test_diversity_table_has_the_papers_means_for_books_only(diversity):
    summaries, table = diversity
    assert table["paper_mean"].tolist()[:2] == [0.510, 0.793] and table["paper_mean"].isna().tolist() == [False, False, True, True]
    first = table.iloc[0]
    assert (first["n"], first["distinct"], first["mean"]) == (3, 3, summaries["book", "ailo"].mean)


@pytest.fixture(scope="module")
def separation():
    return pd.DataFrame([{"flaw": flaw, "n": 4, "scored": 4, "good_higher": rate, "low": low, "high": high}
                         for flaw, rate, low, high in (("no_guidance", 1.0, 0.5, 1.0), ("all", 0.25, 0.1, 0.6))])  # fmt: skip


@pytest.fixture(scope="module")
def figures(table, played, diversity, separation):
    return {"simulation": plot_simulation(table), "scores": plot_scores(score_table(played), "quick"),
            "diversity": plot_diversity(*diversity), "separation": plot_separation(separation, "cpu")}  # fmt: skip


@pytest.mark.parametrize("name", ["simulation", "scores", "separation", "diversity"])
def test_axes_of_rates_start_at_zero(figures, name):
    figures[name].draw_without_rendering()
    for axis in figures[name].axes:
        assert axis.get_ylim()[0] == 0
        if name in ("simulation", "scores"):
            assert axis.get_ylim()[1] == 1


@pytest.mark.parametrize("name", ["simulation", "scores", "separation", "diversity"])
def test_a_figure_says_its_profile(figures, name):
    figures[name].draw_without_rendering()
    note = figures[name].texts[-1]
    last = note.get_text().splitlines()[-1]
    assert last == ("profile cpu" if name in ("separation", "diversity") else "quick profile: a few tasks, not results")
    assert note.get_window_extent().y1 <= min(axis.get_tightbbox().y0 for axis in figures[name].axes)  # beneath all labels


def test_simulation_figure_has_a_bar_an_interval_and_the_papers_diamond_per_row(figures, table):
    axis = figures["simulation"].axes[0]
    assert sorted(bar.get_height() for bar in axis.patches) == sorted(table["success_rate"])
    diamonds = [y for line in axis.lines if line.get_marker() == "D" for y in line.get_ydata()]
    assert sorted(diamonds) == sorted(table["paper_SR"])
    assert [text.get_text() for text in axis.texts] == ["n=4", "n=2", "n=2", "n=4"]


def test_scores_figure_shows_shares_that_add_up_and_counts_the_unscored(figures):
    for axis, domain in zip(figures["scores"].axes, ("book", "yelp"), strict=True):
        assert sum(bar.get_height() for bar in axis.patches) == pytest.approx(2)  # two systems
        assert axis.get_title() == f"{domain} (1 unscored)"


def test_plotting_changes_no_table(separation):
    before = separation.copy()
    plot_separation(separation, "quick")
    pd.testing.assert_frame_equal(separation, before)


def test_separation_figure_of_pairs_without_a_score():
    nothing = pd.DataFrame([{"flaw": "all", "n": 2, "scored": 0, "good_higher": None, "low": None, "high": None}])
    (axis,) = plot_separation(nothing, "quick").axes
    assert len(axis.patches) and [label.get_text() for label in axis.get_xticklabels()] == ["all\nn=0"]


def test_plotting_needs_no_display_and_sets_no_backend():
    code = ("import sys; from ecpo_utils.evaluate import figures; assert 'matplotlib' not in sys.modules; figures.subplots(1);"
            "assert 'matplotlib.pyplot' not in sys.modules")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=repository_root(), check=True)


@pytest.fixture
def run(tmp_path):
    """A run of the quick profile whose files lie under tmp_path."""
    params = load_profile(repository_root() / "params" / "quick.yaml")
    return Run("03_simulation", params, RunPaths(tmp_path, "quick"))


def test_saved_exhibit_is_png_pdf_csv_and_json(run, figures, table):
    stem = run.paths.figure("03_simulation")
    written = save_exhibit(stem, table, run.provenance(dialogues=12), title="ActCRS", figure=figures["simulation"])
    assert sorted(path.name for path in stem.parent.iterdir()) == sorted(path.name for path in written)
    assert {path.suffix for path in written} == {".png", ".pdf", ".csv", ".json"}
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG") and stem.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    again = pd.read_csv(stem.with_suffix(".csv"))
    assert list(again.columns) == list(table.columns) and again["success_rate"].tolist() == table["success_rate"].tolist()


def test_provenance_tells_commit_params_digest_seed_models_and_versions(run, table):
    stem = run.paths.figure("table")
    save_exhibit(stem, table, run.provenance(dialogues=12), title="ActCRS")
    saved = json.loads(stem.with_suffix(".json").read_text())
    assert saved["title"] == "ActCRS" and saved["dialogues"] == 12 and saved["notebook"] == "03_simulation"
    assert len(saved["commit"]) == 40 or saved["commit"] == "unknown"
    assert saved["params_digest"] == digest(run.params.model_dump()) and saved["params"]["seed"] == saved["seed"] == run.params.seed
    assert set(saved["models"]) == {run.params.simulator.model, run.params.cra.model, run.params.embedder}
    assert saved["versions"]["openai"][0].isdigit() and saved["versions"]["python"].startswith("3.")
    assert saved["prompts_digest"] and saved["device"]


def test_one_domains_exhibit_leaves_that_of_all_domains_alone(run, table, figures):
    alone = dataclasses.replace(run.paths, scope="book").figure("03_simulation")
    for stem, rows in ((run.paths.figure("03_simulation"), table), (alone, table[table["domain"] == "book"])):
        save_exhibit(stem, rows, {}, title="t", figure=figures["simulation"])
    suffixes = (".csv", ".json", ".pdf", ".png")
    assert sorted(path.name for path in alone.parent.iterdir()) == sorted(
        f"03_simulation{domain}{suffix}" for domain in ("", ".book") for suffix in suffixes
    )
    assert [len(pd.read_csv(alone.with_name(f"03_simulation{domain}.csv"))) for domain in ("", ".book")] == [4, 2]


def test_a_table_alone_is_csv_and_json(run, table):
    written = save_exhibit(run.paths.figure("table"), table, {}, title="t")
    assert sorted(path.suffix for path in written) == [".csv", ".json"]


def test_a_page_is_saved_beside_its_table_and_stands_in_the_report(checkout, run, table):
    written = save_exhibit(run.paths.figure("11_case_studies"), table, run.provenance(), title="Cases", page="# Cases <of> é\n")
    assert sorted(path.suffix for path in written) == [".csv", ".json", ".md"]
    assert written[-1].read_text(encoding="utf-8") == "# Cases <of> é\n"
    run.finish()
    write_report("quick")
    assert "<pre># Cases &lt;of&gt; é" in (checkout / "runs" / "quick" / "report.html").read_text()


def test_an_exhibit_that_cannot_be_written_names_the_file(tmp_path, table):
    (tmp_path / "figures").write_text("a file where the folder should be")
    with pytest.raises(ArtifactError, match="cannot write .*figures/x.csv"):
        save_exhibit(tmp_path / "figures" / "x", table, {}, title="t")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with the repository's params and nothing run; the working directory is there."""
    (tmp_path / "params").symlink_to(repository_root() / "params")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_report_lists_every_exhibit_and_notebook(checkout, run, figures, table):
    provenance = run.provenance()
    save_exhibit(run.paths.figure("03_simulation"), table, provenance, title="ActCRS against <AILO>", figure=figures["simulation"])
    save_exhibit(run.paths.figure("03_conduct"), table[["domain", "n"]], provenance, title="Conduct")
    run.finish(dialogues=12)
    lines = write_report("quick")
    assert [line.split()[0] for line in lines] == ["report", "figures", "notebooks", "data"]
    assert all((checkout / line.split()[1].partition("DOMAIN")[0]).exists() for line in lines[:2])
    page = (checkout / "runs" / "quick" / "report.html").read_text()
    assert "ActCRS against &lt;AILO&gt;" in page and "Conduct" in page and page.count("<img") == 1
    assert "03_simulation" in page and provenance["params_digest"] in page and provenance["commit"][:10] in page
    assert "actcrs_base" in page and "not results" in page


def test_report_of_a_table_without_rows_says_so(checkout, run):
    save_exhibit(run.paths.figure("05_released_logs"), pd.DataFrame([]), run.provenance(), title="Released logs")
    run.finish(dialogues=0)
    write_report("quick")
    page = (checkout / "runs" / "quick" / "report.html").read_text()
    assert "Released logs" in page and "Nothing to show in this run" in page


@pytest.mark.parametrize("rows", [100, 101])
def test_report_shows_every_row_of_a_table_or_says_how_many_there_are(checkout, run, rows):
    table = pd.DataFrame({"step": [f"step {i}" for i in range(rows)]})
    save_exhibit(run.paths.figure("06_sgpt_curves"), table, run.provenance(), title="Curves")
    run.finish()
    write_report("quick")
    page = (checkout / "runs" / "quick" / "report.html").read_text()
    assert page.count("<td>step ") == 100 and ("The first 100 of 101 rows" in page) == (rows == 101)


@pytest.mark.parametrize("scopes", [["book"], ["all"], ["book", "all"]])
def test_report_shows_runs_of_one_domain_after_those_of_all(checkout, run, table, figures, scopes):
    for scope in scopes:
        run.paths = dataclasses.replace(run.paths, scope=scope)
        save_exhibit(run.paths.figure("03_simulation"), table, run.provenance(), title="Table 1", figure=figures["simulation"])
        save_exhibit(run.paths.figure("03_conduct"), table[["domain", "n"]], run.provenance(), title="Conduct")
        run.finish(dialogues=1)
    write_report("quick")
    page = (checkout / "runs" / "quick" / "report.html").read_text()
    assert ("<td>03_simulation.book<" in page) == ("book" in scopes) and ("<td>03_simulation<" in page) == ("all" in scopes)
    titles = [title.partition("</h2>")[0] for title in page.split("<h2>")[2:]]
    assert titles == [f"{title}{domain}" for title in ("Conduct", "Table 1") for scope, domain in (("all", ""), ("book", ", book alone"))
                      if scope in scopes]  # fmt: skip
    assert page.count("<img") == len(scopes)


def test_report_before_any_run_says_what_to_run(checkout):
    with pytest.raises(ArtifactError, match="nothing has run on profile cpu yet; run: ecpo run --profile cpu"):
        write_report("cpu")
    assert not (checkout / "runs").exists()
