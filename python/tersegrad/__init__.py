"""tersegrad: gradient compression at the speed of memory.

>>> import numpy as np, tersegrad as tg
>>> gradient = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
>>> payload = tg.compress(gradient, tg.TopK(density=0.01, values=tg.Quantize(bits=4)))
>>> message = bytes(payload)
>>> restored = tg.decompress(message)
"""

from . import federated, kernels, tune
from .api import compress, decompress
from .codec import Codec
from .codecs import (
    NF4,
    Cast,
    ChunkTopK,
    Float8,
    Identity,
    Integers,
    LowRank,
    Magnitudes,
    Natural,
    Quantize,
    RandomK,
    Rotated,
    Sign,
    Ternary,
    Threshold,
    TopK,
    Zstd,
)
from .ef21 import EF21, EF21Receiver
from .errors import (
    BackendError,
    BudgetError,
    CodecError,
    InputError,
    NonFiniteError,
    PayloadError,
    StateError,
    TersegradError,
)
from .feedback import ErrorFeedback
from .many import compress_many, decompress_many
from .message import Message
from .payload import Payload
from .sums import add
from .tune import AdaptiveCodec

__version__ = "0.1.0"

__all__ = [
    "EF21",
    "NF4",
    "AdaptiveCodec",
    "BackendError",
    "BudgetError",
    "Cast",
    "ChunkTopK",
    "Codec",
    "CodecError",
    "EF21Receiver",
    "ErrorFeedback",
    "Float8",
    "Identity",
    "InputError",
    "Integers",
    "LowRank",
    "Magnitudes",
    "Message",
    "Natural",
    "NonFiniteError",
    "Payload",
    "PayloadError",
    "Quantize",
    "RandomK",
    "Rotated",
    "Sign",
    "StateError",
    "Ternary",
    "TersegradError",
    "Threshold",
    "TopK",
    "Zstd",
    "add",
    "compress",
    "compress_many",
    "decompress",
    "decompress_many",
    "federated",
    "kernels",
    "tune",
]
