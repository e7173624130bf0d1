"""Figures as pure functions of tables, and the one function that saves them with data and provenance."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..core.artifacts import write_json, write_text, writing
from ..core.paths import add_suffix
from ..core.schema import Domain
from .diversity import DiversitySummary
from .paper import paper_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# one colour per system everywhere; hatches keep them apart in grey
COLOURS = {"actcrs_expert": "#1b6ca8", "actcrs_base": "#e08e45", "ailo": "#1b6ca8", "random": "#b8b8b8",
           "chatrec_expert": "#3d8b5f", "react_expert": "#8a5aa8", "macrs_expert": "#a83232",
           "chatrec_base": "#9ccfb2", "react_base": "#cdb3df", "macrs_base": "#e0a3a3",
           "actcrs_base_zero_shot": "#f2cfa8", "actcrs_sgpt": "#5b8f3d", "actcrs_ecpo": "#7a1f5c", "actcrs_kto": "#b05f96",
           "actcrs_simpo": "#d9a8c8", "actcrs_sgpt.ecpo": "#5b8f3d", "actcrs_expert.sgpt": "#1b6ca8"}  # fmt: skip
HATCHES = {"actcrs_expert": "", "actcrs_base": "//", "ailo": "", "random": ".."}
LABELS = {"actcrs_expert": "ActCRS, expert", "actcrs_base": "ActCRS, small backbone", "ailo": "AILO", "random": "random (RecAgent)",
          "chatrec_expert": "ChatRec, expert", "react_expert": "ReAct, expert", "macrs_expert": "MACRS, expert",
          "chatrec_base": "ChatRec, small", "react_base": "ReAct, small", "macrs_base": "MACRS, small",
          "actcrs_base_zero_shot": "small backbone, zero-shot", "actcrs_sgpt": "+SGPT", "actcrs_ecpo": "+SGPT+ECPO (DPO)",
          "actcrs_kto": "+SGPT+ECPO (KTO)", "actcrs_simpo": "+SGPT+ECPO (SimPO)", "actcrs_sgpt.ecpo": "+SGPT on the ECPO tasks",
          "actcrs_expert.sgpt": "ActCRS, expert, on the SGPT tasks"}  # fmt: skip
PAPER_SIZE = 5.3  # points, of the paper's hollow marks
MARKERS = {"chatrec": "s", "react": "^", "macrs": "P", "actcrs": "o"}


def subplots(columns: int, *, width: float = 3.4, height: float = 3.0) -> tuple[Figure, list]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def draw_bars(
    axis: Axes, places: Sequence[float], rows: pd.DataFrame, name: str, width: float, *, capsize: int = 2, lw: float = 0.8, **style: object
) -> None:
    """Bars of a rate, with its 95% intervals from NAME_low to NAME_high."""
    rate, low, high = (rows[column].astype(float) for column in (name, f"{name}_low", f"{name}_high"))  # None cannot be subtracted
    axis.bar(places, rate, width, **style)
    errors = [(rate - low).clip(lower=0), (high - rate).clip(lower=0)]
    axis.errorbar(places, rate, yerr=errors, fmt="none", ecolor="#333", capsize=capsize, lw=lw)


def mark_profile(figure: Figure, profile: str, remark: str = "") -> None:
    """Say which profile a figure is from, and that quick numbers are none to quote."""
    note = "quick profile: a few tasks, not results" if profile.startswith("quick") else f"profile {profile}"
    lines = [textwrap.fill(line, int(19 * figure.get_figwidth())) for line in (*remark.splitlines(), note)]  # 19 characters to an inch
    figure.supxlabel("\n".join(lines), x=0.99, ha="right", fontsize=7, color="#777")  # the layout leaves room for it, not for a plain text


def plot_simulation(table: pd.DataFrame) -> Figure:
    """Success rate and recall per domain and system with 95% intervals; the paper's values as diamonds."""
    figure, axes = subplots(2, width=4.6)
    domains, systems = list(dict.fromkeys(table["domain"])), list(dict.fromkeys(table["system"]))
    width = 0.8 / len(systems)
    for axis, (column, paper, title) in zip(
        axes, (("success_rate", "paper_SR", "Success rate"), ("recall", "paper_R", "Recall")), strict=True
    ):
        for number, system in enumerate(systems):
            rows = table[table["system"] == system].set_index("domain").reindex(domains)
            places = [place + (number - (len(systems) - 1) / 2) * width for place in range(len(domains))]
            style = {"color": COLOURS.get(system), "hatch": HATCHES.get(system), "edgecolor": "white", "label": LABELS.get(system, system)}
            draw_bars(axis, places, rows, column, width * 0.92, capsize=3, lw=1, **style)
            beside = [place + 0.3 * width for place in places]  # of the interval
            axis.plot(beside, rows[paper], "D", ms=5, mfc="white", mec="#333", label="paper" if number == 0 else None)
            for place, n in zip(places, rows["n"], strict=True):
                axis.text(place, -0.045, f"n={n:.0f}", ha="center", va="top", fontsize=7)
        axis.set(title=title, ylim=(0, 1), xticks=range(len(domains)), xticklabels=domains)
        axis.tick_params(axis="x", pad=18, length=0)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside upper center", ncols=len(systems) + 1)
    mark_profile(figure, table["profile"].iloc[0])
    return figure


