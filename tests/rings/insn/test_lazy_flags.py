"""Instructions whose flags the engine loses, beside QEMU, in kernel and user code.

None of them faults here: tests/oracles/test_found.py and tests/oracles/test_host.py
have those that do, since QEMU is no better there.
"""

from itertools import product

import pytest

from support.cases import Case, check, differences, on_emu86, on_qemu

FLAGS = [
    cf | pf << 2 | zf << 6 | sf << 7 | of << 11 | 0x12
    for cf, pf, zf, sf, of in product((0, 1), repeat=5)
]
RINGS = (0, 3)
TECHNIQUES = ("patch", "iopl", "public API only")


def rotates():
    """RCL and RCR of 8, 16 and 32 bits by 1, CL and an immediate, 0 to 33."""
    sizes = ("byte", "word", "dword")
    for name, size, carry, ring in product(
        ("rcl", "rcr"), sizes, ("stc", "clc"), RINGS
    ):
        value = 0x9C3A5D71 if carry == "clc" else 0x61C59A0E
        before = f"mov dword [SCRATCH], {value}\nmov dword [SCRATCH + 4], -1\n{carry}"
        kind = f"{name} {size}, {carry}, ring {ring}"
        code = f"{before}\n{name} {size} [SCRATCH], 1"
        yield Case(f"{kind}, by 1", code, ring)
        for count in (*range(34), 0xE9):
            code = f"mov ecx, {count | 0x5A00}\n{before}\n{name} {size} [SCRATCH], cl"
            yield Case(f"{kind}, by CL {count}", code, ring)
            # NASM makes D0 and D1 of a count of 1.
            code = f"{before}\n{name} {size} [SCRATCH], strict byte {count}"
            yield Case(f"{kind}, by {count}", code, ring)


SETCC = (
    "o", "no", "b", "ae", "z", "nz", "be", "a",
    "s", "ns", "p", "np", "l", "ge", "le", "g",
)  # fmt: skip


def conditions():
    """All 16 conditions with all 32 sets of the flags that they ask."""
    places = ("[SCRATCH + {}]", "[ebx + ecx * 8 + {}]", "[ebp + {}]", "[es:ebp + {}]")
    for (i, flags), ring in product(enumerate(FLAGS), RINGS):
        place = places[i % len(places)]
        code = "mov ebx, SCRATCH\nxor ecx, ecx\nmov ebp, SCRATCH\n"
        code += f"push dword {flags}\npopfd\n"
        code += "\n".join(f"set{cc} {place.format(n)}" for n, cc in enumerate(SETCC))
        yield Case(f"flags {flags:X}, {place}, ring {ring}", code, ring)


def exchanges(before_it):
    """CMPXCHG8B after ADD and SUB, equal and not, with and without LOCK.

    before_it: two bytes that do nothing.
    """
    sums = ((0, 0), (1 << 31, 1 << 31), (0x7FFFFFFF, 1), (0xF, 1), (1 << 31, 3))
    for (one, other), name, equal, lock, ring in product(
        sums, ("add", "sub", "adc"), (True, False), ("", "lock "), RINGS
    ):
        memory = (0x11223344, 0x99AABBCC) if equal else (0x11223344, 0x99AABBCD)
        code = f"""
        mov dword [SCRATCH + 4], {memory[0]}
        mov dword [SCRATCH + 8], {memory[1]}
        mov esi, {one}
        mov edi, {other}
        mov eax, 0x11223344
        mov edx, 0x99AABBCC
        mov ebx, 0x55667788
        mov ecx, 0xDDEEFF00
        stc
        {name} esi, edi
        {before_it}
        {lock}cmpxchg8b [SCRATCH + 4]
        """
        what = f"{name} {one:X}, {other:X}: {lock}cmpxchg8b, equal: {equal}"
        yield Case(f"{what}, ring {ring}", code, ring)


@pytest.mark.not_quick
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_rotates_through_carry(technique):
    check(tuple(rotates()), technique)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_setcc(technique):
    check(tuple(conditions()), technique)


@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_cmpxchg8b(technique):
    """QEMU 7.2 has the engine's defect, so there a block ends before it."""
    nop, jump = "db 0x66, 0x90", "db 0xEB, 0"
    cases = tuple(exchanges(nop))
    theirs = on_qemu(tuple(exchanges(jump)))
    options = {"technique": technique}
    hidden = 0x3000 if technique == "iopl" else 0
    lines = differences(cases, on_emu86(cases, options=options), theirs, hidden=hidden)
    assert not lines, "\n".join(lines[:40])


@pytest.mark.parametrize("ring", RINGS)
def test_cmpxchg8b_of_a_register(ring):
    check((Case("0F C7 C8", "db 0x0F, 0xC7, 0xC8", ring),), "patch")
