"""Which texts name an item."""

import pytest

from ecpo_utils.core.matching import hide_title, mentions_title, normalise


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
        ("Try LEGO Star Wars: The Skywalker Saga.", "LEGO Star Wars\u2122: The Skywalker Saga"),
        ("Try LEGO Star Wars\u2122: The Skywalker Saga.", "LEGO Star Wars: The Skywalker Saga"),
        ("It is The Diary of Adrian Mole, Aged 13 3/4.", "The Diary of Adrian Mole, Aged 13\u00be"),
        ("I would read Grey next.", "Grey (The Romany Outcasts Series, Book 1)"),
        ("grey (the romany outcasts series, book 1)", "Grey (The Romany Outcasts Series, Book 1)"),
        ("Mass effect it is", "Mass Effect (Xbox 360)"),
        ("Call it Ico\u2122.", "Ico\u2122 (PlayStation 2)"),
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
        ("a man and his dog", "His (Ties That Bind, Book 2)"),
        ("the grey sea", "Grey (The Romany Outcasts Series, Book 1)"),
        ("Greyish", "Grey (The Romany Outcasts Series, Book 1)"),
    ],
)
def test_text_does_not_name_the_title(text, title):
    assert not mentions_title(text, title) and hide_title(text, title) == text


@pytest.mark.parametrize(
    ("text", "title", "hidden"),
    [
        ("I loved LEGO Star Wars\u2122: The Skywalker Saga!", "LEGO Star Wars\u2122: The Skywalker Saga", "I loved it!"),
        ("Aged 13\u00be, he writes.", "Aged 13 3/4", "it, he writes."),
        ("Aged 13 3/4 and aged 13\u00be", "Aged 13\u00be", "it and it"),
        ("Grey is set in a grey town.", "Grey (Romany, Book 1)", "it is set in a grey town."),
        ("Have you read Grey (Romany, Book 1)?", "Grey (Romany, Book 1)", "Have you read it (Romany, Book 1)?"),
        ("read grey (romany, book 1)", "Grey (Romany, Book 1)", "read it (romany, book 1)"),
    ],
)
def test_what_names_the_title_is_hidden(text, title, hidden):
    assert mentions_title(text, title) and hide_title(text, title) == hidden and not mentions_title(hidden, title)


def test_normalised_text_is_lower_case_words_with_single_spaces():
    assert normalise("  Les MISÉRABLES — (Vol. 2) & more_here! ") == "les miserables vol 2 and more here"


def test_normalising_twice_changes_nothing():
    for text in ("Ender’s Game & Dune", "İstanbul Ålesund ﬁn Ⅳ", "й ё が"):
        assert normalise(normalise(text)) == normalise(text)
