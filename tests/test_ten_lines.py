"""The library alone, as a notebook or another program uses it: no flags, no configs."""

import shutil

import jax
import numpy as np
import pytest

import gr

pytestmark = pytest.mark.usefixtures("compile_in_haste")


def clicks():
    """A log of 60 users who walk along a ring of 12 items."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, 12, 60), rng.integers(5, 10, 60)
    steps = np.concatenate([np.arange(n) for n in lengths])
    users = np.repeat(np.arange(60), lengths)
    return {
        "user_id": [f"u{user}" for user in users],
        "item_id": [f"i{item}" for item in (starts[users] + steps) % 12],
        "timestamp": (1_700_000_000 + 60 * steps).tolist(),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    experiment = gr.runs.table_experiment(user="user_id", item="item_id", time="timestamp")
    experiment = experiment.override(
        {
            **{"semantic_ids.codebook_size": 4, "semantic_ids.dim": 4, "decoding.num_beams": 12},
            **{"item_decoder.d_model": 16, "item_decoder.d_ff": 16, "training.num_epochs": 4},
            **{"data.num_buckets": 1, "decoding.exclude_seen": False},
        }
    )
    return gr.runs.train(experiment, str(tmp_path_factory.mktemp("run")), frame=clicks())


def test_from_a_table_to_recommendations(run):
    assert run.result.best_step > 0
    metrics = gr.runs.evaluate(run, "test")
    assert 0 < metrics["ndcg@10"] <= 1 and metrics["users"] == 60
    found = gr.runs.recommend(run, user="u3", top_k=5)
    assert len(found) == 5 and all(item.item_id.startswith("i") for item in found)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    by_names = gr.runs.recommend(run, history=["i3", "i4"], top_k=5)
    assert by_names == gr.runs.recommend(run, history="i3, i4", top_k=5)
    with pytest.raises(gr.GrError, match="give either user=ID or history="):
        gr.runs.recommend(run)


def test_the_run_can_be_loaded_again_and_goes_on(run):
    again = gr.runs.load_run(run.workdir)
    assert again.config == run.config and again.step == run.step
    same = jax.tree.map(np.array_equal, again.model, run.model)
    assert all(jax.tree.leaves(same))
    assert gr.runs.recommend(again, user="u3") == gr.runs.recommend(run, user="u3")
    resumed = gr.runs.train(run.config, run.workdir, frame=clicks())
    assert resumed.result.best_step == run.result.best_step


def test_another_frame_is_refused_and_takes_nothing_from_the_run(run):
    other = {name: values[:-1] for name, values in clicks().items()}
    with pytest.raises(gr.GrError, match="these are not the data of .*were"):
        gr.runs.train(run.config, run.workdir, frame=other)
    assert gr.runs.load_run(run.workdir).step == run.step


def test_the_kept_frame_moves_with_the_workdir(run, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "moved")
    moved = gr.runs.load_run(str(tmp_path / "moved"))
    assert moved.splits.sequences.num_items == run.splits.sequences.num_items
    (kept,) = (tmp_path / "moved" / "data").glob("*" + run.config.data.path)
    kept.unlink()
    with pytest.raises(gr.GrError, match="frame-.* does not exist"):
        gr.runs.load_run(str(tmp_path / "moved"))


def test_what_a_run_is_asked_for_has_to_exist(run):
    with pytest.raises(gr.GrError, match="split='tset': use one of validation, test"):
        gr.runs.evaluate(run, "tset")
    with pytest.raises(gr.GrError, match="decoder='vd': use one of beam, sample, ved, best_first"):
        gr.runs.evaluate_search(run, "test", "vd", 24)
    with pytest.raises(gr.GrError, match="a list of item rows .* at least one"):
        gr.runs.recommend(run, history=[])
    with pytest.raises(gr.GrError, match="top_k=0: use 1 or more"):
        gr.runs.recommend(run, user="u3", top_k=0)


def test_a_frame_that_is_no_table_is_refused(tmp_path):
    experiment = gr.runs.table_experiment(user="user_id", item="item_id")
    with pytest.raises(gr.GrError, match="frame=int is no table"):
        gr.runs.train(experiment, str(tmp_path), frame=3)
    with pytest.raises(gr.GrError, match=r"a frame needs data\.format='table', not 'synthetic'"):
        gr.runs.train(
            experiment.override({"data.format": "synthetic"}), str(tmp_path), frame=clicks()
        )


def test_the_library_is_imported_in_no_time():
    import subprocess
    import sys

    code = "import sys, gr; print(gr.__version__, 'jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [gr.__version__, "False", "False"]
