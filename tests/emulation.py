"""The CUDA kernels on the host: their own sources, compiled against csrc/cuda/emulate.h."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
from pathlib import Path
from typing import Any

#: Another one may hold a build under sanitizers.
FOLDER = Path(
    os.environ.get("TERSEGRAD_EMULATION") or Path(__file__).parent.parent / "build" / "package"
)


def _load() -> Any:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        for path in FOLDER.glob(f"_cuda_emulated{suffix}"):
            spec = importlib.util.spec_from_file_location("_cuda_emulated", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ImportError(f"no _cuda_emulated in {FOLDER}: `make test` builds it")


EMULATED = _load()
