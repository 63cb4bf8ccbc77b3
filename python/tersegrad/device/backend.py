"""The calls of a device's native module. Nothing outside of this file and `registry` knows `tersegrad._cuda`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..buffers import DTYPE_CODES
from ..codec import Codec
from ..errors import InputError
from .enqueue import Enqueuer

if TYPE_CHECKING:
    import torch

#: What a call leaves in its status. From `ABSENT` on, the body is that of zeros and the residual untouched. The last comes from `add`.
SENT, ABSENT, NOT_FINITE, SUM_NOT_FINITE, SUM_TOO_LARGE = range(5)
#: Where bodies begin in a buffer that holds several: kernels read and write 16 bytes at a time.
ALIGNMENT = 16
#: Bodies of `Integers` that add without a workspace.
MOST_ADDENDS = 16


class Backend(Enqueuer):
    """A native module of the device. Its calls enqueue on the current stream and return at once.

    Parameters
    ----------
    native : module
        `tersegrad._cuda`, or one with the same functions.
    device_type : str
        torch's name of the devices whose memory it takes.
    """

    def __init__(self, native: Any, device_type: str = "cuda") -> None:
        super().__init__(device_type)
        self.native = native

    def check(self, codec: Codec) -> Codec:
        """`codec` itself, if the device has a form of it."""
        self.form(codec)
        return codec

    def form(self, codec: Codec) -> Any:
        """The native form of a codec; `CodecError` if the device has none."""
        made = codec.__dict__.get("_device_form")
        if made is None or made[0] is not self.native:
            made = (self.native, self.native.form_of(codec))
            codec.__dict__["_device_form"] = made
        return made[1]

    def encode(
        self,
        codec: Codec,
        x: torch.Tensor,
        dtype: str,
        body: torch.Tensor,
        status: torch.Tensor,
        residual: torch.Tensor | None = None,
        *,
        step: int | torch.Tensor = 0,
        checked: bool = False,
        skip: torch.Tensor | None = None,
        last_key: torch.Tensor | None = None,
    ) -> None:
        """Write a body, and into `status` (int32) how that went.

        `checked` says that x is finite or the residual may be lost; `skip` (int32), where it is not zero, that nothing is to be sent.
        `last_key` (int32) is what `Call.last_key` is on the host: a head start, and never more.
        """
        with self.guard(x.device), self._lock:
            form, *work = self._work(codec, x, dtype)
            self.native.encode(
                form,
                x.data_ptr(),
                DTYPE_CODES[dtype_of(x)],
                x.numel(),
                _address(residual),
                DTYPE_CODES[dtype],
                *_step(step),
                status.data_ptr(),
                _address(skip),
                body.data_ptr(),
                checked,
                _address(last_key),
                *work,
            )

    def decode(
        self,
        codec: Codec,
        body: torch.Tensor,
        dtype: str,
        step: int | torch.Tensor,
        out: torch.Tensor,
        accumulate: bool,
        scale: float,
    ) -> None:
        """``out = scale * decoded``, or added to it."""
        with self.guard(out.device), self._lock:
            form, *work = self._work(codec, out, dtype)
            self.native.decode(
                form,
                body.data_ptr(),
                DTYPE_CODES[dtype],
                out.numel(),
                *_step(step),
                out.data_ptr(),
                DTYPE_CODES[dtype_of(out)],
                accumulate,
                scale,
                *work,
            )

    def add_many(
        self,
        codec: Codec,
        messages: Sequence[torch.Tensor],
        offset: int,
        dtype: str,
        step: int,
        out: torch.Tensor,
        scale: float,
        start: torch.Tensor | None = None,
    ) -> None:
        """Add `scale` times what a body in each message decodes to, in their order, to `start` (the bits of a float) or what `out` holds.

        The bodies begin `offset` bytes after the messages; `out` is of float32. Up to sixteen take as many launches as one.
        """
        with self.guard(out.device), self._lock:
            form, *work = self._work(codec, out, dtype, len(messages))
            self.native.add_many(
                form,
                [message.data_ptr() + offset for message in messages],
                DTYPE_CODES[dtype],
                out.numel(),
                *_step(step),
                _address(start),
                out.data_ptr(),
                scale,
                *work,
            )

    def count_reaching(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        threshold: float,
        status: torch.Tensor,
        count: torch.Tensor,
        skip: torch.Tensor | None = None,
    ) -> None:
        """Write into `count` (int32) how many entries of x + residual have at least this magnitude, into `status` what `encode` would."""
        device = x.device
        with self.guard(device), self._lock:
            stream = self.stream(device)
            work = self.workspace(self.native.count_workspace_bytes(), device, stream)
            self.native.count_reaching(
                x.data_ptr(),
                DTYPE_CODES[dtype_of(x)],
                x.numel(),
                _address(residual),
                threshold,
                _address(skip),
                status.data_ptr(),
                count.data_ptr(),
                work.data_ptr(),
                work.numel(),
                stream,
            )

    def _work(self, codec: Codec, entries: torch.Tensor, dtype: str, bodies: int = 1) -> list[Any]:
        """The form of a codec; a workspace, its size, and the stream."""
        form, device = self.form(codec), entries.device
        stream = self.stream(device)
        n, code = entries.numel(), DTYPE_CODES[dtype]
        needed = self.native.workspace_bytes(form, n, code, bodies)
        work = self.workspace(needed, device, stream)
        return [form, work.data_ptr(), work.numel(), stream]

    def add_integers(
        self,
        bodies: Sequence[torch.Tensor],
        bits: int,
        total: torch.Tensor,
        beyond: torch.Tensor | None,
    ) -> None:
        """Write the sum of bodies of `Integers`; set `beyond` (int32) to one if a code leaves its bits, or let it wrap."""
        codes = -(-total.numel() // 4) * (32 // bits)
        with self.guard(total.device), self._lock:
            stream = self.stream(total.device)
            needed = 8 * codes if len(bodies) > MOST_ADDENDS else 0
            self.native.add_integers(
                [body.data_ptr() for body in bodies],
                bits,
                total.numel(),
                total.data_ptr(),
                self.workspace(needed, total.device, stream).data_ptr(),
                _address(beyond),
                stream,
            )

    def not_zero(self, x: torch.Tensor, flag: torch.Tensor) -> None:
        """Set `flag` (int32) to zero if an entry is not zero; otherwise leave it."""
        with self.guard(x.device):
            code = DTYPE_CODES[dtype_of(x)]
            self.native.not_zero(
                x.data_ptr(), code, x.numel(), flag.data_ptr(), self.stream(x.device)
            )

    def not_finite(self, x: torch.Tensor, flag: torch.Tensor) -> None:
        """Set `flag` (int32) to one if an entry is an infinity or NaN; otherwise leave it."""
        with self.guard(x.device):
            code = DTYPE_CODES[dtype_of(x)]
            self.native.not_finite(
                x.data_ptr(), code, x.numel(), flag.data_ptr(), self.stream(x.device)
            )

    def copy_if(self, flag: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy where `flag` (int32) is not zero; costs nothing where it is."""
        with self.guard(target.device):
            self.native.copy_if(
                flag.data_ptr(),
                source.data_ptr(),
                target.data_ptr(),
                target.nbytes,
                self.stream(target.device),
            )

    def zero_if(self, flag: torch.Tensor, target: torch.Tensor) -> None:
        """Set to zero where `flag` (int32) is not zero."""
        with self.guard(target.device):
            self.native.zero_if(
                flag.data_ptr(), target.data_ptr(), target.nbytes, self.stream(target.device)
            )

    # --- Heads of messages between ranks; `head` is how all of them begin, but for the step. ---

    def write_head(
        self,
        head: torch.Tensor,
        step: int,
        slots: int,
        statuses: torch.Tensor,
        first_piece: torch.Tensor | None,
        failed: bool,
        message: torch.Tensor,
    ) -> None:
        """Begin a message: its head and a mark for each slot, the worst status of its pieces.

        `first_piece` (int32) has the number of each slot's first piece and then of all pieces; None where slots are in one piece.
        """
        with self.guard(message.device):
            self.native.write_head(
                head.data_ptr(),
                step,
                slots,
                statuses.data_ptr(),
                _address(first_piece),
                failed,
                message.data_ptr(),
                self.stream(message.device),
            )

    def judge(
        self,
        head: torch.Tensor,
        step: int,
        messages: torch.Tensor,
        before: torch.Tensor | None,
        verdict: torch.Tensor,
    ) -> None:
        """Compare the heads of all ranks, one row of `messages` each, and read their marks.

        `verdict` (int32): whether a head is wrong, then of every slot whether it is lost, whether no rank sent it, and the bits of the
        float with which its sum begins. What was lost in the verdict `before` stays so.
        """
        with self.guard(messages.device):
            self.native.judge(
                head.data_ptr(),
                step,
                verdict.numel() // 3,
                messages.data_ptr(),
                messages.stride(0),
                messages.shape[0],
                _address(before),
                verdict.data_ptr(),
                self.stream(messages.device),
            )

    def note(self, verdict: torch.Tensor, counts: torch.Tensor) -> None:
        """Add a verdict to the counts of a `Ledger`."""
        with self.guard(counts.device):
            self.native.note(
                verdict.data_ptr(),
                verdict.numel() // 3,
                counts.data_ptr(),
                self.stream(counts.device),
            )

    def close_step(self, counts: torch.Tensor, counted: bool) -> None:
        """Begin a new step of a `Ledger`; `counted` if the host has counted already whether it was undone."""
        with self.guard(counts.device):
            self.native.close_step(counts.data_ptr(), counted, self.stream(counts.device))


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _step(step: int | torch.Tensor) -> tuple[int, int]:
    """A step as a number and the address of one; the address, if it is not 0, is what counts."""
    return (step, 0) if isinstance(step, int) else (0, step.data_ptr())


def signed(number: int) -> int:
    """The int32 of the same bits as a u32, which torch's fill_ takes."""
    return number - 2**32 if number >= 2**31 else number


def dtype_of(x: Any, what: str = "input") -> str:
    """The name of a tensor's dtype; `InputError` if no kernel takes it."""
    name = str(x.dtype).removeprefix("torch.")
    if name not in DTYPE_CODES:
        raise InputError(
            f"{what} has dtype {x.dtype}; tersegrad takes float32, float16 and bfloat16: convert it first"
        )
    return name
