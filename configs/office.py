r"""Amazon Office (2014, 5-core; McAuley et al.): the item-level model with an item tower and its memory.

    python -m experiments.train --config=configs/office.py --workdir=runs/office --config.data_dir=FOLDER
    python -m experiments.evaluate --workdir=runs/office --split=test

FOLDER holds `amazon-office/Office.inter.json`, `Office.item.json` and `Office.index.rq-kmeans.json` (or is named by
the environment variable GR_DATA). Settings were chosen on validation alone; docs/results.md says how, and what came
out. `configs/amazon_office.py` is the papers' form, TIGER's size.
"""

from ml_collections import ConfigDict

from configs.base import base_config


def get_config() -> ConfigDict:
    """Office, item-level."""
    c = item_level(base_config())
    c.name = "Amazon Office"
    c.data.format = "inter_json"
    c.data.path = "amazon-office/Office.inter.json"
    # What came before an item also tells what goes with it.
    c.data.reversed_share = 0.3
    c.semantic_ids.path = "amazon-office/Office.index.rq-kmeans.json"
    return c


def item_level(c: ConfigDict) -> ConfigDict:
    """What is common to the item-level models: an item tower, cross-entropy, strong decay, a tuned memory."""
    c.backbone = "item_decoder"
    c.item_decoder.item_share = 0.5
    c.data.num_buckets = 3
    c.training.items_per_batch = 512
    c.training.num_epochs = 24
    c.training.weight_decay = 0.2
    c.training.eval_every_epochs = 3.0
    c.training.eval_users = 1024
    c.memory.weight = "tuned"
    return c
