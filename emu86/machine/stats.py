"""What a run did, in numbers."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

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
    seconds.
    """

    exits: dict[str, ExitStat]
    blocks: int
    decoded: int
    patched: dict[str, int]
    shadow: dict[str, int]
    guest_share: float | None
    wall_s: float
    virtual_s: float

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
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)
