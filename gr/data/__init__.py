"""Click logs to users' sequences, sequences to splits, splits to batches."""

from gr.data.inter_json import read_inter_json
from gr.data.movielens_fetch import fetch_movielens_100k
from gr.data.recbole import read_recbole
from gr.data.sequences import PAD_ITEM, DataError, Sequences, Splits, Targets
from gr.data.splits import by_time, leave_one_out, time_quantiles

__all__ = [
    "PAD_ITEM",
    "DataError",
    "Sequences",
    "Splits",
    "Targets",
    "by_time",
    "fetch_movielens_100k",
    "leave_one_out",
    "read_inter_json",
    "read_recbole",
    "time_quantiles",
]
