"""Scenarios: bodies that an all-reduce sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ddp_workers import scenario

import tersegrad as tg

CODES = {8: torch.int8, 16: torch.int16, 32: torch.int32}


def gradient_of(rank: int) -> torch.Tensor:
    return torch.randn(5003, generator=torch.Generator().manual_seed(rank))


def codec_of(rank: int, bits: int, sparse: bool) -> tg.Codec:
    grid = tg.Integers(bits=bits, clip=6.0, addends=2, rounding="stochastic", seed=rank)
    return tg.RandomK(density=0.1, seed=7, values=grid) if sparse else grid


@scenario()
def bodies_summed_by_all_reduce(rank: int) -> Any:
    results = {}
    for bits in CODES:
        for sparse in (False, True):
            codecs = [codec_of(r, bits, sparse) for r in range(2)]
            payloads = [tg.compress(gradient_of(r), codecs[r], step=3) for r in range(2)]
            expected, own = bytes(tg.add(payloads)), payloads[rank]
            dtype = CODES[bits]
            if dtype == torch.int16:  # gloo has no sums of int16
                codes = own.body.view(dtype).to(torch.int32)
                dist.all_reduce(codes)
                own.body.view(dtype).copy_(codes)
            else:
                dist.all_reduce(own.body.view(dtype))
            results[bits, sparse] = (bytes(own), expected, tg.decompress(own))
    return results
