"""Build the peer cub::DeviceTopK of benchmarks/cuda.py into build/cuda: nvcc, and headers of CCCL 13.2 from PyPI.

    python benchmarks/build_device_topk.py

Needs no GPU, so that a machine without a network can be given the result.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from cuda_peers import DEVICE_TOPK

CCCL = "nvidia-cuda-cccl==13.2.86"  # the first with DeviceTopK
ARCHITECTURES = (80, 90, 100)


def main() -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("nvcc is not on PATH")
    folder = DEVICE_TOPK.parent
    headers = folder / "cccl"
    if not headers.exists():
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(headers),
            CCCL,
        ]
        subprocess.run(install, check=True)
    (include,) = [path.parents[2] for path in headers.rglob("cub/device/device_topk.cuh")]
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    targets.append(f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}")
    source = Path(__file__).with_name("device_topk.cu")
    options = ["-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static"]
    subprocess.run(
        [nvcc, *options, f"-I{include}", *targets, str(source), "-o", str(DEVICE_TOPK)], check=True
    )
    print(DEVICE_TOPK)


if __name__ == "__main__":
    main()
