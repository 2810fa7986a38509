"""`ItemPrior`: a few items with weights for each user, from any source, to be mixed into a search."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ItemPrior:
    """Up to S weighted items for each of B users.

    They may come from a memory of co-occurrences, a dense retriever, an index of neighbours, or a list of items to be
    boosted. A user's weights are used in proportion to their sum. Weights of an item that is listed twice add up.
    """

    items: jax.Array  # [B, S] int32 item numbers; negative ones are padding.
    weights: jax.Array  # [B, S] float32, finite and not negative.
