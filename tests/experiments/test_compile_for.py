"""The command that compiles for accelerators that are not there; the trie's programs where libtpu is installed."""

import importlib.util
import json
import re

import jax
import numpy as np
import pytest
from mains import run

from experiments.benchmarks import compile_report
from experiments.benchmarks.trie_cases import Case
from experiments.benchmarks.trie_programs import trie_programs
from experiments.compile_for import read_programs
from gr.runs import ConfigError
from gr.runs.compile_for import compile_programs
from gr.runs.programs import Program
from gr.training import make_mesh, shard_batch

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install -e '.[aot]'",
)
SIZES = ["--num_items=300", "--vocab_size=32", "--length=3", "--beams=5"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--target=tpu:v7"], "error: --target=tpu:v7 is unknown: use one of tpu:v5e, tpu:v6e"),
        (
            ["--target=tpu:v5e", "--programs=trie,decod"],
            "error: --programs=trie,decod: use some of trie,decode",
        ),
        (["--programs=trie"], "error: --target=... is missing"),
    ],
)
def test_wrong_flags_are_told_in_one_line(arguments, told, tmp_path):
    done = run("compile_for", *arguments, f"--json={tmp_path}/x.json", check=False)
    assert done.returncode == 1
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_the_trie_is_not_compiled_for_several_chips():
    assert read_programs(["train", "decode"], "tpu:v5e-8") == ["decode", "train"]
    assert read_programs(["trie"], "tpu:v5e") == ["trie"]
    with pytest.raises(ConfigError, match="trie runs on one chip, and tpu:v5e-8 are several"):
        read_programs(["trie", "train"], "tpu:v5e-8")


@needs_libtpu
def test_the_trie_is_compiled_for_a_tpu(tmp_path):
    flags = ["--target=tpu:v5e", "--programs=trie", "--batch=2,3", *SIZES]
    done = run("compile_for", *flags, f"--json={tmp_path}/trie.json")
    content = json.loads((tmp_path / "trie.json").read_text())
    programs = content["programs"]
    cases = ("trie", "trie/batch=3")
    floors = ("floor", "floor_flat", "floor_relative")
    assert set(programs) == {
        name
        for case in cases
        for name in (case, *(f"{case}/{of}" for of in (*floors, "published")))
    }
    for case in cases:
        cheapest = min(programs[f"{case}/{floor}"]["cycles"] for floor in floors)
        for name in (case, f"{case}/published"):
            of = programs[name]
            assert of["cycles_over_floor"] == of["cycles"] / cheapest > 1
            assert of["gathers"]["count"] > 0 and of["sorts"]["count"] > 0
            assert sum(kind["cycles"] for kind in of["kinds"].values()) == of["cycles"]
            assert sum(line["cycles"] for line in of["lines"]) == of["cycles"]
            for number in ("compile_seconds", "bytes", "argument_bytes", "peak_bytes"):
                assert of[number] > 0
    assert any(line["source"].startswith("gr/trie/") for line in programs["trie"]["lines"])
    assert content["target"] == "tpu:v5e" and content["compiler"].startswith("libtpu ")
    assert "experiments.compile_for --target=tpu:v5e" in content["command"]
    for name in programs:
        assert f"\n{name} " in done.stdout


@needs_libtpu
@pytest.mark.usefixtures("compile_anew")
def test_the_report_tells_what_a_chip_of_a_slice_holds():
    def lower(mesh):
        batch = shard_batch(np.ones((16, 512), np.float32), mesh)
        return jax.jit(lambda x: x.sum(0)).lower(batch)

    results = compile_programs("tpu:v5e-8", {"sum": Program(lower, splits=True)})
    table = compile_report.text(results, 0).split("a chip of the slice")[1]
    row = re.search(r"^sum +data=8, model=1 +0.00 .* 0.0% +1 ", table, re.MULTILINE)
    assert row is not None


def test_programs_of_the_trie_are_named_by_what_they_differ_in():
    cases = [Case(300, 32, 3, 2, 5), Case(300, 32, 3, 4, 5), Case(300, 32, 2, 2, 5)]
    programs = trie_programs(cases, 30, 0)
    assert {name for name in programs if "floor" not in name} == {
        *("trie", "trie/published", "trie/batch=4", "trie/batch=4/published"),
        "trie/length=2",  # The published trie is one of three levels at least.
    }
    assert set(programs["trie/published"].floors) == set(programs["trie"].floors)
    text = programs["trie/length=2/floor_flat"].lower(make_mesh()).as_text()
    assert "tensor<10x32xf32>" in text and "tensor<2x5x32xf32>" not in text
