"""Reads the text of a compiled program (XLA's HLO): what its operations cost, and which lines of ours they come from.

A TPU's compiler writes an estimate of cycles behind most operations; gathers, sorts and some others have none. What is
inside a loop counts as often as the loop runs; of a conditional every branch counts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from gr import errors

# Kinds of operations. One that fuses several operations is of the first kind that it holds.
GATHERS, SORTS, COPIES = "gathers", "sorts", "copies"
COLLECTIVES, TRANSFERS, ELEMENTWISE = "collectives", "transfers", "elementwise"
KINDS = {
    COLLECTIVES: {
        "all-gather",
        "all-reduce",
        "all-to-all",
        "collective-broadcast",
        "collective-permute",
        "ragged-all-to-all",
        "reduce-scatter",
    },
    TRANSFERS: {"copy-done", "slice-done"},  # Between memories, while the chip computes.
    "products": {"convolution", "dot", "__cublas$gemm", "__cublas$lt$matmul"},
    SORTS: {"sort", "topk", "__gpu$topk", "__cub$deviceradixsort"},
    GATHERS: {"gather"},
    "scatters": {"scatter"},
    "reductions": {"reduce", "reduce-window"},
    "updates": {"dynamic-update-slice"},
    "slices": {"dynamic-slice"},
    "concatenations": {"concatenate", "pad"},
}
_MOVES = {"copy", "reshape", "transpose"}  # An operation of nothing else is a copy.
# These only name a value, or begin what another operation ends.
_FREE = {
    "after-all",
    "async-done",
    "async-update",
    "bitcast",
    "concatbitcast",  # Puts together what was transferred in parts.
    "constant",
    "copy-start",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "slice-start",
    "tuple",
}
_INNER = {
    "calls",
    "to_apply",
}  # How a fusion, a call or an asynchronous operation names its computation.
_LEAST_CONSTANT = 1024  # Bytes. Smaller constants are numbers of the program itself.
_OURS = ("gr", "experiments")
# A TPU's; a GPU's, whose model of indexing is the one that knows kernels made of tiles.
_ESTIMATES = (
    r'"estimated_cycles":"(\d+)"',
    r'"end_to_end_cycles":(\d+)[^}]*"name":"indexing-cost-model"',
    r'"end_to_end_cycles":(\d+)',
)

_NAMES = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the operations of one kind from one line of code cost."""

    kind: str
    source: str  # Such as "gr/decoding/beam.py:10"; "" if unknown.
    count: int = 0  # How many are executed.
    cycles: int = 0  # Of those that have an estimate.
    unestimated: int = 0  # How many have none.
    elements: int = 0  # Of their results; of sorts, of what is sorted.
    bytes: int = 0  # The same.


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a program costs, as its text says."""

    of_lines: tuple[Cost, ...]  # One for each kind and line, most cycles first.
    constant_bytes: int  # Of arrays that are part of the program.
    open_loops: int  # Loops whose number of rounds depends on data.

    @property
    def cycles(self) -> int | None:
        """The sum of all estimates; None if the compiler gives none."""
        return sum(cost.cycles for cost in self.of_lines) or None

    def of_kinds(self) -> dict[str, Cost]:
        """The sums by kind, most cycles first."""
        kinds = _summed(dataclasses.replace(cost, source="") for cost in self.of_lines)
        return {cost.kind: cost for cost in kinds}

    def of(self, kind: str) -> Cost:
        """The sum of one kind."""
        return self.of_kinds().get(kind, Cost(kind, ""))


def read_costs(text: str, rounds: int = 1) -> Costs:
    """The costs of a compiled program.

    Args:
        text: what its `as_text` returns.
        rounds: how often loops run whose number of rounds depends on data.
    """
    return _Program(text).costs(rounds)


def _summed(costs: Iterator[Cost]) -> tuple[Cost, ...]:
    """One cost for each kind and source, most cycles first."""
    sums: dict[tuple[str, str], Cost] = {}
    for cost in costs:
        sofar = sums.setdefault((cost.kind, cost.source), Cost(cost.kind, cost.source))
        sums[cost.kind, cost.source] = dataclasses.replace(
            sofar,
            **{
                name: getattr(sofar, name) + getattr(cost, name)
                for name in ("count", "cycles", "unestimated", "elements", "bytes")
            },
        )
    return tuple(sorted(sums.values(), key=lambda cost: (-cost.cycles, -cost.elements)))


# The text.


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One operation: `%name = type opcode(inputs), attributes`."""

    name: str
    type: str
    opcode: str
    inputs: str  # Operands, or the value of a constant.
    attributes: str

    @functools.cached_property
    def operands(self) -> list[str]:
        return _NAMES.findall(self.inputs)

    @property
    def operation(self) -> str:
        """The opcode; of a custom call, its target in lower case."""
        target = self.attribute(r'custom_call_target="([^"]*)"')
        opcode = self.opcode if target is None else target.lower()
        return opcode.removesuffix("-start")

    @property
    def cycles(self) -> int | None:
        """What the compiler of a TPU, or of a GPU, estimates."""
        for estimate in _ESTIMATES:
            found = self.attribute(estimate)
            if found is not None:
                return int(found)
        return None

    @property
    def frame(self) -> str | None:
        """Number of the stack frame in which it was traced."""
        return self.attribute(r"\bstack_frame_id=(\d+)")

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found and found[1]

    def called(self, way: str) -> list[str]:
        """Names of the computations that it calls in this way."""
        found = self.attribute(rf"\b{way}=(\{{[^}}]*\}}|%[\w.\-]+)")
        return _NAMES.findall(found) if found else []


