r"""A study on Amazon Office: what reinforcement learning adds to supervised training, over seeds.

    python -m experiments.compare --config=configs/office_rl_study.py --workdir=runs/office_rl_study \
        --data_dir=FOLDER

Trains the supervised model (pointwise APAO, as in `configs/office_apao_study.py`), then continues from each seed's run.
All variants have the same validation targets of the same 3,881 users, batches, number of updates and 48 token
evaluations per user. The other 1,024 users choose the best step. Every variant but the last keeps the targets'
cross-entropy beside the policy's loss. One variant has only cross-entropy, to separate the gain of rewards from the
gain of new targets. Results are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.amazon_office_rl import get_config as office_rl
from configs.office_apao_study import get_config as supervised_study

LABELS = {
    "supervised": "supervised (APAO pointwise)",
    "more_supervised": "cross-entropy for longer",
    "grpo": "GRPO",
    "tempo": "TEMPO",
    "sibling_grpo": "Sibling-GRPO",
    "vstar": "V-STAR (VED + Sibling-GRPO)",
    "vstar_alone": "V-STAR without cross-entropy",
}
START = "{study}/supervised/seed_{seed}"


def get_config() -> ConfigDict:
    """Seven ways, three seeds."""
    start = supervised_study().variants.apao_pointwise
    c = rl_study("Amazon Office, small: reinforcement learning", start, LABELS)
    c.variants.vstar_alone.rl.supervised_weight = 0.0
    c.variants.vstar_alone.rl.learning_rate = 3e-5
    # Without cross-entropy the validation loss rises from the start.
    c.variants.vstar_alone.rl.monitor = "ndcg@10"
    return c


def rl_study(name: str, start: ConfigDict, labels: dict[str, str]) -> ConfigDict:
    """A supervised run, the policies named in `labels`, cross-entropy alone; all other variants are V-STAR."""
    c = ConfigDict()
    c.name = name
    c.seeds = (0, 1, 2)
    c.reference = "supervised"
    c.labels = ConfigDict(labels)
    c.variants = ConfigDict({"supervised": start})
    for key in labels:
        if key in ("grpo", "tempo", "sibling_grpo"):
            c.variants[key] = without_value_head(key)
        elif key == "more_supervised":
            c.variants[key] = without_value_head("grpo")
            c.variants[key].reward.weights = (0.0, 0.0)
        elif key != "supervised":
            c.variants[key] = from_supervised()
    return c


def from_supervised() -> ConfigDict:
    """V-STAR from the study's own supervised run."""
    c = office_rl()
    c.init_from = START
    return c


def without_value_head(policy: str) -> ConfigDict:
    """A policy's loss on the candidates of a beam search that evaluates as many tokens as VED."""
    c = from_supervised()
    c.policy.name = policy
    c.search.name = "beam"
    c.value.learn = False
    return c
