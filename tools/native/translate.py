"""Translate a small, typed subset of Python to LLVM's IR (see `emu86.native`).

Integers are Python's own, exact. Of each expression the translator knows the least and
the greatest value, from the types of what the expression reads. A sum or a product may
leave 64 bits for a while. What is compared, shifted right, divided, kept in a local,
passed on or returned must fit, or the translator refuses, at file and line, and the
author writes a mask. So CPython and the machine cannot disagree in silence.

Memory is ctypes: structures, arrays, pointers, `T.from_address`. A store keeps the low
bits, as ctypes does. An index must be proved to be inside of its array.
"""

import ast
import ctypes
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, Final, NoReturn, TypeAlias, get_type_hints

from llvmlite import ir

from emu86.native.records import bounds, ctype, is_integer, is_kind

_BIT: Final = ir.IntType(1)
_BYTE: Final = ir.IntType(8)
_WORD: Final = ir.IntType(64)
_POINTER: Final = ir.PointerType()
_U64: Final = 0, (1 << 64) - 1
_S64: Final = -(1 << 63), (1 << 63) - 1
_PYTHONS: Final = {"bool": bool, "min": min, "max": max, "range": range}
_COMPARISONS: Final = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">",
    ast.GtE: ">=",
}  # fmt: skip
_MONOTONIC: Final[dict[type, Callable[[int, int], int]]] = {
    ast.Add: int.__add__, ast.Sub: int.__sub__, ast.Mult: int.__mul__,
    ast.LShift: int.__lshift__, ast.RShift: int.__rshift__,
    ast.FloorDiv: int.__floordiv__,
}  # fmt: skip
_BITWISE: Final = {ast.BitAnd: "and_", ast.BitOr: "or_", ast.BitXor: "xor"}


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


_Value: TypeAlias = Int | Truth | Place


def _constant(value: int) -> Int:
    return Int(ir.Constant(_WORD, value & _U64[1]), value, value)


def _bit(value: bool) -> Truth:
    return Truth(ir.Constant(_BIT, int(value)))


def _c_type(kind: Any) -> Any:
    """Return how C passes a ctype; a pointer as 64 bits."""
    if kind is None:
        return ir.VoidType()
    if kind is bool:
        return ir.IntType(32)
    return ir.IntType(8 * ctypes.sizeof(kind)) if is_integer(kind) else _WORD


def _inner_type(kind: Any) -> Any:
    """Return how the subset's functions pass a ctype to each other."""
    if kind is None:
        return ir.VoidType()
    if kind is bool:
        return _BIT
    return _WORD if is_integer(kind) else _POINTER


def signature(function: FunctionType) -> tuple[dict[str, Any], Any]:
    """Return the ctypes of a function's arguments, by name, and of its result."""
    hints = get_type_hints(function, include_extras=True)
    result = ctype(hints.pop("return"))
    kinds = {name: ctype(hint) for name, hint in hints.items()}
    return kinds, None if result is type(None) else result


class Translator:
    """A module of IR. `export` adds a function, with all that it calls."""

    def __init__(self) -> None:
        self.module = ir.Module("emu86")
        self._made: dict[FunctionType, Any] = {}
        self._open: list[FunctionType] = []

    def export(self, function: Any) -> None:
        """Add a function that C can call, under its own name."""
        kinds, result = signature(function)
        type_ = ir.FunctionType(_c_type(result), [_c_type(k) for k in kinds.values()])
        made = ir.Function(self.module, type_, function.__name__)
        _Body(self, function, made, is_exported=True).translate()

    def inner(self, function: FunctionType) -> Any:
        """Return a function of the subset that another calls; it has no symbol."""
        if function in self._open:
            raise SubsetError(f"{function.__name__} calls itself")
        if function not in self._made:
            kinds, result = signature(function)
            types = [_inner_type(kind) for kind in kinds.values()]
            type_ = ir.FunctionType(_inner_type(result), types)
            name = f".{len(self._made)}.{function.__name__}"
            made = self._made[function] = ir.Function(self.module, type_, name)
            made.linkage = "internal"
            self._open.append(function)
            _Body(self, function, made, is_exported=False).translate()
            self._open.pop()
        return self._made[function]


