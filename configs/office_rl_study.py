r"""A study on Amazon Office: what reinforcement learning adds to supervised training, over seeds.

    python -m experiments.compare --config=configs/office_rl_study.py --workdir=runs/office_rl_study \
        --data_dir=FOLDER

Trains the supervised model (pointwise APAO, as in `configs/office_apao_study.py`), then from each seed's model: more
supervised training, GRPO, TEMPO and Sibling-GRPO on candidates of a beam search, and V-STAR, Sibling-GRPO on
candidates of value-guided search. Each search may evaluate 48 tokens a user. Results are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.amazon_office_rl import get_config as office_rl
from configs.office_apao_study import get_config as supervised_study

LABELS = {
    "supervised": "supervised (APAO pointwise)",
    "more_supervised": "supervised for longer",
    "grpo": "GRPO",
    "tempo": "TEMPO",
    "sibling_grpo": "Sibling-GRPO",
    "vstar": "V-STAR (VED + Sibling-GRPO)",
}
START = "{study}/supervised/seed_{seed}"


def get_config() -> ConfigDict:
    """Six ways, three seeds."""
    c = ConfigDict()
    c.name = "Amazon Office, small: reinforcement learning"
    c.seeds = (0, 1, 2)
    c.reference = "supervised"
    c.labels = ConfigDict(LABELS)
    supervised = supervised_study().variants.apao_pointwise
    more = supervised.copy_and_resolve_references()
    more.training.init_from = START
    c.variants = ConfigDict({"supervised": supervised, "more_supervised": more})
    for policy in ("grpo", "tempo", "sibling_grpo"):
        variant = from_supervised()
        variant.policy.name = policy
        variant.search.name = "beam"
        variant.value.learn = False
        c.variants[policy] = variant
    c.variants.vstar = from_supervised()
    return c


def from_supervised() -> ConfigDict:
    """V-STAR from the study's own supervised run."""
    c = office_rl()
    c.init_from = START
    return c
