"""The few handlers that run between two blocks of guest code, as machine code.

They exist because they run hundreds of millions of times in a boot: counting retired
code (the virtual clock, about 1 ns a block), RDTSC, and the three privileged
instructions that a kernel executes most, CLI, STI and INVLPG. Everything else goes on
to Python. Each does exactly what its Python twin in `engine` or `rings` does: tests
compare the two.

They are written in LLVM's assembly and compiled by llvmlite at start-up (15 ms): a
tenth of what numba takes to import, and without the second call that its C wrappers
make. All share one control block of int64 words, named in `control`.
"""

from typing import Any, Final

import llvmlite.binding as llvm

from emu86.cpu import offsets
from emu86.native import abi
from emu86.spec import x86

_DS_BASE: Final = offsets.SEGMENTS + offsets.SEGMENT_SIZE * x86.DS + 8
# Of a data segment that does not expand down P alone is set.
_KIND: Final = x86.DESC_P | x86.DESC_CODE | x86.DESC_CE
_CS_BASE: Final = offsets.SEGMENTS + offsets.SEGMENT_SIZE * x86.CS + 8


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
            _word("state_at", abi.STATE),
            "%state = load ptr, ptr %state_at",
            *(_field(name, offset) for name, offset in fields.items()),
        ]
    )


# Whether to stop before a block: at %stop, or at %done. The budget is spent, or the
# block is the first that could take the interrupt that waits. With TF set an exit
# follows anyway.
_LOOK: Final = f"""\
  %limit = load i64, ptr %stop_at
  %due = icmp sge i64 %now, %limit
  br i1 %due, label %stop, label %look
look:
  {_word("pending_at", abi.PENDING)}
  %pending = load i64, ptr %pending_at
  %waits = icmp ne i64 %pending, 0
  br i1 %waits, label %ask, label %done
ask:
  {_word("state_at", abi.STATE)}
  %state = load ptr, ptr %state_at
  {_field("rflags_at", offsets.RFLAGS)}
  {_field("hflags_at", offsets.HFLAGS)}
  %rflags = load i64, ptr %rflags_at
  %if_tf = and i64 %rflags, {x86.IF | x86.TF}
  %on = icmp eq i64 %if_tf, {x86.IF}
  %hflags = load i32, ptr %hflags_at
  %shadow = and i32 %hflags, {offsets.HF_INHIBIT_IRQ}
  %open = icmp eq i32 %shadow, 0
  %takes = and i1 %on, %open
  br i1 %takes, label %stop, label %done
"""

# Counts the `size` bytes of a block, and may stop the engine before it.
_ON_BLOCK: Final = f"""
define void @on_block(ptr %uc, i64 %address, i32 %size, ptr %control) {{
  {_word("now_at", abi.NOW)}
  {_word("stop_at", abi.STOP_AT)}
  %old = load i64, ptr %now_at
  %bytes = zext i32 %size to i64
  %now = add i64 %old, %bytes
  store i64 %now, ptr %now_at
{_LOOK}
stop:
  {_word("emu_stop_at", abi.UC_EMU_STOP)}
  %emu_stop = load ptr, ptr %emu_stop_at
  call i32 %emu_stop(ptr %uc)
  ret void
done:
  ret void
}}
"""


# What `prologue` calls when the clock, counted in the block itself, may be due. Then,
# in every case, the engine's own look whether to stop, as if the block had called it.
_ON_LATE: Final = f"""
define void @on_late(ptr %control, i32 %unused) {{
  {_word("uc_at", abi.UC)}
  %uc = load ptr, ptr %uc_at
  {_word("check_at", abi.CHECK_EXIT)}
  %check = load ptr, ptr %check_at
  {_word("now_at", abi.NOW)}
  {_word("stop_at", abi.STOP_AT)}
  %now = load i64, ptr %now_at
{_LOOK}
stop:
  {_word("emu_stop_at", abi.UC_EMU_STOP)}
  %emu_stop = load ptr, ptr %emu_stop_at
  call i32 %emu_stop(ptr %uc)
  musttail call void %check(ptr %uc, i32 0)
  ret void
done:
  musttail call void %check(ptr %uc, i32 0)
  ret void
}}
"""

