"""Guests to throw rubbish at: small kernels from bytes, and what must hold of them.

A `Plan` says what the guest looks like; `build` places it in a machine. The tables are
sound unless `damage` names bytes to spoil. The program's code stands at CODE, which is
mapped at itself, at CODE + ALIAS, and (with its page's neighbours) to ring 3.
"""

import struct
from dataclasses import dataclass, field

import numpy as np

from emu86 import Machine, Stop, config
from emu86.cpu.library import Abilities
from emu86.mmu.ram import CODE as CODE_PAGE
from emu86.mmu.ram import DATA, MIXED, TABLE, UNBACKED
from emu86.mmu.vmm_memory import VmmMemory
from emu86.spec import x86
from emu86.testing import State, stage
from emu86.testing.image import ram_image

# Guest-physical layout, within the first 640 KiB.
IDT, GDT, LDT, TSS, TSS_B, TSS16 = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000, 0x14800
PD, PT, PT_B, HANDLERS, BOOT = 0x15000, 0x16000, 0x17000, 0x18000, 0x19000
STACK0, STACK3, COUNTER = 0x1F000, 0x2F000, 0x1C000
CODE = 0x40000
DATA_AT = 0x50000
ALIAS = 0x400000  # the second 4 MiB are the first again, if paging is on

CODE0, DATA0, CODE3, DATA3 = 0x08, 0x10, 0x1B, 0x23
TSS_SEL, TSS_B_SEL, TSS16_SEL, LDT_SEL = 0x28, 0x30, 0x38, 0x40
SELECTORS = (*range(0, 0xC0, 8), 0x04, 0x0C, 0x14, 0x1C, 0x1B, 0x23, 0x4B, 0x53, 0x91)

REASONS = frozenset(
    {
        "until", "poweroff", "halted", "reset", "triple fault", "debug exit",
        "unsupported", "timeout", "interrupted",
    }
)  # fmt: skip
GUARD = 20.0  # wall seconds after which a run has hung


@dataclass
class Plan:
    """One guest. flags: EFLAGS at the program's start; limit: faults before it ends."""

    code: bytes
    ring: int = 0
    paging: bool = False
    kernel: bool = True  # own GDT, IDT and TSS; else as the boot protocol leaves it
    mode: str = ""  # "long" or "compatibility": on the stage of `emu86.testing`
    at: int = CODE
    flags: int = 2
    cr4: int = 0
    large: bool = False  # the second PDE is a 4 MiB page instead
    timer: int = 0  # 8254 count of channel 0, or no timer
    limit: int = 40
    skip: int = 1  # bytes of code that the handlers skip
    memory: int = 2 << 20
    registers: dict[str, int] = field(default_factory=dict)
    damage: list[tuple[int, bytes]] = field(default_factory=list)
    ram: list[tuple[int, bytes]] = field(default_factory=list)
    technique: str = "patch"
    public: bool = False  # use Unicorn's public interface alone
    filler: int = 0xCC  # what RAM holds elsewhere: INT3, so that a lost program ends
    budget: int = 200_000  # virtual ns


def descriptor(base: int, limit: int, access: int, flags: int = 0xC) -> bytes:
    low = limit & 0xFFFF | (base & 0xFFFF) << 16
    high = base >> 16 & 0xFF | access << 8 | limit & 0xF0000 | flags << 20
    return struct.pack("<II", low, high | base & 0xFF000000)


def gate(selector: int, offset: int, kind: int, dpl: int = 0) -> bytes:
    high = offset & 0xFFFF0000 | 0x8000 | dpl << 13 | kind << 8
    return struct.pack("<II", selector << 16 | offset & 0xFFFF, high)


def _gdt() -> bytes:
    entries = [
        bytes(8),
        descriptor(0, 0xFFFFF, 0x9A),
        descriptor(0, 0xFFFFF, 0x92),
        descriptor(0, 0xFFFFF, 0xFA),
        descriptor(0, 0xFFFFF, 0xF2),
        descriptor(TSS, 0x2067, 0x89, 0),
        descriptor(TSS_B, 0x67, 0xE9, 0),
        descriptor(TSS16, 0x2B, 0xE1, 0),
        descriptor(LDT, 0xFF, 0x82, 0),
        descriptor(0, 0xFFFFF, 0xBA),  # ring 1
        descriptor(0, 0xFFFFF, 0xB2),
        descriptor(0, 0xFFFFF, 0xDA),  # ring 2
        descriptor(0, 0xFFFFF, 0xD2),
        descriptor(CODE, 0xFFFF, 0x9A, 0),  # 16 bits
        descriptor(DATA_AT, 0xFFFF, 0x92, 0),
        descriptor(0, 0xFFFFF, 0x9E),  # conforming
        descriptor(0, 0xFFFFF, 0x1A),  # not present
        descriptor(0, 0xFFFFF, 0x98),  # execute only, not accessed
        descriptor(0xC0000000, 0xFFFFF, 0x9B),  # bases that wrap
        descriptor(0xFFFFF000, 0xFFFFF, 0x93),
        gate(CODE0, HANDLERS, 0x0C, 3) [:4] + struct.pack("<I", 0xEC02),
        gate(0x6B, CODE, 0x04, 3),
        gate(TSS_B_SEL, 0, 0x05, 3),
        descriptor(0, 0xFFFFF, 0xFE),  # conforming, ring 3
    ]  # fmt: skip
    return b"".join(entries)


