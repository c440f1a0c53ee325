"""Programs that once hung or crashed emu86, shrunk, and what must come of them now."""

import struct
import time

import pytest

from emu86 import Machine
from support.fuzz import programs
from support.fuzz.guests import CODE, DATA3, PD, PT, Plan, build, check, descriptor, run

LARGE = {"paging": True, "cr4": 0x10, "large": True}  # 400000h on is 0 on again


def end(code, budget=5_000_000, **plan):
    machine = build(Plan(bytes.fromhex(code), **plan))
    return machine, run(machine, budget)


def flat(code, at=0x1000, memory=2 << 20):
    machine = Machine(memory=memory)
    machine.load_flat(bytes.fromhex(code), at)
    return machine


def test_a_loop_of_exits_comes_to_the_timeout():
    """160 s for a timeout of 2 s: an exit took no virtual time, and a slice is that."""
    machine = flat("fa fa ebfc")  # cli; l: cli; jmp l
    start = time.monotonic()
    assert machine.run(timeout=0.1).reason == "timeout"
    assert time.monotonic() - start < 10


def test_a_stop_asked_before_the_run_is_not_lost():
    machine = flat("ebfe")
    machine.stop()
    assert machine.run(timeout=120).reason == "interrupted"
    assert machine.now == 0


def test_the_first_block_is_patched():
    """The engine told of no block before one had ended: SMSW ran natively."""
    machine = flat("b844332211 0f01e0 fa f4")  # mov eax, 11223344h; smsw eax; cli; hlt
    assert run(machine, 1_000_000).reason == "halted"
    assert machine.registers["eax"] == machine.registers["cr0"]


@pytest.mark.parametrize(
    "code",
    [
        "a1feffffff",  # mov eax, [FFFFFFFEh]
        "c705feffffff11223344",  # mov dword [FFFFFFFEh], 44332211h
        "bc02000000 50",  # mov esp, 2; push eax
    ],
)
def test_an_access_over_the_end_of_4_gib_goes_on_at_0(code):
    """The engine's address 1_0000_0000h was filled at 0, and missed again for ever."""
    assert run(flat(code + "fa f4"), 1_000_000).reason == "halted"


def test_code_over_the_end_of_4_gib_goes_on_at_0():
    """RIP went on at 1_0000_0000h: no frame could take it."""
    # mov eax, FFFFFFFFh; jmp eax; the byte there is FFh, then C0h: inc eax; cli; hlt
    machine = flat("b8ffffffff ffe0")
    machine.write_physical(0, bytes.fromhex("c0 fa f4"))
    assert run(machine, 1_000_000).reason == "halted"
    assert machine.registers["eax"] == 0
    assert machine.registers["eip"] == 3


def test_a_segment_base_and_an_offset_that_wrap():
    # lgdt [5100h]; jmp 18h:40002000h, whose base is C0000000h
    machine = flat("0f011500510000 ea002000401800")
    gdt = bytes(8) + descriptor(0, 0xFFFFF, 0x9A) + descriptor(0, 0xFFFFF, 0x92)
    machine.write_physical(0x5000, gdt + descriptor(0xC0000000, 0xFFFFF, 0x9A))
    machine.write_physical(0x5100, struct.pack("<HI", 31, 0x5000))
    machine.write_physical(0x2000, bytes.fromhex("0f01e0 fa f4"))  # smsw eax; cli; hlt
    assert run(machine, 1_000_000).reason == "halted"
    assert machine.registers["eip"] == 0x40002005
    assert machine.registers["eax"] == machine.registers["cr0"]


@pytest.mark.parametrize("ring", [0, 3])
def test_a_conditional_jump_over_the_beginning(ring):
    """`stc; jc $-80000h` at 40000h left RIP at FFFF_FFFF_FFFC_0001h."""
    machine, stop = end("f9 0f820000f8ff", ring=ring, paging=True)
    assert stop.reason == "halted"
    assert machine.registers["cr2"] >> 16 == 0xFFFC


def test_a_conditional_jump_over_the_beginning_to_what_is_mapped():
    """FFFF_FFFF_C004_0010h was filled at C0040010h, and missed again for ever."""
    # stc; jc C0040010h; (10h:) cli; hlt
    machine, stop = end("f9 0f82090000c0 909090909090909090 fa f4", paging=True)
    assert stop.reason == "halted"
    assert machine.registers["eip"] == 0xC0040012


