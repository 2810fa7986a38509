"""Whole experiments as functions, for the command line, notebooks and other programs.

    experiment = gr.runs.table_experiment(user="user_id", item="item_id", time="timestamp")
    run = gr.runs.train(experiment, "runs/clicks", frame=clicks)
    metrics = gr.runs.evaluate(run, "test")
    items = gr.runs.recommend(run, user="42", top_k=10)
    paths = gr.runs.recommend_all(run, "lists", shards=4)
    lists = gr.runs.load_rankings("lists")

An `Experiment` holds every setting of a run. `reinforce` continues a trained run as a `Reinforcement` says, `load_run`
reads a workdir, `refit` trains it anew on what was held out, `add_items` gives it new items, `compare` runs a `Study`
of several experiments, and `evaluate_candidates` puts other people's lists into the same table.
"""

from gr.data.ranked_lists import RankedLists
from gr.data.ranked_lists import read_ranked_lists as load_rankings
from gr.runs.candidates import evaluate_candidates
from gr.runs.cold_start import evaluate_cold_start
from gr.runs.compare import compare
from gr.runs.data import load_data
from gr.runs.evaluate import evaluate, evaluate_search
from gr.runs.experiment import (
    ConfigError,
    DataConfig,
    DecoderOnlySizes,
    DecodingConfig,
    EncoderDecoderSizes,
    Experiment,
    ItemDecoderSizes,
    LoopConfig,
    MeshConfig,
    PolicyFields,
    ReinforcedExperiment,
    Reinforcement,
    RewardConfig,
    RlConfig,
    SemanticIdsConfig,
    Study,
    TrainingConfig,
    ValueFields,
    check_experiment,
    config_of,
    table_experiment,
)
from gr.runs.new_items import AddedItems, add_items
from gr.runs.recommend import Recommendation, history_rows, recommend
from gr.runs.recommend_all import recommend_all
from gr.runs.refit import refit
from gr.runs.reinforce import reinforce
from gr.runs.run import Run, load_run
from gr.runs.serving import export_recommender
from gr.runs.train import train

__all__ = [
    "AddedItems",
    "ConfigError",
    "DataConfig",
    "DecoderOnlySizes",
    "DecodingConfig",
    "EncoderDecoderSizes",
    "ItemDecoderSizes",
    "Experiment",
    "LoopConfig",
    "MeshConfig",
    "RankedLists",
    "PolicyFields",
    "Recommendation",
    "ReinforcedExperiment",
    "Reinforcement",
    "RewardConfig",
    "RlConfig",
    "Run",
    "SemanticIdsConfig",
    "Study",
    "TrainingConfig",
    "ValueFields",
    "add_items",
    "check_experiment",
    "compare",
    "config_of",
    "evaluate",
    "evaluate_candidates",
    "evaluate_cold_start",
    "evaluate_search",
    "export_recommender",
    "history_rows",
    "load_data",
    "load_rankings",
    "load_run",
    "recommend",
    "recommend_all",
    "refit",
    "reinforce",
    "table_experiment",
    "train",
]
