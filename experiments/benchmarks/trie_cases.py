"""Cases of the trie benchmark: sweeps from flags, and the methods that can run at each size."""

import dataclasses
from collections.abc import Mapping, Sequence

from gr.trie import TrieError

# Timed in alternation within each group, so that slow methods do not reduce the rounds of fast ones.
FAST = (
    "floor",
    "unconstrained",
    "ours",
    "ours_attribute_filter",
    "ours_item_mask",
    "ours_exclude",
    "published_csr",
)
SLOW = ("hash_bitmap", "ppv_approx", "ppv_exact", "cpu_trie")
METHODS = (*FAST, *SLOW)

AXES = ("num_items", "vocab_size", "length", "batch", "beams")

_LARGE = (
    20_000_000  # Items; beyond it only what is named in --methods is measured, apart from these:
)
_ALWAYS = ("floor", "unconstrained", "ours")
_MOST_ITEMS = {
    "cpu_trie": (1_000_000, "nested dictionaries take more than a kilobyte an item"),
    "published_csr": (
        _LARGE,
        "75 bytes an item, and several times that while it is built, do not fit the host",
    ),
}
_LARGEST_TABLE = 1 << 31  # Bytes of the published trie's table of pairs of tokens.
_MOST_PROBES = 1 << 24  # B * M * V, the tokens that an exact mask must decide at one step.


@dataclasses.dataclass(frozen=True)
class Case:
    """The sizes of one measurement."""

    num_items: int  # N.
    vocab_size: int  # V.
    length: int  # L.
    batch: int  # B.
    beams: int  # M.

    def __str__(self):
        return (
            f"N={self.num_items:,}, V={self.vocab_size:,}, L={self.length}, B={self.batch}, "
            f"M={self.beams}"
        )

    @property
    def corpus(self) -> tuple[int, int, int]:
        """The sizes that determine the semantic IDs; cases that share them share an index."""
        return self.num_items, self.vocab_size, self.length


def read_cases(flags: Mapping[str, Sequence[str]]) -> list[Case]:
    """The base case, of the first value of each flag, and then each flag's further values with all others at the base.

    Args:
        flags: values as they were written, by axis; `1e8` is a number as well.

    Raises:
        TrieError: for a value that is not a whole number, or below 1.
    """
    values = {axis: [_whole(axis, text) for text in flags[axis]] for axis in AXES}
    for axis, numbers in values.items():
        if not numbers:
            raise TrieError(f"--{axis} is empty: give one number, or several for a sweep")
    base = Case(**{axis: numbers[0] for axis, numbers in values.items()})
    cases = [base]
    for axis, numbers in values.items():
        cases += [dataclasses.replace(base, **{axis: number}) for number in numbers[1:]]
    return list(dict.fromkeys(cases))


def swept_axes(cases: Sequence[Case]) -> list[str]:
    """The axes along which cases differ from the first."""
    return [axis for axis in AXES if len({getattr(case, axis) for case in cases}) > 1]


def read_methods(names: Sequence[str]) -> tuple[str, ...]:
    """The methods named by `--methods`, in the order of `METHODS`; all if none is. The floor is always among them.

    Raises:
        TrieError: for an unknown name.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise TrieError(f"--methods={','.join(names)}: choose from {','.join(METHODS)}")
    return tuple(method for method in METHODS if not names or method in names or method == "floor")


def reason_to_skip(method: str, case: Case, named: bool) -> str | None:
    """Why a method cannot run, or does not unless it is named in `--methods`; None where it can."""
    most, why = _MOST_ITEMS.get(method, (None, ""))
    if most is not None and case.num_items > most:
        return f"above {most:,} items {why}"
    if case.num_items > _LARGE and method not in _ALWAYS and not named:
        return f"above {_LARGE:,} items it is only measured if named in --methods"
    if method == "published_csr":
        if case.length < 3:
            return "it is defined for three tokens or more"
        if 5 * case.vocab_size**2 > _LARGEST_TABLE:
            return f"its tables of V x V take {5e-9 * case.vocab_size**2:.0f} GB"
    if method in ("cpu_trie", "ppv_exact"):
        probes = case.batch * case.beams * case.vocab_size
        if probes > _MOST_PROBES:
            return f"it decides on {probes:.1e} tokens a step, which takes minutes a decode"
    return None


def _whole(axis: str, text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = 0.5
    if not number.is_integer() or number < 1:
        raise TrieError(f"--{axis}={text}: give whole numbers from 1 on, such as 2048 or 1e6")
    return int(number)
