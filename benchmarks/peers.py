"""What people use today, as rows for codecs.py: torch and NumPy pipelines, bitsandbytes, hivemind.

Each peer is written the way its users write it, in float32 on the CPU, and keeps what would have
to be sent. Peers that are not installed or do not run are left out, and the reason is said.

hivemind is not among the requirements of `make bench`, since its many dependencies would come with
it; its codecs join when `pip install hivemind` has been done.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Peer:
    """A way to make a gradient small. `pack` gives what is sent, `unpack` the tensor, `size` the
    bytes sent.
    """

    name: str
    pack: Callable[[Tensor], Any]
    unpack: Callable[[Any], Tensor]
    size: Callable[[Any], int]
    unpack_timed: bool = True
    note: str = ""


def tensors_size(packed: Any) -> int:
    """Bytes of the tensors and arrays in a tuple."""
    return sum(part.nbytes for part in packed if isinstance(part, (Tensor, np.ndarray)))


def _scatter(packed: Any) -> Tensor:
    index, value, n = packed
    out = torch.zeros(n)
    out[index] = value
    return out


def torch_topk(density: float) -> Peer:
    def pack(x: Tensor) -> Any:
        index = torch.topk(x.abs(), round(density * x.numel()), sorted=False).indices
        return index, x[index], x.numel()

    return Peer(f"torch.topk {density:.3g}", pack, _scatter, tensors_size)


def torch_kthvalue(density: float) -> Peer:
    def pack(x: Tensor) -> Any:
        magnitude = x.abs()
        kth = torch.kthvalue(magnitude, x.numel() - round(density * x.numel()) + 1).values
        index = (magnitude >= kth).nonzero().squeeze(1)
        return index, x[index], x.numel()

    return Peer(f"torch.kthvalue {density:.3g}", pack, _scatter, tensors_size)


def numpy_argpartition(density: float) -> Peer:
    def pack(x: Tensor) -> Any:
        k, flat = round(density * x.numel()), x.numpy()
        index = np.argpartition(np.abs(flat), flat.size - k)[flat.size - k :]
        return index, flat[index], flat.size

    def unpack(packed: Any) -> Tensor:
        index, value, n = packed
        out = np.zeros(n, np.float32)
        out[index] = value
        return torch.from_numpy(out)

    return Peer(f"numpy argpartition {density:.3g}", pack, unpack, tensors_size)


def sampled_threshold(density: float) -> Peer:
    """Threshold from a 1 % sample, as Deep Gradient Compression does: not exactly k entries."""

    def pack(x: Tensor) -> Any:
        magnitude = x.abs()
        sample = magnitude[::100]
        threshold = torch.topk(sample, max(1, round(density * sample.numel()))).values[-1]
        index = (magnitude >= threshold).nonzero().squeeze(1)
        return index.to(torch.int32), x[index], x.numel()

    return Peer(f"torch sampled threshold {density:.3g}", pack, _scatter, tensors_size)


def topk_int8(density: float) -> Peer:
    """top-k, 32-bit indices, values as int8 with one scale."""

    def pack(x: Tensor) -> Any:
        index = torch.topk(x.abs(), round(density * x.numel()), sorted=False).indices
        value = x[index]
        scale = value.abs().max() / 127
        return index.to(torch.int32), (value / scale).round_().to(torch.int8), scale, x.numel()

    def unpack(packed: Any) -> Tensor:
        index, code, scale, n = packed
        return _scatter((index, code * scale, n))

    return Peer(f"torch.topk {density:.3g} + int8", pack, unpack, tensors_size)


def chunked_topk() -> Peer:
    """64 of every 4,096 by a batched topk, 16-bit positions."""

    def pack(x: Tensor) -> Any:
        rows = torch.nn.functional.pad(x, (0, -x.numel() % 4096)).view(-1, 4096)
        index = torch.topk(rows.abs(), 64, dim=1, sorted=False).indices
        return index.to(torch.int16), rows.gather(1, index), x.numel()

    def unpack(packed: Any) -> Tensor:
        index, value, n = packed
        rows = torch.zeros(index.shape[0], 4096)
        return rows.scatter_(1, index.to(torch.int64), value).view(-1)[:n]

    return Peer("torch.topk 64 of 4096", pack, unpack, tensors_size)


def absmax(bits: int, block: int = 256) -> Peer:
    """Blockwise absmax in torch operations; 4-bit codes are packed in pairs."""
    top = 2 ** (bits - 1) - 1

    def pack(x: Tensor) -> Any:
        rows = torch.nn.functional.pad(x, (0, -x.numel() % block)).view(-1, block)
        scale = rows.abs().amax(dim=1, keepdim=True) / top
        code = (rows / scale.clamp_min(1e-30)).round_().to(torch.int8)
        if bits == 4:
            pairs = (code.view(torch.uint8) & 15).view(-1, 2)
            return pairs[:, 0] | (pairs[:, 1] << 4), scale, x.numel()
        return code, scale, x.numel()

    def unpack(packed: Any) -> Tensor:
        code, scale, n = packed
        if bits == 4:
            low = (code << 4).view(torch.int8) >> 4
            code = torch.stack((low, code.view(torch.int8) >> 4), dim=1).view(-1, block)
        flat: Tensor = (code * scale).view(-1)
        return flat[:n]

    return Peer(f"torch absmax int{bits}", pack, unpack, tensors_size)


def packed_signs() -> Peer:
    def pack(x: Tensor) -> Any:
        return np.packbits(np.signbit(x.numpy()), bitorder="little"), x.abs().mean(), x.numel()

    def unpack(packed: Any) -> Tensor:
        bits, scale, n = packed
        negative = torch.from_numpy(np.unpackbits(bits, count=n, bitorder="little"))
        signs: Tensor = 1 - 2 * negative.float()
        out: Tensor = signs * scale
        return out

    return Peer("numpy packbits signs", pack, unpack, tensors_size)


def cast(dtype: torch.dtype) -> Peer:
    name = str(dtype).removeprefix("torch.")
    return Peer(
        f"torch to {name}", lambda x: x.to(dtype), lambda packed: packed.float(), lambda p: p.nbytes
    )


def cast_into(dtype: torch.dtype) -> Peer:
    """A cast into memory that is there already: what torch does without the cost of fresh pages."""
    name = str(dtype).removeprefix("torch.")
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Any:
        if x.numel() not in kept:
            kept[x.numel()] = torch.empty_like(x, dtype=dtype)
        return kept[x.numel()].copy_(x)

    return Peer(f"torch to {name}, out given", pack, Tensor.float, lambda p: p.nbytes, False)


def bitsandbytes_peers() -> Iterator[Peer]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from bitsandbytes import functional

    def size(packed: Any) -> int:
        code, state = packed
        return int(code.nbytes + state.absmax.nbytes)

    yield Peer(
        "bitsandbytes 8-bit",
        lambda x: functional.quantize_blockwise(x),
        lambda packed: functional.dequantize_blockwise(*packed),
        size,
    )
    yield Peer(
        "bitsandbytes nf4",
        lambda x: functional.quantize_4bit(x, quant_type="nf4"),
        lambda packed: functional.dequantize_4bit(*packed).view(-1),
        size,
    )


def hivemind_peers() -> Iterator[Peer]:
    codecs = importlib.import_module("hivemind.compression")

    def codebook(message: Any) -> Tensor:
        count = int(np.frombuffer(message.buffer, np.int64, 1)[0])
        values = np.frombuffer(message.buffer, np.float32, count, 8)
        codes = np.frombuffer(message.buffer, np.uint8, offset=8 + 4 * count)
        return torch.from_numpy(values[codes])

    for name in ("Float16Compression", "Uniform8BitQuantization", "Quantile8BitQuantization"):
        codec = getattr(codecs, name)()
        info = codecs.CompressionInfo.from_tensor

        def pack(x: Tensor, codec: Any = codec, info: Any = info) -> Any:
            return codec.compress(x, info(x))

        probe = pack(torch.linspace(-1, 1, 4096))
        try:
            codec.extract(probe)
            unpack, works = codec.extract, True
        except TypeError:  # hivemind 1.1.12 takes int() of an array, which NumPy 2.4 refuses
            unpack, works = codebook, False
        label = name.removesuffix("Compression").removesuffix("Quantization")
        note = "" if works else "its extract fails with this NumPy"
        yield Peer(f"hivemind {label}", pack, unpack, lambda m: len(m.buffer), works, note)


def available() -> tuple[list[Peer], list[str]]:
    """The peers that run here, and why others do not."""
    peers = [
        torch_topk(0.01), torch_topk(0.001), torch_kthvalue(0.01), numpy_argpartition(0.01),
        sampled_threshold(0.01), topk_int8(0.01), chunked_topk(), absmax(8), absmax(4),
        packed_signs(), cast(torch.float16), cast(torch.bfloat16), cast_into(torch.bfloat16),
    ]  # fmt: skip
    missing = []
    for name, find in (("bitsandbytes", bitsandbytes_peers), ("hivemind", hivemind_peers)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = list(find())
                for peer in found:
                    peer.unpack(peer.pack(torch.linspace(-1, 1, 8192)))
            peers += found
        except Exception as error:  # an optional peer: any failure means "not here"
            missing.append(f"{name} does not run here: {error!r}")
    return peers, missing
