r"""A study on Amazon Beauty: cross-entropy, MSL and APAO, one seed each.

    python -m experiments.compare --config=configs/beauty_apao_study.py --workdir=runs/beauty_study \
        --data_dir=FOLDER

The model's size is that of `configs/amazon_office_small.py`, for 24 epochs of Beauty's 3.4 times as many targets. Beta
and eta are the published choice for Beauty and T5 (arXiv 2603.02730). Results are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.amazon_beauty import get_config as beauty
from configs.amazon_office_small import shrink
from configs.office_apao_study import study


def get_config() -> ConfigDict:
    """Four losses, one seed."""
    base = shrink(beauty())
    base.name = "Amazon Beauty, small"
    base.training.num_epochs = 24
    base.training.eval_every_epochs = 3.0
    c = study("Amazon Beauty, small: losses", base, seeds=(0,))
    pointwise, pairwise = c.variants.apao_pointwise.loss, c.variants.apao_pairwise.loss
    pointwise.beta, pointwise.eta = 0.1, 1e-5
    pairwise.beta, pairwise.eta = 0.1, 1e-4
    return c
