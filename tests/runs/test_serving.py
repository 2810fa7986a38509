"""An exported recommender beside `recommend`, where gr cannot be imported; its memory beside that of the host."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from mains import ENVIRONMENT, ROOT
from test_recommend_all import ITEM_HEAD, ITEM_IDS, make_run

from gr.data import Histories
from gr.memory import Gate
from gr.runs import ConfigError, recommend
from gr.runs.serving import DeviceMemory, export_recommender

pytestmark = pytest.mark.usefixtures("compile_in_haste")

HISTORIES = [
    ["i3", "i8"],
    ["i1", "i5", "i5", "i20"],
    [f"i{item}" for item in range(25)],  # Longer than the model reads; two items are left.
]
SERVER = """
import json, sys
sys.modules["gr"] = None  # Any import of it fails.
{loader}
recommender = Recommender(sys.argv[1])
print(json.dumps([recommender([history])[0] for history in json.loads(sys.argv[2])]))
"""


def served(path, histories):
    (loader,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL
    )
    assert len(loader[loader.index("class") :].strip().splitlines()) <= 25
    done = subprocess.run(
        [sys.executable, "-c", SERVER.format(loader=loader), str(path), json.dumps(histories)],
        env={name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"},
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("backbone", "fields"),
    [
        ("decoder_only", {}),
        ("item_decoder", {"item_decoder__head": "items", "memory__weight": 0.4}),
        ("item_decoder", {"item_decoder__item_share": 0.5, "memory__weight": 0.4}),
    ],
)
def test_a_server_recommends_what_the_run_does(tmp_path, backbone, fields):
    run = make_run(tmp_path / "run", backbone, **fields)
    path = tmp_path / "file"
    export_recommender(run, path, top_k=5, history_length=32)
    lists = served(path, [*HISTORIES, ["i3", "unknown", "i8"]])
    assert lists[-1] == lists[0]
    for history, found in zip(HISTORIES, lists, strict=False):
        expected = recommend(run, history=history, top_k=5)
        assert [item for item, _ in found] == [item.item_id for item in expected]
        assert [score for _, score in found] == pytest.approx(
            [item.score for item in expected], abs=1e-4
        )
    assert len(lists[2]) == 2


@pytest.mark.parametrize(
    "gate",
    [
        Gate((0.3,)),
        Gate((0.1, 0.5, 0.9), (3.0, 5.0), "history_length"),
        Gate((0.1, 0.5, 0.9), (2.0, 8.0), "last_item_count"),
        Gate((0.1, 0.9), (0.2,), "largest_mass"),
    ],
)
@pytest.mark.parametrize("exclude", [True, False])
def test_the_memory_is_that_of_the_host(tmp_path, gate, exclude):
    run = make_run(tmp_path / "run", **ITEM_HEAD, memory__weight=0.4)
    mixture = run.mixture
    object.__setattr__(mixture, "gate", gate)
    past = Histories.of(run.splits.sequences, run.splits.test)
    rows = np.pad(past.padded(), ((0, 0), (0, 3)), constant_values=-1)
    prior, weight = DeviceMemory.of(mixture).prior(rows, exclude=exclude)
    expected, of_user = mixture.of(past, exclude=exclude)
    np.testing.assert_allclose(weight, of_user)
    num_items = len(ITEM_IDS)
    for row in range(len(past)):
        masses = []
        for one in (prior, expected):
            mass, items = np.zeros(num_items), np.asarray(one.items[row])
            np.add.at(mass, items[items >= 0], np.asarray(one.weights[row])[items >= 0])
            masses.append(mass)
        np.testing.assert_allclose(*masses, atol=1e-6)


def test_what_cannot_be_exported_is_told(tmp_path):
    run = make_run(tmp_path / "run", **ITEM_HEAD)
    for options, told in [
        ({"top_k": 0}, "top_k=0: use 1 or more"),
        ({"history_length": 0}, "history_length=0: use 1"),
        ({"batch_size": 0}, "batch_size=0: use 1"),
    ]:
        with pytest.raises(ConfigError, match=told):
            export_recommender(run, tmp_path / "file", **options)
    run = make_run(tmp_path / "own", **ITEM_HEAD, memory__weight=0.4, memory__source="own:source")
    run.__dict__["mixture"] = type("Own", (), {"memory": None})()
    with pytest.raises(ConfigError, match="memory.source='own:source' is a function of Python"):
        export_recommender(run, tmp_path / "file")
    assert not (tmp_path / "file").exists()
