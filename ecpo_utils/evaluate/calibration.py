"""Fits the weights of `dialogue/confirmation_weights.json` on the `dev` half of the planted-flaw set.

Run it again after a change of the simulator's model or of the confirmation prompts:
`python -m ecpo_utils.evaluate.calibration [PROFILE]`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import numpy as np

from ..core.artifacts import write_json
from ..core.params import Params, load_profile
from ..core.paths import RunPaths, repository_root
from ..dialogue.confirmation import WEIGHTS, Confirmer
from ..dialogue.retrieval import Embedder
from ..llm.cache import ResponseCache
from ..llm.endpoints import open_clients
from .separation import FlawPair, gather_flaw_evidence, load_flaw_pairs

REGULARISATION = 0.5  # C of scikit-learn's L2-penalised logistic regression on standardised evidence

# which planted flaws are a fault in a dimension; an error serves in none
FAULTS = {
    "flexibility": ("ignored_request", "repeated_question", "system_error"),
    "coherence": ("repeated_question", "irrelevant_item", "system_error"),
    "guidance": ("no_guidance", "system_error"),
}

Evidence = tuple[FlawPair, dict[str, float], dict[str, float]]


def fit_weights(gathered: Sequence[Evidence]) -> dict[str, dict[str, float]]:
    """Logistic regression per dimension. Library: scikit-learn.

    Args:
        gathered: Pairs with the evidence of the good and of the flawed reply. Good replies are faultless in
            every dimension; flawed ones are faulty in the dimensions of their flaw and left out of the others.

    Returns:
        For each dimension "intercept" and one weight per kind of evidence, for raw evidence.
    """
    from sklearn.linear_model import LogisticRegression

    names = list(gathered[0][1])
    weights = {}
    for dimension, flaws in FAULTS.items():
        rows = [(good, 1) for _, good, _ in gathered] + [(flawed, 0) for pair, _, flawed in gathered if pair.flaw in flaws]
        x, y = np.array([[row[name] for name in names] for row, _ in rows]), np.array([label for _, label in rows])
        centre, scale = x.mean(0), x.std(0) + 1e-9
        model = LogisticRegression(C=REGULARISATION, class_weight="balanced").fit((x - centre) / scale, y)
        raw = model.coef_[0] / scale
        weights[dimension] = {
            "intercept": round(float(model.intercept_[0] - raw @ centre), 4),
            **{name: round(float(value), 4) for name, value in zip(names, raw, strict=True)},
        }
    return weights


async def calibrate(params: Params, paths: RunPaths) -> dict[str, dict[str, float]]:
    """Gather the evidence with the profile's simulator, fit, and write the weights file."""
    async with open_clients({"simulator": params.simulator}, cache=ResponseCache(paths.responses), calls_log=paths.calls) as clients:
        confirmer = Confirmer(clients["simulator"], Embedder(params.embedder), "narrow")
        weights = fit_weights(await gather_flaw_evidence(confirmer, load_flaw_pairs("dev")))
    write_json(
        WEIGHTS,
        {
            "simulator": params.simulator.model,
            "embedder": params.embedder,
            "fitted_on": "planted_flaws.jsonl, split dev",
            "weights": weights,
        },
    )
    return weights


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    root = repository_root()
    asyncio.run(calibrate(load_profile(root / "params" / f"{name}.yaml"), RunPaths(root, name)))
