r"""Amazon Office with a tenth of its items never trained on: STATIC's cold-start claim (arXiv 2602.22647).

    python -m experiments.train --config=configs/office_cold.py --workdir=runs/office_cold --config.data_dir=FOLDER
    python -m experiments.evaluate --workdir=runs/office_cold --split=test --cold_start --data_dir=FOLDER

Semantic IDs are k-means of the items' texts (TF-IDF, SVD), fitted without the cold items, which get theirs by that fit.
The model is that of `configs/office.py` without its item tower; its memory knows of a cold item what its content
says. The backbone is a field, `--config.backbone=decoder_only`. docs/new_items.md has what came out.
"""

from ml_collections import ConfigDict

from configs.base import base_config
from configs.office import item_level


def get_config() -> ConfigDict:
    """Office, item-level, with text IDs and cold items."""
    c = item_level(base_config())
    c.name = "Amazon Office, cold items"
    c.item_decoder.item_share = 0.0  # An item tower knows nothing of cold items.
    c.data.format = "inter_json"
    c.data.path = "amazon-office/Office.inter.json"
    c.data.split = "cold_start"
    c.data.cold_share = 0.1
    c.semantic_ids.vectors = "text"
    c.semantic_ids.num_levels = 3
    c.semantic_ids.codebook_size = 256
    return c
