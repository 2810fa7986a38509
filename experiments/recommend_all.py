r"""Recommends items to all users of a trained run, into a folder of files.

    python -m experiments.recommend_all --workdir=DIR --output=FOLDER --shards=4
    python -m experiments.recommend_all --workdir=DIR --output=FOLDER --users=FILE --num_items=50

A file has the columns `user_id`, `rank` (from 1), `item_id`, `score` and `memory_share`, as Parquet or by `--form` as
CSV or TREC run; `_manifest.json` says what the lists were made of. Items and scores are those of
`experiments.recommend`. `--users=FILE` names users, one id a line.

The same command goes on where it was stopped: complete files stay, and the others are made as if nothing had happened.
Several processes share the work, each started with the same flags and its own number:

    python -m experiments.recommend_all --workdir=DIR --output=FOLDER --shards=64 --num_processes=8 --process_id=0

All devices of a process are used. Memory is needed for one shard at a time. Where the trie of all items does not fit on
one device, `--split_index=4` splits it over four, which decode the same users.
"""

import contextlib
import time
from collections.abc import Sequence

from absl import flags

from experiments.errors import one_line_errors, run_main
from gr.data.ranked_lists import WRITTEN
from gr.runs.recommend_all import recommend_all
from gr.runs.run import load_run
from gr.training import on_host


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Recommends as the flags say."""
    del argv
    # A trie that is to be split must not lie on one device first.
    with on_host() if _SPLIT_INDEX.value > 1 else contextlib.nullcontext():
        run = load_run(
            _WORKDIR.value,
            data_dir=_DATA_DIR.value,
            which=_CHECKPOINT.value,
            other_data=_OTHER_DATA.value,
        )
    start = time.monotonic()
    written = recommend_all(
        run,
        _OUTPUT.value,
        shards=_SHARDS.value,
        num_items=_NUM_ITEMS.value,
        form=_FORM.value,
        users=_USERS.value,
        split_index=_SPLIT_INDEX.value,
        process_id=_PROCESS_ID.value,
        num_processes=_NUM_PROCESSES.value,
    )
    files = "1 file" if len(written) == 1 else f"{len(written)} files"
    print(f"wrote {files} into {_OUTPUT.value} in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    _OUTPUT = flags.DEFINE_string("output", None, "Folder of the lists.")
    _SHARDS = flags.DEFINE_integer("shards", 1, "Number of files.")
    _NUM_ITEMS = flags.DEFINE_integer("num_items", 10, "Most items of a user.")
    _FORM = flags.DEFINE_enum("form", "parquet", WRITTEN, "Of the files.")
    _USERS = flags.DEFINE_string("users", None, "A file of user ids, one a line; else all users.")
    _SPLIT_INDEX = flags.DEFINE_integer(
        "split_index", 1, "Devices over which the trie is split; 1: each has the whole."
    )
    _PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
    _NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes that share the work.")
    _CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "last"), "Which model to use.")
    _DATA_DIR = flags.DEFINE_string(
        "data_dir", "", "The data's folder, if it has moved since training."
    )
    _OTHER_DATA = flags.DEFINE_boolean(
        "other_data", False, "Allow data that the run was not trained on."
    )
    flags.mark_flags_as_required(["workdir", "output"])
    run_main(main)
