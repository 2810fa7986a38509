r"""Your own table of clicks, CSV, TSV or Parquet: copy this file, or use it as it is.

    python -m experiments.train --config=configs/table.py --workdir=runs/clicks \
        --config.data.path=clicks.csv --config.data.options.user=user_id --config.data.options.item=item_id \
        --config.data.options.time=timestamp
    python -m experiments.evaluate --workdir=runs/clicks --split=test

A row is one click (view, purchase, play); the file has a column of users, one of items, and, unless its rows are
already in the order in which things happened, one of times. Give the names of your columns. `clicks.parquet` is read
in the same way. A path starts from the current folder, or from the data folder where GR_DATA or --config.data_dir
names one; an absolute path stands as it is.

What happens: every user's clicks are put in order of time; the last one is the test, the one before it validation, the
rest is trained on. Items need no text: semantic IDs are made from who took what. With a table of items that has titles,
name it by --config.data.options.items_path=items.csv, set --config.semantic_ids.vectors=both, and recommendations are
shown by title.

Made for 100 to 20,000 items and up to a few million clicks; a log of 400 users, 120 items and 4,705 clicks trains in
about a minute on two cores. Evaluation prints a table that compares the model with the baselines.
"""

from ml_collections import ConfigDict, config_dict

from configs.base import config_dict_of
from gr.runs import table_experiment


def get_config() -> ConfigDict:
    """A click log without text, a small item-level model with an item tower and a memory."""
    c = config_dict_of(table_experiment())
    c.name = "My clicks"

    # The table. Fields of None are not passed to the reader, `gr.data.read_table`; all can be set on the command line.
    c.data.path = ""  # Such as clicks.csv.
    options = c.data.options.unlock()
    # Columns by name; in a file without a header by number, "0", "1", ...
    options.user = config_dict.placeholder(str)  # Needed.
    options.item = config_dict.placeholder(str)  # Needed.
    options.time = config_dict.placeholder(str)  # None: the rows are in order.
    options.rating = config_dict.placeholder(str)  # Only for min_rating.
    # The file, where it is no plain .csv, .tsv or .parquet with a header.
    options.separator = config_dict.placeholder(str)
    options.encoding = config_dict.placeholder(str)
    options.header = config_dict.placeholder(bool)
    options.quoted = config_dict.placeholder(bool)
    # A table of items, with the same item column, and its column of titles.
    options.items_path = config_dict.placeholder(str)
    options.title = config_dict.placeholder(str)
    # Filters: low ratings, duplicates, users and items with fewer clicks (often 5).
    options.min_rating = config_dict.placeholder(float)
    options.drop_duplicates = config_dict.placeholder(bool)
    options.k_core = config_dict.placeholder(int)

    # How it is split: each user's last click is the test ("leave_one_out"), or the last tenth of all clicks by time
    # ("by_time", which needs times).
    c.data.split = "leave_one_out"
    c.data.max_history = 50  # The latest items of a user that the model sees.

    # Semantic IDs: two codes of 64, and a third that tells apart the items that share both. For more than 20,000
    # items take 256 codes.
    c.semantic_ids.num_levels = 2
    c.semantic_ids.codebook_size = 64

    # Training keeps the best of its evaluations, one an epoch, and ends when five in a row were no better. The learning
    # rate has decayed to its end after so many epochs: with 16, logs of 50,000 clicks and more overfit before that. A
    # log of some thousand clicks may want more; see docs/results.md.
    c.training.num_epochs = 8
    c.training.patience = 5
    return c
