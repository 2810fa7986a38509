"""Slow, obviously right versions of the fast paths: dictionaries and loops, nothing else."""

import functools

import numpy as np


def prefixes(tokens):
    """Depth -> sorted list of the distinct prefixes of that depth; a prefix's place is its node number."""
    length = len(tokens[0])
    return [sorted({tuple(row[:depth]) for row in tokens}) for depth in range(length + 1)]


def names(tokens, depth, scan_depth):
    """What the trie calls each of `prefixes(tokens)[depth]`: its place, or from the scan depth on its first slot."""
    rows = sorted(tuple(row) for row in tokens)
    found = prefixes(tokens)[depth]
    if depth < scan_depth:
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


def log_chances(logits, temperature=1.0, among=None):
    """Log-probabilities of any logits, in float64, over the tokens `among`; log 0 is -1e30.

    +inf is certain, be there several or not; where all are -inf, each is impossible.
    """
    logits = np.asarray(logits, np.float64)
    kept = logits if among is None else logits[sorted(among)]
    top = kept.max(initial=-np.inf)
    if np.isinf(top):
        return np.where(logits == np.inf, 0.0, -1e30)
    with np.errstate(over="ignore"):
        apart = (logits - top) / temperature
        total = np.exp((kept - top) / temperature).sum()
    return np.maximum(apart - np.log(total), -1e30)


def excluding(items):
    """The demand not to be one of these items, in the form that the functions below take."""
    return [lambda item: item not in items]


def allowed_items(items, demands):
    """Those that meet all demands: functions of an item."""
    return [item for item in items if all(demand(item) for demand in demands)]


def brute_force_ranking(tokens, log_prob, demands=()):
    """All allowed semantic IDs with scores and items, best first, by scoring each of them.

    `log_prob(prefix) -> [V]` gives the model's log-probabilities behind a prefix (a tuple of tokens).
    """
    ranking = []
    for sid, items in items_by_sid(tokens).items():
        allowed = allowed_items(items, demands)
        if allowed:
            score = sum(log_prob(sid[:depth])[sid[depth]] for depth in range(len(sid)))
            ranking.append((score, sid, allowed))
    return sorted(ranking, key=lambda entry: -entry[0])


def live_children(tokens, demands, scan_depth):
    """Prefix -> tokens by which it may be continued.

    A prefix longer than `scan_depth` is alive if some item below it meets all demands; up to there it is enough that
    each demand is met by some item below.
    """
    below = {}
    for sid, items in items_by_sid(tokens).items():
        for depth in range(1, len(sid) + 1):
            below.setdefault(sid[:depth], []).extend(items)
    children = {}
    for prefix, items in below.items():
        if len(prefix) > scan_depth:
            alive = bool(allowed_items(items, demands))
        else:
            alive = all(any(demand(item) for item in items) for demand in demands)
        if alive:
            children.setdefault(prefix[:-1], []).append(prefix[-1])
    return children


def beam_search(tokens, log_prob, num_beams, demands=(), scan_depth=0):
    """Constrained beam search over a dictionary of prefixes; `(score, semantic ID)`, best first.

    By default it never enters a prefix with nothing allowed below; see `live_children` for `scan_depth`.
    """
    return diverse_beam_search(tokens, log_prob, num_beams, 1, 0.0, demands, scan_depth)


