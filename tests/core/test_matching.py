"""Which texts name an item."""

import pytest

from ecpo_utils.core.matching import mentions_title, normalise


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Have you read EMMA?", "Emma"),
        ("Try 'Les Miserables', it is long.", "Les Misérables"),
        ("Try Les Misérables, it is long.", "Les Miserables"),
        ("Read “Ender’s Game” first.", "Ender's Game"),
        ("read enders game first", "Ender's Game"),
        ("I recommend The Lion, the Witch and the Wardrobe!", "The Lion, the Witch & the Wardrobe"),
        ("It is called Spider-Man: Miles Morales.", "Spider Man Miles Morales"),
        ("**Dune** is what you want", "Dune"),
        ("*Dune* is what you want", "Dune"),
        ("_Dune_ is what you want", "Dune"),
        ("Dune\nby Frank Herbert", "Dune"),
        ("The  Winter\nQueen", "The Winter Queen"),
        ("You may like Emma.", "Emma (Kindle Edition)"),
        ("You may like Emma.", "Emma [Illustrated]"),
        ("You may like Emma (Kindle Edition).", "Emma (Kindle Edition)"),
        ("Orwell's 1984 is grim", "1984"),
        ("(500) Days of Summer is a film", "(500) Days of Summer"),
        ("It is (Untitled), really", "(Untitled)"),
        ("Читайте «Войну и мир» или «Идиот».", "Идиот"),
        ("ВОЙНА И МИР", "Война и мир"),
        ("Διαβάστε την «Οδύσσεια» του Ομήρου", "Οδύσσεια"),
        ("川端の『雪国』です", "雪国"),
        ("गोदान पढ़िए", "गोदान"),
        ("Cafe\u0301 Luna is open", "Caf\u00e9 Luna"),
    ],
)
def test_text_names_the_title(text, title):
    assert mentions_title(text, title)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("What a dilemma!", "Emma"),
        ("Emmas are many", "Emma"),
        ("The Winter is long, said the Queen", "The Winter Queen"),
        ("Read Dune Messiah's prequel", "Dune Messiah Returns"),
        ("I like summer", "(500) Days of Summer"),
        ("", "Emma"),
        ("Anything", ""),
        ("Anything ???", "???"),
        ("Война", "Война и мир"),
        ("雪国", "雪"),
    ],
)
def test_text_does_not_name_the_title(text, title):
    assert not mentions_title(text, title)


def test_normalised_text_is_lower_case_words_with_single_spaces():
    assert normalise("  Les MISÉRABLES — (Vol. 2) & more_here! ") == "les miserables vol 2 and more here"


def test_normalising_twice_changes_nothing():
    for text in ("Ender’s Game & Dune", "İstanbul Ålesund ﬁn Ⅳ", "й ё が"):
        assert normalise(normalise(text)) == normalise(text)
