"""The virtual clock inside of translated blocks.

Unicorn begins every block that it translates with two calls: the block hook, and a
look whether to stop. Together they are a quarter of a short block. As soon as a block
has been translated, and before it first runs, the 52 to 59 bytes of those calls are
overwritten with code that counts the block itself and calls out only when there is
something to look at. Nothing is touched that is not, byte for byte, what Unicorn 2.1.4
makes on x86-64: any other block keeps its calls, which do the same.

A block can be guarded besides: a segment register that it may use must not be null.
"""

import ctypes
import struct
from typing import Final

from emu86.cpu.maps import peek, ranges
from emu86.native import abi, blob, prologue
from emu86.spec import x86

_NEAR: Final = 1 << 16  # a new block begins close behind the one before
_FAR: Final = 1 << 20
_LENGTH: Final = abi.PROLOGUE
_LIMIT: Final = 8 * abi.LIMIT
_ON_GUARD: Final = 8 * abi.ON_GUARD
_NOP_7: Final = bytes.fromhex("0f1f8000000000")
_NOP_9: Final = bytes.fromhex("660f1f840000000000")


class Prologues:
    """Rewrites the beginnings of one engine's blocks.

    late: address of the compiled `on_late`. Compiled code does it, `native.prologue`,
    by itself for most blocks, once the buffer of translated code has been found.
    """

    def __init__(self, shared: abi.Control, late: int) -> None:
        self._shared = shared
        uc, control = shared.uc, ctypes.addressof(shared)
        self._uc = b"\x48\xbf" + struct.pack("<Q", uc)  # mov rdi, uc
        self._control = b"\x48\xb9" + struct.pack("<Q", control)  # mov rcx, control
        self._shorten = blob.bind(prologue.shorten, control)
        self._begin = self._end = 0  # of the buffer of translated code
        # mov rdi, control; add qword [rdi], size
        head = b"\x48\xbf" + struct.pack("<Q", control) + b"\x48\x81\x07" + bytes(4)
        # mov rdx, [rdi]; cmp rdx, [rdi + LIMIT]
        look = b"\x48\x8b\x17" + bytes((0x48, 0x3B, 0x57, _LIMIT))
        # jl done; mov esi, pc; mov rax, late; call rax; nop; done:
        plain = head + look + b"\x7c\x1a\xbe" + bytes(4)
        plain += b"\x48\xb8" + struct.pack("<Q", late) + b"\xff\xd0" + _NOP_9
        # xor edx, edx; test byte [rbp + guard], 80h; jz late
        guarded = head + b"\x31\xd2\xf6\x85" + bytes(4) + b"\x80\x74\x09" + look
        # jl done; late: mov esi, pc; call [rdi + ON_GUARD]; nop; done:
        guarded += b"\x7c\x0f\xbe" + bytes(4) + bytes((0xFF, 0x57, _ON_GUARD)) + _NOP_7
        for at, code in ((0, plain), (abi.GUARDED_PROLOGUE, guarded)):
            assert len(code) == _LENGTH
            words = memoryview(code.ljust(64, b"\0")).cast("Q")
            shared.prologues[at : at + 8] = words.tolist()

    def shorten(self, pc: int, size: int, guard: int = 0) -> bool:
        """Rewrite the block at `pc`, 64 bits, with `size` bytes, just translated.

        guard: where in the CPU's state a byte is whose bit 7 must be set; 0 for none.
        Returns False if the block is not as expected: it keeps its calls.
        """
        shared = self._shared
        if not self._begin:
            self._find(pc, size)
        next_ = shared.code_next
        # The buffer begins anew when it is full or flushed.
        further = range(next_ + _NEAR, min(next_ + _FAR, self._end), _NEAR)
        for at in (next_, self._begin, *further):
            shared.code_next = at
            if self._shorten(pc, size, guard):
                return True
        shared.code_next = next_
        return False

    def restart(self) -> None:
        """Learn that all blocks are gone: the next stands where the first did."""
        self._shared.code_next = self._begin

    def _find(self, pc: int, size: int) -> None:
        """Find the buffer of translated code by the first block in it."""
        if pc <= x86.MASK32:
            load = struct.pack("<BI", 0xBE, pc)
        elif pc >> 31 == x86.MASK64 >> 31:
            load = struct.pack("<3sI", b"\x48\xc7\xc6", pc & x86.MASK32)
        else:
            load = struct.pack("<2sQ", b"\x48\xbe", pc)
        key = self._uc + load + struct.pack("<BI", 0xBA, size) + self._control
        for begin, end in ranges("rwx"):
            # Another engine's buffer may go at any moment, with that engine.
            offset = peek(begin, min(_NEAR, end - begin)).find(key)
            if offset >= 0:
                self._begin, self._end = begin, end
                self._shared.code_next, self._shared.code_end = begin + offset, end
                return