# What a guarded block of `prologue` calls: the clock may be due, or a segment register
# that it may use is null. Then the engine stops before the block.
_ON_GUARD: Final = f"""
define void @on_guard(ptr %control, i32 %null) {{
  %is_null = icmp ne i32 %null, 0
  br i1 %is_null, label %used, label %late
late:
  musttail call void @on_late(ptr %control, i32 %null)
  ret void
used:
  {_word("used_at", abi.NULL_USED)}
  store i64 1, ptr %used_at
  {_word("uc_at", abi.UC)}
  %uc = load ptr, ptr %uc_at
  {_word("check_at", abi.CHECK_EXIT)}
  %check = load ptr, ptr %check_at
  {_word("emu_stop_at", abi.UC_EMU_STOP)}
  %emu_stop = load ptr, ptr %emu_stop_at
  call i32 %emu_stop(ptr %uc)
  musttail call void %check(ptr %uc, i32 0)
  ret void
}}
"""

# EDX:EAX := virtual nanoseconds plus the TSC's offset; 1: the engine skips its own.
_ON_RDTSC: Final = f"""
{_enter("define i32 @on_rdtsc(ptr %uc, ptr %control)",
        {"now_at": abi.NOW, "cost_at": abi.TSC_COST, "offset_at": abi.TSC_OFFSET,
         "count_at": abi.COUNT_RDTSC, "since_at": abi.SINCE, "then_at": abi.NS,
         "rate_at": abi.RATE},
        {"eax": 8 * x86.EAX, "edx": 8 * x86.EDX})}
  %old = load i64, ptr %now_at
  %cost = load i64, ptr %cost_at
  %now = add i64 %old, %cost
  store i64 %now, ptr %now_at
  %seen = load i64, ptr %count_at
  %count = add i64 %seen, 1
  store i64 %count, ptr %count_at
  %since = load i64, ptr %since_at
  %then = load i64, ptr %then_at
  %rate = load i64, ptr %rate_at
  %work = sub i64 %now, %since
  %wide_work = zext i64 %work to i128
  %wide_rate = zext i64 %rate to i128
  %product = mul i128 %wide_work, %wide_rate
  %scaled = lshr i128 %product, {abi.RATE_SHIFT}
  %passed = trunc i128 %scaled to i64
  %ns = add i64 %then, %passed
  %offset = load i64, ptr %offset_at
  %tsc = add i64 %ns, %offset
  %low = and i64 %tsc, {x86.MASK32}
  %high = lshr i64 %tsc, 32
  store i64 %low, ptr %eax
  store i64 %high, ptr %edx
  ret i32 1
}}
"""  # fmt: skip

