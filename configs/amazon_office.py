r"""Amazon Office (2014, 5-core; McAuley et al.) with the published semantic IDs: the reference size.

    python -m experiments.train --config=configs/amazon_office.py --workdir=runs/office \
        --config.data_dir=FOLDER

FOLDER holds `amazon-office/Office.inter.json`, `Office.item.json` and `Office.index.rq-kmeans.json` (or is named by
the environment variable GR_DATA). The backbone is TIGER's size, trained on all positions of a user's sequence in one
pass; `--config.backbone=decoder_only` is the Llama-style one. The published one-target-per-example training with a
bidirectional encoder is `--config.training.level=target --config.encoder_decoder.causal_encoder=False
--config.encoder_decoder.recency_bias=False`.

The smaller `configs/amazon_office_small.py` trained to convergence on two shared CPU cores in 20 minutes; figures
are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.base import base_config


def get_config() -> ConfigDict:
    """Office at the reference size."""
    c = base_config()
    c.name = "Amazon Office"
    c.data.format = "inter_json"
    c.data.path = "amazon-office/Office.inter.json"
    c.semantic_ids.path = "amazon-office/Office.index.rq-kmeans.json"
    c.encoder_decoder.dropout = 0.2
    c.decoder_only.dropout = 0.2
    c.training.num_epochs = 40
    c.training.eval_every_epochs = 2.0
    return c
