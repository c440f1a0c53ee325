"""The system instructions of 64-bit code, in all their forms.

What 64-bit code does not have is not here (POP SS, LDS, INTO, direct far jumps), and
neither is virtual-8086 mode. SYSENTER and SYSEXIT are not here: the stage's kernel
leaves them off. Source: SDM Vol. 2, Vol. 3A table 5-1 and section 5.8.8.
"""

import struct
from typing import Any, Final

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import absolute, i32, mov, mov64, push
from emu86.testing.forms import AT, HERE, Form
from emu86.testing.stage64 import SYSTEM_CALLS, gate64


def _form(
    name: str,
    code: str,
    *before: bytes,
    **fields: Any,  # noqa: ANN401 - fields of Form
) -> Form:
    return Form(name, bytes.fromhex(code), before, mode="long", vm86=None, **fields)


def _odd(
    name: str,
    code: str,
    *before: bytes,
    **fields: Any,  # noqa: ANN401 - fields of Form
) -> Form:
    """Return a form that no program means, or that shows a mistake of the engine's."""
    return _form(name, code, *before, classed=False, **fields)


def _of_memory(
    name: str, opcode: str, reg: int, data: bytes = b"", *before: bytes
) -> Form:
    """Return a form with its operand at AT."""
    return _form(name, opcode + absolute(reg, AT, 64).hex(), *before, data=data)


def _of_ax(name: str, code: str, *values: int) -> tuple[Form, ...]:
    return tuple(_form(name, code, mov(x86.EAX, value)) for value in values)


def _msr(name: str, code: str, number: int, value: int) -> Form:
    before = mov(x86.ECX, number), mov(x86.EAX, value), mov(x86.EDX, value >> 32)
    return _form(name, code, *before, clock=number == x86.MSR_TSC)


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
    x86.MSR_TSC, x86.MSR_BIOS_SIGN_ID, x86.MSR_STAR, x86.MSR_LSTAR,
    x86.MSR_KERNEL_GS_BASE, x86.MSR_FS_BASE,
)  # fmt: skip
_HANDLER: Final = stage.HANDLERS + 0x800
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
    _of_memory("LIDT", "0f01", 3, struct.pack("<HQ", 0x7FF, stage.IDT)),
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
    *(_form("MOV from DR", f"0f21{0xC0 | n << 3:x}") for n in range(8)),
    *(
        _form("MOV to DR", f"0f23{0xC0 | n << 3:x}", mov(x86.EAX, value))
        for n, value in enumerate([0x1234] * 4 + [0xFFFF0FF0, 0x700] * 2)
    ),
    *(_msr("RDMSR", "0f32", number, 0) for number in (*_MSRS, x86.MSR_EFER)),
    *(_msr("WRMSR", "0f30", number, 1) for number in _MSRS),
    _form("RDPMC", "0f33", mov(x86.ECX, 0)),
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
    # It is the handler of an INT, and goes back to a user whom the VMM has seen.
    _odd(
        "IRET", "cd87", rings=(3,),
        patches=(
            (stage.IDT + 16 * 0x87, gate64(stage.CODE0, _HANDLER, x86.SYS_INT64, 3)),
            (_HANDLER, b"\x48\xcf"),
        ),
    ),
    *(_form("INT n", code) for code in ("cd80", "cd30", "cd81", "cd85", "cd86")),
    _form("INT3", "cc"),
    _form("INT1", "f1"),
    _form("SYSCALL", "0f05", patches=((SYSTEM_CALLS, b"\xcc"),)),
)  # fmt: skip


def _string(name: str, opcode: int, register: int, port: int) -> tuple[Form, ...]:
    """INS or OUTS: 8, 16 and 32 bits, and two of each with REP."""
    before = mov(x86.EDX, port), mov(register, AT), mov(x86.ECX, 2)
    return tuple(
        _form(name, f"{rep}{size}{opcode + wide:02x}", *before)
        for size, wide in (("", 0), ("", 1), ("66", 1))
        for rep in ("", "f3")
    )


def _all(name: str, *codes: str) -> tuple[Form, ...]:
    """Return forms without operands to speak of."""
    return tuple(_form(name, code) for code in codes)


_VMX: Final = (
    "c1", "c2", "c3", "c4", "c8", "c9", "d4", "d8", "d9", "da", "db", "dc", "dd", "df",
)  # fmt: skip
_OTHERS: Final = (
    *(_form("CPUID", "0fa2", mov(0, leaf), mov(1, 0)) for leaf in (0, 1, 0x80000001)),
    *(_form("IN", code, mov(x86.EDX, 0x60)) for code in ("e460", "ec", "ed")),
    *(_form("OUT", code, mov(x86.EDX, 0x80)) for code in ("e680", "ee", "ef")),
    *_string("INS", 0x6C, x86.EDI, 0x60),
    *_string("OUTS", 0x6E, x86.ESI, 0x80),
    *(
        _form("SSE", code, state={"cr4": x86.CR4_OSFXSR})
        for code in ("0f57c0", "0f28c1")
    ),
    *_all("FPU, MMX, WAIT", "d9d0", "9b", "dbe2", "0f77"),
    *_all(
        "VMX, SVM, MONITOR",
        *("0f01" + last for last in _VMX),
    ),
    *_all("XGETBV, RDTSCP", "0f01d0", "0f01f9"),
    *_all(
        "RSM, INVPCID, VMREAD, GETSEC", "0faa", "660f388200", "0f78c0", "0f79c0", "0f37"
    ),
    *_all(
        "MOV CR1, CR5-7",
        *(f"0f{o}{m}" for o in ("20", "22") for m in ("c8", "e8", "f0", "f8")),
    ),
    *_all("MOV to CS, UD2", "8ec8", "0f0b", "0fb9c0"),
    *_all("RDRAND, RDSEED", "0fc7f0", "480fc7f8"),
    *_all("VEX", "c5f877", "c4e270f2c2", "c5e9efcb"),
    *_all("WRFSBASE, RDGSBASE", "f3480faed0", "f30faec8"),
    _form("MOV at no canonical address", "488b03", mov64(x86.EBX, 1 << 47)),
    _odd("MOV to CR0", "0f22c0", mov(x86.EAX, 0x80000033 | x86.CR0_NW)),
    _odd("MOV to CR4", "0f22e0", mov(x86.EAX, x86.CR4_PAE | 1 << 31)),
)  # fmt: skip
FORMS64: Final = (*_PRIVILEGED, *_SENSITIVE, *_SREGS, *_TRANSFERS, *_OTHERS)
NAMES64: Final = tuple(dict.fromkeys(form.name for form in FORMS64))
