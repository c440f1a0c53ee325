"""Breakpoints and watchpoints that a guest cannot see, for `Machine.run`.

They are the host's: a state that is saved has none of them.
"""

from typing import Final

from emu86.errors import ConfigError, as_int
from emu86.rings.debug import Watch
from emu86.rings.technique.base import Technique
from emu86.spec import x86

_LINEAR: Final = 1 << 64  # bytes that a linear address can name
_PHYSICAL: Final = 1 << x86.MAXPHYADDR


class Debugger:
    """Where `Machine.run` stops: before instructions, and behind what changes bytes.

    A breakpoint is in the engine's translation of the guest's code, not in its memory.
    One that is not hit costs nothing. What is watched is in pages that the guest cannot
    write natively: each write to such a page is a step of the VMM's. Raises ConfigError
    with technique "bare".
    """

    def __init__(self, vmm: Technique) -> None:
        if vmm.name == "bare":
            message = "debugger: technique 'bare' has none; use another one"
            raise ConfigError(message)
        self._vmm = vmm
        self._linear: set[int] = set()
        self._physical: set[int] = set()
        self._watches: dict[tuple[int, int, bool], list[Watch]] = {}
        self._changed = False

    @property
    def breakpoints(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The addresses of all: the linear, and the physical ones, sorted."""
        return tuple(sorted(self._linear)), tuple(sorted(self._physical))

    def break_at(self, address: int, *, physical: bool = False) -> None:
        """Stop before the instruction at a linear, or at a physical, address.

        A linear one is in every address space. In the middle of an instruction it does
        nothing.
        """
        self._of(address, physical=physical).add(address)
        self._changed = True

    def remove(self, address: int, *, physical: bool = False) -> None:
        """Stop there no more; ValueError if there is none."""
        places = self._of(address, physical=physical)
        if address not in places:
            kind = "physical" if physical else "linear"
            message = f"breakpoint: none at {kind} address {address:#x}"
            raise ValueError(message)
        places.remove(address)
        self._changed = True

    def watch(self, address: int, size: int = 4, *, physical: bool = False) -> None:
        """Stop behind each instruction that changes some of `size` bytes.

        A linear address stands for the RAM that it is mapped to now. Raises ValueError
        where there is no RAM.
        """
        self._of(address, physical=physical)
        size = as_int("size", size, 1, x86.PAGE_SIZE + 1)
        parts = []
        at, end = address, address + size
        while at < end:
            part = min(end - at, x86.PAGE_SIZE - (at & 0xFFF))
            gpa = at if physical else self._vmm.memory.lookup(at)
            if gpa is None or not self._vmm.ram.backed(gpa >> x86.PAGE_SHIFT):
                message = f"watchpoint: there is no RAM at {at:#x}"
                raise ValueError(message)
            parts.append(Watch(address, gpa, part))
            at += part
        self._watches[address, size, physical] = parts
        self._changed = True

    def unwatch(self, address: int, size: int = 4, *, physical: bool = False) -> None:
        """Watch these bytes no more; ValueError if they are not watched."""
        if (address, size, physical) not in self._watches:
            message = f"watchpoint: none of {size} bytes at {address:#x}"
            raise ValueError(message)
        del self._watches[address, size, physical]
        self._changed = True

    def clear(self) -> None:
        """Stop nowhere."""
        self._watches.clear()
        self._linear.clear()
        self._physical.clear()
        self._changed = True

    def _of(self, address: int, *, physical: bool) -> set[int]:
        as_int("address", address, 0, _PHYSICAL if physical else _LINEAR)
        return self._physical if physical else self._linear

    def must_step(self) -> bool:
        """Have what was asked for be so; tell whether the guest is at a breakpoint."""
        vmm = self._vmm
        if self._changed:
            self._changed = False
            vmm.set_breakpoints(self._linear, self._physical)
            watches = self._watches.values()
            vmm.set_watches(one for parts in watches for one in parts)
        if not vmm.debug.breaks or vmm.pending_patch is not None:
            return False
        vmm.cpu.update_mode()
        linear = vmm.cpu.linear_eip
        gpa = self._vmm.memory.lookup(linear)
        return vmm.debug.is_break(linear, -1 if gpa is None else gpa)
