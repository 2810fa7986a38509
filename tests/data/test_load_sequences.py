import json

import pytest

from gr.data import FORMATS, DataError, Sequences, load_sequences


def test_every_reader_is_found_by_its_name():
    assert sorted(FORMATS) == [
        "amazon_ratings",
        "amazon_reviews",
        "inter_json",
        "json_lines",
        "minionerec",
        "movielens",
        "recbole",
        "table",
    ]


def test_options_reach_the_reader(tmp_path):
    path = tmp_path / "x.inter.json"
    path.write_text(json.dumps({"0": [1, "bad"]}))
    assert load_sequences("inter_json", path, skip_bad_rows=True).skipped_rows == 1
    assert load_sequences("synthetic", num_users=7).num_users == 7


def test_movielens_100k_is_taken_from_its_folder(tmp_path, monkeypatch):
    from gr.data import movielens_fetch

    monkeypatch.setattr(movielens_fetch, "NUM_INTERACTIONS", 1)
    monkeypatch.setattr(movielens_fetch, "NUM_ITEMS", 1)
    (tmp_path / "ml-100k.inter").write_text(movielens_fetch.INTER_HEADER + "\n1\t2\t3\t4\n")
    (tmp_path / "ml-100k.item").write_text(
        movielens_fetch.ITEM_HEADER + "\n2\tFargo\t1996\tCrime\n"
    )
    assert load_sequences("movielens_100k", tmp_path).titles().tolist() == ["Fargo"]


@pytest.mark.parametrize(
    ("format", "path", "options", "fault"),
    [
        (
            "csv",
            "x",
            {},
            "data format 'csv' is unknown; use one of amazon_ratings, .*synthetic, table, or module:n",
        ),
        ("tabel", "x", {}, "did you mean table"),
        ("recbole", None, {}, "'recbole' needs a path"),
        (
            "recbole",
            "x",
            {"k_cor": 5},
            "no option k_cor; it has items_path, user, .*k_core.*did you mean 'k_core'",
        ),
        ("table", "x", {"user": "u"}, "needs the option item"),
        ("amazon_ratings", "x", {}, "needs the option edition"),
        ("synthetic", None, {"users": 5}, "no option users; it has num_users"),
        ("recbole", "absent.inter", {}, "absent.inter does not exist"),
    ],
)
def test_errors(format, path, options, fault):
    with pytest.raises(DataError, match=fault):
        load_sequences(format, path, **options)


# A reader of one's own.


def own(path, num_users=4):
    return load_sequences("synthetic", num_users=num_users)


def of_any_options(path, **options):
    assert path is None
    return load_sequences("synthetic", **options)


def no_sequences(path):
    return [path]


def test_an_own_reader_is_found_by_its_module_and_name():
    assert isinstance(load_sequences(f"{__name__}:own", "a folder"), Sequences)
    assert load_sequences(f"{__name__}:own", num_users=6).num_users == 6
    assert load_sequences(f"{__name__}:of_any_options", num_users=7).num_users == 7
    for name, options, fault in (
        ("owm", {}, "has no 'owm'; did you mean own"),
        ("own", {"users": 5}, "no option users; it has num_users"),
        ("no_sequences", {}, "returned a list; a reader is a function"),
    ):
        with pytest.raises(DataError, match=fault):
            load_sequences(f"{__name__}:{name}", **options)
