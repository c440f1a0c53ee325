"""A user's ports: IOPL and the TSS's permission bitmap (SDM Vol. 1 section 19.5)."""

# ruff: noqa: E501 (lines of assembly)

import pytest

from support.cases import Case, check, image, machine

IN = {
    "IN imm8": "in al, 0x21",
    "IN dx": "mov dx, 0x21\nin al, dx",
    "IN eax": "mov edx, 0xB0\nin eax, dx",
    "OUT imm8": "out 0x80, al",
    "OUT dx": "mov edx, 0x80\nout dx, al",
    "INS": "mov edx, 0x21\nmov edi, SCRATCH\ninsb",
    "REP INS": "mov edx, 0x21\nmov edi, SCRATCH\nmov ecx, 6\nrep insb",
    "REP INS, down": "mov edx, 0x21\nmov edi, SCRATCH + 8\nmov ecx, 6\nstd\nrep insb\ncld",
    "REP INSD": "mov edx, 0xB0\nmov edi, SCRATCH\nmov ecx, 3\nrep insd",
    "REP INS, 16-bit counts": "mov edx, 0x21\nmov ax, BASED\nmov es, ax\n"
    "mov edi, 0x12340004\nmov ecx, 0x12340003\na16 rep insb",
    "REP INS, none": "mov edx, 0x21\nmov edi, SCRATCH\nxor ecx, ecx\nrep insb",
    "OUTS": "mov edx, 0x80\nmov esi, SCRATCH\noutsb",
    "REP OUTS": "mov edx, 0x80\nmov esi, SCRATCH\nmov ecx, 700\nrep outsb",
    "REP OUTSW": "mov edx, 0x80\nmov esi, SCRATCH\nmov ecx, 3\nrep outsw",
    "a high port": "mov edx, 0x1234\nin al, dx",
}
MAPS = {
    "all allowed": "",
    "one byte denied": "mov byte [TSS + 0x68 + 0x21 / 8], 2\n"
    "mov byte [TSS + 0x68 + 0x80 / 8], 1\nmov byte [TSS + 0x68 + 0xB0 / 8], 8",
    "neighbours denied": "mov byte [TSS + 0x68 + 0x21 / 8], 0xFD\n"
    "mov byte [TSS + 0x68 + 0x80 / 8], 0xFE\nmov byte [TSS + 0x68 + 0xB0 / 8], 0xF0",
    "no map": "mov word [TSS + 0x66], 0x80",
    "a map beyond the limit": "mov word [TSS + 0x66], 0xFFFF",
    "a map that ends": "mov word [TSS + 0x66], 0x7C\nmov dword [TSS + 0x7C], 0",
    "another map": "mov word [TSS + 0x66], 0x6C\nmov dword [TSS + 0x6C], -1",
}
CASES = tuple(
    Case(f"{name}, {bits}, ring {ring}, IOPL {iopl}", f"{setup}\n{code}", ring,
         2 | iopl << 12)
    for ring in (1, 2, 3)
    for iopl in (0, 2, 3)
    for bits, setup in MAPS.items()
    for name, code in IN.items()
    if ring == 3 or name in {"IN imm8", "OUT dx", "REP INS"}
)  # fmt: skip
TSS16 = tuple(
    Case(f"{name} with a 16-bit TSS", f"mov eax, TSS16\nltr ax\npush dword DATA3\n"
         "push dword STACK3\npush dword 2\npush dword CODE3\npush .user\n"
         f"mov word [TSSC + 2], 0xF000\nmov word [TSSC + 4], DATA0\niretd\n.user: {code}")
    for name, code in IN.items() if name in {"IN imm8", "OUTS"}
)  # fmt: skip
PAGED = (
    Case("INS to a page that is absent", "mov edx, 0x21\nmov edi, 0xC0000000\ninsb", 3),
    Case("INS, the second page is absent",
         "mov edx, 0x21\nmov edi, 0x7FFFFC\nmov ecx, 8\nrep insb", 3),
    Case("INSW over a page's end, the second is absent",
         "mov edx, 0x21\nmov edi, 0x7FFFFF\ninsw", 3),
    Case("INSD over a page's end, the second is absent",
         "mov edx, 0x21\nmov edi, 0x7FFFFD\ninsd", 3),
    Case("INS to a page of the kernel",
         "and byte [PT + 4 * 0x700], ~4\nmov edx, 0x21\nmov edi, 0x700000\ninsb", 3),
    Case("INS to a page that is read-only",
         "and byte [PT + 4 * 0x700], ~2\nmov edx, 0x21\nmov edi, 0x700000\ninsb", 3),
    Case("OUTS from a page that is absent",
         "mov edx, 0x80\nmov esi, 0x7FFFFC\nmov ecx, 8\nrep outsb", 3),
    Case("INS of the kernel, the second page is absent",
         "mov edx, 0x21\nmov edi, 0x7FFFFC\nmov ecx, 8\nrep insb"),
)  # fmt: skip


@pytest.mark.not_quick
@pytest.mark.parametrize("technique", ["patch", "iopl"])
def test_ports(technique):
    cases = CASES
    if technique == "iopl":
        cases = tuple(case for case in cases if case.flags == 2)
    check(cases, technique)


def test_ports_without_private_state():
    check(CASES[::11], "public API only")


def test_a_16_bit_tss_has_no_map():
    check(TSS16, "patch", ignore=("tr",))


class Reads:
    """An observer that knows which ports were read."""

    def __init__(self):
        self.ports = []

    def pio(self, port, _width, _value, write):
        if not write:
            self.ports.append(port)

    def vm_exit(self, *_):
        pass

    inject = shadow_fill = vm_exit


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("code", ["insw", "insd"])
def test_no_port_is_read_for_what_cannot_be_stored(code, ring):
    case = Case("INS", f"mov edx, 0x1234\nmov edi, 0x7FFFFF\n{code}", ring, 0x3002)
    built = machine(image((case,), paging=True))
    reads = Reads()
    built.subscribe(reads)
    assert built.run(timeout=120).reason == "debug exit"
    assert 0x1234 not in reads.ports


def test_page_faults_of_strings():
    """The port is not read for a byte that cannot be stored, and none is lost."""
    check(PAGED, "patch", paging=True)
