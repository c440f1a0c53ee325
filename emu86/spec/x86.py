"""Bits and layouts of IA-32, as plain ints.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM); the section
stands beside each group. Everything a table in memory holds is 32 bits wide unless
said.
"""

from typing import Final

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = 0xFFFFF000  # of linear addresses
MASK32: Final = 0xFFFFFFFF
MASK64: Final = (1 << 64) - 1

# EFLAGS: Vol. 1 section 3.4.3
CF: Final = 1 << 0
PF: Final = 1 << 2
AF: Final = 1 << 4
ZF: Final = 1 << 6
SF: Final = 1 << 7
OF: Final = 1 << 11
TF: Final = 1 << 8
IF: Final = 1 << 9
DF: Final = 1 << 10
IOPL: Final = 3 << 12
NT: Final = 1 << 14
RF: Final = 1 << 16
VM: Final = 1 << 17
AC: Final = 1 << 18
VIF: Final = 1 << 19
VIP: Final = 1 << 20
ID: Final = 1 << 21
FLAGS_FIXED: Final = 1 << 1  # bit 1 always reads as one
FLAGS_DEFINED: Final = 0x3F7FD7
ARITHMETIC_FLAGS: Final = 0x8D5

# CR0 and CR4: Vol. 3A section 2.5
CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_EM: Final = 1 << 2
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_AM: Final = 1 << 18
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31
CR0_DEFINED: Final = 0xE005003F

CR4_VME: Final = 1 << 0
CR4_PVI: Final = 1 << 1
CR4_TSD: Final = 1 << 2
CR4_DE: Final = 1 << 3
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_MCE: Final = 1 << 6
CR4_PGE: Final = 1 << 7
CR4_PCE: Final = 1 << 8
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
CR4_UMIP: Final = 1 << 11
CR4_LA57: Final = 1 << 12
CR4_FSGSBASE: Final = 1 << 16
CR4_PCIDE: Final = 1 << 17
CR4_OSXSAVE: Final = 1 << 18
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21

# EFER; a model without long mode has NXE alone: Vol. 4 table 2-2
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11

# CR8: Vol. 3A section 10.8.6
CR8_TPR: Final = 0xF

# DR7: Vol. 3B section 17.2.4
DR7_LOCAL: Final = 0x55  # L0 to L3: a task switch clears them

# Bits of a physical address, and of a linear one in IA-32e mode: Vol. 3A 4.1.4, which
# has 36 also where there is PAE and no CPUID.80000008h.
MAXPHYADDR: Final = 36
LINEAR_BITS: Final = 48

# Paging-structure entries: Vol. 3A section 4.3 (32-bit), 4.4 (PAE), 4.5 (4-level)
PTE_P: Final = 1 << 0
PTE_RW: Final = 1 << 1
PTE_US: Final = 1 << 2
PTE_A: Final = 1 << 5
PTE_D: Final = 1 << 6
PDE_PS: Final = 1 << 7
PTE_PAT: Final = 1 << 7
PTE_G: Final = 1 << 8
PTE_NX: Final = 1 << 63
LONG_FRAME: Final = 0xFFFFFFFFFF000  # bits of the address, in tables of long mode

# Page-fault error code: Vol. 3A section 4.7
PF_P: Final = 1 << 0
PF_W: Final = 1 << 1
PF_U: Final = 1 << 2
PF_RSVD: Final = 1 << 3
PF_I: Final = 1 << 4

# Vectors: Vol. 3A table 6-1
VEC_DE: Final = 0
VEC_DB: Final = 1
VEC_NMI: Final = 2
VEC_BP: Final = 3
VEC_OF: Final = 4
VEC_BR: Final = 5
VEC_UD: Final = 6
VEC_NM: Final = 7
VEC_DF: Final = 8
VEC_TS: Final = 10
VEC_NP: Final = 11
VEC_SS: Final = 12
VEC_GP: Final = 13
VEC_PF: Final = 14
VEC_MF: Final = 16
VEC_AC: Final = 17
VEC_XM: Final = 19
VECTOR_NAMES: Final = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM",
    8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF",
    17: "#AC", 18: "#MC", 19: "#XM",
}  # fmt: skip


def hexadecimal(value: int) -> str:
    """Write a number as the SDM does: 9, 1Fh."""
    return f"{value:X}h" if value > 9 else str(value)


