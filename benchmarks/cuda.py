"""CUDA against the device's own memory and against peers: one command, about eight minutes on one GPU.

    python benchmarks/cuda.py                 both sizes, the hook, the bars of issue 6
    python benchmarks/cuda.py --quick         small sizes, to see that it runs
    python benchmarks/build_device_topk.py    beforehand, for the peer cub::DeviceTopK; needs nvcc and no GPU

Writes benchmarks/results/cuda.{json,csv,md}. Without a GPU it says so and writes the table with dashes.
"""

import sys

if __name__ == "__main__":
    # This folder goes last: torch looks for NVIDIA's package `cuda`, and must not find this file.
    sys.path.append(sys.path.pop(0))

    from cuda_table import main

    main()
