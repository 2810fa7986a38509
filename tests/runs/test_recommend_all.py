"""Lists of all users beside `recommend`, one user after the other; interrupted, shared, refused."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from mains import ENVIRONMENT, ROOT

from gr.data import DataError, Sequences, leave_one_out
from gr.evaluation.decode import decode_batch
from gr.memory import Memory
from gr.runs import (
    ConfigError,
    Experiment,
    build,
    load_rankings,
    recommend,
    recommend_all,
    table_experiment,
    train,
)
from gr.runs.recommend_all import with_next_place
from gr.runs.run import Run
from gr.semantic_ids import SemanticIds

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, ITEMS, MAX_HISTORY = 23, 27, 6
ITEM_IDS = np.array([f"i{item}" for item in range(ITEMS)])
SIZES = {"d_model": 8, "num_heads": 2, "d_ff": 8}
ITEM_HEAD = {"backbone": "item_decoder", "item_decoder__head": "items"}


def make_sequences():
    """Users of 3 to 25 different items each, so that histories have many lengths, and little may be left."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 10, USERS)
    lengths[[4, 15]] = 25
    rows = [rng.permutation(ITEMS)[:length] for length in lengths]
    return Sequences(
        items=np.concatenate(rows).astype(np.int32),
        offsets=np.cumsum([0, *lengths]),
        user_ids=np.array([f"u{user}" for user in range(USERS)]),
        item_ids=ITEM_IDS,
    )


def make_run(folder, backbone="decoder_only", sequences=None, seed=1, step=3, **fields):
    """A run of an untrained model. Items 4 and 5 share a semantic ID."""
    codes = np.stack(np.unravel_index(np.arange(ITEMS), (3, 3, 3)), axis=1)
    codes[5] = codes[4]
    semantic_ids = SemanticIds(codes, (3, 3, 3), ITEM_IDS)
    config = Experiment(name="lists", backbone=backbone).override(
        {f"{backbone}.{name}": size for name, size in SIZES.items()}
        | {"data.max_history": MAX_HISTORY, "data.num_buckets": 1, "memory.tune": False}
        | {"decoding.num_beams": 6, "decoding.batch_size": 4}
        | {name.replace("__", "."): value for name, value in fields.items()}
    )
    rng, model = np.random.default_rng(seed), build.make_model(config, semantic_ids)
    Path(folder).mkdir(exist_ok=True)
    return Run(
        workdir=str(folder),
        config=config,
        splits=leave_one_out(sequences or make_sequences()),
        semantic_ids=semantic_ids,
        catalogue=build.make_catalogue(config, semantic_ids),
        model=jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), model),
        step=step,
    )


@pytest.fixture
def run(tmp_path):
    """The one whose programs are compiled fastest."""
    return make_run(tmp_path / "run", **ITEM_HEAD)


def lists(output):
    """User -> items, scores and ranks, of all files of a folder in order."""
    found = {}
    for row in pq.read_table(output).to_pylist():  # The folder is one table.
        of_user = found.setdefault(row["user_id"], ([], [], [], []))
        for column, name in zip(of_user, ("item_id", "score", "rank", "memory_share"), strict=True):
            column.append(row[name])
    return found


def contents(output):
    return {path.name: path.read_bytes() for path in Path(output).iterdir()}


def check_equal_to_recommend(run, output, num_items):
    found = lists(output)
    for user in run.splits.sequences.user_ids.tolist():
        expected = recommend(run, user=user, top_k=num_items)
        items, scores, ranks, shares = found.pop(user, ([], [], [], []))
        assert items == [item.item_id for item in expected], user
        assert scores == pytest.approx([item.score for item in expected], abs=1e-4)
        assert ranks == list(range(1, len(expected) + 1))
        assert shares == pytest.approx([item.memory_share for item in expected], abs=1e-4)
    assert not found


