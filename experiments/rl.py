r"""Reinforcement learning of a trained recommender: search, reward, policy and value head (V-STAR and relatives).

    python -m experiments.rl --config=configs/amazon_office_rl.py --workdir=DIR \
        --config.init_from=WORKDIR_OF_SUPERVISED [--config.search.name=ved|best_first|beam|sample] \
        [--config.policy.name=grpo|sibling_grpo|tempo] [--config.FIELD=VALUE ...]

Starts from the supervised run's best model, which is the reference policy too, and takes data, semantic IDs, backbone
and decoding from its config. First the value head learns alone (`value.pretrain_steps`), in `DIR/value_head`; then
policy and value head together. The same command resumes a run that was stopped. Writes what `experiments.train`
writes, so that `evaluate` and `recommend` work on it, and `rl_report.html`.

`--distributed` makes it one of several processes, on several hosts: see `experiments.distributed`.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from experiments import distributed
from experiments.config_files import of_reinforcement
from experiments.errors import one_line_errors, run_main
from gr.runs.reinforce import reinforce, report


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Trains as the flags say."""
    del argv
    workdir = _WORKDIR.value
    run = reinforce(of_reinforcement(_CONFIG.value), workdir)
    result, monitor = run.result, run.reinforced.rl.monitor
    print(f"report: {report(run)}")
    print(
        f"{result.reason}; best {monitor} {result.best_value:.4f} on validation at step {result.best_step:,}\n"
        f"wrote {workdir}; next: python -m experiments.evaluate --workdir={workdir} --split=test"
    )


if __name__ == "__main__":
    # Here rather than above, so that a notebook may import several mains, whose flags share names.
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's configuration.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder to write into; resumes what it holds.")
    distributed.define_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    run_main(main)
