import hashlib
import zipfile

import pytest

from gr.data import DataError, movielens_fetch, read_movielens, read_recbole
from gr.data.movielens import GENRES_100K, split_title
from gr.data.movielens_fetch import fetch_movielens_100k

# Two users, three movies, in every layout: user 5 took 10 and then 30; user 6 took 20 and then 10.
RATINGS = [
    ("5", "30", "3", "200"),
    ("6", "20", "4", "50"),
    ("5", "10", "5", "100"),
    ("6", "10", "1", "60"),
]
MOVIES = [
    ("10", "Toy Story (1995)", "Animation|Children's|Comedy"),
    ("20", "Misérables, Les (1995)", "Drama"),
    ("30", 'Say "Hi", Bob', ""),
]


def write_dat(folder):
    (folder / "ratings.dat").write_text("".join("::".join(row) + "\n" for row in RATINGS))
    movies = "".join("::".join(row) + "\n" for row in MOVIES)
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))


def write_csv(folder):
    rows = "".join(",".join(row) + "\n" for row in RATINGS)
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        "10,Toy Story (1995),Animation|Children's|Comedy\n"
        '20,"Misérables, Les (1995)",Drama\n'
        '30,"Say ""Hi"", Bob",(no genres listed)\n',
        encoding="utf-8",
    )


def write_100k(folder):
    (folder / "u.data").write_text("".join("\t".join(row) + "\n" for row in RATINGS))
    (folder / "u.item").write_bytes(u_item(MOVIES))


def u_item(movies):
    lines = []
    for number, title, genres in movies:
        flags = ["1" if genre in genres.split("|") else "0" for genre in GENRES_100K]
        lines.append("|".join((number, title, "01-Jan-1995", "", "http://x", *flags)))
    return "\n".join((*lines, "")).encode("latin-1")


@pytest.mark.parametrize("write", [write_dat, write_csv, write_100k])
def test_titles_without_entities_and_tags(tmp_path, write):
    write(tmp_path)
    path = next(p for p in sorted(tmp_path.iterdir()) if b"Toy Story" in p.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"Toy Story (", b"Tom &amp;amp; <b>Jerry</b> ("))
    sequences = read_movielens(tmp_path)
    assert sequences.titles()[2] == "Tom & Jerry"
    assert sequences.item_fields["release_year"][2] == "1995"


@pytest.mark.parametrize(
    ("write", "name", "separator"),
    [
        (write_dat, "ratings.dat", "::"),
        (write_csv, "ratings.csv", ","),
        (write_100k, "u.data", "\t"),
    ],
)
def test_every_layout_reads_the_same(tmp_path, write, name, separator):
    write(tmp_path)
    sequences = read_movielens(tmp_path)
    assert sequences.user_ids.tolist() == ["5", "6"]
    assert sequences.item_ids.tolist() == ["30", "20", "10"]
    assert sequences.item_ids[sequences.of(0)].tolist() == ["10", "30"]
    assert sequences.item_ids[sequences.of(1)].tolist() == ["20", "10"]
    assert sequences.times.tolist() == [100, 200, 50, 60]
    assert {name: field.tolist() for name, field in sequences.item_fields.items()} == {
        "title": ['Say "Hi", Bob', "Misérables, Les", "Toy Story"],
        "release_year": ["", "1995", "1995"],
        "genres": ["", "Drama", "Animation, Children's, Comedy"],
    }
    assert len(read_movielens(tmp_path, min_rating=4).items) == 2
    with (tmp_path / name).open("a") as file:
        file.write(separator.join(RATINGS[0]))
    assert len(read_movielens(tmp_path).items) == 5
    assert len(read_movielens(tmp_path, drop_duplicates=True).items) == 4


@pytest.mark.parametrize(
    ("write", "file_name", "row", "where"),
    [
        (write_dat, "ratings.dat", "5::99::3::1\n", r"ratings\.dat:5: unknown item '99'"),
        (
            write_csv,
            "ratings.csv",
            "5,10,3,then\n",
            r"ratings\.csv:6: time is not a number: 'then'",
        ),
        (write_100k, "u.data", "5\t10\t3\n", r"u\.data:5: 3 columns instead of 4"),
    ],
)
def test_bad_rows(tmp_path, write, file_name, row, where):
    write(tmp_path)
    with (tmp_path / file_name).open("a") as file:
        file.write(row)
    with pytest.raises(DataError, match=where):
        read_movielens(tmp_path)
    sequences = read_movielens(tmp_path, skip_bad_rows=True)
    assert (len(sequences.items), sequences.skipped_rows) == (4, 1)


def test_a_header_in_quotes(tmp_path):
    write_csv(tmp_path)
    text = (tmp_path / "ratings.csv").read_text()
    quoted = text.replace("userId,movieId", '"userId","movieId"')
    (tmp_path / "ratings.csv").write_text(quoted)
    assert len(read_movielens(tmp_path).items) == 4


def test_no_layout(tmp_path):
    with pytest.raises(DataError, match=r"holds none of ratings\.csv, ratings\.dat, u\.data"):
        read_movielens(tmp_path)


