"""Who is told when guest code, descriptor tables or translations change.

Each list is in the order of registration, which is the order of effects. What caches
anything that hangs on guest memory (`GuestMemory`, and `rings.technique`'s) appends its
methods when it is made; who changes something calls them all:

    for tell in listeners.code_changed:
        tell(page)
"""

from collections.abc import Callable


class Listeners:
    """The lists of one virtual machine.

    code_changed: with a guest page number; its code has changed, or is about to.
    table_written: with a guest page number; it holds descriptors that were copied, and
    is about to be written.
    rights_lost: mappings allow less than they did: what was writable may not be.
    flushed_all: translations have changed, global ones among them.
    flushed_nonglobal: MOV to CR3 has changed those that are not global.
    flushed_page: with a linear address; INVLPG of it.
    dropped_page: with a linear address; the compiled INVLPG of it, which leaves pages
    of descriptors and of compiled sites to Python.
    descriptors_read: with a linear page number; descriptors on it have been copied.
    ring_changed: the guest enters or leaves its rings 1 and 2.
    checks_changed: other accesses than before must be looked at before they run.
    """

    def __init__(self) -> None:
        self.code_changed: list[Callable[[int], None]] = []
        self.table_written: list[Callable[[int], None]] = []
        self.rights_lost: list[Callable[[], None]] = []
        self.flushed_all: list[Callable[[], None]] = []
        self.flushed_nonglobal: list[Callable[[], None]] = []
        self.flushed_page: list[Callable[[int], None]] = []
        self.dropped_page: list[Callable[[int], None]] = []
        self.descriptors_read: list[Callable[[int], None]] = []
        self.ring_changed: list[Callable[[], None]] = []
        self.checks_changed: list[Callable[[], None]] = []
