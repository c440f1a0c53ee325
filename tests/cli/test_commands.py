"""What needs no machine."""

import errno
import io
import os
import re
import signal
import subprocess
import sys

import pytest

from emu86 import ConfigError, cli, config
from emu86.cli.explain import explain, explain_text
from emu86.cpu.models import MODELS
from emu86.rings.insn.table import RECORDS

pytestmark = pytest.mark.not_quick


@pytest.fixture
def emu86(monkeypatch):
    """The command in this process: its status, and what it says."""

    def run(*arguments, encoding="utf-8", **environment):
        for name in ("LANG", "LC_ALL", "PYTHONIOENCODING", "PYTHONUTF8", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        streams = [
            io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
            for _ in range(2)
        ]
        monkeypatch.setattr(sys, "argv", ["emu86", *arguments])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = [stream.buffer.getvalue().decode() for stream in streams]
        return subprocess.CompletedProcess(arguments, end.value.code, *told)

    return run


def emu86_itself(*arguments, **options):
    command = [sys.executable, "-m", "emu86", *arguments]
    return subprocess.run(
        command, stderr=subprocess.PIPE, timeout=120, check=False, **options
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"]])
def test_help(emu86, arguments):
    result = emu86(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: emu86" in result.stdout


def test_help_has_a_line_for_each_status(emu86):
    lines = emu86("run", "--help").stdout.splitlines()
    statuses = [line.split()[0] for line in lines if re.match("  [0-9N]", line)]
    assert statuses == ["128+n", "3", "0", "4", "1", "3", "N", "0"]


def test_help_has_a_line_for_each_example(emu86):
    lines = emu86("explain", "--help").stdout.splitlines()
    assert {"  emu86 explain 0f 22 d8", "  emu86 explain popf"} <= set(lines)


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_the_list_of_commands_is_whole(emu86, columns):
    shown = emu86("--help", COLUMNS=columns).stdout
    assert "..." not in shown.partition("Commands:")[2]


def test_help_has_a_line_for_each_name(emu86):
    shown = " ".join(emu86("run", "--help").stdout.split())
    for names in (config.CPUS, config.TECHNIQUES):
        for name, line in names.items():
            assert f"{name}: {line}." in shown


def test_version(emu86):
    assert emu86("--version").stdout == "emu86 0.1.0\n"


def test_help_needs_nothing_heavy():
    program = (
        "import sys; from emu86 import cli; "
        "print(sorted({'numba', 'numpy', 'unicorn'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout == "[]\n"


# -- what it shows, and where ----------------------------------------------------------


def test_exits_in_a_pipe_and_at_80_columns(emu86):
    """A row is a line in a pipe; most rows are one at 80 columns, too."""
    shown = emu86("exits").stdout.splitlines()
    (line,) = [one for one in shown if "WRMSR" in one]
    assert " ".join(line.split()) == "WRMSR privileged 0F 30 #GP(0) Vol. 2D WRMSR"
    narrow = emu86("exits", COLUMNS="80").stdout.splitlines()
    assert max(map(len, narrow)) <= 80
    assert len(narrow) < 2 * len(RECORDS)
    assert "explain INSTRUCTION" in narrow[-1]


def test_labs_at_80_columns(emu86):
    shown = emu86("lab", COLUMNS="80").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert len(emu86("lab", COLUMNS="1").stdout) > len(shown)
    questions = " ".join(shown.split())
    assert "SS with a segment of DPL 0, then with RPL 1: is that refused?" in questions
    assert "\nPOPF   " in "\n" + shown


def test_tables_in_ascii(emu86):
    for options in ({"encoding": "ascii"}, {"LANG": "C"}, {"LC_ALL": "POSIX"}):
        shown = emu86("exits", **options).stdout
        assert shown.isascii()
        assert "----" in shown
        assert "MOV-Move to/from Control Registers" in shown
        assert emu86("explain", "mov", **options).stdout.isascii()
    shown = emu86("exits", LANG="C.UTF-8").stdout
    assert "MOV\u2014Move" in shown
    assert "MOV\u2014Move" in emu86("exits", LANG="C", PYTHONUTF8="1").stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["explain", "mov"], ["lab"], ["lab", "popf"],
     ["classify", "cli"], ["classify", "--json", "cli"]],
)  # fmt: skip
def test_every_command_in_ascii(emu86, arguments):
    result = emu86(*arguments, encoding="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_a_name_that_cannot_be_shown(emu86):
    for encoding in ("ascii", "utf-8"):
        result = emu86("run", "--kernel", "/\u00e4\udcff", encoding=encoding)
        assert result.returncode == 2
        shown = "\\xe4" if encoding == "ascii" else "\u00e4"
        told = f"emu86: kernel: /{shown}\\udcff: No such file or directory\n"
        assert result.stderr == told


@pytest.mark.parametrize(
    "arguments", [["--help"], ["exits"], ["explain", "fa"], ["lab", "popf"]]
)
def test_nobody_reads(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    result = emu86_itself(*arguments, stdout=writing)
    os.close(writing)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EINVAL, errno.ENOSPC])
def test_an_error_that_is_not_of_standard_output(emu86, monkeypatch, number):
    def fail(*_arguments):
        raise OSError(number, "words")

    monkeypatch.setattr(cli.explain, "explain", fail)
    result = emu86("explain", "90")
    assert result.returncode == 2
    assert result.stderr == f"emu86: [Errno {number}] words\n"


def test_standard_output_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    for arguments in (["exits"], ["explain", "cli"], ["--version"]):
        monkeypatch.setattr(sys, "argv", ["emu86", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0


def test_classify_has_a_legend(emu86):
    shown = emu86("classify", "cli", COLUMNS="80").stdout
    headings, legend = shown.partition("CLI")[0], shown.rpartition("\n\n")[2]
    for name in ("traps", "IOPL 3", "VM86", "class", "changes", "wrong", "engine"):
        assert name in headings
        assert f"\n{name} " in "\n" + legend


def test_colours_are_for_terminals_that_want_them(emu86, monkeypatch):
    assert "\x1b" not in emu86("lab", "popf", TERM="xterm").stdout
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert "\x1b" not in emu86("lab", "popf", TERM="dumb").stdout
    assert "\x1b" not in emu86("lab", "popf", TERM="xterm", NO_COLOR="1").stdout
    shown = emu86("lab", "popf", TERM="xterm", NO_COLOR="").stdout
    assert "\x1b[31m\x1b[1m== trap: WRONG\x1b[0m\n" in shown
    assert "\x1b[32m\x1b[1m== patch: right\x1b[0m\n" in shown


# -- completion ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("emu86 cl", ["plain,classify"]),
        ("emu86 run --technique p", ["plain,patch"]),
        ("emu86 run --cpu pentium3-", ["plain,pentium3-pae"]),
        ("emu86 run vml", ["file,vml"]),
        ("emu86 run --kernel vml", ["file,vml"]),
        ("emu86 lab mov-to-s", ["plain,mov-to-sreg", "plain,mov-to-ss"]),
        ("emu86 lab popf PUS", ["plain,pushf", "plain,push-sreg"]),
        ("emu86 classify sg", ["plain,sgdt"]),
        ("emu86 explain lds", ["plain,lds-les-lfs-lgs"]),
        ("emu86 wlak x", []),
    ],
)
def test_completion(emu86, line, found):
    place = str(len(line.split(" ")) - 1)
    told = {"COMP_WORDS": line, "COMP_CWORD": place}
    assert emu86(_EMU86_COMPLETE="bash_complete", **told).stdout.split() == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_help_says_how_to_switch_completion_on(emu86, shell):
    assert f"_EMU86_COMPLETE={shell}_source emu86" in emu86("--help").stdout
    result = emu86(_EMU86_COMPLETE=f"{shell}_source")
    assert (result.returncode, result.stderr) == (0, "")
    assert "_EMU86_COMPLETE" in result.stdout


# -- explain ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        (["0f22d8"], ["0f 22 d8  mov cr3, eax", "MOV to CR", "privileged", "#GP(0)"]),
        (["0x9D"], ["popfd", "POPF", "sensitive", "Patched before it first runs"]),
        (["fa", "90"], ["fa  cli", "(then 90, not looked at)"]),
        (["90"], ["Runs natively"]),
        (["cd80"], ["int 0x80", "Raises an event"]),
        (["mov cr3, eax"], ["MOV to CR (0F 22 /r): privileged"]),
        (["mov", "cr3,eax"], ["MOV to CR (0F 22 /r): privileged"]),
        (
            ["0x0f", "0x22", "0xd8"],
            ["mov cr3, eax", "MOV to CR (0F 22 /r): privileged"],
        ),
        (["0fa2"], ["cpuid", "The engine has a hook for it"]),
        (["8cc8"], ["mov eax, cs", "though it is sensitive"]),
        (["16"], ["push ss", "though it is sensitive"]),
    ],
)
def test_explain(emu86, code, parts):
    result = emu86("explain", *code)
    assert (result.returncode, result.stderr) == (0, "")
    for part in parts:
        assert part in result.stdout


