"""Sampling with and without replacement: against dictionaries given the same noise, and by their frequencies."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import search_oracles
import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import rows

from gr.decoding import DecodingError, sample, sample_without_replacement
from gr.decoding import sampling as sampling_module
from gr.testing import TableModel, random_table_model, random_tokens
from gr.trie import EditableIndex, TrieIndex

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS = 3
HISTORY = jnp.zeros((USERS, 1))
EVERYTHING = 30  # More than there are items.


def width_of(index, depth):
    level = index.layout.levels[depth]
    return {"dense": level.span, "sparse": level.max_children, "scan": level.max_slots}[level.kind]


def noise_of(key, index, count, user):
    """The noise that one user of a search gets at each step."""
    beams = [1]
    for depth in range(index.length):
        beams.append(min(count + 1, beams[-1] * width_of(index, depth)))

    def noise(step):
        if step == 0:
            return np.asarray(sampling_module.gumbel(key, 0, (USERS, 1)))[user][None]
        shape = (USERS, beams[step - 1], width_of(index, step - 1))
        return np.asarray(sampling_module.gumbel(key, step, shape), np.float64)[user]

    return noise


def check(tokens, index, model, seed, constraint=None, demands=((),) * USERS, scan_depth=0):
    key = jax.random.key(seed)
    by_sid = oracles.items_by_sid(tokens)
    for count in (1, 4, EVERYTHING):
        found = sample_without_replacement(
            model, index, HISTORY, count, key=key, constraint=constraint
        )
        for user in range(USERS):
            expected, threshold = search_oracles.stochastic_beam_search(
                tokens,
                model.log_prob(user),
                count,
                noise_of(key, index, count, user),
                index.layout,
                demands[user],
                scan_depth,
            )
            got = rows(found, user)
            assert [sid for _, sid, _ in got] == [sid for _, sid, _ in expected]
            for (_, sid, items), _ in zip(got, expected, strict=True):
                assert items == oracles.allowed_items(by_sid[sid], demands[user])
            draws, n = found.draws, len(got)
            np.testing.assert_allclose(
                found.scores[user, :n], [e[0] for e in expected], rtol=1e-4, atol=1e-4
            )
            np.testing.assert_allclose(
                draws.perturbed[user, :n], [e[2] for e in expected], rtol=1e-3, atol=1e-3
            )
            np.testing.assert_allclose(draws.threshold[user], threshold, rtol=1e-3, atol=1e-3)
            inclusion = -np.expm1(-np.exp(np.array([e[0] for e in expected]) - threshold))
            np.testing.assert_allclose(
                np.exp(draws.log_inclusion[user, :n]), inclusion, rtol=1e-2, atol=1e-5
            )
            assert (draws.log_inclusion[user, n:] == -jnp.inf).all()


@pytest.mark.parametrize("kinds", tries.MIXES, ids="-".join)
@settings(max_examples=5, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_without_replacement_it_is_the_slow_search_given_the_same_noise(kinds, tokens, seed):
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(kinds))
    check(tokens, index, random_table_model(np.random.default_rng(seed), 3, tries.VOCAB), seed)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_tight_layouts_and_levels_without_a_choice(length):
    rng = np.random.default_rng(length)
    tokens = rng.integers(0, 7, (14, length))
    if length == 4:
        tokens = np.concatenate(
            [np.unique(tokens[:, :2], axis=0)] * 2, axis=1
        )  # Settled behind two codes.
    index = TrieIndex.build(tokens, 7)
    assert length < 4 or index.layout.unique_depth == 2
    check(tokens, index, random_table_model(rng, length, 7), seed=length)


@pytest.mark.parametrize("kinds", [tries.MIXES[0], tries.MIXES[2], tries.MIXES[3]], ids="-".join)
@pytest.mark.parametrize("kind", tries.CONSTRAINTS)
@settings(max_examples=5, deadline=None)
@given(tokens=tries.token_sets(), seed=st.integers(0, 10**6))
def test_under_constraints(kind, kinds, tokens, seed):
    rng = np.random.default_rng(seed)
    attributes = rng.random((len(tokens), 5)) < 0.6
    layout = tries.roomy_layout(kinds, 5)
    index = TrieIndex.build(tokens, tries.VOCAB, attributes=attributes, layout=layout)
    constraint, demands, scan_depth = tries.random_constraint(kind, rng, index, attributes, USERS)
    model = random_table_model(rng, 3, tries.VOCAB)
    check(tokens, index, model, seed, constraint, demands, scan_depth)
    by_sid = oracles.items_by_sid(tokens)
    found = sample(model, index, HISTORY, 9, key=jax.random.key(seed), constraint=constraint)
    for user in range(USERS):
        chances = search_oracles.all_probabilities(
            tokens, model.log_prob(user), demands[user], scan_depth
        )
        got = rows(found, user)
        assert scan_depth or len(got) == (9 if chances else 0)
        for score, sid, items in got:
            np.testing.assert_allclose(np.exp(score), chances[sid], rtol=1e-3, atol=1e-6)
            assert items == oracles.allowed_items(by_sid[sid], demands[user])


# Frequencies.

TOKENS = np.array([[0, 1], [0, 2], [1, 0], [1, 3], [2, 2], [0, 1]])
MANY = 4000


def repeated_model(seed=0):
    """One user's table, for many users; and the probabilities of the five semantic IDs."""
    model = random_table_model(np.random.default_rng(seed), 2, 4, num_users=1)
    chances = search_oracles.all_probabilities(TOKENS, model.log_prob(0))
    np.testing.assert_allclose(sum(chances.values()), 1.0)
    return TableModel(jnp.repeat(model.table, MANY, axis=0)), chances


