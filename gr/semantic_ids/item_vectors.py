"""Item vectors `[N, D]`, the raw material of Semantic IDs: from text, from interactions, or both.

Everything runs on the host, on one thread, so that the same seed gives the same vectors anywhere.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr.data.sequences import Sequences, Splits
from gr.data.splits import training_interactions
from gr.data.text import clean_text
from gr.semantic_ids.arrays import load_item_rows
from gr.semantic_ids.semantic_ids import SemanticIdError
from gr.semantic_ids.terms import terms

_MAX_TERMS = 50_000  # TF-IDF keeps the most frequent terms.
_ROUNDING = 8.0  # Numbers that differ by at most so many units of precision count as equal.
LARGEST = 1e100  # Numbers between its inverse and itself can be squared without overflow.


def item_texts(sequences: Sequences, fields: Sequence[str] | None = None) -> list[str]:
    """The text of each item, [N]: its fields one after another, HTML entities resolved.

    Args:
        sequences: the data.
        fields: names of item fields to use, in this order; by default all.

    Raises:
        SemanticIdError: where there is no text at all or a field is unknown.
    """
    names = list(sequences.item_fields) if fields is None else list(fields)
    unknown = [name for name in names if name not in sequences.item_fields]
    if unknown:
        raise SemanticIdError(
            f"no item field {unknown[0]!r}; known are {sorted(sequences.item_fields)}."
        )
    texts = joined_texts(sequences.item_fields, names)
    if not any(texts):
        raise SemanticIdError(
            "the items have no text; use vectors='interactions' or the path of a .npy file."
        )
    return texts


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """TF-IDF of words and word pairs (see `terms`), reduced by truncated SVD, as fitted to some texts."""

    terms: tuple[str, ...]  # [S] the known terms.
    idf: np.ndarray  # [S] float64, their inverse document frequencies.
    components: np.ndarray  # [S, D] float32, right singular vectors; 0 beyond the rank.
    longest: float  # Length of the longest row before rows were divided by theirs.

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int, seed: int) -> tuple["TextEncoder", np.ndarray]:
        """The encoder of these texts, and their vectors; see `text_vectors`."""
        vectorizer = _tfidf(
            min_df=2 if len(texts) >= 100 else 1,
            max_features=_MAX_TERMS,
        )
        try:
            matrix = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise SemanticIdError(
                f"no usable words in the items' text ({error}); use vectors='interactions'."
            ) from error
        left, singular, right = _truncated_svd(matrix, dim, seed)
        reduced = left * singular
        encoder = cls(
            terms=tuple(vectorizer.get_feature_names_out()),
            idf=vectorizer.idf_,
            components=np.where(singular > 0, right, 0.0).astype(np.float32),
            longest=float(np.linalg.norm(reduced, axis=1).max()),
        )
        return encoder, _unit_rows(reduced)[_first_of_equals(texts)]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of any texts, float32 `[n, D]`: a row has length 1, or 0 where no word is known."""
        vectorizer = _tfidf(vocabulary=self.terms)
        vectorizer.idf_ = self.idf
        return _unit_rows(vectorizer.transform(texts) @ self.components, self.longest)


def text_vectors(texts: Sequence[str], dim: int, seed: int) -> np.ndarray:
    """TF-IDF of words and word pairs (see `terms`), reduced by truncated SVD: float32 `[N, dim]`.

    Rows have length 1, or 0 where an item has no known word; equal texts have equal rows. Columns
    beyond the rank are 0. With 100 items or more, terms that occur in a single item are left out.
    """
    return TextEncoder.fit(texts, dim, seed)[1]


