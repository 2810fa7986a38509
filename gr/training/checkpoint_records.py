"""The part of a checkpoint that is not arrays, as JSON text: loop state, iterator states, checksums."""

import base64
import json
import os
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gr.training.errors import TrainingError

FORMAT = 1


def list_steps(directory: str) -> list[int]:
    """Steps with a complete checkpoint, in order; one still being written has a longer name."""
    if not os.path.isdir(directory):
        return []
    return sorted(int(name) for name in os.listdir(directory) if name.isdigit())


def pack_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record as text with its checksum, since a flipped digit is still valid JSON."""
    text = json.dumps(record)
    return {"record": text, "crc32": zlib.crc32(text.encode())}


def read_record(directory: str, step: int) -> dict[str, Any]:
    """Reads what `pack_record` made.

    Raises:
        TrainingError: if it is damaged or of another format.
    """
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            saved = reader.restore(os.path.join(directory, str(step), "loop"))
        if zlib.crc32(saved["record"].encode()) != saved["crc32"]:
            raise ValueError("its checksum is wrong")
        record = json.loads(saved["record"])
    except Exception as error:
        raise damage_error(directory, step, "loop", error) from error
    if record["format"] != FORMAT:
        raise TrainingError(
            f"{directory}/{step} is of checkpoint format {record['format']}, this version reads {FORMAT}; use the "
            "version named in the run's versions.json"
        )
    return record


def damage_error(directory: str, step: int, item: str, error: Exception) -> TrainingError:
    """The error for a checkpoint that cannot be read; falling back to another is the user's act."""
    others = [s for s in list_steps(directory) if s != step]
    folder = os.path.join(directory, str(step))
    if others:
        remedy = f"remove {folder} to go on from the checkpoint of step {others[-1]}"
    else:
        remedy = "there is no other checkpoint: start again in another workdir"
    return TrainingError(f"{folder}/{item} is damaged ({first_line(error)}); {remedy}")


def first_line(error: Exception) -> str:
    """An error of another library in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def encode_iterator_state(state: Any) -> str:
    """A data iterator's state, bytes or JSON values, as text.

    Raises:
        TrainingError: if it is neither.
    """
    if isinstance(state, bytes):
        return json.dumps({"bytes": base64.b64encode(state).decode()})
    try:
        return json.dumps({"json": state})
    except TypeError as error:
        raise TrainingError(
            f"the data iterator's state is neither bytes nor JSON values ({error}); make get_state return such"
        ) from error


def decode_iterator_state(text: str) -> Any:
    """The inverse."""
    saved = json.loads(text)
    return base64.b64decode(saved["bytes"]) if "bytes" in saved else saved["json"]


def of_all_processes(text: str) -> list[str]:
    """Every process's text, in process order, on each of them: Orbax writes JSON from the first process only."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size))
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]
