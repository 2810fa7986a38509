"""Ranked lists in files of all kinds beside a slow reading of the same rows; what is refused, and what is written."""

import csv
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr.data import DataError
from gr.data.ranked_lists import RankedLists, read_pairs, read_ranked_lists, write_table

IDS = st.text('abÄ1-_ ,"', min_size=1, max_size=3).filter(str.strip)
ROWS = st.lists(st.tuples(IDS, IDS, st.integers(-3, 3)), min_size=1, max_size=30)


def slow_lists(rows, sign=-1):
    """User -> items, best first: the rule in one line."""
    found = {}
    for user, item, number in rows:
        found.setdefault(user, []).append((sign * number, item))
    for of in found.values():
        of.sort(key=lambda pair: pair[1].encode(), reverse=True)
        of.sort(key=lambda pair: pair[0])
    return {user: [item for _, item in of] for user, of in found.items()}


def as_dict(lists):
    return {user: lists.of(user) for user in lists.users.tolist()}


def write(path, rows, names=("user", "item", "score")):
    """The rows in the form that the ending says, by other means than ours."""
    if path.suffix == ".parquet":
        pq.write_table(
            pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path
        )
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([names, *rows])
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines))
    else:
        path.write_text("".join(f"{u} Q0  {i}\t1 {s} x\n" for u, i, s in rows))
    return path


@settings(deadline=None)
@given(ROWS)
def test_equal_scores_are_ordered_as_trec_eval_does(rows):
    table = pa.table(
        dict(zip(("user", "item", "score"), map(list, zip(*rows, strict=True)), strict=True))
    )
    lists = RankedLists.from_table(table, "a table")
    expected = slow_lists(rows)
    assert as_dict(lists) == expected and list(as_dict(lists)) == list(expected)
    for user, tied in zip(lists.users, lists.tied, strict=True):
        scores = [score for other, _, score in rows if other == user]
        assert tied == (len(set(scores)) < len(scores))


PLAIN = [("u1", "i1", 0.5), ("2", "i2", 0.5), ("u1", "i3", 2), ("2", "7", -1e-3), ("u1", "i2", 0.5)]


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "trec", "run"])
def test_all_kinds_of_files_are_read_alike(tmp_path, ending):
    path = write(tmp_path / f"lists.{ending}", PLAIN)
    lists = read_ranked_lists(path)
    assert as_dict(lists) == slow_lists(PLAIN) == {"u1": ["i3", "i2", "i1"], "2": ["i2", "7"]}
    assert lists.scores.tolist() == [2, 0.5, 0.5, 0.5, -1e-3]
    assert lists.tied.tolist() == [True, False]
    if ending != "parquet":
        packed = tmp_path / f"packed.{ending}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert as_dict(read_ranked_lists(packed)) == as_dict(lists)


@pytest.mark.parametrize("names", [("userID", "itemID", "prediction"), ("q_id", "docno", "Score")])
def test_columns_may_be_called_as_others_do(tmp_path, names):
    path = write(tmp_path / "lists.csv", PLAIN, names)
    assert as_dict(read_ranked_lists(path)) == slow_lists(PLAIN)


def test_ranks_decide_and_may_be_alone(tmp_path):
    ranks = [("u", "a", 2), ("u", "c", 1), ("u", "b", 2)]
    lists = read_ranked_lists(write(tmp_path / "a.csv", ranks, ("user", "item", "rank")))
    assert lists.of("u") == ["c", "b", "a"] and lists.scores is None and lists.tied.all()
    both = [("u", "a", 1, 0.1), ("u", "b", 2, 0.9)]
    names = ("user", "item", "rank", "score")
    lists = read_ranked_lists(write(tmp_path / "b.parquet", both, names))
    assert lists.of("u") == ["a", "b"] and lists.scores.tolist() == [0.1, 0.9]


def test_ids_are_text_as_they_stand(tmp_path):
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"user": [1, 1], "item": [10, 9], "score": [0.0, 0.0]}), path)
    assert as_dict(read_ranked_lists(path)) == {"1": ["9", "10"]}
    path = write(tmp_path / "lists.csv", [("01", "1.0", 1), ("1", "NA", 1)])
    assert as_dict(read_ranked_lists(path)) == {"01": ["1.0"], "1": ["NA"]}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "user,item,score\nu,i,0.1\nu,,0.2\n", r"a.csv:3: item is empty"),
        ("a.csv", "user,item,score\nu,i,nan\n", r"a.csv:2: score is not a number: 'nan'"),
        ("a.csv", "u1,i1,0.3\n", r"no column user nor item nor score or rank; it has u1, i1, 0.3"),
        ("a.csv", "user,user_id,item,score\n", None),
        ("a.csv", "uid,user_id,item,score\n", r"uid, user_id may all be the user; name one of"),
        ("a.csv", "user,item,rating\nu,i,1\n", r"no column score or rank; it has user, item, rat"),
        ("a.jsonl", '{"user": "u", "item": "i", "score": "x"}', r"a.jsonl:1: score is not a num"),
        ("a.jsonl", '{"user": "u", "item": "i", "score": 1}\n{"user": "u"}', r"a.jsonl:2: no fi"),
        ("a.run", "u Q0 i 1 0.5 x\nu Q0 i 1 0.5\n", r"a.run:2: 5 columns instead of 6 \(user, Q0"),
        ("a.run", "u Q0 i 1 best x\n", r"a.run:1: score is not a number: 'best'"),
        ("a.txt", "u Q0 i 1 0.5 x\n", r"a.txt: no reader of lists for '.txt'; rename it to one of"),
        ("a.csv", "", r"a.csv is empty; fetch it again"),
    ],
)
def test_faults_are_told_with_file_and_line(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text)
    if told is None:  # The exact name wins; there are no rows.
        told = "no usable rows"
    with pytest.raises(DataError, match=told) as error:
        read_ranked_lists(path)
    assert "\n" not in str(error.value)


