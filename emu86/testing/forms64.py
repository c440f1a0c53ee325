"""The system instructions of 64-bit code, in all their forms.

What 64-bit code does not have is not here (POP SS, LDS, INTO, direct far jumps), and
neither is virtual-8086 mode. Source: SDM Vol. 2, Vol. 3A table 5-1 and section 5.8.8.
"""

import struct
from typing import Any, Final

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32, mov, mov64, push
from emu86.testing.forms import AT, HERE, Form
from emu86.testing.operands import absolute


def _form(
    name: str,
    code: str,
    *before: bytes,
    **fields: Any,  # noqa: ANN401 - fields of Form
) -> Form:
    return Form(name, bytes.fromhex(code), before, mode="long", vm86=None, **fields)


def _of_memory(
    name: str, opcode: str, reg: int, data: bytes = b"", *before: bytes
) -> Form:
    """Return a form with its operand at AT."""
    return _form(name, opcode + absolute(reg, AT, 64).hex(), *before, data=data)


def _of_ax(name: str, code: str, *values: int) -> tuple[Form, ...]:
    return tuple(_form(name, code, mov(x86.EAX, value)) for value in values)


def _msr(name: str, code: str, number: int, value: int) -> Form:
    before = mov(x86.ECX, number), mov(x86.EAX, value), mov(x86.EDX, value >> 32)
    return _form(name, code, *before)


def _sel(selector: int) -> bytes:
    return struct.pack("<H", selector)


_BOTH: Final = (stage.DATA0, stage.DATA3)
_RPL1: Final = stage.DATA0 | 1
_DATA: Final = (*_BOTH, 0, _RPL1)
_STACKS: Final = (*_BOTH, 0, _RPL1, stage.DATA64_OF[1])
_TABLE: Final = struct.pack("<HQ", 0xD7, stage.LDT)
_ONES: Final = mov64(x86.EAX, x86.MASK64)
_CR: Final = {0: 0x80000033, 2: 0x1234, 3: stage.PML4 | 8, 4: 0x30}
_MSRS: Final = (
    x86.MSR_BIOS_SIGN_ID, x86.MSR_STAR, x86.MSR_LSTAR, x86.MSR_KERNEL_GS_BASE,
    x86.MSR_FS_BASE,
)  # fmt: skip
_CALL_GATE: Final = 0xA0

_PRIVILEGED: Final = (
    *(
        _form(name, code)
        for name, code in (
            ("CLI", "fa"), ("STI", "fb"), ("HLT", "f4"), ("CLTS", "0f06"),
            ("INVD", "0f08"), ("WBINVD", "0f09"), ("SWAPGS", "0f01f8"),
        )
    ),
    _of_memory("INVLPG", "0f01", 7),
    _of_memory("LGDT", "0f01", 2, _TABLE),
    _of_memory("LIDT", "0f01", 3, struct.pack("<HQ", 0xFFF, stage.IDT)),
    *_of_ax("LLDT", "0f00d0", 0, stage.LDT_SELECTOR),
    *_of_ax("LTR", "0f00d8", stage.TSS_SELECTOR),
    *_of_ax("LMSW", "0f01f0", 0x33),
    *(_form(f"MOV from CR{n}", f"0f20{0xC0 | n << 3:x}") for n in _CR),
    _form("MOV from CR8", "440f20c0"),
    *(
        _form(f"MOV to CR{n}", f"0f22{0xC0 | n << 3:x}", mov(x86.EAX, value))
        for n, value in _CR.items()
    ),
    _form("MOV to CR8", "440f22c0", mov(x86.EAX, 5)),
    *(_form("MOV from DR", f"0f21{0xC0 | n << 3:x}") for n in (0, 3, 6, 7)),
    *(
        _form("MOV to DR", f"0f23{0xC0 | n << 3:x}", mov(x86.EAX, value))
        for n, value in ((0, 0x1234), (6, 0xFFFF0FF0), (7, 0x700))
    ),
    *(_msr("RDMSR", "0f32", number, 0) for number in (*_MSRS, x86.MSR_EFER)),
    *(_msr("WRMSR", "0f30", number, 1) for number in _MSRS),
    _form("RDTSC", "0f31", clock=True),
    *(
        _form("SYSRET", code, mov(x86.ECX, HERE), b"\x49\xc7\xc3" + i32(image))
        for code in ("480f07", "0f07")
        for image in (0x2, 0x202)
    ),
)  # fmt: skip


def _stored(name: str, opcode: str, reg: int) -> tuple[Form, ...]:
    """SLDT, STR and SMSW: to memory, and to registers of 16, 32 and 64 bits."""
    code = f"{opcode}{0xC0 | reg << 3:x}"
    registers = (_form(name, size + code, _ONES) for size in ("", "66", "48"))
    return (_of_memory(name, opcode, reg), *registers)


def _asked(name: str, opcode: str, reg: int) -> tuple[Form, ...]:
    """LAR, LSL, VERR and VERW: of a register and of memory."""
    selectors = (*_BOTH, stage.CODE0, stage.TSS_SELECTOR, _CALL_GATE, 0, 0x400)
    return (
        *_of_ax(name, f"{opcode}{0xC0 | reg << 3:x}", *selectors),
        _of_memory(name, opcode, reg, _sel(stage.DATA0)),
    )


