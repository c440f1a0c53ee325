"""A program of a user, of 32 or of 64 bits, and how it ends on a machine.

Two machines run one here: the host's CPU (`cage`) and the bare engine, in long mode at
CPL 3. To both there are three pages: the stage's code, its data and its stack, and
nothing outside of them. Code may run on each, but not be written where it stands.
"""

import mmap
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from emu86.cpu import offsets
from emu86.cpu.engine import Engine
from emu86.cpu.state import CR, RIP
from emu86.native import abi
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.cage import PAGES, STACK, cage

# What a user may give POPF and get back as it was.
USER_FLAGS: Final = x86.ARITHMETIC_FLAGS | x86.DF | x86.ID
_CPL: Final = 3
_END: Final = b"\xcc"
_BREAKPOINT: Final = x86.event_name(x86.VEC_BP)
_TABLES: Final = 0x8000  # four page tables, the kernel's alone
_BUDGET: Final = 1 << 22  # bytes of code until a run is endless
_SSE: Final = x86.CR4_OSFXSR | x86.CR4_OSXMMEXCPT


@dataclass(frozen=True)
class User:
    """Where a user's program starts.

    bits: of its code, 32 or 64; registers: general ones by name ("eax", or "rax", "r8")
    but the stack pointer, which is the top of the stack page; flags: RFLAGS, of which
    the arithmetic ones, DF and ID count; data, stack: what these pages begin with. The
    rest of them is CCh. Raises ValueError.
    """

    bits: int = 64
    registers: dict[str, int] = field(default_factory=dict)
    flags: int = x86.FLAGS_FIXED
    data: bytes = b""
    stack: bytes = b""

    def __post_init__(self) -> None:
        """Raise ValueError for a field that no user can have."""
        __tracebackhide__ = True
        if self.bits not in (32, 64):
            message = f"bits: {self.bits!r:.60} is not 32 or 64"
            raise ValueError(message)
        names = [name for i, name in enumerate(self.names) if i != x86.ESP]
        page = f"bytes, at most {x86.PAGE_SIZE}"
        wanted = {
            "registers": (
                stage.are_registers(self.registers, names, 1 << self.bits),
                f"{self.bits} bits for each of {', '.join(names)}",
            ),
            "flags": (stage.is_number(self.flags, 1 << 64), "64 bits"),
            "data": (_is_page(self.data), page),
            "stack": (_is_page(self.stack), page),
        }
        for name, (is_right, what) in wanted.items():
            if not is_right:
                message = f"{name}: {getattr(self, name)!r:.60} is not {what}"
                raise ValueError(message)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the general registers, as the SDM numbers them."""
        return x86.GPR_NAMES64 if self.bits == 64 else x86.GPR_NAMES

    def values(self) -> tuple[int, ...]:
        """Return all 16 general registers; 0 where nothing is said."""
        given = self.registers | {self.names[x86.ESP]: stage.STACK3}
        values = [given.get(name, 0) for name in self.names]
        return (*values, *[0] * (16 - len(values)))

    def page(self, address: int, program: bytes) -> bytes:
        """Return the stage's code, data or stack page.

        ValueError for a program that, with its end, does not fit on a page.
        """
        if len(program) + len(_END) > x86.PAGE_SIZE:
            message = f"program: {len(program)} bytes are more than a page less one"
            raise ValueError(message)
        given = {stage.CODE: program + _END, stage.DATA: self.data, STACK: self.stack}
        return given[address].ljust(x86.PAGE_SIZE, _END)


def _is_page(value: object) -> bool:
    return isinstance(value, bytes) and len(value) <= x86.PAGE_SIZE


@dataclass(frozen=True)
class UserOutcome:
    """How a program ended.

    end: "done", an exception ("#PF"), "endless" or, on the host, "killed"; registers:
    general ones, "ip" and "flags" (the arithmetic ones and DF), as the end found them;
    cr2: of a page fault, or 0; data, stack: the pages.
    """

    end: str
    registers: dict[str, int]
    cr2: int
    data: bytes = field(repr=False)
    stack: bytes = field(repr=False)


def outcome_of(
    user: User, program: bytes, event: str, values: tuple[int, ...], cr2: int,
    data: bytes, stack: bytes,
) -> UserOutcome:  # fmt: skip
    """Make an outcome; event: what ended it; values: 16 registers, RIP and RFLAGS."""
    registers = dict(zip(user.names, values, strict=False))
    *_, rip, flags = values
    ends = stage.CODE + len(program) + len(_END)
    end = "done" if (event, rip) == (_BREAKPOINT, ends) else event
    registers |= {"ip": rip, "flags": flags & (x86.ARITHMETIC_FLAGS | x86.DF)}
    return UserOutcome(end, registers, cr2, data, stack)


def _event(vector: int | None) -> str:
    return "endless" if vector is None else x86.event_name(vector)


def run_on_host(program: bytes, user: User) -> UserOutcome:
    """Run a program of user code on this machine's CPU.

    Raises OSError where that is not possible (`host.missing` says why). A program may
    do anything but a system call, which may end it as "killed".
    """
    held = cage()
    for address, offset in PAGES.items():
        page = user.page(address, program)
        held.memory[offset : offset + x86.PAGE_SIZE] = page
    kept = held.run(user.values(), user.flags & USER_FLAGS | 0x202, user.bits)
    data, stack = (
        held.memory[PAGES[page] : PAGES[page] + x86.PAGE_SIZE]
        for page in (stage.DATA, STACK)
    )
    if kept.end == "killed":
        return UserOutcome("killed", {}, 0, data, stack)
    values = (*kept.registers, kept.rip, kept.rflags)
    event = _event(kept.vector)
    return outcome_of(user, program, event, values, kept.cr2, data, stack)


class _Bare:
    """An engine in long mode with the three pages, used again and again."""

    def __init__(self) -> None:
        self.memory = memoryview(mmap.mmap(-1, stage.MEMORY))
        self.cpu = cpu = Engine()
        cpu.map(0, self.memory)
        tables = self.memory.cast("Q")
        read = x86.PTE_P | x86.PTE_US
        rights = read | x86.PTE_RW
        for i in range(3):
            tables[(_TABLES >> 3) + 512 * i] = _TABLES + 0x1000 * (i + 1) | rights
        for address in PAGES:
            page = address | rights if address != stage.CODE else address | read
            tables[(_TABLES + 0x3000 >> 3) + (address >> 12)] = page
        cpu.on_exception = self._exception
        cpu.on_invalid = self._invalid
        cpu.on_cpuid = cpu.stop
        cpu.on_in = lambda _port, _width: 0
        cpu.on_out = lambda _port, _width, _value: None
        self.vector: int | None = None
        self.values: tuple[int, ...] = ()
        cpu.hook()

    def _begin(self) -> None:
        self.vector, self.values = None, ()

    def _exception(self, vector: int) -> None:
        if self.values:
            return
        q = self.cpu.q
        self.vector = vector
        self.values = (*q[:16], q[RIP], self.cpu.flags())
        self.cpu.stop()

    def _invalid(self) -> None:
        self._exception(x86.VEC_UD)

    def run(self, program: bytes, user: User) -> UserOutcome:
        """Run a program to its first exception."""
        cpu, q = self.cpu, self.cpu.q
        for address in PAGES:
            page = user.page(address, program)
            self.memory[address : address + x86.PAGE_SIZE] = page
        cpu.drop_code(stage.CODE, x86.PAGE_SIZE)
        cpu.set_control(
            x86.CR0_PG | x86.CR0_PE | x86.CR0_WP | x86.CR0_NE | x86.CR0_MP, _TABLES,
            x86.CR4_PAE | _SSE,
        )  # fmt: skip
        wide = user.bits == 64
        rights = x86.DESC_P | x86.DESC_S | x86.DESC_A | x86.DESC_RW
        rights |= x86.DESC_DPL
        code = rights | x86.DESC_CODE | (x86.DESC_L if wide else x86.DESC_B)
        cpu.set_segment(x86.CS, 0x33 if wide else 0x23, 0, x86.MASK32, code)
        for index in (x86.SS, x86.DS, x86.ES):
            cpu.set_segment(index, 0x2B, 0, x86.MASK32, rights | x86.DESC_B)
        cpu.sync_mode(_CPL)
        if wide:
            cpu.d[offsets.HFLAGS // 4] |= offsets.HF_CS64 | offsets.HF_CS32
        cpu.set_flags(user.flags & USER_FLAGS | x86.IF)
        for i, value in enumerate(user.values()):
            q[i] = value
        q[RIP] = stage.CODE
        q[CR + 2] = 0
        self._begin()
        cpu.control[abi.STOP_AT] = cpu.control[abi.NOW] + _BUDGET
        cpu.run()
        values = self.values or (*q[:16], q[RIP], cpu.flags())
        cr2 = q[CR + 2] if self.vector == x86.VEC_PF else 0
        data, stack = (
            bytes(self.memory[page : page + x86.PAGE_SIZE])
            for page in (stage.DATA, STACK)
        )
        event = _event(self.vector)
        return outcome_of(user, program, event, values, cr2, data, stack)


@cache
def _bare() -> _Bare:
    return _Bare()


def run_on_engine(program: bytes, user: User) -> UserOutcome:
    """Run a program of user code on the bare engine, at CPL 3, without a VMM."""
    return _bare().run(program, user)
