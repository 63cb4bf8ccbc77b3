"""Published bytes stay readable and stay the same: golden files per format version."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import reference as ref
import torch
from arrays import KINDS, VARIANTS, as_kind, as_torch, assert_same_bits, kernels, stored_of
from contract import assert_size
from devices import DEVICES, on

import tersegrad as tg

FOLDER = Path(__file__).parent / "golden" / "v1"


def load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", FOLDER.parent / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()
SUMS = {
    name: (payload, decoded)
    for payload, decoded, name in (
        line.split() for line in (FOLDER / "SHA256SUMS").read_text().splitlines()
    )
}
# A change of the pinned lines is a change of published bytes; new files append lines.
PINNED_FILES = 57
PINNED_DIGEST = "dace63c4b466294efb159188910a803ab999c248ed682fbc8755e8c3d6cc79cd"


def case_of(name: str) -> tuple[str, str]:
    case, dtype, _ = name.split(".")
    return case, dtype


def test_published_golden_files_never_change() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()[:PINNED_FILES]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PINNED_DIGEST
    assert {path.name for path in FOLDER.glob("*.tgrd")} == set(SUMS)
    for name, (digest, _) in SUMS.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_every_codec_and_dtype_of_the_document_has_a_golden_file() -> None:
    ids = {(raw[5], raw[6]) for raw in ((FOLDER / name).read_bytes() for name in SUMS)}
    assert ids == {
        (codec, dtype) for codec in (*range(1, 9), *range(10, 18)) for dtype in range(1, 4)
    }


def test_the_oracle_still_makes_the_golden_files() -> None:
    for name, payload in make.golden_payloads().items():
        assert (FOLDER / name).read_bytes() == payload, name


@pytest.mark.parametrize("name", SUMS)
def test_encoder_writes_the_golden_bytes(name: str) -> None:
    case, dtype = case_of(name)
    codec = make.build(make.CASES[case], tg)
    for variant in VARIANTS:
        for kind in KINDS:
            with kernels(variant):
                payload = tg.compress(
                    as_kind(make.golden_input(dtype), kind), codec, step=make.STEP
                )
            assert bytes(payload) == (FOLDER / name).read_bytes(), variant


@pytest.mark.parametrize("name", SUMS)
def test_decoder_reads_the_golden_bytes(name: str) -> None:
    _, dtype = case_of(name)
    raw = (FOLDER / name).read_bytes()
    for variant in VARIANTS:
        with kernels(variant):
            restored = tg.decompress(raw, kind="torch")
        assert restored.shape == make.SHAPE
        values = ref.widen(stored_of(restored), dtype)
        assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == SUMS[name][1], variant


@pytest.mark.parametrize("device", DEVICES)
def test_devices_write_and_read_the_golden_bytes(device: str) -> None:
    seen = 0
    for name, (_, digest) in SUMS.items():
        case, dtype = case_of(name)
        raw = (FOLDER / name).read_bytes()
        with on(device) as place:
            x = as_torch(make.golden_input(dtype))
            try:
                payload = tg.compress(x, make.build(make.CASES[case], tg), step=make.STEP)
            except tg.CodecError:  # no form there
                continue
            assert bytes(payload) == raw, name
            values = ref.widen(stored_of(tg.decompress(raw, kind=place)), dtype)
        assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == digest, name
        seen += 1
    assert seen >= 3 * 36


@pytest.mark.parametrize("name", SUMS)
def test_a_payload_read_from_a_golden_file_writes_it_again(name: str) -> None:
    raw = (FOLDER / name).read_bytes()
    payload = tg.Payload.from_bytes(raw)
    assert bytes(payload) == raw
    assert payload.nbytes == len(raw)
    case, dtype = case_of(name)
    assert payload.dtype == dtype
    assert type(payload.codec).__name__ == make.CASES[case][0]
    assert_size(payload.codec, 605, dtype, len(raw) - 56)


def test_golden_residual_is_what_the_golden_file_lost() -> None:
    for name in SUMS:
        case, dtype = case_of(name)
        x = make.golden_input(dtype)
        residual = torch.zeros(make.SHAPE)
        tg.compress(
            as_torch(x), make.build(make.CASES[case], tg), residual=residual, step=make.STEP
        )
        # x + 0 turns -0 into +0, so Sign may write other bytes here than in the file.
        raw, expected = ref.compress(
            x, make.build(make.CASES[case]), np.zeros(make.SHAPE, np.float32), make.STEP
        )
        assert_same_bits(residual, expected, name)
        assert len(raw) == (FOLDER / name).stat().st_size
