"""The whole way from splits to Semantic IDs."""

import dataclasses
import json

import numpy as np
import pytest

from gr.data.sequences import Sequences, Splits, Targets
from gr.semantic_ids import SemanticIdError, build_semantic_ids, make_semantic_ids
from gr.semantic_ids.item_vectors import concatenate_vectors

NUM_ITEMS, NUM_USERS, LENGTH = 60, 80, 10
WORDS = ["phone cordless", "pen ink", "paper glossy"]


@pytest.fixture(scope="module")
def splits():
    """Users keep to one of three kinds of items; the text names the kind."""
    rng = np.random.default_rng(0)
    kinds = np.arange(NUM_ITEMS) % 3
    histories = [
        rng.choice(np.flatnonzero(kinds == user % 3), LENGTH, replace=False)
        for user in range(NUM_USERS)
    ]
    sequences = Sequences(
        items=np.concatenate(histories).astype(np.int32),
        offsets=np.arange(NUM_USERS + 1) * LENGTH,
        user_ids=np.array([f"u{u}" for u in range(NUM_USERS)]),
        item_ids=np.array([f"i{i}" for i in range(NUM_ITEMS)]),
        item_fields={"title": np.array([f"{WORDS[k]} model{i % 7}" for i, k in enumerate(kinds)])},
    )
    owners = np.repeat(np.arange(NUM_USERS, dtype=np.int32), LENGTH)
    place = np.tile(np.arange(LENGTH), NUM_USERS)

    def where(mask):
        return Targets(owners[mask], np.flatnonzero(mask))

    return Splits(
        sequences,
        train=where((place > 0) & (place < LENGTH - 2)),
        validation=where(place == LENGTH - 2),
        test=where(place == LENGTH - 1),
    )


SMALL = {"dim": 8, "num_levels": 2, "codebook_size": 3}


@pytest.mark.parametrize("vectors", ["text", "interactions", "both"])
def test_first_codes_are_the_kinds(splits, vectors):
    ids, report = make_semantic_ids(splits, vectors=vectors, **SMALL)
    assert ids.item_ids.tolist() == splits.sequences.item_ids.tolist()
    kinds = np.arange(NUM_ITEMS) % 3
    for kind in range(3):
        assert len(set(ids.codes[kinds == kind, 0].tolist())) == 1
    assert len(set(ids.codes[:, 0].tolist())) == 3
    assert report["levels"][0]["perplexity"] == pytest.approx(3)
    assert report["after_policy"]["distinct_sids"] == NUM_ITEMS
    assert report["after_policy"]["largest_group"] == 1
    assert report["before_policy"]["largest_group"] == ids.codebook_sizes[-1]
    json.dumps(report)


def test_policies_and_depth(splits):
    unique, _ = make_semantic_ids(splits, collision="extra_code", **SMALL)
    shared, report = make_semantic_ids(splits, collision="share", **SMALL)
    assert (unique.num_levels, shared.num_levels) == (3, 2)
    assert unique.codebook_sizes[:2] == shared.codebook_sizes == (3, 3)
    np.testing.assert_array_equal(unique.codes[:, :2], shared.codes)
    assert report["before_policy"] == report["after_policy"] == shared.collisions()
    assert shared.largest_group == unique.codebook_sizes[-1]


def test_same_seed_same_ids(splits):
    first, report = make_semantic_ids(splits, seed=5, **SMALL)
    second, again = make_semantic_ids(splits, seed=5, **SMALL)
    np.testing.assert_array_equal(first.codes, second.codes)
    assert report == again


def test_vectors_and_ids_from_files(splits, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, 5))
    np.save(tmp_path / "v.npy", vectors)
    path = str(tmp_path / "v.npy")
    ids, _ = make_semantic_ids(splits, vectors=path, order="items", collision="share", **SMALL)
    built, _ = build_semantic_ids(
        vectors,
        splits.sequences.item_ids,
        num_levels=2,
        codebook_size=3,
        collision="share",
        seed=0,
    )
    np.testing.assert_array_equal(ids.codes, built.codes)
    path = str(tmp_path / "ids.npz")
    ids.save(path)
    read, report = make_semantic_ids(splits, path=path, num_levels=7)
    np.testing.assert_array_equal(read.codes, ids.codes)
    assert (report["source"], report["collision"]) == (path, "share")
    assert report["after_policy"] == ids.collisions()


