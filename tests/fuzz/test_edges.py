"""Guests at the edges of what a CPU takes: each comes to its end, or to its budget."""

import struct
import time

import pytest

from emu86 import Machine
from support.fuzz.guests import CODE, IDT, Plan, build, run

pytestmark = pytest.mark.not_quick

PAGED = {"paging": True}
FLAT = {"paging": False}


def end(code, budget=5_000_000, **plan):
    """Run bytes of code at ring 0 of a sound kernel; return the machine and why it
    stopped."""
    machine = build(Plan(bytes.fromhex(code), **plan))
    return machine, run(machine, budget)


@pytest.mark.parametrize("target", [0xA0000, 0xFFFFE, 0x200000, 0x80000000])
def test_a_jump_into_nothing_is_undefined_ones(target):
    machine = Machine(memory=2 << 20)
    machine.load_flat(b"\xb8" + struct.pack("<I", target) + b"\xff\xe0", 0x1000)
    assert run(machine, 5_000_000).reason == "triple fault"  # #UD without an IDT


def test_code_in_nothing_may_use_its_own_page():
    """FFh at FFFFFFFFh and 00h at 0 are INC [EAX]: fetch and data in one page."""
    machine = Machine(memory=2 << 20)
    machine.load_flat(bytes.fromhex("b8ffffffff ffe0"), 0x1000)
    machine.write_physical(0, bytes(0x1000))  # what a BIOS has left
    assert run(machine, 5_000_000).reason == "interrupted"
    assert machine.read_physical(0, 4) == b"\x01\0\0\0"


def test_a_jump_into_nothing_with_a_kernel_is_its_fault_to_count():
    # mov eax, 80000000h; jmp eax
    assert end("b800000080 ffe0", **PAGED)[1].reason == "halted"


def test_a_triple_fault_ends_the_run():
    # lidt [x]; int3; x: dw 0; dd 0
    assert end("0f011d08000400 cc 000000000000")[1].reason == "triple fault"


@pytest.mark.parametrize(
    "code",
    [
        "fa ebfe",  # cli; jmp $
        "fa fa ebfc",  # cli; l: cli; jmp l       (an exit each time)
        "fa 0fa2 ebfc",  # cli; l: cpuid; jmp l
        "fa e410 ebfc",  # cli; l: in al, 10h; jmp l
        "fa b9ffffffff bf00000500 f3aa ebf2",  # rep stosb over 4 GiB
    ],
)
def test_a_spin_with_interrupts_off_is_ended_by_the_timeout(code):
    machine = build(Plan(bytes.fromhex(code)))
    start = time.monotonic()
    assert machine.run(timeout=0.2).reason == "timeout"
    assert time.monotonic() - start < 10


def test_a_spin_is_ended_by_stop():
    machine, stop = end("fa ebfe", budget=1_000_000)
    assert stop.reason == "interrupted"
    assert 1_000_000 <= machine.now < 1_100_000


def test_hlt_with_interrupts_off_is_the_end():
    stop = end("fa f4")[1]
    assert stop.reason == "halted"
    assert "interrupts off" in stop.detail


def test_hlt_waiting_for_nothing_is_the_end():
    machine = Machine(memory=2 << 20)
    # mov al, 1; out 21h, al (the timer is masked); sti; hlt
    machine.load_flat(bytes.fromhex("b001 e621 fb f4"), 0x1000)
    assert machine.run(timeout=120).reason == "halted"


def test_a_handler_that_cannot_be_fetched_retires_nothing_but_time():
    """#PF enters at a page that is not mapped; its frames never run out of stack."""
    machine = Machine(memory=2 << 20)
    user = 7
    directory = [0x5000 | user, *[0x6000 | user] * 1022, 0]  # the last 4 MiB: nothing
    code = (
        "0f011d00200000"  # lidt [2000h]
        "b800400000 0f22d8"  # mov eax, 4000h; mov cr3, eax
        "0f20c0 0d00000080 0f22c0"  # mov eax, cr0; or eax, 80000000h; mov cr0, eax
        "bc00000080"  # mov esp, 80000000h
        "a10000c0ff"  # mov eax, [FFC00000h]
    )
    gate = struct.pack("<II", 0x100000, 0xFFC08E00)
    for at, data in (
        (0x2000, struct.pack("<HI", 0x7FF, 0x3000)),
        (0x3000 + 14 * 8, gate),
        (0x4000, struct.pack("<1024I", *directory)),
        (0x5000, struct.pack("<1024I", *[i << 12 | user for i in range(1024)])),
        (0x6000, struct.pack("<1024I", *[0x9000 | user] * 1024)),
    ):
        machine.write_physical(at, data)
    machine.load_flat(bytes.fromhex(code), 0x1000)
    cs = machine.registers["cs"]
    machine.write_physical(0x3000 + 14 * 8 + 2, struct.pack("<H", cs))
    machine.write_physical(0x1000, bytes.fromhex(code))
    assert machine.registers["cs_base"] == 0
    assert run(machine, 3_000_000).reason in ("interrupted", "triple fault")


