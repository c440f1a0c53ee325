"""The system instructions of x86, in all their forms.

A form is 32-bit code; `forms64` has 64-bit code. In virtual-8086 mode it is given 66h
and 67h prefixes, or has code of its own where these do not make it the same: there a
selector is a paragraph, and data are within 64 KiB of DS. Source: SDM Vol. 2 and Vol.
3A table 5-1, section 5.9.
"""

import struct
from dataclasses import dataclass, field
from typing import Any, Final

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import i32, mov, push

AT: Final = stage.DATA  # where operands in memory are
HERE: Final = stage.CODE + 0x40  # far transfers go there, to an INT3
_PREFIXES: Final = b"\x66\x67"
_OTHER_TASK: Final = {"tr": stage.TSS_SELECTOR}  # so that TSS_B is free
_CONFORMING, _CONFORMING3 = 0x78, 0xB8
_CALL_GATE, _CALL_GATE16, _TASK_GATE = 0xA0, 0xA8, 0xB0
_BUSY: Final = (stage.GDT + 0x28 + 5, b"\x8b")  # the stage's first TSS
_LINK: Final = (stage.TSS_B, struct.pack("<H", stage.TSS_SELECTOR))


@dataclass(frozen=True)
class Form:
    """One form of an instruction.

    before: instructions that must come before; data: what stands at AT; flags: bits of
    EFLAGS that it needs; state: fields of State; patches: bytes that it needs, by
    address; vm86: instructions as 16-bit code, the form the last of them, or None if
    another form is the same there, or () for the same with prefixes; clock: it looks
    at the time; rings: at which CPL techniques are held against the bare machine;
    classed: the instruction's class is told from it, or else techniques and engine
    alone are tried with it; cpu: a CPL, what a CPU raises there by the SDM, and what
    the engine, which does not, has wrong, where the bare machine has it wrong, too;
    mode: of the code (`forms64` has "long").
    """

    name: str
    code: bytes
    before: tuple[bytes, ...] = ()
    data: bytes = b""
    flags: int = 0
    state: dict[str, Any] = field(default_factory=dict, hash=False)
    patches: tuple[tuple[int, bytes], ...] = ()
    vm86: tuple[bytes, ...] | None = ()
    clock: bool = False
    rings: tuple[int, ...] = (0, 1, 2, 3)
    classed: bool = True
    cpu: tuple[int, str, str] | None = None
    mode: stage.Mode = "protected"

    @property
    def in_vm86(self) -> tuple[bytes, ...]:
        """The instructions as 16-bit code, the form the last; none: not played."""
        if self.vm86 is None:
            return ()
        return self.vm86 or tuple(_PREFIXES + i for i in (*self.before, self.code))


def _hex(code: str) -> bytes:
    return bytes.fromhex(code)


def _wide(*code: bytes) -> tuple[bytes, ...]:
    """Return 32-bit instructions as 16-bit code: of registers and immediates."""
    return tuple(b"\x66" + insn for insn in code)


def _of_memory(
    name: str,
    opcode: str,
    reg: int,
    data: bytes = b"",
    before: tuple[bytes, ...] = (),
) -> tuple[Form, Form]:
    """Two forms of 32 and 16 bits with their operand at AT."""
    code, modrm = _hex(opcode), reg << 3
    wide = code + bytes([modrm | 5]) + i32(AT)
    short = code + bytes([modrm | 6]) + bytes(2)
    return (
        Form(name, wide, before, data, vm86=(*_wide(*before), b"\x66" + short)),
        Form(name, b"\x66" + wide, before, data, vm86=(*_wide(*before), short)),
    )


def _of_ax(name: str, code: str, *values: int) -> tuple[Form, ...]:
    """Return forms with each value in EAX."""
    return tuple(Form(name, _hex(code), (mov(x86.EAX, value),)) for value in values)


def _odd(
    name: str,
    code: str,
    *before: bytes,
    **fields: Any,  # noqa: ANN401 - fields of Form
) -> Form:
    """Return a form that no program means, or that shows a mistake of the engine's."""
    return Form(name, _hex(code), before, vm86=None, classed=False, **fields)


def _sel(selector: int) -> bytes:
    return struct.pack("<H", selector)


