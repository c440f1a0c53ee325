"""The subset's translator: what it takes means what CPython means by it."""

import ctypes
import itertools
import linecache
import operator
import re
from typing import Annotated

import llvmlite.binding as llvm
import pytest
from hypothesis import assume, given, target
from hypothesis import strategies as st

from emu86.native import records
from emu86.native.records import record, u8, u32, u64
from tools.native.translate import Translator
from tools.native.values import SubsetError

MASK64 = (1 << 64) - 1
BORDERS = (0, 1, 2, 63, 64, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, MASK64)
WORDS = st.sampled_from(BORDERS) | st.integers(0, MASK64)


@record
class Pair(ctypes.Structure):
    first: u32
    second: u64


NAMES = {
    **{name: getattr(records, name) for name in ("u8", "u16", "u32", "u64", "i64")},
    "Pair": Pair,
    "Bytes": ctypes.c_uint8 * 4,
    "TABLE": (3, 1, 4, 1, 5, 9, 2, 6),
    "MASK64": MASK64,
    "addressof": ctypes.addressof,
    "ctypes": ctypes,
}
NUMBERS = itertools.count()


def define(source, known=None):
    """The functions of a text, as if they stood in a file."""
    name = f"<subset {next(NUMBERS)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    names = dict(known or NAMES, __name__=name)
    exec(compile(source, name, "exec"), names)
    return names


def translated(function):
    """The function as machine code, with its engine, which must live on."""
    translator = Translator()
    translator.export(function)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(translator.module))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, engine.get_function_address(function.__name__)


def both(source, *arguments):
    """What CPython and the machine make of `f` with these 64-bit arguments."""
    function = define(source)["f"]
    engine, address = translated(function)
    words = [ctypes.c_uint64] * len(arguments)
    compiled = ctypes.PYFUNCTYPE(ctypes.c_uint64, *words)(address)
    assert engine is not None
    return function(*arguments), compiled(*arguments)


TEXTS = {
    "loop": """
def f(a: u64, b: u64) -> u64:
    total: u64 = 0
    for i in range(a & 15, b & 31):
        if i == 9:
            continue
        if total > 1 << 40:
            break
        total = total * 3 + i & MASK64
    return total
""",
    "while": """
def f(a: u64, b: u64) -> u64:
    left: u64 = a & 0xFFFF
    steps: u64 = 0
    while left and steps < b:
        left = left & left - 1 & MASK64
        steps = steps + 1 & MASK64
    return steps
""",
    "endless": """
def f(a: u64, b: u64) -> u64:
    i: u64 = a & 7
    while True:
        i = i + 1 & MASK64
        if i > 9:
            found = i
            break
    return found
""",
    "calls": """
def g(x: u32, flag: bool) -> bool:
    return x > 5 and flag

def f(a: u64, b: u64) -> u64:
    return 7 if g(a & 15, b > 3) else 8
""",
    "chain": """
def f(a: u64, b: u64) -> u64:
    return 1 if 3 <= a < b or a in (0, 7, 1 << 63) else 2
""",
    "table": """
def f(a: u64, b: u64) -> u64:
    return TABLE[a & 7] * 10 + TABLE[min(b, 7)]
""",
    "memory": """
def f(a: u64, b: u64) -> u64:
    pair = Pair.from_address(a)
    pair.first += b & MASK64
    pair.second = pair.first * 5
    low = Bytes.from_address(addressof(pair))
    low[b & 3] ^= 0xF0
    return pair.first ^ ctypes.c_uint64.from_address(a + 8 & MASK64).value
""",
    "signed": """
def f(a: u64, b: u64) -> u64:
    x = (a & 0xFF) - (b & 0xFF)
    y: i64 = x if x < 0 else -x
    return (y >> 2) + max(x, y, -3) & MASK64
""",
    "division": """
def f(a: u64, b: u64) -> u64:
    return a // ((b & 7) + 1) + a % ((b & 15) + 1) & MASK64
""",
}


@pytest.mark.parametrize("name", TEXTS)
@given(a=WORDS, b=WORDS)
def test_python_and_the_machine_agree(name, a, b):
    memory = ctypes.create_string_buffer(b.to_bytes(8, "little") * 4)
    first = ctypes.addressof(memory) if name == "memory" else a
    source = TEXTS[name]
    function = COMPILED.get(name)
    if function is None:
        made = define(source)["f"]
        engine, address = translated(made)
        kind = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
        function = COMPILED[name] = made, kind(address), engine
    saved = memory.raw
    expected = function[0](first, b), memory.raw
    memory.raw = saved
    assert (function[1](first, b), memory.raw) == expected


COMPILED = {}

OPERATORS = ("+", "-", "*", "&", "|", "^")
COMPARES = ("==", "!=", "<", "<=", ">", ">=")


@st.composite
def expressions(draw, depth=4):
    """An expression of a, b and constants that the translator may refuse."""
    if depth == 0 or not draw(st.integers(0, 3)):
        leaves = st.sampled_from(["a", "b", "c", "MASK64", *map(str, BORDERS)])
        return draw(leaves)
    inner = expressions(depth=depth - 1)
    kind = draw(st.integers(0, 7))
    if kind == 0:
        return f"({draw(inner)} >> ({draw(inner)} & 63))"
    if kind == 1:
        return f"({draw(inner)} << ({draw(inner)} & 31))"
    if kind == 2:
        test = f"{draw(inner)} {draw(st.sampled_from(COMPARES))} {draw(inner)}"
        return f"({draw(inner)} if {test} else {draw(inner)})"
    if kind == 3:
        return f"{draw(st.sampled_from(('-', '~')))}{draw(inner)}"
    if kind == 4:
        return f"{draw(st.sampled_from(('min', 'max')))}({draw(inner)}, {draw(inner)})"
    if kind == 5:
        return f"({draw(inner)} & MASK64)"
    return f"({draw(inner)} {draw(st.sampled_from(OPERATORS))} {draw(inner)})"