def sentence_vectors(texts: Sequence[str], model: str) -> np.ndarray:
    """Vectors of a sentence-transformers model (its name or folder): float32 `[N, D]`, length 1.

    Raises:
        SemanticIdError: where the package is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SemanticIdError(
            f"text_model={model!r} needs the package sentence-transformers: "
            "pip install -e '.[text]', or use text_model='tfidf'."
        ) from error
    vectors = _unit_rows(np.asarray(SentenceTransformer(model).encode(list(texts))))
    return vectors[_first_of_equals(texts)]


def interaction_vectors(
    sequences: Sequences, training: np.ndarray, dim: int, seed: int, window: int = 10
) -> np.ndarray:
    """Item vectors from co-occurrence in users' sequences: float32 `[N, dim]`.

    Two training interactions of a user at distance `d <= window` count `1 / d` for their pair of
    items. The counts become positive pointwise mutual information with smoothed contexts
    (exponent 0.75), reduced by truncated SVD with weights `sqrt(singular value)`: Levy, Goldberg
    and Dagan 2015 (TACL), sections 3 and 7. PMI overrates pairs seen once, hence the discount
    `c / (c + 1)` of Pantel and Lin 2002.

    Args:
        sequences: the data.
        training: which interactions count, bool [E], see `training_interactions`.
        dim: width D; columns beyond the rank are 0.
        seed: for the randomised SVD.
        window: largest distance of a pair.

    Returns:
        Rows of length 1, or 0 for items without any neighbour in training.

    Raises:
        SemanticIdError: where no pair exists.
    """
    from scipy import sparse

    num_items = sequences.num_items
    if training.shape != sequences.items.shape:
        raise SemanticIdError(
            f"training must be a mask of shape {list(sequences.items.shape)}, "
            f"got {list(training.shape)}."
        )
    owners = np.repeat(np.arange(sequences.num_users), sequences.lengths)[training]
    items = sequences.items[training]
    counts = sparse.csr_array((num_items, num_items), dtype=np.float64)
    for distance in range(1, min(window, len(items) - 1) + 1):
        left, right = items[:-distance], items[distance:]
        pair = (owners[:-distance] == owners[distance:]) & (left != right)
        weights = np.full(pair.sum(), 1.0 / distance)
        counts = counts + sparse.coo_array(
            (weights, (left[pair], right[pair])), shape=(num_items, num_items)
        )
    counts = (counts + counts.T).tocoo()
    if counts.nnz == 0:
        raise SemanticIdError(
            "no two training interactions of one user are near each other; "
            "use vectors='text' or the path of a .npy file."
        )
    totals = np.bincount(counts.row, weights=counts.data, minlength=num_items)
    contexts = totals**0.75
    contexts /= contexts.sum()
    pmi = np.log(counts.data / (totals[counts.row] * contexts[counts.col]))
    # Smoothed contexts make the matrix asymmetric; its rows are the items.
    ppmi = np.maximum(pmi, 0.0) * counts.data / (counts.data + 1.0)
    matrix = sparse.csr_array((ppmi, (counts.row, counts.col)), shape=counts.shape)
    left, singular, _ = _truncated_svd(matrix, dim, seed)
    vectors = _unit_rows(left * np.sqrt(singular))
    vectors[totals == 0] = 0.0
    return vectors


def catalogue_vectors(
    splits: Splits, *, dim: int = 64, text_model: str = "tfidf", seed: int = 0
) -> np.ndarray:
    """Item vectors for semantic rewards, whose cosine measures similarity: float32 `[N, E]`.

    They are from text if at least half of the items have any, else from training interactions. The two kinds are never
    mixed in one catalogue: a cosine across them would mean nothing.

    Args:
        splits: the data; only training interactions are used.
        dim: width E; a sentence-transformers model has its own.
        text_model: "tfidf", or the name of a sentence-transformers model.
        seed: same seed, same vectors.

    Returns:
        Rows of length 1, or 0 for items without text or interactions, whose cosine with any other counts as 0.

    Raises:
        SemanticIdError: where there is neither text nor a pair of interactions near each other.
    """
    sequences = splits.sequences
    texts = joined_texts(sequences.item_fields, list(sequences.item_fields))
    has_text = np.array([bool(text) for text in texts])
    if 2 * has_text.sum() < sequences.num_items or not texts:
        return interaction_vectors(sequences, training_interactions(splits), dim, seed)
    if text_model == "tfidf":
        return text_vectors(texts, dim, seed)
    # A sentence model has a vector for the empty text too.
    return sentence_vectors(texts, text_model) * has_text[:, None]


def load_vectors(
    path: str | os.PathLike,
    item_ids: Sequence[str] | np.ndarray,
    *,
    ids_path: str | os.PathLike = "",
    order: str = "",
) -> np.ndarray:
    """Vectors `[N, D]` of items from a `.npz` or `.npy` file, see `load_item_rows`."""
    path = os.fspath(path)
    vectors = load_item_rows(path, "vectors", item_ids, ids_path=ids_path, order=order)
    try:
        check_vectors(vectors)
    except SemanticIdError as error:
        raise SemanticIdError(f"{path}: {error}") from error
    return vectors


def check_vectors(vectors: np.ndarray) -> None:
    """Raises `SemanticIdError` unless `vectors` is a finite `[N, D]` array of numbers."""
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise SemanticIdError(f"vectors must be [N, D], got shape {list(vectors.shape)}.")
    if vectors.dtype.kind not in "fiu":
        raise SemanticIdError(f"vectors must be real numbers, got {vectors.dtype}.")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise SemanticIdError(
            f"the vector of item row {np.argmin(finite)} is not finite "
            f"({(~finite).sum()} such rows)."
        )
    # max and min instead of abs, which overflows for the smallest integer.
    large = np.maximum(vectors.max(axis=1), -vectors.min(axis=1).astype(np.float64)) > LARGEST
    if large.any():
        raise SemanticIdError(
            f"the vector of item row {np.argmax(large)} has numbers beyond {LARGEST:g}; scale the "
            "vectors."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class BlockScale:
    """How a block of vectors is centred and scaled, as fitted to some items; see `concatenate_vectors`."""

    origin: np.ndarray  # [D] float64.
    varies: np.ndarray  # [D] bool: which columns are more than a constant up to rounding.
    factor: float

    @classmethod
    def fit(cls, block: np.ndarray, weight: float = 1.0) -> "BlockScale":
        """The scale of a block `[N, D]`; a SemanticIdError for one that is constant or no finite array."""
        check_vectors(block)
        values = block.astype(np.float64)
        epsilon = np.finfo(block.dtype).eps if block.dtype.kind == "f" else 0.0
        origin = middle_values(values)
        centred = values - origin
        spread = centred.max(axis=0) - centred.min(axis=0)
        noise = _ROUNDING * epsilon * np.abs(values).max(axis=0)
        # A product of matrices rounds by the length of its rows, in a column of small numbers too.
        if spread.max() <= noise.max():
            noise = np.inf
        varies = spread > noise
        variance = np.var(np.where(varies, centred, 0.0), axis=0).sum()
        if variance == 0:
            raise SemanticIdError("all items have the same vector in one block; leave it out.")
        return cls(origin, varies, float(weight / np.sqrt(variance)))

    def apply(self, block: np.ndarray) -> np.ndarray:
        """A block `[n, D]` of these or other items, centred and scaled, float32."""
        check_vectors(block)
        if block.shape[1] != len(self.origin):
            raise SemanticIdError(
                f"vectors have width {block.shape[1]}, those of the fit {len(self.origin)}."
            )
        centred = np.where(self.varies, block.astype(np.float64) - self.origin, 0.0)
        return (centred * self.factor).astype(np.float32)


def concatenate_vectors(
    blocks: Sequence[np.ndarray], weights: Sequence[float] | None = None
) -> np.ndarray:
    """Puts blocks `[N, D_b]` side by side, float32 `[N, sum D_b]`, each with its weight (1).

    k-means sees squared distances, so each block is first divided by the square root of its total
    variance: with equal weights all blocks contribute equally. Blocks are centred first, since a large common part
    would cost float32 precision; columns that are constant up to rounding become 0.

    Raises:
        SemanticIdError: for a block that is no finite array, whose number of rows differs from the first one's, or that
            is constant up to rounding.
    """
    return scaled_blocks(fit_scales(blocks, weights), blocks)


def fit_scales(
    blocks: Sequence[np.ndarray], weights: Sequence[float] | None = None
) -> tuple[BlockScale, ...]:
    """The scale of each block; see `concatenate_vectors`."""
    weights = [1.0] * len(blocks) if weights is None else weights
    if len(weights) != len(blocks) or not blocks:
        raise SemanticIdError(f"{len(blocks)} blocks of vectors and {len(weights)} weights.")
    scales = []
    for block, weight in zip(blocks, weights, strict=True):
        scales.append(BlockScale.fit(block, weight))
        if len(block) != len(blocks[0]):
            raise SemanticIdError(
                f"a block has {len(block)} rows where the first has {len(blocks[0])}; give one row "
                "an item."
            )
    return tuple(scales)


def scaled_blocks(scales: Sequence[BlockScale], blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks `[n, D_b]` side by side, scaled as fitted: float32 `[n, sum D_b]`."""
    return np.concatenate(
        [scale.apply(block) for scale, block in zip(scales, blocks, strict=True)], axis=1
    )


