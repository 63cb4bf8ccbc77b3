"""What `tersegrad demo` compares, and under which settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import Cast, Codec, Quantize, Sign, TopK
from .errors import TersegradError

TOP_K = TopK(density=0.01, values=Quantize(bits=4))


class DemoError(TersegradError, RuntimeError):
    """The demo cannot run as asked; the message says what to do."""


@dataclass(frozen=True)
class Method:
    """One way to send gradients. Without a codec, DDP's own all-reduce."""

    name: str
    label: str
    codec: Codec | None = None
    error_feedback: bool = True


METHODS = {
    method.name: method
    for method in (
        Method("none", "uncompressed"),
        Method("bf16", "Cast(bfloat16)", Cast(dtype="bfloat16"), False),
        Method("q8", "Quantize(8)", Quantize(bits=8)),
        Method("q4", "Quantize(4)", Quantize(bits=4)),
        Method("sign", "Sign", Sign()),
        Method("topk", "TopK(1 %) + 4 bit", TOP_K),
        Method("q8-no-ef", "Quantize(8)", Quantize(bits=8), False),
        Method("q4-no-ef", "Quantize(4)", Quantize(bits=4), False),
        Method("sign-no-ef", "Sign", Sign(), False),
        Method("topk-no-ef", "TopK(1 %) + 4 bit", TOP_K, False),
    )
}
DEFAULT_METHODS = ("none", "bf16", "q8", "q4", "sign", "sign-no-ef", "topk", "topk-no-ef")


@dataclass(frozen=True)
class Settings:
    """One demo. Everything but the method is the same for every method."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    data: str = "auto"
    epochs: int = 10
    seeds: int = 1
    workers: int = 2
    batch_size: int = 32
    learning_rate: float = 0.08
    momentum: float = 0.9
    warmup: float = 0.2  # share of the steps in which the learning rate rises
    out: Path = Path("tersegrad-demo")

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise DemoError(f"no codec is called {name!r}; there are: {', '.join(METHODS)}")
        if self.data not in ("auto", "mnist", "digits"):
            raise DemoError(f"data must be auto, mnist or digits, not {self.data!r}")
        for name in ("epochs", "seeds", "workers", "batch_size"):
            if getattr(self, name) < 1:
                raise DemoError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.methods:
            raise DemoError(f"name at least one codec of: {', '.join(METHODS)}")
