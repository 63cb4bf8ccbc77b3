"""Laws of the DDP hook. Two real workers over gloo run every scenario of ddp_scenarios.py once."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import ddp_scenarios as scenarios  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import multiprocessing  # noqa: E402

import tersegrad as tg  # noqa: E402
from tersegrad.ddp import CompressionState, average_states, compression_hook  # noqa: E402
from tersegrad.ddp_message import own_noise  # noqa: E402

DEADLINE_SECONDS = 240
Results = Callable[[str], list[Any]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """Start the two workers. Gives a function from a scenario's name to its result on each rank."""
    folder = tmp_path_factory.mktemp("ddp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        context = multiprocessing.spawn(
            scenarios.work,
            (str(folder), tuple(scenarios.SCENARIOS)),
            nprocs=scenarios.WORLD_SIZE,
            join=False,
        )
    deadline = time.monotonic() + DEADLINE_SECONDS

    def result(name: str) -> list[Any]:
        paths = [folder / f"{name}.{rank}.pt" for rank in range(scenarios.WORLD_SIZE)]
        while not all(path.exists() for path in paths):
            alive = all(process.is_alive() for process in context.processes)
            if time.monotonic() > deadline or not (alive or all(p.exists() for p in paths)):
                codes = [process.exitcode for process in context.processes]
                pytest.fail(f"the workers never finished {name}; exit codes {codes}")
            time.sleep(0.02)
        values = []
        for rank, path in enumerate(paths):
            outcome = torch.load(path, weights_only=False)
            if "error" in outcome:
                pytest.fail(f"rank {rank} in scenario {name}:\n{outcome['error']}")
            values.append(outcome["value"])
        return values

    yield result
    for process in context.processes:
        process.join(timeout=5)
        if process.is_alive():
            process.terminate()
            process.join()


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Equal to the bit."""
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


def assert_replicas_follow_the_simulation(results: list[Any]) -> None:
    first, second = results
    assert same(first["weights"], second["weights"])
    assert same(first["weights"], first["simulated"])


# --- One bucket, one message. ---


def test_replicas_stay_identical_and_equal_a_simulation_with_compress(run: Results) -> None:
    assert_replicas_follow_the_simulation(run("sixteen_buckets"))


def test_each_bucket_is_one_uint8_collective_and_none_is_issued_from_a_callback(
    run: Results,
) -> None:
    for result in run("sixteen_buckets"):
        messages = [call for call in result["calls"] if call["dtype"] == torch.uint8]
        buckets_by_step = [1, 16, 16, 16, 16]
        assert len(messages) == sum(buckets_by_step) == result["stats"]["buckets"]
        assert all(call["gather"] for call in result["calls"])
        assert all(call["main"] for call in result["calls"])
        agreements = [call for call in result["calls"] if call["dtype"] != torch.uint8]
        assert len(agreements) == 17  # one for each new layout, none in a settled step
        assert result["calls"][-16:] == messages[-16:]


def test_the_size_of_a_message_is_arithmetic(run: Results) -> None:
    weight_bytes = scenarios.CODEC.body_size(48 * 48)
    bias_bytes = tg.Identity().body_size(48)
    for result in run("sixteen_buckets"):
        sizes = [call["bytes"] for call in result["calls"] if call["dtype"] == torch.uint8]
        assert sizes[0] == 16 + 32 + 16 * (weight_bytes + bias_bytes)
        assert sizes[1:] == [16 + 2 + weight_bytes + bias_bytes] * 64


def test_the_counters_hold_every_byte_handed_to_a_collective(run: Results) -> None:
    for result in run("sixteen_buckets"):
        stats = result["stats"]
        assert stats["sent_bytes"] == sum(call["bytes"] for call in result["calls"])
        assert stats["dense_bytes"] == 5 * 4 * 16 * (48 * 48 + 48)
        assert stats["ratio"] == stats["dense_bytes"] / stats["sent_bytes"]
        assert stats["steps"] == 5
        assert stats["sent_bytes_per_step"] == stats["sent_bytes"] / 5
        assert stats["compress_seconds"] > 0
        assert stats["decompress_seconds"] > 0


def test_every_codec_keeps_replicas_identical_with_and_without_error_feedback(run: Results) -> None:
    first, second = run("every_codec")
    assert len(first) == 22
    for name in first:
        assert same(first[name]["weights"], second[name]["weights"]), name
        assert same(first[name]["weights"], first[name]["simulated"]), name


def test_a_codec_from_outside_of_the_package_works(run: Results) -> None:
    first, _ = run("every_codec")
    assert any(name.startswith("Halve") for name in first)


def test_the_hook_averages_once_as_plain_ddp_does(run: Results) -> None:
    for result in run("lossless"):
        assert same(result["weights"], result["plain"])


def test_half_precision_is_summed_in_float32_and_has_float32_residuals(run: Results) -> None:
    first, second = run("half_precision")
    for name in ("torch.float16", "torch.bfloat16"):
        assert same(first[name]["weights"], second[name]["weights"])
        assert same(first[name]["weights"], first[name]["simulated"])
        assert all(r.dtype == torch.float32 for r in first[name]["residuals"].values())
        assert str(first[name]["weights"][0].dtype) == name


def test_warmup_steps_are_those_of_plain_ddp_and_counted_as_dense(run: Results) -> None:
    first, second = run("warmup")
    assert same(first["weights"], first["plain"])
    assert same(first["weights after"], second["weights after"])
    agreement = 32
    assert first["warm"]["sent_bytes"] == first["warm"]["dense_bytes"] + agreement
    assert first["after"]["ratio"] > 5
    assert first["after"]["steps"] == 2


def test_stochastic_rounding_differs_between_ranks_and_masks_do_not() -> None:
    noisy = tg.Quantize(bits=4, rounding="stochastic", seed=9)
    assert own_noise(noisy, 0) == noisy
    assert own_noise(noisy, 1).seed != own_noise(noisy, 2).seed != noisy.seed
    masked = own_noise(tg.RandomK(density=0.1, seed=3, values=noisy), 1)
    assert masked.seed == 3
    assert masked.values.seed != noisy.seed
    assert own_noise(tg.Quantize(bits=4, seed=9), 1) == tg.Quantize(bits=4, seed=9)


def test_a_callback_holds_no_process_group(run: Results) -> None:
    """A group whose last reference goes in one of its own threads joins itself and aborts."""
    for names in run("callback_references")[0]:
        assert names == ["BucketMessage", "Counters", "NoneType", "Tensor", "int"]


# --- Buckets change, residuals stay. ---


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
        assert len(result["scratch"]) == 16
        assert len(set(result["scratch"])) == 1


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
    assert second["before"]["step"] == 2
    assert second["after"]["step"] == first["after"]["step"] == 5
    for name, residual in second["before"]["residuals"].items():
        assert residual.any()
        assert torch.equal(residual, second["after"]["residuals"][name])
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


# --- Registration. ---


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


def test_arguments_are_checked_where_they_are_given() -> None:
    with pytest.raises(tg.StateError, match="codec must be a codec"):
        CompressionState("topk")
    with pytest.raises(tg.StateError, match="-1"):
        CompressionState(tg.Sign(), warmup_steps=-1)


def test_importing_tersegrad_does_not_import_torch() -> None:
    code = "import sys, tersegrad; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ))


# --- Numbers that are not finite, ranks that differ. ---


def test_a_non_finite_gradient_is_nan_on_every_rank_and_nothing_hangs(run: Results) -> None:
    for result in run("not_finite"):
        good, infinity, nan, last = result["notes"]
        assert good["nan"] == last["nan"] == []
        assert infinity["nan"] == ["4.weight"]
        assert nan["nan"] == ["6.bias"]
        for note in result["notes"]:
            assert sorted(note["nan"] + note["finite"]) == sorted(result["names"])
    first, second = run("not_finite")
    assert same(first["weights"], second["weights"])


def test_a_non_finite_gradient_leaves_the_residual_of_its_rank(run: Results) -> None:
    first, second = run("not_finite")
    assert [note["kept"] for note in second["notes"]] == [[], ["4.weight"], [], []]
    assert [note["kept"] for note in first["notes"]] == [[], [], [], []]


def test_non_finite_gradients_are_counted(run: Results) -> None:
    first, second = run("not_finite")
    assert [note["stats"]["skipped"] for note in first["notes"]] == [0, 0, 0, 0]
    assert [note["stats"]["skipped"] for note in second["notes"]] == [0, 1, 2, 2]
    for result in (first, second):
        assert [note["stats"]["nonfinite"] for note in result["notes"]] == [0, 1, 2, 2]


def test_a_gradient_scaler_skips_the_step_on_every_rank_and_residuals_are_rescaled(
    run: Results,
) -> None:
    first, second = run("loss_scaling")
    assert [value for kind, value in first["notes"] if kind == "moved"] == [True, False, True]
    rescaled = [value for kind, value in first["notes"] if kind == "rescaled"]
    assert rescaled == pytest.approx([0.5])
    assert first["scale"] == second["scale"] == 512
    assert same(first["weights"], second["weights"])


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("codec", "the codec"),
        ("min_size", "min_size, warmup_steps or error_feedback"),
        ("warmup", "min_size, warmup_steps or error_feedback"),
        ("step", "the step"),
        ("later", "step 3"),
    ],
)
def test_ranks_that_disagree_all_get_an_error(run: Results, name: str, subject: str) -> None:
    for messages in run("disagreeing_ranks"):
        assert subject in messages[name]


def test_a_codec_that_fails_on_one_rank_stops_every_rank(run: Results) -> None:
    first, second = run("failing_codec")
    assert "rank 1 could not compress" in first
    assert "ArithmeticError: the codec is broken" in second


def test_gradients_of_other_kinds_are_refused_by_name(run: Results) -> None:
    for messages in run("refused_gradients"):
        assert "torch.float64" in messages["float64"]
        assert "sparse" in messages["sparse"]


# --- Checkpoints and copies. ---


@pytest.mark.parametrize("name", ["top-k", "stochastic"])
def test_training_resumes_to_the_bit(run: Results, name: str) -> None:
    for rank, result in enumerate(run("resume")):
        assert same(result[name]["straight"], result[name]["resumed"])
        hook = result[name]["hook"]
        assert (hook["step"], hook["rank"], hook["world_size"]) == (3, rank, 2)


def test_a_checkpoint_names_parameters_as_the_bare_model_does(run: Results) -> None:
    hook = run("resume")[0]["top-k"]["hook"]
    assert list(hook["residuals"]) == [f"{2 * layer}.weight" for layer in range(16)]
    assert all(residual.any() for residual in hook["residuals"].values())


def test_a_channels_last_weight_resumes_to_the_bit(run: Results) -> None:
    for result in run("channels_last"):
        assert result["strides"] == [(144, 1, 48, 16)]
        assert result["shape"] == (16, 16, 3, 3)
        assert same(result["straight"], result["resumed"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unbound", "state.bind(model)"),
        ("names", "head.weight"),
        ("shape", "0.weight has shape (48, 48), its residual has shape (2, 2)"),
        ("rank", "every rank loads the state it saved"),
        ("version", "version 1"),
        ("not a state", "residuals"),
        ("another model", "2.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(run: Results, name: str, words: str) -> None:
    for result in run("checkpoint_errors"):
        assert words in result["messages"][name]
        assert result["unchanged"]


def test_the_average_of_all_states_serves_any_rank(run: Results) -> None:
    first, second = run("checkpoint_errors")
    for name, average in first["average"].items():
        mean = torch.stack([first["mine"][name], second["mine"][name]]).mean(dim=0)
        assert torch.equal(average, mean)
        assert torch.equal(average, second["average"][name])


def test_an_average_needs_the_states_of_all_ranks() -> None:
    state = {"version": 1, "step": 0, "skipped": 0, "rank": 0, "world_size": 2, "residuals": {}}
    with pytest.raises(tg.StateError, match="every rank"):
        average_states([state])
    with pytest.raises(tg.StateError, match="every rank"):
        average_states([])
    with pytest.raises(tg.StateError, match="steps"):
        average_states([state, {**state, "rank": 1, "step": 3}])


def test_a_copied_or_pickled_model_takes_its_residuals_with_it(run: Results) -> None:
    for result in run("copies"):
        assert same(result["original"], result["deepcopy"])
        assert same(result["original"], result["pickle"])


def test_a_copy_that_lost_its_process_group_says_so(run: Results) -> None:
    for result in run("copies"):
        assert "state.process_group" in result["no group"]


def test_every_scenario_has_a_test() -> None:
    """The scenarios all have a test: a new one is not forgotten."""
    source = Path(__file__).read_text()
    assert [name for name in scenarios.SCENARIOS if f'"{name}"' not in source] == []
