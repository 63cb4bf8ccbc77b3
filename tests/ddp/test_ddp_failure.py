"""Laws of the DDP hook: numbers that are not finite, loss scaling, ranks that differ or fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ddp_workers import Results, same, same_tensors

WAYS = ("all_gather", "two_step", "momentum")


@pytest.mark.parametrize("way", [*WAYS, "no rollback"])
def test_a_non_finite_gradient_is_nan_on_every_rank_and_nothing_hangs(
    run: Results, way: str
) -> None:
    results = [result[way] for result in run("not_finite")]
    for result in results:
        good, infinity, nan, *last = result["notes"]
        assert [note["nan"] for note in (good, *last)] == [[], [], []]
        assert infinity["nan"] == ["4.weight"]
        assert nan["nan"] == ["6.bias"]
        for note in result["notes"]:
            assert sorted(note["nan"] + note["finite"]) == sorted(result["names"])
        assert [note["nonfinite"] for note in result["notes"]] == [0, 1, 2, 2, 2]
        assert [note["skipped"] for note in result["notes"]] == [0, 1, 2, 2, 2]
    assert same(results[0]["weights"], results[1]["weights"])


@pytest.mark.parametrize("way", WAYS)
def test_a_step_with_one_bad_number_never_happened_for_any_memory_of_any_rank(
    run: Results, way: str
) -> None:
    for result in run("not_finite"):
        changed = [len(note["changed"]) for note in result[way]["notes"]]
        assert changed[1:3] == [0, 0]
        assert all(count > 0 for count in (changed[0], *changed[3:]))
        assert same(result[way]["weights"], result[way]["simulated"])


def test_without_rollback_the_bad_parameter_alone_keeps_its_residual(run: Results) -> None:
    first, second = (result["no rollback"]["notes"] for result in run("not_finite"))
    weights = len(first[0]["changed"])
    assert len(first[1]["changed"]) == weights  # rank 0 sent all of its own
    assert len(second[1]["changed"]) == weights - 1
    assert "residuals/4.weight" not in second[1]["changed"]


def test_the_dense_warm_up_notices_bad_numbers_too(run: Results) -> None:
    first, second = run("not_finite_while_warming_up")
    assert same(first["weights"], second["weights"])
    for result in (first, second):
        assert [note["skipped"] for note in result["notes"]] == [0, 1, 2, 2]
        assert [len(note["changed"]) for note in result["notes"]][1:3] == [0, 0]
        assert [note["nan"] for note in result["notes"]] == [[], ["4.weight"], ["6.bias"], []]


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_scale_that_changes_changes_no_bit_and_memory_follows_it(
    run: Results, way: str
) -> None:
    first, second = run("loss_scaling")
    scaled, plain = first[f"{way} True"], first[f"{way} False"]
    assert scaled["scales"] == [1024, 2048, 2048, 1024, 1024, 2048]
    assert scaled["saved scale"] == 1024  # of the last backward pass
    assert same(scaled["weights"], plain["weights"])
    assert same(scaled["weights"], second[f"{way} True"]["weights"])
    assert scaled["skipped"] == plain["skipped"] == second[f"{way} True"]["skipped"] == 1
    unscaled = {name: memory / 1024 for name, memory in scaled["memory"].items()}
    assert same_tensors(unscaled, plain["memory"])


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("codec", "the codec"),
        ("min_size", "options"),
        ("warmup", "options"),
        ("step", "the step"),
        ("rule", "layout of a bucket"),
        ("later", "step 3"),
    ],
)
def test_ranks_that_disagree_all_get_an_error(run: Results, name: str, subject: str) -> None:
    for messages in run("disagreeing_ranks"):
        assert subject in messages[name]


def test_gradients_of_other_kinds_are_refused_by_name(run: Results) -> None:
    for messages in run("refused_gradients"):
        assert "torch.float64" in messages["float64"]
        assert "sparse" in messages["sparse"]


@pytest.mark.parametrize("way", ["all_gather", "two_step", "owner"])
def test_a_codec_that_fails_on_one_rank_stops_every_rank(run: Results, way: str) -> None:
    first, second = (result[way] for result in run("failing_codec"))
    assert "rank 1 could not compress" in first
    assert "ArithmeticError: the " in second


FORGETFUL = """
import sys, torch, torch.distributed as dist
import tersegrad as tg
from tersegrad.ddp import CompressionState, compression_hook
from torch.nn.parallel import DistributedDataParallel as DDP
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
model = DDP(torch.nn.Linear(100, 100))
state = CompressionState(tg.TopK(density=0.1), model, exchange="two_step")
model.register_comm_hook(state, compression_hook)
for _ in range(3):
    model(torch.ones(2, 100)).sum().backward()
print("done")
"""


def test_a_program_that_leaves_its_groups_open_ends_cleanly(tmp_path: Path) -> None:
    """No thread of ours drops the last reference to a group while the interpreter shuts down."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if sys.platform == "darwin":
        environment["GLOO_SOCKET_IFNAME"] = "lo0"
    command = [sys.executable, "-c", FORGETFUL, str(tmp_path / "rendezvous")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=120)
        assert rank.returncode == 0, output
        assert output.decode().strip() == "done"
