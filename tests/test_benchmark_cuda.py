"""The logic of benchmarks/cuda.py at tiny sizes: on the emulation, and without any device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import EMULATION
from torch.utils._python_dispatch import TorchDispatchMode

from tersegrad.device import serving

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("rich")
    monkeypatch.syspath_prepend(str(FOLDER))
    import cuda_table

    yield cuda_table
    for name in ("cuda_table", "cuda_clock", "cuda_rows", "cuda_peers", "cuda_hook", "report"):
        sys.modules.pop(name, None)


def test_every_row_of_ours_runs_and_every_bar_is_judged(bench: Any, tmp_path: Path) -> None:
    from cuda_clock import Setting

    sizes = (4096, 8192)
    with serving("cpu", EMULATION):
        setting = Setting(torch.device("cpu"), 1000)
        rows, bars = bench.measure_all(setting, sizes, 2, 2, 6400)
    missing = [row["row"] for row in rows if "milliseconds" not in row]
    assert all(name.startswith(("cub::", "bitsandbytes")) for name in missing)
    assert len(rows) == len({row["row"] for row in rows})
    unknown = [bar["bar"] for bar in bars if bar["met"] == "-"]
    assert len(bars) == 30
    assert all("cub::" in name for name in unknown)
    bench.save(tmp_path / "cuda", bench.about(setting), rows, bars)
    assert json.loads((tmp_path / "cuda.json").read_text())["bars"] == bars


def test_without_a_device_the_table_has_dashes_and_no_number(bench: Any, tmp_path: Path) -> None:
    rows, bars = bench.measure_all(None, bench.SIZES, 2, 2, 6400)
    assert {bar["measured"] for bar in bars} == {bench.NOT_RUN}
    bench.save(tmp_path / "cuda", bench.about(None), rows, bars)
    text = (tmp_path / "cuda.md").read_text()
    assert text.count(f"| - | - | - | {bench.NOT_RUN} |") == len(rows)


def test_a_bar_is_met_on_its_side_of_the_limit(bench: Any) -> None:
    from cuda_clock import Row, Times

    row = Row("a", 10, 40, lambda setting: lambda number: None)
    fast, slow = Times(row, [1.0, 1.0]), Times(row, [2.0, 4.0])
    found = {"fast": fast, "slow": slow}
    assert bench.over("slow", "fast")(found) == 3
    assert bench.share("slow", "fast")(found) == pytest.approx(1 / 3)
    assert bench.judged(bench.Bar("x", 1, 3, bench.over("slow", "fast")), found)["met"] == "yes"
    assert bench.judged(bench.Bar("x", 1, 2, bench.over("slow", "fast")), found)["met"] == "NO"
    assert (
        bench.judged(bench.Bar("x", 1, 4, bench.over("slow", "fast"), True), found)["met"] == "NO"
    )


class Operations(TorchDispatchMode):
    """Counts what torch does but for views and memory: on a device each is a kernel or a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if not function.is_view and name not in ("empty", "unbind", "detach"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_a_step_of_the_hook_enqueues_little(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches and torch's operations are most of the 150 microseconds that a bucket of 25 MB may take."""
    from cuda_hook import CODEC, Bucket, one_rank

    from tersegrad.ddp import CompressionState, compression_hook
    from tersegrad.ddp.groups import Groups

    monkeypatch.setattr(Groups, "has_gloo", lambda self, device: False)  # stays in this thread
    device = torch.device("cpu")
    with serving("cpu", EMULATION), one_rank(device):
        bucket = Bucket(64 * 1000, device)
        state = CompressionState(CODEC, torch.nn.ParameterList([bucket.parameter]))
        for _ in range(3):
            begin = EMULATION.launches()
            with Operations() as operations:
                compression_hook(state, bucket).wait()
    cells = state._reducer.layouts[0].engine._cells
    assert int(cells["last keys of marks"].all) > 2**19  # the next top-k begins with it
    # Whether the gradient is zero; nine of the encoder; head, verdict, three of the sum; the note, the undoing, the step's end.
    assert EMULATION.launches() - begin == 18
    # The flag of the first, the residual aside, the counts for the host.
    assert sorted(operations.names) == ["_allgather_base_", "copy_", "copy_", "fill_"]
