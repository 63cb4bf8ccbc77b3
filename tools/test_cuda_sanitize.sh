#!/bin/sh
# The tests that need a GPU, under compute-sanitizer. Says what is missing where it cannot run; that is not a failure of the code, but
# it is one of this check.
#
#     tools/test_cuda_sanitize.sh FOLDER_OF_PYTHON
set -eu
command -v compute-sanitizer >/dev/null || { echo "test-cuda-sanitize: no compute-sanitizer on PATH: it comes with the CUDA toolkit" >&2; exit 1; }
nvidia-smi >/dev/null 2>&1 || { echo "test-cuda-sanitize: no NVIDIA GPU or driver here" >&2; exit 1; }
for tool in memcheck racecheck initcheck; do
  # torch's allocator keeps memory between tensors; without its cache every overrun shows.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    "$1/python" -m pytest -q -m cuda tests/test_device.py
done