def _handlers(plan: Plan) -> tuple[bytes, int, int, int]:
    """Return the handlers' code and where three start: plain, with error, interrupt.

    The first two count, end the run after `limit` faults, else skip some code and
    return.
    """
    tail = b"\x36\xff\x05" + struct.pack("<I", COUNTER)  # inc dword [ss:COUNTER]
    tail += b"\x36\x81\x3d" + struct.pack("<II", COUNTER, plan.limit)  # cmp
    tail += b"\x72\x02\xfa\xf4"  # jb +2; cli; hlt
    tail += b"\x36\x83\x04\x24" + bytes([plan.skip])  # add dword [ss:esp], skip
    tail += b"\xcf"
    error = b"\x83\xc4\x04" + tail  # add esp, 4
    irq = b"\x50\xb0\x20\xe6\x20\x58\xcf"  # push eax; out 20h, 20h; pop eax; iret
    code = tail + error + irq
    return code, HANDLERS, HANDLERS + len(tail), HANDLERS + len(tail) + len(error)


def _idt(plain: int, error: int, irq: int) -> bytes:
    pushes = x86.PUSHES_ERROR
    table = b""
    for vector in range(256):
        if 0x20 <= vector < 0x30:
            table += gate(CODE0, irq, 0x0E)
        elif vector == 0x81:
            table += gate(TSS_B_SEL, 0, 0x05, 3)
        elif vector == 0x82:
            table += gate(CODE0, HANDLERS & 0xFFFF, 0x06, 3)
        else:
            start = error if vector in pushes else plain
            kind = 0x0E if vector & 1 else 0x0F
            table += gate(CODE0, start, kind, 3 if vector >= 0x60 or vector == 3 else 0)
    return table


def _tss(cr3: int) -> bytes:
    fields = [0, STACK0, DATA0, STACK0 - 0x800, 0x51, STACK0 - 0xC00, 0x62, cr3]
    fields += [HANDLERS, 2, 0, 0, 0, 0, STACK0 - 0x400, 0, 0, 0]
    fields += [DATA0, CODE0, DATA0, DATA0, DATA0, DATA0, 0, 0x68 << 16]
    return struct.pack("<26I", *fields)


def _tss16() -> bytes:
    fields = [0, 0xF000, 0x70, 0, 0, 0, 0, 0x100, 2, 0, 0, 0, 0, 0xE000, 0, 0, 0]
    return struct.pack("<22H", *fields, 0x70, 0x68, 0x70, 0x70, 0)


def _page_tables(plan: Plan) -> None:
    user = x86.PTE_P | x86.PTE_RW | x86.PTE_US
    pages = plan.memory >> 12
    table = [i << 12 | user if i < pages + 4 else 0 for i in range(1024)]
    for page in (0, *range(IDT >> 12, BOOT + 0x1000 >> 12)):
        table[page] &= ~x86.PTE_US
    table[0x3F] &= ~x86.PTE_RW
    directory = [0] * 1024
    directory[0] = PT | user
    directory[1] = 0 | user | x86.PDE_PS if plan.large else PT | user
    directory[2] = 0xFEC00000 | user | x86.PDE_PS | x86.PTE_G
    directory[3] = PT_B | user
    directory[0x300] = PT | user | x86.PTE_G
    directory[0x3FF] = PD | user
    directory[0x3FE] = 0x80000000 | user  # a page table where no RAM is
    other = [(i * 7 % pages) << 12 | user | (i & 2) | (i & 0x100) for i in range(1024)]
    for at, entries in ((PD, directory), (PT, table), (PT_B, other)):
        plan.ram.append((at, struct.pack("<1024I", *entries)))


def _mov(register: int, value: int) -> bytes:
    return bytes([0xB8 + register]) + struct.pack("<I", value & x86.MASK32)


