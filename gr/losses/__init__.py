"""Losses: pure functions of arrays that return `(loss, metrics)`.

`token_log_probs(logits, tokens)` turns logits into what every loss takes; `cross_entropy` is CE over semantic IDs.
"""

from gr.losses.token import cross_entropy, token_log_probs

__all__ = ["cross_entropy", "token_log_probs"]