def plot_scores(table: pd.DataFrame, profile: str) -> Figure:
    """Share of replies per satisfaction score, one panel per domain. Unscored replies are counted in the title."""
    domains = list(dict.fromkeys(table["domain"]))
    figure, axes = subplots(len(domains))
    for axis, domain in zip(axes, domains, strict=True):
        part = table[table["domain"] == domain]
        systems = list(dict.fromkeys(part["system"]))
        unscored = int(part[part["satisfaction"] == "unscored"]["replies"].sum())
        for number, system in enumerate(systems):
            rows = part[(part["system"] == system) & (part["satisfaction"] != "unscored")]
            total = max(1, rows["replies"].sum())
            places = [int(score) + (number - (len(systems) - 1) / 2) * 0.4 for score in rows["satisfaction"]]
            axis.bar(
                places,
                rows["replies"] / total,
                0.37,
                color=COLOURS.get(system),
                hatch=HATCHES.get(system),
                edgecolor="white",
                label=f"{LABELS.get(system, system)} ({total} replies)",
            )
        axis.set(title=f"{domain} ({unscored} unscored)", xlabel="satisfaction $r_t$", ylim=(0, 1), xticks=range(6))
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("share of replies")
    mark_profile(figure, profile)
    return figure


def plot_diversity(summaries: Mapping[tuple[Domain, str], DiversitySummary], table: pd.DataFrame) -> Figure:
    """Distribution of each persona's maximum ROUGE-L to the others, AILO against random. Paper: Figure 4."""
    domains = list(dict.fromkeys(domain for domain, _ in summaries))
    figure, axes = subplots(len(domains))
    edges = [step / 20 for step in range(21)]
    highest = 0.0
    for axis, domain in zip(axes, domains, strict=True):
        for source in ("random", "ailo"):
            summary = summaries[domain, source]
            weights = [1 / len(summary.scores)] * len(summary.scores)
            heights, *_ = axis.hist(
                summary.scores,
                edges,
                weights=weights,
                color=COLOURS[source],
                hatch=HATCHES[source],
                alpha=0.75,
                edgecolor="white",
                label=f"{LABELS[source]} (n={len(summary.scores)})",
            )
            highest = max(highest, *heights)
        published = table[(table["domain"] == domain) & table["paper_mean"].notna()]
        for row in published.itertuples():
            axis.axvline(row.paper_mean, color=COLOURS[row.personas], ls="--", lw=1.2)
        axis.set(title=domain, xlim=(0, 1), xlabel="maximum ROUGE-L")
        axis.legend(fontsize=7, loc="upper left", facecolor="white", edgecolor="none", framealpha=1)
    for axis in axes:
        axis.set_ylim(0, 1.3 * highest)  # room for the legend
    axes[0].set_ylabel("share of personas")
    sizes = " and ".join(f"{values['n']} {LABELS[source]}" for source, values in paper_results()["figure4_released"].items())
    dashed = f"dashed: the paper's means, of {sizes} personas; larger sets lie higher"
    mark_profile(figure, table["profile"].iloc[0], dashed if table["paper_mean"].notna().any() else "")
    return figure


