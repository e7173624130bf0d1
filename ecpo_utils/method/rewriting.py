"""Backward expectation derivation: unsatisfactory replies are repaired by their reason and become pairs. Paper: section 2.2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ..core.artifacts import append_jsonl, digest, load_resumable, write_jsonl
from ..core.concurrency import FailuresInARow, map_bounded
from ..core.errors import EndpointError, ParseError, TrainingError
from ..core.matching import mentions_title, normalise, says_again, title_words
from ..core.quoting import quote_for_agents
from ..core.schema import Action, Item, Message, PreferencePair, Rewrite, Step, Trajectory, Turn
from ..dialogue.agents.actions import parse_action, render_action
from ..dialogue.agents.base import APOLOGY, NOUNS, SYSTEM_ERROR, is_system_error, render_items
from ..dialogue.confirmation import Confirmer
from ..dialogue.simulator import echoes
from ..llm.client import ChatClient, Meter
from ..llm.prompts import load_examples, load_prompt, render
from . import narrow_rewriter
from .narrow_rewriter import MAX_WORDS, NarrowRewriter, RewriterReads
from .sgpt import trajectory_files

RewriterMode = Literal["narrow", "full"]
PROMPTS = ("rewrite_system", "rewrite_examples", "rewrite_request", "rewrite_instruction")
REWRITE_TOKENS = 200
NO_ACTION = "none, the user read an error message"
LENGTHENED = 1.5, 15  # an action of the same kind may have so many times the words of the original and so many more
ENDPOINT_ERROR = "endpoint error"
SHORTEST_TITLE = 7  # characters: shorter titles ("It", "Emma") are words of any reply; in quotes they are found all the same
_REFUSAL = re.compile(
    r"\b(can(no|['\u2019])t|can not|(am|['\u2019]m) (unable|not able) to) (assist|help(?! (but|\w+ing)\b)|fulfil|provide|do that)"
    r"|\bas an ai\b",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"^\s*(?:change\s*:\s*(?P<thought>.*?))?\s*^\s*action\s*:\s*(?P<action>.*)", re.IGNORECASE | re.DOTALL | re.MULTILINE)
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")
_WORD = re.compile(r"\w[\w'\u2019]*")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z]\w{2,}")  # within a sentence
_QUOTED = re.compile(r"[\"\u201c]([^\"\u201c\u201d]{2,80})[\"\u201d]")


def is_unsatisfactory(turn: Turn, threshold: int) -> bool:
    """Whether a turn goes to the rewriter: scored, at or under lambda (0-5), and with an action of the agent behind it."""
    return turn.satisfaction is not None and turn.satisfaction <= threshold and bool(turn.steps)


def select_turns(rows: Sequence[Trajectory], threshold: int) -> list[tuple[Trajectory, Turn]]:
    """The turns of all dialogues that go to the rewriter.

    Raises:
        TrainingError: If there are none; names the file that was looked through.
    """
    found = [(row, turn) for row in rows for turn in row.turns if is_unsatisfactory(turn, threshold)]
    if not found:
        scores = [turn.satisfaction for row in rows for turn in row.turns if turn.steps and turn.satisfaction is not None]
        fault = f"no turn of {len(rows)} dialogues ({trajectory_files(rows)}) is scored"
        if not scores:
            raise TrainingError(
                f"{fault} at all; 'error' there, of a dialogue or a turn's confirmation, says why: mend the simulator endpoint, "
                "or set user_simulator to ailo, and play them again (notebook 07)"
            )
        raise TrainingError(f"{fault} at or under {threshold} (lowest: {min(scores)}); raise satisfaction_threshold or num_ecpo_tasks")
    return found


async def rewrite_turns(
    rows: Sequence[Trajectory],
    client: ChatClient,
    items: Mapping[str, Item],
    *,
    threshold: int,
    path: Path,
    mode: RewriterMode = "full",
    reads: RewriterReads = "confirmation",
    confirmer: Confirmer | None = None,
) -> list[Rewrite]:
    """Send every unsatisfactory reply to the rewriter and write `path` line by line; resumes.

    Args:
        rows: Dialogues of the agent that is to be trained.
        client: The `rewriter` endpoint.
        items: The database's items by id, for what the agent had found.
        threshold: Lambda, 0-5: turns scored at or under it.
        path: The records' file.
        mode: "full": the rewriter writes the whole action, as in the paper; "narrow": single sentences, for small models.
        reads: "confirmation": what the user confirmed of this very turn; "instruction": one common instruction for all turns, the
            paper's ablation "w/o EC" (section 3.4).
        confirmer: Scores each rewrite in its place; one that scores no higher than the original makes no pair. None, as in
            the paper: every rewrite is taken to be better.

    Returns:
        One record per turn, in the order of the dialogues; those that make no pair say why.

    Raises:
        TrainingError: If no turn is scored that low.
        EndpointError: If no further call can succeed, or the endpoint failed on five replies in a row; finished records stay.
    """
    selected, config = select_turns(rows, threshold), _config(client, mode, reads, confirmer)
    # the dialogue's own digest stands for how a confirmation is made
    wanted = {(row.task_id, turn.index): _blank(row, turn, digest([config, row.config]) if confirmer else config) for row, turn in selected}
    old = {(r.task_id, r.turn): r for r in load_resumable(path, Rewrite)}
    done = {key: r for key, r in old.items() if key in wanted and _is_current(r, wanted[key])}
    write_jsonl(path, done.values())
    failures, titles = FailuresInARow("replies", path), index_titles(items)

    async def one(pair: tuple[Trajectory, Turn]) -> None:
        row, turn = pair
        key = row.task_id, turn.index
        record = await _rewrite(row, turn, wanted[key], client, items, titles, mode, reads, confirmer)
        append_jsonl(path, record)
        done[key] = record
        fault = record.thought if record.dropped == ENDPOINT_ERROR else None
        failures.note(fault, is_known=key in old and old[key].thought == fault)

    waiting = [(row, turn) for row, turn in selected if (row.task_id, turn.index) not in done]
    await map_bounded(one, waiting, limit=client.endpoint.max_concurrency, description="rewriting", unit="reply")
    records = [done[key] for key in wanted]
    write_jsonl(path, records)
    return records


def _config(client: ChatClient, mode: RewriterMode, reads: RewriterReads, confirmer: Confirmer | None) -> str:
    texts = [load_prompt(name) for name in (PROMPTS if mode == "full" else narrow_rewriter.PROMPTS)]
    code = [Path(module).read_text("utf-8") for module in (__file__, narrow_rewriter.__file__)]
    return digest([client.identity, mode, reads, confirmer and [confirmer.client.identity, confirmer.mode], texts, code])


async def _rewrite(
    row: Trajectory,
    turn: Turn,
    record: Rewrite,
    client: ChatClient,
    items: Mapping[str, Item],
    titles: Mapping[str, str],
    mode: RewriterMode,
    reads: RewriterReads,
    confirmer: Confirmer | None,
) -> Rewrite:
    """One reply and its repair, with the reason why it makes no pair, if so."""
    if not record.original.strip():
        return record.model_copy(update={"dropped": "empty original"})
    seen, meter = _seen_items(row, turn, items), Meter()
    try:
        if mode == "narrow":
            thought, action = await NarrowRewriter(client, meter, reads).repair(row, turn, seen, is_error=is_system_error(turn))
        else:
            thought, action = await _rewrite_whole(row, turn, record, seen, client, meter, reads)
        repaired = _checked(record, thought, action, row, turn, seen, titles)
        if confirmer and repaired.dropped is None:
            repaired = await _confirmed(repaired, row, turn, confirmer, meter)
    except EndpointError as error:
        if error.fatal:
            raise
        return record.model_copy(update={"dropped": ENDPOINT_ERROR, "thought": str(error), "usage": meter.by_role})
    except ParseError as error:
        return record.model_copy(update={"dropped": "unreadable answer", "thought": str(error), "usage": meter.by_role})
    return repaired.model_copy(update={"usage": meter.by_role})


async def _rewrite_whole(
    row: Trajectory, turn: Turn, record: Rewrite, seen: Sequence[Item], client: ChatClient, meter: Meter, reads: RewriterReads
) -> tuple[str, Action]:
    """What is to change, and the action, as the rewriter writes them in one answer."""
    messages = [
        {"role": "system", "content": render("rewrite_system", noun=NOUNS[row.domain])},
        *load_examples("rewrite_examples"),
        {"role": "user", "content": _request(row, turn, record, seen, reads)},
    ]
    text = (await client.complete(messages, max_tokens=REWRITE_TOKENS, meter=meter)).text
    match = _ANSWER.search(text)
    return ((match and match["thought"]) or "").strip(), parse_action(match["action"] if match else text)


async def _confirmed(record: Rewrite, row: Trajectory, turn: Turn, confirmer: Confirmer, meter: Meter) -> Rewrite:
    """The rewrite with the score that the user gives it in the original's place."""
    reply = parse_action(record.rewritten).argument
    history = [*spoken_before(row, turn), {"role": "assistant", "content": reply}]
    confirmation = await confirmer.confirm(row.target, row.domain, history, meter=meter, reasons=False)
    after = confirmation.satisfaction
    dropped = "not scored" if after is None else None if after > record.score else "no better score"
    return record.model_copy(update={"score_after": after, "dropped": dropped})


