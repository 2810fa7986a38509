"""What is wrong with an experiment's configuration, said before anything is read or written."""

from gr.errors import GrError
import difflib
import importlib.util
import math
import os
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.base import base_config
from configs.base_rl import base_rl_config
from gr.data.load import FORMATS
from gr.decoding import SEARCHES
from gr.training.objectives import LEVELS, LOSSES, WEIGHTS
from gr.training.optimizers import DECAYS

STUDY_FIELDS = ("name", "seeds", "reference", "labels", "variants")
FREE = ("data.options",)  # Blocks whose fields are the reader's; it checks them.

# Fields that hold one of a few words. What else is a name is checked where it is used, on the way to the first step.
_CHOICES = {
    "backbone": ("encoder_decoder", "decoder_only"),
    "data.format": (*FORMATS, "movielens_100k", "synthetic"),
    "data.split": ("leave_one_out", "by_time"),
    "loss.name": LOSSES,
    "loss.weights": WEIGHTS,
    "semantic_ids.vectors": ("text", "interactions", "both", "FILE.npy"),
    "semantic_ids.collision": ("extra_code", "share"),
    "training.level": LEVELS,
    "training.schedule": tuple(DECAYS),
    "decoding.normalise_over": ("trained", "vocabulary", "children"),
    "search.name": SEARCHES,
    "search.normalise_over": ("", "vocabulary", "children"),
    "policy.name": ("grpo", "sibling_grpo", "tempo"),
    "policy.aggregation": ("group", "token"),
    "value.prefix_vectors": ("node", "group"),
    "rl.schedule": tuple(DECAYS),
    "rl.targets": ("train", "validation"),
}

# Whole numbers are 1 or more and others above 0, all of them finite, but for these.
_AT_LEAST_0 = {
    *("data.time_jitter", "loss.eta"),
    *("training.eval_users", "training.patience", "training.weight_decay"),
    *("search.initial_beams", "search.entropy_weight", "search.prior_weight", "search.exploration"),
    *("search.sampling_temperature", "search.crowding", "search.budget"),
    *("policy.kl_weight", "policy.sibling_weight", "policy.cppo_budget", "value.pretrain_steps"),
    *("rl.recent_targets", "rl.supervised_weight", "rl.sync_every", "rl.weight_decay"),
    *("rl.eval_users", "rl.patience"),
}
_SEEDS = {"seed", "semantic_ids.seed"}
_SHARES = {  # From 0 to 1.
    *("semantic_ids.min_perplexity", "training.warmup_share", "rl.warmup_share"),
    *("value.gamma", "value.lam"),
}
_SHARES_BELOW_1 = {
    *("encoder_decoder.dropout", "decoder_only.dropout", "value.dropout"),
    *("training.b2", "rl.b2", "data.validation_share", "data.test_share"),
}


class ConfigError(GrError):
    """Raised for a configuration that cannot be used; names the file or field and the remedy."""