@pytest.mark.parametrize(
    ("backbone", "fields"),
    [
        pytest.param("decoder_only", {}, marks=pytest.mark.long),
        ("encoder_decoder", {"encoder_decoder__head_dim": 4, "memory__weight": 0.4}),
        ("item_decoder", {"memory__weight": 0.4, "decoding__normalise_over": "children"}),
        pytest.param(
            *("item_decoder", {"item_decoder__head": "trie", "memory__weight": 0.4}),
            marks=pytest.mark.long,
        ),
        ("item_decoder", {"item_decoder__head": "items", "memory__weight": "gate"}),
        ("item_decoder", {"item_decoder__head": "items", "decoding__exclude_seen": False}),
    ],
)
def test_lists_are_those_of_recommend(tmp_path, backbone, fields):
    run = make_run(tmp_path / "run", backbone, **fields)
    written = recommend_all(run, tmp_path / "lists", shards=3, num_items=5)
    assert [Path(path).name for path in written] == [
        f"shard-0000{shard}-of-00003.parquet" for shard in range(3)
    ]
    check_equal_to_recommend(run, tmp_path / "lists", 5)


@pytest.mark.parametrize("form", ["csv", "trec"])
def test_lists_of_other_forms_are_the_same(tmp_path, run, form):
    recommend_all(run, tmp_path / "parquet", shards=2)
    written = recommend_all(run, tmp_path / form, shards=2, form=form)
    assert [Path(path).suffix for path in written] == [f".{form}"] * 2
    assert recommend_all(run, tmp_path / form, shards=2, form=form) == []
    expected, found = load_rankings(tmp_path / "parquet"), load_rankings(tmp_path / form)
    assert found.users.tolist() == expected.users.tolist()
    for user in expected.users:
        assert found.of(user) == expected.of(user)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"settings\.form was 'parquet' and is"):
        recommend_all(run, tmp_path / "parquet", shards=2, form=form)
    with pytest.raises(ConfigError, match="form='txt': use one of parquet, csv, trec"):
        recommend_all(run, tmp_path / "new", form="txt")


def test_more_items_than_beams_and_fewer_than_were_asked_for(tmp_path, run):
    recommend_all(run, tmp_path / "lists", num_items=20)
    check_equal_to_recommend(run, tmp_path / "lists", 20)
    found = lists(tmp_path / "lists")
    assert len(found["u4"][0]) == len(found["u15"][0]) == 2
    assert sum(len(items) == 20 for items, _, _, _ in found.values()) > 10


def test_users_without_anything_to_say_have_no_rows(tmp_path, capsys):
    sequences = make_sequences()
    items = np.concatenate([np.arange(ITEMS), sequences.items]).astype(np.int32)
    offsets = np.concatenate([[0], sequences.offsets + ITEMS, [len(items)]])
    ids = np.array(["full", *sequences.user_ids, "empty"])
    sequences = dataclasses.replace(sequences, items=items, offsets=offsets, user_ids=ids)
    run = make_run(tmp_path / "run", **ITEM_HEAD)
    run = dataclasses.replace(run, splits=dataclasses.replace(run.splits, sequences=sequences))
    recommend_all(run, tmp_path / "lists", num_items=3)
    assert "users without interactions, who get no list: 1\n" in capsys.readouterr().out
    assert set(lists(tmp_path / "lists")) == {f"u{user}" for user in range(USERS)}
    with pytest.raises(DataError, match=r"^user 'empty' has no interactions; leave it out$"):
        recommend_all(run, tmp_path / "lists", users=["u1", "empty"])


def test_nothing_is_compiled_for_another_shard(tmp_path):
    run = make_run(tmp_path, **ITEM_HEAD, data__num_buckets=2, decoding__batch_size=1)
    before = decode_batch._cache_size()
    recommend_all(run, tmp_path / "lists", shards=7)
    assert decode_batch._cache_size() - before == 2  # Padded lengths of histories.


