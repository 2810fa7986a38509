r"""Amazon Beauty (2014, 5-core; McAuley et al.) with the published semantic IDs: the reference size.

    python -m experiments.train --config=configs/amazon_beauty.py --workdir=runs/beauty \
        --config.data_dir=FOLDER

FOLDER holds `amazon-beauty/Beauty.inter.json` and `Beauty.index.rq-kmeans.json` (or is named by the environment
variable GR_DATA). The data has no item texts: reports show item numbers. Not trained by us yet: no figures.
"""

from ml_collections import ConfigDict

from configs.base import base_config


def get_config() -> ConfigDict:
    """Beauty at the reference size."""
    c = base_config()
    c.name = "Amazon Beauty"
    c.data.format = "inter_json"
    c.data.path = "amazon-beauty/Beauty.inter.json"
    c.semantic_ids.path = "amazon-beauty/Beauty.index.rq-kmeans.json"
    c.encoder_decoder.dropout = 0.2
    c.decoder_only.dropout = 0.2
    c.training.num_epochs = 40
    c.training.eval_every_epochs = 2.0
    return c