def _boot(plan: Plan) -> bytes:
    """Return the code that switches to the tables and then to the program."""
    place = struct.pack
    out = b"\x0f\x01\x15" + place("<I", BOOT + 0xF00)  # lgdt
    jump = BOOT + len(out) + 7
    out += b"\xea" + place("<IH", jump, CODE0)
    out += _mov(x86.EAX, DATA0) + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8\x8e\xd0"
    out += _mov(x86.ESP, STACK0)
    out += b"\x0f\x01\x1d" + place("<I", BOOT + 0xF08)  # lidt
    out += _mov(x86.EAX, TSS_SEL) + b"\x0f\x00\xd8"
    out += _mov(x86.EAX, LDT_SEL) + b"\x0f\x00\xd0"
    if plan.timer:
        for port, value in (
            (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE),
            (0x43, 0x34), (0x40, plan.timer & 0xFF), (0x40, plan.timer >> 8),
        ):  # fmt: skip
            out += bytes([0xB0, value, 0xE6, port])
    if plan.cr4:
        out += _mov(x86.EAX, plan.cr4) + b"\x0f\x22\xe0"
    if plan.paging:
        out += _mov(x86.EAX, PD) + b"\x0f\x22\xd8\x0f\x20\xc0\x0d\x00\x00\x00\x80"
        out += b"\x0f\x22\xc0"
    frame = [plan.flags, CODE3 if plan.ring else CODE0, plan.at]
    if plan.ring:
        frame = [DATA3, STACK3, *frame]
    for value in frame:
        out += b"\x68" + place("<I", value)
    if plan.ring:
        out += _mov(x86.EAX, DATA3) + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8"
    for i, name in enumerate(x86.GPR_NAMES):
        if i != x86.ESP:
            out += _mov(i, plan.registers.get(name, 0))
    out += b"\xcf"
    assert len(out) < 0xF00
    return out


def _stage(machine: Machine, plan: Plan) -> Machine:
    """Put the program on the stage of IA-32e mode."""
    state = State(
        mode=plan.mode, ring=plan.ring, flags=plan.flags, registers=plan.registers,
        skip=plan.skip, limit=plan.limit, large=plan.large,
    )  # fmt: skip
    image = bytearray(ram_image(plan.code, state))
    for at, data in plan.damage:
        image[at : at + len(data)] = data
    machine.write_physical(0, bytes(image))
    machine.load_flat(bytes(image[stage.BOOT : stage.BOOT + 0xF00]), stage.BOOT)
    return machine


def build(plan: Plan) -> Machine:
    """Return a machine with the guest loaded."""
    machine = Machine(
        memory=plan.memory,
        cpu="atom" if plan.mode else config.CPU,
        technique=plan.technique,
        debug_exit=True,
        abilities=Abilities.none() if plan.public else None,
    )
    if plan.filler:
        machine.write_physical(0, bytes([plan.filler]) * 0xA0000)
        machine.write_physical(
            0x100000, bytes([plan.filler]) * (plan.memory - 0x100000)
        )
    if plan.mode:
        return _stage(machine, plan)
    if not plan.kernel:
        for at, data in plan.ram:
            machine.write_physical(at, data)
        machine.load_flat(plan.code, plan.at)
        for name, value in plan.registers.items():
            machine.set_register(name, value)
        return machine
    handlers, plain, error, irq = _handlers(plan)
    boot = _boot(plan)
    parts = [
        (GDT, _gdt()),
        (LDT, _gdt()),
        (IDT, _idt(plain, error, irq)),
        (TSS, _tss(PD)),
        (TSS_B, _tss(PD)),
        (TSS16, _tss16()),
        (HANDLERS, handlers),
        (BOOT + 0xF00, struct.pack("<HI", len(_gdt()) - 1, GDT)),
        (BOOT + 0xF08, struct.pack("<HI", 0x7FF, IDT)),
        (plan.at, plan.code),
        (COUNTER, bytes(4)),
    ]
    if plan.paging:
        _page_tables(plan)
    for at, data in (*parts, *plan.ram, *plan.damage):
        if at < plan.memory:
            machine.write_physical(at, data[: plan.memory - at])
    machine.load_flat(boot, BOOT)
    return machine


class _Watch:
    """A device whose only deadline ends the run: a budget of virtual time."""

    def __init__(self, machine: Machine, budget: int) -> None:
        self.machine = machine
        self.due: int | None = machine.now + budget

    def deadline(self) -> int | None:
        return self.due

    def advance(self, now: int) -> None:
        if self.due is not None and now >= self.due:
            self.due = None
            self.machine.stop()


def run(machine: Machine, budget: int) -> Stop:
    """Run for `budget` virtual nanoseconds at most; check that all is sound after."""
    machine.board.timed += (_Watch(machine, budget),)
    machine.board.schedule()
    fixed = _fixed(machine)
    stop = machine.run(timeout=GUARD)
    assert stop.reason in REASONS, stop
    assert stop.reason != "timeout", "hung"
    assert _fixed(machine) == fixed, "the VMM's fixed pages have changed"
    check(machine)
    return stop


