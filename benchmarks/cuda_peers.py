"""What others do on a device, as setups of rows. Each raises where it cannot run, and its row then says why."""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path
from typing import Any

import torch
from cuda_clock import Setting, Work

#: Made by benchmarks/build_device_topk.py.
DEVICE_TOPK = Path(__file__).parents[1] / "build" / "cuda" / "device_topk.so"


def torch_topk(n: int, k: int) -> Any:
    def make(setting: Setting) -> Work:
        xs = setting.normal(n)

        def work(number: int) -> object:
            x = xs[number % len(xs)]
            index = x.abs().topk(k, sorted=False).indices
            return x[index]

        return work

    return make


def kthvalue(n: int, k: int) -> Any:
    def make(setting: Setting) -> Work:
        xs = setting.normal(n)
        return lambda number: xs[number % len(xs)].abs().kthvalue(n - k + 1)

    return make


def sampled_topk(n: int, k: int) -> Any:
    """Deep gradient compression's way (Lin et al. 2018): a threshold from a sample, moved until about k entries pass it.

    It asks the device for a count in each turn.
    """

    def make(setting: Setting) -> Work:
        xs = setting.normal(n)
        sample = max(1, n // 100)
        places = torch.randint(0, n, (sample,), device=setting.device)

        def work(number: int) -> object:
            magnitude = xs[number % len(xs)].abs()
            threshold = magnitude[places].topk(max(1, k * sample // n)).values[-1]
            for _ in range(10):
                index = (magnitude >= threshold).nonzero().view(-1)
                if index.numel() < 0.8 * k:
                    threshold = threshold * 0.9
                elif index.numel() > 1.3 * k:
                    threshold = threshold * 1.1
                else:
                    break
            return xs[number % len(xs)][index]

        return work

    return make


def torch_cast(n: int, dtype: torch.dtype) -> Any:
    def make(setting: Setting) -> Work:
        xs = setting.normal(n)
        return lambda number: xs[number % len(xs)].to(dtype)

    return make


def bitsandbytes(n: int, bits: int) -> Any:
    def make(setting: Setting) -> Work:
        if not setting.is_cuda:
            raise RuntimeError("bitsandbytes is measured on CUDA alone")
        functional = importlib.import_module("bitsandbytes.functional")
        quantize = functional.quantize_blockwise if bits == 8 else functional.quantize_4bit
        xs = setting.normal(n)
        return lambda number: quantize(xs[number % len(xs)])

    return make


def cub_topk(n: int, k: int) -> Any:
    """cub::DeviceTopK on magnitudes. Its set is not reproducible at ties and its order is not defined."""

    def make(setting: Setting) -> Work:
        if not setting.is_cuda:
            raise RuntimeError("cub::DeviceTopK needs CUDA")
        if not DEVICE_TOPK.exists():
            raise RuntimeError("python benchmarks/build_device_topk.py makes it")
        function = ctypes.CDLL(str(DEVICE_TOPK)).device_topk
        pointer = ctypes.c_void_p
        function.argtypes = [pointer, ctypes.POINTER(ctypes.c_size_t), *[pointer] * 3]
        function.argtypes += [ctypes.c_uint32, ctypes.c_uint32, pointer]
        xs = setting.normal(n)
        keys = torch.empty(k, dtype=torch.int32, device=setting.device)
        index = torch.empty_like(keys)
        nbytes = ctypes.c_size_t(0)

        def call(temporary: int, x: torch.Tensor) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            code = function(
                temporary,
                ctypes.byref(nbytes),
                x.data_ptr(),
                keys.data_ptr(),
                index.data_ptr(),
                n,
                k,
                stream,
            )
            if code:
                raise RuntimeError(f"cub::DeviceTopK returned CUDA error {code}")

        call(0, xs[0])
        memory = torch.empty(nbytes.value, dtype=torch.uint8, device=setting.device)
        call(memory.data_ptr(), xs[0])
        kept, _ = keys.sort()
        expected, _ = xs[0].abs().topk(k).values.view(torch.int32).sort()
        if not torch.equal(kept, expected):
            raise RuntimeError("cub::DeviceTopK found other magnitudes than torch.topk")
        return lambda number: call(memory.data_ptr(), xs[number % len(xs)])

    return make