def test_sequences_of_a_part():
    sequences = make_sequences()
    rows = np.array([7, 2, 20])
    part, targets = with_next_place(sequences, rows)
    assert part.user_ids.tolist() == ["u7", "u2", "u20"]
    assert (part.items[targets.positions] == -1).all()
    for place, row in enumerate(rows):
        assert part.of(place).tolist() == [*sequences.of(row), -1]


# Interrupted and shared.

KILLED = """
import os, signal, sys
from gr.data import files
from gr.runs import recommend_all
from test_recommend_all import ITEM_HEAD, make_run

replace, written = os.replace, []

def kill(source, path):
    # While the file is written, before it has its name.
    written.append(path)
    if len(written) == 4:  # The manifest, two shards, this one.
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, path)

os.replace = kill
recommend_all(make_run(sys.argv[1], **ITEM_HEAD), sys.argv[2], shards=5)
"""
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "runs")))


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=ENVIRONMENT | {"PYTHONPATH": PATHS} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_killed_call_is_repeated_and_gives_the_same_files(tmp_path, run, capsys):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    done = python(KILLED, run.workdir, killed)
    assert done.returncode == -9, done.stderr
    names = {"_manifest.json", *(f"shard-0000{shard}-of-00005.parquet" for shard in range(5))}
    there = {path.name for path in killed.iterdir() if not path.name.startswith(".")}
    assert there == {"_manifest.json", *sorted(names)[1:3]}
    kept = {name: (killed / name).stat().st_mtime_ns for name in there}
    written = recommend_all(run, killed, shards=5)
    assert [Path(path).name for path in written] == sorted(names)[3:]
    assert "2 of 5 shards are there already" in capsys.readouterr().out
    assert {name: (killed / name).stat().st_mtime_ns for name in there} == kept
    recommend_all(run, whole, shards=5)
    assert {name: (killed / name).read_bytes() for name in names} == contents(whole)
    assert recommend_all(run, whole, shards=5) == []


def test_processes_share_the_shards(tmp_path, run):
    one, two = tmp_path / "one", tmp_path / "two"
    recommend_all(run, one, shards=5)
    for process, expected in ((1, [1, 3]), (0, [0, 2, 4])):
        written = recommend_all(run, two, shards=5, process_id=process, num_processes=2)
        assert [int(Path(path).name[6:11]) for path in written] == expected
    assert contents(one) == contents(two)
    assert recommend_all(run, tmp_path / "more", shards=2, process_id=2, num_processes=3) == []
    for numbers in ({"process_id": 2, "num_processes": 2}, {"process_id": -1}):
        with pytest.raises(ConfigError, match=r"process_id=-?\d with num_processes=\d: "):
            recommend_all(run, two, shards=5, **numbers)


def test_a_damaged_file_is_made_anew(tmp_path, run, capsys):
    output = tmp_path / "lists"
    written = recommend_all(run, output, shards=3)
    before = contents(output)
    other = recommend_all(run, tmp_path / "other", shards=3, num_items=3)
    Path(written[0]).write_bytes(before[Path(written[0]).name][:-9])
    Path(written[2]).write_bytes(Path(other[2]).read_bytes())
    assert recommend_all(run, output, shards=3) == [written[0], written[2]]
    assert capsys.readouterr().out.count("is damaged or was made of something else") == 2
    assert contents(output) == before


