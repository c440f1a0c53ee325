"""Random programs: a kind and a seed give a `Plan`, always the same one."""

import random
import struct
from collections.abc import Callable
from typing import Final

from emu86.spec import x86
from support.fuzz import guests
from support.fuzz.guests import Plan

_PORTS: Final = (
    0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71,
    0x80, 0x92, 0xF0, 0xF4, 0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FC, 0x3FD, 0x3FF, 0x4D0,
    0x4D1, 0xCF8, 0xCFC, 0x604, 0x605, 0x66,
)  # fmt: skip
_ADDRESSES: Final = (
    0, 1, 0xFFC, 0xFFF, 0x1000, guests.IDT, guests.GDT, guests.LDT, guests.TSS,
    guests.TSS_B, guests.PD, guests.PT, guests.PT_B, guests.HANDLERS, guests.CODE,
    guests.CODE + 0x20, guests.CODE + guests.ALIAS, guests.CODE + 0xFFE, guests.DATA_AT,
    guests.STACK0, guests.STACK3, 0x9FFFE, 0xA0000, 0xB8000, 0xFFFFC, 0x1FFFFE,
    0x200000,
    0x203FFC, 0x400000, 0x7FFFFE, 0x800000, 0xC00000, 0x7FFFFFFF, 0x80000000,
    0xC0000000,
    0xC0010000, 0xFEC00000, 0xFFC00000, 0xFFC16000, 0xFFFFF000, 0xFFFFFFF8, 0xFFFFFFFC,
    0xFFFFFFFF,
)  # fmt: skip
_FLAGS: Final = (0x2, 0x102, 0x202, 0x302, 0x3202, 0x4002, 0x20002, 0x40002, 0x402)


