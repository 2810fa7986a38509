"""Other people's lists beside baselines, without a run: the table, both rules, given targets, what is refused."""

import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from mains import run as command

from gr.data import DataError, Histories, Splits, fingerprint
from gr.data.files import write_arrays, write_json
from gr.data.ranked_lists import RankedLists
from gr.evaluation import EvaluationError, fit_popularity, rankings_of_baseline
from gr.runs import Experiment, evaluate_candidates, load_data
from gr.runs.baselines import arrays_of_rankings
from gr.runs.candidates import with_ground_truth
from gr.runs.report import NUM_EXAMPLES
from gr.runs.workdir import DATA_FILE
from gr.training import TrainingError

REMOVED, ALLOWED = "seen items removed", "all items allowed"
BASELINES = ["popularity", "markov", "item_knn", "item_knn_tuned", "memory", "ease", "slist"]
DATA = {"num_users": 60, "num_items": 30, "mean_length": 6.0, "seed": 0}


@pytest.fixture(scope="module")
def experiment():
    return Experiment(name="Small").override({"data.format": "synthetic", "data.options": DATA})


@pytest.fixture(scope="module")
def splits(experiment):
    return load_data(experiment, "unused")


def popularity_lists(splits: Splits, targets, width, exclude):
    """The lists of our own baseline, as another program would write them."""
    sequences = splits.sequences
    histories = Histories.of(sequences, targets)
    items = fit_popularity(splits).rank(histories, width, exclude=exclude)
    rows, places = np.nonzero(items >= 0)
    table = {
        "user": sequences.user_ids[targets.users[rows]],
        "item": sequences.item_ids[items[rows, places]],
        "rank": places + 1,
    }
    return RankedLists.from_table(pa.table(table), "popularity")


def shuffled(lists, seed=0):
    table = lists.table()
    scores = np.random.default_rng(seed).normal(size=len(lists.items))
    columns = {"user": table["user_id"], "item": table["item_id"], "score": pa.array(scores)}
    return RankedLists.from_table(pa.table(columns), "shuffled")


def test_lists_of_a_baseline_have_its_row(experiment, splits, tmp_path, capsys):
    """The whole way through a file, under both rules; the values are those of the baseline itself."""
    lists = popularity_lists(splits, splits.test, 30, exclude=False)
    lists.save(tmp_path / "theirs.csv")
    files = {"theirs": tmp_path / "theirs.csv", "random": shuffled(lists)}
    workdir = tmp_path / "run"
    metrics = evaluate_candidates(experiment, files, workdir, command="python -m it")
    assert json.loads((workdir / "metrics_test.json").read_text()) == metrics
    by_rule = {metrics["rule"]: metrics, **metrics["variants"]}
    assert list(by_rule) == [REMOVED, ALLOWED] and metrics["model"] == "theirs"
    for of_rule in by_rule.values():
        assert list(of_rule["baselines"]) == [*BASELINES, "random"]
        assert list(of_rule["differences"]) == list(of_rule["p_values"]) == [*BASELINES, "random"]
        popularity = of_rule["baselines"]["popularity"]
        for name, value in popularity.items():
            if name not in ("candidates", "intervals"):
                assert of_rule[name] == value, name
        assert of_rule["differences"]["popularity"]["ndcg@10"] == [0, 0, 0]
        assert 0 < of_rule["ndcg@10"] == of_rule["item_ndcg@10"]
    assert metrics["candidates"]["theirs"]["with_seen"] > 0
    printed, report = capsys.readouterr().out, (workdir / "report_test.html").read_text()
    for text in (printed, report):
        assert "a hit is the target itself" in text.lower() and "Semantic ID" not in text
        assert "theirs: " in text and "lists name items that the user had seen" in text
    assert "Holm" in printed and "item NDCG" not in printed and "python -m it" in report
    assert report.count("<article ") == min(len(splits.test), NUM_EXAMPLES)


def test_what_was_made_without_seen_items_is_told(experiment, splits, tmp_path, capsys):
    lists = popularity_lists(splits, splits.test, 20, exclude=True)
    metrics = evaluate_candidates(
        experiment, {"theirs": lists}, tmp_path, exclude_seen=False, linear_up_to=0
    )
    assert metrics["rule"] == ALLOWED and metrics["candidates"]["theirs"]["with_seen"] == 0
    assert "No list names an item that the user had seen" in capsys.readouterr().out
    removed = metrics["variants"][REMOVED]
    assert removed["ndcg@10"] == removed["baselines"]["popularity"]["ndcg@10"]
    assert metrics["baselines_left_out"].keys() == {"ease", "slist"}


def test_ours_stand_beside_theirs_by_their_items(experiment, splits, tmp_path):
    """A run's model is hit where the item itself is listed, not another with its semantic ID."""
    lists = popularity_lists(splits, splits.test, 20, exclude=True)
    wanted = splits.sequences.items[splits.test.positions]
    ours = {
        name: rankings_of_baseline(
            fit_popularity(splits),
            Histories.of(splits.sequences, splits.test),
            wanted,
            np.zeros(30, int),  # All items share a semantic ID.
            exclude=rule,
        )
        for name, rule in ((REMOVED, True), (ALLOWED, False))
    }
    run = tmp_path / "ours"
    write_json(run / DATA_FILE, fingerprint(splits))
    write_arrays(run / "rankings_test.npz", arrays_of_rankings(ours))
    options = {"rows": {"ours": str(run)}, "linear_up_to": 0}
    metrics = evaluate_candidates(experiment, {"theirs": lists}, tmp_path / "out", **options)
    row = metrics["baselines"]["ours"]
    assert row["hit@1"] == row["item_hit@1"] == metrics["hit@1"] < 1
    other = dataclasses.replace(splits.sequences, items=splits.sequences.items[::-1])
    write_json(run / DATA_FILE, fingerprint(dataclasses.replace(splits, sequences=other)))
    with pytest.raises(TrainingError, match="these are not the data of .*ours.*by another config"):
        evaluate_candidates(experiment, {"theirs": lists}, tmp_path / "out", **options)


