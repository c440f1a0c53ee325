"""See at start-up which of Unicorn's private parts work as `offsets` says.

Each part is proved by what a small program does, never by a version number.
"""

import ctypes
import mmap
import platform
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from emu86.cpu import engine, library, offsets
from emu86.cpu.maps import ranges
from emu86.cpu.state import HFLAGS, RIP
from emu86.errors import ConfigError
from emu86.native import abi, blob
from emu86.native.tlb import drop_unshared
from emu86.spec import x86

_Answer = TypeVar("_Answer")
_STRANGE: Final = (
    "unicorn: this build keeps the CPU's state in another way than emu86 knows"
)
_FUNCTIONS: Final = (
    "tb_invalidate_phys_range_x86_64", "tlb_flush_page_x86_64", "tlb_flush_x86_64",
    library.CHECK_EXIT,
)  # fmt: skip
_CODE: Final = 0x1000
_PAGE_A: Final = 0x3000
_PAGE_B: Final = 0x4000
_TABLES: Final = 0x8000
_WINDOW: Final = 0x200000  # a virtual page that the probe maps to A, then to B
_PROGRAM: Final = bytes.fromhex(
    "8a0f"  # mov cl, [rdi]      (window: page A)
    "e610"  # out 10h, al        (the callback remaps the window)
    "8a17"  # mov dl, [rdi]      (page B, if the TLB's page was dropped)
    "e611"  # out 11h, al        (the callback stops the engine)
    "ff06"  # inc dword [rsi]
    "ff06"  # inc dword [rsi]    (both done exactly once, if stops are clean)
    "eb00"  # jmp +0
    "ebfe"  # jmp $
)
_COUNT: Final = bytes.fromhex("ff06ebfc")  # again: inc dword [rsi]; jmp again
_UNALIGNED: Final = bytes.fromhex("0f2806ebfe")  # movaps xmm0, [rsi]; jmp $
_RETURN: Final = bytes.fromhex("b801000000ebfe")  # mov eax, 1; jmp $


def probe() -> library.Abilities:
    """Return the abilities that hold; `Abilities.none()` if the layout differs.

    What is known of Unicorn's insides is known of x86-64 hosts. ConfigError where not
    even what the public API saves is laid out as `offsets` says.
    """
    may_be_live = platform.machine() in ("x86_64", "AMD64")
    if not _state_is_live(may_be_live=may_be_live):
        return library.Abilities.none()
    full = library.Abilities(
        live=True,
        stops=True,
        flush_page=True,
        drop_code=True,
        native=not blob.why_not(),
    )
    flushes, stops = _ask(full, _Program.window)
    return library.Abilities(
        live=True,
        stops=stops,
        flush_page=flushes,
        drop_code=_ask(full, _Program.drops_code),
        inline=full.native and _ask(replace(full, inline=True), _Program.counts_inline),
        looks=full.native and _looks(full),
        native=full.native,
        tlb=full.native
        and flushes
        and _ask(replace(full, tlb=True), _Program.parts_tlb),
    )


def _ask(can: library.Abilities, question: "Callable[[_Program], _Answer]") -> _Answer:
    """Ask a program on an engine of its own, whose memory is given back at once."""
    program = _Program(can)
    try:
        return question(program)
    finally:
        # An engine is in cycles, and with it is the memory for translated code.
        vars(program.cpu).clear()


def _looks(full: library.Abilities) -> bool:
    """Tell whether operands can be looked at; not without the functions for it."""
    if not all(library.address_of(name) for _word, name in engine.CALLED_BY_LOOKS):
        return False
    return _ask(replace(full, looks=True), _Program.looks)


