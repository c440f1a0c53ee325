"""Transfers that have been checked before: the next one alike is done at once.

The plans stand in the control block, where `native.transfers`, compiled or not, looks
for them.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from emu86.cpu.engine import Engine
from emu86.native import abi
from emu86.native.transfers import (
    deliver_by_plan,
    external,
    gate_slot,
    return_by_plan,
    return_slot,
)
from emu86.native.transfers64 import deliver64, external64, return64
from emu86.spec import x86


def _clear(records: ctypes.Array[Any]) -> None:
    ctypes.memset(records, 0, ctypes.sizeof(records))


class Plans:
    """Those of one CPU; each is valid until a descriptor table is written or loaded.

    is_watched: tells whether a write to any of these descriptors, by selector, would be
    told; watch_gate: has a write to the gate at a linear address told, and says whether
    that is possible; stack_at: where in this process the TSS's ESP and SS for ring 0
    are, or 0; refresh: reads the tables of these selectors again if they were written
    to. delivers: nobody else wants to see events before they are delivered.
    """

    def __init__(
        self,
        engine: Engine,
        is_watched: Callable[..., bool],
        watch_gate: Callable[[int], bool],
        stack_at: Callable[[], int],
        refresh: Callable[[set[int]], None],
    ) -> None:
        self.is_watched = is_watched
        self.watch_gate = watch_gate
        self._stack_at = stack_at
        self._refresh = refresh
        self._used: set[int] = set()  # selectors & FFFCh of what plans load
        self.delivers = True
        self._control = engine.shared
        self._cpu = abi.Cpu.from_address(engine.control[abi.CPU])
        native = engine.native
        # By EFER.LMA: returns, events, interrupts.
        self._by_mode = (
            (native(return_by_plan), native(deliver_by_plan), native(external)),
            (native(return64), native(deliver64), native(external64)),
        )
        self.switch(ia32e=False)

    def switch(self, *, ia32e: bool) -> None:
        """Go by the rules of IA-32e mode from now on, or by the others."""
        self._return, self._deliver, self._interrupt = self._by_mode[ia32e]

    def suspend(self) -> None:
        """Use none before the descriptor tables are read again."""
        self._control.stale = 1

    def changed(self, selector: int) -> None:
        """Learn that the descriptor of a selector has changed."""
        if selector in self._used:
            self.forget()

    def _resume(self) -> None:
        if self._control.stale:
            self._refresh(self._used)
            self._control.stale = 0

    def forget(self) -> None:
        """Drop them all: a descriptor table is another one now."""
        self._used.clear()
        self._control.gdt_used = 0
        _clear(self._control.verws)
        _clear(self._control.returns)
        self.forget_gates()

    def forget_gates(self) -> None:
        """Drop those of events: the IDT or the TSS has changed."""
        _clear(self._control.gates)

    def keep_return(self, selector: int, ss: int = 0) -> None:
        """Keep an IRET to what CS and SS hold now; ss: 0 for one in ring 0."""
        key = abi.PLANNED | selector | ss << 16
        self._keep(self._control.returns[return_slot(key)], key)

    def keep_gate(
        self, vector: int, cpl: int, offset: int, dpl: int, *, masks: bool
    ) -> None:
        """Keep an event in ring `cpl` that has led to what CS and SS hold now."""
        stack = self._stack_at() if cpl else 0
        if cpl and not stack:
            return
        plan = self._control.gates[gate_slot(vector, cpl)]
        self._keep(plan, abi.PLANNED | vector << 2 | cpl)
        plan.stack, plan.offset, plan.dpl = stack, offset, dpl
        plan.masks_if = masks

    def _keep(self, plan: abi.Plan, key: int) -> None:
        self._resume()
        segments = self._cpu.segments
        for index in (x86.CS, x86.SS):
            self._use(segments[index].selector)
        plan.key = key
        plan.cs, plan.ss = segments[x86.CS], segments[x86.SS]

    def keep_verw(
        self, linear: int, operand: int, selector: int, *, zf: bool, length: int
    ) -> int:
        """Keep a VERW at `linear` of `operand`; return the index of what is kept."""
        self._resume()
        index = (linear >> 3) % abi.VERWS
        known = self._control.verws[index]
        known.known, known.operand = abi.PLANNED | selector, operand
        known.zf, known.length = (x86.ZF if zf else 0), length
        self._use(selector)
        return index

    def _use(self, selector: int) -> None:
        self._used.add(selector & 0xFFFC)
        if not selector & 4 and selector >> 3 < abi.GDT_MOST:
            self._control.gdt_used |= 1 << (selector >> 3)

    def do_return(self) -> bool:
        """Do an IRETD, or IRETQ, for which there is a plan; False: nothing is done."""
        self._resume()
        return bool(self._return(True))

    def interrupt(self, vector: int) -> bool:
        """Deliver an interrupt for which there is a plan; False: nothing is done."""
        return self.delivers and bool(self._interrupt(vector))

    def deliver(
        self, vector: int, error: int | None, *, fault: bool, software: bool
    ) -> bool:
        """Deliver an event for which there is a plan; False: nothing is done."""
        self._resume()
        code = -1 if error is None else error
        return self.delivers and bool(self._deliver(vector, code, fault, software))
