"""The two exchanges of one FSDP2 module: the reduce-scatter of its group, and that of replicas.

FSDP2 hands over a flat tensor with one row per rank. A row holds, for each parameter that has a
gradient, the entries that this rank keeps, padded to the same length on every rank:

    two ranks, weight (3, 4) and bias (3)
    row 0   weight[0] weight[1]   bias[0] bias[1]
    row 1   weight[2] padding     bias[2] padding

Padding does not travel. What is the same for both exchanges is in `Exchange`: the residuals by
parameter, the layouts, and the rule that a parameter that is not finite anywhere in the group
becomes NaN everywhere and changes no residual.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from .codec import Codec
from .codecs import Identity
from .device import of
from .device.backend import ALIGNMENT
from .errors import BackendError, InputError, StateError
from .exchange import (
    DTYPES,
    Layout,
    Selection,
    add_all,
    agree,
    all_gather,
    checksum_of,
    judge,
    write,
)
from .in_flight import lend

COUNTED = (
    *("reductions", "uncompressed", "sent_bytes", "dense_bytes", "nonfinite"),
    *("compress_seconds", "decompress_seconds"),
)


@dataclass(frozen=True)
class ShardedParameter:
    """A parameter's place in the rows."""

    name: str
    codec: Codec
    start: int  # in every row
    counts: tuple[int, ...]  # entries that each rank keeps, padding not counted

    @property
    def exact(self) -> bool:
        return isinstance(self.codec, Identity)

    def place(self, row: torch.Tensor, rank: int) -> torch.Tensor:
        return row[self.start : self.start + self.counts[rank]]

    def share(self, residual: torch.Tensor | None, rank: int) -> torch.Tensor | None:
        """What belongs to one rank in the residual of all entries."""
        begin = sum(self.counts[:rank])
        return None if residual is None else residual[begin : begin + self.counts[rank]]


