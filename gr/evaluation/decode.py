"""Decodes the targets of a split with any search, in batches, and keeps the outputs for the metrics."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh

from gr.data import NO_ITEM, Histories, Sequences, Targets, evaluation_batches
from gr.data.buckets import resolve_buckets
from gr.data.examples import target_examples
from gr.decoding import Candidates, SearchConfig, rank_items, search, sharded_beam_search
from gr.decoding.configured import beam_evaluations
from gr.decoding.draws import KeyOfPart
from gr.decoding.softmax import as_temperature
from gr.evaluation.rankings import EvaluationError
from gr.losses import masked_token_log_probs, scored_log_probs, token_log_probs
from gr.memory import ItemPrior
from gr.models import histories_for, scores_children, scores_items
from gr.training import of_all_processes, on_host, on_own_rows, replicate, shard_batch
from gr.trie import NO_NODE, Catalogue, ExcludeItems, ItemMask, ShardedIndex, TrieIndex, walk

_MANY = 1024  # Maximum number of seen items per user in a full batch; a power of four.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoded:
    """The candidates found for each of n targets, in the targets' order."""

    items: np.ndarray  # [n, M, C] int32 item rows, best semantic ID first, -1-padded.
    tokens: np.ndarray  # [n, M, L] int32 tokens of the semantic IDs.
    scores: np.ndarray  # [n, M] float32 log-probabilities, -inf where there is no candidate.
    evaluations: np.ndarray  # [n] int32: tokens that the model was given, besides the history.
    # Set if the targets were scored; else None.
    log_probs: np.ndarray | None = None  # [n, L] float32: log-probability of each code.
    prefix_hits: np.ndarray | None = (
        None  # [n, L] bool: is the prefix in the beam after step t? For beam search only.
    )

    @property
    def prefix_recall(self) -> list[float]:
        """Share of targets whose prefix of t = 1..L codes survives in the beam."""
        return self.prefix_hits.mean(axis=0).tolist()

    @property
    def loss(self) -> float:
        """Cross-entropy of the targets, averaged over codes."""
        return float(-self.log_probs.mean())


