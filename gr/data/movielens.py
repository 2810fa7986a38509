"""MovieLens in every layout that GroupLens publishes (Harper and Konstan, TiiS 2015)."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from gr.data.files import existing_file, open_bytes
from gr.data.interactions import sequences_from_table
from gr.data.recbole import read_recbole
from gr.data.rows import RowFormat, read_header, read_rows, require_columns
from gr.data.sequences import DataError, Sequences

# The order of the 0/1 columns at the end of u.item, which has no header.
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()

_RATING_NAMES = ["user", "item", "rating", "time"]
_CSV_RATING_NAMES = ["userId", "movieId", "rating", "timestamp"]
_CSV_MOVIE_NAMES = ["movieId", "title", "genres"]


def read_movielens(
    folder: str | os.PathLike[str],
    *,
    k_core: int = 0,
    min_rating: float | None = None,
    drop_duplicates: bool = False,
    skip_bad_rows: bool = False,
) -> Sequences:
    """Reads an unpacked MovieLens data set; the files in the folder determine the layout.

    `ratings.csv` and `movies.csv` (20M, 25M, 32M, latest), `ratings.dat` and `movies.dat` (1M,
    10M), `u.data` and `u.item` (100K), or `ml-100k.inter` and `ml-100k.item` (100K in RecBole's
    form). The movie file is authoritative: a rating of a movie that it lacks is a bad row. Item
    fields: `title` without the year, `release_year`, `genres` joined by commas.

    Args:
        folder: where the files are.
        k_core: keep only users and movies with at least so many ratings.
        min_rating: keep only ratings at least so high.
        drop_duplicates: of ratings with the same user, movie and time keep the first.
        skip_bad_rows: leave bad rows out and count them.

    Raises:
        DataError: none of the layouts, a missing file, or a bad row.
    """
    folder = Path(folder)
    file_name = next((name for name in _LAYOUTS if (folder / name).exists()), None)
    if file_name is None:
        raise DataError(f"{folder} holds none of {', '.join(_LAYOUTS)}; unpack MovieLens there")
    read = _LAYOUTS[file_name]
    if read is None:
        return read_recbole(
            folder / file_name,
            k_core=k_core,
            min_rating=min_rating,
            drop_duplicates=drop_duplicates,
            skip_bad_rows=skip_bad_rows,
        )
    (ratings, skipped), (movies, skipped_movies) = read(folder, skip_bad_rows)
    return sequences_from_table(
        ratings,
        source=folder / file_name,
        items_table=movies,
        k_core=k_core,
        min_rating=min_rating,
        drop_duplicates=drop_duplicates,
        skipped_rows=skipped + skipped_movies,
    )


def split_title(title: str) -> tuple[str, str]:
    """Splits `"Toy Story (1995)"` into title and year; no year, no change."""
    match = re.fullmatch(r"(.*\S)\s*\((\d{4})\)(?: \(V\))?\s*", title)
    return (match[1], match[2]) if match else (title.strip(), "")


_Counted = tuple[pa.Table, int]  # A table, and how many bad rows were left out of it.


def _read_csv(folder: Path, skip_bad_rows: bool) -> tuple[_Counted, _Counted]:
    path = folder / "movies.csv"
    names = read_header(path, ",", quoted=True)
    require_columns(path, names, _CSV_MOVIE_NAMES)
    form = RowFormat(
        names=names,
        ids=["movieId"],
        text=["title", "genres"],
        separator=",",
        quoted=True,
        header=True,
    )
    table, skipped_movies = read_rows(path, form, skip_bad_rows=skip_bad_rows)
    movies = _movies(*(table[name].to_pylist() for name in _CSV_MOVIE_NAMES))

    path = folder / "ratings.csv"
    names = read_header(path, ",", quoted=True)
    require_columns(path, names, _CSV_RATING_NAMES)
    renamed = dict(zip(_CSV_RATING_NAMES, _RATING_NAMES, strict=True))
    form = _rating_form(movies, [renamed.get(name, name) for name in names], ",", header=True)
    return read_rows(path, form, skip_bad_rows=skip_bad_rows), (movies, skipped_movies)


def _read_dat(folder: Path, skip_bad_rows: bool) -> tuple[_Counted, _Counted]:
    path = existing_file(folder / "movies.dat")
    form = RowFormat(
        names=["movie", "title", "genres"],
        ids=["movie"],
        text=["title", "genres"],
        separator="::",
        encoding=_encoding(path),
    )
    table, skipped_movies = read_rows(path, form, skip_bad_rows=skip_bad_rows)
    movies = _movies(*(table[name].to_pylist() for name in form.names))
    form = _rating_form(movies, _RATING_NAMES, "::")
    ratings = read_rows(folder / "ratings.dat", form, skip_bad_rows=skip_bad_rows)
    return ratings, (movies, skipped_movies)


def _read_100k(folder: Path, skip_bad_rows: bool) -> tuple[_Counted, _Counted]:
    path = existing_file(folder / "u.item")
    form = RowFormat(
        names=["movie", "title", "release date", "video release date", "url", *GENRES_100K],
        ids=["movie"],
        text=["title", *GENRES_100K],
        separator="|",
        encoding=_encoding(path),
    )
    table, skipped_movies = read_rows(path, form, skip_bad_rows=skip_bad_rows)
    flags = zip(*(table[genre].to_pylist() for genre in GENRES_100K), strict=True)
    genres = [
        "|".join(genre for genre, flag in zip(GENRES_100K, row, strict=True) if flag == "1")
        for row in flags
    ]
    movies = _movies(table["movie"].to_pylist(), table["title"].to_pylist(), genres)
    form = _rating_form(movies, _RATING_NAMES, "\t")
    ratings = read_rows(folder / "u.data", form, skip_bad_rows=skip_bad_rows)
    return ratings, (movies, skipped_movies)


# Newer layouts first; the first file that is there decides.
_LAYOUTS: dict[str, Callable[[Path, bool], tuple[_Counted, _Counted]] | None] = {
    "ratings.csv": _read_csv,
    "ratings.dat": _read_dat,
    "u.data": _read_100k,
    "ml-100k.inter": None,  # Read by read_recbole.
}


def _rating_form(
    movies: pa.Table, names: list[str], separator: str, header: bool = False
) -> RowFormat:
    return RowFormat(
        names=names,
        ids=["user", "item"],
        numbers=["rating"],
        times=["time"],
        separator=separator,
        quoted=separator == ",",
        header=header,
        known=("item", movies["item"].to_pylist()),
    )


def _movies(ids: list[str], titles: list[str], genres: list[str]) -> pa.Table:
    names, years = zip(*map(split_title, titles), strict=True)
    listed = ["" if genre == "(no genres listed)" else genre.replace("|", ", ") for genre in genres]
    return pa.table({"item": ids, "title": names, "release_year": years, "genres": listed})


def _encoding(path: Path) -> str:
    """UTF-8 (10M) or Latin-1 (100K and 1M); titles in the latter are not valid in the former."""
    with open_bytes(path) as file:
        content = file.read()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"
