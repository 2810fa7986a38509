"""The precision of matrix products, from the config to the programs that decode and train."""

import dataclasses
import re

import numpy as np
import pytest
from rounding import products_of

from gr.runs import ConfigError, Experiment, build
from gr.runs.data import load_data, load_semantic_ids
from gr.runs.programs import experiment_programs
from gr.runs.recommend import rank_items
from gr.training import make_mesh
from tests.runs.test_compile_targets import TINY
from tests.runs.test_mixture import make_run  # noqa: F401

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def scores_of(run, precision):
    """Scores of one history, and of the test targets, as the run decodes them."""
    run = dataclasses.replace(run, config=run.config.override({"decoding.precision": precision}))
    decoded = build.decode(run.config, run.catalogue, run.model, run.splits, run.splits.test)
    return rank_items(run, [3, 1, 4], 5)[1], decoded.scores, decoded.log_probs


def test_a_run_is_decoded_with_its_precision(make_run):  # noqa: F811
    run = make_run(beams=5)
    plain = scores_of(run, "highest")
    with products_of("tpu"):
        highest, default = (scores_of(run, precision) for precision in ("highest", "default"))
    for expected, same, other in zip(plain, highest, default, strict=True):
        np.testing.assert_array_equal(same, expected)
        assert np.abs(other - expected).max() > 1e-4


def test_compiled_programs_have_the_precision_of_their_part_of_the_config(tmp_path):
    config = TINY.override({"decoding.precision": "high"})
    splits = load_data(config, str(tmp_path))
    ids = load_semantic_ids(config, splits).semantic_ids
    programs = experiment_programs(config, splits, ids, ("decode", "train"))
    asked = {
        name: set(re.findall(r"precision = \[(\w+), \w+\]", program.lower(make_mesh()).as_text()))
        for name, program in programs.items()
    }
    expected = {name: {"HIGH"} if name.startswith("decode") else {"DEFAULT"} for name in programs}
    assert asked == expected and len(asked) == 5


def test_runs_of_before_have_the_defaults_and_other_words_are_refused():
    saved = Experiment().to_dict()
    for block in ("decoding", "training"):
        del saved[block]["precision"]
    experiment = Experiment.from_saved(saved)
    assert (experiment.decoding.precision, experiment.training.precision) == ("highest", "default")
    with pytest.raises(ConfigError, match="decoding.precision='bfloat16'"):
        experiment.override({"decoding.precision": "bfloat16"})