def _push16(value: int) -> bytes:
    return b"\x66\x68" + _sel(value)


_BOTH: Final = (stage.DATA0, stage.DATA3)
_RPL1: Final = stage.DATA0 | 1
_ONES: Final = mov(x86.EAX, x86.MASK32)
_TABLE: Final = struct.pack("<HI", 0x7F, stage.LDT)

_PRIVILEGED: Final = (
    Form("CLI", b"\xfa"),
    Form("STI", b"\xfb"),
    Form("HLT", b"\xf4"),
    Form("CLTS", b"\x0f\x06"),
    Form("INVD", b"\x0f\x08"),
    Form("WBINVD", b"\x0f\x09"),
    *_of_memory("INVLPG", "0f01", 7),
    *_of_memory("LGDT", "0f01", 2, _TABLE),
    *_of_memory("LIDT", "0f01", 3, struct.pack("<HI", 0x3FF, stage.IDT)),
    *_of_ax("LLDT", "0f00d0", 0, stage.LDT_SELECTOR),
    *_of_memory("LLDT", "0f00", 2, _sel(stage.LDT_SELECTOR)),
    *_of_ax("LTR", "0f00d8", stage.TSS_SELECTOR),
    *_of_memory("LTR", "0f00", 3, _sel(stage.TSS_SELECTOR)),
    *_of_ax("LMSW", "0f01f0", 0x33),
    *_of_memory("LMSW", "0f01", 6, b"\x3b\0"),
    *(
        Form(f"MOV from CR{n}", bytes([0x0F, 0x20, 0xC0 | n << 3]))
        for n in (0, 2, 3, 4)
    ),
    *(
        Form(f"MOV to CR{n}", bytes([0x0F, 0x22, 0xC0 | n << 3]), (mov(0, value),))
        for n, value in ((0, 0x33), (2, 0x1234), (3, stage.PD | 8), (4, 0x10))
    ),
    *(Form("MOV from DR", bytes([0x0F, 0x21, 0xC0 | n << 3])) for n in range(8)),
    # No breakpoint is enabled: what it does to others is no effect of this one.
    *(
        Form("MOV to DR", bytes([0x0F, 0x23, 0xC0 | n << 3]), (mov(0, value),))
        for n, value in enumerate([0x1234] * 4 + [0xFFFF0FF0, 0x700] * 2)
    ),
    *(
        Form("RDMSR", b"\x0f\x32", (mov(x86.ECX, number),), clock=number == x86.MSR_TSC)
        for number in (x86.MSR_PLATFORM_ID, x86.MSR_TSC, x86.MSR_BIOS_SIGN_ID)
    ),
    *(
        Form(
            "WRMSR",
            b"\x0f\x30",
            (mov(x86.ECX, number), mov(0, 1), mov(x86.EDX, 0)),
            clock=number == x86.MSR_TSC,
        )
        for number in (x86.MSR_TSC, x86.MSR_BIOS_SIGN_ID, x86.MSR_PERFEVTSEL0)
    ),
    Form("RDPMC", b"\x0f\x33", (mov(x86.ECX, 0),)),
    Form("RDTSC", b"\x0f\x31", clock=True),
)


def _string(name: str, code: str, register: int, port: int) -> tuple[Form, ...]:
    """INS or OUTS: 8, 16 and 32 bits, and two of each with REP."""

    def start(place: int) -> tuple[bytes, ...]:
        return mov(x86.EDX, port), mov(register, place), mov(x86.ECX, 2)

    return tuple(
        Form(name, rep + size + code_, start(AT), vm86=(*_wide(*start(0)), rep + code_))
        for code_ in (_hex(code), bytes([int(code, 16) + 1]))
        for size in ((b"",) if code_ == _hex(code) else (b"", b"\x66"))
        for rep in (b"", b"\xf3")
    )


def _port(name: str, opcode: int, port: int) -> tuple[Form, ...]:
    """IN or OUT: of an immediate and of DX, 8, 16 and 32 bits."""
    codes = [(opcode, bytes([port])), (opcode + 8, b"")]
    return tuple(
        Form(name, size + bytes([code + wide]) + tail, (mov(x86.EDX, port),))
        for code, tail in codes
        for size, wide in ((b"", 0), (b"", 1), (b"\x66", 1))
    )


