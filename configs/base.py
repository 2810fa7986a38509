"""Every experiment's fields with their defaults, as a `ConfigDict`; `gr.runs.Experiment` says what each means."""

from ml_collections import ConfigDict, config_dict

from gr.runs import Experiment, Reinforcement


def base_config() -> ConfigDict:
    """The default experiment: the encoder-decoder at its published reference size, cross-entropy."""
    c = config_dict_of(Experiment())
    for options in (c.data.options, c.backbone_options):
        options.unlock()  # Named in the config file.
    return c


def base_rl_config() -> ConfigDict:
    """V-STAR: value-guided search, Sibling-GRPO. All else is that of the supervised run it starts from."""
    return config_dict_of(Reinforcement())


def base_study(
    name: str, base: ConfigDict, labels: dict[str, str], reference: str, seeds: tuple[int, ...]
) -> ConfigDict:
    """A study whose variants, named in `labels`, are all the base experiment still."""
    c = ConfigDict()
    c.name = name
    c.seeds = seeds
    c.reference = reference
    c.labels = ConfigDict(labels)
    c.variants = ConfigDict({key: base.copy_and_resolve_references() for key in labels})
    return c


def config_dict_of(experiment: Experiment | Reinforcement) -> ConfigDict:
    """An experiment's fields to be changed one by one; a misspelt one is an error, not a new field."""
    c = ConfigDict(experiment.to_dict())
    if isinstance(experiment, Experiment):
        # May be None too: a number; a number or a word.
        for block, name, kind in ((c.data, "time_jitter", float), (c.memory, "weight", object)):
            block[name] = config_dict.FieldReference(block[name], field_type=kind)
    return c.lock()
