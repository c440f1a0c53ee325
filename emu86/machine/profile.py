"""Where a guest's time goes: its own code by samples, and every exit by its address."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import compress
from operator import add, itemgetter, ne
from time import perf_counter_ns
from typing import Any, Final

from emu86.cpu import offsets
from emu86.cpu.state import BASE, HFLAGS, IS_INT, RFLAGS, RIP, SELECTOR
from emu86.errors import ConfigError
from emu86.machine.symbols import Names, Symbols
from emu86.mmu.paging import is_canonical, walk
from emu86.native import abi, handlers
from emu86.rings.technique.base import COMPILED, Technique
from emu86.spec import x86

# Work between two samples: some 25 microseconds, and no divisor of a timer's period.
_EVERY: Final = 99_991
_NOWHERE: Final = -1  # as the address of a block
_STACK: Final = 16384  # bytes of a kernel's stack, at most
_DEEPEST: Final = 64  # callers that are looked for
_CALL: Final = 7  # the longest form of a near CALL
_FF_2: Final = (2, 3, 6, 7)  # lengths of FF /2, a CALL by register or memory
# Counters that are looked at around every exit; those of INT n only around theirs.
_INT: Final = range(abi.COUNT_INT, abi.COUNT_INT + 256)
_COUNTED: Final = {
    reason: word for reason, word in COMPILED.items() if word not in _INT
}
_COUNTS: Final = itemgetter(*_COUNTED.values())
_CS, _CS_BASE, _SS_BASE = SELECTOR[x86.CS], BASE[x86.CS], BASE[x86.SS]

Place = tuple[int, int]  # the guest's ring, a linear address


def _how(reason: str, *, native: bool) -> str:
    return f"{reason}, {'compiled' if native else 'Python'}"


_BY_PORT: Final = {"IN": abi.COUNT_IN, "OUT": abi.COUNT_OUT}


@dataclass(frozen=True, slots=True)
class Spent:
    """What a function of the guest, or a page of its code, has spent in one way.

    ring: the guest's, 0 to 3; place: a symbol, or the page; reason: of the exits, ""
    for the guest's own code; native: handled by compiled code; count: exits, or samples
    of the guest's own code; virtual_ns: the guest's time; host_ns: the host's, measured
    where Python handles the exit, else 0.
    """

    ring: int
    place: str
    reason: str
    native: bool
    count: int
    virtual_ns: int
    host_ns: int


class Profile:
    """Where a guest's virtual time has gone since the profile was asked for.

    All exits are counted, at the address of the guest where they happened. The guest's
    own code is sampled, and stacks are, once in 25 virtual microseconds. The guest runs
    as without a profile, and the same run has the same profile, but for what is told of
    the host's time. Virtual time is told as at its usual rate, a quarter nanosecond for
    a byte of code; that of a halted CPU is left out. names: of functions.
    """

    def __init__(self, vmm: Technique, names: Names) -> None:
        if vmm.policy.stepped:
            message = f"profile: technique {vmm.name} runs one instruction at a time"
            raise ConfigError(message)
        engine = vmm.engine
        self._vmm = vmm
        self._q, self._d, self._clock = vmm.q, vmm.d, vmm.clock
        self._names = names
        self._native = engine.can.native
        self._shared, self._control = engine.shared, engine.control
        self._code: Counter[Place] = Counter()
        # By ring, address, reason and whether it was compiled: count, work, ns.
        self._exits: dict[tuple[int, int, str, bool], list[int]] = {}
        # By ring, addresses from the innermost, and what it was an exit for: samples.
        self._stacks: Counter[tuple[int, tuple[int, ...], str]] = Counter()
        self._behind_call: dict[int, bool] = {}  # by return address
        self._at: Place = 0, 0  # of the exit under way
        self._frame = 0  # EBP then
        self._reason = "", False  # why it is, and whether it was compiled
        self._work = self._start = 0  # when it began
        self._inside = False  # an exit is being handled by Python
        self._by_python = False  # it was
        vmm.on_exit = self._on_exit
        for name in (
            "on_exception", "on_invalid", "on_in", "on_out", "on_cpuid",
            "on_system_call",
        ):  # fmt: skip
            handler = self._timed(getattr(engine, name), raised=name == "on_exception")
            setattr(engine, name, handler)
        engine.intercept(self._on_exception, self._on_instruction, self._on_stop)
        self._control[abi.LATE_AT] = _NOWHERE
        self._clock.sample(_EVERY)

    # -- while it runs -----------------------------------------------------------------

    def _ring(self) -> int:
        return x86.CPL_USER if self._q[RFLAGS] & x86.VM else self._d[_CS] & 3

    def _is_64_bit(self) -> bool:
        # By the engine's own state: the VMM may not have heard yet what code runs.
        return bool(self._d[HFLAGS] & offsets.HF_CS64)

    def _linear(self, offset: int, base: int) -> int:
        """Return a linear address; base: where that of its segment is kept."""
        if self._is_64_bit():
            return offset & x86.MASK64
        return offset + self._q[base] & x86.MASK32

    def _begin(self, behind: int = 0) -> None:
        """Learn where the guest is at an exit; EIP may be `behind` its instruction."""
        q = self._q
        self._at = self._ring(), self._linear(q[RIP] - behind, _CS_BASE)
        self._frame = q[x86.EBP]
        self._work = self._control[abi.NOW]

    def _add(self, reason: str, native: bool, ns: int = 0, count: int = 1) -> None:
        """Count an exit that began where `_begin` was called, or several there."""
        self._reason = reason, native
        key = *self._at, reason, native
        spent = self._exits.get(key)
        if spent is None:
            spent = self._exits[key] = [0, 0, 0]
        work = self._control[abi.NOW]
        spent[0] += count
        spent[1] += work - self._work
        spent[2] += ns
        self._work = work

    def _end(self) -> None:
        """Take the samples that have become due in an exit."""
        if self._control[abi.NOW] >= self._clock.sample_at:
            reason, native = self._reason
            count = self._clock.take_samples()
            self._sample(*self._at, _how(reason, native=native), count)

    def _on_exception(self, handle: Callable[..., Any], vector: int) -> None:
        control = self._control
        is_int = self._d[IS_INT] == 1
        self._begin(is_int)
        before, start = _COUNTS(control), perf_counter_ns()
        self._by_python = False
        handle(vector)
        if not self._by_python:
            ns = 0 if self._native else perf_counter_ns() - start
            after = _COUNTS(control)
            if after != before:
                reason = next(compress(_COUNTED, map(ne, before, after)))
            else:
                reason = f"INT {vector:02X}h" if is_int else x86.event_name(vector)
            self._add(reason, self._native, ns)
        self._end()

    def _on_instruction(
        self, reason: str, handle: Callable[..., Any], *passed: int
    ) -> Any:  # noqa: ANN401 (what the handler does)
        self._begin()
        start = perf_counter_ns()
        self._by_python = False
        word = _BY_PORT.get(reason)
        before = 0 if word is None else self._control[word]
        result = handle(*passed)
        if not self._by_python:
            ns = 0 if self._native else perf_counter_ns() - start
            # A REP INS or OUTS may have been many.
            count = 1 if word is None else self._control[word] - before
            self._add(reason, self._native, ns, count)
        self._end()
        return result

    def _timed(
        self, handler: Callable[..., Any], *, raised: bool
    ) -> Callable[..., Any]:
        """Return what calls one of Python's handlers, and knows where that began."""

        def handle(*arguments: int) -> Any:  # noqa: ANN401 (what the handler does)
            self._begin(int(raised and self._d[IS_INT] == 1))
            self._inside = self._by_python = True
            self._start = perf_counter_ns()
            try:
                return handler(*arguments)
            finally:
                self._inside = False
                self._end()

        return handle

    def _on_exit(self, reason: str) -> None:
        """Count an exit that Python has handled, or an interrupt that it delivers."""
        if reason == "interrupt" or not self._inside:
            # No exit of its own: it is told from where the guest is now.
            kept = self._at, self._frame, self._work, self._reason
            self._begin()
            self._add(reason, native=False)
            self._at, self._frame, self._work, self._reason = kept
            return
        now = perf_counter_ns()
        self._add(reason, native=False, ns=now - self._start)
        self._start = now

    def _on_stop(self) -> bool:
        """Take the samples for which alone a handler would stop the engine.

        Returns whether it is to stop, for something else. The samples that are due at
        the end of an exit are left to `_end`.
        """
        control, clock = self._control, self._clock
        at, control[abi.LATE_AT] = control[abi.LATE_AT], _NOWHERE
        ends = control[abi.NULL_USED] or control[abi.BEHIND] & abi.HALTED
        if ends or control[abi.NOW] < control[abi.STOP_AT]:
            return True  # for a null register, HLT, or an interrupt
        if at == _NOWHERE:
            return clock.is_due  # the end of an exit
        if count := clock.take_samples():
            self._on_block(at, count)
        # A handler that found the sample due did not look at interrupts.
        return clock.is_due or handlers.must_stop(self._shared, at)

    def _on_block(self, linear: int, count: int) -> None:
        """Take samples of the guest's own code: of the block that comes next."""
        ring = self._ring()
        linear &= x86.MASK64 if self._is_64_bit() else x86.MASK32
        self._code[ring, linear] += count
        self._frame = self._q[x86.EBP]
        self._sample(ring, linear, "", count)

    def _sample(self, ring: int, linear: int, reason: str, count: int) -> None:
        # A program may have no frame pointers, and its addresses are one of many's.
        callers = [] if ring == x86.CPL_USER else self._callers()
        self._stacks[ring, (linear, *callers), reason] += count

    def _callers(self) -> list[int]:
        """Follow the chain of frame pointers; return linear addresses of calls.

        What is no such chain ends at once: behind a call there is a return address.
        """
        size, kind = (8, "Q") if self._is_64_bit() else (4, "I")
        found: list[int] = []
        frame = first = self._linear(self._frame, _SS_BASE)
        page, words = -1, memoryview(b"")
        # A link and a return address, in one page: stacks are aligned so, mostly.
        last = x86.PAGE_SIZE - size
        while len(found) < _DEEPEST and not frame % size and frame & 0xFFF != last:
            if frame >> x86.PAGE_SHIFT != page:
                page = frame >> x86.PAGE_SHIFT
                words = memoryview(self._page(frame)).cast(kind)  # type: ignore[call-overload]
            at = (frame & 0xFFF) // size
            if not words:
                break
            after = self._linear(words[at + 1], _CS_BASE)
            if not self._is_behind_call(after):
                break
            found.append(self._linear(words[at + 1] - 1, _CS_BASE))
            link = self._linear(words[at], _SS_BASE)
            if not frame < link < first + _STACK:
                break
            frame = link
        return found

    def _page(self, linear: int) -> memoryview:
        """Return the guest's page at a linear address; nothing where there is none."""
        ram, vcpu = self._vmm.ram, self._vmm.vcpu
        # By CR3 itself: the VMM may not have heard yet that compiled code wrote it.
        if not is_canonical(linear):
            return memoryview(b"")
        found = walk(ram, vcpu, linear)
        if not (found.mapped and ram.backed(found.page)):
            return memoryview(b"")
        return ram.bytes[found.page << x86.PAGE_SHIFT :][: x86.PAGE_SIZE]

    def _is_behind_call(self, linear: int) -> bool:
        known = self._behind_call.get(linear)
        if known is None:
            at = linear & 0xFFF
            start = linear - x86.PAGE_SIZE
            before = b"" if at >= _CALL or start < 0 else bytes(self._page(start))
            code = (before + self._page(linear)[:at])[-_CALL:]
            known = len(code) == _CALL and (
                code[-5] == 0xE8
                or any(code[-n] == 0xFF and code[1 - n] >> 3 & 7 == 2 for n in _FF_2)
            )
            self._behind_call[linear] = known
        return known

    # -- what it has found -------------------------------------------------------------

    @property
    def known(self) -> list[Symbols]:
        """The symbols by which it names places: those given, and a Linux's own."""
        return self._names.known

    def _namer(self) -> Callable[[int], str]:
        """Return what names the function at a linear address, or the page."""
        known = self.known

        @cache
        def name(linear: int) -> str:
            names = (symbols_.name(linear) for symbols_ in known)
            found = next(filter(None, names), "")
            # It becomes a part of a line, and is shown on a terminal.
            found = "".join(
                c if c.isprintable() and c not in "; " else "?" for c in found
            )
            return found or f"page {linear & -x86.PAGE_SIZE:08X}h"

        return name

    def spent(self) -> list[Spent]:
        """Return what each function has spent in which way, the dearest first."""
        name = self._namer()
        found: dict[tuple[int, str, str, bool], list[int]] = {}
        code = {
            (ring, linear, "", False): [count, count * _EVERY, 0]
            for (ring, linear), count in self._code.items()
        }
        for key, numbers in (*code.items(), *self._exits.items()):
            ring, linear, reason, native = key
            total = found.setdefault((ring, name(linear), reason, native), [0, 0, 0])
            total[:] = map(add, total, numbers)
        spent = [
            Spent(*place, count, work // abi.QUARTERS, ns)
            for place, (count, work, ns) in found.items()
        ]
        return sorted(
            spent, key=lambda row: (-row.virtual_ns, row.ring, row.place, row.reason)
        )

    def folded(self) -> str:
        """Return the stacks of all samples, as flame-graph viewers read them.

        A line has the ring, the functions from the outermost, and the reason of the
        exit if it was one, with `;` in between; then how many samples.
        """
        name = self._namer()
        lines: Counter[str] = Counter()
        for (ring, stack, reason), count in self._stacks.items():
            frames = [f"ring {ring}", *map(name, reversed(stack))]
            lines[";".join([*frames, reason] if reason else frames)] += count
        return "".join(f"{line} {count}\n" for line, count in sorted(lines.items()))
