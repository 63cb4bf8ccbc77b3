"""Flower: one line on the client, one on the server, and both directions are compressed. The apps stay as they are.

``ClientApp(mods=[compression_mod(codec)])`` and ``CompressedStrategy(FedAvg())``; needs ``pip install 'tersegrad[flower]'``.
"""

try:
    import flwr as _flwr  # noqa: F401
except ImportError as _error:
    raise ImportError("tersegrad.flower needs Flower: pip install 'tersegrad[flower]'") from _error

from .client import compression_mod
from .records import CODEC_KEY, codec_config
from .server import CompressedStrategy

__all__ = ["CODEC_KEY", "CompressedStrategy", "codec_config", "compression_mod"]
