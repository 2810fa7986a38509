"""Flax NNX backbones that generate semantic IDs code by code, behind one interface (`Backbone`).

`EncoderDecoder` (TIGER / T5) and `DecoderOnly` (Llama style) both offer:

* to decoders: `prefill / step / reorder`, and `latest / assemble` for tree searches (`TreeBackbone`);
* to losses (`Trainable`): `target_logits` (one target per history), `sequence_logits` (all positions in one pass), and
  `group_states` and `sequence_and_group_states` (many candidates behind one history).

`load_hf` and `save_hf` read and write them as checkpoints of public language models, `add_lora` and `freeze` choose
what of them is trained, and a history may be a `Prompt`.

`ValueHead` predicts the value of a prefix from their `path_states`. `backbone_of` makes a backbone of three functions
and parameters, `MixedBackbone` one of two, whose distribution is exactly their mixture, and `OverVocabulary` one with
logits over the vocabulary of a model that scores a trie's children.
"""

from gr.models.backbone import (
    Backbone,
    ChildScorer,
    ItemHistory,
    ModelError,
    Trainable,
    TreeBackbone,
    codes_alone,
    item_share,
    reads_items,
    score_children_below,
    scores_children,
    scores_items,
)
from gr.models.cache import Cache
from gr.models.decoder_only import DecoderOnly, DecoderOnlyConfig
from gr.models.encoder_decoder import EncoderDecoder
from gr.models.encoder_decoder_layers import EncoderDecoderConfig
from gr.models.grown import on_grown_catalogue
from gr.models.hf import load_hf, save_hf
from gr.models.item_decoder import ItemDecoder, ItemDecoderConfig
from gr.models.lora import add_lora, freeze, merge_lora, trained_part, with_trained
from gr.models.mixed import MixedBackbone
from gr.models.over_vocabulary import OverVocabulary
from gr.models.own import backbone_of, load_backbone
from gr.models.prompts import Prompt, histories_for
from gr.models.rope import Rope
from gr.models.trie_head import TrieHead, remap_nodes
from gr.models.value_head import ValueHead, ValueHeadConfig, path_states
from gr.models.vectors_start import start_from_vectors, unit_vectors

__all__ = [
    "Backbone",
    "Cache",
    "ChildScorer",
    "DecoderOnly",
    "DecoderOnlyConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "ItemDecoder",
    "ItemDecoderConfig",
    "ItemHistory",
    "MixedBackbone",
    "ModelError",
    "OverVocabulary",
    "Prompt",
    "Rope",
    "Trainable",
    "TreeBackbone",
    "TrieHead",
    "ValueHead",
    "ValueHeadConfig",
    "add_lora",
    "backbone_of",
    "codes_alone",
    "freeze",
    "histories_for",
    "item_share",
    "load_backbone",
    "load_hf",
    "merge_lora",
    "on_grown_catalogue",
    "path_states",
    "reads_items",
    "remap_nodes",
    "save_hf",
    "score_children_below",
    "scores_children",
    "scores_items",
    "start_from_vectors",
    "trained_part",
    "unit_vectors",
    "with_trained",
]
