"""`ecpo report`: one page that holds a run's tables and figures and says where everything is."""

from __future__ import annotations

import base64
import html
import io
import json
import time
from pathlib import Path

import pandas as pd

from .core.artifacts import write_text
from .core.errors import ArtifactError
from .core.params import load_profile
from .core.paths import RunPaths, add_suffix, repository_root
from .workflow import NEEDS

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;margin:1em 0}td,th{border:1px solid #ccc;padding:3px 8px;text-align:left}
img{max-width:100%}pre{white-space:pre-wrap}code{background:#f4f4f4;padding:1px 4px}small{color:#666}"""
_MAX_ROWS = 100  # of a table; training curves have many more


def write_report(profile: str) -> list[str]:
    """Write `runs/PROFILE/report.html` from what the notebooks saved.

    Returns:
        Lines that say where report, figures, notebooks and data are.

    Raises:
        ParamsError: If there is no such profile.
        ArtifactError: If nothing has run yet.
    """
    root = repository_root()
    load_profile(root / "params" / f"{profile}.yaml")
    paths = RunPaths(root, profile)
    found = [path for name in NEEDS for path in sorted(paths.manifest(name).parent.glob(f"{name}*.json"))]  # NAME.json, NAME.DOMAIN.json
    manifests = {path.stem: json.loads(path.read_text()) for path in found}
    if not manifests:
        raise ArtifactError(f"nothing has run on profile {profile} yet; run: ecpo run --profile {profile}")
    mark = " <b>Quick numbers: a few tasks, to see that all works; not results.</b>" if profile == "quick" else ""
    body = [f"<h1>ECPO study, profile {profile}</h1><p>Written {time.strftime('%Y-%m-%d %H:%M')}.{mark}</p>"]
    body.append(_notebooks(paths, manifests))
    for stem in sorted({path.with_suffix("") for path in (paths.run / "figures").glob("*.json")}):
        body.append(_exhibit(stem))
    report = write_text(
        paths.run / "report.html",
        f"<!doctype html><meta charset=utf-8><title>ECPO, {profile}</title><style>{_STYLE}</style>" + "\n".join(body),
    )
    relative = [path.relative_to(root) for path in (report, paths.run / "figures", paths.run / "notebooks", paths.run)]
    return [
        f"report     {relative[0]}",
        f"figures    {relative[1]}/ (PNG, PDF, CSV, MD, provenance)",
        f"notebooks  {relative[2]}/ (executed copies)",
        f"data       {relative[3]}/DOMAIN/ (items, personas, tasks, trajectories), {relative[3]}/calls.jsonl",
    ]


def _notebooks(paths: RunPaths, manifests: dict[str, dict]) -> str:
    rows = []
    for name, manifest in manifests.items():
        link = f'<a href="notebooks/{name}.ipynb">{name}</a>' if paths.executed(name).is_file() else name
        commit = f"{manifest['commit'][:10]}{' with changes' if manifest['dirty'] else ''}"
        rows.append(f"<tr><td>{link}<td>{manifest['seconds']:.0f} s<td>{commit}<td>{manifest['params_digest']}")
    return "<h2>Notebooks</h2><table><tr><th>executed copy<th>time<th>commit<th>parameters" + "".join(rows) + "</table>"


def _exhibit(stem: Path) -> str:
    """A figure or table with its data and its provenance."""
    provenance = json.loads(add_suffix(stem, ".json").read_text())
    domain = stem.name.partition(".")[2]  # of a run of one domain; that of all has none and stands before it
    title = provenance.get("title", stem.name) + (f", {domain} alone" if domain else "")
    parts = [f"<h2>{html.escape(title)}</h2>"]
    if (image := add_suffix(stem, ".png")).is_file():
        parts.append(f'<img alt="{stem.name}" src="data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}">')
    if (table := add_suffix(stem, ".csv")).is_file():
        rows = table.read_text()
        frame = pd.read_csv(io.StringIO(rows)) if rows.strip() else pd.DataFrame()  # a table without rows has no header either
        shown = frame.head(_MAX_ROWS).to_html(index=False, float_format="{:.3f}".format, na_rep="")
        rest = f"<p>The first {_MAX_ROWS} of {len(frame)} rows; all are in the file named below.</p>" if len(frame) > _MAX_ROWS else ""
        parts.append("<p>Nothing to show in this run.</p>" if frame.empty else shown + rest)
    if (page := add_suffix(stem, ".md")).is_file():
        parts.append(f"<pre>{html.escape(page.read_text())}</pre>")
    parts.append(
        f"<small>From notebook {provenance['notebook']}, profile {provenance['profile']}, seed {provenance['seed']}, "
        f"commit {provenance['commit'][:10]}; data <code>figures/{stem.name}.csv</code></small>"
    )
    return "".join(parts)