_PORTS: Final = (
    *_port("IN", 0xE4, 0x60),
    *_port("OUT", 0xE6, 0x80),
    *_string("INS", "6c", x86.EDI, 0x60),
    *_string("OUTS", "6e", x86.ESI, 0x80),
)


def _stored(name: str, opcode: str, reg: int) -> tuple[Form, ...]:
    """SLDT, STR and SMSW: to memory, and to registers of 32 and 16 bits."""
    code = _hex(opcode) + bytes([0xC0 | reg << 3])
    registers = (Form(name, size + code, (_ONES,)) for size in (b"", b"\x66"))
    return (*_of_memory(name, opcode, reg), *registers)


def _asked(name: str, opcode: str, reg: int) -> tuple[Form, ...]:
    """LAR, LSL, VERR and VERW: of a register and of memory."""
    code = bytes([0xC0 | reg << 3]).hex()
    selectors = (*_BOTH, stage.CODE0, stage.TSS_SELECTOR, _CALL_GATE, 0, 0x400)
    return (
        *_of_ax(name, opcode + code, *selectors),
        *_of_memory(name, opcode, reg, _sel(stage.DATA0)),
    )


_POPF: Final = tuple(
    Form("POPF", b"\x9d", (push(value),)) for value in (2, 0x202, 0x3002)
)
_SENSITIVE: Final = (
    *_of_memory("SGDT", "0f01", 0),
    *_of_memory("SIDT", "0f01", 1),
    *_stored("SLDT", "0f00", 0),
    *_stored("STR", "0f00", 1),
    # CR0 with NE clear, which the VMM's has set.
    _odd("SMSW", "660f01e0", mov(0, 0x11), b"\x0f\x22\xc0", rings=(0,)),
    *_stored("SMSW", "0f01", 4),
    Form("PUSHF", b"\x9c"),
    Form("PUSHF", b"\x66\x9c", vm86=(b"\x9c",)),
    *_POPF,
    Form("POPF", b"\x66\x9d", (push(0x3202),), vm86=(b"\x68\x02\x32", b"\x9d")),
    *_asked("LAR", "0f02", x86.EBX),
    *_asked("LSL", "0f03", x86.EBX),
    *_asked("VERR", "0f00", 4),
    *_asked("VERW", "0f00", 5),
    Form("ARPL", b"\x63\xd8", (mov(0, 0x10), mov(x86.EBX, 3))),
    Form("ARPL", b"\x63\xd8", (mov(0, 0x13), mov(x86.EBX, 0))),
    *_of_memory("ARPL", "63", x86.EBX, b"\x10\0", before=(mov(x86.EBX, 3),)),
)

_DATA: Final = (*_BOTH, 0, _RPL1)
_STACKS: Final = (*_BOTH, _RPL1, stage.DATA_OF[1])
_DATA_SREGS: Final = (x86.ES, x86.DS, x86.FS, x86.GS)
_PUSH: Final = ("06", "0e", "16", "1e", "0fa0", "0fa8")
_POP: Final = {x86.ES: "07", x86.DS: "1f", x86.FS: "0fa1", x86.GS: "0fa9"}
_LOADS: Final = ("c4", "c5", "0fb4", "0fb5")


def _read(sreg: int) -> tuple[Form, ...]:
    """MOV from a segment register."""
    code = bytes([0x8C, 0xC0 | sreg << 3])
    registers = (Form("MOV from Sreg", s + code, (_ONES,)) for s in (b"", b"\x66"))
    return (*registers, *_of_memory("MOV from Sreg", "8c", sreg))


def _loaded(name: str, sreg: int, *selectors: int) -> tuple[Form, ...]:
    """MOV to a segment register."""
    code = bytes([0x8E, 0xC0 | sreg << 3]).hex()
    return (
        *_of_ax(name, code, *selectors),
        Form(name, b"\x66" + _hex(code), (mov(0, selectors[0]),), vm86=None),
        *_of_memory(name, "8e", sreg, _sel(selectors[-1])),
    )


