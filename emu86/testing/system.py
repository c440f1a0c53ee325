"""Hypothesis strategies: instructions of kernels, and those that tell a kernel's ring.

Each is of 32-bit code, or of 64-bit code if asked for.
"""

import struct

from hypothesis import strategies as st

from emu86.spec import x86
from emu86.testing import stage
from emu86.testing.encode import absolute, i32, mov, mov64, push
from emu86.testing.operands import (
    Code,
    addresses,
    encoded,
    flags,
    selectors,
    words,
)
from emu86.testing.tables import descriptors, page_table_entries, without_reserved


def _store(at: int, value: int, bits: int) -> bytes:
    """MOV of a doubleword to memory."""
    return b"\xc7" + absolute(0, at, bits) + i32(value)


def privileged(bits: int = 32) -> Code:
    """CLI, STI, HLT, MOV CR and DR, LGDT, LIDT, LLDT, LTR, LMSW, CLTS, INVLPG, INVD.

    RDMSR, WRMSR and RDPMC, too.
    """
    reg = st.integers(0, 7)
    table = st.builds(
        lambda op, limit, base, at: (
            b"\x66\xc7" + absolute(0, at, bits) + struct.pack("<H", limit)
            + _store(at + 2, base, bits)
            + (_store(at + 6, 0, bits) if bits == 64 else b"")
            + b"\x0f\x01" + absolute(op, at, bits)
        ),
        st.sampled_from((2, 3)), st.sampled_from((0xBF, 0x7FF, 0x7F, 0)),
        st.sampled_from((stage.GDT, stage.IDT, stage.LDT)), st.just(stage.DATA + 0x100),
    )  # fmt: skip
    cr0 = st.builds(
        lambda bit: b"\x0f\x20\xc0\x35" + i32(1 << bit) + b"\x0f\x22\xc0",
        st.sampled_from((1, 2, 3, 16, 18, 29, 30, 31)),
    )
    cr4 = st.builds(
        lambda value: mov(x86.EAX, value) + b"\x0f\x22\xe0",
        st.sampled_from(
            (0x10, 0x90, 0, 0x4, 0x200, 0x800)
            if bits == 32
            else (0x30, 0xB0, 0x20, 0x24, 0x220, 0x820, 0)
        ),
    )
    msrs = [0x17, 0x8B, 0, 0x1B, 0x174, 0x277, x86.MSR_EFER]
    more: tuple[Code, ...] = ()
    if bits == 64:
        msrs += [*range(x86.MSR_STAR, x86.MSR_FMASK + 1)]
        msrs += [x86.MSR_FS_BASE, x86.MSR_GS_BASE, x86.MSR_KERNEL_GS_BASE]
        bases = st.builds(
            lambda n, value: (
                mov(x86.ECX, n) + mov(x86.EAX, value) + mov(x86.EDX, value >> 32)
                + b"\x0f\x30"
            ),
            st.sampled_from((*msrs[-6:], 0x175)), addresses(64),
        )  # fmt: skip
        cr8 = st.sampled_from((b"\x44\x0f\x20\xc0", b"\x44\x0f\x22\xc0"))
        more = (bases, cr8, st.just(b"\x0f\x01\xf8"))  # SWAPGS
    return st.one_of(
        st.sampled_from((b"\xfa", b"\xfb", b"\x0f\x06", b"\x0f\x08", b"\x0f\x09")),
        st.just(b"\xfb\x90"), st.just(b"\xf4"),
        st.builds(lambda n, r: bytes([0x0F, 0x20, 0xC0 | n << 3 | r]),
                  st.sampled_from((0, 2, 3, 4)), reg),
        st.just(b"\x0f\x20\xd8\x0f\x22\xd8"),
        cr0, cr4, table,
        st.builds(lambda n, r: bytes([0x0F, 0x21, 0xC0 | n << 3 | r]),
                  st.sampled_from((0, 1, 3, 7)), reg),
        st.builds(lambda s, op: mov(x86.EAX, s) + bytes([0x0F, 0, 0xC0 | op << 3]),
                  selectors(bits), st.sampled_from((2, 3))),
        encoded(b"\x0f\x01", 7, memory=True, bits=bits),
        encoded(b"\x0f\x01", 6, bits=bits),
        st.builds(lambda n, r: bytes([0x0F, 0x23, 0xC0 | n << 3 | r]),
                  st.sampled_from((0, 1, 2, 3, 4, 6)), reg),
        st.builds(lambda r: bytes([0x0F, 0x22, 0xD0 | r]), reg),
        st.builds(
            lambda n, op: mov(x86.ECX, n) + op,
            st.sampled_from(msrs),
            st.sampled_from((b"\x0f\x32", b"\x0f\x30", b"\x0f\x33")),
        ),
        *more,
    )  # fmt: skip