def frequencies(found):
    drawn = np.asarray(found.tokens)[np.asarray(found.valid)]
    counted = collections.Counter(map(tuple, drawn.tolist()))
    return {sid: count / MANY for sid, count in counted.items()}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_semantic_ids_are_included_as_often_as_when_drawn_one_by_one(count):
    model, chances = repeated_model()
    index = TrieIndex.build(TOKENS, 4)
    found = sample_without_replacement(
        model, index, jnp.zeros((MANY, 1)), count, key=jax.random.key(1)
    )
    seen = frequencies(found)
    for sid, chance in search_oracles.inclusion_probabilities(chances, count).items():
        five_sigma = 5 * np.sqrt(chance * (1 - chance) / MANY) + 1e-3
        assert abs(seen.get(sid, 0.0) - chance) < five_sigma, sid


def test_importance_weights_are_unbiased():
    model, chances = repeated_model(2)
    index = TrieIndex.build(TOKENS, 4)
    found = sample_without_replacement(model, index, jnp.zeros((MANY, 1)), 2, key=jax.random.key(3))
    weights = np.exp(np.asarray(found.scores - found.draws.log_inclusion))
    weights = np.where(found.valid, weights, 0.0)
    for sid, chance in chances.items():
        mine = (weights * (np.asarray(found.tokens) == sid).all(-1)).sum(1)
        assert abs(mine.mean() - chance) < 5 * mine.std() / np.sqrt(MANY) + 1e-6, sid


def test_with_replacement_semantic_ids_come_as_often_as_is_likely():
    model, chances = repeated_model()
    index = TrieIndex.build(TOKENS, 4)
    found = sample(model, index, jnp.zeros((MANY, 1)), 3, key=jax.random.key(1))
    assert found.valid.all()
    seen = frequencies(found)
    for sid, chance in chances.items():
        assert abs(seen[sid] / 3 - chance) < 5 * np.sqrt(chance * (1 - chance) / MANY / 3), sid
        np.testing.assert_allclose(
            np.asarray(found.scores)[(np.asarray(found.tokens) == sid).all(-1)],
            np.log(chance),
            rtol=1e-4,
        )
    # Draws of one user are independent of each other.
    same = (np.asarray(found.tokens)[:, 0] == np.asarray(found.tokens)[:, 1]).all(-1)
    assert 0.2 < same.mean()


