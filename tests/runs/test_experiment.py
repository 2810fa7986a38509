"""The typed experiment: what it refuses, JSON, and experiments of older revisions."""

import dataclasses

import pytest

import gr
from gr.models import DecoderOnlyConfig, EncoderDecoderConfig, ItemDecoderConfig
from gr.runs.workdir import check_same_experiment, saved_experiment
from gr.training import save_run_info


def test_an_experiment_goes_through_json_and_names_what_is_wrong():
    experiment = gr.runs.table_experiment("clicks.csv", user="u", item="i", k_core=5)
    again = gr.runs.Experiment.from_json(experiment.to_json())
    assert again == experiment and again.data.options["k_core"] == 5
    for values, told in (
        ({"training.num_epoch": 3}, "unknown field training.num_epoch; did you mean num_epochs?"),
        ({"trainin.num_epochs": 3}, "unknown field trainin; did you mean training?"),
        ({"training.num_epochs": 0}, "training.num_epochs=0: use 1 or more"),
        ({"decoder_only.dropout": 1.0}, "dropout=1.0: use a number at least 0 and below 1"),
        ({"backbone": "decoder_onli"}, "did you mean decoder_only?"),
        ({"seed": "three"}, "seed='three' is of type str; give a whole number"),
        ({"seed.x": 1}, "seed.x: seed is no block of fields"),
    ):
        with pytest.raises(gr.runs.ConfigError) as caught:
            experiment.override(values)
        assert told in str(caught.value)


def test_a_run_of_an_older_revision_has_the_defaults_of_what_is_new():
    saved = gr.runs.Experiment(seed=3).to_dict()
    del saved["backbone_options"], saved["training"]["b2"]
    assert gr.runs.Experiment.from_saved(saved) == gr.runs.Experiment(seed=3)
    with pytest.raises(gr.runs.ConfigError, match="backbone_options is missing"):
        gr.runs.Experiment.from_config(saved)


def test_reinforcement_keeps_what_the_supervised_run_says():
    start = gr.runs.Experiment(seed=1, data_dir="there", name="start")
    both = gr.runs.Reinforcement(name="rl", init_from="runs/a").applied_to(start)
    assert (both.name, both.seed, both.data_dir) == ("rl", 0, "there")
    assert both.data == start.data and both.search.budget == 48
    assert type(both).from_json(both.to_json()) == both


def test_a_saved_search_keeps_its_meaning_and_resumes(tmp_path):
    now = gr.runs.Reinforcement().applied_to(gr.runs.Experiment())
    saved = now.to_dict()
    saved["search"] |= {"selection": "best_first", "prior_weight": 0.5}  # As it was once called.
    del saved["backbone_options"]
    save_run_info(tmp_path, saved)
    same = now.override({"search.name": "best_first", "search.prior_weight": 0.5})
    assert saved_experiment(tmp_path) == same
    check_same_experiment(tmp_path, same, ())
    with pytest.raises(gr.GrError, match="search.name was 'best_first' and is 'ved'"):
        check_same_experiment(tmp_path, now, ("search.prior_weight",))
    newer = same.override({"backbone_options": {"depth": 2}})
    with pytest.raises(gr.GrError, match="backbone_options"):
        check_same_experiment(tmp_path, newer, ())


def test_sizes_of_backbones_have_the_fields_and_defaults_of_their_configs():
    """But for what every experiment needs at user level, and what semantic IDs or checkpoints say."""
    for sizes, config, given in (
        (
            gr.runs.EncoderDecoderSizes(),
            EncoderDecoderConfig(8, 3),
            ("causal_encoder", "recency_bias"),
        ),
        (
            gr.runs.DecoderOnlySizes(),
            DecoderOnlyConfig(8, 3),
            ("num_kv_heads", "head_dim"),  # 0: they follow from the others.
        ),
        (gr.runs.ItemDecoderSizes(), ItemDecoderConfig(8, 3, 5), ()),
    ):
        mine, its = dataclasses.asdict(sizes), dataclasses.asdict(config)
        del mine["node_depth"]  # From which, and from the trie, follow the `num_nodes`.
        for of_start in ("start_from", "start_scale"):  # Of training, not of the model.
            mine.pop(of_start, None)
        given_by_ids = {"vocab_size", "code_length", "num_items", "num_nodes", "num_first"}
        of_checkpoints = {"num_text_tokens", "pieces", "rope", "start_token", "max_distance"}
        of_checkpoints |= {"activation", "scaled_attention", "scaled_head", "num_buckets"}
        if isinstance(config, EncoderDecoderConfig):
            of_checkpoints.add("norm_epsilon")
        given_elsewhere = (given_by_ids | of_checkpoints) & its.keys()
        assert its.keys() - mine.keys() == given_elsewhere and mine.keys() <= its.keys()
        assert {name for name in mine if mine[name] != its[name]} == set(given)


def test_what_is_false_is_told_to_the_reader_of_a_table():
    made = gr.runs.table_experiment(user="0", item="1", header=False, min_rating=0.0, k_core=None)
    wanted = {"user": "0", "item": "1", "header": False, "min_rating": 0.0}
    assert made.data.options == wanted


def test_one_kind_of_experiment_is_not_taken_for_another(tmp_path):
    supervised, rl = gr.runs.Experiment(), gr.runs.Reinforcement()
    both = rl.applied_to(supervised)
    for run, config, told in (
        (gr.runs.train, both, "this is of the kind ReinforcedExperiment, not Experiment"),
        (gr.runs.train, rl, "this is of the kind Reinforcement, not Experiment"),
        (gr.runs.reinforce, supervised, "this is of the kind Experiment, not Reinforcement"),
    ):
        with pytest.raises(gr.runs.ConfigError, match=told):
            run(config, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_study_goes_through_json_with_its_experiments():
    study = gr.runs.Study(
        "two",
        (0, 1),
        "a",
        variants={"a": gr.runs.Experiment(seed=3), "b": gr.runs.Reinforcement(init_from="{study}")},
    )
    assert gr.runs.Study.from_json(study.to_json()) == study == gr.runs.config_of(study.to_dict())
    wrong = study.to_dict()
    wrong["variants"]["a"]["training"]["num_epochs"] = 0
    with pytest.raises(gr.runs.ConfigError, match=r"variants\.a\.training\.num_epochs=0"):
        gr.runs.Study.from_saved(wrong)