@pytest.mark.parametrize(
    ("code", "mistake"),
    [
        (["xyz"], "'xyz' is neither hexadecimal nor an instruction"),
        (["ppof"], "an instruction (did you mean 'POPF'?)"),
        (["mov", "eax,", "@"], "'@' is no operand"),
        (["0f"], "0f is incomplete: more bytes must follow"),
        (["FF"], "ff is incomplete: more bytes must follow"),
        (["0fff"], "0f ff is no instruction"),
        (["0x"], "nothing is no instruction"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_explained(emu86, code, mistake):
    result = emu86("explain", *code)
    assert result.returncode == 2
    assert result.stderr.startswith("emu86: ")
    assert mistake in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("mov rax, cr8", "MOV from CR"), ("swapgs", "SWAPGS"), ("popfq", "POPF"),
        ("iretq", "IRET"), ("mov ss, r9", "MOV to SS"), ("sgdt [r12]", "SGDT"),
    ],
)  # fmt: skip
def test_explain_takes_text_of_64_bits_for_what_it_is(text, first):
    assert next(explain_text(text)).startswith(first)


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("0f 05", ["syscall", "SYSCALL (0F 05)"]), ("48 cf", ["iretq", "IRET (CF)"]),
        ("c5 f8 77", ["vzeroupper", "Needs later CPUs: #UD on"]),
        ("66 e8 00 00 00 00", ["near branch with 66h"]), ("48 c3", ["Runs natively"]),
        ("44 0f 20 c0", ["cr8", "MOV from CR"]), ("0f 20 c8", ["there is no CR1"]),
    ],
)  # fmt: skip
def test_explain_of_64_bit_code(emu86, code, parts):
    shown = emu86("explain", "--bits", "64", *code.split()).stdout
    assert all(part in shown for part in parts)


