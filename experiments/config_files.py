"""Config files of the mains and their overrides on the command line; every error is one line."""

import importlib.util
import os
import re
import traceback
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from gr.fields import did_you_mean
from gr.runs import ConfigError, Experiment, Reinforcement, Study, config_of
from gr.runs.experiment import unknown_field
from gr.runs.reinforce import resolved

_KINDS = {
    Experiment: "a supervised experiment (it has neither init_from nor variants): train it with python -m "
    "experiments.train; for reinforcement learning start from `base_rl_config` in configs/base.py, for a study name "
    "experiments by --configs=NAME=FILE",
    Reinforcement: "an experiment of reinforcement learning: run it with python -m experiments.rl",
    Study: "a study of several experiments: run it with python -m experiments.compare",
}
_FREE = ("data.options", "backbone_options")  # Blocks with free fields.


def load_config_file(path: str) -> ConfigDict:
    """The config of a file; text after a colon in `path` is passed to `get_config`.

    Raises:
        ConfigError: if there is no such file, or it fails; the line is named.
    """
    path, *arguments = path.split(":", 1)
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        there = os.listdir(folder) if os.path.isdir(folder) else []
        files = [os.path.join(os.path.dirname(path), name) for name in there if name[-3:] == ".py"]
        raise ConfigError(f"{path}: no such config file{did_you_mean(path, files)}")
    try:
        spec = importlib.util.spec_from_file_location("_config_file", path)
        if spec is None:
            raise ConfigError(f"{path}: a config is a Python file, whose name ends in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"{path} is no config: it has no function get_config()")
        config = module.get_config(*arguments)
    except ConfigError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if os.path.abspath(frame.filename) == os.path.abspath(path)
        ]
        place = f"{path}, line {lines[-1]}" if lines else path
        raise ConfigError(f"{place}: {_of_config_dict(error)}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{path}: get_config() gives no ConfigDict but {config!r}; end it with return c"
        )
    return config


def check_overrides(config: ConfigDict, arguments: Iterable[str], flag: str = "config") -> None:
    """Raises `ConfigError` for a `--config.FIELD` on the command line that the config does not have."""
    for argument in arguments:
        found = re.match(rf"--?(?:no)?{flag}\.([^=]+)", argument)
        if not found:
            continue
        block, path = config, []
        for name in re.sub(r"\[\d+\]", "", found[1]).split("."):
            if not isinstance(block, ConfigDict) or name not in block:
                known = list(block) if isinstance(block, ConfigDict) else []
                if ".".join(path) in _FREE and not did_you_mean(name, known):
                    raise ConfigError(
                        f"unknown field {'.'.join([*path, name])}; the config file has to name such options, as in "
                        f"c.{'.'.join([*path, name])} = ..."
                    )
                raise ConfigError(unknown_field(".".join([*path, name]), known))
            block = block[name]
            path.append(name)


def one_line(error: BaseException) -> str:
    """An error of another library in one line."""
    return " ".join(str(error).split())[:300]


def _of_config_dict(error: Exception) -> str:
    """The message of an error raised by a ConfigDict or a config file."""
    inner = error
    while inner.args and isinstance(inner.args[0], Exception):
        inner = inner.args[0]
    text = str(inner.args[0]) if inner.args else ""
    unknown = re.match(r"""(?:Key "(\w+)" does not exist|'(\w+)'(?:\n|$))""", text)
    if isinstance(error, (AttributeError, KeyError)) and unknown:
        close = re.search(r'Did you mean "(\w+)"', text)
        field = unknown[1] or unknown[2]
        return f"unknown field {field}" + (f"; did you mean {close[1]}?" if close else "")
    kinds = re.match(
        r"Could not override field '(\w+)'.*? (\S.*) is of original type <class '(\w+)'> and cannot be casted to type "
        r"<class '(\w+)'>",
        text.replace(" (reference).", ""),
    )
    if kinds:
        return f"{kinds[1]} = {kinds[2]} is of type {kinds[3]}, not {kinds[4]}"
    return f"{type(error).__name__}: {one_line(error)}"


def supervised(config: ConfigDict) -> Experiment:
    """The experiment of a config for `experiments.train`.

    Raises:
        ConfigError: if it is of another kind, or cannot be used.
    """
    return _of_kind(config, Experiment)


def of_reinforcement(config: ConfigDict) -> Reinforcement:
    """The experiment of a config for `experiments.rl`; see `supervised`."""
    return _of_kind(config, Reinforcement)


def study_of(config: ConfigDict) -> Study:
    """The study of a config for `experiments.compare`; see `supervised`."""
    return _of_kind(config, Study)


def supervised_or_reinforced(config: ConfigDict) -> Experiment:
    """The experiment of a config for `experiments.train`, or the whole one of a config for `experiments.rl`.

    Raises:
        ConfigError: if it is a study, or cannot be used.
        TrainingError: if the supervised run of reinforcement learning is missing.
    """
    experiment = config_of(config)
    return resolved(experiment) if isinstance(experiment, Reinforcement) else supervised(config)


def _of_kind(config: ConfigDict, kind: type) -> Any:
    experiment = config_of(config)
    if not isinstance(experiment, kind):
        raise ConfigError(f"--config: this is {_KINDS[type(experiment)]}")
    return experiment
