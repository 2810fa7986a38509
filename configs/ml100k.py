r"""MovieLens-100K (Harper and Konstan, 2015): the demo. Fetched, tokenised, trained and evaluated in five minutes.

    python -m experiments.train --config=configs/ml100k.py --workdir=runs/ml100k
    python -m experiments.evaluate --workdir=runs/ml100k --split=test

The item-level model, trained on all positions of every user's sequence, with a memory of the training sequences whose
weight is tuned on validation. Half of the ratings are given in the same second as the one before, and whole pages
within a minute, so every epoch sees them in another order (`data.time_jitter`). This suits these data only: ratings
were given long after the films were seen. In a click log the order is the signal, so start from `configs/table.py`
for one. Expected: see docs/results.md.
"""

from ml_collections import ConfigDict

from configs.base import base_config


def get_config() -> ConfigDict:
    """MovieLens-100K, item-level."""
    c = base_config()
    c.name = "MovieLens-100K"
    c.backbone = "item_decoder"

    c.data.format = "movielens_100k"  # Fetched into WORKDIR/data, unless data_dir holds it.
    c.data.max_history = 50
    c.data.num_buckets = 1  # Almost every window is full: one compilation.
    c.data.time_jitter = 60.0  # Seconds; for these ratings, whose order within a page says nothing.
    c.data.reversed_share = 0.5  # Nor does the direction: the memory, too, counts both alike.

    c.semantic_ids.num_levels = 2  # And an extra code for the items that share those two.
    c.semantic_ids.codebook_size = 64

    c.item_decoder.d_model = 96
    c.item_decoder.num_heads = 2
    c.item_decoder.dropout = 0.2
    c.item_decoder.num_facets = 0  # On validation they add nothing here.

    c.training.items_per_batch = 1024
    c.training.num_epochs = 12
    c.training.learning_rate = 3e-3
    c.training.weight_decay = 0.2
    c.training.log_every = 100
    c.training.eval_every_epochs = 3.0
    c.training.eval_users = 0

    c.decoding.num_beams = 50
    c.memory.weight = "tuned"
    # Half of the catalogue is recommended to somebody; with 0.2, less than half on validation.
    c.memory.settings.discount = 0.3
    return c
