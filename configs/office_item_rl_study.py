r"""A study on Amazon Office: what reinforcement learning adds to the item-level model, over seeds.

    python -m experiments.compare --config=configs/office_item_rl_study.py --workdir=runs/office_item_rl_study \
        --data_dir=FOLDER

As `configs/office_rl_study.py`, whose settings it has. The start is CE of `configs/office_item_study.py`, without item
tower and memory, which are no part of the policy. One variant more: a value head without its block. Results are in
docs/results.md.
"""

from ml_collections import ConfigDict

from configs.office_item_study import get_config as item_study
from configs.office_rl_study import rl_study

LABELS = {
    "supervised": "supervised (CE)",
    "more_supervised": "cross-entropy for longer",
    "grpo": "GRPO",
    "sibling_grpo": "Sibling-GRPO",
    "vstar": "V-STAR (VED + Sibling-GRPO)",
    "vstar_mlp": "V-STAR, value head without a block",
}


def get_config() -> ConfigDict:
    """Six ways, three seeds."""
    name = "Amazon Office, item-level: reinforcement learning"
    c = rl_study(name, item_study().variants.ce, LABELS)
    c.variants.vstar_mlp.value.block = False
    return c
