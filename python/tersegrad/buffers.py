"""The one file that knows torch and NumPy: views of their arrays for the native kernels.

The kernels see flat, contiguous NumPy arrays of float32, float16, or uint16 holding the bits of bfloat16. A CPU tensor is viewed,
never copied, unless it is not contiguous.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core
from .errors import BackendError, InputError

if TYPE_CHECKING:
    import torch

    AnyArray = torch.Tensor | npt.NDArray[Any]
else:
    AnyArray = Any

Kind = Literal["numpy", "torch"]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

#: dtype names by their code in the wire format.
DTYPES = {1: "float32", 2: "float16", 3: "bfloat16"}
DTYPE_CODES = {name: code for code, name in DTYPES.items()}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MAX_RANK = 32
_ENTRY_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


class View(NamedTuple):
    """A caller's array as the kernels see it."""

    array: npt.NDArray[Any]  # flat, contiguous; uint16 for bfloat16
    dtype: str
    shape: tuple[int, ...]
    kind: Kind


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor; does not import torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def kind_of(x: object, what: str = "input") -> Kind:
    """``"torch"`` or ``"numpy"``; `InputError` for anything else."""
    if isinstance(x, np.ndarray):
        return "numpy"
    if is_tensor(x):
        return "torch"
    raise InputError(
        f"{what} must be a torch tensor or a NumPy array, not {type(x).__name__}; "
        "numpy.asarray(x, dtype='float32') makes one"
    )


def _host_tensor(x: torch.Tensor, what: str) -> torch.Tensor:

    if x.device.type == "cuda":
        raise BackendError(
            f"{what} is on {x.device}; compress, decompress, their many forms, ErrorFeedback and the hooks of DDP and FSDP2 work there, "
            f"this function on the CPU alone: use {what}.cpu()"
        )
    if x.device.type != "cpu":
        raise InputError(f"{what} is on device {x.device}; use a CPU tensor")
    check_strided(x, what)
    return x.detach()


def check_strided(x: torch.Tensor, what: str) -> None:
    import torch

    if x.layout is not torch.strided:
        raise InputError(f"{what} has layout {x.layout}; use {what}.to_dense()")


def _numpy_dtype(x: npt.NDArray[Any], what: str) -> str:
    name = x.dtype.name
    if name not in DTYPE_CODES:
        raise InputError(
            f"{what} has dtype {name}; tersegrad takes float32, float16 and bfloat16: convert it first"
        )
    if not x.dtype.isnative:
        raise InputError(f"{what} is not in native byte order; use {what}.astype('{name}')")
    return name


def host_array(x: object, what: str) -> npt.NDArray[Any]:
    """A tensor or array of any dtype as a NumPy array in native byte order; bfloat16 becomes float32."""
    if isinstance(x, np.generic) or kind_of(x, what) == "numpy":
        array: Any = np.asarray(x)
        if array.dtype.name == "bfloat16":
            return array.astype(np.float32)  # type: ignore[no-any-return]
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # type: ignore[no-any-return]
    import torch

    tensor: torch.Tensor = _host_tensor(x, what)  # type: ignore[arg-type]
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    try:
        return tensor.resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{what} has dtype {tensor.dtype}, which NumPy lacks: {error}") from error


