from configs.base import base_config


def get_config():
    c = base_config()
    c.name = "Amazon Office"
    c.data.format = "inter_json"
    c.data.path = "amazon-office/Office.inter.json"
    c.semantic_ids.path = "amazon-office/Office.index.rq-kmeans.json"
    return c