@pytest.mark.parametrize("cr4", [0, 0x10])
@pytest.mark.parametrize("cr3", [0xFFFFF000, 0x80000000, 0xA0000, 0x200000, 0x1FF000])
def test_a_page_directory_where_no_ram_is(cr3, cr4):
    # mov eax, cr3; mov cr3, eax; nop; hlt
    code = "b8" + struct.pack("<I", cr3).hex() + "0f22d8 90 f4"
    assert end(code, cr4=cr4, **PAGED)[1].reason in ("triple fault", "halted")


@pytest.mark.parametrize("table", [0x80000000, 0xA0000, 0x200000, 0xFFFFF000])
def test_a_page_table_where_no_ram_is(table):
    # mov dword [15000h], table + 7; mov eax, cr3; mov cr3, eax; nop; hlt
    code = "c70500500100" + struct.pack("<I", table | 7).hex() + "0f20d8 0f22d8 90 f4"
    assert end(code, **PAGED)[1].reason in ("triple fault", "halted")


@pytest.mark.parametrize("paging", [False, True])
@pytest.mark.parametrize("base", [0xFFFFFFF8, 0xFFFFFFFF, 0xA0000, 0x80000000])
@pytest.mark.parametrize("opcode", ["15", "1d"])  # LGDT, LIDT
def test_descriptor_tables_where_no_ram_is(opcode, base, paging):
    # lgdt/lidt [x]; mov eax, 8; mov ds, eax; int3; hlt; x: dw FFFFh; dd base
    code = f"0f01{opcode}10000400 b808000000 8ed8 cc f4" + "ffff"
    code += struct.pack("<I", base).hex()
    stop = end(code, paging=paging)[1]
    assert stop.reason in ("triple fault", "halted")


@pytest.mark.parametrize("paging", [False, True])
def test_the_stack_wraps_around(paging):
    # mov esp, 2; push eax; push eax; push eax; pop eax; cli; hlt
    _, stop = end("bc02000000 50 50 50 58 fa f4", paging=paging)
    assert stop.reason in ("halted", "triple fault", "unsupported")


def test_the_trap_flag_all_the_time():
    # push 302h; popf; l: cli; sti; pushf; popf; cpuid; in al, 20h; inc eax; jmp l
    code = "6802030000 9d fa fb 9c 9d 0fa2 e420 40 ebf5"
    machine, stop = end(code, budget=500_000, skip=0, limit=1000)
    assert stop.reason in ("interrupted", "halted")
    assert machine.stats.to_dict()["exits"]["#DB"]["count"] > 20


_STORES = [
    "b988130000 bf00000080 be00000400 f3a5",  # rep movsd to 80000000h
    "b910000000 bff8ff0900 f3ab",  # rep stosd over 9FFF8h
    "bc10000080 60 61",  # mov esp, 80000010h; pusha; popa
    "bc02000a00 60 61",  # the same over A0000h
    "0fae0500000080 0fae0d00000080",  # fxsave, fxrstor [80000000h]
    "0fae05f0ff0900",  # fxsave [9FFF0h]
    "8705fe0f0080 8705feff0900 8705ffffffff",  # xchg eax, [m], three times
    "f00fc70dfcff0900",  # lock cmpxchg8b [9FFFCh]
    "dd35f0ff0900 dd25f0ff0900",  # fnsave, frstor [9FFF0h]
    "0f7f05fcff0900",  # movq [9FFFCh], mm0
    "bc00010a00 c864001f",  # mov esp, A0100h; enter 100, 31
    "bffeff0900 66ba2000 b90a000000 f36d",  # rep insd to 9FFFEh
    "0f0105feff0900 0f010dfeffff9f",  # sgdt [9FFFEh]; sidt [9FFFFFFEh]
    "0fab05fcff0900",  # bts [9FFFCh], eax
    "bc00010a00 cd80",  # mov esp, A0100h; int 80h
    "bffeff1f00 ab ab",  # stosd over the end of RAM
    "b8ffffffff ff0485ffffffff",  # inc dword [eax*4 - 1]
]


