"""The report as text."""

import numpy as np

from gr.data.sequences import Sequences
from gr.semantic_ids import SemanticIds, build_semantic_ids, example_table, report_table


def test_report_table_by_hand():
    # Four vectors at 0, four at 9: level 0 has two codes of four items, each group collides.
    vectors = np.repeat([[0.0], [9.0]], 4, axis=0)
    _, report = build_semantic_ids(
        vectors, np.arange(8), num_levels=1, codebook_size=4, collision="extra_code", seed=0
    )
    lines = report_table(report).splitlines()
    assert lines[0] == "Semantic IDs: residual k-means"
    # Two of four codes, perplexity 2 of 4 possible, half of the items at the largest.
    assert lines[2].split() == ["0", "4", "2", "50.0%", "2.0", "0.500", "50.0%"]
    assert lines[3].split() == ["1", "4", "4", "100.0%", "4.0", "1.000", "25.0%"]
    assert lines[4] == "before: 2 distinct SIDs of 8 items, 8 items share one, at most 4 each"
    assert lines[5].startswith("after 'extra_code': 8 distinct SIDs of 8 items, 0 items share")


def test_example_table_shows_the_most_popular_first():
    sequences = Sequences(
        items=np.array([2, 2, 0, 1], np.int32),
        offsets=np.array([0, 4]),
        user_ids=np.array(["u"]),
        item_ids=np.array(["a", "b", "c"]),
        item_fields={"title": np.array(["First", "", "Third"])},
    )
    ids = SemanticIds([[7], [3], [7]], (8,), sequences.item_ids)
    lines = example_table(sequences, ids).splitlines()[1:]
    assert [line.strip() for line in lines] == ["3 (1 items) b", "7 (2 items) Third; First"]
    assert len(example_table(sequences, ids, num_codes=1).splitlines()) == 2
