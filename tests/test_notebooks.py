"""The notebooks run from their first cell to their last, on the smallest of settings; as stored they show results."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from gr.data import synthetic_sequences

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LOG = {"num_users": 200, "num_items": 60, "num_categories": 6, "mean_length": 8.0, "seed": 0}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def cell_of(notebook, name):
    (found,) = [cell for cell in notebook.cells if cell.id == name]
    return found


def run_notebook(name, workdir, parameters, last="pass"):
    """The cells by id, after running them with other values in the parameters cell and one more cell at the end."""
    notebook = read(name)
    settings = cell_of(notebook, "parameters")
    written = re.findall(r"^(\w+) =", settings.source, re.MULTILINE)
    assert set(parameters) <= set(written) and "parameters" in settings.metadata.tags
    values = {"WORKDIR": str(workdir), **parameters} if "WORKDIR" in written else parameters
    settings.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    notebook.cells.append(nbformat.v4.new_code_cell(last, id="last"))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # As stored.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # Most of the time is compilation.
        # This code, whatever is installed.
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        # A cell that fails raises here, with its traceback.
        resources = {"metadata": {"path": str(workdir.parent)}}
        NotebookClient(notebook, timeout=600, resources=resources).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    return {cell.id: cell for cell in notebook.cells}


def printed(cell):
    """What a cell wrote to its standard output."""
    return "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")


def pictures(cells):
    """The cells that drew something."""
    return [
        name
        for name, cell in cells.items()
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))
    ]


# First recommendations.

TINY = {
    "data.max_history": 8,
    "semantic_ids.num_levels": 1,
    "semantic_ids.dim": 8,
    "item_decoder.d_model": 16,
    "item_decoder.d_ff": 16,
    "training.num_epochs": 2,
    "training.eval_users": 200,
    "memory.tune": False,
    "decoding.num_beams": 10,
    "decoding.batch_size": 200,
}
# Appended to the notebook, where the objects of its cells are at hand.
LAST_CELL = """
import json

from gr.runs.recommend import rank_items