_SENSITIVE: Final = (
    _of_memory("SGDT", "0f01", 0),
    _of_memory("SIDT", "0f01", 1),
    *_stored("SLDT", "0f00", 0),
    *_stored("STR", "0f00", 1),
    *_stored("SMSW", "0f01", 4),
    _form("PUSHF", "9c"),
    *(_form("POPF", "9d", push(value)) for value in (2, 0x202, 0x3002)),
    *_asked("LAR", "0f02", x86.EBX),
    *_asked("LSL", "0f03", x86.EBX),
    *_asked("VERR", "0f00", 4),
    *_asked("VERW", "0f00", 5),
)


def _loaded(name: str, sreg: int, *selectors: int) -> tuple[Form, ...]:
    """MOV to a segment register."""
    return (
        *_of_ax(name, f"8e{0xC0 | sreg << 3:x}", *selectors),
        _of_memory(name, "8e", sreg, _sel(selectors[0])),
    )


def _pointer(name: str, opcode: str, *selectors: int) -> tuple[Form, ...]:
    """LFS and its kin: m16:32 and m16:64 at AT, to EBX and RBX."""
    return tuple(
        _of_memory(name, size + opcode, x86.EBX, i32(7).ljust(length, b"\0") + _sel(s))
        for size, length in (("", 4), ("48", 8))
        for s in selectors
    )


_SREGS: Final = (
    *(
        _form("MOV from Sreg", f"8c{0xC0 | sreg << 3:x}", _ONES)
        for sreg in range(6)
    ),
    *(_form("PUSH Sreg", code) for code in ("0fa0", "0fa8")),
    *(form for s in (0, 3, 4, 5) for form in _loaded("MOV to Sreg", s, *_DATA)),
    *_loaded("MOV to SS", x86.SS, *_STACKS),
    *(
        _form("POP Sreg", code, push(selector))
        for code in ("0fa1", "0fa9")
        for selector in _DATA
    ),
    *(form for code in ("0fb4", "0fb5") for form in _pointer("LFS, LGS", code, *_DATA)),
    *_pointer("LSS", "0fb2", *_STACKS),
)  # fmt: skip
_CODES: Final = (
    stage.CODE0, stage.CODE3, stage.CODE64_OF[1], stage.CODE32_0, stage.CODE32_3, 0x80,
)  # fmt: skip


def _far(name: str, reg: int) -> tuple[Form, ...]:
    """JMP or CALL: m16:32 and m16:64, to code of both widths and through a gate."""
    return tuple(
        _of_memory(name, size + "ff", reg, i32(HERE).ljust(length, b"\0") + _sel(s))
        for size, length in (("", 4), ("48", 8))
        for s in (*_CODES, _CALL_GATE)
    )


_TO: Final = (
    (stage.CODE0, stage.DATA0, stage.STACK0), (stage.CODE0, 0, stage.STACK0),
    (stage.CODE3, stage.DATA3, stage.STACK3),
    (stage.CODE32_3, stage.DATA3, stage.STACK3),
    (stage.CODE64_OF[1], stage.DATA64_OF[1], stage.STACK3),
)  # fmt: skip


def _back(cs: int, ss: int, rsp: int) -> tuple[bytes, ...]:
    """What RET far finds on the stack, of 64 bits each."""
    outer = (ss, rsp) if cs & 3 else ()
    return tuple(map(push, (*outer, cs, HERE)))


_TRANSFERS: Final = (
    *_far("JMP far", 5),
    *_far("CALL far", 3),
    *(_form("RET far", "48cb", *_back(*to)) for to in _TO),
    *(
        _form("IRET", "48cf", *map(push, (ss, rsp, image, cs, HERE)))
        for cs, ss, rsp in _TO
        for image in (0x2, 0x202, 0x3002)
    ),
    *(_form("INT n", code) for code in ("cd80", "cd30", "cd81", "cd85", "cd86")),
    _form("INT3", "cc"),
    _form("INT1", "f1"),
    _form("SYSCALL", "0f05"),
)
_OTHERS: Final = (
    *(_form("CPUID", "0fa2", mov(0, leaf), mov(1, 0)) for leaf in (0, 1, 0x80000001)),
    *(_form("IN", code, mov(x86.EDX, 0x60)) for code in ("e460", "ec", "ed")),
    *(_form("OUT", code, mov(x86.EDX, 0x80)) for code in ("e680", "ee", "ef")),
    *(
        _form("SSE", code, state={"cr4": x86.CR4_OSFXSR})
        for code in ("0f57c0", "0f28c1")
    ),
    *(_form("FPU, MMX, WAIT", code) for code in ("d9d0", "9b", "dbe2", "0f77")),
    *(_form("XGETBV, RDTSCP", code) for code in ("0f01d0", "0f01f9")),
    *(_form("RDRAND, RDSEED", code) for code in ("0fc7f0", "480fc7f8")),
    *(_form("VEX", code) for code in ("c5f877", "c4e270f2c2", "c5e9efcb")),
    *(_form("WRFSBASE, RDGSBASE", code) for code in ("f3480faed0", "f30faec8")),
)
FORMS64: Final = (*_PRIVILEGED, *_SENSITIVE, *_SREGS, *_TRANSFERS, *_OTHERS)
NAMES64: Final = tuple(dict.fromkeys(form.name for form in FORMS64))
