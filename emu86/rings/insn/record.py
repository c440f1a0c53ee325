"""The form of the exit table: one record per instruction that the VMM handles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from emu86.rings.cpu import Cpu
from emu86.rings.decode import Insn

# A handler emulates one instruction. It returns True if it has set EIP itself; else the
# caller moves EIP past the instruction. It raises GuestFault or PageFault before it has
# changed anything.
Handler = Callable[[Cpu, Insn], bool | None]

Kind = Literal["privileged", "sensitive", "segment", "io"]


@dataclass(frozen=True, slots=True)
class Record:
    """One instruction.

    opcodes: one byte, or 0F00h + the second; reg, modrm: the ModRM.reg that selects it,
    or the whole ModRM, or -1; kind: privileged (traps outside ring 0), sensitive (does
    not trap, yet tells or loses something), segment (traps when the shadow tables
    refuse it) or io; traps: how it reaches the VMM ("#UD" first: the engine does not
    have it); patched: at which of the engine's rings (1: the guest's kernel, 3: its
    users) its sites are patched before they first run; memory: only with a memory
    operand, with a register it runs natively; registers: the reverse; narrow: only
    behind 66h; only: what else tells those that are meant from others; modes: bits of
    the code that has them; anew: it is not emulated, but run natively as the first of a
    block; sdm: where it is described; doc: what is done and why.
    """

    mnemonic: str
    encoding: str
    opcodes: tuple[int, ...]
    kind: Kind
    traps: str
    handler: Handler
    sdm: str
    doc: str
    reg: int = -1
    modrm: int = -1
    patched: tuple[int, ...] = ()
    ring0_only: bool = False
    memory: bool = False
    registers: bool = False
    narrow: bool = False
    only: Callable[[Insn], bool] | None = None
    modes: tuple[int, ...] = (16, 32, 64)
    anew: bool = False
