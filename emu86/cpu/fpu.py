"""What the x87 FPU and SSE hold, all read by one call of the public API."""

import ctypes
from typing import Final

from emu86.cpu.library import check, quick, x86_const

_REGISTERS: Final = {
    **{f"fp{i}": x86_const.UC_X86_REG_FP0 + i for i in range(8)},
    **{
        name: getattr(x86_const, f"UC_X86_REG_{name.upper()}")
        for name in ("fpcw", "fpsw", "fptag", "mxcsr")
    },
    **{f"xmm{i}": x86_const.UC_X86_REG_XMM0 + i for i in range(8)},
}
_COUNT: Final = len(_REGISTERS)
_WIDEST: Final = 16  # bytes
_SLOTS: Final = tuple((name, _WIDEST * i) for i, name in enumerate(_REGISTERS))


class Fpu:
    """That of the engine behind a handle."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle = handle
        self._buffer = ctypes.create_string_buffer(_WIDEST * _COUNT)
        start = ctypes.addressof(self._buffer)
        self._numbers = (ctypes.c_int * _COUNT)(*_REGISTERS.values())
        self._places = (ctypes.c_void_p * _COUNT)(*(start + at for _, at in _SLOTS))
        self._raw = b""
        self._values: dict[str, int] = {}

    def read(self) -> dict[str, int]:
        """Return the registers by name: see `engine.Engine.fpu`."""
        status = quick.uc_reg_read_batch(
            self._handle, self._numbers, self._places, _COUNT
        )
        check(status, "FPU read")
        raw = self._buffer.raw
        if raw != self._raw:  # most programs leave it alone
            self._raw = raw
            self._values = {
                name: int.from_bytes(raw[at : at + _WIDEST], "little")
                for name, at in _SLOTS
            }
        return self._values.copy()