def write_pairs(path, splits, targets):
    sequences = splits.sequences
    items = sequences.item_ids[sequences.items[targets.positions]]
    users = sequences.user_ids[targets.users]
    rows = "".join(f"{user},{item}\n" for user, item in zip(users, items, strict=True))
    path.write_text("user,item\n" + rows)
    return path


def test_the_splits_own_targets_as_ground_truth_change_nothing(experiment, splits, tmp_path):
    lists = {"theirs": popularity_lists(splits, splits.test, 20, exclude=True)}
    truth = write_pairs(tmp_path / "truth.csv", splits, splits.test)
    found = [
        evaluate_candidates(
            experiment, lists, tmp_path / name, ground_truth=ground_truth, linear_up_to=0
        )
        for name, ground_truth in (("a", None), ("b", truth))
    ]
    assert found[0] == found[1]


def test_a_ground_truth_may_name_what_the_data_lack(experiment, splits, tmp_path, capsys):
    truth = tmp_path / "truth.csv"
    users, items = splits.sequences.user_ids, splits.sequences.item_ids
    pairs = [(users[0], items[0]), (users[1], "new"), ("x", items[2]), (users[1], items[1])]
    truth.write_text("".join(f"{u},{i}\n" for u, i in [("user", "item"), *pairs]))
    table = pa.table({"user": [users[1], "x"], "item": ["new", items[2]], "score": [1.0, 2.0]})
    lists = {"theirs": RankedLists.from_table(table, "")}
    metrics = evaluate_candidates(
        experiment, lists, tmp_path / "out", ground_truth=truth, linear_up_to=0
    )
    assert metrics["users"] == 4 and metrics["hit@1"] == 0.5
    assert metrics["breakdown"]["cold"]["targets"] == 1
    printed = capsys.readouterr().out
    assert "1 users are not in the data (x): their histories are empty." in printed
    assert "1 items are not in the data (new): training has none of them." in printed
    assert "Warning: theirs: 1 of 3 users with a target have no list: misses." in printed
    for column, told in (("user", "none of its 1 users"), ("item", "none of its 1 items")):
        wrong = pa.table({"user": [users[0]], "item": [items[0]]} | {column: ["?"]})
        with pytest.raises(DataError, match=f"^FILE: {told} are in the data"):
            with_ground_truth(splits.sequences, wrong, "FILE")


def test_what_does_not_go_together_is_refused(experiment, splits, tmp_path):
    lists = popularity_lists(splits, splits.test, 20, exclude=True)
    trained = tmp_path / "trained"
    write_json(trained / "config.json", {})
    cases = [
        ({"split": "tset"}, {"theirs": lists}, "split='tset': use one of"),
        ({}, {}, "candidates={}: name a file"),
        ({"rows": {"theirs": "x"}}, {"theirs": lists}, "'theirs' names two rows"),
        (
            {"ground_truth": "x", "rows": {"a": "b"}},
            {"theirs": lists},
            "ground_truth=x replaces the test targets: leave out rows= and split=",
        ),
        ({"linear_up_to": 0}, {"popularity": lists}, "'popularity' is the name of a baseline"),
        ({"linear_up_to": 0}, {"a": lists, "memory": lists}, "'memory' is the name of a baseline"),
    ]
    for options, candidates, told in cases:
        with pytest.raises(EvaluationError, match=f"^{re.escape(told)}"):
            evaluate_candidates(experiment, candidates, tmp_path / "out", **options)
    with pytest.raises(EvaluationError, match="is that of a trained run.*by rows=ours="):
        evaluate_candidates(experiment, {"theirs": lists}, trained)


def test_the_command(splits, tmp_path):
    """As a user types it, with two files of kinds of their own."""
    names = {"a.trec": 20, "b.parquet": 10}
    for name, width in names.items():
        popularity_lists(splits, splits.test, width, exclude=True).save(tmp_path / name)
    config = ["--config=configs/synthetic.py", f"--workdir={tmp_path / 'out'}", "--linear_up_to=0"]
    config += [f"--config.data.options.{name}={value}" for name, value in DATA.items()]
    config += ["--config.data.options.num_categories=20"]
    done = command("evaluate", *config, *(f"--candidates={tmp_path / name}" for name in names))
    assert "b: No list has more than 10 items" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics_test.json").read_text())
    assert metrics["model"] == "a" and metrics["baselines"]["b"]["ndcg@10"] == metrics["ndcg@10"]
    assert metrics["hit@20"] > metrics["baselines"]["b"]["hit@20"] == metrics["hit@10"]
    assert (tmp_path / "out" / "report_test.html").exists()
    wrong = command("evaluate", f"--workdir={tmp_path}", "--candidates=x.csv", check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith("error: --candidates needs --config=FILE")
