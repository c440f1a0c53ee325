"""Unicorn's library: its functions, types of callbacks, and what of it may work."""

import ctypes
from dataclasses import dataclass, replace
from typing import Any, Final

import unicorn.unicorn_py3.unicorn as binding  # type: ignore[import-untyped, unused-ignore]
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as x86_const  # noqa: PLC0414 (for all of cpu/)

VOID, PTR = None, ctypes.c_void_p
U32, U64, INT = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int
ON_EXCEPTION: Final = ctypes.CFUNCTYPE(VOID, PTR, U32, PTR)
ON_INVALID: Final = ctypes.CFUNCTYPE(ctypes.c_bool, PTR, PTR)
ON_BLOCK: Final = ctypes.CFUNCTYPE(VOID, PTR, U64, U32, PTR)
ON_IN: Final = ctypes.CFUNCTYPE(U32, PTR, U32, INT, PTR)
ON_OUT: Final = ctypes.CFUNCTYPE(VOID, PTR, U32, INT, U32, PTR)
ON_INSTRUCTION: Final = ctypes.CFUNCTYPE(INT, PTR, PTR)
ON_EDGE: Final = ctypes.CFUNCTYPE(VOID, PTR, U64, U64, PTR)
EMU_STOP: Final = ctypes.CFUNCTYPE(ctypes.c_int32, U64)

lib: Any = binding.uclib
# The same library without releasing the GIL: for short calls out of a hook.
quick: Any = ctypes.PyDLL(lib._name)  # noqa: SLF001 (ctypes has no other name for it)
for _name in (
    "uc_reg_read", "uc_reg_write", "uc_emu_stop", "uc_ctl", "uc_hook_add",
    "uc_hook_del",
):  # fmt: skip
    getattr(quick, _name).argtypes = None
lib.uc_emu_start.argtypes = (PTR, U64, U64, U64, ctypes.c_size_t)

# The engine's functions: from its lazy flags to those of EFLAGS; whether to stop.
COMPUTE_FLAGS: Final = "helper_cc_compute_all_x86_64"
CHECK_EXIT: Final = "helper_check_exit_request_x86_64"
# Its delivery of an event through its own IDTR. A fault there leaves it by longjmp, so
# compiled code alone may call it.
DO_INTERRUPT: Final = "x86_cpu_do_interrupt_x86_64"

UnicornError: Final = binding.UcError


class EngineError(RuntimeError):
    """Unicorn refused a call or stopped for a reason that is none of the guest's."""


def address_of(name: str) -> int:
    """Return the address of one of the library's functions; 0: it has none."""
    function = getattr(quick, name, None)
    return ctypes.cast(function, PTR).value or 0 if function is not None else 0


def check(status: int, call: str) -> None:
    """Raise EngineError if a call was refused."""
    if status:
        message = f"unicorn: {call} failed with status {status}"
        raise EngineError(message)


def write_request(kind: int, arguments: int) -> ctypes.c_int:
    """Encode a write request for uc_ctl (unicorn.h, UC_CTL_WRITE)."""
    return ctypes.c_int(kind | arguments << 26 | uc_const.UC_CTL_IO_WRITE << 30)


FLUSH_TLB: Final = write_request(uc_const.UC_CTL_TLB_FLUSH, 0)
FLUSH_CODE: Final = write_request(uc_const.UC_CTL_TB_FLUSH, 0)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What of Unicorn's private state was seen to work in this process.

    live: the state can be viewed without copying. stops: stops fall between blocks, no
    instruction is ever executed twice. flush_page: one page of the TLB can be dropped.
    drop_code: the translations of a range of physical memory can be dropped.
    inline: the clock can be counted inside of translated blocks. looks: compiled code
    can look at the operands of an instruction before it runs. native: the handlers run
    compiled. tlb: they can drop what they choose of the TLB and of the jumps.
    """

    live: bool
    stops: bool
    flush_page: bool
    drop_code: bool
    inline: bool = False
    looks: bool = False
    native: bool = False
    tlb: bool = False

    def reference(self) -> "Abilities":
        """Have CPython run the handlers, without what needs them compiled."""
        return replace(self, inline=False, looks=False, native=False, tlb=False)

    @classmethod
    def none(cls) -> "Abilities":
        """Rely on the public API alone."""
        return cls(live=False, stops=False, flush_page=False, drop_code=False)
