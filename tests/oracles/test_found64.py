"""Programs of 64-bit code that were not the same deprivileged, shrunk."""

import pytest

from emu86.testing import State, assert_equivalent, run

FOUND = {
    "a fetch is no write, whatever cannot be fetched would do": (
        # mov ecx, 0x13e82; mov r11d, 2; SYSRET to where a user may not read: 0000
        "b9823e0100 41bb02000000 480f07",
        State(mode="long", limit=1),
    ),
    "a page table that is a page directory, too, has accessed bits as one": (
        # PDPT[3] is the page table; mov cl, [0xc0050000]
        "48bf000005c000000000 8a0f",
        State(mode="long", patches=((0x1B018, bytes.fromhex("0760010000000000")),)),
    ),
    "LSS m16:64 is the kernel's own SS": (
        "c704250002050000000000 c704250802050010000000 480fb2042500020500 8cd0",
        State(mode="long"),
    ),
    "an IRETQ within a ring loads SS, from another GDT": (
        # mov word [0x50100], 0xbf; mov dword [0x50102], 0x12000; LGDT; INT3
        """66c7042500010500bf00 c704250201050000200100 c704250601050000000000
        0f01142500010500""",
        State(mode="long", limit=3),
    ),
    "an IRETQ to ring 3 leaves a null selector no RPL, and FS its base": (
        # mov eax, 3; mov fs, eax; mov ds, eax; then FS_BASE 50000h by WRMSR, and IRETQ
        """b803000000 8ee0 8ed8 b9000100c0 b800000500 31d2 0f30
        6a23 6800f00200 6a02 6a1b 6800010400 48cf""",
        # mov eax, fs; mov ecx, fs:[0]
        State(
            mode="long",
            limit=1,
            patches=((0x40100, bytes.fromhex("8ce0 648b0c2500000000")),),
        ),
    ),
    "an address beyond 48 bits is #GP(0)": (
        "48b800000000008000004889084889c4588f00",
        State(mode="long", skip=3),
    ),
    "an access over the end of 48 bits is #GP(0), by RSP and RBP #SS(0)": (
        # mov rax, 7FFFFFFFFFFEh; mov [rax], ecx; mov rbp, rax; mov [rbp], ecx
        "48b8feffffffff7f0000 8908 4889c5 894d00 90 4889c4 51 90 59",
        State(mode="long", skip=3),
    ),
    "SYSRET takes flags from R11, but none that no model has": (
        "49c7c3ffffffff b900010400 480f07",
        State(mode="long", limit=3),
    ),
    "an address just below the upper half is #GP(0)": (
        "48bffeffffffff7fffff c00f30",
        State(mode="long", skip=3),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_in_64_bit_code(name):
    code, state = FOUND[name]
    assert_equivalent(bytes.fromhex(code), state)


@pytest.mark.parametrize("technique", ["bare", "patch", "iopl"])
def test_a_pointer_of_80_bits_is_what_intels_cpus_read(technique):
    """Of a user, too, whose LGS and LFS the engine would run by itself."""
    # mov dword [0x50200], 5; mov dword [0x50204], 6; mov dword [0x50208], 0x23
    code = "c704250002050005000000 c704250402050006000000 c704250802050023000000"
    code += "480fb5042500020500 8ceb"  # lgs rax, [0x50200]; mov ebx, gs
    state = State(mode="long", ring=3, limit=1)
    found = run(bytes.fromhex(code), state, technique).registers
    assert (found["rax"], found["rbx"]) == (0x600000005, 0x23)
