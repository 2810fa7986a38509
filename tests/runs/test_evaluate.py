"""Rules of evaluation on a log whose targets repeat what the users took before, without any training."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gr.data import DataError, Sequences, Targets, leave_one_out
from gr.evaluation import (
    Decoded,
    EvaluationError,
    evaluate_rankings,
    hit,
    holm,
    ndcg,
    rankings_of_baseline,
    training_counts,
)
from gr.evaluation.baselines import fit_popularity
from gr.evaluation.breakdown import PATHS
from gr.evaluation.lists import match_lists, rankings_of_matched
from gr.runs import Experiment, build, evaluate, load_rankings
from gr.runs import baselines as baselines_module
from gr.runs.baselines import kept_baselines, load_baselines, rank_baselines, whole_histories
from gr.runs.evaluate import watched_targets
from gr.runs.report import best_on_validation
from gr.runs.run import Run
from gr.runs.train import validation
from gr.semantic_ids import SemanticIds

USERS, ITEMS, BEAMS = 30, 27, 10
REMOVED, ALLOWED = "seen items removed", "all items allowed"


def make_splits(repeat_validation=10, repeat_test=USERS):
    """The first so many users' targets repeat the first item of the history; the others' are new to the user."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        history = rng.permutation(ITEMS)[:6]
        new = np.setdiff1d(np.arange(ITEMS), history)[:2]
        validation = history[0] if user < repeat_validation else new[0]
        test = history[0] if user < repeat_test else new[1]
        rows.append([*history, validation, test])
    return leave_one_out(
        Sequences(
            items=np.concatenate(rows).astype(np.int32),
            offsets=np.arange(USERS + 1) * 8,
            user_ids=np.arange(USERS).astype(str),
            item_ids=np.arange(ITEMS).astype(str),
        )
    )


def make_config(exclude_seen=True):
    return Experiment(name="repeats", backbone="decoder_only").override(
        {
            **{"decoder_only.d_model": 8, "decoder_only.num_heads": 2},
            **{"decoder_only.d_ff": 8, "decoder_only.num_layers": 1},
            **{"decoding.num_beams": BEAMS, "decoding.exclude_seen": exclude_seen},
            "training.eval_users": 15,
        }
    )


@pytest.fixture
def semantic_ids():
    codes = np.stack(np.unravel_index(np.arange(ITEMS), (3, 3, 3)), axis=1)
    return SemanticIds(codes, (3, 3, 3), np.arange(ITEMS).astype(str))


