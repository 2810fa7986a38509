"""A run's model mixed with its memory, beside the mixture over all items by hand: fitted, kept, evaluated, listed."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr.data import DataError, Sequences, Targets, leave_one_out
from gr.evaluation import ndcg
from gr.memory import (
    Gate,
    ItemMemoryError,
    ItemPrior,
    MemorySettings,
    fit_gate,
    fit_memory,
    similar_by_codes,
    similar_by_vectors,
    tune_memory,
)
from gr.models import histories_for
from gr.runs import ConfigError, Experiment, build, evaluate, recommend
from gr.runs import mixture as mixture_module
from gr.runs.baselines import whole_histories
from gr.runs.content import similar_items
from gr.runs.mixture import GRID, mixture_of
from gr.runs.recommend import rank_items
from gr.runs.run import Run
from gr.semantic_ids import SemanticIdError, SemanticIds, fit_semantic_ids, item_texts, text_vectors

pytestmark = pytest.mark.usefixtures("compile_in_haste")

USERS, ITEMS, LENGTH = 40, 27, 8
NAMES = np.array([f"i{item}" for item in range(ITEMS)])


def make_splits(test_step=1):
    """Users walk around the circle of all items, some of them with detours; their last step is the test."""
    rng = np.random.default_rng(0)
    rows = (rng.integers(0, ITEMS, (USERS, 1)) + np.arange(LENGTH)) % ITEMS
    rows[::3, 2:6] = (rows[::3, 2:6] + rng.integers(8, 12, rows[::3, 2:6].shape)) % ITEMS
    rows[:, -1] = (rows[:, -1] + test_step - 1) % ITEMS
    return leave_one_out(
        Sequences(
            items=rows.ravel().astype(np.int32),
            offsets=np.arange(USERS + 1) * LENGTH,
            user_ids=np.array([f"u{user}" for user in range(USERS)]),
            item_ids=NAMES,
        )
    )


def semantic_ids_of(shared):
    codes = np.stack(np.unravel_index(np.arange(ITEMS), (3, 3, 3)), axis=1)
    if shared:
        codes[5] = codes[4]
    return SemanticIds(codes, (3, 3, 3), NAMES)


@pytest.fixture
def make_run(tmp_path_factory):
    """A run of an untrained model in a workdir of its own, with as many beams as items."""

    def make(splits=None, *, workdir=None, shared=False, beams=ITEMS, **memory):
        sizes = {"d_model": 8, "num_heads": 2, "d_ff": 8, "num_layers": 1}
        fields = {f"decoder_only.{name}": size for name, size in sizes.items()}
        fields |= {f"memory.{name}": value for name, value in ({"tune": False} | memory).items()}
        config = Experiment(name="circle", backbone="decoder_only")
        fields |= {"decoding.num_beams": beams, "decoding.normalise_over": "children"}
        config = config.override({**fields, "data.num_buckets": 1})
        semantic_ids = semantic_ids_of(shared)
        folder = Path(workdir or tmp_path_factory.mktemp("run"))
        (folder / "versions.json").write_text("{}")
        (folder / "metrics.jsonl").write_text("")
        rng, model = np.random.default_rng(1), build.make_model(config, semantic_ids)
        return Run(
            workdir=str(folder),
            config=config,
            splits=splits or make_splits(),
            semantic_ids=semantic_ids,
            catalogue=build.make_catalogue(config, semantic_ids),
            model=jax.tree.map(lambda x: x + 1.5 * rng.normal(size=x.shape).astype(x.dtype), model),
            step=1,
        )

    return make


forward = jax.jit(lambda model, *inputs: model.target_logits(*inputs))


def model_probabilities(run, history):
    """P `[N]` of the semantic ID of each item after one history, by softmaxes over the children of its prefixes."""
    rows = jnp.asarray(np.tile(np.asarray(history, np.int32), (ITEMS, 1)))
    tokens = run.semantic_ids.tokens
    logits = forward(run.model, histories_for(run.model, run.catalogue.tokens, rows), tokens)
    logits, probabilities = np.exp(np.asarray(logits, np.float64)), np.ones(ITEMS)
    for item, of_item in enumerate(tokens):
        for depth in range(tokens.shape[1]):
            behind = tokens[(tokens[:, :depth] == of_item[:depth]).all(axis=1), depth]
            among = logits[item, depth, np.unique(behind)].sum()
            probabilities[item] *= logits[item, depth, of_item[depth]] / among
    return probabilities


def mixed_probabilities(run, history, memory, weight):
    """P `[N]` of the semantic ID of each item, 0 for items of the history, and its part from memory `[N]`."""
    scores = memory.scores(np.array([history], np.int32), exclude=True).toarray()[0]
    mass = np.array([scores[of_sid].sum() for of_sid in same_ids(run)])
    part = weight * mass / (scores.sum() or 1)
    weight = weight if scores.sum() else 0
    whole = (1 - weight) * model_probabilities(run, history) + part
    whole[list(history)] = 0
    return whole, part


def same_ids(run):
    """Of each item: the items of its semantic ID."""
    codes = run.semantic_ids.codes
    return [np.flatnonzero((codes == code).all(axis=1)) for code in codes]


def gains_by_hand(run, memory):
    """NDCG@10 `[n, A]` of the validation targets with each weight of the grid, from the probabilities of all items."""
    rows, gains = run.splits.sequences.items.reshape(USERS, LENGTH), []
    for row in rows:
        history, target = row[: LENGTH - 2].tolist(), row[LENGTH - 2]
        ranks = []
        for weight in GRID:
            whole, _ = mixed_probabilities(run, history, memory, weight)
            ranks.append(int((whole > whole[target]).sum()) if whole[target] else -1)
        gains.append(ndcg(np.array(ranks), 10))
    return np.array(gains)


def test_without_a_weight_there_is_no_memory(make_run):
    run = make_run()
    assert run.config.memory.weight is None and mixture_of(run) is None
    assert not list(Path(run.workdir).glob("m*.npz")) and not list(Path(run.workdir).glob("mix*"))


def test_a_config_from_before_there_was_a_memory_has_none():
    saved = Experiment(backbone="decoder_only").to_dict()
    del saved["memory"]
    assert Experiment.from_saved(saved).memory.weight is None
    text = Experiment().override({"memory.weight": "gate", "memory.settings.window": 3}).to_json()
    again = Experiment.from_json(text).memory
    assert (again.weight, again.settings.window) == ("gate", 3)


def test_weights_are_chosen_by_validation_targets(make_run):
    run = make_run(weight="tuned")
    memory = fit_memory(run.splits)
    gains = gains_by_hand(run, memory)
    assert 0 < gains.mean(axis=0).argmax() and len(set(gains.mean(axis=0))) > 2
    tuned = mixture_of(run)
    expected = dict(zip((f"{weight:g}" for weight in GRID), gains.mean(axis=0), strict=True))
    assert tuned.validation == pytest.approx(expected)
    assert tuned.gate == Gate((GRID[int(gains.mean(axis=0).argmax())],))
    gated = mixture_of(make_run(weight="gate"))
    past = whole_histories(run.splits, run.splits.validation)
    prior = memory.prior(past, size=500, exclude=True)
    assert gated.gate == fit_gate(memory.gate_inputs(past, prior), gains, GRID)
    assert gated.validation == tuned.validation
    some = mixture_of(make_run(weight="tuned", tuning_users=7))
    chosen = np.linspace(0, USERS - 1, 7).round().astype(int)
    assert some.validation["0.4"] == pytest.approx(gains[chosen].mean(axis=0)[GRID.index(0.4)])


def test_a_given_weight_and_the_memorys_settings_are_taken_as_they_are(make_run):
    run = make_run(
        weight=0.7,
        settings={**dataclasses.asdict(fit_memory(make_splits()).settings), "reach": 2},
        size=5,
    )
    mixture = mixture_of(run)
    assert (mixture.gate, mixture.validation) == (Gate((0.7,)), {})
    assert mixture.memory.settings.reach == 2
    prior, weights = mixture.for_targets(run.splits, run.splits.test, exclude=True)(
        np.array([3, 0, -1])
    )
    past = whole_histories(run.splits, run.splits.test)[np.array([3, 0, 3])]
    expected = mixture.memory.prior(past, size=5, exclude=True)
    np.testing.assert_array_equal(prior.items, expected.items)
    assert prior.items.shape == (3, 5) and weights.tolist() == [np.float32(0.7)] * 3


def test_each_rule_for_seen_items_has_a_mixture_of_its_own(make_run):
    run, same_model = make_run(weight="tuned", tune=True), make_run(weight="tuned", tune=True)
    own = mixture_of(run)
    allowed = same_model.config.override({"decoding.exclude_seen": False})
    expected = mixture_of(dataclasses.replace(same_model, config=allowed))
    other = mixture_of(run, False)
    assert other.summary() == expected.summary() != own.summary()
    assert mixture_of(run, True).summary() == mixture_of(run).summary() == own.summary()
    assert mixture_of(run, False).summary() == other.summary()
    metrics = evaluate(run, "test")
    assert metrics["memory"] == own.summary()
    (of_other,) = metrics["variants"].values()
    assert of_other["memory"] == other.summary()
    other_run = evaluate(dataclasses.replace(same_model, config=allowed), "test")
    assert of_other["ndcg@10"] == other_run["ndcg@10"]


@pytest.mark.parametrize("weight", ["tuned", "gate"])
def test_test_targets_count_for_nothing(make_run, weight):
    one = mixture_of(make_run(make_splits(), weight=weight, tune=True))
    other = mixture_of(make_run(make_splits(test_step=5), weight=weight, tune=True))
    assert one.summary() == other.summary()
    assert (one.memory.weights != other.memory.weights).nnz == 0


def test_a_fit_is_kept_and_made_again_for_anything_else(make_run, monkeypatch, tmp_path):
    run = make_run(weight="gate")
    made = mixture_of(run)
    history = np.array([[3, 4, 5]], np.int32)

    def again(*args, **kwargs):
        raise AssertionError("fitted again")

    monkeypatch.setattr(mixture_module, "fit_memory", again)
    kept = mixture_of(run)
    assert kept.summary() == made.summary()
    np.testing.assert_array_equal(kept.prior(history).weights, made.prior(history).weights)
    workdir = run.workdir
    changed = [
        dataclasses.replace(run, step=2),
        make_run(workdir=workdir, weight="tuned"),
        make_run(workdir=workdir, weight="gate", size=7),
        make_run(workdir=workdir, weight="gate", beams=20),
        make_run(make_splits(test_step=5), workdir=workdir, weight="gate"),
    ]
    for other in changed:
        with pytest.raises(AssertionError, match="fitted again"):
            mixture_of(other)
    for name, content in (("mixture.json", "{}"), ("mixture.json", "{"), ("memory.npz", "no zip")):
        broken = tmp_path / f"{name}{len(content)}"
        shutil.copytree(workdir, broken)
        (broken / name).write_text(content)
        with pytest.raises(AssertionError, match="fitted again"):
            mixture_of(dataclasses.replace(run, workdir=str(broken)))
    (Path(workdir) / "memory.npz").unlink()
    with pytest.raises(AssertionError, match="fitted again"):
        mixture_of(run)
    monkeypatch.undo()
    assert mixture_of(run).summary() == made.summary()
    assert (Path(workdir) / "memory.npz").exists()


def test_the_memory_may_come_from_a_file(make_run, tmp_path, monkeypatch):
    memory = fit_memory(make_splits(), reach=1, window=1)
    memory.save(tmp_path / "own.npz")
    mixture = mixture_of(make_run(weight=0.5, source=str(tmp_path / "own.npz")))
    assert mixture.memory.settings == memory.settings
    monkeypatch.setenv("GR_DATA", str(tmp_path))
    run = make_run(weight="gate", source="own.npz")
    assert mixture_of(run).memory.settings == memory.settings
    shutil.rmtree(tmp_path)
    assert mixture_of(run).memory.settings == memory.settings  # The run keeps it.
    with pytest.raises(DataError, match=r"own\.npz: no such file"):
        mixture_of(make_run(weight=0.5, source="own.npz"))
    tmp_path.mkdir()
    sequences = dataclasses.replace(make_splits().sequences, item_ids=np.append(NAMES, "more"))
    fit_memory(sequences).save(tmp_path / "own.npz")
    with pytest.raises(ConfigError, match=r"a memory of 28 items, and the data have 27: fit it on"):
        mixture_of(make_run(weight=0.5, source="own.npz"))
    (tmp_path / "own.npz").write_text("no memory")
    with pytest.raises(ItemMemoryError, match=r"own\.npz is not the file of a memory"):
        mixture_of(make_run(weight=0.5, source="own.npz"))


def next_on_the_circle(splits):
    """A source of one's own: the two items behind the last one."""
    assert splits.sequences.num_items == ITEMS

    def prior(histories, *, size, exclude):
        last = histories.items[histories.stops - 1]
        items = np.full((len(last), size), -1, np.int32)
        items[:, :2] = (last[:, None] + [1, 2]) % ITEMS
        return ItemPrior(items, np.where(items < 0, 0, [[3.0] + [1.0] * (size - 1)]))

    return prior