def _popped(name: str, code: str, *selectors: int) -> tuple[Form, ...]:
    """POP of a segment register."""
    first = selectors[0]
    return (
        *(Form(name, _hex(code), (push(selector),)) for selector in selectors),
        Form(
            name,
            b"\x66" + _hex(code),
            (_push16(first),),
            vm86=(b"\x68" + _sel(first), _hex(code)),
        ),
    )


def _pointer(name: str, opcode: str, *selectors: int) -> tuple[Form, ...]:
    """LDS and its kin: a pointer at AT to EBX, or BX."""
    found: list[Form] = []
    # RPL 1 first: once a selector was refused the code is patched, and the VMM decides.
    for selector in sorted(selectors, key=lambda one: one != _RPL1):
        wide, _ = _of_memory(name, opcode, x86.EBX, i32(7) + _sel(selector))
        found.append(wide)
    _, short = _of_memory(name, opcode, x86.EBX, _sel(7) + _sel(selectors[0]))
    return (*found, short)


_SREGS: Final = (
    *(form for sreg in range(6) for form in _read(sreg)),
    *(
        Form(
            "PUSH Sreg",
            size + _hex(code),
            vm86=((b"" if size else b"\x66") + _hex(code),),
        )
        for code in _PUSH
        for size in (b"", b"\x66")
    ),
    *(form for s in _DATA_SREGS for form in _loaded("MOV to Sreg", s, *_DATA)),
    *_loaded("MOV to SS", x86.SS, *_STACKS, stage.DATA_OF[0]),
    *(form for code in _POP.values() for form in _popped("POP Sreg", code, *_DATA)),
    *_popped("POP SS", "17", *_STACKS),
    *(form for c in _LOADS for form in _pointer("LDS, LES, LFS, LGS", c, *_DATA)),
    *_pointer("LSS", "0fb2", *_STACKS),
)

_CODES: Final = (stage.CODE0, stage.CODE3, stage.CODE_OF[1], _CONFORMING, _CONFORMING3)
_TASKS: Final = (stage.TSS_B_SELECTOR, _TASK_GATE)
_CS86, _IP86 = stage.CODE >> 4, HERE - stage.CODE  # of HERE in virtual-8086 mode


def _far(name: str, opcode: int, reg: int, *gates: int) -> tuple[Form, ...]:
    """JMP or CALL: direct and indirect, of 32 and 16 bits, to code, gates and tasks."""
    code = bytes([opcode])
    indirect = b"\xff" + bytes([reg << 3 | 5]) + i32(AT)
    pointer86 = struct.pack("<HH", _IP86, _CS86)
    pointer16 = struct.pack("<HH", HERE & 0xFFFF, stage.CODE0)
    by_word = b"\xff" + bytes([reg << 3 | 6]) + bytes(2)
    wide86 = b"\x66" + code + struct.pack("<IH", _IP86, _CS86)
    return (
        *(
            Form(
                name,
                code + i32(HERE) + _sel(selector),
                vm86=(code + pointer86,) if selector == stage.CODE0 else None,
            )
            for selector in (*_CODES, *gates)
        ),
        *(
            Form(name, code + i32(0) + _sel(s), state=_OTHER_TASK, vm86=None)
            for s in _TASKS
        ),
        Form(name, b"\x66" + code + pointer16, vm86=(wide86,)),
        *(
            Form(name, indirect, (), i32(HERE) + _sel(selector), vm86=None)
            for selector in (stage.CODE0, stage.CODE3)
        ),
        Form(
            name,
            b"\x66" + indirect,
            (),
            pointer16,
            vm86=(
                b"\xc7\x06\0\0" + _sel(_IP86),
                b"\xc7\x06\2\0" + _sel(_CS86),
                by_word,
            ),
        ),
    )


def _back(selector: int, *more: int) -> tuple[bytes, ...]:
    """What RET far finds on the stack; more: SS and ESP of an outer ring, EFLAGS."""
    return tuple(map(push, (*more, selector, HERE)))