def test_what_is_in_no_64_bit_code(emu86):
    result = emu86("explain", "--bits", "64", "06")
    assert (result.returncode, result.stderr) == (
        2, "emu86: explain: 06 is no instruction of 64-bit code\n"
    )  # fmt: skip
    for text in ("into", "pop ss", "PUSH CS", "lds eax, [ebx]", "jmp 8:0x1000", "daa"):
        first, *told = explain_text(text, 64)
        assert first == text
        assert "64-bit code has no such instruction" in " ".join(told)
    for text in ("push fs", "ljmp [rax]", "jmp fs:[rax]", "LDS, LES, LFS, LGS", "lss"):
        assert "no such" not in "".join(explain_text(text, 64))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("popf", "POPF"), ("POPFD", "POPF"), ("iret", "IRET"), ("pop ds", "POP Sreg"),
        ("pop ss", "POP SS"), ("mov ss, ax", "MOV to SS"), ("mov ds, [x]", "MOV to S"),
        ("mov dr7, ecx", "MOV to DR"), ("mov edx, cr4", "MOV from CR"),
        ("lgdt [eax + 4*ecx]", "LGDT"), ("lgdt [gdtr]", "LGDT"), ("in al, 60h", "IN"),
        ("rep insb", "INS"), ("outsd", "OUTS"), ("out dx, eax", "OUT"),
        ("jmp 8:0x1000", "JMP far"), ("jmp far [eax]", "JMP far, indirect"),
        ("call fword ptr [eax]", "CALL far, i"), ("call far [x]", "CALL far, indirect"),
        ("retf 4", "RET far"), ("setnz byte [eax]", "SETcc"), ("loopz 5", "LOOPE"),
        ("rcl dword ptr [eax], cl", "RCL"), ("lock cmpxchg8b [esi]", "CMPXCHG8B"),
        ("les eax, [ebx]", "LDS, LES"), ("mov-to-cr", "MOV to CR"), ("mov", "MOV from"),
        ("verr ax", "VERR"), ("cli ; and on", "CLI"), ("invlpg byte es:[di]", "INVLPG"),
    ],
)  # fmt: skip
def test_explain_needs_no_assembler(text, first):
    told = list(explain_text(text))
    assert told[0].startswith(first)
    if text == "mov":
        assert told[-2] == "mov in other forms:"
        assert told[-1].startswith("Runs natively")


@pytest.mark.parametrize(
    "text",
    ["mov eax, cs", "push cs", "pop eax", "jmp foo", "jmp [eax]", "call eax", "sete al",
     "rcl eax, 1", "add eax, 1", "mov ax, [bx+si]", "fadd", "movaps xmm0, [eax]",
     "jz foo", "jnc foo", "jpo foo", "cmovnz eax, ebx", "xlat", "fwait"],
)  # fmt: skip
def test_what_runs_natively(text):
    lines = list(explain_text(text))[1:]
    assert any(line.startswith("Runs natively") for line in lines)


@pytest.mark.parametrize("text", ["int 0x80", "int3", "into", "ud2"])
def test_what_raises_an_event(text):
    assert list(explain_text(text))[1].startswith("Raises an event")