def test_a_patch_site_that_is_not_in_ram():
    """FFh where no RAM is and 2Dh in RAM: a far jump that no INT3 can stand for."""
    machine = flat("b8ffffffff ffe0")  # mov eax, FFFFFFFFh; jmp eax
    machine.write_physical(0, bytes.fromhex("2d 00200000"))  # jmp far [2000h]
    assert run(machine, 1_000_000).reason == "unsupported"


def test_a_users_far_call_with_its_stack_in_the_page_of_the_gdt():
    """Its push emptied the shadow GDT that it had just had filled, for ever."""
    # mov esp, GDT + 800h; call far [p]; p: dd p + 6; dw 1Bh; ud2 until the end
    code = "bc00180100 ff1d0b000400 11000400 1b00 0f0b 0f0b"
    machine, stop = end(code, ring=3, limit=3)
    assert stop.reason == "halted"
    frame = machine.read_physical(0x11800 - 8, 8)
    assert frame == struct.pack("<II", CODE + 11, 0x1B)


@pytest.mark.parametrize(
    ("code", "count"),
    [
        # l: inc byte [440800h]; loop l               a store to its own page, elsewhere
        ("fe0500084400 e2f8", 100),
        # l: inc byte [40800h]; mov al, [440800h]; mov byte [x+1], 5; x: mov al, 4
        ("fe0500080400 a000084400 c6051800040005 b004 e2ea", 100),
        # l: inc byte [40800h]; inc byte [440800h]; mov byte [x+1], 5; x: mov al, 4
        ("fe0500080400 fe0500084400 c6051900040005 b004 e2e9", 200),
    ],
)
def test_code_that_writes_to_its_page_by_another_address(code, count):
    """A mixed page has one mapping: fetch and store took it from each other."""
    ram = [(0x40800, b"\0")]
    machine, stop = end("b964000000" + code + "fa f4", ram=ram, **LARGE)
    assert stop.reason == "halted"
    assert machine.registers["ecx"] == 0
    assert machine.read_physical(0x40800, 1) == bytes([count])


def test_code_that_rewrites_itself_by_another_address():
    # mov ecx, 100; l: mov [x+1 of the other], cl; x: mov al, 0; add ebx, eax; loop l
    code = "b964000000 880d0c004400 b000 01c3 e2f4 fa f4"
    machine, stop = end(code, registers={"eax": 0, "ebx": 0}, **LARGE)
    assert stop.reason == "halted"
    assert machine.registers["ebx"] == sum(range(1, 101))


def test_a_store_over_two_pages_that_are_one():
    # PTEs 44h and 45h to the code's page; l: mov dword [44FFEh], 90909090h;
    # mov byte [40800h], 1; loop l
    code = (
        "c7051061010007000400 c7051461010007000400 b964000000"
        "c705fe4f040090909090 c6050008040001 e2ed fa f4"
    )
    machine, stop = end(code, paging=True)
    assert stop.reason == "halted"
    assert machine.registers["ecx"] == 0


def test_a_page_table_at_the_end_of_the_address_space():
    """IndexError from filling the neighbours of an entry where no RAM is."""
    # mov eax, FFFFF000h; mov cr3, eax
    _, stop = end("b800f0ffff 0f22d8", paging=True)
    assert stop.reason == "triple fault"


def test_a_page_directory_that_maps_itself():
    """The word that is both PDE and PTE of FFFFF000h was taken for a 4 MiB page."""
    # mov eax, [FFFFFFFCh]; mov ebx, [FFC00000h]; cli; hlt
    code = "a1fcffffff 8b1d0000c0ff fa f4"
    ram = [(0x1000, struct.pack("<I", 0x12345))]
    machine, stop = end(code, paging=True, cr4=0x10, ram=ram)
    assert stop.reason == "halted"
    assert machine.registers["eax"] & ~0xFFF == PD
    assert machine.registers["ebx"] & ~0xFFF == 0
    assert machine.registers["ebx"] & 7 == machine.read_physical(PT, 1)[0] & 7