def decode_targets(
    config: SearchConfig,
    model: Any,
    catalogue: Catalogue,
    sequences: Sequences,
    targets: Targets,
    *,
    max_history: int,
    buckets: int | Sequence[int],
    value_head: Any | None = None,
    key: jax.Array | None = None,
    score_targets: bool = False,
    batch_size: int = 128,
    exclude_seen: bool = True,
    allowed: ItemMask | None = None,
    prior: Callable[[np.ndarray], tuple[ItemPrior, np.ndarray]] | None = None,
    temperature: float | None = None,
    normalise_over: str = "vocabulary",
    mesh: Mesh | None = None,
    sharded: ShardedIndex | None = None,
    progress: bool | tqdm.tqdm = False,
) -> Decoded:
    """Decodes every target from its history by any search.

    Args:
        config: the search, and its number of candidates M.
        model: a backbone; with `score_targets` one that also offers `target_logits`.
        catalogue: the items.
        sequences: the data.
        targets: the targets to predict.
        max_history: most recent items that the model sees.
        buckets: padded history lengths, or their number; the decoder compiles once for each.
        value_head: guides VED; None: V = 0.
        key: random key; only beam search needs none.
        score_targets: whether the targets are scored too, in one more pass of the model: `log_probs`, and for beam
            search `prefix_hits`.
        batch_size: users decoded at once on a device; fewer where they have seen more than a thousand items.
        exclude_seen: whether items of the user's whole history, also beyond `max_history`, may not be decoded.
        allowed: the items that may be decoded, for all users; None: all of the index.
        prior: what is mixed into the model: for target numbers `[B]` (-1 for filler) a prior of B users, and the weight
            of each `[B]`; see `beam_search`. None: nothing. The targets' `log_probs` stay the model's own.
        temperature: of the model's distribution; see `beam_search`.
        normalise_over: "vocabulary" or "children", if the config does not say; see `beam_search`. Sampling is always
            among the children.
        mesh: each of its devices decodes its own users, `batch_size` at once. If they are of several processes, all
            call this, and all get the results of all. None: the default device.
        sharded: the catalogue's trie, split over the axis "model" of the mesh: the devices along it decode the same
            users, and each holds a part of the trie. Tokens and titles of items then stay on the host. For beam search
            alone, without `score_targets`; `allowed` is made by `sharded_mask`. None: each device has the whole trie.
        progress: whether to show a progress bar; or one of the caller's, to be moved on.

    Raises:
        EvaluationError: if a search other than beam search has no `key`, or numbers of the model are NaN or infinite,
            naming the code and the user; or if a sharded index cannot be used.
    """
    if key is None and config.name != "beam":
        raise EvaluationError(f"search {config.name!r} draws random numbers: give their `key`")
    temperature = as_temperature(temperature)
    decode_users, put = decode_batch, lambda part: part
    groups = 1 if mesh is None else mesh.size  # Of devices; each decodes users of its own.
    if sharded is not None:
        _check_sharded(config, model, mesh, score_targets)
        groups = mesh.shape["data"]
        decode_users = _decoder_on_shards(catalogue, sharded, mesh)
        put = functools.partial(replicate, mesh=mesh)
        model, temperature = put((model, temperature))
    elif mesh is not None:
        whole = (model, value_head, catalogue, allowed, key, temperature)
        model, value_head, catalogue, allowed, key, temperature = replicate(whole, mesh)
        decode_users = functools.partial(decode_on_mesh, mesh=mesh)
        put = functools.partial(shard_batch, mesh=mesh, whole=True)

    def decode(batch: Mapping[str, np.ndarray], excluded: ExcludeItems | None) -> tuple:
        # The first row of a batch is real, so its number identifies the batch.
        of_batch = None if key is None else jax.random.fold_in(key, int(batch["rows"][0]))
        found = decode_users(
            model,
            value_head,
            catalogue,
            batch["history"] if sharded is not None else put(batch["history"]),
            put(batch["target"]) if score_targets else None,
            tuple(part for part in (put(excluded), allowed) if part is not None),
            None if prior is None else put(prior(batch["rows"])),
            of_batch,
            temperature,
            config=config,
            normalise_over=normalise_over,
        )
        return of_all_processes(found, mesh)

    return decoded_by_target(
        decode,
        sequences,
        targets,
        max_history=max_history,
        buckets=buckets,
        batch_size=batch_size,
        devices=groups,
        exclude_seen=exclude_seen,
        progress=progress,
    )


def decoded_by_target(
    decode: Callable[[Mapping[str, np.ndarray], ExcludeItems | None], tuple[Any, jax.Array]],
    sequences: Sequences,
    targets: Targets,
    *,
    max_history: int,
    buckets: int | Sequence[int],
    batch_size: int,
    exclude_seen: bool,
    progress: bool | tqdm.tqdm,
    devices: int = 1,
) -> Any:
    """Runs `decode(batch, excluded)` on batches; its arrays `[B, ...]` become `[n, ...]`, in the targets' order.

    Batches are those of `evaluation_batches`; `excluded` holds the items that their users have seen. Users who have
    seen very many items are in smaller batches. `decode` returns a pytree of arrays, and `Candidates.bad_step`, which
    is checked. A batch has users for so many devices. The other arguments are those of `decode_targets`.
    """
    # Resolved here, so that batches of all sizes have the same buckets; this also checks the targets.
    lengths = target_examples(sequences, targets, max_history).lengths
    shape = {"max_history": max_history, "buckets": resolve_buckets(buckets, lengths, max_history)}
    seen = Histories.of(sequences, targets) if exclude_seen else None
    batches = _batches(sequences, targets, seen, batch_size=batch_size, devices=devices, **shape)

    def decoded() -> Iterator[tuple[np.ndarray, tuple]]:
        for batch in batches:
            rows = batch["rows"]
            users = np.where(rows < 0, rows[0], rows)  # Filler repeats the batch's first user.
            excluded = None if seen is None else ExcludeItems(distinct_items(seen[users]))
            yield rows, decode(batch, excluded)

    whole = None  # The results of `decode` for all targets.
    with _bar(progress, len(targets)) as bar:
        for rows, (found, bad_step) in fetched(decoded()):
            if whole is None:
                whole = jax.tree.map(
                    lambda v: np.empty((len(targets), *v.shape[1:]), v.dtype), found
                )
            real = rows >= 0
            check_finite(bad_step[real], sequences.user_ids[targets.users[rows[real]]])
            for column, values in zip(*map(jax.tree.leaves, (whole, found)), strict=True):
                column[rows[real]] = values[real]
            bar.update(int(real.sum()))
    return whole


