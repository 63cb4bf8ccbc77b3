"""Model updates from files and from memory, in one form: rounds of named arrays."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..buffers import ITEM_BYTES, Kind, like, view
from ..errors import InputError

if TYPE_CHECKING:
    from ..buffers import AnyArray

EXTENSIONS = (".npy", ".npz", ".safetensors", ".pt", ".pth")


@dataclass(frozen=True)
class Updates:
    """What one sender sends, round after round.

    Attributes
    ----------
    names : tuple of str
        Of the floating-point tensors, in order.
    rounds : tuple of tuple of arrays
        Those tensors; the same dtypes and shapes in every round.
    exact_bytes : int
        Bytes of the integer and boolean tensors of a round, which no codec touches.
    """

    names: tuple[str, ...]
    rounds: tuple[tuple[AnyArray, ...], ...]
    exact_bytes: int

    @property
    def entries(self) -> int:
        """Floating-point numbers in one round."""
        return sum(view(x).array.size for x in self.rounds[0])

    @property
    def dense_bytes(self) -> int:
        """Bytes of one round as it is."""
        views = [view(x) for x in self.rounds[0]]
        return self.exact_bytes + sum(x.array.size * ITEM_BYTES[x.dtype] for x in views)


def read_updates(source: Any) -> Updates:
    """Updates from arrays or files.

    Parameters
    ----------
    source : array, dict of arrays, list of arrays, path, or a list of dicts, lists or paths
        An array, dict, list of arrays or file is one update; a list of dicts, of lists or of files is one update per round, in order.
        Files are .npy, .npz, .safetensors, or .pt with a dict of tensors; none of them can run code here. float64 is rounded to
        float32.

    Raises
    ------
    InputError
        A file is missing, damaged or of another kind; there is no floating-point number; rounds differ in names, dtypes or shapes.
    """
    if isinstance(source, Updates):
        return source
    several = isinstance(source, (list, tuple)) and not all(_is_array(x) for x in source)
    parts = [_normalized(part) for part in (source if several else [source])]
    names, first, _ = parts[0]
    if not any(view(x).array.size for x in first):
        raise InputError("the update holds no floating-point number to compress")
    layout = [_layout(x) for x in first]
    for number, (other, arrays, _) in enumerate(parts[1:], start=2):
        if other != names or [_layout(x) for x in arrays] != layout:
            raise InputError(f"round {number} has other names, dtypes or shapes than round 1")
    rounds = tuple(arrays for _, arrays, _ in parts)
    return Updates(names, rounds, max(exact for _, _, exact in parts))


def _normalized(part: Any) -> tuple[tuple[str, ...], tuple[AnyArray, ...], int]:
    """Names, arrays of one kind, and the bytes of what is not floating point."""
    if isinstance(part, (str, os.PathLike)):
        part = read_file(Path(part))
    if _is_array(part):
        part = {"update": part}
    elif isinstance(part, (list, tuple)):
        part = {str(number): x for number, x in enumerate(part)}
    if not isinstance(part, Mapping):
        raise InputError(
            "an update is an array, a list or dict of arrays, or the path of a file, "
            f"not {type(part).__name__}"
        )
    exact, names, views = 0, [], []
    for name, x in part.items():
        if not _is_array(x):
            raise InputError(f"{name!r} is no array but {type(x).__name__}")
        dtype = str(x.dtype).removeprefix("torch.")
        if dtype == "bool" or dtype.startswith(("int", "uint")):
            exact += x.nbytes
            continue
        if dtype == "float64":
            x = _rounded(x)
        source = view(x, f"tensor {name!r}")
        if not _core.all_finite(source.array):
            raise InputError(f"tensor {name!r} holds an infinity or NaN")
        names.append(str(name))
        views.append(source)
    kind: Kind = "torch" if any(x.kind == "torch" for x in views) else "numpy"
    return tuple(names), tuple(like(x.array, x.dtype, x.shape, kind) for x in views), exact


def _is_array(x: object) -> bool:
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _layout(x: AnyArray) -> tuple[str, tuple[int, ...]]:
    return str(x.dtype), tuple(x.shape)


def _rounded(x: Any) -> Any:
    if not isinstance(x, np.ndarray):
        return x.float()
    with np.errstate(over="ignore"):  # an infinity is reported by name
        return x.astype(np.float32)


def read_file(path: Path) -> Any:
    """What a file holds: an array or a dict of arrays. `InputError` says what is wrong with it."""
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    reader = readers.get(path.suffix.lower(), _read_torch)
    if path.suffix.lower() not in EXTENSIONS:
        raise InputError(f"{path}: tersegrad reads {', '.join(EXTENSIONS)} files")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions and pickle protocols
            return reader(path)
    except InputError:
        raise
    except Exception as error:  # a parser of foreign bytes raises whatever it stumbles over
        raise InputError(f"{path}: not a readable {path.suffix} file: {error}") from error


def _read_npy(path: Path) -> Any:
    # Mapped, so that a header which claims more entries than the file holds is refused before memory is taken.
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_npz(path: Path) -> Any:
    with path.open("rb") as file:  # np.load leaves a file open that is no archive
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, Mapping):
            raise ValueError("it is no archive of arrays")
        return {name: archive[name] for name in archive}


def _read_safetensors(path: Path) -> Any:
    _need("safetensors", path)
    import safetensors

    # NumPy knows bfloat16 only once ml_dtypes is imported.
    framework = "np"
    if importlib.util.find_spec("ml_dtypes"):
        import ml_dtypes  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    elif importlib.util.find_spec("torch"):
        framework = "pt"
    try:
        with safetensors.safe_open(path, framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: it holds a dtype that tersegrad does not read ({error}); for bfloat16: pip install ml_dtypes"
        ) from error


def _read_torch(path: Path) -> Any:
    _need("torch", path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _need(package: str, path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{path}: to read it, pip install {package}")
