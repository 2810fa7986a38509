"""What each family of checkpoints calls its settings and tensors (`gr.models.load_hf`)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gr.models.backbone import ModelError
from gr.models.decoder_only import DecoderOnly, DecoderOnlyConfig
from gr.models.encoder_decoder import EncoderDecoder
from gr.models.encoder_decoder_layers import ACTIVATIONS, EncoderDecoderConfig
from gr.models.rope import Rope

_T5_REPEATED = ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens")
# Name of one of our parameters -> the file's tensors that are side by side in it, with their shapes.
Table = dict[str, dict[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class Family:
    """How the checkpoints of one `model_type` are read and written."""

    model: Callable[..., Any]
    config: Callable[..., Any]  # (config.json, folder, **our own fields) -> our config.
    fields: Callable[[Any], dict[str, Any]]  # Our config -> fields of config.json.
    table: Callable[[Any], Table]  # Of our config.
    fits: Callable[[Any], bool]  # Whether a backbone can be written as one of the family.
    # Tensors that a file may hold once more, and those that they are equal to.
    repeated: Mapping[str, str]


def family_of(data: Mapping[str, Any], folder: Path) -> Family:
    """The family of a `config.json`; a ModelError for one that is not known."""
    kind = data.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(
            f"{folder}: model_type={kind!r} is not offered: use a checkpoint of {', '.join(FAMILIES)}"
        )
    if "quantization_config" in data:
        raise ModelError(f"{folder} is quantised: use the checkpoint that it was made from")
    return FAMILIES[kind]


def checked(
    data: Mapping[str, Any], folder: Path, needed: tuple[str, ...], only: Mapping[str, tuple]
) -> None:
    """Raises ModelError for settings that are missing, or that our backbone does not compute.

    Args:
        data: of config.json.
        folder: for messages.
        needed: fields that must be there.
        only: what other fields may be, if they are there.
    """
    missing = [name for name in needed if data.get(name) is None]
    if missing:
        raise ModelError(f"{folder / 'config.json'} lacks {', '.join(missing)}")
    for name, choices in only.items():
        if data.get(name) is not None and data[name] not in choices:
            raise ModelError(
                f"{folder / 'config.json'}: {name}={data[name]!r} is not offered, only "
                f"{' or '.join(map(repr, choices))}"
            )


# Llama, Qwen2, Qwen3.

_BIAS = {"qwen2": True}  # Of queries, keys and values.
_NORMS = {"qwen3": True}  # Of each head's queries and keys.
_HEAD_DIM = {"qwen3": 128}  # Where config.json says none; else d_model / num_heads.


def _decoder_config(
    kind: str, data: Mapping[str, Any], folder: Path, **own: Any
) -> DecoderOnlyConfig:
    sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    only = {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "partial_rotary_factor": (1.0,),
    }
    checked(data, folder, (*sizes, "vocab_size"), only)
    if set(data.get("layer_types") or ()) - {"full_attention"}:
        raise ModelError(f"{folder / 'config.json'}: layer_types are not all full_attention")
    width, heads, d_ff, layers = (data[name] for name in sizes)
    return DecoderOnlyConfig(
        d_model=width,
        num_heads=heads,
        num_kv_heads=data.get("num_key_value_heads") or heads,
        head_dim=data.get("head_dim") or _HEAD_DIM.get(kind, width // heads),
        d_ff=d_ff,
        num_layers=layers,
        qkv_bias=_BIAS.get(kind, False),
        qk_norm=_NORMS.get(kind, False),
        rope=_rope(data, folder),
        norm_epsilon=data.get("rms_norm_eps", 1e-6),
        tied_head=data.get("tie_word_embeddings", False),
        **own,
    )


def _rope(data: Mapping[str, Any], folder: Path) -> Rope:
    """Rotary positions, in the older form (`rope_theta`, `rope_scaling`) or the newer (`rope_parameters`)."""
    told = {"rope_theta": data.get("rope_theta", 10_000.0)}
    told |= data.get("rope_scaling") or {}
    told |= data.get("rope_parameters") or {}
    scaling = told.get("rope_type") or told.get("type") or "default"
    length = told.get("original_max_position_embeddings", data.get("max_position_embeddings"))
    fields = {"base": float(told["rope_theta"]), "scaling": scaling}
    if scaling != "default":
        fields["factor"] = float(told.get("factor", 1.0))
    if scaling == "llama3":
        lacking = [n for n in ("low_freq_factor", "high_freq_factor") if n not in told]
        if lacking or not length:
            raise ModelError(f"{folder / 'config.json'}: llama3's rope lacks {', '.join(lacking)}")
        fields |= {
            "low": float(told["low_freq_factor"]),
            "high": float(told["high_freq_factor"]),
            "original_length": int(length),
        }
    try:
        return Rope(**fields)
    except ModelError as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from error


def _decoder_fields(kind: str, architecture: str, c: DecoderOnlyConfig) -> dict[str, Any]:
    scaling: dict[str, Any] | None = None
    if c.rope.scaling != "default":
        scaling = {"rope_type": c.rope.scaling, "factor": c.rope.factor}
    if c.rope.scaling == "llama3":
        scaling |= {
            "low_freq_factor": c.rope.low,
            "high_freq_factor": c.rope.high,
            "original_max_position_embeddings": c.rope.original_length,
        }
    return {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": c.d_model,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.num_layers,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope.base,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": c.rope.base, **(scaling or {"rope_type": "default"})},
        "tie_word_embeddings": c.tied_head,
        "vocab_size": c.num_text_tokens + c.vocab_size,
    }


def _decoder_table(c: DecoderOnlyConfig) -> Table:
    d, query, kv = c.d_model, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    table = _vocabulary(c, "embed_tokens", "model.")
    table["norm.scale"] = {"model.norm.weight": (d,)}
    for i in range(c.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        widths = {"q": query, "k": kv, "v": kv}
        table |= {
            f"{ours}.attention_norm.scale": {f"{theirs}.input_layernorm.weight": (d,)},
            f"{ours}.qkv.kernel": {
                f"{attention}.{name}_proj.weight": (width, d) for name, width in widths.items()
            },
            f"{ours}.out.kernel": {f"{attention}.o_proj.weight": (d, query)},
            f"{ours}.ffn_norm.scale": {f"{theirs}.post_attention_layernorm.weight": (d,)},
            f"{ours}.gate_up.kernel": {
                f"{mlp}.gate_proj.weight": (c.d_ff, d),
                f"{mlp}.up_proj.weight": (c.d_ff, d),
            },
            f"{ours}.down.kernel": {f"{mlp}.down_proj.weight": (d, c.d_ff)},
        }
        if c.qkv_bias:
            table[f"{ours}.qkv.bias"] = {
                f"{attention}.{name}_proj.bias": (width,) for name, width in widths.items()
            }
        if c.qk_norm:
            table[f"{ours}.query_norm.scale"] = {f"{attention}.q_norm.weight": (c.head_dim,)}
            table[f"{ours}.key_norm.scale"] = {f"{attention}.k_norm.weight": (c.head_dim,)}
    return table


def _vocabulary(c: Any, embedding: str, prefix: str = "") -> Table:
    """Embeddings and head: rows of text, then rows of semantic IDs, of the same tensor."""
    text, own = (c.num_text_tokens, c.d_model), (c.vocab_size, c.d_model)
    table: Table = {}
    if c.num_text_tokens:
        table["text_embedding"] = {f"{prefix}{embedding}.weight": text}
    table["embedding"] = {f"{prefix}{embedding}.weight": own}
    if not c.tied_head:
        if c.num_text_tokens:
            table["text_head"] = {"lm_head.weight": text}
        table["head.kernel"] = {"lm_head.weight": own}
    return table


def _is_decoder(kind: str, backbone: Any) -> bool:
    if not isinstance(backbone, DecoderOnly) or backbone.config.head != "vocabulary":
        return False
    c = backbone.config
    wanted = (_BIAS.get(kind, False), _NORMS.get(kind, False))
    return (c.qkv_bias, c.qk_norm) == wanted


def _decoder_family(kind: str, architecture: str) -> Family:
    return Family(
        model=DecoderOnly,
        config=lambda data, folder, **own: _decoder_config(kind, data, folder, **own),
        fields=lambda c: _decoder_fields(kind, architecture, c),
        table=_decoder_table,
        fits=lambda backbone: _is_decoder(kind, backbone),
        repeated={"lm_head.weight": "model.embed_tokens.weight"},
    )


# T5.


def _t5_config(data: Mapping[str, Any], folder: Path, **own: Any) -> EncoderDecoderConfig:
    sizes = ("d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    checked(data, folder, (*sizes, "vocab_size"), {"feed_forward_proj": ACTIVATIONS})
    width, heads, head_dim, d_ff, layers = (data[name] for name in sizes)
    tied = data.get("tie_word_embeddings", True)
    start = data.get("decoder_start_token_id")
    return EncoderDecoderConfig(
        d_model=width,
        num_heads=heads,
        head_dim=head_dim,
        d_ff=d_ff,
        num_encoder_layers=layers,
        num_decoder_layers=data.get("num_decoder_layers") or layers,
        activation=data.get("feed_forward_proj", "relu"),
        scaled_attention=False,
        tied_head=tied,
        # Version 1.1 has neither a tied nor a scaled head; newer releases of transformers tell the two apart.
        scaled_head=data.get("scale_decoder_outputs", tied),
        num_buckets=data.get("relative_attention_num_buckets", 32),
        max_distance=data.get("relative_attention_max_distance", 128),
        norm_epsilon=data.get("layer_norm_epsilon", 1e-6),
        start_token=data.get("pad_token_id", 0) if start is None else start,
        **own,
    )


def _t5_fields(c: EncoderDecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "d_model": c.d_model,
        "num_heads": c.num_heads,
        "d_kv": c.head_dim,
        "d_ff": c.d_ff,
        "num_layers": c.num_encoder_layers,
        "num_decoder_layers": c.num_decoder_layers,
        "feed_forward_proj": c.activation,
        "relative_attention_num_buckets": c.num_buckets,
        "relative_attention_max_distance": c.max_distance,
        "layer_norm_epsilon": c.norm_epsilon,
        "decoder_start_token_id": c.start_token,
        "tie_word_embeddings": c.tied_head,
        "scale_decoder_outputs": c.scaled_head,
        "vocab_size": c.num_text_tokens + c.vocab_size,
    }


def _t5_table(c: EncoderDecoderConfig) -> Table:
    d, inner = c.d_model, c.num_heads * c.head_dim
    table = _vocabulary(c, "shared")
    for stack, layers in (("encoder", c.num_encoder_layers), ("decoder", c.num_decoder_layers)):
        first = f"{stack}.block.0.layer.0.SelfAttention"
        table |= {
            f"{stack}_bias.table": {
                f"{first}.relative_attention_bias.weight": (c.num_buckets, c.num_heads)
            },
            f"{stack}_norm.scale": {f"{stack}.final_layer_norm.weight": (d,)},
        }
        for i in range(layers):
            ours, theirs = f"{stack}.{i}", f"{stack}.block.{i}.layer"
            table |= _t5_attention(f"{ours}.attention", f"{theirs}.0", "SelfAttention", d, inner)
            if stack == "decoder":
                table |= _t5_attention(f"{ours}.cross", f"{theirs}.1", "EncDecAttention", d, inner)
            last = f"{theirs}.{1 if stack == 'encoder' else 2}"
            ffn, name = f"{last}.DenseReluDense", "up" if c.activation == "relu" else "gate_up"
            up = ("wi",) if c.activation == "relu" else ("wi_0", "wi_1")
            table |= {
                f"{ours}.ffn.norm.scale": {f"{last}.layer_norm.weight": (d,)},
                f"{ours}.ffn.{name}.kernel": {f"{ffn}.{n}.weight": (c.d_ff, d) for n in up},
                f"{ours}.ffn.down.kernel": {f"{ffn}.wo.weight": (d, c.d_ff)},
            }
    return table


def _t5_attention(ours: str, layer: str, kind: str, d: int, inner: int) -> Table:
    theirs = f"{layer}.{kind}"
    parts = {n: {f"{theirs}.{n}.weight": (inner, d)} for n in "qkv"}
    if kind == "SelfAttention":
        projections = {"qkv": parts["q"] | parts["k"] | parts["v"]}
    else:
        projections = {"query": parts["q"], "kv": parts["k"] | parts["v"]}
    return {
        f"{ours}.norm.scale": {f"{layer}.layer_norm.weight": (d,)},
        **{f"{ours}.{name}.kernel": tensors for name, tensors in projections.items()},
        f"{ours}.out.kernel": {f"{theirs}.o.weight": (d, inner)},
    }


def _is_t5(backbone: Any) -> bool:
    if not isinstance(backbone, EncoderDecoder) or backbone.config.head != "vocabulary":
        return False
    c = backbone.config
    return not (c.causal_encoder or c.recency_bias or c.scaled_attention)


FAMILIES: dict[str, Family] = {
    "llama": _decoder_family("llama", "LlamaForCausalLM"),
    "qwen2": _decoder_family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _decoder_family("qwen3", "Qwen3ForCausalLM"),
    "t5": Family(
        model=EncoderDecoder,
        config=_t5_config,
        fields=_t5_fields,
        table=_t5_table,
        fits=_is_t5,
        repeated={f"{of}.weight": "shared.weight" for of in _T5_REPEATED},
    ),
}
