"""What is compared of a study's runs, and how its processes start, fail and stop."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gr.evaluation import Decoded, EvaluationError
from gr.runs import Experiment, Study, baselines, config_of, evaluate, report
from gr.runs.compare import write_comparison
from gr.runs.comparison_pages import caption
from gr.runs.processes import last_line, ready, run_all
from gr.runs.run import load_run
from gr.runs.study import Job, baselines_of, jobs_of
from gr.semantic_ids import SemanticIds
from gr.training import TrainingError, TrainingInterrupted, load_config

ROOT = Path(__file__).parents[2]
RULES = ("seen items removed", "all items allowed")
pytestmark = pytest.mark.usefixtures("compile_in_haste")


def tiny_study(**more):
    from configs.synthetic import get_config

    c = get_config()
    c.data.options.num_users, c.data.options.num_items = 100, 40
    c.data.options.mean_length = 8.0
    c.data.num_buckets = 1
    c.semantic_ids.num_levels, c.semantic_ids.codebook_size = 2, 8
    c.decoder_only.d_model, c.decoder_only.num_heads = 16, 2
    c.decoder_only.d_ff, c.decoder_only.num_layers = 16, 1
    c.training.num_epochs = 1
    c.decoding.num_beams = 10
    ce = config_of(c)
    variants = {"ce": ce, "b": ce.override({"loss.name": "apao_pointwise"}), **more}
    return Study("tiny", (0, 1), "ce", {"b": "B"}, variants)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of which one run was made."""
    folder = tmp_path_factory.mktemp("study")
    jobs_of(tiny_study(), str(folder), "test")[0].run()
    return folder


def test_what_starts_from_another_run_waits_for_it():
    start = {"training.init_from": "{study}/ce/seed_{seed}"}
    study = tiny_study()
    study = dataclasses.replace(
        study, variants={"a": study.variants["ce"].override(start), **study.variants}
    )
    jobs = jobs_of(study, "runs", "test")
    first, start, *_ = jobs
    assert (first.variant, first.starts_from) == ("a", "runs/ce/seed_0") == ("a", start.workdir)
    waiting, order = list(jobs), []
    while job := ready(waiting, []):
        waiting.remove(job)
        order.append((job.variant, job.seed))
    assert sorted(order) == sorted((job.variant, job.seed) for job in jobs)
    assert all(order.index(("ce", seed)) < order.index(("a", seed)) for seed in (0, 1))
    running = dataclasses.make_dataclass("Running", ["job"])(start)
    assert ready([first], [running]) is None and ready([first], []) is first


@pytest.fixture
def study(trained, tmp_path):
    """The jobs by variant and seed; all but (ce, 1) are done, as copies of one run with other ranks."""
    jobs = jobs_of(tiny_study(), str(tmp_path / "study"), "test")
    by_key = {(job.variant, job.seed): job for job in jobs}
    (original,) = trained.glob("*/seed_0")
    for number, (key, job) in enumerate(by_key.items()):
        if key == ("ce", 1):
            continue
        shutil.copytree(original, job.workdir)
        Path(job.workdir, "config.json").write_text(job.config.to_json())
        with np.load(job.ranks_path) as kept:
            arrays = dict(kept)
        for rule in RULES:
            ranks = arrays[f"{rule}/sid_ranks"]
            arrays[f"{rule}/sid_ranks"] = np.random.default_rng(number).permutation(ranks)
        np.savez(job.ranks_path, **arrays)
    for kept in trained.glob("baselines_*.npz"):
        shutil.copy(kept, tmp_path / "study")
    return by_key


def compared(study):
    """What `comparison.json` says."""
    jobs = list(study.values())
    write_comparison(tiny_study(), jobs[0].folder, jobs, command="python -m again")
    return json.loads(Path(jobs[0].folder, "comparison.json").read_text())


def edit_config(job, **changes):
    config = load_config(job.workdir)
    config["training"] |= changes
    Path(job.workdir, "config.json").write_text(json.dumps(config))


# The comparison.


def test_baselines_are_ranked_once_and_are_those_of_a_run_of_its_own(study, monkeypatch, capsys):
    found = compared(study)["baselines"]
    assert set(found) == set(RULES)
    job = study["ce", 0]
    run = load_run(job.workdir)
    for exclude, rule in ((True, RULES[0]), (False, RULES[1])):
        made = baselines.rank_baselines(
            run.splits, run.semantic_ids, run.splits.test, exclude=exclude, depth=10
        )
        assert set(found[rule]) == set(made.rankings) > {"popularity", "markov"}
        for name, rankings in made.rankings.items():
            hits = [0 <= rank < 3 for rank in rankings.sid_ranks]
            assert found[rule][name]["hit@3"] == pytest.approx(np.mean(hits))

    def again(*args, **kwargs):
        raise AssertionError("ranked again")

    monkeypatch.setattr(baselines, "rank_baselines", again)
    assert compared(study)["baselines"] == found
    # Of other items, they would not be the same: they are made again.
    semantic_ids = run.semantic_ids
    other = dataclasses.replace(semantic_ids, codes=semantic_ids.codes[::-1])
    with pytest.raises(AssertionError, match="ranked again"):
        baselines_of(job, run.splits, other, True)
    assert capsys.readouterr().out.count("item_knn_tuned") == 4


