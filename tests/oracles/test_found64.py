"""Programs of 64-bit code that were not the same deprivileged, shrunk."""

import pytest

from emu86.testing import State, assert_equivalent, run

FOUND = {
    "LSS m16:64 is the kernel's own SS": (
        "c704250002050000000000 c704250802050010000000 480fb2042500020500 8cd0",
        State(mode="long"),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_in_64_bit_code(name):
    code, state = FOUND[name]
    assert_equivalent(bytes.fromhex(code), state, ("patch", "iopl"))


@pytest.mark.parametrize("technique", ["bare", "patch", "iopl"])
def test_a_pointer_of_80_bits_is_what_intels_cpus_read(technique):
    """Of a user, too, whose LGS and LFS the engine would run by itself."""
    # mov dword [0x50200], 5; mov dword [0x50204], 6; mov dword [0x50208], 0x23
    code = "c704250002050005000000 c704250402050006000000 c704250802050023000000"
    code += "480fb5042500020500 8ceb"  # lgs rax, [0x50200]; mov ebx, gs
    state = State(mode="long", ring=3, limit=1)
    found = run(bytes.fromhex(code), state, technique).registers
    assert (found["rax"], found["rbx"]) == (0x600000005, 0x23)
