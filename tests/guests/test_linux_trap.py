"""How far Debian's kernel goes when nothing is patched, and what shows."""

import pytest

from support.shell import Shell

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def shell():
    """A guest at its prompt."""
    return Shell("trap")


def test_it_comes_to_its_prompt(shell):
    # POPF does not give interrupts back to the kernel, but STI and IRET soon do.
    assert shell.do("echo hello $((6*7))") == "hello 42\n"


def test_what_needs_no_patch_works(shell):
    assert shell.do("ldt; sigs; fpu") == "ldt-ok\ntls-ok\nsignals-ok\nfpu-ok\n"
    assert shell.do("for i in $(seq 100); do busybox true || echo bad; done") == ""


def test_users_reach_ports(shell):
    # The engine does not ask the TSS's I/O map, and no patch does it instead.
    assert shell.do("userio") == "userio-bad at step\n04\n"


def test_users_see_our_tables(shell):
    shown = dict(line.split() for line in shell.do("leaks").splitlines()[:5])
    # SMSW happens to be right; patched, SGDT and SIDT show ff401000 and ff400000.
    assert shown.pop("sgdt")[:8] != "ff401000"
    assert shown == {
        "sidt": "000000000000",
        "sldt": "0000",
        "str": "0000",
        "smsw": "0033",
    }


def test_power_off(shell):
    assert "reboot: System halted" in shell.end("dmesg -n 8; poweroff -f")
    assert shell.stop.reason == "halted"
