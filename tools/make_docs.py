"""Write into the documentation what the source and the program say by themselves.

A mark in a page says what follows it:

    <!-- source: emu86/machine/loop.py RunLoop._run -->

the source of a function, class or constant, in a block of Python;

    <!-- output: emu86 run --stats -->

lines of what a command shows. The block in the page chooses them: each line of it takes
its numbers from the output's line that is the same but for numbers and spaces. `[...]`
stands for what is left out, within a line or between lines, as times are: they vary.

    <!-- table: errata -->

what TABLES has under that name, until `<!-- end of table -->`.

What takes minutes (`emu86 classify`, boots of Debian's kernel) is left as it is without
--all. With --check nothing is written, and a page that is not up to date is named.
"""

import argparse
import ast
import functools
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from emu86.cli.report import class_notes, class_row
from emu86.config import TECHNIQUE
from emu86.rings.insn.record import Record
from emu86.rings.insn.table import RECORDS
from emu86.rings.technique.errata import ERRATA
from emu86.testing.classify import table

ROOT: Final = Path(__file__).parent.parent
GUESTS: Final = "build/guests/"  # a command that names it boots Debian's kernel
_SOURCE: Final = re.compile(
    r"(?P<mark><!-- source: (?P<file>\S+) (?P<name>\S+) -->\n\n)```python\n.*?^```$",
    re.DOTALL | re.MULTILINE,
)
_OUTPUT: Final = re.compile(
    r"(?P<mark><!-- output: (?P<command>.+?) -->\n\n```text\n)(?P<lines>.*?)(?=^```$)",
    re.DOTALL | re.MULTILINE,
)
_TABLE: Final = re.compile(
    r"(?P<mark><!-- table: (?P<name>[^\n]+) -->\n\n).*?(?=<!-- end of table -->)",
    re.DOTALL,
)
# A row of the README's techniques.
_BOOT: Final = re.compile(
    r"^(?P<mark>\| `(?P<technique>\w+)`.* boots, )[\d,]+(?= exits)", re.MULTILINE
)
_BOOTED: Final = (
    f"emu86 run --kernel {GUESTS}vmlinuz --initrd {GUESTS}initrd.cpio"
    " --append console=ttyS0 --stats --until 'emu86# '"
)
_NUMBER: Final = r"(?<!\w)\d[\d,.]*(?!\w)"  # not 80h or CMPXCHG8B's
_TOKEN: Final = re.compile(rf"(?P<left>\[\.\.\.\])|(?P<number>{_NUMBER})|(?P<space> +)")
_ELLIPSIS: Final = "[...]"
_WIDTH: Final = 88
_WHOSE: Final = {1: "kernel", 3: "users"}


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


def output_of(command: str) -> str:
    """Return what `emu86 ...` shows, without a terminal, errors included."""
    return _shown(*shlex.split(command.replace("\\\n", "")))


@functools.cache
def _shown(*command: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "80"},
        check=True,
    )
    return ran.stdout.decode().replace("\r", "")


def renewed(shown: str, output: str) -> str:
    """Return lines that a page shows, with the numbers that the output has in them.

    Raises LookupError if the output has no line like one of them.
    """
    lines = [line.rstrip() for line in output.splitlines()]
    made = []
    for line in shown.splitlines():
        if line in {"", _ELLIPSIS}:
            made.append(line)
            continue
        pattern = re.compile(_like(line))
        for index, candidate in enumerate(lines):
            if found := pattern.fullmatch(candidate):
                made.append("".join(part or _ELLIPSIS for part in found.groups()))
                # What is shown comes in order, but for what is sorted by time.
                lines = lines[index + 1 :] + lines[: index + 1]
                break
        else:
            raise LookupError(f"no such line is shown any more: {line}")
    return "\n".join(made) + "\n"


def _like(line: str) -> str:
    """Return a pattern of a line's like; a group that takes no part is left out."""
    pattern, at = "", 0
    for token in _TOKEN.finditer(line):
        if token.start() > at:
            pattern += f"({re.escape(line[at : token.start()])})"
        if token["left"]:
            pattern += ".*?()"
        else:
            pattern += f"({_NUMBER})" if token["number"] else "( +)"
        at = token.end()
    return pattern + (f"({re.escape(line[at:])})" if at < len(line) else "")


def exit_records(kind: str) -> Iterator[str]:
    """Yield a table and a paragraph each of the instructions of a kind."""
    records = [record for record in RECORDS if record.kind == kind]
    yield "| instruction | encoding | patched in |"
    yield "|---|---|---|"
    for record in records:
        whose = " and ".join(_WHOSE[ring] for ring in record.patched) or "-"
        yield f"| {record.mnemonic} | `{record.encoding}` | {whose} |"
    yield from map(_paragraph, records)


def _paragraph(record: Record) -> str:
    text = (
        f"**{record.mnemonic}** reaches the VMM by: {record.traps}."
        f" {record.doc} (SDM {record.sdm})"
    )
    wrapped = textwrap.fill(
        text, _WIDTH, break_long_words=False, break_on_hyphens=False
    )
    return f"\n{wrapped}"


def errata() -> Iterator[str]:
    """Yield what the engine has wrong and the bare machine does right."""
    for one in ERRATA:
        row = f"- {one.engine}. A CPU: {one.cpu} ({one.sdm})."
        yield textwrap.fill(row, _WIDTH, subsequent_indent="  ")


def _contracts() -> list[dict[str, Any]]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, Any]] = config["tool"]["importlinter"]["contracts"]
    return found


