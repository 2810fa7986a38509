"""Click logs to users' sequences, sequences to splits, splits to batches.

* Read: `load_sequences(format, path)`, or one of the readers `read_movielens`, `read_amazon_reviews`,
  `read_amazon_ratings`, `read_recbole`, `read_inter_json`, `read_json_lines`, `read_minionerec`, `read_table` and
  `synthetic_sequences`, returns `Sequences`: each user's items, oldest first.
* Split: `leave_one_out`, `by_time` (with cuts from `time_quantiles`), `cold_start` or `read_minionerec_splits` makes
  `Splits`: the targets of training, validation and test. `training_interactions` are all that may be learnt from.
* Batch: `train_batches_by_target`, `train_batches_by_user` and `evaluation_batches`, with histories padded to
  `bucket_lengths`. `Histories` are whole and not padded.
* Items alone, such as new ones: `read_items`.
* Write as text, for language models: `prompt_pieces` of a template such as `next_item`, `titled_pieces` of one with
  titles, `encode_prompts`, tokenizers by `load_tokenizer` and `grow_tokenizer`, names by `id_names` and `item_texts`.
* Look up: `find_items` finds items by id or title; `fingerprint` identifies data.

Bad input raises `DataError`, which names file, line and remedy.
"""

from gr.data.amazon import read_amazon_ratings, read_amazon_reviews
from gr.data.fingerprint import fingerprint, fingerprint_differences
from gr.data.inter_json import read_inter_json
from gr.data.items import read_items
from gr.data.json_lines import read_json_lines
from gr.data.load import FORMATS, load_sequences
from gr.data.lookup import find_items
from gr.data.minionerec import read_minionerec, read_minionerec_splits
from gr.data.movielens import read_movielens
from gr.data.movielens_fetch import fetch_movielens_100k
from gr.data.pipeline import (
    Histories,
    TrainBatches,
    bucket_lengths,
    evaluation_batches,
    histories,
    train_batches_by_target,
    train_batches_by_user,
)
from gr.data.prompts import (
    PromptPieces,
    TitledPieces,
    encode_prompts,
    grow_tokenizer,
    id_names,
    item_texts,
    load_tokenizer,
    next_item,
    next_titled_item,
    prompt_pieces,
    titled_pieces,
)
from gr.data.recbole import read_recbole
from gr.data.sequences import NO_ITEM, DataError, Sequences, Splits, Targets
from gr.data.splits import (
    by_time,
    cold_start,
    learn_from,
    leave_one_out,
    time_quantiles,
    training_interactions,
)
from gr.data.synthetic import synthetic_sequences
from gr.data.tables import read_table

__all__ = [
    "FORMATS",
    "NO_ITEM",
    "DataError",
    "Histories",
    "PromptPieces",
    "Sequences",
    "Splits",
    "Targets",
    "TitledPieces",
    "TrainBatches",
    "bucket_lengths",
    "by_time",
    "cold_start",
    "encode_prompts",
    "evaluation_batches",
    "fetch_movielens_100k",
    "find_items",
    "fingerprint",
    "fingerprint_differences",
    "grow_tokenizer",
    "histories",
    "id_names",
    "item_texts",
    "learn_from",
    "leave_one_out",
    "load_sequences",
    "load_tokenizer",
    "next_item",
    "next_titled_item",
    "prompt_pieces",
    "read_amazon_ratings",
    "read_amazon_reviews",
    "read_inter_json",
    "read_items",
    "read_json_lines",
    "read_minionerec",
    "read_minionerec_splits",
    "read_movielens",
    "read_recbole",
    "read_table",
    "synthetic_sequences",
    "time_quantiles",
    "titled_pieces",
    "train_batches_by_target",
    "train_batches_by_user",
    "training_interactions",
]
