"""The notebooks run from their first cell to their last, on the smallest of settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from gr.data import synthetic_sequences

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
QUICKSTART = NOTEBOOKS / "quickstart.ipynb"
LOG = {"num_users": 200, "num_items": 60, "num_categories": 6, "mean_length": 8.0, "seed": 0}
TINY = {
    **{f"data.options.{name}": value for name, value in LOG.items()},
    "data.max_history": 8,
    "data.num_buckets": 1,
    "semantic_ids.num_levels": 1,
    "semantic_ids.codebook_size": 16,
    "semantic_ids.dim": 8,
    "decoder_only.num_layers": 1,
    "decoder_only.d_model": 16,
    "decoder_only.num_heads": 2,
    "decoder_only.d_ff": 16,
    "training.num_epochs": 2,
    "training.eval_users": 200,
    "decoding.num_beams": 10,
    "decoding.batch_size": 200,
}
# Appended to the notebook, where the objects of its cells are at hand.
LAST_CELL = """
import json

from gr.runs.recommend import rank_items

items, scores = rank_items(run, history_rows(sequences, user=user), 10)
facts = {"items": items.tolist(), "scores": scores.tolist(), "best_step": result.best_step}
print(json.dumps(facts))
"""


def parameters(workdir):
    return f"CONFIG = 'synthetic'\nWORKDIR = {str(workdir)!r}\nOVERRIDES = {TINY!r}\n"


def printed(cell):
    """What a cell wrote to its standard output."""
    return "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The quickstart after its last cell, and its workdir."""
    workdir = tmp_path_factory.mktemp("quickstart")
    notebook = nbformat.read(QUICKSTART, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    settings.source = parameters(workdir)
    notebook.cells.append(nbformat.v4.new_code_cell(LAST_CELL, id="last"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # Most of the time is compilation.
        # This code, whatever is installed.
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.chdir(NOTEBOOKS)
        # A cell that fails raises here, with its traceback.
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    return {cell.id: cell for cell in notebook.cells}, workdir


def test_every_code_cell_ran(executed):
    cells, _ = executed
    code = [cell for cell in cells.values() if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    figures = [
        output["data"]["text/html"]
        for cell in code
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    # Popularity, usage, curves, bars, differences, prefix recall.
    assert len(figures) == 6
    assert all(html.startswith('<img src="data:image/svg+xml') for html in figures)


def test_settings_reach_the_data_the_index_and_the_training(executed):
    cells, workdir = executed
    assert "200 users, 60 items" in printed(cells["data"])
    assert "60 prefixes of length 2" in printed(cells["trie"])
    config = json.loads((workdir / "config.json").read_text())
    assert config["decoder_only"]["d_model"] == 16
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    facts = json.loads(printed(cells["last"]))
    assert facts["best_step"] in [line["step"] for line in lines if line["split"] == "validation"]


def test_metrics_of_model_and_baselines_exist(executed):
    cells, workdir = executed
    metrics = json.loads((workdir / "metrics_test.json").read_text())
    for row in (metrics, *metrics["baselines"].values()):
        assert row["users"] == 200
        assert 0 <= row["ndcg@10"] <= row["hit@10"] <= 1
        assert f"{row['ndcg@10']:.4f}" in printed(cells["evaluate"])
    assert (workdir / "report_test.html").exists()


def test_candidates_are_items_that_the_user_has_not_had(executed):
    cells, _ = executed
    facts = json.loads(printed(cells["last"]))
    items, scores = np.array(facts["items"]), np.array(facts["scores"])
    sequences = synthetic_sequences(**LOG)
    assert items.shape == (10, 1)
    assert len(np.unique(items)) == 10
    assert ((items >= 0) & (items < 60)).all()
    assert not np.isin(items, sequences.of(0)).any()
    assert np.isfinite(scores).all() and (np.diff(scores) <= 0).all()
    for item in items.ravel():
        assert sequences.titles()[item] in printed(cells["recommend"])


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stored_valid_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_install_cell_says_what_to_do_where_there_is_no_repository(tmp_path):
    notebook = nbformat.read(QUICKSTART, as_version=4)
    (install,) = [cell for cell in notebook.cells if cell.id == "install"]
    (tmp_path / "gr").mkdir()  # A folder that only has the name.
    done = subprocess.run(
        [sys.executable, "-S", "-c", install.source],  # Without site-packages, so without gr.
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "FileNotFoundError: The repository of gr is neither above nor beside" in done.stderr
    assert "git clone" in done.stderr and "unzip" in done.stderr
