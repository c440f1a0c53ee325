"""How a run ended, in a form that can be compared and printed."""

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from emu86.spec import x86
from emu86.testing import stage

# What emu86 does not have yet, and says so; the bare machine may have it.
_NOT_YET: Final = re.compile("a far jump out of what is no RAM")
_PAGE: Final = x86.PAGE_SIZE
# Of a page table, the page after the program's, which a fetch ahead may have used, and
# the pages with descriptors, which techniques keep.
_AHEAD: Final = (stage.CODE >> 12) + 1
_DESCRIPTORS: Final = range(stage.IDT >> 12, stage.PD >> 12)
FLAGS: Final = ("eflags", "rflags")
_ADDRESS: Final = (1 << x86.MAXPHYADDR) - _PAGE  # in an entry of 64 bits


def place_of(registers: dict[str, int]) -> str:
    """Return CS:EIP, or CS:RIP, as text."""
    rip = registers.get("rip")
    where = f"{registers['eip']:08X}" if rip is None else f"{rip:016X}"
    return f"{registers['cs']:X}h:{where}"


@dataclass(frozen=True)
class Event:
    """Something that can be seen from outside of the program, while it runs.

    what: an exception ("#GP"), interrupt ("INT 80h") or port access ("IN 60h"); value:
    its error code, or what was read or written; registers: the guest's, when the event
    came; pages: the pages of RAM that have changed since the last event or the start,
    by number, with what this event has pushed. A port access has neither registers nor
    pages: a repeated instruction may not have written its earlier rounds yet.
    """

    what: str
    value: int | None
    registers: dict[str, int]
    pages: dict[int, bytes] = field(repr=False)

    def __str__(self) -> str:
        value = "" if self.value is None else f" {self.value:X}h"
        where = f" at {place_of(self.registers)}" if self.registers else ""
        return f"{self.what}{value}{where}"


@dataclass(frozen=True)
class Outcome:
    """How a program ended under a technique.

    end: "halted", "triple fault", "unsupported", "budget" (it ran on), "paused" or
    "stale" (what it does next depends on what a TLB keeps); detail: more words on it,
    or empty; events: in order; registers: at the end; start, memory: all of RAM at the
    start and at the end.
    """

    technique: str = field(compare=False)
    end: str
    detail: str
    events: tuple[Event, ...]
    registers: dict[str, int]
    start: bytes = field(repr=False)
    memory: bytes = field(repr=False)

    def __str__(self) -> str:
        lines = [f"{self.technique}: {self.end} after {len(self.events)} events"]
        lines += [f"  {event}" for event in self.events]
        return "\n".join(lines)


def differences(one: Outcome, other: Outcome, hidden: int = 0) -> Iterator[str]:
    """Return lines that say how another outcome differs from `one`, if it does.

    Not compared is what `one` had still to do when its budget ended. hidden: bits of
    EFLAGS that may differ. These accessed bits may differ, too: that of a page of
    descriptors, because a technique reads tables whole and keeps them; that of a PDE or
    of what is above it, because the SDM leaves open whether an access that then faults
    sets it (Vol. 3A 4.8); that of the page after the program's or where an event finds
    EIP, because code may be fetched ahead (Vol. 3A 11.7). The registers of a CPU that
    has shut down are not compared.
    """
    ram = bytearray(one.start), bytearray(other.start)
    for number, (left, right) in enumerate(zip(one.events, other.events, strict=False)):
        for image, event in zip(ram, (left, right), strict=True):
            for page, data in event.pages.items():
                image[page * _PAGE : (page + 1) * _PAGE] = data
        if (left.what, left.value) != (right.what, right.value):
            yield f"event {number}: {left}, but {right}"
            return
        found = list(_registers(left.registers, right.registers, hidden))
        pages = sorted({*left.pages, *right.pages})
        found += _memory(*ram, _accessed(left.registers, ram[0]), pages)
        if found:
            yield f"event {number}, {left}:"
            yield from found
            return
    both = len(one.events), len(other.events)
    gave_up = other.end == "unsupported"
    if gave_up and one.end != "unsupported" and not _NOT_YET.match(other.detail):
        yield f"{other.technique} gave up: {other.detail}"
    elif both[0] > both[1] and not gave_up:
        yield f"{one.technique} alone has {one.events[both[1]]}"
    elif gave_up or one.end in ("budget", "stale", "unsupported"):
        return
    elif both[0] < both[1]:
        yield f"{other.technique} alone has {other.events[both[0]]}"
    elif one.end != other.end:
        yield f"{one.technique} ended: {one.end}; {other.technique}: {other.end}"
    else:
        if one.end != "triple fault":
            yield from _registers(one.registers, other.registers, hidden)
        yield from _memory(
            one.memory, other.memory, _accessed(one.registers, one.memory)
        )


def _registers(
    one: dict[str, int], other: dict[str, int], hidden: int
) -> Iterator[str]:
    for name, left in one.items():
        right = other[name]
        mask = ~hidden if name in FLAGS else -1
        if (left ^ right) & mask:
            yield f"  {name}: {left:08X}, but {right:08X} (bits {left ^ right:08X})"


def _accessed(
    registers: dict[str, int], ram: bytes | bytearray
) -> Callable[[int], bool]:
    """Return what tells whether the accessed bit of the entry at an address may differ.

    registers: of the event, or none; they tell where a fetch ahead was; ram: of then.
    """
    wide = "rip" in registers
    size, count = (8, 512) if wide else (4, 1024)
    fetched = -1
    if registers:
        eip = registers["rip" if wide else "eip"]
        fetched = registers["cs.base"] + eip >> 12 & count - 1

    def may_differ(at: int) -> bool:
        table, index = at & ~(_PAGE - 1), (at & _PAGE - 1) // size
        if table in (_directories(ram) if wide else (stage.PD,)) or (
            table == stage.PT_B and index == fetched
        ):
            return True
        return table == stage.PT and index in (fetched, _AHEAD, *_DESCRIPTORS)

    return may_differ


def _directories(ram: bytes | bytearray) -> set[int]:
    """Return where the tables above page tables are, of 4 levels.

    Those of the stage, and what their entries have been made to lead to: a page table
    may be a directory, too.
    """
    found = set(stage.TABLES[True][:-2])
    level = {stage.PML4}
    for _ in range(2):
        entries = (
            entry
            for table in level
            for (entry,) in struct.iter_unpack("<Q", ram[table : table + _PAGE])
            if entry & (x86.PTE_P | x86.PDE_PS) == x86.PTE_P
        )
        level = {entry & _ADDRESS for entry in entries if entry & _ADDRESS < len(ram)}
        found |= level
    return found


def _memory(
    one: bytes | bytearray,
    other: bytes | bytearray,
    may_differ: Callable[[int], bool],
    pages: Iterable[int] = range(stage.MEMORY // _PAGE),
) -> Iterator[str]:
    for start in (page * _PAGE for page in pages):
        left, right = one[start : start + _PAGE], other[start : start + _PAGE]
        if left == right:
            continue
        for i in range(0, _PAGE, 4):
            was, now = (
                int.from_bytes(page[i : i + 4], "little") for page in (left, right)
            )
            if was != now and not (was ^ now == x86.PTE_A and may_differ(start + i)):
                yield f"  [{start + i:08X}]: {was:08X}, but {now:08X}"
