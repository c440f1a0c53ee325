"""Strategies of descriptors, gates and page-table entries, and of whole tables.

Tables are patches for `State.patches`. What the stage itself needs stays as it is, so
that the program starts: the descriptors of its own code, data, stacks, TSSs and LDT,
and the pages of its tables, handlers, stacks and program.
"""

import struct
from typing import Final, Literal, get_args

from hypothesis import strategies as st

from emu86.errors import unknown
from emu86.mmu.paging import LARGE_RESERVED
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import check_bits
from emu86.testing.operands import Code
from emu86.testing.stage64 import gate64

Kind = Literal["valid", "half-valid", "hostile"]
Patches = tuple[tuple[int, bytes], ...]

# Descriptors of the GDT up to here stay; and how many there are.
_FIRST: Final = {32: stage.TSS16_SELECTOR // 8 + 6, 64: stage.DATA64_OF[2] // 8 + 1}
_ENTRIES: Final = {32: stage.LAST_SELECTOR // 8 + 1, 64: stage.LAST_SELECTOR64 // 8 + 1}
# Pages that stay: what the machine looks at by itself, and where it starts.
_PAGES: Final = frozenset(
    {*range(stage.IDT >> 12, (stage.STACK0 >> 12) + 1), (stage.STACK3 >> 12) - 1}
    | {stage.CODE >> 12, (stage.CODE >> 12) + 1}
)
_DIRECTORY: Final = (1, 2, 3, 0x300, 0x3FE, 0x200)  # entries of it that may change
_ABOVE64: Final = (
    *(stage.PD + 8 * i for i in (1, 2, 4, 6, 7, 0x1FE)),
    *(stage.PDPT + 8 * i for i in (1, 3, 0x1FF)),
    *(stage.PML4 + 8 * i for i in (1, 0x1FF)),
)
# What the engine takes for an address, and the CPU models for reserved.
_NOT_BEYOND: Final = ~(0xF << x86.MAXPHYADDR)
_PRESENT: Final = 0x80  # in a descriptor's byte 5


def descriptors() -> Code:
    """Descriptors of 8 bytes: valid ones, and any with a few bits wrong."""
    return st.one_of(_sound(), st.binary(min_size=8, max_size=8))


def _sound() -> Code:
    return st.builds(
        stage.descriptor,
        st.sampled_from((0, stage.DATA, 0xC0000000, 0xFFFFF000)),
        st.sampled_from((0xFFFFF, 0xFFFF, 0xFFF, 0)),
        st.integers(0, 0xFF),
        st.sampled_from((0xC, 0x4, 0x8, 0)),
    )


def _segments(bits: int) -> Code:
    """Present code and data segments: flat, of any type but expand-down, any DPL."""
    kinds = (0x12, 0x1A, 0x10, 0x18, 0x1E, 0x1C)
    sizes = (0xC,) if bits == 32 else (0xA, 0xC, 0xE)
    return st.builds(
        lambda kind, dpl, flags: stage.descriptor(
            0, 0xFFFFF, _PRESENT | dpl << 5 | kind, flags
        ),
        st.sampled_from(kinds), st.sampled_from((0, 3, 1, 2)), st.sampled_from(sizes),
    )  # fmt: skip


def _check(kind: str, bits: int) -> None:
    check_bits(bits)
    kinds = get_args(Kind)
    if kind not in kinds:
        message = f"kind: {unknown(kind, kinds)}"
        raise ValueError(message)


def gates(kind: Kind = "valid", bits: int = 32) -> Code:
    """Gates of all kinds: call, interrupt, trap, task; of 16 bytes for 64-bit kernels.

    half-valid: they lead to any selector, some are not present, and the reserved byte
    holds anything.
    """
    _check(kind, bits)
    if bits == 64:
        return _gates64(kind)
    kinds = (
        x86.SYS_INT32, x86.SYS_TRAP32, x86.SYS_CALL32, x86.SYS_TASK_GATE,
        x86.SYS_INT16, x86.SYS_TRAP16, x86.SYS_CALL16,
    )  # fmt: skip

    def to_code(kind: int, dpl: int, count: int) -> bytes:
        if kind == x86.SYS_TASK_GATE:
            return stage.gate(stage.TSS_B_SELECTOR, 0, kind, dpl)
        built = stage.gate(stage.CODE0, stage.HANDLERS, kind, dpl)
        calls = kind in (x86.SYS_CALL16, x86.SYS_CALL32)
        return built[:4] + bytes([count if calls else 0]) + built[5:]

    sound = st.builds(
        to_code, st.sampled_from(kinds), st.sampled_from((3, 0, 1, 2)),
        st.sampled_from((0, 2, 31)),
    )  # fmt: skip
    if kind == "valid":
        return sound
    if kind == "hostile":
        return st.binary(min_size=8, max_size=8)
    return st.builds(_flipped, sound, st.integers(0, 63))


def _gates64(kind: Kind) -> Code:
    if kind == "hostile":
        return st.binary(min_size=16, max_size=16)
    sound = st.builds(
        gate64, st.just(stage.CODE0), st.just(stage.HANDLERS),
        st.sampled_from((x86.SYS_INT64, x86.SYS_TRAP64, x86.SYS_CALL64)),
        st.sampled_from((3, 0, 1, 2)), st.sampled_from((0, 0, 1, 7)),
    )  # fmt: skip
    if kind == "valid":
        return sound
    return st.one_of(
        st.builds(_flipped, sound, st.integers(0, 127)),
        st.builds(
            gate64, st.sampled_from((stage.CODE64_OF[1], stage.CODE32_0, stage.CODE3)),
            st.sampled_from((stage.HANDLERS, 1 << 47)), st.just(x86.SYS_INT64),
            st.just(3),
        ),
    )  # fmt: skip


def _flipped(entry: bytes, bit: int) -> bytes:
    word = int.from_bytes(entry, "little") ^ 1 << bit
    return word.to_bytes(len(entry), "little")


def descriptor_tables(
    kind: Kind = "valid", bits: int = 32
) -> st.SearchStrategy[Patches]:
    """GDT, LDT and IDT, as patches of the stage.

    valid: segments and gates of all kinds in the GDT from 68h on, in the LDT, and in
    the IDT from vector 60h on. half-valid: the same, with a bit wrong here and there.
    hostile: anything, also in the exceptions' gates. 16-bit TSSs come in hostile tables
    alone: the engine has no 16-bit tasks. bits: of the kernel's code.
    """
    _check(kind, bits)
    valid = st.one_of(_segments(bits), gates(bits=bits))
    first, count = _FIRST[bits], _ENTRIES[bits]
    size = 16 if bits == 64 else 8
    entries = {
        "valid": valid,
        "half-valid": st.one_of(
            valid, st.builds(_flipped, valid, st.integers(0, 63)), _sound()
        ),
        "hostile": st.binary(min_size=8, max_size=8),
    }[kind]
    first_vector = 0 if kind == "hostile" else 0x60
    interrupt = {
        "valid": gates(bits=bits).filter(lambda gate: gate[5] & 0xF not in (4, 0xC)),
        "half-valid": st.one_of(gates(bits=bits), gates("half-valid", bits)),
        "hostile": gates("hostile", bits),
    }[kind]
    places = st.one_of(
        st.tuples(
            st.integers(first, count - 1).map(lambda i: stage.GDT + 8 * i), entries
        ),
        st.tuples(st.integers(0, count - 1).map(lambda i: stage.LDT + 8 * i), entries),
        st.tuples(
            st.sampled_from(
                [v for v in (0x80, 0x82, 0x20, 3, 4, 6, 13, 14) if v >= first_vector]
            ).map(lambda vector: stage.IDT + size * vector),
            interrupt,
        ),
    )
    return st.lists(places, max_size=12).map(tuple)


def page_table_entries(bits: int = 32) -> st.SearchStrategy[int]:
    """Entries of page tables: pages of the stage with any rights, and rubbish.

    They have 32 bits, or 64 for 64-bit kernels. No reserved bit is set but by rubbish.
    """
    check_bits(bits)
    sound = st.builds(
        lambda page, rights: page << 12 | rights,
        st.sampled_from((stage.DATA >> 12, stage.CODE >> 12, 0x60, 0x9F, 0xA0, 0)),
        st.sampled_from((7, 3, 5, 1, 0, 6, 0x27, 0x67, 0x107)),
    )
    if bits == 32:
        return st.one_of(sound, st.integers(0, x86.MASK32))
    return st.one_of(
        sound,
        sound.map(lambda entry: entry | x86.PTE_NX),
        st.integers(0, x86.MASK64).map(lambda entry: entry & _NOT_BEYOND),
    )


def without_reserved(entry: int) -> int:
    """Return a PDE whose bits 12 to 21 are 0 if it may be that of a large page."""
    return entry & ~LARGE_RESERVED if entry & x86.PDE_PS else entry


def page_tables(kind: Kind = "valid", bits: int = 32) -> st.SearchStrategy[Patches]:
    """The page table and what is above it, as patches of the stage.

    valid: every page is present, somewhere in RAM, and everybody may write it.
    half-valid: pages have any rights, are absent, or are where no RAM is; so are
    directory entries. hostile: anything. Only bits 12 to 21 of a large page are 0: the
    engine takes them for an address above 4 GiB. (And bits 36 to 39 of entries of 64
    bits.) bits: of the kernel's code.
    """
    _check(kind, bits)
    most = (1 << bits) - 1 & _NOT_BEYOND
    anywhere = st.builds(lambda page: page << 12 | 7, st.integers(0x20, 0x9F))
    entries = {
        "valid": anywhere,
        "half-valid": page_table_entries(bits),
        "hostile": st.integers(0, most).map(lambda entry: entry & most),
    }[kind]
    tables = {
        "valid": st.sampled_from((stage.PT | 7, stage.PT_B | 7, 0x87)),
        "half-valid": st.one_of(
            st.sampled_from((stage.PT | 5, stage.PT_B | 3, 0x85, 0, 0x80000007)),
            page_table_entries(bits),
        ),
        "hostile": st.integers(0, most).map(lambda entry: entry & most),
    }[kind]
    pages = [page for page in range(0x20, 0xA4) if page not in _PAGES]
    if bits == 64:
        changed = st.one_of(
            st.tuples(st.sampled_from(pages).map(lambda i: stage.PT + 8 * i), entries),
            st.tuples(st.sampled_from(_ABOVE64), tables),
        )
        return st.lists(changed, max_size=12).map(
            lambda found: tuple((at, struct.pack("<Q", entry)) for at, entry in found)
        )
    changed = st.one_of(
        st.tuples(st.sampled_from(pages).map(lambda i: stage.PT + 4 * i), entries),
        st.tuples(
            st.sampled_from(_DIRECTORY).map(lambda i: stage.PD + 4 * i),
            tables.map(without_reserved),
        ),
    )
    return st.lists(changed, max_size=12).map(
        lambda found: tuple((at, struct.pack("<I", entry)) for at, entry in found)
    )
