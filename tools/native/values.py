"""What the subset's expressions are worth: integers by their ranges, truths, memory."""

import ast
import ctypes
import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, NoReturn, TypeAlias, get_type_hints

from llvmlite import ir

from emu86.native.records import ctype, is_integer, is_kind

BIT: Final = ir.IntType(1)
BYTE: Final = ir.IntType(8)
WORD: Final = ir.IntType(64)
POINTER: Final = ir.PointerType()
U64: Final = 0, (1 << 64) - 1
S64: Final = -(1 << 63), (1 << 63) - 1


class SubsetError(SyntaxError):
    """The subset does not have this, or it cannot be proved: "file:line: why"."""


@dataclass(frozen=True, slots=True)
class Int:
    """An integer: its low 64 bits, and the least and the greatest that it may be."""

    word: Any
    low: int
    high: int

    def within(self, range_: tuple[int, int]) -> bool:
        """Tell whether it is always in a range, both ends included."""
        return range_[0] <= self.low and self.high <= range_[1]


@dataclass(frozen=True, slots=True)
class Truth:
    """True or False."""

    bit: Any


@dataclass(frozen=True, slots=True)
class Place:
    """Something in memory that is no integer: its address and its ctype."""

    address: Any
    kind: Any


Value: TypeAlias = Int | Truth | Place


def constant(value: int) -> Int:
    """Return an integer that is known."""
    return Int(ir.Constant(WORD, value & U64[1]), value, value)


def known(value: bool) -> Truth:
    """Return a truth that is known."""
    return Truth(ir.Constant(BIT, int(value)))


def c_type(kind: Any) -> Any:
    """Return how C passes a ctype; a pointer as 64 bits."""
    if kind is None:
        return ir.VoidType()
    if kind is bool:
        return ir.IntType(32)
    return ir.IntType(8 * ctypes.sizeof(kind)) if is_integer(kind) else WORD


def inner_type(kind: Any) -> Any:
    """Return how the subset's functions pass a ctype to each other."""
    if kind is None:
        return ir.VoidType()
    if kind is bool:
        return BIT
    return WORD if is_integer(kind) else POINTER


def refuse(function: FunctionType, line: int, why: str) -> NoReturn:
    """Raise SubsetError: a line of a function's file is not in the subset."""
    raise SubsetError(f"{inspect.getsourcefile(function)}:{line}: {why}")


def signature(function: FunctionType) -> tuple[dict[str, Any], Any]:
    """Return the ctypes of a function's arguments, by name, and of its result.

    A truth's is bool, that of no result is None. Raises SubsetError.
    """
    line = function.__code__.co_firstlineno
    hints = get_type_hints(function, include_extras=True)
    kinds = {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is not argument.POSITIONAL_OR_KEYWORD:
            refuse(function, line, f"{name} is no plain argument")
        if argument.default is not argument.empty:
            refuse(function, line, f"{name} has a default")
        kinds[name] = ctype(hints.get(name))
    result = ctype(hints.get("return"))
    for name, kind in (*kinds.items(), ("the result", result)):
        is_none = name == "the result" and kind is type(None)
        is_known = is_integer(kind) or is_kind(kind, "structure", "array")
        if not is_known and kind is not bool and not is_none:
            refuse(function, line, f"{name} has no type of the subset")
    return kinds, None if result is type(None) else result


def bitwise_range(kind: type, left: Int, right: Int) -> tuple[int, int]:
    """Return the least and the greatest of x & y, x | y or x ^ y."""
    if left.low == left.high and right.low == right.high:
        x, y = left.low, right.low
        value = x & y if kind is ast.BitAnd else x | y if kind is ast.BitOr else x ^ y
        return value, value
    not_negative = [value for value in (left, right) if value.low >= 0]
    if kind is ast.BitAnd and not_negative:
        return 0, min(value.high for value in not_negative)
    ends = left.low, left.high, right.low, right.high
    bits = max(end.bit_length() for end in ends)
    if len(not_negative) < 2:
        return -1 << bits, (1 << bits) - 1
    low = max(left.low, right.low) if kind is ast.BitOr else 0
    return low, (1 << bits) - 1


class Function:
    """A pointer to a function, with the type that `IRBuilder.call` asks for."""

    def __init__(self, pointer: Any, function_type: Any) -> None:
        self.type = pointer.type
        self.function_type = function_type
        self.get_reference = pointer.get_reference