@given(text=expressions(), words=st.tuples(WORDS, WORDS, st.integers(0, 255)))
def test_what_is_not_refused_is_exact(text, words):
    source = f"def f(a: u64, b: u64, c: u8) -> u64:\n    return {text} & MASK64\n"
    function = define(source)["f"]
    try:
        engine, address = translated(function)
    except SubsetError:
        assume(False)
    kinds = ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint8
    compiled = ctypes.PYFUNCTYPE(ctypes.c_uint64, *kinds)(address)
    target(len(text))
    assert engine is not None
    assert compiled(*words) == function(*words)


REFUSED = {
    "return a + 1": r":2: a \+ 1 may be 0x1 to 0x10000000000000000: beyond c_ulong",
    "return a + 1 >> 1": "beyond 64 bits; mask it",
    "return TABLE[a]": "index may be 0 to",
    "return nobody": "nobody is neither a local nor a constant",
    "return a if a else a > 1": "two integers or between two truths",
    "return a / 2": "Div is not in the subset",
    "return a // (a & 1)": "by 0 or less",
    "return a << a": "a shift by 0 to",
    "x = 1\n    x = a\n    return x": "assigned more than once: annotate it",
    "if a:\n        x = a\n    return x": "x may have no value here",
    "while True:\n        pass\n    return 1": "never reached",
    "return 1\n    return 2": "never reached",
    "if a:\n        return 1": "may end without a result",
    "return [a]": "List is not in the subset",
    "return f(a)": "f calls itself",
    "return Pair.from_address(a).third": "Pair has no field third",
    "return -1 if a > -1 else 0": "one side may be negative",
    "return MASK64 if a - 1 < MASK64 else 0": "a - 1 may be -0x1",
    "a = 1.5\n    return 1": "1.5 is not in the subset",
    "return f()": "f takes 1 argument$",
    "return min(a)": r"min\(a\) has nothing to compare",
    "return 1 if bool(a, a) else 0": "bool takes 1 argument",
    "return addressof()": "addressof takes 1 argument",
    "return addressof(a)": "a is not in memory",
    "return Pair.from_address().first": "Pair.from_address takes 1 argument",
    "return max(a, b=a)": "arguments go by place",
    "return sum(a, a)": "sum cannot be called",
    "x, y = a\n    return x": r":2: \(x, y\) is no place in memory",
    "x = y = a\n    return x": "Assign is not in the subset",
    "x = a\n\n    while x:\n        pass\n    return TABLE[8]": ":6: index may be 8",
    "for i in range():\n        pass\n    return 1": "a loop is over range",
    "for i in TABLE:\n        pass\n    return 1": "a loop is over range",
    "x: u64 = 1\n    x = a < 1\n    return 1": "x was something else before",
    "return a[0]": "a is no array",
    "return a.b": "a has no attributes",
    "return Bytes.from_address(a)[4]": "index 4 may be 4 to 4, of 4",
    "return": "the result is not what the function declares",
    "return a is 1": "Is is not in the subset",
    "return (lambda: 1)()": "cannot be called",
}


@pytest.mark.parametrize("body", REFUSED)
@pytest.mark.filterwarnings("ignore:.*is.* with:SyntaxWarning")
def test_what_cannot_be_proved_is_refused_at_its_line(body):
    function = define(f"def f(a: u64) -> u64:\n    {body}\n")["f"]
    with pytest.raises(SubsetError, match=REFUSED[body]) as refused:
        Translator().export(function)
    assert re.match(r"<subset \d+>:[2-9]: ", str(refused.value))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("a) -> u64", "a has no type of the subset"),
        ("a: int) -> u64", "a has no type of the subset"),
        ("a: u64)", "the result has no type of the subset"),
        ("a: u64) -> str", "the result has no type of the subset"),
        ("a: u64 = 1) -> u64", "a has a default"),
        ("*a: u64) -> u64", "a is no plain argument"),
        ("*, a: u64) -> u64", "a is no plain argument"),
    ],
)
def test_what_a_function_takes_and_returns_has_types(arguments, why):
    function = define(f"\ndef f({arguments}:\n    return 1\n")["f"]
    with pytest.raises(SubsetError, match=rf"<subset \d+>:2: {why}"):
        Translator().export(function)


def test_a_call_is_made_once():
    calls = []
    count = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(
        lambda value: calls.append(value) or value
    )

    @record
    class Caller(ctypes.Structure):
        call: Annotated[object, type(count)]

    names = dict(NAMES, Caller=Caller)
    source = "def f(a: Caller, b: u64) -> u64:\n    return 5 if a.call(b) >> 1 else 6\n"
    function = define(source, names)["f"]
    caller = Caller(count)
    engine, address = translated(function)
    compiled = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    assert function(caller, 2) == compiled(address)(ctypes.addressof(caller), 2) == 5
    assert calls == [2, 2]
    assert engine is not None


def test_a_store_keeps_the_low_bits_as_ctypes_does():
    pair = Pair()
    pair.first = (1 << 40) + 5
    assert operator.attrgetter("first", "second")(pair) == (5, 0)
    assert u8 is records.u8
