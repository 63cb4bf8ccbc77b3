"""The DDP hook under the launchers and trainers that people use, each as two real processes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import framework_training  # noqa: E402
from ddp_oracle import simulate  # noqa: E402
from ddp_workers import CODEC, LAYERS, deep_model  # noqa: E402

SCRIPT = Path(framework_training.__file__)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.mark.parametrize("framework", framework_training.FRAMEWORKS)
def test_a_framework_trains_to_the_bits_of_the_simulation(framework: str, tmp_path: Path) -> None:
    package = {"torchrun": "torch"}.get(framework, framework.split("_")[0])
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    launcher = () if package == "lightning" else TORCHRUN  # Lightning launches itself
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": loopback}
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), framework, str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = simulate(deep_model(), CODEC, framework_training.STEPS)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(result["weights"]) == len(expected) == 2 * LAYERS
        assert all(map(torch.equal, result["weights"], expected))
        assert result["stats"]["steps"] == len(framework_training.STEPS)
        assert len(result["residuals"]) == LAYERS
