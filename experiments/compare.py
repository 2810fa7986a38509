r"""Runs several experiments with several seeds, or resumes them, and compares them.

    python -m experiments.compare --config=configs/office_apao_study.py --workdir=DIR [--split=test] [--only=ce,msl]
    python -m experiments.compare --configs=ce=configs/a.py,other=configs/b.py --seeds=0,1 --workdir=DIR

A study config has `variants` (name -> experiment config), `seeds`, the `reference` variant that the others are
compared with, and `labels`; `--configs` makes one from experiment configs, whose first is the reference unless
`--reference` names another. Every run is a separate process, with its workdir in DIR/VARIANT/seed_S and its output in
`log.txt` there. Finished runs are kept; the same command resumes stopped runs and retries failed ones. Prints the table
and writes `comparison.md`, `.json`, `.html` and `figures/` into DIR.
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from experiments.config_files import load_config_file, study_of
from experiments.errors import one_line_errors, run_main
from gr.runs import Study, compare, config_of
from gr.runs.run import SPLITS
from gr.training import TrainingError


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Trains missing runs and compares finished ones."""
    del argv
    compare(
        study_from_flags(),
        _WORKDIR.value,
        split=_SPLIT.value,
        only=_ONLY.value,
        at_once=_JOBS.value,
        data_dir=_DATA_DIR.value,
        command=shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]]),
    )


def study_from_flags() -> Study:
    """The study of `--config`, or one made from `--configs`; `--seeds` and `--reference` replace its own."""
    if bool(_CONFIG.value) == bool(_CONFIGS.value):
        raise TrainingError(
            "name a study by --config=FILE, or experiments by --configs=NAME=FILE,..."
        )
    study = study_of(_CONFIG.value) if _CONFIG.value else study_of_files(_CONFIGS.value)
    changes = {}
    if _SEEDS.value:
        if not all(text.isdecimal() for text in _SEEDS.value):
            raise TrainingError(f"--seeds={','.join(_SEEDS.value)}: use numbers such as 0,1,2")
        changes["seeds"] = tuple(map(int, _SEEDS.value))
    if _REFERENCE.value:
        changes["reference"] = _REFERENCE.value
    return dataclasses.replace(study, **changes)


def study_of_files(pairs: Sequence[str]) -> Study:
    """A study of experiment configs, `NAME=FILE` each; the first is the reference."""
    variants = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not name.isidentifier() or not path:
            raise TrainingError(f"--configs: {pair} is not NAME=FILE")
        variants[name] = config_of(load_config_file(path), f"variants.{name}.")
    return Study(name=", ".join(variants), reference=next(iter(variants)), variants=variants)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The study's configuration.")
    _CONFIGS = flags.DEFINE_list("configs", [], "Or experiments to compare: NAME=FILE,...")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs; resumes what it holds.")
    _SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which targets to rank.")
    _SEEDS = flags.DEFINE_list("seeds", [], "Seeds, instead of the study's.")
    _REFERENCE = flags.DEFINE_string("reference", "", "The variant to compare the others with.")
    _ONLY = flags.DEFINE_list("only", [], "Variants to run; what is there is compared.")
    _JOBS = flags.DEFINE_integer("jobs", 1, "Runs at once.", lower_bound=1)
    _DATA_DIR = flags.DEFINE_string("data_dir", "", "The data's folder, instead of the configs'.")
    flags.mark_flag_as_required("workdir")
    run_main(main, starts_backend=False)  # Its runs do, each in a process of its own.