class Exchange:
    """What both exchanges of a module share.

    Parameters
    ----------
    label : str
        The module's name.
    param_group : FSDPParamGroup
        Of the module; its order of parameters is that of the rows.
    names : dict
        Names by the id of torch's FSDPParam.
    """

    def __init__(
        self,
        label: str,
        param_group: Any,
        names: dict[int, str],
        selection: Selection,
        error_feedback: bool,
    ) -> None:
        self.label = label
        self.step = 0
        self.residuals: dict[str, torch.Tensor] = {}
        self.error_feedback = error_feedback
        self.counters: dict[str, float] = dict.fromkeys(COUNTED, 0)
        self.ledger: torch.Tensor | None = None  # what is only known on a device
        self._selection = selection
        self._param_group = param_group
        self._names = names
        self._layouts: dict[Any, list[Layout]] = {}

    def parameters(self) -> tuple[list[ShardedParameter], int]:
        """The parameters that are trained now, and the length of a row if all have gradients."""
        world_size = self._param_group.mesh_info.shard_mesh_size
        found, start = [], 0
        for parameter in self._param_group.fsdp_params:
            if not parameter.sharded_param.requires_grad:
                continue
            shape, dim = parameter._orig_size, parameter.fsdp_placement.dim
            name, n = self._names[id(parameter)], shape.numel()
            rows = shape[dim]
            longest = -(-rows // world_size)  # as torch.chunk cuts
            kept = (max(0, min(longest, rows - rank * longest)) for rank in range(world_size))
            counts = tuple(count * (n // rows if rows else 0) for count in kept)
            codec = self._selection.of(name, shape, n)
            found.append(ShardedParameter(name, codec, start, counts))
            start += counts[0]
        return found, start

    def kept(self) -> dict[str, int]:
        """The parameters that have a residual, and its entries."""
        if not self.error_feedback:
            return {}
        return {p.name: self._residual_size(p) for p in self.parameters()[0] if not p.exact}

    def _residual_size(self, parameter: ShardedParameter) -> int:
        raise NotImplementedError

    def _layouts_of(
        self,
        parameters: Sequence[ShardedParameter],
        shard_ranks: Sequence[int],
        like: torch.Tensor,
        group: dist.ProcessGroup,
    ) -> list[Layout]:
        """One for each of `shard_ranks`; new ones are compared within the group."""
        dtype, rank = DTYPES.get(like.dtype), dist.get_rank(group)
        if dtype is None:
            raise InputError(
                f"{self.label}: gradients are reduced as {like.dtype}; set reduce_dtype of "
                "MixedPrecisionPolicy to float32, bfloat16 or float16"
            )
        key = (like.dtype, rank, dist.get_world_size(group), *parameters)
        if key not in self._layouts:
            backend = of(like)
            if backend is not None:
                for parameter in parameters:
                    backend.check(parameter.codec)
            alignment = 1 if backend is None else ALIGNMENT
            layouts = [
                Layout(
                    [(p.name, p.codec, p.counts[shard]) for p in parameters], dtype, rank, alignment
                )
                for shard in shard_ranks
            ]
            facts = {
                "codec, rules or min_size": self._selection.checksum(),
                "error_feedback": int(self.error_feedback),
                "step": self.step,
                "model": checksum_of([layout.checksum for layout in layouts]),
            }
            if differing := agree(group, like.device, facts):
                raise StateError(
                    f"the ranks differ in {', '.join(differing)} at module {self.label!r}: call "
                    "compress alike on every rank, and load the checkpoint of the same step"
                )
            self._layouts[key] = layouts
        return self._layouts[key]

    def _fresh_residuals(
        self, parameters: Sequence[ShardedParameter], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Copies to encode with: the old ones stay until all ranks have turned out to be finite."""
        if not self.error_feedback:
            return {}
        fresh = {}
        for parameter in parameters:
            if parameter.exact:
                continue
            old = self.residuals.get(parameter.name)
            if old is None:
                size = self._residual_size(parameter)
                fresh[parameter.name] = torch.zeros(size, dtype=torch.float32, device=device)
            else:
                fresh[parameter.name] = old.to(device, copy=True)
        return fresh

    def _sum(
        self,
        parameters: Sequence[ShardedParameter],
        layout: Layout,
        messages: torch.Tensor,
        fresh: dict[str, torch.Tensor],
        failure: str | None,
        output: torch.Tensor,
        shard_rank: int,
        factor: float,
        divisor: int,
    ) -> None:
        """Overwrite `output` with the sum of all messages, in rank order, in float32."""
        begin = time.perf_counter()
        verdict = judge(layout, messages, self.step, failure)
        total = torch.zeros_like(output, dtype=torch.float32)
        for index, (parameter, part) in enumerate(zip(parameters, layout.parts, strict=True)):
            place = parameter.place(total, shard_rank)
            verdict.begin(index, place)
            if not verdict.skips(index):
                add_all(messages, part, place, DTYPES[output.dtype], self.step, factor)
            verdict.settle(index, parameter.name, self.residuals, fresh)
        self.ledger = verdict.close(self.counters, self.ledger)
        output.copy_(total.div_(divisor))
        self.residuals.update(fresh)
        self.step += 1
        self.counters["decompress_seconds"] += time.perf_counter() - begin

    def _count(self, dense: torch.Tensor, sent_bytes: int, begin: float) -> None:
        self.counters["reductions"] += 1
        self.counters["dense_bytes"] += dense.nbytes
        self.counters["sent_bytes"] += sent_bytes
        self.counters["compress_seconds"] += time.perf_counter() - begin


class CompressedReduceScatter(Exchange):
    """A reduce-scatter for `FSDPModule.set_custom_reduce_scatter`.

    Each rank sends every rank one compressed message, in one all-to-all, and adds what it receives.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.dense = self._param_group._reduce_scatter_comm

    def allocate(
        self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """As torch calls it: by keywords, on the stream in which the result is used."""
        if async_op:
            raise InputError("a compressed reduce-scatter is synchronous: call with async_op=False")
        world_size, rank = dist.get_world_size(group), dist.get_rank(group)
        factor, divisor = scaling(op, world_size)
        begin = time.perf_counter()
        parameters, length = self.parameters()
        if length != output_tensor.numel():
            # Some have no gradient, and torch does not say which.
            self.counters["uncompressed"] += 1
            self._count(input_tensor, input_tensor.nbytes, begin)
            self.dense(output_tensor, input_tensor, group, op)
            return
        layouts = self._layouts_of(parameters, range(world_size), input_tensor, group)
        fresh = self._fresh_residuals(parameters, input_tensor.device)
        rows = input_tensor.view(world_size, -1)
        values = [[p.place(row, to) for p in parameters] for to, row in enumerate(rows)]
        residuals = [
            [p.share(fresh.get(p.name), to) for p in parameters] for to in range(world_size)
        ]
        sizes = [layout.nbytes for layout in layouts]
        own = torch.zeros(sum(sizes), dtype=torch.uint8, device=input_tensor.device)
        failure = write(layouts, torch.split(own, sizes), values, residuals, self.step)
        self._count(input_tensor, own.numel(), begin)
        messages = own.new_empty(world_size * sizes[rank])
        received = [sizes[rank]] * world_size
        dist.all_to_all_single(lend(messages), lend(own), received, sizes, group=group)
        messages = messages.view(world_size, -1)
        self._sum(
            *(parameters, layouts[rank], messages, fresh, failure),
            *(output_tensor, rank, factor, divisor),
        )

    def _residual_size(self, parameter: ShardedParameter) -> int:
        return sum(parameter.counts)


class CompressedReplicas(Exchange):
    """A hook for `FSDPModule.set_all_reduce_hook`: the mean of a shard over its replicas."""

    def __init__(self, *arguments: Any, group: dist.ProcessGroup) -> None:
        super().__init__(*arguments)
        self._group = group

    def __call__(self, reduce_output: torch.Tensor) -> None:
        begin = time.perf_counter()
        parameters, length = self.parameters()
        shard_rank = self._param_group.mesh_info.shard_mesh_rank
        world_size = dist.get_world_size(self._group)
        if length != reduce_output.numel():
            self.counters["uncompressed"] += 1
            self._count(reduce_output, reduce_output.nbytes, begin)
            dist.all_reduce(lend(reduce_output), group=self._group)
            reduce_output.div_(world_size)
            return
        (layout,) = self._layouts_of(parameters, [shard_rank], reduce_output, self._group)
        fresh = self._fresh_residuals(parameters, reduce_output.device)
        own = torch.zeros(layout.nbytes, dtype=torch.uint8, device=reduce_output.device)
        values = [p.place(reduce_output, shard_rank) for p in parameters]
        residuals = [fresh.get(p.name) for p in parameters]
        failure = write([layout], [own], [values], [residuals], self.step)
        self._count(reduce_output, own.numel(), begin)
        messages = all_gather(own, self._group)
        self._sum(
            *(parameters, layout, messages, fresh, failure),
            *(reduce_output, shard_rank, 1.0, world_size),
        )

    def _residual_size(self, parameter: ShardedParameter) -> int:
        shard_rank: int = self._param_group.mesh_info.shard_mesh_rank
        return parameter.counts[shard_rank]


def scaling(op: Any, world_size: int) -> tuple[float, int]:
    """What every summand is multiplied by, and what the sum is divided by."""
    if op == dist.ReduceOp.SUM:
        return 1.0, 1
    if op == dist.ReduceOp.AVG:
        return 1.0, world_size
    if op == dist.ReduceOp.PREMUL_SUM:
        factor = getattr(op, "factor", None)
        if factor is None:
            raise BackendError(
                "this torch does not tell the factor of PREMUL_SUM: use a newer one, or "
                "model.set_force_sum_reduction_for_comms(True)"
            )
        return float(factor), 1
    raise InputError(f"a compressed reduce-scatter can SUM, AVG and PREMUL_SUM, not {op}")
