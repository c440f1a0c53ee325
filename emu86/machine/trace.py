"""The timeline of a run: every exit, as a line of a file (`machine.tracefile`).

What Unicorn reports goes to Python first, and from there to the handler that it went
to before, compiled or not. So the guest runs as without a trace, and has the same
exits. What a handler has done is told from the state before it and behind it.
"""

import gzip
import json
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import compress
from operator import itemgetter, ne
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from emu86.cpu import offsets
from emu86.cpu.state import BASE, CR, ERROR_CODE, HFLAGS, IS_INT, RFLAGS, RIP, SELECTOR
from emu86.cpu.vcpu import SHARED
from emu86.errors import ConfigError
from emu86.machine import tracefile
from emu86.machine.filters import Filter
from emu86.machine.looking import disassemble, read_linear, shadow_entry
from emu86.machine.symbols import Names
from emu86.machine.tracefile import Code, Exit
from emu86.mmu.paging import is_canonical, walk
from emu86.native import abi
from emu86.notebook import table
from emu86.rings.insn.table import RECORDS
from emu86.rings.technique.base import COMPILED, Technique
from emu86.spec import x86

_BUFFERED: Final = 4096  # lines that wait to be written
_CR2: Final = CR + 2
_CS, _CS_BASE = SELECTOR[x86.CS], BASE[x86.CS]
_SELECTORS: Final = tuple(one - 2 * (offsets.SEGMENTS // 8) for one in SELECTOR)
_BASES: Final = tuple(one - offsets.SEGMENTS // 8 for one in BASE)
_GPR: Final = struct.Struct("<16Q").unpack
_SEGMENTS: Final = slice(offsets.SEGMENTS // 8, offsets.LDTR // 8)
_SYSTEM_FLAGS: Final = (
    x86.IF | x86.TF | x86.NT | x86.AC | x86.VM | x86.VIF | x86.VIP | x86.ID
)
# Words of what compiled handlers use of the guest's control registers, by their names.
_CONTROL_NAMES: Final = (
    "cr0", "cr2", "cr3", "cr4", "pdpte0", "pdpte1", "pdpte2", "pdpte3", "efer",
    "star", "lstar", "cstar", "fmask", "kernel_gs_base", "tsc_aux",
)  # fmt: skip
assert len(_CONTROL_NAMES) == SHARED
_CR2_AT, _CR3_AT, _EFER_AT = map(_CONTROL_NAMES.index, ("cr2", "cr3", "efer"))
# Counters that are looked at around every exception; those of INT n tell nothing more.
_INT: Final = range(abi.COUNT_INT, abi.COUNT_INT + 256)
_COUNTED: Final = {
    reason: word for reason, word in COMPILED.items() if word not in _INT
}
_HOOKED: Final = ("RDTSC", "IN", "OUT", "CPUID", "SYSCALL", "SYSENTER")
# What comes of SYSCALL and SYSENTER besides.
_FAULTS: Final = ("#UD", "#GP", "#DB")


def _reasons() -> set[str]:
    """Return what the hook of exceptions may have for reasons."""
    names = {*COMPILED, *x86.VECTOR_NAMES.values(), "#PF I/O", "#PF ahead", ""}
    names.update(record.mnemonic for record in RECORDS)
    return names - {"RDTSC", "CPUID", "interrupt"}


class _State(NamedTuple):
    """The state between two steps: where the guest is, and what an exit may change.

    work: the clock's word; general, segments, control: bytes.
    """

    rip: int
    hflags: int
    cs: int
    flags: int
    work: int
    general: bytes
    segments: bytes
    control: bytes


class Trace:
    """The exits of a machine, recorded from when it was asked for: see `Machine.trace`.

    path: of the file, "" if there is none; count: exits that were recorded.
    """

    def __init__(
        self,
        vmm: Technique,
        path: str | PathLike[str] | None,
        *,
        matching: str,
        last: int,
        names: Names,
        header: dict[str, object],
    ) -> None:
        if vmm.policy.stepped:
            message = f"trace: technique {vmm.name} has no exits"
            raise ConfigError(message)
        self._filter = Filter(matching) if matching else None
        self._vmm, self._names = vmm, names
        engine = vmm.engine
        self._q, self._d, self._clock = vmm.q, vmm.d, vmm.clock
        self._control, self._shared = engine.control, engine.shared
        self._words = engine.control[abi.CR0 : abi.CR0 + SHARED].cast("B").cast("Q")
        self._live, self._native = engine.can.live, engine.can.native
        self._header = json.dumps(
            {tracefile.MARK: tracefile.VERSION, **header, "filter": matching}
        )
        self.path = "" if path is None else fspath(path)
        self._error: OSError | None = None
        self._closed = False
        # Each line with the number of its instruction; those with the same one follow.
        self._kept: deque[tuple[int, str]] = deque(maxlen=last or None)
        self._last = last
        self._file: IO[bytes] | None = None
        if self.path:
            try:
                self._file = _open(self.path)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise ConfigError(f"trace: {self.path}: {why}") from None
        self._written = self._file is None  # the header
        self._codes: dict[Code, int] = {}
        self._by_number: list[Code] = []
        self._told: set[int] = set()  # numbers of codes that are in the file
        # By linear address, bits and whether it is a user's: where in RAM it is, and
        # the number. Users' are of the process of `_process` alone.
        self._known: dict[tuple[int, int, bool], tuple[int, int]] = {}
        self._process = 0
        self._possible: dict[str, bool] = {}
        self.count = 0
        # The exit under way.
        self._inside = False
        self._told_reason = False  # Python has handled it
        self._before = self._state()
        self._time = 0
        self._behind = -1  # the vector of an INT n, which EIP is behind
        self._hooked = False  # it is an IN or OUT, of which the hook will tell
        self._held: tuple[str, _State, _State, int] | None = None  # until it does
        self._rest: _State | None = (
            None  # of an exit that ends in an interrupt: see `_on_exit`
        )
        self._interrupts: list[tuple[_State, _State, int]] = []
        self._ports: list[str] = []
        self._events: list[str] = []
        self._page: tuple[int, int, int] | None = None
        self._seen = _Seen(self, self._before)
        self._subscribe()

    def _subscribe(self) -> None:
        vmm, engine = self._vmm, self._vmm.engine
        hooks = {name for name in _HOOKED if self._may(name)}
        hooks.update(
            name for name in ("SYSCALL", "SYSENTER") if any(map(self._may, _FAULTS))
        )
        if any(map(self._may, _reasons())):
            hooks.add("exception")
        # Whether what is counted nowhere else may match. If not, only those counters
        # are looked at that tell of a match: two at least, for `itemgetter`.
        self._tells_all = any(map(self._may, _reasons() - _COUNTED.keys()))
        counted = [
            (reason, word)
            for reason, word in _COUNTED.items()
            if self._tells_all or self._may(reason)
        ] or [("", abi.UC)]
        names, words = zip(*counted, *counted[-1:], strict=True)
        self._counted, self._counts = names, itemgetter(*words)
        vmm.on_exit = self._on_exit
        vmm.on_interrupt = self._on_interrupt
        observers = vmm.observers
        observers.pio.append(self._on_port)
        observers.inject.append(self._on_event)
        engine.on_invalid = self._around(engine.on_invalid)
        engine.intercept(self._on_exception, self._on_instruction, hooks=hooks)

    def _may(self, reason: str) -> bool:
        """Tell whether an exit for a reason may match the filter."""
        if self._filter is None:
            return True
        found = self._possible.get(reason)
        if found is None:
            found = self._possible[reason] = self._filter.may_match(reason)
        return found

    # -- while it runs -----------------------------------------------------------------

    def _state(self) -> _State:
        """Keep what is told of the state: where it is, and all that may change."""
        q, d, control = self._q, self._d, self._control
        return _State(
            q[RIP], d[HFLAGS], d[_CS], q[RFLAGS], control[abi.NOW],
            q[:16].tobytes(), q[_SEGMENTS].tobytes(), self._words.tobytes(),
        )  # fmt: skip

    def _begin(self) -> None:
        self._before = self._state()
        self._time = self._clock.now
        self._inside, self._told_reason = True, False

    def _on_exception(self, handle: Callable[..., Any], vector: int) -> None:
        """Have an exception handled, and record what it was."""
        d, control = self._d, self._control
        self._begin()
        is_int = d[IS_INT]
        self._behind = vector if is_int == 1 else -1
        faults = vector == x86.VEC_PF and not is_int
        if faults:
            gva = self._q[_CR2]
            self._page = gva, d[ERROR_CODE], shadow_entry(self._vmm, gva)
        events = self._shared.event_count
        counts = self._counts(control)
        handle(vector)
        if not self._told_reason:
            after = self._counts(control)
            if after != counts:
                reason = next(compress(self._counted, map(ne, counts, after)))
            else:
                reason = f"INT {vector:02X}h" if is_int else x86.event_name(vector)
            if (self._tells_all or after != counts) and self._may(reason):
                if self._shared.event_count != events:
                    kept = self._shared.events[
                        (self._shared.event_count - 1) % abi.CHANGES_KEPT
                    ]
                    error = "null" if kept.error < 0 else str(kept.error)
                    self._events.append(f"[{kept.vector},{error}]")
                elif is_int == 1 and reason.startswith("INT "):
                    self._events.append(f"[{vector},null]")
                self._emit(reason, self._native, self._before, self._state())
        self._page = None
        self._behind = -1
        self._end()

    def _on_instruction(
        self, reason: str, handle: Callable[..., Any], *passed: int
    ) -> Any:  # noqa: ANN401 (what the handler does)
        self._begin()
        self._hooked = reason in ("IN", "OUT")
        result = handle(*passed)
        self._hooked = False
        self._ports.clear()
        if reason == "IN":
            port, width = passed
            self._ports.append(
                f"[{port},{width},{result & (1 << 8 * width) - 1},false]"
            )
        elif reason == "OUT":
            port, width, value = passed
            self._ports.append(f"[{port},{width},{value & (1 << 8 * width) - 1},true]")
        if self._told_reason:
            self._emit_held()
        elif self._may(reason):
            self._emit(reason, self._native, self._before, self._state())
        self._end()
        return result

    def _around(self, handler: Callable[[], None]) -> Callable[[], None]:
        """Return what calls a handler of Python's that Unicorn reports to alone."""

        def handle() -> None:
            self._begin()
            handler()
            self._end()

        return handle

    def _on_exit(self, reason: str) -> None:
        """Learn what an exit was that Python has handled.

        Or that it delivers an interrupt now, maybe at the end of an exit: `_rest` is
        the state then.
        """
        if reason == "interrupt":
            self._rest = self._state()
            if not self._inside:
                self._before, self._time = self._rest, self._clock.now
            return
        self._told_reason = True
        if not self._inside:
            self._before, self._time = self._state(), self._clock.now
        after = self._state() if self._rest is None else self._rest
        self._emit_held()
        if self._hooked:
            # Only the hook knows the value of an IN.
            self._held = reason, self._before, after, self._time
        else:
            self._emit(reason, False, self._before, after)
        self._before = after
        self._emit_interrupts()

    def _emit_held(self) -> None:
        if self._held is not None:
            reason, before, after, self._time = self._held
            self._held = None
            self._emit(reason, False, before, after)

    def _on_interrupt(self, vector: int) -> None:
        before, self._rest = self._rest or self._before, None
        self._interrupts.append((before, self._state(), vector))
        self._rest = before if self._inside and not self._told_reason else None
        if not self._inside or self._told_reason:
            self._emit_interrupts()

    def _emit_interrupts(self) -> None:
        self._rest = None
        pending, self._interrupts = self._interrupts, []
        for before, after, vector in pending:
            self._ports.clear()
            self._events[:] = [f"[{vector},null]"]
            page, self._page = self._page, None
            behind, self._behind = self._behind, -1
            self._emit("interrupt", False, before, after)
            self._page, self._behind = page, behind
            self._before = after

    def _end(self) -> None:
        self._inside = False
        self._held = self._rest = None
        self._ports.clear()
        self._events.clear()

    def _on_port(self, port: int, width: int, value: int, write: bool) -> None:
        text = "true" if write else "false"
        self._ports.append(f"[{port},{width},{value},{text}]")

    def _on_event(self, vector: int, error: int | None) -> None:
        if self._interrupts or self._rest is not None:
            return  # of an interrupt, which is told itself
        self._events.append(f"[{vector},{'null' if error is None else error}]")

    # -- one exit ----------------------------------------------------------------------

    def _emit(self, reason: str, native: bool, before: _State, after: _State) -> None:
        """Record an exit, if the filter lets it through."""
        ports, events = ",".join(self._ports), ",".join(self._events)
        self._ports.clear()
        self._events.clear()
        _, hflags, cs, flags, work, general, segments, words = before
        ring = _ring(hflags, cs, flags)
        cr3 = int.from_bytes(words[8 * _CR3_AT : 8 * _CR3_AT + 8], "little")
        seen = self._seen
        if self._filter is not None:
            if not self._may(reason):
                return
            seen.time, seen.ring, seen.engine = self._time, ring, hflags & 3
            seen.cr3, seen.reason, seen.native = cr3, reason, native
            seen.state = before
            if not self._filter.matches(seen):
                return
        number = self._code_number(before, ring, cr3)
        self.count += 1
        text = (
            f'{{"n":{self.count},"t":{self._time},"ring":{ring},"engine":{hflags & 3},'
            f'"cr3":"{cr3:x}","at":{number},"reason":"{reason}",'
            f'"by":"{"compiled" if native else "Python"}",'
            f'"cost":{(after.work - work) // abi.QUARTERS}'
        )
        wide = words[8 * _EFER_AT + 1] & x86.EFER_LMA >> 8
        if (
            after.general != general
            or after.segments != segments
            or after.control != words
            or ((after.flags ^ flags) & _SYSTEM_FLAGS)
        ):
            text += _changes(before, after, wide=bool(wide))
        code = self._by_number[number]
        next_ring = _ring(after.hflags, after.cs, after.flags)
        ip = after.rip if after.hflags & offsets.HF_CS64 else after.rip & x86.MASK32
        if (
            next_ring != ring
            or after.cs != cs
            or (ip != code.ip and ip != code.ip + len(code.data))
        ):
            text += f',"to":[{next_ring},"{after.cs:x}","{ip:x}"]'
        if ports:
            text += f',"io":[{ports}]'
        if self._page is not None:
            text += self._page_text()
        if events:
            text += f',"events":[{events}]'
        self._kept.append((number, text + "}\n"))
        if not self._last and self._file is not None and len(self._kept) >= _BUFFERED:
            self._write()

    def _page_text(self) -> str:
        assert self._page is not None
        gva, error, entry = self._page
        vmm = self._vmm
        gpte = 0
        if vmm.vcpu.cr0 & x86.CR0_PG and is_canonical(gva):
            gpte = walk(vmm.ram, vmm.vcpu, gva).pte
        after = shadow_entry(vmm, gva)
        return f',"page":["{gva:x}",{error},"{gpte:x}","{entry:x}","{after:x}"]'

    def code(self, before: _State, ring: int, cr3: int) -> Code:
        """Return the instruction that an exit is at, in a state before it."""
        return self._by_number[self._code_number(before, ring, cr3)]

    def _code_number(self, before: _State, ring: int, cr3: int) -> int:
        """Return the number of the instruction that the exit is at."""
        rip, hflags = before.rip, before.hflags
        if hflags & offsets.HF_CS64:
            bits, base = 64, 0
        else:
            rip &= x86.MASK32
            bits = 32 if hflags & offsets.HF_CS32 else 16
            base = int.from_bytes(before.segments[8 * _BASES[x86.CS] :][:8], "little")
        if self._behind >= 0:
            rip -= self._length_behind(rip + base, bits)
        linear = rip + base & (x86.MASK64 if bits == 64 else x86.MASK32)
        user = ring == x86.CPL_USER
        key = linear, bits, user
        ram = self._vmm.ram
        if user and cr3 != self._process:
            self._process = cr3
            self._known = {key: at for key, at in self._known.items() if not key[2]}
        known = self._known.get(key)
        if known is not None:
            gpa, number = known
            data = self._by_number[number].data
            if ram.bytes[gpa : gpa + len(data)] == data:
                return number
        data = read_linear(self._vmm, linear, x86.LONGEST_INSN)
        insn = disassemble(data, rip, bits)
        text, data = (str(insn), insn.code) if insn else ("", data[:1])
        place = self._names.place(linear, kernel=not user)
        code = Code(linear, before.cs, rip, bits, data, text, place)
        number = self._codes.setdefault(code, len(self._by_number))
        if number == len(self._by_number):
            self._by_number.append(code)
        if (linear & 0xFFF) + len(data) <= x86.PAGE_SIZE and is_canonical(linear):
            found = walk(ram, self._vmm.vcpu, linear)
            if found.mapped and ram.backed(found.page):
                gpa = found.page << x86.PAGE_SHIFT | linear & 0xFFF
                self._known[key] = gpa, number
        return number

    def _length_behind(self, linear: int, bits: int) -> int:
        """Return how far EIP is behind the INT n, or patched site, that it is at."""
        mask = x86.MASK64 if bits == 64 else x86.MASK32
        if self._behind not in (x86.VEC_BP, x86.VEC_OF):
            return 2
        data = read_linear(self._vmm, linear - 2 & mask, 2)
        return 2 if data == bytes([0xCD, self._behind]) else 1

    # -- the file ----------------------------------------------------------------------

    def _lines(self) -> Iterator[str]:
        """Yield what has not been written yet, each instruction before it is named."""
        if not self._written:
            self._written = True
            yield self._header + "\n"
        for number, line in self._kept:
            if number not in self._told:
                self._told.add(number)
                yield tracefile.code_line(number, self._by_number[number]) + "\n"
            yield line

    def _write(self) -> None:
        if self._file is not None and self._error is None:
            try:
                self._file.write("".join(self._lines()).encode())
            except OSError as error:
                self._error = error  # the guest runs on
        self._kept.clear()

    def close(self) -> None:
        """Write the end of the file. Raises ConfigError if it could not be written."""
        if self._file is None or self._closed:
            return
        self._closed = True
        self._write()
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise ConfigError(f"trace: {self.path}: {self._error.strerror}")

    def _repr_html_(self) -> str:
        """Show in a notebook how many exits of each reason are kept."""
        where = self.path or "in memory"
        counts = Counter(one.reason for one in self.exits())
        title = f"Trace: {self.count:,} exits, {where}"
        return table(title, ((reason, n) for reason, n in counts.most_common()))

    def exits(self) -> Iterator[Exit]:
        """Yield the exits that are kept, of a trace without a file."""
        self._told.clear()
        return tracefile.parse(list(self._lines()))


class _Seen:
    """An exit, as far as a filter looks at it."""

    def __init__(self, trace: Trace, state: _State) -> None:
        self._trace = trace
        self.time = self.ring = self.engine = self.cr3 = 0
        self.reason, self.native = "", False
        self.state = state

    @property
    def code(self) -> Code:
        return self._trace.code(self.state, self.ring, self.cr3)


def _open(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        # No date in it: the same run has the same file.
        return gzip.GzipFile(path, "wb", compresslevel=1, mtime=0)  # type: ignore[return-value]
    return Path(path).open("wb")


def _ring(hflags: int, cs: int, flags: int) -> int:
    """Return the guest's ring."""
    if not hflags & offsets.HF_PE:
        return 0
    return x86.CPL_USER if flags & x86.VM else cs & 3


def _changes(before: _State, after: _State, *, wide: bool) -> str:
    """Return the registers that have changed, from what to what."""
    found: list[str] = []

    def add(name: str, old: int, new: int) -> None:
        if old != new:
            found.append(f'"{name}":["{old:x}","{new:x}"]')

    if before.general != after.general:
        names = x86.GPR64_NAMES if wide else x86.GPR_NAMES
        mask = x86.MASK64 if wide else x86.MASK32
        pairs = zip(names, _GPR(before.general), _GPR(after.general), strict=False)
        for name, old, new in pairs:
            if old != new:
                add(name, old & mask, new & mask)
    add(
        "rflags" if wide else "eflags",
        before.flags & _SYSTEM_FLAGS,
        after.flags & _SYSTEM_FLAGS,
    )
    if before.segments != after.segments:
        olds, news = (memoryview(one.segments) for one in (before, after))
        for i, name in enumerate(x86.SEGMENT_NAMES):
            add(
                name,
                olds.cast("I")[_SELECTORS[i]] & 0xFFFF,
                news.cast("I")[_SELECTORS[i]] & 0xFFFF,
            )
            add(f"{name}_base", olds.cast("Q")[_BASES[i]], news.cast("Q")[_BASES[i]])
    if before.control != after.control:
        words = zip(
            _CONTROL_NAMES,
            memoryview(before.control).cast("Q"),
            memoryview(after.control).cast("Q"),
            strict=True,
        )
        for name, old, new in words:
            add(name, old, new)
    return f',"regs":{{{",".join(found)}}}' if found else ""
