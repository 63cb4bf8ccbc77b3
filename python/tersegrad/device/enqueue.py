"""Where a call's work is enqueued, and the memory that it borrows: torch's current stream, and workspaces of its allocator."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class _Held(threading.local):
    """The device and stream on which this thread's calls run without asking torch, if there are any."""

    place: tuple[Any, int] | None = None


class Enqueuer:
    """What a call takes from torch.

    Parameters
    ----------
    device_type : str
        torch's name of the devices whose memory the calls take.
    """

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        # A call enqueues several kernels that share a workspace; no other thread's may come between them.
        self._lock = threading.Lock()
        self._workspaces: dict[tuple[Any, int], torch.Tensor] = {}
        self._sides: dict[Any, Any] = {}
        self._held = _Held()

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
