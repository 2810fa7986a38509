"""The model benchmarks on tiny models and synthetic data, as subprocesses; timing and counting by themselves."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import benchmark_train
from experiments.benchmarks import benchmarking
from gr.models import DecoderOnly, DecoderOnlyConfig, EncoderDecoder, EncoderDecoderConfig

ROOT = Path(__file__).parents[2]
CONFIG = """
from configs.base import base_config

def get_config():
    c = base_config()
    c.name = "tiny"
    c.data.format = "synthetic"
    c.data.options.num_users = 60
    c.data.options.num_items = 40
    c.data.options.num_categories = 4
    c.data.options.mean_length = 8
    c.data.max_history = 6
    c.data.num_buckets = 2
    c.semantic_ids.vectors = "interactions"
    c.semantic_ids.dim = 8
    c.semantic_ids.num_levels = 1
    c.semantic_ids.codebook_size = 8
    for sizes in (c.encoder_decoder, c.decoder_only, c.item_decoder):
        sizes.d_model, sizes.num_heads, sizes.d_ff = 16, 2, 32
    c.encoder_decoder.head_dim = 8
    c.encoder_decoder.num_encoder_layers = c.encoder_decoder.num_decoder_layers = 1
    c.decoder_only.num_layers = 1
    c.training.batch_size = 16
    c.training.items_per_batch = 64
    c.decoding.num_beams = 4
    c.decoding.batch_size = 16
    return c
