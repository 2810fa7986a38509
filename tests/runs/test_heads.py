"""The head of a backbone, from the config to the model and the layout of the trie."""

import numpy as np
import pytest

from gr.models import scores_children, scores_items
from gr.runs import Experiment, build
from gr.runs.experiment import ConfigError
from gr.semantic_ids import SemanticIds

BACKBONES = ("encoder_decoder", "decoder_only", "item_decoder")
SMALL = {
    "encoder_decoder": {"d_model": 8, "num_heads": 2, "head_dim": 4, "d_ff": 8},
    "decoder_only": {"d_model": 8, "num_heads": 2, "d_ff": 8, "num_layers": 1},
    "item_decoder": {"d_model": 8, "num_heads": 2, "d_ff": 8},
}


def semantic_ids():
    rng = np.random.default_rng(0)
    return SemanticIds(rng.integers(0, 40, (3000, 3)), (40, 40, 40), np.arange(3000).astype(str))


def made(backbone, **fields):
    fields = {"backbone": backbone} | {
        f"{backbone}.{name}": value for name, value in (SMALL[backbone] | fields).items()
    }
    experiment = Experiment().override(fields)
    ids = semantic_ids()
    return build.make_model(experiment, ids), build.make_index(experiment, ids), experiment


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("node_depth", [0, 2, 8])
def test_a_trie_head_has_an_embedding_for_the_nodes_of_the_first_depths(backbone, node_depth):
    model, index, _ = made(backbone, head="trie", node_depth=node_depth)
    assert scores_children(model)
    rows = index.layout.node_offsets[min(node_depth, 3)]
    assert model.head.nodes.shape == (rows, 8) and model.config.num_nodes == rows
    assert "dense" not in [level.kind for level in index.layout.levels[1:]]


@pytest.mark.parametrize("num_facets", [0, 3])
def test_first_codes_have_facets(num_facets):
    model, index, _ = made("item_decoder", head="trie", num_facets=num_facets)
    assert hasattr(model.head, "facets") == (num_facets > 0)
    if num_facets:
        assert model.head.facets.shape == (num_facets, index.layout.node_offsets[1], 8)


def test_runs_of_before_have_no_facets():
    saved = Experiment().override({"item_decoder.d_model": 64}).to_dict()
    del saved["item_decoder"]["num_facets"]
    sizes = Experiment.from_saved(saved).item_decoder
    assert sizes.num_facets == 0 and sizes.d_model == 64


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_vocabulary_head_has_none(backbone):
    model, _, _ = made(backbone, head="vocabulary")
    assert not scores_children(model) and model.config.num_nodes == 0
    assert model.head.kernel.shape == (8, semantic_ids().vocab_size)


def test_a_head_over_items_has_one_vector_each():
    model, _, _ = made("item_decoder", head="items")
    assert scores_items(model) and model.items_out.shape == (3000, 8)


def test_configs_of_before_have_a_vocabulary_head():
    saved = Experiment().to_dict()
    for backbone in BACKBONES[:2]:
        del saved[backbone]["head"], saved[backbone]["node_depth"]
    del saved["item_decoder"]
    assert Experiment.from_saved(saved) == Experiment()


@pytest.mark.parametrize("backbone", BACKBONES[:2])
def test_a_head_that_is_none_is_refused(backbone):
    with pytest.raises(ConfigError, match=f"{backbone}.head='items' is unknown"):
        made(backbone, head="items")
