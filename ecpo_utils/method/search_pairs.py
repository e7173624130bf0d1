"""A search against the reply that came too early, as pairs: whether a tuned policy still looks things up. Not in the paper."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import TrainingError
from ..core.schema import PreferencePair, Trajectory
from ..dialogue.agents.actions import render_action

REASON = "The reply came before anything was looked up."


def search_pairs(pairs: Sequence[PreferencePair], dialogues: Sequence[Trajectory]) -> list[PreferencePair]:
    """For each pair whose reply followed a search: in the state before it the search is chosen, the pair's chosen reply rejected.

    Args:
        pairs: Of rewritten and original replies.
        dialogues: That they come from, of the agent before the training.

    Returns:
        At most one per pair, of the first search of its turn, in the order of the pairs.

    Raises:
        TrainingError: If a pair's dialogue is not among them.
    """
    turns = {(row.task_id, turn.index): turn for row in dialogues for turn in row.turns}
    found = []
    for pair in pairs:
        turn = turns.get((pair.task_id, pair.turn))
        if turn is None:
            raise TrainingError(f"there is no dialogue {pair.task_id} with a turn {pair.turn} behind its pair; run notebook 08 again")
        if first := next((step for step in turn.steps if step.action and step.action.type == "search"), None):
            search = [{"role": "assistant", "content": render_action(first.action)}]
            found.append(pair.model_copy(update={"prompt": first.messages, "chosen": search, "rejected": pair.chosen, "reason": REASON}))
    return found
