"""One instruction under emu86 and on the host's CPU, less flags that are undefined."""

from typing import Final

import capstone

from emu86.rings.decode import decode
from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.host import HostOutcome, run_on_host
from emu86.testing.outcome import Outcome
from emu86.testing.run import run
from emu86.testing.stage import State

_CF, _PF, _AF, _ZF, _SF, _OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
_SHIFT: Final = _AF | _OF  # AF, and OF for counts other than 1: Vol. 2B SAL/SAR/SHL/SHR
_ALL: Final = x86.ARITHMETIC_FLAGS

# Flags that the SDM leaves undefined, by mnemonic: Vol. 1 appendix A, table A-1, and
# the instruction's own page for OF of shifts and rotates.
UNDEFINED: Final[dict[str, int]] = {
    **dict.fromkeys(("and", "or", "xor", "test"), _AF),
    **dict.fromkeys(("shl", "sal", "shr", "sar"), _SHIFT),
    **dict.fromkeys(("shld", "shrd"), _SHIFT),
    **dict.fromkeys(("rol", "ror", "rcl", "rcr"), _OF),
    **dict.fromkeys(("mul", "imul"), _SF | _ZF | _AF | _PF),
    **dict.fromkeys(("div", "idiv"), _ALL),
    **dict.fromkeys(("bt", "bts", "btr", "btc"), _OF | _SF | _AF | _PF),
    **dict.fromkeys(("bsf", "bsr"), _CF | _OF | _SF | _AF | _PF),
    **dict.fromkeys(("aaa", "aas"), _OF | _SF | _ZF | _PF),
    **dict.fromkeys(("aam", "aad"), _OF | _AF | _CF),
    **dict.fromkeys(("daa", "das"), _OF),
}
# CF is undefined for counts above the operand's 8 or 16 bits: Vol. 2B SAL/SAR/SHL/SHR.
_NARROW: Final = ("shl", "sal", "shr")
_NAMES: Final = (*x86.GPR_NAMES, "eflags")


def compare_with_host(instruction: bytes, state: State) -> list[str]:
    """Return where one instruction of ring 3 does not do here what it does on the host.

    Empty if it does the same: registers, flags less the undefined ones, the data page
    and the stack page, or the same exception. `host.missing` must be empty.
    """
    theirs = run_on_host(instruction, state)
    ours = run(instruction + b"\xcd\x80", _at_ring_3(state))
    event = ours.events[0]
    if event.what != "INT 80h" or theirs.end != "done":
        ended = "done" if event.what == "INT 80h" else event.what
        return [] if ended in theirs.end else [f"{ended}, but {theirs.end} on the host"]
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    insn = next(decoder.disasm(instruction, stage.CODE))
    name = insn.mnemonic.rpartition(" ")[2]
    mask = x86.ARITHMETIC_FLAGS | x86.DF
    undefined = UNDEFINED.get(name, 0)
    if name in _NARROW:
        decoded = decode(instruction, wide=True)
        if decoded is not None and (decoded.size == 2 or not decoded.opcode & 1):
            undefined |= _CF
    masks = {"eflags": mask & ~undefined}
    found = [
        f"{insn.mnemonic} {insn.op_str}: {register} {here:08X}, on the host {there:08X}"
        for register in _NAMES
        if ((here := event.registers[register]) ^ (there := theirs.registers[register]))
        & masks.get(register, -1)
    ]
    return found + _pages(ours, theirs)


def _at_ring_3(state: State) -> State:
    flags = state.flags & ~x86.IOPL | x86.IF
    return State(
        ring=3, flags=flags, registers=state.registers, limit=1, patches=state.patches
    )


def _pages(ours: Outcome, theirs: HostOutcome) -> list[str]:
    found = []
    below = stage.STACK3 - x86.PAGE_SIZE
    for at, page in ((stage.DATA, theirs.data), (below, theirs.stack)):
        here = ours.memory[at : at + x86.PAGE_SIZE]
        if here != page:
            first = next(i for i in range(x86.PAGE_SIZE) if here[i] != page[i])
            found.append(
                f"[{at + first:08X}]: {here[first]:02X}, but {page[first]:02X}"
            )
    return found