# The rest.


def case(seed=0, num_items=20):
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng, num_items)
    index = TrieIndex.build(tokens, tries.VOCAB, layout=tries.roomy_layout(tries.MIXES[3]))
    return tokens, index, random_table_model(rng, 3, tries.VOCAB)


def test_all_semantic_ids_are_drawn_when_there_are_few():
    tokens, index, model = case()
    sids = set(oracles.items_by_sid(tokens))
    found = sample_without_replacement(model, index, HISTORY, 40, key=jax.random.key(0))
    assert found.tokens.shape == (USERS, 40, 3)
    for user in range(USERS):
        assert {sid for _, sid, _ in rows(found, user)} == sids
    assert (found.draws.threshold == -jnp.inf).all()
    assert (found.draws.log_inclusion[found.valid] == 0).all()
    np.testing.assert_allclose(jnp.exp(found.scores).sum(1), 1.0, rtol=1e-5)


def test_codes_of_probability_zero_come_last_but_stay_valid():
    table = jnp.zeros((USERS, 2, 4, 4)).at[:, 1, 0, 2].set(-jnp.inf)
    index = TrieIndex.build(TOKENS, 4)
    found = sample_without_replacement(TableModel(table), index, HISTORY, 5, key=jax.random.key(0))
    assert found.valid.all()
    assert (found.tokens[:, -1] == jnp.array([0, 2])).all()
    assert not jnp.isnan(found.scores).any() and not jnp.isnan(found.draws.perturbed).any()


def test_recent_changes_are_seen():
    tokens, _, model = case(4, 12)
    more = random_tokens(np.random.default_rng(9), 6)
    editable, items = EditableIndex.build(tokens, tries.VOCAB).add(more)
    editable = editable.remove(np.array([0, 3]))
    kept = {i: tuple(t) for i, t in enumerate(tokens.tolist()) if i not in (0, 3)}
    kept |= {int(i): tuple(t) for i, t in zip(items, more.tolist(), strict=True)}
    found = sample_without_replacement(
        model, editable.index, HISTORY, EVERYTHING, key=jax.random.key(0)
    )
    for user in range(USERS):
        got = rows(found, user)
        assert {i: sid for _, sid, of_sid in got for i in of_sid} == kept
        assert len({sid for _, sid, _ in got}) == len(got)
    np.testing.assert_allclose(jnp.exp(found.scores).sum(1), 1.0, rtol=1e-4)


def test_a_key_decides_and_another_one_does_not_compile_again():
    _, index, model = case()
    for draw, compiled in (
        (sample_without_replacement, sampling_module._sample_without_replacement),
        (sample, sampling_module._sample),
    ):
        first = draw(model, index, HISTORY, 4, key=jax.random.key(0))
        size = compiled._cache_size()
        again = draw(model, index, HISTORY + 1, 4, key=jax.random.key(0))
        other = draw(model, index, HISTORY, 4, key=jax.random.key(1))
        assert compiled._cache_size() == size
        jax.tree.map(np.testing.assert_array_equal, first, again)
        assert (first.tokens != other.tokens).any()


def test_temperature_sharpens():
    tokens, index, model = case(5)
    found = sample_without_replacement(
        model, index, HISTORY, EVERYTHING, key=jax.random.key(0), temperature=0.5
    )
    for user in range(USERS):
        chances = search_oracles.all_probabilities(tokens, model.log_prob(user, 0.5))
        for score, sid, _ in rows(found, user):
            np.testing.assert_allclose(np.exp(score), chances[sid], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("draw", [sample, sample_without_replacement])
def test_bad_requests_get_one_clear_error(draw):
    _, index, model = case()
    key = jax.random.key(0)
    with pytest.raises(DecodingError, match="num_candidates must be at least 1, got 0"):
        draw(model, index, HISTORY, 0, key=key)
    with pytest.raises(DecodingError, match="temperature must be above 0, got -1"):
        draw(model, index, HISTORY, 4, key=key, temperature=-1)
