"""`encode_into` and `decode_into` of tensors on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..buffers import DTYPE_CODES, is_tensor
from ..codec import SUM_MESSAGE, Codec, check_fixed_size, check_step
from ..errors import InputError
from .backend import ALIGNMENT, SENT, SUM_NOT_FINITE, Backend, dtype_of
from .payload import flat, flat_residual, writable
from .registry import as_tensor, of

if TYPE_CHECKING:
    import torch

__all__ = ["decode_into", "encode_into", "of"]


def encode_into(
    backend: Backend,
    x: Any,
    codec: Codec,
    body: Any,
    residual: Any,
    step: int,
    status: torch.Tensor | None,
) -> bool:
    """Waits for the device unless `status` is given."""
    import torch

    source, dtype = flat(x, "input"), dtype_of(x)
    backend.check(check_fixed_size(codec))
    target = _body(body, codec.body_size(source.numel(), dtype), source)
    kept = None if residual is None else flat_residual(as_tensor(residual), x)
    told = torch.empty(1, dtype=torch.int32, device=source.device) if status is None else status
    if told.dtype is not torch.int32 or told.numel() != 1 or told.device != source.device:
        raise InputError(f"status must be one int32 on {source.device}, not {told!r}")
    backend.encode(codec, source, dtype, target, told, kept, step=check_step(step))
    if status is not None:
        return True
    how = int(told)
    if how == SUM_NOT_FINITE:
        raise InputError(SUM_MESSAGE)
    return how == SENT


def decode_into(
    backend: Backend,
    body: Any,
    codec: Codec,
    out: Any,
    dtype: str | None,
    step: int,
    accumulate: bool,
    scale: float,
) -> None:
    """The body is trusted: what comes from strangers goes through `Payload.from_bytes`, which checks it on the host."""
    target = writable(out, "out")
    dtype = dtype_of(out) if dtype is None else dtype
    if dtype not in DTYPE_CODES:
        raise InputError(f"dtype must be one of {', '.join(DTYPE_CODES)}, not {dtype!r}")
    backend.check(check_fixed_size(codec))
    source = _body(body, codec.body_size(target.numel(), dtype), target)
    backend.decode(codec, source, dtype, check_step(step), target, accumulate, scale)


def _body(body: Any, size: int, x: torch.Tensor) -> torch.Tensor:
    import torch

    fits = is_tensor(body) and body.dtype is torch.uint8 and body.is_contiguous()
    if not fits or body.dim() != 1 or body.numel() != size or body.device != x.device:
        raise InputError(
            f"body must be a contiguous 1-D uint8 tensor of {size} bytes on {x.device}"
        )
    if body.data_ptr() % ALIGNMENT:
        raise InputError(f"body must begin at a multiple of {ALIGNMENT} bytes on a device")
    return body  # type: ignore[no-any-return]
