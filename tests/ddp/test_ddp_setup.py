"""Laws of the DDP hook: buckets change, residuals stay; how DDP may be set up."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ddp_workers import CODEC, Results, assert_replicas_follow_the_simulation, same

import tersegrad as tg
from tersegrad.ddp import CompressionState, compression_hook


def bucket_counts(result: dict[str, Any]) -> list[int]:
    steps = [bucket["step"] for bucket in result["buckets"]]
    return [steps.count(step) for step in range(4)]


def test_residuals_survive_the_rebuild_of_the_fused_first_bucket(run: Results) -> None:
    results = run("rebuilt_buckets")
    assert_replicas_follow_the_simulation(results)
    fused, second = results[0]["buckets"][:2]
    assert fused["last"]
    assert fused["index"] == second["index"] == 0
    assert len(fused["shapes"]) == 32  # the whole model, in forward order
    assert bucket_counts(results[0]) == [1, 16, 16, 16]


def test_the_scratch_of_the_fused_first_bucket_is_given_back(run: Results) -> None:
    for result in run("rebuilt_buckets"):
        message = 16 + 2 + CODEC.body_size(48 * 48) + tg.Identity().body_size(48)
        assert result["scratch"] == 16 * 3 * message  # its own, and those of both ranks


def test_a_static_graph_rebuilds_a_step_later_and_loses_nothing(run: Results) -> None:
    results = run("static_graph")
    assert_replicas_follow_the_simulation(results)
    counts = bucket_counts(results[0])
    assert counts[-1] == 16
    assert counts.index(16) > 1


def test_find_unused_parameters_never_rebuilds_and_works(run: Results) -> None:
    results = run("find_unused_parameters")
    assert_replicas_follow_the_simulation(results)
    assert len(set(bucket_counts(results[0]))) == 1


def test_gradients_may_be_views_of_the_bucket(run: Results) -> None:
    assert_replicas_follow_the_simulation(run("gradient_as_bucket_view"))


def test_steps_are_counted_at_the_last_bucket(run: Results) -> None:
    for name in ("rebuilt_buckets", "static_graph", "find_unused_parameters"):
        for bucket in run(name)[0]["buckets"]:
            later = [b for b in run(name)[0]["buckets"] if b["step"] == bucket["step"]]
            assert bucket["last"] == (bucket["index"] == max(b["index"] for b in later))


def test_an_unused_parameter_keeps_its_residual(run: Results) -> None:
    first, second = run("unused_layers")
    assert same(first["weights"], second["weights"])
    for rank, result in enumerate((first, second)):
        before, at_step_1, _ = result["residuals"]
        unused = ["layers.2.weight"] + (["layers.1.weight"] if rank == 1 else [])
        for name, residual in before.items():
            assert residual.any()
            assert torch.equal(residual, at_step_1[name]) == (name in unused)


def test_accumulation_under_no_sync_is_sent_once(run: Results) -> None:
    first, second = run("accumulation")
    assert first["calls"] == 0
    assert same(first["gradients"], first["expected"])
    assert same(first["gradients"], second["gradients"])


def test_a_rank_that_joins_early_keeps_its_residual(run: Results) -> None:
    first, second = run("uneven_inputs")
    assert second["before"][0] == 2
    assert second["after"][0] == first["after"][0] == 5
    for name, residual in second["before"][1].items():
        assert residual.any()
        assert torch.equal(residual, second["after"][1][name])
    assert same(first["weights"], second["weights"])


def test_a_wrapper_hook_may_replace_the_buffer(run: Results) -> None:
    first, second = run("wrapped_hook")
    assert same(first["weights"], second["weights"])
    assert not same(first["weights"], first["start"])
    assert first["stats"]["dense_bytes"] == 3 * 2 * 16 * (48 * 48 + 48)


def test_the_composable_replicate_takes_the_hook(run: Results) -> None:
    results = run("replicated")
    assert_replicas_follow_the_simulation(results)
    assert results[0]["names"] == [f"{2 * layer}.weight" for layer in range(16)]


def test_a_compiled_model_keeps_its_plain_names(run: Results) -> None:
    results = run("compiled_model")
    assert_replicas_follow_the_simulation(results)
    assert results[0]["names"] == [f"{2 * layer}.weight" for layer in range(16)]


def test_residuals_survive_another_process_group(run: Results) -> None:
    results = run("another_group")
    assert results[0]["groups"] == [True]
    assert_replicas_follow_the_simulation(results)


def test_a_channels_last_weight_resumes_to_the_bit(run: Results) -> None:
    for result in run("channels_last"):
        assert result["strides"] == [(144, 1, 48, 16)]
        assert result["shape"] == (16, 16, 3, 3)
        assert same(result["straight"], result["resumed"])


def test_the_hook_is_a_plain_function_whose_annotations_are_the_objects_torch_compares() -> None:
    assert inspect.isfunction(compression_hook)
    signature = inspect.signature(compression_hook)
    assert list(signature.parameters) == ["state", "bucket"]
    assert signature.parameters["bucket"].annotation is dist.GradBucket
    assert signature.return_annotation == torch.futures.Future[torch.Tensor]
    assert compression_hook.__name__ not in ("bf16_compress_hook", "bf16_compress_wrapper_hook")


def test_a_second_hook_is_refused_by_torch_and_the_first_goes_on(run: Results) -> None:
    results = run("one_hook_only")
    assert "only be called once" in results[0]["second"]
    assert "only be called once" in results[0]["mixed precision"]  # its own hook came first
    assert_replicas_follow_the_simulation(results)


def test_a_state_that_is_none_of_ours_is_an_error_and_never_a_none() -> None:
    with pytest.raises(tg.StateError, match="needs a CompressionState, not NoneType"):
        compression_hook(None, None)


def test_the_tuple_of_the_python_reducer_is_refused_with_the_way_out() -> None:
    weight = torch.zeros(4, 4)
    with pytest.raises(tg.StateError, match="ddp_optimizer"):
        compression_hook(CompressionState(tg.Sign()), (weight, weight))


def test_importing_tersegrad_does_not_import_torch() -> None:
    code = "import sys, tersegrad; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ))


def test_a_state_goes_on_in_another_default_group(run: Results) -> None:
    results = run("another_default_group")
    assert "init_process_group" in results[0]["lost"]
    assert_replicas_follow_the_simulation(results)