def test_the_prior_may_be_a_function_of_ones_own(make_run):
    own = f"{__name__}:next_on_the_circle"
    run = make_run(weight="tuned", source=own, size=4)
    for mixture in (mixture_of(run), mixture_of(run)):  # Made, then kept.
        assert mixture.memory is None and mixture.summary()["settings"] is None
        assert mixture.gate.weights[0] > 0 and set(mixture.validation) == {f"{w:g}" for w in GRID}
    assert not (Path(run.workdir) / "memory.npz").exists()
    first = recommend(make_run(weight=0.99, source=own, size=4), history=["i3", "i7"], top_k=2)
    assert [item.item_id for item in first] == ["i8", "i9"]
    assert all(item.memory_share > 0.9 and item.because == () for item in first)
    with pytest.raises(ConfigError, match="memory.weight='gate' needs a memory"):
        mixture_of(make_run(weight="gate", source=own))
    with pytest.raises(
        ConfigError, match=r"memory\.source .* has no 'next_on_the_circel'; did you"
    ):
        mixture_of(make_run(weight=0.5, source=f"{__name__}:next_on_the_circel"))


# Content.


def with_texts(splits):
    """The splits with texts that say of each item in which third of the circle it lies."""
    titles = np.array(
        [f"thing {'apple pear plum'.split()[item * 3 // ITEMS]}" for item in range(ITEMS)]
    )
    sequences = dataclasses.replace(splits.sequences, item_fields={"title": titles})
    return dataclasses.replace(splits, sequences=sequences)


