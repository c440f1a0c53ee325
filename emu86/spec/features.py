"""The features that CPUID tells of, and the instructions that come with each.

Source: SDM Vol. 2A tables 3-10 (CPUID.1:ECX), 3-11 (CPUID.1:EDX) and 3-8 (from
80000000h on), and the CPUID flag on each instruction's own page in Vol. 2. TSC, MSR and
CX8 are not in `FORMS`: every CPU model has them.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

# CPUID.1:EDX
FPU: Final = 1 << 0
DE: Final = 1 << 2
PSE: Final = 1 << 3
TSC: Final = 1 << 4
MSR: Final = 1 << 5
PAE: Final = 1 << 6
MCE: Final = 1 << 7
CX8: Final = 1 << 8
SEP: Final = 1 << 11
MTRR: Final = 1 << 12
PGE: Final = 1 << 13
MCA: Final = 1 << 14
CMOV: Final = 1 << 15
PAT: Final = 1 << 16
CLFSH: Final = 1 << 19
MMX: Final = 1 << 23
FXSR: Final = 1 << 24
SSE: Final = 1 << 25
SSE2: Final = 1 << 26
# CPUID.1:ECX
CX16: Final = 1 << 13
# CPUID.80000001h:EDX, and ECX: LAHF and SAHF in 64-bit mode
SYSCALL: Final = 1 << 11
NX: Final = 1 << 20
PDPE1GB: Final = 1 << 26
LM: Final = 1 << 29
LAHF64: Final = 1 << 0
RDTSCP: Final = 1 << 27
# CPUID.7.0:EBX
SMEP: Final = 1 << 7
SMAP: Final = 1 << 20
# In no flag of CPUID.1:EDX: the hint NOPs, which the P6 family brought (Vol. 2B NOP);
# what CPUs later than any model have, such as SSE3; SWAPGS, which comes with LM; STAC
# and CLAC, with SMAP; and RDTSCP.
P6: Final = 1 << 32
LATER: Final = 1 << 33
INTEL64: Final = 1 << 34
STAC: Final = 1 << 35
TSC_AUX: Final = 1 << 36
NAMES: Final = {
    CMOV: "CMOV", CLFSH: "CLFSH", MMX: "MMX", FXSR: "FXSR", SSE: "SSE", SSE2: "SSE2",
    P6: "the P6 family", LATER: "later CPUs", INTEL64: "Intel 64", STAC: "SMAP",
    TSC_AUX: "RDTSCP",
}  # fmt: skip

# Mandatory prefixes: Vol. 2A section 2.1.2.
NO_PREFIX, P66, PF2, PF3 = 0, 0x66, 0xF2, 0xF3
ANY: Final = (NO_PREFIX, P66, PF2, PF3)
_ALL: Final = range(8)
_REGISTER: Final = 8  # of a form's number: r/m is a register


class _Row(NamedTuple):
    """Opcodes that come with a feature.

    prefixes: mandatory ones with which they do; regs: ModRM.reg; memory, register: what
    ModRM.r/m may be.
    """

    feature: int
    prefixes: Iterable[int]
    opcodes: Iterable[int]
    regs: Iterable[int] = _ALL
    memory: bool = True
    register: bool = True


def _of(*second: int | range) -> tuple[int, ...]:
    """Return opcodes of two bytes by their second ones."""
    spans = (part if isinstance(part, range) else (part,) for part in second)
    return tuple(0x0F00 | byte for span in spans for byte in span)


# A form stands in at most one row.
_ROWS: Final = (
    _Row(CMOV, ANY, _of(range(0x40, 0x50))),  # CMOVcc
    _Row(CMOV, ANY, (0xDA, 0xDB), range(4), memory=False),  # FCMOVcc
    _Row(CMOV, ANY, (0xDB, 0xDF), (5, 6), memory=False),  # FUCOMI, FCOMI; and popping
    _Row(P6, ANY, _of(range(0x18, 0x20))),  # hint NOPs; PREFETCHh among them
    _Row(MMX, (NO_PREFIX,), _of(
        range(0x60, 0x6C), 0x6E, 0x6F, range(0x71, 0x77), 0x7E, 0x7F, range(0xD1, 0xD4),
        0xD5, 0xD8, 0xD9, 0xDB, 0xDC, 0xDD, 0xDF, 0xE1, 0xE2, 0xE5, 0xE8, 0xE9, 0xEB,
        0xEC, 0xED, 0xEF, 0xF1, 0xF2, 0xF3, 0xF5, 0xF8, 0xF9, 0xFA, 0xFC, 0xFD, 0xFE,
    )),
    _Row(MMX, ANY, _of(0x77)),  # EMMS
    _Row(FXSR, ANY, _of(0xAE), (0, 1), register=False),  # FXSAVE, FXRSTOR
    _Row(SSE, ANY, _of(0xAE), (2, 3), register=False),  # LDMXCSR, STMXCSR
    _Row(SSE, ANY, _of(0xAE), (7,), memory=False),  # SFENCE
    _Row(SSE, (NO_PREFIX,), _of(
        range(0x10, 0x18), range(0x28, 0x30), range(0x50, 0x5A), range(0x5C, 0x60),
        0xC2, 0xC6,
    )),
    # Of MMX registers.
    _Row(SSE, (NO_PREFIX,), _of(
        0x70, 0xC4, 0xC5, 0xD7, 0xDA, 0xDE, 0xE0, 0xE3, 0xE4, 0xE7, 0xEA, 0xEE, 0xF6,
        0xF7,
    )),
    _Row(SSE, (PF3,), _of(
        0x10, 0x11, 0x2A, 0x2C, 0x2D, 0x51, 0x52, 0x53, 0x58, 0x59, range(0x5C, 0x60),
        0xC2,
    )),
    _Row(SSE2, (NO_PREFIX,), _of(0x5A, 0x5B, 0xD4, 0xF4, 0xFB)),
    _Row(SSE2, (P66,), _of(
        range(0x10, 0x18), range(0x28, 0x30), 0x50, 0x51, range(0x54, 0x77), 0x7E, 0x7F,
        0xC2, 0xC4, 0xC5, 0xC6, range(0xD1, 0xF0), range(0xF1, 0xFF),
    )),
    _Row(SSE2, (PF2,), _of(
        0x10, 0x11, 0x2A, 0x2C, 0x2D, 0x51, 0x58, 0x59, 0x5A, range(0x5C, 0x60), 0x70,
        0xC2, 0xD6, 0xE6,
    )),
    _Row(SSE2, (PF3,), _of(0x5A, 0x5B, 0x6F, 0x70, 0x7E, 0x7F, 0xD6, 0xE6)),
    _Row(SSE2, ANY, _of(0xC3)),  # MOVNTI
    _Row(SSE2, ANY, _of(0xAE), (5, 6), memory=False),  # LFENCE, MFENCE
    _Row(CLFSH, ANY, _of(0xAE), (7,), register=False),
    # VMX, MONITOR, XGETBV and others (and SWAPGS, STAC, CLAC, RDTSCP: see
    # `rings.insn.table`); RDRAND and RDSEED; XSAVE
    _Row(LATER, ANY, _of(0x01), (0, 1, 2, 3, 5, 7), memory=False),
    _Row(LATER, ANY, _of(0xC7), (6, 7), memory=False),
    _Row(LATER, ANY, _of(0xAE), (4, 5, 6), register=False),
    _Row(LATER, ANY, (0xC4, 0xC5), memory=False),  # VEX prefixes; LES, LDS of memory
    _Row(LATER, ANY, _of(0x0D, 0x0E, 0x0F)),  # 3DNow! and its prefetches
    _Row(LATER, ANY, _of(0x38, 0x3A)),  # SSSE3, SSE4, MOVBE, CRC32
    _Row(LATER, ANY, (0xDB, 0xDD, 0xDF), (1,), register=False),  # FISTTP
    _Row(LATER, (P66,), _of(0x78, 0x79, 0x7C, 0x7D, 0xD0)),  # SSE4a, SSE3
    _Row(LATER, (PF2,), _of(0x12, 0x2B, 0x78, 0x79, 0x7C, 0x7D, 0xD0, 0xF0)),
    _Row(LATER, (PF3,), _of(0x12, 0x16, 0x2B, 0xB8)),  # the last is POPCNT
)  # fmt: skip


def _forms() -> dict[int, Mapping[int, list[int]]]:
    found: dict[int, Mapping[int, list[int]]] = {}
    for row in _ROWS:
        wheres = (0,) * row.memory + (_REGISTER,) * row.register
        for opcode in row.opcodes:
            forms = found.setdefault(opcode, {prefix: [0] * 16 for prefix in ANY})
            for prefix in row.prefixes:
                for where in wheres:
                    for reg in row.regs:
                        forms[prefix][where + reg] = row.feature
    return found


# By opcode and mandatory prefix, the feature of each form, or 0; its number is
# ModRM.reg, and 8 more where ModRM.r/m is a register or there is no ModRM.
FORMS: Final = _forms()
