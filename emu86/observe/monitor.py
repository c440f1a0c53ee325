"""gdb's `monitor` commands: what a machine can tell that gdb has no word for."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from emu86.errors import unknown
from emu86.machine.looking import Looker
from emu86.spec import x86

if TYPE_CHECKING:
    from emu86.machine.machine import Machine


class Mistake(Exception):  # noqa: N818 (the user's)
    """What is wrong with a command: one line."""


class Monitor:
    """The commands, for one machine."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine

    def clear(self) -> None:
        """Forget what was asked for: gdb is gone."""

    def do(self, line: str) -> str:
        """Do a command; return what there is to show, lines."""
        name, *words = line.split() or ["help"]
        command = self._COMMANDS.get(name)
        try:
            if command is None:
                return unknown(name, tuple(self._COMMANDS)) + "\n"
            return command(self, words)
        except Mistake as mistake:
            return f"{name}: {mistake}\n"

    def _help(self, _words: list[str]) -> str:
        """Show what there is."""
        rows = ((name, one.__doc__ or "") for name, one in self._COMMANDS.items())
        return "".join(f"{name:10}{text.splitlines()[0]}\n" for name, text in rows)

    def _exits(self, _words: list[str]) -> str:
        """Show how many exits there were, by reason, most first."""
        exits = self._machine.stats.exits
        rows = sorted(exits.items(), key=lambda one: -one[1].count)
        lines = [f"{reason:20}{one.count:12,}\n" for reason, one in rows]
        total = sum(one.count for one in exits.values())
        return "".join(lines) + f"{'all':20}{total:12,}\n"

    def _walk(self, words: list[str]) -> str:
        """Show what the guest's page tables have for a linear ADDRESS."""
        looker = Looker(self._machine.vmm)
        return "".join(
            looker.pages(_number(word) & looker.mask) + "\n" for word in words
        ) or _missing("an ADDRESS")

    def _rings(self, _words: list[str]) -> str:
        """Show which ring the guest believes to be in, and the engine's."""
        vmm = self._machine.vmm
        vmm.cpu.update_mode()
        cpl, engine = vmm.cpu.cpl, vmm.engine.ring
        return f"guest: ring {cpl}; engine: ring {engine}, technique {vmm.name}\n"

    _COMMANDS: Final[dict[str, Callable[["Monitor", list[str]], str]]] = {
        "help": _help,
        "exits": _exits,
        "rings": _rings,
        "walk": _walk,
    }


def _number(word: str) -> int:
    try:
        return int(word, 0) & x86.MASK64
    except ValueError:
        raise Mistake(f"{word!r} is no number: 0x1000") from None


def _missing(what: str) -> str:
    raise Mistake(f"it needs {what}")
