"""Laws of LowRank in the hook: factors are averaged, and all ranks decode the same."""

from __future__ import annotations

import pytest
import torch
from ddp_workers import Results, assert_replicas_follow_the_simulation, same

import tersegrad as tg
from tersegrad.ddp import CompressionState


def test_the_ranks_decode_the_mean_of_q_on_the_common_p(run: Results) -> None:
    assert_replicas_follow_the_simulation(run("factors_are_averaged"))


def test_a_settled_bucket_takes_one_message_and_one_all_reduce_of_each_factor(run: Results) -> None:
    for result in run("factors_are_averaged"):
        floats = [c["bytes"] for c in result["calls"] if c["dtype"] == torch.float32]
        reduced = floats[-16:]  # of P; that of Q is on the thread's own group
        assert reduced == [4 * 2 * 48] * 16
        sent = result["stats"]["sent_bytes"]
        messages = sum(
            c["bytes"] for c in result["calls"] if c["dtype"] in (torch.uint8, torch.int64)
        )
        assert sent < messages + 5 * 16 * 4 * 2 * (48 + 48) + 1
        assert result["stats"]["buckets"][0]["exchange"] == "low_rank"


def test_replicas_are_identical_under_every_option_of_low_rank(run: Results) -> None:
    first, second = run("low_rank_options")
    assert len(first) == 16
    for name in first:
        assert same(first[name], second[name]), name
        assert all(bool(weight.isfinite().all()) for weight in first[name]), name


def test_sixteen_buckets_of_low_rank_do_not_deadlock(run: Results) -> None:
    first, second = run("low_rank_replicas")
    assert same(first["weights"], second["weights"])
    assert len(first["stats"]["buckets"]) == 16
    assert first["stats"]["steps"] == first["steps"]


def test_replicas_of_low_rank_are_identical_after_500_steps(run: Results) -> None:
    first, second = run("low_rank_five_hundred_steps")
    assert same(first, second)


def test_a_resumed_run_of_low_rank_is_the_run_that_was_not_killed(run: Results) -> None:
    results = run("low_rank_checkpoint")
    for rank, result in enumerate(results):
        assert same(result["whole"], result["resumed"])
        factors = result["saved"]["ranks"][str(rank)]["factors"]
        assert {f.numel() for f in factors.values()} == {2 * 48}
        assert "factor" in result["refusal"]
    merged = [result["saved"]["ranks"][str(rank)]["factors"] for rank, result in enumerate(results)]
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


def test_a_step_with_nan_on_one_rank_is_undone_on_all(run: Results) -> None:
    results = run("low_rank_nan")
    for result in results:
        before, after = result["before"], result["after"]
        assert same(before[0], after[0])
        assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
        assert all(torch.equal(before[2][name], after[2][name]) for name in before[2])
        assert result["spoiled"]
        assert result["skipped"] == 1
    assert same(results[0]["weights"], results[1]["weights"])


def test_two_steps_of_low_rank_are_refused_before_training() -> None:
    with pytest.raises(tg.CodecError, match="exchange of its own"):
        CompressionState(tg.LowRank(), exchange="two_step")
