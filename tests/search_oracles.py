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
        # Where one continuation is left nothing is drawn: the only code's value is that of its prefix.
        drawn = noise(depth + 1) if depth < layout.unique_depth else None
        grown = []
        for number, (maximum, total, prefix) in enumerate(beams):
            gains = conditionals(log_prob(prefix), children.get(prefix, []))
            if drawn is None:
                grown += [(maximum, total, (*prefix, token)) for token in gains]
                continue
            raw = {t: total + gain + drawn[number, place[prefix][t]] for t, gain in gains.items()}
            largest = max(raw.values(), default=0.0)
            for token, value in raw.items():
                inside = np.exp(-maximum) - np.exp(-largest) + np.exp(-value)
                # The largest gets the maximum itself, lest rounding put it above or below an equal threshold.
                perturbed = maximum if value == largest else -np.log(inside)
                grown.append((perturbed, total + gains[token], (*prefix, token)))
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

    def __init__(self, tokens, parent, score, log_probs, priority, value):
        self.tokens, self.parent, self.score, self.value = tokens, parent, score, value
        self.entropy = -sum(np.exp(c) * c for c in log_probs.values())
        self.priority = priority  # Of the tokens that may be tried.
        self.visits = 0

    def up(self):
        """The prefix and those it continues, up to the root."""
        yield self
        if self.parent is not None:
            yield from self.parent.up()


def ved(
    table,
    log_prob,
    value,
    noise,
    place,
    *,
    budget,
    count,
    beams,
    width,
    name="ved",
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
    children = oracles.live_children(table, demands, scan_depth)
    rows = [tuple(int(t) for t in row) for row in table]
    longest = len(rows[0]) - 1
    items = {}  # Prefix -> the rows below it.
    for row in rows:
        for depth in range(1, longest + 2):
            items.setdefault(row[:depth], []).append(row)
    tree = []

    def terminal(tokens):
        return len(tokens) > longest or (lone_are_free and len(items[tokens]) == 1)

    def evaluate(tokens, parent, score):
        drawn = noise(len(tree))
        log_probs = conditionals(log_prob(tokens), children.get(tokens, []))
        priority = {
            token: chance
            + sampling_temperature * drawn[place[tokens][token]]
            - crowding * np.log(len(items[(*tokens, token)]))
            for token, chance in log_probs.items()
            if not terminal((*tokens, token))
        }
        v = value(tokens) if len(tokens) < longest else 0.0
        tree.append(Prefix(tokens, parent, score, log_probs, priority, v))
        return tree[-1]

    def take(node, token):
        """The code is not tried again, and every prefix that it is below is visited."""
        del node.priority[token]
        for above in node.up():
            above.visits += 1

    def merit(node):
        return node.value + entropy_weight * node.entropy

    def spread(node):
        return exploration * np.sqrt(np.log(tree[0].visits + 1) / (node.visits + 1))

    def best_first(many):
        found = [
            (merit(node) + spread(node) + prior_weight * (node.score + noisy), node, token)
            for node in tree
            for token, noisy in node.priority.items()
        ]
        chosen = [entry[1:] for entry in sorted(found, key=lambda entry: -entry[0])[:many]]
        for node, token in chosen:
            take(node, token)
        return chosen

    def descents(many):
        def g(node):
            return merit(node) + prior_weight * node.score

        means = {
            depth: np.mean([g(node) for node in tree if len(node.tokens) == depth])
            for depth in {len(node.tokens) for node in tree}
        }
        chosen = []
        while len(chosen) < many and any(node.priority for node in tree):
            open_ = [node for node in tree if node.priority]
            fit = [node for node in open_ if g(node) >= means[len(node.tokens)] - 1e-6] or open_
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
            token = max(node.priority, key=node.priority.get)
            take(node, token)
            chosen.append((node, token))
        return chosen

    def evaluate_all(chosen):
        return [
            evaluate((*node.tokens, token), node, node.score + log_prob(node.tokens)[token])
            for node, token in chosen
        ]

    select = {"ved": descents, "best_first": best_first}[name]
    alive = [evaluate((), None, 0.0)]
    for depth in range(longest if beams else 0):
        grown = [
            (node.score + log_prob(node.tokens)[token], node, token)
            for node in alive
            for token in node.priority
        ]
        of_beams = [entry[1:] for entry in sorted(grown, key=lambda entry: -entry[0])[:beams]]
        for node, token in of_beams:
            take(node, token)
        left = min(width, budget + 1 - len(tree)) - len(of_beams)
        joined = depth == longest - 1 and beams <= width  # Others fill up the last step.
        alive = evaluate_all(of_beams + (select(left) if joined else []))[: len(of_beams)]
    while len(tree) <= budget and any(node.priority for node in tree):
        evaluate_all(select(min(width, budget + 1 - len(tree))))

    by_sid = oracles.items_by_sid(table)
    complete = [
        (node.score + log_prob(node.tokens)[token], items[(*node.tokens, token)][0])
        for node in tree
        for token in children.get(node.tokens, [])
        if terminal((*node.tokens, token))
    ]
    best = sorted(complete, key=lambda entry: -entry[0])[:count]
    return [e for e in best if oracles.allowed_items(by_sid[e[1]], demands)], tree
