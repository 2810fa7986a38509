"""`load_sequences`: one entry to all readers, for configurations that name a format or their own reader."""

import inspect
import os
from collections.abc import Callable
from typing import Any

from gr.data.amazon import read_amazon_ratings, read_amazon_reviews
from gr.data.inter_json import read_inter_json
from gr.data.json_lines import read_json_lines
from gr.data.minionerec import read_minionerec
from gr.data.movielens import read_movielens
from gr.data.movielens_fetch import fetch_movielens_100k
from gr.data.recbole import read_recbole
from gr.data.rows import near_name
from gr.data.sequences import DataError, Sequences
from gr.data.synthetic import synthetic_sequences
from gr.data.tables import read_table
from gr.fields import load_own

FORMATS: dict[str, Callable[..., Sequences]] = {
    "amazon_ratings": read_amazon_ratings,
    "amazon_reviews": read_amazon_reviews,
    "inter_json": read_inter_json,
    "json_lines": read_json_lines,
    "minionerec": read_minionerec,
    "movielens": read_movielens,
    "recbole": read_recbole,
    "table": read_table,
}
_WITHOUT_PATH = "synthetic"
_FETCHED = "movielens_100k"


def load_sequences(
    format: str, path: str | os.PathLike[str] | None = None, **options: Any
) -> Sequences:
    """Reads data in a named form.

    Args:
        format: a key of `FORMATS`; `movielens_100k`, which is fetched into `path` if missing; `synthetic`, which needs
            no path; or `module:name`, your own function `(path, **options) -> Sequences`, which gets None if no path is
            given.
        path: the file or folder.
        **options: of the reader, by name.

    Raises:
        DataError: an unknown format or option, a missing path, your own reader if it cannot be imported or returns
            something else, and errors of the reader.
    """
    if format == _WITHOUT_PATH:
        _check_options(format, synthetic_sequences, options)
        return synthetic_sequences(**options)
    reader = read_recbole if format == _FETCHED else FORMATS.get(format)
    if reader is None:
        known = sorted((*FORMATS, _FETCHED, _WITHOUT_PATH))
        reader = load_own(format, "data format", known, DataError)
    elif path is None:
        raise DataError(f"data format {format!r} needs a path")
    _check_options(format, reader, options)
    sequences = reader(fetch_movielens_100k(path) if format == _FETCHED else path, **options)
    if not isinstance(sequences, Sequences):
        raise DataError(
            f"data format {format!r} returned a {type(sequences).__name__}; a reader is a function "
            "(path, **options) -> gr.data.Sequences"
        )
    return sequences


def _check_options(format: str, reader: Callable[..., Sequences], options: dict[str, Any]) -> None:
    parameters = list(inspect.signature(reader).parameters.values())
    if format != _WITHOUT_PATH:
        parameters = parameters[1:]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    parameters = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    known = [parameter.name for parameter in parameters]
    unknown = [name for name in options if name not in known and not takes_any]
    if unknown:
        raise DataError(
            f"data format {format!r} has no option {', '.join(unknown)}; it has {', '.join(known)}"
            f"{near_name(unknown[0], known)}"
        )
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in options]
    if missing:
        raise DataError(f"data format {format!r} needs the option {', '.join(missing)}")
