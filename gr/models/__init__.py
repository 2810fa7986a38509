"""Flax NNX backbones that spell out semantic IDs, behind one interface (`Backbone`).

`EncoderDecoder` (TIGER / T5) and `DecoderOnly` (Llama style) both offer `prefill / step / reorder` to decoders, with
`latest / assemble` to those that search a tree (`TreeBackbone`), and `target_logits` (one target per history) and
`sequence_logits` (all positions in one pass) to losses, with `group_states` and `sequence_and_group_states` for many
candidates behind one history. `ValueHead` reads off their `path_states` what a prefix promises. `backbone_of` makes a
backbone of three functions and parameters.
"""

from gr.models.backbone import Backbone, Cache, ModelError, Trainable, TreeBackbone
from gr.models.decoder_only import DecoderOnly, DecoderOnlyConfig
from gr.models.encoder_decoder import EncoderDecoder
from gr.models.encoder_decoder_layers import EncoderDecoderConfig
from gr.models.own import backbone_of, load_backbone
from gr.models.value_head import ValueHead, ValueHeadConfig, path_states

__all__ = [
    "Backbone",
    "Cache",
    "DecoderOnly",
    "DecoderOnlyConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "ModelError",
    "Trainable",
    "TreeBackbone",
    "ValueHead",
    "ValueHeadConfig",
    "backbone_of",
    "load_backbone",
    "path_states",
]