"""
CE_ROWS = [
    "encoder_decoder/target/padded_12",
    "encoder_decoder/target/bucketed",
    "encoder_decoder/user",
]
TRAIN_ROWS = [name for row in CE_ROWS for name in (row, f"{row}/apao_pairwise")]
DECODE_ROWS = [
    "8_tokens",
    "12_tokens",
    "12_tokens/unseen_only",
    "12_tokens/prior",
    "12_tokens/prefill",
    "12_tokens/steps",
    "12_tokens/forward_only",
    "12_tokens/unconstrained",
    "test_histories",
    "test_histories/unseen_only",
]
SEARCH_ROWS = ["beam", "sample", "ved/1/2", "best_first/1/2", "python_walk", "plain_walk"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The files and the standard outputs of the mains, run side by side."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "tiny.py").write_text(CONFIG)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # What is compiled is hardly run.
    }
    processes = {}
    for name, backbone in (
        ("train", "encoder_decoder"),
        ("decode", "decoder_only,item_decoder"),
        ("search", "encoder_decoder,item_decoder"),
        ("groups", "encoder_decoder,item_decoder"),
    ):
        command = [sys.executable, "-m", f"experiments.benchmark_{name}"]
        command += [f"--config={folder}/tiny.py", f"--json={folder}/{name}.json"]
        command += [f"--backbones={backbone}", "--seconds_per_row=0.01"]
        if name == "train":
            command += ["--losses=ce,apao_pairwise"]
        if name == "search":
            command += ["--times=1", "--widths=2"]
        if name == "groups":
            command += ["--groups=2", "--users=2"]
        processes[name] = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    results = {}
    for name, process in processes.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        results[name] = json.loads((folder / f"{name}.json").read_text()), output
    return results


@pytest.mark.long
def test_train_benchmark_measures_every_row(measured):
    content, output = measured["train"]
    assert list(content["examples_per_second"]) == TRAIN_ROWS
    for quantity in ("examples", "tokens", "peak_gflops"):
        _assert_positive(content[f"{quantity}_per_second"], TRAIN_ROWS)
    _assert_positive(content["over_ce"], TRAIN_ROWS)
    assert [content["over_ce"][row] for row in CE_ROWS] == [1, 1, 1]
    gflops = content["gflops_per_second"]  # Not of losses with negatives.
    _assert_positive({row: gflops[row] for row in CE_ROWS}, CE_ROWS)
    assert [row for row in TRAIN_ROWS if gflops[row] is None] == TRAIN_ROWS[1::2]
    assert all(row in output for row in TRAIN_ROWS)
    assert "experiments.benchmark_train --config=" in content["command"]


@pytest.mark.long
def test_train_benchmark_times_each_shape_of_an_epoch(measured):
    shapes = measured["train"][0]["shapes"]
    assert [shape["items"] for shape in shapes["encoder_decoder/target/padded_12"]] == [6]
    bucketed = shapes["encoder_decoder/target/bucketed"]
    assert len(bucketed) == 2 and bucketed[-1]["items"] == 6
    assert all(shape["batches_per_epoch"] >= 1 for shape in bucketed)
    # At user level the last item of a sequence is never history: one column more.
    assert max(shape["items"] for shape in shapes["encoder_decoder/user"]) == 7


@pytest.mark.long
def test_decode_benchmark_measures_every_row(measured):
    content, output = measured["decode"]
    rows = [f"decoder_only/{row}" for row in DECODE_ROWS]
    # A model that scores children has no logits to be unconstrained by.
    rows += [f"item_decoder/{row}" for row in DECODE_ROWS if not row.endswith("unconstrained")]
    assert list(content["users_per_second"]) == rows
    for quantity in ("users_per_second", "seconds_per_batch", "compile_seconds"):
        _assert_positive(content[quantity], rows, or_zero=quantity == "compile_seconds")
    assert all(row in output for row in rows)


@pytest.mark.long
def test_groups_benchmark_measures_both_ways(measured):
    content, output = measured["groups"]
    backbones = ("encoder_decoder", "item_decoder")
    rows = [f"{backbone}/2/{way}" for backbone in backbones for way in ("once", "each")]
    assert list(content["users_per_second"]) == rows and all(row in output for row in rows)
    _assert_positive(content["users_per_second"], rows)
    assert content["compilations_while_timing"] == dict.fromkeys(backbones, 0)


@pytest.mark.long
def test_search_benchmark_measures_every_row(measured):
    content, output = measured["search"]
    walked = [f"encoder_decoder/{row}" for row in SEARCH_ROWS]
    rows = walked + [f"item_decoder/{row}" for row in SEARCH_ROWS if not row.endswith("walk")]
    assert list(content["users_per_second"]) == rows
    for quantity in ("users_per_second", "tokens_per_second", "tokens_per_user"):
        _assert_positive(content[quantity], rows)
    # The tiny trie has fewer prefixes than the budget allows: every search gives the model all of them, but for the
    # one that spends nothing on codes without an alternative.
    tokens = {row: content["tokens_per_user"][row] for row in walked}
    assert tokens.pop("encoder_decoder/best_first/1/2") <= min(tokens.values())
    assert len(set(tokens.values())) == 1
    assert all(row in output for row in rows)


@pytest.mark.long
def test_nothing_compiles_while_timing(measured):
    train, decode = measured["train"][0], measured["decode"][0]
    assert measured["search"][0]["compilations_while_timing"] == {
        "encoder_decoder": 0,
        "item_decoder": 0,
    }
    assert train["compilations_while_timing"] == dict.fromkeys(TRAIN_ROWS, 0)
    assert decode["compilations_while_timing"] == {"decoder_only": 0, "item_decoder": 0}


@pytest.mark.long
def test_machine_is_named(measured):
    for content, output in measured.values():
        machine = content["machine"]
        assert machine["cpu"] and machine["cores"] >= 1 and machine["backend"] == "cpu"
        assert machine["jax"] == jax.__version__
        assert machine["cpu"] in output


def test_unknown_backbone_is_one_line(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    command = [sys.executable, "-m", "experiments.benchmark_decode"]
    command += [f"--config={tmp_path}/tiny.py", "--json=unused.json", "--backbones=rnn"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "error: --backbones=rnn: use some of encoder_decoder,decoder_only,item_decoder"
    ]


# Timing.


def test_time_in_turns_notices_a_recompilation():
    double = jax.jit(lambda x: 2 * x)
    sizes = iter(range(1, 100))
    timings, compilations = benchmarking.time_in_turns(
        {"steady": lambda: double(np.zeros(100)), "growing": lambda: double(np.zeros(next(sizes)))},
        seconds=0.0,
    )
    # Three rounds after the first call; each finds a new shape.
    assert compilations == 3
    assert timings["steady"].calls == timings["growing"].calls == 3


def test_time_in_turns_takes_turns_and_the_median(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(benchmarking.time, "perf_counter", lambda: clock[0])

    def lasting(name, *seconds):
        left = list(seconds)

        def call():
            order.append(name)
            clock[0] += left.pop(0)

        return call

    calls = {"a": lasting("a", 5.0, 1.0, 9.0, 2.0), "b": lasting("b", 3.0, 3.0, 3.0, 3.0)}
    timings, _ = benchmarking.time_in_turns(calls, seconds=20.0)
    assert order == ["a", "b"] * 4  # 21 s are spent after three rounds: a fourth would not fit.
    assert timings["a"] == benchmarking.Timing(seconds=2.0, compile_seconds=3.0, calls=3)
    assert timings["b"] == benchmarking.Timing(seconds=3.0, compile_seconds=0.0, calls=3)


def test_strata_count_batches_and_examples_by_shape():
    def batch(items, *weight):
        return {"history": np.zeros((2, items), np.int32), "weight": np.array(weight, np.float32)}

    strata = benchmarking.strata([batch(3, 1, 1), batch(2, 1, 1), batch(3, 1, 0)], "history")
    assert list(strata) == [(2, 2), (2, 3)]
    assert strata[2, 3].count == len(strata[2, 3].batches) == 2
    assert strata[2, 3].examples == 3.0


# Counting.


def test_real_items_leave_out_padding_and_filler_rows():
    by_target = {
        "history": np.array([[5, 6, -1], [7, 8, 9], [1, 2, 3]]),
        "target": np.array([1, 2, 3]),
        "weight": np.array([1.0, 1.0, 0.0]),
    }
    assert benchmark_train.real_items(by_target) == (2 + 1) + (3 + 1)
    by_user = {
        "items": np.array([[5, 6, -1], [7, 8, 9], [1, 2, 3]]),
        "weight": np.array([[0.0, 1, 0], [0, 1, 1], [0, 0, 0]]),
    }
    assert benchmark_train.real_items(by_user) == 2 + 3


SIZES = {"vocab_size": 11, "code_length": 2, "d_model": 4, "num_heads": 2, "d_ff": 8}


def test_gflop_of_an_encoder_decoder_step():
    config = EncoderDecoderConfig(
        **SIZES, head_dim=3, num_encoder_layers=1, num_decoder_layers=1, recency_bias=True
    )
    model = nnx.eval_shape(lambda: EncoderDecoder(config, rngs=nnx.Rngs(0)))
    batch = {"history": np.zeros((5, 3)), "target": np.zeros(5), "weight": np.ones(5)}
    # Heads x head_dim = 6. Encoder: qkv 4 x 18, out 6 x 4, feed-forward twice 4 x 8; cross-attention's kv 4 x 12.
    sees_history = 72 + 24 + 64 + 48
    # Decoder: the same layer, cross-attention's query 4 x 6 and out 6 x 4; the head 4 x 11.
    sees_target = 72 + 24 + 64 + 24 + 24 + 44
    tokens = sees_history * (5 * 3 * 2) + sees_target * (5 * 2)
    assert benchmark_train.step_gflop(model, batch, 2) == pytest.approx(6e-9 * tokens)


def test_gflop_of_a_decoder_only_step():
    config = DecoderOnlyConfig(**SIZES, num_layers=1, tied_head=True)
    model = nnx.eval_shape(lambda: DecoderOnly(config, rngs=nnx.Rngs(0)))
    batch = {"items": np.zeros((5, 4)), "weight": np.ones((5, 4))}
    # qkv 4 x 12, out 4 x 4, gate and up 4 x 16, down 8 x 4; the tied head 11 x 4. Three items are predicted.
    weights = 48 + 16 + 64 + 32 + 44
    assert benchmark_train.step_gflop(model, batch, 2) == pytest.approx(6e-9 * weights * 5 * 3 * 2)


def _assert_positive(values, rows, or_zero=False):
    assert list(values) == list(rows)
    for row, value in values.items():
        assert math.isfinite(value) and (value > 0 or (or_zero and value == 0)), (row, value)
