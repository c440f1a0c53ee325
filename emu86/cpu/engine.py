"""The real CPU: the engine. The only module that knows Unicorn's secrets.

An `Engine` is a bare x86-64 machine that always runs in long mode (32-bit guests live
in compatibility-mode segments). It gives its state as two views, `q` (64-bit words) and
`d` (32-bit words), indexed by the constants below, and calls back for every event.

Unicorn's private state is used only after `probe.probe` has seen it work on this
build; otherwise the same views are filled and written back around every callback
through `uc_context_save` and `uc_context_restore`, which is slower and needs nothing
private except the blob's layout. The facts relied on are listed in
`docs/maintainers/hardware.md`.
"""

import ctypes
import gc
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Final

import unicorn.unicorn_py3.unicorn as binding  # type: ignore[import-untyped, unused-ignore]
from unicorn import unicorn_const as uc_const

from emu86 import config
from emu86.cpu import library, offsets
from emu86.cpu.clock import Clock, ClockState
from emu86.cpu.fpu import Fpu
from emu86.cpu.library import (
    PTR,
    U64,
    Abilities,
    EngineError,
    address_of,
    check,
    lib,
    quick,
    x86_const,
)
from emu86.cpu.prologue import Prologues
from emu86.cpu.state import (
    BASE,
    CC_OP,
    CC_SRC,
    CR,
    DIRECTION,
    HFLAGS,
    OLD_EXCEPTION,
    RFLAGS,
    RIP,
    SELECTOR,
    CpuState,
)
from emu86.errors import ConfigError
from emu86.native import abi, blob, handlers, ia32e, ports
from emu86.spec import x86