def test_lists_of_something_else_are_refused(tmp_path, run):
    output = tmp_path / "lists"
    recommend_all(run, output, shards=3)
    before = contents(output)
    sequences = make_sequences()
    other = dataclasses.replace(sequences, items=sequences.items[::-1].copy())
    renamed = dataclasses.replace(sequences, item_fields={"title": ITEM_IDS})
    codes = dataclasses.replace(run.semantic_ids, codes=run.semantic_ids.codes[::-1])
    for told, of_run, options in [
        (r"run\.step was 3 and is 4", dataclasses.replace(run, step=4), {}),
        (r"run\.model was '\w+' and is '\w+'", make_run(tmp_path, **ITEM_HEAD, seed=2), {}),
        (r"run\.semantic_ids was", dataclasses.replace(run, semantic_ids=codes), {}),
        (r"run\.memory was None", make_run(tmp_path, **ITEM_HEAD, memory__weight=0.4), {}),
        (
            "the counts agree, but not what users took",
            make_run(tmp_path, **ITEM_HEAD, sequences=other),
            {},
        ),
        (r"settings\.num_items was 10 and is 7", run, {"num_items": 7}),
        (r"shards was 3 and is 4", run, {"shards": 4}),
        (r"users\.number was 23 and is 4", run, {"users": ["u1", "u2", "u3", "u9"]}),
    ]:
        told = rf"^{output} holds lists of something else: (.*; )?{told}.*; "
        told += rf"name another folder than output={output}, or delete what is in it$"
        with pytest.raises(ConfigError, match=told):
            recommend_all(of_run, output, **({"shards": 3} | options))
    assert contents(output) == before
    for same in (
        dataclasses.replace(run, workdir="moved"),
        make_run(tmp_path, **ITEM_HEAD, sequences=renamed),
    ):
        assert recommend_all(same, output, shards=3) == []


