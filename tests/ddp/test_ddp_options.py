"""Laws of the DDP hook: what each option does."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ddp_workers import Results, assert_replicas_follow_the_simulation, same

import tersegrad as tg
from tersegrad.ddp import CompressionState, MomentumCorrection, Rule, Warmup
from tersegrad.ddp.memory import ALIGNMENT, PART_ENTRIES, split
from tersegrad.ddp.rules import RuleBook, with_density
from tersegrad.ddp.telemetry import TRIAL_STEPS, Counters, Reporter, time_lost
from tersegrad.ddp.worker import Worker


def test_warmup_steps_are_those_of_plain_ddp_and_counted_as_dense(run: Results) -> None:
    first, second = run("warmup")
    assert same(first["weights"], first["plain"])
    assert same(first["weights after"], second["weights after"])
    agreements = 17 * 4 * 8  # of the fused bucket and of sixteen
    assert first["warm"]["sent_bytes"] == first["warm"]["dense_bytes"] + agreements
    assert first["after"]["ratio"] > 5
    assert first["after"]["steps"] == 2


def test_a_schedule_goes_from_dense_to_the_density_of_the_codec(run: Results) -> None:
    results = run("warmup_phases")
    assert_replicas_follow_the_simulation(results)
    sent = results[0]["sent"]
    assert sent[1] > sent[3] > sent[5]


def test_density_is_raised_and_never_lowered() -> None:
    topk = tg.TopK(density=0.01, values=tg.Sign())
    assert with_density(topk, 0.25) == tg.TopK(density=0.25, values=tg.Sign())
    assert with_density(topk, 0.001) == with_density(topk, 0.0) == topk
    assert with_density(tg.ChunkTopK(k=2, chunk=64), 0.1) == tg.ChunkTopK(k=7, chunk=64)
    assert with_density(tg.RandomK(density=0.1, seed=4), 0.5) == tg.RandomK(density=0.5, seed=4)
    for codec in (tg.TopK(k=5), tg.Quantize(bits=4), tg.Identity()):
        assert with_density(codec, 0.5) == codec


def test_a_phase_lasts_its_steps() -> None:
    warmup = Warmup(3, (1.0, 0.25))
    assert [warmup.density(step) for step in range(8)] == [1, 1, 1, 0.25, 0.25, 0.25, 0, 0]
    assert Warmup(0).density(0) == 0


@pytest.mark.parametrize("exchange", ["all_gather", "two_step"])
@pytest.mark.parametrize("variant", ["masking", "no masking", "nesterov"])
def test_momentum_correction_is_that_of_the_paper(
    run: Results, variant: str, exchange: str
) -> None:
    results = [result[f"{variant} {exchange}"] for result in run("momentum_correction")]
    assert_replicas_follow_the_simulation(results)


def test_a_gradient_is_clipped_to_its_share_of_the_norm_and_follows_the_loss_scale() -> None:
    momentum = MomentumCorrection(0.9, clip_norm=2.0)
    gradient = torch.tensor([3.0, 4.0])
    momentum.clip(gradient, world_size=4, scale=1.0)
    assert torch.equal(gradient, torch.tensor([3.0, 4.0]) * (1.0 / 5.0))
    unclipped = torch.tensor([3.0, 4.0])
    momentum.clip(unclipped, world_size=4, scale=8.0)
    assert torch.equal(unclipped, torch.tensor([3.0, 4.0]))
    broken = torch.tensor([float("inf"), 1.0])
    momentum.clip(broken, world_size=4, scale=1.0)
    assert not bool(broken.isfinite().all())


@pytest.mark.parametrize("form", ["dict", "list", "function"])
def test_the_first_rule_that_fits_decides(run: Results, form: str) -> None:
    results = [result[form] for result in run("rules")]
    assert_replicas_follow_the_simulation(results)
    assert "0.weight" not in results[0]["residuals"]
    assert "2.weight" in results[0]["residuals"]


def test_a_rule_looks_at_name_size_and_dimension() -> None:
    weight, bias = torch.zeros(8, 8), torch.zeros(8)
    assert Rule(tg.Sign()).fits("any", bias)
    assert Rule(tg.Sign(), name="*.bias").fits("1.bias", bias)
    assert not Rule(tg.Sign(), name="*.bias").fits("1.weight", weight)
    assert Rule(tg.Sign(), min_size=64, max_size=64, ndim=2).fits("w", weight)
    assert not Rule(tg.Sign(), min_size=65).fits("w", weight)
    assert not Rule(tg.Sign(), max_size=63).fits("w", weight)
    assert not Rule(tg.Sign(), ndim=1).fits("w", weight)


def test_a_rule_that_decides_for_nothing_is_an_error_that_names_it() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for rules, reason in (
        ({"*.bias": tg.Identity(), "*.wieght": tg.Sign()}, r"fits the rule .*wieght.*0\.weight"),
        ({"*": tg.Sign(), "*.bias": tg.Identity()}, r"\*\.bias.*earlier rules fit 0\.bias"),
    ):
        with pytest.raises(tg.StateError, match=reason):
            CompressionState(tg.Sign(), model, rules=rules)
    CompressionState(tg.Sign(), model, rules={"*.bias": tg.Identity(), "*": tg.Sign()})


def test_rules_need_names() -> None:
    book = RuleBook(tg.Sign(), {"*.bias": tg.Identity()}, 0)
    with pytest.raises(tg.StateError, match="bind"):
        book.codec_of(None, torch.zeros(8, 8))
    assert RuleBook(tg.Sign(), None, 0).codec_of(None, torch.zeros(8, 8)) == tg.Sign()


@pytest.mark.parametrize("exchange", ["all_gather", "two_step"])
def test_scratch_beyond_the_budget_is_freed_and_changes_no_bit(run: Results, exchange: str) -> None:
    for result in run("scratch_budget"):
        unlimited, little, none = (result[f"{exchange} {b}"] for b in (None, 1000, 0))
        assert same(unlimited["weights"], little["weights"])
        assert same(unlimited["weights"], none["weights"])
        assert unlimited["kept"] > 1000 >= little["kept"] > none["kept"] == 0


@pytest.mark.parametrize(("world_size", "n"), [(2, 0), (2, 48), (2, 8192), (3, 100_000), (8, 9000)])
def test_parts_tile_a_parameter_and_have_different_owners(world_size: int, n: int) -> None:
    loads = [0] * world_size
    parts = split(n, loads)
    assert parts[0].start == 0
    assert parts[-1].stop == n
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
    assert len({part.owner for part in parts}) == len(parts)
    assert all(part.start % ALIGNMENT == 0 for part in parts)
    if len(parts) > 1:
        assert min(part.stop - part.start for part in parts) > PART_ENTRIES - ALIGNMENT
    assert sum(loads) == n


def test_owners_carry_equal_loads() -> None:
    loads = [0] * 3
    for n in (48, 5000, 100, 48, 200_000, 7000, 3000):
        split(n, loads)
    assert max(loads) - min(loads) < 8192


def test_the_statistics_name_every_bucket_and_add_up(run: Results) -> None:
    for result in run("telemetry"):
        stats = result["stats"]
        assert len(stats["buckets"]) == 16
        assert [bucket["index"] for bucket in stats["buckets"]] == list(range(16))
        squares = sum(bucket["residual_norm"] ** 2 for bucket in stats["buckets"])
        assert squares == pytest.approx(stats["residual_norm"] ** 2, rel=1e-12)  # float64 sums
        assert stats["residual_norm"] == result["norm"] > 0
        for bucket in stats["buckets"]:
            assert bucket["exchange"] == "all_gather"
            assert bucket["entries"] == 48 * 48 + 48
            assert bucket["ratio"] == bucket["dense_bytes"] / bucket["sent_bytes"] > 5
            assert bucket["skipped_steps"] == 0
            assert min(bucket[f"{what}_seconds"] for what in ("compress", "wait", "decode")) > 0


def test_rank_0_logs_and_writes_scalars_every_so_many_steps(run: Results) -> None:
    first, second = run("telemetry")
    assert second["lines"] == second["scalars"] == []
    assert [line.split(":")[0] for line in first["lines"]] == ["INFO step 2", "INFO step 4"]
    tags = {tag for tag, _, _ in first["scalars"]}
    assert {"tersegrad/ratio", "tersegrad/residual_norm", "tersegrad/wait_seconds"} <= tags
    assert {step for _, _, step in first["scalars"]} == {2, 4}


def test_time_is_lost_when_codec_and_waiting_take_longer_than_the_dense_bytes_would() -> None:
    counters = Counters()
    counters.add(steps=100, dense_received_bytes=1000, compress_seconds=3, wait_seconds=1)
    assert time_lost(counters.read()) == 0  # no bandwidth is known
    counters.observe(500.0)
    assert time_lost(counters.read()) == (4 - 1000 / 500) / 100
    counters.observe(100.0)  # the fastest counts
    assert time_lost(counters.read()) == (4 - 1000 / 500) / 100


def test_the_warning_about_lost_time_comes_once_and_after_a_trial(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="tersegrad.ddp")
    reporter = Reporter(0, None)
    sums = {**Counters().read(), "bandwidth": 1e6, "dense_received_bytes": 1e6}
    winning = {**sums, "steps": TRIAL_STEPS, "wait_seconds": 0.5}
    early = {**sums, "steps": TRIAL_STEPS - 1, "wait_seconds": 2.0}
    for calm in (winning, early):
        reporter.warn_of_lost_time(calm)
    assert caplog.messages == []
    losing = {**winning, "wait_seconds": 2.0}
    reporter.warn_of_lost_time(losing)
    reporter.warn_of_lost_time(losing)
    assert len(caplog.messages) == 1
    assert "loses about 20.0 ms a step" in caplog.messages[0]


def test_a_worker_runs_jobs_in_order_and_hands_on_what_they_raise() -> None:
    worker, order = Worker(), []

    def job(number: int) -> torch.Tensor:
        order.append(number)
        if number == 1:
            raise ArithmeticError("the job is broken")
        return torch.tensor(number)

    cpu = torch.device("cpu")
    futures = [worker.run(lambda n=n: job(n), cpu, beside=True) for n in range(3)]
    assert int(futures[2].wait()) == 2
    with pytest.raises(RuntimeError, match="ArithmeticError: the job is broken"):
        futures[1].wait()
    assert order == [0, 1, 2]


def test_a_worker_in_a_forked_process_starts_a_thread_of_its_own() -> None:
    worker, cpu = Worker(), torch.device("cpu")
    assert int(worker.run(lambda: torch.tensor(1), cpu, beside=True).wait()) == 1
    worker._process = -1  # as after a fork, which copies no threads
    assert int(worker.run(lambda: torch.tensor(2), cpu, beside=True).wait()) == 2


def test_a_program_waits_for_the_worker_before_it_ends() -> None:
    """Python unwinds a daemon thread that it finds in C++ at exit, which aborts the process."""
    code = """