_REGISTERS: Final = RFLAGS + 1  # general ones, RIP and RFLAGS stand first
_NONE: Final = 0xFFFFFFFF
_LAZY: Final = x86.ARITHMETIC_FLAGS | x86.DF
_CONTEXT_HEADER: Final = 40
_FIRST_JUMP: Final = 0x100000
_SECOND: Final = 1 << 32  # where a second part of RAM would be
Looks = ctypes.Array[ctypes.c_int64]  # what a translation refers to that looks
_NOWHERE: Final = (1 << 64) - 1  # where no code is
# Instructions that have a hook: Unicorn's number, what its callback is like, and the
# handler, which gets the control block last; or None, if it is Python's.
_INSTRUCTIONS: Final[dict[str, tuple[int, Any, Callable[..., Any] | None]]] = {
    "RDTSC": (x86_const.UC_X86_INS_RDTSC, library.ON_INSTRUCTION, handlers.on_rdtsc),
    "RDTSCP": (x86_const.UC_X86_INS_RDTSCP, library.ON_INSTRUCTION, None),
    "IN": (x86_const.UC_X86_INS_IN, library.ON_IN, ports.on_in),
    "OUT": (x86_const.UC_X86_INS_OUT, library.ON_OUT, ports.on_out),
    "CPUID": (x86_const.UC_X86_INS_CPUID, library.ON_INSTRUCTION, ports.on_cpuid),
    "SYSCALL": (
        x86_const.UC_X86_INS_SYSCALL,
        library.ON_INSTRUCTION,
        ia32e.on_syscall,
    ),
    "SYSENTER": (x86_const.UC_X86_INS_SYSENTER, library.ON_INSTRUCTION, None),
}
CALLED_BY_LOOKS: Final = (
    (abi.RAISE_EXCEPTION, "raise_exception_err_x86_64"),
    (abi.PROBE_ACCESS, "probe_access_x86_64"),
    (abi.READ32, "cpu_ldl_data_ra_x86_64"),
)


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine holds between two instructions.

    registers: see `CpuState.registers`; pending: not 0 if an interrupt waits. What the
    compiled hooks have counted, their users add to what they count themselves.
    """

    registers: bytes
    clock: ClockState
    pending: int


_probed: list[Abilities] = []


def abilities() -> Abilities:
    """Return what this build of Unicorn can do, probing once per process."""
    if not _probed:
        from emu86.cpu.probe import probe  # noqa: PLC0415 (it needs this module)

        _probed.append(probe())
    return _probed[0]


@cache
def _tell_why_not(*, live: bool) -> None:
    """Say once that no compiled code runs, and why; a user may wonder at the time."""
    import logging  # noqa: PLC0415 (a few ms that hardly any run needs)

    why = blob.why_not() if live else "it needs x86-64 Linux with /proc"
    logging.getLogger("emu86").warning(
        "emu86: compiled code: %s; CPython handles all exits, slowly", why
    )


def _make_room() -> None:
    """See that an engine's address space can be had, if must be from dropped engines.

    Unicorn would end the process. An engine is in cycles: it stays until they are
    collected.
    """
    try:
        config.check_address_space(config.ENGINE_SPACE)
    except ConfigError:
        gc.collect()
        config.check_address_space(config.ENGINE_SPACE)


class Engine(CpuState):
    """One CPU with its physical memory.

    Set the `on_*` attributes, `map` memory, then `run`. Callbacks run inside `run`; an
    exception raised in one stops the engine and comes out of `run`. stepped: it is run
    by `step` alone, and counts no blocks.
    """

    def __init__(self, can: Abilities | None = None, *, stepped: bool = False) -> None:
        if can is None:
            can = abilities()
            if not can.native:
                _tell_why_not(live=can.live)
        self.can = can
        self.stepped = stepped
        if stepped:
            # To stop before any instruction it must look whether to at each.
            self.can = replace(self.can, stops=False, inline=False, looks=False)
        _make_room()
        self._uc = binding.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self._uc.ctl_set_tcg_buffer_size(config.CODE_SPACE)
        handle = self._uc._uch.value  # noqa: SLF001 (the binding hides its handle)
        assert handle is not None
        self._handle = int(handle)
        self._uch = PTR(self._handle)
        self._keep: list[object] = []
        self._fpu = Fpu(self._uch)
        self.wraps = False  # addresses from 4 GiB on, those of 0 on again, are in use
        self._error: BaseException | None = None
        self._inside = False
        self._called = False  # back since a step began
        self._flags_word = ctypes.c_uint64()
        self._flags_ref = ctypes.byref(self._flags_word)
        self._control = (ctypes.c_int64 * abi.WORDS)()
        self.shared = abi.Control.from_buffer(self._control)
        self.control = memoryview(self._control).cast("B").cast("q")
        self.clock = Clock(self.control)
        self._stop = quick.uc_emu_stop
        self._prologues: Prologues | None = None
        self._looker: memoryview | None = None  # the hook of `look_at`
        self._shifts: list[tuple[int, int]] = []  # of each mapping: address, and less
        self._laid = 0  # bytes that are mapped
        self._hooks: list[int] = []  # those of exceptions and of `_INSTRUCTIONS`
        self._stop_at: int | None = None  # what STOP_AT was before `stop`
        if self.can.stops:
            ctypes.c_ubyte.from_address(
                self._handle + offsets.UC_NO_EXIT_REQUEST
            ).value = 1
        self._context = self._uc.context_save()
        saved = ctypes.cast(self._context.context, PTR).value
        assert saved is not None
        self._saved = PTR(saved)
        cpu, state = 0, saved + _CONTEXT_HEADER
        if self.can.live:
            cpu = ctypes.c_uint64.from_address(self._handle + offsets.UC_CPU).value
            state = cpu + offsets.CPU_STATE
        self._cpu = PTR(cpu)
        view = memoryview((ctypes.c_char * offsets.SIZE).from_address(state)).cast("B")
        super().__init__(view)
        control = self.control
        control[abi.UC] = self._handle
        control[abi.CPU] = state
        control[abi.EMU_STOP] = address_of("uc_emu_stop")
        if self.can.live:
            control[abi.COMPUTE_FLAGS] = address_of(library.COMPUTE_FLAGS)
        if (
            self.can.native
            and not stepped
            and (function := address_of(library.DO_INTERRUPT))
        ):
            control[abi.DO_INTERRUPT] = function
            control[abi.DELIVERING] = abi.IDLE
        if self.can.flush_page:
            control[abi.FLUSH_PAGE] = address_of("tlb_flush_page_x86_64")
            control[abi.FLUSH_TLB] = address_of("tlb_flush_x86_64")
            control[abi.ENGINE_CPU] = cpu
        if self.can.tlb:
            control[abi.TLB] = state - offsets.TLB
            control[abi.JUMPS] = cpu + offsets.JUMPS
        self.on_exception: Callable[[int], None] = _unset
        self.on_invalid: Callable[[], None] = _unset
        self.on_in: Callable[[int, int], int] = _unset
        self.on_out: Callable[[int, int, int], None] = _unset
        self.on_cpuid: Callable[[], None] = _unset
        # SYSCALL or SYSENTER, at RIP: it returns the instruction's length in bytes.
        self.on_system_call: Callable[[], int] = _unset
        # It returns what `Prologues.shorten` is to guard; -1: nothing is shortened.
        self.on_block: Callable[[int, int], int] | None = None
        # With its address, 64 bits: a block that cannot be guarded.
        self.on_unguarded: Callable[[int], None] = _unset
        self._run_a_block()
        self._uc.ctl_exits_enabled(True)
        self._uc.reg_write(x86_const.UC_X86_REG_MXCSR, 0x1F80)
        self._uc.reg_write(x86_const.UC_X86_REG_FPCW, 0x037F)
        self._uc.reg_write(x86_const.UC_X86_REG_FPTAG, 0xFFFF)
        self._load()

    def _run_a_block(self) -> None:
        """Run a jump: before a first block has ended, no new one is told of."""
        self._uc.mem_map(_FIRST_JUMP, x86.PAGE_SIZE)
        self._uc.mem_write(_FIRST_JUMP, b"\xeb\x00")
        self._uc.emu_start(_FIRST_JUMP, _FIRST_JUMP + 2)
        self._uc.mem_unmap(_FIRST_JUMP, x86.PAGE_SIZE)

    # -- memory ---------------------------------------------------------------------

    def map(self, address: int, memory: memoryview) -> None:
        """Make `memory` (a whole number of pages) physical memory at `address`.

        All RAM comes first, from address 0 up. The engine lays it end to end if its
        parts are multiples of 256 KiB, and `drop_code` needs to know where.
        """
        self._shifts.append((address, address - self._laid))
        self._laid += len(memory)
        buffer = (ctypes.c_char * len(memory)).from_buffer(memory)
        self._keep.append(buffer)
        self._uc.mem_map_ptr(
            address, len(memory), uc_const.UC_PROT_ALL, ctypes.addressof(buffer)
        )

    def map_nothing(self, address: int, size: int) -> None:
        """Make physical memory at `address` read as ones and ignore writes."""
        self._uc.mmio_map(
            address, size, lambda _uc, _at, width, _data: (1 << 8 * width) - 1, None,
            lambda _uc, _at, _width, _value, _data: None, None,
        )  # fmt: skip

    def flush_tlb(self) -> None:
        """Drop every translation of the TLB."""
        check(quick.uc_ctl(self._uch, library.FLUSH_TLB), "TLB flush")

    def flush_page(self, address: int) -> None:
        """Drop the TLB's translation of one page, or of all where only that works."""
        if self.can.flush_page:
            quick.tlb_flush_page_x86_64(self._cpu, U64(address))
            if self.wraps:
                quick.tlb_flush_page_x86_64(self._cpu, U64(address + (1 << 32)))
        else:
            self.flush_tlb()

    def drop_code(self, address: int, size: int) -> None:
        """Drop the translated code of a range of RAM, which lies in one part of it."""
        if self.can.drop_code:
            if address >= _SECOND:
                address -= next(s for at, s in reversed(self._shifts) if at <= address)
            quick.tb_invalidate_phys_range_x86_64(
                self._uch, U64(address), U64(address + size)
            )
        else:
            check(quick.uc_ctl(self._uch, library.FLUSH_CODE), "code flush")

    def gate_a20(self, *, is_open: bool) -> None:
        """Let address line 20 through, or not, where the guest does not page."""
        if self.can.live:
            quick.x86_cpu_set_a20_x86_64(self._cpu, ctypes.c_int(is_open))

    # -- state ----------------------------------------------------------------------

    def flags(self) -> int:
        """Return EFLAGS, 22 bits, whole.

        A rotate through carry that faults on its operand leaves rubbish in the lazy
        flags, beyond the arithmetic ones too.
        """
        if not self._inside:
            return super().flags()
        rest = self.q[RFLAGS] & ~_LAZY & x86.FLAGS_DEFINED
        if self.d[CC_OP] == 1:
            rest |= self.q[CC_SRC] & x86.ARITHMETIC_FLAGS
            return rest | (x86.DF if self.d[DIRECTION] != 1 else 0)
        self._store()
        quick.uc_reg_read(self._uch, x86_const.UC_X86_REG_EFLAGS, self._flags_ref)
        return rest | self._flags_word.value & _LAZY

    def set_flags(self, value: int) -> None:
        """Write EFLAGS, 32 bits."""
        if not self._inside:
            super().set_flags(value)
            return
        value |= x86.FLAGS_FIXED
        self.q[RFLAGS] = value & ~_LAZY
        self.d[CC_OP] = 1
        self.q[CC_SRC] = value & x86.ARITHMETIC_FLAGS
        self.d[DIRECTION] = 0xFFFFFFFF if value & x86.DF else 1

    def fpu(self) -> dict[str, int]:
        """Return what the x87 FPU and SSE hold, by name.

        fp0 to fp7: R0 to R7, 80 bits; fpcw, fpsw, fptag: 16 bits; mxcsr: 32 bits; xmm0
        to xmm7: 128 bits.
        """
        return self._fpu.read()

    def set_control(self, cr0: int, cr3: int, cr4: int) -> None:
        """Write the host's CR0, CR3 and CR4 in long mode, NX on."""
        q = self.q
        q[CR], q[CR + 3] = cr0, cr3
        q[offsets.EFER // 8] = x86.EFER_LME | x86.EFER_LMA | x86.EFER_NXE | x86.EFER_SCE
        mode = self.d[HFLAGS] & ~(0xE << offsets.HF_MP_EM_TS_SHIFT)
        self.d[HFLAGS] = mode | (cr0 & 0xE) << offsets.HF_MP_EM_TS_SHIFT
        self.set_cr4(cr4)

    def set_cr4(self, cr4: int) -> None:
        """Write CR4, with what the engine derives of it."""
        self.q[CR + 4] = cr4
        mode = self.d[HFLAGS] & ~(offsets.HF_OSFXSR | offsets.HF_SMAP)
        mode |= offsets.HF_OSFXSR if cr4 & x86.CR4_OSFXSR else 0
        self.d[HFLAGS] = mode | (offsets.HF_SMAP if cr4 & x86.CR4_SMAP else 0)

    def leave_long_mode(self) -> None:
        """Be a 32-bit CPU just reset, but in protected mode at CPL 0, from now on.

        The guest's own page tables are then walked by the engine.
        """
        q, d = self.q, self.d
        self._mode = offsets.HF_PE
        q[offsets.EFER // 8] = 0
        q[CR], q[CR + 3], q[CR + 4] = x86.CR0_PE | x86.CR0_ET, 0, 0
        d[HFLAGS] = offsets.HF_PE | offsets.HF_CS32 | offsets.HF_SS32

    # -- its state -------------------------------------------------------------------

    def save(self) -> EngineState:
        """Return what it holds; only while it does not run."""
        pending = self.control[abi.PENDING]
        return EngineState(self.registers(), self.clock.save(), pending)

    def restore(self, state: EngineState) -> None:
        """Hold what another engine held, and count from 0; the TLB is flushed."""
        control = self.control
        self.set_registers(state.registers)
        self.clock.restore(state.clock)
        control[abi.PENDING] = state.pending
        for word in abi.COUNTS:
            control[word] = 0
        self.flush_tlb()

    def drop_derived(self) -> None:
        """Drop all translations, those of addresses and those of code."""
        self._stop_at = None
        check(quick.uc_ctl(self._uch, library.FLUSH_CODE), "code flush")
        self.flush_tlb()
        if self._prologues is not None:
            self._prologues.restart()

    # -- running --------------------------------------------------------------------

    def stop(self) -> None:
        """End `run` before the next block; only from a callback."""
        self._called = True
        control = self.control
        if control[abi.STOP_AT]:
            self._stop_at = control[abi.STOP_AT]
            control[abi.STOP_AT] = control[abi.LIMIT] = 0
        self._stop(self._uch)

    def step(self) -> bool:
        """Run one instruction, or deliver what it raises; one round of a repeated one.

        Only an engine made to be stepped can. Returns False if there is no memory to
        fetch the instruction from.
        """
        before = self._place()
        status = self._start(1)
        if not self._called and self._place() == before:
            # A store over the instruction itself is not done by one: it is begun anew.
            status = self._start(2)
        if status in (uc_const.UC_ERR_FETCH_PROT, uc_const.UC_ERR_FETCH_UNMAPPED):
            return False
        check(status, "step")
        return True

    def _place(self) -> tuple[bytes, int, int]:
        """Return what an instruction that is done changes: one of these at least."""
        q = self.q
        return q[:_REGISTERS].tobytes(), q[BASE[x86.CS]], self.d[SELECTOR[x86.CS]]

    def run(self) -> None:
        """Run until `stop`, then return. Raises what a callback raised."""
        check(self._start(0), "run")

    def _start(self, count: int) -> int:
        """Run `count` instructions (0: any number); return Unicorn's status."""
        self._store()
        self.control[abi.LIMIT] = 0  # what it depends on may have changed
        self._error = None
        self._called = False
        self._inside = True
        try:
            status: int = lib.uc_emu_start(self._uch, self.q[RIP], 0, 0, count)
        finally:
            self._inside = False
        if self._stop_at is not None:
            self.control[abi.STOP_AT], self._stop_at = self._stop_at, None
        self._load()
        if self._error is not None:
            raise self._error
        return status

    @property
    def shortened(self) -> int:
        """How many translated blocks count themselves (see `prologue`)."""
        return self.shared.count_shortened

    def hook(self) -> None:
        """Install the callbacks; call once, after the `on_*` attributes are set."""
        self._hook_exception()
        self._add(uc_const.UC_HOOK_INSN_INVALID, library.ON_INVALID(self._invalid))
        self._hook_instructions()
        if self.on_block is not None or self._prologues is not None:
            self._hook_edge()

    def _hook_edge(self) -> None:
        """Hear of translated blocks; compiled code takes those that are as most are."""
        python = library.ON_EDGE(self._edge)
        if self._prologues is None:
            self._add(uc_const.UC_HOOK_EDGE_GENERATED, python)
            return
        self.control[abi.ON_EDGE] = self._kept(python)
        shared = PTR(ctypes.addressof(self._control))
        self._add(uc_const.UC_HOOK_EDGE_GENERATED, PTR(blob.load()["on_edge"]), shared)

    def _hook_exception(self) -> None:
        """Clock and exceptions: compiled where the live state allows it."""
        python = library.ON_EXCEPTION(self._exception)
        shared = PTR(ctypes.addressof(self._control))
        if not self.can.live:
            self._hooks = [self._add(uc_const.UC_HOOK_INTR, python)]
            if not self.stepped:
                self._add(uc_const.UC_HOOK_BLOCK, library.ON_BLOCK(self._tick))
            return
        self.control[abi.ON_EXCEPTION] = self._kept(python)
        on_exception, on_block = self._handlers()
        self._hooks = [self._add(uc_const.UC_HOOK_INTR, on_exception, shared)]
        if not self.stepped:
            self._add(uc_const.UC_HOOK_BLOCK, on_block, shared)

    def _hook_instructions(self) -> None:
        """RDTSC, IN, OUT and CPUID: compiled in the same way.

        A step ends at those that Python does: it would not hear of others.
        """
        pythons = self._pythons()
        if self.can.live:
            words = {
                "IN": abi.ON_IN, "OUT": abi.ON_OUT, "CPUID": abi.ON_CPUID,
                "SYSCALL": abi.ON_SYSCALL,
            }  # fmt: skip
            for name, word in words.items():
                kind = _INSTRUCTIONS[name][1]
                self.control[word] = self._kept(kind(pythons[name]))
        for name, (number, kind, handler) in _INSTRUCTIONS.items():
            data = None
            stepped = self.stepped and name != "RDTSC"
            if handler is None or not self.can.live or stepped:
                callback = kind(pythons[name])
            elif self.can.native:
                callback = PTR(blob.load()[handler.__name__])
                data = PTR(ctypes.addressof(self._control))
            else:
                callback = kind(self._by_reference(handler))
            self._hooks.append(self._add_insn(number, callback, data))

    def _pythons(self) -> dict[str, Callable[..., Any]]:
        """Return what takes instructions that no handler does, by their names."""
        return {
            "RDTSC": self._rdtsc, "RDTSCP": self._rdtscp, "IN": self._in,
            "OUT": self._out, "CPUID": self._cpuid, "SYSCALL": self._system_call,
            "SYSENTER": self._system_call,
        }  # fmt: skip

    def _by_reference(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return what the engine calls, with a handler that CPython runs."""
        return lambda *passed: handler(*passed[:-1], self.shared)

    def native(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return a handler on this engine's control block and state, compiled or not.

        What it takes and returns besides are integers and truths.
        """
        state = self.control[abi.CPU]
        if not self.can.native:
            return partial(handler, self.shared, abi.Cpu.from_address(state))
        return blob.bind(handler, ctypes.addressof(self._control), state)

    def _handlers(self) -> tuple[Any, Any]:
        """Return the handlers of exceptions and of blocks, compiled or not."""
        if not self.can.native:
            return (
                library.ON_EXCEPTION(self._by_reference(handlers.on_exception)),
                library.ON_BLOCK(self._by_reference(handlers.on_block)),
            )
        code = blob.load()
        if self.can.inline:
            self.control[abi.CHECK_EXIT] = address_of(library.CHECK_EXIT)
            self.control[abi.ON_GUARD] = code["on_guard"]
            self._prologues = Prologues(self.shared, code["on_late"])
        if self.can.looks:
            self._hook_looks(code["on_look"])
        return PTR(code["on_exception"]), PTR(code["on_block"])

    def _hook_looks(self, on_look: int) -> None:
        """Have a hook before instructions that is called for none, until `look_at`."""
        for word, name in CALLED_BY_LOOKS:
            self.control[word] = address_of(name)
        hook = self._add(uc_const.UC_HOOK_CODE, PTR(on_look))
        words = (ctypes.c_uint64 * (offsets.HOOK_DATA // 8 + 1)).from_address(hook)
        self._looker = memoryview(words).cast("B").cast("Q")
        self.look_away()

    def look_at(
        self, sites: Sequence[tuple[int, int]], known: Looks | None = None
    ) -> Looks:
        """Have operands looked at in what is translated next, until `look_away`.

        sites: addresses of instructions, 64 bits, upwards, and `native.abi`'s word for
        each. Returns what must live as long as the translation does; known: what was
        returned for the same ones.
        """
        looker = self._looker
        assert looker is not None
        if known is None:
            words = [value for site in sites for value in site]
            control = ctypes.addressof(self._control)
            known = (ctypes.c_int64 * (len(words) + 2))(control, *words, -1)
        looker[offsets.HOOK_BEGIN // 8] = sites[0][0]
        looker[offsets.HOOK_END // 8] = sites[-1][0]
        looker[offsets.HOOK_DATA // 8] = ctypes.addressof(known)
        return known

    def look_away(self) -> None:
        """Have no more operands looked at in what is translated."""
        if self._looker is not None:
            self._looker[offsets.HOOK_BEGIN // 8] = _NOWHERE
            self._looker[offsets.HOOK_END // 8] = _NOWHERE

    def _kept(self, callback: Any) -> int:
        """Return the address of a callback, which lives as long as the engine."""
        self._keep.append(callback)
        return ctypes.cast(callback, PTR).value or 0

    def _add(self, kind: int, callback: Any, data: Any = None, *extra: Any) -> int:
        """Add a hook, and return its address."""
        self._keep.append(callback)
        hook = ctypes.c_size_t()
        status = quick.uc_hook_add(
            self._uch, ctypes.byref(hook), kind, callback, PTR(data and data.value),
            U64(1), U64(0), *extra,
        )  # fmt: skip
        check(status, "hook")
        return hook.value

    def _add_insn(self, instruction: int, callback: Any, data: Any = None) -> int:
        insn = ctypes.c_int(instruction)
        return self._add(uc_const.UC_HOOK_INSN, callback, data, insn)

    # -- profiling --------------------------------------------------------------------

    def intercept(
        self,
        on_exception: Callable[[Callable[..., Any], int], None],
        on_instruction: Callable[..., Any],
        on_stop: Callable[[], bool] | None = None,
        hooks: Container[str] = ("exception", *_INSTRUCTIONS),
    ) -> None:
        """Have what Unicorn reports go to Python first; call once, while it is still.

        on_exception, on_instruction: called with the handler that it went to, which may
        be compiled, and what that takes; before these, of an instruction, its name.
        What is returned is the instruction's result. on_stop: called where a handler
        would stop the engine; tells whether to. hooks: what goes to Python at all,
        "exception" and names of instructions.
        """
        if "exception" in hooks:
            # The engine leaves its own delivery by a jump where that meets a fault, and
            # it may not jump over frames of Python's. So no handler begins one.
            self.control[abi.DELIVERING] = 0
            handle = self._handler(
                library.ON_EXCEPTION, handlers.on_exception, self._exception
            )

            def exception(_uc: int, vector: int, _data: int) -> None:
                self._safely(on_exception, handle, vector)

            self._remove(self._hooks[0])
            self._hooks[0] = self._add(
                uc_const.UC_HOOK_INTR, library.ON_EXCEPTION(exception)
            )
        pythons = self._pythons()
        for i, (name, (number, kind, handler)) in enumerate(_INSTRUCTIONS.items(), 1):
            if name in hooks:
                told = partial(
                    on_instruction, name, self._handler(kind, handler, pythons[name])
                )
                callback = kind(partial(self._instruction, told))
                self._remove(self._hooks[i])
                self._hooks[i] = self._add_insn(number, callback)
        if on_stop is None:
            return

        def stop(_uc: int) -> int:
            if self._safely(on_stop) is not False:
                self._stop(self._uch)
            return 0

        self.control[abi.EMU_STOP] = self._kept(library.EMU_STOP(stop))

    def _remove(self, hook: int) -> None:
        check(quick.uc_hook_del(self._uch, ctypes.c_size_t(hook)), "hook")

    def _instruction(self, told: Callable[..., Any], _uc: int, *passed: int) -> int:
        """Have Python hear of an instruction, less Unicorn's own arguments."""
        return self._safely(told, *passed[:-1]) or 0

    def _safely(self, callback: Callable[..., Any], *passed: Any) -> Any:
        """Call Python, with the guest's state, from a hook."""
        try:
            self._load()
            return callback(*passed)
        except BaseException as error:  # noqa: BLE001 (raised again by run)
            self._fail(error)

    def _handler(
        self, kind: Any, handler: Callable[..., Any] | None, python: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return what is called with what a handler takes, less the engine's own.

        kind: of its callback; python: what stands in where nothing is live.
        """
        uc = self._handle
        if handler is None or not self.can.live:
            return lambda *passed: python(uc, *passed, 0)
        if not self.can.native:
            return lambda *passed: handler(uc, *passed, self.shared)
        made = ctypes.PYFUNCTYPE(kind._restype_, *kind._argtypes_)
        call, control = made(blob.load()[handler.__name__]), self._control
        shared = PTR(ctypes.addressof(control))
        return lambda *passed: call(uc, *passed, shared)

    # -- callbacks --------------------------------------------------------------------

    def _load(self) -> None:
        if not self.can.live:
            check(lib.uc_context_save(self._uch, self._saved), "context save")

    def _store(self) -> None:
        if not self.can.live:
            check(lib.uc_context_restore(self._uch, self._saved), "context restore")

    def _fail(self, error: BaseException) -> None:
        """Keep the first exception of a callback for `run`; no later one matters."""
        if self._error is None:
            self._error = error
        self.stop()

    def _exception(self, _uc: int, vector: int, _data: int) -> None:
        try:
            if self.can.live:
                self._called = True
                self.d[OLD_EXCEPTION] = _NONE
                self.on_exception(vector)
                return
            self._load()
            self.d[OLD_EXCEPTION] = _NONE
            self.on_exception(vector)
            self._store()
        except BaseException as error:  # noqa: BLE001 (raised again by run)
            self._fail(error)

    def _invalid(self, _uc: int, _data: int) -> bool:
        try:
            self._called = True
            self._load()
            self.d[OLD_EXCEPTION] = _NONE
            self.on_invalid()
            self._store()
        except BaseException as error:  # noqa: BLE001 (raised again by run)
            self._fail(error)
        return True

    def _in(self, _uc: int, port: int, width: int, _data: int) -> int:
        try:
            self._called = True
            self._load()
            return self.on_in(port & 0xFFFF, width)
        except BaseException as error:  # noqa: BLE001 (raised again by run)
            self._fail(error)
            return 0

    def _out(self, _uc: int, port: int, width: int, value: int, _data: int) -> None:
        try:
            self._called = True
            self._load()
            self.on_out(port & 0xFFFF, width, value)
        except BaseException as error:  # noqa: BLE001 (raised again by run)
            self._fail(error)

    def _cpuid(self, _uc: int, _data: int) -> int:
        try:
            self._called = True
            self._load()
            self.on_cpuid()
            self._store()
        except BaseException as error:  # noqa: BLE001 (raised again by run)
            self._fail(error)
        return 1

    def _system_call(self, _uc: int, _data: int) -> int:
        """Have SYSCALL or SYSENTER done, of which the engine only moves RIP then."""
        try:
            self._called = True
            self._load()
            length = self.on_system_call()
            self.q[RIP] = self.q[RIP] - length & x86.MASK64
            self._store()
        except BaseException as error:  # noqa: BLE001 (raised again by run)
            self._fail(error)
        return 0

    def _edge(self, _uc: int, block: int, _previous: int, _data: int) -> None:
        try:
            made = abi.Block.from_address(block)
            guard = 0
            if self.on_block is not None:
                self._load()
                guard = self.on_block(made.pc, made.size)
            if self._prologues is not None and guard >= 0:
                done = self._prologues.shorten(made.pc, made.size, guard)
                if guard and not done:
                    self.on_unguarded(made.pc)
        except BaseException as error:  # noqa: BLE001 (raised again by run)
            self._fail(error)

    def _tick(self, uc: int, address: int, size: int, _data: int) -> None:
        real = not self._mode & offsets.HF_PE
        if self.control[abi.PENDING] or real:
            self._load()
        handlers.on_block(uc, address, size, self.shared)
        if real:
            self._store()

    def _rdtsc(self, uc: int, _data: int) -> int:
        self._load()
        skips = handlers.on_rdtsc(uc, self.shared)
        self._store()
        return skips

    def _rdtscp(self, uc: int, _data: int) -> int:
        """Do an RDTSCP that nobody has patched: SDM Vol. 2B."""
        self._load()
        shared = self.shared
        skips = handlers.on_rdtsc(uc, shared)
        shared.count_rdtsc -= 1
        shared.count_rdtscp += 1
        self.q[x86.ECX] = shared.tsc_aux
        self._store()
        return skips


def _unset(*_arguments: int) -> Any:
    """Stand for a callback that nobody has set."""
    message = "the engine was run before its callbacks were set"
    raise EngineError(message)
