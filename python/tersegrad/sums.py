"""add: the sum of payloads or messages, without decoding them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from .buffers import Bytes
from .codec import Codec
from .device.sums import add_messages as add_messages_on_device
from .device.sums import add_payloads as add_payloads_on_device
from .device.sums import on_one_device
from .errors import CodecError, InputError, PayloadError
from .message import MAGIC as MESSAGE_MAGIC
from .message import Message
from .payload import Payload

_Summable = TypeVar("_Summable", Payload, Message)
#: A part of a payload or message: codec, dtype and shape.
_Part = tuple[Codec, str, tuple[int, ...]]


def add(sources: Sequence[Any], *, wrap: bool = False) -> Any:
    """Add payloads, or messages, without decoding them: the result decodes to their sum.

    What adds: `Integers` of one scale, exactly; `Identity` and `Cast`, as float sums; `RandomK` of one seed and step around these.
    The sum of floats runs in float32 in the order of `sources` and is rounded once to what travels, to nearest even, saturating. The sum
    of integers is exact, so that any order gives the same bytes, and an all-reduce of the bodies gives them too.

    Parameters
    ----------
    sources : sequence of Payload, of Message, or of their bytes
        At least one; of the same codec, dtype and shape, tensor by tensor. They are checked before they are added.
    wrap : bool
        Add codes of `Integers` modulo ``2 ** bits`` instead of refusing a sum beyond it: for payloads under masks that cancel.

    Returns
    -------
    Payload or Message
        With the codec and step of the first: on the device if all of them lie on one and nothing waits for it, see docs/cuda.md; else
        on the CPU, where payloads on a device are fetched. The number of payloads does not travel: pass ``scale=1 / count`` to
        `decompress` for their mean.

    Raises
    ------
    CodecError
        If the codec does not add, or codecs, seeds or steps differ; the message names the difference.
    InputError
        If dtypes, shapes or numbers of tensors differ, or a sum of integers exceeds their bits.
    PayloadError
        If the bytes are not a payload or message.
    """
    read = [_read(source) for source in sources]
    if not read:
        raise InputError("nothing to add: give at least one payload")
    first = read[0]
    if isinstance(first, Payload):
        return _add_payloads(_of_one_kind(read, Payload), wrap)
    return _add_messages(_of_one_kind(read, Message), wrap)


def _read(source: Any) -> Payload | Message:
    if isinstance(source, (Payload, Message)):
        return source
    if isinstance(source, (bytes, bytearray, memoryview)) and bytes(source[:4]) == MESSAGE_MAGIC:
        return Message.from_bytes(source)
    return Payload.from_bytes(source)


def _of_one_kind(sources: Sequence[Any], kind: type[_Summable]) -> list[_Summable]:
    for position, source in enumerate(sources):
        if not isinstance(source, kind):
            raise InputError(
                f"a {type(source).__name__} (number {position}) does not add to a {kind.__name__}"
            )
    return list(sources)


def _add_payloads(payloads: Sequence[Payload], wrap: bool) -> Payload:
    first = payloads[0]
    parts = [(p.codec, p.dtype, tuple(p.shape)) for p in payloads]
    steps = [p.step for p in payloads]
    _check_alike(parts, steps, "payload {}")
    if on_one_device(payloads):
        return add_payloads_on_device(payloads, wrap)
    body = _sum(parts, [p._body for p in payloads], steps, wrap, "payload {}")
    return Payload(first.codec, first.dtype, first.shape, body, first._kind, first.step)


def _add_messages(messages: Sequence[Message], wrap: bool) -> Message:
    first = messages[0]
    for number, message in enumerate(messages):
        if len(message) != len(first):
            raise InputError(
                f"message {number} has {len(message)} tensors, message 0 has {len(first)}"
            )
    steps = [message.step for message in messages]
    tensors: list[list[_Part]] = [
        [(m.codecs[position], m.dtypes[position], tuple(m.shapes[position])) for m in messages]
        for position in range(len(first))
    ]
    names = [f"tensor {position} of message {{}}" for position in range(len(first))]
    for parts, name in zip(tensors, names, strict=True):
        _check_alike(parts, steps, name)
    if on_one_device(messages):
        return add_messages_on_device(messages, wrap)
    bodies = [message.bodies() for message in messages]
    sums = [
        _sum(parts, [own[position] for own in bodies], steps, wrap, name)
        for position, (parts, name) in enumerate(zip(tensors, names, strict=True))
    ]
    joined = np.concatenate(sums) if sums else np.empty(0, np.uint8)
    sizes = [body.size for body in sums]
    return Message(first.codecs, first.dtypes, first.shapes, joined, sizes, first._kind, first.step)


def _check_alike(parts: Sequence[_Part], steps: Sequence[int], name: str) -> None:
    """Refuse what does not add: the same tensor of all sources."""
    codec, dtype, shape = parts[0]
    if not codec.is_additive:
        raise CodecError(
            f"{codec} does not add without decoding; Integers, Identity and Cast do, and RandomK around them"
        )
    for number, (other, other_dtype, other_shape) in enumerate(parts):
        if (other_dtype, other_shape) != (dtype, shape):
            raise InputError(
                f"{name.format(number)} holds {other_dtype} {other_shape}, {name.format(0)} {dtype} {shape}"
            )
        found = _difference(codec, steps[0], other, steps[number], math.prod(shape))
        if found:
            raise CodecError(
                f"{name.format(number)} does not add to {name.format(0)}: {found}; only payloads of one codec, with the same "
                "parameters, seed and step, add without decoding"
            )


def _sum(
    parts: Sequence[_Part], bodies: Sequence[Bytes], steps: Sequence[int], wrap: bool, name: str
) -> Bytes:
    """The body of the sum of the same tensor of all sources, whose bodies are checked."""
    codec, dtype, shape = parts[0]
    n = math.prod(shape)
    for number, body in enumerate(bodies):
        try:
            parts[number][0]._check(body, n, dtype, steps[number])
        except PayloadError as error:
            raise PayloadError(f"{name.format(number)}: {error}") from error
    return codec._sum_bodies(bodies, dtype, wrap)


def _difference(first: Codec, first_step: int, other: Codec, other_step: int, n: int) -> str:
    """What keeps two codecs from adding, in words; nothing where a decoder reads their bodies alike."""
    if type(first) is not type(other):
        return f"{type(other).__name__} is not {type(first).__name__}"
    wire, other_wire = first._wire_params(n, first_step), other._wire_params(n, other_step)
    if wire == other_wire:
        return ""
    # As a decoder sees them, so that only what matters is named.
    one, step = type(first)._from_wire(wire.ljust(20, b"\0"), n)
    two, two_step = type(other)._from_wire(other_wire.ljust(20, b"\0"), n)
    names = [field.name for field in dataclasses.fields(one)]  # type: ignore[arg-type]
    pairs = [(name, getattr(one, name), getattr(two, name)) for name in names]
    pairs.append(("step", step, two_step))
    return ", ".join(f"{name} {b!r} is not {a!r}" for name, a, b in pairs if a != b)
