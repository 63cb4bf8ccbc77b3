"""compress and decompress."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .buffers import (
    Floats,
    View,
    like,
    new_entries,
    output_kind,
    residual_view,
    view,
    writable_view,
    zeros_like,
)
from .codec import (
    NOT_FINITE_MESSAGES,
    Call,
    Codec,
    check_codec,
    check_count,
    check_scale,
    check_step,
    encode,
    used,
)
from .device import as_tensor, of
from .device.payload import compress as compress_on_device
from .device.payload import decompress as decompress_on_device
from .device.payload import place_of, upload
from .errors import InputError, NonFiniteError, PayloadError
from .payload import Payload, check_expected

if TYPE_CHECKING:
    import torch

    from .buffers import AnyArray

NonFinite = Literal["error", "skip", "reset"]


def check_nonfinite(choice: object) -> NonFinite:
    """`choice`, if it is one."""
    if choice in ("error", "skip", "reset"):
        return choice
    raise InputError(f"nonfinite must be 'error', 'skip' or 'reset', not {choice!r}")


def compress(
    x: AnyArray,
    codec: Codec,
    *,
    residual: AnyArray | None = None,
    nonfinite: NonFinite = "error",
    step: int = 0,
) -> Payload:
    """Compress a tensor.

    Parameters
    ----------
    x : torch.Tensor or numpy.ndarray
        float32, float16 or bfloat16, any shape, fewer than 2**32 entries, on the CPU or on a CUDA device. Arrays of other libraries
        on a CUDA device, such as CuPy, come in by DLPack or ``__cuda_array_interface__``; what comes out are tensors.
    codec : Codec
        For example ``TopK(density=0.01, values=Quantize(bits=4))``.
    residual : float32 array of x's kind and shape, optional
        Error feedback (Seide et al. 2014; Stich et al. 2018): ``x + residual`` is compressed, and `residual` is left holding exactly
        what the payload does not carry, ``residual == (x + residual_before) - decompress(payload)`` in float32, to the bit.
    nonfinite : {"error", "skip", "reset"}
        What to do when `x` holds an infinity or NaN: raise, or return a payload that decodes to zeros, with ``payload.skipped`` set.
        With a residual, these two read `x` once more beforehand, so as to leave it untouched. ``"reset"`` saves that pass:
        it raises as ``"error"`` does, but the residual is then lost and set to zero. On a CUDA device nothing waits for the answer:
        the error is raised when the payload is first looked at from the host, see docs/cuda.md.
    step : int
        Call number, mixed into random streams, so that stochastic rounding and random masks differ from step to step. For `x` on a
        CUDA device it may be a tensor of one integer there, which a CUDA graph reads anew at every replay.

    Returns
    -------
    Payload
        Its body is on the device of `x`.

    Raises
    ------
    InputError
        If `x` or `residual` has the wrong kind, dtype, shape or layout.
    NonFiniteError
        If `x` holds an infinity or NaN, unless ``nonfinite="skip"``.
    BackendError
        If `x` is on a CUDA device and this build or driver cannot use it.

    Examples
    --------
    >>> import numpy as np, tersegrad as tg
    >>> payload = tg.compress(np.array([0.1, -3, 0.2, 2], np.float32), tg.TopK(k=2))
    >>> tg.decompress(payload)
    array([ 0., -3.,  0.,  2.], dtype=float32)
    """
    if (backend := of(x)) is not None:
        check_nonfinite(nonfinite)
        return compress_on_device(
            backend, as_tensor(x), codec, as_tensor(residual), nonfinite, step
        )
    source = view(x)
    kept = None if residual is None else residual_view(residual, source)
    return compress_view(source, check_codec(codec), kept, nonfinite, Call(check_step(step)))


def compress_view(
    x: View, codec: Codec, residual: Floats | None, nonfinite: NonFinite, call: Call
) -> Payload:
    """`compress` on views."""
    check_nonfinite(nonfinite)
    n, codec = check_count(x.array.size), codec.for_shape(x.shape)
    body = np.empty(codec.max_body_size(n, x.dtype), np.uint8)
    finite = encode(x, codec, body, residual, call, checked=nonfinite == "reset")
    if not finite:
        if nonfinite == "reset" and residual is not None:
            residual.fill(0)
            raise NonFiniteError(NOT_FINITE_MESSAGES["reset"])
        if nonfinite != "skip":
            raise NonFiniteError(NOT_FINITE_MESSAGES["error"])
        encode(zeros_like(x), codec, body, None, call)
    return Payload(codec, x.dtype, x.shape, used(body, call), x.kind, call.step, not finite)


def decompress(
    source: Any,
    *,
    out: AnyArray | None = None,
    accumulate: bool = False,
    scale: float = 1.0,
    expect: AnyArray | None = None,
    kind: Literal["numpy", "torch"] | torch.device | str | None = None,
) -> AnyArray:
    """Restore a tensor from a payload or its bytes.

    Parameters
    ----------
    source : Payload, bytes, bytearray, memoryview, uint8 array or tensor
    out : float32, float16 or bfloat16 array or tensor, optional
        Contiguous, of the payload's shape; filled and returned instead of a new array.
    accumulate : bool
        ``out += scale * decoded``; needs `out`.
    scale : float
        Factor on the decoded values.
    expect : array or tensor, optional
        Refuse a payload of another shape or dtype than this one. Give it, or `out`, for payloads from strangers: a sparse payload of a
        few bytes may honestly name four billion entries.
    kind : {"numpy", "torch"} or torch.device, optional
        What to return. By default that of the input that was compressed, or for bytes NumPy (torch for a uint8 tensor, and for bfloat16
        where NumPy lacks it). A CUDA device, such as ``"cuda"``: a tensor there. What is on a device is decoded there unless `kind` or
        `out` says otherwise; what is not, is checked on the host and its bytes copied.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        Of the payload's dtype and shape, or `out`.

    Raises
    ------
    PayloadError
        If the bytes are not a payload that tersegrad could have written; `out` is unchanged.
    InputError
        If `out` does not fit.
    """
    if isinstance(source, Payload):
        payload = source
        if expect is not None:
            check_expected(payload.shape, payload.dtype, expect)
    else:
        payload = Payload.from_bytes(source, expect=expect)
    factor = check_scale(scale)
    if out is None and accumulate:
        raise InputError("accumulate=True needs out=, the array to add to")
    if (place := place_of(payload, out, kind)) is not None:
        there = upload(payload, place)
        restored = decompress_on_device(there, as_tensor(out), accumulate, factor)
        return restored if out is None else out
    if out is None:
        kind = output_kind(kind, payload._kind, payload.dtype)
        n = math.prod(payload.shape)
        try:
            array = new_entries(n, payload.dtype, zero=payload.codec.is_sparse)
        except MemoryError as error:
            raise PayloadError(f"no memory for the {n} entries of shape {payload.shape}") from error
        _decode(payload, array, False, factor, payload.codec.is_sparse)
        return like(array, payload.dtype, payload.shape, kind)
    target = writable_view(out, "out")
    if target.shape != payload.shape:
        raise InputError(f"out has shape {target.shape}, the payload {payload.shape}")
    _decode(payload, target.array, accumulate, factor, False)
    return out


def _decode(payload: Payload, out: Any, accumulate: bool, scale: float, blank: bool) -> None:
    payload.codec._decompress(
        payload._body, payload.dtype, payload.step, out, accumulate, scale, blank
    )
