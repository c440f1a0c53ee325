"""The compiled handlers are their text in Python: both on the same random states."""

import ast
import inspect
import json
import sys
import textwrap
from pathlib import Path
from types import FunctionType
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu86.native import blob, handlers, ia32e, ports, transfers64
from support import planted
from support.arm import Arm
from support.states import AIMS, randomize
from support.world import World

WORLD = World()
STATES = 4  # of one example: they are cheap
OF = {
    handlers.on_exception: AIMS,
    ports.on_in: ("any", "data port"),
    ports.on_out: ("any", "data port"),
    ia32e.on_syscall: ("64-bit SYSCALL",),
    transfers64.return64: ("64-bit IRETQ",),
    transfers64.deliver64: ("64-bit INT",),
    transfers64.external64: ("64-bit INT",),
}
CASES = [
    (function, aim) for function in blob.EXPORTS for aim in OF.get(function, ("any",))
]
NAMES = [f"{function.__name__}, {aim}" for function, aim in CASES]
SEEDS = st.integers(0, (1 << 48) - 1)
each = pytest.mark.parametrize(("function", "aim"), CASES, ids=NAMES)


def arguments(name, seed, control, cpu):
    """What to call a handler with; cpu, control: records, or their addresses."""
    uc = seed * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return {
        "on_block": (uc, seed, seed & 0xFFFF, control),
        "on_late": (control, seed * 0x9E3779B97F4A7C15 & (1 << 64) - 1),
        "on_guard": (control, seed & 0xFFFFFFFF, seed & 1),
        "on_look": (uc, WORLD.at, seed & 15, WORLD.sites),
        "on_rdtsc": (uc, control),
        "on_in": (uc, WORLD.port, WORLD.width, control),
        "on_out": (uc, WORLD.port, WORLD.width, WORLD.value, control),
        "on_cpuid": (uc, control),
        "on_syscall": (uc, control),
        "on_edge": (uc, WORLD.block_at, seed & 15, control),
        "on_exception": (uc, WORLD.vector, control),
        "external": (control, cpu, WORLD.vector & 255),
        "return_by_plan": (control, cpu, seed & 1),
        "return64": (control, cpu, seed & 1),
        "external64": (control, cpu, WORLD.vector & 255),
        "deliver64": (
            control,
            cpu,
            WORLD.vector & 255,
            seed % 9 - 1,
            seed & 1,
            seed >> 1 & 1,
        ),
        "shorten": (control, WORLD.block.pc, WORLD.block.size, seed & 1),
        "deliver_by_plan": (
            control,
            cpu,
            WORLD.vector,
            seed % 9 - 1,
            seed & 1,
            seed >> 1 & 1,
        ),
    }[name]


def by_reference(function, seed):
    """By CPython, on the world as it is."""
    WORLD.connect()
    result = function(*arguments(function.__name__, seed, WORLD.control, WORLD.cpu))
    return result, WORLD.outcome()


def by_machine(function, seed, entries):
    """By compiled code, which stands in this process."""
    WORLD.connect()
    call = blob._at(entries[function.__name__], function)
    result = call(*arguments(function.__name__, seed, WORLD.base, WORLD.cpu_at))
    return result, WORLD.outcome()


def is_found(function, aim, seed, entries):
    """Tell whether compiled code makes something else of a state."""
    randomize(WORLD, seed, aim)
    state = WORLD.state()
    expected = by_reference(function, seed)
    WORLD.be(state)
    return by_machine(function, seed, entries) != expected


@each
@given(seed=SEEDS)
def test_compiled_and_reference_agree(function, aim, seed):
    for state in range(STATES * seed, STATES * (seed + 1)):
        assert not is_found(function, aim, state, blob.load()), state


FOLDER = Path(blob.FOLDER)
ARM_BLOB = json.loads((FOLDER / "manifest.json").read_text())["blobs"]["aarch64"]
ARM = Arm(WORLD, (FOLDER / "aarch64.bin").read_bytes(), ARM_BLOB["entries"])


@each
@given(seed=SEEDS)
def test_aarch64_and_reference_agree(function, aim, seed):
    """On Unicorn's ARM64 engine: what was compiled for hosts that this one is not."""
    name = function.__name__
    randomize(WORLD, seed, aim)
    state = WORLD.state()
    result, outcome = by_reference(function, seed)
    WORLD.be(state)
    WORLD.connect(ARM.calls)
    found = ARM.call(name, *arguments(name, seed, WORLD.base, WORLD.cpu_at))
    assert WORLD.outcome() == outcome
    if result is not None:
        assert found == result


# -- what the states reach -------------------------------------------------------------


def texts(function, found):
    """A handler and all that it calls, by their code."""
    if function.__code__ not in found:
        found[function.__code__] = function
        for name in function.__code__.co_names:
            called = function.__globals__.get(name)
            if isinstance(called, FunctionType) and "emu86.native" in called.__module__:
                texts(called, found)
    return found


