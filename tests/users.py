"""Small data written as lists."""

import numpy as np

from gr.data import Sequences


def sequences_of(rows, num_items):
    """The sequences of users, a list of item numbers each."""
    return Sequences(
        items=np.array([item for row in rows for item in row], dtype=np.int32),
        offsets=np.cumsum([0] + [len(row) for row in rows]),
        user_ids=np.arange(len(rows)).astype(str),
        item_ids=np.arange(num_items).astype(str),
    )
