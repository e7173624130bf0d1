"""Figures of the tuned agents, as pure functions of their tables."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pandas as pd

from .figures import COLOURS, LABELS, draw_bars, mark_profile, subplots, undecided_remark

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(table: pd.DataFrame, profile: str) -> Figure:
    """Training curves, one panel per quantity, one line per adapter; values of the validation rows as dots."""
    shown = [name for name in ("loss", "rewards/margins", "rewards/accuracies") if name in set(table["quantity"])]
    figure, axes = subplots(max(1, len(shown)), width=3.8)
    for axis, quantity in zip(axes, shown, strict=False):
        for name, rows in table[table["quantity"] == quantity].groupby("adapter", sort=False):
            (line,) = axis.plot(rows["step"], rows["value"], lw=1.2, label=name)
            held_out = table[(table["quantity"] == f"eval_{quantity}") & (table["adapter"] == name)]
            axis.plot(held_out["step"], held_out["value"], "o", ms=5, color=line.get_color(), mec="white")
        axis.set(title=quantity.replace("/", ": "), xlabel="step")
    axes[0].legend(fontsize=7, frameon=False)
    mark_profile(figure, profile, "lines: training rows, dots: validation rows of other users")
    return figure


def plot_faults(table: pd.DataFrame, profile: str) -> Figure:
    """Share of scored replies with each kind of fault, one panel per domain, one bar per system, 95% intervals."""
    domains = list(dict.fromkeys(table["domain"]))
    figure, axes = subplots(len(domains), width=5.0)
    for axis, domain in zip(axes, domains, strict=True):
        part = table[table["domain"] == domain]
        systems, faults = list(dict.fromkeys(part["system"])), list(dict.fromkeys(part["fault"]))
        for number, system in enumerate(systems):
            rows = part[part["system"] == system]
            places = [place + (number - (len(systems) - 1) / 2) * 0.8 / len(systems) for place in range(len(faults))]
            label = f"{LABELS.get(system, system)} (n={rows['share_n'].iloc[0]})"
            draw_bars(axis, places, rows, "share", 0.75 / len(systems), color=COLOURS.get(system), label=label)
        axis.set(title=domain, ylim=(0, 1.05), xticks=range(len(faults)), xticklabels=[fault.replace(" ", "\n") for fault in faults])
        axis.tick_params(axis="x", labelsize=7)
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("share of scored replies")
    mark_profile(figure, profile)
    return figure


def plot_rewrites(table: pd.DataFrame) -> Figure:
    """Win, tie and lose of rewritten against original replies, ours and the paper's. Paper: Table 5."""
    figure, (axis,) = subplots(1, width=6.0, height=0.55 * len(table) + 1.4)
    left = pd.Series(0.0, index=table.index)
    for name, colour in (("win", "#1b6ca8"), ("tie", "#d0d0d0"), ("lose", "#a83232")):
        axis.barh(range(len(table)), table[name].astype(float), left=left, color=colour, label=name)
        left += table[name].astype(float).fillna(0)
    labels = [f"{row.evaluator}, {row.domain}" + (f" (n={row.n:.0f})" if pd.notna(row.n) else "") for row in table.itertuples()]
    labels = [textwrap.fill(label, 28) for label in labels]  # the bars keep most of the width
    axis.set(yticks=range(len(table)), yticklabels=labels, xlim=(0, 1.05), xlabel="share of pairs")
    axis.tick_params(axis="y", labelsize=8)
    axis.invert_yaxis()
    figure.legend(*axis.get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside upper center", ncols=3)
    undecided = ", ".join(table.loc[table["undecided"].eq(True), "domain"])
    mark_profile(figure, table["profile"].iloc[0], f"no side preferred in any pair: {undecided}" if undecided else "")
    return figure


def plot_dimensions(table: pd.DataFrame, note: str) -> Figure:
    """Win rate against the expert per dimension and system with 95% intervals; the paper's as diamonds. Paper: Figure 5."""
    part = table[table["against"] == "actcrs_expert"]
    domains = list(dict.fromkeys(part["domain"]))
    figure, axes = subplots(max(1, len(domains)), width=5.0, height=3.6)
    for axis, domain in zip(axes, domains, strict=False):
        here = part[part["domain"] == domain].astype({"paper_WR": float})
        systems, dimensions = list(dict.fromkeys(here["system"])), list(dict.fromkeys(here["dimension"]))
        for number, system in enumerate(systems):
            rows = here[here["system"] == system]
            places = [place + (number - (len(systems) - 1) / 2) * 0.8 / len(systems) for place in range(len(dimensions))]
            label = f"{LABELS.get(system, system)} (n={rows['win_rate_n'].max()})"
            draw_bars(axis, places, rows, "win_rate", 0.75 / len(systems), color=COLOURS.get(system), label=label)
            axis.plot(places, rows["paper_WR"], "D", ms=4, mfc="white", mec="#333")
        axis.axhline(0.5, color="#999", ls=":", lw=1)
        axis.set(title=domain, ylim=(0, 1), xticks=range(len(dimensions)), xticklabels=dimensions)
        axis.legend(fontsize=7, frameon=False)
    axes[0].set_ylabel("win rate against ActCRS, expert")
    mark_profile(figure, table["profile"].iloc[0], "\n".join(filter(None, [note, undecided_remark(part)])))
    return figure