def check_rank(shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    if len(shape) > MAX_RANK:
        raise InputError(
            f"{what} has {len(shape)} dimensions; a payload holds {MAX_RANK} at most: reshape it"
        )
    return shape


def view(x: object, what: str = "input") -> View:
    """A flat view of a tensor or array of a supported dtype; copies only what is not contiguous."""
    if kind_of(x, what) == "numpy":
        array: Any = x
        dtype = _numpy_dtype(array, what)
        shape = check_rank(array.shape, what)
        flat = np.ascontiguousarray(array).reshape(-1)
        if dtype == "bfloat16":
            flat = flat.view(np.uint16)
        return View(flat, dtype, shape, "numpy")

    import torch

    tensor: torch.Tensor = _host_tensor(x, what)  # type: ignore[arg-type]
    shape = check_rank(tuple(tensor.shape), what)
    tensor = tensor.contiguous().resolve_neg()
    if tensor.dtype is torch.float32:
        return View(tensor.numpy().reshape(-1), "float32", shape, "torch")
    if tensor.dtype is torch.float16:
        return View(tensor.numpy().reshape(-1), "float16", shape, "torch")
    if tensor.dtype is torch.bfloat16:
        return View(tensor.view(torch.uint16).numpy().reshape(-1), "bfloat16", shape, "torch")
    raise InputError(
        f"{what} has dtype {tensor.dtype}; tersegrad takes float32, float16 and bfloat16: convert it first"
    )


def shape_and_dtype(x: object, what: str) -> tuple[tuple[int, ...], str]:
    """What a tensor or array is, wherever it lies."""
    if is_tensor(x):
        name = str(x.dtype).removeprefix("torch.")  # type: ignore[attr-defined]
        if name in DTYPE_CODES:
            return tuple(x.shape), name  # type: ignore[attr-defined]
    got = view(x, what)
    return got.shape, got.dtype


class Columns(NamedTuple):
    """Where many tensors or arrays of one kind lie: a list for each property."""

    addresses: list[int]
    counts: list[int]
    dtypes: list[int]  # codes
    shapes: list[tuple[int, ...]]
    kind: Kind
    owners: Sequence[object]  # what keeps the memory alive


def locate(tensors: Sequence[AnyArray]) -> Columns:
    """Where the tensors or arrays lie; copies of those that are not contiguous."""
    found = _locate_tensors(tensors)
    if found is not None:
        return found
    views = [view(x) for x in tensors]
    if len({x.kind for x in views}) > 1:
        raise InputError("the tensors of one message must be all torch tensors or all NumPy arrays")
    arrays = [x.array for x in views]
    return Columns(
        [_core.address(array) for array in arrays],
        [array.size for array in arrays],
        [DTYPE_CODES[x.dtype] for x in views],
        [x.shape for x in views],
        views[0].kind if views else "numpy",
        arrays,
    )


def locate_residuals(
    residuals: Sequence[AnyArray | None], tensors: Sequence[AnyArray], found: Columns
) -> list[int]:
    """The address of the residual of each tensor, 0 where there is none; `InputError` as `residual_view`."""
    given = [residual for residual in residuals if residual is not None]
    if not given:
        return [0] * len(residuals)
    kept = _locate_tensors(given) if found.kind == "torch" else None
    if kept is not None and set(kept.dtypes) == {DTYPE_CODES["float32"]} and not _needs_grad(given):
        addresses = iter(zip(kept.addresses, kept.shapes, strict=True))
        rows = [
            (0, s) if r is None else next(addresses)
            for r, s in zip(residuals, found.shapes, strict=True)
        ]
        if [shape for _, shape in rows] == found.shapes:
            return [address for address, _ in rows]
    return [
        0 if r is None else _core.address(residual_view(r, view(x)))
        for r, x in zip(residuals, tensors, strict=True)
    ]


def _locate_tensors(tensors: Sequence[Any]) -> Columns | None:
    """`locate` for contiguous CPU tensors of floats, in one call; None for anything else, or where torch is too old for it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if exchange is None or not set(map(type, tensors)) <= {torch.Tensor, torch.nn.Parameter}:
        return None
    got = _core.locate_tensors(exchange, list(tensors), MAX_RANK)
    if got is None or any(map(torch.Tensor.is_neg, tensors)):  # a lazy minus, as of x.conj().imag
        return None
    return Columns(*got, "torch", tensors)


def _needs_grad(tensors: Sequence[Any]) -> bool:
    """Whether torch would refuse to write to them."""
    torch = sys.modules["torch"]
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def writable_view(x: object, what: str) -> View:
    """A view that writes go through: `InputError` where a copy would be needed."""
    if kind_of(x, what) == "numpy":
        array: Any = x
        if not array.flags.c_contiguous:
            raise InputError(f"{what} is written in place and must be contiguous")
        if not array.flags.writeable:
            raise InputError(f"{what} is written in place, but it is read-only")
    else:
        check_writable(x, what)  # type: ignore[arg-type]
    return view(x, what)


def check_writable(x: torch.Tensor, what: str) -> None:
    """`InputError` for a tensor whose kernels would write to a copy, wherever it lies."""
    if not x.is_contiguous() or x.is_neg():  # a lazy minus
        raise InputError(f"{what} is written in place and must be contiguous")
    if _needs_grad([x]):
        raise InputError(
            f"{what} is written in place, but it requires grad; use torch.no_grad(), or give {what}.detach()"
        )


def check_residual(dtype: str, shape: tuple[int, ...], input_shape: tuple[int, ...]) -> None:
    """`InputError` unless a residual of this dtype and shape can belong to the input."""
    if dtype != "float32":
        raise InputError(
            f"residual must be float32, not {dtype}: a smaller dtype would lose what it keeps"
        )
    if shape != input_shape:
        raise InputError(f"residual has shape {shape}, the input {input_shape}")


def residual_view(residual: object, x: View) -> Floats:
    """The float32 residual that belongs to `x`."""
    got = writable_view(residual, "residual")
    check_residual(got.dtype, got.shape, x.shape)
    if got.kind != x.kind:
        raise InputError(f"residual is a {got.kind} array, the input a {x.kind} one")
    return got.array


def bytes_view(buffer: object, what: str) -> Bytes:
    """Bytes of any kind as a flat uint8 array, without a copy; writable when the source is."""
    if is_tensor(buffer):
        import torch

        tensor: torch.Tensor = _host_tensor(buffer, what)  # type: ignore[arg-type]
        if tensor.dtype is not torch.uint8 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise InputError(f"{what} must be a contiguous 1-D uint8 tensor")
        return tensor.numpy()
    if isinstance(buffer, np.ndarray):
        if buffer.dtype != np.uint8 or buffer.ndim != 1 or not buffer.flags.c_contiguous:
            raise InputError(f"{what} must be a contiguous 1-D uint8 array")
        return buffer
    try:
        return np.frombuffer(buffer, np.uint8)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError, BufferError) as error:
        raise InputError(
            f"{what} must be bytes, a contiguous buffer, or a uint8 array or tensor, not {type(buffer).__name__}"
        ) from error


def like(array: npt.NDArray[Any], dtype: str, shape: tuple[int, ...], kind: Kind) -> AnyArray:
    """The caller's kind of array around a flat native one."""
    if kind == "torch":
        import torch

        tensor = torch.from_numpy(array)
        return (tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor).reshape(shape)
    if dtype == "bfloat16":
        array = array.view(_ml_bfloat16())
    return array.reshape(shape)


def _ml_bfloat16() -> Any:
    try:
        import ml_dtypes  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError(
            "NumPy has no bfloat16 of its own: pip install ml_dtypes, ask for kind='torch', or give out="
        ) from error
    return ml_dtypes.bfloat16


def output_kind(asked: object, own: Kind, dtype: str) -> Kind:
    """The kind of array that a decoder returns: as asked, else its own, but torch for a bfloat16 that NumPy cannot hold."""
    if asked is not None:
        if asked in ("numpy", "torch"):
            return asked
        raise InputError(f"kind must be 'numpy' or 'torch', not {asked!r}")
    if dtype == "bfloat16" and own == "numpy":
        try:
            _ml_bfloat16()
        except InputError:
            return "torch"
    return own


def new_entries(n: int, dtype: str, *, zero: bool) -> npt.NDArray[Any]:
    """A flat native array for `n` decoded entries."""
    return (np.zeros if zero else np.empty)(n, _ENTRY_TYPES[dtype])


def zeros_like(x: View) -> View:
    """Zeros of the shape, dtype and kind of `x`."""
    return x._replace(array=new_entries(x.array.size, x.dtype, zero=True))
