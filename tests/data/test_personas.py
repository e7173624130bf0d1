"""Personas inferred by a scripted model, and the random baseline."""

import pytest
from stub_endpoint import Reply

from ecpo_utils.core.errors import EndpointError
from ecpo_utils.core.schema import Item, Review
from ecpo_utils.data.personas import (
    ACTIVITY_TYPES,
    RECAGENT_GRID,
    REVIEW_WORDS,
    infer_persona,
    random_personas,
    render_reviews,
    sample_users,
    tidy_sentence,
)
from ecpo_utils.llm.prompts import render

ITEMS = {f"b{n}": Item(item_id=f"b{n}", title=f"Title {n}", categories=["Books", "Genre", f"Kind {n}"]) for n in range(6)}
QUESTIONS = ("interests", "orientations", "language", "activities")


def review(number, user="u1", rating=5.0, text="Good.", title="Yes"):
    return Review(review_id=f"{user}/{number}", user_id=user, item_id=f"b{number}", rating=rating, text=text, title=title)


@pytest.fixture
def infer(study):
    """Infers u1's persona; the model answers each question with its name, and the type with `kind`."""

    def infer(reviews, *, max_reviews=5, kind="curious", answers=None, known=None):
        texts = {name: f"Something about {name}." for name in QUESTIONS} | (answers or {})
        asked = {render(f"persona_{name}", noun="book"): text for name, text in texts.items()}

        def answer(body):
            if body["max_tokens"] == 4:  # the activity type is one word
                return f' "{kind.capitalize()}".'
            return next(text for question, text in asked.items() if question in body["messages"][-1]["content"])

        study.endpoint.answer = answer
        client = study.client("persona")
        return study.run(infer_persona(client, "u1", reviews, ITEMS, max_reviews=max_reviews, noun="book", known=known))

    return infer


def test_persona_holds_the_answer_to_each_question(infer):
    record = infer([review(0), review(1)])
    persona = record.persona
    assert (record.user_id, record.source, record.review_ids) == ("u1", "ailo", ["u1/0", "u1/1"])
    assert persona.activities == f"{ACTIVITY_TYPES['curious']}. Something about activities."
    assert persona.interests == "Something about interests."
    assert persona.language == "Something about language."
    assert persona.orientations == "Something about orientations."


def test_a_record_of_an_earlier_run_is_kept_if_it_rests_on_the_same(infer, study, monkeypatch):
    record = infer([review(0), review(1)])
    known = record.model_copy(update={"persona": record.persona.model_copy(update={"interests": "As it was."})})
    assert infer([review(0), review(1)], known=known) is known
    assert infer([review(0), review(2)], known=known).persona.interests == record.persona.interests  # other reviews
    monkeypatch.setattr("ecpo_utils.data.personas.load_prompt", lambda name: "Another system prompt.")
    assert infer([review(0), review(1)], known=known).config != record.config


@pytest.mark.parametrize("kind", ACTIVITY_TYPES)
def test_activity_type_is_read_from_the_word(infer, kind):
    assert infer([review(0)], kind=kind).persona.activities.startswith(f"{ACTIVITY_TYPES[kind]}. ")


def test_only_the_users_own_first_reviews_are_read(infer, study):
    record = infer([review(0, "u2"), review(1), review(2), review(3)], max_reviews=2)
    assert record.review_ids == ["u1/1", "u1/2"]
    prompts = [chat.body["messages"][-1]["content"] for chat in study.endpoint.chats]
    assert len(prompts) == len(QUESTIONS) + 1
    for prompt in prompts:
        assert "Title 1" in prompt and "Title 2" in prompt
        assert "Title 0" not in prompt and "Title 3" not in prompt


def test_reviews_come_before_the_question_so_that_the_prefix_is_shared(infer, study):
    infer([review(0), review(1)])
    prompts = [chat.body["messages"][-1]["content"] for chat in study.endpoint.chats]
    shared = prompts[0][: prompts[0].index(render("persona_interests", noun="book"))]
    assert "Title 0" in shared and all(prompt.startswith(shared) for prompt in prompts)