def plot_separation(table: pd.DataFrame, profile: str) -> Figure:
    """Share of planted-flaw pairs in which the good twin scores higher, per flaw, with 95% intervals."""
    figure, (axis,) = subplots(1, width=6.5)
    places = range(len(table))
    table = table.rename(columns={"low": "good_higher_low", "high": "good_higher_high"})
    draw_bars(axis, places, table, "good_higher", 0.6, capsize=3, lw=1, color=COLOURS["actcrs_expert"])
    axis.axhline(0.5, color="#999", ls=":", lw=1)
    axis.set(
        ylim=(0, 1.05),
        xticks=list(places),
        xticklabels=[f"{row.flaw}\nn={row.scored}" for row in table.itertuples()],
        ylabel="good twin scores higher",
    )
    axis.tick_params(axis="x", labelsize=7)
    mark_profile(figure, profile, "scores before rounding, where the simulator's mode has such; by $r_t$: see the table")
    return figure


def plot_cras(table: pd.DataFrame, note: str) -> Figure:
    """Win rate against success rate, one panel per domain, 95% intervals, marker area by calls per dialogue; hollow: the paper's.

    Args:
        table: As `cra_table` makes it.
        note: How reliable the judge is, written under the panels, with the systems that have no win rate and are left out,
            and those between which and the expert the judge decided nothing.
    """
    domains = list(dict.fromkeys(table["domain"]))
    table = table.astype(dict.fromkeys(("paper_SR", "paper_WR", "win_rate"), float))
    figure, axes = subplots(len(domains), width=4.0, height=4.0)
    for axis, domain in zip(axes, domains, strict=True):
        for row in table[table["domain"] == domain].itertuples():
            if pd.isna(row.win_rate) and row.system != "actcrs_expert":
                continue
            win_rate, low, high = (0.5, 0.5, 0.5) if pd.isna(row.win_rate) else (row.win_rate, row.win_rate_low, row.win_rate_high)
            style = {"color": COLOURS.get(row.system), "marker": MARKERS.get(row.system.split("_")[0], "D")}
            bars = {"xerr": [[max(0, row.success_rate - row.success_rate_low)], [max(0, row.success_rate_high - row.success_rate)]],
                    "yerr": [[max(0, win_rate - low)], [max(0, high - win_rate)]]}  # fmt: skip
            axis.errorbar(row.success_rate, win_rate, **bars, fmt="none", ecolor="#bbb", lw=0.8, zorder=1)
            size = marker_size(row.calls_per_dialogue if pd.notna(row.calls_per_dialogue) else 1.0)
            axis.scatter(row.success_rate, win_rate, s=size**2, **style, label=LABELS.get(row.system, row.system), zorder=3)
            if row.paper_SR is not None and pd.notna(row.paper_SR) and pd.notna(row.paper_WR):
                hollow = {"facecolors": "none", "edgecolors": style["color"], "marker": style["marker"]}
                axis.scatter(row.paper_SR, row.paper_WR, s=PAPER_SIZE**2, **hollow, zorder=2)
        axis.axhline(0.5, color="#999", ls=":", lw=1)
        axis.set(
            title=f"{domain} (n={table[table['domain'] == domain]['n'].max()})", xlim=(-0.03, 1), ylim=(-0.03, 1), xlabel="success rate"
        )
    axes[0].set_ylabel("win rate against ActCRS, expert")
    columns = 2 if len(domains) == 1 else 4
    shown = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    shown |= _size_keys(has_paper=bool((table["paper_SR"].notna() & table["paper_WR"].notna()).any()))
    figure.legend(shown.values(), shown.keys(), fontsize=7, frameon=False, loc="outside upper center", ncols=columns)
    unscored = table["win_rate"].isna() & (table["system"] != "actcrs_expert")
    remarks = [note, _named("unscored, not drawn", table[unscored]), undecided_remark(table)]
    mark_profile(figure, table["profile"].iloc[0], "\n".join(filter(None, remarks)))
    return figure


