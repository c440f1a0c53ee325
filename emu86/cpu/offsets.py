"""Where Unicorn 2.1.4 keeps the x86 CPU state: byte offsets into it.

Private to Unicorn, so `engine` verifies every one at start-up before relying on it
(see `docs/maintainers/hardware.md`). Registers are 8 bytes, a segment cache is 24:
selector u32, padding, base u64, limit u32, attributes u32 (descriptor bits 8-23 of the
high word, in place).
"""

from typing import Final

SIZE: Final = 5568
GPR: Final = 0
RIP: Final = 128
RFLAGS: Final = 136
CC_DST: Final = 144
CC_SRC: Final = 152
CC_SRC2: Final = 160
CC_OP: Final = 168
DF: Final = 172
HFLAGS: Final = 176
SEGMENTS: Final = 184
SEGMENT_SIZE: Final = 24
LDTR: Final = 328
TR: Final = 352
GDTR: Final = 376
IDTR: Final = 400
CR: Final = 424
EFER: Final = 592
ERROR_CODE: Final = 5384
EXCEPTION_IS_INT: Final = 5388
DR: Final = 5400
OLD_EXCEPTION: Final = 5496
# What is none of the CPU's own: the unused ends of the x87 registers and of a place to
# compute in, where rubbish is left, and what points into this process: the breakpoints
# that its debug registers have set, and where in its code the last exception came up.
RUBBISH: Final = (
    *(range(at + 10, at + 16) for at in (*range(624, 752, 16), 784)),
    range(5464, 5496),
    range(5560, 5568),
)

# From the handle: the CPU object's address, and from that object its state.
UC_CPU: Final = 440
CPU_STATE: Final = 35408
UC_NO_EXIT_REQUEST: Final = 2034

# From the CPU object: 4096 addresses of translated blocks, which begin with theirs.
JUMPS: Final = 312
# From the CPU state, down: its TLB. In that: what it keeps for each kind of accesses,
# of which the victims and a count are a part; and the tables, each a mask and an
# address.
TLB: Final = 0x890
TLB_MODES: Final = 0x20
TLB_MODE: Final = 0x2B8
TLB_USED: Final = 0x20
TLB_VICTIMS: Final = 0x30
TLB_TABLES: Final = 0x850

# In a hook: where it begins and ends to be called, and what it is called with.
HOOK_BEGIN: Final = 24
HOOK_END: Final = 32
HOOK_DATA: Final = 48

# HFLAGS
HF_CPL: Final = 3
HF_INHIBIT_IRQ: Final = 1 << 3
HF_CS32: Final = 1 << 4
HF_SS32: Final = 1 << 5
HF_ADDSEG: Final = 1 << 6
HF_PE: Final = 1 << 7
HF_MP_EM_TS_SHIFT: Final = 8  # CR0 bits 1-3 stand at hflags bits 9-11
HF_LMA: Final = 1 << 14
HF_CS64: Final = 1 << 15
HF_CODE64: Final = HF_CS64 | HF_CS32 | HF_SS32  # what 64-bit code has of them
HF_OSFXSR: Final = 1 << 22
HF_SMAP: Final = 1 << 23