def test_all_content_that_the_data_have_is_tried(make_run, capsys):
    run = make_run(with_texts(make_splits()), weight=0.5, tune=True)
    similar = similar_items(run, "all")
    vectors = text_vectors(item_texts(run.splits.sequences), 128, seed=0)
    expected = {
        "codes": similar_by_codes(run.semantic_ids.codes),
        "text": similar_by_vectors(vectors),
    }
    assert list(similar) == list(expected) and similar_items(run, "none") == {}
    for name, of_name in expected.items():
        assert (similar[name] != of_name).nnz == 0
        assert list(similar_items(run, name)) == [name]
    validation = run.splits.validation
    tuned, _ = tune_memory(
        run.splits,
        whole_histories(run.splits, validation),
        run.splits.sequences.items[validation.positions],
        exclude=True,
        similar=expected,
    )
    made = mixture_of(run)
    assert (
        made.memory.settings == tuned.settings and (made.memory.weights != tuned.weights).nnz == 0
    )
    again = mixture_of(run)  # Read.
    assert again.memory.settings == tuned.settings
    # Other texts, another memory.
    fewer = dataclasses.replace(
        run.splits.sequences, item_fields={"title": np.full(ITEMS, "the same")}
    )
    other = dataclasses.replace(run, splits=dataclasses.replace(run.splits, sequences=fewer))
    assert mixture_of(other).memory.settings.content_of != "text"
    assert "goes without text: no usable words" in capsys.readouterr().out
    with pytest.raises(SemanticIdError, match="no usable words"):
        similar_items(other, "text")
    none = make_run(with_texts(make_splits()), weight=0.5, tune=True, content="none")
    assert mixture_of(none).memory.settings.content == 0.0


