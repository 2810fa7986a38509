"""Flax NNX backbones that spell out semantic IDs, behind one interface (`Backbone`).

`EncoderDecoder` (TIGER / T5) and `DecoderOnly` (Llama style) both offer `prefill / step / reorder` to decoders, with
`latest / assemble` to those that search a tree (`TreeBackbone`),
and `target_logits` (one target per history) and `sequence_logits` (all positions in one pass) to losses.
"""

from gr.models.backbone import Backbone, Cache, ModelError, TreeBackbone
from gr.models.decoder_only import DecoderOnly, DecoderOnlyConfig
from gr.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

__all__ = [
    "Backbone",
    "Cache",
    "DecoderOnly",
    "DecoderOnlyConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "ModelError",
    "TreeBackbone",
]
