"""Decodes the targets of a split with a model, in batches, and keeps what the metrics need."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gr.data import Sequences, Targets
from gr.data.pipeline import evaluation_batches, histories
from gr.decoding import Candidates, beam_search
from gr.decoding.softmax import as_temperature
from gr.evaluation.rankings import EvaluationError
from gr.losses import masked_token_log_probs, token_log_probs
from gr.trie import NO_NODE, ExcludeItems, TrieIndex, walk


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a model decodes for each of n targets, in the targets' order."""

    items: np.ndarray  # [n, M, C] int32 item rows, best semantic ID first, -1-padded.
    scores: np.ndarray  # [n, M] float32 log-probabilities, -inf where there is no candidate.
    prefix_hits: np.ndarray  # [n, L] bool: was the target's prefix in the beam after step t?
    log_probs: np.ndarray  # [n, L] float32: log-probability of each of the target's codes.

    @property
    def prefix_recall(self) -> list[float]:
        """Share of targets whose prefix of t = 1..L codes survives in the beam."""
        return self.prefix_hits.mean(axis=0).tolist()

    @property
    def loss(self) -> float:
        """Cross-entropy of the targets, averaged over codes."""
        return float(-self.log_probs.mean())


def decode_targets(
    model: Any,
    index: TrieIndex,
    tokens: jax.Array,
    sequences: Sequences,
    targets: Targets,
    *,
    num_beams: int,
    max_history: int,
    buckets: int | Sequence[int],
    batch_size: int = 128,
    exclude_seen: bool = True,
    temperature: float = 1.0,
    normalise_over: str = "vocabulary",
    progress: bool = False,
) -> Decoded:
    """Decodes every target from its history by beam search.

    Args:
        model: a backbone that also offers `target_logits`.
        index: the trie of the items.
        tokens: `item_token_table` `[N + 1, L]`.
        sequences: the data.
        targets: what to predict.
        num_beams: M.
        max_history: most recent items that the model sees.
        buckets: padded history lengths, or how many of them; the decoder compiles once for each.
        batch_size: users decoded at once.
        exclude_seen: whether items of the user's whole history, also beyond `max_history`, may not be decoded.
        temperature: of the model's distribution; see `beam_search`.
        normalise_over: "vocabulary" or "children"; see `beam_search`.
        progress: whether to show a progress bar.

    Raises:
        EvaluationError: if numbers of the model are NaN or infinite, naming the code and the user.
    """
    temperature = as_temperature(temperature)

    def decode(batch: Mapping[str, np.ndarray], excluded: ExcludeItems | None) -> tuple:
        return _decode(
            model,
            index,
            tokens,
            batch["history"],
            batch["target"],
            excluded,
            temperature,
            num_beams=num_beams,
            normalise_over=normalise_over,
        )

    return Decoded(
        *decoded_by_target(
            decode,
            sequences,
            targets,
            max_history=max_history,
            buckets=buckets,
            batch_size=batch_size,
            exclude_seen=exclude_seen,
            progress=progress,
        )
    )


def decoded_by_target(
    decode: Callable[[Mapping[str, np.ndarray], ExcludeItems | None], tuple],
    sequences: Sequences,
    targets: Targets,
    *,
    max_history: int,
    buckets: int | Sequence[int],
    batch_size: int,
    exclude_seen: bool,
    progress: bool,
) -> list[np.ndarray]:
    """What `decode(batch, excluded)` returns for batches of targets, each array in the targets' order.

    Batches are those of `evaluation_batches`, `excluded` the items that their users have seen; the rest is as in
    `decode_targets`. The last of what `decode` returns is `Candidates.bad_step`, which is checked and left out.
    """
    batches = evaluation_batches(
        sequences, targets, batch_size=batch_size, max_history=max_history, buckets=buckets
    )
    seen = _seen_items(sequences, targets) if exclude_seen else None
    parts, rows = [], []
    for batch in _bar(batches, len(targets), progress):
        excluded = None if seen is None else ExcludeItems(seen[np.maximum(batch["rows"], 0)])
        parts.append(decode(batch, excluded))
        rows.append(batch["rows"])
    parts = jax.device_get(parts)  # The only wait: until here batches were queued on the device.
    order = np.concatenate(rows)
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    *found, bad_step = (_in_target_order(column, order, len(targets)) for column in columns)
    check_finite(bad_step, sequences.user_ids[targets.users])
    return found


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


@functools.partial(jax.jit, static_argnames=("num_beams", "normalise_over"))
def _decode(
    model: Any,
    index: TrieIndex,
    tokens: jax.Array,
    history: jax.Array,
    target: jax.Array,
    excluded: ExcludeItems | None,
    temperature: jax.Array,
    *,
    num_beams: int,
    normalise_over: str,
) -> tuple[jax.Array, ...]:
    history, target = tokens[history], tokens[target]
    found = beam_search(
        model,
        index,
        history,
        num_beams,
        constraint=excluded,
        temperature=temperature,
        normalise_over=normalise_over,
        keep_beams=True,
    )
    logits = model.target_logits(history, target)
    bad_step = found.bad_step
    if normalise_over == "children":
        log_probs = masked_token_log_probs(logits, target, index, temperature)
    else:
        log_probs = token_log_probs(logits, target, temperature)
        # The target's prefixes need not have been in the beam.
        flawed = ~(logits < jnp.inf).all(axis=-1)
        bad_step = jnp.where((bad_step < 0) & flawed.any(-1), flawed.argmax(-1), bad_step)
    return found.items, found.scores, prefix_hits(index, found, target), log_probs, bad_step


def prefix_hits(index: TrieIndex, candidates: Candidates, target: jax.Array) -> jax.Array:
    """Whether the prefixes of `target` tokens `[B, L]` were in the beam after each step, `[B, L]` bool."""
    nodes = walk(index, target)
    alive = [
        (beams == nodes[:, depth, None]).any(axis=1) for depth, beams in enumerate(candidates.beams)
    ]
    # A prefix that the trie lacks is never a hit, though `NO_NODE` also fills beams.
    return jnp.stack(alive, axis=1) & (nodes != NO_NODE)


def _seen_items(sequences: Sequences, targets: Targets) -> np.ndarray:
    """Every item before each target, `[n, S]`, -1-padded; S a power of two, for few compiled shapes."""
    longest = int((targets.positions - sequences.offsets[targets.users]).max(initial=1))
    return histories(sequences, targets, longest, width=1 << (longest - 1).bit_length())


def _in_target_order(values: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """Undoes the batching: `values[j]` belongs to target `order[j]`, a filler row where that is -1."""
    real = order >= 0
    result = np.empty((count, *values.shape[1:]), values.dtype)
    result[order[real]] = values[real]
    return result


def _bar(batches: Iterable[Mapping[str, np.ndarray]], total: int, show: bool) -> Iterator:
    with tqdm.tqdm(total=total, desc="decode", unit=" users", disable=not show) as bar:
        for batch in batches:
            yield batch
            bar.update(int(batch["weight"].sum()))
