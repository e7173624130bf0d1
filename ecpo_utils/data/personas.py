"""Personas: AILO's, inferred from a user's reviews, and RecAgent's random baseline. Paper: section 2.3."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from ..core.artifacts import digest
from ..core.quoting import one_line
from ..core.schema import Item, Message, Persona, PersonaRecord, Review
from ..llm.client import ChatClient
from ..llm.prompts import load_prompt, render

REVIEW_WORDS = 45

RECAGENT_GRID = {
    "decision_making": ["Interest-based selection", "Random exploration", "Analytical", "Following trends"],
    "emotional_preference": ["Likes suspense", "Prefers warmth", "Favors thrillers", "Optimistic and positive"],
    "information_density": ["Detailed description", "Moderate", "Concise"],
    "expression_style": ["Humorous", "Emotionally rich", "Formal", "Casual"],
    "tone": ["Enthusiastic and positive", "Critical and serious", "Witty", "Straightforward"],
}

ACTIVITY_TYPES = {"quick": "Efficiency-seeking", "curious": "Exploration-oriented", "careful": "Detail-oriented"}
QUESTIONS = ("interests", "orientations", "language", "activities", "activity_type")  # the last one is answered in a word
ANSWER_TOKENS = 40


def sample_users(reviews: Sequence[Review], *, num_users: int, min_liked: int, min_rating: float, seed: int) -> list[str]:
    """Ids of users with at least `min_liked` positive reviews, sampled by `seed`. Paper: section B.1."""
    liked: dict[str, int] = {}
    for review in reviews:
        liked[review.user_id] = liked.get(review.user_id, 0) + (review.rating >= min_rating)
    users = sorted(user for user, count in liked.items() if count >= min_liked)
    random.Random(seed).shuffle(users)
    return users[:num_users]


def render_reviews(reviews: Sequence[Review], items: dict[str, Item]) -> str:
    """A user's reviews as the persona model reads them, delimited as data, long ones cut."""
    lines = []
    for review in reviews:
        words = f"{review.title}. {review.text}".split()
        text = " ".join(words[:REVIEW_WORDS]) + (" ..." if len(words) > REVIEW_WORDS else "")
        item = items[review.item_id]
        lines.append(f'- {one_line(item.title)} ({one_line(", ".join(item.categories[-2:]))}), {review.rating:g} of 5 stars: "{text}"')
    return "\n".join(lines)


async def infer_persona(
    client: ChatClient,
    user_id: str,
    reviews: Sequence[Review],
    items: dict[str, Item],
    *,
    max_reviews: int,
    noun: str,
    known: PersonaRecord | None = None,
) -> PersonaRecord:
    """Infer the four dimensions from the user's first `max_reviews` reviews.

    Args:
        client: The `persona` endpoint.
        user_id: Whose.
        reviews: Of all users.
        items: What is reviewed, by id.
        max_reviews: So many are read, the first ones.
        noun: What is sought, e.g. "book".
        known: What an earlier run inferred; kept if it rests on the same model, prompts, reviews and rules.

    Raises:
        EndpointError: See `ChatClient.complete`.
    """
    own = [review for review in reviews if review.user_id == user_id][:max_reviews]
    text = render_reviews(own, items)

    def ask(question: str) -> list[Message]:
        content = render("persona_reviews", noun=noun, reviews=text, question=render(f"persona_{question}", noun=noun))
        return [{"role": "system", "content": load_prompt("persona_system")}, {"role": "user", "content": content}]

    config = digest([client.identity, [ask(name) for name in QUESTIONS], Path(__file__).read_text(encoding="utf-8")])
    if known and known.config == config:
        return known
    # one narrow question after the other: the reviews stand first, so a server reads them only once
    answers = {}
    for name in QUESTIONS[:-1]:
        answer = await client.complete(ask(name), max_tokens=ANSWER_TOKENS, stop=["\n"])
        answers[name] = tidy_sentence(answer.text)
    word = (await client.complete(ask(QUESTIONS[-1]), max_tokens=4)).text.lower()
    kind = next((kind for name, kind in ACTIVITY_TYPES.items() if name in word), ACTIVITY_TYPES["curious"])
    persona = Persona(**{**answers, "activities": f"{kind}. {answers['activities']}"})
    ids = [review.review_id for review in own]
    return PersonaRecord(user_id=user_id, persona=persona, review_ids=ids, config=config)


def tidy_sentence(text: str) -> str:
    """One line without quotes; an answer cut by its token limit loses its last clause, repeated sentences go."""
    text = " ".join(text.split()).strip("\"' ")
    if text and text[-1] not in ".!?":
        end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
        text = text[: end + 1] if end > 20 else text.rpartition(",")[0] or text
    sentences = dict.fromkeys(re.split(r"(?<=[.!?]) ", text))
    return " ".join(sentences).rstrip(",;") if text else text


def random_personas(num_personas: int, *, seed: int) -> list[PersonaRecord]:
    """RecAgent-style baseline: one uniform draw per attribute, 768 combinations. Paper: section 2.3."""
    draw = random.Random(seed)
    records = []
    for number in range(num_personas):
        value = {name: draw.choice(options) for name, options in RECAGENT_GRID.items()}
        persona = Persona(
            activities=f"{value['decision_making']} {value['emotional_preference']}",
            language=f"{value['information_density']} {value['expression_style']} {value['tone']}",
        )
        records.append(PersonaRecord(user_id=f"random-{number:03d}", persona=persona, source="random"))
    return records
