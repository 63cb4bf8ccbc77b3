#!/bin/sh
# The objects of csrc/variants must define no weak symbol: the linker keeps one copy of each for the whole program, and if that is
# one compiled for AVX-512, every other processor dies in code that never asked for it.
#
#     tools/check_symbols.sh BUILD_FOLDER [NM]
set -eu
folder=$1
nm=${2:-nm}

objects=$(find "$folder" -path '*kernels_*.dir*' -name '*.o')
if [ -z "$objects" ]; then
  echo "check_symbols: no kernel objects under $folder" >&2
  exit 1
fi
for object in $objects; do
  if weak=$("$nm" -C "$object" | grep -E ' [WVu] ' | grep -v ' DW\.ref\.'); then
    printf 'check_symbols: %s has weak symbols; give what it includes internal linkage:\n%s\n' "$object" "$weak" >&2
    exit 1
  fi
done
echo "No weak symbols in $(echo "$objects" | wc -l) kernel objects."
