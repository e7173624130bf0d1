"""Stages of notebooks 01 and 02: item databases, personas and tasks, over all domains of a run."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Mapping
from pathlib import Path

from .core.artifacts import load_jsonl, load_resumable, write_jsonl
from .core.concurrency import FailuresInARow, map_bounded
from .core.errors import ArtifactError
from .core.schema import Domain, Item, ItemSummary, PersonaRecord, Task
from .data.folder import load_data
from .data.personas import infer_persona, random_personas, sample_users
from .data.release import load_release_tasks
from .data.summaries import request_summary, with_summary
from .data.tasks import build_tasks, sample_splits, split_tasks
from .data.titles import merge_titles
from .dialogue.agents.base import NOUNS
from .dialogue.retrieval import Embedder, ItemDatabase, build_database, is_current, load_database
from .evaluate.data_tables import DomainData
from .llm.client import ChatClient
from .run import Run

logger = logging.getLogger(__name__)

MIN_LIKED = 4


def prepare_items(run: Run) -> dict[Domain, ItemDatabase]:
    """Write each domain's `items.jsonl` and `items.faiss`; reuses them where the items are the same."""
    embedder = Embedder(run.params.embedder)
    databases = {}
    for domain in run.domains:
        items = list(load_items(run, domain).values())
        paths = run.paths.items(domain), run.paths.index(domain)
        if is_current(items, embedder, *paths):
            databases[domain] = load_database(*paths, embedder)
        else:
            databases[domain] = build_database(items, embedder, *paths)
    return databases


def open_databases(run: Run) -> dict[Domain, ItemDatabase]:
    """The item databases that notebook 01 wrote."""
    embedder = Embedder(run.params.embedder)
    return {
        domain: load_database(
            run.need(run.paths.items(domain), "01_environment"), run.need(run.paths.index(domain), "01_environment"), embedder
        )
        for domain in run.domains
    }


def load_items(run: Run, domain: Domain) -> dict[str, Item]:
    """Items of a domain: the built-in ones, those of a folder with their summaries, or the targets of the released tasks."""
    if run.params.data_source != "release":
        items, _ = load_data(run.params, domain)
        if _wants_summaries(run):
            summaries = load_jsonl(run.need(run.paths.summaries(domain), "01_environment"), ItemSummary)
            items |= {s.item_id: with_summary(items[s.item_id], s.summary) for s in summaries if s.item_id in items}
        return items
    return {task.target.item_id: task.target for tasks in _released(run, domain).values() for task in tasks}


def save_data(run: Run, found: Mapping[Domain, DomainData]) -> None:
    """Write each domain's `data.jsonl`."""
    for domain, data in found.items():
        write_jsonl(run.paths.data(domain), [data])


def load_found_data(run: Run) -> dict[Domain, DomainData]:
    """What `save_data` wrote."""
    return {domain: load_jsonl(run.need(run.paths.data(domain), "01_environment"), DomainData)[0] for domain in run.domains}


def _wants_summaries(run: Run) -> bool:
    return run.params.item_summaries and run.params.data_source == "folder"


async def prepare_summaries(run: Run) -> dict[Domain, int]:
    """Have the simulator's model (GPT-4o mini in the paper) summarise a folder's items; returns how many it did. Paper: section B.2.

    Writes `summaries.jsonl` per domain. Nothing is asked for the built-in data, which have summaries, nor with `item_summaries` off.
    """
    if not _wants_summaries(run):
        return {}
    counts = {}
    async with run.clients("simulator") as clients:
        client = clients["simulator"]
        for domain in run.domains:
            items = [item for item in load_data(run.params, domain)[0].values() if item.description]

            failures = FailuresInARow("summaries")

            async def summarise(item: Item, noun: str = NOUNS[domain], failures: FailuresInARow = failures) -> ItemSummary:
                summary = await request_summary(client, item, noun=noun)
                failures.note(summary.error if (summary.error or "").startswith("EndpointError") else None)
                return summary

            limit = client.endpoint.max_concurrency
            summaries = await map_bounded(summarise, items, limit=limit, description=f"{domain} summaries", unit="item")
            write_jsonl(run.paths.summaries(domain), summaries)
            counts[domain] = sum(not summary.error for summary in summaries)
            if failed := next((summary for summary in summaries if summary.error), None):
                number = len(summaries) - counts[domain]
                logger.warning("%s: %d items keep their raw description; the first: %s: %s", domain, number, failed.item_id, failed.error)
    return counts