@pytest.fixture
def run(tmp_path, semantic_ids):
    (tmp_path / "versions.json").write_text("{}")
    lines = [{"step": 1, "split": "validation", "values": {"loss": 1.0, "ndcg@10": 0.1}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config, splits = make_config(), make_splits()
    return Run(
        workdir=str(tmp_path),
        config=config,
        splits=splits,
        semantic_ids=semantic_ids,
        catalogue=build.make_catalogue(config, semantic_ids),
        model=build.make_model(config, semantic_ids),
        step=1,
    )


def decoded_of(splits):
    """A model that lists what was seen, or with seen items removed nothing of it."""
    past = np.asarray(whole_histories(splits, splits.test))
    lists = {False: past[:, :7], True: np.full((len(past), 0), -1)}
    return {
        rule: decoded(np.pad(items, ((0, 0), (0, BEAMS - items.shape[1])), constant_values=-1))
        for rule, items in lists.items()
    }


def decoded(items):
    """Of lists `[n, M]`; nothing else of it is looked at closely."""
    count, beams = items.shape
    return Decoded(
        items=items[:, :, None],
        tokens=np.zeros((count, beams, 3), np.int32),
        scores=np.zeros((count, beams)),
        evaluations=np.zeros(count, np.int32),
        log_probs=-np.ones((count, 3)),
        prefix_hits=np.ones((count, 3), bool),
    )


@pytest.mark.parametrize("exclude", [None, True, False])
def test_both_rules_have_all_rows_and_the_main_one_may_be_chosen(run, exclude, capsys):
    metrics = evaluate(run, "test", decoded_of(run.splits), exclude_seen=exclude)
    main, other = (ALLOWED, REMOVED) if exclude is False else (REMOVED, ALLOWED)
    assert (metrics["rule"], list(metrics["variants"])) == (main, [other])
    assert json.loads(Path(run.workdir, "metrics_test.json").read_text()) == metrics
    by_rule = {main: metrics, **metrics["variants"]}
    names = ["popularity", "markov", "item_knn", "item_knn_tuned", "memory", "ease", "slist"]
    for rule, of_rule in by_rule.items():
        assert list(of_rule["baselines"]) == list(of_rule["differences"]) == names
        assert set(of_rule["baseline_settings"]) == {"item_knn_tuned", "memory", "ease", "slist"}
        p = np.array([of_rule["p_values"][name]["ndcg@10"] for name in names])
        np.testing.assert_array_equal(p[:, 1], holm(p[:, 0]))
        for row in (of_rule, *of_rule["baselines"].values()):
            assert (row["targets_seen"], row["targets_seen_share"]) == (USERS, 1.0)
            assert row["targets_impossible"] == USERS * (rule == REMOVED)
            assert rule == ALLOWED or row["hit@10"] == 0
            parts = [row["breakdown"][name] for name in PATHS]
            assert sum(part["targets"] for part in parts) == USERS
            hits = sum(part["targets"] * part.get("hit@10", 0) for part in parts)
            assert hits / USERS == pytest.approx(row["hit@10"])
    assert by_rule[ALLOWED]["hit@10"] == 1
    # The line across the learning curve has the rule of the training, whatever the table's.
    assert metrics["validation_baselines"]["rule"] == REMOVED
    printed = capsys.readouterr().out
    report = Path(run.workdir, "report_test.html").read_text()
    for text in (printed, report):
        assert "30 of 30 targets (100.0%) are in the user" in text
        assert ("--exclude_seen=false allows them" in text) == (main == REMOVED)
    # Twice a row, once a difference, once a row of the breakdown.
    assert printed.count("item_knn_tuned") == 4
    for text in (printed, report):
        assert "Holm" in text and metrics["breakdown_classes"]["no_path"] in text


def test_the_line_across_the_learning_curve_is_that_of_the_validation_users(run, semantic_ids):
    splits = run.splits
    watched = watched_targets(run.config, splits)
    assert len(watched) == 15
    made = rank_baselines(
        splits, semantic_ids, splits.test, exclude=False, depth=10, watched=watched
    )
    ranks = rankings_of_baseline(
        fit_popularity(splits),
        whole_histories(splits, watched),
        splits.sequences.items[watched.positions],
        np.arange(ITEMS),
        exclude=False,
    ).sid_ranks
    assert 0 < made.validation["popularity"] == pytest.approx(ndcg(ranks, 10).mean())
    assert set(made.validation) == set(made.rankings)
    baselines = {"rule": REMOVED, "ndcg@10": {"a": 0.1, "b": 0.3, "c": 0.2}}
    assert best_on_validation(baselines) == {f"b (validation, {REMOVED})": 0.3}


def test_an_evaluation_tunes_once_and_keeps_its_baselines(run, monkeypatch):
    metrics = evaluate(run, "test", decoded_of(run.splits))

    def again(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(baselines_module, "tune_baselines", again)
    with monkeypatch.context() as patch:
        patch.setattr(baselines_module, "rank_baselines", again)
        assert evaluate(run, "test", decoded_of(run.splits)) == metrics
    # The settings serve the other split, too; of other data or another grid they are not the same.
    with pytest.raises(AssertionError, match="made again"):
        evaluate(dataclasses.replace(run, splits=make_splits(3)), "test", decoded_of(run.splits))
    monkeypatch.setitem(baselines_module.GRIDS, "ease", {"l2": (3.0,)})
    with pytest.raises(AssertionError, match="made again"):
        evaluate(run, "test", decoded_of(run.splits))


def test_linear_baselines_are_left_out_above_a_number_of_items(run, capsys):
    metrics = evaluate(run, "test", decoded_of(run.splits), linear_up_to=ITEMS - 1)
    assert not {"ease", "slist"} & {*metrics["baselines"], *metrics["baseline_settings"]}
    why = f"{ITEMS} items; it is fitted for up to {ITEMS - 1}"
    assert metrics["baselines_left_out"] == {"ease": why, "slist": why}
    report = Path(run.workdir, "report_test.html").read_text()
    for text in (capsys.readouterr().out, report):
        assert f"slist was left out: {why}." in text


def test_another_runs_model_becomes_a_baseline(run, tmp_path_factory):
    other = dataclasses.replace(run, workdir=str(tmp_path_factory.mktemp("other")))
    for name in ("versions.json", "metrics.jsonl"):
        shutil.copy(Path(run.workdir, name), other.workdir)
    rows = {"sasrec": other.workdir}
    with pytest.raises(
        EvaluationError, match=r"rankings_test.npz cannot be read .*experiments.evaluate"
    ):
        evaluate(run, "test", decoded_of(run.splits), rows=rows)
    of_other = evaluate(other, "test", decoded_of(run.splits))
    metrics = evaluate(run, "test", decoded_of(run.splits), rows=rows)
    assert list(metrics["baselines"])[-1] == "sasrec"
    assert metrics["baselines"]["sasrec"]["ndcg@10"] == of_other["ndcg@10"]
    assert metrics["differences"]["sasrec"]["ndcg@10"] == [0, 0, 0]
    assert metrics["p_values"]["sasrec"]["ndcg@10"] == [1, 1]


def test_the_lists_are_written_and_others_find_our_numbers_in_them(run, tmp_path):
    """Under the main rule, with ranks; the metrics of the file are those of the items."""
    path, found = tmp_path / "lists.csv", decoded_of(run.splits)
    items = np.random.default_rng(0).permuted(np.tile(np.arange(ITEMS), (USERS, 1)), axis=1)
    scores = -np.arange(BEAMS, dtype=np.float32) * np.ones((USERS, 1), np.float32)
    found[False] = dataclasses.replace(decoded(items[:, :BEAMS]), scores=scores)
    ours = evaluate(run, "test", found, exclude_seen=False, export=path)
    lists = load_rankings(path)
    assert lists.of("3") == items[3, :BEAMS].astype(str).tolist()
    assert lists.lengths.tolist() == [BEAMS] * USERS and not lists.memory_shares.any()
    sequences, targets = run.splits.sequences, run.splits.test
    matched = match_lists(lists, sequences)
    ranked = rankings_of_matched(matched, sequences, targets, exclude=False, depth=BEAMS)
    metrics = evaluate_rankings(ranked, training_counts(run.splits), ks=(1, 5, 10))
    for name, value in metrics.items():
        if "hit" in name or "ndcg" in name or "mrr" in name:
            assert ours[name] == value, name
    with pytest.raises(DataError, match=r"lists.txt: no lists are written into such a file"):
        evaluate(run, "test", found, export="lists.txt")
    twice = Targets(np.repeat(targets.users, 2), np.repeat(targets.positions, 2))
    run = dataclasses.replace(run, splits=dataclasses.replace(run.splits, test=twice))
    with pytest.raises(EvaluationError, match="export=lists.csv: some users have several targ"):
        evaluate(run, "test", found, export="lists.csv")


def test_kept_baselines_are_read_back_and_old_files_made_again(semantic_ids, tmp_path):
    splits = make_splits(repeat_test=12)
    options = {"exclude": True, "depth": 10, "watched": splits.validation}
    path = str(tmp_path / "baselines.npz")
    made = kept_baselines(path, splits, semantic_ids, splits.test, **options)
    found, _ = load_baselines(path)
    assert (found.settings, found.validation) == (made.settings, made.validation)
    for name, rankings in made.rankings.items():
        assert rankings.seen.sum() == 12 and not hit(rankings.sid_ranks, 10)[rankings.seen].any()
        for field in dataclasses.fields(rankings):
            np.testing.assert_array_equal(
                getattr(found.rankings[name], field.name), getattr(rankings, field.name)
            )
    with np.load(path) as file:
        arrays = dict(file)
    del arrays["rankings/markov/seen"]
    np.savez(path, **arrays)
    assert load_baselines(path) is None


@pytest.mark.parametrize(("repeats", "told"), [(0, ""), (6, "3 of 15 validation targets (20.0%)")])
def test_training_says_which_validation_targets_cannot_be_hit(repeats, told, capsys):
    validation(make_config(), None, make_splits(repeats), 15)
    printed = capsys.readouterr().out
    assert told in printed and bool(printed) == bool(told)
    assert not told or "decoding.exclude_seen=False allows them" in printed
    validation(make_config(exclude_seen=False), None, make_splits(repeats), 15)
    assert capsys.readouterr().out == ""


def test_training_refuses_to_watch_what_is_always_0():
    with pytest.raises(EvaluationError, match="30 of 30 .*decoding.exclude_seen=False"):
        validation(make_config(), None, make_splits(USERS), 0)
    validation(make_config(exclude_seen=False), None, make_splits(USERS), 0)
