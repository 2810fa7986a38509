"""Items by id or title, as a person writes them in one line."""

import numpy as np
import pytest

from gr.data import DataError, Sequences, find_items

ITEMS = {  # id -> title, year.
    "1": ("Toy Story", "1995"),
    "2": ("Sabrina", "1954"),
    "7": ("Sabrina", "1995"),
    "10": ("GoldenEye", "1995"),
    "20": ("Angels", ""),
    "300": ("10,000 BC", "2008"),
    "405": ("300", "2006"),
    "aB": ("First", ""),
    "Ab": ("Caf\u00e9", ""),
    "31": ("Matrix, The", "1999"),
    "32": ("Good, The Bad and The Ugly, The", "1966"),
    "33": ("Heat", "1995"),
    "34": ("Casino", "1995"),
    "35": ("Heat, Casino", ""),
    "36": ("", ""),
    "37": ("US", "2019"),
    "38": ("Us", "1991"),
}


def log(items=ITEMS, *, years=True):
    titles, released = zip(*items.values(), strict=True)
    fields = {"title": np.array(titles, dtype=object)}
    if years:
        fields["release_year"] = np.array(released, dtype=object)
    return Sequences(
        items=np.arange(len(items), dtype=np.int32),
        offsets=np.array([0, len(items)]),
        user_ids=np.array(["u"]),
        item_ids=np.array(list(items)),
        item_fields=fields,
    )


def ids(text, sequences=None):
    sequences = sequences or log()
    return sequences.item_ids[find_items(sequences, text)].tolist()


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Toy Story, GoldenEye", ["1", "10"]),
        ("  toy   story ,GOLDENEYE,", ["1", "10"]),
        ("10,000 BC", ["300"]),
        ("10, 000 bc, 20", ["300", "20"]),
        ("10, 20", ["10", "20"]),
        ("aB", ["aB"]),
        ("Ab", ["Ab"]),
        ("Cafe\u0301", ["Ab"]),
        ("CAFE\u0301", ["Ab"]),
        ("\uff34oy Story", ["1"]),  # A full-width letter.
        ("Sabrina (1954)", ["2"]),
        ("sabrina (1995), Heat (1995)", ["7", "33"]),
        ("id:300, title:300", ["300", "405"]),
        ("The Matrix", ["31"]),
        ("The Matrix (1999)", ["31"]),
        ("Matrix, The, Toy Story", ["31", "1"]),
        ("Good, The Bad", ["32"]),
        ("Golden", ["10"]),
        ("US", ["37"]),
        ("36", ["36"]),
        ("Toy Story, Toy Story", ["1", "1"]),
    ],
)
def test_names_find_their_items(text, wanted):
    assert ids(text) == wanted


@pytest.mark.parametrize(
    "text, said",
    [
        ("Sabrina", "'Sabrina' fits 2 items: Sabrina (1954), id 2; Sabrina (1995), id 7; write"),
        ("title:Sabrina", "fits 2 items"),
        ("300", "10,000 BC (2008), id 300; 300 (2006), id 405; write the one you mean as id:300"),
        ("AB", "First, id aB; Caf\u00e9, id Ab"),
        ("us", "US (2019), id 37; Us (1991), id 38"),
        ("sabr", "'sabr' is part of the titles of 2 items"),
        ("Heat, Casino", "one item and also a list of several; write them as id:ID"),
        ("Toy Stori", "no title of the data; did you mean Toy Story (1995), id 1"),
        ("id:Toy Story", "is no item id and no title"),
        ("Toy Story,,GoldenEye", "'' is no item id"),
        ("zzz", "'zzz' is no item id and no title of the data"),
        (" , ", "no items are named"),
        ("", "no items are named"),
    ],
)
def test_what_fits_nothing_or_several_is_said(text, said):
    with pytest.raises(DataError) as error:
        ids(text)
    assert said in str(error.value)


def test_years_may_stand_in_the_titles_themselves():
    films = {"a": ("Toy Story (1995)", ""), "b": ("Toy Story 2 (1999)", ""), "c": ("(1995)", "")}
    sequences = log(films, years=False)
    assert ids("Toy Story, Toy Story (1995), toy story 2", sequences) == ["a", "a", "b"]
    assert ids("(1995)", sequences) == ["c"]


def test_without_titles_ids_are_the_names():
    sequences = log({"1": ("", ""), "2": ("", "")}, years=False)
    assert ids("2, 1", sequences) == ["2", "1"]
    with pytest.raises(DataError, match="'3' is no item id"):
        ids("3", sequences)
