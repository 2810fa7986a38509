import json
import subprocess

import pytest

from gr.training import TrainingError, check_run_info, git_revision, load_config, save_run_info


def test_config_and_versions_are_written(tmp_path):
    save_run_info(tmp_path / "run", {"model": {"width": 4}, "betas": (0.9, 0.99)})
    assert load_config(tmp_path / "run") == {"model": {"width": 4}, "betas": [0.9, 0.99]}
    found = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert found["backend"] == "cpu" and found["packages"]["jax"] and found["python"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "versions.json"}


def test_a_run_belongs_to_one_configuration(tmp_path):
    config = {"model": {"width": 4, "depth": 2}, "betas": (0.9, 0.99), "steps": 10, "old": 1}
    save_run_info(tmp_path, config)
    check_run_info(tmp_path, config)
    other = {"model": {"width": 8, "depth": 2}, "betas": (0.9, 0.99), "steps": 20, "new": 1}
    with pytest.raises(TrainingError) as caught:
        check_run_info(
            tmp_path,
            other,
            may_differ=["steps"],
            ways_out={"model.width": "Widen it so.", "model.depth": "Deepen it so."},
        )
    message = str(caught.value)
    assert "model.width was 4 and is 8" in message and "another workdir. Widen it so." in message
    assert "old was 1 and is '(missing)'" in message and "new was '(missing)' and is 1" in message
    assert "steps" not in message.split(":", 1)[1] and "epth" not in message
    check_run_info(tmp_path, other, may_differ=["steps", "model.width", "old", "new"])
    assert load_config(tmp_path)["steps"] == 10  # A check writes nothing.
    save_run_info(tmp_path, other)
    assert load_config(tmp_path) == other | {"betas": [0.9, 0.99]}


def test_git_revision(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    assert git_revision(tmp_path) == (None, None)
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    assert git_revision(tmp_path) == (None, None)  # No commit has this folder's files yet.
    git("add", "file")
    git("commit", "-q", "-m", "first")
    revision, modified = git_revision(tmp_path)
    assert len(revision) == 40 and modified is False
    (tmp_path / "file").write_text("2")
    assert git_revision(tmp_path) == (revision, True)
    (tmp_path / "inner").mkdir()
    assert git_revision(tmp_path / "inner") == (None, None)


def test_a_missing_or_damaged_config_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"config\.json does not exist"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TrainingError, match=r"config\.json is not JSON"):
        load_config(tmp_path)


def test_a_run_in_an_object_store(bucket):
    save_run_info("gs://bucket/run", {"width": 4})
    assert sorted(bucket()) == ["run/config.json", "run/versions.json"]
    assert load_config("gs://bucket/run") == {"width": 4}
    with pytest.raises(TrainingError, match="^gs://bucket/run/config.json is of another run"):
        check_run_info("gs://bucket/run", {"width": 5})
    with pytest.raises(TrainingError, match="^gs://bucket/none/config.json does not exist"):
        load_config("gs://bucket/none")
