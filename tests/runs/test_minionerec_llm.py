"""MiniOneRec's files by one config: a tiny random Qwen2 trains with LoRA, decodes, and learns by reinforcement."""

import csv
import json

import jax
import numpy as np
import pytest
from mains import run

from configs import minionerec_qwen2
from gr.data import DataError, Histories
from gr.data.prompts import (
    encode_prompts,
    grow_tokenizer,
    id_names,
    item_texts,
    load_tokenizer,
    next_item,
    next_titled_item,
    writes_titles,
)
from gr.decoding import beam_search
from gr.models import ModelError, Prompt, histories_for, load_hf, save_hf
from gr.models.layers import Frozen
from gr.models.lora import named_parameters
from gr.rl import ActorCritic
from gr.runs import Experiment, Reinforcement, build, build_rl
from gr.runs.data import load_data, load_semantic_ids
from gr.runs.run import load_run
from gr.training import TrainState

pytestmark = pytest.mark.usefixtures("compile_in_haste")

CONFIG = "configs/minionerec_qwen2.py"
CHECKPOINT = "configs/checkpoints/qwen2_tiny"
NUM_ITEMS = 24
SIDS = {
    str(item): [f"<a_{item // 6}>", f"<b_{item % 6}>", f"<c_{item % 4}>"]
    for item in range(NUM_ITEMS)
}
TITLES = {item: f"pen {item}" for item in SIDS} | {"5": ""}
FIELDS = ("item_id", "item_sid", "item_title")
HEADER = ["user_id", *(f"{past}{field}" for field in FIELDS for past in ("history_", ""))]


