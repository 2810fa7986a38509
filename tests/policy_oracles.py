"""Slow, obviously right versions of rewards, advantages and policy losses: dictionaries and loops, in float64."""

import statistics

import numpy as np

EPSILON = 1e-4


def random_groups(rng, users, candidates, length, values=2):
    """Groups with many shared prefixes, duplicates and invalid candidates: codes, rewards and which are valid."""
    codes = rng.integers(0, values, (users, candidates, length))
    rewards = rng.choice([-0.25, 0.0, 0.5, 1.0], (users, candidates))
    return codes, rewards, rng.random((users, candidates)) < 0.8


def rank_aware(codes, valid, target):
    """Of one user: penalties by rank, if any valid candidate is the target."""
    right = [bool(v) and tuple(c) == tuple(target) for c, v in zip(codes, valid, strict=True)]
    discounts = [1 / np.log2(k + 1) for k in range(1, len(codes) + 1)]
    if not any(right):
        return [0.0] * len(codes)
    return [
        -discount / sum(discounts) if ok and not hit else 0.0
        for discount, ok, hit in zip(discounts, valid, right, strict=True)
    ]


def grpo(rewards, valid):
    """Of one user: (R - mean) / (sample std + 1e-4)."""
    known = [float(r) for r, v in zip(rewards, valid, strict=True) if v]
    mean = statistics.mean(known) if known else 0.0
    std = statistics.stdev(known) if len(known) > 1 else 0.0
    return [(r - mean) / (std + EPSILON) if v else 0.0 for r, v in zip(rewards, valid, strict=True)]


def tree(codes, valid):
    """Of one user: prefix -> places of the valid candidates that begin with it, in order of length."""
    below = {}
    for depth in range(codes.shape[1] + 1):
        for place in np.flatnonzero(valid):
            below.setdefault(tuple(codes[place, :depth].tolist()), []).append(place)
    return below


def siblings(codes, rewards, valid):
    """Of one user: node -> advantage, for all nodes with siblings."""
    below, children, advantages = tree(codes, valid), {}, {}
    for node in below:
        if node:
            children.setdefault(node[:-1], []).append(node)
    for nodes in children.values():
        if len(nodes) > 1:
            scores = [np.mean(rewards[below[node]]) for node in nodes]
            for node, score in zip(nodes, scores, strict=True):
                advantages[node] = (score - np.mean(scores)) / (np.std(scores) + EPSILON)
    return advantages


def spread(node_values, codes, valid):
    """Values of nodes at each valid candidate's code, `[G, L]`; 0 where the node has none."""
    table = np.zeros(codes.shape)
    for place, depth in np.ndindex(codes.shape):
        if valid[place]:
            node = tuple(codes[place, : depth + 1].tolist())
            table[place, depth] = node_values.get(node, 0.0)
    return table


def sibling_weights(codes, rewards, valid):
    """Of one user: 1 / (candidates through the node), for all nodes with siblings, `[G, L]`."""
    below = tree(codes, valid)
    weights = {node: 1 / len(below[node]) for node in siblings(codes, rewards, valid)}
    return spread(weights, codes, valid)


def tempo(codes, rewards, valid):
    """Of one user: GRPO's advantage and the change of the mean reward below, `[G, L]`."""
    value = {node: np.mean(rewards[places]) for node, places in tree(codes, valid).items()}
    change = {node: value[node] - value[node[:-1]] for node in value if node}
    return np.array(grpo(rewards, valid))[:, None] + spread(change, codes, valid)


def clipped(logp, old_logp, advantage, low, high):
    """min(r A, clip(r) A) of one code."""
    ratio = np.exp(logp - old_logp)
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def k3(logp, reference_logp):
    difference = reference_logp - logp
    return np.exp(difference) - difference - 1


def policy_loss(
    logp, old, reference, advantages, valid, low, high, kl_weight, aggregation, importance
):
    """GRPO's loss, candidate by candidate; `advantages` are `[B, G, L]`."""
    users = []
    for user in range(len(logp)):
        candidates = []
        for place in np.flatnonzero(valid[user]):
            terms = [
                kl_weight * k3(p, r) - clipped(p, o, a, low, high)
                for p, o, r, a in zip(
                    *(x[user, place] for x in (logp, old, reference, advantages)), strict=True
                )
            ]
            candidates.append((importance[user, place], np.mean(terms)))
        if candidates:
            users.append(candidates)
    if aggregation == "token":  # All candidates have the same number of codes.
        users = [[entry for candidates in users for entry in candidates]]
    means = [np.average([m for _, m in c], weights=[w for w, _ in c]) for c in users]
    return np.mean(means)


def sibling_loss(logp, old, codes, rewards, valid, low, high):
    """Sibling-GRPO's loss, node by node: log-probabilities are of the first candidate that has the node."""
    users = []
    for user in range(len(logp)):
        below, total = tree(codes[user], valid[user]), 0.0
        for node, advantage in siblings(codes[user], rewards[user], valid[user]).items():
            at = (user, below[node][0], len(node) - 1)
            total += clipped(logp[at], old[at], advantage, low, high)
        if valid[user].any():
            users.append(-total / valid[user].sum())
    return np.mean(users)


def cppo_mask(logp, old, advantages, threshold, budget, floor):
    """Of one candidate: algorithm 1 of the paper, code by code."""
    length, spent, allowed, mask = len(logp), 0.0, 0.0, []
    for t in range(length):
        weight = 1 - (1 - floor) * t / max(length - 1, 1)
        change = weight * abs(np.exp(logp[t]) - np.exp(old[t]))
        limit = min(threshold, threshold + budget * allowed - spent)
        returns = advantages[t] * (np.exp(logp[t] - old[t]) - 1) <= 0
        mask.append(bool(returns or change <= limit))
        spent, allowed = spent + change, allowed + weight
    return mask
