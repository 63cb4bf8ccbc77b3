#!/bin/sh
# What TERSEGRAD_CUDA promises: OFF and AUTO configure without nvcc, ON fails without it and says why, other values are refused.
#
#     tools/check_cuda_option.sh CMAKE
set -eu
cmake=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

configure() {  # OPTION CUDACXX
  rm -rf "$work/build"
  CUDACXX=$2 "$cmake" -S . -B "$work/build" -DTERSEGRAD_BUILD_MODULE=OFF -DTERSEGRAD_CUDA="$1" >"$work/log" 2>&1
}
fail() {
  cat "$work/log"
  echo "check_cuda_option: $1" >&2
  exit 1
}

missing=$work/no-nvcc
configure OFF "$missing" || fail "OFF must not need nvcc"
configure AUTO "$missing" || fail "AUTO must not need nvcc"
if configure ON "$missing"; then fail "ON must fail without nvcc"; fi
grep -q 'no nvcc was found' "$work/log" || fail "ON must say that nvcc is missing"
if configure MAYBE "$missing"; then fail "MAYBE is not a value of the option"; fi
if nvcc=$(command -v nvcc); then
  configure ON "$nvcc" || fail "ON must configure with $nvcc"
  configure AUTO "$nvcc" || fail "AUTO must configure with $nvcc"
  grep -q 'nvcc found' "$work/log" || fail "AUTO must find $nvcc"
fi
echo "TERSEGRAD_CUDA behaves as OFF, AUTO and ON."
