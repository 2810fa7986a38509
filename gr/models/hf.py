"""Checkpoints in the form of Hugging Face: `config.json` beside `*.safetensors`, read and written.

The families are Llama, Qwen2 (and 2.5) and Qwen3, as `DecoderOnly`, and T5, as `EncoderDecoder`. A checkpoint knows
text. The tokens of semantic IDs come behind its own: `num_text_tokens` of the backbone's config is the offset. A
checkpoint that `save_hf` wrote says so in its `config.json`, under "gr".
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gr.data.files import write_atomically
from gr.data.prompts import (
    PromptPieces,
    Template,
    TitledPieces,
    load_tokenizer,
    prompt_pieces,
    titled_pieces,
    writes_titles,
)
from gr.data.sequences import DataError, Sequences
from gr.fields import load_own
from gr.models.backbone import ModelError
from gr.models.hf_families import FAMILIES, Family, family_of
from gr.models.lora import (
    add_lora,
    merge_lora,
    named_parameters,
    parameter_name,
    trained_part,
    with_trained,
)

_OWN = "gr"  # The field of config.json for what other programs need not know.
_TOLD = 8  # Tensors that an error names of each kind.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


def load_hf(
    folder: str | os.PathLike[str],
    *,
    vocab_size: int | None = None,
    code_length: int | None = None,
    template: str | Callable | None = None,
    lora_rank: int = 0,
    lora_alpha: float | None = None,
    dropout: float = 0.0,
    dtype: str = "float32",
    param_dtype: str = "float32",
    tokenizer: str | os.PathLike[str] = "",
    weights: str = "read",
    rngs: nnx.Rngs | None = None,
) -> Any:
    """The backbone of a checkpoint on disk; also an experiment's: `backbone="gr.models:load_hf"`.

    Args:
        folder: holds `config.json`, and `*.safetensors`, in one file or in parts.
        vocab_size: V of the semantic IDs. Their tokens come behind the checkpoint's own, unless it has them already;
            their embeddings are drawn with the mean and the standard deviation of the text's. None: as in the
            checkpoint; one without semantic IDs then has its whole vocabulary as V.
        code_length: L of the semantic IDs; None: as in the checkpoint, or 1.
        template: the text around a history's items, a function or "module:name", see `gr.data.prompts`. With one that
            writes titles, histories are a `Prompt`, see `pieces_with_titles`. None: as in the checkpoint, or none.
        lora_rank: rank of trained changes, see `add_lora`; 0: all parameters are trained.
        lora_alpha: see `add_lora`.
        dropout: in [0, 1).
        dtype: of activations, "float32" or "bfloat16".
        param_dtype: of parameters, whatever the file's; with LoRA only of frozen ones: trained ones are float32.
        tokenizer: file or folder of the template's tokenizer; "": the checkpoint's `tokenizer.json`.
        weights: "read", or "random" for a model of this form that has no weights yet: only `config.json` is read.
        rngs: of what is drawn; None: of seed 0.

    Returns:
        A `DecoderOnly` or an `EncoderDecoder`.

    Raises:
        ModelError: for a folder without these files, settings that gr does not compute, or tensors that are missing,
            surplus or of another shape: all of them in one message.
        DataError: for a template or a tokenizer that cannot be used.
    """
    folder = Path(folder)
    rngs = rngs or nnx.Rngs(0)
    data = _read_json(folder / "config.json")
    family = family_of(data, folder)
    known = data.get(_OWN, {})
    rows = data["vocab_size"]
    if "num_text_tokens" in known:
        offset, size = known["num_text_tokens"], rows - known["num_text_tokens"]
    elif vocab_size is None or (known and vocab_size == rows):
        offset, size = 0, rows
    else:
        offset, size = rows, vocab_size
    if vocab_size not in (None, size):
        raise ModelError(
            f"{folder} has {size} semantic-ID tokens, and vocab_size={vocab_size} is asked for: use the semantic IDs "
            "that it was trained with"
        )
    if template is None:
        parts = (tuple(piece) for piece in known.get("pieces", ((), (), ())))
        pieces = dataclasses.replace(PromptPieces(*parts), titled=known.get("titled", False))
    elif writes_titles(_template(template)):
        pieces = PromptPieces(titled=True)
    else:
        pieces = prompt_pieces(_template(template), load_tokenizer(tokenizer or folder))
    config = family.config(
        data,
        folder,
        vocab_size=size,
        code_length=code_length or known.get("code_length", 1),
        num_text_tokens=offset,
        pieces=pieces,
        dropout=dropout,
        dtype=dtype,
    )
    if weights == "random":
        model = family.model(config, rngs=rngs)
    elif weights == "read":
        model = _filled(family, config, folder, rows, param_dtype, rngs)
    else:
        raise ModelError(f"weights={weights!r} is unknown: use read or random")
    model = jax.tree.map(lambda leaf: leaf.astype(param_dtype), model)
    if not lora_rank:
        return model
    model = add_lora(model, lora_rank, alpha=lora_alpha, rngs=rngs)
    trained = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained_part(model))
    return with_trained(model, trained)


def pieces_with_titles(
    sequences: Sequences,
    *,
    folder: str | os.PathLike[str],
    template: str | Callable | None = None,
    tokenizer: str | os.PathLike[str] = "",
    **others: Any,
) -> TitledPieces | None:
    """What the template of a backbone writes around its items, for `Catalogue.pieces`.

    Args:
        sequences: the data, with their titles.
        folder: here and below: arguments of `load_hf`.
        template: the template.
        tokenizer: its tokenizer.
        **others: have no part in it.

    Returns:
        The pieces; None for a template without titles.

    Raises:
        DataError: if the data have no titles, or the template or the tokenizer cannot be used.
    """
    if template is None or not writes_titles(_template(template)):
        return None
    titles = sequences.own_titles()
    if titles is None:
        there = ", ".join(sequences.item_fields) or "none"
        raise DataError(
            f"template={template}: it writes the items' titles, and the data have no item field 'title' (there are: "
            f"{there}); read data that have it, or take a template of semantic IDs alone, gr.data.prompts:next_item"
        )
    return titled_pieces(_template(template), load_tokenizer(tokenizer or folder), titles)


def _template(template: str | Callable) -> Template:
    if isinstance(template, str):
        return load_own(template, "template", (), ModelError)
    return template


def save_hf(
    backbone: Any,
    folder: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
) -> None:
    """Writes a backbone as a checkpoint that `transformers` loads, and `load_hf` too, with its semantic IDs.

    Tensors have the parameters' type. LoRA becomes part of the kernels.

    Args:
        backbone: a `DecoderOnly` or `EncoderDecoder` with a head over the vocabulary.
        folder: created if missing.
        like: a checkpoint whose other settings are kept, such as the numbers of special tokens, and whose tokenizer is
            copied.

    Raises:
        ModelError: for a backbone that no family has, or without the package `safetensors`.
    """
    package = _safetensors()
    family = next((f for f in FAMILIES.values() if f.fits(backbone)), None)
    if family is None:
        raise ModelError(
            f"this {type(backbone).__name__} has settings that no family of {', '.join(FAMILIES)} has; see docs/llm.md"
        )
    config = backbone.config
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {n: np.asarray(a) for n, a in named_parameters(merge_lora(backbone)).items()}
    tensors: dict[str, np.ndarray] = {}
    for ours, theirs in family.table(config).items():
        array = arrays[ours].T if _is_turned(ours, arrays[ours]) else arrays[ours]
        widths = [shape[0] for shape in theirs.values()]
        for name, part in zip(theirs, np.split(array, np.cumsum(widths)[:-1]), strict=True):
            # Text first, then semantic IDs.
            part = np.concatenate([tensors[name], part]) if name in tensors else part
            tensors[name] = np.ascontiguousarray(part)
    other = {} if like is None else _read_json(Path(like) / "config.json")
    pieces = config.pieces
    own = {
        "code_length": config.code_length,
        "pieces": (pieces.before, pieces.between, pieces.after),
        "titled": pieces.titled,
    }
    if config.num_text_tokens:
        own["num_text_tokens"] = config.num_text_tokens
    dtype = str(arrays["embedding"].dtype)
    told = {**other, **family.fields(config), "torch_dtype": dtype, _OWN: own}
    told.pop("dtype", None)
    unfinished = folder / "model.safetensors.part"
    package.numpy.save_file(tensors, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, folder / "model.safetensors")
    write_atomically(folder / "config.json", json.dumps(told, indent=2).encode())
    for name in _COPIED if like is not None else ():
        if (Path(like) / name).exists() and Path(like) != folder:
            shutil.copyfile(Path(like) / name, folder / name)


def _is_turned(name: str, array: Any) -> bool:
    """Whether the file has a tensor's transpose: kernels, which it keeps as `[out, in]`."""
    return name.endswith(".kernel") and array.ndim == 2


