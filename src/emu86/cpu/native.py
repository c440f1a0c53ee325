"""The few handlers that run between two blocks of guest code, as machine code.

They exist because they run hundreds of millions of times in a boot: counting retired
code (the virtual clock, about 1 ns a block), RDTSC, and the two privileged instructions
that a kernel executes most, CLI and STI. Everything else goes on to Python. Each does
exactly what its Python twin in `engine` or `rings` does: tests compare the two.

They are written in LLVM's assembly and compiled by llvmlite at start-up (15 ms): a
tenth of what numba takes to import, and without the second call that its C wrappers
make. All share one control block of int64 words, named in `control`.
"""

from typing import Any, Final

import llvmlite.binding as llvm

from emu86.cpu import control as word
from emu86.cpu import layout as at
from emu86.spec import x86

_CS_BASE: Final = at.SEGMENTS + at.SEGMENT_SIZE * x86.CS + 8


def _word(name: str, index: int) -> str:
    """Return the line that names the address of a word of the control block."""
    return f"%{name} = getelementptr i64, ptr %control, i64 {index}"


def _field(name: str, offset: int) -> str:
    """Return the line that names the address of a field of the CPU state."""
    return f"%{name} = getelementptr i8, ptr %state, i64 {offset}"


def _enter(start: str, words: dict[str, int], fields: dict[str, int]) -> str:
    """Return the lines that begin a function."""
    return "\n  ".join(
        [
            f"{start} {{",
            *(_word(name, index) for name, index in words.items()),
            _word("state_at", word.STATE),
            "%state = load ptr, ptr %state_at",
            *(_field(name, offset) for name, offset in fields.items()),
        ]
    )


# Stops the engine before the block whose `size` bytes spend the budget, and before the
# first that could take the interrupt that waits. With TF set an exit follows anyway.
_ON_BLOCK: Final = f"""
define void @on_block(ptr %uc, i64 %address, i32 %size, ptr %control) {{
  {_word("now_at", word.NOW)}
  {_word("stop_at", word.STOP_AT)}
  %old = load i64, ptr %now_at
  %bytes = zext i32 %size to i64
  %now = add i64 %old, %bytes
  store i64 %now, ptr %now_at
  %limit = load i64, ptr %stop_at
  %due = icmp sge i64 %now, %limit
  br i1 %due, label %stop, label %look
look:
  {_word("pending_at", word.PENDING)}
  %pending = load i64, ptr %pending_at
  %waits = icmp ne i64 %pending, 0
  br i1 %waits, label %ask, label %done
ask:
  {_word("state_at", word.STATE)}
  %state = load ptr, ptr %state_at
  {_field("rflags_at", at.RFLAGS)}
  {_field("hflags_at", at.HFLAGS)}
  %rflags = load i64, ptr %rflags_at
  %if_tf = and i64 %rflags, {x86.IF | x86.TF}
  %on = icmp eq i64 %if_tf, {x86.IF}
  %hflags = load i32, ptr %hflags_at
  %shadow = and i32 %hflags, {at.HF_INHIBIT_IRQ}
  %open = icmp eq i32 %shadow, 0
  %takes = and i1 %on, %open
  br i1 %takes, label %stop, label %done
stop:
  {_word("emu_stop_at", word.UC_EMU_STOP)}
  %emu_stop = load ptr, ptr %emu_stop_at
  call i32 %emu_stop(ptr %uc)
  ret void
done:
  ret void
}}
"""

# EDX:EAX := virtual nanoseconds plus the TSC's offset; 1: the engine skips its own.
_ON_RDTSC: Final = f"""
{_enter("define i32 @on_rdtsc(ptr %uc, ptr %control)",
        {"now_at": word.NOW, "cost_at": word.TSC_COST, "offset_at": word.TSC_OFFSET,
         "count_at": word.COUNT_RDTSC},
        {"eax": 8 * x86.EAX, "edx": 8 * x86.EDX})}
  %old = load i64, ptr %now_at
  %cost = load i64, ptr %cost_at
  %now = add i64 %old, %cost
  store i64 %now, ptr %now_at
  %seen = load i64, ptr %count_at
  %count = add i64 %seen, 1
  store i64 %count, ptr %count_at
  %ns = lshr i64 %now, 2
  %offset = load i64, ptr %offset_at
  %tsc = add i64 %ns, %offset
  %low = and i64 %tsc, {x86.MASK32}
  %high = lshr i64 %tsc, 32
  store i64 %low, ptr %eax
  store i64 %high, ptr %edx
  ret i32 1
}}
"""  # fmt: skip