def test_titles():
    assert split_title("Toy Story (1995)") == ("Toy Story", "1995")
    assert split_title("Seven (Se7en) (1995)") == ("Seven (Se7en)", "1995")
    assert split_title("Land Before Time III (1995) (V)") == ("Land Before Time III", "1995")
    assert split_title("unknown") == ("unknown", "")


# Fetching: the two sources, each with the two movies in which they differ, give the same files.
HOME_MOVIES = [
    ("1", "Toy Story (1995)", "Animation|Children's|Comedy"),
    ("2", "unknown", "unknown"),
    ("3", "Land Before Time III (1995) (V)", "Animation"),
]
WHEEL_ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Comedy\n"
    "2\tunkonwn\tunkonwn\tunknown\n"
    "3\tLand Before Time III (1995)\tV\tAnimation\n"
)
DATA = "196\t1\t3\t881250949\n186\t2\t3\t891717742\n186\t3\t4\t891717743\n"
WHEEL_INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + DATA


def zipped(folder, members):
    path = folder / "source.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path.read_bytes()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Both sources, small, in place of the network; gives the list of those that were asked."""
    inside = "recbole/dataset_example/ml-100k/ml-100k."
    (tmp_path / "made").mkdir()
    home = zipped(
        tmp_path / "made", {"ml-100k/u.data": DATA, "ml-100k/u.item": u_item(HOME_MOVIES)}
    )
    wheel = zipped(
        tmp_path / "made", {inside + "inter": WHEEL_INTER.rstrip("\n"), inside + "item": WHEEL_ITEM}
    )
    asked = []

    def download(url, timeout):
        asked.append("home")
        return home

    def download_wheel(requirement, folder):
        asked.append("wheel")
        (folder / "some.whl").write_bytes(wheel)
        return folder / "some.whl"

    monkeypatch.setattr(movielens_fetch, "_download", download)
    monkeypatch.setattr(movielens_fetch, "_download_wheel", download_wheel)
    monkeypatch.setattr(movielens_fetch, "HOME_MD5", hashlib.md5(home).hexdigest())
    monkeypatch.setattr(movielens_fetch, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(movielens_fetch, "NUM_INTERACTIONS", 3)
    monkeypatch.setattr(movielens_fetch, "NUM_ITEMS", 3)
    return asked


def refuse(*args):
    raise OSError("no route to host")


def test_home_site_first_and_then_the_files_themselves(tmp_path, sources):
    path = fetch_movielens_100k(tmp_path / "data")
    assert sources == ["home"]
    assert fetch_movielens_100k(tmp_path / "data") == path
    assert sources == ["home"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["ml-100k.inter", "ml-100k.item"]


def test_both_sources_give_the_same_files(tmp_path, sources, monkeypatch):
    home = fetch_movielens_100k(tmp_path / "home")
    monkeypatch.setattr(movielens_fetch, "_download", refuse)
    wheel = fetch_movielens_100k(tmp_path / "wheel")
    assert sources == ["home", "wheel"]
    assert home.read_bytes() == wheel.read_bytes()
    assert home.with_suffix(".item").read_bytes() == wheel.with_suffix(".item").read_bytes()
    sequences = read_recbole(wheel)
    assert sequences.item_fields["title"].tolist() == [
        "Toy Story",
        "unknown",
        "Land Before Time III",
    ]
    assert sequences.item_fields["release_year"].tolist() == ["1995", "", "1995"]
    assert sequences.item_fields["genres"][0] == "Animation, Children's, Comedy"


def test_with_neither_source_the_way_on_is_named(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(movielens_fetch, "_download", refuse)
    monkeypatch.setattr(movielens_fetch, "WHEEL_SHA256", "another")
    with pytest.raises(DataError) as error:
        fetch_movielens_100k(tmp_path / "data")
    message = str(error.value)
    assert "files.grouplens.org" in message and "no route to host" in message
    assert "recbole==1.2.1" in message and "not another; the download was changed" in message
    assert "(configs/synthetic.py)" in message
    assert not (tmp_path / "data").exists()


def test_a_changed_zip_is_not_taken(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(movielens_fetch, "HOME_MD5", "another")
    fetch_movielens_100k(tmp_path / "data")
    assert sources == ["home", "wheel"]


def test_files_of_the_wrong_size_are_not_taken_for_the_data(tmp_path, sources):
    path = fetch_movielens_100k(tmp_path)
    path.write_text(WHEEL_INTER.replace(DATA, "196\t1\t3\t881250949\n"))
    with pytest.raises(
        DataError, match="1 interactions and 3 items, not 3 and 3; delete the files"
    ):
        fetch_movielens_100k(tmp_path)


def test_pip_that_fails_says_why(tmp_path, monkeypatch):
    class Done:
        returncode = 1
        stderr = "WARNING: first\nERROR: no matching distribution\n"

    monkeypatch.setattr(movielens_fetch.subprocess, "run", lambda *args, **kwargs: Done())
    with pytest.raises(DataError, match="ERROR: no matching distribution"):
        movielens_fetch._download_wheel("recbole==1.2.1", tmp_path)


def test_kept_files_that_are_no_text(tmp_path):
    (tmp_path / "ml-100k.inter").write_bytes(b"\xff")
    (tmp_path / "ml-100k.item").write_bytes(b"x")
    with pytest.raises(DataError, match="not UTF-8 text"):
        fetch_movielens_100k(tmp_path)