# Those of 64-bit code alone, by their encodings' first words.
OF_64_BITS = {
    "LAHF/SAHF with REX": "409f", "SHLD/SHRD relative to RIP": "0fa4050000000000",
    "CMPXCHG of registers": "0fb1c8", "MOVSXD of 16 bits": "6663c0",
    "near branch with 66h": "66e800000000", "SWAPGS": "0f01f8",
    "RDTSCP": "0f01f9", "CLAC": "0f01ca", "STAC": "0f01cb",
}  # fmt: skip


def test_every_record_explains_itself():
    for record in RECORDS:
        if record.mnemonic in OF_64_BITS:
            lines = explain(bytes.fromhex(OF_64_BITS[record.mnemonic]), 64)
            assert any(line.startswith(f"{record.mnemonic} (") for line in lines)
            continue
        opcode = record.opcodes[0]
        code = opcode.to_bytes(2, "big").lstrip(b"\0")
        modrm = bytes([(record.reg & 7 if record.reg >= 0 else 0) << 3])
        for operand in (modrm, bytes([modrm[0] | 0xC0])):
            try:
                lines = list(explain(code + operand + bytes(8)))
            except ConfigError:
                continue  # this form, memory or register, does not exist
            assert any(line.startswith(f"{record.mnemonic} (") for line in lines)
            break
        else:
            pytest.fail(f"{record.mnemonic} has no explanation")
        assert next(explain_text(record.mnemonic)).startswith(f"{record.mnemonic} (")


OF_32_BITS = "pentium, pentium2, pentium3, pentium3-pae, pentium4"
EVERY = ", ".join(MODELS)


@pytest.mark.parametrize(
    ("code", "needs", "lacking"),
    [
        ("0f 01 d0", "later CPUs", EVERY),  # XGETBV
        ("0f 01 c1", "later CPUs", EVERY),  # VMCALL, and no SGDT
        ("f3 0f b8 c1", "later CPUs", EVERY),  # POPCNT
        ("66 0f ef c0", "SSE2", "pentium, pentium2, pentium3, pentium3-pae"),  # PXOR
        ("0f 44 c1", "CMOV", "pentium"),
    ],
)
def test_what_a_model_lacks_is_explained(code, needs, lacking):
    _, told, *rest = explain(bytes.fromhex(code))
    assert told == f"Needs {needs}: #UD on {lacking}, where it is patched."
    assert bool(rest) == (lacking != EVERY)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "addpd",
            ["Needs SSE2: #UD on pentium, pentium2, pentium3, pentium3-pae"],
        ),
        (
            "addpd xmm0, [eax]",
            ["Needs SSE2: #UD on pentium, pentium2, pentium3, pentium3-pae"],
        ),
        ("cmovnz eax, ebx", ["Needs CMOV: #UD on pentium, where it is patched."]),
        ("paddb", ["Needs MMX: #UD on pentium, where", "Needs SSE2: #UD on pentium, "]),
        ("paddb mm0, mm1", ["Needs MMX: #UD on pentium, where it is patched."]),
        (
            "paddb xmm0, xmm1",
            ["Needs SSE2: #UD on pentium, pentium2, pentium3, pentium3-pae"],
        ),
        (
            "movsd xmm0, xmm1",
            ["Needs SSE2: #UD on pentium, pentium2, pentium3, pentium3-pae"],
        ),
        ("popcnt", [f"Needs later CPUs: #UD on {OF_32_BITS},"]),
        ("movsd", []),
        ("nop", []),
        ("mov eax, ebx", []),
        ("pause", []),
    ],
)
def test_what_a_model_lacks_is_explained_by_name(text, told):
    lines = list(explain_text(text))
    needs = [line for line in lines if "Needs" in line]
    assert len(needs) == len(told)
    assert max(map(len, lines)) < 80
    for line, part in zip(needs, told, strict=True):
        assert part in line
    assert any("Runs natively" in line for line in lines) == (text != "popcnt")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mov cr1, eax", "there is no CR1"),
        ("mov eax, cr5", "there is no CR5"),
        ("MOV CR8, EAX", "there is no CR8"),
        ("mov cs, ax", "CS is loaded by far transfers only"),
        ("mov cs, word ptr [eax]", "CS is loaded by far transfers only"),
        ("pop cs", "CS is loaded by far transfers only"),
        ("lock popf", "LOCK may not stand before popf"),
        ("lock add eax, 1", "LOCK needs a destination in memory"),
        ("0f 22 c8", "there is no CR1"),
        ("8e c8", "CS is loaded by far transfers only"),
    ],
)
def test_what_is_undefined_at_any_cpl(emu86, text, why):
    shown = emu86("explain", *text.split()).stdout
    assert f"Raises #UD at any CPL: {why}." in " ".join(shown.split())
    assert "Reaches the VMM by" not in shown


@pytest.mark.parametrize("text", ["lock add [eax], 1", "lock xchg eax, [x]", "lock or"])
def test_what_lock_may_stand_before(text):
    assert list(explain_text(text))[1].startswith("Runs natively")