def spoken_before(row: Trajectory, turn: Turn) -> list[Message]:
    """What was said before the reply of a turn."""
    messages: list[Message] = []
    for each in row.turns[: turn.index + 1]:
        messages.append({"role": "user", "content": each.user_message})
        if each.index < turn.index:
            messages.append({"role": "assistant", "content": each.reply or SYSTEM_ERROR})
    return messages


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


def _blank(row: Trajectory, turn: Turn, config: str) -> Rewrite:
    step = turn.steps[-1]
    return Rewrite(
        task_id=row.task_id,
        turn=turn.index,
        prompt=step.messages,
        original=_written(step),
        score=turn.satisfaction,
        reason=turn.confirmation.reason,
        config=config,
    )


def _written(step: Step) -> str:
    """The action as the agent wrote it; an unusable answer as it came."""
    return step.output.strip() if step.action is None or step.is_unusable else render_action(step.action)


def _is_current(old: Rewrite, new: Rewrite) -> bool:
    """Whether a stored record rests on the same state, reply, reason and rules, and is no fault of the endpoint."""
    same = all(getattr(old, name) == getattr(new, name) for name in ("prompt", "original", "score", "reason", "config"))
    return same and old.dropped != ENDPOINT_ERROR


def _seen_items(row: Trajectory, turn: Turn, items: Mapping[str, Item]) -> list[Item]:
    """What the agent had retrieved by then, the latest search first."""
    steps = [step for each in row.turns[: turn.index + 1] for step in each.steps if step.retrieval]
    ids = [item_id for step in reversed(steps) for item_id in step.retrieval.item_ids]
    return [items[item_id] for item_id in dict.fromkeys(ids) if item_id in items]