@pytest.mark.parametrize("code", _STORES)
@pytest.mark.parametrize("paging", [False, True])
def test_stores_to_what_is_no_ram(code, paging):
    machine, stop = end(code + "fa f4", budget=3_000_000, paging=paging)
    assert stop.reason in ("halted", "interrupted", "triple fault", "unsupported")
    for start, end_ in ((0xA0000, 0xB8000), (0xC0000, 0xFF000)):
        assert machine.read_physical(start, end_ - start).count(0xFF) == end_ - start


def test_every_port_takes_every_width():
    # l: in al,dx; in eax,dx; in ax,dx; out dx,al; out dx,eax; out dx,ax; inc dx; jnz l
    loop = "ec ed 66ed ee ef 66ef 6642 75f4"
    for eax in (0, 0xFFFFFFFF, 0x12345678):
        _, stop = end(
            "ba00000000" + loop + "fa f4", budget=2_000_000_000, registers={"eax": eax}
        )
        assert stop.reason in ("halted", "reset", "poweroff", "debug exit")


def test_a_timer_faster_than_its_handler_lets_the_guest_get_on():
    # sti; l: inc dword [50000h]; jmp l
    machine, stop = end("fb ff0500000500 ebf8", timer=3, ram=[(0x50000, bytes(4))])
    assert stop.reason == "interrupted"
    assert int.from_bytes(machine.read_physical(0x50000, 4), "little") > 0


def test_one_page_mapped_a_million_times_is_flushed_at_once():
    """Every PDE is one table, every PTE of it one page, which is run and written."""
    user = 7
    code = (
        "b800000600 0f22d8"  # mov eax, 60000h; mov cr3, eax
        "be00004000"  # mov esi, 400000h
        "8a06 81c600104000 73f6"  # l: mov al, [esi]; add esi, 401000h; jnc l
        "b964000000"  # mov ecx, 100
        "c60500004000c3"  # m: mov byte [400000h], C3h
        "b800108000 ffd0 e2f0"  # mov eax, 801000h; call eax; loop m
        "fa f4"
    )
    tables = [
        (0x60000, struct.pack("<1024I", 0x16000 | user, *[0x61000 | user] * 1023)),
        (0x61000, struct.pack("<1024I", *[0x62000 | user] * 1024)),
    ]
    machine, stop = end(code, ram=tables, budget=20_000_000, **PAGED)
    assert stop.reason == "halted"
    assert machine.registers["ecx"] == 0


def test_more_page_directories_than_the_pool_has_room_for():
    """3,072 roots, each used for a store that is emulated step by step."""
    code = (
        "bb00004000"  # mov ebx, 400000h
        "be00500100 89df b900040000 f3a5"  # a: mov esi, PD; mov edi, ebx; copy it
        "81c300100000 81fb00000001 72e4"  # next, until 1000000h; jb a
        "bb00004000"  # mov ebx, 400000h
        "0f22db ff83f00f0000 a300000a00"  # c: mov cr3; inc [ebx+FF0h]; mov
        "81c300100000 81fb00000001 72e4"  # jb c
        "fa f4"
    )
    entries = [i << 22 | 0x87 for i in range(1, 4)]
    damage = [(0x15004, struct.pack("<3I", *entries))]
    machine, stop = end(
        code, memory=16 << 20, cr4=0x10, damage=damage, budget=200_000_000, **PAGED
    )
    assert stop.reason == "halted"
    assert machine.vmm.mmu.stats.resets > 3


def test_a_gate_of_every_type_and_privilege():
    for kind in range(32):
        for dpl in (0, 3):
            low = struct.pack("<II", 0x80000 | 0x8000, 0x18000 | dpl << 13 | kind << 8)
            damage = [(IDT + 8 * 0x90, low)]
            for ring in (0, 3):
                _, stop = end("cd90 faf4", 300_000, ring=ring, damage=damage)
                assert stop.reason in ("halted", "triple fault", "unsupported")


def test_the_program_is_where_it_should_be():
    machine, _ = end("fa f4", **PAGED)
    assert machine.read_virtual(CODE, 2) == b"\xfa\xf4"