def sensitive(bits: int = 32) -> Code:
    """POPF, PUSHF, SGDT, SIDT, SLDT, STR, SMSW, LAR, LSL, VERR, VERW, reads of Sreg."""
    reg = st.integers(0, 7)
    pushes = [b"\x0f\xa0", b"\x0f\xa8"]
    if bits == 32:
        pushes = [b"\x06", b"\x0e", b"\x16", b"\x1e", *pushes]
    return st.one_of(
        st.builds(lambda f, size: push(f) + size + b"\x9d", flags(),
                  st.sampled_from((b"", b"\x66"))),
        st.sampled_from((b"\x9c", b"\x66\x9c")),
        st.sampled_from((0, 1)).flatmap(
            lambda op: encoded(b"\x0f\x01", op, memory=True, bits=bits)
        ),
        encoded(b"\x0f\x01", 4, bits=bits),
        st.sampled_from((0, 1)).flatmap(
            lambda op: encoded(b"\x0f\x00", op, bits=bits)
        ),
        st.builds(lambda s, op: mov(x86.EAX, s) + bytes([0x0F, 0, 0xC0 | op << 3]),
                  selectors(bits), st.sampled_from((4, 5))),
        st.builds(lambda s, op, r: mov(x86.EAX, s) + bytes([0x0F, op, 0xC0 | r << 3]),
                  selectors(bits), st.sampled_from((2, 3)), reg),
        st.sampled_from((0, 1, 2, 3, 4, 5)).flatmap(
            lambda s: encoded(b"\x8c", s, bits=bits)
        ),
        st.sampled_from(pushes),
    )  # fmt: skip


def segment_loads(bits: int = 32) -> Code:
    """MOV and POP of segment registers, LES, LDS, LSS, LFS, LGS."""
    pops = [b"\x0f\xa1", b"\x0f\xa9"]
    far = [b"\x0f\xb2", b"\x0f\xb4", b"\x0f\xb5"]
    if bits == 32:
        pops = [b"\x07", b"\x1f", *pops, b"\x17"]
        far = [b"\xc4", b"\xc5", *far]
    else:
        far += [b"\x48" + load for load in far]  # m16:64
    selector = selectors(bits)

    def pointer(s: int, offset: int, op: bytes, r: int, at: int) -> bytes:
        wide = op[0] == 0x48
        stored = _store(at, offset, bits) + _store(at + 4 + 4 * wide, s, bits)
        return (
            stored
            + (_store(at + 4, 0, bits) if wide else b"")
            + op
            + absolute(r, at, bits)
        )

    return st.one_of(
        st.builds(lambda s, i: mov(x86.EAX, s) + bytes([0x8E, 0xC0 | i << 3]),
                  selector, st.sampled_from((0, 3, 4, 5, 2))),
        st.builds(lambda s, pop: push(s) + pop, selector, st.sampled_from(pops)),
        st.sampled_from(pops).map(lambda pop: b"\x66" + pop),
        st.sampled_from((0, 3, 4, 5)).flatmap(
            lambda s: encoded(b"\x8e", s, bits=bits)
        ),
        st.builds(
            pointer,
            selector, words(), st.sampled_from(far), st.sampled_from((0, 3, 6)),
            st.just(stage.DATA + 0x200),
        ),
    )  # fmt: skip


def transfers(bits: int = 32) -> Code:
    """JMP, CALL and RET far, IRET to both rings, INT n, INT3, INTO, UD2.

    In 64-bit code SYSCALL, SYSRET, SYSENTER and SYSEXIT, too.
    """
    to = st.integers(0, 0x80).map(lambda offset: stage.CODE + offset)
    common = (
        st.sampled_from((3, 4, 0x80, 0x82, 0x20, 13, 14, *(() if bits == 32 else (
            0x81, 0x85, 0x86
        )))).map(lambda vector: bytes([0xCD, vector])),
        st.sampled_from((b"\xcc", b"\xce", b"\x0f\x0b", b"\xf1")),
    )  # fmt: skip
    return st.one_of(*common, *(_transfers32(to) if bits == 32 else _transfers64(to)))