# Handles a #GP(0) at CPL 1 (that is no INT 0Dh) whose site the VMM has learned as CLI
# or STI. With TF set, or an interrupt waiting for STI, it is Python's.
_ON_EXCEPTION: Final = f"""
{_enter("define void @on_exception(ptr %uc, i32 %vector, ptr %control)",
        {"python_at": word.ON_EXCEPTION, "pending_at": word.PENDING, "now_at": word.NOW,
         "cli_count": word.COUNT_CLI, "sti_count": word.COUNT_STI},
        {"error_at": at.ERROR_CODE, "hflags_at": at.HFLAGS, "rflags_at": at.RFLAGS,
         "rip_at": at.RIP, "base_at": _CS_BASE, "old_at": at.OLD_EXCEPTION})}
  %is_gp = icmp eq i32 %vector, {x86.VEC_GP}
  br i1 %is_gp, label %gp, label %python
gp:
  %error = load i64, ptr %error_at
  %hflags = load i32, ptr %hflags_at
  %rflags = load i64, ptr %rflags_at
  %rip = load i64, ptr %rip_at
  %base = load i64, ptr %base_at
  %cpl = and i32 %hflags, {at.HF_CPL}
  %is_ring1 = icmp eq i32 %cpl, 1
  %is_error_0 = icmp eq i64 %error, 0
  %tf = and i64 %rflags, {x86.TF}
  %no_tf = icmp eq i64 %tf, 0
  %ours.0 = and i1 %is_ring1, %is_error_0
  %ours = and i1 %ours.0, %no_tf
  %sum = add i64 %rip, %base
  %linear = and i64 %sum, {x86.MASK32}
  %page = lshr i64 %linear, 12
  %mixed = xor i64 %linear, %page
  %hash = and i64 %mixed, {word.SITE_MASK}
  %pair = shl i64 %hash, 1
  %slot = add i64 %pair, {word.SITES}
  %slot_at = getelementptr i64, ptr %control, i64 %slot
  %known = load i64, ptr %slot_at
  %is_known = icmp eq i64 %known, %linear
  %here = and i1 %ours, %is_known
  br i1 %here, label %site, label %python
site:
  %kind_at = getelementptr i64, ptr %slot_at, i64 1
  %kind = load i64, ptr %kind_at
  %open = and i32 %hflags, {~at.HF_INHIBIT_IRQ}
  %is_cli = icmp eq i64 %kind, {word.SITE_CLI}
  br i1 %is_cli, label %cli, label %sti
cli:
  %cli_flags = and i64 %rflags, {~x86.IF}
  br label %done
sti:
  %pending = load i64, ptr %pending_at
  %waits = icmp ne i64 %pending, 0
  br i1 %waits, label %python, label %set
set:
  %was = and i64 %rflags, {x86.IF}
  %was_off = icmp eq i64 %was, 0
  %shadow = or i32 %open, {at.HF_INHIBIT_IRQ}
  %sti_hflags = select i1 %was_off, i32 %shadow, i32 %open
  %sti_flags = or i64 %rflags, {x86.IF}
  br label %done
done:
  %new_flags = phi i64 [ %cli_flags, %cli ], [ %sti_flags, %set ]
  %new_hflags = phi i32 [ %open, %cli ], [ %sti_hflags, %set ]
  %count_at = phi ptr [ %cli_count, %cli ], [ %sti_count, %set ]
  %seen = load i64, ptr %count_at
  %count = add i64 %seen, 1
  store i64 %count, ptr %count_at
  %old = load i64, ptr %now_at
  %now = add i64 %old, {word.EXIT_COST}
  store i64 %now, ptr %now_at
  store i64 %new_flags, ptr %rflags_at
  store i32 %new_hflags, ptr %hflags_at
  %after = add i64 %rip, 1
  %eip = and i64 %after, {x86.MASK32}
  store i64 %eip, ptr %rip_at
  store i32 -1, ptr %old_at
  {_word("stop_at", word.STOP_AT)}
  %limit = load i64, ptr %stop_at
  %due = icmp sge i64 %now, %limit
  br i1 %due, label %stop, label %resume
stop:
  {_word("emu_stop_at", word.UC_EMU_STOP)}
  %emu_stop = load ptr, ptr %emu_stop_at
  call i32 %emu_stop(ptr %uc)
  ret void
resume:
  ret void
python:
  %callback = load ptr, ptr %python_at
  call void %callback(ptr %uc, i32 %vector, ptr null)
  ret void
}}
"""  # fmt: skip


class Hooks:
    """The compiled hooks: the addresses of their C functions."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(_ON_BLOCK + _ON_RDTSC + _ON_EXCEPTION)
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
        self._engine: Any = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        address = self._engine.get_function_address
        self.on_block = int(address("on_block"))
        self.on_rdtsc = int(address("on_rdtsc"))
        self.on_exception = int(address("on_exception"))


_made: list[Hooks] = []


def hooks() -> Hooks:
    """Return the compiled hooks, compiling them once per process."""
    if not _made:
        _made.append(Hooks())
    return _made[0]
