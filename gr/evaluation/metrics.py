"""Ranking metrics per user, and metrics of all users' lists together.

Ranks start at 0, and a target that was not found (a negative rank) is a miss at every k.
"""

import numpy as np


def hit(ranks: np.ndarray, k: int) -> np.ndarray:
    """Hit@k of each user, 1 if the target is among the first k: `[n]` -> `[n]` float64."""
    return _found(ranks, k).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k with one relevant item, 1 / log2(rank + 2) within k: `[n]` -> `[n]` float64."""
    return np.where(_found(ranks, k), 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)


def mrr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Reciprocal rank of each user, 1 / (rank + 1) within k: `[n]` -> `[n]` float64."""
    return np.where(_found(ranks, k), 1.0 / (np.maximum(ranks, 0) + 1.0), 0.0)


def coverage(items: np.ndarray, num_items: int) -> float:
    """Share of the catalogue of N items that stands in at least one list `[n, k]`."""
    return float(np.count_nonzero(recommendation_counts(items, num_items)) / num_items)


def gini(items: np.ndarray, num_items: int) -> float:
    """Gini coefficient of how often each of N items is recommended in the lists `[n, k]`.

    0 if all items are recommended equally often, (N - 1) / N if all recommendations are one item.
    Items that are never recommended count. With counts x sorted upwards: sum_i (2 i - N - 1) x_i /
    (N sum x), i from 1.
    """
    counts = np.sort(recommendation_counts(items, num_items))
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float((weights * counts).sum() / (num_items * max(counts.sum(), 1)))


def novelty(items: np.ndarray, train_counts: np.ndarray) -> float:
    """Mean self-information of the recommended items, in bits.

    That is -log2 of an item's share of the training interactions.
    The share of item i is (count_i + 1) / (sum of counts + N), so that items without an interaction
    are finite (self-information as in Zhou et al., "Solving the apparent diversity-accuracy dilemma
    of recommender systems", 2010). Lists `[n, k]`, training counts `[N]`; 0 if nothing is
    recommended.
    """
    shares = (train_counts + 1) / (train_counts.sum() + len(train_counts))
    counts = recommendation_counts(items, len(train_counts))
    return float(-(counts * np.log2(shares)).sum() / max(counts.sum(), 1))


def recommendation_counts(items: np.ndarray, num_items: int) -> np.ndarray:
    """How often each item stands in the lists `[n, k]`, padding left out -> `[N]` int64."""
    return np.bincount(items[items >= 0], minlength=num_items)


def _found(ranks: np.ndarray, k: int) -> np.ndarray:
    return (ranks >= 0) & (ranks < k)