# INVLPG [register], DS based at 0: drops the page's shadow entry unless something about
# it is unusual: no paging, any PDE that has changed, one that maps 4 MiB, a page with
# compiled sites, or more pages dropped than Python has been told of.
_INVLPG: Final = f"""
invlpg:
  %register = sub i64 %kind, {abi.SITE_INVLPG}
  %register_at = getelementptr i64, ptr %state, i64 %register
  %register_value = load i64, ptr %register_at
  %gva = and i64 %register_value, {x86.MASK32}
  %gva_page = lshr i64 %gva, 12
  %guarded_low = and i64 %gva_page, {64 * abi.GUARDED_WORDS - 1}
  %guarded_word = lshr i64 %guarded_low, 6
  %guarded_index = add i64 %guarded_word, {abi.GUARDED}
  %guarded_at = getelementptr i64, ptr %control, i64 %guarded_index
  {_word("pdes_at", abi.SHADOW_PDES)}
  {_word("dropped_at", abi.DROPPED_COUNT)}
  %ds_base = load i64, ptr %ds_base_at
  %guarded = load i64, ptr %guarded_at
  %pdes = load i64, ptr %pdes_at
  %dropped_count = load i64, ptr %dropped_at
  %bit = and i64 %gva_page, 63
  %guarded_bits = lshr i64 %guarded, %bit
  %guarded_bit = and i64 %guarded_bits, 1
  %is_free = icmp eq i64 %guarded_bit, 0
  %is_flat = icmp eq i64 %ds_base, 0
  %is_paging = icmp ne i64 %pdes, 0
  %has_room = icmp slt i64 %dropped_count, {abi.DROPPED_MOST}
  %usual.0 = and i1 %is_free, %is_flat
  %usual.1 = and i1 %is_paging, %has_room
  %usual = and i1 %usual.0, %usual.1
  br i1 %usual, label %directory, label %python
directory:
  %pde_index = lshr i64 %gva, 22
  {_word("guest_pdes_at", abi.GUEST_PDES)}
  {_word("known_pdes_at", abi.KNOWN_PDES)}
  %guest_pdes = load ptr, ptr %guest_pdes_at
  %known_pdes = load ptr, ptr %known_pdes_at
  %guest_pde_at = getelementptr i32, ptr %guest_pdes, i64 %pde_index
  %guest_pde = load i32, ptr %guest_pde_at
  %large = and i32 %guest_pde, {x86.PDE_PS}
  %is_small = icmp eq i32 %large, 0
  {_word("linked_at", abi.LINKED_PDES)}
  %linked = load i32, ptr %linked_at
  br i1 %is_small, label %runs, label %python
runs:
  %left = phi i32 [ %linked, %directory ], [ %rest, %run ]
  %is_last = icmp eq i32 %left, 0
  br i1 %is_last, label %leaf, label %run
run:
  %number = call i32 @llvm.cttz.i32(i32 %left, i1 true)
  %others = sub i32 %left, 1
  %rest = and i32 %left, %others
  %guest_run_at = getelementptr <16 x i64>, ptr %guest_pdes, i32 %number
  %known_run_at = getelementptr <16 x i64>, ptr %known_pdes, i32 %number
  %guest_run = load <16 x i64>, ptr %guest_run_at, align 4
  %known_run = load <16 x i64>, ptr %known_run_at, align 4
  %differ = xor <16 x i64> %guest_run, %known_run
  %difference = call i64 @llvm.vector.reduce.or.v16i64(<16 x i64> %differ)
  %is_same = icmp eq i64 %difference, 0
  br i1 %is_same, label %runs, label %python
leaf:
  %shadow_pdes = inttoptr i64 %pdes to ptr
  %shadow_index = lshr i64 %gva, 21
  %shadow_pde_at = getelementptr i64, ptr %shadow_pdes, i64 %shadow_index
  %shadow_pde = load i64, ptr %shadow_pde_at
  %table_hpa = and i64 %shadow_pde, -4096
  %is_linked = icmp ne i64 %table_hpa, 0
  br i1 %is_linked, label %entry, label %note
entry:
  {_word("bias_at", abi.VMM_MEMORY_BIAS)}
  %bias = load i64, ptr %bias_at
  %table_address = add i64 %table_hpa, %bias
  %table = inttoptr i64 %table_address to ptr
  %entry_index = and i64 %gva_page, 511
  %entry_at = getelementptr i64, ptr %table, i64 %entry_index
  %entry_value = load i64, ptr %entry_at
  %is_filled = icmp ne i64 %entry_value, 0
  br i1 %is_filled, label %drop, label %note
drop:
  store i64 0, ptr %entry_at
  {_word("drops_at", abi.COUNT_DROPPED)}
  %drops = load i64, ptr %drops_at
  %more_drops = add i64 %drops, 1
  store i64 %more_drops, ptr %drops_at
  {_word("flush_at", abi.FLUSH_PAGE)}
  {_word("cpu_at", abi.CPU)}
  %flush = load ptr, ptr %flush_at
  %cpu = load ptr, ptr %cpu_at
  %flushed = and i64 %gva, {x86.PAGE_MASK}
  call void %flush(ptr %cpu, i64 %flushed)
  br label %note
note:
  %note_slot = add i64 %dropped_count, {abi.DROPPED}
  %note_at = getelementptr i64, ptr %control, i64 %note_slot
  store i64 %gva_page, ptr %note_at
  %more_dropped = add i64 %dropped_count, 1
  store i64 %more_dropped, ptr %dropped_at
  br label %dropped
dropped:
  br label %done
"""

