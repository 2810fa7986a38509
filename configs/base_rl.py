"""The fields of every reinforcement learning experiment; all else is that of the supervised run it starts from."""

import dataclasses

from ml_collections import ConfigDict

from gr.decoding import SearchConfig


def base_rl_config() -> ConfigDict:
    """V-STAR: value-guided search, Sibling-GRPO."""
    c = ConfigDict()
    c.name = ""
    c.seed = 0
    c.data_dir = ""  # As in `configs/base.py`; "": that of the supervised run.
    c.init_from = ""  # Workdir of the supervised run.
    c.init_from_other_data = (
        False  # Whether it may have been trained on other data than there are now.
    )

    # Rollouts. See `gr.decoding.SearchConfig`, whose fields and defaults these are. `budget` is of the tree searches;
    # beams give num_candidates * (L - 1) tokens.
    c.search = ConfigDict(dataclasses.asdict(SearchConfig(budget=48)))

    # Rewards of candidates, summed with these weights: names of `gr.losses`, or "module:function" for one's own
    # `Outcome -> [B, G]`.
    c.reward = ConfigDict()
    c.reward.names = ("exact_match", "rank_aware")
    c.reward.weights = (1.0, 1.0)

    # The policy's loss. See `gr.losses.PolicyConfig`.
    c.policy = ConfigDict()
    c.policy.name = "sibling_grpo"  # Or "grpo", "tempo".
    c.policy.clip_low = 0.2
    c.policy.clip_high = 0.2
    c.policy.kl_weight = 1e-3
    c.policy.sibling_weight = 1.0
    c.policy.aggregation = "group"  # Or "token".
    c.policy.cppo = False
    c.policy.cppo_threshold = 0.15
    c.policy.cppo_budget = 0.015
    c.policy.cppo_floor = 0.8
    c.policy.importance = (
        False  # Weigh candidates, which are no independent draws, by their chance.
    )

    # The value head, and how it learns. See `gr.training.ValueConfig`.
    c.value = ConfigDict()
    c.value.learn = True  # False: no value head is trained, and entropy alone guides a tree search.
    c.value.num_heads = 4
    c.value.d_ff = 128
    c.value.dropout = 0.1
    c.value.gamma = 0.99
    c.value.lam = 0.0
    c.value.with_root = True
    c.value.stop_gradient = True  # False: its loss moves the backbone too.
    c.value.prefix_vectors = "node"  # Or "group".
    c.value.learning_rate = 1e-3
    c.value.pretrain_steps = 100  # Before the policy moves, on the frozen backbone.

    # The loop. A step is one batch of users: search, rewards, `num_epochs` passes of updates.
    c.rl = ConfigDict()
    c.rl.batch_size = 64  # Users.
    c.rl.num_buckets = 1  # Padded lengths of histories; the whole step compiles once for each.
    c.rl.num_steps = 300
    # What the policy is rewarded for: "train" targets, which it has been trained on, or "validation" targets of the
    # users that are not among the `eval_users`.
    c.rl.targets = "train"
    c.rl.recent_targets = 0  # Of train targets, only so many of each user's latest; 0: all.
    c.rl.num_epochs = 2
    c.rl.num_minibatches = 1
    c.rl.supervised_weight = 0.0  # Of the targets' cross-entropy beside the policy's loss.
    c.rl.sync_every = 0  # Steps after which the policy becomes the reference of KL; 0: never.
    c.rl.learning_rate = 1e-4
    c.rl.schedule = "constant"
    c.rl.warmup_share = 0.05
    c.rl.weight_decay = 0.0
    c.rl.clip_norm = 1.0
    c.rl.b2 = 0.999
    c.rl.log_every = 5  # Steps.
    c.rl.eval_every = 25
    c.rl.eval_users = 1024  # Validation users decoded at each evaluation; 0 means all.
    c.rl.checkpoint_every = 25
    c.rl.monitor = "ndcg@10"  # Or "loss", of validation.
    c.rl.patience = 8  # Evaluations without improvement.
    return c.lock()  # From here on a misspelt field is an error, not a new field.
