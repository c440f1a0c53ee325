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
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from llvmlite import ir

from emu86.native.records import bounds, ctype, is_integer
from tools.native.expressions import Expressions
from tools.native.values import (
    BIT,
    POINTER,
    S64,
    U64,
    WORD,
    Int,
    Place,
    Truth,
    Value,
    c_type,
    constant,
    inner_type,
    signature,
)


class Translator:
    """A module of IR. `export` adds a function, with all that it calls."""

    def __init__(self) -> None:
        self.module = ir.Module("emu86")
        self._made: dict[FunctionType, Any] = {}
        self._open: list[FunctionType] = []

    def export(self, function: Any) -> None:
        """Add a function that C can call, under its own name."""
        kinds, result = signature(function)
        type_ = ir.FunctionType(c_type(result), [c_type(k) for k in kinds.values()])
        made = ir.Function(self.module, type_, function.__name__)
        _Body(function, made, self.inner, is_exported=True).translate()

    def inner(self, function: FunctionType) -> Any:
        """Return a function that another calls; it has no symbol.

        None for one that is being translated.
        """
        if function in self._open:
            return None
        if function not in self._made:
            kinds, result = signature(function)
            types = [inner_type(kind) for kind in kinds.values()]
            type_ = ir.FunctionType(inner_type(result), types)
            name = f".{len(self._made)}.{function.__name__}"
            made = self._made[function] = ir.Function(self.module, type_, name)
            made.linkage = "internal"
            self._open.append(function)
            _Body(function, made, self.inner, is_exported=False).translate()
            self._open.pop()
        return self._made[function]


class _Body(Expressions):
    """The translation of one function."""

    def __init__(self, *function: Any, is_exported: bool) -> None:
        super().__init__(*function, is_exported=is_exported)
        stored = [
            node.id
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        self._once = {n for n in stored if stored.count(n) == 1} - set(self._kinds)
        self._loops: list[tuple[Any, Any, list[set[str]]]] = []

    def translate(self) -> None:
        for raw, (name, kind) in zip(self._made.args, self._kinds.items(), strict=True):
            range_ = bounds(kind) if is_integer(kind) else None
            self._keep(self._tree, name, self._argument(raw, kind), range_)
        self._block(self._tree.body)
        if not self._b.block.is_terminated:
            if self._result is not None:
                last = self._tree.body[-1]
                self._fail(last, f"{self._tree.name} may end without a result")
            self._return_nothing()
        self._slots.branch(self._made.blocks[1])

    def _argument(self, raw: Any, kind: Any) -> Value:
        """Return what was passed: from C, or as the subset's functions do."""
        b, is_exported = self._b, self._is_exported
        if kind is bool:
            zero = ir.Constant(raw.type, 0)
            return Truth(b.icmp_unsigned("!=", raw, zero) if is_exported else raw)
        if is_integer(kind):
            return self._widen(raw, kind) if is_exported else Int(raw, *bounds(kind))
        return Place(b.inttoptr(raw, POINTER) if is_exported else raw, kind)

    def _return_nothing(self) -> None:
        """Return; a last call of a C function of the very same type is a jump.

        Helpers of the engine's learn from their return address which block has called.
        """
        instructions = self._b.block.instructions
        last = instructions[-1] if instructions else None
        if (
            self._is_exported
            and isinstance(last, ir.CallInstr)
            and last.callee.type == POINTER
            and [a.type for a in last.args] == [a.type for a in self._made.args]
            and last.type == ir.VoidType()
        ):
            last.tail = "musttail"
        self._b.ret_void()

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

    def _assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._keep(target, target.id, value, None)
            return
        place = self._place(target)
        if not is_integer(place.kind):
            self._fail(target, f"{ast.unparse(target)} is no integer")
        self._store(target, place, value)

    def _store(self, node: ast.AST, place: Place, value: Value) -> None:
        if isinstance(value, Place):
            self._fail(node, "only integers are stored")
        if isinstance(value, Truth):
            value = Int(self._b.zext(value.bit, WORD), 0, 1)
        self._b.store(self._narrow(value, place.kind), place.address, align=1)

    def _keep(
        self, node: ast.AST, name: str, value: Value, range_: tuple[int, int] | None
    ) -> None:
        """Put a value into a local, of the range that its annotation gives if any."""
        kind: Any
        if isinstance(value, Int):
            kind, type_, raw = range_, WORD, value.word
            if kind is None and name in self._once:
                kind = value.low, value.high
                if not value.within(U64) and not value.within(S64):
                    self._fail(node, f"{name} may be beyond 64 bits; mask it")
        elif isinstance(value, Truth):
            kind, type_, raw = bool, BIT, value.bit
        else:
            kind, type_, raw = value.kind, POINTER, value.address
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
            value = self._operation(node, node.op, before, self._integer(node.value))
            self._keep(node, target.id, value, None)
            return
        place = self._place(target)
        if not is_integer(place.kind):
            self._fail(node, f"{ast.unparse(target)} is no integer")
        raw = self._b.load(place.address, typ=c_type(place.kind), align=1)
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
            b.ret(b.zext(bit, c_type(bool)) if self._is_exported else bit)
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
            or len(call.args) not in (1, 2)
            or call.keywords
            or not isinstance(node.target, ast.Name)
        ):
            self._fail(node, "a loop is over range(stop) or range(start, stop)")
        first = self._exact(call.args[0]) if len(call.args) == 2 else constant(0)
        stop = self._exact(call.args[-1])
        name = node.target.id
        if not first.within(S64) or not stop.within(S64):
            self._fail(node, "a loop's ends are below 2^63")
        if name not in self._once:
            self._fail(node, f"{name} is assigned elsewhere too")
        counter = self._slots.alloca(WORD)
        b.store(first.word, counter)
        start, body, step, end = (self._made.append_basic_block() for _ in range(4))
        b.branch(start)
        b.position_at_end(start)
        now = b.load(counter, typ=WORD)
        b.cbranch(b.icmp_signed("<", now, stop.word), body, end)
        with self._loop(step, end):
            b.position_at_end(body)
            self._locals[name] = counter, (first.low, max(first.low, stop.high - 1))
            self._assigned.add(name)
            self._block(node.body)
            if not b.block.is_terminated:
                b.branch(step)
        b.position_at_end(step)
        now = b.load(counter, typ=WORD)
        b.store(b.add(now, ir.Constant(WORD, 1)), counter)
        b.branch(start)
        b.position_at_end(end)