def _instruction(line: str, found: re.Match) -> _Instruction:
    begin = found.end()
    end = _behind(line, begin) if line[begin] == "(" else line.index(" ", begin)
    opens = line.index("(", end)
    closes = _behind(line, opens)
    return _Instruction(
        found[2],
        line[begin:end],
        line[end:opens].strip(),
        line[opens + 1 : closes - 1],
        line[closes:],
    )


def _behind(line: str, begin: int) -> int:
    """The place behind the bracket that closes the one at `begin`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, begin):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(line)


def _size(type_: str) -> tuple[int, int]:
    """Elements and bytes of an array; of a tuple's arrays together."""
    elements = size = 0
    for kind, shape in _ARRAY.findall(type_):
        count = math.prod(map(int, shape.split(","))) if shape else 1
        bits = re.search(r"\d+", kind)
        elements += count
        size += count * max(1, int(bits[0]) // 8) if bits else count  # `pred` takes a byte.
    return elements, size


class _Program:
    """The computations of a program: name -> instructions by name, the root last."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = ""
        self.frames = _frames(text)
        here: dict[str, _Instruction] = {}
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                here = self.computations[header[2]] = {}
                self.entry = header[2] if header[1] else self.entry
                continue
            found = _INSTRUCTION.match(line)
            if found:
                here[found[2]] = _instruction(line, found)

    def costs(self, rounds: int) -> Costs:
        open_loops = 0

        def walk(name: str, times: int) -> Iterator[Cost]:
            nonlocal open_loops
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    known = self._rounds(instruction, self.computations[name])
                    open_loops += known is None
                    inside = times * (rounds if known is None else known)
                    for part in ("body", "condition"):
                        for computation in instruction.called(part):
                            yield from walk(computation, inside)
                elif instruction.opcode in ("call", "conditional", "async-start"):
                    for way in (*_INNER, "branch_computations"):
                        for computation in instruction.called(way):
                            yield from walk(computation, times)
                    for way in ("true_computation", "false_computation"):
                        for computation in instruction.called(way):
                            yield from walk(computation, times)
                elif not {instruction.opcode, instruction.operation} & _FREE:
                    yield self._cost(instruction, self.computations[name], times)

        of_lines = _summed(walk(self.entry, 1))
        return Costs(of_lines, self._constant_bytes(), open_loops)

    def _cost(
        self, instruction: _Instruction, around: Mapping[str, _Instruction], times: int
    ) -> Cost:
        inside = dict(self._inside(instruction, around))
        kind = next((kind for kind, those in KINDS.items() if those & inside.keys()), None)
        if kind is None and instruction.opcode == "custom-call":
            kind = instruction.operation
        if kind is None:
            kind = COPIES if inside.keys() <= _MOVES | _FREE else ELEMENTWISE
        measured = next(
            (inside[name] for name in KINDS.get(kind, ()) if name in inside), instruction.type
        )
        elements, size = _size(measured)
        cycles = (
            None if kind == SORTS else instruction.cycles
        )  # A GPU's are the same for all sizes.
        return Cost(
            kind,
            self.frames(instruction.frame),
            times,
            times * (cycles or 0),
            times * (cycles is None),
            times * elements,
            times * size,
        )

    def _inside(
        self, instruction: _Instruction, around: Mapping[str, _Instruction]
    ) -> Iterator[tuple[str, str]]:
        """The operations of an instruction, itself or what it fuses, and the type of what each of them handles."""
        if instruction.opcode == "fusion":
            for name in instruction.called("calls"):
                for inner in self.computations[name].values():
                    yield from self._inside(inner, self.computations[name])
            return
        handled = instruction.type
        if instruction.operation in KINDS[SORTS] and instruction.operands[0] in around:
            handled = around[instruction.operands[0]].type
        yield instruction.operation, handled

    def _constant_bytes(self) -> int:
        sizes = (
            _size(instruction.type)[1]
            for computation in self.computations.values()
            for instruction in computation.values()
            if instruction.opcode == "constant"
        )
        return sum(size for size in sizes if size >= _LEAST_CONSTANT)

    def _rounds(self, loop: _Instruction, around: Mapping[str, _Instruction]) -> int | None:
        """How often a loop runs, if it counts up to a constant; else None."""
        told = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if told is not None:
            return int(told)
        (condition,) = loop.called("condition")
        inside = self.computations[condition]
        *_, root = inside.values()
        terms = [_followed(name, inside) for name in root.operands]
        if root.opcode == "fusion":
            (fused,) = root.called("calls")
            within = self.computations[fused]
            *_, root = within.values()
            inner = [_followed(name, within) for name in root.operands]
            terms = [
                terms[int(term.inputs)] if term.opcode == "parameter" else term for term in inner
            ]
        if root.opcode != "compare" or root.attribute(r"direction=(\w+)") != "LT":
            return None
        counter, limit = terms
        start = self._carried(counter, loop, around)
        limit = limit if limit.opcode == "constant" else self._carried(limit, loop, around)
        numbers = [
            int(term.inputs)
            for term in (start, limit)
            if term is not None
            and term.opcode == "constant"
            and re.fullmatch(r"-?\d+", term.inputs)
        ]
        return numbers[1] - numbers[0] if len(numbers) == 2 else None

    def _carried(
        self, term: _Instruction, loop: _Instruction, around: Mapping[str, _Instruction]
    ) -> _Instruction | None:
        """Where a value that a loop carries comes from."""
        if term.opcode != "get-tuple-element":
            return None
        place = term.attribute(r"index=(\d+)")
        begin = _followed(loop.operands[0], around)
        if begin.opcode != "tuple" or place is None:
            return None
        return _followed(begin.operands[int(place)], around)


def _followed(name: str, around: Mapping[str, _Instruction]) -> _Instruction:
    """The instruction that made a value, behind its copies."""
    while around[name].opcode in ("bitcast", "copy", "convert", "copy-done", "copy-start"):
        name = around[name].operands[0]
    return around[name]


# Lines of code.


def _frames(text: str) -> Callable[[str | None], str]:
    """From the number of a stack frame to "file:line": the innermost line of ours, or of anyone if none is."""
    tables = {
        title: dict(re.findall(r"^(\d+) (.*)$", block, re.M))
        for title, block in re.findall(
            r"^(FileNames|FileLocations|StackFrames)\n((?:\d+ .*\n)*)", text, re.M
        )
    }
    root = Path(errors.__file__).parents[1]

    def number(entry: str, field: str) -> str | None:
        found = re.search(rf"\b{field}=(\d+)", entry)
        return found and found[1]

    def place(frame: str) -> tuple[str, bool]:
        location = tables["FileLocations"][number(tables["StackFrames"][frame], "file_location_id")]
        file = Path(tables["FileNames"][number(location, "file_name_id")].strip('"'))
        ours = any(file.is_relative_to(root / name) for name in _OURS)
        shown = file.relative_to(root).as_posix() if ours else file.name
        return f"{shown}:{number(location, 'line')}", ours

    @functools.cache
    def line(frame: str | None) -> str:
        innermost = ""
        while frame is not None and frame in tables.get("StackFrames", {}):
            where, ours = place(frame)
            if ours:
                return where
            innermost = innermost or where
            above = number(tables["StackFrames"][frame], "parent_frame_id")
            frame = None if above == frame else above
        return innermost

    return line
