r"""Amazon Beauty (2014, 5-core; McAuley et al.): the item-level model with an item tower and its memory.

    python -m experiments.train --config=configs/beauty.py --workdir=runs/beauty --config.data_dir=FOLDER
    python -m experiments.evaluate --workdir=runs/beauty --split=test

FOLDER holds `amazon-beauty/Beauty.inter.json` and `Beauty.index.rq-kmeans.json` (or is named by the environment
variable GR_DATA). As `configs/office.py`, in larger batches.
"""

from ml_collections import ConfigDict

from configs.base import base_config
from configs.office import item_level


def get_config() -> ConfigDict:
    """Beauty, item-level."""
    c = item_level(base_config())
    c.name = "Amazon Beauty"
    c.data.format = "inter_json"
    c.data.path = "amazon-beauty/Beauty.inter.json"
    c.semantic_ids.path = "amazon-beauty/Beauty.index.rq-kmeans.json"
    c.training.items_per_batch = 2048
    c.training.num_epochs = 16
    return c