def _fixed(machine: Machine) -> bytes:
    """Return the VMM's pages that nobody writes after the start."""
    pages = [*range(8), *range(12, 16), *range(48, 64)]
    memory = machine.vmm.mmu.vmm_memory.bytes
    return b"".join(bytes(memory[p << 12 : p + 1 << 12]) for p in pages)


def check(machine: Machine) -> None:
    """Check what must hold of the machine between two runs."""
    vmm = machine.vmm
    own, ram = vmm.mmu.vmm_memory, vmm.memory.ram
    assert bytes(own.bytes[:4096]) == b"\xff" * 4096, "the page of ones"
    hole = bytes(ram.bytes[0xC0000 : min(0xFF000, ram.size)])
    assert hole.count(0xFF) == len(hole), "the adapter hole was written"
    _check_descriptors(own, long=bool(vmm.vcpu.efer & x86.EFER_LMA))
    _check_shadow(machine)
    assert machine.now >= 0
    level = vmm.d[44] & 3
    assert level, "the guest runs at CPL 0"


def _check_descriptors(own: VmmMemory, *, long: bool) -> None:
    """Shadow descriptors are code or data, of DPL 1 or 3, and of 64 bits if long."""
    entries = np.frombuffer(own.sptes, np.uint64)
    entries = entries[VmmMemory.GDT * 512 : (VmmMemory.LDT + 16) * 512]
    high = (entries[entries != 0] >> np.uint64(32)).astype(np.uint32)
    need = x86.DESC_P | x86.DESC_S | 1 << x86.DESC_DPL_SHIFT
    assert (high & need == need).all(), "a shadow descriptor of DPL 0 or 2"
    assert long or not (high & x86.DESC_L).any(), "a 64-bit shadow descriptor"


def _check_shadow(machine: Machine) -> None:
    """Shadow entries reach guest RAM alone, and respect each page's use."""
    vmm = machine.vmm
    mmu, own = vmm.mmu, vmm.mmu.vmm_memory
    ram = mmu.ram
    sptes = np.frombuffer(own.sptes, np.uint64)
    first = VmmMemory.hpa(0)
    pool = (VmmMemory.hpa(VmmMemory.POOL), VmmMemory.hpa(VmmMemory.PAGES))
    long = vmm.vcpu.efer & x86.EFER_LMA
    for root in () if long else mmu.roots.values():
        page = root.hpa - first >> 12
        pml4 = sptes[page * 512 : page * 512 + 512]
        used = set(np.flatnonzero(pml4).tolist())
        assert used == {0, VmmMemory.PML4_SLOT}, used
        directory = sptes[root.pdes : root.pdes + 2048]
        links = directory[directory != 0] & np.uint64(0xFFFFFFFFFF000)
        assert ((links >= pool[0]) & (links < pool[1])).all(), "a link out of the pool"
    windows = (
        VmmMemory.hpa(VmmMemory.WINDOWS.start),
        VmmMemory.hpa(VmmMemory.WINDOWS.stop),
    )
    state = np.frombuffer(bytes(ram.state), np.uint8)
    mixed: list[int] = []
    for table in mmu.leaves.values():
        entries = sptes[table.base : table.base + table.size]
        entries = entries[entries & np.uint64(1) != 0]
        address = entries & np.uint64(0xFFFFFFFFFF000)
        write = entries & np.uint64(x86.PTE_RW) != 0
        ones = address == VmmMemory.hpa(VmmMemory.ONES)
        assert not (write & ones).any(), "the page of ones is writable"
        window = (address >= windows[0]) & (address < windows[1])
        assert vmm.mmio_step.active or not window.any(), "a window is left open"
        real = ~ones & ~window
        frames = (address[real] >> np.uint64(12)).astype(np.int64)
        assert (frames < ram.pages).all(), "a mapping outside of RAM"
        uses = state[frames]
        assert (uses != UNBACKED).all(), "a mapping of the adapter hole"
        run = entries[real] & np.uint64(x86.PTE_NX) == 0
        write = write[real]
        assert not (write & run & (uses != MIXED)).any(), "writable and executable"
        assert not (write & ((uses == CODE_PAGE) | (uses == TABLE))).any(), "writable"
        assert not (run & ((uses == DATA) | (uses == TABLE))).any(), "executable"
        mixed += frames[(uses == MIXED) & (write | run)].tolist()
    if not vmm.mmio_step.active:
        assert len(mixed) == len(set(mixed)), "a mixed page has two mappings"
