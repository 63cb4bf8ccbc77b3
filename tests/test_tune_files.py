"""Updates that tersegrad.tune reads from files, and files that it refuses."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arrays import gradient
from test_package import run_python

import tersegrad as tg
from tersegrad.tune import measure, read_updates

CODECS = (tg.Quantize(bits=4), tg.TopK(density=0.05))
ROUNDS = [{"weight": gradient(6000, seed).reshape(60, 100)} for seed in range(3)]


def save(path: Path, update: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".npy":
        np.save(path, update["weight"])
    elif path.suffix == ".npz":
        np.savez(path, **update)
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file(update, path)
    else:
        torch.save({name: torch.from_numpy(array) for name, array in update.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_a_file_is_read_as_its_arrays_are(suffix: str, tmp_path: Path) -> None:
    updates = read_updates(save(tmp_path / f"update{suffix}", ROUNDS[0]))
    assert updates.names == (("update",) if suffix == ".npy" else ("weight",))
    assert np.asarray(updates.rounds[0][0]).tobytes() == ROUNDS[0]["weight"].tobytes()


def test_several_files_are_rounds(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.npz", update) for i, update in enumerate(ROUNDS)]
    from_files, from_memory = measure(files, CODECS), measure(ROUNDS, CODECS)
    assert [row.error for row in from_files] == [row.error for row in from_memory]


@pytest.mark.parametrize("with_ml_dtypes", [True, False])
def test_bfloat16_is_read_from_safetensors(with_ml_dtypes: bool, tmp_path: Path) -> None:
    tensor = torch.from_numpy(gradient(5000)).bfloat16()
    path = tmp_path / "update.safetensors"
    pytest.importorskip("safetensors.torch").save_file({"w": tensor}, path)
    if with_ml_dtypes and importlib.util.find_spec("ml_dtypes") is None:
        pytest.skip("needs ml_dtypes")
    hide = "" if with_ml_dtypes else "sys.modules['ml_dtypes'] = None\n"
    printed = run_python(
        "-c",
        f"import hashlib, sys\n{hide}from tersegrad.buffers import view\n"
        "from tersegrad.tune import read_updates\n"
        f"got = view(read_updates({str(path)!r}).rounds[0][0])\n"
        "print(got.kind, got.dtype, hashlib.sha256(got.array.tobytes()).hexdigest())",
    )
    bits = hashlib.sha256(tensor.view(torch.int16).numpy().tobytes()).hexdigest()
    assert printed == f"{'numpy' if with_ml_dtypes else 'torch'} bfloat16 {bits}"


class Bomb:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def huge_npy(path: Path) -> None:
    """A header that claims four terabytes, and no entries."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(file, header)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt", ".csv"])
@pytest.mark.parametrize("damage", ["absent", "empty", "text", "cut", "pickle", "huge", "folder"])
def test_a_damaged_or_forged_file_is_one_sentence(suffix: str, damage: str, tmp_path: Path) -> None:
    path, bomb = tmp_path / f"update{suffix}", tmp_path / "exploded"
    if damage == "empty":
        path.touch()
    elif damage == "text":
        path.write_text("weight\n0.5\n")
    elif damage == "cut" and suffix != ".csv":
        save(path, ROUNDS[0])
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "pickle" and suffix == ".npy":
        np.save(path, np.array([Bomb(bomb)], object), allow_pickle=True)
    elif damage == "pickle" and suffix == ".npz":
        np.savez(path, weight=np.array([Bomb(bomb)], object))
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Bomb(bomb)))
    elif damage == "huge":
        huge_npy(path)
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(tg.InputError, match="update") as caught:
        read_updates(path)
    assert str(path) in str(caught.value)
    assert not bomb.exists()


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    for package, suffix in (("safetensors", ".safetensors"), ("torch", ".pt")):
        (tmp_path / f"a{suffix}").write_bytes(b"x")
        printed = run_python(
            "-c",
            f"import sys; sys.modules[{package!r}] = None\nimport tersegrad as tg\n"
            f"try: tg.tune.read_updates({str(tmp_path / f'a{suffix}')!r})\n"
            "except tg.InputError as error: print(error)",
        )
        assert f"pip install {package}" in printed


def test_tuning_needs_only_numpy() -> None:
    assert run_python(
        "-c",
        "import sys\n"
        "for name in ('torch', 'rich', 'matplotlib', 'safetensors', 'ml_dtypes'): sys.modules[name] = None\n"
        "import numpy as np, tersegrad as tg\n"
        "print(tg.tune.tune(np.ones(5000, np.float32), max_bytes='6KB'))",
    ).startswith("Sign(1024): 709 B a round")