def test_answers_are_tidied_and_braces_in_reviews_do_no_harm(infer):
    record = infer([review(0, text="All {sorts} of {0} braces")], answers={"language": '  "Writes briefly.\nWrites briefly."  '})
    assert record.persona.language == "Writes briefly."


def test_inference_is_repeatable_and_asked_once(infer, study):
    first = infer([review(0)])
    calls = len(study.endpoint.chats)
    assert infer([review(0)]) == first
    assert len(study.endpoint.chats) == calls


def test_rendered_reviews_have_stars_and_are_cut():
    text = render_reviews([review(0, rating=2.0, text=" ".join(["word"] * 100), title="Long")], ITEMS)
    assert text.startswith('- Title 0 (Genre, Kind 0), 2 of 5 stars: "Long. word')
    assert text.endswith('word ..."')
    assert text.count("word") == REVIEW_WORDS - 1
    assert len(render_reviews([review(0), review(1)], ITEMS).splitlines()) == 2


def test_users_with_enough_liked_reviews_are_sampled_by_seed():
    reviews = [review(n, f"u{user:02d}", rating=5.0 if n < user else 3.0) for user in range(6) for n in range(6)]
    known = {f"u{user:02d}" for user in range(2, 6)}
    assert set(sample_users(reviews, num_users=100, min_liked=2, min_rating=4.0, seed=0)) == known
    assert sample_users(reviews, num_users=3, min_liked=2, min_rating=4.0, seed=1) == sample_users(
        reversed(reviews), num_users=3, min_liked=2, min_rating=4.0, seed=1
    )
    orders = {tuple(sample_users(reviews, num_users=4, min_liked=2, min_rating=4.0, seed=seed)) for seed in range(10)}
    assert len(orders) > 1


def test_more_users_asked_for_keep_the_first_ones():
    reviews = [review(0, f"u{user:02d}") for user in range(30)]
    few, many = (sample_users(reviews, num_users=n, min_liked=1, min_rating=4.0, seed=3) for n in (5, 20))
    assert many[:5] == few


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Loves maps.", "Loves maps."),
        ('  "Loves\n  maps."  ', "Loves maps."),
        ("Loves slow books, quiet towns, and the", "Loves slow books, quiet towns"),
        ("Loves slow, melancholy books. Hates noise and every", "Loves slow, melancholy books."),
        ("Loves maps. Loves maps. Loves maps.", "Loves maps."),
        ("Is it true? Yes! Yes!", "Is it true? Yes!"),
        ("no end and no comma", "no end and no comma"),
        ("", ""),
        ("   ", ""),
    ],
)
def test_tidy_sentence(text, expected):
    assert tidy_sentence(text) == expected


def test_random_grid_has_768_combinations():
    sizes = [len(set(options)) for options in RECAGENT_GRID.values()]
    assert sorted(sizes) == [3, 4, 4, 4, 4]
    product = 1
    for size in sizes:
        product *= size
    assert product == 768


def test_random_personas_are_seeded_and_reach_the_whole_grid():
    assert random_personas(20, seed=1) == random_personas(20, seed=1) != random_personas(20, seed=2)
    records = random_personas(20000, seed=0)
    assert len({record.persona.text() for record in records}) == 768
    assert len({record.user_id for record in records}) == 20000
    assert {record.source for record in records[:9]} == {"random"} and records[0].review_ids == []
    assert not records[0].persona.interests and not records[0].persona.orientations


def test_an_endpoint_that_refuses_is_an_endpoint_error(study):
    study.endpoint.answer = lambda body: Reply("no", status=400)
    client = study.client("persona")
    with pytest.raises(EndpointError):
        study.run(infer_persona(client, "u1", [review(0)], ITEMS, max_reviews=5, noun="book"))
