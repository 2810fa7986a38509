"""Items that join a trained run, and a run whose cold items nobody trained on."""

import dataclasses
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mains import run as command

from configs.table import get_config
from experiments.tokenize_items import add
from gr.decoding import beam_search
from gr.evaluation import EvaluationError
from gr.models import histories_for
from gr.runs import (
    add_items,
    build,
    config_of,
    evaluate,
    evaluate_cold_start,
    load_data,
    load_run,
    recommend,
    train,
)
from gr.runs.baselines import whole_histories
from gr.runs.mixture import mixture_of
from gr.runs.workdir import load_encoder, take_semantic_ids
from gr.semantic_ids import SemanticIdError, SemanticIds
from gr.training import TrainingError
from gr.trie import EditableIndex, ExcludeItems

pytestmark = pytest.mark.usefixtures("compile_in_haste")

WORDS = "pen ink paper glossy phone cordless desk lamp chair stapler".split()
RANDOM = random.Random(0)
CLICKS = [f"{user},i{item}" for user in range(60) for item in RANDOM.sample(range(24), 8)]
ITEMS = [
    f"i{item},{' '.join(RANDOM.sample(WORDS, 3))},{RANDOM.choice('xyz')}" for item in range(24)
]
NEW = ["n0," + ITEMS[3].partition(",")[2], "n1,pen paper,x", "n2,zebra,w"]
PAGE = (Path(__file__).parents[2] / "docs" / "new_items.md").read_text()


def write(path, rows, header="item,title,brand"):
    path.write_text("\n".join([header, *rows, ""]))
    return str(path)


def tiny(folder, **fields):
    """A config of a few steps on a table of clicks and one of texts."""
    c = get_config()
    c.backbone, c.memory.weight = "decoder_only", None
    c.data.path = write(folder / "x.csv", CLICKS, "user,item")
    c.data.options.user, c.data.options.item = "user", "item"
    c.data.options.items_path = write(folder / "items.csv", ITEMS)
    c.data.max_history, c.data.num_buckets = 5, 1
    c.semantic_ids.vectors, c.semantic_ids.dim, c.semantic_ids.codebook_size = "text", 8, 4
    c.decoder_only.d_model, c.decoder_only.d_ff, c.decoder_only.num_layers = 16, 16, 1
    c.training.items_per_batch, c.training.num_epochs = 64, 1
    c.decoding.num_beams = 10
    c.update_from_flattened_dict({name.replace("__", "."): v for name, v in fields.items()})
    return config_of(c)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(tiny(folder, semantic_ids__spare_codes=3), str(folder / "run"))
    return folder


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the run."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return str(tmp_path / "run")


def test_new_items_get_ids_and_old_ones_keep_theirs(workdir, tmp_path):
    before = load_run(workdir)
    found = add_items(workdir, write(tmp_path / "new.csv", NEW))
    assert (found.num_added, found.num_unknown) == (3, 1) and found.num_colliding >= 1
    assert found.titles == tuple(row.split(",")[1] for row in NEW)
    after = load_run(workdir)
    kept, ids = before.semantic_ids, after.semantic_ids
    assert ids.item_ids.tolist() == [*kept.item_ids, "n0", "n1", "n2"]
    np.testing.assert_array_equal(ids.codes[:24], kept.codes)
    np.testing.assert_array_equal(ids.tokens[24:], found.tokens)
    assert (ids.codebook_sizes, ids.num_distinct) == (kept.codebook_sizes, 27)
    # The text of an old item gives its codes, and the next extra code of all items that have them.
    twin = ids.codes[kept.item_ids.tolist().index("i3"), :2].tolist()
    group = [code[-1] for code in kept.codes.tolist() if code[:2] == twin]
    assert ids.codes[24].tolist() == [*twin, max(group) + 1]
    # A run of the data's items alone is still there; nothing of the data has changed.
    assert load_run(workdir, added_items=False).semantic_ids.num_items == 24
    assert after.splits.test.positions.tolist() == before.splits.test.positions.tolist()
    assert after.splits.sequences.titles()[-1] == "zebra"


