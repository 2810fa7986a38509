import json
import resource

import pytest

from gr.training import MetricWriter, TrainingError, read_metrics


def steps(workdir):
    return [(line["step"], line["split"]) for line in read_metrics(workdir / "metrics.jsonl")]


def test_a_line_is_there_when_write_returns(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.start(0)
        writer.write(5, "train", {"loss": 1.5, "odd": float("nan")})
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
        line = json.loads(line)
    assert line.pop("wall_time") > 0
    assert line == {"step": 5, "split": "train", "values": {"loss": 1.5, "odd": None}}


def test_a_resumed_run_drops_what_lies_beyond_its_step(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.start(0)
        for step in (5, 10, 15, 20):
            writer.write(step, "train", {"loss": 1.0})
        writer.write(10, "validation", {"loss": 2.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 25, "spl')  # Killed while writing.
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.start(10)
        writer.write(12, "train", {"loss": 0.5})
    kept = [(5, "train"), (10, "train"), (10, "validation"), (12, "train")]
    assert steps(tmp_path) == kept
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_drops_all_of_an_older_one(tmp_path):
    for _ in range(2):
        with MetricWriter(tmp_path, tensorboard=False) as writer:
            writer.start(0)
            writer.write(1, "train", {"loss": 1.0})
    assert steps(tmp_path) == [(1, "train")]


def test_damaged_lines_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n')
    with pytest.raises(TrainingError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)
    path.write_text('[1]\n{"step": 1}\n')
    with pytest.raises(TrainingError, match="line 1"):
        read_metrics(path)
    with pytest.raises(TrainingError, match="does not exist"):
        read_metrics(tmp_path / "none.jsonl")


def test_writing_before_start_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="start"):
        MetricWriter(tmp_path).write(1, "train", {"loss": 1.0})


def test_tensorboard_gets_the_same_values(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.start(0)
        writer.write(3, "validation", {"ndcg@10": 0.25})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"validation/ndcg" in events.read_bytes()


def test_a_full_disk_is_one_clear_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(
        TrainingError, match=r"metrics\.jsonl could not be written .*free some space"
    ):
        with MetricWriter(tmp_path, tensorboard=False) as writer:
            writer.start(0)
            writer.write(1, "train", {"loss": 1.0})
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # As good as a full disk.
            try:
                writer.write(2, "train", {"loss": 1.0})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.start(1)  # The half line is dropped, the whole one stays.
    assert steps(tmp_path) == [(1, "train")]


def test_metrics_in_an_object_store(bucket):
    for first in (0, 2):  # A run, and the one that resumes it.
        with MetricWriter("gs://bucket/run") as writer:
            writer.start(first)
            for step in (first + 1, first + 2, first + 3):
                writer.write(step, "train", {"loss": float(step)})
            writer.flush()
            lines = read_metrics("gs://bucket/run/metrics.jsonl")
            assert lines[-1]["step"] == first + 3
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    files = bucket()
    events = [name for name in files if name.startswith("run/tensorboard/events")]
    assert len(files) == 1 + len(events) and 1 <= len(events) <= 2  # Named by the second.
    assert any(b"train/loss" in files[name] for name in events)
