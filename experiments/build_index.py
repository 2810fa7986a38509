r"""Builds the index of a file of Semantic IDs and shows how large it is.

    python -m experiments.build_index --ids=FILE --output=index.gr \
        [--vocab_size=V] [--headroom=0.25] [--attributes=FILE.npy]

FILE is what `gr.semantic_ids.read_semantic_ids` reads: `*.index*.json`, `.npz` of `SemanticIds.save`, a CSV file, or
an `.npy` array of codes. Item i of the index is the i-th item of the file: in numeric order of the items' numbers for
JSON, else in the file's order. Read the index with `TrieIndex.load`.
"""

import time
from collections.abc import Sequence

from absl import flags

from experiments.errors import one_line_errors, run_main
from gr.reports import format_table
from gr.semantic_ids import read_semantic_ids
from gr.semantic_ids.arrays import load_npy
from gr.trie import TrieIndex
from gr.trie.statistics import Statistics, statistics

_IDS = flags.DEFINE_string("ids", None, "File of Semantic IDs.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write the index into.")
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", None, "V of the model; by default that of the Semantic IDs."
)
_HEADROOM = flags.DEFINE_float(
    "headroom", 0.0, "Room for later indexes of the same layout: 0.25 is a quarter more."
)
_ATTRIBUTES = flags.DEFINE_string(
    "attributes", None, "`.npy` file of truth values [items, attributes], to filter by."
)


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """IDs, index, statistics, file."""
    del argv
    semantic_ids = read_semantic_ids(_IDS.value)
    attributes = None if _ATTRIBUTES.value is None else load_npy(_ATTRIBUTES.value)
    started = time.perf_counter()
    index = TrieIndex.build(
        semantic_ids.tokens,
        semantic_ids.vocab_size if _VOCAB_SIZE.value is None else _VOCAB_SIZE.value,
        attributes=attributes,
        headroom=_HEADROOM.value,
        level_ranges=semantic_ids.level_ranges,
    )
    seconds = time.perf_counter() - started
    print(_text(statistics(index, semantic_ids.codebook_sizes), index))
    print(f"built in {seconds:.2f} s")
    index.save(_OUTPUT.value)
    print(f"wrote {_OUTPUT.value}")


def _text(counted: Statistics, index: TrieIndex) -> str:
    """A table with a line for each level, and what holds for the whole."""
    rows = [["level", "storage", "nodes", "mean branching", "largest", "most items below", "bytes"]]
    for number, level in enumerate(counted.levels, start=1):
        rows.append(
            [
                str(number),
                level.kind,
                f"{level.nodes:,}",
                f"{level.mean_branching:.2f}",
                f"{level.largest_branching:,}",
                f"{level.most_items:,}",
                f"{level.nbytes:,}",
            ]
        )
    lines = [
        format_table(rows),
        f"{counted.items:,} items, {counted.distinct_sids:,} distinct Semantic IDs; "
        f"{counted.colliding_items:,} items share theirs, at most {counted.largest_group:,} one",
        f"{counted.nbytes:,} bytes, {counted.bytes_per_item:.2f} an item; "
        f"the information floor is {counted.floor_bytes_per_item:.2f}",
    ]
    if index.attributes is not None:
        lines.append(
            f"of these {counted.attribute_bytes:,} bytes for "
            f"{index.layout.num_attributes} attributes"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    flags.mark_flags_as_required(["ids", "output"])
    run_main(main)
