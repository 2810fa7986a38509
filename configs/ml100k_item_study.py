r"""A study on MovieLens-100K: the item-level model's heads, losses and prefix weights, over seeds.

    python -m experiments.compare --config=configs/ml100k_item_study.py --workdir=runs/ml100k_item_study

All variants are `configs/ml100k.py` without a memory and without reading backwards: those of
`configs/office_item_study.py`, with its beta and eta, since none are published for these data. No variant but `facets`
has facets here. `:by_time` after the path tests on the last tenth of all ratings instead of each user's last one.
Results of the latter are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.ml100k import get_config as ml100k
from configs.office_item_study import LABELS, item_study


def get_config(split: str = "leave_one_out") -> ConfigDict:
    """Four heads, five losses; three seeds."""
    base = ml100k()
    base.data.split = split
    labels = LABELS | {"facets": "APAO pointwise, adaptive weights, and facets"}
    del labels["nodes"]  # Those of the reference.
    c = item_study("MovieLens-100K, item-level: heads and losses", base, labels)
    c.variants.facets.item_decoder.num_facets = 16
    return c