def _filled(
    family: Family,
    config: Any,
    folder: Path,
    rows: int,
    param_dtype: str,
    rngs: nnx.Rngs,
) -> Any:
    """The family's model with the folder's tensors; `rows` is the size of its vocabulary."""
    model = jax.eval_shape(lambda: family.model(config, rngs=nnx.Rngs(0)))
    table = family.table(config)
    grown = rows == config.num_text_tokens  # The file knows text alone.
    expected: dict[str, tuple[int, ...]] = {}
    for theirs in table.values():
        for name, shape in theirs.items():
            before = expected.get(name)
            expected[name] = shape if before is None else (before[0] + shape[0], *shape[1:])
    of_vocabulary = [n for n, shape in expected.items() if shape[0] == rows + config.vocab_size]
    for name in of_vocabulary if grown else ():
        expected[name] = (rows, *expected[name][1:])
    tensors = _read_tensors(folder, expected, family.repeated)

    arrays, done = {}, dict.fromkeys(expected, 0)
    for ours, theirs in table.items():
        parts = []
        for name, shape in theirs.items():
            start, tensor = done[name], tensors[name]()
            done[name] += shape[0]
            if grown and start == rows:
                parts.append(_drawn(tensor, shape[0], rngs))
            else:
                parts.append(tensor if len(tensor) == shape[0] else tensor[start : done[name]])
        arrays[ours] = parts[0] if len(parts) == 1 else jnp.concatenate(parts)

    def fill(path: Any, leaf: Any) -> jax.Array:
        name = parameter_name(path)
        array = arrays[name].T if _is_turned(name, leaf) else arrays[name]
        return jnp.asarray(array).astype(param_dtype)

    return jax.tree_util.tree_map_with_path(fill, model)


