"""`ItemEncoder`: the fit that made a catalogue's codes, kept so that new items get theirs by the same fit."""

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from gr.data.files import read_arrays, write_arrays
from gr.semantic_ids import item_vectors
from gr.semantic_ids.item_vectors import BlockScale, TextEncoder
from gr.semantic_ids.residual_kmeans import ResidualCodebooks
from gr.semantic_ids.semantic_ids import SemanticIdError

TEXT, INTERACTIONS, BOTH = "text", "interactions", "both"  # Kinds of item vectors.
TFIDF = "tfidf"  # The text model that is fitted here.

FORMAT_VERSION = 1  # Of the files that `ItemEncoder.save` writes.


@dataclasses.dataclass(frozen=True, eq=False)
class ItemEncoder:
    """Text or vectors of items -> codes, as fitted to the items of a catalogue.

    Items of the fit get the codes of the fit again, unless it was balanced: capacities apply to them only.
    """

    vectors: str  # What items are clustered by; see `make_semantic_ids`.
    fields: tuple[str, ...]  # The item fields that make up a text, in order; () without text.
    text_model: str  # `TFIDF`, or the name of a sentence-transformers model.
    text: TextEncoder | None  # The fitted TF-IDF and SVD; None for other vectors and models.
    scales: tuple[BlockScale, ...]  # One for each block of vectors.
    codebooks: ResidualCodebooks

    @property
    def reads_text(self) -> bool:
        """Whether codes come from text fields; else from vectors that someone else made."""
        return self.vectors in (TEXT, BOTH)

    def encode_fields(self, item_fields: Mapping[str, np.ndarray]) -> np.ndarray:
        """Codes `[n, L]` int32 of n items with these text fields, name -> `[n]` str.

        Where the fit saw interactions too, these items count as items without any.

        Raises:
            SemanticIdError: if the codes are of something else than text, or a field is missing.
        """
        return self.encode_blocks(self.text_blocks(item_fields))

    def text_blocks(self, item_fields: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The blocks of vectors `[n, D]` of items with these text fields; see `encode_fields`."""
        if self.vectors == INTERACTIONS:
            raise SemanticIdError(
                "these semantic IDs were made from interactions alone, and new items have none; make IDs and train "
                f"anew with semantic_ids.vectors={TEXT}"
            )
        if not self.reads_text:
            raise SemanticIdError(
                f"these semantic IDs were made from the vectors of {self.vectors}; give the new items' vectors in the "
                "same space: a .npz file with the arrays 'vectors' and 'item_ids'"
            )
        missing = [name for name in self.fields if name not in item_fields]
        if missing:
            raise SemanticIdError(
                f"no item field {missing[0]!r}; the semantic IDs were made from {', '.join(self.fields)}: name all of "
                "them, with empty texts where nothing is known"
            )
        texts = item_vectors.joined_texts(item_fields, self.fields)
        if self.text_model == TFIDF:
            blocks = [self.text.encode(texts)]
        else:
            blocks = [item_vectors.sentence_vectors(texts, self.text_model)]
        if self.vectors == BOTH:
            blocks.append(np.zeros((len(texts), len(self.scales[1].origin)), np.float32))
        return blocks

    def encode_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """Codes `[n, L]` int32 of vectors `[n, D]` in the space of the fit.

        Raises:
            SemanticIdError: if the codes are of text or interactions, or the vectors do not fit.
        """
        if self.vectors in (TEXT, INTERACTIONS, BOTH):
            raise SemanticIdError(
                f"these semantic IDs were made from {self.vectors}, not from ready vectors; give the new items' text "
                "fields"
            )
        return self.encode_blocks([vectors])

    def encode_blocks(self, blocks: Sequence[np.ndarray]) -> np.ndarray:
        """Codes `[n, L]` int32 of blocks of vectors `[n, D]`."""
        return self.codebooks.encode(item_vectors.scaled_blocks(self.scales, blocks))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one `.npz` file, atomically: arrays and JSON, no pickled objects."""
        header = {
            "format_version": FORMAT_VERSION,
            "vectors": self.vectors,
            "fields": self.fields,
            "text_model": self.text_model,
            "factors": [scale.factor for scale in self.scales],
            "num_levels": len(self.codebooks.centroids),
        }
        arrays = {
            f"centroids/{level}": of_level
            for level, of_level in enumerate(self.codebooks.centroids)
        }
        for number, scale in enumerate(self.scales):
            arrays |= {f"scale/{number}/origin": scale.origin}
            arrays |= {f"scale/{number}/varies": scale.varies}
        if self.text is not None:
            header |= {"terms": self.text.terms, "longest": self.text.longest}
            arrays |= {"text/idf": self.text.idf, "text/components": self.text.components}
        # Bytes, since an array of strings would give each the space of the longest.
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ItemEncoder":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            SemanticIdError: for any other, newer or broken file.
        """
        try:
            arrays = read_arrays(path)
            header = json.loads(arrays["header"].tobytes())
            if header["format_version"] > FORMAT_VERSION:
                raise SemanticIdError(
                    f"{path}: format version {header['format_version']} is newer than {FORMAT_VERSION}, the newest "
                    "that this version of gr reads; update gr"
                )
            text = None
            if "terms" in header:
                text = TextEncoder(
                    tuple(header["terms"]),
                    arrays["text/idf"],
                    arrays["text/components"],
                    header["longest"],
                )
            scales = tuple(
                BlockScale(
                    arrays[f"scale/{number}/origin"], arrays[f"scale/{number}/varies"], factor
                )
                for number, factor in enumerate(header["factors"])
            )
            centroids = tuple(arrays[f"centroids/{level}"] for level in range(header["num_levels"]))
            return cls(
                header["vectors"],
                tuple(header["fields"]),
                header["text_model"],
                text,
                scales,
                ResidualCodebooks(centroids),
            )
        except (FileNotFoundError, SemanticIdError):
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise SemanticIdError(
                f"{path}: not a saved fit of semantic IDs, or a broken one ({error}); make the IDs again"
            ) from error
