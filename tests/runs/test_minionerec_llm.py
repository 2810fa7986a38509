"""MiniOneRec's files by one config: a tiny random Qwen2 trains with LoRA, decodes, and learns by reinforcement."""

import csv
import json

import jax
import numpy as np
import pytest
from mains import run

from gr.data import Histories
from gr.data.prompts import (
    encode_prompts,
    grow_tokenizer,
    id_names,
    item_texts,
    load_tokenizer,
    next_item,
)
from gr.decoding import beam_search
from gr.models import Prompt, load_hf, save_hf
from gr.models.layers import Frozen
from gr.models.lora import named_parameters
from gr.rl import ActorCritic
from gr.runs import Reinforcement, build_rl
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
HEADER = ["user_id", "history_item_id", "item_id", "history_item_sid", "item_sid"]


def rows(user, items):
    """One row per target: the last is for the test, the one before it for validation."""
    text = ["".join(SIDS[str(item)]) for item in items]
    for end in range(1, len(items)):
        yield [user, [str(i) for i in items[:end]], items[end], text[:end], text[end]]


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


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = run(
        "train",
        f"--config={CONFIG}",
        f"--workdir={folder}",
        f"--config.data_dir={data}",
        "--config.data.path=csv",
        "--config.semantic_ids.path=Toy.index.json",
        "--config.data.max_history=6",
        "--config.training.num_epochs=4",
        "--config.training.learning_rate=0.02",
        "--config.decoding.batch_size=40",
    )
    assert "gr.models:load_hf" in done.stdout
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


def test_the_prompt_of_the_device_is_that_of_the_tokenizer(trained, tmp_path):
    """Written as text, tokenised, and read by the saved checkpoint, histories give the same recommendations."""
    run_ = load_run(str(trained))
    save_hf(run_.model, tmp_path)
    model = load_hf(tmp_path)
    names = id_names(run_.semantic_ids.codebook_sizes)
    tokenizer = grow_tokenizer(load_tokenizer(CHECKPOINT), model.config.num_text_tokens, names)
    histories = Histories.of(run_.splits.sequences, run_.splits.test)[:5].padded()
    items = np.array(item_texts(run_.semantic_ids.tokens, names))
    assert items[0] == "".join(SIDS[run_.semantic_ids.item_ids[0]])
    texts = [next_item(items[row[row >= 0]].tolist()) for row in histories]
    prompt = Prompt(*encode_prompts(tokenizer, texts))
    tokens = run_.semantic_ids.encode(histories)
    found, expected = (
        beam_search(backbone, run_.catalogue.index, history, 6, normalise_over="children")
        for backbone, history in ((model, prompt), (run_.model, tokens))
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
