"""Losses as pure functions of arrays: each returns what is minimised, most of them with metrics.

`cross_entropy` of tokens, over the vocabulary or (MSL) among what the trie allows; prefix losses and weights of APAO.
"""

from gr.losses.prefix import (
    init_prefix_weights,
    pairwise_prefix_losses,
    pointwise_prefix_losses,
    stateless_prefix_weights,
    uniform_prefix_weights,
    update_prefix_weights,
)
from gr.losses.token import (
    cross_entropy,
    group_token_log_probs,
    masked_token_log_probs,
    token_log_probs,
)

__all__ = [
    "cross_entropy",
    "group_token_log_probs",
    "init_prefix_weights",
    "masked_token_log_probs",
    "pairwise_prefix_losses",
    "pointwise_prefix_losses",
    "stateless_prefix_weights",
    "token_log_probs",
    "uniform_prefix_weights",
    "update_prefix_weights",
]
