r"""A study on Amazon Office: what reinforcement learning adds to the item-level model, over seeds.

    python -m experiments.compare --config=configs/office_item_rl_study.py --workdir=runs/office_item_rl_study \
        --data_dir=FOLDER

As `configs/office_rl_study.py`, whose settings it has. The start is `configs/office.py` without item tower and memory,
which are no part of the policy. One variant more: a value head without its block. Results are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.office import get_config as office
from configs.office_rl_study import from_supervised, without_value_head

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
    c = ConfigDict()
    c.name = "Amazon Office, item-level: reinforcement learning"
    c.seeds = (0, 1, 2)
    c.reference = "supervised"
    c.labels = ConfigDict(LABELS)
    start = office()
    start.item_decoder.item_share = 0.0
    start.memory.weight = None
    c.variants = ConfigDict({"supervised": start})
    for policy in ("grpo", "sibling_grpo"):
        c.variants[policy] = without_value_head(policy)
    c.variants.more_supervised = without_value_head("grpo")
    c.variants.more_supervised.reward.weights = (0.0, 0.0)
    c.variants.vstar = from_supervised()
    c.variants.vstar_mlp = from_supervised()
    c.variants.vstar_mlp.value.block = False
    return c
