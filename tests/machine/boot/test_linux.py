"""bzImage: the 32-bit boot protocol."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86 import Machine
from emu86.errors import ConfigError
from emu86.machine import boot
from emu86.rings.cpu import Mode
from emu86.spec import x86

MIB = 1 << 20
CODE = bytes(range(256)) * 4


def bzimage(code=CODE, setup_sects=2, **fields):
    """A bzImage of protocol 2.15; fields by their boot.rst names change it."""
    image = bytearray((setup_sects or 4) * 512 + 512)
    values = {
        "setup_sects": (0x1F1, 1, setup_sects),
        "syssize": (0x1F4, 4, -(-len(code) // 16)),
        "boot_flag": (0x1FE, 2, 0xAA55),
        "jump": (0x200, 2, 0x66EB),
        "header": (0x202, 4, 0x53726448),
        "version": (0x206, 2, 0x020F),
        "loadflags": (0x211, 1, 1),
        "code32_start": (0x214, 4, 0x100000),
        "initrd_addr_max": (0x22C, 4, 0x37FFFFFF),
        "kernel_alignment": (0x230, 4, 0x1000),
        "relocatable_kernel": (0x234, 1, 1),
        "xloadflags": (0x236, 2, 0),
        "cmdline_size": (0x238, 4, 2047),
        "pref_address": (0x258, 8, 0x100000),
        "init_size": (0x260, 4, 0x10000),
    }
    for name, value in fields.items():
        offset, size, _ = values[name]
        values[name] = (offset, size, value)
    for offset, size, value in values.values():
        image[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(image) + code


def load(image, *, ram=None, cmdline="", initrds=()):
    ram = memoryview(bytearray(4 * MIB)) if ram is None else ram
    entry = boot.load(ram, image, cmdline=cmdline, initrds=initrds)
    return ram, entry


def u32(data, offset):
    return int.from_bytes(data[offset : offset + 4], "little")


def test_entry_follows_the_protocol():
    ram, entry = load(bzimage(), cmdline="console=ttyS0 quiet")
    assert boot.sniff(bzimage()) == "linux"
    assert entry.eip == 0x100000
    assert set(entry.registers) == {"esi"}
    assert (entry.cs, entry.ds) == (0x10, 0x18)
    assert ram[MIB : MIB + len(CODE)] == CODE
    params = ram[entry.registers["esi"] :][:4096]
    assert params[0x1F1:0x210] == bzimage()[0x1F1:0x210]
    assert params[0x210] == 0xFF
    assert not any(params[:0x1E8]), "screen_info and the rest stay zero"
    cmdline = u32(params, 0x228)
    assert bytes(ram[cmdline : cmdline + 20]) == b"console=ttyS0 quiet\0"
    assert u32(params, 0x218) == u32(params, 0x21C) == 0


SERIAL = ("console=ttyS0", "quiet console=ttyS0,115200 a", "console=ttyAMA0")
SCREEN = ("", "quiet", "console=tty0", "console=ttyS0 console=tty1")


@pytest.mark.parametrize("cmdline", SERIAL + SCREEN)
def test_the_kernel_is_told_of_the_screen_if_it_is_to_use_it(cmdline):
    ram, entry = load(bzimage(), cmdline=cmdline)
    info = bytes(ram[entry.registers["esi"] :][:18])
    expected = bytearray(18)
    if cmdline in SCREEN:
        # Mode 3, 80 columns; a colour VGA with 256 KiB; 25 rows; VGA; 16 scan lines.
        expected[6:8], expected[10], expected[14:17] = b"\3\x50", 3, b"\x19\1\x10"
    assert info == expected


def test_bytes_after_the_setup_header_are_not_copied():
    image = bytearray(bzimage())
    image[0x268] = 0xCC
    ram, entry = load(bytes(image))
    assert ram[entry.registers["esi"] + 0x268] == 0


def test_e820_is_the_memory_map():
    ram, entry = load(bzimage())
    params = ram[entry.registers["esi"] :][:4096]
    table = [
        (
            int.from_bytes(params[at : at + 8], "little"),
            int.from_bytes(params[at + 8 : at + 16], "little"),
            u32(params, at + 16),
        )
        for at in range(0x2D0, 0x2D0 + 20 * params[0x1E8], 20)
    ]
    assert table == boot.memory_map(4 * MIB)


@pytest.mark.parametrize(
    ("addr_max", "address"), [(0x37FFFFFF, 0x3FF000), (0x1FFFFF, 0x1FF000)]
)
def test_initrd_lies_as_high_as_it_may(addr_max, address):
    ram, entry = load(bzimage(initrd_addr_max=addr_max), initrds=[b"initrd!!"])
    params = ram[entry.registers["esi"] :][:4096]
    assert u32(params, 0x218) == address
    assert u32(params, 0x21C) == 8
    assert bytes(ram[address : address + 8]) == b"initrd!!"


def test_several_initrds_follow_each_other_aligned():
    ram, entry = load(bzimage(), initrds=[b"one", b"two!"])
    params = ram[entry.registers["esi"] :][:4096]
    address = u32(params, 0x218)
    assert bytes(ram[address : address + 8]) == b"one\0two!"


def test_initrd_keeps_clear_of_the_room_the_kernel_unpacks_into():
    image = bzimage(init_size=3 * MIB - 4096)
    load(image, initrds=[bytes(4096)])
    with pytest.raises(ConfigError, match="^initrd: .* do not fit"):
        load(image, initrds=[bytes(4097)])


def test_memory_below_the_preferred_address_is_too_small():
    with pytest.raises(ConfigError, match="^kernel: does not fit: needs 17 MiB of mem"):
        load(bzimage(pref_address=16 * MIB))


def test_memory_that_is_missing_is_told_at_once():
    """Not first what the file needs, and then what the kernel does."""
    image = bzimage(bytes(2 * MIB), init_size=16 * MIB)
    with pytest.raises(ConfigError, match="needs 17 MiB of memory, the machine has 2"):
        boot.load(memoryview(bytearray(2 * MIB)), image)


def test_setup_sects_zero_means_four():
    ram, _ = load(bzimage(setup_sects=0))
    assert ram[MIB : MIB + len(CODE)] == CODE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 0x0201}, "boot protocol 2.01, 2.02 or later"),
        ({"loadflags": 0}, "zImage"),
        ({"code32_start": 0x90000}, "below 1 MiB"),
        ({"code32_start": 0xFFFFFFF0}, "does not fit"),
        ({"init_size": 0xFFFFFFFF}, "does not fit: needs 4097 MiB"),
        ({"pref_address": 2**64 - 1}, "does not fit"),
        ({"setup_sects": 255}, None),
        ({"kernel_alignment": 0}, None),
    ],
)
def test_headers(fields, message):
    if message is None:
        load(bzimage(**fields))
    else:
        with pytest.raises(ConfigError, match=f"^kernel: .*{message}"):
            load(bzimage(**fields))


ENTRY64 = 0x200


def test_a_kernel_of_64_bits_is_entered_in_64_bit_mode():
    """boot.rst, 64-bit BOOT PROTOCOL: paging by identity, CS and DS as named there."""
    ram, entry = load(bzimage(xloadflags=1), cmdline="quiet")
    assert entry.eip == 0x100000 + ENTRY64
    assert set(entry.registers) == {"esi"}
    assert (entry.cs, entry.ds) == (0x10, 0x18)
    gdt = ram[entry.gdt_base :][: entry.gdt_limit + 1].cast("Q")
    assert gdt[2] == 0x00AF9B000000FFFF
    assert gdt[3] == 0x00CF93000000FFFF
    tables = ram.cast("Q")

    def gpa(linear):
        table = entry.cr3
        for shift in (39, 30, 21):
            found = tables[table // 8 + (linear >> shift & 511)]
            assert found & 3 == 3
            table = found & 0xFFFFFFFFFF000
        assert found & 0x80
        return table | linear & 0x1FFFFF

    assert entry.cr3 % 4096 == 0
    for linear in (0, 0x100000 + ENTRY64, 0x1FFFFF, 0x40000000, 0xFFFFFFFF):
        assert gpa(linear) == linear
    again = boot.load(memoryview(bytearray(4 * MIB)), bzimage(xloadflags=1), bits=32)
    assert (again.eip, again.cr3) == (0x100000, 0)


def test_the_cpu_is_in_64_bit_mode_then():
    """MOV RAX of 8 bytes, CLI, HLT at the 64-bit entry."""
    code = bytes(ENTRY64) + bytes.fromhex("48b89090909090909090faf4")
    machine = Machine(memory=4 * MIB)
    machine.load_kernel(bzimage(code, xloadflags=1))
    for _ in range(2):
        assert machine.run(timeout=60).reason == "halted"
        assert machine.vmm.q[x86.EAX] == 0x9090909090909090
        assert machine.vcpu.efer == x86.EFER_LME | x86.EFER_LMA
        assert machine.vcpu.cr0 >> 31
        assert machine.vmm.cpu.mode is Mode.LONG
        machine.reset()


def test_its_32_bit_entry_can_be_taken():
    machine = Machine(memory=4 * MIB)
    machine.load_kernel(bzimage(b"\xfa\xf4" * 8, xloadflags=1), bits=32)
    assert (machine.stats.cpu, machine.vcpu.efer) == ("atom", 0)
    assert machine.run(timeout=60).detail == "at 0010:00100002, interrupts off"
    with pytest.raises(ConfigError, match="^bits: 16 is neither 32 nor 64$"):
        Machine().load_kernel(bzimage(), bits=16)


def test_a_64_bit_entry_beyond_the_kernel():
    image = bzimage(bytes(ENTRY64), xloadflags=1)
    with pytest.raises(ConfigError, match="^kernel: its 64-bit entry is beyond"):
        boot.load(memoryview(bytearray(4 * MIB)), image)
    assert boot.load(memoryview(bytearray(4 * MIB)), image, bits=32).cr3 == 0


def test_a_kernel_of_64_bits_needs_such_a_cpu():
    assert boot.features_of(bzimage(xloadflags=1)) == 1 << 34
    assert boot.features_of(bzimage(xloadflags=1, version=0x020B)) == 0
    refusal = "^kernel: needs 64-bit mode, which .* has not: take atom or skylake$"
    with pytest.raises(ConfigError, match=refusal):
        Machine(cpu="pentium4").load_kernel(bzimage(xloadflags=1))


def test_the_smallest_cpu_that_a_kernel_needs_is_taken():
    machine = Machine(memory=4 * MIB)
    for image, cpu in (
        (bzimage(xloadflags=1), "atom"),
        (requiring(0x0141), "pentium3-pae"),
        (requiring(0x0101), "pentium3"),
    ):
        machine.load_kernel(image)
        assert machine.stats.cpu == cpu
    machine.load_kernel(requiring(0x0141))
    machine.load_flat(b"\xf4", 0x100000)
    assert machine.stats.cpu == "pentium3"


def requiring(features, words=b""):
    """A bzImage whose setup code asks for these (arch/x86/boot/cpucheck.c)."""
    image = bytearray(bzimage())
    image[0x300:0x320] = b"features not present on the CPU:"
    image[0x340:0x360] = features.to_bytes(4, "little") + words.ljust(28, b"\0")
    return bytes(image)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            0x8141,
            "needs PAE and CMOV, which this CPU model has not: take pentium3-pae",
        ),
        (0x0141, "needs PAE, which .* has not: take pentium3-pae or atom or skylake"),
        (0x8101, "needs CMOV, which this CPU model has not: take pentium2 or pentium3"),
        (0x0101, None),
        (0x0001, None),  # a 486's
        (0x8141 | 1 << 20, None),  # no 32-bit Linux asks for bit 20: other data
    ],
)
def test_features_that_the_kernel_needs(features, message):
    ram, pentium = memoryview(bytearray(4 * MIB)), 0x1BF
    if message is None:
        boot.load(ram, requiring(features), features=pentium)
    else:
        with pytest.raises(ConfigError, match=f"^kernel: {message}"):
            boot.load(ram, requiring(features), features=pentium)
    load(requiring(features))  # whatever it is, this CPU has it


def test_a_feature_word_that_others_follow_is_none():
    load_with = memoryview(bytearray(4 * MIB))
    boot.load(load_with, requiring(0x8141, b"\1"), features=0)
    nopl = bytes(11) + b"\x10"  # doubleword 3 is the one that may hold something
    with pytest.raises(ConfigError, match="needs FPU and PAE and CX8 and CMOV"):
        boot.load(load_with, requiring(0x8141, nopl), features=0)


def test_old_protocols_lack_the_newer_fields():
    # 0xFF where 2.02 has nothing: must not be taken for fields of later versions.
    image = bytearray(bzimage(version=0x0202, xloadflags=0xFFFF, init_size=0xFFFFFFFF))
    image[0x1F4:0x1F8] = b"\xff\xff\xff\xff"
    ram, _ = load(bytes(image), cmdline="x" * 255)
    assert ram[MIB : MIB + len(CODE)] == CODE
    with pytest.raises(ConfigError, match="^command line: 256 bytes"):
        load(bytes(image), cmdline="x" * 256)


def test_command_line_is_checked():
    load(bzimage(), cmdline="x" * 2047)
    with pytest.raises(ConfigError, match="^command line: 2048 bytes, .* 2047"):
        load(bzimage(), cmdline="x" * 2048)
    with pytest.raises(ConfigError, match="^command line: holds a NUL"):
        load(bzimage(), cmdline="a\0b")
    with pytest.raises(ConfigError, match="^command line: not encodable"):
        load(bzimage(), cmdline="\ud800")


@pytest.mark.parametrize("cut", [1, 16, 700, len(CODE), len(CODE) + 1, 1900])
def test_truncation_is_told(cut):
    image = bzimage()[: -cut or None]
    if cut < 16:
        load(image)  # within the last paragraph: padding that some tools leave away
    else:
        with pytest.raises(ConfigError, match="^kernel: "):
            load(image)


def test_an_empty_initrd_is_refused():
    with pytest.raises(ConfigError, match="^initrd: .* empty"):
        load(bzimage(), initrds=[b""])


RAM = memoryview(bytearray(2 * MIB))


@given(
    st.lists(st.tuples(st.integers(0x1F0, 0x270), st.integers(0, 255)), max_size=8),
    st.integers(0, 3000),
    st.sampled_from([(), (b"initrd",)]),
)
def test_no_header_raises_anything_else(changes, length, initrds):
    image = bytearray(bzimage())
    for offset, value in changes:
        image[offset] = value
    try:
        _, entry = load(bytes(image[:length]), ram=RAM, initrds=initrds)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert entry.eip < len(RAM)
