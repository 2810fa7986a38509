"""Slow, obviously right versions of the searches that draw: dictionaries and loops, given the same random numbers."""

import itertools

import numpy as np
import oracles

from gr.trie.layout import DENSE, SPARSE


def places(tokens, layout):
    """Prefix -> {token: where it stands among the continuations that the index lists}; noise is drawn by place."""
    rows = sorted(tuple(int(t) for t in row) for row in tokens)
    found = {}
    for prefix in {row[:depth] for row in rows for depth in range(layout.length)}:
        level = layout.levels[len(prefix)]
        following = [row[len(prefix)] for row in rows if row[: len(prefix)] == prefix]
        if level.kind == DENSE:
            found[prefix] = {token: token - level.base for token in following}
        elif level.kind == SPARSE:
            found[prefix] = {token: i for i, token in enumerate(sorted(set(following)))}
        else:
            found[prefix] = {token: following.index(token) for token in following}
    return found


def overlaid_places(base, base_layout, added, added_layout, demands):
    """The same of a trie with recent changes: the small trie's places lie behind all of the large one's."""
    live = oracles.live_children(base, demands, scan_depth=0)
    in_base, found = places(base, base_layout), {}
    for prefix, of_token in places(added, added_layout).items():
        behind = base_layout.levels[len(prefix)].fan_out
        found[prefix] = {token: behind + place for token, place in of_token.items()}
    for prefix, tokens in live.items():
        found.setdefault(prefix, {}).update({token: in_base[prefix][token] for token in tokens})
    return found


def conditionals(log_probs, allowed):
    """Token -> log-probability among those allowed."""
    kept = oracles.log_softmax([log_probs[token] for token in allowed]) if allowed else []
    return dict(zip(allowed, kept, strict=True))


def all_probabilities(tokens, log_prob, demands=(), scan_depth=0):
    """Semantic ID -> probability on the trie; prefixes that come to nothing have what is missing to 1."""
    children = oracles.live_children(tokens, demands, scan_depth)
    found = {}
    for sid, items in oracles.items_by_sid(tokens).items():
        total = 0.0
        for depth in range(len(sid)):
            prefix = sid[:depth]
            allowed = children.get(prefix, [])
            if sid[depth] not in allowed:
                break
            total += conditionals(log_prob(prefix), allowed)[sid[depth]]
        else:
            if oracles.allowed_items(items, demands):
                found[sid] = np.exp(total)
    return found


def inclusion_probabilities(probabilities, count):
    """Key -> probability to be among `count` drawn one after another without replacement, by enumeration."""
    found = dict.fromkeys(probabilities, 0.0)
    for order in itertools.permutations(probabilities, min(count, len(probabilities))):
        chance, left = 1.0, 1.0
        for key in order:
            chance *= probabilities[key] / left
            left -= probabilities[key]
        for key in order:
            found[key] += chance
    return found


def stochastic_beam_search(tokens, log_prob, count, noise, layout, demands=(), scan_depth=0):
    """`(log-probability, semantic ID, perturbed value)` of those drawn, best first, and the threshold.

    `noise(step)` gives the Gumbel variables `[M, K]` of one user at each step; step 0 is the root's.
    """
    children = oracles.live_children(tokens, demands, scan_depth)
    place = places(tokens, layout)
    beams = [(float(noise(0)[0, 0]), 0.0, ())]  # (perturbed value, log-probability, prefix).
    threshold = -np.inf
    for depth in range(layout.length):
        # Where one way is left nothing is drawn: the only code's value is that of its prefix.
        drawn = noise(depth + 1) if depth < layout.unique_depth else None
        grown = []
        for number, (maximum, total, prefix) in enumerate(beams):
            gains = conditionals(log_prob(prefix), children.get(prefix, []))
            if drawn is None:
                grown += [(maximum, total, (*prefix, token)) for token in gains]
                continue
            raw = {t: total + gain + drawn[number, place[prefix][t]] for t, gain in gains.items()}
            for token, value in raw.items():
                inside = np.exp(-maximum) - np.exp(-max(raw.values())) + np.exp(-value)
                grown.append((-np.log(inside), total + gains[token], (*prefix, token)))
        grown.sort(key=lambda beam: -beam[0])
        beams = grown[: count + 1]
        if len(beams) > count and drawn is not None:
            threshold = max(threshold, beams[count][0])
    by_sid = oracles.items_by_sid(tokens)
    found = [
        (total, sid, value)
        for value, total, sid in beams
        if value > threshold and oracles.allowed_items(by_sid[sid], demands)
    ]
    return sorted(found, key=lambda entry: -entry[0]), threshold