_OUTER: Final = (stage.DATA3, stage.STACK3)
_OUTER1: Final = (stage.DATA_OF[1], stage.STACK3)
_BACK86: Final = (b"\x68" + _sel(_CS86), b"\x68" + _sel(_IP86))
_WIDE86: Final = (b"\x66" + push(_CS86), b"\x66" + push(_IP86))
_BACK16: Final = (_push16(stage.CODE0), _push16(HERE & 0xFFFF))
_V86: Final = (0, 0, 0, 0, 0x2000, 0xF000, x86.VM | 2, _CS86, _IP86)
_RETURNS: Final = (
    Form("RET far", b"\xcb", _back(stage.CODE0), vm86=(*_BACK86, b"\xcb")),
    Form("RET far", b"\xcb", _back(stage.CODE3), vm86=(*_WIDE86, b"\x66\xcb")),
    Form("RET far", b"\xcb", _back(stage.CODE3, *_OUTER), vm86=None),
    Form("RET far", b"\xcb", _back(stage.CODE_OF[1], *_OUTER1), vm86=None),
    Form("RET far", b"\xca\4\0", _back(stage.CODE0), vm86=(*_BACK86, b"\xca\4\0")),
    Form("RET far", b"\xca\4\0", _back(stage.CODE3, *_OUTER, 0), vm86=None),
    Form("RET far", b"\x66\xcb", _BACK16, vm86=None),
    *(
        Form(
            "IRET",
            b"\xcf",
            (push(f), push(s), push(HERE)),
            vm86=(b"\x68" + _sel(f), *_BACK86, b"\xcf")
            if s == stage.CODE0
            else (b"\x66" + push(f), *_WIDE86, b"\x66\xcf"),
        )
        for s in (stage.CODE0, stage.CODE3)
        for f in (0x2, 0x202, 0x3002)
    ),
    *(
        Form("IRET", b"\xcf", _back(stage.CODE3, *_OUTER, f), vm86=None)
        for f in (0x2, 0x202, 0x3002)
    ),
    Form("IRET", b"\xcf", _back(stage.CODE_OF[1], *_OUTER1, 0x202), vm86=None),
    Form("IRET", b"\x66\xcf", (_push16(0x202), *_BACK16), vm86=None),
    Form("IRET", b"\xcf", flags=x86.NT, patches=(_BUSY, _LINK), vm86=None),
)
_OVERFLOWS: Final = (b"\xb0\x7f", b"\x04\x01", b"\xce")
_TRANSFERS: Final = (
    *_far("JMP far", 0xEA, 5, _CALL_GATE),
    *_far("CALL far", 0x9A, 3, _CALL_GATE, _CALL_GATE16),
    *_RETURNS,
    *(Form("INT n", bytes([0xCD, n]), vm86=(bytes([0xCD, n]),)) for n in (0x80, 0x30)),
    Form("INT n", b"\xcd\x81", state=_OTHER_TASK),
    Form("INT n", b"\xcd\x82", vm86=(b"\xcd\x82",)),
    Form("INTO", b"\xce", (b"\xb0\x7f", b"\x04\x01"), vm86=_OVERFLOWS),
    Form("INTO", b"\xce", (b"\x30\xc0",), vm86=(b"\x30\xc0", b"\xce")),
    Form("INT3", b"\xcc"),
    Form("INT1", b"\xf1"),
)


def _all(name: str, *codes: str) -> tuple[Form, ...]:
    """Return forms without operands to speak of."""
    return tuple(Form(name, _hex(code), vm86=(_hex(code),)) for code in codes)