def _request(row: Trajectory, turn: Turn, record: Rewrite, seen: Sequence[Item], reads: RewriterReads) -> str:
    names = {"user": "User", "assistant": "Agent"}
    reason = quote_for_agents(record.reason) or "The reply did not satisfy the user."
    return render(
        "rewrite_request",
        conversation="\n".join(f"{names[m['role']]}: {quote_for_agents(m['content'])}" for m in spoken_before(row, turn)),
        found=render_items(seen[:8]) or "none yet",
        action=NO_ACTION if is_system_error(turn) else quote_for_agents(record.original),
        reason=reason if reads == "confirmation" else load_prompt("rewrite_instruction"),
    )


def _checked(
    record: Rewrite, thought: str, action: Action, row: Trajectory, turn: Turn, seen: Sequence[Item], titles: Mapping[str, str]
) -> Rewrite:
    """The record with the repaired action, and why it makes no pair, if so."""
    rewritten = render_action(action)
    changes = {"thought": thought, "rewritten": rewritten}
    if action.type != "invalid":
        changes["kept_words"] = kept_words(record.original, rewritten)
    seen_titles = [item.title for item in seen]
    spoken = " ".join(message["content"] for message in record.prompt if message["role"] == "user")
    known = f"{spoken} {record.original} {' '.join(item.title + ' ' + item.description for item in seen)}"
    faults = {
        "no valid action": action.type == "invalid",
        "a search, which the user never reads": action.type == "search",
        "unchanged": rewritten.split() == record.original.split(),
        "longer than an agent may write": len(action.argument.split()) > MAX_WORDS,
        "an error message, or the user's own words": APOLOGY in action.argument
        or _echoes_user(action.argument, spoken_before(row, turn), seen),
        "a refusal": _refuses(action.argument),
        "a title that was never retrieved": invents_title(action.argument, seen_titles, titles, spoken),
        "facts that only the reason holds": bool(unsaid_names(action.argument, record.reason, known)),
        "the target is not named any more": mentions_title(record.original, row.target.title)
        and not mentions_title(action.argument, row.target.title),
        "another kind of action without a reason": not _may_be(action.type, row, turn),
        "much longer": not is_system_error(turn)
        and action.type == turn.steps[-1].action.type
        and len(rewritten.split()) > LENGTHENED[0] * len(record.original.split()) + LENGTHENED[1],
    }
    dropped = next((fault for fault, applies in faults.items() if applies), None)
    return record.model_copy(update={**changes, "dropped": dropped})


