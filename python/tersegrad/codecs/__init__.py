"""The codecs, one algorithm per file."""

from .cast import Cast, Identity
from .chunk_topk import ChunkTopK
from .integers import Integers
from .quantize import Quantize
from .random_k import RandomK
from .rotated import Rotated
from .sign import Sign
from .ternary import Ternary
from .threshold import Threshold
from .topk import TopK
from .zstd import Zstd

__all__ = [
    "Cast",
    "ChunkTopK",
    "Identity",
    "Integers",
    "Quantize",
    "RandomK",
    "Rotated",
    "Sign",
    "Ternary",
    "Threshold",
    "TopK",
    "Zstd",
]