def test_rows_of_a_file_go_to_their_items(splits, tmp_path):
    rng = np.random.default_rng(0)
    vectors, order = rng.normal(size=(NUM_ITEMS, 5)), rng.permutation(NUM_ITEMS)
    np.savez(tmp_path / "v.npz", vectors=vectors, item_ids=splits.sequences.item_ids)
    expected, _ = make_semantic_ids(splits, vectors=str(tmp_path / "v.npz"), **SMALL)
    np.save(tmp_path / "v.npy", vectors[order])
    (tmp_path / "ids.txt").write_text("\n".join(splits.sequences.item_ids[order]))
    files = {"vectors": str(tmp_path / "v.npy"), "item_ids": str(tmp_path / "ids.txt")}
    ids, _ = make_semantic_ids(splits, **files, **SMALL)
    np.testing.assert_array_equal(ids.codes, expected.codes)
    with pytest.raises(SemanticIdError, match=r"v\.npy: nobody said which items"):
        make_semantic_ids(splits, vectors=files["vectors"], **SMALL)
    np.save(tmp_path / "codes.npy", ids.codes[order])
    read, _ = make_semantic_ids(
        splits, path=str(tmp_path / "codes.npy"), item_ids=files["item_ids"]
    )
    np.testing.assert_array_equal(read.codes, ids.codes)
    with pytest.raises(SemanticIdError, match=r"codes\.npy: nobody said which items"):
        make_semantic_ids(splits, path=str(tmp_path / "codes.npy"))


@pytest.mark.parametrize("text", ["Beauty", "Office Products, Office & School Supplies"])
def test_items_that_are_all_alike_are_refused(splits, tmp_path, text):
    fields = {"categories": np.array([text] * NUM_ITEMS, dtype=object)}
    alike = dataclasses.replace(
        splits, sequences=dataclasses.replace(splits.sequences, item_fields=fields)
    )
    for vectors in ("text", "both"):
        with pytest.raises(SemanticIdError, match="same vector in one block; leave it out"):
            make_semantic_ids(alike, vectors=vectors, min_perplexity=0.0, **SMALL)
    make_semantic_ids(alike, vectors="interactions", **SMALL)
    path = tmp_path / "v.npy"
    np.save(path, np.full((NUM_ITEMS, 3), 0.1) + 1e-17 * (np.arange(NUM_ITEMS) % 4)[:, None])
    with pytest.raises(SemanticIdError, match="same vector in one block; leave it out"):
        make_semantic_ids(splits, vectors=str(path), order="items", **SMALL)


def test_refusals(splits):
    with pytest.raises(SemanticIdError, match="codebook collapse at level 0"):
        build_semantic_ids(
            np.zeros((20, 2)),
            np.arange(20),
            num_levels=2,
            codebook_size=4,
            collision="extra_code",
            seed=0,
            min_perplexity=0.5,
        )
    with pytest.raises(SemanticIdError, match="collision='drop'"):
        make_semantic_ids(splits, collision="drop", **SMALL)
    with pytest.raises(SemanticIdError, match=r"neither\.npy: cannot be read"):
        make_semantic_ids(splits, vectors="neither.npy", order="items", **SMALL)
    with pytest.raises(
        SemanticIdError, match="'texts' is unknown; did you mean text\\? Use one of"
    ):
        make_semantic_ids(splits, vectors="texts", **SMALL)


def own_vectors(splits):
    return np.random.default_rng(0).normal(size=(splits.sequences.num_items, 5))


def too_few(splits):
    return own_vectors(splits)[1:]


def not_finite(splits):
    return own_vectors(splits) / 0


def test_own_vectors_by_module_and_name(splits):
    name = f"{__name__}:own_vectors"
    found, report = make_semantic_ids(splits, vectors=name, **SMALL)
    expected, _ = build_semantic_ids(
        concatenate_vectors([own_vectors(splits)]),
        splits.sequences.item_ids,
        num_levels=SMALL["num_levels"],
        codebook_size=SMALL["codebook_size"],
        collision="extra_code",
        seed=0,
    )
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert report["source"] == f"residual k-means of vectors={name}"
    for wrong, fault in (
        ("none", "has no 'none'"),
        ("too_few", r"too_few' returned float64\[.*, 5\]; such a function is Splits -> \[N, E\]"),
        ("not_finite", "not_finite': the vector of item row 0 is not finite"),
    ):
        with pytest.raises(SemanticIdError, match=fault), np.errstate(all="ignore"):
            make_semantic_ids(splits, vectors=f"{__name__}:{wrong}", **SMALL)
