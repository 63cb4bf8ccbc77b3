"""Data, network and training: nothing here knows of Flower or of compression."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def load_data(partition: int, partitions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One client's share of the digits; the last fifth is the server's, for testing."""
    images, labels = load_digits(return_X_y=True)
    images, labels = images.astype(np.float32) / 16, labels.astype(np.int64)
    training = len(labels) * 4 // 5
    chosen = slice(training, None) if partition < 0 else slice(partition, training, partitions)
    return torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])


def train(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float
) -> float:
    """Returns the last batch's loss."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
    return loss.item()


def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return (network(images).argmax(1) == labels).float().mean().item()