def test_variants_and_baselines_are_best_first(study, capsys):
    found = compared(study)
    blocks = capsys.readouterr().out.split("\n\n")
    for rule in RULES:
        (block,) = (block for block in blocks if block.startswith(f"test split, {rule}\n"))
        names = [re.split(r"\s{2,}", line)[0] for line in block.splitlines()[3:]]
        of = {name: baseline["ndcg@10"] for name, baseline in found["baselines"][rule].items()}
        for label, variant in found["compared"][rule].items():
            of[label] = np.mean(list(variant["by_seed"]["ndcg@10"].values()))
        assert set(names) == set(of) > {"ce", "B", "markov"}
        assert [of[name] for name in names] == sorted(of.values(), reverse=True)


def test_what_is_missing_and_how_it_was_made_stand_beneath_the_table(study, capsys):
    versions = json.loads(Path(study["b", 1].workdir, "versions.json").read_text())
    Path(study["b", 1].workdir, "versions.json").write_text(
        json.dumps(versions | {"git_revision": "abc1"})
    )
    found = compared(study)
    printed = capsys.readouterr().out
    assert "Not done yet: ce, seed 1." in printed and found["missing"] == ["ce, seed 1"]
    assert "not to be compared" not in printed  # All were validated under one rule.
    assert "made in 2 different surroundings" in printed and "revision abc1" in printed
    of_b = found["compared"][RULES[0]]["B"]
    assert set(of_b["by_seed"]["ndcg@10"]) == {"0", "1"}
    assert set(of_b["differences"]["ndcg@10"]["by_seed"]) == {"0"}  # Which both have.
    page = Path(study["ce", 0].folder, "comparison.html").read_text()
    assert "python -m again" in page and "Resolved configuration of B" in page


def test_settings_are_those_that_were_run(study):
    assert compared(study)["settings"] == {"loss.name": {"ce": "ce", "B": "apao_pointwise"}}
    edit_config(study["b", 1], learning_rate=0.5)  # Lowered half-way, say.
    rates = compared(study)["settings"]["training.learning_rate"]
    assert rates == {"ce": 0.003, "B": "0.003 / 0.5"}


def test_variants_that_were_validated_under_other_rules_are_told_apart(study, capsys):
    for seed in (0, 1):
        config = load_config(study["b", seed].workdir)
        config["decoding"]["exclude_seen"] = False
        Path(study["b", seed].workdir, "config.json").write_text(json.dumps(config))
    assert compared(study)["settings"]["decoding.exclude_seen"] == {"ce": True, "B": False}
    assert "validation curves and best steps are not to be compared" in capsys.readouterr().out
    page = Path(study["ce", 0].folder, "comparison.html").read_text()
    assert all(f"{label}, {rule}" in page for label, rule in zip(("ce", "B"), RULES, strict=True))


@pytest.mark.parametrize("what", ["items", "semantic IDs"])
def test_runs_of_other_items_or_semantic_ids_are_refused(study, what):
    path = os.path.join(study["b", 0].workdir, "semantic_ids.npz")
    sids = SemanticIds.load(path)
    if what == "items":
        sids = dataclasses.replace(sids, item_ids=np.array([f"other {i}" for i in sids.item_ids]))
    else:
        sids = dataclasses.replace(sids, codes=sids.codes[::-1])
    sids.save(path)
    with pytest.raises(EvaluationError, match=f"B, seed 0 .* has other {what} than ce, seed 0"):
        compared(study)


def test_a_study_that_cannot_be_run_is_refused():
    study = tiny_study()
    few = study.variants["b"].override({"decoding.num_beams": 5, "training.monitor": "loss"})
    with pytest.raises(TrainingError, match=r"variants\.b\.decoding\.num_beams=5.*at 10"):
        jobs_of(tiny_study(b=few), "runs", "test")
    items = few.override(
        {"decoding.num_beams": 10, "backbone": "item_decoder", "item_decoder.head": "items"}
    )
    with pytest.raises(
        TrainingError, match=r"variants\.b\..*'items' scores whole items, and has no"
    ):
        jobs_of(tiny_study(b=items), "runs", "test")
    assert len(jobs_of(tiny_study(ce=items, b=items), "runs", "test")) == 4
    with pytest.raises(TrainingError, match="seeds is empty"):
        jobs_of(dataclasses.replace(study, seeds=()), "runs", "test")


# A run's report beside another run.


