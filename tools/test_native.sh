#!/bin/sh
# Builds tests/native for this machine or, given a cross compiler, for another, runs it and compares its hashes; then runs, here, the
# CUDA kernels on the host, and replays what the fuzzer found so far.
#
#     tools/test_native.sh CMAKE BUILD_FOLDER [CXX NM EMULATOR]
set -eu
cmake=$1
build=$2
nm=${4:-nm}
emulator=${5:-}

set -- -DTERSEGRAD_BUILD_SELFTEST=ON -DTERSEGRAD_BUILD_MODULE=OFF -DTERSEGRAD_CUDA=OFF -DTERSEGRAD_WERROR=ON \
  -DCMAKE_BUILD_TYPE=Release ${3:+-DCMAKE_CXX_COMPILER="$3" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR="${3%%-*}"}
"$cmake" -S . -B "$build" "$@" >/dev/null
"$cmake" --build "$build" --parallel 2 >/dev/null
tools/check_symbols.sh "$build" "$nm"

# Word splitting is meant: the emulator comes with its options.
$emulator "$build/tests/native/tersegrad_selftest" >"$build/hashes.txt"
diff -u tests/native/golden_hashes.txt "$build/hashes.txt"
echo "$build: every hash is golden."
# Under qemu it takes a minute: threads change by system calls there.
test -n "$emulator" || "$build/tests/native/tersegrad_emulated"
$emulator "$build/tests/fuzz/tersegrad_fuzz_replay" tests/fuzz/corpus tests/fuzz/crashes
