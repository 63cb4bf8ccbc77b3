"""Laws of tensors that collectives hold: they have the memory alone in common, and are waited for."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest
import torch

from tersegrad import in_flight
from tersegrad.ddp import groups


class Holder:
    """In the place of a gloo backend: keeps what it is handed."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def collective(self, *arguments: Any) -> None:
        for argument in arguments:
            tensors = argument if isinstance(argument, list) else [argument]
            self.kept += [each for each in tensors if isinstance(each, torch.Tensor)]

    allreduce = _allgather_base = alltoall_base = broadcast = collective


@pytest.mark.parametrize(
    "collective",
    [
        lambda holder, a, b: groups.all_reduce(holder, a),
        lambda holder, a, b: groups.all_gather(holder, a, b),
        lambda holder, a, b: groups.all_to_all(holder, a, b, [2], [2]),
        lambda holder, a, b: groups.broadcast(holder, a),
    ],
)
def test_a_collective_holds_tensors_that_nobody_else_does(collective: Any) -> None:
    assert in_flight.wait()
    holder, own = Holder(), (torch.zeros(2), torch.ones(2))
    collective(holder, *own)
    assert in_flight.held() == len(holder.kept) > 0
    pairs = list(zip(holder.kept, own, strict=False))
    assert all(lent is not tensor for lent, tensor in pairs)
    assert all(lent.data_ptr() == tensor.data_ptr() for lent, tensor in pairs)
    pairs.clear()
    assert not in_flight.wait(0.01)  # for someone who never lets go, not for ever
    holder.kept.clear()
    assert in_flight.held() == 0
    assert in_flight.wait(0.0)


def test_what_torch_alone_holds_counts() -> None:
    """A tensor lives on when Python lets go of it and C++ does not."""
    assert in_flight.wait()
    product = torch.ones(2, requires_grad=True) * in_flight.lend(torch.ones(2))  # saves its factors
    gc.collect()
    assert in_flight.held() == 1
    del product
    assert in_flight.held() == 0


def test_the_end_of_a_program_waits_until_a_collective_has_let_go() -> None:
    code = """
import atexit, threading, time, torch
atexit.register(lambda: print("held at the end:", in_flight.held()))  # runs after what tersegrad does
from tersegrad import in_flight
import tersegrad.ddp
tensor = torch.zeros(3)
def hold(lent):
    time.sleep(0.4)
threading.Thread(target=hold, args=[in_flight.lend(tensor)], daemon=True).start()
assert in_flight.held() == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().strip() == "held at the end: 0"
