"""The main that builds an index from a file of Semantic IDs, typed as a user types it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gr.semantic_ids import SemanticIds
from gr.trie import TrieIndex, walk

ROOT = Path(__file__).parents[2]
CODES = np.array([[0, 1, 2], [0, 1, 3], [1, 0, 0], [0, 1, 2], [3, 1, 1]])


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.build_index", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_it_shows_statistics_and_writes_the_index(tmp_path):
    semantic_ids = SemanticIds(CODES, (4, 2, 8), np.arange(5).astype(str))
    semantic_ids.save(tmp_path / "ids.npz")
    np.save(tmp_path / "attributes.npy", CODES[:, :2] == 1)
    output = tmp_path / "new" / "index.gr"
    done = run(
        f"--ids={tmp_path / 'ids.npz'}",
        f"--output={output}",
        f"--attributes={tmp_path / 'attributes.npy'}",
        "--vocab_size=40",
        "--headroom=0.5",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == [
        "level", "storage", "nodes", "mean branching", "largest", "most items below", "bytes",
    ]  # fmt: skip
    numbers = [re.split(r"\s{2,}", line) for line in lines[2:5]]
    assert [row[:6] for row in numbers] == [
        ["1", "scan", "3", "3.00", "3", "3"],
        ["2", "scan", "3", "1.00", "1", "3"],
        ["3", "scan", "4", "1.33", "2", "2"],
    ]
    assert "5 items, 4 distinct Semantic IDs; 2 items share theirs, at most 2 one" in done.stdout
    assert f"wrote {output}" in done.stdout
    assert re.search(r"built in \d+\.\d\d s", done.stdout)

    index = TrieIndex.load(output)
    assert f"{index.nbytes:,} bytes, {index.nbytes / 5:.2f} an item" in done.stdout
    assert (index.vocab_size, index.num_items, index.layout.num_attributes) == (40, 5, 2)
    assert [(level.base, level.span) for level in index.layout.levels] == [(2, 4), (6, 2), (8, 8)]
    assert (walk(index, jnp.asarray(semantic_ids.tokens)) >= 0).all()


def json_ids(path):
    rows = {
        str(item): [f"<{letter}_{code}>" for letter, code in zip("abc", row, strict=True)]
        for item, row in enumerate(CODES.tolist())
    }
    path.write_text(json.dumps(rows))


def csv_ids(path):
    rows = [f"item{n},{','.join(map(str, row))}" for n, row in enumerate(CODES.tolist())]
    path.write_text("\n".join(["item_id,a,b,c", *rows]))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("toy.index.json", json_ids),
        ("ids.csv", csv_ids),
        ("codes.npy", lambda path: np.save(path, CODES)),
    ],
)
def test_other_files(name, write, tmp_path):
    write(tmp_path / name)
    done = run(f"--ids={tmp_path / name}", f"--output={tmp_path / 'index.gr'}")
    assert done.returncode == 0, done.stderr
    assert "5 items, 4 distinct Semantic IDs" in done.stdout
    # Without sizes in the file, each level has room for a power of two of codes: 4, 2 and 4.
    index = TrieIndex.load(tmp_path / "index.gr")
    assert index.vocab_size == 2 + 4 + 2 + 4
    assert (walk(index, jnp.asarray(CODES + [2, 6, 8])) >= 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": "none.json"}, "none.json does not exist"),
        ({"ids": "ids.txt"}, "ids.txt: unknown ending"),
        ({"vocab_size": 5}, "vocabulary in [0, 5)|outside [0, 5)"),
        ({"attributes": "wrong.npy"}, "attributes must be [N, A] with N = 5"),
        ({"output": "codes.npy/index.gr"}, "index.gr: cannot be written"),
    ],
)
def test_what_the_user_can_mend_is_one_line(options, message, tmp_path):
    np.save(tmp_path / "codes.npy", CODES)
    np.save(tmp_path / "wrong.npy", np.ones((4, 1), bool))
    chosen = {"ids": "codes.npy", "output": "index.gr"} | options
    named = {
        key: tmp_path / value if isinstance(value, str) else value for key, value in chosen.items()
    }
    done = run(*(f"--{key}={value}" for key, value in named.items()))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert any(part in done.stderr for part in message.split("|"))
    assert not (tmp_path / "index.gr").exists()
