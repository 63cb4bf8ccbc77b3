"""Kernels of CUDA devices on addresses; use them through the tersegrad package.

Addresses are those of the current device, as ``tensor.data_ptr()`` gives them; 0 is none. Every function enqueues on ``stream`` (a
``cudaStream_t``) and returns: it never waits, allocates or uses the default stream. Dtypes are the wire's: 1 float32, 2 float16,
3 bfloat16. `RuntimeError` if a launch fails, `ValueError` for an argument that no kernel takes.
"""

from typing import Any

from ._core import Codec

def driver_version() -> int:
    """The version of CUDA that the driver serves, as 13000; 0 without a driver."""

def runtime_version() -> int:
    """The version of the runtime in this module."""

def device_count() -> int:
    """Devices that the driver shows; 0 without a driver."""

def form_of(codec: Any) -> Codec:
    """The native form of a `tersegrad.Codec`; `tersegrad.CodecError` if it has none on the device."""

def workspace_bytes(codec: Codec, n: int, dtype: int) -> int:
    """Bytes of workspace, aligned to 16, that encode and decode need for `n` entries: arithmetic on the host."""

def encode(
    codec: Codec,
    x: int,
    x_dtype: int,
    n: int,
    residual: int,
    dtype: int,
    step: int,
    step_address: int,
    status: int,
    skip: int,
    body: int,
    checked: bool,
    workspace: int,
    workspace_bytes: int,
    stream: int,
) -> None:
    """Write the body of x + residual, aligned to 16 bytes, and leave in the residual what it does not carry.

    Writes into `status` (u32): 0 sent, 1 the u32 at `skip` was not zero, 2 x is not finite, 3 x + residual is not. From 1 on the body
    is that of zeros and the residual untouched; with `checked` x is not looked at beforehand, and with 2 the residual is lost.
    A u32 at `step_address` counts instead of `step`, as graphs need it.
    """

def decode(
    codec: Codec,
    body: int,
    dtype: int,
    n: int,
    step: int,
    step_address: int,
    out: int,
    out_dtype: int,
    accumulate: bool,
    scale: float,
    workspace: int,
    workspace_bytes: int,
    stream: int,
) -> None:
    """``out = scale * decoded``, or added to it. A forged body gives wrong numbers, never a write outside of `out`."""

def is_zero(x: int, x_dtype: int, n: int, flag: int, stream: int) -> None:
    """Set the u32 `flag` to whether every entry is zero."""

def not_finite(x: int, x_dtype: int, n: int, flag: int, stream: int) -> None:
    """Set the u32 `flag` to one if an entry is an infinity or NaN; otherwise leave it."""

def count_workspace_bytes() -> int:
    """Bytes of workspace, aligned to 16, that count_reaching needs."""

def count_reaching(
    x: int,
    x_dtype: int,
    n: int,
    residual: int,
    threshold: float,
    skip: int,
    status: int,
    count: int,
    workspace: int,
    workspace_bytes: int,
    stream: int,
) -> None:
    """Write into `count` (u32) how many entries of x + residual have at least this magnitude, into `status` what encode would.

    The count is none unless the status is 0. `residual` is read alone.
    """

def copy_if(flag: int, source: int, target: int, nbytes: int, stream: int) -> None:
    """Copy where the u32 `flag` is not zero."""

def zero_if(flag: int, target: int, nbytes: int, stream: int) -> None:
    """Set to zero where the u32 `flag` is not zero."""
