r"""Trains a recommender on a config's data; the same command resumes a run that was stopped.

    python -m experiments.train --config=configs/ml100k.py --workdir=DIR [--config.FIELD=VALUE ...]

Writes into the workdir: the resolved `config.json`, `versions.json` and `data.json` (what the data were),
`semantic_ids.npz` with its report, `checkpoints/` (best and last), `metrics.jsonl` and TensorBoard event files. A run
with a checkpoint is resumed only with the same config and data; without one, a corrected command starts anew.

`--distributed` makes it one of several processes, on several hosts: see `experiments.distributed`.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from experiments import distributed
from experiments.config_files import supervised
from experiments.errors import one_line_errors, run_main
from gr.runs.train import train


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    workdir = _WORKDIR.value
    run = train(supervised(_CONFIG.value), workdir)
    result, monitor = run.result, run.config.training.monitor
    told = result.reason
    if result.best_step is not None:
        told += (
            f"; best {monitor} {result.best_value:.4f} on validation at step {result.best_step:,}"
        )
    print(
        f"{told}\nwrote {workdir}; next: python -m experiments.evaluate --workdir={workdir} --split=test"
    )


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write into; resumes what it holds.")
    distributed.define_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    run_main(main)
