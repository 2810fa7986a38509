import gzip

import pytest

from gr.data import DataError, read_recbole

INTER = """user_id:token\titem_id:token\trating:float\ttimestamp:float
7\t1\t5\t20
7\t2\t3\t10
8\t2\t4\t5
"""
ITEM = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
1\tToy Story\t1995\tAnimation Children's Comedy
2\tGoldenEye\t1995\tAction
3\tUnseen\t1990\t
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "toy.inter").write_text(INTER)
    (tmp_path / "toy.item").write_text(ITEM)
    return tmp_path / "toy.inter"


def test_interactions_and_item_fields(path):
    sequences = read_recbole(path)
    assert sequences.user_ids.tolist() == ["7", "8"]
    assert sequences.item_ids.tolist() == ["1", "2"]
    assert sequences.items.tolist() == [1, 0, 1]
    assert sequences.times.tolist() == [10, 20, 5]
    assert {name: field.tolist() for name, field in sequences.item_fields.items()} == {
        "title": ["Toy Story", "GoldenEye"],
        "release_year": ["1995", "1995"],
        "genres": ["Animation, Children's, Comedy", "Action"],
    }


def test_without_an_item_file_titles_are_ids(path):
    path.with_suffix(".item").unlink()
    sequences = read_recbole(path)
    assert sequences.item_fields == {}
    assert sequences.titles().tolist() == ["1", "2"]


def test_a_title_of_any_name(path):
    path.with_suffix(".item").write_text(
        "item_id:token\tname:token_seq\tmovie_title:token_seq\n"
        "1\tToy &amp; Story\tx\n2\t<b>GoldenEye</b>\ty\n"
    )
    assert read_recbole(path).titles().tolist() == ["x", "y"]
    assert read_recbole(path, title="name").titles().tolist() == ["Toy & Story", "GoldenEye"]
    with pytest.raises(DataError, match=r"toy\.item: no column 'names'.*'name'"):
        read_recbole(path, title="names")
    path.with_suffix(".item").unlink()
    with pytest.raises(DataError, match="title is of the item file; give items_path"):
        read_recbole(path, title="name")


def test_filters(path):
    assert read_recbole(path, min_rating=4).item_ids.tolist() == ["1", "2"]
    assert len(read_recbole(path, min_rating=4).items) == 2
    path.write_text(INTER + "8\t1\t4\t6\n9\t1\t5\t1\n")  # Users 7 and 8 have both items, 9 has one.
    assert read_recbole(path).user_ids.tolist() == ["7", "8", "9"]
    assert read_recbole(path, k_core=2).user_ids.tolist() == ["7", "8"]


def test_an_item_that_the_item_file_lacks_is_a_bad_row(path):
    path.write_text(INTER + "8\t99\t4\t5\n")
    with pytest.raises(DataError, match=r"toy\.inter:5: unknown item_id '99'"):
        read_recbole(path)
    assert read_recbole(path, skip_bad_rows=True).skipped_rows == 1


def test_bad_rows_of_both_files_are_counted(path):
    path.write_text(INTER + "8\t1\t4\tsoon\n8\t1\n")
    path.with_suffix(".item").write_text(ITEM + "4\ttoo few\n")
    with pytest.raises(DataError, match=r"toy\.item:5: 2 columns instead of 4"):
        read_recbole(path)
    sequences = read_recbole(path, skip_bad_rows=True)
    assert sequences.skipped_rows == 3
    assert len(sequences.items) == 3


def test_columns_by_other_names_and_no_times(tmp_path):
    path = tmp_path / "other.inter"
    path.write_text("session:token\tproduct:token\na\tx\na\ty\n")
    with pytest.raises(
        DataError, match="no column 'user_id', 'item_id', 'timestamp'; the file has"
    ):
        read_recbole(path)
    sequences = read_recbole(path, user="session", item="product", time=None)
    assert sequences.item_ids[sequences.items].tolist() == ["x", "y"]
    with pytest.raises(DataError, match="no column 'rating'"):
        read_recbole(path, user="session", item="product", time=None, min_rating=3)


def test_packed_files_encodings_and_dates(path):
    text = path.read_text().replace("\t20\n", "\t2020-01-01\n").replace("\t10\n", "\t2019-01-01\n")
    packed = path.with_name("packed.inter.gz")
    packed.write_bytes(gzip.compress(text.replace("\t5\n", "\t1970-01-01T00:00:05Z\n").encode()))
    packed.with_name("packed.item.gz").write_bytes(
        gzip.compress(ITEM.replace("Toy", "Toÿ").encode("latin-1"))
    )
    sequences = read_recbole(packed, encoding="latin-1")
    assert sequences.times.tolist() == [1546300800, 1577836800, 5]
    assert sequences.titles().tolist() == ["Toÿ Story", "GoldenEye"]
    with pytest.raises(DataError, match=r"item\.gz:2: movie_title is not utf-8 text"):
        read_recbole(packed)


def test_fields_of_one_name_keep_their_own(path):
    path.with_suffix(".item").write_text(
        "class:t\tgenre:t\titem:t\titem_id:t\n1\ta b\tx\t1\n1\tc\ty\t2\n"
    )
    fields = read_recbole(path).item_fields
    assert {name: field.tolist() for name, field in fields.items()} == {
        "genres": ["1", "1"],
        "genre": ["a b", "c"],
        "item": ["x", "y"],
    }


def test_one_column_cannot_have_two_roles(path):
    with pytest.raises(
        DataError, match=r"toy\.inter: column 'user_id' is named as user and as item"
    ):
        read_recbole(path, item="user_id")


def test_duplicates_are_dropped_on_demand(path):
    path.write_text(INTER + "7\t1\t2\t20\n7\t1\t5\t21\n")
    assert len(read_recbole(path).items) == 5
    assert read_recbole(path, drop_duplicates=True).times.tolist() == [10, 20, 21, 5]
