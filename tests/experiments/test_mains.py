"""The commands of the contract, typed as a user types them, on a small synthetic log."""

import json
import math
import re
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mains import ROOT, TINY, run

from gr.data import synthetic_sequences
from gr.runs import Experiment, load_data


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = run("train", "--config=configs/synthetic.py", f"--workdir={folder}", *TINY)
    assert f"wrote {folder}" in done.stdout
    return folder


def test_training_leaves_what_the_readme_says(workdir):
    names = {path.name for path in workdir.iterdir()}
    assert {
        "config.json",
        "versions.json",
        "semantic_ids.npz",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
    } <= names
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    validation = [line["values"] for line in lines if line["split"] == "validation"]
    assert len(validation) == 2
    assert all(0 <= values["ndcg@10"] <= values["hit@10"] <= 1 for values in validation)
    recall = [validation[0][f"prefix_recall/{depth}"] for depth in (1, 2, 3)]
    assert recall == sorted(recall, reverse=True)


def test_evaluate_prints_the_table_and_writes_metrics_and_report(workdir):
    done = run("evaluate", f"--workdir={workdir}", "--split=test")
    metrics = json.loads((workdir / "metrics_test.json").read_text())
    keys = ["hit@10", "hit@20", "ndcg@10", "ndcg@20", "item_hit@10", "item_ndcg@10"]
    of_counts = {"popularity", "markov", "item_knn", "item_knn_tuned", "memory"}
    assert set(metrics["baselines"]) == of_counts | {"ease", "slist"}
    (other,) = metrics["variants"].values()
    rows = (metrics, *metrics["baselines"].values(), other, *other["baselines"].values())
    for row in rows:
        assert all(0 <= row[key] <= 1 for key in keys)
        assert row["users"] == 150
    assert metrics["duplicate_share"] == 0
    assert metrics["candidates"] == 20
    assert math.isfinite(metrics["loss"])
    for name in ("decoder_only", *metrics["baselines"]):
        assert name in done.stdout
    report = (workdir / "report_test.html").read_text()
    assert f"report: {workdir / 'report_test.html'}" in done.stdout
    assert "Prefix recall" in report and "<svg" in report


@pytest.mark.long
def test_evaluate_with_another_decoder_overwrites_nothing(workdir):
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    run("evaluate", f"--workdir={workdir}", "--split=validation", "--decoder=ved", "--budget=24")
    after = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"metrics_validation_ved.json"}
    metrics = json.loads((workdir / "metrics_validation_ved.json").read_text())
    assert (metrics["decoder"], metrics["budget"], metrics["value_head"]) == ("ved", 24, False)
    assert 0 < metrics["evaluations"] <= 24
    assert 0 <= metrics["ndcg@10"] <= metrics["hit@10"] <= 1
    for arguments in (["--decoder=sample"], ["--budget=24"]):
        wrong = run("evaluate", f"--workdir={workdir}", *arguments, check=False)
        assert wrong.returncode == 1 and "--budget" in wrong.stderr


@pytest.mark.long
def test_compare_searches_prints_the_table_and_writes_numbers_and_figure(workdir):
    done = run("compare_searches", f"--workdir={workdir}", "--budgets=24", "--users=64")
    result = json.loads((workdir / "searches_validation.json").read_text())
    assert (result["users"], result["value_head"]) == (64, False)
    rows = result["searches"]
    assert [row["decoder"] for row in rows] == ["beam", "sample", "ved", "best_first"]
    assert all(0 < row["evaluations"] <= row["budget"] for row in rows)
    assert (
        "NDCG@10" in done.stdout
        and "seen items removed; tree searches have no value head" in done.stdout
    )
    assert (workdir / "searches_validation.png").read_bytes().startswith(b"\x89PNG")
    wrong = run("compare_searches", f"--workdir={workdir}", "--budgets=2", check=False)
    assert wrong.returncode == 1 and "two beams" in wrong.stderr


