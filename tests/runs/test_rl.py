"""Reinforcement learning as a user types it, on a small synthetic log: train, go on, evaluate, recommend."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from mains import ENVIRONMENT, ROOT, TINY, run
from toy_run import compilations

from gr.data import load_sequences
from gr.rl import ActorCritic
from gr.runs import build_rl
from gr.runs.run import load_run
from gr.runs.value_evaluation import ValueEvaluation

SMALL = [
    "--config=configs/amazon_office_rl.py",
    "--config.search.num_candidates=4",
    "--config.search.budget=12",
    "--config.search.initial_beams=3",
    "--config.value.num_heads=2",
    "--config.value.d_ff=16",
    "--config.value.pretrain_steps=4",
    "--config.rl.batch_size=16",
    "--config.rl.num_steps=8",
    "--config.rl.log_every=2",
    "--config.rl.eval_every=4",
    "--config.rl.checkpoint_every=2",
    "--config.rl.eval_users=32",
]


@pytest.fixture(scope="module")
def supervised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("supervised")
    run("train", "--config=configs/synthetic.py", f"--workdir={folder}", *TINY)
    return folder


@pytest.fixture(scope="module")
def trained(supervised, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl")
    done = run("rl", *SMALL, f"--workdir={folder}", f"--config.init_from={supervised}")
    return folder, done.stdout


def metrics_of(folder):
    """The lines of a run, without what time it was and how fast it went."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["wall_time"]
        line["values"].pop("examples_per_second", None)
    return lines


def test_it_trains_value_head_and_policy_and_reports(trained):
    folder, said = trained
    assert "value head: all steps done" in said and f"wrote {folder}" in said
    config = json.loads((folder / "config.json").read_text())
    # The supervised run's fields are there, and so are this experiment's.
    assert config["decoder_only"]["d_model"] == 16 and config["policy"]["name"] == "sibling_grpo"
    lines = metrics_of(folder)
    train = [line["values"] for line in lines if line["split"] == "train"]
    assert len(train) == 4 and len([x for x in lines if x["split"] == "validation"]) == 2
    for name in ("reward/mean", "policy/kl", "policy/entropy", "advantage/sibling_std"):
        assert all(np.isfinite(values[name]) for values in train)
    assert all(0 < values["search/tokens"] <= 12 for values in train)
    of_value = metrics_of(folder / "value_head")
    assert not any("policy/kl" in line["values"] for line in of_value)
    assert any("value/spearman/1" in line["values"] for line in of_value)
    page = (folder / "rl_report.html").read_text()
    for words in ("Search tree of user", "supervised start", "Monte-Carlo returns"):
        assert words in page


@pytest.mark.long
def test_what_it_leaves_is_evaluated_and_recommends_as_any_run(trained):
    folder, _ = trained
    run("evaluate", f"--workdir={folder}", "--split=validation")
    assert 0 <= json.loads((folder / "metrics_validation.json").read_text())["ndcg@10"] <= 1
    done = run("compare_searches", f"--workdir={folder}", "--budgets=12", "--users=32")
    assert "a trained value head" in done.stdout
    config = json.loads((folder / "config.json").read_text())
    user = load_sequences("synthetic", **config["data"]["options"]).user_ids[3]
    done = run("recommend", f"--workdir={folder}", f"--user={user}", "--top_k=5")
    assert len(done.stdout.split("recommended:")[1].strip().splitlines()) == 1 + 5


@pytest.mark.long
def test_the_value_head_is_evaluated_again_without_compiling(trained):
    run_of = load_run(str(trained[0]))
    catalogue = build_rl.with_vectors(run_of.catalogue, run_of.splits)
    evaluation = ValueEvaluation.of(run_of.config, catalogue, run_of.splits, 32)
    model = ActorCritic(run_of.model, run_of.value_head)
    first = evaluation.metrics(model)
    with compilations() as compiled:
        assert evaluation.metrics(model) == first
    assert not compiled


@pytest.mark.long
def test_killed_and_resumed_equals_never_killed(supervised, trained, tmp_path):
    command = [
        *(sys.executable, "-m", "experiments.rl", *SMALL),
        *(f"--workdir={tmp_path}", f"--config.init_from={supervised}"),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 500
    while not list(tmp_path.glob("checkpoints/[2-6]")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run("rl", *SMALL, f"--workdir={tmp_path}", f"--config.init_from={supervised}")
    assert metrics_of(tmp_path) == metrics_of(trained[0])


@pytest.mark.long
def test_what_cannot_work_is_said_in_one_line(supervised, trained, tmp_path):
    folder, _ = trained
    wrongs = {
        "init_from is empty": [],
        "does not exist; train first": [f"--config.init_from={tmp_path}/none"],
        "a run of reinforcement learning itself": [f"--config.init_from={folder}"],
    }
    for words, flags in wrongs.items():
        done = run("rl", *SMALL, f"--workdir={tmp_path}/run", *flags, check=False)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    start = f"--config.init_from={supervised}"
    for words, flag in {
        "'best_match' is unknown": "--config.reward.names=('best_match','rank_aware')",
        "as many of both": "--config.reward.weights=(1.0,)",
        "search.name='walk'": "--config.search.name=walk",
        "policy.name='ppo' is unknown": "--config.policy.name=ppo",
    }.items():
        done = run("rl", *SMALL, start, f"--workdir={tmp_path}/{words[:5]}", flag, check=False)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_supervised_training_may_start_from_a_run(supervised, tmp_path):
    flags = [f"--config.training.init_from={supervised}", "--config.training.num_epochs=1"]
    run("train", "--config=configs/synthetic.py", f"--workdir={tmp_path}", *TINY, *flags)
    first, again = (
        next(line["values"]["loss"] for line in metrics_of(folder) if line["split"] == "train")
        for folder in (supervised, tmp_path)
    )
    assert again < first - 0.1
    assert (tmp_path / "semantic_ids.npz").read_bytes() == (
        supervised / "semantic_ids.npz"
    ).read_bytes()
