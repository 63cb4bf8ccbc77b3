"""Laws of the DDP hook: how messages travel, and what the average is."""

from __future__ import annotations

import torch
from ddp_workers import CODEC, Results, assert_replicas_follow_the_simulation, same

import tersegrad as tg
from tersegrad.ddp.layout import own_noise


def test_replicas_stay_identical_and_equal_a_simulation_with_compress(run: Results) -> None:
    assert_replicas_follow_the_simulation(run("sixteen_buckets"))


def test_the_size_of_a_message_is_arithmetic(run: Results) -> None:
    weight_bytes = CODEC.body_size(48 * 48)
    bias_bytes = tg.Identity().body_size(48)
    for result in run("sixteen_buckets"):
        sizes = [call["bytes"] for call in result["calls"] if call["dtype"] == torch.uint8]
        assert sizes[0] == 16 + 32 + 16 * (weight_bytes + bias_bytes)
        assert sizes[1:] == [16 + 2 + weight_bytes + bias_bytes] * 64


def test_the_counters_hold_every_byte_handed_to_a_collective(run: Results) -> None:
    for result in run("sixteen_buckets"):
        stats = result["stats"]
        uint8 = [call for call in result["calls"] if call["dtype"] == torch.uint8]
        agreed = [call for call in result["calls"] if call["dtype"] == torch.int64]
        ours = [call for call in (*uint8, *agreed) if call["name"].startswith("all_gather")]
        assert stats["sent_bytes"] == sum(call["bytes"] for call in ours)
        assert stats["dense_bytes"] == 5 * 4 * 16 * (48 * 48 + 48)
        assert stats["ratio"] == stats["dense_bytes"] / stats["sent_bytes"]
        assert stats["steps"] == 5
        assert stats["sent_bytes_per_step"] == stats["sent_bytes"] / 5
        assert stats["compress_seconds"] > 0
        assert stats["decode_seconds"] > 0
        assert stats["received_bytes"] == sum(c["bytes"] for c in uint8)


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


def test_stochastic_rounding_differs_between_ranks_and_masks_do_not() -> None:
    noisy = tg.Quantize(bits=4, rounding="stochastic", seed=9)
    assert own_noise(noisy, 0) == noisy
    assert own_noise(noisy, 1).seed != own_noise(noisy, 2).seed != noisy.seed
    masked = own_noise(tg.RandomK(density=0.1, seed=3, values=noisy), 1)
    assert masked.seed == 3
    assert masked.values.seed != noisy.seed
    assert own_noise(tg.Quantize(bits=4, seed=9), 1) == tg.Quantize(bits=4, seed=9)


def test_each_bucket_is_one_uint8_collective_that_the_hook_issues(run: Results) -> None:
    for result in run("sixteen_buckets"):
        messages = [call for call in result["calls"] if call["dtype"] == torch.uint8]
        buckets_by_step = [1, 16, 16, 16, 16]
        assert len(messages) == sum(buckets_by_step)
        assert all(call["name"].startswith("all_gather") for call in messages)
        assert all(call["main"] for call in result["calls"])
        agreements = [call for call in result["calls"] if call["dtype"] == torch.int64]
        compared = [call for call in agreements if call["name"].startswith("all_gather")]
        assert len(compared) == 17  # one for each new layout, none in a settled step
        assert result["calls"][-16:] == messages[-16:]


def test_two_steps_send_half_of_each_message_and_a_mean_compressed_again(run: Results) -> None:
    results = run("two_step")
    for name in results[0]:
        first, second = (result[name] for result in results)
        assert same(first["weights"], second["weights"]), name
        assert same(first["weights"], first["simulated"]), name
        assert set(first["forms"]) == {"two_step"}


def test_the_second_collective_is_not_issued_by_the_hook(run: Results) -> None:
    for result in run("two_step"):
        for each in result.values():
            gathered = [c for c in each["calls"] if c["dtype"] == torch.uint8]
            assert {call["name"] for call in gathered} == {"all_to_all_single"}
            assert all(call["main"] for call in gathered)


def test_replicas_in_half_precision_stay_identical_in_two_steps(run: Results) -> None:
    first, second = run("half_precision_in_two_steps")
    for name in ("torch.float16", "torch.bfloat16"):
        assert same(first[name], second[name])


def test_noop_sends_nothing_and_leaves_each_rank_its_gradient(run: Results) -> None:
    first, second = run("noop")
    for result in (first, second):
        assert same(result["weights"], result["alone"])
        assert [c for c in result["calls"] if c["dtype"] == torch.uint8] == []
        assert result["stats"]["sent_bytes"] == 0
    assert not same(first["weights"], second["weights"])


def test_sixteen_buckets_in_two_steps_do_not_deadlock_in_2000_steps(run: Results) -> None:
    first, second = run("two_thousand_steps")
    assert same(first["weights"], second["weights"])
    for result in (first, second):
        assert result["step"] == 2000
        assert len(result["stats"]["buckets"]) == 16


def test_replicas_are_identical_after_500_steps_under_every_option(run: Results) -> None:
    first, second = run("five_hundred_steps")
    assert len(first) == 6
    for name in first:
        assert same(first[name], second[name]), name
        assert all(bool(weight.isfinite().all()) for weight in first[name]), name
