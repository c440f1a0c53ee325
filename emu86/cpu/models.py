"""The CPU models of `--cpu`: what CPUID tells, and nothing that does not work.

Source: SDM Vol. 2A, CPUID; signatures from Intel's specification updates of each CPU.
"""

from dataclasses import dataclass
from typing import Final

from emu86.cpu import pmu
from emu86.spec import x86
from emu86.spec.features import (
    CMOV,
    CX8,
    DE,
    FPU,
    FXSR,
    MCA,
    MCE,
    MMX,
    MSR,
    NX,
    P6,
    PAE,
    PGE,
    PSE,
    SSE,
    SSE2,
    TSC,
)


@dataclass(frozen=True, slots=True)
class CpuModel:
    """One CPU as the guest sees it.

    signature: CPUID.1:EAX (family, model, stepping); features: CPUID.1:EDX; brand: the
    brand string of 80000002h and up, or empty if the model has none; caches: what
    CPUID.2 gives, or empty; extended: CPUID.80000001h:EDX.
    """

    name: str
    signature: int
    features: int
    brand: str = ""
    caches: tuple[int, int, int, int] | tuple[()] = ()
    extended: int = 0

    def cpuid(self, leaf: int, hypervisor: str = "") -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX, EDX of a leaf (32 bits each).

        A leaf above the highest gives the highest basic leaf's data, as on Intel CPUs.
        `hypervisor` (12 characters, or empty) sets ECX bit 31 and answers 40000000h.
        """
        if hypervisor and leaf == 0x40000000:
            return (leaf, *_words(hypervisor.ljust(12, "\0")))  # type: ignore[return-value]
        if 0x80000000 <= leaf <= self._highest_extended:
            if leaf == 0x80000000:
                return self._highest_extended, 0, 0, 0
            if leaf == 0x80000001:
                return 0, 0, 0, self.extended
            part = 16 * (leaf - 0x80000002)
            text = self.brand.ljust(48, "\0")[part : part + 16]
            return _words(text)  # type: ignore[return-value]
        if leaf == 0:
            b, d, c = _words("GenuineIntel")
            return 2 if self.caches else 1, b, c, d
        if self.caches and leaf != 1 and (not self.brand or leaf < 0x80000000):
            return self.caches
        if leaf == 1 or not self.brand or leaf < 0x80000000:
            return self.signature, 0, 1 << 31 if hypervisor else 0, self.features
        return 0, 0, 0, 0

    @property
    def _highest_extended(self) -> int:
        """The highest leaf from 80000000h on, or 0 if there are none."""
        if self.brand:
            return 0x80000004
        return 0x80000001 if self.extended else 0

    @property
    def family(self) -> int:
        """5: Pentium; 6: Pentium Pro to III; 15: Pentium 4."""
        return self.signature >> 8 & 15

    @property
    def lacks(self) -> int:
        """The features, of `spec.features`, whose instructions are #UD."""
        return ~(self.features | (P6 if self.family >= 6 else 0))

    @property
    def banks(self) -> int:
        """How many banks of machine-check registers there are."""
        if not self.features & MCA:
            return 0
        return 5 if self.family == 6 else 4

    @property
    def counters(self) -> int:
        """How many performance counters there are."""
        return pmu.COUNTERS if self.family == 6 else 0

    @property
    def cr4_defined(self) -> int:
        """The CR4 bits that this model has; setting another is #GP(0)."""
        bits = 0
        for feature, control in (
            (TSC, x86.CR4_TSD),
            (DE, x86.CR4_DE),
            (PSE, x86.CR4_PSE),
            (PAE, x86.CR4_PAE),
            (MCE, x86.CR4_MCE),
            (PGE, x86.CR4_PGE),
            (FXSR, x86.CR4_OSFXSR),
            (SSE, x86.CR4_OSXMMEXCPT),
        ):
            if self.features & feature:
                bits |= control
        return bits | (x86.CR4_PCE if self.counters else 0)


def _words(text: str) -> tuple[int, ...]:
    raw = text.encode("ascii")
    return tuple(
        int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)
    )


_PENTIUM: Final = FPU | DE | PSE | TSC | MSR | MCE | CX8
_PENTIUM2: Final = _PENTIUM | PGE | MCA | CMOV | MMX | FXSR
_PENTIUM3: Final = _PENTIUM2 | SSE
# L1 of 16 and 16 KiB, L2 of 512 KiB, and TLBs: Linux takes a Pentium II without for a
# Celeron.
_CACHES: Final = (0x03020101, 0, 0, 0x0C040843)
MODELS: Final = {
    model.name: model
    for model in (
        CpuModel("pentium", 0x52C, _PENTIUM),
        CpuModel("pentium2", 0x652, _PENTIUM2, caches=_CACHES),
        CpuModel("pentium3", 0x673, _PENTIUM3, caches=_CACHES),
        CpuModel("pentium3-pae", 0x673, _PENTIUM3 | PAE, caches=_CACHES, extended=NX),
        CpuModel("pentium4", 0xF29, _PENTIUM3 | SSE2, "emu86 virtual Pentium 4"),
    )
}