# Looks at an access by a data segment, as `events.protection` does: see
# `abi.access_kind`. Where it is right it runs alone: `Deprivileged._run_alone`. Where
# the segment has no limit any more Python counts: `SegmentChecks.passed`. In
# 16-bit code the same bytes are another access, which is Python's.
_ACCESS: Final = f"""
access:
  %ac = and i64 %rflags, {x86.AC}
  %no_ac = icmp eq i64 %ac, 0
  %base_no = lshr i64 %kind, 8
  %base_reg = and i64 %base_no, 15
  %base_at.0 = getelementptr i64, ptr %state, i64 %base_reg
  %base_value = load i64, ptr %base_at.0
  %index_no = lshr i64 %kind, 12
  %index_reg = and i64 %index_no, 15
  %index_at = getelementptr i64, ptr %state, i64 %index_reg
  %index_value = load i64, ptr %index_at
  %scale_no = lshr i64 %kind, 16
  %scale = and i64 %scale_no, 3
  %scaled = shl i64 %index_value, %scale
  %displacement = ashr i64 %kind, 32
  %offset.0 = add i64 %base_value, %scaled
  %offset.1 = add i64 %offset.0, %displacement
  %offset = and i64 %offset.1, {x86.MASK32}
  %more_no = lshr i64 %kind, 20
  %more = and i64 %more_no, 15
  %end = add i64 %offset, %more
  %segment_no = lshr i64 %kind, 4
  %segment = and i64 %segment_no, 7
  %segment_size = mul i64 %segment, {offsets.SEGMENT_SIZE}
  %limit_of = add i64 %segment_size, {offsets.SEGMENTS + 16}
  %limit_at = getelementptr i8, ptr %state, i64 %limit_of
  %segment_limit = load i32, ptr %limit_at
  %highest = zext i32 %segment_limit to i64
  %within = icmp ule i64 %end, %highest
  %has_limit = icmp ne i64 %highest, {x86.MASK32}
  %attributes_of = add i64 %segment_size, {offsets.SEGMENTS + 20}
  %attributes_at = getelementptr i8, ptr %state, i64 %attributes_of
  %attributes = load i32, ptr %attributes_at
  %write_no = lshr i64 %kind, 7
  %write = trunc i64 %write_no to i1
  %asked = select i1 %write, i32 {_KIND | x86.DESC_RW}, i32 {_KIND}
  %wanted = select i1 %write, i32 {x86.DESC_P | x86.DESC_RW}, i32 {x86.DESC_P}
  %given = and i32 %attributes, %asked
  %allowed = icmp eq i32 %given, %wanted
  %alone = or i32 %hflags, {offsets.HF_INHIBIT_IRQ}
  %right.0 = and i1 %within, %allowed
  %right.1 = and i1 %right.0, %has_limit
  %code_32 = and i32 %hflags, {offsets.HF_CS32}
  %is_32 = icmp ne i32 %code_32, 0
  %right.2 = and i1 %right.1, %is_32
  %right = and i1 %right.2, %no_ac
  br i1 %right, label %pass, label %python
pass:
  br label %done
"""

