"""What a workdir is held to: its data, its config, one process; and what a start that fails leaves behind."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.table import get_config
from experiments.tokenize_items import tokenize
from gr.data import DataError
from gr.models import ModelError
from gr.runs import ConfigError, config_of
from gr.runs.data import data_path, load_data
from gr.runs.run import load_run
from gr.runs.train import train
from gr.runs.workdir import check_same_data, occupied
from gr.semantic_ids import SemanticIds
from gr.training import TrainingError, locked

pytestmark = pytest.mark.usefixtures("compile_in_haste")

_RANDOM = random.Random(0)
ROWS = [f"{user},i{item}" for user in range(40) for item in _RANDOM.sample(range(20), 8)]


def write(path, rows=ROWS):
    path.write_text("\n".join(["user,item", *rows, ""]))
    return str(path)


def tiny(path, **fields):
    """A config of a few steps on a table; `fields` by dotted name, with `__` for dots."""
    c = get_config()
    c.data.path = str(path)
    c.data.options.user, c.data.options.item = "user", "item"
    c.data.max_history, c.data.num_buckets = 5, 1
    c.semantic_ids.dim, c.semantic_ids.codebook_size = 8, 4
    c.item_decoder.d_model, c.item_decoder.d_ff, c.item_decoder.num_layers = 16, 16, 1
    c.training.items_per_batch, c.training.num_epochs = 64, 1
    c.decoding.num_beams = 10
    c.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    return config_of(c)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and the table that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    path = write(folder / "x.csv")
    train(tiny(path), str(folder / "run"))
    return folder / "run", Path(path)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, and of the table, where its config finds it."""
    workdir, path = tmp_path / "run", tmp_path / "x.csv"
    shutil.copytree(trained[0], workdir)
    shutil.copy(trained[1], path)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["path"] = str(path)
    (workdir / "config.json").write_text(json.dumps(config))
    return str(workdir), path


# Data.


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (ROWS[::-1], "the counts agree, but not the item ids"),
        (ROWS[:-1], "interactions were 320 and are 319"),
        ([*ROWS[:-2], ROWS[-1], ROWS[-2]], "the counts agree, but not what users took"),
    ],
)
def test_other_data_are_refused_unless_asked_for(run, capsys, rows, told):
    workdir, path = run
    write(path, rows)
    with pytest.raises(TrainingError, match=f"not the data of .*{told}.*another workdir"):
        train(tiny(path), workdir)
    with pytest.raises(TrainingError, match=f"not the data of .*{told}.*other_data=True"):
        load_run(workdir)
    assert load_run(workdir, other_data=True).splits.sequences.num_items == 20
    assert f"note: these are not the data of {workdir}: {told}" in capsys.readouterr().out
    before = json.loads(Path(workdir, "data.json").read_text())
    assert (before["interactions"], before["test targets"]) == (
        320,
        40,
    )  # A refusal changes nothing.


def test_the_same_data_may_lie_elsewhere(run, tmp_path, monkeypatch):
    workdir, path = run
    moved = tmp_path / "elsewhere" / "clicks.csv"
    moved.parent.mkdir()
    path.rename(moved)
    assert train(tiny(moved), workdir).result.best_step > 0  # Goes on, and is done.
    assert load_run(workdir).config.data.path == str(moved)
    monkeypatch.setenv("GR_DATA", str(tmp_path))
    assert load_run(workdir, data_dir=str(moved.parent)).step > 0


def test_a_run_of_before_is_noted_and_goes_on(run, capsys):
    workdir, path = run
    Path(workdir, "data.json").unlink()
    with pytest.raises(TrainingError, match=r"data\.path was"):  # Nothing else tells the data.
        train(tiny(path.with_name("y.csv")), workdir)
    load_run(workdir)
    train(tiny(path), workdir)
    assert capsys.readouterr().out.count("data.json is missing") == 2
    assert json.loads(Path(workdir, "data.json").read_text())["users"] == 40


def test_a_broken_record_of_the_data_is_named(run):
    Path(run[0], "data.json").write_text("{")
    with pytest.raises(TrainingError, match=r"data\.json cannot be read"):
        load_run(run[0])


def test_going_on_from_a_run_on_other_data_has_to_be_asked_for(run, tmp_path):
    workdir, path = run
    write(path, ROWS[:-1])
    new = str(tmp_path / "new")
    with pytest.raises(TrainingError, match="training.init_from_other_data=True"):
        train(tiny(path, training__init_from=workdir), new)
    config = tiny(path, training__init_from=workdir, training__init_from_other_data=True)
    assert train(config, new).result.best_step > 0
    kept = [SemanticIds.load(Path(folder, "semantic_ids.npz")) for folder in (workdir, new)]
    by_item = [dict(zip(ids.item_ids, ids.codes.tolist(), strict=True)) for ids in kept]
    assert by_item[0] == by_item[1]
    with pytest.raises(TrainingError, match="was trained on other data than"):
        check_same_data(workdir, new)
    shutil.rmtree(workdir)
    assert train(config, new).result.best_step > 0  # Its start is in its own checkpoints now.


# Configs.


def test_max_steps_ends_training_and_decays_the_learning_rate_by_then(tmp_path):
    rates = {}
    for limit in (0, 3):
        path, workdir = write(tmp_path / "x.csv"), str(tmp_path / f"run_{limit}")
        longer = {"training__num_epochs": 4, "training__log_every": 1, "training__patience": 0}
        train(tiny(path, training__max_steps=limit, **longer), workdir)
        lines = [json.loads(line) for line in Path(workdir, "metrics.jsonl").open()]
        rates[limit] = {
            line["step"]: line["values"]["learning_rate"]
            for line in lines
            if line["split"] == "train"
        }
    assert max(rates[3]) == 3 < max(rates[0])
    assert rates[3][3] < rates[0][3]


