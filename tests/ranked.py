"""What a search has found, as lists that are compared with those of the slow searches."""

import numpy as np
import oracles


def rows(candidates, user):
    """The valid candidates of one user as (score, sid, items), best first."""
    valid = np.asarray(candidates.valid[user])
    count = int(valid.sum())
    assert valid[:count].all(), "valid candidates come first"
    assert (np.asarray(candidates.tokens[user, count:]) == -1).all()
    assert (np.asarray(candidates.items[user, count:]) == -1).all()
    assert (np.asarray(candidates.scores[user, count:]) == -np.inf).all()
    return [
        (score, tuple(tokens), [item for item in items if item >= 0])
        for score, tokens, items in zip(
            np.asarray(candidates.scores[user, :count]).tolist(),
            np.asarray(candidates.tokens[user, :count]).tolist(),
            np.asarray(candidates.items[user, :count]).tolist(),
            strict=True,
        )
    ]


def assert_same_ranking(found, expected):
    assert len(found) == len(expected)
    np.testing.assert_allclose(
        [f[0] for f in found], [e[0] for e in expected], rtol=1e-5, atol=1e-4
    )
    assert [f[1:] for f in found] == [e[1:] for e in expected]


def assert_searches_as_slow_ones(found, user, tokens, model, num_beams, demands=(), scan_depth=0):
    """Beam search over dictionaries finds the same, and with enough beams so does scoring every item."""
    by_sid = oracles.items_by_sid(tokens)
    log_prob = model.log_prob(user)
    beams = oracles.beam_search(tokens, log_prob, num_beams, demands, scan_depth)
    expected = [(score, sid, oracles.allowed_items(by_sid[sid], demands)) for score, sid in beams]
    assert_same_ranking(rows(found, user), expected)
    if num_beams >= len(tokens):
        ranking = oracles.brute_force_ranking(tokens, log_prob, demands)
        assert_same_ranking(rows(found, user), ranking)
