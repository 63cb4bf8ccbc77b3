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

def workspace_bytes(codec: Codec, n: int, dtype: int, bodies: int = 1) -> int:
    """Bytes of workspace, aligned to 16, that encode, decode and add_many need for `n` entries: arithmetic on the host."""

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
    last_key: int,
    workspace: int,
    workspace_bytes: int,
    stream: int,
) -> None:
    """Write the body of x + residual, aligned to 16 bytes, and leave in the residual what it does not carry.

    Writes into `status` (u32): 0 sent, 1 the u32 at `skip` was not zero, 2 x is not finite, 3 x + residual is not. From 1 on the body
    is that of zeros and the residual untouched; with `checked` x is not looked at beforehand, and with 2 the residual is lost.
    A u32 at `step_address` counts instead of `step`, as graphs need it. The u32 at `last_key` is the k-th key of the last call on similar
    entries, or anything else: a top-k tries a threshold a little below it first, and leaves its own k-th key there.
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

def add_many(
    codec: Codec,
    bodies: list[int],
    dtype: int,
    n: int,
    step: int,
    step_address: int,
    start: int,
    out: int,
    scale: float,
    workspace: int,
    workspace_bytes: int,
    stream: int,
) -> None:
    """``out = start + scale * decoded + scale * decoded + ...`` in float32, in the order of the bodies.

    `start` is the address of a float, or 0 for what `out` holds.
    """

def add_integers(
    bodies: list[int],
    bits: int,
    nbytes: int,
    total: int,
    partial: int,
    beyond: int,
    stream: int,
) -> None:
    """Add bodies of Integers, each of `nbytes` bytes, code by code.

    The u32 `beyond`, if it is not 0, is set to one if a sum leaves its bits. With more than 16 bodies `partial` is room for an int64 per
    code, counted up to a whole word of codes.
    """

def not_zero(x: int, x_dtype: int, n: int, flag: int, stream: int) -> None:
    """Set the u32 `flag` to zero if an entry is not zero; otherwise leave it."""

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

def write_head(
    head: int,
    step: int,
    slots: int,
    status: int,
    first_piece: int,
    failed: bool,
    message: int,
    stream: int,
) -> None:
    """Begin a message between ranks: 16 bytes, then a mark for each slot, as `Backend.write_head`."""

def judge(
    head: int,
    step: int,
    slots: int,
    messages: int,
    stride: int,
    ranks: int,
    before: int,
    verdict: int,
    stream: int,
) -> None:
    """Read the heads of all ranks' messages, which lie `stride` bytes apart, as `Backend.judge`."""

def note(verdict: int, slots: int, counts: int, stream: int) -> None:
    """Add a verdict to the four u32 `counts` of a `Ledger`."""

def close_step(counts: int, counted: bool, stream: int) -> None:
    """Begin a new step of a `Ledger`."""
