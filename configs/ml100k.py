from configs.base import base_config


def get_config():
    c = base_config()
    c.name = "MovieLens-100K"
    c.data.format = "movielens_100k"
    c.data.max_history = 50
    return c
