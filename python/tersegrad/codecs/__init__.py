"""The codecs, one algorithm per file."""

from .cast import Cast, Identity
from .chunk_topk import ChunkTopK
from .float8 import Float8
from .integers import Integers
from .low_rank import LowRank
from .magnitudes import Magnitudes
from .natural import Natural
from .nf4 import NF4
from .quantize import Quantize
from .random_k import RandomK
from .rotated import Rotated
from .sign import Sign
from .ternary import Ternary
from .threshold import Threshold
from .topk import TopK
from .zstd import Zstd

__all__ = [
    "NF4",
    "Cast",
    "ChunkTopK",
    "Float8",
    "Identity",
    "Integers",
    "LowRank",
    "Magnitudes",
    "Natural",
    "Quantize",
    "RandomK",
    "Rotated",
    "Sign",
    "Ternary",
    "Threshold",
    "TopK",
    "Zstd",
]