def _state_is_live(*, may_be_live: bool) -> bool:
    """Tell whether the live view shows what the public API wrote; ConfigError."""
    bare = engine.Engine(library.Abilities.none())
    uc = bare._uc
    registers = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R15")
    try:
        for i, name in enumerate(registers):
            number = getattr(library.x86_const, f"UC_X86_REG_{name}")
            uc.reg_write(number, 0x0123456789ABCD00 + i)
        uc.reg_write(library.x86_const.UC_X86_REG_RIP, 0x12345678)
        uc.reg_write(
            library.x86_const.UC_X86_REG_GDTR, (0, 0xFFFF800011223000, 0x2FF, 0)
        )
        uc.reg_write(library.x86_const.UC_X86_REG_CR2, 0x55667788)
        uc.reg_write(library.x86_const.UC_X86_REG_DR0, 0x99AABBCC)
    except library.UnicornError as error:
        raise ConfigError(_STRANGE) from error
    context = bare._saved.value
    assert context is not None
    bare._load()
    saved = ctypes.string_at(context + 40, offsets.SIZE)
    places = [8 * i for i in range(8)] + [64, 120]
    wanted = [0x0123456789ABCD00 + i for i in range(len(registers))]
    for place, value in (
        *zip(places, wanted, strict=True),
        (offsets.RIP, 0x12345678),
        (offsets.GDTR + 8, 0xFFFF800011223000),
        (offsets.CR + 16, 0x55667788),
        (offsets.DR, 0x99AABBCC),
    ):
        if struct.unpack_from("<Q", saved, place)[0] != value:
            raise ConfigError(_STRANGE)
    if not all(map(library.address_of, _FUNCTIONS)):
        return False
    cpu = ctypes.c_uint64.from_address(bare._handle + offsets.UC_CPU).value
    live = cpu + offsets.CPU_STATE
    if not may_be_live or not any(
        low <= cpu and live + offsets.SIZE <= high for low, high in _readable()
    ):
        return False
    return ctypes.string_at(live, offsets.SIZE) == saved


def _is_tlb(shared: abi.Control) -> bool:
    """Tell whether what should be the TLB and the jumps points to where memory is.

    The jumps have the block that runs, at _CODE.
    """
    readable = _readable()

    def there(at: int, size: int) -> bool:
        return any(low <= at and at + size <= high for low, high in readable)

    tlb = abi.Tlb.from_address(shared.tlb)
    tables = [tlb.tables[i] for i in range(3) if tlb.dirty >> i & 1]
    entry = ctypes.sizeof(abi.TlbEntry)
    if tlb.dirty >> 3 or not all(there(at.first, at.mask + entry) for at in tables):
        return False
    blocks = [at for at in abi.Jumps.from_address(shared.jumps) if at]
    if not all(there(at, 8) for at in blocks):
        return False
    return _CODE in {ctypes.c_uint64.from_address(at).value for at in blocks}


def _mapped(shared: abi.Control) -> set[int]:
    """Return the pages, by their linear addresses, that the TLB has."""
    entry, found = ctypes.sizeof(abi.TlbEntry), set()
    tlb = abi.Tlb.from_address(shared.tlb)
    for table in (tlb.tables[i] for i in range(3) if tlb.dirty >> i & 1):
        for at in range(table.first, table.first + table.mask + entry, entry):
            words = abi.TlbEntry.from_address(at)
            found.add(words[0] & words[1] & words[2] & x86.PAGE_MASK)
    return found


def _readable() -> list[tuple[int, int]]:
    """Return this process's readable and writable address ranges, joined."""
    merged: list[tuple[int, int]] = []
    for low, high in ranges("rw"):
        joins = merged and merged[-1][1] == low
        merged.append((merged.pop()[0] if joins else low, high))
    return merged


