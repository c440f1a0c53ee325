"""Write into the documentation what the source already says.

docs/exits.md is made whole from the exit table, docs/classification.md from what
`emu86 classify` observes. In every other page, what follows

    <!-- source: emu86/machine/loop.py RunLoop._run -->

is replaced by the source of that function, class or constant, and what stands between
`<!-- errata -->` and its end by the list of `rings.technique.errata`. With --check
nothing is written, and a page that is not up to date is named.
"""

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from emu86.report import CLASS_HEADINGS, class_notes, class_row
from emu86.rings.insn.record import Record
from emu86.rings.insn.table import RECORDS
from emu86.rings.technique.errata import ERRATA
from emu86.testing.classify import table

ROOT: Final = Path(__file__).parent.parent
_EXCERPT: Final = re.compile(
    r"(?P<mark><!-- source: (?P<file>\S+) (?P<name>\S+) -->\n\n)```python\n.*?^```$",
    re.DOTALL | re.MULTILINE,
)
_ERRATA: Final = re.compile(
    r"(<!-- errata -->\n).*?(\n<!-- end of errata -->)", re.DOTALL
)
_WIDTH: Final = 88
_KINDS: Final = {
    "privileged": "Privileged: they trap outside ring 0",
    "sensitive": "Sensitive: they do not trap, yet tell or lose something",
    "segment": "Segment loads and far transfers",
    "io": "Port I/O",
}
_WHOSE: Final = {1: "kernel", 3: "users"}
_INTRODUCTION: Final = f"""\
<!-- Written by tools/make_docs.py from emu86/rings: edit the records there. -->

# The exit table

One record for each instruction that the VMM handles: {len(RECORDS)} of them. The
dispatch, `emu86 exits`, `emu86 explain` and this page are made from the same records
(`emu86/rings/insn/table.py`). Exits that belong to no instruction come at the end.

*Patched in* says whose sites become `INT3` before they first run: those of the guest's
kernel, those of its users, or both. SDM is Intel's *Software Developer's Manual*.
"""
_CLASSIFICATION: Final = """\
<!-- Written by tools/make_docs.py from what `emu86 classify` observes. -->

# Privileged and sensitive instructions

Popek and Goldberg: a machine can be virtualized by trapping alone if every sensitive
instruction is privileged. This table is nobody's list. Each form of each instruction
ran on the bare machine at every CPL, in virtual-8086 mode, and with one privileged
resource at a time changed (`emu86 classify`; `testing/forms.py` has the forms).

- *Traps*: whether its forms raise an exception at CPL 0, 1, 2 and 3 with IOPL 0, and at
  CPL 3 with IOPL 3: y, all of them; s, some; -, none. *VM86*: what they raise in
  virtual-8086 mode with IOPL 0, and with IOPL 3. Forms that no program means, such as
  an LTR of a null selector, are for *wrong* and *engine* alone.
- *Class*: privileged (all forms trap at CPL 3, none or not all at CPL 0), a hole (it
  leaks or changes something and is not privileged), or harmless.
- *Depends on*: what a form does (trapping included, but for the CPL of a privileged
  one) depends on the CPL or on this: IF, IOPL 3, CR0 (TS, MP, EM), CR2, CR3, CR4 (PSE,
  DE, TSD, PCE, OSFXSR), GDTR, IDTR, LDTR, TR, debug registers, MSRs and the TSC were
  varied. In parentheses: it traps or runs by it, and leaks nothing. Who holds CR4
  decides whether RDTSC traps, and is told. The CPL always leaks, for it is what
  deprivileging changes. *Changes*: one of these at CPL 0, or it reaches a port.
- *Wrong*: with which techniques the guest's kernel and users see something else
  than on the bare machine, at CPL 0 to 3 and in virtual-8086 mode, with IOPL 0 and 3.
  *Engine*: y, if the engine by itself does something else than a CPU.

`patch` restores what all holes lose, but for one thing: it lets a kernel load a **data
segment with an RPL of 1**, where DPL 0 asks for an RPL of 0 (*MOV to Sreg*, *POP Sreg*,
*LDS* and its kin). The shadow tables give a kernel in ring 1 its segments with DPL 1,
so such a load does not trap, and loads of SS alone are patched.

The holes of x86 are those that Robin and Irvine found (2000), and what their list
leaves out:

- **IRET** loads the flags as POPF does, and CS and SS as a far return does.
- **INTO** is INT n by another name: the DPL of its gate tells the CPL.
- **MOV to SS, POP SS, LSS** want DPL and RPL to be the CPL itself; **LDS** and its kin
  load segments as MOV does.
- **RDTSC** gives the TSC, which is an MSR, to everyone unless CR4.TSD is set.

And JMP and CALL change CR0, LDTR and TR besides: a task switch sets TS and loads them.
LAR of a TSS tells whether it is busy, and so what TR is. A user's IRET to a task (NT)
depends on TR by the fault that it raises. That INVPCID depends on CR0 is the engine's
doing, which looks at TS before it finds no such instruction.
"""
_NOTES: Final = """\
## What goes wrong, and what the engine has wrong

The first difference seen: the bare machine first. What the engine has wrong is put
right on the bare machine ([testing](testing.md)), but for the limits of data segments
and an IRET of CPL 1 or 2 that sets VM; at a RET that releases 8000h bytes it gives up.
"""
_OTHERS: Final = """\
## Exits of no instruction

- **#PF fill**: the shadow tables lacked an entry that the guest's own tables allow. It
  is made, with up to fifteen neighbours, and the guest goes on.
- **#PF guest**: the guest's own tables forbid the access. Its #PF goes through its IDT.
- **#PF I/O**: no RAM is there. The instruction runs once on a scratch page under TF,
  and what it wrote goes to the bus.
- **interrupt**: the 8259A had one, IF was set, and it went through the guest's IDT.
- **INT n** (as *INT 80h*), **#UD**, **#DE**, **#GP** and the other exceptions: the
  guest's own, delivered through its IDT by the rules of SDM Vol. 3A chapter 6.
- **CPUID**: the engine has a hook for it at any CPL; the CPU model answers.
"""


