#!/bin/sh
# Assemble the images into DIRECTORY (default: the package, emu86/images).
# A flat image has no dates and no paths in it: the same sources give the same bytes.
set -eu
cd "$(dirname "$0")"
out=${1:-../emu86/images}
mkdir -p "$out"
for source in teach/teach.asm spin.asm exits.asm; do
    name=$(basename "$source" .asm)
    # NASM 2.16's own alignb macro names a warning that NASM does not know.
    nasm -f bin -w+all -w-unknown-warning -Werror -I ./ "$source" -o "$out/$name.elf"
done
nasm -f bin -w+all -Werror -I ./ tables.asm -o "$out/tables.bin"
fonts=$(mktemp -d)
trap 'rm -rf "$fonts"' EXIT
python3 ../tools/make_fonts.py ../emu86/images/font8x16.hex "$fonts"
nasm -f bin -w+all -w-unknown-warning -Werror -I ./ -I bios/ -I "$fonts/" bios/bios.asm -o "$out/bios.bin"
