"""Tasks and their splits: nothing of the test stands in training."""

import random

import pytest

from ecpo_utils.core.errors import SchemaError
from ecpo_utils.core.schema import Item, Persona, PersonaRecord, Review
from ecpo_utils.data.builtin import load_builtin
from ecpo_utils.data.tasks import build_tasks, sample_splits, split_tasks

ITEMS = {f"i{n}": Item(item_id=f"i{n}", title=f"Title {n}") for n in range(30)}
SPLITS = ("by_user", "by_item")


def person(user):
    return PersonaRecord(user_id=user, persona=Persona(activities=f"of {user}", language="plain"))


def review(user, item, rating=5.0, number=0):
    return Review(review_id=f"{user}/{item}/{number}", user_id=user, item_id=item, rating=rating)


@pytest.fixture(scope="module")
def tasks():
    """Ten users who like six random items of thirty each, so that users share targets."""
    draw = random.Random(5)
    users = [f"u{n}" for n in range(10)]
    reviews = [review(user, item) for user in users for item in draw.sample(sorted(ITEMS), 6)]
    return build_tasks("book", [person(user) for user in users], reviews, ITEMS, min_rating=4.0)


def split(tasks, kind, seed=0, test_share=0.3):
    return split_tasks(tasks, split=kind, test_share=test_share, seed=seed)


def targets(tasks):
    return {task.target.item_id for task in tasks}


def users(tasks):
    return {task.user_id for task in tasks}


def ids(tasks):
    return [task.task_id for task in tasks]


def test_a_task_is_a_users_persona_and_an_item_it_liked():
    reviews = [review("u1", "i1"), review("u1", "i2", 3.5), review("u2", "i1", 4.0), review("u3", "i1"), review("u1", "i1", number=2)]
    tasks = build_tasks("game", [person("u1"), person("u2")], reviews, ITEMS, min_rating=4.0)
    assert ids(tasks) == ["game/u1/i1", "game/u2/i1"]
    assert tasks[1].persona.activities == "of u2" and tasks[1].target == ITEMS["i1"] and tasks[1].domain == "game"


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("seed", range(5))
def test_no_target_is_in_training_and_test(tasks, kind, seed):
    train, test = split(tasks, kind, seed)
    assert train and test
    assert not targets(train) & targets(test)
    assert not set(ids(train)) & set(ids(test))


@pytest.mark.parametrize("seed", range(5))
def test_by_user_keeps_users_apart_and_tests_their_share(tasks, seed):
    train, test = split(tasks, "by_user", seed)
    assert not users(train) & users(test)
    assert len(users(test)) == 3
    assert len(test) == 18  # all tasks of the three


@pytest.mark.parametrize("seed", range(5))
def test_by_item_tests_one_task_of_each_user(tasks, seed):
    _, test = split(tasks, "by_item", seed)
    assert len(test) == 10 and len(users(test)) == 10
    assert len(targets(test)) == 10  # distinct targets, as there are enough


@pytest.mark.parametrize("kind", SPLITS)
def test_splits_are_seeded_and_independent_of_the_global_generator(tasks, kind):
    random.seed(1)
    first = split(tasks, kind, 7)
    random.seed(2)
    assert split(tasks, kind, 7) == first
    assert len({tuple(ids(split(tasks, kind, seed)[1])) for seed in range(5)}) > 1


@pytest.mark.parametrize("kind", SPLITS)
def test_tasks_are_shuffled_not_grouped_by_user(tasks, kind):
    train, _ = split(tasks, kind)
    assert ids(train) != sorted(ids(train)) and ids(train) != [i for i in ids(tasks) if i in set(ids(train))]


def test_test_share_takes_at_least_one_user(tasks):
    assert len(users(split(tasks, "by_user", test_share=0.01)[1])) == 1


@pytest.mark.parametrize("kind", SPLITS)
def test_too_few_tasks_say_what_to_raise(kind):
    tasks = build_tasks("book", [person("u1")], [review("u1", "i1")], ITEMS, min_rating=4.0)
    with pytest.raises(SchemaError, match="1 tasks of 1 users leave 0 to train and 1 to test; raise num_personas"):
        split(tasks, kind)
    with pytest.raises(SchemaError, match="0 tasks of 0 users"):
        split([], kind)


def test_users_who_like_the_same_only_item_leave_nothing_to_train():
    reviews = [review("u1", "i1"), review("u2", "i1")]
    with pytest.raises(SchemaError, match="leave 0 to train"):
        split(build_tasks("book", [person("u1"), person("u2")], reviews, ITEMS, min_rating=4.0), "by_user")


@pytest.mark.parametrize("kind", SPLITS)
def test_sampled_splits_are_disjoint_and_of_the_size_asked_for(tasks, kind):
    train, test = split(tasks, kind)
    parts = sample_splits(train, test, num_sgpt=5, num_ecpo=6, num_test=7)
    assert {name: len(rows) for name, rows in parts.items()} == {"sgpt": 5, "ecpo": 6, "test": 7}
    everything = [task_id for rows in parts.values() for task_id in ids(rows)]
    assert len(everything) == len(set(everything))
    assert not targets(parts["test"]) & (targets(parts["sgpt"]) | targets(parts["ecpo"]))


def test_short_training_is_shared_in_the_ratio_asked_for(tasks):
    train = tasks[:9]
    parts = sample_splits(train, tasks[20:], num_sgpt=20, num_ecpo=10, num_test=100)
    assert (len(parts["sgpt"]), len(parts["ecpo"])) == (6, 3)
    assert set(ids(parts["sgpt"])) | set(ids(parts["ecpo"])) == set(ids(train))
    assert len(parts["test"]) == len(tasks) - 20


def test_asking_for_no_training_tasks_gives_none(tasks):
    parts = sample_splits(tasks[:5], tasks[5:], num_sgpt=0, num_ecpo=0, num_test=1)
    assert (parts["sgpt"], parts["ecpo"], len(parts["test"])) == ([], [], 1)


def test_more_tasks_asked_for_keep_the_first_ones(tasks):
    train, test = split(tasks, "by_user")
    few, many = (sample_splits(train, test, num_sgpt=4, num_ecpo=0, num_test=n)["test"] for n in (3, 9))
    assert many[:3] == few


@pytest.mark.parametrize("domain", ["book", "game", "yelp"])
@pytest.mark.parametrize("kind", SPLITS)
def test_builtin_data_can_be_split(domain, kind):
    items, reviews = load_builtin(domain)
    personas = [person(user) for user in sorted({r.user_id for r in reviews})]
    train, test = split(build_tasks(domain, personas, reviews, items, min_rating=4.0), kind, test_share=0.4)
    assert len(train) >= 100 and len(test) >= 30
    assert not targets(train) & targets(test)
