r"""Compiles the project's programs for an accelerator that is not there, and shows what they will cost.

    python -m experiments.compile_for --target=tpu:v5e --programs=trie,decode,search,train,rl --json=FILE \
        --config=configs/amazon_office.py [--config.FIELD=VALUE ...] [--num_items=1e6] [--batch=2,16] [--beams=70]

Needs the compiler of the target (`pip install -e '.[aot]'` for TPUs, `'.[cuda]'` for GPUs), but no accelerator; nothing
is run. Programs, each beside what it cannot be faster than:

* `trie`: beam search on replayed logits, as in `benchmark_trie`, whose flags set its sizes: ours beside the published
  trie and the log-sum-exps of the logits. Further sizes of a flag are further programs, such as `trie/batch=16`.
* `decode`, `search`, `train`, `rl`: those of the config, see `gr.runs.programs`; `rl` takes a config of either kind.

`--target=tpu:v5e-8` is a machine of eight chips: there the config's programs are compiled as a run uses all of them.

What the figures are, and what they are not, is in docs/accelerators.md.
"""

from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from experiments.benchmarks import benchmarking, compile_report
from experiments.benchmarks.trie_cases import AXES, read_cases
from experiments.benchmarks.trie_programs import TRIE, trie_programs
from experiments.config_files import supervised_or_reinforced
from experiments.errors import one_line_errors, run_main
from gr.runs.compile_for import TARGETS, compile_programs, compiler, described_devices
from gr.runs.experiment import ConfigError, MeshConfig
from gr.runs.programs import PROGRAMS, Program, experiment_programs

FLAGS = flags.FLAGS


@one_line_errors
def main(argv: Sequence[str]) -> None:
    """Programs, compilation, tables, file."""
    del argv
    # Indexes and weights are made on the host, where each time of compilation is that of a first compilation.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    names = read_programs(FLAGS.programs, FLAGS.target)
    described_devices(FLAGS.target)  # What is missing is told before data are read.
    on = benchmarking.machine()
    programs: dict[str, Program] = {}
    if TRIE in names:
        cases = read_cases({axis: getattr(FLAGS, axis) for axis in AXES})
        programs |= trie_programs(cases, FLAGS.tokens_per_beam, FLAGS.seed)
    of_config = [name for name in names if name != TRIE]
    mesh = MeshConfig()
    if of_config:
        if FLAGS.config is None:
            raise ConfigError(f"programs={','.join(of_config)}: they need --config=FILE")
        experiment = supervised_or_reinforced(FLAGS.config)
        splits, semantic_ids = benchmarking.load(experiment)
        programs |= experiment_programs(
            experiment,
            splits,
            semantic_ids,
            of_config,
            per_chip=TARGETS[FLAGS.target].is_slice,
        )
        mesh = experiment.mesh
    results = compile_programs(
        FLAGS.target,
        programs,
        split=FLAGS.split,
        mesh=mesh,
        progress=lambda line: print(line, flush=True),
    )
    print(
        f"\n{FLAGS.target} ({compiler(FLAGS.target)}), compiled on {benchmarking.machine_line(on)}"
    )
    print(compile_report.text(results, FLAGS.lines))
    benchmarking.write(
        on, {"target": FLAGS.target, "compiler": compiler(FLAGS.target), "programs": results}
    )


def read_programs(names: Sequence[str], target: str) -> list[str]:
    """The programs of `--programs`.

    Raises:
        ConfigError: for an unknown name, none, or one that the target does not have.
    """
    known = (TRIE, *PROGRAMS)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(f"programs={','.join(names)}: use some of {','.join(known)}")
    if TRIE in names and target in TARGETS and TARGETS[target].is_slice:
        raise ConfigError(
            f"programs={','.join(names)}: {TRIE} runs on one chip, and {target} are several; "
            f"use some of {','.join(PROGRAMS)}"
        )
    return [name for name in known if name in names]


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The experiment's configuration.")
    flags.DEFINE_string("target", None, f"What to compile for: {', '.join(TARGETS)}.")
    flags.DEFINE_list("programs", [TRIE, *PROGRAMS], "What to compile.")
    sizes = {
        "num_items": "1e6",
        "vocab_size": "2048",
        "length": "8",
        "batch": "2,16",
        "beams": "70",
    }
    for axis in AXES:
        flags.DEFINE_list(axis, sizes[axis], "Of `trie`: a number such as 1e6, or several.")
    flags.DEFINE_integer("tokens_per_beam", 30, "Of the published trie at its second step.", 1)
    flags.DEFINE_integer("seed", 0, "Of the items of `trie`.", 0)
    flags.DEFINE_boolean("split", True, "Whether to compile for four chips too.")
    flags.DEFINE_integer("lines", 12, "Most expensive lines of code to print for a program.", 0)
    flags.DEFINE_string("json", None, "File to write the figures to.")
    flags.mark_flags_as_required(["target", "json"])
    run_main(main, starts_backend=False)