def middle_values(vectors: np.ndarray) -> np.ndarray:
    """The median of each column of `[N, D]`, as one of its values: taking it away loses no digits."""
    middle = (len(vectors) - 1) // 2
    return np.partition(vectors, middle, axis=0)[middle]


def _first_of_equals(texts: Sequence[str]) -> np.ndarray:
    """For each text the row of the first that equals it, [N]."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(text, row) for row, text in enumerate(texts)])


def joined_texts(item_fields: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    """The named fields of each item, one after another; no texts at all without a field."""
    columns = [item_fields[name] for name in names]
    return [
        " ".join(filter(None, (clean_text(str(part)) for part in parts)))
        for parts in zip(*columns, strict=True)
    ]


def _tfidf(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=terms, sublinear_tf=True, **options)


def _truncated_svd(matrix: Any, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left singular vectors `[N, dim]`, singular values `[dim]` and right ones `[S, dim]` of a sparse matrix `[N, S]`.

    They are 0 beyond its rank.
    """
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits

    if dim < 1:
        raise SemanticIdError(f"dim must be at least 1, got {dim}.")
    with threadpool_limits(limits=1):  # The bits of a sum depend on how threads share it.
        left, singular, right = randomized_svd(
            matrix, n_components=min(dim, *matrix.shape), n_iter=7, random_state=seed
        )
    singular[singular <= _ROUNDING * np.finfo(np.float64).eps * singular[0]] = 0.0
    missing = dim - len(singular)
    wider = ((0, 0), (0, missing))
    return np.pad(left, wider), np.pad(singular, (0, missing)), np.pad(right.T, wider)


def _unit_rows(vectors: np.ndarray, longest: float = 0.0) -> np.ndarray:
    """Rows divided by their length, float32; rows of length 0 stay.

    A row far shorter than `longest`, or than the longest row, counts as of length 0.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A row of rounding noise is an empty row, not a direction.
    tiny = lengths <= 1e-9 * max(longest, lengths.max(), 1e-30)
    return np.where(tiny, 0.0, vectors / np.where(tiny, 1.0, lengths)).astype(np.float32)