def test_bad_rows_may_be_left_out(tmp_path):
    for name, text in [
        ("a.csv", "user,item,score\nu,i,0.1\nu,,0.2\n"),
        ("a.run", "u Q0 i 1 0.1 x\nu Q0 i 1\n"),
        ("a.jsonl", '{"user": "u", "item": "i", "score": 0.1}\n{}\n'),
    ]:
        (tmp_path / name).write_text(text)
        lists = read_ranked_lists(tmp_path / name, skip_bad_rows=True)
        assert as_dict(lists) == {"u": ["i"]} and lists.skipped_rows == 1


def test_a_folder_is_one_file_after_the_other(tmp_path):
    write(tmp_path / "b.csv", PLAIN[2:])
    write(tmp_path / "a.csv", PLAIN[:2])
    (tmp_path / "_manifest.json").write_text("{")
    (tmp_path / "readme.txt").write_text("x")
    assert as_dict(read_ranked_lists(tmp_path)) == slow_lists(PLAIN)
    write(tmp_path / "c.csv", [("u", "i", 1)], ("user", "item", "rank"))
    with pytest.raises(DataError, match=r"c.csv has the columns user, item, rank, the file before"):
        read_ranked_lists(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no lists; name a file, or a folder of"):
        read_ranked_lists(tmp_path / "empty")


def test_an_unknown_user_has_no_list(tmp_path):
    lists = read_ranked_lists(write(tmp_path / "a.csv", PLAIN))
    with pytest.raises(DataError, match="user 'x' has no list; ids look like u1, 2"):
        lists.of("x")


# Pairs.


def test_pairs_are_read_with_and_without_ranks(tmp_path):
    path = write(tmp_path / "a.csv", [("u", "i"), ("v", "j")], ("user_id", "item_id"))
    assert read_pairs(path).to_pydict() == {"user": ["u", "v"], "item": ["i", "j"]}
    path = write(tmp_path / "b.csv", [("u", "i", "best")], ("user", "item", "score"))
    assert read_pairs(path).to_pydict() == {"user": ["u"], "item": ["i"]}
    path = tmp_path / "a.qrels"
    path.write_text("u 0 i 1\nu 0 j 0\nv 0 k 2\n")
    assert read_pairs(path).to_pydict() == {"user": ["u", "v"], "item": ["i", "k"]}
    path.write_text("u 0 i\n")
    with pytest.raises(DataError, match=r"a.qrels:1: 3 columns instead of 4"):
        read_pairs(path)


# Writing.


@pytest.mark.parametrize("ending", ["parquet", "csv", "trec"])
def test_what_is_written_is_read_back(tmp_path, ending):
    lists = read_ranked_lists(write(tmp_path / "in.csv", PLAIN))
    path = tmp_path / f"out.{ending}"
    lists.save(path)
    back = read_ranked_lists(path)
    assert as_dict(back) == as_dict(lists)
    np.testing.assert_allclose(back.scores, lists.scores, rtol=1e-6)
    if ending != "trec":
        np.testing.assert_array_equal(back.scores.astype("f4"), lists.scores.astype("f4"))


@settings(deadline=None)
@given(ROWS, st.booleans())
def test_readers_of_a_run_find_our_order(tmp_path_factory, rows, by_rank):
    """Whatever our ranks say, sorting by score as trec_eval does, in float32, gives them."""
    rows = [(user.replace(" ", "+"), item.replace(" ", "+"), number) for user, item, number in rows]
    rows = [(*row[:2], 0.5, place) for place, row in enumerate(rows)]
    columns = dict(
        zip(("user", "item", "score", "rank"), map(list, zip(*rows, strict=True)), strict=True)
    )
    if by_rank:
        del columns["score"]
    lists = RankedLists.from_table(pa.table(columns), "a table")
    path = tmp_path_factory.mktemp("runs") / "out.trec"
    lists.save(path)
    found = [line.split() for line in path.read_text().splitlines()]
    scores = [(user, item, np.float32(score)) for user, _, item, _, score, _ in found]
    assert slow_lists(scores) == as_dict(lists)


def test_what_cannot_be_written_is_told(tmp_path):
    table = pa.table(
        {"user_id": ["u"], "rank": [1], "item_id": ["an item"], "score": [np.float32(1)]}
    )
    told = r"item_id 'an item' holds a blank, which a TREC run cannot; write .csv or .parquet"
    with pytest.raises(DataError, match=told):
        write_table(tmp_path / "a.trec", table)
    with pytest.raises(DataError, match=r"a.txt: no lists are written .* end in .parquet, .csv"):
        write_table(tmp_path / "a.txt", table)
    assert not list(tmp_path.iterdir())
