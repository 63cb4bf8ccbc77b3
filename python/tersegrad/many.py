"""compress_many and decompress_many: a whole model in one native call and one message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _core
from .api import NonFinite, check_nonfinite
from .buffers import (
    DTYPES,
    Bytes,
    like,
    locate,
    locate_residuals,
    new_entries,
    output_kind,
    residual_view,
    view,
    writable_view,
    zeros_like,
)
from .codec import Call, Codec, check_codec, check_count, check_scale, check_step, encode, used
from .codecs.native import Native
from .device import of
from .device.message import decompress_many as decompress_many_on_device
from .device.message import pack as pack_on_device
from .device.message import upload
from .device.payload import place_of
from .errors import InputError, PayloadError
from .message import Message, check_all_expected, refuse_not_finite

if TYPE_CHECKING:
    import torch

    from .buffers import AnyArray


def compress_many(
    tensors: Sequence[AnyArray],
    codec: Codec | Sequence[Codec],
    *,
    residuals: Sequence[AnyArray | None] | None = None,
    nonfinite: NonFinite = "error",
    step: int = 0,
) -> Message:
    """Compress many tensors, such as all gradients of a model, in one native call and into one message.

    Parameters
    ----------
    tensors : sequence of torch.Tensor or numpy.ndarray
        All of one kind; otherwise as for `compress`.
    codec : Codec or sequence of Codec
        One for all, or one for each.
    residuals : sequence of float32 arrays or None, optional
        As for `compress`, one for each tensor; None where there is none.
    nonfinite : {"error", "skip", "reset"}
        As for `compress`. ``"error"`` leaves every residual as it was, ``"skip"`` those of the tensors in ``message.skipped``;
        ``"reset"`` sets the residuals of the offending tensors to zero.
    step : int
        Call number, mixed into random streams.

    Returns
    -------
    Message
    """
    codecs = [codec] * len(tensors) if isinstance(codec, Codec) else list(codec)
    kept = [None] * len(tensors) if residuals is None else list(residuals)
    if not len(codecs) == len(kept) == len(tensors):
        raise InputError(
            f"{len(tensors)} tensors, {len(codecs)} codecs and {len(kept)} residuals do not pair up"
        )
    calls = [Call() for _ in tensors]
    return pack(tensors, codecs, kept, check_nonfinite(nonfinite), check_step(step), calls)


def pack(
    tensors: Sequence[AnyArray],
    codecs: Sequence[Codec],
    residuals: Sequence[AnyArray | None],
    nonfinite: NonFinite,
    step: int,
    calls: Sequence[Call],
) -> Message:
    """`compress_many` on arguments of equal length, with head starts from the last call on the same tensors."""
    if tensors and (backend := of(tensors[0])) is not None:
        return pack_on_device(backend, tensors, codecs, residuals, nonfinite, step, calls)
    distinct = {
        id(codec): codec for codec in codecs
    }  # by identity: hashing a dataclass takes a microsecond
    numbers = {key: number for number, key in enumerate(distinct)}
    found = locate(tensors)
    check_count(max(found.counts, default=0))
    rows = zip(
        [numbers[id(codec)] for codec in codecs],
        found.addresses,
        found.counts,
        found.dtypes,
        locate_residuals(residuals, tensors, found),
        [call.last_key for call in calls],
        strict=True,
    )
    natives = [
        native._native
        for codec in distinct.values()
        if isinstance(native := check_codec(codec), Native) and native._is_native
    ]
    if len(natives) < len(distinct):
        body, sizes, finite = _encode_one_by_one(tensors, codecs, residuals, nonfinite, step, calls)
    else:
        body, sizes, finite, keys = _core.encode_many(
            natives, list(rows), step, nonfinite == "reset", nonfinite == "error"
        )
        for call, key, ok in zip(calls, keys, finite, strict=True):
            call.last_key = key if ok else 0
    skipped = [position for position, ok in enumerate(finite) if not ok]
    if skipped:
        body, sizes = _settle_non_finite(
            skipped, tensors, codecs, residuals, nonfinite, step, body, sizes
        )
    dtypes = [DTYPES[code] for code in found.dtypes]
    return Message(codecs, dtypes, found.shapes, body, sizes, found.kind, step, skipped)


def _encode_one_by_one(
    tensors: Sequence[AnyArray],
    codecs: Sequence[Codec],
    residuals: Sequence[AnyArray | None],
    nonfinite: NonFinite,
    step: int,
    calls: Sequence[Call],
) -> tuple[Bytes, list[int], list[bool]]:
    """What the native call does, for codecs that are written in Python."""
    views = [view(tensor) for tensor in tensors]
    kept = [
        None if r is None else residual_view(r, x) for r, x in zip(residuals, views, strict=True)
    ]
    finite = [nonfinite == "reset" or _core.all_finite(x.array) for x in views]
    parts = [np.empty(0, np.uint8) for _ in views]
    if nonfinite == "error" and not all(finite):
        return parts[0], [0] * len(parts), finite
    for position, (x, codec, residual, call) in enumerate(
        zip(views, codecs, kept, calls, strict=True)
    ):
        if finite[position]:
            call.step, codec = step, codec.for_shape(x.shape)
            part = np.empty(codec.max_body_size(x.array.size, x.dtype), np.uint8)
            finite[position] = encode(x, codec, part, residual, call, checked=True)
            if finite[position]:
                parts[position] = used(part, call)
    return np.concatenate(parts), [part.size for part in parts], finite


def _settle_non_finite(
    skipped: Sequence[int],
    tensors: Sequence[AnyArray],
    codecs: Sequence[Codec],
    residuals: Sequence[AnyArray | None],
    nonfinite: NonFinite,
    step: int,
    body: Bytes,
    sizes: Sequence[int],
) -> tuple[Bytes, list[int]]:
    """The body with zeros in the places of the skipped tensors, which have no bytes in it yet."""
    if nonfinite == "reset":
        for position in skipped:
            residual = residuals[position]
            if residual is not None:
                writable_view(residual, "residual").array.fill(0)
    sums = [] if nonfinite == "reset" else [p for p in skipped if _is_finite(tensors[p])]
    refuse_not_finite(sums, skipped, nonfinite)
    parts = np.split(body, np.cumsum(sizes, dtype=np.int64)[:-1])
    for position in skipped:
        zeros, call = zeros_like(view(tensors[position])), Call(step)
        codec = codecs[position].for_shape(zeros.shape)
        part = np.empty(codec.max_body_size(zeros.array.size, zeros.dtype), np.uint8)
        encode(zeros, codec, part, None, call)
        parts[position] = used(part, call)
    return np.concatenate(parts), [part.size for part in parts]


def _is_finite(tensor: AnyArray) -> bool:
    return _core.all_finite(view(tensor).array)


def decompress_many(
    source: Any,
    *,
    out: Sequence[AnyArray] | None = None,
    accumulate: bool = False,
    scale: float = 1.0,
    expect: Sequence[AnyArray] | None = None,
    kind: Literal["numpy", "torch"] | torch.device | str | None = None,
) -> list[AnyArray]:
    """Restore the tensors of a message.

    Parameters
    ----------
    source : Message, bytes, bytearray, memoryview, uint8 array or tensor
    out : sequence of arrays, optional
        Filled, or with `accumulate` added to, and returned. Nothing is written before the whole message has been checked.
    accumulate, scale, kind
        As for `decompress`.
    expect : sequence of arrays, optional
        Refuse a message whose shapes and dtypes differ from theirs.
    """
    message = source if isinstance(source, Message) else Message.from_bytes(source, expect=expect)
    if expect is not None and message is source:
        check_all_expected(message.shapes, message.dtypes, expect)
    factor = check_scale(scale)
    if out is None and accumulate:
        raise InputError("accumulate=True needs out=, the arrays to add to")
    if out is not None and len(out) != len(message):
        raise InputError(f"out has {len(out)} arrays, the message {len(message)} tensors")
    place = place_of(message, out[0] if out else None, kind)
    if place is not None:
        return decompress_many_on_device(upload(message, place), out, accumulate, factor)
    bodies = message.bodies()
    for position, (codec, dtype, shape, body) in enumerate(
        zip(message.codecs, message.dtypes, message.shapes, bodies, strict=True)
    ):
        try:
            codec.for_shape(shape)._check(body, math.prod(shape), dtype, message.step)
        except PayloadError as error:
            raise PayloadError(f"tensor {position}: {error}") from error
    results: list[AnyArray] = []
    targets = []
    for position, (codec, dtype, shape) in enumerate(
        zip(message.codecs, message.dtypes, message.shapes, strict=True)
    ):
        if out is None:
            chosen = output_kind(kind, message._kind, dtype)
            array = new_entries(math.prod(shape), dtype, zero=codec.is_sparse)
            results.append(like(array, dtype, shape, chosen))
        else:
            target = writable_view(out[position], f"out[{position}]")
            if target.shape != shape:
                raise InputError(f"out[{position}] has shape {target.shape}, the message {shape}")
            array = target.array
            results.append(out[position])
        targets.append(array)
    for codec, dtype, shape, body, array in zip(
        message.codecs, message.dtypes, message.shapes, bodies, targets, strict=True
    ):
        codec.for_shape(shape)._decompress(
            body, dtype, message.step, array, accumulate, factor, out is None and codec.is_sparse
        )
    return results