def test_new_items_are_recommended_found_in_histories_and_evaluated(workdir, tmp_path):
    add_items(workdir, write(tmp_path / "new.csv", NEW))
    run = load_run(workdir)
    listed = recommend(run, user="7", top_k=27)
    seen = set(run.splits.sequences.item_ids[run.splits.sequences.of(7)])
    assert {item.item_id for item in listed} == set(run.semantic_ids.item_ids.tolist()) - seen
    assert {item.title for item in listed if item.item_id in ("n1", "n2")} == {"pen paper", "zebra"}
    assert all(item.item_id != "n1" for item in recommend(run, history=["n1", "i0"], top_k=27))
    metrics = evaluate(run, "test")
    assert metrics["users"] == 60 and 0 <= metrics["ndcg@10"] <= 1
    # The rebuilt trie, and the trained one with the items added to it while it serves, find the same.
    base = load_run(workdir, added_items=False).semantic_ids
    editable = EditableIndex.build(base.tokens, base.vocab_size)
    editable, numbers = editable.add(run.semantic_ids.tokens[24:])
    assert np.asarray(numbers).tolist() == [24, 25, 26]
    history = np.asarray(run.catalogue.tokens)[[[1, 5, 25, -1]]]
    rebuilt = beam_search(run.model, run.catalogue.index, history, num_beams=27)
    served = beam_search(run.model, editable.index, history, num_beams=27)
    np.testing.assert_array_equal(rebuilt.items[..., 0], served.items[..., 0])
    np.testing.assert_allclose(rebuilt.scores, served.scores, rtol=1e-5)


def test_a_memory_knows_new_items_and_has_nothing_to_say_of_them(workdir, tmp_path):
    def mixed():
        run = load_run(workdir)
        config = run.config.override({"memory.weight": 0.5, "memory.tune": False})
        return dataclasses.replace(run, config=config)

    before = mixture_of(mixed())
    add_items(workdir, write(tmp_path / "new.csv", NEW))
    after = mixture_of(mixed())
    assert (before.memory.num_items, after.memory.num_items) == (24, 27)
    old = after.memory.weights[:24, :24]
    assert (old != before.memory.weights).nnz == 0 and old.nnz == after.memory.weights.nnz
    listed = recommend(mixed(), history=["n1", "i0"], top_k=27)
    assert {item.item_id for item in listed} == {f"i{item}" for item in range(1, 24)} | {"n0", "n2"}
    for item in listed:
        assert item.because == ((ITEMS[0].split(",")[1],) if item.memory_share else ())
        assert item.item_id[0] == "i" or not item.memory_share
    assert any(item.memory_share > 0 for item in listed)