items, scores = rank_items(run, gr.runs.history_rows(sequences, user=user), 10)
print(json.dumps({"items": items.tolist(), "scores": scores.tolist(), "best_step": run.step}))
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The first notebook after its last cell, and its workdir."""
    workdir = tmp_path_factory.mktemp("notebooks") / "first"
    settings = {"LOG": LOG, "OVERRIDES": TINY}
    return run_notebook("first_recommendations", workdir, settings, LAST_CELL), workdir


def test_settings_reach_the_data_the_index_and_the_training(first):
    cells, workdir = first
    assert "200 users, 60 items" in printed(cells["data"])
    assert "60 prefixes of 2 codes" in printed(cells["trie"])
    config = json.loads((workdir / "config.json").read_text())
    assert config["item_decoder"]["d_model"] == 16
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    facts = json.loads(printed(cells["last"]))
    assert facts["best_step"] in [line["step"] for line in lines if line["split"] == "validation"]
    assert pictures(cells) == ["curves", "tree", "bars", "recall"]


def test_metrics_of_model_and_baselines_exist(first):
    cells, workdir = first
    metrics = json.loads((workdir / "metrics_test.json").read_text())
    for row in (metrics, *metrics["baselines"].values()):
        assert row["users"] == 200
        assert 0 <= row["ndcg@10"] <= row["hit@10"] <= 1
        assert f"{row['ndcg@10']:.4f}" in printed(cells["table"])
    assert (workdir / "report_test.html").exists()


def test_candidates_are_items_that_the_user_has_not_had(first):
    cells, _ = first
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
    assert printed(cells["memory"]).count("% memory") == 5


# The vectorised trie. Its cells compare the search with scoring each item, and with dictionaries.


@pytest.mark.parametrize(
    "target, package",
    [
        ("gpu:h100", "jax_cuda12_plugin"),
        pytest.param("tpu:v5e", "libtpu", marks=pytest.mark.long),  # Compiles for half a minute.
    ],
)
def test_the_vectorised_trie(target, package, tmp_path):
    settings = {"SIZES": (100, 300), "TARGET": target}
    cells = run_notebook("the_vectorised_trie", tmp_path / "trie", settings)
    drawn = ["build", "constraints", "prior", "picture"]
    assert "24 beams find 4 of the best 4 items" in printed(cells["beams"])
    if importlib.util.find_spec(package) is None:
        assert f"not compiled: target={target} needs {package}" in printed(cells["tpu"])
        assert pictures(cells) == drawn
    else:
        assert f"compiled for {target}" in printed(cells["tpu"])
        cycles = re.findall(r"^(decode\S*) +([\d,]+) cycles", printed(cells["tpu"]), re.MULTILINE)
        assert [name for name, _ in cycles] == ["decode", "decode/forward", "decode/prefill"]
        assert pictures(cells) == [*drawn, "tpu_picture"]


# APAO.

SMALL = {name: value for name, value in TINY.items() if not name.startswith(("memory", "semantic"))}


@pytest.mark.long  # Two trainings and ten searches compile.
def test_apao(tmp_path):
    overrides = SMALL | {"decoding.num_beams": 2, "training.log_every": 2}
    cells = run_notebook("apao", tmp_path / "apao", {"LOG": LOG, "OVERRIDES": overrides})
    lost = [float(x) for x in re.findall(r"([\d.]+)%", printed(cells["lost"]))]
    assert len(lost) == 4 and sum(lost) == pytest.approx(100, abs=0.3)  # Three codes, and found.
    shares = re.findall(r"^(\d) beams: .* ([\d.]+)%$", printed(cells["exact"]), re.MULTILINE)
    assert [beams for beams, _ in shares] == ["1", "2", "3", "5"]
    assert pictures(cells) == ["weights", "compare", "dropped", "validation"]
    lines = (tmp_path / "apao/apao/metrics.jsonl").read_text().splitlines()
    weights = [
        [line["values"][f"prefix_{depth}/weight"] for depth in (1, 2, 3)]
        for line in map(json.loads, lines)
        if line["split"] == "train"
    ]
    np.testing.assert_allclose(np.sum(weights, axis=1), 1.0, atol=1e-5)
    assert np.ptp(weights, axis=0).max() > 1e-4  # They move.


# V-STAR.


@pytest.mark.long  # A minute and more: two phases, three searches.
def test_v_star(tmp_path):
    steps = {
        **{"value.pretrain_steps": 2, "rl.num_steps": 2, "rl.eval_every": 1},
        **{"rl.batch_size": 16, "rl.eval_users": 100},
    }
    settings = {"LOG": LOG, "OVERRIDES": SMALL, "STEPS": steps}
    cells = run_notebook("v_star", tmp_path / "v_star", settings)
    assert pictures(cells) == ["curves", "calibration", "tree", "before", "siblings"]
    for name in ("beam", "ved", "best_first"):
        assert re.search(rf"^{name} ", printed(cells["table"]), re.MULTILINE)
    rewards = re.findall(r"reward ([+-][\d.]+)", printed(cells["grpo"]))
    assert len(rewards) == 6 and all(-1 <= float(reward) <= 1 for reward in rewards)
    assert re.findall(r"^\w+ \w+ +loss [\d.]+", printed(cells["gain"]), re.MULTILINE)
    assert len(printed(cells["gain"]).splitlines()) == 2  # Before and after.


# Bring your own model.


def test_bring_your_own_model(tmp_path):
    settings = {"LOG": LOG, "STEPS": 20}
    cells = run_notebook("bring_your_own_model", tmp_path / "own", settings)
    assert "('prefill', 'step', 'reorder')" in json.dumps(cells["check"].outputs)
    assert "reorder: a beam goes on with another's state" in printed(cells["broken"])
    before, after = re.findall(r"[\d.]+(?= at)", printed(cells["train"]))
    assert float(after) < float(before)
    metrics = json.loads((tmp_path / "own/table/metrics_test.json").read_text())
    assert {"followers", "both fused", "popularity"} <= set(metrics["baselines"])
    for row in (metrics, *metrics["baselines"].values()):
        assert row["users"] == 200
        assert f"{row['ndcg@10']:.4f}" in printed(cells["table"])
    assert pictures(cells) == ["losses", "bars"]
    assert "320 tokens of text" in printed(cells["llm"])
    assert printed(cells["llm_decode"]).startswith("config.json model.safetensors\n")


# As stored.


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_valid_and_with_what_they_show(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.get("name", output.output_type) for cell in code for output in cell.outputs}
    assert not kinds & {"error", "stderr"}
    assert len(pictures({cell.id: cell for cell in code})) >= 2
    assert path.stat().st_size < 400_000
    shown = json.dumps([cell.outputs for cell in code])
    assert not re.search(r"(?<![\w./])/(home|root|tmp|work|content|Users)/", shown)
    install = cell_of(notebook, "install").source
    assert install == cell_of(read("first_recommendations"), "install").source


def test_every_notebook_is_listed_with_its_link_to_colab(tool):
    colab = tool.in_colab(tool.address())
    for page in (ROOT / "README.md", ROOT / "docs/notebooks.md"):
        linked = re.findall(r"\((https://colab[^)]+\.ipynb)\)", page.read_text())
        assert sorted(linked) == [f"{colab}/blob/main/notebooks/{path.name}" for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        title = cell_of(read(path.stem), "title").source
        assert f"({colab}/blob/main/notebooks/{path.name})" in title


# The tool that stores them.


@pytest.fixture
def tool(monkeypatch):
    """notebooks/execute.py as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import execute

    return execute


