"""A small study, typed as a user types it: run, looked at again, with a variant that fails."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mains import ENVIRONMENT

from experiments.compare import study_of_files
from experiments.config_files import study_of
from gr.runs import ConfigError, Experiment
from gr.runs.compare import settings
from gr.runs.experiment import flattened
from gr.runs.study import Job, jobs_of
from gr.training import TrainingError, save_run_info

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
from configs.synthetic import get_config as base

def get_config():
    c = base()
    c.name = "tiny"
    # As in tests/mains.py, whose runs then share compiled programs with these.
    c.data.options.num_users, c.data.options.num_items = 150, 60
    c.data.options.mean_length = 8.0
    c.data.num_buckets = 1
    c.semantic_ids.num_levels, c.semantic_ids.codebook_size = 2, 8
    c.backbone = "decoder_only"
    c.decoder_only.d_model, c.decoder_only.num_heads = 16, 2
    c.decoder_only.d_ff, c.decoder_only.num_layers = 16, 1
    c.training.num_epochs = 2
    c.training.eval_every_epochs = 1.0
    c.decoding.batch_size = 64
    CHANGE
    return c
"""
CHANGES = {
    "ce": "pass",
    "apao": "c.loss.name = 'apao_pointwise'",
    "wild": "c.training.learning_rate = 1e30; c.training.warmup_share = 0.0",
}


def compare(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.compare", *arguments, f"--workdir={folder}/study"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder, and what the first call printed."""
    folder = tmp_path_factory.mktemp("compare")
    for name, change in CHANGES.items():
        (folder / f"{name}.py").write_text(EXPERIMENT.replace("CHANGE", change))
    files = ",".join(f"{name}={folder}/{name}.py" for name in CHANGES)
    return folder, files, compare(folder, f"--configs={files}", "--seeds=0,1", "--jobs=2")


@pytest.mark.long
def test_a_run_that_fails_leaves_the_others_compared(study):
    folder, _, done = study
    assert done.returncode == 1
    assert "wild, seed 0 failed, see" in done.stderr and "ce, seed 0 failed" not in done.stderr
    assert "was not finite" in (folder / "study/wild/seed_0/log.txt").read_text()
    assert re.search(r"^apao +2 +0\.\d{4} ± 0\.\d{4}", done.stdout, re.MULTILINE)
    assert "Not done yet: wild, seed 0; wild, seed 1" in done.stdout
    assert re.search(r"^markov +0\.\d{4}", done.stdout, re.MULTILINE)
    assert re.search(r"^loss.name +ce +apao_pointwise", done.stdout, re.MULTILINE)


@pytest.mark.long
def test_the_comparison_is_written(study):
    folder = study[0] / "study"
    numbers = json.loads((folder / "comparison.json").read_text())
    rules = {"seen items removed", "all items allowed"}
    assert set(numbers["compared"]) == rules
    for rule in rules:
        of_apao = numbers["compared"][rule]["apao"]
        assert set(of_apao["by_seed"]["ndcg@10"]) == {"0", "1"}
        assert of_apao["differences"]["ndcg@10"]["mean"] == pytest.approx(
            sum(of_apao["by_seed"]["ndcg@10"].values()) / 2
            - sum(numbers["compared"][rule]["ce"]["by_seed"]["ndcg@10"].values()) / 2
        )
    # The whole evaluation of the first seed says the same.
    metrics = json.loads((folder / "apao/seed_0/metrics_test.json").read_text())
    found = numbers["compared"][metrics["rule"]]["apao"]["by_seed"]
    assert found["ndcg@10"]["0"] == pytest.approx(metrics["ndcg@10"])
    recall = metrics["prefix_recall"][metrics["rule"]]
    assert [found[f"prefix_recall/{t + 1}"]["0"] for t in range(3)] == pytest.approx(recall)
    page = (folder / "comparison.html").read_text()
    assert page.count("<svg") == len(list((folder / "figures").glob("*.png"))) == 6
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "| apao | 2 |" in (folder / "comparison.md").read_text()


@pytest.mark.long
def test_what_is_done_is_not_done_again(study):
    folder, files, first = study
    pair = ",".join(files.split(",")[:2])
    done = compare(folder, f"--configs={pair}", "--seeds=0,1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == 4 and "started" not in done.stdout
    table = re.compile(r"^(ce|apao) +2 .*$", re.MULTILINE)
    assert table.findall(done.stdout) == table.findall(first.stdout)
    assert [m.group() for m in table.finditer(done.stdout)] == [
        m.group() for m in table.finditer(first.stdout)
    ]


@pytest.mark.long
def test_unknown_names_are_refused(study):
    folder, files, _ = study
    done = compare(folder, f"--configs={files}", "--only=hinge")
    assert done.returncode == 1 and "--only=hinge: use some of ce, apao, wild" in done.stderr
    done = compare(folder)
    assert done.returncode == 1 and "--config=FILE" in done.stderr


def test_a_broken_file_of_ranks_is_named(tmp_path):
    job = Job("a", "a, seed 0", 0, Experiment(), str(tmp_path), "test", False)
    Path(job.ranks_path).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(TrainingError, match="ranks_test.npz cannot be read .* delete it"):
        job.ranks()


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    config = Experiment()
    save_run_info(tmp_path, config.to_dict())
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)  # The run has begun.
    other = config.override({"loss.name": "msl"})
    job = Job("a", "a, seed 0", 0, other, str(tmp_path), "test", False)
    with pytest.raises(TrainingError, match="loss.name was 'ce' and is 'msl'"):
        job.check()
    Job("a", "a, seed 0", 0, config, str(tmp_path), "test", False).check()


def test_the_published_study_and_its_settings():
    from configs.beauty_apao_study import get_config as beauty
    from configs.office_apao_study import get_config as office

    for get_config, count in ((office, 12), (beauty, 4)):
        study = study_of(get_config())
        found = jobs_of(study, "runs", "test", data_dir="data")
        assert len(found) == count and {job.config.data_dir for job in found} == {"data"}
        assert [job.seed for job in found] == sorted(job.seed for job in found)
        labels = {name: study.labels[name] for name in study.variants}
        differ = settings([job for job in found if job.seed == 0], labels)
        assert all(field.startswith("loss.") for field in differ)
        assert differ["loss.name"] == {labels[name]: name for name in labels}
    from configs.beauty_item_study import get_config as beauty_items
    from configs.ml100k_item_study import get_config as films
    from configs.office_item_study import get_config as office_items

    for get_config, count in ((office_items, 8), (beauty_items, 8), (films, 8)):
        assert len(jobs_of(study_of(get_config()), "runs", "test")) == 3 * count
    with pytest.raises(TrainingError, match="reference='sgd' is no variant; use one of"):
        jobs_of(dataclasses.replace(study, reference="sgd"), "runs", "test")


def test_configs_by_name(tmp_path):
    with pytest.raises(TrainingError, match="is not NAME=FILE"):
        study_of_files(["configs/a.py"])
    with pytest.raises(ConfigError, match="missing.py: no such config file"):
        study_of_files([f"a={tmp_path}/missing.py"])
    assert dict(flattened({"a": {"b": 1, "c": {}}, "d": 2})) == {"a.b": 1, "a.c": {}, "d": 2}