def test_recommend_to_a_user_and_to_a_history(workdir):
    from gr.data import load_sequences

    config = json.loads((workdir / "config.json").read_text())
    sequences = load_sequences("synthetic", **config["data"]["options"])
    user = str(sequences.user_ids[3])
    done = run("recommend", f"--workdir={workdir}", f"--user={user}", "--top_k=5")
    titles = sequences.titles()
    seen = {str(titles[item]) for item in sequences.of(3)}
    lines = done.stdout.split("recommended:")[1].strip().splitlines()[1:]
    # A line is rank, log p, title, category; columns are parted by two spaces or more.
    offered = [re.split(r"\s{2,}", line)[2] for line in lines]
    assert len(set(offered)) == 5
    assert not seen & set(offered)
    assert set(offered) <= set(titles.tolist())

    history = ", ".join(str(titles[item]) for item in sequences.of(3)[:2])
    again = run("recommend", f"--workdir={workdir}", f"--history={history}", "--top_k=3")
    assert str(titles[sequences.of(3)[0]]) in again.stdout

    wrong = run("recommend", f"--workdir={workdir}", "--history=no such thing", check=False)
    assert wrong.returncode == 1
    assert "'no such thing' is no item id and no title" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_run_is_exported_as_one_file(workdir, tmp_path):
    output = tmp_path / "run.recommender"
    run("export_recommender", f"--workdir={workdir}", f"--output={output}", "--num_items=3")
    with zipfile.ZipFile(output) as file:
        assert json.loads(file.read("settings.json"))["top_k"] == 3
        assert file.getinfo("program").file_size > 0


def test_recommend_says_what_came_from_the_memory(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "mixed")
    path = tmp_path / "mixed" / "config.json"
    config = json.loads(path.read_text())
    config["memory"] |= {"weight": 0.9, "tune": False}
    path.write_text(json.dumps(config))
    done = run("recommend", f"--workdir={tmp_path / 'mixed'}", "--user=3", "--top_k=5")
    history, listed = done.stdout.split("recommended:")
    header, *lines = listed.strip().splitlines()
    assert re.split(r"\s{2,}", header.strip()) == [
        "log p",
        "title",
        "about",
        "memory",
        "because of",
    ]
    assert len(lines) == 5
    for line in lines:
        *_, share, because = re.split(r"\s{2,}", line.strip())
        assert 0 < int(share.removesuffix("%")) <= 100
        assert all(title in history for title in because.split("; "))


def test_recommending_to_many_users_compiles_once_for_each_padded_length(workdir):

    from gr.data import DataError
    from gr.decoding.beam import _beam_search
    from gr.runs import load_run
    from gr.runs.recommend import rank_items

    trained = load_run(str(workdir))
    longest = trained.config.data.max_history
    widths = {max(8, 1 << (n - 1).bit_length()) for n in range(1, longest + 1)}
    rng = np.random.default_rng(0)
    before = _beam_search._cache_size()
    for length in range(1, 65):
        history = rng.integers(0, trained.splits.sequences.num_items, length)
        items, scores = rank_items(trained, history, 5)
        assert not np.isin(items, history).any()
        assert (np.diff(scores[np.isfinite(scores)]) <= 0).all()
    assert _beam_search._cache_size() - before == len(widths)
    for wrong in ([], [-1], [10**6], [0.5], ["a"], [[0]]):
        with pytest.raises(DataError, match="a list of item rows"):
            rank_items(trained, wrong, 5)


def test_a_workdir_of_another_configuration_is_refused_in_one_line(workdir):
    other = [*TINY, "--config.decoder_only.d_model=32"]
    done = run(
        "train", "--config=configs/synthetic.py", f"--workdir={workdir}", *other, check=False
    )
    assert done.returncode == 1
    assert "decoder_only.d_model was 16 and is 32" in done.stderr
    assert "Traceback" not in done.stderr