def test_an_item_level_model_scores_new_items_by_their_codes(tmp_path):
    sizes = {"d_model": 16, "num_heads": 2, "d_ff": 16, "num_layers": 1}
    fields = {f"item_decoder__{name}": value for name, value in sizes.items()}
    workdir = str(tmp_path / "run")
    config = tiny(tmp_path, backbone="item_decoder", semantic_ids__spare_codes=3, **fields)
    before = train(config, workdir)
    add_items(workdir, write(tmp_path / "new.csv", NEW))
    run = load_run(workdir)
    # The rebuilt trie with the nodes' embeddings moved, and the trained one with items added to it.
    editable = EditableIndex.build(before.semantic_ids.tokens, before.semantic_ids.vocab_size)
    editable, _ = editable.add(run.semantic_ids.tokens[24:])
    rows = np.array([[1, 5, 25, -1]])
    history = histories_for(run.model, run.catalogue.tokens, rows)
    options = {"num_beams": 27, **build.distribution(run.config)}
    rebuilt = beam_search(run.model, run.catalogue.index, history, **options)
    assert set(np.asarray(rebuilt.items).ravel().tolist()) == set(range(27))
    served = beam_search(before.model, editable.index, history, **options)
    np.testing.assert_allclose(rebuilt.scores, served.scores, rtol=1e-4)
    np.testing.assert_array_equal(rebuilt.items[..., 0], served.items[..., 0])
    config = json.loads(Path(workdir, "config.json").read_text())
    config["item_decoder"]["head"] = "items"
    Path(workdir, "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match=r"no others.*item_decoder\.head=trie"):
        add_items(workdir, tmp_path / "new.csv")


def test_what_cannot_be_added_changes_nothing(workdir, tmp_path):
    path = Path(workdir)
    add_items(workdir, write(tmp_path / "new.csv", NEW))
    files = {name: (path / name).read_bytes() for name in ("semantic_ids.npz", "added_items.json")}
    ids = SemanticIds.load(path / "semantic_ids.npz")
    room = ids.codebook_sizes[-1] - 1 - ids.codes[24, -1]
    many = [f"m{row},{NEW[0].partition(',')[2]}" for row in range(room + 2)]
    for rows, told in (
        (NEW, "item n0 has a semantic ID already"),
        (many, r"no extra code is left for item m\d+.*leave them out.*semantic_ids\.spare_codes=2"),
    ):
        with pytest.raises(SemanticIdError, match=told):
            add_items(workdir, write(tmp_path / "more.csv", rows))
    with pytest.raises(SemanticIdError, match="no item field 'brand'"):
        add_items(workdir, write(tmp_path / "more.csv", ["m0,pen"], "item,title"))
    np.savez(tmp_path / "v.npz", vectors=np.zeros((1, 8)), item_ids=["m0"])
    with pytest.raises(SemanticIdError, match="made from text, not from ready vectors"):
        add_items(workdir, tmp_path / "v.npz")
    assert {name: (path / name).read_bytes() for name in files} == files
    # Texts whose semantic IDs were never written, as after a crash between the two files.
    texts = json.loads(files["added_items.json"]) | {"m0": {"title": "pen"}}
    (path / "added_items.json").write_text(json.dumps(texts))
    assert load_run(workdir).semantic_ids.num_items == 27
    assert add_items(workdir, write(tmp_path / "more.csv", ["m0,lamp,x"])).titles == ("lamp",)
    assert load_run(workdir).splits.sequences.titles()[-1] == "lamp"


def test_ids_without_a_fit_say_so(workdir, tmp_path):
    Path(workdir, "item_encoder.npz").unlink()
    with pytest.raises(SemanticIdError, match=r"no saved fit \(item_encoder.npz is missing\)"):
        add_items(workdir, write(tmp_path / "new.csv", NEW))
    with pytest.raises(SemanticIdError, match=r"read from x\.json, without a fit.*vectors=text"):
        load_encoder(workdir, "x.json")
    with pytest.raises(TrainingError, match=r"config\.json"):
        add_items(str(tmp_path / "nowhere"), tmp_path / "new.csv")


def test_ready_vectors_of_new_items(trained, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(25, 5))
    names = np.array([*(f"i{item}" for item in range(24)), "n0"])
    np.savez(tmp_path / "v.npz", vectors=vectors[:24], item_ids=names[:24])
    config = tiny(
        tmp_path, semantic_ids__vectors=str(tmp_path / "v.npz"), semantic_ids__spare_codes=9
    )
    workdir = str(tmp_path / "run")
    train(config, workdir)
    np.savez(tmp_path / "new.npz", vectors=vectors[[3]], item_ids=["n0"])
    with pytest.raises(SemanticIdError, match=r"vectors of .*v\.npz; give the new items' vectors"):
        add_items(workdir, write(tmp_path / "new.csv", NEW))
    found = add_items(workdir, tmp_path / "new.npz")
    ids = load_run(workdir).semantic_ids
    assert ids.codes[-1, :2].tolist() == ids.codes[ids.item_ids == "i3"][0, :2].tolist()
    assert found.titles == ("n0",) and found.num_unknown is None
    np.savez(tmp_path / "new.npz", vectors=vectors[[3]])
    with pytest.raises(SemanticIdError, match="no array 'item_ids' but vectors"):
        add_items(workdir, tmp_path / "new.npz")


def test_newer_data_may_hold_items_that_were_added(workdir, tmp_path):
    add_items(workdir, write(tmp_path / "new.csv", NEW))
    config = json.loads(Path(workdir, "config.json").read_text())
    config["data"]["path"] = write(tmp_path / "x.csv", [*CLICKS, "0,n1", "1,n1"], "user,item")
    config["data"]["options"]["items_path"] = write(tmp_path / "items.csv", [*ITEMS, NEW[1]])
    Path(workdir, "config.json").write_text(json.dumps(config))
    run = load_run(workdir, other_data=True)
    assert sorted(run.splits.sequences.item_ids[-3:]) == ["n0", "n1", "n2"]
    assert len(set(run.semantic_ids.item_ids.tolist())) == run.semantic_ids.num_items == 27
    # Another run that starts from this one has the items of its data, with their IDs, and the fit.
    data = load_data(config_of(run.config), workdir)
    take_semantic_ids(workdir, data, str(tmp_path / "next"))
    taken = SemanticIds.load(tmp_path / "next" / "semantic_ids.npz")
    assert taken.num_items == 25
    ours = run.semantic_ids.select(taken.item_ids)
    np.testing.assert_array_equal(taken.codes, ours.codes)
    assert load_encoder(str(tmp_path / "next"), "").fields == ("title", "brand")


def test_the_command_prints_codes(workdir, tmp_path, capsys):
    path = write(tmp_path / "new.csv", NEW)
    add(workdir, path)
    told = capsys.readouterr().out
    assert re.search(r"n0 +\d-\d-\d", told) and "added 3 items" in told
    assert "1 new items has no word that the fit knows" in told
    wrong = command("tokenize_items", f"--workdir={workdir}", f"--add={path}", check=False)
    assert wrong.returncode == 1 and "error: item n0 has a semantic ID already" in wrong.stderr
    wrong = command("tokenize_items", f"--workdir={workdir}", check=False)
    assert wrong.returncode == 1 and "give either --config=FILE" in wrong.stderr


# Cold items.


@pytest.fixture(scope="module")
def cold_run(tmp_path_factory):
    """A run on the split, and the index that its loss saw."""
    folder, seen = tmp_path_factory.mktemp("cold"), []
    make = build.make_optimisation

    def spy(config, semantic_ids, catalogue, *rest):
        seen.append(catalogue.index)
        return make(config, semantic_ids, catalogue, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make_optimisation", spy)
        cold = {"data__split": "cold_start", "data__cold_share": 0.25}
        config = tiny(folder, loss__name="msl", decoding__num_beams=24, **cold)
        return train(config, str(folder / "run")), *seen


def test_training_knows_no_cold_item(cold_run):
    run, index = cold_run
    cold = run.splits.cold
    slots = np.arange(index.layout.max_items)
    known = np.asarray(index.item_of_slot[slots])[: int(index.item_count)]
    assert sorted(known.tolist()) == np.flatnonzero(~cold).tolist()
    for batch in (iter(build.make_train_batches(run.config, run.splits)),):
        for _ in range(20):
            assert not np.isin(next(batch)["items"], np.flatnonzero(cold)).any()


def recall_of(lists, wanted, k):
    return np.mean([target in row[:k] for row, target in zip(lists, wanted, strict=True)])


def test_cold_targets_are_ranked_apart_freely_and_among_cold_items(cold_run):
    run, _ = cold_run
    result = evaluate_cold_start(run, "test")
    assert json.loads(Path(run.workdir, "metrics_test_cold.json").read_text()) == result
    assert (result["items"], result["cold_items"]) == (24, 6)
    cold, targets = np.flatnonzero(run.splits.cold), run.splits.test
    wanted = run.splits.sequences.items[targets.positions]
    is_cold = np.isin(wanted, cold)
    past = whole_histories(run.splits, targets)
    # With a beam for every item nothing is cut off: what the model ranks under any constraint is a part of it.
    free = []
    for user in range(len(targets)):
        row = past.items[past.starts[user] : past.stops[user]]
        found = beam_search(
            run.model,
            run.catalogue.index,
            run.semantic_ids.encode(np.pad(row[-5:], (0, 5), constant_values=-1)[None, :5]),
            num_beams=24,
            constraint=ExcludeItems(np.pad(row, (0, 12), constant_values=-1)[None, :12]),
            **build.distribution(run.config),
        )
        free.append([int(item) for item in np.asarray(found.items[0, :, 0]) if item >= 0])
    among_cold = [[item for item in row if item in cold] for row in free]
    for k in (1, 5, 10):
        for group, lists, chosen in (
            ("in_catalogue", free, ~is_cold),
            ("cold", free, is_cold),
            ("cold_constrained", among_cold, is_cold),
        ):
            rows = [lists[place] for place in np.flatnonzero(chosen)]
            of_model = result[group]["decoder_only"]
            assert of_model["users"] == chosen.sum() > 0
            assert of_model[f"recall@{k}"] == pytest.approx(recall_of(rows, wanted[chosen], k))
        # Of all orders of what may be listed, the share that has the target among the first k.
        sizes = [len(among_cold[place]) for place in np.flatnonzero(is_cold)]
        held = past.hold(wanted)[is_cold]
        expected = np.mean([0 if h else min(k, s) / s for s, h in zip(sizes, held, strict=True)])
        assert result["cold_constrained"]["random"][f"recall@{k}"] == pytest.approx(expected)
    assert all(result["cold"][name]["recall@10"] == 0 for name in ("markov", "popularity")) or (
        # Popularity lists the whole catalogue in the end, cold items last.
        result["cold"]["popularity"]["recall@5"] == 0
    )


def test_a_memory_with_content_finds_cold_items_that_the_model_does_not(cold_run, tmp_path):
    run, _ = cold_run
    alone = evaluate_cold_start(run, "test")
    shutil.copytree(run.workdir, tmp_path / "run")
    how = {"content": 0.5, "content_of": "text"}
    fields = {"memory.weight": 1.0, "memory.tune": False}
    fields |= {f"memory.settings.{name}": value for name, value in how.items()}
    run = dataclasses.replace(
        run, workdir=str(tmp_path / "run"), config=run.config.override(fields)
    )
    result, memory = evaluate_cold_start(run, "test"), mixture_of(run).memory
    targets = run.splits.test
    wanted = run.splits.sequences.items[targets.positions]
    is_cold = run.splits.cold[wanted]
    scores = memory.scores(whole_histories(run.splits, targets), exclude=True).toarray()
    assert (scores[:, run.splits.cold] > 0).any()
    of_target = scores[np.arange(len(wanted)), wanted]
    rank = (scores > of_target[:, None]).sum(axis=1)
    found = (of_target > 0) & (rank < 10)
    for group, chosen in (("in_catalogue", ~is_cold), ("cold", is_cold)):
        expected = alone[group]["decoder_only"]
        assert expected.items() <= result[group]["model alone"].items()
        row = result[group]["decoder_only + memory"]
        assert row["recall@10"] == pytest.approx(found[chosen].mean(), abs=0.03)  # But for ties.
    assert result["cold_constrained"]["decoder_only + memory"]["users"] == is_cold.sum()


def test_a_run_without_cold_items_says_so(workdir):
    with pytest.raises(EvaluationError, match=r"has no cold items.*data\.split=cold_start"):
        evaluate_cold_start(load_run(workdir))


@pytest.mark.long
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    names = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"docs/new_items.md, {number}", "exec"), names)
