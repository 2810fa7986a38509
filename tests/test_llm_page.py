"""The snippets of docs/llm.md run, on a tiny checkpoint in place of a public one."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gr.data import load_tokenizer, prompt_pieces, titled_pieces
from gr.models import load_hf, save_hf

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs/checkpoints/qwen2_tiny"
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/llm.md").read_text(), re.DOTALL)

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def test_from_a_checkpoint_to_a_recommendation_in_fifteen_lines(tmp_path, monkeypatch, capsys):
    snippet = SNIPPETS[0]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 15
    folder = tmp_path / re.search(r'CHECKPOINT = "(.*)"', snippet)[1]
    save_hf(load_hf(TINY, weights="random"), folder)
    shutil.copyfile(TINY / "tokenizer.json", folder / "tokenizer.json")
    sids = {f"item {n}": [f"<a_{n % 4}>", f"<b_{n // 4}>", f"<c_{n}>"] for n in range(12)}
    (tmp_path / "items.index.json").write_text(json.dumps(sids))
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/llm.md", "exec"), {})
    lines = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    items, scores = zip(*lines, strict=True)
    assert len(set(items)) == 10 and set(items) <= set(sids)
    scores = np.array(scores, float)
    assert (np.diff(scores) <= 0).all() and 0.5 < np.exp(scores).sum() < 1


def test_the_pages_templates_are_templates():
    module = {}
    exec(compile(SNIPPETS[1], "docs/llm.md", "exec"), module)
    pieces = prompt_pieces(module["my_template"], load_tokenizer(TINY))
    assert pieces.before and pieces.between and pieces.after
    titled = titled_pieces(module["my_titled_template"], load_tokenizer(TINY), ["a pen", "ink"])
    assert titled.of_second and len(titled.between) == 3


def test_the_page_has_no_other_snippets():
    assert len(SNIPPETS) == 2
