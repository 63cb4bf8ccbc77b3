"""`tersegrad inspect`: what a payload or a message says about itself."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from .buffers import ITEM_BYTES, Bytes
from .codec import Codec
from .codecs.sparse import Sparse
from .codecs.zstd import Zstd
from .errors import InputError, PayloadError
from .message import MAGIC as MESSAGE_MAGIC
from .message import Message
from .payload import MAGIC as PAYLOAD_MAGIC
from .payload import VERSION, Payload
from .terminal import print_table
from .tune.measure import codec_line
from .tune.units import format_bytes

HELP = """\
Say what is in a file of bytes that tersegrad made: bytes(compress(...)), bytes(compress_many(...)).

Everything is checked first, as for bytes from a stranger: lengths, checksum, parameters, and each
body down to its last bit. Nothing is decoded: what a forged file claims takes no memory."""

EXAMPLES = """\
columns:
  entries       numbers in the tensor
  sent          how many of them travel; a sparse codec leaves the others at zero
  body          bytes of the tensor in the file, header and tables not counted
  bits/entry    8 * body / entries; a float32 has 32
  bits/sent     8 * body / sent: value and index of an entry that travels
  ratio         original bytes / body

examples:
  tersegrad inspect update.tg
  tersegrad inspect update.tg --json | jq '.tensors[].bits_per_entry'

exit status: 0 valid, 2 not a file of tersegrad, damaged or forged; standard error says what is wrong."""


def add_parser(commands: Any) -> None:
    """The command `inspect`."""
    parser = commands.add_parser(
        "inspect",
        help="what a payload or a message of many tensors holds",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a payload or a message")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        data = options.file.read_bytes()
    except OSError as error:
        raise InputError(f"{options.file}: {error.strerror}") from error
    try:
        facts = inspect_bytes(data)
    except PayloadError as error:
        raise PayloadError(f"{options.file}: {error}") from error
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        _print(str(options.file), facts)
    return 0


def inspect_bytes(data: bytes) -> dict[str, Any]:
    """What a payload or a message says about itself, as plain data. `PayloadError` unless every bit of it is valid."""
    if data[:4] == PAYLOAD_MAGIC:
        payload = Payload.from_bytes(data)
        kind, step = "payload", payload.step
        tensors = [(payload.codec, payload.dtype, payload.shape, payload._body)]
    elif data[:4] == MESSAGE_MAGIC:
        message = Message.from_bytes(data)
        kind, step = "message", message.step
        tensors = list(
            zip(message.codecs, message.dtypes, message.shapes, message.bodies(), strict=True)
        )
    else:
        raise PayloadError(
            f"neither a payload nor a message: it starts with {data[:4]!r}, "
            f"not {PAYLOAD_MAGIC!r} or {MESSAGE_MAGIC!r}"
        )
    rows = []
    for position, (codec, dtype, shape, body) in enumerate(tensors):
        try:
            codec._check(body, math.prod(shape), dtype, step)
        except PayloadError as error:
            raise PayloadError(f"tensor {position}: {error}") from error
        rows.append(_tensor(codec, dtype, shape, body))
    original = sum(row["original_bytes"] for row in rows)
    return {
        "kind": kind,
        "version": VERSION,
        "checksum": "valid",
        "step": step,
        "nbytes": len(data),
        "overhead_bytes": len(data) - sum(row["body_bytes"] for row in rows),
        "original_bytes": original,
        "ratio": original / len(data),
        "tensors": rows,
    }


def _tensor(codec: Codec, dtype: str, shape: tuple[int, ...], body: Bytes) -> dict[str, Any]:
    entries, body_bytes = math.prod(shape), body.size
    plain = codec.inner if isinstance(codec, Zstd) else codec
    sent = plain._sent(body, entries) if isinstance(plain, Sparse) else entries
    original = entries * ITEM_BYTES[dtype]
    return {
        "codec": codec.to_dict(),
        "dtype": dtype,
        "shape": list(shape),
        "entries": entries,
        "sent": sent,
        "original_bytes": original,
        "body_bytes": body_bytes,
        "bits_per_entry": 8 * body_bytes / entries if entries else 0.0,
        "bits_per_sent": 8 * body_bytes / sent if sent else 0.0,
        "ratio": original / body_bytes if body_bytes else 1.0,
    }


def _print(name: str, facts: dict[str, Any]) -> None:
    rows = facts["tensors"]
    count = "1 tensor" if len(rows) == 1 else f"{len(rows)} tensors"
    print(
        f"{name}: a {facts['kind']} of {count}, format version {facts['version']}, step {facts['step']}\n"
        f"{facts['nbytes']:,} bytes for {format_bytes(facts['original_bytes'])}: ratio {facts['ratio']:.2f}; "
        f"{facts['overhead_bytes']:,} bytes of header and tables\n"
        "checksum valid, every body valid"
    )
    columns = ("codec", "dtype", "shape", "entries", "sent", "body", "bits/\nentry", "bits/\nsent")
    print_table(
        count,
        ("#", *columns, "ratio"),
        [
            (
                str(position),
                codec_line(Codec.from_dict(row["codec"])),
                row["dtype"],
                " x ".join(str(size) for size in row["shape"]) or "scalar",
                f"{row['entries']:,}",
                f"{row['sent']:,}",
                f"{row['body_bytes']:,}",
                f"{row['bits_per_entry']:.2f}",
                f"{row['bits_per_sent']:.2f}",
                f"{row['ratio']:.1f}",
            )
            for position, row in enumerate(rows)
        ],
        left=4,
    )
