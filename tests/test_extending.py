"""Every snippet of docs/extending.md runs, each by itself, and what it defines fits where the page says."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from gr.data import leave_one_out, load_sequences
from gr.evaluation import fit_own_baseline
from gr.models import load_backbone
from gr.semantic_ids import make_semantic_ids
from gr.training import LossConfig, supervised_loss
from gr.trie import TrieIndex

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TITLES = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)


def test_every_part_has_a_snippet():
    assert len(TITLES) == 8 and len(SNIPPETS) == 10


@pytest.fixture
def my_module(monkeypatch):
    """Runs the snippet that defines `name`, in the module `my_module`."""

    def define(name):
        module = types.ModuleType("my_module")
        monkeypatch.setitem(sys.modules, "my_module", module)
        (snippet,) = [snippet for snippet in SNIPPETS if f"def {name}(" in snippet]
        exec(compile(snippet, f"docs/extending.md, {name}", "exec"), vars(module))
        return f"my_module:{name}"

    return define


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number, monkeypatch):
    module = types.ModuleType("snippet")
    monkeypatch.setitem(sys.modules, "snippet", module)  # Dataclasses look their module up.
    exec(compile(SNIPPETS[number], f"docs/extending.md, {number}", "exec"), vars(module))


def test_what_the_snippets_define_fits(my_module):
    splits = leave_one_out(load_sequences("synthetic", num_users=60))
    assert load_sequences(my_module("read_plays"), "plays.db", min_length=4).num_users == 1
    name = my_module("vectors_of_titles")
    ids, _ = make_semantic_ids(splits, vectors=name, num_levels=2, codebook_size=4)
    assert len(ids.codes) == splits.sequences.num_items
    sizes = {"vocab_size": 50, "code_length": 3, "rngs": nnx.Rngs(0)}
    assert load_backbone(my_module("shallow"), (), d_model=16, **sizes).config.d_model == 16
    tokens = np.array([[2, 5], [3, 6]])
    loss = LossConfig(my_module("focal"))
    supervised_loss(
        tokens, level="user", targets_per_batch=2.0, loss=loss, index=TrieIndex.build(tokens, 8)
    )
    assert fit_own_baseline(my_module("last_again"), splits).backoff