def _released(run: Run, domain: Domain) -> dict[str, list[Task]]:
    """The released tasks by their file, "train" and "test"; of items with one title one is the target."""
    if not run.params.release_dir:
        raise ArtifactError("data_source is 'release' but release_dir is empty; set it to the folder that holds the release's task/")
    folder = Path(run.params.release_dir) / "task"
    released = {split: load_release_tasks(folder / f"{domain.capitalize()}_{split}.jsonl", domain) for split in ("train", "test")}
    items, merged = merge_titles({task.target.item_id: task.target for tasks in released.values() for task in tasks})
    for tasks in released.values():
        for number, task in enumerate(tasks):
            if other := merged.get(task.target.item_id):
                tasks[number] = task.model_copy(update={"target": items[other]})
    return released


async def prepare_personas(run: Run) -> dict[Domain, list[PersonaRecord]]:
    """Infer the personas of `num_personas` sampled users per domain; write `personas.jsonl` and the random baseline.

    Records of an earlier run that rest on the same are kept, answers that were paid for come from the response cache. With the
    released tasks, whose personas are given, none is inferred.
    """
    found = {}
    async with contextlib.AsyncExitStack() as stack:
        if run.params.data_source != "release":
            client = (await stack.enter_async_context(run.clients("persona")))["persona"]
        for domain in run.domains:
            if run.params.data_source == "release":
                given = {task.user_id: task.persona for task in _released(run, domain)["test"]}
                found[domain] = [PersonaRecord(user_id=user, persona=persona, source="release") for user, persona in given.items()]
            else:
                found[domain] = await _infer_all(client, run, domain)
            write_jsonl(run.paths.personas(domain), found[domain])
            write_jsonl(run.paths.personas(domain, "random"), random_personas(len(found[domain]), seed=run.params.seed))
    return found


async def _infer_all(client: ChatClient, run: Run, domain: Domain) -> list[PersonaRecord]:
    params = run.params
    items, reviews = load_data(params, domain)
    wanted = params.number("num_personas", domain)
    users = sample_users(reviews, num_users=wanted, min_liked=MIN_LIKED, min_rating=params.min_target_rating, seed=params.seed)
    if len(users) < wanted:
        logger.warning("%s: num_personas is %d, the data have %d such users; all are taken", domain, wanted, len(users))

    known = {record.user_id: record for record in load_resumable(run.paths.personas(domain), PersonaRecord)}
    options = {"max_reviews": params.max_reviews_per_persona, "noun": NOUNS[domain]}

    async def infer(user: str) -> PersonaRecord:
        return await infer_persona(client, user, reviews, items, known=known.get(user), **options)

    return await map_bounded(infer, users, limit=client.endpoint.max_concurrency, description=f"{domain} personas", unit="persona")


def load_persona_records(run: Run, source: str = "ailo") -> dict[Domain, list[PersonaRecord]]:
    """The persona records of a source, "ailo" or "random", that notebook 02 wrote."""
    return {
        domain: load_jsonl(run.need(run.paths.personas(domain, source), "02_persona_diversity"), PersonaRecord) for domain in run.domains
    }


def prepare_tasks(run: Run) -> dict[Domain, dict[str, list[Task]]]:
    """Write `tasks.{sgpt,ecpo,test}.jsonl` per domain. Paper: section B.2-B.3."""
    params, prepared = run.params, {}
    for domain in run.domains:
        if params.data_source == "release":
            train, test = _released(run, domain).values()
            random.Random(params.seed).shuffle(train)
            random.Random(params.seed).shuffle(test)
            held_out = {task.target.item_id for task in test}
            train = [task for task in train if task.target.item_id not in held_out]
        else:
            items, (_, reviews) = load_items(run, domain), load_data(params, domain)
            personas = load_jsonl(run.need(run.paths.personas(domain), "02_persona_diversity"), PersonaRecord)
            tasks = build_tasks(domain, personas, reviews, items, min_rating=params.min_target_rating)
            train, test = split_tasks(tasks, split=params.split, test_share=params.test_share, seed=params.seed)
        prepared[domain] = sample_splits(
            train,
            test,
            num_sgpt=params.num_sgpt_tasks,
            num_ecpo=params.num_ecpo_tasks,
            num_test=params.number("num_test_tasks", domain),
        )
        for name, rows in prepared[domain].items():
            write_jsonl(run.paths.tasks(domain, name), rows)
    return prepared