def test_vectors_of_semantic_ids_are_content_too(make_run, tmp_path):
    vectors = np.random.default_rng(3).normal(size=(ITEMS, 4)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", vectors=vectors, item_ids=NAMES)
    run = make_run()
    options = {"vectors": str(tmp_path / "vectors.npz"), "num_levels": 2, "codebook_size": 4}
    fit_semantic_ids(run.splits, **options).encoder.save(Path(run.workdir) / "item_encoder.npz")
    fields = {f"semantic_ids.{name}": value for name, value in options.items()}
    run = dataclasses.replace(run, config=run.config.override(fields))
    similar = similar_items(run, "all")
    assert list(similar) == ["codes", "vectors"]
    np.testing.assert_allclose(
        similar["vectors"].toarray(), similar_by_vectors(vectors).toarray(), rtol=1e-4
    )


def test_content_that_the_data_lack_is_refused(make_run, monkeypatch, capsys):
    for kind in ("text", "vectors"):
        with pytest.raises(ConfigError, match=f"memory.content='{kind}': the items have no {kind}"):
            mixture_of(make_run(weight=0.5, tune=True, content=kind))
    settings = {**dataclasses.asdict(MemorySettings(content=0.2, content_of="text"))}
    with pytest.raises(ConfigError, match="the items have no text"):
        mixture_of(make_run(weight=0.5, settings=settings))
    monkeypatch.setattr("gr.runs.content.MAX_ITEMS", ITEMS - 1)
    run = make_run(with_texts(make_splits()), weight=0.5)
    assert list(similar_items(run, "all")) == ["codes"]
    assert "goes without text: all pairs of items are compared" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="compares all pairs of up to 26 items; these are 27"):
        similar_items(run, "text")


