"""Commands as a user types them, on a small synthetic log."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = [
    "--config.data.options.num_users=150",
    "--config.data.options.num_items=60",
    "--config.data.options.mean_length=8.0",
    "--config.data.options.seed=0",
    "--config.data.num_buckets=1",
    "--config.semantic_ids.num_levels=2",
    "--config.semantic_ids.codebook_size=8",
    "--config.decoder_only.d_model=16",
    "--config.decoder_only.num_heads=2",
    "--config.decoder_only.d_ff=16",
    "--config.decoder_only.num_layers=1",
    "--config.backbone=decoder_only",
    "--config.training.num_epochs=2",
    "--config.training.eval_every_epochs=1.0",
    "--config.decoding.batch_size=64",
]


ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # What is compiled is hardly run.
    "PYTHONPATH": str(ROOT),
}


def run(module, *arguments, check=True, cwd=ROOT, platforms="cpu"):
    environment = ENVIRONMENT | {"JAX_PLATFORMS": platforms}
    if cwd != ROOT:
        environment.pop("GR_DATA", None)  # As a newcomer has it.
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
