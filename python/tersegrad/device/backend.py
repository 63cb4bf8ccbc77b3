"""The seam to a device: its native module, and what a call takes from torch: stream, guard, memory.

Nothing outside of this file calls `tersegrad._cuda`. It is imported when the first tensor of a device comes. `backends` says which
module serves which device type of torch; a test that puts one there for ``"cpu"`` sends tensors of the host the device's way.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..buffers import DTYPE_CODES, is_tensor
from ..codec import Codec
from ..errors import BackendError, InputError

if TYPE_CHECKING:
    import torch

#: What a call leaves in its status. From `ABSENT` on, the body is that of zeros and the residual untouched. The last comes from `add`.
SENT, ABSENT, NOT_FINITE, SUM_NOT_FINITE, SUM_TOO_LARGE = range(5)
#: Where bodies begin in a buffer that holds several: kernels read and write 16 bytes at a time.
ALIGNMENT = 16
#: The oldest driver that runs binaries of CUDA 13, and the version of CUDA that it states.
OLDEST_DRIVER, OLDEST_VERSION = "580", 13000
#: Bodies of `Integers` that add without a workspace.
MOST_ADDENDS = 16

_DLPACK_DEVICES = {1: "cpu", 2: "cuda", 13: "cuda"}  # kDLCPU, kDLCUDA, kDLCUDAManaged


class _Held(threading.local):
    """The device and stream on which this thread's calls run without asking torch, if there are any."""

    place: tuple[Any, int] | None = None


class Backend:
    """A native module of the device, and memory that its calls borrow.

    Parameters
    ----------
    native : module
        `tersegrad._cuda`, or one with the same functions.
    device_type : str
        torch's name of the devices whose memory it takes.
    """

    def __init__(self, native: Any, device_type: str = "cuda") -> None:
        self.native = native
        self.device_type = device_type
        # A call enqueues several kernels that share a workspace; no other thread's may come between them.
        self._lock = threading.Lock()
        self._workspaces: dict[tuple[Any, int], torch.Tensor] = {}
        self._sides: dict[Any, Any] = {}
        self._held = _Held()

    # --- What torch decides. ---

    @property
    def is_cuda(self) -> bool:
        return self.device_type == "cuda"

    def stream(self, device: torch.device) -> int:
        """torch's current stream on `device`, as the native module takes it."""
        held = self._held.place
        if held is not None and held[0] == device:
            return held[1]
        import torch

        return int(torch.cuda.current_stream(device).cuda_stream) if self.is_cuda else 0

    def guard(self, device: torch.device) -> Any:
        """A context in which `device` is the current one."""
        held = self._held.place
        if not self.is_cuda or (held is not None and held[0] == device):
            return contextlib.nullcontext()
        import torch

        return torch.cuda.device(device)

    @contextlib.contextmanager
    def hold(self, device: torch.device) -> Iterator[None]:
        """A context in which `device` and its current stream stay as they are, so that calls of this thread need not ask for them."""
        before = self._held.place
        with self.guard(device):
            self._held.place = (device, self.stream(device))
            try:
                yield
            finally:
                self._held.place = before

    def side(self, device: torch.device, after_current: bool = True) -> Any:
        """A context whose work runs beside that of the current stream: after what is enqueued there now, or as soon as it can."""
        import torch

        if not self.is_cuda:
            return contextlib.nullcontext()
        side = self._side(device)
        if after_current:
            side.wait_stream(torch.cuda.current_stream(device))
        return torch.cuda.stream(side)

    def join_side(self, device: torch.device) -> None:
        """Have the current stream wait for the work that is enqueued beside it now."""
        import torch

        if self.is_cuda:
            torch.cuda.current_stream(device).wait_stream(self._side(device))

    def _side(self, device: torch.device) -> Any:
        import torch

        with self._lock:
            if device not in self._sides:
                self._sides[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            return self._sides[device]

    def is_capturing(self) -> bool:
        """Whether the current stream is being captured into a CUDA graph."""
        import torch

        return self.is_cuda and torch.cuda.is_current_stream_capturing()

    def workspace(self, nbytes: int, device: torch.device, stream: int) -> torch.Tensor:
        """At least `nbytes` bytes for kernels on `stream`, kept from call to call: the stream orders their use.

        A graph that is being captured gets memory of its own. What is kept here is replaced when more is needed, and a graph goes
        on using the address.
        """
        import torch

        if self.is_capturing():
            return torch.empty(max(nbytes, 1), dtype=torch.uint8, device=device)
        kept = self._workspaces.get((device, stream))
        if kept is None or kept.numel() < nbytes:
            kept = torch.empty(max(nbytes, 1), dtype=torch.uint8, device=device)
            self._workspaces[device, stream] = kept
        return kept

    # --- Calls. They enqueue on the current stream and return at once. ---

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


# --- Which tensors go to which backend. ---

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


def dtype_of(x: Any, what: str = "input") -> str:
    """The name of a tensor's dtype; `InputError` if no kernel takes it."""
    name = str(x.dtype).removeprefix("torch.")
    if name not in DTYPE_CODES:
        raise InputError(
            f"{what} has dtype {x.dtype}; tersegrad takes float32, float16 and bfloat16: convert it first"
        )
    return name