class _Body:
    """The translation of one function."""

    def __init__(
        self,
        translator: Translator,
        function: FunctionType,
        made: Any,
        *,
        is_exported: bool,
    ) -> None:
        self._translator, self._function, self._made = translator, function, made
        self._is_exported = is_exported
        self._kinds, self._result = signature(function)
        lines, self._line = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        self._tree = tree
        stored = [
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        self._once = {n for n in stored if stored.count(n) == 1} - set(self._kinds)
        self._slots = ir.IRBuilder(made.append_basic_block())  # for all locals
        self._b = ir.IRBuilder(made.append_basic_block())
        # Of each local: where it is, and its range (of an integer), Truth or its ctype.
        self._locals: dict[str, tuple[Any, Any]] = {}
        self._assigned: set[str] = set()  # those that surely have a value here
        self._loops: list[tuple[Any, Any, list[set[str]]]] = []

    def translate(self) -> None:
        b = self._b
        for raw, (name, kind) in zip(self._made.args, self._kinds.items(), strict=True):
            value: _Value
            if kind is bool:
                bit = b.icmp_unsigned("!=", raw, ir.Constant(raw.type, 0))
                value = Truth(bit if self._is_exported else raw)
            elif is_integer(kind):
                value = self._widen(raw, kind) if self._is_exported else Int(
                    raw, *bounds(kind))  # fmt: skip
            else:
                pointer = b.inttoptr(raw, _POINTER) if self._is_exported else raw
                value = Place(pointer, kind)
            self._keep(
                self._tree, name, value, bounds(kind) if is_integer(kind) else None
            )
        self._block(self._tree.body)
        if not b.block.is_terminated:
            if self._result is not None:
                self._fail(self._tree, f"{self._tree.name} may end without a result")
            self._return_nothing()
        self._slots.branch(self._made.blocks[1])

    def _return_nothing(self) -> None:
        """Return; a last call of a C function of the very same type is a jump.

        Helpers of the engine's learn from their return address which block has called.
        """
        instructions = self._b.block.instructions
        last = instructions[-1] if instructions else None
        if (
            self._is_exported
            and isinstance(last, ir.CallInstr)
            and last.callee.type == _POINTER
            and [a.type for a in last.args] == [a.type for a in self._made.args]
            and last.type == ir.VoidType()
        ):
            last.tail = "musttail"
        self._b.ret_void()

    def _fail(self, node: ast.AST, why: str) -> NoReturn:
        line = self._line + getattr(node, "lineno", 1) - 1
        raise SubsetError(f"{inspect.getsourcefile(self._function)}:{line}: {why}")

    # -- values ------------------------------------------------------------------------

    def _widen(self, raw: Any, kind: Any) -> Int:
        """Return what C or memory holds as an integer of 64 bits."""
        low, high = bounds(kind)
        if raw.type != _WORD:
            raw = (self._b.sext if low else self._b.zext)(raw, _WORD)
        return Int(raw, low, high)

    def _narrow(self, value: Int, kind: Any) -> Any:
        type_ = _c_type(kind)
        return value.word if type_ == _WORD else self._b.trunc(value.word, type_)

    def _integer(self, node: ast.expr) -> Int:
        value = self._value(node)
        if isinstance(value, Truth):
            return Int(self._b.zext(value.bit, _WORD), 0, 1)
        if isinstance(value, Place):
            self._fail(node, f"{ast.unparse(node)} is no integer")
        return value

    def _exact(self, node: ast.expr) -> Int:
        """Return an integer of which 64 bits say all."""
        return self._surely(node, self._integer(node))

    def _surely(self, node: ast.expr, value: Int) -> Int:
        if not value.within(_U64) and not value.within(_S64):
            self._fail(
                node,
                f"{ast.unparse(node)} may be {value.low:#x} to {value.high:#x}: beyond"
                " 64 bits; mask it",
            )
        return value

    def _fitting(self, node: ast.expr, kind: Any) -> Int:
        """Return an integer that a ctype can hold."""
        value = self._integer(node)
        if not value.within(bounds(kind)):
            self._fail(
                node,
                f"{ast.unparse(node)} may be {value.low:#x} to {value.high:#x}:"
                f" beyond {kind.__name__}; mask it",
            )
        return value

    def _truth(self, node: ast.expr) -> Any:
        """Return one bit: whether an expression is true."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self._b.not_(self._truth(node.operand))
        if isinstance(node, ast.BoolOp):
            return self._shortcut(node, self._truth)
        value = self._value(node)
        if isinstance(value, Truth):
            return value.bit
        if isinstance(value, Place):
            if not is_kind(value.kind, "pointer", "function"):
                self._fail(node, f"{ast.unparse(node)} is always true")
            word = self._b.load(value.address, typ=_WORD)
            return self._b.icmp_unsigned("!=", word, ir.Constant(_WORD, 0))
        word = self._surely(node, value).word
        return self._b.icmp_unsigned("!=", word, ir.Constant(_WORD, 0))

    def _strict_truth(self, node: ast.expr) -> Any:
        value = self._value(node)
        if not isinstance(value, Truth):
            self._fail(node, f"{ast.unparse(node)} is not True or False: compare it")
        return value.bit

    def _shortcut(self, node: ast.BoolOp, truth: Callable[[ast.expr], Any]) -> Any:
        parts = [partial(truth, part) for part in node.values]
        return self._chain(parts, stops=isinstance(node.op, ast.Or))

    def _chain(self, parts: Sequence[Callable[[], Any]], *, stops: bool) -> Any:
        """Return one bit: the first part that is `stops`, else the last."""
        b, end = self._b, self._made.append_basic_block()
        came = []
        for part in parts[:-1]:
            bit = part()
            came.append((ir.Constant(_BIT, int(stops)), b.block))
            after = self._made.append_basic_block()
            b.cbranch(bit, end if stops else after, after if stops else end)
            b.position_at_end(after)
        came.append((parts[-1](), b.block))
        b.branch(end)
        b.position_at_end(end)
        phi = b.phi(_BIT)
        for bit, block in came:
            phi.add_incoming(bit, block)
        return phi

    # -- expressions -------------------------------------------------------------------

    def _value(self, node: ast.expr) -> _Value:
        match node:
            case ast.Constant(value=bool(value)):
                return _bit(value)
            case ast.Constant(value=int(value)):
                return _constant(value)
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                static = self._static(node)
                if isinstance(static, int):
                    return _constant(int(static))
                if isinstance(self._static(node.value), ModuleType):
                    self._fail(node, f"{ast.unparse(node)} is no constant")
                return self._read(node)
            case ast.Subscript():
                static = self._static(node.value)
                if isinstance(static, tuple):
                    return self._element(node, static)
                return self._read(node)
            case ast.UnaryOp(op=ast.Not()):
                return Truth(self._truth(node))
            case ast.UnaryOp():
                return self._unary(node)
            case ast.BoolOp():
                return Truth(self._shortcut(node, self._strict_truth))
            case ast.BinOp():
                return self._binary(node)
            case ast.Compare():
                return Truth(self._compare(node))
            case ast.IfExp():
                return self._choice(node)
            case ast.Call():
                result = self._call(node)
                if result is None:
                    self._fail(node, f"{ast.unparse(node)} has no result")
                return result
            case ast.Constant():
                return self._fail(node, f"{ast.unparse(node)} is not in the subset")
            case _:
                return self._fail(node, f"{type(node).__name__} is not in the subset")

    def _static(self, node: ast.expr) -> Any:
        """Return what a name of the module, or of one that it imports, stands for."""
        if isinstance(node, ast.Name) and node.id not in self._locals:
            names = self._function.__globals__
            return names.get(node.id, _PYTHONS.get(node.id))
        if isinstance(node, ast.Attribute):
            owner = self._static(node.value)
            if isinstance(owner, ModuleType | type):
                return getattr(owner, node.attr, None)
        return None

    def _name(self, node: ast.Name) -> _Value:
        if node.id not in self._locals:
            static = self._static(node)
            if isinstance(static, bool):
                return _bit(static)
            if isinstance(static, int):
                return _constant(int(static))
            self._fail(node, f"{node.id} is neither a local nor a constant")
        if node.id not in self._assigned:
            self._fail(node, f"{node.id} may have no value here")
        slot, kind = self._locals[node.id]
        if isinstance(kind, tuple):
            return Int(self._b.load(slot, typ=_WORD), *kind)
        if kind is bool:
            return Truth(self._b.load(slot, typ=_BIT))
        return Place(self._b.load(slot, typ=_POINTER), kind)

    def _place(self, node: ast.expr) -> Place:
        """Return where an attribute or an element is."""
        b = self._b
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value)
            if not isinstance(owner, Place):
                self._fail(node, f"{ast.unparse(node.value)} has no attributes")
            if node.attr == "contents" and is_kind(owner.kind, "pointer"):
                pointer = b.load(owner.address, typ=_POINTER)
                return Place(pointer, owner.kind._type_)
            if node.attr == "value" and is_integer(owner.kind):
                return owner
            fields = dict(f[:2] for f in getattr(owner.kind, "_fields_", ()))
            if node.attr not in fields:
                self._fail(node, f"{owner.kind.__name__} has no field {node.attr}")
            offset = ir.Constant(_WORD, getattr(owner.kind, node.attr).offset)
            field = b.gep(owner.address, [offset], source_etype=_BYTE)
            return Place(field, fields[node.attr])
        assert isinstance(node, ast.Subscript)
        owner, index = self._value(node.value), self._integer(node.slice)
        if not isinstance(owner, Place) or not is_kind(owner.kind, "array"):
            self._fail(node, f"{ast.unparse(node.value)} is no array")
        length = owner.kind._length_
        if not index.within((0, length - 1)):
            self._fail(
                node,
                f"index {ast.unparse(node.slice)} may be {index.low} to {index.high},"
                f" of {length}",
            )
        element = owner.kind._type_
        offset = b.mul(index.word, ir.Constant(_WORD, ctypes.sizeof(element)))
        return Place(b.gep(owner.address, [offset], source_etype=_BYTE), element)

    def _read(self, node: ast.Attribute | ast.Subscript) -> _Value:
        place = self._place(node)
        if not is_integer(place.kind):
            return place
        raw = self._b.load(place.address, typ=_c_type(place.kind), align=1)
        return self._widen(raw, place.kind)

    def _element(self, node: ast.Subscript, table: tuple[int, ...]) -> Int:
        """Return an element of a constant tuple, without data beside the code."""
        index = self._integer(node.slice)
        if not index.within((0, len(table) - 1)):
            self._fail(node, f"index may be {index.low} to {index.high}")
        word = ir.Constant(_WORD, table[0])
        for i, item in enumerate(table[1:], 1):
            here = self._b.icmp_unsigned("==", index.word, ir.Constant(_WORD, i))
            word = self._b.select(here, ir.Constant(_WORD, item), word)
        return Int(word, min(table), max(table))

    def _unary(self, node: ast.UnaryOp) -> Int:
        value = self._integer(node.operand)
        if isinstance(node.op, ast.Invert):
            return self._folded(self._b.not_(value.word), ~value.high, ~value.low)
        if isinstance(node.op, ast.USub):
            return self._folded(self._b.neg(value.word), -value.high, -value.low)
        return self._fail(node, f"{type(node.op).__name__} is not in the subset")

    def _folded(self, word: Any, low: int, high: int) -> Int:
        return _constant(low) if low == high else Int(word, low, high)

    def _binary(self, node: ast.BinOp) -> Int:
        op = type(node.op)
        reads_all = op in (ast.RShift, ast.FloorDiv, ast.Mod)
        left = (self._exact if reads_all else self._integer)(node.left)
        right = self._integer(node.right)
        return self._operation(node, node.op, left, right)

    def _operation(self, node: ast.AST, op: ast.operator, left: Int, right: Int) -> Int:
        kind, b = type(op), self._b
        if kind in _BITWISE:
            word = getattr(b, _BITWISE[kind])(left.word, right.word)
            return self._folded(word, *_bitwise_range(kind, left, right))
        if kind in (ast.LShift, ast.RShift) and not right.within((0, 63)):
            self._fail(node, f"a shift by {right.low} to {right.high}")
        if kind in (ast.FloorDiv, ast.Mod) and (left.low < 0 or right.low < 1):
            self._fail(node, "a division of what may be negative, or by 0 or less")
        names = {
            ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.LShift: "shl",
            ast.RShift: "ashr" if left.low < 0 else "lshr", ast.FloorDiv: "udiv",
            ast.Mod: "urem",
        }  # fmt: skip
        if kind not in names:
            self._fail(node, f"{kind.__name__} is not in the subset")
        word = getattr(b, names[kind])(left.word, right.word)
        if kind is ast.Mod:
            return Int(word, 0, right.high - 1)
        corners = [
            _MONOTONIC[kind](x, y)
            for x in (left.low, left.high)
            for y in (right.low, right.high)
        ]
        return self._folded(word, min(corners), max(corners))

    def _compare(self, node: ast.Compare) -> Any:
        if isinstance(node.ops[0], ast.In | ast.NotIn) and len(node.ops) == 1:
            return self._membership(node)
        sides = iter((node.left, *node.comparators))
        left = self._exact(next(sides))

        def part(op: ast.cmpop, right: ast.expr) -> Any:
            nonlocal left
            value = self._exact(right)
            bit = self._order(node, op, left, value)
            left = value
            return bit

        parts = [partial(part, *pair) for pair in zip(node.ops, sides, strict=True)]
        return self._chain(parts, stops=False) if len(parts) > 1 else parts[0]()

    def _order(self, node: ast.AST, op: ast.cmpop, left: Int, right: Int) -> Any:
        text = _COMPARISONS.get(type(op))
        if text is None:
            self._fail(node, f"{type(op).__name__} is not in the subset")
        if left.within(_U64) and right.within(_U64):
            return self._b.icmp_unsigned(text, left.word, right.word)
        if left.within(_S64) and right.within(_S64):
            return self._b.icmp_signed(text, left.word, right.word)
        return self._fail(node, "one side may be negative, the other 2^63 or more")

    def _membership(self, node: ast.Compare) -> Any:
        table, value = node.comparators[0], self._exact(node.left)
        static = self._static(table)
        if isinstance(static, tuple):
            items = [_constant(item) for item in static]
        elif isinstance(table, ast.Tuple):
            items = [self._exact(item) for item in table.elts]
        else:
            self._fail(node, f"{ast.unparse(table)} is no tuple")
        bit = ir.Constant(_BIT, 0)
        for item in items:
            bit = self._b.or_(bit, self._order(node, ast.Eq(), value, item))
        return bit if isinstance(node.ops[0], ast.In) else self._b.not_(bit)

    def _choice(self, node: ast.IfExp) -> _Value:
        b = self._b
        blocks = [self._made.append_basic_block() for _ in range(3)]
        b.cbranch(self._truth(node.test), *blocks[:2])
        came = []
        for block, side in zip(blocks, (node.body, node.orelse), strict=False):
            b.position_at_end(block)
            came.append((self._value(side), b.block))
            b.branch(blocks[2])
        b.position_at_end(blocks[2])
        (one, one_from), (other, other_from) = came
        if isinstance(one, Int) and isinstance(other, Int):
            phi = b.phi(_WORD)
            phi.add_incoming(one.word, one_from)
            phi.add_incoming(other.word, other_from)
            return Int(phi, min(one.low, other.low), max(one.high, other.high))
        if isinstance(one, Truth) and isinstance(other, Truth):
            phi = b.phi(_BIT)
            phi.add_incoming(one.bit, one_from)
            phi.add_incoming(other.bit, other_from)
            return Truth(phi)
        return self._fail(
            node, "a choice is between two integers or between two truths"
        )

    # -- calls -------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> _Value | None:
        if node.keywords:
            self._fail(node, "arguments go by place")
        target, arguments = node.func, node.args
        static = self._static(target)
        if static is bool:
            return Truth(self._truth(arguments[0]))
        if static in (min, max):
            return self._least(node, arguments, is_least=static is min)
        if static is ctypes.addressof:
            place = self._value(arguments[0])
            if not isinstance(place, Place):
                self._fail(node, f"{ast.unparse(arguments[0])} is not in memory")
            return Int(self._b.ptrtoint(place.address, _WORD), *_U64)
        if isinstance(static, FunctionType):
            return self._inner_call(node, static)
        if isinstance(target, ast.Attribute) and target.attr == "from_address":
            kind = self._static(target.value)
            if not (is_integer(kind) or is_kind(kind, "structure", "array")):
                self._fail(node, f"{ast.unparse(target.value)} is no type of ctypes")
            address = self._fitting(arguments[0], ctypes.c_uint64)
            return Place(self._b.inttoptr(address.word, _POINTER), kind)
        if isinstance(target, ast.Attribute | ast.Subscript):
            place = self._place(target)
            if is_kind(place.kind, "function"):
                return self._c_call(node, place)
        return self._fail(node, f"{ast.unparse(target)} cannot be called")

    def _least(self, node: ast.Call, parts: list[ast.expr], *, is_least: bool) -> Int:
        best = self._exact(parts[0])
        pick = min if is_least else max
        for part in parts[1:]:
            value = self._exact(part)
            op = ast.Lt() if is_least else ast.Gt()
            takes = self._order(node, op, value, best)
            best = self._folded(
                self._b.select(takes, value.word, best.word),
                pick(best.low, value.low),
                pick(best.high, value.high),
            )
        return best

    def _inner_call(self, node: ast.Call, function: FunctionType) -> _Value | None:
        kinds, result = signature(function)
        if len(node.args) != len(kinds):
            self._fail(node, f"{function.__name__} takes {len(kinds)} arguments")
        passed = []
        for part, kind in zip(node.args, kinds.values(), strict=True):
            if kind is bool:
                passed.append(self._strict_truth(part))
            elif is_integer(kind):
                passed.append(self._fitting(part, kind).word)
            else:
                value = self._value(part)
                if not isinstance(value, Place) or value.kind is not kind:
                    self._fail(node, f"{ast.unparse(part)} is no {kind.__name__}")
                passed.append(value.address)
        raw = self._b.call(self._translator.inner(function), passed)
        if result is None:
            return None
        if result is bool:
            return Truth(raw)
        return Int(raw, *bounds(result)) if is_integer(result) else Place(raw, result)

    def _c_call(self, node: ast.Call, place: Place) -> _Value | None:
        b, kinds = self._b, place.kind._argtypes_
        result = place.kind._restype_
        if len(node.args) != len(kinds):
            self._fail(node, f"{ast.unparse(node.func)} takes {len(kinds)} arguments")
        passed = [
            self._narrow(self._fitting(part, kind), kind)
            for part, kind in zip(node.args, kinds, strict=True)
        ]
        type_ = ir.FunctionType(_c_type(result), [_c_type(kind) for kind in kinds])
        pointer = _Callable(b.load(place.address, typ=_POINTER), type_)
        raw = b.call(pointer, passed)
        return None if result is None else self._widen(raw, result)

    # -- statements --------------------------------------------------------------------

    def _block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if self._b.block.is_terminated:
                self._fail(statement, "this is never reached")
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Pass():
                pass
            case ast.Expr(value=ast.Call() as call):
                self._call(call)
            case ast.Assign(targets=[target]):
                self._assign(target, self._value(node.value))
            case ast.AnnAssign(target=ast.Name() as target, value=ast.expr() as value):
                kind = ctype(self._static(node.annotation))
                if not is_integer(kind):
                    self._fail(node, "only integers are annotated")
                self._keep(node, target.id, self._value(value), bounds(kind))
            case ast.AugAssign():
                self._change(node)
            case ast.If():
                self._if(node)
            case ast.While(orelse=[]):
                self._while(node)
            case ast.For(orelse=[]):
                self._for(node)
            case ast.Break() | ast.Continue():
                start, end, assigned = self._loops[-1]
                if isinstance(node, ast.Break):
                    assigned.append(set(self._assigned))
                self._b.branch(end if isinstance(node, ast.Break) else start)
            case ast.Return():
                self._return(node)
            case _:
                self._fail(node, f"{type(node).__name__} is not in the subset")

    def _assign(self, target: ast.expr, value: _Value) -> None:
        if isinstance(target, ast.Name):
            self._keep(target, target.id, value, None)
            return
        place = self._place(target)
        if not is_integer(place.kind):
            self._fail(target, f"{ast.unparse(target)} is no integer")
        self._store(target, place, value)

    def _store(self, node: ast.AST, place: Place, value: _Value) -> None:
        if isinstance(value, Place):
            self._fail(node, "only integers are stored")
        if isinstance(value, Truth):
            value = Int(self._b.zext(value.bit, _WORD), 0, 1)
        self._b.store(self._narrow(value, place.kind), place.address, align=1)

    def _keep(
        self, node: ast.AST, name: str, value: _Value, range_: tuple[int, int] | None
    ) -> None:
        """Put a value into a local, of the range that its annotation gives if any."""
        kind: Any
        if isinstance(value, Int):
            kind, type_, raw = range_, _WORD, value.word
            if kind is None and name in self._once:
                kind = value.low, value.high
                if not value.within(_U64) and not value.within(_S64):
                    self._fail(node, f"{name} may be beyond 64 bits; mask it")
        elif isinstance(value, Truth):
            kind, type_, raw = bool, _BIT, value.bit
        else:
            kind, type_, raw = value.kind, _POINTER, value.address
        if name not in self._locals:
            if kind is None:
                self._fail(node, f"{name} is assigned more than once: annotate it")
            self._locals[name] = self._slots.alloca(type_), kind
        slot, known = self._locals[name]
        if isinstance(value, Int) and isinstance(known, tuple):
            if not value.within(known):
                self._fail(
                    node,
                    f"{name} may be {value.low:#x} to {value.high:#x}, not what it was"
                    " declared as; mask it",
                )
        elif known != kind:
            self._fail(node, f"{name} was something else before")
        self._b.store(raw, slot)
        self._assigned.add(name)

    def _change(self, node: ast.AugAssign) -> None:
        target = node.target
        if isinstance(target, ast.Name):
            before = self._name(target)
            if not isinstance(before, Int):
                self._fail(node, f"{target.id} is no integer")
            value = self._operation(
                node, node.op, before, self._integer(node.value)
            )  # fmt: skip
            self._keep(node, target.id, value, None)
            return
        place = self._place(target)
        if not is_integer(place.kind):
            self._fail(node, f"{ast.unparse(target)} is no integer")
        raw = self._b.load(place.address, typ=_c_type(place.kind), align=1)
        before = self._widen(raw, place.kind)
        self._store(
            node,
            place,
            self._operation(node, node.op, before, self._integer(node.value)),
        )

    def _return(self, node: ast.Return) -> None:
        b, kind = self._b, self._result
        if node.value is None or kind is None:
            if node.value is not None or kind is not None:
                self._fail(node, "the result is not what the function declares")
            self._return_nothing()
        elif kind is bool:
            bit = self._strict_truth(node.value)
            b.ret(b.zext(bit, _c_type(bool)) if self._is_exported else bit)
        elif is_integer(kind):
            value = self._fitting(node.value, kind)
            b.ret(self._narrow(value, kind) if self._is_exported else value.word)
        else:
            place = self._value(node.value)
            if not isinstance(place, Place) or place.kind is not kind:
                self._fail(node, f"{ast.unparse(node.value)} is no {kind.__name__}")
            b.ret(place.address)

    def _if(self, node: ast.If) -> None:
        b = self._b
        then, other = self._made.append_basic_block(), self._made.append_basic_block()
        end = None
        b.cbranch(self._truth(node.test), then, other)
        before, after = self._assigned, []
        for block, statements in ((then, node.body), (other, node.orelse)):
            b.position_at_end(block)
            self._assigned = set(before)
            self._block(statements)
            if not b.block.is_terminated:
                end = end or self._made.append_basic_block()
                after.append(self._assigned)
                b.branch(end)
        self._assigned = set.intersection(*after) if after else set(before)
        if end is not None:
            b.position_at_end(end)

    @contextmanager
    def _loop(self, start: Any, end: Any) -> Iterator[list[set[str]]]:
        """Translate a loop's body: `continue` goes to `start`, `break` to `end`."""
        breaks: list[set[str]] = []
        before = set(self._assigned)
        self._loops.append((start, end, breaks))
        yield breaks
        self._loops.pop()
        self._assigned = before

    def _while(self, node: ast.While) -> None:
        b = self._b
        start, body, end = (self._made.append_basic_block() for _ in range(3))
        b.branch(start)
        b.position_at_end(start)
        is_endless = isinstance(node.test, ast.Constant) and node.test.value is True
        if is_endless:
            b.branch(body)
        else:
            b.cbranch(self._truth(node.test), body, end)
        with self._loop(start, end) as breaks:
            b.position_at_end(body)
            self._block(node.body)
            if not b.block.is_terminated:
                b.branch(start)
        if is_endless and not breaks:
            # The end is never reached, and nothing may follow.
            b.position_at_end(end)
            b.unreachable()
            return
        if is_endless:
            self._assigned = set.intersection(*breaks)
        b.position_at_end(end)

    def _for(self, node: ast.For) -> None:
        b, call = self._b, node.iter
        if (
            not isinstance(call, ast.Call)
            or self._static(call.func) is not range
            or len(call.args) > 2
            or not isinstance(node.target, ast.Name)
        ):
            self._fail(node, "a loop is over range(stop) or range(start, stop)")
        first = self._exact(call.args[0]) if len(call.args) == 2 else _constant(0)
        stop = self._exact(call.args[-1])
        name = node.target.id
        if not first.within(_S64) or not stop.within(_S64):
            self._fail(node, "a loop's ends are below 2^63")
        if name not in self._once:
            self._fail(node, f"{name} is assigned elsewhere too")
        counter = self._slots.alloca(_WORD)
        b.store(first.word, counter)
        start, body, step, end = (self._made.append_basic_block() for _ in range(4))
        b.branch(start)
        b.position_at_end(start)
        now = b.load(counter, typ=_WORD)
        b.cbranch(b.icmp_signed("<", now, stop.word), body, end)
        with self._loop(step, end):
            b.position_at_end(body)
            self._locals[name] = counter, (first.low, max(first.low, stop.high - 1))
            self._assigned.add(name)
            self._block(node.body)
            if not b.block.is_terminated:
                b.branch(step)
        b.position_at_end(step)
        now = b.load(counter, typ=_WORD)
        b.store(b.add(now, ir.Constant(_WORD, 1)), counter)
        b.branch(start)
        b.position_at_end(end)


def _bitwise_range(kind: type, left: Int, right: Int) -> tuple[int, int]:
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


class _Callable:
    """A pointer to a function, with the type that `IRBuilder.call` asks for."""

    def __init__(self, pointer: Any, function_type: Any) -> None:
        self.type = pointer.type
        self.function_type = function_type
        self.get_reference = pointer.get_reference
