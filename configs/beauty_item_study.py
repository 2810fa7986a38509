r"""A study on Amazon Beauty: the item-level model's heads, losses and prefix weights, over seeds.

    python -m experiments.compare --config=configs/beauty_item_study.py --workdir=runs/beauty_item_study \
        --data_dir=FOLDER

The variants of `configs/office_item_study.py`, with beta and eta as published for Beauty and T5 (arXiv 2603.02730).
All but pairwise APAO have been run with three seeds; results are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.beauty import get_config as beauty
from configs.office_item_study import item_study


def get_config() -> ConfigDict:
    """Four heads, five losses; three seeds."""
    base = beauty()
    base.loss.beta, base.loss.eta = 0.1, 1e-5
    c = item_study("Amazon Beauty, item-level: heads and losses", base)
    c.variants.pairwise.loss.beta, c.variants.pairwise.loss.eta = 0.1, 1e-4
    return c