class Source:
    """Random operands, most of them ones that matter."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def word(self) -> int:
        rng = self.rng
        pick = rng.random()
        if pick < 0.5:
            near = rng.choice(_ADDRESSES) + rng.choice((0, 0, 0, -1, -2, -4, 4, 8, 16))
            return near & 0xFFFFFFFF
        if pick < 0.7:
            return rng.choice(guests.SELECTORS)
        if pick < 0.8:
            return 1 << rng.randrange(32)
        if pick < 0.9:
            return rng.choice(_FLAGS)
        return rng.getrandbits(32)

    def address(self) -> int:
        return self.word() if self.rng.random() < 0.3 else self.rng.choice(_ADDRESSES)

    def selector(self) -> int:
        rng = self.rng
        if rng.random() < 0.1:
            return rng.getrandbits(16)
        return rng.choice(guests.SELECTORS) | rng.choice((0, 0, 0, 3, 1, 2, 4))

    def port(self) -> int:
        rng = self.rng
        return rng.choice(_PORTS) if rng.random() < 0.8 else rng.getrandbits(16)

    def registers(self) -> dict[str, int]:
        names = ["eax", "ecx", "edx", "ebx", "ebp", "esi", "edi"]
        return {name: self.word() for name in names}


class Assembler:
    """Emits one random instruction or short sequence of a kind at a time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rng = source.rng
        self.kinds: tuple[Callable[[], bytes], ...] = (
            self.move_cr, self.move_cr, self.tables, self.tables, self.system,
            self.iret, self.iret, self.far_return, self.popf, self.popf, self.far,
            self.far, self.port_io, self.strings, self.msr, self.segment, self.segment,
            self.memory, self.memory, self.odd_memory, self.rewrite, self.push_pop,
            self.interrupt, self.descriptor, self.page_table, self.noise, self.fpu,
            self.jump, self.sensitive, self.stack,
        )  # fmt: skip

    def program(self, count: int) -> bytes:
        return b"".join(self.rng.choice(self.kinds)() for _ in range(count))

    # -- parts

    def i32(self, value: int) -> bytes:
        return struct.pack("<I", value & 0xFFFFFFFF)

    def mov(self, register: int, value: int) -> bytes:
        return bytes([0xB8 + register]) + self.i32(value)

    def push(self, value: int) -> bytes:
        return b"\x68" + self.i32(value)

    def prefix(self) -> bytes:
        if self.rng.random() < 0.75:
            return b""
        return bytes([self.rng.choice(b"\x66\x67\x26\x2e\x36\x3e\x64\x65\xf0\xf2\xf3")])

    def modrm(self, reg: int) -> bytes:
        """A register operand or an absolute address."""
        rng = self.rng
        pick = rng.random()
        if pick < 0.3:
            return bytes([0xC0 | reg << 3 | rng.randrange(8)])
        if pick < 0.8:
            return bytes([reg << 3 | 5]) + self.i32(self.source.address())
        mod, rm = rng.randrange(3), rng.randrange(8)
        return bytes([mod << 6 | reg << 3 | rm]) + rng.randbytes(
            rng.choice((0, 1, 4, 5))
        )

    # -- kinds

    def move_cr(self) -> bytes:
        rng = self.rng
        number = rng.choice((0, 0, 2, 3, 3, 4, 4, rng.randrange(8)))
        if rng.random() < 0.3:
            opcode = rng.choice((0x20, 0x21, 0x23))
            return bytes([0x0F, opcode, 0xC0 | number << 3 | rng.randrange(8)])
        if number == 0 and rng.random() < 0.8:
            bits = 1 << rng.choice((1, 2, 3, 5, 16, 18, 29, 30, 31))
            return b"\x0f\x20\xc0\x35" + self.i32(bits) + b"\x0f\x22\xc0"
        value = self.source.word()
        if number == 4 and rng.random() < 0.8:
            value = rng.choice((0x10, 0x80, 0x90, 0x94, 0x200, 0x690))
        if number == 3 and rng.random() < 0.6:
            value = guests.PD | rng.choice((0, 8, 0x18))
        return self.mov(0, value) + bytes([0x0F, 0x22, 0xC0 | number << 3])

    def tables(self) -> bytes:
        """LGDT, LIDT with an operand sound or not; SGDT, SIDT, SMSW, LMSW, INVLPG."""
        rng = self.rng
        reg = rng.randrange(8)
        out = b""
        if reg in (2, 3) and rng.random() < 0.8:
            limit = rng.choice((0, 7, 0xBF, 0x7FF, 0xFFFF, rng.getrandbits(16)))
            home = guests.GDT if reg == 2 else guests.IDT
            base = home if rng.random() < 0.5 else self.source.address()
            at = guests.DATA_AT + 0x100
            out += b"\x66\xc7\x05" + self.i32(at) + struct.pack("<H", limit)
            out += b"\xc7\x05" + self.i32(at + 2) + self.i32(base)
            return out + bytes([0x0F, 0x01, reg << 3 | 5]) + self.i32(at)
        return out + self.prefix() + b"\x0f\x01" + self.modrm(reg)

    def system(self) -> bytes:
        """LLDT, LTR, SLDT, STR, VERR, VERW, and the short privileged ones."""
        rng = self.rng
        if rng.random() < 0.5:
            short = (
                b"\xfa",
                b"\xfb",
                b"\xfb\x90",
                b"\x0f\x06",
                b"\x0f\x08",
                b"\x0f\x09",
            )
            return rng.choice(
                (*short, b"\x0f\x31", b"\x0f\x33", b"\x0f\xa2", b"\xfb\xf4")
            )
        out = self.mov(0, self.source.selector())
        return out + bytes([0x0F, 0x00, 0xC0 | rng.randrange(8) << 3])

    def iret(self) -> bytes:
        rng = self.rng
        flags = rng.choice(_FLAGS) | (rng.getrandbits(22) if rng.random() < 0.2 else 0)
        good = rng.random() < 0.7
        ring3 = rng.random() < 0.4
        cs = (
            (guests.CODE3 if ring3 else guests.CODE0)
            if good
            else self.source.selector()
        )
        at = guests.CODE + rng.randrange(0x80) if good else self.source.address()
        out = b""
        if ring3 or rng.random() < 0.3:
            out += self.push(guests.DATA3 if good else self.source.selector())
            out += self.push(guests.STACK3 if good else self.source.word())
        out += self.push(flags) + self.push(cs) + self.push(at)
        return out + (b"\x66" if rng.random() < 0.1 else b"") + b"\xcf"

    def far_return(self) -> bytes:
        rng = self.rng
        out = self.push(self.source.selector()) + self.push(self.source.selector())
        out += self.push(guests.CODE + rng.randrange(0x80))
        opcode = rng.choice((b"\xcb", b"\xca\x08\x00", b"\xca\xff\xff"))
        return out + self.prefix() + opcode

    def popf(self) -> bytes:
        value = self.source.rng.choice((*_FLAGS, self.rng.getrandbits(32)))
        size = b"\x66" if self.rng.random() < 0.2 else b""
        return self.push(value) + size + b"\x9d"

    def far(self) -> bytes:
        rng = self.rng
        at = guests.CODE + rng.randrange(0x80)
        if rng.random() < 0.2:
            at = self.source.address()
        if rng.random() < 0.6:
            opcode = rng.choice(b"\x9a\xea")
            selector = struct.pack("<H", self.source.selector())
            return bytes([opcode]) + self.i32(at) + selector
        return b"\xff" + self.modrm(rng.choice((3, 5)))

    def port_io(self) -> bytes:
        rng = self.rng
        value, port = self.source.word(), self.source.port()
        out = self.mov(0, value) + self.mov(2, port)
        return out + self.prefix() + bytes([rng.choice(b"\xec\xed\xee\xef\xe4\xe6")])

    def strings(self) -> bytes:
        """INS, OUTS, MOVS, STOS and the others, repeated a few times or for ever."""
        rng = self.rng
        opcode = rng.choice(b"\x6c\x6d\x6e\x6f\xa4\xa5\xaa\xab\xa6\xa7\xac\xad\xae\xaf")
        out = self.mov(6, self.source.address()) + self.mov(7, self.source.address())
        out += self.mov(1, rng.choice((0, 1, 5, 600, 0x10000, 0xFFFFFFFF)))
        out += self.mov(2, self.source.port()) + rng.choice((b"", b"\xfd", b"\xfc"))
        return (
            out + rng.choice((b"", b"\xf3", b"\xf2")) + self.prefix() + bytes([opcode])
        )

    def msr(self) -> bytes:
        number = self.rng.choice((0x10, 0x17, 0x8B, 0x174, 0x1B, 0xC0000080, 0))
        if self.rng.random() < 0.2:
            number = self.rng.getrandbits(32)
        return self.mov(1, number) + self.rng.choice((b"\x0f\x30", b"\x0f\x32"))

    def segment(self) -> bytes:
        rng = self.rng
        pick = rng.random()
        if pick < 0.5:
            register = rng.choice((0, 2, 3, 4, 5, rng.randrange(8)))
            load = bytes([0x8E, 0xC0 | register << 3])
            return self.mov(0, self.source.selector()) + load
        if pick < 0.8:
            pop = rng.choice((b"\x07", b"\x17", b"\x1f", b"\x0f\xa1", b"\x0f\xa9"))
            return self.push(self.source.selector()) + self.prefix() + pop
        opcode = rng.choice((b"\xc4", b"\xc5", b"\x0f\xb2", b"\x0f\xb4", b"\x0f\xb5"))
        return self.prefix() + opcode + self.modrm(rng.randrange(8))

    def memory(self) -> bytes:
        rng = self.rng
        opcode = rng.choice(
            b"\x00\x01\x08\x29\x31\x88\x89\x8a\x8b\x86\x87\xfe\xff\x8f\xc6"
        )
        out = self.prefix() + bytes([opcode]) + self.modrm(rng.choice((0, 0, 6, 7, 1)))
        return out + (b"\x5a" if opcode == 0xC6 else b"")

    def odd_memory(self) -> bytes:
        """Wide, multiple and strange accesses."""
        rng = self.rng
        at = self.source.address()
        return rng.choice(
            (
                b"\x0f\xae" + bytes([5]) + self.i32(at & ~15),  # fxsave
                b"\x0f\xae" + bytes([0x0D]) + self.i32(at & ~15),  # fxrstor
                b"\xdd\x35" + self.i32(at),  # fnsave
                b"\xd9\x25" + self.i32(at),  # fldenv
                b"\x0f\xc7\x0d" + self.i32(at),  # cmpxchg8b
                b"\xf0\x0f\xb1\x0d" + self.i32(at),  # lock cmpxchg
                b"\x0f\xa3\x05" + self.i32(at),  # bt [m], eax
                b"\x0f\xab\x05" + self.i32(at),  # bts
                b"\x62\x05" + self.i32(at),  # bound
                b"\xc8\x10\x00" + bytes([rng.randrange(32)]),  # enter
                b"\x0f\xf7\xc8",  # maskmovq
                self.mov(4, at) + b"\x60",  # pusha
                self.mov(4, at) + b"\x61",  # popa
                self.mov(4, at) + b"\xe8\x00\x00\x00\x00",
                self.mov(4, at) + b"\x0f\x0b",
            )
        )

    def stack(self) -> bytes:
        return self.mov(4, self.source.address()) + self.rng.choice(
            (b"\x9c", b"\x50", b"")
        )

    def rewrite(self) -> bytes:
        """Write into the code that runs, by its own address or another's."""
        rng = self.rng
        at = (
            guests.CODE
            + rng.randrange(0x100)
            + rng.choice((0, 0, guests.ALIAS, 0xC0000000))
        )
        value = rng.choice((0x90, 0xCC, 0xF4, 0xFA, 0x9D, 0x0F, rng.getrandbits(8)))
        return b"\xc6\x05" + self.i32(at) + bytes([value])

    def push_pop(self) -> bytes:
        some = b"\x06\x0e\x16\x1e\x60\x61\x9c\x50\x58\xc9\xc3"
        return self.prefix() + bytes([self.rng.choice(some)])

    def interrupt(self) -> bytes:
        vector = self.rng.choice((3, 4, 0x80, 0x81, 0x82, 0x20, 8, 0xFF, 13, 14, 1))
        return self.rng.choice((bytes([0xCD, vector]), b"\xcc", b"\xce", b"\xf1"))

    def descriptor(self) -> bytes:
        """Rewrite a doubleword of a descriptor table or a TSS."""
        rng = self.rng
        table = rng.choice(
            (guests.GDT, guests.LDT, guests.IDT, guests.TSS, guests.TSS_B)
        )
        at = table + 4 * rng.randrange(48) + rng.choice((0, 0, guests.ALIAS))
        value = self.source.word()
        if rng.random() < 0.5:
            return b"\x81\x35" + self.i32(at) + self.i32(1 << rng.randrange(32))
        return b"\xc7\x05" + self.i32(at) + self.i32(value)

    def page_table(self) -> bytes:
        rng = self.rng
        table = rng.choice((guests.PD, guests.PT, guests.PT_B))
        entry = rng.choice((0, 1, 2, 3, 0x10, 0x11, 0x40, 0x50, 0x300, 0x3FF))
        at = table + 4 * entry
        out = b"\x81\x35" + self.i32(at) + self.i32(1 << rng.randrange(32))
        if rng.random() < 0.4:
            out = b"\xc7\x05" + self.i32(at) + self.i32(self.source.address() | 7)
        flush = b"\x0f\x01\x3d" + self.i32(entry << (22 if table == guests.PD else 12))
        return out + rng.choice((b"", flush, b"\x0f\x20\xd8\x0f\x22\xd8"))

    def fpu(self) -> bytes:
        rng = self.rng
        return bytes([rng.choice(b"\xd8\xd9\xda\xdb\xdc\xdd\xde\xdf")]) + self.modrm(
            rng.randrange(8)
        )

    def jump(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.7:
            return bytes([rng.choice(b"\xeb\xe2\x74\x75\x72\xe3"), rng.getrandbits(8)])
        return self.mov(0, self.source.address()) + b"\xff\xe0"

    def sensitive(self) -> bytes:
        rng = self.rng
        out = self.mov(0, self.source.selector())
        opcode = rng.choice(
            (0x02, 0x03, 0x05, 0x07, 0x34, 0x35, 0xAA, 0x0B, 0xFF, 0x01)
        )
        last = bytes([0xC0 | rng.getrandbits(6)])
        return out + self.prefix() + bytes([0x0F, opcode]) + last

    def noise(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(1, 6))


def _damage(rng: random.Random) -> list[tuple[int, bytes]]:
    """Spoil the tables: single bits, or whole stretches."""
    out = []
    for _ in range(rng.choice((1, 2, 4))):
        table = rng.choice(
            (guests.GDT, guests.IDT, guests.TSS, guests.PD, guests.PT, guests.LDT)
        )
        size = rng.choice((1, 1, 4, 8, 64, 0x1000))
        out.append((table + rng.randrange(0x100) // size * size, rng.randbytes(size)))
    return out


def _common(rng: random.Random, plan: Plan) -> Plan:
    plan.registers = Source(rng).registers()
    plan.skip = rng.choice((1, 1, 2, 3, 0))
    plan.cr4 = rng.choice((0, 0, 0x10, 0x90, 0x290))
    plan.large = bool(plan.cr4 & 0x10) and rng.random() < 0.5
    plan.flags = rng.choice((2, 2, 0x202, 0x102, 0x3202))
    plan.timer = rng.choice((0, 0, 0, 3, 40, 500))
    plan.filler = rng.choice((0xCC, 0xCC, 0xCC, 0xF4, 0x90, 0, 0x9D))
    plan.budget = rng.choice((100_000, 100_000, 200_000, 500_000))
    return plan


def flat(rng: random.Random) -> Plan:
    """Random bytes at ring 0, paging off, tables as they come."""
    code = rng.randbytes(rng.choice((8, 64, 512)))
    at = rng.choice((0x1000, 0x1FF0, 0x40000, 0x9F9E0))
    plan = Plan(code, kernel=False, at=at)
    plan.registers = {**Source(rng).registers(), "esp": Source(rng).address()}
    if rng.random() < 0.7:
        plan.ram = [(0, rng.randbytes(0x400)), (at & ~0xFFF, rng.randbytes(0x1000))]
    return plan


def ring0(rng: random.Random) -> Plan:
    """Random bytes at ring 0 of a sound kernel."""
    return _common(rng, Plan(rng.randbytes(256), paging=rng.random() < 0.7))


def damaged(rng: random.Random) -> Plan:
    """Random bytes at ring 0 and 3, with rubbish in the tables."""
    plan = Plan(rng.randbytes(256), ring=rng.choice((0, 3)), paging=rng.random() < 0.7)
    plan.damage = _damage(rng)
    return _common(rng, plan)


def ring3(rng: random.Random) -> Plan:
    """Random bytes at ring 3 of a sound kernel."""
    return _common(rng, Plan(rng.randbytes(256), ring=3, paging=True))


def mix(rng: random.Random) -> Plan:
    """Privileged and sensitive instructions with operands that matter, at ring 0."""
    code = Assembler(Source(rng)).program(rng.randrange(3, 20))
    at = guests.CODE if rng.random() < 0.8 else guests.CODE + 0xFF0
    plan = _common(rng, Plan(code, paging=rng.random() < 0.7, at=at))
    if rng.random() < 0.2:
        plan.damage = _damage(rng)
    return plan


def mix3(rng: random.Random) -> Plan:
    """The same at ring 3."""
    code = Assembler(Source(rng)).program(rng.randrange(3, 20))
    plan = _common(rng, Plan(code, ring=3, paging=rng.random() < 0.9))
    if rng.random() < 0.2:
        plan.damage = _damage(rng)
    return plan


def ports(rng: random.Random) -> Plan:
    """Rubbish to every port, any width, with interrupts on."""
    assembler = Assembler(Source(rng))
    some = (assembler.port_io,) * 6 + (assembler.strings,)
    code = b"".join(rng.choice(some)() for _ in range(rng.randrange(5, 40)))
    return _common(rng, Plan(b"\xfb" + code + b"\xf4\xeb\xfd", flags=0x202, limit=400))


# MOV SS, LSS of null and others; SYSCALL, SYSRET, SWAPGS, WRMSR; MOV to CR8; VEX; IRETQ
# and RETFQ, POPFQ; moves of the stack; SGDT to what is not canonical.
_LONG: Final = tuple(
    bytes.fromhex(code)
    for code in (
        "31c98ed1", "31c9488ed1", "b9010000008ed1", "0fb22425 00000500",
        "480fb22425 00000500", "b8100000008ed0", "8ec08ed88ee08ee8", "0f05", "0f07",
        "480f07", "0f01f8", "440f22c0", "440f20c0", "0f22d8", "0f20d8", "0f22e0",
        "c5f877", "c5f1efc2", "62f17c486fc0", "4889c4", "4831e4", "6a006a00489d48cf",
        "48cb", "6a00ff3425000005006a0048cf", "9c9d", "4c8b042500000500", "48ab",
        "48a30000050000000000", "f348a5", "480fc70c2500000500", "0f3001", "0f32",
        "b9800000c00f32", "b9020100c00f30", "b9010100c031d20f30", "488d0500000000",
        "ffe0", "48ffe0", "66ffe0", "66e90000", "f490", "fbf4", "0f011c2500000500",
        "0f01142500000500", "0f010c2500000500", "480f00c8", "4c0f02c0", "cd80", "cc",
    )
)  # fmt: skip


def _long_code(rng: random.Random) -> bytes:
    """Instructions of `Assembler`, some behind REX, and those that 64-bit code has."""
    assembler = Assembler(Source(rng))
    out = b""
    for _ in range(rng.randrange(3, 25)):
        if rng.random() < 0.5:
            out += rng.choice(_LONG)
            continue
        piece = rng.choice(assembler.kinds)()
        rex = bytes([rng.randrange(0x40, 0x50)]) if rng.random() < 0.4 else b""
        out += rex + piece
    return out


def _wide(rng: random.Random, code: bytes, mode: str, ring: int) -> Plan:
    plan = Plan(code, ring=ring, mode=mode, limit=rng.choice((3, 40)))
    names = x86.GPR_NAMES64 if mode == "long" else x86.GPR_NAMES
    source = Source(rng)
    for name in names[:4] + names[5:]:
        value = source.word()
        if mode == "long" and rng.random() < 0.4:
            value |= rng.choice((0xFFFFFFFF80000000, 0xFFFFFF8000000000, 1 << 47))
            value &= x86.MASK64
        plan.registers[name] = value
    plan.skip = rng.choice((1, 1, 2, 3))
    plan.flags = rng.choice((2, 2, 0x202, 0x102, 0x3202))
    plan.budget = rng.choice((100_000, 200_000))
    if rng.random() < 0.2:
        plan.damage = _damage(rng)
    return plan


def long(rng: random.Random) -> Plan:
    """64-bit code at every ring: random bytes, or instructions that matter."""
    code = rng.randbytes(256) if rng.random() < 0.3 else _long_code(rng)
    return _wide(rng, code, "long", rng.choice((0, 0, 0, 1, 2, 3, 3)))


def compatibility(rng: random.Random) -> Plan:
    """32-bit code under a kernel of 64 bits."""
    code = rng.randbytes(256)
    if rng.random() < 0.7:
        code = Assembler(Source(rng)).program(rng.randrange(3, 20))
    return _wide(rng, code, "compatibility", rng.choice((0, 3)))


KINDS: Final[dict[str, Callable[[random.Random], Plan]]] = {
    function.__name__: function
    for function in (
        flat,
        ring0,
        damaged,
        ring3,
        mix,
        mix3,
        ports,
        long,
        compatibility,
    )
}


def plan(kind: str, seed: int, technique: str = "patch") -> Plan:
    """Return the program that `kind` and `seed` name.

    technique: the VMM's, or "public" for the engine without its private state.
    """
    made = KINDS[kind](random.Random(f"{kind} {seed}"))
    made.public = technique == "public"
    if not made.public:
        made.technique = technique
    return made
