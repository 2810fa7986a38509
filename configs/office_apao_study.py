r"""A study on Amazon Office: cross-entropy, MSL and APAO, pointwise and pairwise, over seeds.

    python -m experiments.compare --config=configs/office_apao_study.py --workdir=runs/office_study \
        --data_dir=FOLDER

All variants have the size, the 40 epochs and the schedule of `configs/amazon_office_small.py`. Beta and eta of APAO and
MSL's temperature are the published choices for Office and T5 (arXiv 2603.02730); negatives are drawn for one target in
sixteen, and at depth 1 every first code is one. Results are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.amazon_office_small import get_config as small
from configs.base import base_study

LABELS = {
    "ce": "CE",
    "msl": "MSL",
    "apao_pointwise": "APAO pointwise",
    "apao_pairwise": "APAO pairwise",
}


def get_config() -> ConfigDict:
    """Four losses, three seeds."""
    return study("Amazon Office, small: losses", small(), seeds=(0, 1, 2))


def study(name: str, base: ConfigDict, seeds: tuple[int, ...]) -> ConfigDict:
    """The four losses on a base experiment."""
    c = base_study(name, base, LABELS, reference="ce", seeds=seeds)
    for key, variant in c.variants.items():
        variant.loss.name = key
    c.variants.msl.loss.tau = 2.0
    pointwise, pairwise = c.variants.apao_pointwise.loss, c.variants.apao_pairwise.loss
    pointwise.beta, pointwise.eta = 0.3, 1e-4
    pairwise.beta, pairwise.eta = 0.2, 3e-5
    pairwise.num_negatives = 100
    pairwise.pairwise_share = 0.0625
    pairwise.all_first_codes = True
    return c
