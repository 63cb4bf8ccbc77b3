"""The training that test_frameworks.py has every framework run: python framework_training.py NAME FOLDER

One process of two. Each framework drives the same model over the same batches; what a rank ends
with goes to FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ddp_workers import (
    CODEC,
    batch,
    deep_model,
    descend,
    hooked,
    loss_of,
    residuals_of,
    train,
    weights,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tersegrad.ddp import CompressionState, compression_hook

STEPS = range(4)


def torchrun() -> tuple[nn.Module, CompressionState]:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(deep_model())
    state = hooked(model)
    train(model, dist.get_rank(), STEPS)
    return model.module, state


def accelerate() -> tuple[nn.Module, CompressionState]:
    """Accelerate's own `comm_hook` is a list of PyTorch's hooks; a prepared model takes any."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    options = DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=1)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[options])
    model = accelerator.prepare(deep_model())
    state = hooked(model)
    for step in STEPS:
        accelerator.backward(loss_of(model, batch(accelerator.process_index, step)))
        descend(model)
    return accelerator.unwrap_model(model), state


def lightning() -> tuple[nn.Module, CompressionState]:
    """By the arguments of DDPStrategy, which it heeds on CUDA alone: on a CPU it needs a word more."""
    from lightning.pytorch.overrides.distributed import _register_ddp_comm_hook
    from lightning.pytorch.strategies import DDPStrategy

    class Strategy(DDPStrategy):
        def _register_ddp_hooks(self) -> None:
            model, comm_state, hook = self.model, self._ddp_comm_state, self._ddp_comm_hook
            _register_ddp_comm_hook(model, ddp_comm_state=comm_state, ddp_comm_hook=hook)

    module = lightning_module()
    state = CompressionState(CODEC, module)
    strategy = Strategy(
        process_group_backend="gloo", ddp_comm_state=state, ddp_comm_hook=compression_hook
    )
    fit(module, strategy)
    return module, state


def lightning_callback() -> tuple[nn.Module, CompressionState]:
    """By a callback, on every device."""
    from lightning import Callback
    from lightning.pytorch.strategies import DDPStrategy

    class Compression(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.state = hooked(trainer.strategy.model)

    module, callback = lightning_module(), Compression()
    fit(module, DDPStrategy(process_group_backend="gloo"), callback)
    return module, callback.state


def lightning_module() -> Any:
    from lightning import LightningModule

    class Descent(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            closure()
            descend(module)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = deep_model()

        def training_step(self, x: torch.Tensor) -> torch.Tensor:
            return loss_of(self.network, x)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return Descent(self.parameters(), {})

    module = Module()
    return module


def fit(module: Any, strategy: Any, *callbacks: Any) -> None:
    from lightning import Trainer

    class Batches(torch.utils.data.IterableDataset[torch.Tensor]):
        def __iter__(self) -> Iterator[torch.Tensor]:
            return (batch(dist.get_rank(), step) for step in STEPS)

    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        callbacks=list(callbacks),
        max_epochs=1,
        **dict.fromkeys(silent, False),
    )
    trainer.fit(module, torch.utils.data.DataLoader(Batches(), batch_size=None))


FRAMEWORKS = {
    function.__name__: function
    for function in (torchrun, accelerate, lightning, lightning_callback)
}


def main(framework: str, folder: str) -> None:
    torch.set_num_threads(1)
    model, state = FRAMEWORKS[framework]()
    result = {"weights": weights(model), "stats": state.stats(), "residuals": residuals_of(state)}
    torch.save(result, Path(folder, f"{dist.get_rank()}.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
