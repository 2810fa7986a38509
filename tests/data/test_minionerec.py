import csv

import pytest

from gr.data import DataError, read_minionerec, read_minionerec_splits

HEADER = "user_id history_item_title item_title history_item_id item_id history_item_sid item_sid".split()
SIDS = {7: "<a_1><b_2>", 3: "<a_1><b_3>", 5: "<a_2><b_2>", 9: "<a_9><b_9>"}


def row(user, history, item):
    return [
        user,
        [f"It's {number}" for number in history],
        f"It's {item}",
        history,
        item,
        [SIDS[number] for number in history],
        SIDS[item],
    ]


def write(folder, train, valid, test, nested=""):
    for split, rows in (("train", train), ("valid", valid), ("test", test)):
        path = folder / split / f"{nested}.csv" if nested else folder / f"{split}.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
    return folder


def pairs(splits, targets):
    return [
        (
            splits.sequences.user_ids[user],
            splits.sequences.item_ids[splits.sequences.items[position]],
        )
        for user, position in zip(targets.users, targets.positions, strict=True)
    ]


def histories(splits):
    sequences = splits.sequences
    return {
        user: sequences.item_ids[sequences.of(number)].tolist()
        for number, user in enumerate(sequences.user_ids)
    }


def test_rows_merge_into_sequences_with_the_given_splits(tmp_path):
    write(
        tmp_path,
        train=[row("A1", [7], 3), row("A2", [5], 7), row("A1", [7, 3], 5)],
        valid=[row("A1", [3, 5], 9)],  # The history is cut to its latest two items.
        test=[row("A2", [5, 7], 9), row("A3", [9, 7], 3)],
    )
    splits = read_minionerec_splits(tmp_path)
    assert histories(splits) == {"A1": list("7359"), "A2": list("579"), "A3": list("973")}
    assert pairs(splits, splits.train) == [("A1", "3"), ("A1", "5"), ("A2", "7")]
    assert pairs(splits, splits.validation) == [("A1", "9")]
    assert pairs(splits, splits.test) == [("A2", "9"), ("A3", "3")]
    fields = splits.sequences.item_fields
    assert dict(zip(splits.sequences.item_ids.tolist(), fields["sid"].tolist(), strict=True)) == {
        str(number): sid for number, sid in SIDS.items()
    }
    assert splits.sequences.titles()[0] == "It's 7"
    assert read_minionerec(tmp_path).items.tolist() == splits.sequences.items.tolist()


def test_shuffled_rows_and_rows_left_out(tmp_path):
    write(
        tmp_path,
        train=[row("A1", [7, 3], 5), row("A1", [7], 3)],
        valid=[],
        test=[row("A1", [3, 5, 9, 9], 7)],  # The two targets 9 are in no row of their own.
    )
    splits = read_minionerec_splits(tmp_path)
    assert histories(splits) == {"A1": list("735997")}
    assert pairs(splits, splits.train) == [("A1", "3"), ("A1", "5")]
    assert splits.test.positions.tolist() == [5]
    assert len(splits.validation) == 0


def test_files_in_folders_chosen_by_name(tmp_path):
    rows = [[row("A1", [7], 3)], [], []]
    write(tmp_path, *rows, nested="Office_5_2016-10-2018-11")
    assert len(read_minionerec(tmp_path).items) == 2
    write(tmp_path, *rows, nested="Toys_5_2016-10-2018-11")
    with pytest.raises(DataError, match=r"2 files train/\*\.csv instead of one"):
        read_minionerec(tmp_path)
    assert len(read_minionerec(tmp_path, name="Toys").items) == 2
    with pytest.raises(DataError, match=r"0 files train/Games\*\.csv instead of one"):
        read_minionerec(tmp_path, name="Games")


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (
            row("A1", [9, 9], 7),
            r"train\.csv:3: the history does not continue the earlier rows of user 'A1'",
        ),
        (
            ["A1", "[]", "It's 5", "[]", 5, "[]", "x"],
            r"train\.csv:3: history_item_id is no list of items",
        ),
        (
            ["A1", "[]", "It's 5", "exit()", 5, "[]", "x"],
            r"train\.csv:3: history_item_id is no list",
        ),
        (["A1", "[]"], r"train\.csv:3: 2 columns instead of 7"),
    ],
)
def test_bad_rows(tmp_path, bad, fault):
    write(tmp_path, train=[row("A1", [7], 3), bad], valid=[], test=[row("A1", [7, 3], 5)])
    with pytest.raises(DataError, match=fault):
        read_minionerec_splits(tmp_path)
    splits = read_minionerec_splits(tmp_path, skip_bad_rows=True)
    assert splits.sequences.skipped_rows == 1
    assert histories(splits) == {"A1": list("735")}


def test_missing_columns(tmp_path):
    write(tmp_path, train=[], valid=[], test=[])
    (tmp_path / "train.csv").write_text("user_id,item_id\nA1,3\n")
    with pytest.raises(DataError, match="no column 'history_item_id'"):
        read_minionerec(tmp_path)


def test_elements_that_are_missing(tmp_path):
    named = row("A1", [7], 3)
    named[1] = [None]  # No title of item 7 here; there is one in the next row.
    broken = row("A2", [3], 5)
    broken[3] = [3, None]
    write(tmp_path, train=[named, row("A3", [7], 5)], valid=[], test=[broken])
    with pytest.raises(
        DataError, match=r"test\.csv:2: history_item_id is no list of items: '.3, None"
    ):
        read_minionerec(tmp_path)
    sequences = read_minionerec(tmp_path, skip_bad_rows=True)
    assert sequences.skipped_rows == 1
    assert sequences.item_fields["title"][sequences.item_ids.tolist().index("7")] == "It's 7"


def test_a_column_that_stands_twice(tmp_path):
    write(tmp_path, [row("A1", [7], 3)], [], [])
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace("item_sid", "item_id"))
    with pytest.raises(DataError, match=r"train\.csv: column '(history_)?item_id' stands twice"):
        read_minionerec(tmp_path)
