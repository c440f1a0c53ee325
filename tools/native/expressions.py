"""The subset's expressions, translated: values, choices, memory, calls."""

import ast
import ctypes
import inspect
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, Final, NoReturn

from llvmlite import ir

from emu86.native.records import bounds, is_integer, is_kind
from tools.native.values import (
    BIT,
    BYTE,
    POINTER,
    S64,
    U64,
    WORD,
    Function,
    Int,
    Place,
    Truth,
    Value,
    bitwise_range,
    c_type,
    constant,
    known,
    refuse,
    signature,
)

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


class Expressions:
    """The expressions of one function, which is `made`.

    inner: gives the function of IR that one of the subset becomes, None for one under
    way; is_exported: C calls it. Raises SubsetError.
    """

    def __init__(
        self,
        function: FunctionType,
        made: Any,
        inner: Callable[[FunctionType], Any],
        *,
        is_exported: bool,
    ) -> None:
        self._function, self._made, self._inner = function, made, inner
        self._is_exported = is_exported
        lines, self._line = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        self._tree = tree
        self._kinds, self._result = signature(function)
        self._slots = ir.IRBuilder(made.append_basic_block())  # for all locals
        self._b = ir.IRBuilder(made.append_basic_block())
        # Of each local: where it is, and its range (of an integer), bool or its ctype.
        self._locals: dict[str, tuple[Any, Any]] = {}
        self._assigned: set[str] = set()  # those that surely have a value here

    def _fail(self, node: ast.AST, why: str) -> NoReturn:
        refuse(self._function, self._line + getattr(node, "lineno", 1) - 1, why)

    # -- values ------------------------------------------------------------------------

    def _widen(self, raw: Any, kind: Any) -> Int:
        """Return what C or memory holds as an integer of 64 bits."""
        low, high = bounds(kind)
        if raw.type != WORD:
            raw = (self._b.sext if low else self._b.zext)(raw, WORD)
        return Int(raw, low, high)

    def _narrow(self, value: Int, kind: Any) -> Any:
        type_ = c_type(kind)
        return value.word if type_ == WORD else self._b.trunc(value.word, type_)

    def _integer(self, node: ast.expr) -> Int:
        value = self._value(node)
        if isinstance(value, Truth):
            return Int(self._b.zext(value.bit, WORD), 0, 1)
        if isinstance(value, Place):
            self._fail(node, f"{ast.unparse(node)} is no integer")
        return value

    def _exact(self, node: ast.expr) -> Int:
        """Return an integer of which 64 bits say all."""
        return self._surely(node, self._integer(node))

    def _surely(self, node: ast.expr, value: Int) -> Int:
        if not value.within(U64) and not value.within(S64):
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
            word = self._b.load(value.address, typ=WORD)
            return self._b.icmp_unsigned("!=", word, ir.Constant(WORD, 0))
        word = self._surely(node, value).word
        return self._b.icmp_unsigned("!=", word, ir.Constant(WORD, 0))

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
            came.append((ir.Constant(BIT, int(stops)), b.block))
            after = self._made.append_basic_block()
            b.cbranch(bit, end if stops else after, after if stops else end)
            b.position_at_end(after)
        came.append((parts[-1](), b.block))
        b.branch(end)
        b.position_at_end(end)
        phi = b.phi(BIT)
        for bit, block in came:
            phi.add_incoming(bit, block)
        return phi

    # -- expressions -------------------------------------------------------------------

    def _value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=bool(value)):
                return known(value)
            case ast.Constant(value=int(value)):
                return constant(value)
            case ast.Name():
                return self._name(node)
            case ast.Attribute():
                static = self._static(node)
                if isinstance(static, int):
                    return constant(int(static))
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

    def _name(self, node: ast.Name) -> Value:
        if node.id not in self._locals:
            static = self._static(node)
            if isinstance(static, bool):
                return known(static)
            if isinstance(static, int):
                return constant(int(static))
            self._fail(node, f"{node.id} is neither a local nor a constant")
        if node.id not in self._assigned:
            self._fail(node, f"{node.id} may have no value here")
        slot, kind = self._locals[node.id]
        if isinstance(kind, tuple):
            return Int(self._b.load(slot, typ=WORD), *kind)
        if kind is bool:
            return Truth(self._b.load(slot, typ=BIT))
        return Place(self._b.load(slot, typ=POINTER), kind)

    def _place(self, node: ast.expr) -> Place:
        """Return where an attribute or an element is."""
        b = self._b
        if isinstance(node, ast.Attribute):
            owner = self._value(node.value)
            if not isinstance(owner, Place):
                self._fail(node, f"{ast.unparse(node.value)} has no attributes")
            if node.attr == "contents" and is_kind(owner.kind, "pointer"):
                pointer = b.load(owner.address, typ=POINTER)
                return Place(pointer, owner.kind._type_)
            if node.attr == "value" and is_integer(owner.kind):
                return owner
            fields = dict(f[:2] for f in getattr(owner.kind, "_fields_", ()))
            if node.attr not in fields:
                self._fail(node, f"{owner.kind.__name__} has no field {node.attr}")
            offset = ir.Constant(WORD, getattr(owner.kind, node.attr).offset)
            field = b.gep(owner.address, [offset], source_etype=BYTE)
            return Place(field, fields[node.attr])
        if not isinstance(node, ast.Subscript):
            self._fail(node, f"{ast.unparse(node)} is no place in memory")
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
        offset = b.mul(index.word, ir.Constant(WORD, ctypes.sizeof(element)))
        return Place(b.gep(owner.address, [offset], source_etype=BYTE), element)

    def _read(self, node: ast.Attribute | ast.Subscript) -> Value:
        place = self._place(node)
        if not is_integer(place.kind):
            return place
        raw = self._b.load(place.address, typ=c_type(place.kind), align=1)
        return self._widen(raw, place.kind)

    def _element(self, node: ast.Subscript, table: tuple[int, ...]) -> Int:
        """Return an element of a constant tuple, without data beside the code."""
        index = self._integer(node.slice)
        if not index.within((0, len(table) - 1)):
            self._fail(node, f"index may be {index.low} to {index.high}")
        word = ir.Constant(WORD, table[0])
        for i, item in enumerate(table[1:], 1):
            here = self._b.icmp_unsigned("==", index.word, ir.Constant(WORD, i))
            word = self._b.select(here, ir.Constant(WORD, item), word)
        return Int(word, min(table), max(table))

    def _unary(self, node: ast.UnaryOp) -> Int:
        value = self._integer(node.operand)
        if isinstance(node.op, ast.Invert):
            return self._folded(self._b.not_(value.word), ~value.high, ~value.low)
        if isinstance(node.op, ast.USub):
            return self._folded(self._b.neg(value.word), -value.high, -value.low)
        return self._fail(node, f"{type(node.op).__name__} is not in the subset")

    def _folded(self, word: Any, low: int, high: int) -> Int:
        return constant(low) if low == high else Int(word, low, high)

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
            return self._folded(word, *bitwise_range(kind, left, right))
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
        if left.within(U64) and right.within(U64):
            return self._b.icmp_unsigned(text, left.word, right.word)
        if left.within(S64) and right.within(S64):
            return self._b.icmp_signed(text, left.word, right.word)
        return self._fail(node, "one side may be negative, the other 2^63 or more")

    def _membership(self, node: ast.Compare) -> Any:
        table, value = node.comparators[0], self._exact(node.left)
        static = self._static(table)
        if isinstance(static, tuple):
            items = [constant(item) for item in static]
        elif isinstance(table, ast.Tuple):
            items = [self._exact(item) for item in table.elts]
        else:
            self._fail(node, f"{ast.unparse(table)} is no tuple")
        bit = ir.Constant(BIT, 0)
        for item in items:
            bit = self._b.or_(bit, self._order(node, ast.Eq(), value, item))
        return bit if isinstance(node.ops[0], ast.In) else self._b.not_(bit)

    def _choice(self, node: ast.IfExp) -> Value:
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
            phi = b.phi(WORD)
            phi.add_incoming(one.word, one_from)
            phi.add_incoming(other.word, other_from)
            return Int(phi, min(one.low, other.low), max(one.high, other.high))
        if isinstance(one, Truth) and isinstance(other, Truth):
            phi = b.phi(BIT)
            phi.add_incoming(one.bit, one_from)
            phi.add_incoming(other.bit, other_from)
            return Truth(phi)
        return self._fail(
            node, "a choice is between two integers or between two truths"
        )

    # -- calls -------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Value | None:
        if node.keywords:
            self._fail(node, "arguments go by place")
        target = node.func
        static = self._static(target)
        if static is min or static is max:
            return self._least(node, is_least=static is min)
        if isinstance(static, FunctionType):
            return self._inner_call(node, static)
        if static is bool:
            (part,) = self._arguments(node, 1)
            return Truth(self._truth(part))
        if static is ctypes.addressof:
            (part,) = self._arguments(node, 1)
            place = self._value(part)
            if not isinstance(place, Place):
                self._fail(node, f"{ast.unparse(part)} is not in memory")
            return Int(self._b.ptrtoint(place.address, WORD), *U64)
        if isinstance(target, ast.Attribute) and target.attr == "from_address":
            kind = self._static(target.value)
            if not (is_integer(kind) or is_kind(kind, "structure", "array")):
                self._fail(node, f"{ast.unparse(target.value)} is no type of ctypes")
            (part,) = self._arguments(node, 1)
            address = self._fitting(part, ctypes.c_uint64)
            return Place(self._b.inttoptr(address.word, POINTER), kind)
        if isinstance(target, ast.Attribute | ast.Subscript):
            place = self._place(target)
            if is_kind(place.kind, "function"):
                return self._c_call(node, place)
        return self._fail(node, f"{ast.unparse(target)} cannot be called")

    def _arguments(self, node: ast.Call, count: int) -> list[ast.expr]:
        if len(node.args) != count:
            plural = "" if count == 1 else "s"
            name = ast.unparse(node.func)
            self._fail(node, f"{name} takes {count} argument{plural}")
        return node.args

    def _least(self, node: ast.Call, *, is_least: bool) -> Int:
        parts = node.args
        if len(parts) < 2:
            self._fail(node, f"{ast.unparse(node)} has nothing to compare")
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

    def _inner_call(self, node: ast.Call, function: FunctionType) -> Value | None:
        kinds, result = signature(function)
        arguments = self._arguments(node, len(kinds))
        passed = []
        for part, kind in zip(arguments, kinds.values(), strict=True):
            if kind is bool:
                passed.append(self._strict_truth(part))
            elif is_integer(kind):
                passed.append(self._fitting(part, kind).word)
            else:
                value = self._value(part)
                if not isinstance(value, Place) or value.kind is not kind:
                    self._fail(node, f"{ast.unparse(part)} is no {kind.__name__}")
                passed.append(value.address)
        made = self._inner(function)
        if made is None:
            self._fail(node, f"{function.__name__} calls itself")
        raw = self._b.call(made, passed)
        if result is None:
            return None
        if result is bool:
            return Truth(raw)
        return Int(raw, *bounds(result)) if is_integer(result) else Place(raw, result)

    def _c_call(self, node: ast.Call, place: Place) -> Value | None:
        b, kinds = self._b, place.kind._argtypes_
        result = place.kind._restype_
        arguments = self._arguments(node, len(kinds))
        passed = [
            self._narrow(self._fitting(part, kind), kind)
            for part, kind in zip(arguments, kinds, strict=True)
        ]
        type_ = ir.FunctionType(c_type(result), [c_type(kind) for kind in kinds])
        pointer = Function(b.load(place.address, typ=POINTER), type_)
        raw = b.call(pointer, passed)
        return None if result is None else self._widen(raw, result)
