"""Decoded candidates -> rankings -> metrics beside baselines, with confidence intervals: numbers, no drawing.

* Decode: `decode_targets` runs any search on the targets of a split and returns `Decoded`.
* Rank: `rankings_of_beams` of a model, `rankings_of_baseline` of a fitted `Ranker`: where each target stands.
  A hit is the target's Semantic ID; the stricter item-level metrics are the keys that begin with `item_`.
* Lists of any origin: `match_lists` finds their ids in the data, `rankings_of_matched` ranks by them, `fuse_lists`
  makes one of several.
* Measure: `evaluate_with_baselines` turns rankings into one flat dictionary of metrics, with bootstrap intervals.
* Cold items: `recall_table` of targets that training never saw, beside `fit_content_knn`.
* Compare: `compare_runs` of several losses and seeds; `compare_searches` at equal budgets of token evaluations:
  accuracy, diversity, cost.
* Calibrate: `value_calibration` compares a value head's values of prefixes with Monte-Carlo returns.
"""

from gr.evaluation.baselines import (
    fit_item_knn,
    fit_markov_chain,
    fit_popularity,
    memory_ranker,
    tune_item_knn,
)
from gr.evaluation.bootstrap import (
    bootstrap_interval,
    bootstrap_intervals,
    bootstrap_tests,
    holm,
    paired_bootstrap,
)
from gr.evaluation.breakdown import (
    TARGET_CLASSES,
    TargetClasses,
    breakdown_by_class,
    target_classes,
)
from gr.evaluation.calibration import ValueCalibration, value_calibration
from gr.evaluation.cold import random_recall, recall_table, select_rankings
from gr.evaluation.comparison import Compared, RunRanks, compare_runs, training_seconds
from gr.evaluation.content import fit_content_knn, tune_content_knn
from gr.evaluation.decode import Decoded, check_finite, decode_targets, distinct_items, fetched
from gr.evaluation.fusion import fuse_lists
from gr.evaluation.linear import fit_ease, fit_slist, tune_linear
from gr.evaluation.lists import MatchedLists, list_facts, match_lists, rankings_of_matched
from gr.evaluation.metrics import (
    coverage,
    evaluate_rankings,
    evaluate_with_baselines,
    gini,
    hit,
    mrr,
    ndcg,
    novelty,
    user_metrics,
)
from gr.evaluation.popularity import popularity_slices, training_counts
from gr.evaluation.ranker import Ranker, fit_own_baseline, rankings_of_baseline
from gr.evaluation.rankings import (
    NOT_FOUND,
    EvaluationError,
    Rankings,
    rankings_of_beams,
    rankings_of_lists,
    sid_ranks,
)
from gr.evaluation.searches import compare_searches, equal_budget, search_metrics

__all__ = [
    "NOT_FOUND",
    "TARGET_CLASSES",
    "Compared",
    "Decoded",
    "EvaluationError",
    "MatchedLists",
    "Ranker",
    "Rankings",
    "RunRanks",
    "TargetClasses",
    "ValueCalibration",
    "bootstrap_interval",
    "bootstrap_intervals",
    "bootstrap_tests",
    "breakdown_by_class",
    "check_finite",
    "compare_runs",
    "compare_searches",
    "coverage",
    "decode_targets",
    "distinct_items",
    "equal_budget",
    "evaluate_rankings",
    "evaluate_with_baselines",
    "fetched",
    "fit_content_knn",
    "fit_ease",
    "fit_item_knn",
    "fit_markov_chain",
    "fit_own_baseline",
    "fit_popularity",
    "fit_slist",
    "fuse_lists",
    "gini",
    "hit",
    "holm",
    "list_facts",
    "match_lists",
    "memory_ranker",
    "mrr",
    "ndcg",
    "novelty",
    "paired_bootstrap",
    "popularity_slices",
    "random_recall",
    "rankings_of_baseline",
    "rankings_of_beams",
    "rankings_of_lists",
    "rankings_of_matched",
    "recall_table",
    "search_metrics",
    "select_rankings",
    "sid_ranks",
    "training_counts",
    "training_seconds",
    "tune_content_knn",
    "tune_item_knn",
    "tune_linear",
    "target_classes",
    "user_metrics",
    "value_calibration",
]
