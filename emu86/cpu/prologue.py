"""The virtual clock inside of translated blocks.

Unicorn begins every block that it translates with two calls: the block hook, and a
look whether to stop. Together they are a quarter of a short block. As soon as a block
has been translated, and before it first runs, the 52 to 54 bytes of those calls are
overwritten with code that counts the block itself and calls out only when there is
something to look at. Nothing is touched that is not, byte for byte, what Unicorn 2.1.4
makes on x86-64: any other block keeps its calls, which do the same.

A block can be guarded besides: a segment register that it may use must not be null.
"""

import ctypes
import struct
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from emu86.cpu.maps import peek, ranges
from emu86.native import abi

_NEAR: Final = 1 << 16  # a new block begins close behind the one before
_FAR: Final = 1 << 20
_FAR_CALL: Final = b"\xff\x15"  # call [rip + disp32], 6 bytes
_NEAR_CALL: Final = b"\xe8"  # call rel32, 5 bytes
_MOST: Final = 54
_LENGTH: Final = abi.PROLOGUE
_PADDING: Final = b"", b"\x90", b"\x66\x90"  # NOP
_STOP_AT: Final = 8 * abi.STOP_AT
_PENDING: Final = 8 * abi.PENDING
_ON_GUARD: Final = 8 * abi.ON_GUARD


@cache
def _memmem() -> Callable[..., int | None]:
    found: Any = ctypes.PyDLL(None).memmem  # Windows has no such thing, nor Prologues
    found.restype = ctypes.c_void_p
    found.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t,
    )  # fmt: skip
    return found  # type: ignore[no-any-return]


class Prologues:
    """Rewrites the beginnings of one engine's blocks.

    late: address of the compiled `on_late`. Most blocks are rewritten by compiled code,
    `native.prologue`, once the buffer of translated code has been found.
    """

    def __init__(self, shared: abi.Control, late: int) -> None:
        self._shared = shared
        uc, control = shared.uc, ctypes.addressof(shared)
        self._uc = b"\x48\xbf" + struct.pack("<Q", uc)  # mov rdi, uc
        self._control = b"\x48\xb9" + struct.pack("<Q", control)  # mov rcx, control
        # mov rdi, control; add qword [rdi], size
        self._head = b"\x48\xbf" + struct.pack("<Q", control) + b"\x48\x81\x07"
        look = (
            b"\x48\x8b\x17"  # mov rdx, [rdi]
            + bytes((0x48, 0x3B, 0x57, _STOP_AT))  # cmp rdx, [rdi + STOP_AT]
            + b"\x7d\x07"  # jge late
            + bytes((0x48, 0x83, 0x7F, _PENDING, 0))  # cmp qword [rdi + PENDING], 0
        )
        # je done; late: mov esi, pc; mov rax, late; call rax; nop
        self._tail = (
            look + b"\x74\x13\xbe",
            b"\x48\xb8" + struct.pack("<Q", late) + b"\xff\xd0\x66\x90",
        )
        # xor edx, edx; test byte [rbp + at], 80h; jz late
        self._guard = b"\x31\xd2\xf6\x85", b"\x80\x74\x10"
        # je done; late: mov esi, pc; call [rdi + ON_GUARD]
        self._guarded = look + b"\x74\x08\xbe", bytes((0xFF, 0x57, _ON_GUARD))
        self._begin = self._end = 0  # of the buffer of translated code
        for at, guard in ((0, 0), (abi.GUARDED_PROLOGUE, 1)):
            words = memoryview(self._made(0, 0, guard).ljust(64, b"\0")).cast("Q")
            shared.prologues[at : at + 8] = words.tolist()

    def shorten(self, pc: int, size: int, guard: int = 0) -> bool:
        """Rewrite the block at `pc`, 64 bits, with `size` bytes, just translated.

        guard: where in the CPU's state a byte is whose bit 7 must be set; 0 for none.
        Returns False if the block is not as expected: it keeps its calls.
        """
        if pc >> 32:
            return False
        key = self._uc + struct.pack("<BIBI", 0xBE, pc, 0xBA, size) + self._control
        at = self._find(key)
        if not at:
            return False
        shared = self._shared
        shared.code_next, shared.code_end = at + _LENGTH, self._end
        code = ctypes.string_at(at, _MOST)
        # The block hook; mov rdi, uc; xor esi, esi; the look whether to stop.
        first = _call_at(code, len(key))
        between = len(key) + first
        ahead = between + len(self._uc) + 2
        second = _call_at(code, ahead)
        same = code[between:ahead] == self._uc + b"\x33\xf6"
        if not (first and second and same):
            return False
        new = self._made(pc, size, guard)
        new += _PADDING[ahead + second - _LENGTH]
        ctypes.memmove(at, new, len(new))
        shared.count_shortened += 1
        return True

    def _made(self, pc: int, size: int, guard: int) -> bytes:
        """Return what replaces the calls of a block."""
        new = self._head + struct.pack("<I", size)
        if guard:
            new += struct.pack("<I", guard).join(self._guard)
        new += struct.pack("<I", pc).join(self._guarded if guard else self._tail)
        assert len(new) == _LENGTH
        return new

    def restart(self) -> None:
        """Learn that all blocks are gone: the next stands where the first did."""
        self._shared.code_next = self._begin

    def _find(self, key: bytes) -> int:
        """Return the address of `key` in the newest translated code; 0: nowhere."""
        if not self._begin:
            for begin, end in ranges("rwx"):
                # Another engine's buffer may go at any moment, with that engine.
                offset = peek(begin, min(_NEAR, end - begin)).find(key)
                if offset >= 0:
                    self._begin, self._end = begin, end
                    return begin + offset
            return 0
        # The buffer begins anew when it is full or flushed.
        return (
            _search(self._shared.code_next, _NEAR, self._end, key)
            or _search(self._begin, _NEAR, self._end, key)
            or _search(self._shared.code_next, _FAR, self._end, key)
        )


def _call_at(code: bytes, at: int) -> int:
    """Return the length of the call in `code` there; 0: there is none."""
    if code.startswith(_FAR_CALL, at):
        return 6
    return 5 if code.startswith(_NEAR_CALL, at) else 0


def _search(at: int, size: int, end: int, key: bytes) -> int:
    size = max(0, min(size, end - at))
    return _memmem()(at, size, key, len(key)) or 0
