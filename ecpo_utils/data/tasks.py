"""Tasks: a persona and an item that its user liked, hidden from the agent. Paper: sections 3.1, B.2."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from ..core.errors import SchemaError
from ..core.schema import Domain, Item, PersonaRecord, Review, Task

Split = Literal["by_user", "by_item"]


def build_tasks(
    domain: Domain, personas: Sequence[PersonaRecord], reviews: Sequence[Review], items: dict[str, Item], *, min_rating: float
) -> list[Task]:
    """One task per user with a persona and item rated at least `min_rating`, in review order."""
    by_user = {record.user_id: record.persona for record in personas}
    tasks, seen = [], set()
    for review in reviews:
        key = (review.user_id, review.item_id)
        if review.rating >= min_rating and review.user_id in by_user and key not in seen:
            seen.add(key)
            tasks.append(
                Task(
                    task_id=f"{domain}/{review.user_id}/{review.item_id}",
                    domain=domain,
                    user_id=review.user_id,
                    persona=by_user[review.user_id],
                    target=items[review.item_id],
                )
            )
    return tasks


def split_tasks(tasks: Sequence[Task], *, split: Split, test_share: float, seed: int) -> tuple[list[Task], list[Task]]:
    """Training and test tasks, shuffled by `seed`; no target item stands in both.

    Args:
        tasks: All tasks of a domain.
        split: "by_user" (default of the study): a share of the users is tested, and training has neither
            those users nor their targets. "by_item" (the paper, B.2): one liked item of each user is
            tested, all other items are training.
        test_share: Share of users that go to test, used by "by_user" only.
        seed: Of the shuffles.

    Raises:
        SchemaError: If either side would be empty; says what to change.
    """
    order = random.Random(seed)
    users = sorted({task.user_id for task in tasks})
    order.shuffle(users)
    if split == "by_user":
        chosen = set(users[: max(1, round(len(users) * test_share))])
        test = [task for task in tasks if task.user_id in chosen]
        train = [task for task in tasks if task.user_id not in chosen]
    else:
        test = _one_per_user(tasks, users, order)
        tested = {task.task_id for task in test}
        train = [task for task in tasks if task.task_id not in tested]
    held_out = {task.target.item_id for task in test}
    train = [task for task in train if task.target.item_id not in held_out]
    if not train or not test:
        raise SchemaError(
            f"{len(tasks)} tasks of {len(users)} users leave {len(train)} to train and {len(test)} to test; raise num_personas"
        )
    order.shuffle(train)
    order.shuffle(test)
    return train, test


def _one_per_user(tasks: Sequence[Task], users: Sequence[str], order: random.Random) -> list[Task]:
    """A task per user, with targets that are distinct as far as the data allow."""
    test, taken = [], set()
    for user in users:
        own = [task for task in tasks if task.user_id == user]
        order.shuffle(own)
        task = next((t for t in own if t.target.item_id not in taken), own[0])
        taken.add(task.target.item_id)
        test.append(task)
    return test


def sample_splits(train: Sequence[Task], test: Sequence[Task], *, num_sgpt: int, num_ecpo: int, num_test: int) -> dict[str, list[Task]]:
    """The first tasks of each shuffled side: SGPT and ECPO take disjoint tasks. Paper: section B.3.

    Where training is too small for both, they share it in the ratio that was asked for.
    """
    if num_sgpt + num_ecpo > len(train):
        num_sgpt = round(len(train) * num_sgpt / (num_sgpt + num_ecpo))
    return {"sgpt": list(train[:num_sgpt]), "ecpo": list(train[num_sgpt : num_sgpt + num_ecpo]), "test": list(test[:num_test])}