def exits_page(records: Iterable[Record]) -> str:
    """Return docs/exits.md."""
    parts = [_INTRODUCTION]
    for kind, heading in _KINDS.items():
        chosen = [record for record in records if record.kind == kind]
        parts.append(f"## {heading}\n")
        rows = ["| instruction | encoding | patched in |", "|---|---|---|"]
        rows += [
            f"| {record.mnemonic} | `{record.encoding}` | {_patched(record)} |"
            for record in chosen
        ]
        parts.append("\n".join(rows) + "\n")
        parts += [_paragraph(record) for record in chosen]
    return "\n".join([*parts, _OTHERS])


def _patched(record: Record) -> str:
    return " and ".join(_WHOSE[ring] for ring in record.patched) or "-"


def _paragraph(record: Record) -> str:
    text = (
        f"**{record.mnemonic}** reaches the VMM by: {record.traps}."
        f" {record.doc} (SDM {record.sdm})"
    )
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def source_of(file: Path, name: str) -> str:
    """Return the source of a function, class or constant, `Class.method` included.

    Raises LookupError if the file has no such name.
    """
    text = file.read_text()
    found: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = _member(found, part, f"{file}: {name}")
    assert isinstance(found, ast.stmt)
    first = min(
        [found.lineno, *(d.lineno for d in getattr(found, "decorator_list", []))]
    )
    lines = text.splitlines()[first - 1 : found.end_lineno]
    return textwrap.dedent("\n".join(lines))


def _member(owner: ast.AST, name: str, what: str) -> ast.stmt:
    for node in getattr(owner, "body", []):
        match node:
            case ast.FunctionDef() | ast.ClassDef() if node.name == name:
                return node
            case ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                return node
            case ast.Assign(targets=[ast.Name(id=found)]) if found == name:
                return node
    raise LookupError(what)


def with_excerpts(page: str) -> str:
    """Return a page with its excerpts and tables as the source is now."""

    def fresh(match: re.Match[str]) -> str:
        code = source_of(ROOT / match["file"], match["name"])
        return f"{match['mark']}```python\n{code}\n```"

    rows = [f"- {one.engine}. A CPU: {one.cpu} ({one.sdm})." for one in ERRATA]
    wrapped = [textwrap.fill(row, _WIDTH, subsequent_indent="  ") for row in rows]
    errata = "\n".join(["", *wrapped, ""])
    page = _ERRATA.sub(lambda match: match[1] + errata + match[2], page)
    return _EXCERPT.sub(fresh, page)


def pages() -> dict[Path, str]:
    """Return every page as it should be."""
    exits = ROOT / "docs" / "exits.md"
    made = {exits: exits_page(RECORDS)}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if path != exits:
            made[path] = with_excerpts(path.read_text())
    return made


def classification_page() -> str:
    """Return docs/classification.md; takes a minute."""
    classes = table()
    rows = [CLASS_HEADINGS, ("---",) * len(CLASS_HEADINGS), *map(class_row, classes)]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    notes = [
        textwrap.fill(f"- **{one.name}**, {note}", _WIDTH, subsequent_indent="  ")
        for one in classes
        for note in class_notes(one)
    ]
    return "\n".join([_CLASSIFICATION, *lines, "", _NOTES, *notes, ""])


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = 0
    made = pages() | {ROOT / "docs" / "classification.md": classification_page()}
    for path, text in made.items():
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        if check:
            print(f"{path.relative_to(ROOT)} is not up to date: tools/make_docs.py")
        else:
            path.write_text(text)
            print(f"{path.relative_to(ROOT)} written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
