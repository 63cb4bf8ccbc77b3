"""Laws of the DDP hook with gradients on a device: it is the hook on the host, to the bit, and waits for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import on_cuda
from ddp_workers import Results, same, same_tensors
from devices import CUDA


def test_weights_and_memory_are_those_of_the_hook_on_the_host(run: Results) -> None:
    first, second = run("device_equals_host")
    assert len(first) == 13
    for name, pair in first.items():
        host, device = pair["host"], pair["device"]
        assert (host["engine"], device["engine"]) == ("Host", "OnDevice")
        assert same(device["weights"], host["weights"]), name
        assert same(device["weights"], second[name]["device"]["weights"]), name
        assert same_tensors(device["memory"], host["memory"]), name
        assert device["nonfinite"] == device["skipped"] == 0, name


def test_a_bad_step_is_undone_and_a_zero_gradient_sends_nothing_there_too(run: Results) -> None:
    for result in run("device_rolls_back"):
        assert len(result) == 4
        for name, pair in result.items():
            host, device = pair["host"], pair["device"]
            assert device["lost"] == host["lost"], name
            assert sum(map(sum, host["lost"])) == 1
            assert (host["skipped"], host["nonfinite"]) == (1, 1)
            assert (device["skipped"], device["nonfinite"]) == (1, 1)
            assert same_tensors(device["memory"], host["memory"]), name
            assert same(device["weights"], host["weights"]), name


def test_a_checkpoint_moves_between_host_and_device(run: Results) -> None:
    for result in run("device_resumes"):
        straight = result["straight"]
        for resumed in result["resumed"]:
            assert same_tensors(resumed["model"], straight["model"])
            (own,) = straight["state"]["ranks"].values()
            (again,) = resumed["state"]["ranks"].values()
            assert same_tensors(again["residuals"], own["residuals"])


def test_what_does_not_fit_is_nan_at_once_and_an_error_when_the_host_asks(run: Results) -> None:
    for result in run("device_failures"):
        assert ".cpu()" in result["no form"]
        assert result["nan"] is True
        assert "another layout or step" in result["wrong"]


def assert_same_results(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["skipped"] == expected["skipped"] == 1
    assert len(got["means"]) == len(expected["means"]) == 12
    for mean, other in zip(got["means"], expected["means"], strict=True):
        assert torch.equal(mean.isnan(), other.isnan())
        assert torch.equal(mean.nan_to_num(), other.nan_to_num())
    assert same_tensors(got["memory"], expected["memory"])


@pytest.mark.parametrize("exchange", ["all_gather", "two_step"])
def test_buckets_by_hand_give_the_same_means_there(run: Results, exchange: str) -> None:
    for result in run("buckets_by_hand"):
        assert_same_results(result[exchange]["device"], result[exchange]["host"])


@pytest.mark.cuda
@CUDA.marks[1]
@pytest.mark.parametrize("exchange", ["all_gather", "two_step"])
def test_two_processes_on_one_gpu_give_the_means_of_the_host(
    run: Results, exchange: str, tmp_path: Path
) -> None:
    """Through gloo, which takes CUDA tensors by way of the host."""
    expected = [result[exchange]["host"] for result in run("buckets_by_hand")]
    for got, host in zip(on_cuda(tmp_path, "gloo", 2, exchange), expected, strict=True):
        assert_same_results(got, host)


@pytest.mark.cuda
@CUDA.marks[1]
@pytest.mark.parametrize("exchange", ["all_gather", "two_step"])
def test_one_rank_of_nccl_waits_for_nothing(exchange: str, tmp_path: Path) -> None:
    """torch raises in the last step if anything waits."""
    (result,) = on_cuda(tmp_path, "nccl", 1, exchange)
    assert result["skipped"] == 1
    assert bool(result["means"][-1].isfinite().all())