def _transfers32(to: st.SearchStrategy[int]) -> tuple[Code, ...]:
    iret0 = st.builds(
        lambda f, cs, eip: push(f) + push(cs) + push(eip) + b"\xcf",
        flags(), st.one_of(st.just(stage.CODE0), st.just(stage.CODE3), selectors()), to,
    )  # fmt: skip
    iret3 = st.builds(
        lambda f, cs, eip: (
            push(stage.DATA3) + push(stage.STACK3) + push(f) + push(cs) + push(eip)
            + b"\xcf"
        ),
        flags(), st.just(stage.CODE3), to,
    )  # fmt: skip
    return (
        st.builds(
            lambda eip, s, op: (
                _store(stage.DATA, eip, 32) + _store(stage.DATA + 4, s, 32)
                + op + i32(stage.DATA)
            ),
            to, selectors(), st.sampled_from((b"\xff\x1d", b"\xff\x2d")),
        ),
        st.builds(
            lambda values, op: b"".join(b"\x66\x68" + v for v in values) + op,
            st.tuples(
                st.just(b"\2\0"),
                selectors().map(lambda s: struct.pack("<H", s)),
                st.integers(0, 0xFFFF).map(lambda ip: struct.pack("<H", ip)),
            ),
            st.sampled_from((b"\x66\xcb", b"\x66\xcf")),
        ),
        st.builds(lambda op, eip, s: bytes([op]) + i32(eip) + struct.pack("<H", s),
                  st.sampled_from((0xEA, 0x9A)), to, selectors()),
        st.builds(lambda s, eip, op: push(s) + push(eip) + op, selectors(), to,
                  st.sampled_from((b"\xcb", b"\xca\x08\x00"))),
        iret0, iret3,
    )  # fmt: skip


def _transfers64(to: st.SearchStrategy[int]) -> tuple[Code, ...]:
    sysret = stage.SYSRET_CODE
    codes = st.one_of(
        st.sampled_from((stage.CODE0, stage.CODE3, stage.CODE32_0, stage.CODE32_3)),
        selectors(64),
    )
    stacks = st.one_of(st.sampled_from((stage.DATA3, stage.DATA0, 0)), selectors(64))
    rips = st.one_of(to, to, addresses(64))

    def iret(ss: int, rsp: int, image: int, cs: int, rip: int) -> bytes:
        frame = push(ss) + push(rsp) + push(image) + push(cs)
        return frame + mov64(x86.EAX, rip) + b"\x50\x48\xcf"

    def jump(rip: int, s: int, reg: int, wide: bool) -> bytes:
        code = _store(stage.DATA, rip, 64) + _store(stage.DATA + 4, s * (not wide), 64)
        if wide:
            code += _store(stage.DATA + 8, s, 64)
        return code + b"\x48" * wide + b"\xff" + absolute(reg, stage.DATA, 64)

    def back(s: int, rip: int, ss: int, op: bytes) -> bytes:
        frame = (ss, stage.STACK3, s)
        if op[0] == 0x48:
            pushed = b"".join(map(push, frame))
            return pushed + mov64(x86.EAX, rip) + b"\x50" + op
        # Two doublewords in each quadword that is pushed.
        return (
            mov64(x86.EAX, ss << 32 | stage.STACK3) + b"\x50"
            + mov64(x86.EAX, s << 32 | rip & x86.MASK32) + b"\x50" + op
        )  # fmt: skip

    return (
        st.builds(
            iret, stacks, st.sampled_from((stage.STACK3, stage.STACK0 - 0x100)),
            flags(), codes, rips,
        ),
        st.builds(jump, to, codes, st.sampled_from((3, 5)), st.booleans()),
        st.builds(
            back, codes, rips, stacks,
            st.sampled_from((b"\x48\xcb", b"\xcb", b"\x48\xca\x08\x00")),
        ),
        st.sampled_from((b"\x0f\x05", b"\x0f\x34")),
        st.builds(
            lambda rip, image, op: (
                mov64(x86.ECX, rip) + mov(x86.EBX, image) + b"\x49\x89\xdb" + op
            ),
            rips, flags(), st.sampled_from((b"\x48\x0f\x07", b"\x0f\x07")),
        ),
        st.builds(
            lambda rip, op: mov64(x86.EDX, rip) + mov(x86.ECX, stage.STACK3) + op,
            rips, st.sampled_from((b"\x48\x0f\x35", b"\x0f\x35")),
        ),
        # STAR for SYSRET as the stage has it, or any selectors
        st.builds(
            lambda user, kernel: (
                mov(x86.ECX, x86.MSR_STAR) + mov(x86.EAX, 0)
                + mov(x86.EDX, user << 16 | kernel) + b"\x0f\x30"
            ),
            st.one_of(st.just(sysret), selectors(64)),
            st.one_of(st.just(stage.CODE0), selectors(64)),
        ),
    )  # fmt: skip