import time, torch
from tersegrad.ddp.worker import Worker
class Slow:
    sleep = staticmethod(time.sleep)
    def __del__(self):
        self.sleep(1.5)  # the interpreter is shutting down, and lets other threads run
slow = Slow()
worker = Worker()
worker.run(lambda: time.sleep(0.5) or torch.zeros(1), torch.device("cpu"), beside=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_arguments_are_checked_where_they_are_given() -> None:
    codec = tg.TopK(density=0.1)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: CompressionState("topk"), "codec must be a codec"),
        (lambda: CompressionState(codec, warmup_steps=-1), "-1"),
        (lambda: CompressionState(codec, warmup_steps=1, warmup=Warmup(1)), "beside a warmup"),
        (lambda: CompressionState(codec, exchange="ring"), "ring"),
        (lambda: CompressionState(codec, min_size=-2), "-2"),
        (lambda: CompressionState(codec, rules=[tg.Sign()]), "Rule"),
        (lambda: CompressionState(codec, process_group=(None,)), "pair"),
        (lambda: CompressionState(codec, scaler=1.0), "get_scale"),
        (lambda: CompressionState(codec, writer=object()), "log_every"),
        (lambda: CompressionState(codec, log_every=-1), "log_every"),
        (lambda: CompressionState(codec, scratch_bytes=-1), "scratch_bytes"),
        (
            lambda: CompressionState(codec, momentum=MomentumCorrection(), error_feedback=False),
            "error_feedback",
        ),
        (
            lambda: CompressionState(codec, momentum=MomentumCorrection(), rollback=False),
            "rollback",
        ),
        (lambda: CompressionState(tg.Sign(), warmup=Warmup(5)), "no density"),
        (lambda: Warmup(5, (0.1, 0.5)), "rise"),
        (lambda: Warmup(5, (0.0,)), "densities"),
        (lambda: Warmup(-1), "-1"),
        (lambda: MomentumCorrection(1.0), "momentum"),
        (lambda: MomentumCorrection(clip_norm=0.0), "clip_norm"),
        (lambda: Rule(tg.Sign(), name=3), "pattern"),
        (lambda: Rule(tg.Sign(), ndim=-1), "ndim"),
    ]
    for make, words in cases:
        with pytest.raises(tg.StateError, match=words):
            make()
    with pytest.raises(tg.CodecError):
        Rule("sign")
    with pytest.raises(tg.InputError, match="finite"):
        CompressionState(codec).rescale(float("nan"))
