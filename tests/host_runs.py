"""Small runs of every kind of loss: `python host_runs.py FOLDER PORT PROCESS` is one of two processes."""

import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from experiments.config_files import load_config_file, of_reinforcement, supervised
from gr.runs import rl_report
from gr.runs.evaluate import evaluate
from gr.runs.reinforce import reinforce
from gr.runs.run import load_run
from gr.runs.train import train
from gr.training import mesh

ROOT = Path(__file__).parents[1]
SMALL = {
    "data.options.num_users": 64,
    "data.options.num_items": 40,
    "data.options.mean_length": 6.0,
    "data.num_buckets": 1,
    "data.max_history": 8,
    "semantic_ids.codebook_size": 6,
    "decoder_only.d_model": 16,
    "decoder_only.num_heads": 2,
    "decoder_only.d_ff": 16,
    "decoder_only.num_layers": 1,
    "decoding.num_beams": 10,
    "decoding.batch_size": 16,
    "training.level": "target",
    "training.batch_size": 64,
    "training.num_epochs": 2,
    "training.eval_every_epochs": 2.0,
    "training.eval_users": 20,
    "training.log_every": 1,
}
LOSSES = {
    # 75 // 9 = 8 and 70 // 9 = 7 rows: a batch that two processes share evenly, and one that they cannot.
    "ce": {"loss.name": "ce", "training.level": "user", "training.items_per_batch": 75},
    "msl": {"loss.name": "msl", "training.level": "user", "training.items_per_batch": 70},
    "apao": {"loss.name": "apao_pointwise"},
}
RL = {
    "search.num_candidates": 4,
    "search.budget": 12,
    "search.initial_beams": 3,
    "value.num_heads": 2,
    "value.d_ff": 16,
    "value.pretrain_steps": 2,
    "rl.batch_size": 16,
    "rl.num_steps": 4,
    "rl.log_every": 1,
    "rl.eval_every": 4,
    "rl.checkpoint_every": 4,
    "rl.eval_users": 20,
}


def config_of(name, fields):
    config = load_config_file(str(ROOT / "configs" / f"{name}.py"))
    config.update_from_flattened_dict(fields)
    return config


def small(**fields):
    return supervised(config_of("synthetic", SMALL | fields))


# Of the two processes: states are split over devices of one process, and over those of both.
SPLIT = {"msl": {"mesh.model": 2}, "apao": {"mesh.model": 8}}


def run_all(folder, split=None):
    for name, fields in LOSSES.items():
        train(small(**fields, **(split or {}).get(name, {})), f"{folder}/{name}")
    evaluate(load_run(f"{folder}/apao"), "validation")
    rl = config_of("amazon_office_rl", RL | {"init_from": f"{folder}/ce"})
    with mock.patch.object(rl_report, "_trees", return_value={}):  # Two searches more, for figures.
        reinforce(of_reinforcement(rl), f"{folder}/rl")


if __name__ == "__main__":
    folder, port, process = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    mesh.SMALL = 16  # So that what is so small here is split too.
    parts = mesh.state_shardings(np.zeros((16, 16)), mesh.make_mesh(model=8))
    assert not parts.is_fully_replicated and parts.mesh.is_multi_process
    run_all(folder, SPLIT)
    assert jax.device_count() == 8 and jax.process_count() == 2
