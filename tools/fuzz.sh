#!/bin/sh
# Builds the fuzz target under the address and undefined-behaviour sanitizers, and runs it. What it finds on the way stays in
# BUILD_FOLDER; an input that breaks a law is written to tests/fuzz/crashes: mend the law, and commit the input as a test.
#
#     tools/fuzz.sh CMAKE BUILD_FOLDER CXX SECONDS [LIBFUZZER_OPTIONS]
set -eu
cmake=$1
build=$2
cxx=$3
seconds=$4
shift 4

if ! command -v "$cxx" >/dev/null; then
  echo "fuzz: $cxx is not here; on Debian: apt-get install clang-19 libclang-rt-19-dev" >&2
  exit 1
fi
"$cmake" -S . -B "$build" -DTERSEGRAD_BUILD_FUZZER=ON -DTERSEGRAD_BUILD_MODULE=OFF -DTERSEGRAD_CUDA=OFF \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$cxx" >/dev/null
"$cmake" --build "$build" --parallel 2 >/dev/null
mkdir -p "$build/corpus"
# Stack traces of allocations and a large quarantine cost half of the speed.
ASAN_OPTIONS=malloc_context_size=0:quarantine_size_mb=2 exec "$build/tests/fuzz/tersegrad_fuzz" \
  -max_total_time="$seconds" -max_len=1024 -print_final_stats=1 -verbosity=0 -artifact_prefix=tests/fuzz/crashes/ "$@" \
  "$build/corpus" tests/fuzz/corpus tests/fuzz/crashes