def _may_be(kind: str, row: Trajectory, turn: Turn) -> bool:
    """Whether a rewrite may be an action of this kind: that of the original, a recommendation, or any where the original
    was an error or what the agent had said before."""
    if is_system_error(turn):
        return True
    return kind in (turn.steps[-1].action.type, "recommend") or says_again(turn.reply or "", row.turns[: turn.index])


def _echoes_user(text: str, spoken: Sequence[Message], seen: Sequence[Item]) -> bool:
    """Whether a rewrite, or a whole sentence of it, is what the user had said and no entry's description says."""
    said = [normalise(message["content"]) for message in spoken if message["role"] == "user"]
    described = " ".join(normalise(item.description) for item in seen)
    sentences = [part for part in map(normalise, _SENTENCE.findall(text)) if len(part.split()) >= 8 and not _stands_in(part, described)]
    return any(echoes(part, other) for part in [normalise(text), *sentences] for other in said)


def _stands_in(sentence: str, text: str) -> bool:
    """Whether eight words of a sentence stand in a text in their order."""
    words = sentence.split()
    return any(" ".join(words[i : i + 8]) in text for i in range(len(words) - 7))


def unsaid_names(text: str, reason: str, known: str) -> set[str]:
    """Names in a rewrite that stand in the reason, whose writer knows the target, but in nothing that the agent could know."""
    words = set(normalise(known).split())
    return {name for name in _NAME.findall(text) if name in reason and not set(normalise(name).split()) <= words}


def index_titles(items: Mapping[str, Item]) -> dict[str, str]:
    """The database's titles by the words that `mentions_title` looks for, so that finding those in a reply takes no pass over all."""
    return {title_words(item.title): item.title for item in items.values() if len(item.title) >= SHORTEST_TITLE}


def invents_title(text: str, seen: Sequence[str], titles: Mapping[str, str], spoken: str) -> bool:
    """Whether a reply names an entry, or quotes a name, that the agent cannot know from a retrieval or the conversation.

    Args:
        text: The reply.
        seen: Titles that were retrieved.
        titles: All of the database, from `index_titles`. One of a single word counts where the reply does not write it small.
        spoken: What the user said.
    """

    def is_known(name: str) -> bool:
        return mentions_title(spoken, name) or any(mentions_title(name, title) or mentions_title(title, name) for title in seen)

    words, names = normalise(text).split(), {normalise(word) for word in _WORD.findall(text) if not word[0].islower()}
    parts = (" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    named = [titles[part] for part in parts if part in titles and (" " in part or part in names)]
    return not all(map(is_known, [*named, *_QUOTED.findall(text)]))


def kept_words(original: str, rewritten: str) -> float:
    """Share of the words of both texts that stand in both in the same order, 0-1: 1 for the same text. Library: difflib."""
    return difflib.SequenceMatcher(a=original.split(), b=rewritten.split(), autojunk=False).ratio()


def _refuses(text: str) -> bool:
    """Whether a text declines to help, as tuned models do where a dialogue is of crime: no agent should learn to."""
    return bool(_REFUSAL.search(text))
