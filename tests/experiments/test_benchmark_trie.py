"""The trie benchmark as a subprocess on tiny sizes; its baselines against dictionaries; the information floor."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from experiments.benchmark_trie import same_for_all_beams
from experiments.benchmarks.trie_baselines import (
    CpuTrie,
    HashBitmap,
    PrefixVerification,
    ReplayedModel,
    masked_search,
)
from experiments.benchmarks.trie_cases import (
    FAST,
    METHODS,
    Case,
    read_cases,
    read_methods,
    reason_to_skip,
)
from experiments.benchmarks.trie_corpus import random_tokens
from experiments.benchmarks.trie_csr import PublishedTrie, published_search
from gr.decoding import beam_search
from gr.trie import TrieError, TrieIndex
from gr.trie.sorting import sort_ids
from gr.trie.statistics import log2_binomial

ROOT = Path(__file__).parents[2]
VOCAB, LENGTH, USERS, BEAMS = 11, 4, 3, 6
SIZES = ["--num_items=300", "--vocab_size=32", "--length=3", "--batch=2"]


def command(*arguments):
    return [sys.executable, "-m", "experiments.benchmark_trie", *SIZES, *arguments]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The file and the standard output of a sweep over beams."""
    folder = tmp_path_factory.mktemp("trie")
    done = subprocess.run(
        command("--beams=5,7", "--seconds=0.01", f"--json={folder}/trie.json"),
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # What is compiled is hardly run.
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "trie.json").read_text()), done.stdout, folder


def test_every_method_is_measured(measured):
    content, output, _ = measured
    for quantity in ("ms_per_step", "ms_per_decode", "ratio_to_floor", "rounds"):
        assert list(content[quantity]) == list(METHODS)
        assert all(math.isfinite(value) and value > 0 for value in content[quantity].values())
    assert content["ms_per_decode"]["ours"] == pytest.approx(3 * content["ms_per_step"]["ours"])
    assert content["ratio_to_floor"]["floor"] == 1.0
    assert content["compilations_while_timing"] == 0 and content["skipped"] == {}
    assert all(f"\n{method} " in output for method in METHODS)


def test_the_index_is_measured(measured):
    content = measured[0]
    for quantity in ("bytes_per_item", "published_bytes_per_item", "information_floor_bytes"):
        assert content[quantity] > 0
    assert content["bytes_per_item"] > content["information_floor_bytes"]
    for quantity in ("build_seconds", "mask_seconds", "peak_rss_gib"):
        assert content[quantity] > 0


def test_a_sweep_has_all_cases_and_the_base_on_top(measured):
    content = measured[0]
    assert [case["case"]["beams"] for case in content["cases"]] == [5, 7]
    assert content["case"] == {
        "num_items": 300, "vocab_size": 32, "length": 3, "batch": 2, "beams": 5,
    }  # fmt: skip
    assert content["ms_per_step"] == content["cases"][0]["ms_per_step"]


def test_figures_are_drawn_and_the_machine_is_named(measured):
    content, output, folder = measured
    for name in ("trie_methods.png", "trie_beams.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"{folder / name}" in output
    assert content["machine"]["backend"] == "cpu" and content["machine"]["cpu"] in output
    assert "experiments.benchmark_trie --num_items=300" in content["command"]


def test_a_bad_size_is_one_line():
    done = subprocess.run(
        command("--beams=0", "--json=unused.json"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: --beams=0: give whole numbers from 1 on, such as 2048 or 1e6"
    ]


# Cases and methods.


def flags(**changed):
    sizes = {"num_items": "100", "vocab_size": "8", "length": "3", "batch": "2", "beams": "4"}
    return {axis: value.split(",") for axis, value in (sizes | changed).items()}


def test_a_sweep_varies_one_axis_at_a_time():
    cases = read_cases(flags(num_items="1e2,2.5e3", beams="4,5,6"))
    base = Case(100, 8, 3, 2, 4)
    assert cases == [
        base,
        Case(2500, 8, 3, 2, 4),
        Case(100, 8, 3, 2, 5),
        Case(100, 8, 3, 2, 6),
    ]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "nan", "inf", ""])