def test_tokenize_items_writes_ids(tmp_path):
    done = run("tokenize_items", "--config=configs/synthetic.py", f"--workdir={tmp_path}", *TINY)
    assert (tmp_path / "semantic_ids.npz").exists()
    assert "perplexity" in done.stdout


@pytest.mark.parametrize("ending", ["csv", pytest.param("parquet", marks=pytest.mark.long)])
def test_a_table_of_clicks_is_trained_on_as_its_config_says(tmp_path, ending):
    log = synthetic_sequences(
        num_users=120, num_items=40, num_categories=4, mean_length=8.0, seed=0
    )
    order = np.random.default_rng(0).permutation(
        len(log.items)
    )  # In time's order by its column only.
    table = {
        "visitor": np.repeat(log.user_ids, log.lengths)[order],
        "sku": log.item_ids[log.items][order],
        "clicked_at": log.times[order].astype("datetime64[s]"),
    }
    path = tmp_path / f"clicks.{ending}"
    if ending == "csv":
        seconds = table["clicked_at"].astype(int)
        rows = zip(table["visitor"], table["sku"], seconds, strict=True)
        path.write_text("visitor,sku,clicked_at\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    else:
        pq.write_table(pa.table(table), path)
    done = run(
        "train",
        f"--config={ROOT / 'configs/table.py'}",
        "--workdir=runs/clicks",
        f"--config.data.path={path.name}",
        "--config.data.options.user=visitor",
        "--config.data.options.item=sku",
        "--config.data.options.time=clicked_at",
        *[flag for flag in TINY if "data.options" not in flag],
        "--config.training.num_epochs=1",
        cwd=tmp_path,
    )
    assert f"120 users, {log.num_items} items, {len(log.items)} interactions" in done.stdout
    workdir = tmp_path / "runs/clicks"
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["time_jitter"] is None
    kept = load_data(Experiment.from_saved(config | {"data_dir": str(tmp_path)}), "").sequences
    for user in (0, 50, 119):
        row = np.flatnonzero(log.user_ids == kept.user_ids[user])[0]
        assert kept.item_ids[kept.of(user)].tolist() == log.item_ids[log.of(row)].tolist()
    assert done.stdout.count("best ndcg@10") == 1 and "note" not in done.stdout


@pytest.mark.parametrize(
    ("module", "arguments", "told"),
    [
        ("train", ["--config=configs/synthetic.py"], "--workdir=... is missing"),
        (
            "train",
            ["--workdir=x", "--config=configs/synthetic.py", "--config.training.learning_rat=1"],
            "unknown field training.learning_rat; did you mean learning_rate?",
        ),
        (
            "tokenize_items",
            ["--workdir=x", "--config=configs/synthetic.py", "--config.training.num_epochs=0"],
            "training.num_epochs=0: use 1 or more",
        ),
        (
            "rl",
            ["--workdir=x", "--config=configs/syntetic.py"],
            "did you mean configs/synthetic.py",
        ),
        ("compare", ["--workdir=x", "--configs=a=configs/syntetic.py"], "no such config file"),
        ("evaluate", ["--workdr=x"], "Did you mean: workdir"),
    ],
)
def test_a_command_line_that_is_wrong_is_told_so_in_one_line(module, arguments, told):
    done = run(module, *arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert told in done.stderr


def test_a_missing_accelerator_is_one_line(tmp_path):
    arguments = ["train", "--config=configs/synthetic.py", f"--workdir={tmp_path / 'run'}"]
    done = run(*arguments, check=False, platforms="no_such_device")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: JAX finds no device to compute on" in done.stderr
    assert "unset JAX_PLATFORMS, which is 'no_such_device'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_missing_data_names_the_way_out(tmp_path):
    done = run(
        "train",
        "--config=configs/amazon_office.py",
        f"--workdir={tmp_path}",
        f"--config.data_dir={tmp_path}",
        check=False,
    )
    assert done.returncode == 1
    assert "Office.inter.json: no such file" in done.stderr
    assert "Traceback" not in done.stderr