# Handles a #GP(0) at CPL 1 (that is no INT 0Dh) whose site the VMM has given it as CLI,
# STI or INVLPG, and the INT3 of one that shall run natively in a block of its own. With
# TF set, or an interrupt waiting for STI or that block, it is Python's.
_ON_EXCEPTION: Final = f"""
declare i32 @llvm.cttz.i32(i32, i1)
declare i64 @llvm.vector.reduce.or.v16i64(<16 x i64>)
{_enter("define void @on_exception(ptr %uc, i32 %vector, ptr %control)",
        {"python_at": abi.ON_EXCEPTION, "pending_at": abi.PENDING, "now_at": abi.NOW,
         "cli_count": abi.COUNT_CLI, "sti_count": abi.COUNT_STI,
         "invlpg_count": abi.COUNT_INVLPG, "split_count": abi.COUNT_SPLIT,
         "access_count": abi.COUNT_ACCESS},
        {"ds_base_at": _DS_BASE, "error_at": offsets.ERROR_CODE,
         "hflags_at": offsets.HFLAGS, "rflags_at": offsets.RFLAGS,
         "rip_at": offsets.RIP, "base_at": _CS_BASE, "old_at": offsets.OLD_EXCEPTION})}
  %is_gp = icmp eq i32 %vector, {x86.VEC_GP}
  %is_bp = icmp eq i32 %vector, {x86.VEC_BP}
  %either = or i1 %is_gp, %is_bp
  br i1 %either, label %gp, label %python
gp:
  %error = load i64, ptr %error_at
  %hflags = load i32, ptr %hflags_at
  %rflags = load i64, ptr %rflags_at
  %rip = load i64, ptr %rip_at
  %base = load i64, ptr %base_at
  %cpl = and i32 %hflags, {offsets.HF_CPL}
  %is_ring1 = icmp eq i32 %cpl, 1
  %is_error_0 = icmp eq i64 %error, 0
  %is_int = lshr i64 %error, 32
  %is_soft = icmp eq i64 %is_int, 1
  %as_told = select i1 %is_bp, i1 %is_soft, i1 %is_error_0
  %back = zext i1 %is_bp to i64
  %start = sub i64 %rip, %back
  %tf = and i64 %rflags, {x86.TF}
  %no_tf = icmp eq i64 %tf, 0
  %ours = and i1 %as_told, %no_tf
  %sum = add i64 %start, %base
  %linear = and i64 %sum, {x86.MASK32}
  %page = lshr i64 %linear, 12
  %mixed = xor i64 %linear, %page
  %hash = and i64 %mixed, {abi.SITE_MASK}
  %pair = shl i64 %hash, 1
  %slot = add i64 %pair, {abi.SITES}
  %slot_at = getelementptr i64, ptr %control, i64 %slot
  %known = load i64, ptr %slot_at
  %is_known = icmp eq i64 %known, %linear
  %here = and i1 %ours, %is_known
  br i1 %here, label %site, label %python
site:
  %kind_at = getelementptr i64, ptr %slot_at, i64 1
  %kind = load i64, ptr %kind_at
  %open = and i32 %hflags, {~offsets.HF_INHIBIT_IRQ}
  %is_split = icmp eq i64 %kind, {abi.SITE_SPLIT}
  br i1 %is_bp, label %break, label %fault
break:
  %break_pending = load i64, ptr %pending_at
  %none_waits = icmp eq i64 %break_pending, 0
  br i1 %none_waits, label %quiet, label %python
quiet:
  %splits = and i1 %is_split, %is_ring1
  br i1 %splits, label %split, label %not_split_now
split:
  %split_alone = or i32 %hflags, {offsets.HF_INHIBIT_IRQ}
  br label %done
not_split_now:
  %tag = and i64 %kind, 15
  %is_access = icmp eq i64 %tag, {abi.SITE_ACCESS}
  br i1 %is_access, label %access, label %python
{_ACCESS}
fault:
  %is_plain = icmp ult i64 %kind, 16
  %of_kernel = and i1 %is_ring1, %is_plain
  %of_fault = xor i1 %is_split, true
  %faults = and i1 %of_kernel, %of_fault
  br i1 %faults, label %not_split, label %python
not_split:
  %is_cli = icmp eq i64 %kind, {abi.SITE_CLI}
  br i1 %is_cli, label %cli, label %not_cli
not_cli:
  %is_sti = icmp eq i64 %kind, {abi.SITE_STI}
  br i1 %is_sti, label %sti, label %invlpg
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
  %shadow = or i32 %open, {offsets.HF_INHIBIT_IRQ}
  %was_shadow = and i32 %hflags, {offsets.HF_INHIBIT_IRQ}
  %was_open = icmp eq i32 %was_shadow, 0
  %begins = and i1 %was_off, %was_open
  %sti_hflags = select i1 %begins, i32 %shadow, i32 %open
  %sti_flags = or i64 %rflags, {x86.IF}
  br label %done
{_INVLPG}
done:
  %new_flags = phi i64 [ %cli_flags, %cli ], [ %sti_flags, %set ],
                       [ %rflags, %dropped ], [ %rflags, %split ],
                       [ %rflags, %pass ]
  %new_hflags = phi i32 [ %open, %cli ], [ %sti_hflags, %set ], [ %open, %dropped ],
                        [ %split_alone, %split ], [ %alone, %pass ]
  %count_at = phi ptr [ %cli_count, %cli ], [ %sti_count, %set ],
                      [ %invlpg_count, %dropped ], [ %split_count, %split ],
                      [ %access_count, %pass ]
  %length = phi i64 [ 1, %cli ], [ 1, %set ], [ {abi.INVLPG_LENGTH}, %dropped ],
                    [ -1, %split ], [ -1, %pass ]
  %seen = load i64, ptr %count_at
  %count = add i64 %seen, 1
  store i64 %count, ptr %count_at
  %old = load i64, ptr %now_at
  {_word("exit_cost_at", abi.EXIT_COST)}
  %exit_cost = load i64, ptr %exit_cost_at
  %now = add i64 %old, %exit_cost
  store i64 %now, ptr %now_at
  store i64 %new_flags, ptr %rflags_at
  store i32 %new_hflags, ptr %hflags_at
  %after = add i64 %rip, %length
  %eip = and i64 %after, {x86.MASK32}
  store i64 %eip, ptr %rip_at
  store i32 -1, ptr %old_at
  {_word("stop_at", abi.STOP_AT)}
  %limit = load i64, ptr %stop_at
  %due = icmp sge i64 %now, %limit
  br i1 %due, label %stop, label %resume
stop:
  {_word("emu_stop_at", abi.UC_EMU_STOP)}
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

# Before an instruction: looks at its operand, as `rings.insn.sse_operands.check` does,
# if `sites` has it: the control block's address, pairs of an instruction's address and
# its word, and -1. A fault leaves the engine here, with EIP at the instruction and no
# flag computed; behind this it would lose flags, so the pages are tried, too.
_ON_LOOK: Final = f"""
{_enter("define void @on_look_at(i64 %address, ptr %sites, ptr %control)",
        {"raise_at": abi.RAISE, "probe_at": abi.PROBE, "read_at": abi.READ32},
        {"rflags_at": offsets.RFLAGS, "hflags_at": offsets.HFLAGS,
         "segments": offsets.SEGMENTS + 8})}
  %rflags = load i64, ptr %rflags_at
  %kept = and i64 %rflags, {~(x86.ARITHMETIC_FLAGS | x86.DF)}
  store i64 %kept, ptr %rflags_at
  br label %next
