"""Recommends items to all users of a trained run: a folder of files, each for a share of the users."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tqdm

from gr.data import (
    NO_ITEM,
    DataError,
    Histories,
    Sequences,
    Targets,
    fingerprint,
    fingerprint_differences,
)
from gr.data.buckets import resolve_buckets
from gr.data.files import as_path, open_text, read_json, write_json
from gr.data.fingerprint import checksum
from gr.data.ranked_lists import SCHEMA, WRITTEN, write_table
from gr.decoding import SearchConfig
from gr.evaluation import decode_targets
from gr.models import scores_items
from gr.runs import build
from gr.runs.experiment import ConfigError
from gr.runs.export import list_table
from gr.runs.recommend import unknown_user
from gr.runs.run import Run
from gr.runs.workdir import OF_NO_MATTER_TO_A_MODEL
from gr.training import make_mesh, replicate
from gr.training.provenance import differing_fields
from gr.trie import ShardedIndex

MANIFEST = "_manifest.json"  # Readers of a folder of tables leave out names that begin so.
_MADE_OF = b"gr.made_of"  # Metadata of a Parquet file: the checksum of its manifest.


def recommend_all(
    run: Run,
    output: str | os.PathLike[str],
    *,
    shards: int = 1,
    num_items: int = 10,
    form: str = "parquet",
    users: str | os.PathLike[str] | Sequence[str] | None = None,
    split_index: int = 1,
    process_id: int | None = None,
    num_processes: int | None = None,
) -> list[str]:
    """Writes the best items of every user, as `recommend` ranks them, into a folder of files.

    Their columns are `user_id`, `rank` (from 1), `item_id`, `score`: the log-probability of the item's semantic ID,
    with a memory that of the mixture, and `memory_share`: how much of that probability came from the memory. A user for
    whom fewer items are left has fewer rows. `_manifest.json` says what the lists were made of;
    `gr.runs.load_rankings` reads the folder.

    A file appears when it is complete. After an interruption the same call skips the files that are there, and makes
    the others as if nothing had happened. The users of a batch are split over the devices of this process. Memory is
    needed for one shard at a time.

    Args:
        run: the trained run.
        output: the folder, or an address such as `gs://bucket/lists`.
        shards: number of files.
        num_items: most items of a user.
        form: of the files: "parquet", "csv" or "trec" (a run, see `gr.data.ranked_lists.write_table`).
        users: a file with one user id a line, or a list of ids; None: all users who have interactions.
        split_index: devices over which the trie is split, for one that does not fit on each of them; they decode the
            same users. It divides the number of devices of this process. With it the tokens of all items stay on the
            host. So does the whole trie, if the run was loaded under `gr.training.on_host`.
        process_id: of this process. It makes the shards `process_id`, `process_id + num_processes` and so on. None: as
            `jax.distributed` says.
        num_processes: processes that share the work, on any machines that see the folder. None: as `jax.distributed`
            says.

    Returns:
        The paths of the files that this call wrote.

    Raises:
        ConfigError: if the folder holds lists of another run or other settings, or a number is out of range.
        TrieError: if there are fewer first codes than devices over which the trie is split.
        DataError: for a user who is not in the data, is named twice or has no interactions.
        EvaluationError: if numbers of the model are NaN or infinite, naming the code and the user.
    """
    process_id = jax.process_index() if process_id is None else process_id
    num_processes = jax.process_count() if num_processes is None else num_processes
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"process_id={process_id} with num_processes={num_processes}: count from 0 up to one less"
        )
    if num_items < 1:
        raise ConfigError(f"num_items={num_items}: use 1 or more")
    if form not in WRITTEN:
        raise ConfigError(f"form={form!r}: use one of {', '.join(WRITTEN)}")
    sequences, decoding = run.splits.sequences, run.config.decoding
    rows = user_rows(sequences, users)
    if not 1 <= shards <= len(rows):
        raise ConfigError(f"shards={shards} for {len(rows)} users: use 1 to {len(rows)}")
    local = jax.local_devices()
    if split_index < 1 or len(local) % split_index:
        raise ConfigError(
            f"split_index={split_index} with {len(local)} devices in this process: use a number that divides theirs"
        )
    if split_index > 1 and scores_items(run.model):
        raise ConfigError(
            f"split_index={split_index}: the model scores whole items and searches no trie; leave it out"
        )
    mixture = run.mixture

    # The folder, and what is to be done.
    search = SearchConfig("beam", num_candidates=max(decoding.num_beams, num_items))
    options = {"max_history": run.config.data.max_history, "exclude_seen": decoding.exclude_seen}
    options |= build.distribution(run.config)
    settings = dataclasses.asdict(decoding) | options
    settings |= {"num_items": num_items, "num_beams": search.num_candidates, "form": form}
    names = [f"shard-{shard:05}-of-{shards:05}.{form}" for shard in range(shards)]
    made_of = _claim(output, _manifest(run, rows, settings, names))
    mine = range(process_id, shards, num_processes)
    missing = [shard for shard in mine if not _is_there(output, names[shard], made_of)]
    if len(missing) < len(mine):
        print(f"{len(mine) - len(missing)} of {len(mine)} shards are there already")

    # What all shards share: a model on each device, and padded lengths, so that nothing is compiled twice.
    model, catalogue, mesh, sharded = run.model, run.catalogue, None, None
    if len(local) > 1:
        mesh = make_mesh(len(local) // split_index, split_index, devices=local)
        model = replicate(model, mesh)
    if split_index > 1:
        ids, layout = run.semantic_ids, catalogue.index.layout
        sharded = ShardedIndex.build(ids.tokens, ids.vocab_size, mesh, layout=layout)
    elif mesh is not None:
        catalogue = replicate(catalogue, mesh)
    lengths = np.minimum(sequences.lengths[rows], options["max_history"])
    decode = functools.partial(
        decode_targets,
        search,
        model,
        catalogue,
        buckets=resolve_buckets(run.config.data.num_buckets, lengths, options["max_history"]),
        batch_size=decoding.batch_size,
        mesh=mesh,
        sharded=sharded,
        **options,
    )

    # The shards.
    parts = np.array_split(rows, shards)
    item_ids = pa.array(sequences.item_ids, pa.string())
    total = sum(len(parts[shard]) for shard in missing)
    written = []
    bar = tqdm.tqdm(
        total=total, desc="recommend", unit=" users", dynamic_ncols=True, disable=not missing
    )
    with bar:
        for shard in missing:
            part, targets = with_next_place(sequences, parts[shard])
            prior = None
            if mixture is not None:
                past = Histories.of(part, targets)
                prior = mixture.for_histories(past, exclude=decoding.exclude_seen)
            with build.scoring(run.config):
                found = decode(part, targets, prior=prior, progress=bar)
            table = list_table(part.user_ids, item_ids, found, num_items, prior=prior)
            path = os.path.join(output, names[shard])
            write_table(path, table.replace_schema_metadata({_MADE_OF: made_of}))
            written.append(path)
    return written


def user_rows(
    sequences: Sequences, users: str | os.PathLike[str] | Sequence[str] | None
) -> np.ndarray:
    """The user rows `[n]` of a file of ids or of a list of them, in their order; None: of all who have interactions.

    Raises:
        DataError: if there are none, or one is not in the data, is named twice or has no interactions.
    """
    if users is None:
        rows = np.flatnonzero(sequences.lengths > 0)
        if len(rows) < sequences.num_users:
            without = sequences.num_users - len(rows)
            print(f"note: users without interactions, who get no list: {without:,}")
        return rows
    from_file = isinstance(users, str | os.PathLike)
    if from_file:
        with open_text(users) as file:
            named = [line.strip() for line in file]
    else:
        named = [str(user) for user in users]
    lines = [line for line, user in enumerate(named, start=1) if user]
    ids = [named[line - 1] for line in lines]
    if not ids:
        raise DataError(f"users={users} names nobody; leave it out for all users")
    rows = pc.index_in(
        pa.array(ids, pa.string()), value_set=pa.array(sequences.user_ids, pa.string())
    )
    rows = rows.fill_null(-1).to_numpy()
    again = np.ones(len(rows), bool)
    again[np.unique(rows, return_index=True)[1]] = False
    empty = sequences.lengths[rows] == 0
    for place in np.flatnonzero((rows < 0) | again | empty)[:1]:
        where = f"{users}, line {lines[place]}: " if from_file else ""
        if rows[place] < 0:
            raise DataError(f"{where}{unknown_user(sequences, ids[place])}")
        fault = "is named twice" if again[place] else "has no interactions"
        raise DataError(f"{where}user {ids[place]!r} {fault}; leave it out")
    return rows


def with_next_place(sequences: Sequences, rows: np.ndarray) -> tuple[Sequences, Targets]:
    """The sequences of some users, each with one more place, and these places: items that are not known yet."""
    lengths = sequences.lengths[rows] + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.full(offsets[-1], NO_ITEM, np.int32)
    known = np.ones(len(items), bool)
    known[offsets[1:] - 1] = False
    shift = np.repeat(sequences.offsets[rows] - offsets[:-1], lengths)
    items[known] = sequences.items[(np.arange(len(items)) + shift)[known]]
    part = Sequences(
        items=items,
        offsets=offsets,
        user_ids=sequences.user_ids[rows],
        item_ids=sequences.item_ids,
    )
    return part, Targets(users=np.arange(len(rows), dtype=np.int32), positions=offsets[1:] - 1)


# The folder.


def _manifest(
    run: Run, rows: np.ndarray, settings: dict[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """What the lists are made of, as JSON has it."""
    manifest = {
        "workdir": str(run.workdir),
        "run": {
            "step": run.step,
            "model": checksum(_arrays(run.model)),
            "semantic_ids": checksum([run.semantic_ids.tokens]),
            "memory": _memory(run),
        },
        "data": fingerprint(run.splits),
        "settings": settings,
        "users": {"number": len(rows), "rows": checksum([rows.astype("<i8")])},
        "columns": {field.name: str(field.type) for field in SCHEMA},
        "shards": list(names),
    }
    return json.loads(json.dumps(manifest))


def _arrays(model: Any) -> Iterator[np.ndarray]:
    """The arrays of a model but for its random keys, which decoding does not use."""
    for leaf in jax.tree.leaves(model):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            yield np.asarray(leaf)


def _memory(run: Run) -> dict[str, Any] | None:
    if run.mixture is None:
        return None
    kept = {"source": run.config.memory.source, "size": run.config.memory.size}
    kept["gate"] = run.mixture.gate.to_dict()
    if run.mixture.memory is not None:
        weights = run.mixture.memory.weights
        kept["weights"] = checksum([weights.data, weights.indices, weights.indptr])
    return kept


def _claim(output: str | os.PathLike[str], manifest: dict[str, Any]) -> bytes:
    """Writes the manifest, or compares it with the one that is there; returns its checksum.

    Raises:
        ConfigError: if the lists in the folder were made of something else, or it is no folder.
    """
    folder = as_path(output)
    remedy = f"name another folder than output={output}, or delete what is in it"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Listed first: another process may write its manifest, then its first shard, at any moment.
        tables = [entry.name for entry in folder.iterdir() if entry.name.endswith(WRITTEN)]
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"output={output} is no folder; name a new or empty one") from None
    path, wanted = folder / MANIFEST, _compared(manifest)
    try:
        before = read_json(path)
        fields = differing_fields(_compared(before), wanted)
        told = [words for field, words in fields.items() if not field.startswith("data.")]
        if len(told) < len(fields):
            told += fingerprint_differences(
                before["data"], manifest["data"], ignore=OF_NO_MATTER_TO_A_MODEL
            )
    except FileNotFoundError:
        if tables:
            raise ConfigError(
                f"{folder} holds {tables[0]}, but no {MANIFEST} says what it was made of; {remedy}"
            ) from None
        write_json(path, manifest)
        told = []
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no manifest of lists ({error!r}); {remedy}") from error
    if told:
        raise ConfigError(f"{folder} holds lists of something else: {'; '.join(told)}; {remedy}")
    content = json.dumps(wanted, sort_keys=True).encode()
    return checksum([np.frombuffer(content, np.uint8)]).encode()


def _compared(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that the lists depend on."""
    data, shards = manifest["data"], len(manifest["shards"])
    checksums = {
        name: value
        for name, value in data["checksums"].items()
        if name not in OF_NO_MATTER_TO_A_MODEL
    }
    rest = {name: value for name, value in manifest.items() if name != "workdir"}
    return rest | {"data": {**data, "checksums": checksums}, "shards": shards}


def _is_there(output: str | os.PathLike[str], name: str, made_of: bytes) -> bool:
    """Whether a shard is complete, and was made of the same as the manifest says, which only Parquet can tell."""
    path = as_path(output) / name
    if not path.exists():
        return False
    if not name.endswith(".parquet"):
        return True
    try:
        with path.open("rb") as file:
            metadata = pq.read_metadata(file).metadata or {}
    except (pa.ArrowException, OSError):
        metadata = {}
    if metadata.get(_MADE_OF) == made_of:
        return True
    print(f"note: {path} is damaged or was made of something else; it is made anew")
    return False
