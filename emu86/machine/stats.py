"""What a run did, in numbers."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from emu86.notebook import table

if TYPE_CHECKING:
    from emu86.rings.technique.base import Technique


@dataclass(frozen=True, slots=True)
class ExitStat:
    """Exits for one reason: how many, and nanoseconds in all (0 if not measured)."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class Stats:
    """The statistics of a machine since it was built.

    exits: by reason; blocks: scanned before they first ran; decoded: of these, those
    that had to be disassembled; patched: sites by mnemonic; shadow: entries filled,
    dropped, resynchronised, CR3 loads and rebuilds; guest_share: part of the wall time
    that the guest itself ran (0 to 1), if exits were measured; wall_s, virtual_s:
    seconds; cpu: the CPU model.
    """

    exits: dict[str, ExitStat]
    blocks: int
    decoded: int
    patched: dict[str, int]
    shadow: dict[str, int]
    guest_share: float | None
    wall_s: float
    virtual_s: float
    cpu: str

    @classmethod
    def of(cls, vmm: "Technique", wall: float, slept: float) -> "Stats":
        """Collect the statistics of a guest that ran `wall` seconds, `slept` idle."""
        counts = vmm.counts()
        exits = {
            reason: ExitStat(*stat)
            for reason, stat in sorted(
                vmm.all_exits().items(), key=lambda item: -item[1][0]
            )
        }
        spent = sum(stat.ns for stat in exits.values()) / 1e9
        share = None
        if vmm.timing and wall:
            share = max(0.0, 1 - (spent + slept) / wall)
        return cls(
            exits=exits,
            blocks=counts.blocks,
            decoded=counts.decoded,
            patched=counts.patched,
            shadow=counts.shadow,
            guest_share=share,
            wall_s=wall,
            virtual_s=vmm.engine.clock.now / 1e9,
            cpu=vmm.vcpu.model.name,
        )

    @property
    def _exits(self) -> int:
        return sum(stat.count for stat in self.exits.values())

    def __repr__(self) -> str:
        """Say how many of each kind; the fields have what they were."""
        patched = sum(self.patched.values())
        return (
            f"<Stats: {self._exits:,} exits, {self.blocks:,} blocks scanned, "
            f"{patched:,} sites patched, {self.virtual_s:.6f} s of virtual time>"
        )

    def _repr_html_(self) -> str:
        """Show the exits in a notebook."""
        seen = [(reason, stat) for reason, stat in self.exits.items() if stat.count]
        measured = self.guest_share is not None
        rows = [("reason", "count", "mean ns")[: 2 + measured]]
        for reason, stat in seen:
            cells = reason, f"{stat.count:,}", f"{stat.ns // stat.count:,}"
            rows.append(cells[: len(rows[0])])
        return table(repr(self).strip("<>"), [*rows, ("all", f"{self._exits:,}")])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)
