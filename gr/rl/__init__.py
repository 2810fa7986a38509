"""Reinforcement learning on the tree of candidates: search, reward, policy and value head (V-STAR and relatives).

A run uses the loop of `gr.training` with `make_policy_step`: its model is an `ActorCritic`, its `loss_state` the
reference policy. Rewards are functions `Outcome -> [B, G]`, summed by `weighted_sum`. `value_loss` trains a value head,
alone through `value_objective` or beside a policy.
"""

from gr.rl.actor_critic import ActorCritic, actor_critic_optimizer
from gr.rl.policy_step import LearningConfig, make_policy_step
from gr.rl.rewards import (
    Outcome,
    Reward,
    WeightedSum,
    exact_match,
    prefix_depth,
    rank_aware,
    semantic,
    weighted_sum,
)
from gr.rl.rollouts import RolloutConfig, Rollouts, roll_out, scored_candidates
from gr.rl.value_objective import ValueConfig, value_loss, value_objective

__all__ = [
    "ActorCritic",
    "LearningConfig",
    "Outcome",
    "Reward",
    "RolloutConfig",
    "Rollouts",
    "ValueConfig",
    "WeightedSum",
    "actor_critic_optimizer",
    "exact_match",
    "make_policy_step",
    "prefix_depth",
    "rank_aware",
    "roll_out",
    "scored_candidates",
    "semantic",
    "value_loss",
    "value_objective",
    "weighted_sum",
]
