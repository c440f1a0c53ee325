"""Labs: what goes wrong under `trap`, and that `patch` puts it right."""

import re

import capstone
import pytest
from click.testing import CliRunner

from emu86.cli import commands
from emu86.testing.classify import LEFT_OUT, ROBIN_IRVINE
from emu86.testing.lab import LABS, LABS64, show

pytestmark = pytest.mark.not_quick


BOTH = [(bits, name) for bits, labs in ((32, LABS), (64, LABS64)) for name in labs]
# What 64-bit code has and 32-bit code has not, and the other way round.
ADDED = {"LFS, LGS", "SYSCALL, SWAPGS, SYSRET"}
GONE = {"LDS, LES, LFS, LGS", "POP SS", "INTO"}


@pytest.mark.parametrize(("bits", "name"), BOTH)
def test_a_lab(bits, name):
    lab = (LABS64 if bits == 64 else LABS)[name]
    text = "\n".join(show(name, bits))
    bare, trap, patch = (" ".join(part.split()) for part in text.split("\n== ")[1:])
    assert bare.startswith("bare ")
    assert trap.startswith(f"trap: right ({lab.right})" if lab.right else "trap: WRONG")
    assert patch.startswith(
        f"patch: WRONG ({lab.price})" if lab.price else "patch: right"
    )
    if not lab.right:
        assert " bare " in trap
    if not lab.right and not lab.price:
        assert "[exit:" in patch
    mode = capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32
    decoder = capstone.Cs(capstone.CS_ARCH_X86, mode)
    (mnemonic,) = (insn.mnemonic for insn in decoder.disasm(lab.sensitive, 0))
    assert all(f" {mnemonic} " in part for part in (bare, trap, patch))


def test_there_is_one_for_each():
    assert set(LABS) == ROBIN_IRVINE | LEFT_OUT | {"IN", "OUT", "INS", "OUTS"}
    assert set(LABS64) == set(LABS) - GONE | ADDED


def test_a_system_call_of_64_bit_code():
    text = "\n".join(show("SYSCALL, SWAPGS, SYSRET", 64))
    _, bare, trap, patch = text.split("\n== ")
    for part in (bare, trap, patch):
        assert part.count("  sysretq  ") == 2
        assert "rax 40023h -> C0FFEEh" in part
        assert "rflags 2h -> 202h, cs 8h -> D3h" in part.rpartition("sysretq")[2]
    assert "[exit" not in bare
    for part in (trap, patch):
        exits = re.findall(r"exit: (\w+)\]", part.partition("  syscall ")[2])
        assert exits == ["SYSCALL", "SWAPGS", "SWAPGS", "SYSRET"]


def test_the_iret_is_in_a_handler():
    _, bare, trap, patch = "\n".join(show("IRET")).split("\n== ")
    assert bare.count("0001801B  iretd   ") == 3
    assert "eflags 2h -> 202h, cs 8h -> 1Bh" in bare.split("iretd")[1]
    assert "eflags" not in trap.split("iretd")[1].split("\n")[0]
    assert patch.count("[exit: IRET]") == 3


def test_smsw_tells_of_a_defined_bit():
    _, _, trap, _ = "\n".join(show("SMSW")).split("\n== ")
    assert "bare eax: 00000011, but 00000031 (bits 00000020)" in trap


def test_rpl_1_is_right_by_patch_for_ss_alone():
    for name, register in (("POP Sreg", "es"), ("POP SS", "ss")):
        _, bare, trap, patch = "\n".join(show(name)).split("\n== ")
        assert "#GP 10h at 8h:0004000B" in bare
        assert f"{register} 10h -> 11h" in trap
        assert ("\n   #GP 10h at 8h:0004000B" in patch) == (name == "POP SS")


def test_popf_step_by_step():
    text = "\n".join(show("POPF"))
    assert text.startswith("POPF: Interrupts are on.")
    _, bare, trap, patch = text.split("\n== ")
    assert "popfd                            eflags 202h -> 2h" in bare
    assert "popfd\n" in trap
    assert "eflags 202h -> 2h   [exit: POPF]" in patch


def test_the_command():
    runner = CliRunner()
    assert "== patch: right" in runner.invoke(commands, ["lab", "POPF"]).output
    listed = runner.invoke(commands, ["lab"]).output
    names = (line.split("  ")[0] for line in listed.splitlines())
    assert [name for name in names if name] == list(LABS)
    stacks = runner.invoke(commands, ["lab", "ss"]).output
    assert "MOV to SS: The kernel" in stacks
    assert "\n\nPOP SS: The kernel" in stacks
    lds = runner.invoke(commands, ["lab", "lds, LES"]).output
    assert lds.startswith("LDS, LES, LFS, LGS: The kernel")
    assert "no 'fnord'" in str(runner.invoke(commands, ["lab", "fnord"]).exception)


def test_the_command_in_64_bit_code():
    def shown(*words):
        ran = CliRunner().invoke(commands, ["lab", *words])
        return ran.output or str(ran.exception)

    assert shown("--bits", "64", "swapgs").startswith("SYSCALL, SWAPGS, SYSRET: The")
    listed = shown("--bits", "64").splitlines()
    names = [line.split("  ")[0] for line in listed]
    assert [name for name in names if name] == list(LABS64)
    assert shown("swapgs") == "lab: 'swapgs' needs --bits 64"
    assert shown("--bits", "64", "into") == "lab: 'into' needs --bits 32"