def rows(user, items):
    """One row per target: the last is for the test, the one before it for validation."""
    ids = [str(item) for item in items]
    columns = ids, ["".join(SIDS[item]) for item in ids], [TITLES[item] for item in ids]
    for end in range(1, len(items)):
        yield [user, *(cell for column in columns for cell in (column[:end], column[end]))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minionerec")
    rng = np.random.default_rng(0)
    splits = {"train": [], "valid": [], "test": []}
    for user in range(40):
        # Items come in circles: the next one is mostly known.
        items = (rng.integers(NUM_ITEMS) + np.arange(7)).tolist()
        *train, valid, test = rows(f"u{user}", [item % NUM_ITEMS for item in items])
        splits["train"] += train
        splits["valid"].append(valid)
        splits["test"].append(test)
    (folder / "csv").mkdir()
    for name, lines in splits.items():
        with (folder / f"csv/{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *lines])
    (folder / "Toy.index.json").write_text(json.dumps(SIDS))
    return folder


def train(data, folder, *flags):
    done = run(
        "train",
        f"--config={CONFIG}",
        f"--workdir={folder}",
        f"--config.data_dir={data}",
        "--config.data.path=csv",
        "--config.semantic_ids.path=Toy.index.json",
        "--config.data.max_history=6",
        "--config.training.learning_rate=0.02",
        "--config.decoding.batch_size=40",
        *flags,
    )
    assert "gr.models:load_hf" in done.stdout


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run whose prompts have titles."""
    folder = tmp_path_factory.mktemp("run")
    template = "gr.data.prompts:next_titled_item"
    train(
        data,
        folder,
        f"--config.backbone_options.template={template}",
        "--config.training.num_epochs=7",
    )
    return folder


def test_it_learns_with_a_frozen_trunk(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["values"]["loss"] for line in lines if line["split"] == "validation"]
    assert losses[-1] < 0.7 * losses[0]
    model = load_run(str(trained)).model
    start = load_hf(CHECKPOINT, weights="random", vocab_size=18, code_length=3)
    before, after = named_parameters(start), named_parameters(model)
    assert isinstance(model.layers[0].qkv.kernel, Frozen)
    frozen = "layers.0.qkv.kernel"
    np.testing.assert_allclose(after[frozen], before[frozen], atol=1e-6)
    assert np.abs(after["layers.0.qkv.lora.up"]).max() > 0


SMALL = {
    "search.num_candidates": 4,
    "search.budget": 12,
    "search.initial_beams": 3,
    "value.num_heads": 2,
    "value.d_ff": 16,
    "value.pretrain_steps": 2,
    "rl.batch_size": 8,
    "rl.num_steps": 2,
    "rl.num_epochs": 1,
    "rl.eval_every": 2,
    "rl.eval_users": 8,
}
GRPO = {"search.name": "sample", "policy.name": "grpo", "value.learn": False}


def assert_only_lora_moved(start, reinforced):
    before, after = named_parameters(start), named_parameters(reinforced)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert any(".lora." in name for name in moved)
    assert all(".lora." in name or name == "embedding" for name in moved)


def test_a_step_of_reinforcement_learning_trains_the_low_rank_changes(trained):
    start = load_run(str(trained))
    config = Reinforcement().override(SMALL | GRPO).applied_to(start.config)
    catalogue = build_rl.with_vectors(start.catalogue, start.splits)
    head = build_rl.make_value_head(config, 3, start.model)
    assert head.config.d_model == 32  # The checkpoint's.
    optimizer, step = build_rl.make_optimisation(config, catalogue, 2, None, learn_policy=True)
    model = ActorCritic(start.model, head)
    state = TrainState.create(model, optimizer, jax.random.key(0), loss_state=start.model)
    batch = next(iter(build_rl.make_batches(config, start.splits)))
    state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"]) and metrics["reward/spread_share"] > 0
    assert_only_lora_moved(start.model, state.model.backbone)


@pytest.mark.long
@pytest.mark.parametrize("method", [{}, GRPO], ids=["vstar", "grpo"])
def test_it_goes_on_by_reinforcement_learning(method, trained, tmp_path):
    done = run(
        "rl",
        "--config=configs/amazon_office_rl.py",
        f"--workdir={tmp_path}",
        f"--config.init_from={trained}",
        *(f"--config.{name}={value}" for name, value in (SMALL | method).items()),
    )
    assert f"wrote {tmp_path}" in done.stdout
    assert_only_lora_moved(load_run(str(trained)).model, load_run(str(tmp_path)).model)


def prompts(run_, rows, template):
    """Prompts of item rows, written as text and tokenised."""
    names = id_names(run_.semantic_ids.codebook_sizes)
    tokenizer = grow_tokenizer(load_tokenizer(CHECKPOINT), run_.model.config.num_text_tokens, names)
    sids = np.array(item_texts(run_.semantic_ids.tokens, names))
    ids = run_.semantic_ids.item_ids
    assert sids[0] == "".join(SIDS[ids[0]])
    titles = np.array([TITLES[item] for item in ids])
    histories = [row[row >= 0] for row in rows]
    of_items = (sids, titles) if writes_titles(template) else (sids,)
    texts = [template(*(of[row].tolist() for of in of_items)) for row in histories]
    return Prompt(*encode_prompts(tokenizer, texts))


def assert_prompts_are_those_of_the_text(run_, template, folder):
    """Written as text, tokenised, and read by the saved checkpoint, histories give the same recommendations."""
    save_hf(run_.model, folder)
    model = load_hf(folder)
    rows = Histories.of(run_.splits.sequences, run_.splits.test)[:5].padded()
    catalogue = run_.catalogue
    prompt = prompts(run_, rows, template)
    tokens = histories_for(run_.model, catalogue.tokens, rows, catalogue.pieces)
    found, expected = (
        beam_search(backbone, catalogue.index, history, 6, normalise_over="children")
        for backbone, history in ((model, prompt), (run_.model, tokens))
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_titles_are_in_the_prompts_of_a_run(trained, tmp_path):
    run_ = load_run(str(trained))
    assert_prompts_are_those_of_the_text(run_, next_titled_item, tmp_path)
    rows = next(iter(build.make_train_batches(run_.config, run_.splits)))["history"]
    expected = prompts(run_, rows, next_titled_item)
    catalogue = run_.catalogue
    prompt = histories_for(run_.model, catalogue.tokens, rows, catalogue.pieces)
    np.testing.assert_array_equal(prompt.lengths, expected.lengths)
    for row, length in enumerate(expected.lengths):
        np.testing.assert_array_equal(prompt.tokens[row, :length], expected.tokens[row, :length])
    with pytest.raises(ModelError, match="writes titles, so a history must be a Prompt"):
        load_hf(tmp_path).prefill(catalogue.tokens[rows])


def test_data_without_titles_are_told(data, tmp_path):
    for name in ("train", "valid", "test"):
        with (data / f"csv/{name}.csv").open() as file:
            lines = list(csv.reader(file))
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(line[:5] for line in lines)
    options = dict(minionerec_qwen2.get_config().backbone_options)
    config = Experiment.from_config(minionerec_qwen2.get_config()).override(
        {
            "data.path": str(tmp_path),
            "semantic_ids.path": str(data / "Toy.index.json"),
            "backbone_options": options | {"template": "gr.data.prompts:next_titled_item"},
        }
    )
    splits = load_data(config, "")
    semantic_ids = load_semantic_ids(config, splits).semantic_ids
    with pytest.raises(DataError, match=r"next_titled_item: it writes.*'title' \(there are: sid\)"):
        build.make_catalogue(config, semantic_ids, sequences=splits.sequences)


@pytest.mark.long
def test_a_run_without_titles(data, tmp_path):
    train(data, tmp_path, "--config.training.num_epochs=1")
    run_ = load_run(str(tmp_path))
    assert run_.catalogue.pieces is None
    assert_prompts_are_those_of_the_text(run_, next_item, tmp_path / "saved")


@pytest.mark.long
def test_a_run_with_titles_is_used_like_any_other(trained, tmp_path):
    run("evaluate", f"--workdir={trained}", "--split=test")
    run("recommend", f"--workdir={trained}", "--user=u1")
    run("export_recommender", f"--workdir={trained}", f"--output={tmp_path}/run.recommender")
