"""A run whose backbone, loss and baseline are the user's, named as `module:name`."""

import pytest

import gr
from gr.evaluation import Ranker, training_counts
from gr.evaluation.popularity import popularity_order
from gr.losses import cross_entropy, token_log_probs
from gr.models import DecoderOnly, DecoderOnlyConfig

pytestmark = pytest.mark.usefixtures("compile_in_haste")

HERE = "test_own_names:"


def last_again(splits):
    return Ranker(
        popular=popularity_order(training_counts(splits)),
        scored=lambda histories, width: histories[:, -1:][:, :width],
    )


def backbone(*, vocab_size, code_length, rngs, width):
    config = DecoderOnlyConfig(
        vocab_size, code_length, d_model=width, num_heads=2, d_ff=16, num_layers=1
    )
    return DecoderOnly(config, rngs=rngs)


def loss(logits, tokens, weight, normaliser, index):
    return cross_entropy(token_log_probs(logits, tokens), weight, normaliser)


def experiment(**names):
    log = {"num_users": 100, "num_items": 40, "mean_length": 8.0, "num_categories": 4, "seed": 0}
    made = gr.runs.Experiment(
        backbone=HERE + "backbone", backbone_options={"width": 8}, baselines=(HERE + "last_again",)
    ).override(
        {
            **{"data.format": "synthetic", "data.options": log, "data.num_buckets": 1},
            **{"semantic_ids.num_levels": 2, "semantic_ids.codebook_size": 8},
            **{"training.num_epochs": 1, "loss.name": HERE + "loss"},
        }
    )
    return made.override(names)


def test_they_are_trained_evaluated_and_loaded_again(tmp_path):
    run = gr.runs.train(experiment(), str(tmp_path))
    assert run.model.embedding.shape[1] == 8
    metrics = gr.runs.evaluate(run)
    assert HERE + "last_again" in metrics["baselines"] and metrics["split"] == "test"
    again = gr.runs.load_run(str(tmp_path))
    assert gr.runs.recommend(again, history=["3"]) == gr.runs.recommend(run, history=["3"])


@pytest.mark.parametrize(
    ("field", "name", "told"),
    [
        ("backbone", "bakbone", "has no 'bakbone'; did you mean backbone?"),
        ("loss.name", "los", "has no 'los'; did you mean loss?"),
        ("baselines", "last", "has no 'last'"),
        ("data.format", "log", "has no 'log'"),
    ],
)
def test_a_name_that_is_not_there_is_refused_before_training(field, name, told, tmp_path):
    value = (HERE + name,) if field == "baselines" else HERE + name
    with pytest.raises(gr.GrError, match=f"{HERE}{name}.*{told}"):
        gr.runs.train(experiment(**{field: value}), str(tmp_path))
    assert not (tmp_path / "checkpoints").exists()
