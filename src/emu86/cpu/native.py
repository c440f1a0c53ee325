"""The few handlers that run between two blocks of guest code, compiled by numba.

They exist because they run hundreds of millions of times in a boot: counting retired
code (the virtual clock, about 1 ns a block), RDTSC, and the two privileged instructions
that a kernel executes most, CLI and STI. Everything else goes on to Python. Each does
exactly what its Python twin in `engine` or `rings` does: tests compare the two.

All share one control block of int64 words; the constants below name them.
"""

from typing import Any, Final

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from emu86.cpu import layout as at
from emu86.cpu.control import (
    COUNT_CLI,
    COUNT_RDTSC,
    COUNT_STI,
    NOW,
    ON_EXCEPTION,
    PENDING,
    SITE_CLI,
    SITE_MASK,
    SITE_STI,
    SITES,
    STATE,
    STOP_AT,
    TSC_COST,
    TSC_OFFSET,
    UC,
    UC_EMU_STOP,
)
from emu86.spec import x86

_I64: Final = ir.IntType(64)
_I32: Final = ir.IntType(32)


@intrinsic
def _load64(_typing: Any, address: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return builder.load(builder.inttoptr(values[0], _I64.as_pointer()))

    return types.int64(address), codegen


@intrinsic
def _load32(_typing: Any, address: Any) -> Any:
    def codegen(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        word = builder.load(builder.inttoptr(values[0], _I32.as_pointer()))
        return builder.zext(word, _I64)

    return types.int64(address), codegen


@intrinsic
def _store64(_typing: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        builder.store(values[1], builder.inttoptr(values[0], _I64.as_pointer()))
        return context.get_dummy_value()

    return types.void(address, value), codegen


@intrinsic
def _store32(_typing: Any, address: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], _I32.as_pointer())
        builder.store(builder.trunc(values[1], _I32), pointer)
        return context.get_dummy_value()

    return types.void(address, value), codegen


@intrinsic
def _call_stop(_typing: Any, function: Any, uc: Any) -> Any:
    def codegen(context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        kind = ir.FunctionType(_I32, [_I64]).as_pointer()
        builder.call(builder.inttoptr(values[0], kind), [values[1]])
        return context.get_dummy_value()

    return types.void(function, uc), codegen


@intrinsic
def _call_exception(_typing: Any, function: Any, uc: Any, vector: Any) -> Any:
    def codegen(context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64, _I32, _I64]).as_pointer()
        target = builder.inttoptr(values[0], kind)
        builder.call(target, [values[1], values[2], ir.Constant(_I64, 0)])
        return context.get_dummy_value()

    return types.void(function, uc, vector), codegen


_CONTROL: Final = types.CPointer(types.int64)
_OLD_EXCEPTION: Final = at.OLD_EXCEPTION
_NONE: Final = 0xFFFFFFFF


@numba.cfunc(
    types.void(types.int64, types.uint64, types.uint32, _CONTROL),
    cache=True,
    error_model="numpy",
)
def on_block(_uc: int, _address: int, size: int, control: Any) -> None:
    """UC_HOOK_BLOCK: retire `size` bytes of code, stop when the budget is spent."""
    now = control[NOW] + size
    control[NOW] = now
    if now >= control[STOP_AT]:
        _call_stop(control[UC_EMU_STOP], control[UC])


@numba.cfunc(types.int32(types.int64, _CONTROL), cache=True, error_model="numpy")
def on_rdtsc(_uc: int, control: Any) -> int:
    """UC_HOOK_INSN RDTSC: EDX:EAX := virtual nanoseconds plus the TSC's offset."""
    now = control[NOW] + control[TSC_COST]
    control[NOW] = now
    control[COUNT_RDTSC] += 1
    tsc = (now >> 2) + control[TSC_OFFSET]
    state = control[STATE]
    _store64(state + 8 * x86.EAX, tsc & 0xFFFFFFFF)
    _store64(state + 8 * x86.EDX, (tsc >> 32) & 0xFFFFFFFF)
    return 1


@numba.cfunc(
    types.void(types.int64, types.int32, _CONTROL), cache=True, error_model="numpy"
)
def on_exception(uc: int, vector: int, control: Any) -> None:
    """UC_HOOK_INTR: CLI and STI at a known site here, everything else in Python."""
    state = control[STATE]
    if (
        vector == x86.VEC_GP
        and _load64(state + at.ERROR_CODE) == 0  # nor is it an INT 0Dh
        and _load32(state + at.HFLAGS) & at.HF_CPL == 1
    ):
        eip = _load64(state + at.RIP)
        base = _load64(state + at.SEGMENTS + at.SEGMENT_SIZE * x86.CS + 8)
        linear = (eip + base) & 0xFFFFFFFF
        slot = SITES + 2 * ((linear ^ (linear >> 12)) & SITE_MASK)
        flags = _load64(state + at.RFLAGS)
        if control[slot] == linear and flags & x86.TF == 0:
            kind = control[slot + 1]
            hidden = _load32(state + at.HFLAGS) & ~at.HF_INHIBIT_IRQ
            done = False
            if kind == SITE_CLI:
                flags &= ~x86.IF
                control[COUNT_CLI] += 1
                done = True
            elif kind == SITE_STI and control[PENDING] == 0:
                if flags & x86.IF == 0:
                    flags |= x86.IF
                    hidden |= at.HF_INHIBIT_IRQ
                control[COUNT_STI] += 1
                done = True
            if done:
                _store32(state + at.HFLAGS, hidden)
                _store64(state + at.RFLAGS, flags)
                _store64(state + at.RIP, (eip + 1) & 0xFFFFFFFF)
                _store32(state + _OLD_EXCEPTION, _NONE)
                return
    _call_exception(control[ON_EXCEPTION], uc, vector)
