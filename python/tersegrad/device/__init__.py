"""Tensors on a device, CUDA: the same codecs, the same bytes, nothing that waits for the device. See docs/cuda.md."""

from .backend import Backend
from .registry import as_tensor, backend_for, of, serving

__all__ = ["Backend", "as_tensor", "backend_for", "of", "serving"]