next:
  %at = phi ptr [ %sites, %0 ], [ %word_at, %other ]
  %pc_at = getelementptr i64, ptr %at, i64 1
  %word_at = getelementptr i64, ptr %at, i64 2
  %pc = load i64, ptr %pc_at
  %is_here = icmp eq i64 %pc, %address
  br i1 %is_here, label %here, label %other
other:
  %is_last = icmp eq i64 %pc, -1
  br i1 %is_last, label %done, label %next
here:
  %word = load i64, ptr %word_at
  %hflags = load i32, ptr %hflags_at
  %off = and i32 %hflags, {(x86.CR0_EM | x86.CR0_TS) << offsets.HF_MP_EM_TS_SHIFT}
  %is_on = icmp eq i32 %off, 0
  %osfxsr = and i32 %hflags, {offsets.HF_OSFXSR}
  %has_sse = icmp ne i32 %osfxsr, 0
  %fxsave.0 = lshr i64 %word, {abi.LOOK_FXSAVE}
  %is_fxsave = trunc i64 %fxsave.0 to i1
  %may = or i1 %has_sse, %is_fxsave
  %runs = and i1 %is_on, %may
  br i1 %runs, label %look, label %done
look:
  %base.0 = lshr i64 %word, {abi.LOOK_BASE}
  %base.1 = and i64 %base.0, 15
  %base_at = getelementptr i64, ptr %state, i64 %base.1
  %base = load i64, ptr %base_at
  %index.0 = lshr i64 %word, {abi.LOOK_INDEX}
  %index.1 = and i64 %index.0, 15
  %index_at = getelementptr i64, ptr %state, i64 %index.1
  %index = load i64, ptr %index_at
  %scale.0 = lshr i64 %word, {abi.LOOK_SCALE}
  %scale = and i64 %scale.0, 3
  %scaled = shl i64 %index, %scale
  %sum.0 = add i64 %base, %scaled
  %sum = add i64 %sum.0, %word
  %is_16.0 = lshr i64 %word, {abi.LOOK_16}
  %is_16 = trunc i64 %is_16.0 to i1
  %mask = select i1 %is_16, i64 {0xFFFF}, i64 {x86.MASK32}
  %offset = and i64 %sum, %mask
  %segment.0 = lshr i64 %word, {abi.LOOK_SEGMENT}
  %segment.1 = and i64 %segment.0, 7
  %segment.2 = mul i64 %segment.1, {offsets.SEGMENT_SIZE}
  %segment_at = getelementptr i8, ptr %segments, i64 %segment.2
  %segment = load i64, ptr %segment_at
  %linear.0 = add i64 %segment, %offset
  %linear = and i64 %linear.0, {x86.MASK32}
  %low = and i64 %linear, 15
  %aligned.0 = lshr i64 %word, {abi.LOOK_ALIGNED}
  %must_be = trunc i64 %aligned.0 to i1
  %is_not = icmp ne i64 %low, 0
  %is_wrong = and i1 %must_be, %is_not
  br i1 %is_wrong, label %refuse, label %try