def page_table_edits(bits: int = 32) -> Code:
    """An entry of a page table changed, and invalidated as the SDM asks."""
    places = [
        (stage.PT, stage.DATA >> 12), (stage.PT, 0x60), (stage.PT, 0x3F),
        (stage.PD, 1), (stage.PD, 3), (stage.PT, 0x9F),
    ]  # fmt: skip
    if bits == 64:
        places += [(stage.PD, 6), (stage.PDPT, 1), (stage.PML4, 1)]
    size, large = (8, 21) if bits == 64 else (4, 22)

    def edit(place: tuple[int, int], entry: int, whole: bool) -> bytes:
        table, index = place
        at = table + size * index
        if bits == 64:
            change = mov64(x86.EAX, entry) + b"\x48\x89" + absolute(x86.EAX, at, 64)
        else:
            entry = without_reserved(entry) if table == stage.PD else entry
            change = _store(at, entry, 32)
        if whole or table != stage.PT:
            return change + b"\x0f\x20\xd8\x0f\x22\xd8"
        linear = index << (12 if table == stage.PT else large)
        return change + b"\x0f\x01" + absolute(7, linear, bits)

    return st.builds(
        edit, st.sampled_from(places), page_table_entries(bits), st.booleans()
    )


def descriptor_edits(bits: int = 32) -> Code:
    """A descriptor of the GDT or LDT rewritten, by its own address or an alias."""
    return st.builds(
        lambda table, index, entry, alias: b"".join(
            b"\xc7"
            + absolute(0, table + 8 * index + alias + i, bits)
            + entry[i : i + 4]
            for i in (0, 4)
        ),
        st.sampled_from((stage.GDT, stage.LDT)),
        st.integers(13, 20),
        descriptors(),
        st.sampled_from((0, stage.ALIAS)),
    )


def timed(_bits: int = 32) -> Code:
    """Instructions that read the time or let interrupts in: for a State with a clock.

    RDTSC, the TSC by RDMSR and WRMSR, STI, CLI, HLT, loads of SS, loops.
    """
    stack = b"\x8c\xd0\x8e\xd0"  # mov eax, ss; mov ss, eax
    return st.one_of(
        st.sampled_from((b"\xfb", b"\xfa", b"\xfb\xf4", b"\xfb\xfb", stack, b"\xf4")),
        st.sampled_from((b"\x0f\x31", b"\x0f\x31\x50", b"\xb9\3\0\0\0\xe2\xfe")),
        st.sampled_from((b"\x0f\x30", b"\x0f\x32")).map(
            lambda move: mov(x86.ECX, x86.MSR_TSC) + move
        ),
    )


def breakpoints(bits: int = 32) -> Code:
    """Code that sets a breakpoint, reads the debug registers, or switches all off.

    The breakpoint is on code, data or (with CR4.DE) ports, local or global. A return
    with RF is among them.
    """
    load = mov64 if bits == 64 else mov
    set_ = st.builds(
        lambda number, at, kind, enable: (
            load(x86.EAX, at) + bytes([0x0F, 0x23, 0xC0 | number << 3])
            + mov(x86.EAX, enable << 2 * number | kind << 16 + 4 * number)
            + b"\x0f\x23\xf8"
        ),
        st.integers(0, 3),
        st.one_of(addresses(bits), st.integers(stage.CODE, stage.CODE + 0x40)),
        # R/W and LEN: code, a byte or four written, two or four touched.
        st.sampled_from((0, 1, 0xD, 7, 0xF)),
        st.sampled_from((2, 1)),
    )  # fmt: skip
    cr4 = x86.CR4_PAE if bits == 64 else 0
    ports_ = st.builds(
        lambda port: (
            mov(x86.EAX, x86.CR4_DE | cr4) + b"\x0f\x22\xe0"
            + mov(x86.EAX, port) + b"\x0f\x23\xc0"
            + mov(x86.EAX, 0x20002) + b"\x0f\x23\xf8"
        ),
        st.sampled_from((0x80, 0x21)),
    )  # fmt: skip
    # pushfd; or dword [esp], RF; push cs; call next; add dword [esp], 5; iretd
    resume = st.just(b"\x9c\x81\x0c\x24\0\0\1\0\x0e\xe8\0\0\0\0\x83\x04\x24\5\xcf")
    read = st.builds(
        lambda n, r: bytes([0x0F, 0x21, 0xC0 | n << 3 | r]),
        st.sampled_from((0, 1, 3, 6, 7)), st.integers(0, 7),
    )  # fmt: skip
    off = st.just(mov(x86.EAX, 0) + b"\x0f\x23\xf8")
    return st.one_of(read, off, set_, set_, resume if bits == 32 else off, ports_)
