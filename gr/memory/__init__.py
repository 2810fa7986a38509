"""From training sequences to what they remember: sparse item-to-item weights, and priors of a request."""

from gr.memory.prior import ItemPrior

__all__ = ["ItemPrior"]
