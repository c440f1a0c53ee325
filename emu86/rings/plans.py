"""Transfers that have been checked before: the next one alike is done at once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Plan(NamedTuple):
    """What a transfer to a code segment (and a stack segment) loads.

    cs, ss: selectors; cs_hidden, ss_hidden: base, limit and attributes; offset, kind:
    of an interrupt's gate (its type, and its DPL from bit 8 on).
    """

    cs: int
    cs_hidden: tuple[int, int, int]
    ss: int = 0
    ss_hidden: tuple[int, int, int] = (0, 0, 0)
    offset: int = 0
    kind: int = 0


@dataclass
class Plans:
    """Those of one CPU; each is valid until a descriptor table is written or loaded.

    is_watched: tells whether a write to any of these descriptors, by selector, would be
    told; watch_gate: has a write to the gate at a linear address told, and says whether
    that is possible; returns: by CS and SS, of IRET to ring 0 or 3; gates: by vector
    and CPL, of events in ring 0 or 3.
    """

    is_watched: Callable[..., bool]
    watch_gate: Callable[[int], bool]
    returns: dict[int, Plan] = field(default_factory=dict)
    gates: dict[int, Plan] = field(default_factory=dict)

    def forget(self) -> None:
        """Drop them all: a descriptor table has changed."""
        self.returns.clear()
        self.gates.clear()