def event_name(vector: int) -> str:
    """Return "#GP" for an exception, "INT 80h" for any other vector."""
    return VECTOR_NAMES.get(vector, f"INT {vector:02X}h")


# Exceptions that push an error code: Vol. 3A section 6.13
PUSHES_ERROR: Final = frozenset({8, 10, 11, 12, 13, 14, 17})
# Exceptions whose saved EIP is the faulting instruction's, with RF set: Vol. 3A 6.5
FAULTS: Final = frozenset({0, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 19})
# Contributory exceptions, for the double-fault rule: Vol. 3A table 6-4
CONTRIBUTORY: Final = frozenset({0, 10, 11, 12, 13})

# Segment descriptors, second doubleword: Vol. 3A section 3.4.5
DESC_A: Final = 1 << 8
DESC_RW: Final = 1 << 9  # readable (code), writable (data)
DESC_CE: Final = 1 << 10  # conforming (code), expand-down (data)
DESC_CODE: Final = 1 << 11
DESC_S: Final = 1 << 12  # code or data, not system
DESC_DPL_SHIFT: Final = 13
DESC_DPL: Final = 3 << DESC_DPL_SHIFT
DESC_P: Final = 1 << 15
DESC_L: Final = 1 << 21
DESC_B: Final = 1 << 22  # D for code, B for stack segments
DESC_G: Final = 1 << 23
DESC_ATTRIBUTES: Final = 0x00F0FF00
# What every segment register holds in virtual-8086 mode: Vol. 3B section 20.2.1
V86_ATTRIBUTES: Final = DESC_P | DESC_DPL | DESC_S | DESC_RW | DESC_A
V86_LIMIT: Final = 0xFFFF

# System descriptor types: Vol. 3A table 3-2
SYS_TSS16: Final = 1
SYS_LDT: Final = 2
SYS_TSS16_BUSY: Final = 3
SYS_CALL16: Final = 4
SYS_TASK_GATE: Final = 5
SYS_INT16: Final = 6
SYS_TRAP16: Final = 7
SYS_TSS32: Final = 9
SYS_TSS32_BUSY: Final = 11
SYS_CALL32: Final = 12
SYS_INT32: Final = 14
SYS_TRAP32: Final = 15
# In IA-32e mode these are the 64-bit ones, of 16 bytes in tables: Vol. 3A section 3.5
SYS_TSS64: Final = SYS_TSS32
SYS_TSS64_BUSY: Final = SYS_TSS32_BUSY
SYS_CALL64: Final = SYS_CALL32
SYS_INT64: Final = SYS_INT32
SYS_TRAP64: Final = SYS_TRAP32

# General registers and segment registers, by their encoding: Vol. 2A section 2.1.5
EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI = range(8)
R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)
RIP: Final = 16  # behind them in the CPU's state; it has no encoding
ES, CS, SS, DS, FS, GS = range(6)
GPR_NAMES: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
GPR_NAMES64: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
GPR64_NAMES: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENT_NAMES: Final = ("es", "cs", "ss", "ds", "fs", "gs")

LONGEST_INSN: Final = 15  # bytes: Vol. 2A section 2.3.11
CPL_USER: Final = 3  # of applications: Vol. 3A section 5.5

# Model-specific registers: Vol. 4 table 2-2
MSR_TSC: Final = 0x10
MSR_PLATFORM_ID: Final = 0x17
MSR_BIOS_SIGN_ID: Final = 0x8B
MSR_PERFCTR0: Final = 0xC1
MSR_MCG_CAP: Final = 0x179
MSR_PERFEVTSEL0: Final = 0x186
MSR_SYSENTER_CS: Final = 0x174
MSR_SYSENTER_ESP: Final = 0x175
MSR_SYSENTER_EIP: Final = 0x176
MSR_PAT: Final = 0x277
MSR_EFER: Final = 0xC0000080
MSR_STAR: Final = 0xC0000081
MSR_LSTAR: Final = 0xC0000082
MSR_CSTAR: Final = 0xC0000083
MSR_FMASK: Final = 0xC0000084
MSR_FS_BASE: Final = 0xC0000100
MSR_GS_BASE: Final = 0xC0000101
MSR_KERNEL_GS_BASE: Final = 0xC0000102
MSR_TSC_AUX: Final = 0xC0000103
MSR_MC0_CTL: Final = 0x400  # then its STATUS, ADDR and MISC, then the next bank's
