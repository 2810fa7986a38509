"""A run trained anew on what was held out: what it takes over, what it learns from, what it can be evaluated on."""

import dataclasses
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
from mains import run as command

from gr.data import DataError, Histories, learn_from, training_interactions
from gr.evaluation import EvaluationError
from gr.memory import Gate, fit_memory
from gr.runs import (
    ConfigError,
    ReinforcedExperiment,
    Reinforcement,
    build,
    evaluate,
    load_run,
    recommend,
    refit,
    reinforce,
    table_experiment,
    train,
)
from gr.runs import mixture as mixture_module
from gr.runs.baselines import SETTINGS_FILE
from gr.runs.content import similar_items
from gr.runs.mixture import mixture_of
from gr.runs.refit import refit_experiment
from gr.training import TrainingError, checkpoint_step

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, ITEMS, LENGTH = 40, 24, 8
RANDOM = random.Random(0)
STARTS = [RANDOM.randrange(ITEMS) for _ in range(USERS)]
FRAME = {
    "user": [f"u{user}" for user in range(USERS) for _ in range(LENGTH)],
    "item": [f"i{(start + step) % ITEMS}" for start in STARTS for step in range(LENGTH)],
}
SMALL = {
    "backbone": "decoder_only",
    **{f"decoder_only.{name}": 8 for name in ("d_model", "d_ff")},
    "decoder_only.num_heads": 2,
    "decoder_only.num_layers": 1,
    "semantic_ids.codebook_size": 4,
    "data.num_buckets": 1,
    "data.max_history": 6,
    "decoding.num_beams": 10,
    "memory.size": 20,
    "training.items_per_batch": 64,
    "training.num_epochs": 3,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    experiment = table_experiment(user="user", item="item").override(SMALL)
    return train(experiment, str(tmp_path_factory.mktemp("run")), frame=FRAME)


@pytest.fixture(scope="module")
def of_all(trained, tmp_path_factory):
    return refit(trained, str(tmp_path_factory.mktemp("all")))


@pytest.fixture(scope="module")
def with_test(trained, tmp_path_factory):
    return refit(trained, str(tmp_path_factory.mktemp("test")), keep_test=True)


def parameters(run):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(run.model)])


def test_the_experiment_names_what_validation_chose(trained):
    mixture = mixture_of(trained)
    config = refit_experiment(dataclasses.replace(trained, step=6))
    steps = build.make_train_batches(trained.config, trained.splits).batches_per_epoch
    assert config.training.end_share == 6 / (3 * steps)
    assert (config.memory.weight, config.memory.tune) == (mixture.gate.weights[0], False)
    assert config.memory.settings == mixture.memory.settings
    expected = trained.config.override(
        {
            "data.learn_from": "all",
            "training.end_share": config.training.end_share,
            "memory": dataclasses.asdict(config.memory),
        }
    )
    assert config == expected  # And nothing else.
    assert refit_experiment(trained, keep_test=True).data.learn_from == "validation"


def test_an_end_by_steps_grows_with_the_epoch(trained):
    run = dataclasses.replace(
        trained, step=5, config=trained.config.override({"training.max_steps": 10})
    )
    config = refit_experiment(run)
    assert config.training.end_share == 0.5
    growth = [
        build.make_train_batches(of, splits).batches_per_epoch
        for of, splits in (
            (run.config, run.splits),
            (config, learn_from(run.splits, "all")),
        )
    ]
    assert config.training.max_steps == round(10 * growth[1] / growth[0]) > 10


def test_training_ends_with_its_share_of_the_steps(trained, of_all):
    batches = build.make_train_batches(of_all.config, of_all.splits)
    share = trained.step / build.total_steps(
        trained.config.training, build.make_train_batches(trained.config, trained.splits)
    )
    steps = round(share * 3 * batches.batches_per_epoch)
    assert of_all.step == steps == build.last_step(of_all.config.training, batches)
    # Without an evaluation the last checkpoint is the best.
    assert of_all.step == checkpoint_step(of_all.workdir, "best")
    assert of_all.step == checkpoint_step(of_all.workdir, "last")


