"""The command `tersegrad inspect`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import gradient

import tersegrad as tg
from tersegrad import _core
from tersegrad.cli import main
from tersegrad.inspection import inspect_bytes

TOPK = tg.TopK(density=0.01, values=tg.Quantize(bits=4))
PAYLOAD = bytes(tg.compress(gradient(10_000).reshape(100, 100), TOPK, step=7))
MESSAGE = bytes(
    tg.compress_many(
        [gradient(10_000), gradient(64).astype(np.float16), np.zeros((0, 3), np.float32)],
        [tg.RandomK(density=0.1), tg.Identity(), TOPK],
        step=9,
    )
)


def test_a_payload_tells_its_codec_sizes_and_bits() -> None:
    facts = inspect_bytes(PAYLOAD)
    (tensor,) = facts["tensors"]
    body = TOPK.body_size(10_000)
    assert facts["kind"] == "payload"
    assert facts["nbytes"] == len(PAYLOAD) == body + facts["overhead_bytes"]
    assert tg.Codec.from_dict(tensor["codec"]) == tg.Payload.from_bytes(PAYLOAD).codec
    assert (tensor["shape"], tensor["entries"], tensor["sent"]) == ([100, 100], 10_000, 100)
    assert tensor["bits_per_entry"] == 8 * body / 10_000
    assert tensor["bits_per_sent"] == 8 * body / 100
    assert facts["ratio"] == 40_000 / len(PAYLOAD)


def test_a_message_tells_each_of_its_tensors() -> None:
    facts = inspect_bytes(MESSAGE)
    assert (facts["kind"], facts["step"], facts["checksum"]) == ("message", 9, "valid")
    assert [t["sent"] for t in facts["tensors"]] == [1000, 64, 0]
    assert [t["dtype"] for t in facts["tensors"]] == ["float32", "float16", "float32"]
    assert facts["original_bytes"] == 40_000 + 128
    assert sum(t["body_bytes"] for t in facts["tensors"]) + facts["overhead_bytes"] == len(MESSAGE)


def sealed(data: bytes, checksum_at: int) -> bytes:
    """The same with a checksum that holds, as a forger would send it."""
    crc = _core.crc32c(data[checksum_at + 4 :], _core.crc32c(data[:checksum_at]))
    return data[:checksum_at] + crc.to_bytes(4, "little") + data[checksum_at + 4 :]


@pytest.mark.parametrize(("data", "checksum_at"), [(PAYLOAD, 36), (MESSAGE, 24)])
@pytest.mark.parametrize("seal", [False, True])
def test_no_changed_byte_ends_in_anything_but_facts_or_a_payload_error(
    data: bytes, checksum_at: int, seal: bool
) -> None:
    for position in range(0, len(data), 7):
        forged = data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
        if not seal or checksum_at <= position < checksum_at + 4:
            with pytest.raises(tg.PayloadError):
                inspect_bytes(forged)
            continue
        try:
            facts = inspect_bytes(sealed(forged, checksum_at))
        except tg.PayloadError:
            continue
        assert facts["nbytes"] == len(data)
    for length in range(0, len(data), 5):
        with pytest.raises(tg.PayloadError):
            inspect_bytes(data[:length])


def test_bodies_are_checked_and_not_only_the_checksum() -> None:
    # The last byte of a body of 4-bit codes for 100 survivors; before it, in the stream of high bits, a one too many.
    stream = len(PAYLOAD) - tg.Quantize(bits=4).body_size(100) - 1
    forged = bytearray(PAYLOAD)
    forged[stream] |= 0x80
    with pytest.raises(tg.PayloadError, match="tensor 0"):
        inspect_bytes(sealed(bytes(forged), 36))


def test_a_payload_that_claims_four_billion_entries_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "claim.tg"
    values = np.zeros(1, np.float32)
    payload = bytearray(bytes(tg.compress(values, tg.RandomK(k=1))))
    payload[40:48] = (2**32 - 1).to_bytes(8, "little")
    path.write_bytes(sealed(bytes(payload), 36))
    limit = "import resource as r; r.setrlimit(r.RLIMIT_AS, (2 << 30, 2 << 30))\n"
    program = f"{limit}from tersegrad.cli import main; raise SystemExit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", str(path), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"][0]["entries"] == 2**32 - 1


def run(capsys: Any, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_prints_a_line_for_each_tensor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "message.tg"
    path.write_bytes(MESSAGE)
    code, printed, _ = run(capsys, "inspect", path)
    assert code == 0
    assert "a message of 3 tensors" in printed
    assert "checksum valid, every body valid" in printed
    for codec in ("RandomK(0.1)", "Identity()", "TopK(0.01, values=Quantize(4))"):
        assert codec in printed


def test_the_command_prints_json_for_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "payload.tg"
    path.write_bytes(PAYLOAD)
    code, printed, _ = run(capsys, "inspect", path, "--json")
    assert code == 0
    assert json.loads(printed) == inspect_bytes(PAYLOAD)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "No such file"),
        (b"", "neither a payload nor a message"),
        (b"PK\x03\x04", "neither a payload nor a message"),
        (PAYLOAD[:-1], "the buffer has"),
        (PAYLOAD[:-1] + b"\0", "checksum"),
        (MESSAGE[:-1] + b"\1", "checksum"),
    ],
    ids=["absent", "empty", "zip", "cut", "damaged payload", "damaged message"],
)
def test_a_file_that_is_none_of_ours_is_one_sentence(
    data: bytes | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.tg"
    if data is not None:
        path.write_bytes(data)
    code, printed, errors = run(capsys, "inspect", path)
    assert (code, printed) == (2, "")
    assert errors.startswith(f"tersegrad: {path}: ")
    assert sentence in errors
    assert errors.count("\n") == 1
