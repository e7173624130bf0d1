"""Figures and tables of a run, drawn from its files alone, without any model. What `make figures` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from .core.artifacts import load_jsonl
from .core.errors import ArtifactError, ParamsError, TrainingError
from .core.schema import Domain, PersonaRecord, Rewrite, Verdict
from .evaluate import figures, reliability, tables, tuning_figures, tuning_tables
from .evaluate.case_page import case_page
from .evaluate.cases import case_table
from .evaluate.cra_table import Judged, backbone_win_rates, cra_table, dimension_table, system_comparisons
from .evaluate.data_tables import data_table
from .evaluate.dialogues import simulator_conduct
from .evaluate.diversity import summarize_diversity
from .evaluate.reasons import reason_table
from .evaluate.separation import JudgedPair, separation_table
from .evaluate.tables import EXPERT, Played, all_dialogues
from .evaluate.turns import fault_table, reach_table, turn_table
from .judging import EXPERT_LOG, framework_comparisons, load_damaged, load_judged, load_originals, load_reliability, rule_damaged
from .method.training import load_history
from .preparation import load_found_data
from .run import Run
from .simulation import BACKBONES, load_played, load_titles
from .tuning import (
    TUNED,
    cost_table,
    domains_to_tune,
    load_cases,
    load_divergence,
    load_judged_rewrites,
    main_comparisons,
    tuned_systems,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(NamedTuple):
    """A table with its figure, and with its page of Markdown, if it has them."""

    table: pd.DataFrame
    figure: Figure | None = None
    page: str = ""


@dataclass(frozen=True)
class Exhibit:
    """A drawing under the name that the notebook saves it by."""

    name: str
    draw: Callable[[Run], Drawing]


def _diversity(run: Run) -> Drawing:
    summaries = {
        (domain, source): summarize_diversity([r.persona.text() for r in load_jsonl(run.paths.personas(domain, source), PersonaRecord)])
        for domain in run.domains
        for source in ("ailo", "random")
    }
    table = tables.diversity_table(summaries, run.label)
    return Drawing(table, figures.plot_diversity(summaries, table))


def _simulated(run: Run) -> Played:
    return load_played(run, [EXPERT, "actcrs_base"], run.domains, "03_simulation", limit="num_simulation_tasks")


def _simulation(run: Run) -> Drawing:
    table = tables.simulation_table(_simulated(run), run.label)
    return Drawing(table, figures.plot_simulation(table))


def _scores(run: Run) -> Drawing:
    table = tables.score_table(_simulated(run))
    return Drawing(table, figures.plot_scores(table, run.label))


def _separation(run: Run) -> Drawing:
    table = separation_table(load_jsonl(run.paths.separation, JudgedPair))
    return Drawing(table, figures.plot_separation(table, run.label))


def _frameworks(run: Run) -> tuple[Played, Judged]:
    names = [f"{name}_{backbone}" for name in run.params.frameworks for backbone in BACKBONES]
    notebook = "04_prompt_based_cras"
    played = load_played(run, names, run.domains_among("cra_domains"), notebook, limit="num_cra_tasks")
    return played, load_judged(run, played, framework_comparisons(run.params.frameworks), notebook)


def _cras(run: Run) -> Drawing:
    played, judged = _frameworks(run)
    table = cra_table(played, judged, run.label)
    return Drawing(table, figures.plot_cras(table, load_reliability(run, judged)))


def _reach(run: Run) -> Drawing:
    played, _ = _frameworks(run)
    return Drawing(reach_table(played, load_titles(run, all_dialogues(played)), run.label))


def _planted(run: Run) -> Drawing:
    originals = load_originals(run)
    table = reliability.damage_table(load_damaged(run, originals), run.label, rule_damaged(run, originals))
    return Drawing(table, figures.plot_damage(table, run.label))


def _released(run: Run) -> dict[str, dict[str, list[Verdict]]]:
    found: dict[str, dict[str, list[Verdict]]] = {}
    for form in reliability.FORMS:
        pattern = run.paths.verdicts("book", f"released_{form}_*", EXPERT_LOG)
        logs = {rows[0].first: rows for path in pattern.parent.glob(pattern.name) if (rows := load_jsonl(path, Verdict))}
        if logs:
            found[form] = dict(sorted(logs.items()))
    if not found:
        raise ArtifactError("no verdicts on the released logs; set release_dir and run notebooks/05_judge_validation.ipynb")
    return found


def _curves(run: Run, adapters: Sequence[str]) -> Drawing:
    histories = {
        f"{name} {domain}": load_history(run.paths.adapter(domain, name))["history"] for domain in domains_to_tune(run) for name in adapters
    }
    table = tuning_tables.curve_table(histories)
    return Drawing(table, tuning_figures.plot_curves(table, run.label))


def _sgpt(run: Run) -> Drawing:
    played = load_played(run, ["actcrs_base", "actcrs_base_zero_shot", "actcrs_sgpt"], domains_to_tune(run), "06_sgpt")
    return Drawing(tuning_tables.tuned_table(played, {}, run.label))


def _confirmed(run: Run) -> Played:
    return load_played(run, ["actcrs_sgpt.ecpo"], domains_to_tune(run), "07_expectation_confirmation", split="ecpo")


def _tuned_scores(run: Run) -> Drawing:
    table = tables.score_table(_confirmed(run))
    return Drawing(table, figures.plot_scores(table, run.label))


def _faults(run: Run) -> Drawing:
    table = fault_table(_confirmed(run), run.label)
    return Drawing(table, tuning_figures.plot_faults(table, run.label))


def _reasons(run: Run) -> Drawing:
    return Drawing(reason_table(_confirmed(run), run.label))


def _rewrites(run: Run) -> dict[Domain, list[Rewrite]]:
    return {domain: load_jsonl(run.paths.rewrites(domain, "sgpt"), Rewrite) for domain in domains_to_tune(run)}


def _rewriting(run: Run) -> Drawing:
    return Drawing(tuning_tables.rewrite_table(_rewrites(run), run.label))


def _rewritten(run: Run) -> Drawing:
    rewrites = _rewrites(run)
    table = tuning_tables.rewrite_verdicts(load_judged_rewrites(run, _confirmed(run), rewrites), rewrites, run.label)
    return Drawing(table, tuning_figures.plot_rewrites(table))


def _tuned(run: Run) -> Played:
    return load_played(run, [EXPERT, "actcrs_base", *tuned_systems(run.params)], domains_to_tune(run), "10_main_results")


def _main(run: Run) -> tuple[Played, Judged]:
    played = _tuned(run)
    return played, load_judged(run, played, main_comparisons(run.params), "10_main_results")


def _main_results(run: Run) -> Drawing:
    played, judged = _main(run)
    table = tuning_tables.tuned_table(played, judged, run.label)
    return Drawing(table, figures.plot_cras(table, load_reliability(run, judged)))


def _dimensions(run: Run) -> Drawing:
    _, judged = _main(run)
    table = dimension_table(judged, run.label)
    return Drawing(table, tuning_figures.plot_dimensions(table, load_reliability(run, judged)))


def _turns(run: Run) -> Drawing:
    played = _tuned(run)
    return Drawing(turn_table(played, load_titles(run, all_dialogues(played)), run.label))


def _cases(run: Run) -> Drawing:
    cases = load_cases(run)
    table, note = case_table(cases), load_reliability(run, {"cases": [verdict for case in cases for verdict in case.verdicts]})
    titles = load_titles(run, (row for case in cases for row in (case.before, case.after)))
    return Drawing(table, page=case_page(cases, table, titles, note))


EXHIBITS = (
    Exhibit("01_data", lambda run: Drawing(data_table(load_found_data(run)))),
    Exhibit("02_persona_diversity", _diversity),
    Exhibit("03_simulation", _simulation),
    Exhibit("03_scores", _scores),
    Exhibit("03_separation", _separation),
    Exhibit("03_conduct", lambda run: Drawing(simulator_conduct(_simulated(run)))),
    Exhibit("04_prompt_based_cras", _cras),
    Exhibit("04_comparisons", lambda run: Drawing(system_comparisons(*_frameworks(run), EXPERT, run.label, seed=run.params.seed))),
    Exhibit("04_backbones", lambda run: Drawing(backbone_win_rates(_frameworks(run)[1], run.label))),
    Exhibit("04_reach", _reach),
    Exhibit("04_faults", lambda run: Drawing(fault_table(_frameworks(run)[0], run.label))),
    Exhibit("04_dimensions", lambda run: Drawing(dimension_table(_frameworks(run)[1], run.label))),
    Exhibit("05_planted_flaws", _planted),
    Exhibit("05_released_logs", lambda run: Drawing(reliability.released_table(_released(run), run.label))),
    Exhibit(
        "05_rank_correlation",
        lambda run: Drawing(reliability.correlation_table(reliability.released_correlations(_released(run)), run.label)),
    ),
    Exhibit("06_sgpt_curves", lambda run: _curves(run, ["sgpt"])),
    Exhibit("06_sgpt", _sgpt),
    Exhibit("07_scores", _tuned_scores),
    Exhibit("07_faults", _faults),
    Exhibit("07_reasons", _reasons),
    Exhibit("08_rewriting", _rewriting),
    Exhibit("08_rewritten", _rewritten),
    Exhibit("09_preference_curves", lambda run: _curves(run, [TUNED[name] for name in tuned_systems(run.params) if TUNED[name] != "sgpt"])),
    Exhibit("09_divergence", lambda run: Drawing(load_divergence(run))),
    Exhibit("10_main_results", _main_results),
    Exhibit("10_dimensions", _dimensions),
    Exhibit("10_comparisons", lambda run: Drawing(system_comparisons(*_main(run), "actcrs_sgpt", run.label, seed=run.params.seed))),
    Exhibit("10_costs", lambda run: Drawing(cost_table(run))),
    Exhibit("10_turns", _turns),
    Exhibit("11_case_studies", _cases),
)


def draw_exhibits(run: Run) -> tuple[dict[str, Drawing], dict[str, str]]:
    """All exhibits whose files the run holds, by name, and why the others were not drawn.

    Raises:
        SchemaError: If a file is broken; names it and the line.
    """
    found, missing = {}, {}
    for exhibit in EXHIBITS:
        try:
            found[exhibit.name] = exhibit.draw(run)
        except (ArtifactError, ParamsError, TrainingError) as error:  # that notebook was not run, or none of the domains is for it
            missing[exhibit.name] = str(error)
    return found, missing
