"""tmp"""

from ml_collections import ConfigDict

from configs.base import base_config


def get_config() -> ConfigDict:
    c = base_config()
    c.name = "Amazon Beauty"
    c.backbone = "item_decoder"
    c.data.format = "inter_json"
    c.data.path = "amazon-beauty/Beauty.inter.json"
    c.semantic_ids.path = "amazon-beauty/Beauty.index.rq-kmeans.json"
    c.data.max_history = 20
    c.training.num_epochs = 20
    c.training.items_per_batch = 1024
    c.training.eval_users = 1024
    return c
