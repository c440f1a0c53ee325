"""The virtual CPU, what the guest believes it runs on.

General registers, EIP, EFLAGS and the segment registers with their hidden parts are the
hardware's own (`engine`); here is what the hardware must not hold. The guest's CPL
needs no home: CS keeps the selector that the guest loaded, whose RPL is the virtual
CPL, while the engine's own CPL is 1 for virtual 0.
"""

from dataclasses import dataclass, field

from emu86.cpu.models import CpuModel
from emu86.cpu.pmu import Pmu
from emu86.spec import x86


@dataclass(slots=True)
class SystemSegment:
    """LDTR or TR: selector 16 bits, base 32 bits, limit in bytes, descriptor type."""

    selector: int = 0
    base: int = 0
    limit: int = 0
    kind: int = 0


@dataclass(slots=True)
class VCpu:
    """Control, table and debug registers as the guest wrote them; all 32 bits.

    The values at reset are SDM Vol. 3A table 9-1's, except that the CPU starts in
    protected mode, where every boot protocol that emu86 speaks enters a kernel.
    """

    model: CpuModel
    cr0: int = x86.CR0_PE | x86.CR0_ET
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    gdt_base: int = 0
    gdt_limit: int = 0xFFFF
    idt_base: int = 0
    idt_limit: int = 0x3FF
    ldtr: SystemSegment = field(default_factory=SystemSegment)
    tr: SystemSegment = field(
        default_factory=lambda: SystemSegment(0, 0, 0xFFFF, x86.SYS_TSS32_BUSY)
    )
    dr: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400])
    msr: dict[int, int] = field(default_factory=dict)
    pmu: Pmu = field(default_factory=Pmu)
    halted: bool = False
    hypervisor: str = ""