@pytest.mark.parametrize(
    "how, name, note",
    [
        ({"content": 0.3, "content_of": "codes"}, "memory with content", "content: codes, 0.3"),
        ({"discount": 0.6}, "memory with discount", "discount of popular items: 0.6"),
        pytest.param(
            {"content": 0.3, "content_of": "codes", "discount": 0.6},
            *(
                "memory with content and discount",
                "content: codes, 0.3; discount of popular items: 0.6",
            ),
        ),
    ],
)
def test_a_memory_of_more_than_co_occurrence_has_a_row_of_its_own(make_run, how, name, note):
    settings = {**dataclasses.asdict(MemorySettings()), **how}
    run = make_run(weight=0.5, settings=settings)
    row = evaluate(run, "test")["baselines"][name]
    memory = fit_memory(
        run.splits, **settings, similar={"codes": similar_by_codes(run.semantic_ids.codes)}
    )
    rows, ranks = run.splits.sequences.items.reshape(USERS, LENGTH), []
    for of_user in rows:
        scores = memory.scores(of_user[None, :-1], exclude=True).toarray()[0]
        target = of_user[-1]
        level = scores[target]
        ranks.append(int((scores > level).sum()) if level else -1)
    alike = np.unique(np.round(memory.weights.data, 6)).size > ITEMS
    assert alike and row["item_ndcg@10"] == pytest.approx(
        ndcg(np.array(ranks), 10).mean(), abs=0.02
    )
    assert note in (Path(run.workdir) / "report_test.html").read_text()
    assert name not in evaluate(make_run(weight=0.5), "test")["baselines"]


def test_the_discount_comes_on_top_of_what_is_tuned(make_run):
    settings = {**dataclasses.asdict(MemorySettings()), "discount": 0.25}
    run = make_run(weight=0.5, tune=True, settings=settings)
    found = mixture_of(run).memory
    tuned = mixture_of(make_run(weight=0.5, tune=True)).memory.settings
    assert tuned.discount == 0 and tuned != MemorySettings()
    assert found.settings == dataclasses.replace(tuned, discount=0.25)
    similar = {"codes": similar_by_codes(run.semantic_ids.codes)}
    expected = fit_memory(run.splits, **dataclasses.asdict(found.settings), similar=similar)
    assert (found.weights != expected.weights).nnz == 0


def test_without_validation_targets_the_weight_has_to_be_given(make_run):
    none = Targets(users=np.zeros(0, np.int32), positions=np.zeros(0, np.int64))
    splits = dataclasses.replace(make_splits(), validation=none)
    with pytest.raises(
        ConfigError, match="memory.weight='tuned' and .* need validation targets: give a number"
    ):
        mixture_of(make_run(splits, weight="tuned"))
    with pytest.raises(ConfigError, match="memory.tune=True need validation targets"):
        mixture_of(make_run(splits, weight=0.5, tune=True))
    assert mixture_of(make_run(splits, weight=0.5)).gate == Gate((0.5,))


# Recommendations and evaluation.


