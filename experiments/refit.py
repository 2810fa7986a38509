r"""Trains a run anew on all interactions, with what its validation chose: the one to recommend with.

    python -m experiments.refit --workdir=DIR --output=DIR_ALL

A run learns nothing from its validation and test targets, each user's newest interactions. The new run in DIR_ALL does;
its epochs, memory and weight are those of DIR. Recommend with it, export it or write all lists; there is nothing to
evaluate it on. Called again, it resumes a stopped one.

    python -m experiments.refit --workdir=DIR --output=DIR_TEST --keep_test
    python -m experiments.evaluate --workdir=DIR_TEST --split=test

tells what that brings: the test stays held out, and validation targets are learnt from, by model, memory and baselines.

`--distributed` makes it one of several processes, as for `experiments.train`.
"""

from collections.abc import Sequence

from absl import flags

from experiments import distributed
from experiments.errors import one_line_errors, run_main
from gr.runs.refit import refit
from gr.runs.run import load_run


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Refits as the flags say."""
    del argv
    run = load_run(_WORKDIR.value, data_dir=_DATA_DIR.value, remedy="--workdir=ANOTHER")
    refit(run, _OUTPUT.value, keep_test=_KEEP_TEST.value)
    command = "evaluate --split=test" if _KEEP_TEST.value else "recommend --user=ID"
    print(f"wrote {_OUTPUT.value}; next: python -m experiments.{command} --workdir={_OUTPUT.value}")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    _OUTPUT = flags.DEFINE_string("output", None, "Folder of the new run; resumes what it holds.")
    _KEEP_TEST = flags.DEFINE_bool("keep_test", False, "Keep the test targets held out.")
    _DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the data, if it was moved.")
    distributed.define_flags()
    flags.mark_flags_as_required(["workdir", "output"])
    run_main(main)
