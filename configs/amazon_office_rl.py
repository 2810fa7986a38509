r"""V-STAR on Amazon Office: value-guided search and Sibling-GRPO from a supervised run.

    python -m experiments.train --config=configs/amazon_office_small.py --workdir=runs/office_apao \
        --config.loss.name=apao_pointwise --config.data_dir=FOLDER
    python -m experiments.rl --config=configs/amazon_office_rl.py --workdir=runs/office_rl \
        --config.init_from=runs/office_apao --config.data_dir=FOLDER

Other methods: `--config.policy.name=grpo|tempo`, `--config.search.name=beam|sample`.
"""

from ml_collections import ConfigDict

from configs.base_rl import base_rl_config


def get_config() -> ConfigDict:
    """V-STAR."""
    c = base_rl_config()
    c.name = "Amazon Office, V-STAR"
    return c