def parsed(function):
    """A function's tree, and the number of the line before it."""
    lines, first = inspect.getsourcelines(function)
    return ast.parse(textwrap.dedent("".join(lines))).body[0], first - 1


def results(function, value):
    """What an expression that a function returns may be, of False and True."""
    if get_type_hints(function)["return"] is not bool:
        return (None,)
    if isinstance(value, ast.Constant):
        return (value.value,)
    if isinstance(value, ast.Call):
        called = function.__globals__.get(ast.unparse(value.func))
        if isinstance(called, FunctionType):
            tree, _line = parsed(called)
            returns = [node for node in ast.walk(tree) if isinstance(node, ast.Return)]
            return sorted({r for node in returns for r in results(called, node.value)})
    return (False, True)


def statements(function):
    """Of each statement: its line, its text, and what it may return."""
    tree, before = parsed(function)
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.lineno + before, ast.unparse(node), results(function, node.value)
        elif isinstance(node, ast.stmt) and not isinstance(node, ast.FunctionDef):
            is_text = isinstance(node, ast.Expr) and isinstance(
                node.value, ast.Constant
            )
            if not is_text and not isinstance(node, ast.Pass):
                text = ast.unparse(node).partition("\n")[0]
                yield node.lineno + before, text, (None,)


def test_the_states_reach_every_statement_and_every_result():
    """As many as CI tries. If not: `support/states.py` lacks something."""
    known = {}
    for function in blob.EXPORTS:
        texts(function, known)
    wanted = {
        (code, line, result): text
        for code, function in known.items()
        for line, text, results_ in statements(function)
        for result in results_
    }

    def see(frame, event, value):
        if frame.f_code not in known:
            return None
        wanted.pop((frame.f_code, frame.f_lineno, None), None)
        if event == "return":
            wanted.pop((frame.f_code, frame.f_lineno, value), None)
        return see

    for seed in range(100 * STATES):
        for function, aim in CASES:
            randomize(WORLD, seed, aim)
            WORLD.connect()
            passed = arguments(function.__name__, seed, WORLD.control, WORLD.cpu)
            sys.settrace(see)
            function(*passed)
            sys.settrace(None)
            WORLD.log.clear()
        if not wanted:
            break
    missing = [
        f"{Path(code.co_filename).name}:{line}: {text}: {result}"
        for (code, line, result), text in wanted.items()
    ]
    assert not missing, "\n".join(missing)


# -- what they find --------------------------------------------------------------------

