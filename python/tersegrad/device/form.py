"""What codes a body on the device, and how many bytes it has.

For most codecs that is arithmetic. `Threshold` counts first, and the number is what an encoder on the device waits for, once: the body is
this number and then what `TopK` of it writes, for those are the very entries that reach the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _core
from ..codec import Codec, check_codec
from ..codecs.threshold import Threshold
from ..codecs.topk import TopK
from ..errors import CodecError
from .backend import ALIGNMENT, SENT, Backend, signed

if TYPE_CHECKING:
    import torch

_COUNT_BYTES = 4


@dataclass(frozen=True)
class Form:
    """How a body is coded on the device.

    Parameters
    ----------
    codec : Codec or None
        Whose kernels write it; None where no entry is sent.
    nbytes : int
        Of the whole body.
    count : int, optional
        The number before what the kernels write.
    """

    codec: Codec | None
    nbytes: int
    count: int | None = None

    @property
    def lead(self) -> int:
        """Bytes before what the kernels write."""
        return 0 if self.count is None else _COUNT_BYTES

    @property
    def start(self) -> int:
        """Where the body begins in memory that is aligned, for the kernels to write at a multiple of ALIGNMENT."""
        return -self.lead % ALIGNMENT

    def encode(
        self,
        backend: Backend,
        x: torch.Tensor,
        dtype: str,
        body: torch.Tensor,
        status: torch.Tensor,
        residual: torch.Tensor | None,
        **options: Any,
    ) -> None:
        """As `Backend.encode`, but that without entries to send `status` is read: `forms_of` told it."""
        import torch

        if self.count is not None:
            body[: self.lead].view(torch.int32).fill_(signed(self.count))
        if self.codec is not None:
            rest = body[self.lead :]
            backend.encode(self.codec, x, dtype, rest, status, residual, **options)
            return
        body[self.lead :].zero_()
        if residual is not None:
            residual.copy_(torch.where(status == SENT, x + residual, residual))

    def decode(
        self,
        backend: Backend,
        body: torch.Tensor,
        dtype: str,
        step: int | torch.Tensor,
        out: torch.Tensor,
        accumulate: bool,
        scale: float,
    ) -> None:
        """As `Backend.decode`."""
        if self.codec is not None:
            backend.decode(self.codec, body[self.lead :], dtype, step, out, accumulate, scale)
        elif not accumulate:
            out.zero_()


def check_form(backend: Backend, codec: object) -> Codec:
    """`codec` itself, if it is one that the device has a form of."""
    checked = check_codec(codec)
    if not isinstance(checked, Threshold):
        return backend.check(checked)
    if checked.density is not None:
        raise CodecError(
            f"{checked} has no form on the device: its fit adds entries in an order that leaves eight threads busy; give a value, or "
            "use .cpu()"
        )
    backend.check(_top(checked, 1))
    return checked


def form_of(codec: Codec, n: int, dtype: str, count: int = 0) -> Form:
    """The form of a body of `n` entries, of which `count` are sent if that is not arithmetic."""
    if not isinstance(codec, Threshold):
        return Form(codec, codec.body_size(n, dtype))
    stream = _core.index_bytes(codec._form() or _core.smallest_index_form(n, count), n, count)
    nbytes = _COUNT_BYTES + stream + codec._value_codec.body_size(count, dtype)
    return Form(_top(codec, count) if count else None, nbytes, count)


def form_of_body(codec: Codec, body: Any, n: int, dtype: str) -> Form:
    """The form of a body on the host that was checked."""
    return form_of(codec, n, dtype, codec._count(body, n) if isinstance(codec, Threshold) else 0)


def forms_of(
    backend: Backend,
    codecs: Sequence[Codec],
    xs: Sequence[torch.Tensor],
    dtypes: Sequence[str],
    residuals: Sequence[torch.Tensor | None],
    skip: torch.Tensor | None = None,
) -> tuple[list[Form], torch.Tensor | None]:
    """The forms of flat tensors, and if entries had to be counted, how those tensors fared (int32, one for each tensor).

    Counting waits for the device, once for all.
    """
    import torch

    counts, statuses = [0] * len(xs), None
    if any(isinstance(codec, Threshold) for codec in codecs):
        told = torch.zeros((2, len(xs)), dtype=torch.int32, device=xs[0].device)
        statuses = told[1]
        for position, (codec, x, residual) in enumerate(zip(codecs, xs, residuals, strict=True)):
            if isinstance(codec, Threshold):
                count, status = (row[position : position + 1] for row in told)
                backend.count_reaching(x, residual, codec.value or 0.0, status, count, skip)
                if not codec.value:  # which the zeros that are sent instead reach too
                    count.masked_fill_(status != SENT, signed(x.numel()))
        counts = [count & 0xFFFFFFFF for count in told[0].tolist()]
    sizes = (x.numel() for x in xs)
    return list(map(form_of, codecs, sizes, dtypes, counts)), statuses


def _top(codec: Threshold, count: int) -> TopK:
    return TopK(k=count, values=codec.values, indices=codec.indices)
