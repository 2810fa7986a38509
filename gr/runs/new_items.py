"""Adds items to a trained run: semantic IDs by the run's own fit, those of old items stay as they are."""

import dataclasses
import os

import numpy as np

from gr.data import read_items
from gr.data.files import as_path, read_json, write_json
from gr.data.sequences import Splits
from gr.runs.experiment import Experiment
from gr.runs.workdir import (
    ADDED_ITEMS_FILE,
    SEMANTIC_IDS_FILE,
    load_encoder,
    occupied,
    saved_experiment,
)
from gr.semantic_ids import SemanticIdError, SemanticIds, with_new_items
from gr.semantic_ids.arrays import load_npz
from gr.training import TrainingError


@dataclasses.dataclass(frozen=True)
class AddedItems:
    """What `add_items` did."""

    semantic_ids: SemanticIds  # Of old items, then of the new ones.
    num_added: int
    titles: tuple[str, ...]  # [num_added]; the id where there is no title.
    num_colliding: (
        int  # New items that share all codes but the extra one (or all codes) with another item.
    )
    num_unknown: (
        int | None
    )  # New items whose text has no word that the fit knows; None for ready vectors.

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of the new items, [num_added, L], such as for `EditableIndex.add`."""
        return self.semantic_ids.tokens[-self.num_added :]


def add_items(workdir: str, path: str | os.PathLike[str], *, id_column: str = "") -> AddedItems:
    """Gives new items semantic IDs by the fit that made a run's, and adds them to the run.

    `load_run` then has them in its data and catalogue: they are recommended, and may be in histories. A model that
    knows items by their codes alone scores them as any other; it is not trained again. Two atomic writes: first the
    items' texts, then the semantic IDs, without which texts count for nothing.

    Args:
        workdir: folder of the run.
        path: a file of the new items: their text fields, named as the run's (see `gr.data.read_items`), or for a run on
            ready vectors a `.npz` file with the arrays `vectors [n, D]` and `item_ids [n]`.
        id_column: column of the item ids; "": as in the data of the run, or `item`.

    Raises:
        TrainingError: if there is no such run, or another process works in it.
        SemanticIdError: if its semantic IDs have no fit, an item has an ID already, or no extra code is left.
        DataError: for a file that cannot be read.
    """
    config = saved_experiment(workdir)
    if config.ranks_whole_items:
        raise TrainingError(
            f"{workdir}: its model scores the items it was trained on and no others (item_decoder.head=items); train "
            "one that scores codes, item_decoder.head=trie"
        )
    with occupied(workdir):
        encoder = load_encoder(workdir, config.semantic_ids.path)
        ids_path = os.path.join(workdir, SEMANTIC_IDS_FILE)
        before = SemanticIds.load(ids_path)
        if os.fspath(path).endswith(".npz"):
            vectors, item_ids = _read_vectors(os.fspath(path))
            fields: dict[str, np.ndarray] = {}
            codes, unknown = encoder.encode_vectors(vectors), None
        else:
            item_ids, fields = read_items(path, **_reading(config, id_column))
            blocks = encoder.text_blocks(fields)
            codes = encoder.encode_blocks(blocks)
            unknown = int((blocks[0] == 0).all(axis=1).sum())
        after = with_new_items(before, codes, item_ids)
        added_path = os.path.join(workdir, ADDED_ITEMS_FILE)
        texts = _read_added(workdir)
        for row, item in enumerate(item_ids):
            texts[str(item)] = {name: str(column[row]) for name, column in fields.items()}
        write_json(added_path, texts)
        after.save(ids_path)
    levels = len(encoder.codebooks.centroids)
    _, group, counts = np.unique(
        after.codes[:, :levels], axis=0, return_inverse=True, return_counts=True
    )
    shared = counts[group.reshape(-1)[before.num_items :]] > 1
    titles = fields.get("title", item_ids)
    return AddedItems(
        semantic_ids=after,
        num_added=len(item_ids),
        titles=tuple(str(t) or str(i) for t, i in zip(titles, item_ids, strict=True)),
        num_colliding=int(shared.sum()),
        num_unknown=unknown,
    )


def with_added_items(workdir: str, splits: Splits) -> Splits:
    """The data of a run with the items that were added to it, after those of the data; nobody has taken them yet."""
    texts = _read_added(workdir)
    if not texts:
        return splits
    sequences = splits.sequences
    have_ids = set(SemanticIds.load(os.path.join(workdir, SEMANTIC_IDS_FILE)).item_ids.tolist())
    have_ids -= set(sequences.item_ids.tolist())  # Newer data may have them.
    new = [item for item in texts if item in have_ids]
    fields = {
        name: np.concatenate(
            [column, np.array([texts[item].get(name, "") for item in new], dtype=object)]
        )
        for name, column in sequences.item_fields.items()
    }
    item_ids = np.concatenate([sequences.item_ids, np.array(new, dtype=str)])
    cold = None if splits.cold is None else np.pad(splits.cold, (0, len(new)), constant_values=True)
    return dataclasses.replace(
        splits,
        sequences=dataclasses.replace(sequences, item_ids=item_ids, item_fields=fields),
        cold=cold,
    )


def _read_added(workdir: str) -> dict[str, dict[str, str]]:
    """The texts of the added items by id; none if there is no file."""
    path = os.path.join(workdir, ADDED_ITEMS_FILE)
    if not as_path(path).exists():
        return {}
    try:
        return dict(read_json(path))
    except ValueError as error:
        raise SemanticIdError(
            f"{path} cannot be read ({error}); remove it, and add the items' texts again"
        ) from error


def _reading(config: Experiment, id_column: str) -> dict:
    """How the new items' file is read: as that of the run's items."""
    options = config.data.options
    of_items = dict(options.get("items_options") or {})
    own = of_items.pop("item", None) or options.get("items_item") or options.get("item")
    text = {name: options[name] for name in ("separator", "encoding", "header") if name in options}
    return {
        "item": id_column or own or "item",
        "title": options.get("title"),
        "options": {k: v for k, v in {**text, **of_items}.items() if v is not None},
    }


def _read_vectors(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors `[n, D]` and item ids `[n]` of a `.npz` file."""
    arrays = load_npz(path)
    missing = [name for name in ("vectors", "item_ids") if name not in arrays]
    if missing:
        raise SemanticIdError(
            f"{path}: no array {missing[0]!r} but {', '.join(arrays)}; save 'vectors' and 'item_ids'"
        )
    vectors, item_ids = arrays["vectors"], arrays["item_ids"].astype(np.str_)
    if vectors.ndim != 2 or item_ids.shape != vectors.shape[:1] or not len(item_ids):
        raise SemanticIdError(
            f"{path}: vectors {list(vectors.shape)} and item_ids {list(item_ids.shape)}; give a row and an id for each "
            "new item"
        )
    return vectors, item_ids
