"""Debian's kernel on the screen and the keyboard, with nobody at its serial line."""

import pytest

from emu86 import Machine
from support.shell import INITRD, KERNEL, PATIENCE

pytestmark = [pytest.mark.guest, pytest.mark.slow]


def test_the_shell_is_on_the_screen_and_takes_keys():
    machine = Machine(memory=64 << 20)
    serial = bytearray()
    machine.on_console(serial.extend)
    machine.load_kernel(KERNEL, append="console=tty0", initrd=INITRD)
    machine.type("echo $((6*7)) | tr 2 '?'\n", after=b"emu86#")
    stop = machine.run(until=b"\n4?\n", timeout=PATIENCE)
    assert (stop.reason, stop.detail) == ("until", "on the screen")
    assert not serial
    assert "emu86# echo $((6*7)) | tr 2 '?'" in machine.screen.text