def test_a_longer_run_is_told_how(run):
    workdir, path = run
    for field, was, now in (("num_epochs", 1, 2), ("max_steps", 0, 2)):
        with pytest.raises(TrainingError) as caught:
            train(tiny(path, **{f"training__{field}": now}), workdir)
        for told in (f"{field} was {was} and is {now}", f"training.init_from={workdir}"):
            assert told in str(caught.value)


def test_a_start_that_fails_binds_nobody_and_loses_nothing(tmp_path, capsys):
    workdir, path = tmp_path / "run", write(tmp_path / "x.csv")
    failing = {
        "data__path": (str(tmp_path / "missing.csv"), DataError),
        "data__options__user": ("usr", DataError),
        "mesh__data": (64, TrainingError),
        "item_decoder__num_heads": (3, ModelError),
        "training__monitor": ("ndcg@20", ConfigError),
    }
    for field, (value, error) in failing.items():
        with pytest.raises(error):
            train(tiny(path, **{field: value}), str(workdir))
        assert not (workdir / "config.json").exists()
    made = (workdir / "semantic_ids.npz").stat().st_mtime_ns
    assert "those of" not in capsys.readouterr().out
    with pytest.raises(ModelError):  # Other IDs are made anew,
        train(tiny(path, semantic_ids__num_levels=1, item_decoder__num_heads=3), str(workdir))
    assert (workdir / "semantic_ids.npz").stat().st_mtime_ns > made
    made = (workdir / "semantic_ids.npz").stat().st_mtime_ns
    trained = train(tiny(path, semantic_ids__num_levels=1, training__num_epochs=2), str(workdir))
    assert trained.result.best_step > 0
    assert "semantic IDs: those of" in capsys.readouterr().out  # and the same ones are kept.
    assert (workdir / "semantic_ids.npz").stat().st_mtime_ns == made


def test_a_run_killed_before_its_first_checkpoint_is_begun_anew(run):
    workdir, path = run
    shutil.rmtree(Path(workdir, "checkpoints"))
    assert train(tiny(path, seed=1), workdir).result.best_step > 0
    assert load_run(workdir).config.seed == 1


def test_semantic_ids_are_made_once_and_never_beside_a_trained_model(run, tmp_path, capsys):
    workdir, path = run
    with pytest.raises(TrainingError, match="was trained on its semantic IDs"):
        tokenize(tiny(path), workdir)
    ids = str(tmp_path / "ids")
    tokenize(tiny(path), ids)
    tokenize(tiny(path), ids)
    assert capsys.readouterr().out.count("those of") == 1
    assert train(tiny(path), ids).result.best_step > 0
    Path(ids, "semantic_ids_report.json").unlink()
    shutil.rmtree(Path(ids, "checkpoints"))
    with pytest.raises(TrainingError, match="semantic_ids.path=FILE, and another workdir"):
        train(tiny(path), ids)  # They may be anybody's work.


# Folders.


def test_a_workdir_that_cannot_be_one_is_refused(tmp_path):
    path = write(tmp_path / "x.csv")
    with pytest.raises(TrainingError, match="is no folder"):
        train(tiny(path), path)
    with pytest.raises(TrainingError, match=r"holds what is not of a run \(x\.csv\)"):
        train(tiny(path), str(tmp_path))
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / ".gitignore").touch()
    with occupied(str(hidden)):
        pass


def test_one_process_at_a_time_and_readers_are_let_in(run):
    workdir, path = run
    with locked(workdir):
        for main in (train, tokenize):
            with pytest.raises(TrainingError, match="is in use by process"):
                main(tiny(path), workdir)
        assert load_run(workdir).step > 0


def test_where_the_data_lie(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "x.csv"
    path.parent.mkdir()
    write(path)
    monkeypatch.delenv("GR_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert data_path(tiny(""), str(path)) == path
    assert data_path(tiny(""), "folder/x.csv").resolve() == path
    with pytest.raises(
        DataError, match=r"folder/y\.csv: no such file .*did you mean folder/x\.csv"
    ):
        data_path(tiny(""), "folder/y.csv")
    with pytest.raises(DataError, match=r"data\.path is empty"):
        data_path(tiny(""), "")
    for holds in (tmp_path, path.parent):
        assert data_path(tiny("", data_dir=str(holds)), "folder/x.csv").exists()
    monkeypatch.setenv("GR_DATA", str(tmp_path / "data"))
    assert data_path(tiny(""), str(path)) == path
    with pytest.raises(DataError, match=f"in the current folder there is one: .*{path}"):
        data_path(tiny(""), "folder/x.csv")


def test_columns_are_asked_for_and_a_time_that_is_not_named_is_noted(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text("uid,sku,clicked_at\na,1,3\na,2,1\na,3,2\na,1,4\n")
    config = tiny(path, data__options__user=None, data__options__item=None)
    with pytest.raises(DataError, match="columns uid, sku, clicked_at.*user=COLUMN and data"):
        load_data(config, str(tmp_path))
    config = config.override({"data.options.user": "uid", "data.options.item": "sku"})
    in_order = load_data(config, str(tmp_path)).sequences
    assert in_order.item_ids[in_order.items].tolist() == ["1", "2", "3", "1"]
    assert "to sort by it: data.options.time=clicked_at" in capsys.readouterr().out
    config = config.override({"data.options.time": "clicked_at"})
    by_time = load_data(config, str(tmp_path)).sequences
    assert by_time.item_ids[by_time.items].tolist() == ["2", "3", "1", "1"]
    assert "note" not in capsys.readouterr().out
    assert np.all(np.diff(by_time.times) > 0)