def test_the_address_is_set_everywhere_at_once(tool, monkeypatch, tmp_path):
    copies = {path: tmp_path / path.name for path in (*NOTEBOOKS, *tool.PAGES)}
    for path, copy in copies.items():
        copy.write_text(path.read_text())
    before = tool.address()
    monkeypatch.setattr(tool, "NOTEBOOKS", [copies[path] for path in NOTEBOOKS])
    monkeypatch.setattr(tool, "PAGES", [copies[path] for path in tool.PAGES])
    tool.set_address("https://github.com/someone/theirs")
    assert tool.address() == "https://github.com/someone/theirs"
    for copy in copies.values():
        text = copy.read_text()
        assert before not in text and tool.in_colab(before) not in text
        assert "colab.research.google.com/github/someone/theirs/blob/main/notebooks/" in text
    one = copies[NOTEBOOKS[0]]
    one.write_text(one.read_text().replace("someone/theirs", "someone/else"))
    with pytest.raises(ValueError, match="someone/else.*someone/theirs.*make it one address"):
        tool.address()


def test_what_concerns_one_machine_is_not_stored(tool, tmp_path):
    output = nbformat.v4.new_output
    outputs = [
        output("stream", name="stdout", text=f"wrote {tmp_path}/runs/report.html"),
        output("stream", name="stderr", text="a warning"),
        output("display_data", data={"text/plain": "a figure"}),
    ]
    cell = nbformat.v4.new_code_cell(
        "1", outputs=outputs, metadata={"execution": {"busy": "12:00"}}
    )
    tool.cleaned(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    assert [part.output_type for part in cell.outputs] == ["stream", "display_data"]
    assert cell.outputs[0].text == "wrote runs/report.html" and cell.metadata == {}


# The install cell.


def install(folder, repository, **environment):
    """Runs the install cell with this address, where gr is not installed."""
    source = cell_of(read("first_recommendations"), "install").source
    source = re.sub(r"https://[^\"]+", repository, source, count=1)
    return subprocess.run(
        [sys.executable, "-S", "-c", source],  # Without site-packages, so without gr.
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
    )


def test_install_cell_asks_for_the_address(tmp_path):
    (tmp_path / "gr").mkdir()  # A folder that only has the name.
    done = install(tmp_path, "https://github.com/OWNER/gr")
    assert done.returncode == 1
    assert "ValueError: write the repository's address into REPOSITORY" in done.stderr


@pytest.mark.parametrize("extras", ["[llm]", "[llm,tpu]"])
def test_install_cell_clones_and_installs_what_the_machine_needs(tmp_path, extras):
    # Stand-ins for git and pip, which write down what they were asked.
    programs, told = tmp_path / "bin", tmp_path / "told"
    (tmp_path / "site/pip").mkdir(parents=True)
    programs.mkdir()
    (programs / "git").write_text(f'#!/bin/sh\necho git "$@" >> {told}\n')
    (programs / "git").chmod(0o700)
    says = f"import sys\nopen({str(told)!r}, 'a').write('pip ' + ' '.join(sys.argv[1:]))\n"
    (tmp_path / "site/pip/__main__.py").write_text(says)
    (tmp_path / "site/pip/__init__.py").touch()
    done = install(
        tmp_path,
        "https://github.com/someone/gr",
        PATH=str(programs),
        PYTHONPATH=str(tmp_path / "site"),
        **({"TPU_ACCELERATOR_TYPE": "v5e"} if "tpu" in extras else {}),
    )
    assert done.returncode == 0, done.stderr
    assert told.read_text().splitlines() == [
        f"git clone --quiet --depth=1 https://github.com/someone/gr {tmp_path}/gr",
        f"pip install --quiet -e {tmp_path}/gr{extras}",
    ]
