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
    CX16,
    DE,
    FPU,
    FXSR,
    INTEL64,
    LAHF64,
    LM,
    MCA,
    MCE,
    MMX,
    MSR,
    NX,
    P6,
    PAE,
    PAT,
    PDPE1GB,
    PGE,
    PSE,
    RDTSCP,
    SEP,
    SMAP,
    SMEP,
    SSE,
    SSE2,
    STAC,
    SYSCALL,
    TSC,
    TSC_AUX,
)


@dataclass(frozen=True, slots=True)
class CpuModel:
    """One CPU as the guest sees it.

    signature: CPUID.1:EAX (family, model, stepping); features: CPUID.1:EDX; brand: the
    brand string of 80000002h and up, or empty if the model has none; caches: what
    CPUID.2 gives, or empty; extended: CPUID.80000001h:EDX; features_c, extended_c: ECX
    of these two; structured: CPUID.7.0:EBX.
    """

    name: str
    signature: int
    features: int
    brand: str = ""
    caches: tuple[int, int, int, int] | tuple[()] = ()
    extended: int = 0
    features_c: int = 0
    extended_c: int = 0
    structured: int = 0

    def cpuid(
        self,
        leaf: int,
        hypervisor: str = "",
        *,
        subleaf: int = 0,
        long_mode: bool = False,
    ) -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX, EDX of a leaf (32 bits each).

        A leaf above the highest gives the highest basic leaf's data, as on Intel CPUs.
        subleaf: ECX, of which leaf 7 has one.
        `hypervisor` (12 characters, or empty) sets ECX bit 31 and answers 40000000h.
        long_mode: EFER.LMA is set; else there is no SYSCALL (table 3-8, note).
        """
        if hypervisor and leaf == 0x40000000:
            return (leaf, *_words(hypervisor.ljust(12, "\0")))  # type: ignore[return-value]
        if 0x80000000 <= leaf <= self._highest_extended:
            if leaf == 0x80000000:
                return self._highest_extended, 0, 0, 0
            if leaf == 0x80000001:
                extended = self.extended if long_mode else self.extended & ~SYSCALL
                return 0, 0, self.extended_c, extended
            if leaf == 0x80000008:
                return x86.LINEAR_BITS << 8 | x86.MAXPHYADDR, 0, 0, 0
            if leaf > 0x80000004:
                return 0, 0, 0, 0
            part = 16 * (leaf - 0x80000002)
            text = self.brand.ljust(48, "\0")[part : part + 16]
            return _words(text)  # type: ignore[return-value]
        if leaf == 0:
            b, d, c = _words("GenuineIntel")
            highest = 2 if self.caches else 1
            return _STRUCTURED if self.structured else highest, b, c, d
        if self.structured and leaf not in (1, 2):
            has = leaf > _LAST_WITHOUT and not subleaf
            return 0, self.structured if has else 0, 0, 0
        if self.caches and leaf != 1 and (not self.brand or leaf < 0x80000000):
            return self.caches
        if leaf == 1 or not self.brand or leaf < 0x80000000:
            told = self.features_c | (1 << 31 if hypervisor else 0)
            return self.signature, 0, told, self.features
        return 0, 0, 0, 0

    @property
    def _highest_extended(self) -> int:
        """The highest leaf from 80000000h on, or 0 if there are none."""
        if self.is_64_bit:
            return 0x80000008
        if self.brand:
            return 0x80000004
        return 0x80000001 if self.extended else 0

    @property
    def family(self) -> int:
        """5: Pentium; 6: Pentium Pro to III, and Atom; 15: Pentium 4."""
        return self.signature >> 8 & 15

    @property
    def is_64_bit(self) -> bool:
        """Whether there is IA-32e mode."""
        return bool(self.extended & LM)

    @property
    def is_p6(self) -> bool:
        """Whether it is of the P6 family, with its MSRs and counters."""
        return self.family == 6 and not self.is_64_bit

    @property
    def lacks(self) -> int:
        """The features, of `spec.features`, whose instructions are #UD."""
        has = self.features | (P6 if self.family >= 6 else 0)
        has |= STAC if self.structured & SMAP else 0
        has |= TSC_AUX if self.extended & RDTSCP else 0
        return ~(has | (INTEL64 if self.is_64_bit else 0))

    @property
    def banks(self) -> int:
        """How many banks of machine-check registers there are."""
        if not self.features & MCA:
            return 0
        return 5 if self.family == 6 else 4

    @property
    def counters(self) -> int:
        """How many performance counters there are."""
        return pmu.COUNTERS if self.is_p6 else 0

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
        bits |= x86.CR4_SMEP if self.structured & SMEP else 0
        bits |= x86.CR4_SMAP if self.structured & SMAP else 0
        return bits | (x86.CR4_PCE if self.counters else 0)

    @property
    def efer_defined(self) -> int:
        """The EFER bits that this model has, 0: it has no EFER."""
        bits = x86.EFER_NXE if self.extended & NX else 0
        long_mode = x86.EFER_SCE | x86.EFER_LME | x86.EFER_LMA
        return bits | (long_mode if self.is_64_bit else 0)


# The highest basic leaf of a model that has leaf 7, and the last that says nothing.
_STRUCTURED: Final = 7
_LAST_WITHOUT: Final = 6


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
_ATOM: Final = _PENTIUM3 | PAE | SEP | PAT | SSE2
# L1 of 24 and 32 KiB, L2 of 512 KiB, and TLBs.
_CACHES_OF_ATOM: Final = (0x4FBA5901, 0x0E3080C0, 0, 0)
MODELS: Final = {
    model.name: model
    for model in (
        CpuModel("pentium", 0x52C, _PENTIUM),
        CpuModel("pentium2", 0x652, _PENTIUM2, caches=_CACHES),
        CpuModel("pentium3", 0x673, _PENTIUM3, caches=_CACHES),
        CpuModel("pentium3-pae", 0x673, _PENTIUM3 | PAE, caches=_CACHES, extended=NX),
        CpuModel("pentium4", 0xF29, _PENTIUM3 | SSE2, "emu86 virtual Pentium 4"),
        # In order, so that it speculates on nothing: Linux needs no PTI, no retpolines
        # and no VERW. (To stepping 2 of this model Linux denies PSE.)
        CpuModel(
            "atom",
            0x106CA,
            _ATOM,
            "emu86 virtual Atom",
            _CACHES_OF_ATOM,
            SYSCALL | NX | PDPE1GB | LM,
            CX16,
            LAHF64,
        ),
        # What a server has, as far as it works here. Linux keeps its page tables from
        # users (PTI), has retpolines and clears buffers (VERW), as on such servers.
        CpuModel(
            "skylake",
            0x50654,
            _ATOM,
            "emu86 virtual Xeon",
            _CACHES_OF_ATOM,
            SYSCALL | NX | PDPE1GB | RDTSCP | LM,
            CX16,
            LAHF64,
            SMEP | SMAP,
        ),
    )
}
