"""A communication hook for PyTorch DDP: gradients travel as tersegrad payloads.

    model = DistributedDataParallel(net)
    state = CompressionState(TopK(density=0.01, values=Quantize(bits=4)), model)
    model.register_comm_hook(state, compression_hook)

Each rank turns a bucket into a message of a size known beforehand; `docs/ddp.md` tells how messages
travel and what the options are for.
"""

from .checkpoint import load_distributed, merge_states
from .hook import compression_hook
from .momentum import MomentumCorrection
from .rules import Rule, Warmup
from .state import CompressionState

__all__ = [
    "CompressionState",
    "MomentumCorrection",
    "Rule",
    "Warmup",
    "compression_hook",
    "load_distributed",
    "merge_states",
]
