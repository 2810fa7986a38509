"""Losses as pure functions of arrays; most return the loss and metrics.

* Tokens: `cross_entropy`, normalised over the vocabulary or, for the masked softmax loss (MSL), over the trie.
* Prefixes: losses and weights of APAO.
* Policy: advantages and losses of reinforcement learning (GRPO, Sibling-GRPO, TEMPO, CPPO).
* Value head: dense rewards, targets and loss (V-STAR).
"""

from gr.losses.advantages import (
    distinct_candidates,
    grpo_advantages,
    sibling_advantages,
    sibling_weights,
    tempo_advantages,
)
from gr.losses.errors import LossError
from gr.losses.policy import (
    PolicyConfig,
    cppo_mask,
    policy_loss,
    policy_objective,
    sibling_loss,
)
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
    scored_log_probs,
    token_entropies,
    token_log_probs,
)
from gr.losses.value import (
    GAMMA,
    depth_weights,
    distinct_prefixes,
    group_prefix_vectors,
    monte_carlo_returns,
    prefix_means,
    semantic_rewards,
    td_loss,
    td_targets,
)

__all__ = [
    "GAMMA",
    "LossError",
    "PolicyConfig",
    "cppo_mask",
    "cross_entropy",
    "depth_weights",
    "distinct_candidates",
    "distinct_prefixes",
    "group_prefix_vectors",
    "group_token_log_probs",
    "grpo_advantages",
    "init_prefix_weights",
    "masked_token_log_probs",
    "scored_log_probs",
    "monte_carlo_returns",
    "pairwise_prefix_losses",
    "pointwise_prefix_losses",
    "policy_loss",
    "policy_objective",
    "prefix_means",
    "semantic_rewards",
    "sibling_advantages",
    "sibling_loss",
    "sibling_weights",
    "stateless_prefix_weights",
    "td_loss",
    "td_targets",
    "tempo_advantages",
    "token_entropies",
    "token_log_probs",
    "uniform_prefix_weights",
    "update_prefix_weights",
]