refuse:
  %raise = load ptr, ptr %raise_at
  call void %raise(ptr %state, i32 {x86.VEC_GP}, i32 0)
  unreachable
try:
  %written.0 = lshr i64 %word, {abi.LOOK_WRITTEN}
  %written.1 = trunc i64 %written.0 to i32
  %access = and i32 %written.1, 1
  %cpl = and i32 %hflags, {offsets.HF_CPL}
  %is_user = icmp eq i32 %cpl, 3
  %mmu = select i1 %is_user, i32 1, i32 2
  %probe = load ptr, ptr %probe_at
  call ptr %probe(ptr %state, i64 %linear, i32 1, i32 %access, i32 %mmu, i64 0)
  %end.0 = select i1 %is_fxsave, i64 511, i64 0
  %end.1 = add i64 %linear, %end.0
  %end = and i64 %end.1, {x86.MASK32}
  call ptr %probe(ptr %state, i64 %end, i32 1, i32 %access, i32 %mmu, i64 0)
  %mxcsr.0 = lshr i64 %word, {abi.LOOK_MXCSR}
  %mxcsr.1 = and i64 %mxcsr.0, 63
  %loads.0 = icmp ne i64 %mxcsr.1, 0
  %loads = and i1 %loads.0, %has_sse
  br i1 %loads, label %load, label %done
load:
  %mxcsr.2 = sub i64 %mxcsr.1, 1
  %mxcsr.3 = add i64 %linear, %mxcsr.2
  %mxcsr.4 = and i64 %mxcsr.3, {x86.MASK32}
  %read = load ptr, ptr %read_at
  %mxcsr = call i32 %read(ptr %state, i64 %mxcsr.4, i64 0)
  %reserved = lshr i32 %mxcsr, 16
  %is_bad = icmp ne i32 %reserved, 0
  br i1 %is_bad, label %refuse, label %done
done:
  ret void
}}

define void @on_look(ptr %uc, i64 %address, i32 %size, ptr %sites) {{
  %control = load ptr, ptr %sites
  tail call void @on_look_at(i64 %address, ptr %sites, ptr %control)
  ret void
}}
"""  # fmt: skip


class Hooks:
    """The compiled hooks: the addresses of their C functions."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(
            _ON_BLOCK + _ON_LATE + _ON_GUARD + _ON_RDTSC + _ON_EXCEPTION + _ON_LOOK
        )
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
        self._engine: Any = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        address = self._engine.get_function_address
        self.on_block = int(address("on_block"))
        self.on_late = int(address("on_late"))
        self.on_guard = int(address("on_guard"))
        self.on_rdtsc = int(address("on_rdtsc"))
        self.on_look = int(address("on_look"))
        self.on_exception = int(address("on_exception"))


_made: list[Hooks] = []


def compiled() -> Hooks:
    """Return the compiled hooks, compiling them once per process."""
    if not _made:
        _made.append(Hooks())
    return _made[0]