def test_sizes_are_whole_numbers(text):
    with pytest.raises(TrieError, match=f"--vocab_size={text}: give whole numbers"):
        read_cases(flags(vocab_size=text))


def test_methods_are_chosen_by_name():
    assert read_methods([]) == METHODS
    assert read_methods(["ppv_exact", "ours"]) == ("floor", "ours", "ppv_exact")
    with pytest.raises(TrieError, match="--methods=ours,theirs: choose from floor,"):
        read_methods(["ours", "theirs"])


def test_what_cannot_run_is_skipped_with_a_reason():
    def runs(case, named=False):
        return [method for method in METHODS if reason_to_skip(method, case, named) is None]

    assert runs(Case(10**6, 2048, 8, 16, 70)) == list(METHODS)
    assert runs(Case(10**7, 2048, 8, 2, 70)) == [m for m in METHODS if m != "cpu_trie"]
    assert runs(Case(10**8, 2048, 8, 2, 70)) == ["floor", "unconstrained", "ours"]
    named = runs(Case(10**8, 2048, 8, 2, 70), named=True)
    assert {"hash_bitmap", "ours_item_mask"} < set(named) and "published_csr" not in named
    assert "published_csr" not in runs(Case(10**4, 65536, 8, 2, 5))
    assert set(runs(Case(10**4, 2048, 8, 512, 70))) == {*FAST, "hash_bitmap", "ppv_approx"}


# Baselines.


def random_case(seed, num_items=60):
    tokens = random_tokens(num_items, VOCAB, LENGTH, seed)
    rng = np.random.default_rng(seed)
    shapes = [(USERS, VOCAB)] + [(USERS, BEAMS, VOCAB)] * (LENGTH - 1)
    model = ReplayedModel(tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))
    return tokens, sort_ids(tokens, tokens.max(axis=0)), same_for_all_beams(model), rng


def dictionary_mask(tokens, prefixes):
    """By a dictionary of prefixes: which tokens may follow, `[B, M, V]`."""
    levels = [set(level) for level in oracles.prefixes(tokens.tolist())]
    mask = np.zeros((*prefixes.shape[:2], VOCAB), bool)
    for user, beam, token in np.ndindex(mask.shape):
        longer = (*prefixes[user, beam].tolist(), token)
        mask[user, beam, token] = longer in levels[len(longer)]
    return mask


def prefixes_and_masks(tokens, rng):
    """For each length: prefixes of items, with a few at random among them, and what the dictionary says."""
    for depth in range(LENGTH):
        prefixes = tokens[rng.integers(len(tokens), size=(USERS, BEAMS)), :depth].astype(np.int32)
        prefixes[:, 0] = rng.integers(VOCAB, size=(USERS, depth))
        yield prefixes, dictionary_mask(tokens, prefixes)


def mask_of(baseline, prefixes, logits=None):
    if logits is None:
        logits = jnp.zeros((*prefixes.shape[:2], VOCAB))
    return np.asarray(jax.jit(lambda b, p, l: b.allowed(p, l))(baseline, prefixes, logits))


@pytest.mark.parametrize("num_items", [1, 60])
@pytest.mark.parametrize("build", [lambda ids: CpuTrie.build(ids, VOCAB), PrefixVerification.build])
def test_exact_masks_are_those_of_a_dictionary(build, num_items):
    tokens, ids, _, rng = random_case(0, num_items)
    baseline = build(ids)
    for prefixes, expected in prefixes_and_masks(tokens, rng):
        np.testing.assert_array_equal(mask_of(baseline, prefixes), expected)


def test_the_hash_bitmap_allows_all_that_is_allowed():
    tokens, ids, _, rng = random_case(1)
    crowded, roomy = HashBitmap.build(ids, 8), HashBitmap.build(ids)
    for prefixes, expected in prefixes_and_masks(tokens, rng):
        assert mask_of(crowded, prefixes)[expected].all()
        # With 2**27 bits for 240 prefixes a false positive is not to be expected.
        np.testing.assert_array_equal(mask_of(roomy, prefixes), expected)


