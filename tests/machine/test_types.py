"""What a caller gives wrongly: one clear error, at once, and the machine as it was."""

import numpy as np
import pytest

from emu86 import Machine
from support.flat import MEMORY


@pytest.fixture(scope="module")
def machine():
    built = Machine(memory=MEMORY)
    built.load_flat(b"\xfa\xf4", 0x1000)
    return built


class Watcher:
    def vm_exit(self, reason, cs, eip):
        """Do nothing."""


class NoWatcher:
    vm_exit = None


REGISTERS = "there are eax, ecx, edx, ebx, esp, ebp, esi, edi, eip, eflags"


@pytest.mark.parametrize(
    ("method", "arguments", "kind", "message"),
    [
        ("console_input", ("abc",), TypeError, r"data: 'abc' .* \(for text: b'abc'\)"),
        ("console_input", ([97],), TypeError, "data: .* of type list, not bytes"),
        ("on_console", (b"abc",), TypeError, "callback: .* bytes, not Callable"),
        ("run", ("text",), TypeError, r"until: 'text' .* \(for text: b'text'\)"),
        ("run", (None, "5"), TypeError, "timeout: .5. is of type str, not Real"),
        ("run", (None, -1), ValueError, "timeout: -1 is no number of seconds"),
        ("run", (None, float("nan")), ValueError, "timeout: nan is no number"),
        ("__setattr__", ("realtime", 1), TypeError, "realtime: 1 is of type int"),
        ("read_physical", (0, -5), ValueError, "size: -5 is below 0"),
        ("read_physical", (-1, 5), ValueError, "gpa: -1 is below 0"),
        ("read_physical", (1 << 36, 5), ValueError, "gpa: .* not below 0x1000000000"),
        ("read_physical", (0, 1 << 60), ValueError, "size: .* not below 0x100000001"),
        ("read_physical", ("0", 5), TypeError, "gpa: '0' is of type str, not int"),
        ("read_physical", (0, 1.5), TypeError, "size: 1.5 is of type float, not int"),
        ("read_virtual", (0, -5), ValueError, "size: -5 is below 0"),
        ("read_virtual", (-4, 5), ValueError, "gva: -4 is below 0"),
        ("read_virtual", (None, 5), TypeError, "gva: None is of type NoneType"),
        ("write_physical", (0, "abc"), TypeError, "data: 'abc' is of type str"),
        ("write_physical", ("0", b"a"), TypeError, "gpa: '0' is of type str"),
        ("write_virtual", (0, 5), TypeError, "data: 5 is of type int, not bytes"),
        ("write_virtual", (1 << 40, b"a"), ValueError, "gva: .* not below"),
        ("set_register", ("foo", 1), ValueError, f"register: no 'foo' .*{REGISTERS}"),
        ("set_register", ("EAX", 1), ValueError, "did you mean 'eax'"),
        ("set_register", (3, 1), ValueError, "register: no 3"),
        ("set_register", ("eax", "1"), TypeError, "value: '1' is of type str, not int"),
        ("load_flat", ("f4", 0), TypeError, r"data: 'f4' .* \(for text: b'f4'\)"),
        ("load_flat", (b"\xf4", "0"), TypeError, "address: '0' is of type str"),
        ("load_flat", (b"\xf4", 0, "0"), TypeError, "entry: '0' is of type str"),
        ("load_kernel", (5,), TypeError, "kernel: 5 is of type int, not bytes or str"),

        ("subscribe", (Watcher,), TypeError, "is a class"),
        ("subscribe", (NoWatcher(),), TypeError, "none of the methods vm_exit, inject"),
    ],
)  # fmt: skip
def test_a_wrong_argument(machine, method, arguments, kind, message):
    before = machine.registers, machine.read_physical(0, MEMORY), machine.now
    with pytest.raises(kind, match=message) as caught:
        getattr(machine, method)(*arguments)
    assert "\n" not in str(caught.value)
    assert (machine.registers, machine.read_physical(0, MEMORY), machine.now) == before
    assert machine.console_waiting == 0


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"memory": "64 megabytes"}, ValueError, "memory: .* no size like 128M or 1G"),
        ({"memory": 64.0}, TypeError, "memory: 64.0 is of type float, not int"),
        ({"cpu": 1}, ValueError, "cpu: no 1 .*there are pentium, "),
        ({"cpu": ["pentium"]}, ValueError, "cpu: no .*there are pentium, "),
        ({"cpu": "pentium33"}, ValueError, "cpu: .*did you mean 'pentium3'"),
        ({"technique": []}, ValueError, "technique: no .*there are patch, trap"),
        ({"technique": "ptach"}, ValueError, "technique: .*did you mean 'patch'"),
        ({"debug_exit": "no"}, TypeError, "debug_exit: 'no' is of type str, not bool"),
        ({"rtc": True}, TypeError, "rtc: True is of type bool, not int or float"),
        ({"realtime": 0}, TypeError, "realtime: 0 is of type int, not bool"),
        ({"hypervisor": "KVM"}, TypeError, "hypervisor: 'KVM' is of type str"),
    ],
)
def test_a_machine_that_cannot_be(options, kind, message):
    with pytest.raises(kind, match=message):
        Machine(**options)


def test_a_command_line_is_text(machine):
    with pytest.raises(TypeError, match="append: b'x' is of type bytes, not str"):
        machine.load_kernel(b"", append=b"x")


def test_memory_as_on_the_command_line():
    assert Machine(memory="2M").read_physical((2 << 20) - 1, 2) == b"\0\xff"


def test_what_is_as_good_as_bytes_and_ints():
    built = Machine(memory=np.int64(MEMORY))
    built.load_flat(bytearray(b"\xfa\xf4"), np.uint32(0x1000))
    built.write_physical(np.int32(0x2000), memoryview(b"ab"))
    built.set_register("ebx", np.uint64(5))
    assert built.read_physical(np.uint64(0x2000), np.int8(2)) == b"ab"
    assert built.registers["ebx"] == 5
    typed = bytearray(b"typed")
    built.console_input(typed)
    typed[:] = b"later"
    assert built.board.save().chips, "and what was typed is as it was then"
    assert built.save().console.pending == b"typed"
    assert built.run().reason == "halted"