def _bar(progress: bool | tqdm.tqdm, total: int) -> contextlib.AbstractContextManager[tqdm.tqdm]:
    if not isinstance(progress, bool):
        return contextlib.nullcontext(progress)
    return tqdm.tqdm(total=total, desc="decode", unit=" users", disable=not progress)


def _batches(
    sequences: Sequences,
    targets: Targets,
    seen: Histories | None,
    *,
    batch_size: int,
    devices: int,
    **shape: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """`evaluation_batches` with fewer users for long seen lists: a quarter for each factor of four above `_MANY`."""
    quartered = np.zeros(len(targets), int)
    if seen is not None:
        long = np.flatnonzero(seen.lengths > _MANY)
        counts = [len(np.unique(seen[row : row + 1].padded())) for row in long]
        quartered[long] = np.ceil(np.log2(np.maximum(counts, _MANY) / _MANY) / 2)
    for times in np.unique(quartered):
        chosen = np.flatnonzero(quartered == times)
        part = Targets(targets.users[chosen], targets.positions[chosen])
        size = max(1, batch_size >> 2 * times) * devices
        for batch in evaluation_batches(sequences, part, batch_size=size, **shape):
            rows = np.where(batch["rows"] < 0, -1, chosen[batch["rows"]])
            yield {**batch, "rows": rows}


def fetched(results: Iterable[Any], *, ahead: int = 2) -> Iterator[Any]:
    """Fetches results to the host, in order; waits for each when `ahead` further ones are queued on the device.

    So the device always has work, holds few results at once, and the progress bar counts finished results.
    """
    queue = collections.deque()
    for result in results:
        queue.append(result)
        if len(queue) > ahead:
            yield jax.device_get(queue.popleft())
    while queue:
        yield jax.device_get(queue.popleft())


def distinct_items(histories: Histories) -> np.ndarray:
    """The distinct items of each history, `[n, S]` int32, -1-padded.

    S is 64 or a power of four from 1,024 on: few widths, since each is compiled anew.
    """
    sets = [
        np.unique(histories.items[start:stop])
        for start, stop in zip(histories.starts, histories.stops, strict=True)
    ]
    longest = max(map(len, sets), default=0)
    bits = (longest - 1).bit_length()
    width = 64 if longest <= 64 else max(_MANY, 1 << bits + bits % 2)
    padded = np.full((len(sets), width), NO_ITEM, dtype=np.int32)
    for row, items in zip(padded, sets, strict=True):
        row[: len(items)] = items
    return padded


def check_finite(bad_step: np.ndarray, user_ids: np.ndarray) -> None:
    """Raises EvaluationError if the model's numbers were not finite for some of these users `[n]`; see `Candidates`."""
    bad = np.flatnonzero(bad_step >= 0)
    if len(bad) == 0:
        return
    others = f", and for {len(bad) - 1} others" if len(bad) > 1 else ""
    raise EvaluationError(
        f"the model's numbers for code {bad_step[bad[0]]} (from 0) of user {user_ids[bad[0]]} are NaN or infinite"
        f"{others}: nothing can be ranked by them. Take an earlier checkpoint, train with a lower learning rate, or "
        "compute in float32 or bfloat16 if the model's dtype is float16"
    )


@functools.partial(jax.jit, static_argnames=("config", "normalise_over"))
def decode_batch(
    model: Any,
    value_head: Any | None,
    catalogue: Catalogue,
    history: jax.Array,
    target: jax.Array | None,
    constraint: tuple[ExcludeItems | ItemMask, ...],
    prior: tuple[ItemPrior, jax.Array] | None,
    key: jax.Array | KeyOfPart | None,
    temperature: jax.Array | None,
    *,
    config: SearchConfig,
    normalise_over: str,
) -> tuple[Decoded, jax.Array]:
    """The candidates of a batch as a `Decoded` of device arrays, and `Candidates.bad_step`; see `decode_targets`."""
    history = histories_for(model, catalogue.tokens, history, catalogue.pieces)
    if scores_items(model):
        return _decode_items(
            model, catalogue, history, target, constraint, prior, temperature, config
        )
    found = search(
        config,
        model,
        value_head,
        catalogue.index,
        history,
        key=key,
        constraint=constraint,
        temperature=temperature,
        normalise_over=normalise_over,
        keep_beams=target is not None,
        **_prior_arguments(prior),
    )
    decoded = Decoded(found.items, found.tokens, found.scores, found.evaluations)
    if target is None:
        return decoded, found.bad_step
    target, bad_step = catalogue.tokens[target], found.bad_step
    if scores_children(model):
        states = model.target_states(history, target)
        log_probs = scored_log_probs(model, states, target, catalogue.index, temperature)
        hits = prefix_hits(catalogue.index, found, target) if found.beams else None
        return dataclasses.replace(decoded, log_probs=log_probs, prefix_hits=hits), bad_step
    logits = model.target_logits(history, target)
    if (config.normalise_over or normalise_over) == "children":
        log_probs = masked_token_log_probs(logits, target, catalogue.index, temperature)
    else:
        log_probs = token_log_probs(logits, target, temperature)
        # The target's prefixes may not have been in the beam.
        flawed = ~(logits < jnp.inf).all(axis=-1)
        bad_step = jnp.where((bad_step < 0) & flawed.any(-1), flawed.argmax(-1), bad_step)
    hits = prefix_hits(catalogue.index, found, target) if found.beams else None
    return dataclasses.replace(decoded, log_probs=log_probs, prefix_hits=hits), bad_step


@functools.partial(jax.jit, static_argnames=("mesh", "config", "normalise_over"))
def decode_on_mesh(
    *arguments: Any, mesh: Mesh, config: SearchConfig, normalise_over: str
) -> tuple[Decoded, jax.Array]:
    """`decode_batch`, in which each device decodes its own users; see `on_own_rows`."""
    model, value_head, catalogue, history, target, constraint, prior, key, temperature = arguments
    of_users = [isinstance(part, ExcludeItems) for part in constraint]

    def decode(whole: Any, rows: Any, key: Any) -> tuple[Decoded, jax.Array]:
        of_all, model, value_head, catalogue, temperature = whole
        of_each, history, target, prior = rows
        constraint = tuple(
            each if own else same for own, each, same in zip(of_users, of_each, of_all, strict=True)
        )
        return decode_batch(
            *(model, value_head, catalogue, history, target, constraint, prior, key, temperature),
            config=config,
            normalise_over=normalise_over,
        )

    of_each = [part if own else None for own, part in zip(of_users, constraint, strict=True)]
    of_all = [None if own else part for own, part in zip(of_users, constraint, strict=True)]
    whole = (of_all, model, value_head, catalogue, temperature)
    return on_own_rows(decode, mesh, whole, (of_each, history, target, prior), key)


def _check_sharded(config: SearchConfig, model: Any, mesh: Mesh | None, score: bool) -> None:
    """Raises EvaluationError for what needs the whole trie on each device."""
    whole = {
        f"search {config.name!r}": config.name != "beam",
        f"{type(model).__name__}, which scores whole items,": scores_items(model),
        "scoring the targets": score,
        "decoding without a mesh": mesh is None,
    }
    for what, asked in whole.items():
        if asked:
            raise EvaluationError(
                f"{what} cannot use an index that is split over devices: decode with the whole index"
            )


def _decoder_on_shards(
    catalogue: Catalogue, sharded: ShardedIndex, mesh: Mesh
) -> Callable[..., tuple[Decoded, jax.Array]]:
    """`decode_batch` with a sharded index in place of the catalogue's."""
    tokens = np.asarray(catalogue.tokens)

    def decode(
        model: Any,
        value_head: None,
        catalogue: Catalogue,
        rows: np.ndarray,
        target: None,
        constraint: tuple[ExcludeItems | ItemMask, ...],
        prior: tuple[ItemPrior, jax.Array] | None,
        key: None,
        temperature: jax.Array | None,
        **options: Any,
    ) -> tuple[Decoded, jax.Array]:
        del value_head, target, key  # Beam search uses none.
        with on_host():  # Tables of all items are larger than a trie.
            history = histories_for(model, tokens, rows, catalogue.pieces)
        history = replicate(jax.device_get(history), mesh)
        return decode_on_shards(
            *(model, sharded, history, constraint, prior, temperature), mesh=mesh, **options
        )

    return decode


@functools.partial(jax.jit, static_argnames=("mesh", "config", "normalise_over"))
def decode_on_shards(
    model: Any,
    index: ShardedIndex,
    history: Any,
    constraint: tuple[ExcludeItems | ItemMask, ...],
    prior: tuple[ItemPrior, jax.Array] | None,
    temperature: jax.Array | None,
    *,
    mesh: Mesh,
    config: SearchConfig,
    normalise_over: str,
) -> tuple[Decoded, jax.Array]:
    """`decode_batch` over an index that is split over the axis "model"; users are split over "data"."""
    count = config.num_candidates
    found = sharded_beam_search(
        model,
        index,
        history,
        count,
        mesh=mesh,
        constraint=constraint,
        temperature=temperature,
        normalise_over=config.normalise_over or normalise_over,
        **_prior_arguments(prior),
    )
    evaluations = jnp.full(len(found.scores), beam_evaluations(model, index, count), jnp.int32)
    return Decoded(found.items, found.tokens, found.scores, evaluations), found.bad_step


def _decode_items(
    model: Any,
    catalogue: Catalogue,
    history: Any,
    target: jax.Array | None,
    constraint: tuple[ExcludeItems | ItemMask, ...],
    prior: tuple[ItemPrior, jax.Array] | None,
    temperature: jax.Array | None,
    config: SearchConfig,
) -> tuple[Decoded, jax.Array]:
    """`_decode` of a model that scores whole items: its targets have one log-probability, and no prefixes."""
    found = rank_items(
        model,
        catalogue.index,
        catalogue.tokens,
        history,
        config.num_candidates,
        constraint=constraint,
        temperature=temperature,
        **_prior_arguments(prior),
    )
    decoded = Decoded(found.items, found.tokens, found.scores, found.evaluations)
    if target is not None:
        logits = model.item_logits(model.last_state(history))
        log_probs = token_log_probs(logits, target, temperature)[:, None]
        hits = (found.items[..., 0] == target[:, None]).any(1, keepdims=True)
        decoded = dataclasses.replace(decoded, log_probs=log_probs, prefix_hits=hits)
    return decoded, found.bad_step


def _prior_arguments(prior: tuple[ItemPrior, jax.Array] | None) -> dict[str, Any]:
    return {} if prior is None else {"prior": prior[0], "prior_weight": prior[1]}


def prefix_hits(index: TrieIndex, candidates: Candidates, target: jax.Array) -> jax.Array:
    """Whether the prefixes of `target` tokens `[B, L]` were in the beam after each step, `[B, L]` bool."""
    nodes = walk(index, target)
    alive = [
        (beams == nodes[:, depth, None]).any(axis=1) for depth, beams in enumerate(candidates.beams)
    ]
    # A prefix that the trie lacks is never a hit, though `NO_NODE` also fills beams.
    return jnp.stack(alive, axis=1) & (nodes != NO_NODE)
