"""What travels in Flower's records, for both sides: messages of bytes, and the few words that go with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from ..codec import Codec
from ..errors import CodecError, InputError, PayloadError

#: Name of the ConfigRecord that the server adds to every message, of an ArrayRecord's only entry in a reply, and of client state.
RECORD = "tersegrad"
#: The serialization type of our arrays: nothing but this package reads their bytes as numbers.
STYPE = "tersegrad.v1"
#: Where a codec is looked for: in a node's config, then in a message's ConfigRecords.
CODEC_KEY = "tersegrad-codec"

Arrays = dict[str, npt.NDArray[Any]]


def codec_config(codec: Codec) -> dict[str, str]:
    """The entry of a train config or of a node's config that makes clients use `codec`.

    Examples
    --------
    >>> from flwr.app import ConfigRecord
    >>> import tersegrad as tg
    >>> from tersegrad.flower import codec_config
    >>> ConfigRecord({"lr": 0.1} | codec_config(tg.Cast("bfloat16")))
    {'lr': 0.1, 'tersegrad-codec': '{"codec": "Cast", "dtype": "bfloat16"}'}
    """
    return {CODEC_KEY: json.dumps(codec.to_dict())}


def read_codec(text: object) -> Codec:
    """The codec that `codec_config` wrote; `CodecError` if there is none."""
    try:
        return Codec.from_dict(json.loads(text))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise CodecError(
            f"{CODEC_KEY} must be a codec as JSON, such as codec_config(codec) makes, not {text!r}: {error}"
        ) from error


def codec_in(content: RecordDict) -> object | None:
    """What a message's ConfigRecords say about the codec."""
    found = (record.get(CODEC_KEY) for record in content.config_records.values())
    return next((text for text in found if text is not None), None)


def only_arrays(content: RecordDict, what: str) -> tuple[str, ArrayRecord]:
    """Name and value of the one ArrayRecord; `InputError` if there are others."""
    records = dict(content.array_records)
    if len(records) != 1:
        raise InputError(
            f"{what} must hold one ArrayRecord, the model, to be compressed; it holds {sorted(records)}"
        )
    return next(iter(records.items()))


def to_numpy(record: ArrayRecord) -> Arrays:
    """Arrays by name, from a record that this side made or trusts."""
    return {name: array.numpy() for name, array in record.items()}


def to_record(arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def to_array(message: bytes) -> Array:
    """A message of `tersegrad.federated` in Flower's clothes."""
    return Array(dtype="uint8", shape=(len(message),), stype=STYPE, data=message)


def to_message(array: Array) -> bytes:
    """The message in an array; `PayloadError` if there is none."""
    if array.stype != STYPE:
        raise PayloadError(f"an array is of type {array.stype!r}, not {STYPE!r}")
    return bytes(array.data)


def nbytes(content: RecordDict) -> int:
    """Bytes of all arrays of a message."""
    return sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )


def fingerprint(message: bytes) -> bytes:
    """Eight bytes by which a client knows which of its messages the server took."""
    return hashlib.blake2b(message, digest_size=8).digest()


def control(content: RecordDict) -> ConfigRecord | None:
    """What `CompressedStrategy` says to the mod; None if the server does not use it."""
    return content.config_records.get(RECORD)
