"""Run by test_hostile.py: small messages to a server of a large model, and the peak of memory they cause."""

from __future__ import annotations

import resource
import struct

import numpy as np
from forgery import sealed

import tersegrad as tg

ENTRIES = 40_000_000
LAYOUT = {"w": ((ENTRIES,), "float32")}
ALLOWED_KIB = 2 * 1024  # of 156,250 that the model takes


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def small_messages() -> list[bytes]:
    """About a kilobyte each, with every codec that can say much in it, and what a length or count could be forged to."""
    digest = tg.federated.Layout.of(LAYOUT).digest
    codecs = [
        tg.RandomK(k=200),
        tg.RandomK(k=8000, values=tg.Sign(block_size=65536)),
        tg.RandomK(density=1.0, values=tg.Quantize(bits=2, block_size=65536)),
        tg.TopK(k=1, indices="bitmap"),
        tg.TopK(k=100, indices="elias-fano"),
        tg.TopK(k=2**32 - 1),
        tg.TopK(k=2**32 - 1, indices="rice"),
        tg.TopK(k=7000, values=tg.Ternary(block_size=65536), indices="rice"),
        tg.Threshold(value=1.0),
        tg.Threshold(value=1.0, values=tg.Sign(block_size=65536), indices="rice"),
        tg.ChunkTopK(k=1, chunk=65536),
        tg.Sign(block_size=65536),
        tg.Rotated(0.1, block=65536),
        tg.Identity(),
    ]
    messages = []
    for codec in codecs:
        entry = struct.pack("<B3s24s", codec.id, b"", codec._standing_params())
        head = struct.pack("<4sBB2sI16sI", b"TGRF", 1, 1, b"", 7, digest, 0)
        fits = min(codec.max_body_size(ENTRIES), 1024)
        for size in (0, fits):
            messages.append(sealed(head + entry + b"\0" + bytes(size)))
    return messages


def main() -> None:
    server = tg.federated.Server(LAYOUT)
    server._sums["w"].fill(0)  # now all of the accumulator is in memory: what grows is beyond it
    messages = small_messages()
    tg.federated.Client(tg.Sign()).encode({"w": np.ones(100, np.float32)})
    before = peak_kib()
    accepted = 0
    for message in messages:
        try:
            server.add(message)
            accepted += 1
        except tg.PayloadError:
            pass
    grown = peak_kib() - before
    print(f"{len(messages)} messages, {accepted} accepted, peak grew by {grown} KiB")
    assert accepted >= 2, "the honest ones are taken"
    assert grown <= ALLOWED_KIB, grown


if __name__ == "__main__":
    main()
