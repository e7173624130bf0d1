"""Backward expectation derivation: unsatisfactory replies are repaired by their reason and become pairs. Paper: section 2.2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.artifacts import append_jsonl, load_resumable, write_jsonl
from ..core.concurrency import map_bounded
from ..core.errors import EndpointError, TrainingError
from ..core.matching import mentions_title, normalise
from ..core.schema import Item, PreferencePair, Rewrite, Step, Trajectory, Turn
from ..dialogue.agents.actions import parse_action, render_action
from ..dialogue.agents.base import NOUNS, SYSTEM_ERROR, render_items
from ..dialogue.simulator import echoes
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_examples, render

REWRITE_TOKENS = 200
MAX_WORDS = 80  # about as many as an agent may write in one action
NO_ACTION = "none, the user read an error message"
SHORTEST_TITLE = 7  # characters: shorter titles ("It", "Emma") are words of any reply; in quotes they are found all the same
_ANSWER = re.compile(r"^\s*(?:change\s*:\s*(?P<thought>.*?))?\s*^\s*action\s*:\s*(?P<action>.*)", re.IGNORECASE | re.DOTALL | re.MULTILINE)
_QUOTED = re.compile(r"[\"\u201c]([^\"\u201c\u201d]{2,80})[\"\u201d]")


def is_unsatisfactory(turn: Turn, threshold: int) -> bool:
    """Whether a turn goes to the rewriter: scored, at or under lambda (0-5), and with an action of the agent behind it."""
    scored = turn.confirmation is not None and turn.confirmation.satisfaction is not None
    return scored and turn.confirmation.satisfaction <= threshold and bool(turn.steps)


def select_turns(rows: Sequence[Trajectory], threshold: int) -> list[tuple[Trajectory, Turn]]:
    """The turns of all dialogues that go to the rewriter.

    Raises:
        TrainingError: If there are none.
    """
    found = [(row, turn) for row in rows for turn in row.turns if is_unsatisfactory(turn, threshold)]
    if not found:
        scores = [t.confirmation.satisfaction for row in rows for t in row.turns if t.confirmation]
        low = min((score for score in scores if score is not None), default=None)
        raise TrainingError(
            f"no turn of {len(rows)} dialogues is scored at or under {threshold} (lowest: {low}); "
            "raise satisfaction_threshold or num_ecpo_tasks"
        )
    return found


async def rewrite_turns(
    rows: Sequence[Trajectory], client: ChatClient, items: Mapping[str, Item], *, threshold: int, path: Path
) -> list[Rewrite]:
    """Send every unsatisfactory reply to the rewriter and write `path` line by line; resumes.

    Args:
        rows: Dialogues of the agent that is to be trained.
        client: The `rewriter` endpoint.
        items: The database's items by id, for what the agent had found.
        threshold: Lambda, 0-5: turns scored at or under it.

    Returns:
        One record per turn, in the order of the dialogues; those that make no pair say why.

    Raises:
        TrainingError: If no turn is scored that low.
        EndpointError: If no further call can succeed; finished records stay.
    """
    selected = select_turns(rows, threshold)
    wanted = {(row.task_id, turn.index): _blank(row, turn) for row, turn in selected}
    old = {(r.task_id, r.turn): r for r in load_resumable(path, Rewrite)}
    done = {key: r for key, r in old.items() if key in wanted and _is_current(r, wanted[key])}
    write_jsonl(path, done.values())

    async def one(pair: tuple[Trajectory, Turn]) -> None:
        row, turn = pair
        record = await rewrite_turn(row, turn, client, items)
        append_jsonl(path, record)
        done[row.task_id, turn.index] = record

    waiting = [(row, turn) for row, turn in selected if (row.task_id, turn.index) not in done]
    await map_bounded(one, waiting, limit=client.endpoint.max_concurrency, description="rewriting", unit="reply")
    records = [done[key] for key in wanted]
    write_jsonl(path, records)
    return records


async def rewrite_turn(row: Trajectory, turn: Turn, client: ChatClient, items: Mapping[str, Item]) -> Rewrite:
    """One reply and its repair, with the reason why it makes no pair, if so."""
    record = _blank(row, turn)
    if not record.original.strip():
        return record.model_copy(update={"dropped": "empty original"})
    seen = _seen_items(row, turn, items)
    messages = [
        {"role": "system", "content": render("rewrite_system", noun=NOUNS[row.domain])},
        *load_examples("rewrite_examples"),
        {"role": "user", "content": _request(row, turn, record, seen)},
    ]
    meter = Meter()
    try:
        answer = await client.complete(messages, max_tokens=REWRITE_TOKENS, meter=meter)
    except EndpointError as error:
        if error.fatal:
            raise
        return record.model_copy(update={"dropped": "endpoint error", "thought": str(error)})
    record.usage = meter.by_role
    return _read(record, answer.text, turn.user_message, [item.title for item in seen], [item.title for item in items.values()])


def build_pairs(records: Sequence[Rewrite]) -> list[PreferencePair]:
    """Pairs of all rewrites that were not dropped: the rewrite is chosen, the original rejected."""
    return [
        PreferencePair(
            prompt=each.prompt,
            chosen=[{"role": "assistant", "content": each.rewritten}],
            rejected=[{"role": "assistant", "content": each.original}],
            score=each.score,
            reason=each.reason,
            task_id=each.task_id,
            turn=each.turn,
        )
        for each in records
        if each.dropped is None
    ]


def _blank(row: Trajectory, turn: Turn) -> Rewrite:
    step = turn.steps[-1]
    return Rewrite(
        task_id=row.task_id,
        turn=turn.index,
        prompt=step.messages,
        original=_written(step),
        score=turn.confirmation.satisfaction,
        reason=turn.confirmation.reason,
    )


def _written(step: Step) -> str:
    """The action as the agent wrote it; an unusable answer as it came."""
    return step.output.strip() if step.action is None or step.is_unusable else render_action(step.action)


def _is_current(old: Rewrite, new: Rewrite) -> bool:
    """Whether a stored record rests on the same state, reply and reason, and is no fault of the endpoint."""
    same = all(getattr(old, name) == getattr(new, name) for name in ("prompt", "original", "score", "reason"))
    return same and old.dropped != "endpoint error"


def _seen_items(row: Trajectory, turn: Turn, items: Mapping[str, Item]) -> list[Item]:
    """What the agent had retrieved by then, the latest search first."""
    steps = [step for each in row.turns[: turn.index + 1] for step in each.steps if step.retrieval]
    ids = [item_id for step in reversed(steps) for item_id in step.retrieval.item_ids]
    return [items[item_id] for item_id in dict.fromkeys(ids) if item_id in items]


def _request(row: Trajectory, turn: Turn, record: Rewrite, seen: Sequence[Item]) -> str:
    spoken = []
    for each in row.turns[: turn.index + 1]:
        spoken.append(f"User: {each.user_message}")
        if each.index < turn.index:
            spoken.append(f"Agent: {each.reply}")
    return render(
        "rewrite_request",
        conversation="\n".join(spoken),
        found=render_items(seen[:8]) or "none yet",
        action=NO_ACTION if turn.reply == SYSTEM_ERROR or turn.steps[-1].is_unusable else record.original,
        reason=record.reason or "The reply did not satisfy the user.",
    )


def _read(record: Rewrite, text: str, user_message: str, seen: Sequence[str], titles: Sequence[str]) -> Rewrite:
    """Read an answer and decide whether it makes a pair."""
    match = _ANSWER.search(text)
    action = parse_action(match["action"] if match else text)
    before = parse_action(record.original)
    rewritten = render_action(action)
    spoken = " ".join(message["content"] for message in record.prompt if message["role"] == "user")
    changes = {"thought": ((match and match["thought"]) or "").strip(), "rewritten": rewritten}
    changes["kept_words"] = kept_words(record.original, rewritten)
    if action.type == "invalid":
        changes |= {"dropped": "no valid action", "kept_words": None}
    elif action.type == "search":
        changes["dropped"] = "a search, which the user never reads"
    elif rewritten.split() == record.original.split():
        changes["dropped"] = "unchanged"
    elif len(action.argument.split()) > MAX_WORDS:
        changes["dropped"] = "longer than an agent may write"
    elif action.argument == SYSTEM_ERROR or echoes(normalise(action.argument), normalise(user_message)):
        changes["dropped"] = "an error message, or the user's own words"
    elif invents_title(action.argument, seen, titles, spoken):
        changes["dropped"] = "a title that was never retrieved"
    elif action.type != before.type and before.type != "invalid" and not _asks_for_another_kind(record.reason):
        changes["dropped"] = "another kind of action without a reason"
    return record.model_copy(update=changes)


def _asks_for_another_kind(reason: str) -> bool:
    """A missing next step can be mended within any action; a message that misses the point or the context may need another one."""
    return "Flexibility:" in reason or "Coherence:" in reason


def invents_title(text: str, seen: Sequence[str], titles: Sequence[str], spoken: str) -> bool:
    """Whether a reply names an entry, or quotes a name, that the agent cannot know from a retrieval or the conversation."""

    def is_known(name: str) -> bool:
        return mentions_title(spoken, name) or any(mentions_title(name, title) or mentions_title(title, name) for title in seen)

    named = [title for title in titles if len(title) >= SHORTEST_TITLE and mentions_title(text, title)]
    return not all(map(is_known, [*named, *_QUOTED.findall(text)]))


def kept_words(original: str, rewritten: str) -> float:
    """Share of the words of both texts that stand in both in the same order, 0-1: 1 for the same text. Library: difflib."""
    return difflib.SequenceMatcher(a=original.split(), b=rewritten.split(), autojunk=False).ratio()
