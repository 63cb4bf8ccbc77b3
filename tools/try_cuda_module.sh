#!/bin/sh
# Builds tersegrad._cuda for one architecture and PTX, and imports it beside the installed package: it must do so without a driver,
# find no device then, and do the arithmetic.
#
#     tools/try_cuda_module.sh FOLDER_OF_PYTHON BUILD_FOLDER
set -eu
bin=$(cd "$1" && pwd)
build=$2
PATH="$bin:$PATH"

cmake -S . -B "$build" -G Ninja -DTERSEGRAD_CUDA=ON -DTERSEGRAD_WERROR=ON -DCMAKE_BUILD_TYPE=Release \
  -DTERSEGRAD_CUDA_ARCHITECTURES='90-real;120-virtual' -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" \
  -DPython_EXECUTABLE="$bin/python" >/dev/null
cmake --build "$build" --target _cuda >"$build/log" || { cat "$build/log"; exit 1; }
python - "$build" <<'END'
import importlib.machinery, importlib.util, pathlib, sys
import tersegrad as tg

(path,) = pathlib.Path(sys.argv[1]).glob("_cuda.*.so")
spec = importlib.util.spec_from_file_location("tersegrad._cuda", path)
cuda = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda)
assert cuda.runtime_version() >= 13000
form = cuda.form_of(tg.TopK(density=0.01, values=tg.Quantize(4)))
assert cuda.workspace_bytes(form, 2**32 - 1, 1) > 2**26
print(f"{path.name}: {path.stat().st_size} bytes, driver {cuda.driver_version()}, {cuda.device_count()} devices.")
END