@pytest.mark.parametrize("history", [[1, 2, 3], [9, 8, 9, 10, 20], [4]])
def test_items_are_ranked_by_the_mixture_and_say_where_they_come_from(make_run, history):
    run = make_run(weight=0.6, shared=True)  # Items 4 and 5 share a semantic ID.
    memory = fit_memory(run.splits)
    whole, part = mixed_probabilities(run, history, memory, 0.6)
    mixture = mixture_of(run)
    found, scores = rank_items(run, history, ITEMS, mixture)
    by_sid = {
        int(item): score
        for row, score in zip(found, scores, strict=True)
        for item in row
        if item >= 0
    }
    assert set(by_sid) == set(np.flatnonzero(whole).tolist()) == set(range(ITEMS)) - set(history)
    for item, score in by_sid.items():
        assert score == pytest.approx(math.log(whole[item]), abs=1e-4)
    listed = recommend(run, history=[NAMES[item] for item in history], top_k=ITEMS)
    order = sorted(by_sid, key=lambda item: (-round(math.log(whole[item]), 4), item))
    assert [item.item_id for item in listed] == NAMES[order].tolist()
    weights, how = memory.weights.toarray(), memory.settings
    for item, chosen in zip(listed, order, strict=True):
        assert item.memory_share == pytest.approx(part[chosen] / whole[chosen], abs=1e-4)
        shares = {}
        for place, earlier in enumerate(history[::-1][: how.reach]):
            share = how.recency**place * weights[earlier, chosen]
            shares[earlier] = shares.get(earlier, 0) + share
        best = sorted((e for e in shares if shares[e] > 0), key=lambda e: -shares[e])[:3]
        assert item.because == tuple(NAMES[best].tolist())
    assert {bool(item.because) for item in listed} == {True, False}
    alone = recommend(make_run(shared=True), history=[NAMES[item] for item in history], top_k=9)
    assert all(item.memory_share == 0 and item.because == () for item in alone)
    expected = model_probabilities(run, history)
    for item in alone:
        chosen = int(item.item_id[1:])
        assert item.score == pytest.approx(math.log(expected[chosen]), abs=1e-4)


def test_an_evaluation_shows_the_model_alone_and_the_memory(make_run, capsys):
    alone = evaluate(make_run(), "test")
    assert "memory" not in alone and "model alone" not in alone["baselines"]
    run = make_run(weight=0.7)
    metrics = evaluate(run, "test")
    assert metrics["memory"] == mixture_of(run).summary()
    assert metrics["memory"]["gate"] == {"weights": (0.7,), "edges": (), "input": ""}
    row = metrics["baselines"]["model alone"]
    assert metrics["parts"] == ["model alone"] and "parts" not in alone
    for name in ("hit@10", "ndcg@10", "item_ndcg@10", "ndcg@20"):
        assert row[name] == alone[name] < metrics[name]
    assert metrics["differences"]["model alone"]["ndcg@10"][0] > 0
    (other,), (of_alone,) = metrics["variants"].values(), alone["variants"].values()
    assert other["baselines"]["model alone"]["ndcg@10"] == of_alone["ndcg@10"]
    rows = run.splits.sequences.items.reshape(USERS, LENGTH)
    memory, ranks = fit_memory(run.splits), []
    for row in rows:
        whole, _ = mixed_probabilities(run, row[:-1].tolist(), memory, 0.7)
        ranks.append(int((whole > whole[row[-1]]).sum()) if whole[row[-1]] else -1)
    assert metrics["ndcg@10"] == pytest.approx(ndcg(np.array(ranks), 10).mean())
    saved = json.loads((Path(run.workdir) / "metrics_test.json").read_text())
    assert saved["memory"]["gate"]["weights"] == [0.7]
    page, printed = (Path(run.workdir) / "report_test.html").read_text(), capsys.readouterr().out
    for text in (page, printed):
        assert "decoder_only + memory" in text and "model alone" in text
    assert "weight 0.7" in page


def test_a_weight_of_0_is_the_model_and_of_1_the_memory(make_run):
    nothing = evaluate(make_run(weight=0.0), "test")
    assert nothing["ndcg@10"] == nothing["baselines"]["model alone"]["ndcg@10"]
    run, memory = make_run(weight=1.0), fit_memory(make_splits())
    for user in range(3):
        history = run.splits.sequences.of(user).tolist()
        whole, _ = mixed_probabilities(run, history, memory, 1.0)
        listed = recommend(run, user=f"u{user}", top_k=3)
        assert [item.item_id for item in listed] == NAMES[
            np.argsort(-whole, kind="stable")[:3]
        ].tolist()
        assert all(item.memory_share == pytest.approx(1) for item in listed)
