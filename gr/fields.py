"""Types and ranges of config fields, declared in their annotations and checked by one function.

A config is a frozen dataclass. `num_beams: Count = 20` is a whole number of 1 or more; `__post_init__` calls
`check_fields(self, "decoding.", DecodingError)`, and a value that cannot be used is refused with the field's name and
the remedy. A type without a range, such as `bool`, is checked as a type only.
"""

import dataclasses
import difflib
import importlib
import math
import numbers
import traceback
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

from gr.errors import GrError


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`."""

    low: float
    high: float = math.inf
    open_low: bool = False  # Whether `low` itself is left out.
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether the number lies in the range."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"a number above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        if not (self.open_low or self.open_high):
            return f"a number from {self.low:g} to {self.high:g}"
        low = "above" if self.open_low else "at least"
        high = "below" if self.open_high else "at most"
        return f"a number {low} {self.low:g} and {high} {self.high:g}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of a fixed set of strings."""

    words: tuple[str, ...]
    or_path: tuple[str, ...] = ()  # A string with one of these endings names a file.
    or_own: bool = False  # Whether the user's own `module:name` is allowed.

    def holds(self, value: str) -> bool:
        """Whether the string is allowed."""
        own = self.or_own and all(value.partition(":")[::2])
        return value in self.words or own or value.endswith(self.or_path or ("\0",))

    def __str__(self) -> str:
        words = [word or "''" for word in self.words]
        words += [f"FILE{end}" for end in self.or_path]
        return f"one of {', '.join(words)}" + (", or module:name" if self.or_own else "")


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, open_low=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareAboveZero = Annotated[float, Range(0, 1, open_low=True)]
ShareWithin = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
ShareBelowOne = Annotated[float, Range(0, 1, open_high=True)]


def check_fields(config: Any, prefix: str = "", error: type[GrError] = GrError) -> None:
    """Checks every field of a config dataclass against its type.

    Args:
        config: an instance of a config dataclass.
        prefix: put before field names in messages, such as "search.".
        error: the type of error to raise.

    Raises:
        error: for the first value of a wrong type or out of range.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        check_value(f"{prefix}{field.name}", getattr(config, field.name), hints[field.name], error)


def check_value(name: str, value: Any, hint: Any, error: type[GrError] = GrError) -> None:
    """Raises `error` unless the value has the type and lies in the range that `hint` declares."""
    kind, limits = _parts(hint)
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    if value is None and type(None) in options:
        return
    kinds = [option for option in options if option is not type(None)]
    if len(kinds) > 1:  # Such as a number or a word: the first kind that it is decides.
        known = [_parts(one)[0] for one in kinds]
        for one, kind in zip(kinds, known, strict=True):
            if _is_a(value, kind):
                return check_value(name, value, one, error)
        wanted = " or ".join(map(_described, known))
        raise error(f"{name}={value!r} is of type {type(value).__name__}; give {wanted}")
    kind, inner = _parts(kinds[0])
    limits = (*limits, *inner)
    if not _is_a(value, kind):
        raise error(f"{name}={value!r} is of type {type(value).__name__}; give {_described(kind)}")
    if isinstance(value, (tuple, list)) and typing.get_args(kind):
        for one in value:
            _check_limits(name, one, _parts(typing.get_args(kind)[0])[1], error, among=value)
    _check_limits(name, value, limits, error)


def _check_limits(
    name: str, value: Any, limits: Sequence, error: type[GrError], among: Any = None
) -> None:
    shown = value if among is None else tuple(among)
    if isinstance(value, numbers.Real) and not limits and not math.isfinite(value):
        raise error(f"{name}={shown}: use finite numbers")
    for limit in limits:
        if isinstance(limit, Range) and not limit.holds(value):
            finite = "" if math.isfinite(value) else ", and finite"
            raise error(f"{name}={shown}: use {limit}{finite}")
        if isinstance(limit, OneOf) and not limit.holds(value):
            close = did_you_mean(value, limit.words)
            raise error(
                f"{name}={shown!r} is unknown{f'{close} Use' if close else '; use'} {limit}"
            )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?`, or an empty string without a near match."""
    close = difflib.get_close_matches(str(name), list(map(str, known)), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def load_own(
    text: str, what: str, choices: Iterable[str], error: type[GrError] = GrError
) -> Callable[..., Any]:
    """The user's own function, where they wrote `module:name` in place of a name that the library knows.

    Args:
        text: such as "my_package.losses:focal"; the module is imported.
        what: what kind of function it is, for messages, such as "loss".
        choices: the library's own names.
        error: the type of error to raise.

    Raises:
        error: in one line, if `text` is neither, there is no such module, it fails when it is imported, or has no
            function of this name.
    """
    known = OneOf(tuple(choices), or_own=True)
    close = did_you_mean(text, known.words)
    module, _, name = str(text).partition(":")
    if not (module and name):
        choices = known if known.words else "module:name"
        raise error(f"{what} {text!r} is unknown{f'{close} Use' if close else '; use'} {choices}")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as reason:  # A module of the user's may fail in any way.
        absent = getattr(reason, "name", None) if isinstance(reason, ModuleNotFoundError) else None
        if absent and f"{module}.".startswith(f"{absent}."):
            raise error(
                f"{what} {text!r}: there is no module {absent!r}{close or '.'} Start Python in the folder that holds "
                "it, or name that folder in PYTHONPATH"
            ) from reason
        frames = traceback.extract_tb(reason.__traceback__)[1:]
        own = [frame for frame in frames if "importlib" not in frame.filename]
        place = f" at {own[-1].filename}, line {own[-1].lineno}" if own else ""
        said = f"{type(reason).__name__}: {reason}".splitlines()[0]
        raise error(
            f"{what} {text!r}: module {module!r} fails on import{place}: {said}"
        ) from reason
    if not hasattr(found, name):
        near = did_you_mean(name, vars(found))
        raise error(f"{what} {text!r}: module {module!r} has no {name!r}{near}")
    own = getattr(found, name)
    if not callable(own):
        raise error(f"{what} {text!r} is no function but a {type(own).__name__}")
    return own


def _parts(hint: Any) -> tuple[Any, tuple]:
    """A type without its annotations, and those."""
    if typing.get_origin(hint) is Annotated:
        kind, *limits = typing.get_args(hint)
        return kind, tuple(limits)
    return hint, ()


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, type(int | None))


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; a whole number is a float too, but a truth value is no number."""
    origin = typing.get_origin(kind) or kind
    if origin is Any:
        return True
    if origin in (int, float):
        number = numbers.Real if origin is float else numbers.Integral  # NumPy's too.
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is tuple:
        inner = typing.get_args(kind)
        return isinstance(value, (tuple, list)) and all(
            _is_a(one, _parts(inner[0])[0]) for one in value if inner
        )
    return isinstance(value, origin)


def _described(kind: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    origin = typing.get_origin(kind) or kind
    if origin is tuple:
        inner = typing.get_args(kind)
        return f"a tuple of such as {_described(_parts(inner[0])[0])}" if inner else "a tuple"
    return names.get(origin, f"a {getattr(origin, '__name__', origin)}")