def test_the_approximate_verification_looks_up_the_likeliest_tokens():
    tokens, ids, _, rng = random_case(2)
    baseline = PrefixVerification.build(ids, num_candidates=3)
    for prefixes, expected in prefixes_and_masks(tokens, rng):
        logits = rng.normal(size=expected.shape)
        likely = logits >= np.sort(logits, axis=-1)[..., -3:-2]
        found = mask_of(baseline, prefixes, jnp.asarray(logits, jnp.float32))
        np.testing.assert_array_equal(found, expected & likely)


def scores_and_tokens(found):
    """Scores and semantic IDs of all beams that there are, by user."""
    scores, tokens = np.asarray(found.scores), np.asarray(found.tokens)
    there = scores > -np.inf
    return [(s[t], c[t].tolist()) for s, c, t in zip(scores, tokens, there, strict=True)]


def assert_same(found, expected):
    pairs = zip(scores_and_tokens(found), scores_and_tokens(expected), strict=True)
    for (scores, tokens), (expected_scores, expected_tokens) in pairs:
        np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-5)
        assert tokens == expected_tokens


@pytest.mark.parametrize("num_items", [2, 60, 900])
def test_the_published_search_is_ours_if_it_keeps_all_tokens(num_items):
    tokens, ids, model, _ = random_case(3, num_items)
    history = jnp.zeros((USERS, 1))
    ours = beam_search(model, TrieIndex.build(tokens, VOCAB), history, BEAMS)
    trie = PublishedTrie.build(ids, VOCAB)
    found = published_search(model, trie, history, num_beams=BEAMS, tokens_per_beam=VOCAB)
    assert_same(found, ours)


def test_the_published_search_is_inexact_if_it_keeps_few_tokens():
    tokens, ids, model, _ = random_case(4, num_items=900)
    trie, history = PublishedTrie.build(ids, VOCAB), jnp.zeros((USERS, 1))
    found = published_search(model, trie, history, num_beams=BEAMS, tokens_per_beam=1)
    ours = beam_search(model, TrieIndex.build(tokens, VOCAB), history, BEAMS)
    assert (np.asarray(found.scores)[:, 1:] < np.asarray(ours.scores)[:, 1:]).any()


def test_search_by_verification_is_ours():
    tokens, ids, model, _ = random_case(5)
    history = jnp.zeros((USERS, 1))
    ours = beam_search(model, TrieIndex.build(tokens, VOCAB), history, BEAMS)
    found = masked_search(
        model, PrefixVerification.build(ids), history, length=LENGTH, num_beams=BEAMS
    )
    assert_same(found, ours)


def test_unconstrained_search_is_brute_force_over_all_sequences():
    _, _, model, _ = random_case(6)
    everything = np.array(list(np.ndindex((VOCAB,) * LENGTH)))
    found = masked_search(model, None, jnp.zeros((USERS, 1)), length=LENGTH, num_beams=BEAMS)
    for user, (scores, tokens) in enumerate(scores_and_tokens(found)):
        log_probs = [oracles.log_softmax(model.logits[0][user])]
        log_probs += [oracles.log_softmax(logits[user, 0]) for logits in model.logits[1:]]
        # The levels are independent, so that here beam search is exact.
        total = sum(log_probs[depth][everything[:, depth]] for depth in range(LENGTH))
        best = np.argsort(-total)[:BEAMS]
        np.testing.assert_allclose(scores, total[best], rtol=0, atol=1e-5)
        assert tokens == everything[best].tolist()


# The information floor.


@pytest.mark.parametrize("n, k", [(10, 3), (10, 10), (2**20, 1), (2**21, 1000), (2**24, 5000)])
def test_information_floor_is_the_log_of_the_binomial(n, k):
    assert log2_binomial(n, k) == pytest.approx(math.log2(math.comb(n, k)), rel=1e-9, abs=1e-9)


def test_information_floor_of_a_dense_set():
    exact = math.log2(math.comb(2**20, 2**17 + 7))
    assert log2_binomial(2**20, 2**17 + 7) == pytest.approx(exact, rel=1e-12)


def test_information_floor_of_ten_million_items_is_the_published_one():
    assert log2_binomial(2048**8, 10**7) / 10**7 / 8 == pytest.approx(8.3, abs=0.05)
    assert log2_binomial(2048**200, 1000) > 0  # A number of semantic IDs beyond any float.


def test_more_items_than_semantic_ids_need_no_bits():
    assert log2_binomial(8, 9) == 0.0