def test_folders_of_others_are_refused(tmp_path, run):
    output = tmp_path / "lists"
    written = recommend_all(run, output)
    (output / "_manifest.json").unlink()
    for content, told in [
        (
            None,
            "holds shard-00000-of-00001.parquet, but no _manifest.json says what it was made of",
        ),
        ("{", "_manifest.json is no manifest of lists"),
        ("[]", "_manifest.json is no manifest of lists"),
        ('{"shards": []}', "_manifest.json is no manifest of lists"),
    ]:
        if content is not None:
            (output / "_manifest.json").write_text(content)
        with pytest.raises(ConfigError, match=f"{told}.*name another folder than output="):
            recommend_all(run, output)
    with pytest.raises(ConfigError, match="parquet is no folder; name a new or empty one"):
        recommend_all(run, written[0])
    for options, told in [
        ({"num_items": 0}, "num_items=0: use 1 or more"),
        ({"split_index": 2}, "split_index=2 with 1 devices in this process: use a number that"),
        ({"shards": 0}, "shards=0 for 23 users: use 1 to 23"),
        ({"shards": 24}, "shards=24 for 23 users: use 1 to 23"),
    ]:
        with pytest.raises(ConfigError, match=told):
            recommend_all(run, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_users_may_be_named(tmp_path, run):
    file = tmp_path / "users.txt"
    file.write_text("u7\n\n u2\r\nu20\n")
    recommend_all(run, tmp_path / "of_file", users=file, shards=2)
    recommend_all(run, tmp_path / "of_list", users=["u7", "u2", "u20"], shards=2)
    recommend_all(run, tmp_path / "of_all")
    assert contents(tmp_path / "of_file") == contents(tmp_path / "of_list")
    found, of_all = lists(tmp_path / "of_file"), lists(tmp_path / "of_all")
    assert list(found) == ["u7", "u2", "u20"]
    for user, (items, scores, _, _) in found.items():
        assert items == of_all[user][0] and scores == pytest.approx(of_all[user][1], abs=1e-4)
    for text, told in [
        ("u1\n\nuser_id\n", r"line 3: user 'user_id' is not in the data; ids look like u"),
        ("u1\nu2\nu1\n", r"line 3: user 'u1' is named twice; leave it out"),
        ("\n", r"^users=.*users.txt names nobody"),
    ]:
        file.write_text(text)
        with pytest.raises(DataError, match=told):
            recommend_all(run, tmp_path / "new", users=str(file))
    with pytest.raises(DataError, match=r"^users=\[\] names nobody"):
        recommend_all(run, tmp_path / "new", users=[])
    with pytest.raises(DataError, match=r"^user 'x' is not in the data"):
        recommend_all(run, tmp_path / "new", users=["u1", "x"])


def test_the_folder_may_be_in_an_object_store(tmp_path, run, bucket):
    written = recommend_all(run, "gs://bucket/lists", shards=2)
    assert written == [f"gs://bucket/lists/shard-0000{shard}-of-00002.parquet" for shard in (0, 1)]
    recommend_all(run, tmp_path / "lists", shards=2)
    assert bucket() == {
        f"lists/{name}": text for name, text in contents(tmp_path / "lists").items()
    }
    assert recommend_all(run, "gs://bucket/lists", shards=2) == []
    with pytest.raises(
        ConfigError, match="shards was 2 and is 3; name another folder than output=gs:"
    ):
        recommend_all(run, "gs://bucket/lists", shards=3)


def test_a_mixture_is_read_once(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert make_run(folder, **ITEM_HEAD, memory__weight=0.4).mixture  # Fitted and kept.
    run, read = make_run(folder, **ITEM_HEAD, memory__weight=0.4), []
    load = Memory.load
    monkeypatch.setattr(Memory, "load", lambda path: read.append(path) or load(path))
    first = recommend(run, user="u1")
    assert recommend(run, user="u1") == first and len(read) == 1
    recommend_all(run, tmp_path / "lists")
    assert len(read) == 1


# Devices and the command.

ON_FOUR_DEVICES = """
import sys, jax
from gr.runs import recommend_all
from test_recommend_all import ITEM_HEAD, check_equal_to_recommend, make_run

assert len(jax.local_devices()) == 4
run = make_run(sys.argv[1], **ITEM_HEAD, memory__weight=0.4)
recommend_all(run, sys.argv[2], shards=2, num_items=5)
check_equal_to_recommend(run, sys.argv[2], 5)
default = {"item_decoder__item_share": 0.5, "item_decoder__num_facets": 2, "memory__weight": 0.4}
run = make_run(sys.argv[1] + "_default", "item_decoder", item_decoder__head="trie", **default)
recommend_all(run, sys.argv[2] + "_whole", num_items=5)
recommend_all(run, sys.argv[2] + "_split", num_items=5, split_index=2)
"""


def test_users_are_split_over_devices(tmp_path):
    four = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = python(ON_FOUR_DEVICES, tmp_path / "run", tmp_path / "lists", XLA_FLAGS=four)
    assert done.returncode == 0, done.stderr
    assert len(lists(tmp_path / "lists")) == USERS
    # The trie split over two of them, for two groups of users.
    whole, split = (lists(tmp_path / f"lists_{kind}") for kind in ("whole", "split"))
    assert list(whole) == list(split) and len(split) == USERS
    for user, (items, scores, ranks, shares) in split.items():
        assert (items, ranks) == (whole[user][0], whole[user][2])
        assert scores == pytest.approx(whole[user][1], abs=1e-5)
        assert shares == pytest.approx(whole[user][3], abs=1e-5)


@pytest.mark.long
def test_two_commands_at_once(tmp_path):
    sequences = make_sequences()
    clicks = {
        "user": np.repeat(sequences.user_ids, sequences.lengths),
        "item": ITEM_IDS[sequences.items],
    }
    experiment = table_experiment(user="user", item="item").override(
        {f"item_decoder.{name}": size for name, size in SIZES.items()}
        | {"item_decoder.head": "items", "training.num_epochs": 1, "data.num_buckets": 1}
        | {"semantic_ids.codebook_size": 4, "semantic_ids.dim": 4, "decoding.num_beams": 10}
    )
    run = train(experiment, str(tmp_path / "run"), frame=clicks)
    output = tmp_path / "lists"
    command = [sys.executable, "-m", "experiments.recommend_all", f"--output={output}"]
    command += [f"--workdir={run.workdir}", "--shards=3", "--num_items=4", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            [*command, f"--process_id={process}"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert "wrote 2 files into" in told[0][0] and "wrote 1 file into" in told[1][0]
    assert "users/s" in told[0][1]
    check_equal_to_recommend(run, output, 4)
    refused = subprocess.run(
        [*command, "--num_items=5"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "num_items was 4 and is 5; name another folder than --output=" in refused.stderr