def _packages() -> list[Path]:
    """Return the folders of emu86 that the layers name, from the top."""
    (layers,) = [one["layers"] for one in _contracts() if one["id"] == "down"]
    names = [name.partition(".")[0] for name in re.findall(r"[\w.]+", " ".join(layers))]
    folders = [ROOT / "emu86" / name for name in dict.fromkeys(names)]
    return [folder for folder in folders if folder.is_dir()]


def _told(module: Path, name: str) -> str:
    """Return what a module or package says of itself in its first line."""
    file = module / "__init__.py" if module.is_dir() else module
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    row = f"- `{name}`: {docstring.splitlines()[0]}"
    return textwrap.fill(row, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def packages() -> Iterator[str]:
    """Yield the packages, from the top, and what each is."""
    for package in _packages():
        yield _told(package, str(package.relative_to(ROOT)))


def modules() -> Iterator[str]:
    """Yield the modules of each package, and what each is."""
    nested = [sorted(package.rglob("__init__.py")) for package in _packages()]
    folders = [file.parent for files in nested for file in files]
    for folder in [*folders, ROOT / "emu86"]:
        files = [file for file in folder.glob("*.py") if file.stem != "__init__"]
        if files:
            yield f"### `{folder.relative_to(ROOT)}`\n"
            yield from (_told(file, file.name) for file in sorted(files))
            yield ""


def contracts() -> Iterator[str]:
    """Yield the rules of imports."""
    for one in _contracts():
        places = "".join(f", `{place}`" for place in one.get("containers", ()))
        yield f"**{one['name']}** ({one['type']}{places}):\n"
        for layer in one.get("layers", ()):
            yield textwrap.indent(textwrap.fill(layer, 92), "    ")
        for key in ("source", "forbidden", "protected"):
            if found := one.get(f"{key}_modules"):
                yield f"    {key}: {', '.join(found)}"
        if importers := one.get("allowed_importers"):
            yield f"    allowed importers: {', '.join(importers)}"
        yield ""


def classes(bits: int) -> Iterator[str]:
    """Yield what `emu86 classify` observes, a row each; takes a minute."""
    rows = [class_row(one) for one in table(bits)]
    for cells in (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)):
        yield f"| {' | '.join(cells)} |"


def differences(bits: int) -> Iterator[str]:
    """Yield the first difference seen, by instruction; takes a minute."""
    for one in table(bits):
        for note in class_notes(one):
            row = f"- **{one.name}**, {note}"
            yield textwrap.fill(row, _WIDTH, subsequent_indent="  ")


def measured(benchmark: str) -> Iterator[str]:
    """The table of docs/performance.md of a benchmark.

    Raises LookupError if there is none.
    """
    text = (ROOT / "docs" / "performance.md").read_text()
    found = re.search(rf"<!-- bench: {benchmark} -->\n\n((?:\|.*\n)+)", text)
    if found is None:
        message = f"docs/performance.md has no table of {benchmark}"
        raise LookupError(message)
    yield found[1]


TABLES: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "errata": errata,
    "packages": packages,
    "modules": modules,
    "import contracts": contracts,
    **{
        f"{made.__name__} of {bits} bits": functools.partial(made, bits)
        for made in (classes, differences)
        for bits in (32, 64)
    },
    **{
        f"exits, {kind}": functools.partial(exit_records, kind)
        for kind in ("privileged", "sensitive", "segment", "io")
    },
    "bench.linux": functools.partial(measured, "linux"),
}
_SLOW: Final = tuple(name for name in TABLES if name.endswith(" bits"))


def up_to_date(page: str, *, everything: bool = False) -> str:
    """Return a page as it should be; in its slow parts only if `everything`."""

    def source(match: re.Match[str]) -> str:
        code = source_of(ROOT / match["file"], match["name"])
        return f"{match['mark']}```python\n{code}\n```"

    def output(match: re.Match[str]) -> str:
        if GUESTS in match["command"] and not everything:
            return match[0]
        return match["mark"] + renewed(match["lines"], output_of(match["command"]))

    def made(match: re.Match[str]) -> str:
        if match["name"] in _SLOW and not everything:
            return match[0]
        text = "\n".join(TABLES[match["name"]]()).strip("\n")
        return f"{match['mark']}{text}\n\n"

    def boot(match: re.Match[str]) -> str:
        default = match["technique"] == TECHNIQUE
        choice = "" if default else f" --technique {match['technique']}"
        shown = output_of(_BOOTED + choice)
        (exits,) = re.findall(r"s and ([\d,]+) exits", shown)
        return f"{match['mark']}{exits}"

    page = _SOURCE.sub(source, page)
    page = _OUTPUT.sub(output, page)
    page = _TABLE.sub(made, page)
    return _BOOT.sub(boot, page) if everything else page


def pages(*, everything: bool = False) -> dict[Path, str]:
    """Return every page as it should be."""
    found = ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))
    return {path: up_to_date(path.read_text(), everything=everything) for path in found}


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--all",
        action="store_true",
        help="also what takes minutes: emu86 classify, and Debian's kernel",
    )
    arguments = parser.parse_args()
    if arguments.all and not (ROOT / GUESTS).exists():
        parser.error("--all needs Debian's kernel: make guests")
    stale = 0
    for path, text in pages(everything=arguments.all).items():
        if path.read_text() == text:
            continue
        stale += 1
        if arguments.check:
            print(f"{path.relative_to(ROOT)} is not up to date: tools/make_docs.py")
        else:
            path.write_text(text)
            print(f"{path.relative_to(ROOT)} written")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
