r"""A study on Amazon Office: the item-level model's heads, losses and prefix weights, over seeds.

    python -m experiments.compare --config=configs/office_item_study.py --workdir=runs/office_item_study \
        --data_dir=FOLDER

All variants are `configs/office.py` without its item tower, without a memory and without reading backwards, so that
what is compared is the model that spells out codes. The heads add one thing at a time: a softmax over the vocabulary,
over the trie's children, with node embeddings, with facets. The losses and weights all have the last head; beta and eta
of APAO are the published choices for Office and T5 (arXiv 2603.02730). Results are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.base import base_study
from configs.office import get_config as office

LABELS = {
    "pointwise": "APAO pointwise, adaptive weights",
    "stateless": "APAO pointwise, stateless weights",
    "uniform": "APAO pointwise, uniform weights",
    "pairwise": "APAO pairwise",
    "ce": "CE",
    "vocabulary": "softmax over the vocabulary",
    "trie": "softmax over the trie's children",
    "nodes": "and node embeddings",
}


def get_config() -> ConfigDict:
    """Four heads, five losses; three seeds."""
    return item_study("Amazon Office, item-level: heads and losses", office())


def item_study(name: str, base: ConfigDict, labels: dict[str, str] = LABELS) -> ConfigDict:
    """The variants of an item-level experiment, without its item tower and its memory."""
    base.item_decoder.item_share = 0.0
    base.memory.weight = None
    base.data.reversed_share = 0.0
    base.loss.name = "apao_pointwise"
    c = base_study(name, base, labels, reference="pointwise", seeds=(0, 1, 2))
    v = c.variants
    v.stateless.loss.weights = "stateless"
    v.uniform.loss.weights = "uniform"
    v.pairwise.loss.name = "apao_pairwise"
    v.pairwise.loss.beta, v.pairwise.loss.eta = 0.2, 3e-5
    v.pairwise.loss.all_first_codes = True
    v.pairwise.loss.num_negatives = 32  # With 100, as published, a run on Office takes an hour.
    v.ce.loss.name = "ce"
    v.vocabulary.item_decoder.head = "vocabulary"
    v.vocabulary.item_decoder.node_depth = v.trie.item_decoder.node_depth = 0
    for key in labels.keys() & {"vocabulary", "trie", "nodes"}:
        v[key].item_decoder.num_facets = 0
    return c
