"""`emu86 explain`: what becomes of one instruction."""

import textwrap
from collections.abc import Iterator

import click

from emu86.errors import ConfigError


@click.command("explain")
@click.argument("code", metavar="HEX...", nargs=-1, required=True)
def command(code: tuple[str, ...]) -> None:
    """Explain one instruction by its bytes, as in: emu86 explain 0f 22 d8.

    It is taken as 32-bit code.
    """
    text = "".join(code)
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise ConfigError(f"explain: {text!r} is not hexadecimal") from None
    for line in explain(data):
        click.echo(line)


def explain(code: bytes) -> Iterator[str]:
    """Tell, line by line, what becomes of the first instruction in `code`.

    Raises ConfigError when there is none.
    """
    import capstone  # noqa: PLC0415 - these take long to import

    from emu86.rings.decode import decode  # noqa: PLC0415
    from emu86.rings.insn.table import find  # noqa: PLC0415

    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
    found = next(disassembler.disasm_lite(code, 0, 1), None)
    insn = decode(code, 32)
    if found is None or insn is None:
        raise ConfigError(f"explain: {code.hex(' ') or 'nothing'} is no instruction")
    _, length, mnemonic, operands = found
    yield f"{code[:length].hex(' ')}  {mnemonic} {operands}".rstrip()
    if len(code) > length:
        yield f"(then {code[length:].hex(' ')}, not looked at)"
    record = find(insn)
    if record is None:
        yield "Runs natively: neither privileged nor sensitive, the VMM never sees it."
        return
    yield f"{record.mnemonic} ({record.encoding}): {record.kind}"
    yield f"Reaches the VMM by: {record.traps}"
    if record.patched:
        whose = {1: "the guest's kernel", 3: "its users"}
        where = " and ".join(whose[ring] for ring in record.patched)
        yield f"Patched before it first runs, in {where}"
    yield f"See: SDM {record.sdm}"
    yield from textwrap.wrap(record.doc, 79)
