"""Which tensors go to which backend. The native module is imported when the first tensor of a device comes.

`serving` says which module serves which device type of torch; a test that puts one there for ``"cpu"`` sends tensors of the host the
device's way.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..buffers import is_tensor
from ..errors import BackendError
from .backend import Backend

#: The oldest driver that runs binaries of CUDA 13, and the version of CUDA that it states.
OLDEST_DRIVER, OLDEST_VERSION = "580", 13000

_DLPACK_DEVICES = {1: "cpu", 2: "cuda", 13: "cuda"}  # kDLCPU, kDLCUDA, kDLCUDAManaged
_backends: dict[str, Backend] = {}


@contextlib.contextmanager
def serving(device_type: str, native: Any) -> Iterator[Backend]:
    """Send tensors of a device type to a native module for a while: for tests on a host emulation of the kernels."""
    before = _backends.get(device_type)
    _backends[device_type] = backend = Backend(native, device_type)
    try:
        yield backend
    finally:
        if before is None:
            del _backends[device_type]
        else:
            _backends[device_type] = before


def of(x: object) -> Backend | None:
    """The backend of what lies on a device; None for what the host's kernels take, or nobody does.

    `BackendError` for a CUDA array that this build or driver cannot serve.
    """
    kind = type_of(x)
    return None if kind is None else backend_for(kind)


def backend_for(device_type: str) -> Backend | None:
    """The backend of a device type; None where there is none, and `BackendError` for CUDA that cannot be used."""
    backend = _backends.get(device_type)
    if backend is None and device_type == "cuda":
        backend = _backends["cuda"] = Backend(_load_cuda())
    return backend


def type_of(x: object) -> str | None:
    """torch's name of the type of device that an array lies on, None if it does not say."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return str(x.device.type)
    if x is None or isinstance(x, (np.ndarray, bytes)):
        return None
    if hasattr(x, "__cuda_array_interface__"):
        return "cuda"
    if hasattr(x, "__dlpack_device__"):
        return _DLPACK_DEVICES.get(int(x.__dlpack_device__()[0]))
    return None


def as_tensor(x: Any) -> Any:
    """An array on a device as the tensor that shares its memory, ordered after the work of its library's stream.

    Tensors, None and what lies elsewhere come back as they are.
    """
    if is_tensor(x):
        return x
    if type_of(x) not in ("cuda", *_backends):
        return x
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            "arrays on a CUDA device need torch, whose streams and memory they use: pip install torch"
        ) from error
    if hasattr(x, "__dlpack__"):
        return torch.from_dlpack(x)  # type: ignore[attr-defined]  # has the producer wait for its work on torch's current stream
    tensor = torch.as_tensor(x, device="cuda")
    stream = x.__cuda_array_interface__.get("stream")
    if (
        stream is not None
    ):  # 1 is the legacy default stream, 2 the thread's: CUDA's own handles of them
        with torch.cuda.device(tensor.device):
            producer = torch.cuda.ExternalStream(stream, device=tensor.device)  # type: ignore[no-untyped-call]
            torch.cuda.current_stream(tensor.device).wait_stream(producer)
    return tensor


def _load_cuda() -> Any:
    try:
        native = importlib.import_module(f"{__package__.rpartition('.')[0]}._cuda")
    except ImportError as error:
        raise BackendError(
            "the array is on a CUDA device, and this build of tersegrad has no CUDA module: build it with nvcc of CUDA 13 on PATH "
            "and TERSEGRAD_CUDA=ON, or with TERSEGRAD_CUDA_PYPI=1, which brings an nvcc from PyPI "
            "(pip install --no-binary tersegrad tersegrad); or use .cpu(). "
            f"({error})"
        ) from error
    version = native.driver_version()
    if version < OLDEST_VERSION:
        found = f"CUDA {version // 1000}.{version % 1000 // 10}" if version else "no driver"
        raise BackendError(
            f"tersegrad's kernels are built with CUDA 13 and need NVIDIA driver {OLDEST_DRIVER} or newer; the one here serves {found}: "
            "update the driver, or use .cpu()"
        )
    if native.device_count() < 1:
        raise BackendError("the driver shows no CUDA device: see nvidia-smi, or use .cpu()")
    return native
