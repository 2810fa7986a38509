r"""V-STAR on Amazon Office: value-guided search and Sibling-GRPO from a supervised run.

    python -m experiments.train --config=configs/amazon_office_small.py --workdir=runs/office_apao \
        --config.loss.name=apao_pointwise --config.data_dir=FOLDER
    python -m experiments.rl --config=configs/amazon_office_rl.py --workdir=runs/office_rl \
        --config.init_from=runs/office_apao --config.data_dir=FOLDER

Other methods: `--config.policy.name=grpo|tempo`, `--config.search.name=beam|sample`.

Rewards are for validation targets of users that are not evaluated, beside the targets' cross-entropy. On training
targets, which the policy has memorised, rewards made it worse. Results are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs.base import base_rl_config


def get_config() -> ConfigDict:
    """V-STAR."""
    c = base_rl_config()
    c.name = "Amazon Office, V-STAR"
    c.policy.importance = True
    c.value.pretrain_steps = 150
    c.rl.targets = "validation"
    c.rl.batch_size = 128
    c.rl.num_steps = 75
    c.rl.supervised_weight = 1.0
    c.rl.eval_every = 15
    c.rl.monitor = "loss"  # Far less noisy than NDCG on 1,024 users.
    c.rl.checkpoint_every = 25
    return c
