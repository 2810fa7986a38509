"""JSON lines and lines of Python dictionaries, their fields named by the caller."""

import gzip
import json

import hypothesis
import hypothesis.strategies as st
import pytest

from gr.data import DataError, load_sequences, read_json_lines

STEAM = (
    "{u'username': u'ann', u'product_id': u'10', u'date': u'2018-01-05', u'text': u\"it's \\xe9 \\d\"}\n"
    "{u'username': u'bob', u'product_id': 10, u'date': '2018-01-03', 'early': True, 'x': None}\n"
    "\n"
    "{u'username': u'ann', u'product_id': u'20', u'date': u'2017-01-05'}\n"
)
GAMES = (
    "{u'id': u'10', u'app_name': u'Half &amp;amp; Life', u'title': u'', u'genres': [u'Action', u'FPS']}\n"
    "{u'id': 20, u'app_name': '<b>Portal</b>', 'price': 4.99}\n"
    "{u'id': u'30', u'app_name': 'Nobody took it'}\n"
)
FIELDS = {"user": "username", "item": "product_id", "time": "date"}


@pytest.fixture
def write(tmp_path):
    def write(content, name="log.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_lines_of_python_dictionaries(write):
    path, items = write(STEAM), write(GAMES, "games.json")
    sequences = load_sequences(
        "json_lines", path, items_path=items, items_item="id", title="app_name", **FIELDS
    )
    assert sequences.user_ids.tolist() == ["ann", "bob"]
    assert sequences.item_ids.tolist() == ["10", "20"]
    assert sequences.items.tolist() == [1, 0, 0]
    day = 24 * 3600
    assert (sequences.times / day).tolist() == [17171, 17536, 17534]
    assert {name: field.tolist() for name, field in sequences.item_fields.items()} == {
        "title": ["Half & Life", "Portal"],
        "genres": ["Action, FPS", ""],
        "price": ["", "4.99"],
    }
    assert sequences.titles().tolist() == ["Half & Life", "Portal"]


def test_fields_that_are_not_there(write):
    path, items = write(STEAM), write(GAMES, "games.json")
    with pytest.raises(DataError, match=r"log\.json: no field 'user_name'.*mean 'username'"):
        read_json_lines(path, user="user_name", item="product_id")
    with pytest.raises(DataError, match=r"games\.json: no field 'product_id'"):
        read_json_lines(path, items, **FIELDS)
    with pytest.raises(DataError, match="named as user and as item"):
        read_json_lines(path, user="username", item="username")
    with pytest.raises(DataError, match="give items_path"):
        read_json_lines(path, title="app_name", **FIELDS)
    with pytest.raises(DataError, match="no line is a JSON object"):
        read_json_lines(write("[]\n"), **FIELDS)


BAD_LINES = {
    "[1, 2": "not JSON",
    "(" * 5000: "not JSON",
    "-" * 100_000 + "1": "not JSON",
    "[" * 100_000: "not JSON",
    "{'username': " + "9" * 10_000 + "}": "not JSON",
    "{'username': open('x')}": "not JSON",
    "__import__('os').getcwd()": "not JSON",
    "{'a': {[]}}": "not JSON",
    "{'a': '\0'}": "not JSON",
    "'text'": "not a JSON object",
    '{"username": NaN, "product_id": "1", "date": "2018-01-01"}': "username is no id: nan",
    '{"username": null, "product_id": "1", "date": "2018-01-01"}': "no field 'username'",
    '{"username": true, "product_id": "1", "date": "2018-01-01"}': "username is no id: True",
    '{"username": "\\ud800", "product_id": "1", "date": "2018-01-01"}': "username is not UTF-8 text",
    "{'username': 1j, 'product_id': '1', 'date': '2018-01-01'}": "username is no id: 1j",
    '{"username": "a\\u0000", "product_id": "1", "date": "2018-01-01"}': "username holds a NUL",
    '{"username": "z", "product_id": "1", "date": 5}': "date is 5, but others are dates",
    '{"username": "z", "product_id": "1", "date": "once"}': "date is not a number: 'once', and no",
    '{"username": "z", "product_id": "1", "date": ' + "9" * 400 + "}": "date is not a number: 9",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda line: line[:30])
def test_bad_lines_are_named_or_counted(write, bad):
    path = write(STEAM + bad + "\n" + STEAM)
    with pytest.raises(DataError, match=r"log\.json:5: " + BAD_LINES[bad]):
        read_json_lines(path, **FIELDS)
    sequences = read_json_lines(path, skip_bad_rows=True, **FIELDS)
    assert (sequences.skipped_rows, len(sequences.items)) == (1, 6)


def test_bytes_that_are_no_text(write):
    good = b'{"u": "a", "i": "x", "other": "caf\xe9"}\n'
    assert len(read_json_lines(write(good), user="u", item="i").items) == 1
    with pytest.raises(DataError, match=r"log\.json:2: u is not UTF-8 text"):
        read_json_lines(write(good + b'{"u": "caf\xe9", "i": "x"}\n'), user="u", item="i")


TWO = (
    '{"u": "a", "i": 1, "t": 1362700800000000001}\n{"u": "a", "i": 2.0, "t": 1362700800000000000}\n'
)


@pytest.mark.parametrize(
    "content",
    [
        TWO,
        TWO.replace("\n", "\r"),
        TWO.replace("\n", "\r\n"),
        TWO.replace("\n", ""),
        "\ufeff" + TWO,
        TWO.encode("utf-16"),
        gzip.compress(TWO.encode(), mtime=0),
    ],
    ids=["lines", "old Mac", "Windows", "one line", "mark", "UTF-16", "packed"],
)
def test_line_ends_and_encodings(write, content):
    sequences = read_json_lines(write(content), user="u", item="i", time="t")
    assert sequences.item_ids.tolist() == ["1", "2"]
    assert sequences.items.tolist() == [1, 0]  # By nanoseconds, which float64 does not tell apart.


def test_damaged_and_misnamed_archives(write):
    packed = gzip.compress(TWO.encode() * 50_000)
    for damaged in (packed[: len(packed) // 2], packed[:-6], packed + b"rest"):
        with pytest.raises(DataError, match=r"log\.json\.gz: damaged"):
            read_json_lines(write(damaged, "log.json.gz"), user="u", item="i", time="t")
    assert len(read_json_lines(write(TWO, "log.json.gz"), user="u", item="i").items) == 2


texts = st.text(st.characters(codec="utf-8"), max_size=6)
rows = st.fixed_dictionaries(
    {
        "u": texts | st.integers() | st.none(),
        "i": texts,
        "t": st.floats(-1e9, 1e9) | st.integers(0, 9),
    },
    optional={"note": st.none() | texts | st.lists(texts, max_size=2)},
)


@hypothesis.given(
    st.lists(st.tuples(rows, st.booleans()), min_size=1, max_size=6),
    st.lists(st.sampled_from(["", "  ", "junk", "[1]"]), max_size=3),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
@hypothesis.settings(max_examples=150, deadline=None)
def test_what_was_written_is_read_or_counted(tmp_path_factory, records, noise, end):
    path = tmp_path_factory.getbasetemp() / "random.json"
    lines = [repr(row) if as_python else json.dumps(row) for row, as_python in records]
    path.write_bytes("".join(line + end for line in [*lines, *noise]).encode())
    good = [
        row
        for row, _ in records
        if row["u"] not in ("", None) and row["i"] and "\0" not in f"{row['u']}{row['i']}"
    ]
    bad = len(records) - len(good) + sum(bool(line.strip()) for line in noise)
    fields = {"user": "u", "item": "i", "time": "t"}
    if not good:
        with pytest.raises(DataError, match="no usable rows"):
            read_json_lines(path, skip_bad_rows=True, **fields)
        return
    sequences = read_json_lines(path, skip_bad_rows=True, **fields)
    assert sequences.skipped_rows == bad
    read = [
        (str(user), str(sequences.item_ids[item]), time)
        for row, user in enumerate(sequences.user_ids)
        for item, time in zip(
            sequences.of(row),
            sequences.times[sequences.offsets[row] : sequences.offsets[row + 1]].tolist(),
            strict=True,
        )
    ]
    assert sorted(read) == sorted((str(row["u"]), row["i"], float(row["t"])) for row in good)
    if bad:
        with pytest.raises(DataError, match=r"random\.json:\d+: "):
            read_json_lines(path, **fields)
