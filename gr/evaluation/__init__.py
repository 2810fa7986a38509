"""Ranked lists -> metrics beside baselines, with intervals.

A list becomes `Rankings` (where each target stands): `rankings_of_beams` for a model's beams,
`rankings_of_baseline` for a fitted `Ranker`. `evaluate_with_baselines` turns those into one dictionary
of JSON values, `format_metrics` that dictionary into a table. A hit is the target's Semantic ID; the
stricter item-level figures are the keys that begin with `item_`. `value_calibration` asks whether a value head ranks
prefixes by what is below them.
"""

from gr.evaluation.baselines import (
    Ranker,
    fit_item_knn,
    fit_markov_chain,
    fit_own_baseline,
    fit_popularity,
    rankings_of_baseline,
    tune_item_knn,
)
from gr.evaluation.bootstrap import (
    PairedDifference,
    bootstrap_interval,
    bootstrap_intervals,
    paired_bootstrap,
)
from gr.evaluation.calibration import ValueCalibration, rank_correlation, value_calibration
from gr.evaluation.comparison import (
    Compared,
    Difference,
    RunRanks,
    compare_runs,
    survival,
    training_seconds,
)
from gr.evaluation.evaluators import (
    Decoded,
    check_finite,
    decode_targets,
    distinct_items,
    fetched,
    prefix_hits,
)
from gr.evaluation.metrics import coverage, gini, hit, mrr, ndcg, novelty
from gr.evaluation.popularity import (
    SLICE_NAMES,
    popularity_order,
    popularity_slices,
    training_counts,
)
from gr.evaluation.rankings import (
    NO_ITEM,
    NOT_FOUND,
    EvaluationError,
    Rankings,
    item_ranks,
    item_ranks_of_lists,
    rankings_of_beams,
    rankings_of_lists,
    sid_depth,
    sid_ranks,
    sid_ranks_of_lists,
    top_items,
)
from gr.evaluation.search_comparison import (
    compare_searches,
    search_metrics,
)
from gr.evaluation.searches import Searched, equal_budget, search_targets
from gr.evaluation.summary import (
    evaluate_rankings,
    evaluate_with_baselines,
    user_metrics,
)

__all__ = [
    "NOT_FOUND",
    "NO_ITEM",
    "SLICE_NAMES",
    "Compared",
    "Decoded",
    "Difference",
    "EvaluationError",
    "PairedDifference",
    "Ranker",
    "Rankings",
    "RunRanks",
    "Searched",
    "ValueCalibration",
    "bootstrap_interval",
    "bootstrap_intervals",
    "compare_runs",
    "compare_searches",
    "coverage",
    "check_finite",
    "decode_targets",
    "distinct_items",
    "equal_budget",
    "evaluate_rankings",
    "evaluate_with_baselines",
    "fetched",
    "fit_item_knn",
    "fit_markov_chain",
    "fit_own_baseline",
    "fit_popularity",
    "gini",
    "hit",
    "item_ranks",
    "item_ranks_of_lists",
    "mrr",
    "ndcg",
    "novelty",
    "paired_bootstrap",
    "popularity_order",
    "popularity_slices",
    "prefix_hits",
    "rank_correlation",
    "rankings_of_baseline",
    "rankings_of_beams",
    "rankings_of_lists",
    "search_metrics",
    "search_targets",
    "sid_depth",
    "sid_ranks",
    "sid_ranks_of_lists",
    "survival",
    "top_items",
    "training_counts",
    "training_seconds",
    "tune_item_knn",
    "user_metrics",
    "value_calibration",
]