def diverse_beam_search(
    tokens, log_prob, num_beams, num_groups, diversity, demands=(), scan_depth=0, unique_depth=None
):
    """Diverse beam search: group after group, each token at a price for each beam of an earlier group that took it.

    From depth `unique_depth` on (by default the last), no prefix is in two groups. Scores are without the prices.
    """
    children = live_children(tokens, demands, scan_depth)
    length = len(tokens[0])
    unique_depth = length if unique_depth is None else unique_depth
    groups = [[(0.0, 0.0, ())] for _ in range(num_groups)]  # (price included, true score, prefix).
    for depth in range(1, length + 1):
        taken, gone = {}, set()
        for group, beams in enumerate(groups):
            grown = []
            for paid, score, prefix in beams:
                log_probs = log_prob(prefix)
                for token in children.get(prefix, ()):
                    gain, longer = log_probs[token], (*prefix, token)
                    if depth < unique_depth or longer not in gone:
                        price = diversity * taken.get(token, 0)
                        grown.append((paid + gain - price, score + gain, longer))
            grown = sorted(grown, key=lambda beam: -beam[0])[: num_beams // num_groups]
            for _, _, prefix in grown:
                taken[prefix[-1]] = taken.get(prefix[-1], 0) + 1
                gone.add(prefix)
            groups[group] = grown
    by_sid = items_by_sid(tokens)
    found = [
        (score, sid)
        for beams in groups
        for _, score, sid in beams
        if allowed_items(by_sid[sid], demands)
    ]
    return sorted(found, key=lambda beam: -beam[0])


def prior_masses(tokens, items, weights, demands=(), over="allowed", left=None):
    """Prefix -> its share of a user's prior weight; `left`: the items that there are, all of `tokens` by default."""
    left = range(len(tokens)) if left is None else left
    masses, total = {}, 0.0
    for item, weight in zip(items, weights, strict=True):
        if item not in left:
            continue
        allowed = bool(allowed_items([item], demands))
        total += float(weight) if allowed or over == "all" else 0.0
        for depth in range(len(tokens[0]) + 1) if allowed else ():
            prefix = tuple(int(token) for token in tokens[item][:depth])
            masses[prefix] = masses.get(prefix, 0.0) + float(weight)
    return {prefix: mass / total for prefix, mass in masses.items() if mass}


def log_mixture(log_prob, share, mass):
    """`log((1 - share) exp(log_prob) + share mass)` in float64, with log 0 = -1e30."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of_model = log_prob + max(np.log1p(-share), -1e30)
        return float(np.logaddexp(of_model, np.log(share * mass)))


def mixed_ranking(tokens, log_prob, masses, share, demands=()):
    """`brute_force_ranking` by the mixture of model and prior."""
    share = share if masses else 0.0
    ranking = [
        (log_mixture(score, share, masses.get(sid, 0.0)), sid, items)
        for score, sid, items in brute_force_ranking(tokens, log_prob, demands)
    ]
    return sorted(ranking, key=lambda entry: -entry[0])


def mixed_beam_search(tokens, log_prob, num_beams, masses, share, demands=(), scan_depth=0):
    """`beam_search` that ranks prefixes by the mixture of model and prior; `(log-mixture, semantic ID)`."""
    share = share if masses else 0.0
    children = live_children(tokens, demands, scan_depth)
    beams = [(0.0, 0.0, ())]  # (log-mixture, the model's log-probability, prefix).
    for _ in range(len(tokens[0])):
        grown = []
        for _, score, prefix in beams:
            log_probs = log_prob(prefix)
            for token in children.get(prefix, ()):
                longer, total = (*prefix, token), score + log_probs[token]
                rank = log_mixture(total, share, masses.get(longer, 0.0))
                grown.append((rank, total, longer))
        beams = sorted(grown, key=lambda beam: -beam[0])[:num_beams]
    by_sid = items_by_sid(tokens)
    found = [(rank, sid) for rank, _, sid in beams if allowed_items(by_sid[sid], demands)]
    return sorted(found, key=lambda beam: -beam[0])


def mixed_log_prob(log_prob, masses, share, children=None):
    """Prefix -> log-probabilities `[V]` of the next code in the mixture: `log P(sc) / P(s)`.

    `children`: where the model's are among these children of a prefix, rather than among all tokens.
    """
    share = share if masses else 0.0

    def of_model(prefix):
        among = None if children is None else children.get(prefix)
        return log_prob(prefix) if not among else log_chances(log_prob(prefix), among=among)

    def mixed(prefix):
        score = sum(of_model(prefix[:depth])[token] for depth, token in enumerate(prefix))
        before = log_mixture(score, share, masses.get(prefix, 0.0))
        return np.array(
            [
                log_mixture(score + gain, share, masses.get((*prefix, token), 0.0)) - before
                for token, gain in enumerate(of_model(prefix))
            ]
        )

    return functools.lru_cache(maxsize=None)(mixed)
