"""The function that DDP calls."""

# No `from __future__ import annotations`: DDP compares a hook's annotations with the objects.

import torch
import torch.distributed as dist

from ..errors import StateError
from .state import CompressionState


def compression_hook(
    state: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Average one bucket of gradients over the ranks, compressed.

    Register it with ``model.register_comm_hook(CompressionState(codec, model), compression_hook)``.

    Raises
    ------
    StateError
        `state` is no CompressionState, the ranks disagree, or torch.compile's python reducer calls.
    InputError
        The gradients are sparse, or neither float32, float16 nor bfloat16.
    """
    if not isinstance(state, CompressionState):
        raise StateError(
            f"compression_hook needs a CompressionState, not {type(state).__name__}: "
            "model.register_comm_hook(CompressionState(codec, model), compression_hook)"
        )
    if isinstance(bucket, tuple):
        raise StateError(
            "torch.compile's python_reducer hands over single gradients, not buckets; set "
            'torch._dynamo.config.optimize_ddp = "ddp_optimizer" (the default)'
        )
    return state._reduce(bucket)