def test_all_interactions_are_learnt_from(trained, of_all):
    assert len(of_all.splits.train) == USERS * (LENGTH - 1)
    assert not len(of_all.splits.validation) and not len(of_all.splits.test)
    mixture, sequences = mixture_of(of_all), of_all.splits.sequences
    settings = mixture.memory.settings
    of_content = similar_items(of_all, settings.content_of or "none")
    expected = fit_memory(sequences, **dataclasses.asdict(settings), similar=of_content)
    histories = Histories.of_rows(sequences.items.reshape(USERS, LENGTH)[:, :5])
    for found, wanted in zip(
        jax.tree.leaves(mixture.memory.prior(histories, size=9, exclude=False)),
        jax.tree.leaves(expected.prior(histories, size=9, exclude=False)),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)
    assert mixture.gate == mixture_of(trained).gate
    assert [item.item_id for item in recommend(load_run(of_all.workdir), user="u0", top_k=3)]
    for split in ("validation", "test"):
        with pytest.raises(EvaluationError, match=f"has learnt from the {split} targets"):
            evaluate(of_all, split)


def test_with_a_test_the_rest_is_learnt_from_by_model_and_baselines(trained, with_test):
    metrics = evaluate(load_run(with_test.workdir), "test")
    before = evaluate(trained, "test")
    for rule in (metrics, metrics["variants"]["all items allowed"]):
        other = before if rule is metrics else before["variants"]["all items allowed"]
        assert rule["baseline_settings"] == other["baseline_settings"]
        assert rule["baselines"].keys() == other["baselines"].keys() > {"memory", "ease"}
        assert rule["users"] == other["users"] == USERS
        # Each rule has the memory and the weight that were chosen under it.
        assert rule["memory"]["gate"] == other["memory"]["gate"]
        assert rule["memory"]["settings"] == other["memory"]["settings"]
    learnt = training_interactions(with_test.splits).reshape(USERS, LENGTH)
    assert learnt[:, :-1].all() and not learnt[:, -1].any()
    assert (Path(with_test.workdir) / "report_test.html").exists()
    assert metrics["validation_baselines"]["ndcg@10"] == {}
    with pytest.raises(EvaluationError, match="has learnt from the validation targets"):
        with_test.targets("validation")
    # Nobody tunes them on nothing.
    (Path(with_test.workdir) / "baselines" / SETTINGS_FILE).unlink()
    with pytest.raises(EvaluationError, match="no validation targets to tune baselines by"):
        evaluate(with_test, "test")


def test_the_same_call_again_changes_nothing(trained, of_all):
    again = refit(trained, of_all.workdir)
    assert again.step == of_all.step
    np.testing.assert_array_equal(parameters(again), parameters(of_all))


def test_what_cannot_be_refitted_is_refused(trained, tmp_path, monkeypatch):
    reinforced = dataclasses.replace(trained, config=ReinforcedExperiment())
    with pytest.raises(ConfigError, match="reinforcement learning"):
        refit(reinforced, str(tmp_path / "a"))
    gate = dataclasses.replace(mixture_of(trained), gate=Gate((0.1, 0.2), (1.0,), "largest"))
    monkeypatch.setattr(mixture_module, "mixture_of", lambda run, rule: gate)
    with pytest.raises(ConfigError, match="fitted on validation"):
        refit(trained, str(tmp_path / "b"))
    monkeypatch.undo()
    foreign = tmp_path / "c"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("")
    for folder in (str(foreign), trained.workdir):  # Before anything is written there.
        there = sorted(Path(folder).rglob("*"))
        with pytest.raises(TrainingError, match="what is not of a run|is of another run"):
            refit(trained, folder)
        assert sorted(Path(folder).rglob("*")) == there
    cold = dataclasses.replace(trained.splits, cold=np.zeros(ITEMS, bool))
    with pytest.raises(DataError, match="cold-start"):
        refit_experiment(dataclasses.replace(trained, splits=cold))


def test_what_validation_has_to_choose_is_refused_before_training(of_all, tmp_path):
    chosen = of_all.config.override({"memory.tune": True})
    with pytest.raises(ConfigError, match="memory.tune=True need validation targets"):
        train(chosen, of_all.workdir + "_tuned", frame=FRAME)
    start = Reinforcement(init_from=of_all.workdir)
    with pytest.raises(TrainingError, match="has no validation targets, by which steps are chosen"):
        reinforce(start, str(tmp_path / "rl"))


def test_the_command_refits_and_says_what_comes_next(trained, tmp_path):
    found = command("refit", f"--workdir={trained.workdir}", f"--output={tmp_path}")
    assert f"next: python -m experiments.recommend --user=ID --workdir={tmp_path}" in found.stdout
    assert "no validation targets" in found.stdout
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["data"]["learn_from"] == "all"