def _drawn(tensor: np.ndarray, count: int, rngs: nnx.Rngs) -> jax.Array:
    """Rows of new tokens, drawn with the mean and the standard deviation of the known ones' columns."""
    known = tensor.astype(np.float32)
    normal = jax.random.normal(rngs.params(), (count, known.shape[1]))
    return known.mean(axis=0) + known.std(axis=0) * normal


def _read_tensors(
    folder: Path, expected: Mapping[str, tuple[int, ...]], repeated: Mapping[str, str]
) -> dict[str, Callable[[], np.ndarray]]:
    """Readers of the expected tensors; one error for all that is wrong with them."""
    package = _safetensors()
    found: dict[str, Callable[[], np.ndarray]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _tensor_files(folder):
        try:
            opened = package.safe_open(file, framework="numpy")
            for name in opened.keys():
                shapes[name] = tuple(opened.get_slice(name).get_shape())
                found[name] = lambda opened=opened, name=name: opened.get_tensor(name)
        except (package.SafetensorError, OSError) as error:
            raise ModelError(f"{file} is no safetensors file, or a broken one: {error}") from error
    surplus = [
        name
        for name in shapes
        if name not in expected
        and not name.endswith(
            "rotary_emb.inv_freq"
        )  # Of older releases; it follows from config.json.
        and not _is_repeated(found, name, repeated.get(name, ""))
    ]
    missing = [name for name in expected if name not in shapes]
    wrong = [
        f"{name} {list(shapes[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    kinds = {"missing": missing, "surplus": surplus, "of another shape": wrong}
    faults = [f"{kind}: {_list(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise ModelError(
            f"{folder}: its tensors are not those of its config.json; {'; '.join(faults)}"
        )
    return found


def _safetensors() -> ModuleType:
    """The package by which checkpoints are read and written; an extra, so that it is imported late."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ModelError(
            "checkpoints are read and written by the package `safetensors`: pip install 'gr-constrained[llm]'"
        ) from error
    return safetensors


def _is_repeated(found: Mapping[str, Callable], name: str, of: str) -> bool:
    """Whether a file holds a tensor a second time, such as embeddings as a tied head."""
    return of in found and np.array_equal(found[name](), found[of]())


def _tensor_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted({folder / name for name in _read_json(index)["weight_map"].values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    absent = [file.name for file in files if not file.exists()]
    if absent or not files:
        raise ModelError(
            f"{folder} lacks {', '.join(absent) or 'a file *.safetensors'}; copy the whole checkpoint, or give "
            "weights='random'"
        )
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; give the folder of a checkpoint") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
