"""Compare a user's program on emu86 and on the host's CPU, less undefined flags."""

import struct
from collections.abc import Callable
from functools import cache
from typing import Final

from emu86.errors import expect
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.cage import PAGES, STACK
from emu86.testing.ring3 import (
    USER_FLAGS,
    User,
    UserOutcome,
    outcome_of,
    run_on_host,
)
from emu86.testing.run import run
from emu86.testing.stage import State
from emu86.testing.undefined import disassembly, undefined

Machine = Callable[[bytes, User], UserOutcome]

# A stack address that is not canonical: the engine has it wrong, for 64-bit code alone.
_STACK_ADDRESS: Final = ("#GP", "#SS")
# What a CPU may raise where an access goes over 4 GiB, though no limit forbids it.
_OVER_LIMIT: Final = ("#GP", "#SS")
_WIDEST: Final = 16  # bytes of an operand
_KERNEL: Final = range(stage.IDT >> 12, (stage.STACK0 >> 12) + 1)


def run_on_emu86(program: bytes, user: User) -> UserOutcome:
    """Run a program of user code in emu86, in ring 3 of the stage's kernel.

    Of the stage's pages it can reach code, data and stack alone.
    """
    pages = tuple((address, user.page(address, program)) for address in PAGES)
    names = [name for i, name in enumerate(user.names) if i != x86.ESP]
    wide = user.bits == 64
    state = State(
        mode="long" if wide else "protected",
        ring=3,
        paging=True,
        flags=user.flags & USER_FLAGS | x86.FLAGS_FIXED | x86.IF,
        registers={name: user.registers.get(name, 0) for name in names},
        cr0=x86.CR0_AM,  # as Linux has it
        cr4=x86.CR4_OSFXSR,
        limit=1,
        patches=(*pages, *(_page_tables64() if wide else _page_tables())),
    )
    # The models that have most: what they lack the host has, too.
    outcome = run(b"", state, cpu="atom" if wide else "pentium4")
    if not outcome.events:
        data, stack = (
            outcome.memory[at:][: x86.PAGE_SIZE] for at in (stage.DATA, STACK)
        )
        return UserOutcome("endless", {}, 0, data, stack)
    event = outcome.events[0]
    found = event.registers
    values = [found[name] for name in user.names] + [0] * (16 - len(user.names))
    last = (found["rip"], found["rflags"]) if wide else (found["eip"], found["eflags"])
    return outcome_of(
        user, program, event.what, (*values, *last),
        found["cr2"] if event.what == "#PF" else 0,
        outcome.memory[stage.DATA :][: x86.PAGE_SIZE],
        outcome.memory[STACK:][: x86.PAGE_SIZE],
    )  # fmt: skip


@cache
def _page_tables() -> tuple[tuple[int, bytes], ...]:
    table = [0] * 1024
    for page in _KERNEL:
        table[page] = page << 12 | x86.PTE_P | x86.PTE_RW
    for address in PAGES:
        writable = 0 if address == stage.CODE else x86.PTE_RW
        table[address >> 12] = address | x86.PTE_P | x86.PTE_US | writable
    directory = [stage.PT | x86.PTE_P | x86.PTE_RW | x86.PTE_US] + [0] * 1023
    return (
        (stage.PD, struct.pack("<1024I", *directory)),
        (stage.PT, struct.pack("<1024I", *table)),
    )


@cache
def _page_tables64() -> tuple[tuple[int, bytes], ...]:
    link = x86.PTE_P | x86.PTE_RW | x86.PTE_US
    table = [0] * 512
    for page in _KERNEL:
        table[page] = page << 12 | x86.PTE_P | x86.PTE_RW
    for address in PAGES:
        writable = 0 if address == stage.CODE else x86.PTE_RW
        table[address >> 12] = address | x86.PTE_P | x86.PTE_US | writable
    tables = {
        stage.PML4: [stage.PDPT | link], stage.PDPT: [stage.PD | link],
        stage.PD: [stage.PT | link], stage.PT: table,
    }  # fmt: skip
    return tuple(
        (at, struct.pack(f"<{len(entries)}Q", *entries).ljust(x86.PAGE_SIZE, b"\0"))
        for at, entries in tables.items()
    )


def _is_open(here: UserOutcome, there: UserOutcome) -> bool:
    """Tell whether both faults are right, for an access that goes over 4 GiB.

    "When the effective limit is FFFFFFFFH (4 GBytes), these accesses may or may not
    cause the indicated exceptions" (Vol. 3A 5.3): AMD's CPUs raise them.
    """
    goes_over = 0 < (1 << 32) - here.cr2 < _WIDEST
    return here.end == "#PF" and goes_over and there.end in _OVER_LIMIT


def compare_with_host(
    program: bytes, user: User, machine: Machine | None = None
) -> list[str]:
    """Return how a user's program on the host's CPU differs from the same program here.

    The lines are empty if it ends in the same way, at the same place, with the same
    general registers, flags, CR2, data page and stack page. Not compared are the flags
    that the last instruction leaves undefined. (Flags that an earlier one leaves
    undefined are compared: `computing_programs` has none.) Which fault an access over 4
    GiB raises is not compared either, because the SDM leaves it open. machine:
    `run_on_emu86`, the default, or `ring3.run_on_engine`. If there are differences, the
    last line is the program. `host.missing` must be empty. Raises TypeError for a
    program or a user of the wrong type.
    """
    __tracebackhide__ = True
    expect("program", program, bytes)
    expect("user", user, User)
    machine = machine or run_on_emu86
    there, here = run_on_host(program, user), machine(program, user)
    found = []
    is_open = (here.end, there.end) == _STACK_ADDRESS or _is_open(here, there)
    if here.end != there.end and not is_open:
        found.append(f"{here.end}, on the host {there.end}")
    ran = there.registers.get("ip", stage.CODE) - stage.CODE
    masks = {"flags": ~undefined(program[: max(ran, 0)], user.bits)}
    for name in there.registers:
        one, other = here.registers.get(name, 0), there.registers[name]
        if (one ^ other) & masks.get(name, -1):
            found.append(f"{name} {one:X}, on the host {other:X}")
    if here.cr2 != there.cr2 and not is_open:
        found.append(f"cr2 {here.cr2:X}, on the host {there.cr2:X}")
    pages = {
        stage.DATA: (here.data, there.data),
        STACK: (here.stack, there.stack),
    }
    for at, (ours, theirs) in pages.items():
        if ours != theirs:
            first = next(i for i in range(x86.PAGE_SIZE) if ours[i] != theirs[i])
            found.append(
                f"[{at + first:X}] {ours[first]:02X}, on the host {theirs[first]:02X}"
            )
    if found:
        found.append("; ".join(disassembly(program, user.bits)))
    return found