def test_code_behind_a_page_table_entry_that_was_changed():
    """PageFault out of the scanner: it went by the guest's tables, not the TLB's."""
    # mov eax, [44000h]; mov dword [PTE of 44000h], 0; call 44000h; cli; hlt
    code = "a100400400 c7051061010000000000 e8ec3f0000 fa f4"
    ram = [(0x44000, bytes.fromhex("0f01e0 c3"))]  # smsw eax; ret
    assert end(code, paging=True, ram=ram)[1].reason == "halted"


def test_a_rotate_through_carry_of_a_page_not_there_yet():
    """The carry was lost, and the flags were rubbish, too wide for a frame."""
    # ror eax, 1; stc; jmp +0; rcl dword [60000h], 1; pushf; pop esi; cli; hlt
    code = "d1c8 f9 eb00 d11500000600 9c 5e fa f4"
    machine, stop = end(code, paging=True, ram=[(0x60000, b"UUUU")])
    assert stop.reason == "halted"
    assert machine.read_physical(0x60000, 4) == b"\xab\xaa\xaa\xaa"
    assert machine.registers["esi"] & ~0x8D5 == 2


def test_a_rotate_through_carry_whose_bytes_are_in_two_pages():
    """The second byte was read from the next physical page, not from the next one."""
    data = [(0x60000, b"UUUU"), (0x41000, b"\x17")]  # the ModRM of RCL [EDI]
    # At 400FFFh, that is 40FFFh: rol dword [edi], 1; its ModRM in a page elsewhere.
    data += [(0x40FFF, b"\xd1"), (0x62000, bytes.fromhex("07 9c 5e fa f4"))]
    entry = (0x62000 | 7).to_bytes(4, "little").hex()
    # mov dword [PT + 41h * 4], entry; mov eax, cr3; mov cr3, eax; mov edi, 60000h;
    # mov eax, 7FFFFFFFh; add eax, 80000001h (ZF, PF, CF, AF); mov ecx, 40FFFh; jmp ecx
    table = (PT + 0x41 * 4).to_bytes(4, "little").hex()
    code = f"c705{table}{entry} 0f20d8 0f22d8 bf00000600 b8ffffff7f 0501000080"
    code += "b9ff0f0400 ffe1"
    machine, stop = end(code, paging=True, ram=data)
    assert stop.reason == "halted"
    # ROL leaves all flags but CF (0 here, the bit rotated out) and OF.
    assert machine.registers["esi"] & 0xD5 == 0x54


@pytest.mark.parametrize(("technique", "ring"), [("trap", 0), ("trap", 3), ("iopl", 0)])
@pytest.mark.parametrize("there", ["fa", "0f0b", "ebfe", "e421ebfc"])
def test_virtual_8086_mode_where_iret_is_not_patched(technique, ring, there):
    """IRET takes VM from the stack at any CPL: the VMM took CS & 3 for the CPL.

    Virtual-8086 mode is CPL 3, whoever entered it: what traps goes to the handlers.
    """
    # push 0 (gs, fs, ds, es), 23h (ss), 2000h, 20202h, 4000h (cs), 40h; iretd
    code = "6a006a006a006a00 6a23 6800200000 6802020200 6800400000 6a40 cf"
    ram = [(0x40040, bytes.fromhex(there))]
    stop = end(code, ring=ring, technique=technique, ram=ram)[1]
    assert stop.reason in ("halted", "interrupted")


@pytest.mark.parametrize(
    ("kind", "seed", "technique"),
    [
        ("ring3", 447, "patch"),  # RIP beyond 4 GiB in a frame
        ("damaged", 20499, "iopl"),  # RCL faults on its operand: flags of rubbish
        ("ring3", 30229, "patch"),  # a patch behind a changed page-table entry
    ],
)
def test_a_seed(kind, seed, technique):
    plan = programs.plan(kind, seed, technique)
    machine = build(plan)
    run(machine, plan.budget)
    check(machine)


def test_a_user_keeps_its_stack_segment():
    machine, stop = end("0f0b", ring=3, limit=1)
    assert stop.reason == "halted"
    assert machine.read_physical(0x1F000 - 4, 2) == struct.pack("<H", DATA3)
