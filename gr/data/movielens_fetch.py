"""Fetches MovieLens-100K (Harper and Konstan, TiiS 2015) from several sources."""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from gr.data.files import reading, write_atomically
from gr.data.movielens import GENRES_100K, split_title
from gr.data.sequences import DataError

HOME_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
HOME_MD5 = "0e33842e24a9c977be4e0107933c0723"
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
NUM_INTERACTIONS = 100_000
NUM_ITEMS = 1_682

INTER_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
ITEM_HEADER = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"

_HOME_TIMEOUT = 15  # Seconds; behind a closed network the wheel should not have to wait long.
_WHEEL_TIMEOUT = 120


def fetch_movielens_100k(folder: str | os.PathLike[str]) -> Path:
    """Makes sure that `folder` holds `ml-100k.inter` and `ml-100k.item`; returns the path of the former.

    The data is taken from `folder` itself, else from its home site, else from a wheel on the Python
    package index that carries it. Checksums are verified, and from either source the same two files
    are written, in RecBole's form.

    Raises:
        DataError: if none of the three has it; says what was tried and what to do.
    """
    inter_path = Path(folder) / "ml-100k.inter"
    item_path = inter_path.with_suffix(".item")
    if inter_path.exists() and item_path.exists():
        with reading(folder):
            _check(inter_path, inter_path.read_text("utf-8"), item_path.read_text("utf-8"))
        return inter_path

    tried = []
    for source, fetch in _SOURCES.items():
        try:
            inter, item = fetch()
        except (OSError, HTTPException, DataError, subprocess.SubprocessError) as error:
            tried.append(f"{source}: {error}")
            continue
        _check(source, inter, item)
        write_atomically(item_path, item.encode())
        write_atomically(inter_path, inter.encode())
        return inter_path
    raise DataError(
        f"MovieLens-100K is not in {folder} and could not be fetched. Tried\n  "
        + "\n  ".join(tried)
        + "\nGo on without a network with the synthetic data (configs/synthetic.py), or put ml-100k.inter and "
        f"ml-100k.item into {folder}."
    )


def _from_home() -> tuple[str, str]:
    """The home site's zip, turned into atomic files."""
    content = _download(HOME_URL, _HOME_TIMEOUT)
    _check_digest(HOME_URL, hashlib.md5(content).hexdigest(), HOME_MD5)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        data = archive.read("ml-100k/u.data").decode("ascii")
        movies = archive.read("ml-100k/u.item").decode("latin-1")
    items = [ITEM_HEADER]
    for line in movies.splitlines():
        number, title, _, _, _, *flags = line.split("|")
        genres = [genre for genre, flag in zip(GENRES_100K, flags, strict=True) if flag == "1"]
        items.append("\t".join((number, *split_title(title), " ".join(genres))))
    return _text([INTER_HEADER, *data.splitlines()]), _text(items)


def _from_wheel() -> tuple[str, str]:
    """The wheel's atomic files, with two misprinted items corrected."""
    with tempfile.TemporaryDirectory() as folder:
        content = _download_wheel(WHEEL, Path(folder)).read_bytes()
    _check_digest(WHEEL, hashlib.sha256(content).hexdigest(), WHEEL_SHA256)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        inter, item = (
            archive.read(f"recbole/dataset_example/ml-100k/ml-100k.{kind}").decode("utf-8")
            for kind in ("inter", "item")
        )
    items = [ITEM_HEADER]
    for line in item.splitlines()[1:]:
        number, title, year, genres = line.split("\t")
        if (
            not year.isdigit()
        ):  # "unkonwn" for a film without a year; or the year left in the title.
            title, year = split_title(title.replace("unkonwn", "unknown"))
        items.append("\t".join((number, title, year, genres)))
    return _text(inter.splitlines()), _text(items)


_SOURCES: dict[str, Callable[[], tuple[str, str]]] = {
    f"home site {HOME_URL}": lambda: _from_home(),
    f"wheel {WHEEL} (pip download)": lambda: _from_wheel(),
}


def _download(url: str, timeout: float) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return response.read()


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Lets pip fetch a wheel, so that mirrors and proxies set up for pip are used."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_WHEEL_TIMEOUT)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["no wheel, and no message from pip"]
        raise DataError(said[-1])
    return wheels[0]


def _check_digest(source: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise DataError(
            f"{source}: checksum {digest}, not {expected}; the download was changed or cut"
        )


def _check(source: object, inter: str, item: str) -> None:
    """Counts rows, so that a truncated file is not accepted."""
    rows = (inter.count("\n") - 1, item.count("\n") - 1)
    if rows != (NUM_INTERACTIONS, NUM_ITEMS):
        raise DataError(
            f"{source}: {rows[0]} interactions and {rows[1]} items, not {NUM_INTERACTIONS} and "
            f"{NUM_ITEMS}; delete the files so that they are fetched again"
        )


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
