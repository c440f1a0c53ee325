"""Compile `emu86.native.handlers` for every architecture that the wheel carries.

The code is position-independent and has no relocation, no data and no symbol to look
up: one run of bytes, that can stand anywhere. What would need more is refused.
"""

import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import llvmlite.binding as llvm
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from emu86.native import blob
from tools.native.translate import Translator

# Apple's and Windows' ABIs leave x18 to the system.
_TARGETS: Final = {
    "x86_64": ("x86_64-unknown-linux-gnu", "x86-64", ""),
    "aarch64": ("aarch64-unknown-linux-gnu", "generic", "+reserve-x18"),
}
# No jump tables, no calls of memset, no floating-point registers, no unwind tables.
_ATTRIBUTES: Final = (
    'nounwind noimplicitfloat "no-jump-tables"="true" "no-builtins"'
    ' "frame-pointer"="none"'
)


class BuildError(Exception):
    """The compiled code is not one run of bytes."""


def translate(exports: Iterable[Callable[..., Any]] = blob.EXPORTS) -> str:
    """Return the handlers as LLVM's IR."""
    translator = Translator()
    for function in exports:
        translator.export(function)
    return str(translator.module)


def compile_for(architecture: str, text: str) -> bytes:
    """Return an ELF object file with the compiled IR."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple, cpu, features = _TARGETS[architecture]
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=2, reloc="pic", codemodel="small"
    )
    text = re.sub(r"(?m)^(define .*)$", r"\1 #0", text)
    text = re.sub(r"(?m)^target .*$", "", text)
    module = llvm.parse_assembly(f"{text}\nattributes #0 = {{ {_ATTRIBUTES} }}\n")
    module.triple = triple
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def extract(elf_file: bytes) -> tuple[bytes, dict[str, int]]:
    """Return an object's code, and where in it each exported function begins."""
    elf: Any = ELFFile(io.BytesIO(elf_file))
    code = b""
    for section in elf.iter_sections():
        if section.name == ".text":
            code = section.data()
        elif section["sh_type"] in ("SHT_REL", "SHT_RELA"):
            raise BuildError(f"{section.name}: {section.num_relocations()} relocations")
        elif section["sh_flags"] & SH_FLAGS.SHF_ALLOC and section["sh_size"]:
            raise BuildError(f"{section.name}: {section['sh_size']} bytes beside .text")
    entries = {}
    for symbol in elf.get_section_by_name(".symtab").iter_symbols():
        if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name:
            raise BuildError(f"{symbol.name} is undefined")
        info = symbol["st_info"]
        if (info["type"], info["bind"]) == ("STT_FUNC", "STB_GLOBAL"):
            entries[symbol.name] = symbol["st_value"]
    return code, entries


def build() -> dict[str, bytes]:
    """Return the files of `emu86/native/blobs`, by name."""
    text = translate()
    files, manifest = {}, {}
    for architecture in _TARGETS:
        code, entries = extract(compile_for(architecture, text))
        files[f"{architecture}.bin"] = code
        manifest[architecture] = {
            "entries": dict(sorted(entries.items())),
            "sha256": blob.digest(code, entries),
        }
    version = ".".join(map(str, llvm.llvm_version_info))
    whole = {"abi": blob.fingerprint(), "llvm": version, "blobs": manifest}
    files["manifest.json"] = (json.dumps(whole, indent=2) + "\n").encode()
    return files


def main() -> None:
    """Write the files, and say how large they are."""
    folder = Path(blob.FOLDER)
    folder.mkdir(exist_ok=True)
    for name, data in build().items():
        (folder / name).write_bytes(data)
        sys.stdout.write(f"{name}: {len(data):,} bytes\n")


if __name__ == "__main__":
    main()
