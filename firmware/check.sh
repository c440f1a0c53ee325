#!/bin/sh
# Are the images in the package what the sources give?  Status 0: yes.
set -eu
cd "$(dirname "$0")"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
./build.sh "$fresh"
for image in "$fresh"/*; do
    cmp "$image" "../emu86/images/$(basename "$image")"
done
