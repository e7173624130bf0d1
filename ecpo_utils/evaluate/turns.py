"""Searches and replies: when the target is found, whether it is then named, how many titles are, and what replies lack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from ..core.matching import mentions_title, says_again
from ..core.schema import Trajectory, Turn
from ..dialogue.agents.base import is_system_error
from .statistics import average, mean, proportion
from .tables import Played, rate_columns
from .transcripts import trajectory_transcript
from .verdicts import question_share

FAULTS = ("system error", "repeats itself", "misses the message", "out of context", "no next step")


@dataclass(frozen=True)
class ReplyFacts:
    """What one reply did.

    Attributes:
        searched: Whether the agent searched in this turn.
        found: Whether a search in this turn retrieved the target, which no earlier reply had named.
        named: Whether the reply names the target, the first one to do so.
        titles: Titles, of the items that searches up to here retrieved, that the reply names.
        satisfaction: The user's score 0-5, None where it has none.
    """

    searched: bool
    found: bool
    named: bool
    titles: frozenset[str]
    satisfaction: int | None


def reply_facts(row: Trajectory, titles: Mapping[str, str]) -> Iterator[tuple[int, ReplyFacts]]:
    """The replies of a dialogue with the number of their turn, from 1.

    Args:
        row: The dialogue.
        titles: Of all items that it retrieved, by item id.
    """
    retrieved: set[str] = set()
    for turn in row.turns:
        searches = [step.retrieval for step in turn.steps if step.retrieval]
        retrieved.update(item_id for search in searches for item_id in search.item_ids)
        if turn.reply is None:
            continue
        mentioned = frozenset(title for title in {titles[item_id] for item_id in retrieved} if mentions_title(turn.reply, title))
        is_open = row.recommended_at is None or turn.index <= row.recommended_at
        found = is_open and any(row.target.item_id in search.item_ids for search in searches)
        named = turn.index == row.recommended_at
        yield turn.index + 1, ReplyFacts(bool(searches), found, named, mentioned, turn.satisfaction)


def turn_table(played: Played, titles: Mapping[str, str], profile: str) -> pd.DataFrame:
    """One row per domain, system and turn: what the replies of that turn did, with 95% intervals.

    `named` is the share of `found` replies that name the target: what is lost between search and reply. `titles` (mean) and
    `two_titles` (share) are of replies after a search in the same turn. `satisfaction` is the mean score, 0-5.

    Args:
        played: Dialogues by domain and system.
        titles: Of all items that they retrieved, by item id.
        profile: Whose dialogues they are.
    """
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():
            for number, facts in sorted(_by_turn(trajectories, titles).items()):
                found, after_search = ([fact for fact in facts if getattr(fact, kind)] for kind in ("found", "searched"))
                rows.append(
                    {"domain": domain, "system": name, "profile": profile, "turn": number, "replies": len(facts)}
                    | rate_columns("searched", proportion(len(after_search), len(facts)))
                    | {"found": len(found)}
                    | rate_columns("named", proportion(sum(fact.named for fact in found), len(found)))
                    | rate_columns("titles", mean(len(fact.titles) for fact in after_search))
                    | rate_columns("two_titles", proportion(sum(len(fact.titles) > 1 for fact in after_search), len(after_search)))
                    | {"satisfaction": average(fact.satisfaction for fact in facts)}
                )
    return pd.DataFrame(rows)


def _by_turn(trajectories: Sequence[Trajectory], titles: Mapping[str, str]) -> dict[int, list[ReplyFacts]]:
    found = defaultdict(list)
    for row in trajectories:
        for number, facts in reply_facts(row, titles):
            found[number].append(facts)
    return found


def reach_table(played: Played, titles: Mapping[str, str], profile: str) -> pd.DataFrame:
    """One row per domain and system: how far its dialogues reach into the database and what comes of it, with 95% intervals.

    Per dialogue, means: `searches`, by whoever wrote the query; `items`, distinct ones that they retrieved; `titles`, distinct ones of
    these that replies named; `asks`, the share of replies that end in a question mark. `repeated` is the share of all searches whose
    query the dialogue had searched for before, `named` that of the dialogues with the target among their items in which it was named.

    Args:
        played: Dialogues by domain and system.
        titles: Of all items that they retrieved, by item id.
        profile: Whose dialogues they are.
    """
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():
            searches = [[step.retrieval for turn in row.turns for step in turn.steps if step.retrieval] for row in trajectories]
            spoken = [trajectory_transcript(row) for row in trajectories]
            new = sum(len({search.query for search in each}) for each in searches)
            total, found = sum(map(len, searches)), [row for row in trajectories if row.is_recalled]
            rows.append(
                {"domain": domain, "system": name, "profile": profile, "n": len(trajectories)}
                | rate_columns("searches", mean(len(each) for each in searches))
                | {"repeated": (total - new) / total if total else None}
                | rate_columns("items", mean(len({item for search in each for item in search.item_ids}) for each in searches))
                | rate_columns("titles", mean(len(_named_titles(row, titles)) for row in trajectories))
                | rate_columns("named", proportion(sum(row.is_success for row in found), len(found)))
                | rate_columns("asks", mean(question_share(each) if each.replies else None for each in spoken))
            )
    return pd.DataFrame(rows)


def _named_titles(row: Trajectory, titles: Mapping[str, str]) -> frozenset[str]:
    return frozenset().union(*(facts.titles for _, facts in reply_facts(row, titles)))


def faults_of(turn: Turn, earlier: Iterable[Turn]) -> list[str]:
    """What was wrong with a scored reply, as kinds: what the reply shows itself first, then what the user's scores say."""
    ec, reply = turn.confirmation, turn.reply or ""
    found = []
    if is_system_error(turn):
        found.append("system error")
    elif says_again(reply, earlier):
        found.append("repeats itself")
    if ec.flexibility < 2:
        found.append("misses the message")
    if ec.coherence < 2:
        found.append("out of context")
    if ec.guidance < 1:
        found.append("no next step")
    return found


def fault_table(played: Played, profile: str) -> pd.DataFrame:
    """Share of scored replies with each kind of fault, and their mean satisfaction 0-5, per domain and system.

    The intervals take replies as independent, though one dialogue has several.
    """
    rows = []
    for domain, systems in played.items():
        for name, trajectories in systems.items():
            scored = [(t, row.turns[:i]) for row in trajectories for i, t in enumerate(row.turns) if t.satisfaction is not None]
            found = [(turn.satisfaction, faults_of(turn, earlier)) for turn, earlier in scored]
            for fault in (*FAULTS, "none"):
                having = [score for score, faults in found if (fault in faults) or (fault == "none" and not faults)]
                rows.append(
                    {"domain": domain, "system": name, "profile": profile, "fault": fault}
                    | rate_columns("share", proportion(len(having), len(found)))
                    | {"mean_satisfaction": average(having)}
                )
    return pd.DataFrame(rows)
