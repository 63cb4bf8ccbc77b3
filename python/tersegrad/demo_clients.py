"""What the clients of `tersegrad demo --federated` do: their images, their network, their training. All of it follows from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Weights = dict[str, npt.NDArray[Any]]

TEST_SHARE = 5  # one image in so many is for testing
CONCENTRATION = 0.5  # of the Dirichlet distribution: below 1, most clients see few of the classes
BATCH_SIZE = 20
LEARNING_RATE = 0.05


class Task(NamedTuple):
    """Images of every client, and those that test the common model."""

    clients: list[tuple[torch.Tensor, torch.Tensor]]
    test: tuple[torch.Tensor, torch.Tensor]
    side: int  # of an image, in pixels


def split(images: Any, labels: Any, clients: int, seed: int) -> Task:
    """Share images out, each class in proportions drawn from a Dirichlet distribution (Hsu et al. 2019), so that clients differ."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    held_out = len(labels) // TEST_SHARE
    test, training = order[:held_out], order[held_out:]
    shares: list[list[int]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = training[labels[training] == label]
        proportions = generator.dirichlet([CONCENTRATION] * clients)
        cuts = (np.cumsum(proportions)[:-1] * len(members)).round().astype(int)
        for share, part in zip(shares, np.split(members, cuts), strict=True):
            share.extend(part.tolist())
    x = torch.from_numpy(images).to(memory_format=torch.channels_last)
    y = torch.from_numpy(labels)
    return Task([(x[share], y[share]) for share in shares], (x[test], y[test]), x.shape[-1])


def make_network(side: int, seed: int) -> nn.Sequential:
    """Two convolutions and two dense layers: 99,550 parameters for images of 28 by 28."""
    torch.manual_seed(seed)
    small = side // 4
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * small * small, 60),
        nn.ReLU(),
        nn.Linear(60, 10),
    )
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # 1.7 times as fast


def weights_of(network: nn.Module) -> Weights:
    """Copies of all tensors of a network, by name."""
    return {name: x.detach().numpy().copy() for name, x in network.state_dict().items()}


def load_weights(network: nn.Module, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    network.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()})


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
    """One pass of plain SGD over a client's images."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    network.train()
    for batch in order.split(BATCH_SIZE):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of the images that are recognized."""
    network.eval()
    with torch.no_grad():
        right = network(images).argmax(dim=1) == labels
    return 100 * float(right.float().mean())
