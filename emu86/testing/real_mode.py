"""Programs in real mode, from any state, on the bare machine and deprivileged.

There is no stage: who plays a program brings all of the RAM, with the vector table. A
play ends at a HLT, to which the vectors may lead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from emu86 import config
from emu86.cpu.models import MODELS
from emu86.cpu.state import ATTRIBUTES, BASE, RIP, SELECTOR
from emu86.rings.technique.bare import Bare
from emu86.rings.technique.registry import build
from emu86.spec import x86
from emu86.testing.clock import Line
from emu86.testing.reset import put
from emu86.testing.run import STEPS, Ports, by_block

MEMORY: Final = 0x110000  # bytes of RAM: what FFFF:FFFF reaches
# CF to OF, and NT: deprivileged real mode shows an IOPL of 3, so plays begin with it.
FLAGS: Final = 0x4FD5


_SHOWN: Final = 4  # bytes of RAM


@dataclass(frozen=True)
class Ending:
    """How a play ended: "halted", or what else; with the registers and all of RAM.

    registers: 32 bits by name, of segment registers 16, "eflags" those of `FLAGS`;
    "es.base" and its kin: where the segments begin.
    """

    end: str
    registers: dict[str, int]
    memory: bytes


def differences(one: Ending, other: Ending) -> list[str]:
    """Return what differs of two endings, a line each; of RAM the first few bytes."""
    lines = [] if one.end == other.end else [f"{one.end}, but {other.end}"]
    for name, value in one.registers.items():
        if other.registers[name] != value:
            lines.append(f"{name}: {value:X}, but {other.registers[name]:X}")
    if one.memory != other.memory:
        pairs = enumerate(zip(one.memory, other.memory, strict=True))
        bytes_ = (f"[{at:X}]: {a:02X}, but {b:02X}" for at, (a, b) in pairs if a != b)
        lines += islice(bytes_, _SHOWN)
    return lines


class _Open(Ports):
    """A bus on which nobody answers."""

    def port_read(self, port: int, width: int) -> int:  # noqa: ARG002
        """Read a port: all lines are high."""
        return (1 << 8 * width) - 1


class RealMode:
    """A machine that plays programs in real mode under a technique."""

    def __init__(self, technique: str = "bare", cpu: str = config.CPU) -> None:
        """Make it; raises ConfigError for an unknown technique or CPU model."""
        config.check_technique(technique)
        config.check_cpu(cpu)
        self._vmm = build(technique, MEMORY, MODELS[cpu])
        ram = self._vmm.ram
        for page in ram.hole:  # a processor alone has RAM everywhere
            ram.state[page] = 0
        self._vmm.connect(_Open(), Line())
        self._vmm.reset_cpu()
        self._vmm.start()
        self._first = self._vmm.save()

    def play(self, registers: Mapping[str, int], image: bytes | bytearray) -> Ending:
        """Run from a state: registers by name, 0 if not named, and `MEMORY` bytes."""
        vmm = self._vmm
        vmm.restore(self._first)
        put(vmm, image)
        self._begin(registers)
        if isinstance(vmm, Bare):
            for _ in range(STEPS):
                if vmm.vcpu.halted or vmm.end is not None:
                    break
                vmm.step()
        else:
            by_block(vmm)
            vmm.unpatch()
        end = "budget"
        if vmm.vcpu.halted:
            end = "halted"
        elif vmm.end is not None:
            end = f"{vmm.end[0]}: {vmm.end[1]}"
        return Ending(end, self._registers(), vmm.ram.map[:MEMORY])

    def _begin(self, registers: Mapping[str, int]) -> None:
        """Put registers into the CPU, which has just been reset."""
        vmm = self._vmm
        for index, name in enumerate(x86.SEGMENT_NAMES):
            selector = registers.get(name, 0) & 0xFFFF
            rights = vmm.d[ATTRIBUTES[index]]
            vmm.engine.set_segment(index, selector, selector << 4, 0xFFFF, rights)
        for index, name in enumerate(x86.GPR_NAMES):
            vmm.q[index] = registers.get(name, 0)
        vmm.q[RIP] = registers.get("eip", 0)
        flags = registers.get("eflags", 0) & (FLAGS | x86.IF) | x86.FLAGS_FIXED
        vmm.set_guest_flags(flags | x86.IOPL)
        vmm.cpu.update_mode()

    def _registers(self) -> dict[str, int]:
        vmm = self._vmm
        found = {name: vmm.q[i] & x86.MASK32 for i, name in enumerate(x86.GPR_NAMES)}
        found["eip"] = vmm.q[RIP] & x86.MASK32
        found["eflags"] = vmm.guest_flags() & FLAGS
        for index, name in enumerate(x86.SEGMENT_NAMES):
            found[name] = vmm.d[SELECTOR[index]] & 0xFFFF
            found[f"{name}.base"] = vmm.q[BASE[index]] & x86.MASK32
        return found