class Prefix:
    """A prefix of the oracle's tree."""

    def __init__(self, codes, parent, score, chances, turns, value):
        self.codes, self.parent, self.score, self.value = codes, parent, score, value
        self.entropy = -sum(np.exp(c) * c for c in chances.values())
        self.turns = turns  # Of the codes that may be tried.
        self.visits = 0

    def up(self):
        """The prefix and those it continues, up to the root."""
        yield self
        if self.parent is not None:
            yield from self.parent.up()


def ved(
    tokens,
    log_prob,
    value,
    noise,
    place,
    *,
    budget,
    count,
    beams,
    width,
    selection="descent",
    entropy_weight=0.1,
    prior_weight=0.0,
    exploration=1.0,
    sampling_temperature=1.0,
    crowding=0.0,
    lone_are_free=False,
    demands=(),
    scan_depth=0,
):
    """Value-guided search: `(score, semantic ID)`, best first, and the prefixes in the order of evaluation.

    `value(prefix)` gives V, `noise(number)` the Gumbel variables `[K]` of the prefix evaluated as number so and so;
    `place` is what `places` returns. `lone_are_free`: what leads to one item only is a candidate without evaluation.
    """
    children = oracles.live_children(tokens, demands, scan_depth)
    rows = [tuple(int(t) for t in row) for row in tokens]
    longest = len(rows[0]) - 1
    items = {}  # Prefix -> the rows below it.
    for row in rows:
        for depth in range(1, longest + 2):
            items.setdefault(row[:depth], []).append(row)
    tree = []

    def ends(codes):
        return len(codes) > longest or (lone_are_free and len(items[codes]) == 1)

    def evaluate(codes, parent, score):
        drawn = noise(len(tree))
        chances = conditionals(log_prob(codes), children.get(codes, []))
        turns = {
            token: chance
            + sampling_temperature * drawn[place[codes][token]]
            - crowding * np.log(len(items[(*codes, token)]))
            for token, chance in chances.items()
            if not ends((*codes, token))
        }
        v = value(codes) if len(codes) < longest else 0.0
        tree.append(Prefix(codes, parent, score, chances, turns, v))
        return tree[-1]

    def take(node, token):
        """The code is not tried again, and every prefix that it is below is visited."""
        del node.turns[token]
        for above in node.up():
            above.visits += 1

    def merit(node):
        return node.value + entropy_weight * node.entropy

    def spread(node):
        return exploration * np.sqrt(np.log(tree[0].visits + 1) / (node.visits + 1))

    alive = [evaluate((), None, 0.0)]
    for _ in range(longest if beams else 0):
        grown = [
            (node.score + log_prob(node.codes)[token], node, token)
            for node in alive
            for token in node.turns
        ]
        alive = []
        for score, node, token in sorted(grown, key=lambda entry: -entry[0])[:beams]:
            take(node, token)
            alive.append(evaluate((*node.codes, token), node, score))

    def best_first(many):
        found = [
            (merit(node) + spread(node) + prior_weight * (node.score + turn), node, token)
            for node in tree
            for token, turn in node.turns.items()
        ]
        chosen = [entry[1:] for entry in sorted(found, key=lambda entry: -entry[0])[:many]]
        for node, token in chosen:
            take(node, token)
        return chosen

    def descents(many):
        def g(node):
            return merit(node) + prior_weight * node.score

        means = {
            depth: np.mean([g(node) for node in tree if len(node.codes) == depth])
            for depth in {len(node.codes) for node in tree}
        }
        chosen = []
        while len(chosen) < many and any(node.turns for node in tree):
            open_ = [node for node in tree if node.turns]
            fit = [node for node in open_ if g(node) >= means[len(node.codes)] - 1e-6] or open_
            below = {above for node in fit for above in node.up()}
            node = tree[0]
            while True:
                onward = [child for child in below if child.parent is node]
                best = max(onward, key=lambda child: g(child) + spread(child), default=None)
                stays = node in fit and (
                    best is None or g(node) + spread(node) >= g(best) + spread(best)
                )
                if best is None or stays:
                    break
                node = best
            token = max(node.turns, key=node.turns.get)
            take(node, token)
            chosen.append((node, token))
        return chosen

    select = {"descent": descents, "best_first": best_first}[selection]
    while len(tree) <= budget and any(node.turns for node in tree):
        for node, token in select(min(width, budget + 1 - len(tree))):
            evaluate((*node.codes, token), node, node.score + log_prob(node.codes)[token])

    by_sid = oracles.items_by_sid(tokens)
    complete = [
        (node.score + log_prob(node.codes)[token], items[(*node.codes, token)][0])
        for node in tree
        for token in children.get(node.codes, [])
        if ends((*node.codes, token))
    ]
    best = sorted(complete, key=lambda entry: -entry[0])[:count]
    return [e for e in best if oracles.allowed_items(by_sid[e[1]], demands)], tree
