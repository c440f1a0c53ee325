"""Labs: what goes wrong under `trap`, and that `patch` puts it right."""

import pytest
from click.testing import CliRunner

from emu86.cli import commands
from emu86.testing.classify import LEFT_OUT, ROBIN_IRVINE
from emu86.testing.lab import LABS, show


@pytest.mark.parametrize("name", LABS)
def test_a_lab(name):
    text = "\n".join(show(name))
    bare, trap, patch = text.split("\n== ")[1:]
    assert bare.startswith("bare\n")
    right = LABS[name].right
    assert trap.startswith(f"trap: right\n   ({right})" if right else "trap: WRONG")
    assert patch.startswith("patch: right")
    if not right:
        assert "\n   bare " in trap
        assert "[exit:" in patch


def test_there_is_one_for_each():
    holes = ROBIN_IRVINE | LEFT_OUT
    families = {name.split()[0].strip(",").lower() for name in holes}
    assert families | {"in", "out", "ins", "outs"} == set(LABS)


def test_popf_step_by_step():
    text = "\n".join(show("popf"))
    assert text.startswith("POPF: Interrupts are on.")
    _, bare, trap, patch = text.split("\n== ")
    assert "popfd                            eflags 202h -> 2h" in bare
    assert "popfd\n" in trap
    assert "eflags 202h -> 2h   [exit: POPF]" in patch


def test_the_command():
    runner = CliRunner()
    assert "== patch: right" in runner.invoke(commands, ["lab", "POPF"]).output
    listed = runner.invoke(commands, ["lab"]).output
    assert [line.split()[0] for line in listed.splitlines()] == list(LABS)
    assert "no 'fnord'" in str(runner.invoke(commands, ["lab", "fnord"]).exception)
