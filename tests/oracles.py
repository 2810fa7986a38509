"""Slow, obviously right versions of the fast paths: dictionaries and loops, nothing else."""

import numpy as np


def prefixes(tokens):
    """Depth -> sorted list of the distinct prefixes of that depth; a prefix's place is its node number."""
    length = len(tokens[0])
    return [sorted({tuple(row[:depth]) for row in tokens}) for depth in range(length + 1)]


def names(tokens, depth, handover):
    """What the trie calls each of `prefixes(tokens)[depth]`: its place, or from the handover on its first slot."""
    rows = sorted(tuple(row) for row in tokens)
    found = prefixes(tokens)[depth]
    if depth < handover:
        return list(range(len(found)))
    return [min(s for s, row in enumerate(rows) if row[:depth] == prefix) for prefix in found]


def items_by_sid(tokens):
    """Semantic ID -> rows of the items that have it, ascending."""
    table = {}
    for row, tokens_of_item in enumerate(tokens):
        table.setdefault(tuple(int(t) for t in tokens_of_item), []).append(row)
    return table


def log_softmax(logits):
    """Log-softmax of one vector, in float64."""
    logits = np.asarray(logits, np.float64)
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def brute_force_ranking(tokens, log_prob, excluded=()):
    """All allowed semantic IDs with scores and items, best first, by scoring each of them.

    `log_prob(prefix) -> [V]` gives the model's log-probabilities behind a prefix (a tuple of tokens).
    """
    ranking = []
    for sid, items in items_by_sid(tokens).items():
        allowed = [item for item in items if item not in excluded]
        if allowed:
            score = sum(log_prob(sid[:depth])[sid[depth]] for depth in range(len(sid)))
            ranking.append((score, sid, allowed))
    return sorted(ranking, key=lambda entry: -entry[0])


def beam_search(tokens, log_prob, num_beams, excluded=()):
    """Constrained beam search over a dictionary of prefixes; never enters a prefix with nothing allowed below."""
    alive = {}
    for sid, items in items_by_sid(tokens).items():
        if any(item not in excluded for item in items):
            for depth in range(len(sid)):
                alive.setdefault(sid[:depth], set()).add(sid[depth])
    beams = [(0.0, ())]
    for _ in range(len(tokens[0])):
        grown = [
            (score + log_prob(prefix)[token], (*prefix, token))
            for score, prefix in beams
            for token in alive.get(prefix, ())
        ]
        beams = sorted(grown, key=lambda beam: -beam[0])[:num_beams]
    return beams
