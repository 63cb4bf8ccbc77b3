#!/bin/sh
# Compiles the CUDA kernels for one architecture and looks at what came out: the PTX may hold no contracted multiply-add, which would
# round once where the CPU rounds twice, no flushing of denormals and no approximate division, and no kernel may spill a register.
#
#     tools/check_cuda_code.sh NVCC [ARCHITECTURE]
set -eu
nvcc=$1
arch=${2:-90}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$nvcc" -std=c++17 -O3 -arch="sm_$arch" -fmad=false --extended-lambda -Werror=all-warnings -Xptxas=-v --keep --keep-dir "$work" \
  -c csrc/cuda/codec.cu -o "$work/codec.o" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
ptx=$(ls "$work"/codec*.ptx)
kernels=$(grep -c '\.visible \.entry\|^\.entry\|\.weak \.entry' "$ptx" || true)
if grep -nE '(fma|mad)\.[a-z]*\.?(ftz\.)?(sat\.)?f32|\.ftz|\.approx' "$ptx"; then
  echo "check_cuda_code: these change bits" >&2
  exit 1
fi
if grep -E ' [1-9][0-9]* bytes (stack frame|spill)' "$work/log"; then
  echo "check_cuda_code: a kernel spills" >&2
  exit 1
fi
test "$kernels" -gt 20 || { echo "check_cuda_code: only $kernels kernels found" >&2; exit 1; }
echo "$kernels kernels for sm_$arch: nothing contracted, nothing spilled."
