"""kernels.py --models: whole models, many tensors of many sizes, one by one and in one call."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch
from harness import Row
from inputs import gaussian
from report import Record, markdown, save, show

import tersegrad as tg

Shapes = list[tuple[int, ...]]
COLUMNS = {
    "model": "model", "codec": "codec", "how": "how", "tensors": "tensors", "ms": "ms",
    "gbps": "GB/s", "x_read": "x read", "per_tensor": "microseconds per tensor over one call",
}  # fmt: skip
CODECS = {
    "TopK 1%, 4-bit": tg.TopK(0.01, values=tg.Quantize(bits=4)),
    "Quantize 4": tg.Quantize(bits=4),
}


def resnet50() -> Shapes:
    """The shapes of torchvision's ResNet-50: 161 tensors, 25,557,032 entries."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, width_in, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, width_in, 1, 1), (4 * width,), (4 * width,)]
            width_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def transformer(layers: int = 12, width: int = 512, words: int = 8000) -> Shapes:
    """A small language model: 16 tensors a layer, 196 in all, 42 million entries."""
    shapes: Shapes = [(words, width), (1024, width)]
    for _ in range(layers):
        shapes += 4 * [(width, width), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
        shapes += 4 * [(width,)]
    return [*shapes, (width,), (width,)]


MODELS = {"ResNet-50": resnet50, "transformer": transformer}


def tensors(shapes: Shapes) -> list[torch.Tensor]:
    """Gradients of these shapes, each in memory of its own as autograd leaves them."""
    flat = torch.from_numpy(gaussian(sum(map(math.prod, shapes))))
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [part.clone().reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def many() -> Callable[..., Any] | None:
    """compress_many, in versions that have it."""
    return getattr(tg, "compress_many", None)


#: The rows of `overhead_rows`.
SMALL_ROWS = ["many small", "many small + residuals", "many small, ErrorFeedback"]


def overhead_rows(count: int = 161, entries: int = 64) -> list[Row]:
    """What a tensor costs when there is next to nothing in it."""
    compress_many = many()
    if compress_many is None:
        return []
    small = tensors([(entries,)] * count)
    residuals = [torch.zeros(entries) for _ in small]
    codec = tg.Quantize(bits=4)
    plain = partial(compress_many, small, codec)
    kept = partial(compress_many, small, codec, residuals=residuals)
    feedback, named = tg.ErrorFeedback(codec), {f"layer{i}": x for i, x in enumerate(small)}
    n_bytes = 4 * entries * count
    ways = (plain, kept, partial(feedback.compress_many, named))
    return [Row(name, way, n_bytes, calls=20) for name, way in zip(SMALL_ROWS, ways, strict=True)]


def run(options: argparse.Namespace) -> int:
    rows: list[Row] = []
    records: list[Record] = []
    for model, shapes in MODELS.items():
        gradients = tensors(shapes()[:20] if options.quick else shapes())
        whole = torch.cat([g.reshape(-1) for g in gradients])
        n_bytes = 4 * whole.numel()
        rows.append(Row(f"read {model}", whole.numpy().max, n_bytes))
        for name, codec in CODECS.items():
            for how, work in ways(gradients, whole, codec).items():
                row = Row(f"{model}, {name}, {how}", work, n_bytes)
                rows.append(row)
                record: Record = {"model": model, "codec": name, "how": how, "row": row.name}
                records.append({**record, "tensors": 1 if how == "one tensor" else len(gradients)})
    samples = harness.measure(rows, seconds=options.seconds, quiet=options.quiet)
    for record in records:
        sample = samples[record.pop("row")]
        one = samples[f"{record['model']}, {record['codec']}, one tensor"]
        record["ms"], record["gbps"] = sample.median * 1e3, sample.gigabytes
        record["x_read"] = sample.ratio(samples[f"read {record['model']}"])[0]
        if record["tensors"] > 1:
            record["per_tensor"] = 1e6 * (sample.median - one.median) / record["tensors"]
    show("whole models", COLUMNS, records)
    text = ["# Whole models", "`one tensor` is all entries in one; top-k then picks among all.", ""]
    save("models", options, records, [*text, *markdown(COLUMNS, records)])
    return 0


def ways(
    gradients: list[torch.Tensor], whole: torch.Tensor, codec: tg.Codec
) -> dict[str, Callable[[], object]]:
    """The same gradients compressed in different ways."""

    def each() -> None:
        for gradient in gradients:
            tg.compress(gradient, codec)

    found: dict[str, Callable[[], object]] = {
        "one tensor": partial(tg.compress, whole, codec),
        "compress each": each,
    }
    compress_many = many()
    if compress_many is not None:
        found["compress_many"] = partial(compress_many, gradients, codec)
    return found