# Errors of a single token: the module, what stands once in it, and what instead.
ERRORS = [
    ("state", "if value & x86.DF else 1", "if value & x86.CF else 1"),
    ("state", "0 if cpu.df == 1 else x86.DF", "0 if cpu.df != 1 else x86.DF"),
    ("state", "value & ~_LAZY | x86.FLAGS_FIXED", "value & ~_LAZY"),
    ("state", "length & (x86.MASK64 if is_64", "length & (x86.MASK32 if is_64"),
    ("ia32e", "rip + 2 & x86.MASK64", "rip & x86.MASK64"),
    ("ia32e", "selector + 16 | 3", "selector + 16"),
    ("ia32e", "cpu.hflags & ~_MODE | ring", "cpu.hflags | ring"),
    ("ia32e", "~control.fmask", "control.fmask"),
    ("state", "in (0, 0x1FFFF)", "in (0, 0xFFFF)"),
    ("transfers64", "(top & ~15 & x86.MASK64)", "(top & x86.MASK64)"),
    ("transfers64", "frame[with_error + 3] = rsp", "frame[with_error + 3] = top"),
    ("transfers64", "cpu.gpr[x86.ESP] = frame[3]", "cpu.gpr[x86.ESP] = frame[2]"),
    ("transfers64", "~offsets.HF_ADDSEG | offsets.HF_CODE64", "~offsets.HF_ADDSEG"),
    ("state", "frame >= control.ram_size", "frame > control.ram_size"),
    ("state", "cpu.old_exception = x86.MASK32", "cpu.old_exception = 0"),
    ("state", "if control.now >= control.stop_at", "if control.now > control.stop_at"),
    ("transfers", "stack_top(control, cpu, 20)", "stack_top(control, cpu, 16)"),
    ("transfers", "image & POPPED", "image & POPPED & ~x86.NT"),
    ("transfers", "cs = frame[1] & 0xFFFF", "cs = frame[1] & 0xFFFFF"),
    ("transfers", "plan.dpl < cpl", "plan.dpl <= cpl"),
    ("transfers", "frame[with_error + 1] =", "frame[with_error] ="),
    ("transfers", "max(iopl, control.kernel", "min(iopl, control.kernel"),
    ("transfers", "(x86.RF | x86.IOPL) | control", "x86.RF | control"),
    ("transfers", "iopl if cpl else", "iopl if not cpl else"),
    ("transfers", "!= 0 or (image", "== 0 or (image"),
    ("fills", "frame | _LEAF | rights & x86.PTE_US\n", "frame | _LEAF\n"),
    ("fills", "if state == abi.DATA else writes", "if state == abi.DATA else 0"),
    ("fills", "return entry | never if", "return entry if"),
    ("fills", "(above | pte) & x86.PTE_NX", "above & x86.PTE_NX"),
    (
        "fills",
        "x86.PDE_PS) != _USED or pde & control.reserved:",
        "x86.PDE_PS) != _USED:",
    ),
    ("tables", "linear >> 30 if", "linear >> 31 if"),
    ("tables", "shift = 3 if", "shift = 2 if"),
    ("faults", "_ACCESS | control.fetch_bit", "_ACCESS"),
    ("fills", "    used = pte | wanted", "    used = pte | x86.PTE_A"),
    ("flags", "and open_ == cpu.hflags", "or open_ == cpu.hflags"),
    ("handlers", "& ~x86.ZF | known.zf", "| known.zf"),
    ("handlers", "> segment.limit or", ">= segment.limit or"),
    ("handlers", "= tsc >> 32", "= tsc >> 31"),
    ("roots", "return SOME if", "return NONE if"),
    ("roots", "(number << 9) + width * i", "(number << 9) + i"),
    ("roots", "_PDPTE_RESERVED = 0x1E6", "_PDPTE_RESERVED = 0x1E4"),
    ("handlers", "page << abi.SITE_PAGE", "page << 31"),
    ("setcc", "(kind >> 28 & 15) - 1 & 15", "kind >> 28 & 15"),
    ("faults", "code |= x86.PF_P", "code |= x86.PF_W"),
    ("faults", "linear >> 39 - 9 * level & 511", "linear >> 39 - 9 * level & 255"),
    ("faults", "either |= entry", "either |= x86.PTE_NX"),
    ("faults", "modrm >> 3 & 7)", "modrm & 7)"),
    ("scan", "(2 if narrow else 4)", "(4 if narrow else 4)"),
    ("prologue", "if more == 1:", "if more == 3:"),
    ("roots", "if frame != held.frame", "if frame == held.frame"),
    ("handlers", "| (cr0 & _FPU) << shift", "| cr0 & _FPU"),
    ("faults", "    control.cr2 = cr2", "    control.cr2 = error & x86.MASK32"),
    ("pit", "value // 1000 % 10 << 12", "value // 1000 % 10 << 11"),
    ("pit", "counter.out = counter.mode > 1", "counter.out = counter.mode > 2"),
    ("pit", "counter.origin += cycles * period", "counter.origin += cycles"),
    (
        "pit",
        "max(counter.period, 1) - 1\n    if counter.mode == 3",
        "counter.period\n    if counter.mode == 3",
    ),
    ("timer", "master.lines |= 1", "master.lines |= 2"),
    ("timer", "if due >= min(control.rests", "if due > min(control.rests"),
    ("timer", "control.now + control.look_for", "control.now"),
    ("timer", "control.ns += now - before", "control.ns += now"),
    ("pit", "counter.load_at = t + 1", "counter.load_at = t"),
    ("state", "rest % rate << 16", "rest % rate << 15"),
    ("pic", "chip.isr = isr", "chip.isr = imr"),
    ("pic", "chip.irr & ~chip.imr & 0xFF)", "chip.irr & 0xFF)"),
    ("uart", "uart.empty_pending = 1", "uart.empty_pending = 0"),
    ("ports", "control.now + abi.IO_TIME", "control.now"),
    ("string_io", "max(left, 1) - 1)", "max(left, 1))"),
    (
        "string_io",
        "word.value = transfer.words[first + i",
        "word.value = transfer.words[i",
    ),
    ("ports", "drive.asks and", "drive.status and"),
    ("ide", "transfer.at + width < transfer", "transfer.at + width <= transfer"),
    ("gdt", "spte.value & ~x86.PTE_RW", "spte.value & ~x86.PTE_US"),
]
EVERY = 6  # of them is tried in CI; `make nightly` tries all


def found_by(entries):
    """The first case in which compiled code is not the reference, and its state."""
    for seed in range(100 * STATES):
        for function, aim in CASES:
            if is_found(function, aim, seed, entries):
                return function.__name__, aim, seed
    return None


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(error, marks=[pytest.mark.slow] if i % EVERY else [])
        for i, error in enumerate(ERRORS)
    ],
    ids=lambda error: f"{error[0]}: {error[2].strip()}",
)
def test_an_error_that_is_planted_is_found(error):
    assert found_by(planted.compiled(*error))


def test_what_is_planted_is_all_that_differs():
    nothing = (
        "state",
        "cpu.old_exception = x86.MASK32",
        "cpu.old_exception = x86.MASK32",
    )
    entries = planted.compiled(*nothing)
    for seed in range(20):
        for function, aim in CASES:
            assert not is_found(function, aim, seed, entries)
