"""The virtual CPU, what the guest believes it runs on.

General registers, EIP, EFLAGS and the segment registers with their hidden parts are the
hardware's own (`engine`); here is what the hardware must not hold. The guest's CPL
needs no home: CS keeps the selector that the guest loaded, whose RPL is the virtual
CPL, while the engine's own CPL is 1 for virtual 0.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from emu86.cpu.models import CpuModel
from emu86.cpu.pmu import Pmu, PmuState
from emu86.spec import x86

SHARED: Final = 15  # words that a `VCpu` can keep elsewhere
_EFER: Final = 8
# Where STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE and TSC_AUX are among them.
_SYSCALL: Final = slice(9, SHARED)


@dataclass(slots=True)
class SystemSegment:
    """LDTR or TR: selector 16 bits, base 32 bits, limit in bytes, descriptor type."""

    selector: int = 0
    base: int = 0
    limit: int = 0
    kind: int = 0

    def save(self) -> tuple[int, int, int, int]:
        """Return the fields in their order."""
        return self.selector, self.base, self.limit, self.kind

    def restore(self, state: tuple[int, int, int, int]) -> None:
        """Hold what was saved."""
        self.selector, self.base, self.limit, self.kind = state


class VCpuState(NamedTuple):
    """What a `VCpu` holds.

    cr: CR0, CR2, CR3, CR4 and CR8; efer: EFER; syscall: STAR, LSTAR, CSTAR, FMASK,
    KERNEL_GS_BASE and TSC_AUX; pdptes: the PDPTE registers; gdtr, idtr: base and limit;
    ldtr, tr: the fields of a `SystemSegment`; cs_rpl, a20, real_mode_seen: as of
    `VCpu`.
    """

    cr: tuple[int, int, int, int, int]
    efer: int
    syscall: tuple[int, ...]
    pdptes: tuple[int, ...]
    gdtr: tuple[int, int]
    idtr: tuple[int, int]
    cs_rpl: int
    a20: bool
    real_mode_seen: bool
    ldtr: tuple[int, int, int, int]
    tr: tuple[int, int, int, int]
    dr: tuple[int, ...]
    msr: dict[int, int]
    pmu: PmuState
    halted: bool


@dataclass(slots=True)
class VCpu:
    """Control, table and debug registers, and MSRs, as the guest wrote them.

    They are 64 bits wide, and those of a 32-bit guest hold 32: the PDPTE registers,
    which PAE paging has, and MSRs are not. The values at reset are SDM Vol. 3A table
    9-1's, except that the CPU starts in protected mode, where most boot protocols that
    emu86 speaks enter a kernel. cr8: the task priority, which masks nothing, for there
    is no APIC. cs_rpl: the bits of CS's selector that are the CPL: none while CS holds
    what real mode has loaded; a20: whether address line 20 is let through;
    real_mode_seen: whether CR0.PE has ever been 0. msr: those that hold what is written
    and do nothing, by number.
    """

    model: CpuModel
    # CR0, CR2, CR3, CR4, the PDPTEs, EFER and those of `_SYSCALL`, which compiled
    # handlers use, too: `share`.
    _cr: "list[int] | memoryview[int]" = field(
        default_factory=lambda: [x86.CR0_PE | x86.CR0_ET] + [0] * (SHARED - 1)
    )
    cr8: int = 0
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
    cs_rpl: int = 3
    a20: bool = True
    real_mode_seen: bool = False

    @property
    def cr0(self) -> int:
        """Protection, paging, and whether the FPU may be used."""
        return self._cr[0]

    @cr0.setter
    def cr0(self, value: int) -> None:
        self._cr[0] = value

    @property
    def cr2(self) -> int:
        """The address of the last page fault."""
        return self._cr[1]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self._cr[1] = value

    @property
    def cr3(self) -> int:
        """Where the page directory is, and how it is cached."""
        return self._cr[2]

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._cr[2] = value

    @property
    def cr4(self) -> int:
        """What of the architecture's extensions is switched on."""
        return self._cr[3]

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._cr[3] = value

    @property
    def pdptes(self) -> tuple[int, ...]:
        """The four PDPTE registers: SDM Vol. 3A section 4.4.1."""
        return tuple(self._cr[4:_EFER])

    @pdptes.setter
    def pdptes(self, value: tuple[int, ...]) -> None:
        for i, pdpte in enumerate(value):
            self._cr[4 + i] = pdpte

    @property
    def efer(self) -> int:
        """What of IA-32e mode is switched on and active: bits of `spec.x86`'s EFER_."""
        return self._cr[_EFER]

    @efer.setter
    def efer(self, value: int) -> None:
        self._cr[_EFER] = value

    @property
    def star(self) -> int:
        """The selectors of SYSCALL and SYSRET."""
        return self._cr[_SYSCALL.start]

    @star.setter
    def star(self, value: int) -> None:
        self._cr[_SYSCALL.start] = value

    @property
    def lstar(self) -> int:
        """Where SYSCALL goes to."""
        return self._cr[_SYSCALL.start + 1]

    @lstar.setter
    def lstar(self, value: int) -> None:
        self._cr[_SYSCALL.start + 1] = value

    @property
    def cstar(self) -> int:
        """Where AMD's SYSCALL goes to from compatibility mode. Intel's is #UD there."""
        return self._cr[_SYSCALL.start + 2]

    @cstar.setter
    def cstar(self, value: int) -> None:
        self._cr[_SYSCALL.start + 2] = value

    @property
    def fmask(self) -> int:
        """What SYSCALL clears of RFLAGS."""
        return self._cr[_SYSCALL.start + 3]

    @fmask.setter
    def fmask(self, value: int) -> None:
        self._cr[_SYSCALL.start + 3] = value

    @property
    def kernel_gs_base(self) -> int:
        """What SWAPGS exchanges with the base of GS."""
        return self._cr[_SYSCALL.start + 4]

    @kernel_gs_base.setter
    def kernel_gs_base(self, value: int) -> None:
        self._cr[_SYSCALL.start + 4] = value

    @property
    def tsc_aux(self) -> int:
        """What RDTSCP gives in ECX, 32 bits."""
        return self._cr[_SYSCALL.start + 5]

    @tsc_aux.setter
    def tsc_aux(self, value: int) -> None:
        self._cr[_SYSCALL.start + 5] = value

    def share(self, words: "memoryview[int]") -> None:
        """Keep these in `words`, `SHARED` of them, from now on."""
        for i, value in enumerate(self._cr):
            words[i] = value
        self._cr = words

    def save(self) -> VCpuState:
        """Return what it holds; which model it is, its machine's configuration says."""
        return VCpuState(
            (self.cr0, self.cr2, self.cr3, self.cr4, self.cr8),
            self.efer,
            tuple(self._cr[_SYSCALL]),
            self.pdptes,
            (self.gdt_base, self.gdt_limit),
            (self.idt_base, self.idt_limit),
            self.cs_rpl,
            self.a20,
            self.real_mode_seen,
            self.ldtr.save(),
            self.tr.save(),
            tuple(self.dr),
            self.msr.copy(),
            self.pmu.save(),
            self.halted,
        )

    def restore(self, state: VCpuState) -> None:
        """Become the CPU that was saved; others hold its parts, which stay."""
        self.cr0, self.cr2, self.cr3, self.cr4, self.cr8 = state.cr
        self.efer, self.pdptes = state.efer, state.pdptes
        for i, value in enumerate(state.syscall):
            self._cr[_SYSCALL.start + i] = value
        self.gdt_base, self.gdt_limit = state.gdtr
        self.idt_base, self.idt_limit = state.idtr
        self.cs_rpl, self.a20 = state.cs_rpl, state.a20
        self.real_mode_seen = state.real_mode_seen
        self.ldtr.restore(state.ldtr)
        self.tr.restore(state.tr)
        self.dr[:] = state.dr
        self.msr.clear()
        self.msr.update(state.msr)
        self.pmu.restore(state.pmu)
        self.halted = state.halted