def marker_size(calls: float) -> float:
    """Diameter in points of a marker whose area stands for LLM calls of an agent per dialogue."""
    return (6 * max(1.0, calls)) ** 0.5


def _size_keys(*, has_paper: bool) -> dict:
    """Handles for the legend by label: how large so many calls are drawn, and that hollow marks are the paper's."""
    from matplotlib.lines import Line2D

    keys = {f"{calls} calls a dialogue": {"ms": marker_size(calls), "mfc": "#999"} for calls in (5, 20)}
    keys |= {"paper": {"ms": PAPER_SIZE, "mfc": "none"}} if has_paper else {}
    return {label: Line2D([], [], ls="", marker="o", mec="#999", **style) for label, style in keys.items()}


def undecided_remark(table: pd.DataFrame) -> str:
    """Which rows have a win rate that says nothing, for no side was preferred in any pair; "" if none."""
    return _named("no side preferred in any pair", table[table["undecided"]])


def _named(words: str, rows: pd.DataFrame) -> str:
    """Systems with their domains, for a remark; "" if there are none."""
    systems = ", ".join(f"{row.system} ({row.domain})" for row in rows.itertuples())
    return f"{words}: {systems}" if systems else ""


def plot_damage(table: pd.DataFrame, profile: str) -> Figure:
    """Share of pairs in which the judge prefers the original to its damaged twin, by flaw and severity, with 95% intervals."""
    figure, (axis,) = subplots(1, width=6.5)
    part = table[table["flaw"] != "none"]
    flaws, severities = list(dict.fromkeys(part["flaw"])), list(dict.fromkeys(part["severity"]))
    for number, severity in enumerate(severities):
        rows = part[part["severity"] == severity].set_index("flaw").reindex(flaws)
        places = [place + (number - (len(severities) - 1) / 2) * 0.27 for place in range(len(flaws))]
        shade = ["#bcd7ea", "#6aa5cf", "#1b6ca8"][number % 3]
        draw_bars(axis, places, rows, "original_preferred", 0.25, color=shade, label=f"{severity} of the replies")
    axis.axhline(0.5, color="#999", ls=":", lw=1)
    axis.set(ylim=(0, 1.05), xticks=range(len(flaws)), xticklabels=[flaw.replace("_", " ") for flaw in flaws], ylabel="original preferred")
    figure.legend(*axis.get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside upper center", ncols=3)
    mark_profile(figure, profile)
    return figure


def save_exhibit(
    stem: Path, table: pd.DataFrame, provenance: Mapping[str, object], *, title: str, figure: Figure | None = None, page: str = ""
) -> list[Path]:
    """Write STEM.csv, STEM.json and, of a figure, STEM.png and STEM.pdf, of a page of Markdown STEM.md.

    Raises:
        ArtifactError: If a file cannot be written.
    """
    written = [
        write_text(add_suffix(stem, ".csv"), table.to_csv(index=False)),
        write_json(add_suffix(stem, ".json"), {"title": title, **provenance}),
    ]
    if page:
        written.append(write_text(add_suffix(stem, ".md"), page))
    for suffix in (".png", ".pdf") if figure is not None else ():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata={"CreationDate": None} if suffix == ".pdf" else None)
        path = add_suffix(stem, suffix)
        with writing(path):
            path.write_bytes(buffer.getvalue())
        written.append(path)
    return written