def test_prefix_recall_of_another_run_stands_beside_in_the_report(study):
    run = load_run(study["b", 0].workdir)
    other = study["ce", 0].workdir
    metrics = Path(other, "metrics_test.json")
    metrics.unlink()
    with pytest.raises(EvaluationError, match="metrics_test.json does not exist; first run python"):
        evaluate(run, "test", beside=other)
    shares = {rule: [0.5, 0.4, 0.125] for rule in RULES}
    metrics.write_text(json.dumps({"users": 7, "prefix_recall": shares}))
    with pytest.raises(EvaluationError, match="has 7 users and 3 codes an item, this run 100 and"):
        evaluate(run, "test", beside=other)
    metrics.write_text(json.dumps({"users": 100, "prefix_recall": shares}))
    count = len(run.splits.test)
    decoded = Decoded(
        items=np.zeros((count, 10, 1), np.int32),
        tokens=np.zeros((count, 10, 3), np.int32),
        scores=np.zeros((count, 10)),
        evaluations=np.zeros(count, np.int32),
        log_probs=-np.ones((count, 3)),
        prefix_hits=np.ones((count, 3), bool),
    )
    evaluate(run, "test", dict.fromkeys((True, False), decoded), beside=other)
    report = Path(run.workdir, "report_test.html").read_text()
    assert all(f"{name}, {rule}" in report for name in ("apao_pointwise", "ce") for rule in RULES)
    assert "12.5%" in report and "While training" in report


def test_two_runs_with_one_loss_are_told_apart_by_folder():
    other = report.OtherRun("runs/second/", "ce", 9, {"rule": [0.2]})
    both = report.prefix_recall_beside({"rule": [0.1]}, "ce", other)
    assert both == {"ce, rule": [0.1], "ce in second, rule": [0.2]}


def test_captions_name_the_figure_and_its_rule():
    assert caption("ndcg10_seen_items_removed") == "NDCG@10 of each run, seen items removed."
    recall = "Where the right item leaves the beam, all items allowed. Dots: seeds."
    assert caption("prefix_recall_all_items_allowed") == recall
    assert caption("prefix_weights") == "Loss and weight of each prefix; dotted: equal weights."
    assert caption("validation").startswith("Validation metric while training;")


# Processes. The jobs of these tests are started as those of a study, and train nothing.


@dataclasses.dataclass(frozen=True)
class FakeJob(Job):
    """Runs until it is told to stop, if its variant is `waits`."""

    def run(self):
        done = Path(self.ranks_path)
        if self.variant == "fails":
            raise TrainingError("no luck")
        while self.variant == "waits":
            signal.signal(signal.SIGTERM, lambda *_: (done.with_suffix(".saved").touch(), exit(1)))
            print("waits", flush=True)
            time.sleep(0.05)
        done.touch()


def fake_jobs(folder, *variants):
    return [
        FakeJob(v, f"{v}, seed 0", 0, Experiment(), f"{folder}/{v}/seed_0", "test", False)
        for v in variants
    ]


def when(condition, action):
    """Does something as soon as something else holds, in a thread."""

    def watch():
        while not condition():
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_failed_run_is_told_and_the_others_are_done(tmp_path, capsys):
    jobs = fake_jobs(tmp_path, "fails", "works", "unnamed")
    assert run_all(jobs, ["fails", "works"], 2) == jobs[:1]
    assert [job.is_done for job in jobs] == [False, True, False]
    printed = capsys.readouterr().out
    assert "fails, seed 0: FAILED" in printed and "no luck" in printed
    assert run_all(jobs, ["works"], 1) == []
    assert "works, seed 0: done before" in capsys.readouterr().out


def test_sigterm_stops_the_runs_and_says_how_to_go_on(tmp_path):
    (job,) = jobs = fake_jobs(tmp_path, "waits")
    when(lambda: last_line(job.log), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted, match="stopped; waits, seed 0 .*same command resumes"):
        run_all(jobs, ["waits"], 1)
    assert Path(job.ranks_path).with_suffix(".saved").exists()


def test_runs_do_not_outlive_a_study_that_was_killed(tmp_path):
    (job,) = fake_jobs(tmp_path, "waits")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_comparing as t\n"
        f"if __name__ == '__main__': t.run_all(t.fake_jobs({str(tmp_path)!r}, 'waits'), ['waits'], 1)\n"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], env=environment) as parent:
        when(lambda: last_line(job.log), parent.kill).join(timeout=120)
    saved = Path(job.ranks_path).with_suffix(".saved")
    deadline = time.monotonic() + 30
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert saved.exists()


def test_the_last_line_of_a_log_is_that_of_its_progress_bar(tmp_path):
    path = tmp_path / "log.txt"
    assert last_line(str(path)) == ""
    path.write_text("reads data\n" + "x" * 9000 + "\n 10% 1/10\r 20% 2/10\r\n")
    assert last_line(str(path)) == "20% 2/10"