class _Program:
    """A 64 KiB machine in 64-bit mode at CPL 0 with 4-level paging."""

    def __init__(self, can: library.Abilities) -> None:
        self.memory = memoryview(mmap.mmap(-1, 0x10000))
        self.tables = self.memory.cast("Q")
        self.cpu = cpu = engine.Engine(can)
        cpu.map(0, self.memory)
        user = x86.PTE_P | x86.PTE_RW
        pml4, pdpt, pd, pt, pt2 = (_TABLES + 0x1000 * i for i in range(5))
        self.window_entry = pt2 // 8
        for table, index, value in (
            (pml4, 0, pdpt), (pdpt, 0, pd), (pd, 0, pt), (pd, 1, pt2),
            *((pt, i, i << 12) for i in range(16)), (pt2, 0, _PAGE_A),
        ):  # fmt: skip
            self.tables[table // 8 + index] = value | user
        cpu.set_control(x86.CR0_PG | x86.CR0_PE | x86.CR0_WP, pml4, x86.CR4_PAE)
        code = x86.DESC_P | x86.DESC_S | x86.DESC_A | x86.DESC_RW
        cpu.set_segment(x86.CS, 8, 0, x86.MASK32, code | x86.DESC_CODE | x86.DESC_L)
        for index in (x86.SS, x86.DS, x86.ES):
            cpu.set_segment(index, 16, 0, x86.MASK32, code | x86.DESC_B)
        cpu.sync_mode(0)
        cpu.d[HFLAGS] |= offsets.HF_CS64 | offsets.HF_CS32
        cpu.set_flags(0)
        cpu.q[RIP] = _CODE
        cpu.on_exception = self._unexpected
        cpu.on_invalid = cpu.stop
        cpu.on_cpuid = cpu.stop
        cpu.on_in = lambda _port, _width: 0
        self.drop_window: Callable[[], None] = lambda: cpu.flush_page(_WINDOW)
        cpu.on_out = self._out

    def _unexpected(self, _vector: int) -> None:
        self.cpu.stop()

    def _out(self, port: int, _width: int, _value: int) -> None:
        if port == 0x10:
            self.tables[self.window_entry] = _PAGE_B | x86.PTE_P
            self.drop_window()
        else:
            self.cpu.stop()

    def parts_tlb(self) -> bool:
        """Tell whether parts of the TLB and of the jumps can be dropped."""
        shared = self.cpu.shared
        roots = [(ctypes.c_uint64 * 2048)() for _ in range(2)]
        roots[1][_WINDOW >> 21] = 1
        kept: list[bool] = []

        def drop() -> None:
            if _is_tlb(shared):
                drop_unshared(shared, *map(ctypes.addressof, roots))
                kept.append(_CODE in _mapped(shared) and _WINDOW not in _mapped(shared))

        self.drop_window = drop
        return self.window() == (True, True) and kept == [True]

    def window(self) -> tuple[bool, bool]:
        """Tell whether one page can be flushed, and whether stops are clean."""
        cpu = self.cpu
        self.memory[_CODE : _CODE + len(_PROGRAM)] = _PROGRAM
        self.memory[_PAGE_A], self.memory[_PAGE_B] = 0xAA, 0xBB
        cpu.q[x86.EDI], cpu.q[x86.ESI] = _WINDOW, _PAGE_A + 8
        cpu.hook()
        cpu.run()
        seen = cpu.q[x86.ECX] & 0xFF, cpu.q[x86.EDX] & 0xFF
        count = self.memory[_PAGE_A + 8]
        return seen == (0xAA, 0xBB), count == 2

    def drops_code(self) -> bool:
        """Tell whether code rewritten behind the engine's back runs when dropped."""
        cpu = self.cpu
        self.memory[_CODE : _CODE + len(_RETURN)] = _RETURN
        cpu.control[abi.NOW], cpu.control[abi.STOP_AT] = 0, len(_RETURN) + 1
        cpu.hook()
        cpu.run()
        first = cpu.q[x86.EAX]
        self.memory[_CODE + 1] = 2
        cpu.drop_code(_CODE, len(_RETURN))
        cpu.control[abi.NOW] = 0
        cpu.q[RIP] = _CODE
        cpu.run()
        return (first, cpu.q[x86.EAX]) == (1, 2)

    def counts_inline(self) -> bool:
        """Tell whether blocks can count themselves and stop in time."""
        cpu = self.cpu
        self.memory[_CODE : _CODE + len(_COUNT)] = _COUNT
        cpu.q[x86.ESI] = _PAGE_A
        cpu.hook()
        blocks = 100
        cpu.control[abi.STOP_AT] = blocks * len(_COUNT)
        cpu.run()
        done = self.memory.cast("I")[_PAGE_A // 4]
        now = cpu.control[abi.NOW]
        clean = (done, now) == (blocks - 1, blocks * len(_COUNT))
        return clean and cpu.shortened > 0

    def looks(self) -> bool:
        """Tell whether an operand that is not aligned is found before it is read."""
        cpu = self.cpu
        self.memory[_CODE : _CODE + len(_UNALIGNED)] = _UNALIGNED
        vectors: list[int] = []

        def exception(vector: int) -> None:
            vectors.append(vector)
            cpu.stop()

        cpu.on_exception = exception
        cpu.d[HFLAGS] |= offsets.HF_OSFXSR
        cpu.control[abi.STOP_AT] = 100 * len(_UNALIGNED)
        cpu.hook()
        word = x86.ESI << abi.LOOK_BASE | abi.NO_REGISTER << abi.LOOK_INDEX
        word |= x86.DS << abi.LOOK_SEGMENT | 1 << abi.LOOK_ALIGNED
        kept = cpu.look_at([(_CODE, word)])
        cpu.q[x86.ESI] = _PAGE_A + 8
        cpu.run()
        refused = vectors == [x86.VEC_GP] and cpu.q[RIP] == _CODE
        cpu.q[x86.ESI] = _PAGE_A
        cpu.run()
        del kept
        return refused and len(vectors) == 1 and cpu.q[RIP] > _CODE