_GROUP7: Final = tuple(
    bytes([0x0F, 0x01, last]).hex()
    for last in bytes.fromhex("c1c2c3c4 c8c9cacb d0d1d4 d8d9dadbdcdddedf f8f9")
)
_OTHERS: Final = (
    *(Form("CPUID", b"\x0f\xa2", (mov(0, leaf), mov(x86.ECX, 0))) for leaf in range(3)),
    *_all("FPU, MMX, WAIT", "d9d0", "9b", "dbe2", "0f77"),
    *(
        Form("SSE", _hex(code), state={"cr4": x86.CR4_OSFXSR})
        for code in ("0f57c0", "0f28c1", "0f50c0")
    ),
    *_all("SYSENTER, SYSEXIT, SYSCALL, SYSRET", "0f34", "0f35", "0f05", "0f07"),
    *_all("VMX, SVM, MONITOR, XGETBV, RDTSCP", *_GROUP7),
    *_all(
        "RSM, INVPCID, VMREAD, GETSEC", "0faa", "660f388200", "0f78c0", "0f79c0", "0f37"
    ),
    *_all(
        "MOV CR1, CR5-7",
        *(f"0f{o}{m}" for o in ("20", "22") for m in ("c8", "e8", "f0", "f8")),
    ),
    *_all("MOV to CS, UD2", "8ec8", "0f0b", "0fb9c0"),
    # VZEROUPPER and ANDN, where there is VEX.
    *_all("LDS, LES of a register", "c5f877", "c4e270f2c2"),
    *_all("RDRAND, RDSEED", "0fc7f0", "0fc7f8", "660fc7f1", "660fc7f9"),
    # A descriptor with base DATA and a limit of FFFFh, read beyond it.
    Form(
        "MOV beyond a limit",
        b"\xa1" + i32(0x18000),
        (mov(0, 0x73), b"\x8e\xd8"),
        patches=((stage.GDT + 0x70 + 5, b"\xf2"),),
        vm86=(b"\x67\x66\xa1" + i32(0x10000),),
    ),
)

_KERNELS: Final = stage.BOOT + 0x800  # with paging on, a page of the kernel's
_HANDLER: Final = stage.HANDLERS + 0x800
_ON_KERNELS: Final = mov(x86.ESP, _KERNELS)
_FRAME: Final = (_KERNELS, struct.pack("<III", HERE, stage.CODE3, 2))
_SHORT: Final = 0x68  # a code segment of 64 KiB, and HERE is beyond

_ODD: Final = (
    _odd("LTR", "0f00d8", mov(0, 0)),
    _odd("MOV to CR0", "0f22c0", mov(0, x86.CR0_NW | x86.CR0_PE)),
    _odd("MOV to CR4", "0f22e0", mov(0, 1 << 31)),
    # DR0 is at AT, DR7 breaks at a write of 4 bytes there, which comes next.
    _odd(
        "MOV to DR", "0f23f8 a3" + i32(AT).hex(),
        mov(0, AT), b"\x0f\x23\xc0", mov(0, 0xD0401), rings=(0,),
    ),
    _odd(
        "CALL far", "9a" + (i32(HERE) + _sel(stage.CODE3)).hex(), _ON_KERNELS,
        state={"paging": True},
    ),
    _odd("RET far", "cb", _ON_KERNELS, state={"paging": True}, patches=(_FRAME,)),
    _odd("RET far", "cb", *_back(_SHORT)),
    # SS:ESP of the outer ring is below the stack for the engine, above it for a CPU.
    _odd(
        "RET far", "ca0080", *_back(stage.CODE3), rings=(),
        patches=((stage.STACK0 - 0x8000, struct.pack("<II", *reversed(_OUTER))),),
        cpu=(0, "#GP", "RET iw releases a signed number of bytes"),
    ),
    # It is the handler of an INT, and goes back to a user whom the VMM has seen.
    _odd(
        "IRET", "cd85", rings=(3,),
        patches=(
            (stage.IDT + 8 * 0x85, stage.gate(stage.CODE0, _HANDLER, x86.SYS_INT32, 3)),
            (_HANDLER, b"\xcf"),
        ),
    ),
    _odd("IRET", "cf", _ON_KERNELS, state={"paging": True}, patches=(_FRAME,)),
    _odd("IRET", "cf", push(2), *_back(_SHORT)),
    _odd("IRET", "cf", *map(push, _V86[:-1]), push(HERE), rings=(0,)),
    # At CPL 1 and 2 the bare machine, too, takes VM, as a CPU does at CPL 0 alone.
    _odd(
        "IRET", "cf", *map(push, _V86), rings=(0, 3),
        cpu=(3, "#GP", "IRET of a user takes VM"),
    ),
)  # fmt: skip

FORMS: Final = (
    *_PRIVILEGED, *_PORTS, *_SENSITIVE, *_SREGS, *_TRANSFERS, *_OTHERS, *_ODD,
)  # fmt: skip
NAMES: Final = tuple(dict.fromkeys(form.name for form in FORMS))