def check_config(config: ConfigDict, field: str = "") -> None:
    """Checks the fields of an experiment, of supervised or of reinforcement learning, or of a study of experiments.

    Args:
        config: as `get_config` gave it and the command line changed it.
        field: where it stands in another config, with a dot at the end.

    Raises:
        ConfigError: for the first field that is unknown, missing, of a wrong type or out of range.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{field or 'get_config()'} gives no ConfigDict but {config!r}")
    if "variants" in config:
        _check_names(config, STUDY_FIELDS, field)
        for name, variant in config.variants.items():
            check_config(variant, f"{field}variants.{name}.")
            check_monitor(variant, f"{field}variants.{name}.")
        return
    defaults = base_rl_config() if "init_from" in config else base_config()
    _check_block(config, defaults, field)
    flat = dict(_flat(config))
    for name, value in flat.items():
        _check_value(name, value, field)
    if flat.get("data.split") == "by_time":
        if not 0 < flat["data.test_share"] + flat["data.validation_share"] < 1:
            raise ConfigError(
                f"{field}data.validation_share and {field}data.test_share together must be below 1"
            )


def check_monitor(config: ConfigDict, prefix: str = "") -> None:
    """Raises `ConfigError` if evaluations will not give the metric that tells which model is best.

    A run of reinforcement learning has its beams from the run that it starts from: it is checked again when the two
    configs are one.
    """
    name = "rl.monitor" if "init_from" in config else "training.monitor"
    flat = dict(_flat(config))
    beams, depth = flat.get("decoding.num_beams", 20), flat.get("semantic_ids.num_levels", 1) + 1
    if flat[name].startswith("prefix_recall/") and (
        "decoding.num_beams" not in flat or flat["semantic_ids.path"]
    ):
        return  # The number of levels is not known yet.
    ranked = {f"{metric}@{k}": k for k in (10, 20) for metric in ("hit", "ndcg")}
    if ranked.get(flat[name], 0) > beams:
        raise ConfigError(
            f"{prefix}{name}={flat[name]!r} needs as many beams, and decoding.num_beams is {beams}; raise it, or "
            f"take --config.{name}=loss"
        )
    known = [metric for metric, k in ranked.items() if k <= beams]
    known += ["loss", *(f"prefix_recall/{level + 1}" for level in range(depth))]
    _check_choice(f"{prefix}{name}", flat[name], known)


def check_experiment(config: ConfigDict, *, of_rl: bool = False) -> None:
    """As `check_config`, and that it can be trained and is of the kind that the main is for.

    Raises:
        ConfigError: for one of another kind, or what `check_config` and `check_monitor` find.
    """
    check_config(config)
    if "variants" not in config:
        check_monitor(config)
    kind = "study" if "variants" in config else "rl" if "init_from" in config else "supervised"
    if kind != ("rl" if of_rl else "supervised"):
        told = {
            "study": "a study of several experiments: run it with python -m experiments.compare",
            "rl": "an experiment of reinforcement learning: run it with python -m experiments.rl",
            "supervised": "no experiment of reinforcement learning, it lacks init_from; start one from "
            "configs/base_rl.py",
        }
        raise ConfigError(f"--config: this is {told[kind]}")


def load_config_file(path: str) -> ConfigDict:
    """The config of a file, whose `get_config` takes what stands after a colon in `path`, if anything does.

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
    """Raises `ConfigError` for a `--config.FIELD` of the command line that the config has not."""
    for argument in arguments:
        found = re.match(rf"--?(?:no)?{flag}\.([^=]+)", argument)
        if not found:
            continue
        block, path = config, []
        for name in re.sub(r"\[\d+\]", "", found[1]).split("."):
            if not isinstance(block, ConfigDict) or name not in block:
                known = list(block) if isinstance(block, ConfigDict) else []
                raise ConfigError(_unknown(".".join([*path, name]), known))
            block = block[name]
            path.append(name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?`, or nothing where nothing is like it."""
    close = difflib.get_close_matches(str(name), list(map(str, known)), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def one_line(error: BaseException) -> str:
    """An error of another library in one line."""
    return " ".join(str(error).split())[:300]


def _unknown(field: str, known: Iterable[str]) -> str:
    block, _, name = field.rpartition(".")
    known = sorted(known)
    close = did_you_mean(name, known)
    if not close and block in FREE:
        close = f"; the config file has to name the reader's options, such as c.{field} = ..."
    elif not close:
        close = f"; {block or 'the config'} has {', '.join(known)}" if known else ""
    return f"unknown field {field}{close}"


def _of_config_dict(error: Exception) -> str:
    """What a ConfigDict, or anything else in a config file, complains about."""
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


def _check_block(block: ConfigDict, defaults: ConfigDict, prefix: str) -> None:
    """Same fields and types as the defaults, at every level: a block may have been replaced as a whole."""
    _check_names(block, list(defaults), prefix)
    for name, default in defaults.items():
        field, value = f"{prefix}{name}", block[name]
        if isinstance(default, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise ConfigError(f"{field}={value!r} is no block of fields")
            if field not in FREE and not field.endswith(tuple(f".{free}" for free in FREE)):
                _check_block(value, default, f"{field}.")
        elif not _is_like(value, default):
            raise ConfigError(
                f"{field}={value!r} is of type {type(value).__name__}; give one like {default!r}"
            )


def _check_names(block: ConfigDict, known: Sequence[str], prefix: str) -> None:
    for name in block:
        if name not in known:
            raise ConfigError(_unknown(f"{prefix}{name}", known))
    missing = [name for name in known if name not in block]
    if missing:
        raise ConfigError(
            f"{prefix}{missing[0]} is missing: set single fields of a block, such as c.training.num_epochs = 3, "
            "instead of replacing it"
        )


def _is_like(value: Any, default: Any) -> bool:
    if default is None:  # A number or none.
        return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, (tuple, list)):
        return isinstance(value, (tuple, list)) and all(
            _is_like(one, default[0]) for one in value if default
        )
    return isinstance(value, type(default))


def _check_value(name: str, value: Any, prefix: str) -> None:
    field = f"{prefix}{name}"
    if name in _CHOICES and not (name == "semantic_ids.vectors" and value.endswith(".npy")):
        _check_choice(field, value, _CHOICES[name])
    if isinstance(value, (tuple, list)):
        for one in value:
            if isinstance(one, float) and not math.isfinite(one):
                raise ConfigError(f"{field}={tuple(value)}: use finite numbers")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if name in _SEEDS:
        good, told = 0 <= value < 2**32, "a whole number from 0 to 2**32 - 1"
    elif name in _AT_LEAST_0:
        good, told = value >= 0, "0 or more"
    elif name in _SHARES:
        good, told = 0 <= value <= 1, "a number from 0 to 1"
    elif name in _SHARES_BELOW_1:
        good, told = 0 <= value < 1, "0 or more, and below 1"
    elif isinstance(value, int):
        good, told = value >= 1, "1 or more"
    else:
        good, told = value > 0, "a finite number above 0"
    if not good or not math.isfinite(value):
        raise ConfigError(f"{field}={value}: use {told}")


def _check_choice(field: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        close = did_you_mean(value, known)
        words = ", ".join(word or "''" for word in known)
        raise ConfigError(
            f"{field}={value!r} is unknown{f'{close} Use' if close else '; use'} one of {words}"
        )


def _flat(block: Mapping, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and values of all fields but the reader's options."""
    for name, value in block.items():
        if isinstance(value, Mapping | ConfigDict):
            if f"{prefix}{name}" not in FREE:
                yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
