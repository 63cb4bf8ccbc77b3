"""The forms that codecs have on a device: which there are, and what they are made of."""

from __future__ import annotations

from typing import Any

from ..buffers import DTYPE_CODES
from ..codec import Codec
from ..codecs import Cast, ChunkTopK, Identity, Quantize, RandomK, Sign, TopK
from ..errors import CodecError

VALUES = (Identity, Cast, Quantize, Sign)
SELECTIONS = (TopK, ChunkTopK, RandomK)


def form_of(native: Any, codec: Codec) -> Any:
    """The native codec of the same parameters; `CodecError` where the device has none.

    The types are compared exactly: a subclass may do other things.
    """
    kind = type(codec)
    if kind in VALUES:
        return native.Codec("all", _values(native, codec))
    values = getattr(codec, "values", None) or Identity()
    if kind not in SELECTIONS or type(values) not in VALUES:
        raise _none(codec)
    inner = _values(native, values)
    if isinstance(codec, RandomK):
        return native.Codec(
            "random", inner, density=codec.density or 0.0, k=codec.k or 0, mask_seed=codec.seed
        )
    if not codec.is_fixed_size:
        raise _none(codec)
    if isinstance(codec, ChunkTopK):
        return native.Codec("chunks", inner, k=codec.k, chunk=codec.chunk, form=codec._form())
    assert isinstance(codec, TopK)
    return native.Codec(
        "topk", inner, density=codec.density or 0.0, k=codec.k or 0, form=codec._form()
    )


def _values(native: Any, codec: Codec) -> Any:
    if isinstance(codec, Cast):
        return native.ValueCodec("cast", wire=DTYPE_CODES[codec.dtype])
    if isinstance(codec, Quantize):
        seed = codec.seed if codec.rounding == "stochastic" else None
        return native.ValueCodec(
            "quantize", bits=codec.bits, block_size=codec.block_size, seed=seed
        )
    if isinstance(codec, Sign):
        return native.ValueCodec("sign", block_size=codec.block_size)
    return native.ValueCodec("identity")


def _none(codec: Codec) -> CodecError:
    return CodecError(
        f"{codec} has no form on a CUDA device: use x.cpu(), or one of Identity, Cast, Quantize, Sign, TopK, ChunkTopK and RandomK, "
        "with one of the first four as values and indices of a size known beforehand"
    )
